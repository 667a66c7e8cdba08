"""YOLO segmentation: a data.yaml and one text file of polygons for each image.

A line is a class and the polygon's x and y as shares of the image's width and height. Smaller objects are drawn over
larger ones, as the trainer does; a pixel belongs to a polygon if its centre lies inside.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ....errors import InputError
from ....experiments import read_text
from ...files import files_below
from ...images import IMAGE_SUFFIXES
from ..annotations import Annotated, Export, Region
from ..image_files import Images
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
        for image, name, stated in _listed(path, root, split, document.get(split), images, export):
            regions = partial(_regions, image, _label_file(image, stated, root), export)
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


def _listed(
    path: Path, root: Path, split: str, entry: Any, images: Images, export: Export
) -> Iterator[tuple[Path, str, Path]]:
    """(image, name, the path that the export states) of a split: of a folder, a list of images, or several of them."""
    folders = (root, *images.folders)
    for part in map(str, entry if isinstance(entry, list) else [entry] if entry else []):
        # Roboflow's "../train/images" is meant from a folder that is not there; other paths are of another machine.
        steps = [step for step in PurePosixPath(part.replace("\\", "/")).parts if step not in ("..", "/")]
        places = [root / part, *(folder.joinpath(*steps[-n:]) for n in (len(steps), 2) for folder in folders)]
        place = next((place for place in places if os.path.exists(place)), None)
        if place is None:
            export.left_out[f"splits of {path.name} that are not here"].append(f"{split}, {part}")
        elif place.is_dir():
            for image in sorted(files_below(place)):
                if image.suffix.lower() in IMAGE_SUFFIXES:
                    yield image, image.relative_to(place).with_suffix("").as_posix(), image
        else:
            for line in filter(None, map(str.strip, read_text(place, names=True).splitlines())):
                stated = (place.parent if line.startswith("./") else root) / line.replace("\\", "/")
                try:
                    image = images.find(line, place.parent if line.startswith("./") else root)
                except InputError as error:
                    export.left_out["images"].append(f"{place.name}: {error}")
                    continue
                folder = next((folder for folder in folders if image.is_relative_to(folder)), image.parent)
                yield image, image.relative_to(folder).with_suffix("").as_posix(), stated


def _label_file(image: Path, stated: Path, root: Path) -> Path:
    """images/a.jpg -> labels/a.txt, by the last folder called images. Images elsewhere have their labels below root."""
    beside, parts = _with_labels(image), _with_labels(stated).parts
    if image.is_relative_to(root):
        return beside
    below = (root.joinpath(*parts[-n:]) for n in range(len(parts), 1, -1))
    return next((path for path in below if path.is_file()), beside)


def _with_labels(image: Path) -> Path:
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
    regions = []
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
            regions.append(Region(label, *filled([values * (w, h)], size)))
    yield from sorted(regions, key=lambda region: -int(region.mask.sum()))
