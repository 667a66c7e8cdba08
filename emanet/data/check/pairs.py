"""Everything that one pair of an image and its mask tells by itself, and why `check_pair` refuses it."""

import hashlib
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image

from ...config import DatasetSpec
from ...errors import InputError, some
from ..bands import Channels, Extent
from ..datasets import size_difference
from ..images import (
    FORMATS,
    TURNS,
    colour_codes,
    image_size,
    meanings,
    orientation,
    pixels_per_label,
    read_image,
    read_mask,
    read_mask_values,
    stored_samples,
)
from ..shards import File, Member, Pair

Severity = Literal["error", "warning", "note"]
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")  # a file may be cut in its header
BLURRED = 0.12
"""Share of a mask's borders with a value between the two sides. Masks of CamVid and of the drawn scenes have at most
0.04 (0.07 at a quarter of the size), and at least 0.18 after resizing with interpolation or saving as JPEG."""
FEWEST_BORDERS = 100  # with fewer, that share says nothing
ROWS = 256  # compared at a time, to save memory


@dataclass
class Facts:
    """What one pair tells."""

    findings: list[tuple[str, Severity, tuple[File, ...], str]] = field(default_factory=list)
    counts: np.ndarray | None = None
    """Pixels per label (256,), if the mask is sound."""
    values: Mapping[int, int] = field(default_factory=dict)
    """Pixels per value, if the mask is refused."""
    colours: bool | None = None
    """Whether the mask holds colours."""
    digest: bytes | None = None
    """Of the image's pixels."""
    size: tuple[int, int] | None = None
    samples: tuple[str, int] | None = None
    """Type and number of the image's bands beside alpha."""
    extent: Extent | None = None
    """Of an image whose type is not uint8."""

    def add(self, kind: str, severity: Severity, files: Iterable[File], text: str) -> None:
        self.findings.append((kind, severity, tuple(files), text))


class Header(NamedTuple):
    """What an image file says before its pixels; the defaults for a .npy and for files that cannot be opened."""

    format: str = ""
    colours: bool = False
    stored: tuple[int, int] = (0, 0)
    """(h, w), before the EXIF orientation is applied."""
    turn: int = 1
    palette: tuple[tuple[int, int, int], ...] = ()

    @property
    def shown(self) -> tuple[int, int]:
        return self.stored[::-1] if self.turn in SIDEWAYS else self.stored


def check_pair(image: File, mask: File, spec: DatasetSpec) -> np.ndarray:
    """The labels (H, W) uint8 of a sound mask that has the size in its image's header. Raises InputError.

    Every pair must pass this before a run, and in `data check`, which looks further.
    """
    labels = read_mask(mask, spec)
    size = image_size(image)
    if size != labels.shape:
        text = size_difference(image, size, mask, labels.shape)
        if size == labels.shape[::-1] and (_header(image).turn in SIDEWAYS) != (_header(mask).turn in SIDEWAYS):
            text += "; EXIF turns only one of them: save both upright, without EXIF"
        raise InputError(text)
    return labels


def inspect_mask(pair: Pair, spec: DatasetSpec, *, borders: bool = True) -> Facts:
    """What a pair tells without its image's pixels. Raises InputError as check_pair does.

    borders: also look for interpolated ones, which takes a fifth of the time.
    """
    image, mask = pair
    labels = check_pair(image, mask, spec)
    facts = Facts(size=(labels.shape[0], labels.shape[1]))
    heads = _header(image), _header(mask)
    _inspect_labels(facts, labels, mask, heads[1], spec, borders)
    _compare_turns(facts, image, mask, heads)
    return facts


def inspect_pair(pair: Pair, spec: DatasetSpec, channels: int = 3) -> Facts:
    """Everything that one pair tells by itself. Raises nothing: every failure is a finding."""
    image, mask = pair
    facts = Facts()
    try:
        kind, bands, facts.extent = stored_samples(image)
        facts.samples = kind, bands
        pixels = read_image(image, Channels(channels, spec.bands, spec.range))
        facts.size = pixels.shape[:2]
        facts.digest = hashlib.blake2b(pixels.data, digest_size=16, key=repr(pixels.shape).encode()).digest()
        del pixels  # before the mask is decoded, to save memory
    except InputError as error:
        refused = facts.samples and type(error.__cause__) is ValueError  # by the reader, not by a decoder
        facts.add("samples" if refused else _unreadable(image), "error", [image], _reason(error, image))
    heads = _header(image), _header(mask)
    labels = refusal = None
    try:
        labels = check_pair(image, mask, spec)
    except InputError as error:
        refusal = error
    if labels is not None:
        _inspect_labels(facts, labels, mask, heads[1], spec)
    else:
        _tell_why(facts, image, mask, heads, spec)
    _compare_turns(facts, image, mask, heads)
    if refusal and not facts.findings:
        facts.add("refused", "error", [mask], _reason(refusal, mask))
    return facts


