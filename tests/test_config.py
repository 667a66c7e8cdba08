import dataclasses
import math

import pytest

from emanet.config import (
    BackboneConfig,
    DataConfig,
    DatasetSpec,
    EvalConfig,
    Experiment,
    HeadConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    voc_palette,
)
from emanet.errors import InputError, short


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
        (
            lambda: ModelConfig(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
            "model.mean 0.485 0.456 0.406 and model.std 0.229 0.224 0.225$",
        ),
        (lambda: ModelConfig(mean=(104.0, 117.0, 123.0), std=(1.0,)), "0.482353 and model.std 0.00392157$"),
        (lambda: ModelConfig(std=(58.395,)), "model.std 58.395: images are 0 to 1 .*: model.std 0.229$"),
        (lambda: ModelConfig(mean=(-0.1,)), "mean is .* between 0 and 1"),
        (lambda: LossConfig(class_weights=(0.0, 0.0)), "class_weights is .* not all 0"),
        (lambda: HeadConfig(aspp_channels=0), "aspp_channels is 0, but must be 1 to"),
        (lambda: HeadConfig(decoder_channels=0), "decoder_channels is 0, but must be 1 to"),
    ],
)
def test_impossible_values_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().steps = 3


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e300, 10**400, -(10**400), 10**5000], ids=short)
@pytest.mark.parametrize(
    "make",
    [
        lambda number: Experiment(seed=number),
        lambda number: OptimConfig(lr=number),
        lambda number: DataConfig(scales=(1.0, number)),
        lambda number: HeadConfig(window=(number, 1)),
        lambda number: BackboneConfig(in_channels=number),
        lambda number: BackboneConfig(options={"drop_rate": number}),
        lambda number: DatasetSpec(classes=("a",), palette=((1, 2, number),)),
        lambda number: DatasetSpec(classes=("a",), label_map={number: 0}),
    ],
)
def test_numbers_that_nothing_can_hold_are_refused_wherever_they_stand(make, number):
    with pytest.raises(InputError, match="is .*, but must be") as error:
        make(number)
    assert len(str(error.value)) < 400


def test_the_last_steps_of_a_run():
    config = Experiment(steps=30)
    assert [config.last(share) for share in (0.0, 0.001, 0.1, 0.5, 1.0)] == [30, 29, 27, 15, 0]
    with pytest.raises(InputError, match=r"last_crop is \(0, 9\), but must be \(h, w\), each 1 to"):
        DataConfig(last_crop=(0, 9))


def test_a_home_in_a_path_of_an_experiment_file_is_filled_in(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    data = DataConfig(dataset="~/a/dataset.json", root="~")
    assert (data.dataset, data.root) == ("/home/me/a/dataset.json", "/home/me")
    assert BackboneConfig(pretrained="~/w.pth").pretrained == "/home/me/w.pth"
    assert Experiment(init_from="~/runs/a").init_from == "/home/me/runs/a"
    assert BackboneConfig(pretrained=True).pretrained is True and DataConfig(root="a/~b").root == "a/~b"
