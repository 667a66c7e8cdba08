"""Drawn scenes as files: what a folder data set looks like, or images with labelme's annotations to import."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..atomic import write_json
from ..errors import InputError
from ..experiments import to_dict
from .datasets import DRAWN_SIZE
from .images import write_mask
from .specs import SPECS
from .synthetic import DrawnScenes

JPEG_QUALITY = 92


def write_drawn(folder: Path, counts: dict[str, int]) -> None:
    """Write SPLIT/images/*.jpg, SPLIT/masks/*.png and dataset.json into a folder that is new or empty."""
    _require_empty(folder)
    if min(counts.values()) < 1:
        raise InputError(f"every split needs at least one scene, not {counts}")
    spec = SPECS["drawn"]
    for split, count in counts.items():
        scenes = DrawnScenes(split, count=count, size=DRAWN_SIZE)
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            image, labels = scenes.read(i)
            Image.fromarray(image).save(folder / split / "images" / f"{i:04d}.jpg", quality=JPEG_QUALITY)
            write_mask(folder / split / "masks" / f"{i:04d}.png", labels, spec.colours)
    write_json(folder / "dataset.json", {name: to_dict(spec)[name] for name in ("classes", "palette")})


def write_labelme(folder: Path, count: int) -> None:
    """Write *.jpg, each with a *.json as labelme saves it, into a folder that is new or empty.

    The background, sky, has no shape; every other class of an image is one shape of labelme's type "mask".
    """
    _require_empty(folder)
    if count < 1:
        raise InputError(f"at least one scene is needed, not {count}")
    folder.mkdir(parents=True, exist_ok=True)
    scenes = DrawnScenes("train", count=count, size=DRAWN_SIZE)
    for i in range(count):
        image, labels = scenes.read(i)
        name = f"{i:04d}.jpg"
        Image.fromarray(image).save(folder / name, quality=JPEG_QUALITY)
        shapes = [_shape(SPECS["drawn"].classes[label], labels == label) for label in np.unique(labels) if label]
        h, w = labels.shape
        document: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": name,
            "imageData": None,
        }
        write_json((folder / name).with_suffix(".json"), document | {"imageHeight": h, "imageWidth": w})


def _shape(label: str, mask: np.ndarray) -> dict[str, Any]:
    """A shape of labelme's type "mask": the corners of its box, inclusive, and the box's pixels as a PNG in base64."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = (int(each) for each in (rows[0], rows[-1], columns[0], columns[-1]))
    png = io.BytesIO()
    Image.fromarray(mask[top : bottom + 1, left : right + 1]).save(png, "PNG")
    box = [[left, top], [right, bottom]]
    pixels = base64.b64encode(png.getvalue()).decode()
    return {"label": label, "points": box, "group_id": None, "shape_type": "mask", "flags": {}, "mask": pixels}


def _require_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty")
