"""How the samples of a file become the channels of a model: which bands, in which range. All readers go by it.

images.py reads what Pillow gives as stored. For other TIFFs and 16-bit colours there is GDAL here, by rasterio (extra
geo): whole for training, by windows for predict/raster.py. Both see the same pixels, or refuse the file.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ..errors import InputError
from . import libtiff
from .shards import File, Member

CACHE = 32 << 20  # GDAL's own default is a share of the machine's memory
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES = 258, 259, 262, 274, 277  # TIFF tags
EXTRA_SAMPLES, SAMPLE_FORMAT, NODATA = 338, 339, 42113
PREMULTIPLIED, YCBCR, WEBP = 1, 6, 50001  # in EXTRA_SAMPLES, PHOTOMETRIC and COMPRESSION
MEANINGS = {  # PHOTOMETRIC -> why GDAL's samples are not what Pillow shows
    0: "its zero is white",
    3: "its pixels are indices of a palette",
    5: "its pixels are amounts of ink (CMYK)",
    8: "its colours are CIE L*a*b*",
    9: "its colours are CIE L*a*b*",
    10: "its colours are CIE L*a*b*",
}
SAMPLED = 2048  # pixels either way of the part that a range is suggested from
PERCENTILES = (0.5, 99.5)

Extent = tuple[tuple[float, float], tuple[float, float]]  # (least, greatest) value, a range of nearly all


@dataclass(frozen=True)
class Channels:
    """What a model takes, and what of a file that is; DatasetSpec explains bands and range."""

    count: int = 3
    bands: tuple[int, ...] = ()
    range: tuple[float, ...] = ()
    flags: bool = False
    """Whether messages name the flags of `predict` instead of the fields of dataset.json."""

    def __post_init__(self):
        if self.bands and min(self.bands) < 1:
            raise InputError(f"bands are counted from 1, so there is no band {min(self.bands)}")
        if self.bands and len(self.bands) != self.count:
            hint = "" if self.flags else f"; set model.backbone.in_channels to {len(self.bands)}"
            raise InputError(f"{len(self.bands)} bands are named, but the model takes {self.count} channels{hint}")
        if len(self.range) not in (0, 2, 2 * self.count):
            raise InputError(
                f"range has {len(self.range)} numbers, but must have 2, or 2 for each of {self.count} channels"
            )
        for low, high in zip(self.range[::2], self.range[1::2], strict=True):
            if not low < high:
                raise InputError(f"range begins with what becomes 0, so {low:g} must be below {high:g}")

    def setting(self, name: str, values: Sequence[object]) -> str:
        """How to state bands or a range."""
        if self.flags:
            return f"--{name} {' '.join(map(str, values))}"
        return f'"{name}": [{", ".join(map(str, values))}] in dataset.json'

    def chosen(self, names: Sequence[str]) -> list[int]:
        """The bands, from 1, of a file whose bands have these names ("alpha" has a meaning). ValueError if unclear."""
        total = len(names)
        if self.bands:
            if outside := [band for band in self.bands if band > total]:
                raise ValueError(f"it has bands 1 to {total}, but no band {outside[0]}")
            return list(self.bands)
        bands = [i for i, name in enumerate(names, 1) if total == self.count or name != "alpha"]
        if len(bands) == 1 and self.count == 3:
            return bands * 3  # grey
        if len(bands) != self.count:
            hint = f"; name {self.count} of them: {self.setting('bands', [*range(1, self.count + 1)])}"
            hint += f", or set model.backbone.in_channels to {len(bands)}" * (not self.flags)
            text = f"it has {total} band{'s' * (total != 1)} ({', '.join(names)})"
            raise ValueError(f"{text}, but the model takes {self.count} channels{hint * (total > self.count)}")
        return bands

    def scaled(self, samples: np.ndarray, axis: int = -1) -> np.ndarray:
        """Samples of any type, with the channels along `axis`, as uint8: by the range, clipped; NaN becomes 0.

        ValueError where the range is not stated but needed, or cannot be meant for these samples.
        """
        eight = samples.dtype == np.uint8
        if not self.range:
            if eight:
                return samples
            raise ValueError(self.unstated(samples))
        if samples.dtype.kind not in "biuf":
            raise ValueError(f"its pixels are {samples.dtype}, but must be real numbers")
        if eight and (max(self.range) > 255 or max(self.range) <= 1 < samples.max(initial=0)):
            numbers = " ".join(f"{value:g}" for value in self.range)
            raise ValueError(f"its pixels are uint8, but the range {numbers} is for data of another type")
        kind: Any = np.float32 if samples.dtype.itemsize <= 2 or samples.dtype == np.float32 else np.float64
        shape = [1] * samples.ndim
        shape[axis] = -1
        low, high = np.array(self.range, kind).reshape(-1, 2).T
        with np.errstate(invalid="ignore", over="ignore"):  # of infinities
            values = (samples.astype(kind) - low.reshape(shape)) * (255 / (high - low)).reshape(shape)
        np.nan_to_num(values, copy=False, nan=0, posinf=255, neginf=0)
        return np.rint(values.clip(0, 255)).astype(np.uint8)

    def unstated(self, samples: np.ndarray) -> str:
        """The sentence for samples that have no range: their type, their values, and a range to write."""
        if samples.dtype.kind not in "biuf":
            return f"its pixels are {samples.dtype}, but must be real numbers"
        between = extent(samples)
        if between is None:
            return f"its pixels are {samples.dtype} without any value"
        (least, most), range_ = between
        return (
            f"its pixels are {samples.dtype}, from {least:g} to {most:g}; state the values that become 0 and 255: "
            + self.setting("range", [f"{value:g}" for value in range_])
        )


def extent(samples: np.ndarray) -> Extent | None:
    """The least and the greatest value, and a range without the outermost PERCENTILES; None for uint8 and all NaN."""
    if samples.dtype == np.uint8:
        return None
    values = samples[np.isfinite(samples)] if samples.dtype.kind == "f" else samples.ravel()
    if not values.size:
        return None
    least, most = float(values.min()), float(values.max())
    low, high = (float(f"{value:.3g}") for value in np.percentile(values, PERCENTILES))
    return (least, most), (low, high) if low < high else (least, max(most, least + 1))


def samples_of(source: Any) -> tuple[str, int, Extent | None]:
    """Type and number of the bands beside alpha of a dataset of rasterio, and the values of types other than uint8."""
    chosen = [i for i, meaning in enumerate(source.colorinterp, 1) if meaning.name != "alpha"]
    kind = source.dtypes[chosen[0] - 1] if chosen else "uint8"
    if kind == "uint8":
        return kind, 3 if len(chosen) == 1 else len(chosen), None
    return kind, len(chosen), extent(BandReader(source, Channels(len(chosen)), chosen, masked=True).middle())


def tiff_tags(file: str | File) -> dict[int, Any]:
    """The tags of a TIFF's first image; empty for other files and where the header cannot be read."""
    try:
        with (Path(file) if isinstance(file, str) else file).open("rb") as stream:
            header = stream.read(8)
            if header[:4] not in TIFF:
                return {}
            order = header[:2]
            if b"+" in header[:4]:  # BigTIFF, which Pillow knows by the third byte, in whichever order the bytes are
                header = TIFF[2] + header[4:] + stream.read(8)
            tags = ImageFileDirectory_v2(header, order)
            stream.seek(tags.next)
            tags.load(stream)
            return dict(tags)
    except Exception:  # Pillow raises nearly anything on broken files; reading the pixels will say what is wrong
        return {}


