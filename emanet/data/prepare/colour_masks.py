"""Masks in which each class has a colour: which colours mean what, and the regions of a mask."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import InputError, some
from ...experiments import read_text
from ..images import colour_codes, read_mask_values
from .annotations import Colour, Region

LABELMAPS = ("labelmap.txt", "label_colors.txt", "class_dict.csv", "labelmap.csv", "class_dict_seg.csv")


def find_labelmap(*folders: Path) -> Path | None:
    return next((folder / name for folder in folders for name in LABELMAPS if (folder / name).is_file()), None)


def read_labelmap(path: Path) -> dict[str, Colour]:
    """Names and RGB, one a line: `name:r,g,b::` (CVAT), `name,r,g,b`, `name r g b` or `r g b name`. Raises InputError.

    Empty lines, lines that begin with #, and a header are left out.
    """
    colours: dict[str, Colour] = {}
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    for number, line in enumerate(lines):
        if match := re.fullmatch(r"(.+?)[:,;\s]\s*(\d+)[,;\s]+(\d+)[,;\s]+(\d+)(?::.*)?", line):
            name, *values = match.groups()
        elif match := re.fullmatch(r"(\d+)[,;\s]+(\d+)[,;\s]+(\d+)[,;\s]+(.+)", line):
            *values, name = match.groups()
        elif re.fullmatch(r"[^:]+:::?", line) or (number == 0 and not re.search(r"\d", line)):
            continue  # a header, or a class of CVAT's without a colour
        else:
            raise InputError(f"{path}: {line!r} is not a name and a colour: name,r,g,b")
        colour = tuple(map(int, values))
        if max(colour) > 255:
            raise InputError(f"{path}: {line!r} has a value above 255")
        if colour in colours.values():
            twin = next(other for other, its in colours.items() if its == colour)
            raise InputError(f"{path}: {twin} and {name.strip()} have the same colour {colour}")
        colours[name.strip()] = colour  # type: ignore[assignment]  # three of them
    if not colours:
        raise InputError(f"{path} names no colour")
    return colours


def read_colours(path: Path) -> np.ndarray:
    """The colours (H, W, 3) uint8 of a mask, those of its palette if it has one; or its values (H, W). InputError."""
    values = read_mask_values(path)
    if values.ndim == 3:
        return values
    try:
        with Image.open(path) as image:
            palette = image.getpalette("RGB") if image.mode == "P" else None
    except Exception:  # a .npy, or something that read_mask_values takes and Pillow does not
        palette = None
    if palette is None:
        return values
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette) // 3] = np.reshape(palette, (-1, 3))
    return table[values]


def code(colour: Colour) -> int:
    """As colour_codes has it."""
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def regions_of(
    path: Path, colours: Mapping[int, str | None], values: Mapping[int, str | None], size: tuple[int, int]
) -> Iterator[Region]:
    """One region for each class of a mask. colours: code -> class; values: the same, of grey masks. InputError.

    Without `colours`, the values of a mask with a palette count.
    """
    pixels = read_colours(path) if colours else read_mask_values(path)
    if pixels.shape[:2] != size:
        stated = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise InputError(f"{path.name} is {stated}, its image {size[1]}x{size[0]} (width x height)")
    label_of, kind = (colours, "the colours") if pixels.ndim == 3 else (values, "the values")
    pixels = colour_codes(pixels) if pixels.ndim == 3 else pixels
    present = np.unique(pixels).tolist()
    if strays := [value for value in present if value not in label_of]:
        shown = strays if label_of is values else [(c >> 16, c >> 8 & 255, c & 255) for c in strays]
        raise InputError(f"{path.name} holds {kind} {some(shown, 3)}, which no class has")
    for value in present:
        yield Region(label_of[value], pixels == value)
