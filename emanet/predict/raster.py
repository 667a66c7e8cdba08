"""TIFFs that are larger than memory or have a georeference: in overlapping windows, to tiled TIFFs of labels.

    predict_raster(model, "scene.tif", "labels.tif")   # or emanet.Predictor(model).raster("scene.tif", "labels.tif")

On the command line: python -m emanet predict MODEL scene.tif --out FOLDER

The windows are those of evaluation in mode "slide": one grid over the whole image. A window's probabilities weigh less
towards its edges, where the network sees little around a pixel. Probabilities are summed for one strip of columns at a
time, as wide as `memory` allows and as high as a window, which moves down the image. The next strip predicts the
windows across its edge again, on the same grid, so labels do not depend on `memory`. The memory needed does not depend
on the image's size: the strip, GDAL's cache of CACHE bytes (288 MiB together), one block of the file (a tile, or the
rows that are compressed as one), and what the network needs for a window.
"""

import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import IGNORE, EvalConfig
from ..data.bands import CACHE, BandReader, OnlyWhole, installed, tiff_tags
from ..deploy.artefact import Artefact
from ..errors import InputError
from ..show.terminal import bar
from ..windows import WindowGrid, window_weight
from .inputs import channels_of
from .outputs import uncertainty
from .raster_file import SIDECARS, TILE, TiffWriter, named, new_tiff, profile_like

if TYPE_CHECKING:  # torch is imported late, so that exported models start without it
    import torch

    from ..model import EMANet

LARGE = 32_000_000  # pixels from which is_raster takes a TIFF that has no georeference
MEMORY = 256 << 20
WIDTH, HEIGHT = 256, 257  # TIFF tags
GEOREFERENCE = {33550, 33922, 34264, 34735, 50844}  # pixel scale, tie points, transformation, GeoTIFF keys, RPCs
WORLD_FILES = (".tfw", ".TFW", ".tifw", ".tiffw", ".wld")


def is_raster(path: str | Path) -> bool:
    """Whether predict_files gives a file to predict_raster: a TIFF with a georeference or at least LARGE pixels.

    The georeference may lie beside it, as a world file or in GDAL's .aux.xml. Only headers are read, and rasterio is
    not needed.
    """
    tags = tiff_tags(path)
    w, h = tags.get(WIDTH), tags.get(HEIGHT)
    if isinstance(w, int) and isinstance(h, int) and w * h >= LARGE:  # a broken header may have anything there
        return True
    return not tags.keys().isdisjoint(GEOREFERENCE) or (bool(tags) and _placed_beside(Path(path)))


def _placed_beside(path: Path) -> bool:
    if any(path.with_suffix(suffix).is_file() for suffix in WORLD_FILES):
        return True
    with suppress(OSError):
        return b"<GeoTransform>" in Path(f"{path}.aux.xml").read_bytes()
    return False


