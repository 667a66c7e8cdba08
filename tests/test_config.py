import dataclasses

import pytest

from emanet.config import DataConfig, DatasetSpec, EvalConfig, Experiment, HeadConfig, voc_palette
from emanet.errors import InputError


def test_voc_palette_starts_as_published():
    assert voc_palette(5) == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert voc_palette(21)[20] == (0, 64, 128)


def test_a_palette_is_there_even_if_the_spec_has_none():
    assert DatasetSpec(classes=("a", "b")).colours == ((0, 0, 0), (128, 0, 0))
    assert DatasetSpec(classes=("a",), palette=((1, 2, 3),)).colours == ((1, 2, 3),)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DatasetSpec(classes=("a", "b"), palette=((1, 2, 3),)), "palette has 1 colours for 2 classes"),
        (lambda: DatasetSpec(classes=("a", "b", "a")), "classes is a twice, but must be names that differ"),
        (lambda: DatasetSpec(classes=("a",), palette=((1, 2, 300),)), "RGB values of 0 to 255"),
        (lambda: DatasetSpec(classes=("a",), label_map={0: 1}), "label_map is 0: 1, but must be class indices or 255"),
        (lambda: DataConfig(flip=2), "flip is 2, but must be between 0 and 1"),
        (lambda: DataConfig(scales=()), "scales is"),
        (lambda: DataConfig(crop=(0, 5)), "crop is"),
        (lambda: HeadConfig(em_steps=0), "em_steps is 0, but must be 1 to 1000"),
        (lambda: EvalConfig(overlap=1), "overlap is 1"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().steps = 3
