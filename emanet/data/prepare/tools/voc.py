"""PASCAL VOC's layout: JPEGImages, SegmentationClass and ImageSets/Segmentation, with the colours of any label map.

Without a label map the colours are VOC's own 21. (224, 224, 192), the outline that VOC draws, is ignored.
"""

from collections import defaultdict
from functools import partial
from pathlib import Path

from ....config import voc_palette
from ....errors import InputError
from ....experiments import read_text
from ...files import files_below
from ...images import IMAGE_SUFFIXES
from ...specs import SPECS
from ..annotations import Annotated, Export, Images
from ..colour_masks import code, find_labelmap, read_labelmap, regions_of

OUTLINE = (224, 224, 192)
BACKGROUND = (0, 0, 0)


def read(source: Path, images: Images) -> Export:
    """source: the folder that holds SegmentationClass."""
    masks = source / "SegmentationClass"
    if not masks.is_dir():
        raise InputError(f"{source} holds no folder SegmentationClass")
    labelmap = find_labelmap(source, masks)
    classes = SPECS["voc"].classes
    colours = read_labelmap(labelmap) if labelmap else dict(zip(classes, voc_palette(len(classes)), strict=True))
    background = next((name for name, colour in colours.items() if colour == BACKGROUND), "")
    export = Export(list(colours), palette=colours, background=background, order="The masks are as the tool drew them.")
    by_colour: dict[int, str | None] = {code(OUTLINE): None} | {code(its): name for name, its in colours.items()}
    by_value: dict[int, str | None] = {255: None} | dict(enumerate(colours))
    photos = defaultdict(list)
    for path in images.files:
        if not path.is_relative_to(masks) and "SegmentationObject" not in path.parts:
            photos[path.stem].append(path)
    split_of = _split_lists(source / "ImageSets" / "Segmentation")
    unread = set(split_of)
    for mask in sorted(path for path in files_below(masks) if path.suffix.lower() in IMAGE_SUFFIXES):
        name = mask.relative_to(masks).with_suffix("").as_posix()
        if split_of and name not in split_of:
            export.left_out["masks that no list in ImageSets names"].append(name)
            continue
        unread.discard(name)
        # The image with this path below any folder.
        same = (path for path in photos[Path(name).name] if path.with_suffix("").as_posix().endswith(f"/{name}"))
        image = next(same, None)
        if image is None:
            export.left_out["masks without an image"].append(name)
            continue
        regions = partial(regions_of, mask, by_colour, by_value)
        export.items.append(Annotated(name, image, regions, split=split_of.get(name, "")))
    if unread:
        export.left_out["names in ImageSets without a mask"] = sorted(unread)
    return export


def _split_lists(folder: Path) -> dict[str, str]:
    """Name -> split. trainval repeats names of train and val, and counts only where those are missing."""
    lists = {path.stem: path for path in sorted(folder.glob("*.txt"))} if folder.is_dir() else {}
    if {"train", "val"} & lists.keys():
        lists.pop("trainval", None)
    return {
        line.strip(): split
        for split, path in lists.items()
        for line in read_text(path, names=True).splitlines()
        if line.strip()
    }
