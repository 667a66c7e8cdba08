"""Images larger than memory, and those with a place on Earth: TIFFs in overlapping windows to tiled TIFFs of labels.

    predict_raster(model, "scene.tif", "labels.tif")   # or emanet.Predictor(model).raster("scene.tif", "labels.tif")

On the command line: python -m emanet predict MODEL scene.tif --out FOLDER

The windows are those of evaluate's mode "slide": one grid over the whole image. A window's probabilities weigh less
towards its edges, where the network sees little around a pixel. What is summed up is a strip of columns, as wide as
`memory` allows and as high as a window, which moves down the image; the next strip predicts the windows across its
edge again, on the same grid, so labels do not depend on `memory`. That, GDAL's cache of CACHE bytes, one block of the
file (a tile, or the rows that are compressed as one) and what the network needs for a window is all the memory it
takes, whatever the image's size: 288 MiB, the block and the network.
"""

import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from rich.console import Console
from rich.progress import Progress

from ..atomic import move_whole
from ..config import IGNORE, EvalConfig
from ..errors import InputError
from ..inference import probabilities, window_starts
from ..model import EMANet
from ..show.colours import IGNORE_COLOUR

LARGE = 32_000_000  # pixels from which is_raster takes a TIFF that has no georeference
MEMORY = 256 << 20
CACHE = 32 << 20  # GDAL's own default is a share of the machine's memory
TILE = 256
WIDTH, HEIGHT, ORIENTATION = 256, 257, 274  # TIFF tags
SIDECARS = (".aux.xml", ".ovr", ".msk")  # beside a TIFF: what GDAL has to say of it, its overviews, its mask
GEOREFERENCE = {33550, 33922, 34264, 34735, 50844}  # pixel scale, tie points, transformation, GeoTIFF keys, RPCs
WORLD_FILES = (".tfw", ".TFW", ".tifw", ".tiffw", ".wld")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF


def is_raster(path: str | Path) -> bool:
    """Whether a file is a TIFF that predict_files gives to predict_raster: georeferenced, or of LARGE pixels and more.

    The georeference may lie beside it, as a world file or in GDAL's .aux.xml. Only headers are read, and rasterio is
    not needed.
    """
    tags = tiff_tags(path)
    w, h = tags.get(WIDTH), tags.get(HEIGHT)
    sized = isinstance(w, int) and isinstance(h, int)  # a broken header may have anything there
    placed = not tags.keys().isdisjoint(GEOREFERENCE) or (tags and _placed_beside(Path(path)))
    return bool(placed or (sized and w * h >= LARGE))


def _placed_beside(path: Path) -> bool:
    if any(path.with_suffix(suffix).is_file() for suffix in WORLD_FILES):
        return True
    with suppress(OSError):
        return b"<GeoTransform>" in Path(f"{path}.aux.xml").read_bytes()
    return False


def tiff_tags(path: str | Path) -> dict[int, Any]:
    """The tags of a TIFF's first image; none of another file, or of one whose header cannot be read."""
    try:
        with open(path, "rb") as file:
            header = file.read(8)
            if header[:4] not in TIFF:
                return {}
            header += file.read(8) if b"+" in header[:4] else b""
            tags = ImageFileDirectory_v2(header)
            file.seek(tags.next)
            tags.load(file)
            return dict(tags)
    except Exception:  # Pillow raises nearly anything on broken files; whoever reads the pixels will say what is wrong
        return {}


