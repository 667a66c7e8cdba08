"""The table of data sets: classes, colours and mask values as their authors number them."""

import numpy as np
import pytest
from PIL import Image

from emanet.config import IGNORE
from emanet.data.images import read_mask
from emanet.data.specs import (
    COCO_OF_VOC,
    COCOSTUFF_NUMBERS,
    CONTEXT_CLASSES,
    CONTEXT_VALUES,
    SPECS,
    VOC_CLASSES,
)
from emanet.errors import InputError

COUNTS = {
    "camvid": 11,
    "voc": 21,
    "coco_voc": 21,
    "context59": 59,
    "context60": 60,
    "cocostuff10k": 171,
    "cocostuff164k": 171,
    "cityscapes": 19,
    "ade20k": 150,
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_data_set_has_its_classes(name):
    spec = SPECS[name]
    assert len(spec.classes) == len(spec.colours) == COUNTS[name]
    assert all(text == text.strip() for text in spec.classes)
    if spec.label_map:
        assert set(spec.label_map.values()) - {IGNORE} == set(range(COUNTS[name])), "every class has a mask value"


@pytest.mark.parametrize(
    ("name", "index", "text", "colour"),
    [
        ("voc", 15, "person", (192, 128, 128)),
        ("coco_voc", 20, "tvmonitor", (0, 64, 128)),
        ("context60", 0, "background", (120, 120, 120)),
        ("context59", 0, "aeroplane", (180, 120, 120)),
        ("context60", 59, "wood", (31, 0, 255)),
        ("cocostuff10k", 0, "person", (128, 0, 0)),
        ("cocostuff164k", 79, "toothbrush", (32, 64, 0)),
        ("cocostuff164k", 170, "wood", (192, 160, 64)),
        ("cityscapes", 0, "road", (128, 64, 128)),
        ("cityscapes", 18, "bicycle", (119, 11, 32)),
        ("ade20k", 0, "wall", (120, 120, 120)),
        ("ade20k", 44, "chest of drawers", (6, 51, 255)),
        ("ade20k", 149, "flag", (92, 0, 255)),
    ],
)
def test_classes_and_colours_are_the_published_ones(name, index, text, colour):
    spec = SPECS[name]
    assert (spec.classes[index], spec.colours[index]) == (text, colour)


@pytest.mark.parametrize(
    ("name", "values", "labels"),
    [
        ("cityscapes", [0, 7, 8, 9, 11, 24, 33], [255, 0, 1, 255, 2, 11, 18]),
        ("ade20k", [0, 1, 2, 150], [255, 0, 1, 149]),
        ("context59", [0, 1, 59], [255, 0, 58]),
        ("context60", [0, 1, 59, 255], [0, 1, 59, 255]),
        ("cocostuff164k", [0, 10, 11, 12, 25, 89, 91, 181, 255], [0, 10, 255, 11, 255, 79, 80, 170, 255]),
    ],
)
def test_mask_values_become_classes(tmp_path, name, values, labels):
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([values], np.uint8)).save(path)
    assert read_mask(path, SPECS[name]).tolist() == [labels]


@pytest.mark.parametrize(("name", "value"), [("cityscapes", 34), ("ade20k", 151), ("cocostuff164k", 182), ("voc", 21)])
def test_a_value_that_cannot_be_is_refused(tmp_path, name, value):
    Image.fromarray(np.full((2, 2), value, np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=f"has values {value} "):
        read_mask(tmp_path / "mask.png", SPECS[name])


def test_numbers_of_other_authors():
    assert dict(zip(VOC_CLASSES[1:], COCO_OF_VOC, strict=True))["motorbike"] == 4
    assert len(set(COCO_OF_VOC)) == 20
    context = dict(zip(CONTEXT_CLASSES, CONTEXT_VALUES, strict=True))
    assert (context["aeroplane"], context["bag"], context["boat"], context["wood"]) == (2, 9, 31, 458)
    assert list(CONTEXT_VALUES) == sorted(CONTEXT_VALUES) and list(CONTEXT_CLASSES) == sorted(CONTEXT_CLASSES)
    stuff = dict(zip(SPECS["cocostuff10k"].classes, COCOSTUFF_NUMBERS, strict=True))
    assert (stuff["person"], stuff["stop sign"], stuff["banner"], stuff["wood"]) == (1, 13, 92, 182)
    for mine, theirs in (("aeroplane", "airplane"), ("dog", "dog"), ("tvmonitor", "tv"), ("sofa", "couch")):
        assert COCO_OF_VOC[VOC_CLASSES.index(mine) - 1] == stuff[theirs], "COCO-Stuff keeps COCO's numbers"
