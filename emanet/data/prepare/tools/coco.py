"""COCO: JSON files of polygons and run lengths, of every tool that writes them (Roboflow, Label Studio, CVAT, ...).

COCO defines no order: smaller objects are drawn over larger ones, which stay visible anyway. A crowd is a rough region
around many objects: its pixels are ignored where no single object covers them. Outlines are drawn by pycocotools.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ....errors import InputError
from ....experiments import read_json
from ...files import files_below
from ..annotations import Annotated, Export, Region, split_in
from ..image_files import Images
from ..masks import encoded

KEYS = ("images", "annotations", "categories")


def read(source: Path, images: Images) -> Export:
    """source: one JSON file, or a folder with one for each split.

    The name or the folder of the JSON file names the split, or else the folder of the image.
    """
    export = Export(classes=[], order="Smaller objects are drawn over larger ones; pixels of crowds are ignored.")
    paths = sorted(path for path in files_below(source) if path.suffix.lower() == ".json")
    for path in paths if source.is_dir() else [source]:
        document = read_json(path)
        if isinstance(document, dict) and all(isinstance(document.get(key), list) for key in KEYS):
            # COCO's own person_keypoints_*.json repeats what instances_*.json has of persons.
            if source.is_dir() and "keypoints" in str(document["categories"]):
                export.left_out["JSON files of keypoints: name one to read its outlines"].append(path.name)
                continue
            _read_file(path, document, images, export)
        else:
            export.left_out[f"JSON files without {', '.join(KEYS)}"].append(path.name)
    return export


def _read_file(path: Path, document: Mapping[str, list[Any]], images: Images, export: Export) -> None:
    try:
        names = {int(category["id"]): str(category["name"]) for category in document["categories"]}
        parents = {str(category.get("supercategory")) for category in document["categories"]}
        sizes = {int(each["id"]): (int(each["height"]), int(each["width"])) for each in document["images"]}
        for kind, numbers in (("categories", names), ("images", sizes)):
            if len(numbers) < len(document[kind]):
                raise InputError(f"{path}: two {kind} have the same id")
        shapes: dict[int, list[tuple[bool, str, Any]]] = defaultdict(list)
        used = set()
        for each in document["annotations"]:
            name = names[int(each["category_id"])]
            if int(each["image_id"]) not in sizes:
                reason = "annotations of images that the file does not list"
                export.left_out[reason].append(f"{path.name}: {name} of image_id {each['image_id']}")
                continue
            outline = each.get("segmentation")
            if outline and isinstance(outline, list) and max(map(len, outline)) < 6:
                export.left_out["outlines of fewer than three points"].append(f"{path.name}: {name}")
            elif outline:
                used.add(name)
                if each.get("iscrowd"):
                    reason = "regions of crowds, whose pixels are ignored; if they are objects, set their iscrowd to 0"
                    export.left_out[reason].append(f"{path.name}: {name}")
                shapes[int(each["image_id"])].append((bool(each.get("iscrowd")), name, outline))
            else:
                export.left_out["objects with a box but no outline"].append(f"{path.name}: {name}")
    except KeyError as error:
        raise InputError(f"{path}: an entry lacks {error}, or names a category that is not in it") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: an image, a category or an annotation is not as COCO defines it: {error}") from error
    for name in names.values():
        if name in parents and name not in used:  # Roboflow writes the project itself as a category
            export.left_out["categories that only group others"].append(name)
        elif name not in export.classes:
            export.classes.append(name)
    for image in document["images"]:
        stated, number = str(image.get("file_name") or ""), int(image["id"])
        try:
            file = images.find(stated, path.parent)
        except InputError as error:
            export.left_out["images"].append(str(error))
            continue
        named = PurePosixPath(stated.replace("\\", "/"))
        split = split_in(path, images.folders[0]) or split_in(Path(named.parent), Path())
        name, regions = named.with_suffix("").as_posix().lstrip("/."), partial(_regions, stated, shapes[number])
        export.items.append(Annotated(name, file, regions, sizes[number], split=split))


def _regions(name: str, shapes: list[tuple[bool, str, Any]], size: tuple[int, int]) -> Iterator[Region]:
    from pycocotools import mask as rle

    try:
        drawn = [(crowd, label, encoded(shape, *size)) for crowd, label, shape in shapes]
        for crowd, label, code in sorted(drawn, key=lambda each: (not each[0], -int(rle.area(each[2])))):
            yield Region(None if crowd else label, np.asarray(rle.decode(code)).astype(bool))
    except Exception as error:  # pycocotools, a C extension, raises nearly anything on broken input
        raise InputError(f"{name}: its regions cannot be drawn: {error}") from error
