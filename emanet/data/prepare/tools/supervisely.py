"""Supervisely: a project with meta.json, and folders of data sets with img/ and ann/.

Bitmaps are placed at their origin. Polygons and rectangles include their outline, and their holes do too: a hole's
outline is not part of the object.
"""

import base64
import io
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from ....errors import InputError
from ....experiments import read_json
from ...files import files_below
from ..annotations import Annotated, Export, Region, split_in
from ..image_files import Images

KINDS = ("bitmap", "polygon", "rectangle")
MOST = 1 << 28  # bytes of an unpacked bitmap


def read(source: Path, images: Images) -> Export:
    """source: the project's folder."""
    meta = source / "meta.json"
    if not meta.is_file():
        raise InputError(f"{source} holds no meta.json: name the folder of a Supervisely project")
    try:
        described = {str(each["title"]): each for each in read_json(meta)["classes"]}
        palette = {name: ImageColor.getrgb(each["color"])[:3] for name, each in described.items() if each.get("color")}
        classes = {name: str(each.get("shape", "")) for name, each in described.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{meta}: `classes` must list classes with `title` and `color`: {error}") from error
    export = Export(list(classes), palette=palette)
    for path in sorted(path for path in files_below(source) if path.parent.name == "ann" and path.suffix == ".json"):
        dataset = path.parent.parent
        try:
            document = read_json(path)
            size = int(document["size"]["height"]), int(document["size"]["width"])
            shapes = [shape for each in document["objects"] if (shape := _checked(each, path, classes, export))]
            image = images.find(path.stem, dataset / "img")
        except InputError as error:
            export.left_out["images"].append(str(error))
            continue
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            export.left_out["images"].append(f"{path}: it lacks the size or the objects of its image: {error}")
            continue
        name = (dataset.relative_to(source) / Path(path.stem).stem).as_posix()
        export.items.append(
            Annotated(name, image, partial(_regions, path, shapes), size, split=split_in(dataset, source))
        )
    return export


def _checked(shape: Mapping[str, Any], path: Path, classes: Mapping[str, str], export: Export) -> tuple | None:
    """(class, kind, geometry), or None and a line in the account."""
    name = str(shape["classTitle"])
    if name not in classes:
        raise InputError(f"{path}: the class {name!r} is not in meta.json")
    kind = str(shape.get("geometryType") or classes[name])  # older projects have the kind in meta.json alone
    if kind not in KINDS:
        export.left_out["objects without an area"].append(f"{path.stem}: {kind or 'no geometryType'}, {name}")
        return None
    return name, kind, shape["bitmap" if kind == "bitmap" else "points"]


def _regions(path: Path, shapes: list[tuple], size: tuple[int, int]) -> Iterator[Region]:
    for name, kind, geometry in shapes:
        try:
            if kind == "bitmap":
                left, top = (int(value) for value in geometry["origin"])
                yield Region(name, _unpacked(geometry["data"]), left, top)
            else:
                yield Region(name, _drawn(kind, geometry, size))
        except Exception as error:  # base64, zlib and Pillow raise nearly anything on broken content
            raise InputError(f"{path.stem}: a {kind} of {name} cannot be read: {error}") from error


def _unpacked(data: str) -> np.ndarray:
    """A bitmap: a PNG, packed by zlib, in base64. Its alpha channel says what is inside, if it has one."""
    content = zlib.decompressobj().decompress(base64.b64decode(data), MOST)
    image = Image.open(io.BytesIO(content), formats=["PNG"])
    return np.array(image.getchannel("A") if image.mode in ("LA", "RGBA") else image.convert("L")) > 0


def _drawn(kind: str, points: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    image = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(image)
    exterior = [(float(x), float(y)) for x, y in points["exterior"]]
    if kind == "rectangle":
        (x0, y0), (x1, y1) = exterior
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1, outline=1)
        return np.array(image)
    draw.polygon(exterior, fill=1, outline=1)
    for hole in points.get("interior") or []:
        draw.polygon([(float(x), float(y)) for x, y in hole], fill=0, outline=0)
    return np.array(image)