@contextmanager
def opened(file: File, driver: str = "GTiff") -> Iterator[Any]:
    """The file as a dataset of rasterio. Raises ValueError where rasterio is not installed."""
    rasterio = installed()
    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        if isinstance(file, Member):
            with rasterio.MemoryFile(file.read_bytes()) as memory, memory.open(driver=driver) as dataset:
                yield dataset
        else:
            # Paths for GDAL are absolute, since it takes some relative names for a syntax of its own: GTIFF_DIR:1:x.tif
            # is the file x.tif. No other driver: some of them follow links to other places.
            with rasterio.open(file.absolute(), driver=driver) as dataset:
                yield dataset


def installed() -> Any:
    """The module rasterio; ValueError where it is not installed."""
    try:
        import rasterio._base
    except ImportError as error:
        needed = "its bands can only be read with rasterio, which is not installed: pip install 'emanet[geo]'"
        raise ValueError(needed) from error
    # Appended: -W and the caller's own filters win.
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning, append=True)
    libtiff.silence(rasterio._base.__file__)
    return rasterio


class OnlyWhole(ValueError):
    """Samples of 8 bits with a meaning that Pillow knows, and GDAL does not: images.py reads them."""


@dataclass(frozen=True)
class BandReader:
    """An open dataset of rasterio, read as the model's input."""

    source: Any
    channels: Channels
    bands: list[int]
    masked: bool

    @classmethod
    def of(cls, source: Any, file: File, channels: Channels) -> "BandReader":
        """Bands chosen and samples checked. ValueError where the choice is not clear, or Pillow sees other pixels."""
        bands = channels.chosen([meaning.name for meaning in source.colorinterp])
        structure = source.tags(ns="IMAGE_STRUCTURE") | source.tags(bands[0], ns="IMAGE_STRUCTURE")
        tags = tiff_tags(file)
        meanings = {source.colorinterp[i - 1].name for i in bands}
        extra = tags.get(EXTRA_SAMPLES) or ()
        bits, turn = int(structure.get("NBITS", 8)), tags.get(ORIENTATION, 1)
        for wrong, what in (
            ("palette" in meanings, MEANINGS[3]),
            ("MINISWHITE" in structure, MEANINGS[0]),  # also where Pillow cannot read the tags
            (tags.get(PHOTOMETRIC) in MEANINGS, MEANINGS.get(tags.get(PHOTOMETRIC, -1), "")),
            (bits < 8, f"its pixels have {bits} bits"),
            (turn not in (0, 1), f"its orientation is {turn}, not upright"),
            (PREMULTIPLIED in extra, "its colours are multiplied by its alpha"),
        ):
            if wrong:
                raise (OnlyWhole if source.dtypes[0] == "uint8" else ValueError)(what)
        flags = {flag.name for i in bands for flag in source.mask_flag_enums[i - 1]}
        alpha = any(source.colorinterp[i - 1].name == "alpha" for i in bands)
        reader = cls(source, channels, bands, masked="all_valid" not in flags and not alpha)
        if not channels.range and {source.dtypes[i - 1] for i in bands} != {"uint8"}:
            raise ValueError(channels.unstated(reader.middle()))
        return reader

    def read(self, window: tuple | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (channels, h, w) uint8 of a part of it, and which of them are not hidden, (h, w) bool.

        window: ((top, bottom), (left, right)); default: everything.
        """
        samples = self.source.read(self.bands, window=window)
        visible = np.ones(samples.shape[1:], bool)
        if self.masked:
            visible = (self.source.read_masks(self.bands, window=window) > 0).any(0)
        if samples.dtype.kind == "f":
            visible &= ~np.isnan(samples).any(0)
        return self.channels.scaled(samples, 0), visible

    def middle(self) -> np.ndarray:
        """The values that are not hidden, in the middle of the image."""
        size = self.source.height, self.source.width
        window = tuple((max(0, (n - SAMPLED) // 2), min(n, (n + SAMPLED) // 2)) for n in size)
        samples = self.source.read(self.bands, window=window)
        return samples[self.source.read_masks(self.bands, window=window) > 0] if self.masked else samples