def predict_raster(
    model: EMANet,
    path: str | Path,
    out: str | Path,
    config: EvalConfig = EvalConfig(),
    *,
    bands: Sequence[int] = (),
    batch: int = 1,
    memory: int = MEMORY,
    progress: bool = False,
) -> None:
    """Write the class indices of a TIFF as another: tiled, compressed, with the palette and the first one's place.

    model: in eval mode. config: its window, overlap, scales and flip count, the latter two within each window; there
    is no whole image to predict at once, whatever its mode. bands: those that are the model's channels, from 1; by
    default all, without alpha. batch: windows that go through the model at once. memory: bytes for a strip; at
    least one tile's width is taken. progress: a bar on stderr.

    The pixels are uint8. Those that the file's mask, alpha band or nodata value hides get 255, the nodata value of what
    is written, and windows with nothing else are not predicted. CRS and transform, ground control points and RPCs are
    kept; a CRS that GeoTIFF has no keys for lies in OUT.aux.xml. OUT appears when it is whole, also where SIGTERM,
    SIGHUP or KeyboardInterrupt ends the process, and sidecars of an older OUT go. Raises InputError, which names the
    file.
    """
    rasterio = _rasterio(path)
    out = Path(out)
    # Absolute, since GDAL takes some relative names for a syntax of its own: GTIFF_DIR:1:x.tif is the file x.tif.
    partial = out.absolute().with_name(f".{out.name}.partial")
    side, sidecars = Path(f"{partial}.aux.xml"), [Path(f"{out}{suffix}") for suffix in SIDECARS]
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE), _cleaned_up():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with _named("read image", path):
            # No other driver: some follow links to elsewhere.
            source = rasterio.open(Path(path).absolute(), driver="GTiff")
        try:
            with source:
                if any(os.path.exists(each) and os.path.samefile(each, path) for each in (out, *sidecars)):
                    raise InputError(f"the image {path} would be overwritten by its labels; name another file")
                image, profile = _image(source, path, model, bands), _profile(source)
                with _named("write", out):
                    out.parent.mkdir(parents=True, exist_ok=True)
                    partial.unlink(missing_ok=True)  # GDAL would open what an interrupted run has left
                    _unlink(side)
                    target = rasterio.open(partial, "w", **profile)
                    target.write_colormap(1, _colours(model.palette))
                try:
                    total = _predict(model, image, target, out, config, batch, memory, progress)
                finally:
                    with _named("write", out):
                        target.close()
            with _named("write", out):
                _verify(partial, total, profile)
                for each in sidecars:  # of an older OUT: GDAL would show its overviews and statistics for the new one's
                    _unlink(each)
                move_whole(partial, out)
                if os.path.exists(side):
                    move_whole(side, sidecars[0])
        finally:
            for each in (partial, side):
                with suppress(OSError):
                    each.unlink()


def _unlink(path: Path) -> None:
    if os.path.lexists(path):  # false too where the name is too long for there to be such a file
        path.unlink()


