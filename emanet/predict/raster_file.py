"""TIFFs that programs for maps expect, written from top to bottom by rasterio (extra geo).

They are tiled, compressed, in the place on Earth of another one, and have overviews if they are large. They appear when
they are complete and have been read back, since GDAL does not report what fails while a file is closed.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import replacing, write_whole
from ..config import IGNORE
from ..data.bands import installed
from ..errors import InputError
from ..show.colours import IGNORE_COLOUR

TILE = 256
SMALLEST = 512  # pixels of the longer side that the smallest overview has at most
SIDECARS = (".aux.xml", ".ovr", ".msk")  # beside a TIFF: GDAL's metadata of it, its overviews, its mask


def profile_like(source: Any, bands: int = 1, dtype: str = "uint8", nodata: float = IGNORE) -> dict[str, Any]:
    """How bands are stored in the place of an open dataset."""
    points, points_crs = source.gcps
    place: dict[str, Any] = {"crs": source.crs or points_crs, "rpcs": source.rpcs}
    if not source.transform.is_identity:
        place["transform"] = source.transform
    else:  # a file holds one or the other
        place["gcps"] = points or None
    tiles = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate", "bigtiff": "if_safer"}
    tiles |= {"predictor": 3} if dtype == "float32" else {}  # compresses floats better
    size = {"width": source.width, "height": source.height, "count": bands, "dtype": dtype, "nodata": nodata}
    kind = {"driver": "GTiff", "interleave": "band"}
    return {**kind, **size, **tiles, **{key: value for key, value in place.items() if value is not None}}


class TiffWriter:
    """Takes a strip of columns after the other, each from top to bottom, and writes whole tiles."""

    def __init__(self, file: Any, out: Path):
        self.file, self.out, self.sum = file, out, 0
        self.left, self.done, self.pending = -1, 0, np.empty((0, 0, 0))

    def add(self, rows: np.ndarray, left: int) -> None:
        """The next rows (bands, n, width) of the strip that begins at the column `left`."""
        if left != self.left:
            self.left, self.done, self.pending = left, 0, rows[:, :0]
        self.pending = np.concatenate([self.pending, rows], axis=1)
        height, width = self.pending.shape[1:]
        last = self.done + height == self.file.height
        ready = height if last else height // TILE * TILE
        if ready:
            window = ((self.done, self.done + ready), (left, left + width))
            with named("write", self.out):
                self.file.write(self.pending[:, :ready], window=window)
            self.sum += _sum(self.pending[:, :ready])
            self.done, self.pending = self.done + ready, self.pending[:, ready:]


@contextmanager
def new_tiff(
    out: Path, profile: dict[str, Any], palette: Sequence[tuple[int, int, int]] = (), names: Sequence[str] = ()
) -> Iterator[TiffWriter]:
    """A TIFF that becomes `out` when the block ends, and takes the place of its older sidecars too.

    palette: of the only band; names: of the bands. A CRS that GeoTIFF has no keys for goes into OUT.aux.xml. Raises
    InputError that names the file.
    """
    rasterio, sidecars = installed(), [Path(f"{out}{suffix}") for suffix in SIDECARS]
    try:
        with replacing(out.absolute()) as partial:
            side = Path(f"{partial}.aux.xml")
            _unlink(side)
            try:
                with named("write", out):
                    file = rasterio.open(partial, "w", **profile)
                    if palette:
                        own = {i: (*colour, 255) for i, colour in enumerate(palette)}
                        file.write_colormap(1, own | {IGNORE: (*IGNORE_COLOUR, 255)})
                    for band, name in enumerate(names, 1):
                        file.set_band_description(band, name)
                writer = TiffWriter(file, out)
                try:
                    yield writer
                finally:
                    with named("write", out):
                        file.close()
                with named("write", out):
                    add_overviews(partial)
                    verify(partial, writer.sum, profile)
                beside = side.read_bytes() if side.exists() else b""
            finally:
                with suppress(OSError):
                    side.unlink()
            for each in sidecars:  # of an older file: GDAL would show its overviews and statistics for this one
                _unlink(each)
        if beside:
            write_whole(sidecars[0], beside)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error


def add_overviews(path: Path) -> None:
    """Labels are made smaller by picking one of four, floats by averaging."""
    rasterio = installed()
    with rasterio.open(path, "r+", driver="GTiff") as file:
        if factors := factors_of(file.shape):
            labels, resampling = file.dtypes[0] == "uint8", rasterio.enums.Resampling
            file.build_overviews(factors, resampling.nearest if labels else resampling.average)


def factors_of(size: Sequence[int]) -> list[int]:
    """How many times smaller the overviews of (h, w) are: 2, 4 and so on, until the longer side has SMALLEST pixels."""
    factors: list[int] = []
    while max(size) > SMALLEST << len(factors):
        factors.append(2 << len(factors))
    return factors


def verify(path: Path, total: int, profile: dict[str, Any]) -> None:
    """Read all values back and compare their sum; read all overviews. OSError."""
    rasterio = installed()
    try:
        with rasterio.open(path, driver="GTiff") as file:
            read: int | None = sum(_sum(file.read(window=window)) for _, window in file.block_windows(1)) % 2**64
            # Not compared is the CRS itself: GDAL rewords one without a code, and compares the words.
            lost = "crs" in profile and not (file.crs or file.gcps[1])
            moved = file.transform != profile.get("transform", file.transform)
            read = read if all(file.overviews(band) == factors_of(file.shape) for band in file.indexes) else None
            for level in range(len(file.overviews(1))):
                with rasterio.open(path, driver="GTiff", overview_level=level) as overview:
                    for (row, column), window in overview.block_windows(1):
                        overview.read(window=window)  # an error where it is cut off
                        place = f"BLOCK_OFFSET_{column}_{row}"  # a tile without one was not written
                        tiles = [file.get_tag_item(place, "TIFF", bidx=band, ovr=level) for band in file.indexes]
                        read = None if None in tiles else read
    except rasterio.errors.RasterioError:
        read, lost, moved = None, False, False
    if read != total % 2**64:
        raise OSError("it does not read back as it was written")
    if lost or moved:
        raise OSError(0, f"GeoTIFF cannot hold its {'CRS' if lost else 'transform'}")


def _sum(values: np.ndarray) -> int:
    """Of the values as whole numbers, floats by their bits: the same in any order."""
    whole = np.ascontiguousarray(values).view(np.uint32 if values.dtype == np.float32 else values.dtype)
    return int(whole.sum(dtype=np.uint64))


def _unlink(path: Path) -> None:
    if os.path.lexists(path):  # also False where the name is too long for a file
        path.unlink()


@contextmanager
def named(doing: str, path: str | Path) -> Iterator[None]:
    """Around calls of GDAL only: what they raise becomes one sentence with the file's name."""
    try:
        yield
    except Exception as error:  # some of GDAL's errors have no public name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error.__cause__ or error)
        if isinstance(error, UnicodeEncodeError):
            raise InputError(f"cannot {doing} {path}: GDAL takes only paths in UTF-8; rename it") from error
        hint = "; is the disk full?" if doing == "write" and not getattr(error, "strerror", None) else ""
        raise InputError(f"cannot {doing} {path}: {reason.splitlines()[0].rstrip('.')}{hint}") from error
