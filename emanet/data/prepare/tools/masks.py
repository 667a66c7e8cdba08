"""Plain folders of images and colour masks: the colours are found and listed, or a label map names them.

    SOURCE/images/a.jpg  SOURCE/masks/a.png          or the same below SOURCE/train, SOURCE/val, ...
    SOURCE/train/a.jpg   SOURCE/train_labels/a.png

Colours without a name are called colour_RRGGBB, values of grey masks value_N; --map gives them names.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ....errors import InputError
from ...files import files_below
from ...images import IMAGE_SUFFIXES, colour_codes
from ...listing import composed
from ..annotations import BACKGROUND, Annotated, Colour, Export, split_in
from ..colour_masks import code, find_labelmap, read_colours, read_labelmap, regions_of
from ..image_files import Images

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "photos")
MASKS = ("masks", "mask", "labels", "label", "annotations", "annots", "gt", "segmentationclass", "segmentation")
MASK_ENDS = ("annot", "_annot", "_labels", "_masks", "_label", "_mask", "_gt")
PURE = {code((r, g, b)) for r in (0, 255) for g in (0, 255) for b in (0, 255)}
"""Colours, and grey values, that JPEG may have kept."""
MOST = 64
"""More colours than this are not classes: soft edges, or JPEG, have made new ones."""


def read(source: Path, images: Images) -> Export:
    """source: a folder with one of IMAGES beside one of MASKS, in any case, or with such pairs in folders of splits.

    With --images, which names the folder of the images, it may be the folder of the masks.
    """
    if not source.is_dir():
        raise InputError(f"{source} is not a folder")
    export = Export(classes=[], order="The masks are as the tool drew them.")
    pairs = _pairs(source, images, export)
    labelmap = find_labelmap(source)
    named = read_labelmap(labelmap) if labelmap else {}
    colours, grey = _found([mask for _, mask, _ in pairs], named)
    if grey and colours:
        raise InputError(f"some masks of {source} hold colours, others grey values: import them apart")
    known = dict(enumerate(named)) if grey else {code(colour): name for name, colour in named.items()}
    names = {value: known.get(value, _called(value, bool(grey), bool(named))) for value in sorted(grey or colours)}
    export.classes = list(dict.fromkeys([*named, *names.values()]))
    export.palette = dict(named)
    if not grey:
        export.palette |= {name: (value >> 16, value >> 8 & 255, value & 255) for value, name in names.items()}
    export.background = names.get(0, "")
    for image, mask, name in pairs:
        regions = partial(regions_of, mask, names, names)
        export.items.append(Annotated(name, image, regions, split=split_in(image.parent, source)))
    return export


def _pairs(source: Path, images: Images, export: Export) -> list[tuple[Path, Path, str]]:
    """(image, mask, name) of every folder pair."""
    pairs = []
    for photos, masks in _folder_pairs(source, images.folders[1:]):
        files: dict[str, Path] = {}
        for path in sorted(path for path in files_below(photos) if path.suffix.lower() in IMAGE_SUFFIXES):
            first = files.setdefault(_stem(path, photos), path)
            if first is not path:
                raise InputError(f"{first} and {path} have the same stem: it is not clear whose a mask is; rename one")
        for mask in sorted(path for path in files_below(masks) if path.suffix.lower() in IMAGE_SUFFIXES):
            name = _stem(mask, masks)
            image = files.pop(name, None) or files.pop(re.sub("[_-](mask|label|gt|seg|L)$", "", name), None)
            if image is None:
                export.left_out["masks without an image"].append(mask.name)
            else:
                pairs.append((image, mask, _stem(image, photos)))
        if files:
            export.left_out["images without a mask"] += sorted(path.name for path in files.values())
    if not pairs:
        raise InputError(f"{source} holds no folder of images beside a folder of masks: images/ and masks/")
    return pairs


def _folder_pairs(source: Path, elsewhere: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Folders of images and of their masks: images/ beside masks/, or train/ beside train_labels/."""
    if elsewhere:
        yield elsewhere[0], next((path for path in sorted(source.iterdir()) if path.name.lower() in MASKS), source)
        return
    inner = {source / parent for path in files_below(source) for parent in path.relative_to(source).parents}
    for folder in sorted(inner):
        children = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
        masks = next((children[name] for name in MASKS if name in children), None)
        photos = next((children[name] for name in IMAGES if name in children), None)
        if photos and masks:
            yield photos, masks
            continue
        for name, path in children.items():
            ends = (children[name + end] for end in MASK_ENDS if name + end in children)
            if masks := next(ends, None):
                yield path, masks


def _called(value: int, grey: bool, others_named: bool) -> str:
    if value == 0 and not others_named:
        return BACKGROUND
    return f"value_{value}" if grey else f"colour_{value:06x}"


def _stem(path: Path, folder: Path) -> str:
    return composed(path.relative_to(folder).with_suffix("").as_posix())


def _found(masks: list[Path], named: Mapping[str, Colour]) -> tuple[Counter[int], Counter[int]]:
    """Pixels of each colour, and of each grey value. Those that a label map names may be many."""
    codes = set(map(code, named.values()))
    colours: Counter[int] = Counter()
    grey: Counter[int] = Counter()
    failure: InputError | None = None
    for mask in masks:
        try:
            values = read_colours(mask)
        except InputError as error:  # its image is left out when the mask is to be drawn
            failure = failure or error
            continue
        counts = colours if values.ndim == 3 else grey
        pixels = colour_codes(values) if values.ndim == 3 else values
        counts.update(dict(zip(*(each.tolist() for each in np.unique(pixels, return_counts=True)), strict=True)))
        known = codes if values.ndim == 3 else range(len(named))
        strange = [value for value in counts if value not in known]
        if mask.suffix.lower() in (".jpg", ".jpeg") and not all(value in PURE for value in strange):
            raise InputError(f"{mask} holds colours that JPEG has made: save the masks as PNG from their source")
        if len(strange) > MOST:
            raise InputError(
                f"{mask} brings the masks to more than {MOST} colours without a name: soft edges or JPEG have made new "
                "ones; save the masks as PNG without smoothing"
            )
    if failure and not colours and not grey:
        raise failure
    return colours, grey