def predict_raster(
    model: "EMANet | Artefact",
    path: str | Path,
    out: str | Path,
    config: EvalConfig = EvalConfig(),
    *,
    probabilities: str | Path | None = None,
    uncertainty: str | Path | None = None,
    bands: Sequence[int] = (),
    range: Sequence[float] = (),
    batch: int = 1,
    memory: int = MEMORY,
    progress: bool = False,
) -> None:
    """Write the class indices of a TIFF as another TIFF: tiled, compressed, with the palette and the same georeference.

    probabilities, uncertainty: further TIFFs to write, float32: the blended probabilities, a band for each class, and
    what outputs.uncertainty makes of them. Large files get overviews, of SMALLEST pixels or more.

    model: in eval mode, or exported with its probabilities. config: its window and overlap are used whatever its mode;
    scales and flip apply within each window. bands, range: as in DatasetSpec; default: the model's, from its training.
    batch: windows that go through the model at once. memory: bytes for a strip; it is at least one tile wide.
    progress: a bar on stderr.

    Pixels hidden by the file's mask, alpha band or nodata value, and NaN, get 255, the nodata value of the
    output, and NaN in the further ones; windows of nothing else are not predicted. CRS and transform, ground control
    points and RPCs are kept; a CRS that GeoTIFF has no keys for goes into OUT.aux.xml. The files appear only when they
    are complete, also where SIGTERM, SIGHUP or KeyboardInterrupt ends the process; the sidecars of older ones are
    removed. Raises InputError that names the file.
    """
    rasterio = _rasterio(path)
    named_outs = {"labels": out, "probabilities": probabilities, "uncertainty": uncertainty}
    outs = {kind: Path(each) for kind, each in named_outs.items() if each is not None}
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE), _cleaned_up():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        # Paths for GDAL are absolute, since it takes some relative names for a syntax of its own: GTIFF_DIR:1:x.tif is
        # the file x.tif. No other driver: some of them follow links to other places.
        with named("read image", path):
            source = rasterio.open(Path(path).absolute(), driver="GTiff")
        with source:
            written = [Path(f"{each}{end}") for each in outs.values() for end in ("", *SIDECARS)]
            if any(os.path.exists(each) and os.path.samefile(each, path) for each in written):
                raise InputError(f"the image {path} would be overwritten by its labels; name another file")
            channels = channels_of(model, bands, range, flags=True)
            with named("read image", path):
                try:
                    image = _Image(BandReader.of(source, Path(path), channels), path)
                except OnlyWhole as error:
                    raise ValueError(f"{error}; --rasters never reads it whole, as in training") from None
            job = _Job(model, image, config, batch, memory, probabilities=len(outs) > 1)
            with ExitStack() as files:  # the labels appear last
                targets = [(kind, files.enter_context(job.new(kind, each))) for kind, each in outs.items()]
                _write(job, targets, progress)