@contextmanager
def _cleaned_up() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit where they would end the process at once; in the main thread only."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = threading.current_thread() is threading.main_thread()
    # Any other handler is the caller's, and what is ignored (by nohup) stays so.
    ours = [each for each in numbers if heard and signal.getsignal(each) == signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        for each in ours:  # a closed terminal sends two, and the second would come in the middle of the cleaning up
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for each in ours:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


@dataclass(frozen=True)
class _Image:
    """An open TIFF as the model takes it."""

    source: Any
    path: str | Path
    bands: list[int]
    masked: bool

    def read(self, top: int, left: int, bottom: int, right: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (channels, h, w) uint8 of a part of it, and which of them are data (h, w) bool."""
        window = ((top, bottom), (left, right))
        with _named("read image", self.path):
            pixels = self.source.read(self.bands, window=window)
            if not self.masked:
                return pixels, np.ones(pixels.shape[1:], bool)
            return pixels, self.source.dataset_mask(window=window) > 0


def _image(source: Any, path: str | Path, model: EMANet, bands: Sequence[int]) -> _Image:
    """Which bands are the channels; InputError where that is not plain, or where their values are no intensities."""
    channels, count = model.backbone.in_channels, source.count
    alpha = {i for i, meaning in enumerate(source.colorinterp, 1) if meaning.name == "alpha"}
    chosen = list(bands) or [i for i in range(1, count + 1) if count == channels or i not in alpha]
    if outside := [i for i in chosen if not 1 <= i <= count]:
        raise InputError(f"image {path} has bands 1 to {count}, but no band {outside[0]}")
    if len(chosen) != channels:
        if bands:
            raise InputError(f"{len(chosen)} bands are named, but the model takes {channels} channels")
        names = ", ".join(meaning.name for meaning in source.colorinterp)
        hint = f"; name {channels} with --bands" if count > channels else ""
        raise InputError(f"image {path} has {count} bands ({names}), but the model takes {channels} channels{hint}")
    kinds = {source.dtypes[i - 1] for i in chosen} - {"uint8"}
    if kinds:
        raise InputError(
            f"cannot read image {path} in windows: its pixels are {kinds.pop()}, but must be uint8, "
            "scaled as those of the training images were"
        )
    meanings = {source.colorinterp[i - 1].name for i in chosen}
    structure = source.tags(ns="IMAGE_STRUCTURE") | source.tags(chosen[0], ns="IMAGE_STRUCTURE")
    turn = tiff_tags(path).get(ORIENTATION, 1)
    for wrong, what in (
        ("palette" in meanings, "its pixels are indices of a palette"),
        ("MINISWHITE" in structure, "its zero is white"),
        ("NBITS" in structure, f"its pixels have {structure.get('NBITS')} bits"),
        (turn != 1, f"its orientation is {turn}, not upright"),
    ):
        if wrong:
            raise InputError(f"cannot read image {path} in windows: {what}")
    flags = {flag.name for i in chosen for flag in source.mask_flag_enums[i - 1]}
    return _Image(source, path, chosen, masked="all_valid" not in flags and not alpha & set(chosen))


def _profile(source: Any) -> dict[str, Any]:
    """How the labels are stored: with the place on Earth of the source."""
    points, points_crs = source.gcps
    place = {"crs": source.crs or points_crs, "rpcs": source.rpcs}
    if not source.transform.is_identity:
        place["transform"] = source.transform
    else:  # a file holds one or the other
        place["gcps"] = points or None
    tiles = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate", "bigtiff": "if_safer"}
    size = {"width": source.width, "height": source.height, "count": 1, "dtype": "uint8", "nodata": IGNORE}
    return {"driver": "GTiff", **size, **tiles, **{key: value for key, value in place.items() if value is not None}}


def _colours(palette: Sequence[tuple[int, int, int]]) -> dict[int, tuple[int, int, int, int]]:
    return {i: (*colour, 255) for i, colour in enumerate(palette)} | {IGNORE: (*IGNORE_COLOUR, 255)}


def _predict(
    model: EMANet,
    image: _Image,
    target: Any,
    out: Path,
    config: EvalConfig,
    batch: int,
    memory: int,
    progress: bool,
) -> int:
    """Write the labels, whole tiles at a time; their sum is returned."""
    h, w = image.source.height, image.source.width
    # Bytes a pixel: the sums, its values, and 16 for argmax, mask, labels and the copy of one class.
    column = min(h, config.window[0]) * (4 * len(model.classes) + len(image.bands) + 16)
    step = max(1, memory // (column * TILE)) * TILE
    strips = [_Strip(model, image, config, batch, left, min(w, left + step)) for left in range(0, w, step)]
    total = 0
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task(f"predict {Path(image.path).name}", total=sum(strip.windows for strip in strips))
        for strip in strips:
            done, pending = 0, np.empty((0, strip.right - strip.left), np.uint8)
            for labels, windows in strip.rows():
                bar.advance(task, windows)
                pending = np.concatenate([pending, labels])
                ready = len(pending) if done + len(pending) == h else len(pending) // TILE * TILE
                if ready:
                    with _named("write", out):
                        target.write(pending[:ready], 1, window=((done, done + ready), (strip.left, strip.right)))
                    total += int(pending[:ready].sum(dtype=np.int64))
                    done, pending = done + ready, pending[ready:]
    return total


class _Strip:
    """The labels of the columns left to right."""

    def __init__(self, model: EMANet, image: _Image, config: EvalConfig, batch: int, left: int, right: int):
        self.model, self.image, self.batch, self.left, self.right = model, image, batch, left, right
        self.size = min(image.source.height, config.window[0]), min(image.source.width, config.window[1])
        self.tops = window_starts(image.source.height, config.window[0], config.overlap)
        starts = window_starts(image.source.width, config.window[1], config.overlap)
        self.lefts = [start for start in starts if start < right and start + self.size[1] > left]
        self.config = replace(config, mode="whole")  # of each window
        self.weight = window_weight(self.size, config.overlap).to(model.mean.device)

    @property
    def windows(self) -> int:
        return len(self.tops) * len(self.lefts)

    def rows(self) -> Iterator[tuple[np.ndarray, int]]:
        """Labels (rows, right - left) uint8 from top to bottom, each with how many windows they have taken."""
        h, w = self.size
        first = self.lefts[0]
        total = torch.zeros(len(self.model.classes), h, self.right - self.left, device=self.weight.device)
        for top, below in zip(self.tops, [*self.tops[1:], self.image.source.height], strict=True):
            pixels, data = self.image.read(top, first, top + h, self.lefts[-1] + w)
            wanted = [left for left in self.lefts if data[:, left - first : left - first + w].any()]
            for k in range(0, len(wanted), self.batch):
                self._add(total, pixels, wanted[k : k + self.batch])
            final = below - top  # rows: no window to come reaches them
            labels = total[:, :final].argmax(0).to(torch.uint8).cpu().numpy()  # of weighted sums: nothing to divide by
            labels[~data[:final, self.left - first : self.right - first]] = IGNORE
            for plane in total:  # one at a time, since what overlaps is copied first
                plane[: h - final] = plane[final:].clone()
                plane[h - final :] = 0
            yield labels, len(self.lefts)

    def _add(self, total: torch.Tensor, pixels: np.ndarray, chosen: list[int]) -> None:
        """Add the weighted probabilities of the windows that begin at the columns `chosen`."""
        w, first = self.size[1], self.lefts[0]  # where the pixels begin
        windows = np.stack([pixels[:, :, left - first : left - first + w] for left in chosen])
        found = probabilities(self.model, torch.from_numpy(windows).to(total.device), self.config) * self.weight
        for left, p in zip(chosen, found, strict=True):
            begin, end = max(left, self.left), min(left + w, self.right)
            total[:, :, begin - self.left : end - self.left] += p[:, :, begin - left : end - left]


def window_weight(size: tuple[int, int], overlap: float) -> torch.Tensor:
    """What a window's probabilities weigh, (h, w) in (0, 1]: sin^2 over the overlap, where two windows add up to 1."""
    sides = []
    for side in size:
        ramp = max(1, round(side * overlap) + 1)
        place = torch.arange(1, side + 1)
        height = torch.minimum(place, side + 1 - place).clamp(max=ramp) / ramp
        sides.append(torch.sin(height * (torch.pi / 2)) ** 2)
    return sides[0][:, None] * sides[1]


def _verify(path: Path, total: int, profile: dict[str, Any]) -> None:
    """Read the labels back, whose sum is known: GDAL reports nothing of what fails as a file is closed."""
    rasterio = _rasterio(path)
    try:
        with rasterio.open(path, driver="GTiff") as file:
            found = sum(int(file.read(1, window=window).sum(dtype=np.int64)) for _, window in file.block_windows(1))
            # Not whether the CRS is the same: GDAL rewords those without a code, and compares the words.
            lost = "crs" in profile and not (file.crs or file.gcps[1])
            moved = file.transform != profile.get("transform", file.transform)
    except rasterio.errors.RasterioError:
        found = None
    if found != total:
        raise OSError("it does not read back as it was written")
    if lost or moved:
        raise OSError(0, f"GeoTIFF cannot hold its {'CRS' if lost else 'transform'}")


@contextmanager
def _named(doing: str, path: str | Path) -> Iterator[None]:
    """Around calls of GDAL alone: what they raise becomes one sentence with the file's name."""
    try:
        yield
    except Exception as error:  # some of GDAL's errors have no public name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error.__cause__ or error)
        hint = "; is the disk full?" if doing == "write" and not getattr(error, "strerror", None) else ""
        raise InputError(f"cannot {doing} {path}: {reason.splitlines()[0].rstrip('.')}{hint}") from error


def _rasterio(path: str | Path) -> Any:
    try:
        import rasterio._base
    except ImportError as error:
        raise InputError(
            f"predicting {path} in windows needs rasterio, which is not installed: pip install 'emanet[geo]'"
        ) from error
    with suppress(AttributeError, OSError):  # its libtiff too writes to stderr by itself, as Pillow's in data/images.py
        silence = ctypes.CDLL(rasterio._base.__file__).TIFFSetErrorHandler
        silence.argtypes, silence.restype = [ctypes.c_void_p], ctypes.c_void_p
        silence(None)
    return rasterio