def _inspect_labels(
    facts: Facts, labels: np.ndarray, mask: File, head: Header, spec: DatasetSpec, borders: bool = True
) -> None:
    """What a mask that passed the check tells: its pixels per label, and what makes it suspicious."""
    facts.counts = pixels_per_label(labels)
    facts.colours = head.colours
    if head.format == "JPEG":
        facts.add("lossy-mask", "warning", [mask], "it is a JPEG, which changes values")
    elif borders and (share := blur(labels)) > BLURRED:
        text = f"{share:.0%} of its borders have a class between those of the two sides"
        facts.add("lossy-mask", "warning", [mask], text)
    if text := _other_colours(facts.counts, head, spec):
        facts.add("palette", "warning", [mask], text)


def blur(values: np.ndarray) -> float:
    """Share of the borders in (H, W), or in a channel of (H, W, 3), with a value between those of the two sides."""
    shares = [0.0]
    for plane in np.moveaxis(values, 2, 0) if values.ndim == 3 else [values]:
        borders = between = 0
        for top in range(0, len(plane), ROWS):
            tall, wide = plane[top : top + ROWS + 2], plane[top : top + ROWS]
            for a, b, c in ((tall[:-2], tall[1:-1], tall[2:]), (wide[:, :-2], wide[:, 1:-1], wide[:, 2:])):
                borders += int(np.count_nonzero(a != b))
                between += int(np.count_nonzero(((a < b) & (b < c)) | ((a > b) & (b > c))))
        shares.append(between / borders if borders >= FEWEST_BORDERS else 0.0)
    return max(shares)


def _other_colours(counts: np.ndarray, head: Header, spec: DatasetSpec) -> str:
    """The value of a palette image that has another class's colour: some programs sort the palette when they save."""
    if spec.label_map or len(set(spec.palette)) < len(spec.classes):
        return ""
    named = dict(zip(spec.palette, spec.classes, strict=True))
    for label, (name, colour) in enumerate(zip(spec.classes, head.palette, strict=False)):
        if counts[label] and named.get(colour, name) != name:
            return f"value {label} is {name!r}, but has the colour of {named[colour]!r}"
    return ""


def _tell_why(facts: Facts, image: File, mask: File, heads: tuple[Header, Header], spec: DatasetSpec) -> None:
    """Why check_pair refuses a pair, as far as the mask or the sizes are the reason."""
    try:
        values = read_mask_values(mask)
    except InputError as error:
        facts.add(_unreadable(mask), "error", [mask], _reason(error, mask))
        return
    facts.colours = values.ndim == 3
    size, own = facts.size, values.shape[:2]
    if size not in (None, own):
        head, mask_head = heads
        turned = head.turn in SIDEWAYS or mask_head.turn in SIDEWAYS
        if turned and (head.stored in (mask_head.stored, mask_head.shown) or head.shown == mask_head.stored):
            turns = f"{head.turn} of the image, {mask_head.turn} of the mask"
            facts.add(
                "orientation",
                "error",
                [image, mask],
                f"the sizes match only if the EXIF orientation is not applied: {turns}",
            )
        else:
            text = f"{size[1]}x{size[0]}, its mask {own[1]}x{own[0]} (width x height)"
            facts.add("size", "error", [image, mask], text)
    kind, text = (_wrong_colours if facts.colours else _wrong_values)(facts, values, heads[1].format == "JPEG", spec)
    if kind:
        facts.add(kind, "error", [mask], text)


