"""Reads and writes pixels: any image file to uint8, any mask file to class indices. No other module decodes images.

The content decides the format, not the extension. A file may also be a member of a packed split (shards.py). Every
function may run in several threads. Pillow's warnings are hidden: the pixels are right anyway, or it is an error.
"""

import logging
import os
import re
import stat
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..config import IGNORE, DatasetSpec
from ..errors import InputError, some
from ..show.colours import IGNORE_COLOUR
from . import bands, libtiff
from .bands import BandReader, Channels
from .shards import File

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .jp2 "
    ".avif .heic .heif .hif .npy".split()
)
# Pillow knows more, but some of those formats have no signature, and for EPS it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000")
MAX_PIXELS = 178_956_970  # of an image; Pillow's own limit: 13,377 x 13,377, up to 2 GB while it is decoded
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
TURNS = {  # EXIF orientation -> the operation that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

warnings.filterwarnings("ignore", module=r"PIL\.", append=True)  # appended: -W and the caller's own filters win
logging.getLogger("PIL").addHandler(logging.NullHandler())
libtiff.silence(Image.core.__file__)


def read_image(path: str | File, channels: int | Channels = 3, *, max_pixels: int | None = None) -> np.ndarray:
    """The pixels as displayed: (H, W, channels) uint8, C-contiguous, EXIF orientation applied, first frame.

    1 channel is grey, 3 are RGB, 4 are RGB and the file's alpha; a TIFF or a .npy file may have any number of bands,
    but must have this number beside alpha. Channels names bands of the file and gives a range to values of more than 8
    bits, which are refused without one. max_pixels: the largest H * W, default MAX_PIXELS; if it is above Pillow's
    limit, that limit is raised for the whole process. Raises InputError.
    """
    return read_visible(path, channels, max_pixels=max_pixels)[0]


def read_visible(
    path: str | File, channels: int | Channels = 3, *, max_pixels: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The same, and which of its pixels are not hidden: (H, W) bool, or None for all.

    Hidden are NaN and what a TIFF hides by its no-data value, its mask or its alpha band.
    """
    wanted = Channels(channels) if isinstance(channels, int) else channels
    with _opened(path, "image", max_pixels) as image:
        if isinstance(image, Image.Image):
            return image_array(image, wanted), None
        if not isinstance(image, np.ndarray):
            pixels, visible = BandReader.of(image, _source(path), wanted).read()
            return np.ascontiguousarray(pixels.transpose(1, 2, 0)), None if visible.all() else visible
        samples = image if image.ndim == 3 else image[..., None]
        if not wanted.bands and samples.shape[2] != wanted.count:
            raise ValueError(f"it is {image.dtype} {image.shape}, not (H, W, {wanted.count})")
        if wanted.bands:
            samples = samples[..., [band - 1 for band in wanted.chosen([""] * samples.shape[2])]]
        return np.array(wanted.scaled(samples), order="C"), nan_free(samples)


def nan_free(samples: np.ndarray) -> np.ndarray | None:
    """Which pixels of (H, W, C) have no NaN: (H, W) bool, or None for all."""
    visible = ~np.isnan(samples).any(2) if samples.dtype.kind == "f" else None
    return None if visible is None or visible.all() else visible


def stored_samples(path: str | File) -> tuple[str, int, bands.Extent | None]:
    """Type and number of an image's bands beside alpha, and the values of types other than uint8. Raises InputError.

    Grey and palettes of 8 bits count as three bands, since they are read as RGB where that is wanted.
    """
    with _opened(path, "image") as image:
        if isinstance(image, np.ndarray):
            return str(image.dtype), image.shape[2] if image.ndim == 3 else 1, bands.extent(image)
        if isinstance(image, Image.Image):
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                return ("float32" if image.mode == "F" else "uint16"), 1, bands.extent(np.asarray(image))
            return "uint8", 3, None
        return bands.samples_of(image)


def image_array(image: Image.Image, channels: int | Channels = 3) -> np.ndarray:
    """A Pillow image as read_image returns it; ValueError where its mode or the number of channels does not allow it.

    Alpha is dropped: blending would invent a background.
    """
    wanted = Channels(channels) if isinstance(channels, int) else channels
    white = _storage(image)[1]
    image = upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        samples = np.asarray(image)[..., None]
        if white:  # Pillow has scaled them up to 65535
            samples = np.rint(samples * (white / 65535)).astype(np.uint16)
        return wanted.scaled(samples[..., [band - 1 for band in wanted.chosen(["grey"])]])
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # other conversions of these make Pillow warn
    if wanted.bands:
        image = image.convert({"1": "L", "P": "RGB"}.get(image.mode, image.mode))
        if image.mode not in ("L", "LA", "RGB", "RGBA"):
            raise ValueError(f"bands of {image.mode!r} pixels cannot be named")
        names = ["alpha" if name == "A" else name for name in image.getbands()]
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        pixels = np.ascontiguousarray(pixels[..., [band - 1 for band in wanted.chosen(names)]])
    elif wanted.count not in MODES or wanted.count == 4 and not image.has_transparency_data:
        letters = image.getbands()
        text = f"it has {len(letters)} band{'s' * (len(letters) > 1)} ({', '.join(letters)})"
        raise ValueError(f"{text}, but the model takes {wanted.count} channels")
    else:
        image = image if image.mode == MODES[wanted.count] else image.convert(MODES[wanted.count])
        pixels = np.array(image).reshape(image.height, image.width, wanted.count)
    return wanted.scaled(pixels)


def image_size(path: str | File, *, max_pixels: int | None = None) -> tuple[int, int]:
    """(h, w) of what read_image returns, from the header alone. Raises InputError."""
    with _opened(path, "image", max_pixels) as image:
        if isinstance(image, Image.Image):
            h, w = image.size if orientation(image) in (5, 6, 7, 8) else image.size[::-1]
        else:
            h, w = image.shape[:2]
        return h, w


def read_mask(path: str | File, spec: DatasetSpec, *, max_pixels: int | None = None) -> np.ndarray:
    """Labels (H, W) uint8: indices of spec.classes, or IGNORE.

    Raises InputError, which names the file and the values or colours that are not in the spec.
    """
    try:
        return _labels(read_mask_values(path, max_pixels=max_pixels), path, spec)
    except MemoryError as error:
        raise InputError(f"cannot read mask {path}: {_reason(error)}") from error


def meanings(spec: DatasetSpec) -> dict[int, int]:
    """Mask value -> index of spec.classes or IGNORE, for every value that a mask of one channel may hold."""
    classes = {} if spec.label_map else {label: label for label in range(len(spec.classes))}
    return {**classes, spec.ignore_label: IGNORE, **spec.label_map}


def pixels_per_label(labels: np.ndarray) -> np.ndarray:
    """(H, W) uint8 -> (256,) int64. np.bincount would first convert every pixel to eight bytes."""
    return np.array(Image.fromarray(labels).histogram(), np.int64)


def colour_codes(colours: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (...) uint32: RGB in 24 bits, in place to spare memory."""
    codes = colours[..., 0].astype(np.uint32)
    for channel in (1, 2):
        codes <<= 8
        codes |= colours[..., channel]
    return codes


def _labels(values: np.ndarray, path: str | File, spec: DatasetSpec) -> np.ndarray:
    """What read_mask_values returned, as labels (H, W) uint8."""
    if values.ndim == 2:
        labels, unknown = _translate(values, meanings(spec))
        if unknown:
            outside = f"outside the {len(spec.classes)} classes 0..{len(spec.classes) - 1}"
            outside = "that label_map lacks" if spec.label_map else outside
            text = f"mask {path} has values {some(unknown)} {outside} (ignored: {spec.ignore_label})"
            if unknown == [len(spec.classes)] and not spec.label_map:
                text += '; if classes start at 1, name what 0 is as the first of "classes" in dataset.json, or write '
                text += '"label_map": {"0": 255, "1": 0, ...} to ignore it'
            raise InputError(text)
        return labels
    if len(set(spec.colours)) < len(spec.classes):
        raise InputError(f"mask {path} holds colours, but two classes have the same colour")
    codes = colour_codes(np.array([*spec.colours, *spec.ignore_colours], np.uint8)).tolist()
    label_of = dict(zip(codes, [*range(len(spec.classes)), *[IGNORE] * len(spec.ignore_colours)], strict=True))
    labels, unknown = _translate(colour_codes(values), label_of)
    if unknown:
        colours = [(code >> 16, code >> 8 & 255, code & 255) for code in unknown]
        raise InputError(f"mask {path} has colours {some(colours)} that the palette lacks")
    return labels


def read_mask_values(path: str | File, *, max_pixels: int | None = None) -> np.ndarray:
    """The content of a mask file, upright: values (H, W) of an integer type, or colours (H, W, 3) uint8.

    Values are as stored: palette indices, or numbers of 1 to 64 bits. Raises InputError.
    """
    with _opened(path, "mask", max_pixels) as image:
        if not isinstance(image, Image.Image | np.ndarray):  # a TIFF of 64 bits or of several bands
            values = image.read()
            image = values[0] if len(values) == 1 else values
        if isinstance(image, np.ndarray):
            if image.ndim != 2 or image.dtype.kind not in "iu":
                raise ValueError(f"it is {image.dtype} {image.shape}, not integers (H, W)")
            return np.array(image)
        raw, white = _storage(image)
        values = np.array(upright(image))
        if image.mode in ("RGB", "RGBA"):
            if ";16" in raw or white not in (0, 255):
                raise ValueError("colours must have 8 bits per channel")  # Pillow has rounded them
            return values[..., :3]
        if image.mode in ("LA", "PA"):
            return values[..., 0]
        if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
            raise ValueError(f"{image.mode!r} pixels are neither values nor RGB colours")
        if white:
            values = np.rint(values * (white / (255 if image.mode == "L" else 65535))).astype(np.int32)
        return values.astype(np.uint8) if image.mode == "1" else values


def write_mask(
    path: str | Path | IO[bytes], labels: np.ndarray, palette: Sequence[tuple[int, int, int]], *, quick: bool = False
) -> None:
    """Write labels (H, W) uint8 as an 8-bit palette PNG: read_mask returns them, an image viewer shows the colours.

    quick: for files that are written more often than they are read.
    """
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"labels must be uint8 (H, W), got {labels.dtype} {labels.shape}")
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    colours[IGNORE] = IGNORE_COLOUR
    image = Image.fromarray(labels)
    image.putpalette(colours.tobytes())
    # Runs alone find most of what repeats in labels. CamVid's masks (480x360) take 0.35 ms instead of 1.3, files of 6.2
    # KB instead of 5.1 and 0.4 ms instead of 0.2 to be read again; noisy labels become smaller too.
    image.save(path, format="PNG", **({"compress_type": zlib.Z_RLE} if quick else {}))


def orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied, 1 (none) to 8."""
    if image.format == "TIFF":
        return 1  # Pillow turns TIFFs itself when it loads them, and has swapped the size already
    try:
        # PngImageFile.getexif would decode the whole image to look for an orientation after the pixels.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow reports a broken EXIF block in many ways; the pixels may be fine
        return 1


def upright(image: Image.Image) -> Image.Image:
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


@contextmanager
def _opened(path: str | File, kind: str, max_pixels: int | None = None) -> Iterator[Any]:
    """The file, not decoded yet: a Pillow image, a memory map of a .npy, or a dataset of rasterio for an image whose
    samples Pillow does not give as stored. Any failure becomes an InputError.
    """
    try:
        source = _source(path)
        mode = source.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ValueError("it is not a file but a pipe or a device")  # reading one may block, or never end
        with source.open("rb") as file, ExitStack() as datasets:
            start = file.read(6)
            if not start:
                raise ValueError("it is empty")
            if start == b"\x93NUMPY":
                file.seek(0)
                mapped = {"file": source, "mmap_mode": "r"} if isinstance(source, Path) else {"file": file}
                with np.errstate(over="ignore"):  # a shape of 2^70 overflows, and is refused below
                    image: Any = np.load(**mapped, allow_pickle=False)
                if image.ndim not in (2, 3) or not image.size:
                    raise ValueError(f"it is {image.dtype} {image.shape}, not pixels (H, W) or (H, W, C)")
                h, w = image.shape[:2]
            else:
                if max_pixels and Image.MAX_IMAGE_PIXELS and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
                    Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow refuses more than twice as many
                image = None
                try:
                    image = Image.open(file, formats=_formats(file) or FORMATS)
                    (w, h), driver = image.size, _driver(image)
                    if start[:4] in bands.TIFF and os.path.exists(f"{source}.msk"):  # a mask as GDAL leaves it
                        driver = "GTiff"
                except UnidentifiedImageError:
                    if start[:4] not in bands.TIFF:
                        raise
                    driver = "GTiff"
                if image is None or driver and kind == "image":
                    if image is not None and (turn := orientation(image)) != 1:
                        raise ValueError(f"its colours of 16 bits have the orientation {turn}; save it upright")
                    image = datasets.enter_context(bands.opened(source, driver))
                    h, w = image.shape
            limit = MAX_PIXELS if max_pixels is None else max_pixels
            if h * w > limit:
                raise ValueError(f"its {w} x {h} pixels are more than max_pixels, {limit}")
            yield image
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise InputError(f"cannot read {kind} {path}: {_reason(error)}") from error


def _formats(file: IO[bytes]) -> tuple[str, ...]:
    """Pillow's formats for photographs of phones, AVIF and HEIC; none for other files. ValueError where both lack."""
    file.seek(0)
    start = file.read(32)
    file.seek(0)
    if start[4:8] != b"ftyp":
        return ()
    kinds = start[8:]
    if b"avif" in kinds or b"avis" in kinds:
        if not features.check("avif"):
            raise ValueError("it is an AVIF image, which needs Pillow 11.3 or newer")
        return ("AVIF",)
    if any(kind in kinds for kind in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")):
        try:
            import pillow_heif
        except ImportError:
            raise ValueError("it is a HEIC photograph: pip install 'emanet[heif]' to read it") from None
        pillow_heif.register_heif_opener()
        return ("HEIF",)
    return ()


def _source(path: str | File) -> File:
    return Path(path) if isinstance(path, str | os.PathLike) else path


def _driver(image: ImageFile) -> str:
    """GDAL's driver for an image of which Pillow does not give all samples or what is hidden; "" for others."""
    raw, white = _storage(image)
    if image.mode in ("LA", "RGB", "RGBA"):  # Pillow gives the high byte of 16 bits
        if image.format == "PNG" and ";16" in raw:
            return "PNG"
        if image.format == "PPM" and white > 255:
            return "PNM"
        if image.format == "JPEG2000" and _jpeg2000_bits(image.fp) > 8:
            return "JP2OpenJPEG"
    if not isinstance(image, TiffImageFile):
        return ""
    tags = image.tag_v2
    extra, bits = tags.get(bands.EXTRA_SAMPLES) or (), tags.get(bands.BITS, (1,))
    signed = {*tags.get(bands.SAMPLE_FORMAT, (1,))} - {1}  # or floating; Pillow takes 8 bits with a sign for grey
    other = {*extra} - {1, 2}  # than alpha
    if len(image.getbands()) != tags.get(bands.SAMPLES, 1) or max(bits) > 8 or signed or other:
        return "GTiff"
    # What follows has a meaning for Pillow only, and is refused in windows.
    turned = tags.get(bands.ORIENTATION, 1) != 1
    if turned or max(bits) < 8 or tags.get(bands.PHOTOMETRIC) in bands.MEANINGS or bands.PREMULTIPLIED in extra:
        return ""
    # Pillow has no WebP within TIFF, and does not smooth the chroma of JPEG. The next image may be a mask.
    coded = tags.get(bands.PHOTOMETRIC) == bands.YCBCR or tags.get(bands.COMPRESSION) == bands.WEBP
    return "GTiff" if coded or extra or bands.NODATA in tags or tags.next else ""


def _jpeg2000_bits(file: Any) -> int:
    """Bits of a sample, from the box `ihdr` or the marker SIZ (ISO/IEC 15444-1, I.5.3.1 and A.5.1)."""
    position = file.tell()
    file.seek(0)
    start = file.read(512)
    file.seek(position)
    box = start.find(b"ihdr")
    place = box + 14 if box >= 0 else 42
    return (start[place] & 127) + 1 if len(start) > place else 8


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory for its pixels"
    if isinstance(error, Image.DecompressionBombError):
        pixels, limit = re.findall(r"\d+", str(error))
        return f"its {pixels} pixels are more than max_pixels, {limit}"
    if isinstance(error, UnidentifiedImageError):
        return f"it is damaged, or its format is not one of {', '.join(FORMATS)}, AVIF, HEIC and .npy"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__


def _storage(image: Image.Image) -> tuple[str, int]:
    """Pillow's name of how the pixels are stored, and the value that Pillow scales up to white (0: none)."""
    tiles = getattr(image, "tile", [])  # of an ImageFile; other images have none
    codec, _, _, args = tiles[0] if tiles else ("", None, 0, "")
    raw = args if isinstance(args, str) else str(args[0])
    if codec in ("ppm", "ppm_plain") and image.mode != "1":
        return raw, int(args[1])
    return raw, {"L;2": 3, "L;4": 15}.get(raw, 0)


def _translate(values: np.ndarray, meaning: Mapping[int, int]) -> tuple[np.ndarray, list[int]]:
    """Labels, uint8 in the shape of `values`, and the values that are not in `meaning`, sorted."""
    if values.dtype == np.uint8:
        data, table = values.tobytes(), bytearray(256)
        for value in (valid := [value for value in meaning if 0 <= value < 256]):
            table[value] = meaning[value]
        if all(value == table[value] for value in valid):
            labels = values.copy(order="C")  # twice as fast as a table
        else:
            labels = np.frombuffer(bytearray(data).translate(table), np.uint8).reshape(values.shape)
        return labels, sorted(set(data.translate(None, bytes(valid))))
    flat = values.ravel()
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)  # a mask has far fewer runs than pixels
    runs = flat[starts].astype(np.int64)
    ordered = np.array(sorted(meaning))
    at = np.searchsorted(ordered, runs).clip(max=len(ordered) - 1)
    labels = np.array([meaning[value] for value in ordered.tolist()], np.uint8)[at]
    labels = np.repeat(labels, np.diff(starts, append=flat.size)).reshape(values.shape)
    return labels, np.unique(runs[ordered[at] != runs]).tolist()
