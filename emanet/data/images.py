"""Reads and writes pixels: any image file to uint8, any mask file to class indices. No other module decodes images.

The content decides the format, not the extension. A file may also be a member of a packed split (shards.py). Every
function may run in several threads. Pillow's warnings are hidden: the pixels are right anyway, or it is an error.
"""

import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from ..config import IGNORE, DatasetSpec
from ..errors import InputError, some
from ..show.colours import IGNORE_COLOUR
from . import libtiff
from .shards import File

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .jp2 .avif .heic .heif .npy".split()
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


def read_image(path: str | File, channels: int = 3, *, max_pixels: int | None = None) -> np.ndarray:
    """The pixels as displayed: (H, W, channels) uint8, C-contiguous, EXIF orientation applied, first frame.

    1 channel is grey, 3 are RGB, 4 are RGBA. A .npy file may have any number of channels, but must have this number.
    max_pixels: the largest H * W, default MAX_PIXELS; if it is above Pillow's limit, that limit is raised for the whole
    process. Raises InputError.
    """
    with _opened(path, "image", max_pixels) as image:
        if isinstance(image, Image.Image):
            return image_array(image, channels)
        shape = image.shape if image.ndim == 3 else (*image.shape, 1)
        if image.dtype != np.uint8 or shape[2] != channels:
            raise ValueError(f"it is {image.dtype} {image.shape}, not uint8 (H, W, {channels})")
        return np.array(image, order="C").reshape(shape)


def image_array(image: Image.Image, channels: int = 3) -> np.ndarray:
    """A Pillow image as read_image returns it; ValueError where its mode or the number of channels does not allow it.

    Alpha is dropped: blending would invent a background.
    """
    if channels not in MODES:
        raise ValueError(f"{channels} channels can only come from a .npy file of (H, W, {channels}) uint8")
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not wide:
        raise ValueError(f"{image.mode!r} pixels of 32 bits have no fixed black and white")
    image = upright(image)
    if wide:  # Pillow would clip to 255; its own 16-bit RGB is the high byte too
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # other conversions of these make Pillow warn
    image = image if image.mode == MODES[channels] else image.convert(MODES[channels])
    return np.array(image).reshape(image.height, image.width, channels)


def image_size(path: str | File, *, max_pixels: int | None = None) -> tuple[int, int]:
    """(h, w) of what read_image returns, from the header alone. Raises InputError."""
    with _opened(path, "image", max_pixels) as image:
        if isinstance(image, np.ndarray):
            h, w = image.shape[:2]
        else:
            h, w = image.size if orientation(image) in (5, 6, 7, 8) else image.size[::-1]
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

    Values are as stored: palette indices, or numbers of 1, 2, 4, 8, 16 or 32 bits. Raises InputError.
    """
    with _opened(path, "mask", max_pixels) as image:
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


def write_mask(path: str | Path, labels: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> None:
    """Write labels (H, W) uint8 as an 8-bit palette PNG: read_mask returns them, an image viewer shows the colours."""
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"labels must be uint8 (H, W), got {labels.dtype} {labels.shape}")
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette
    colours[IGNORE] = IGNORE_COLOUR
    image = Image.fromarray(labels)
    image.putpalette(colours.tobytes())
    image.save(path, format="PNG")


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
def _opened(path: str | File, kind: str, max_pixels: int | None = None) -> Iterator[Image.Image | np.ndarray]:
    """The file, not decoded yet: a Pillow image, or a memory map of a .npy. Any failure becomes an InputError."""
    try:
        source = Path(path) if isinstance(path, str | os.PathLike) else path
        mode = source.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ValueError("it is not a file but a pipe or a device")  # reading one may block, or never end
        with source.open("rb") as file:
            start = file.read(6)
            if not start:
                raise ValueError("it is empty")
            if start == b"\x93NUMPY":
                file.seek(0)
                mapped = {"file": source, "mmap_mode": "r"} if isinstance(source, Path) else {"file": file}
                with np.errstate(over="ignore"):  # a shape of 2^70 overflows, and is refused below
                    image = np.load(**mapped, allow_pickle=False)
                if image.ndim not in (2, 3) or not image.size:
                    raise ValueError(f"it is {image.dtype} {image.shape}, not pixels (H, W) or (H, W, C)")
                h, w = image.shape[:2]
            else:
                if max_pixels and Image.MAX_IMAGE_PIXELS and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
                    Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow refuses more than twice as many
                image = Image.open(file, formats=_formats(file) or FORMATS)
                w, h = image.size
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