def _wrong_values(facts: Facts, values: np.ndarray, jpeg: bool, spec: DatasetSpec) -> tuple[str, str]:
    """Kind of finding and text for the values (H, W) of a mask; two empty strings if nothing is wrong."""
    facts.values = _counted(values)
    strays = {value: count for value, count in facts.values.items() if value not in meanings(spec)}
    if not strays:
        return "", ""
    text = f"{some(strays)} in {sum(strays.values()) / values.size:.2%} of its pixels"
    greys = {_grey(*colour) for colour in (*spec.colours, *spec.ignore_colours)} | {spec.ignore_label}
    if jpeg:
        return "lossy-mask", f"it is a JPEG, with values {text}"
    if list(strays) == [len(spec.classes)] and not spec.label_map:
        return "off-by-one", f"value {text}; 0 is {'in' if 0 in facts.values else 'not in'} it"
    if len(strays) > 1 and greys.issuperset(facts.values):
        return "mask-kind", f"it holds the colours as grey: values {text}"
    if (share := blur(values)) > BLURRED:
        return "lossy-mask", f"{share:.0%} of its borders have a value between those of the two sides, such as {text}"
    return "values", text


def _wrong_colours(facts: Facts, values: np.ndarray, jpeg: bool, spec: DatasetSpec) -> tuple[str, str]:
    """The same for colours (H, W, 3)."""
    palette = set(colour_codes(np.array([*spec.colours, *spec.ignore_colours], np.uint8)).tolist())
    counts = _counted(colour_codes(values))
    strays = {code: count for code, count in counts.items() if code not in palette}
    if not strays:
        return "", ""
    colours = [(code >> 16, code >> 8 & 255, code & 255) for code in strays]
    text = f"{some(colours, 3)} in {sum(strays.values()) / values[..., 0].size:.2%} of its pixels"
    if all(red == green == blue and red in meanings(spec) for red, green, blue in colours):
        return "mask-kind", f"its values are in three channels, as colours: {text}"
    if jpeg:
        return "lossy-mask", f"it is a JPEG, with colours {text}"
    if (share := blur(values)) > BLURRED:
        return "lossy-mask", f"{share:.0%} of its borders have a colour between those of the two sides, such as {text}"
    return "values", f"colours {text}"


def _compare_turns(facts: Facts, image: File, mask: File, heads: tuple[Header, Header]) -> None:
    """Whether a mask of the right size may still be turned relative to its image."""
    head, mask_head = heads
    if head.turn == mask_head.turn or head.shown != mask_head.shown:
        return
    if mask_head.turn in TURNS:
        turns = f"{head.turn} of the image, {mask_head.turn} of the mask"
        facts.add("orientation", "warning", [image, mask], f"the orientations differ: {turns}")
    elif head.turn in TURNS and (head.turn not in SIDEWAYS or head.stored == head.shown):
        text = f"orientation {head.turn} of the image keeps its size: was the mask drawn on the image as displayed?"
        facts.add("orientation", "warning", [image, mask], text)


def _header(file: File) -> Header:
    try:
        with _stream(file) as stream:
            image = Image.open(stream, formats=FORMATS)
            palette = (image.getpalette("RGB") or []) if image.mode == "P" else []
            colours = tuple(zip(*(palette[i::3] for i in range(3)), strict=False))
            size = image.size[::-1]
            return Header(image.format or "", image.mode in ("RGB", "RGBA"), size, orientation(image), colours)
    except Exception:  # Pillow's decoders raise nearly anything; reading the pixels reports what is wrong
        return Header()


def _unreadable(file: File) -> str:
    """The kind of finding for a file that cannot be read."""
    recognised = False
    try:
        with _stream(file) as stream:
            start = stream.read(4)
            if not start:
                return "empty-file"
            recognised = start.startswith(SIGNATURES)
            stream.seek(0)
            image = Image.open(stream, formats=FORMATS)
            recognised = True
            image.load()
    except Exception as error:  # of a Member a ValueError: its bytes are not those that were packed
        return "truncated" if recognised or isinstance(file, Member) and isinstance(error, ValueError) else "unreadable"
    return "unreadable"


def _stream(file: File) -> BinaryIO:
    """The file, opened; OSError for anything else, such as a pipe, which might block."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError
    return file.open("rb")


def _reason(error: InputError, file: File) -> str:
    return str(error).partition(f"{file}: ")[2] or str(error)


def _counted(values: np.ndarray) -> dict[int, int]:
    return dict(zip(*(array.tolist() for array in np.unique(values, return_counts=True)), strict=True))


def _grey(red: int, green: int, blue: int) -> int:
    """ITU-R 601-2 luma as Pillow's convert("L") has it."""
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
