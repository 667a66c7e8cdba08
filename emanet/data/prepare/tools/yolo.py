"""YOLO segmentation: a data.yaml and one text file of polygons for each image.

A line is a class and the polygon's x and y as shares of the image's width and height. Smaller objects are drawn over
larger ones, as the trainer does; a pixel belongs to a polygon if its centre lies inside.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import InputError
from ....experiments import read_text
from ...files import files_below
from ...images import IMAGE_SUFFIXES
from ..annotations import Annotated, Export, Images, Region
from ..outlines import filled

SPLITS = ("train", "val", "test")


def read(source: Path, images: Images) -> Export:
    """source: the data.yaml, or the folder that holds it. Its folders of images have folders of labels beside them."""
    path, document = _described(source)
    names = document["names"]
    if "kpt_shape" in document:
        raise InputError(f"{path} describes key points (kpt_shape), not outlines: export the data set for segmentation")
    try:
        classes = names if isinstance(names, list) else [names[i] for i in range(len(names))]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: names must list the classes, or give each number from 0 a name") from error
    export = Export([str(name) for name in classes], order="Smaller objects are drawn over larger ones.")
    root = path.parent / str(document.get("path") or "")
    if not os.path.isdir(root):  # unlike Path.is_dir, also for names that the disk finds too long
        root = path.parent  # the path of the machine that wrote it
    for split in SPLITS:
        for image, base in _listed(path, root, document.get(split)):
            name = image.relative_to(base).with_suffix("").as_posix() if image.is_relative_to(base) else image.stem
            regions = partial(_regions, image, _label_file(image), export)
            export.items.append(Annotated(name, image, regions, split=split))
    return export


def _described(source: Path) -> tuple[Path, dict[str, Any]]:
    import yaml

    candidates = sorted([*source.glob("*.yaml"), *source.glob("*.yml")]) if source.is_dir() else [source]
    for path in candidates:
        try:
            document = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            raise InputError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error
        if isinstance(document, dict) and isinstance(document.get("names"), list | dict):
            return path, document
    raise InputError(f"{source} holds no data.yaml with `names` and `train`: YOLO exports have one")


def _listed(path: Path, root: Path, entry: Any) -> Iterator[tuple[Path, Path]]:
    """The images of a split, each with the folder that its name is relative to."""
    for part in entry if isinstance(entry, list) else [entry] if entry else []:
        place = root / str(part)
        if not os.path.exists(place):  # Roboflow's "../train/images" is meant from a folder that is not there
            place = root.joinpath(*[step for step in Path(str(part)).parts if step not in ("..", "/")])
        if os.path.isdir(place):
            for image in sorted(files_below(place)):
                if image.suffix.lower() in IMAGE_SUFFIXES:
                    yield image, place
        elif os.path.isfile(place):
            for line in filter(None, map(str.strip, read_text(place, names=True).splitlines())):
                image = (place.parent if line.startswith("./") else root) / line
                if not image.is_file():
                    raise InputError(f"{place} lists {line}, but there is no {image}")
                yield image, root
        else:
            raise InputError(f"{path}: there is no {place}")


def _label_file(image: Path) -> Path:
    """images/a.jpg -> labels/a.txt, by the last folder called images."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _regions(image: Path, path: Path, export: Export, size: tuple[int, int]) -> Iterator[Region]:
    h, w = size
    if not path.is_file():
        export.left_out["label files that are missing: those images have no object"].append(path.name)
        return
    masks = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if len(words) == 5:
            export.left_out["boxes without an outline"].append(f"{path.name}, line {number}")
        elif words:
            try:
                number_of_class, values = int(words[0]), np.array(words[1:], np.float64).reshape(-1, 2)
                if number_of_class < 0:  # would count from the end
                    raise IndexError
                label = export.classes[number_of_class]
            except (ValueError, IndexError) as error:
                raise InputError(f"{path}, line {number}: not a class and the x and y of points") from error
            if len(values) < 3 or not np.isfinite(values).all():
                raise InputError(f"{path}, line {number}: a polygon needs three or more points")
            if values.min() < -0.01 or values.max() > 1.01:
                raise InputError(f"{path}, line {number}: x and y must be shares of the image's sides, from 0 to 1")
            masks.append((label, filled([values * (w, h)], size)))
    for label, mask in sorted(masks, key=lambda each: -int(each[1].sum())):
        yield Region(label, mask)