@contextmanager
def _cleaned_up() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, so that `finally` blocks run; in the main thread only."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    main = threading.current_thread() is threading.main_thread()
    # A handler of the caller's stays, and so does a signal that is ignored (by nohup).
    ours = [each for each in numbers if main and signal.getsignal(each) == signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        for each in ours:  # a closed terminal sends two; the second would arrive during the cleaning up
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
    """An open TIFF, read as the model's input."""

    reader: BandReader
    path: str | Path

    def read(self, top: int, left: int, bottom: int, right: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (channels, h, w) uint8 of a part of it, and which of them are not hidden, (h, w) bool."""
        with named("read image", self.path):
            return self.reader.read(((top, bottom), (left, right)))


@dataclass(frozen=True)
class _Job:
    """What predict_raster was asked for."""

    model: "EMANet | Artefact"
    image: _Image
    config: EvalConfig
    batch: int
    memory: int
    probabilities: bool
    """Whether a file of them, or of what is made of them, is written."""

    def new(self, kind: str, out: Path) -> AbstractContextManager[TiffWriter]:
        """A file of one of the kinds."""
        source, classes = self.image.reader.source, self.model.classes
        if kind == "labels":
            return new_tiff(out, profile_like(source), palette=self.model.palette)
        names = classes if kind == "probabilities" else ("uncertainty",)
        return new_tiff(out, profile_like(source, len(names), "float32", math.nan), names=names)

    def strips(self) -> list["_Strip"]:
        """The image in strips that need `memory` bytes each, but are at least one tile wide."""
        h, w = self.image.reader.source.height, self.image.reader.source.width
        grid = WindowGrid.over((h, w), self.config)
        # Bytes per pixel: the sums, its values (more while they are scaled), and 16 for argmax, mask, labels and the
        # copy of one class.
        each = 16 if self.image.reader.channels.range else 1
        column = grid.size[0] * (4 * len(self.model.classes) + each * len(self.image.reader.bands) + 16)
        if self.probabilities:  # those of finished rows, up to a tile that waits for its last rows, and a copy
            column += 12 * len(self.model.classes) * (grid.size[0] + TILE)
        step = max(1, self.memory // (column * TILE)) * TILE
        return [_Strip(self, grid, left, min(w, left + step)) for left in range(0, w, step)]


class _Strip:
    """The labels of the columns left to right."""

    def __init__(self, job: _Job, grid: WindowGrid, left: int, right: int):
        self.model, self.image, self.batch, self.left, self.right = job.model, job.image, job.batch, left, right
        self.with_probabilities = job.probabilities
        self.size, self.tops = grid.size, grid.tops
        self.lefts = [start for start in grid.lefts if start < right and start + grid.size[1] > left]
        self.config = replace(job.config, mode="whole", longest_side=0)  # each window is predicted as a whole image
        self.weight = window_weight(grid.size, job.config.overlap).to(
            "cpu" if isinstance(job.model, Artefact) else job.model.mean.device
        )

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Labels (rows, right - left) uint8 from top to bottom, after each row of windows.

        And their probabilities (classes, rows, right - left) float32, if they are to be written.
        """
        import torch

        h, w = self.size
        first = self.lefts[0]
        total = torch.zeros(len(self.model.classes), h, self.right - self.left, device=self.weight.device)
        for top, next_top in zip(self.tops, [*self.tops[1:], self.image.reader.source.height], strict=True):
            pixels, visible = self.image.read(top, first, top + h, self.lefts[-1] + w)
            lefts = [left for left in self.lefts if visible[:, left - first : left - first + w].any()]
            for k in range(0, len(lefts), self.batch):
                self._add(total, pixels, lefts[k : k + self.batch])
            final = next_top - top  # rows that no later window covers
            labels = total[:, :final].argmax(0).to(torch.uint8).cpu().numpy()  # sums and means have the same argmax
            labels[~visible[:final, self.left - first : self.right - first]] = IGNORE
            p = None
            if self.with_probabilities:
                p = (total[:, :final] / total[:, :final].sum(0)).cpu().numpy()
            for plane in total:  # one at a time, since overlapping memory is copied first
                plane[: h - final] = plane[final:].clone()
                plane[h - final :] = 0
            yield labels, p

    def _add(self, total: "torch.Tensor", pixels: np.ndarray, lefts: list[int]) -> None:
        """Add the weighted probabilities of the windows that begin at these columns."""
        w, first = self.size[1], self.lefts[0]  # first: the column at which `pixels` begins
        windows = np.stack([pixels[:, :, left - first : left - first + w] for left in lefts])
        for left, p in zip(lefts, self._probabilities(windows) * self.weight, strict=True):
            begin, end = max(left, self.left), min(left + w, self.right)
            total[:, :, begin - self.left : end - self.left] += p[:, :, begin - left : end - left]

    def _probabilities(self, windows: np.ndarray) -> "torch.Tensor":
        """(B, classes, h, w) of windows (B, C, h, w)."""
        import torch

        if isinstance(self.model, Artefact):
            return torch.from_numpy(self.model.output("probabilities", windows.transpose(0, 2, 3, 1)))
        from ..inference import probabilities

        return probabilities(self.model, torch.from_numpy(windows).to(self.weight.device), self.config)


def _write(job: _Job, targets: Sequence[tuple[str, TiffWriter]], progress: bool) -> None:
    """Predict the image into the open files of these kinds."""
    strips, finished = job.strips(), 0
    windows = sum(len(strip.tops) * len(strip.lefts) for strip in strips)
    with bar(f"predict {Path(job.image.path).name}", windows, hidden=not progress) as advance:
        for strip in strips:
            for labels, p in strip.rows():
                finished += len(strip.lefts)
                advance(finished)
                for kind, target in targets:
                    target.add(_bands(kind, labels, p), strip.left)


def _bands(kind: str, labels: np.ndarray, p: np.ndarray | None) -> np.ndarray:
    """What a file holds of labels (h, w) and probabilities (classes, h, w)."""
    if kind == "labels" or p is None:
        return labels[None]
    bands = p if kind == "probabilities" else uncertainty(p)[None]
    return np.where(labels == IGNORE, np.float32(np.nan), bands)


def _rasterio(path: str | Path) -> Any:
    try:
        return installed()
    except ValueError as error:
        raise InputError(
            f"predicting {path} in windows needs rasterio, which is not installed: pip install 'emanet[geo]'"
        ) from error
