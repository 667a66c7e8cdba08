"""CVAT: "CVAT for images 1.1" (XML), or "Segmentation mask 1.1" (PNGs with a labelmap.txt).

Shapes are drawn in the order of their z_order, then of the file. A pixel belongs to a polygon, box or ellipse if its
centre lies inside.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import ImageColor

from ....errors import InputError
from ...files import files_below
from ..annotations import Annotated, Export, Region
from ..image_files import Images
from ..outlines import ellipse, filled, turned
from . import voc

KINDS = ("polygon", "box", "ellipse", "mask")


def read(source: Path, images: Images) -> Export:
    """source: an XML file, or the unpacked export of either format."""
    if (source / "SegmentationClass").is_dir():
        return voc.read(source, images)
    paths = sorted(path for path in files_below(source) if path.suffix == ".xml") if source.is_dir() else [source]
    if not paths:
        raise InputError(f"{source} holds neither an XML file nor a folder SegmentationClass")
    export = Export(
        classes=[], order="Shapes of a higher z_order are drawn over lower ones, later ones over earlier ones."
    )
    for path in paths:
        try:
            root = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, LookupError, OSError, ValueError) as error:  # the second: an unknown encoding
            raise InputError(f"{path} cannot be read as XML: {error}") from error
        if root.tag != "annotations":
            export.left_out["XML files that are not CVAT's"].append(path.name)
            continue
        for label in root.iterfind("meta//labels/label"):
            name, colour = label.findtext("name", ""), label.findtext("color", "")
            if name and name not in export.classes:
                export.classes.append(name)
                if re.fullmatch("#[0-9a-fA-F]{6}", colour):
                    export.palette[name] = ImageColor.getrgb(colour)[:3]
        if tracks := root.findall("track"):
            export.left_out["tracks of a video: export its frames as images"] += [f"{path.name}: {len(tracks)}"]
        for image in root.iterfind("image"):
            _read_image(path, image, images, export)
    return export


def _read_image(path: Path, image: ElementTree.Element, images: Images, export: Export) -> None:
    stated, subset = image.get("name", ""), image.get("subset", "")
    try:
        size = int(image.get("height", "")), int(image.get("width", ""))
        # Of two images of one name, each subset's is in its own folder.
        file = images.find(stated, *(folder / subset for folder in (path.parent / "images", path.parent) if subset))
    except InputError as error:
        export.left_out["images"].append(str(error))
        return
    except ValueError as error:
        raise InputError(f"{path}: image {stated!r} lacks a width or height") from error
    shapes = []
    for shape in image:
        name = shape.get("label", "")
        if shape.tag not in KINDS:
            export.left_out["shapes without an area"].append(f"{stated}: {shape.tag}, {name}")
        elif name not in export.classes:
            export.left_out["shapes whose label the file does not define"].append(f"{stated}: {shape.tag}, {name!r}")
        else:
            shapes.append(shape)
    name = PurePosixPath(stated.replace("\\", "/")).with_suffix("").as_posix().lstrip("/.")
    try:
        shapes.sort(key=lambda shape: int(shape.get("z_order") or 0))
    except ValueError as error:
        raise InputError(f"{path}: image {stated!r} has a z_order that is not a whole number") from error
    export.items.append(Annotated(name, file, partial(_regions, stated, shapes), size, split=subset))


def _regions(image: str, shapes: list[ElementTree.Element], size: tuple[int, int]) -> Iterator[Region]:
    for shape in shapes:
        name = shape.get("label", "")
        try:
            if shape.tag == "mask":
                left, top, w, h = (int(float(shape.attrib[key])) for key in ("left", "top", "width", "height"))
                counts = [int(count) for count in shape.attrib["rle"].split(",")]
                if not (1 <= h <= size[0] and 1 <= w <= size[1]) or min(counts) < 0 or sum(counts) != h * w:
                    raise ValueError(f"its runs do not add up to {w} x {h} pixels, or it is larger than the image")
                # The runs begin with one of pixels that are outside.
                inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
                yield Region(name, inside.reshape(h, w), left, top)
            else:
                yield Region(name, *filled([_outline(shape)], size))
        except (KeyError, ValueError, OverflowError) as error:
            raise InputError(f"{image}: a {shape.tag} of {name} cannot be read: {error}") from error


def _outline(shape: ElementTree.Element) -> np.ndarray:
    """Points (n, 2)."""
    if shape.tag == "polygon":
        return np.array([pair.split(",") for pair in shape.attrib["points"].split(";")], np.float64)
    if shape.tag == "box":
        x0, y0, x1, y1 = (float(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        points, centre = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]), ((x0 + x1) / 2, (y0 + y1) / 2)
    else:
        cx, cy, rx, ry = (float(shape.attrib[key]) for key in ("cx", "cy", "rx", "ry"))
        points, centre = ellipse((cx, cy), (rx, ry)), (cx, cy)
    return turned(points, centre, float(shape.get("rotation") or 0))
