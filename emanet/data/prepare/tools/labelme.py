"""labelme: a folder of images and JSON files, one beside each image.

Shapes are drawn as labelme's own conversion draws them: outlines belong to the shape, lines are 10 pixels wide, points
have a radius of 5. `__ignore__` becomes ignored pixels; `_background_` is what pixels without a shape are.
"""

import base64
import binascii
import io
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ....errors import InputError
from ....experiments import read_json
from ...files import files_below
from ..annotations import BACKGROUND, Annotated, Export, Region, split_in
from ..image_files import Images

IGNORED, UNLABELLED = "__ignore__", "_background_"
LINE_WIDTH, POINT_RADIUS = 10, 5  # of labelme's conversion
POINTS = {"circle": 2, "rectangle": 2, "mask": 2, "line": 2, "point": 1, "linestrip": 2, "polygon": 3}


def read(source: Path, images: Images) -> Export:
    """source: the folder, with its subfolders, whose names may be those of splits; or one JSON file."""
    files = files_below(source) if source.is_dir() else [source]
    root = source if source.is_dir() else source.parent
    export = Export(classes=[], background=BACKGROUND, order="Later shapes of a file are drawn over earlier ones.")
    used: set[Path] = set()
    names: set[str] = set()
    for path in sorted(file for file in files if file.suffix.lower() == ".json"):
        try:
            document = read_json(path)
        except InputError as error:  # a file that was cut off, among good ones
            export.left_out["JSON files"].append(str(error))
            continue
        if not isinstance(document, dict) or not isinstance(document.get("shapes"), list):
            export.left_out["JSON files that are not labelme's"].append(path.name)
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        try:
            shapes = [_checked(shape, name, export) for shape in document["shapes"]]
            image, suffix = _image(path, document, images)
        except InputError as error:
            export.left_out["JSON files"].append(str(error))
            continue
        if isinstance(image, Path):
            used.add(image.resolve())
        kept = [shape for shape in shapes if shape]
        names |= {shape["label"] for shape in kept}
        h, w = document.get("imageHeight"), document.get("imageWidth")
        size = (h, w) if isinstance(h, int) and isinstance(w, int) else None
        regions, split = partial(_regions, name, kept), split_in(path.parent, root)
        export.items.append(Annotated(name, image, regions, size, suffix, split))
    if alone := sorted(file.name for file in images.files if file.resolve() not in used):
        export.left_out["images without a JSON file"] = alone
    export.classes = sorted(names - {IGNORED}, key=lambda name: (name != BACKGROUND, name))
    return export


def _checked(shape: Any, name: str, export: Export) -> Mapping[str, Any] | None:
    """A shape that can be drawn, else None and a line in the account. InputError where it is not a shape at all."""
    try:
        label, kind = str(shape["label"] or "").strip(), shape.get("shape_type") or "polygon"
        points = np.asarray(shape["points"], np.float64).reshape(-1, 2)
        if not label or not np.isfinite(points).all():
            raise ValueError
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{name}: a shape has no label, or points that are not pairs of numbers") from error
    if kind not in POINTS or len(points) < POINTS[kind] or (kind == "mask" and not shape.get("mask")):
        what = f"a {kind} of {len(points)} points" if kind in POINTS else f"a {kind}"
        export.left_out["shapes that cannot be drawn"].append(f"{name}: {what}, {label}")
        return None
    label = BACKGROUND if label == UNLABELLED else label
    return {"label": label, "kind": kind, "points": points, "mask": shape.get("mask")}


def _image(path: Path, document: Mapping[str, Any], images: Images) -> tuple[Path | bytes, str]:
    """The image file; where it is missing, the copy that the JSON file embeds."""
    stated = str(document.get("imagePath") or "")
    try:
        return images.find(stated, path.parent), ""
    except InputError:
        if not document.get("imageData"):
            raise
    try:
        content = base64.b64decode(document["imageData"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise InputError(f"{path.name}: its imageData is not base64") from error
    return content, PurePosixPath(stated).suffix or ".png"


def _regions(name: str, shapes: list[Mapping[str, Any]], size: tuple[int, int]) -> Iterator[Region]:
    for shape in shapes:
        label = None if shape["label"] == IGNORED else shape["label"]
        if shape["kind"] == "mask":
            yield Region(label, _stored(name, shape), *(int(value) for value in np.floor(shape["points"].min(0))))
        else:
            yield Region(label, _drawn(shape["kind"], shape["points"], size))


def _stored(name: str, shape: Mapping[str, Any]) -> np.ndarray:
    try:
        return np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=["PNG"]).convert("L")) > 0
    except Exception as error:  # Pillow's decoders raise nearly anything on broken content
        raise InputError(f"{name}: the mask of a shape {shape['label']} cannot be read") from error


def _drawn(kind: str, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    image = Image.new("1", size[::-1])
    draw, xy = ImageDraw.Draw(image), [(float(x), float(y)) for x, y in points]
    if kind in ("circle", "point"):
        x, y = xy[0]
        radius = math.dist(xy[0], xy[1]) if kind == "circle" else POINT_RADIUS
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    elif kind == "rectangle":
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        draw.rectangle((left, top, right, bottom), fill=1, outline=1)
    elif kind == "polygon":
        draw.polygon(xy, fill=1, outline=1)
    else:
        draw.line(xy, fill=1, width=LINE_WIDTH)
    return np.array(image)
