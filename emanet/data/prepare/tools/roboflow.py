"""Roboflow's semantic segmentation masks: train, valid and test with NAME.jpg, NAME_mask.png and _classes.csv.

Masks hold the values that _classes.csv names. Roboflow's COCO export is read by `coco`.
"""

import csv
from functools import partial
from pathlib import Path

from ....errors import InputError
from ....experiments import read_text
from ...files import files_below
from ..annotations import Annotated, Export, split_in
from ..colour_masks import regions_of
from ..image_files import Images

CLASSES, MASK = "_classes.csv", "_mask.png"


def read(source: Path, images: Images) -> Export:
    """source: the folder that holds the folders of the splits, or one of them."""
    tables = sorted(path for path in files_below(source) if path.name == CLASSES)
    if not tables:
        raise InputError(f"{source} holds no {CLASSES}: export the data set as semantic segmentation masks")
    export = Export(classes=[], order="The masks are as the tool drew them.")
    for table in tables:
        names = _names(table)
        export.classes += [name for name in names.values() if name not in export.classes]
        export.background = export.background or names.get(0, "")
        photos = {path.stem: path for path in images.files if path.parent == table.parent and MASK not in path.name}
        for mask in sorted(table.parent.glob(f"*{MASK}")):
            name = mask.name.removesuffix(MASK)
            image = photos.pop(name, None)
            if image is None:
                export.left_out["masks without an image"].append(mask.name)
                continue
            regions = partial(regions_of, mask, {}, names)
            export.items.append(Annotated(name, image, regions, split=split_in(table.parent, source)))
        if photos:
            export.left_out["images without a mask"] += sorted(path.name for path in photos.values())
    return export


def _names(path: Path) -> dict[int, str]:
    """Value -> class. The first line is a header: "Pixel Value, Class"."""
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(read_text(path).splitlines()) if row]
        names = {int(value): name for value, name in rows[1:]}
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: every line must be a value and a class, as in `1, car`: {error}") from error
    if len(set(names.values())) < len(names) or not names:
        raise InputError(f"{path}: it names no class, or one class twice")
    return names
