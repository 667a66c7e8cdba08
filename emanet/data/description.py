"""What a spec must settle before masks are read by it: no contradictions, and a background where it names one class."""

import json
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ..config import IGNORE, DatasetSpec
from ..errors import InputError, some
from ..show.terminal import note
from .images import colour_codes, read_mask_values
from .shards import File

BACKGROUND = "background"
NO_VALUE = -1  # as ignore_label: no mask has it
BLACK = (0, 0, 0)
MOST = 8  # values or colours that a person would list; more come from JPEG or interpolation, which the check reports


def settled(spec: DatasetSpec, masks: Iterable[File], name: str) -> DatasetSpec:
    """The spec that masks are read by. One class without a label_map means a binary task: see `binary`.

    masks: of the data set `name`, in order; read for a binary task only, up to the first that shows the object.
    Raises InputError for a spec that contradicts itself, and for binary masks that can be understood in two ways.
    """
    _require_no_contradiction(spec)
    if len(spec.classes) > 1 or spec.label_map:
        return spec
    resolved = binary(spec, masks)
    if resolved is not spec:
        from .. import distributed  # late: it needs torch, which commands such as `config show` do without

        if distributed.rank() == 0:
            values = [value for value, label in resolved.label_map.items() if label == 1] or [1]
            what = f"value 0 of a mask is {BACKGROUND}, value {values[0]} is {spec.classes[0]}"
            note(f"note: {spec.classes[0]!r} is the only class of {name}, so the task is binary: {what}")
    return resolved


def binary(spec: DatasetSpec, masks: Iterable[File]) -> DatasetSpec:
    """The two classes, background and object, of a spec with one class and no label_map.

    The first mask with another value than 0 tells the object's: 1 (then 255 stays ignored), or 255, or any other.
    Masks of colours: black is the background. The check before training refuses every mask that differs. Without a
    readable mask the spec stays as it is. Raises InputError where several values could be the object.
    """
    name = spec.classes[0]
    if name.casefold() == BACKGROUND:
        raise InputError(f'the only class is {name!r}; name the object as well: "classes": ["{name}", "object"]')
    if spec.palette == (BLACK,):
        raise InputError(f"the palette gives {name!r} black, which is the colour of the background; choose another")
    palette = (BLACK, *spec.palette) if spec.palette else ()
    two = replace(spec, classes=(BACKGROUND, name), palette=palette)
    readable = False
    for mask in masks:
        try:
            values = read_mask_values(mask)
        except InputError:  # the check names it
            continue
        readable = True
        if values.ndim == 3:
            others = colour_codes(np.array([BLACK, *spec.ignore_colours], np.uint8))
            colours = np.setdiff1d(colour_codes(values), others).tolist()
            if colours:
                return replace(two, palette=palette or (BLACK, _only_colour(colours, mask, name)))
        else:
            objects = np.setdiff1d(values, [0] if spec.ignore_label == IGNORE else [0, spec.ignore_label]).tolist()
            if objects:
                return _of_value(two, objects, mask)
    return two if readable else spec


def _of_value(two: DatasetSpec, objects: list[int], mask: File) -> DatasetSpec:
    """The spec whose object has the values other than 0 that were found in a mask."""
    if objects in ([1], [1, IGNORE]):
        return two
    if len(objects) > MOST:
        objects = [max(objects)]
    if len(objects) > 1:
        name = two.classes[1]
        table = _json({0: 0} | dict.fromkeys(objects, 1))
        raise InputError(
            f"{name!r} is the only class, but mask {mask} has several values besides 0: {some(objects)}; say in "
            f'dataset.json what each means, 0 for background, 1 for {name}, 255 for ignored: "classes": '
            f'{json.dumps(two.classes)}, "label_map": {table}'
        )
    ignore = NO_VALUE if two.ignore_label == IGNORE else two.ignore_label
    return replace(two, label_map={0: 0, objects[0]: 1}, ignore_label=ignore)


def _only_colour(codes: list[int], mask: File, name: str) -> tuple[int, int, int]:
    colours = [(code >> 16, code >> 8 & 255, code & 255) for code in codes]
    if 1 < len(colours) <= MOST:
        raise InputError(
            f"{name!r} is the only class, but mask {mask} has several colours besides black: {some(colours, 3)}; "
            f'say in dataset.json which it is: "palette": [{list(colours[0])}], and list the others that should be '
            'ignored in "ignore_colours"'
        )
    return colours[-1]


def _require_no_contradiction(spec: DatasetSpec) -> None:
    classes, ignore = spec.classes, spec.ignore_label
    if not spec.label_map and 0 <= ignore < len(classes):
        left_out = {value: IGNORE if value == ignore else value for value in range(len(classes))}
        from_one = f'if the classes start at 1, write "label_map": {_json({v + 1: v for v in range(len(classes))})}; '
        advice = "leave ignore_label out"
        if len(classes) > 1:
            advice = f'{from_one * (ignore == 0)}to leave the class out, write "label_map": {_json(left_out)}'
        raise InputError(f"ignore_label is {ignore}, which is also the value of class {classes[ignore]!r}; {advice}")
    meant = spec.label_map.get(ignore, IGNORE)
    if ignore != IGNORE and meant != IGNORE:
        raise InputError(
            f"ignore_label is {ignore}, but label_map makes {ignore} class {classes[meant]!r}; remove one of them"
        )
    for colour in spec.ignore_colours:
        if colour in spec.colours:
            name = classes[spec.colours.index(colour)]
            whose = "the palette's" if spec.palette else "by default (PASCAL VOC's colours, without a palette)"
            raise InputError(
                f"ignore_colours has {colour}, which is {whose} colour of class {name!r}; change one of them"
            )
    if (spec.images, spec.image_suffix) == (spec.masks, spec.mask_suffix) and not spec.split_list:
        raise InputError(
            f"images and masks are the same files, those in {spec.images!r}; name two folders, or tell them apart by "
            "image_suffix and mask_suffix"
        )


def _json(label_map: dict[int, int]) -> str:
    """A label_map as it stands in dataset.json; the middle of a long one is left out."""
    entries = [f'"{value}": {label}' for value, label in label_map.items()]
    return "{" + ", ".join(entries if len(entries) <= 6 else [*entries[:3], "...", entries[-1]]) + "}"
