"""PASCAL VOC's layout: JPEGImages, SegmentationClass and ImageSets/Segmentation, with the colours of any label map.

labelme's conversion has VOC's colours for the names in class_names.txt. Without either the classes are VOC's own 21.
(224, 224, 192), the outline that VOC draws, is ignored.
"""

from collections import defaultdict
from functools import partial
from pathlib import Path

from ....config import voc_palette
from ....errors import InputError
from ....experiments import read_text
from ...files import files_below
from ...images import IMAGE_SUFFIXES
from ...listing import composed
from ...specs import SPECS
from ..annotations import BACKGROUND, Annotated, Export
from ..colour_masks import code, find_labelmap, read_labelmap, regions_of
from ..image_files import Images
from . import labelme

MASKS = ("SegmentationClassPNG", "SegmentationClass")
OUTLINE = (224, 224, 192)
BLACK = (0, 0, 0)


def read(source: Path, images: Images) -> Export:
    """source: the folder that holds SegmentationClass."""
    # Older versions of labelme have arrays in SegmentationClass.
    masks = next((path for name in MASKS if (path := source / name).is_dir()), None)
    if masks is None:
        raise InputError(f"{source} holds no folder SegmentationClass")
    labelmap, order = find_labelmap(source, masks), "The masks are as the tool drew them."
    if labelmap:
        colours = read_labelmap(labelmap)
    else:
        classes = _class_names(source / "class_names.txt")
        if not classes:
            classes = list(SPECS["voc"].classes)
            order += " There is no label map: their colours stand for VOC's classes."
        colours = dict(zip(classes, voc_palette(len(classes)), strict=True))
    background = next((name for name, colour in colours.items() if colour == BLACK), "")
    export = Export(list(colours), palette=colours, background=background, order=order)
    by_colour: dict[int, str | None] = {code(OUTLINE): None} | {code(its): name for name, its in colours.items()}
    by_value: dict[int, str | None] = {255: None} | dict(enumerate(colours))
    photos = defaultdict(list)
    for path in images.files:
        if not path.parent.name.startswith("Segmentation"):
            photos[composed(path.stem)].append(path)
    split_of = _split_lists(source / "ImageSets" / "Segmentation")
    unread = set(split_of)
    for mask in sorted(path for path in files_below(masks) if path.suffix.lower() in IMAGE_SUFFIXES):
        name = composed(mask.relative_to(masks).with_suffix("").as_posix())
        if split_of and name not in split_of:
            export.left_out["masks that no list in ImageSets names"].append(name)
            continue
        unread.discard(name)
        # The image with this path below any folder, at best JPEGImages.
        same = [path for path in photos[Path(name).name] if _ends_with(path, name)]
        same = [path for path in same if _ends_with(path, f"JPEGImages/{name}")] or same
        if len(same) != 1:
            export.left_out[f"masks with {'several images' if same else 'no image'}"].append(name)
            continue
        regions = partial(regions_of, mask, by_colour, by_value)
        export.items.append(Annotated(name, same[0], regions, split=split_of.get(name, "")))
    if unread:
        export.left_out["names in ImageSets without a mask"] = sorted(unread)
    return export


def _ends_with(path: Path, name: str) -> bool:
    return composed(path.with_suffix("").as_posix()).endswith(f"/{name}")


def _class_names(path: Path) -> list[str]:
    """The classes in the file that labelme's conversion writes, or none if it is missing; _background_ is renamed."""
    lines = [line.strip() for line in read_text(path).splitlines()] if path.is_file() else []
    return [BACKGROUND if line == labelme.UNLABELLED else line for line in lines if line]


def _listed(line: str) -> str:
    """The name of an image, whose line may have its extension."""
    path = Path(line)
    return composed(str(path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else line))


def _split_lists(folder: Path) -> dict[str, str]:
    """Name -> split. trainval repeats names of train and val, and counts only where those are missing."""
    lists = {path.stem: path for path in sorted(folder.glob("*.txt"))} if folder.is_dir() else {}
    if {"train", "val"} & lists.keys():
        lists.pop("trainval", None)
    return {
        _listed(line.strip()): split
        for split, path in lists.items()
        for line in read_text(path, names=True).splitlines()
        if line.strip()
    }
