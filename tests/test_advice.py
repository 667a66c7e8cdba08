"""What training says before its first step: a sentence for each setting that causes it, none for our own recipes."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from emanet import train as training
from emanet.advice import about_ranks, about_settings, about_start, check_data
from emanet.config import DataConfig, DatasetSpec
from emanet.data.datasets import open_dataset, resolve
from emanet.errors import InputError
from emanet.experiments import experiment_names, load_experiment, override
from emanet.model import build_model


def folder(root, images=4, size=(40, 48), split="{split}", splits=("train", "val"), **spec):
    """A folder data set of two classes, whose images all differ."""
    rng = np.random.default_rng(0)
    for name in splits:
        for i in range(images):
            labels = np.zeros(size, np.uint8)
            labels[: 3 + i] = 1
            for kind, array in (("images", rng.integers(0, 255, (*size, 3), np.uint8)), ("masks", labels)):
                path = root / split.format(split=name) / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (root / "dataset.json").write_text(json.dumps({"classes": ["a", "b"]} | spec))
    return root


def experiment(root, **changes):
    start = {"steps": 30, "data.dataset": str(root), "data.crop": (33, 33), "loss.average": "valid"}
    config = override(load_experiment("drawn"), start | changes)
    return override(config, {"data": resolve(config.data)})


def told(root, **changes):
    """The notes about a data set and an experiment's settings for it."""
    config = experiment(root, **changes)
    said: list[str] = []
    splits = (open_dataset(config.data, split) for split in (config.data.train_split, config.data.val_split))
    check_data(config, *splits, said.append)
    return said


def advice(**changes):
    data = resolve(DataConfig(spec=DatasetSpec(classes=changes.pop("classes", ("a", "b"))), root="/nowhere"))
    config = override(load_experiment("drawn"), {"data": data, "data.crop": (33, 33)} | changes)
    return list(about_settings(config, build_model(config.model, data.spec)))


def test_sound_data_and_settings_need_no_words(tmp_path):
    assert told(folder(tmp_path)) == [] and advice() == []


@pytest.mark.parametrize("name", experiment_names())
def test_our_own_recipes_are_on_the_grid(name, monkeypatch):
    config = load_experiment(name)
    config = override(config, {"data": resolve(config.data), "model.backbone.pretrained": False})

    class Net:  # building all of them takes long
        stride, align_corners = config.model.backbone.output_stride, config.model.align_corners

        def padded_size(self, size):
            return size

    assert list(about_settings(config, Net())) == []


FROZEN = {"model.backbone.frozen": True, "model.backbone.keep": 1.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.crop": (32, 33)}, r"data.crop 32 33: .* up to 7 pixels off.* 25 33 or 33 33 fits$"),
        ({"data.crop": (7, 7)}, r"up to 6 pixels off.*; 9 9 fits$"),
        ({"data.crop": (33, 33), "model.align_corners": False}, r"up to 7 pixels off.*; 32 32 or 40 40 fits$"),
        ({"model.backbone.frozen": True}, "keeps the backbone's random weights"),
        ({"init_from": "runs/a", **FROZEN, "data.colour": 0.1}, "again, .* by data.scales, data.colour$"),
        ({"init_from": "runs/a", **FROZEN, "data.rotate": 5.0}, "again, .* by data.scales, data.rotate$"),
        ({"optim.head_lr_scale": 0.0}, "the head keeps its initial weights"),
        ({"steps": 20}, "optim.warmup_steps 20 is not below steps 20"),
        ({"optim.lr": 0.5}, "optim.lr 0.5 is far from what works with adamw"),
        ({"optim.lr": 1e-9}, "optim.lr 1e-09 is far"),
        ({"loss.terms": (("ohem", 1.0),)}, "not below the 1089 pixels of a crop, so ohem leaves out nothing; 68 keeps"),
        ({"classes": ("Left hand", "right hand")}, "exchanges Left hand, right hand; set data.flip 0$"),
        ({"classes": ("left", "right"), "data.flip": 0.0, "eval.flip": True}, "set eval.flip False"),
        ({"classes": ("road", "Un-labeled")}, "class 'Un-labeled' is learned and scored"),
    ],
)
def test_settings(changes, said):
    (sentence,) = advice(**changes)
    assert re.search(said, sentence), sentence


def test_a_start_from_weights_of_other_settings():
    source = override(load_experiment("drawn"), {"data": resolve(DataConfig(dataset="drawn"))})
    config = override(source, {"init_from": "runs/a"})
    assert list(about_start(config, source)) == []
    classes = source.data.spec.classes
    other = override(
        config, {"data.spec.classes": (classes[1], classes[0], *classes[2:]), "model.mean": (0.5,), "model.std": (1.0,)}
    )
    names, mean, std = about_start(other, source)
    assert names == f"class 0 is {classes[1]!r}, but {classes[0]!r} in runs/a, whose classifier is kept nevertheless"
    assert mean == "model.mean is 0.5, but runs/a was trained with 0.485 0.456 0.406" and std.startswith(
        "model.std is 1.0"
    )


def test_classes_whose_names_hold_a_side_by_chance():
    assert advice(classes=("bright", "cleft")) == []


def test_the_last_crop_should_fit_the_grid_too():
    (sentence,) = advice(**{"data.last_crop": (41, 40)})
    assert sentence.startswith("data.last_crop 41 40: the model spreads its logits up to 7 pixels off")


def test_a_backbone_that_pads_to_another_grid():
    changes = {"model.backbone.name": "test_convnext", "model.backbone.output_stride": 32, "data.crop": (65, 65)}
    (sentence,) = advice(**changes)
    assert "pads images to a multiple of 32; set model.align_corners False" in sentence
    assert advice(**changes, **{"model.align_corners": False}) == []


class TestData:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"data.crop": (65, 33)}, r"crop 65 33 is larger than the images (40 48 at most, 40 48 at the largest"),
            ({"data.last_crop": (65, 33)}, r"last_crop 65 33 is larger than the images (40 48 at most, 40 48"),
            ({"data.scales": (0.1, 1.0)}, "at which the smallest images have 4 pixels on a side, less than"),
            ({"eval.scales": (0.1, 1.0)}, "eval.scales has 0.1"),
            ({"steps": 1, "batch_size": 3}, "is 3 samples for 4 images"),
            ({"loss.class_weights": (2.0, 1.0)}, "gives a, the most frequent class, the largest weight"),
            ({"data.val_split": "train"}, "data.val_split is the training split, train"),
        ],
    )
    def test_settings_that_do_not_fit_it(self, tmp_path, changes, said):
        (sentence,) = told(folder(tmp_path), **changes)
        assert said in sentence and sentence.startswith("note: ")

    def test_a_class_that_only_validation_has(self, tmp_path):
        folder(tmp_path)
        for path in tmp_path.glob("train/masks/*.png"):
            Image.new("L", (48, 40)).save(path)
        assert "note: validation has pixels of b, which training has not, so they cannot be learned" in told(tmp_path)

    def test_classes_to_paste_that_no_mask_shows(self, tmp_path):
        root = folder(tmp_path, classes=["a", "b", "c"])
        notes = told(root, **{"data.paste": 0.5, "data.paste_classes": ("b", "c")})
        assert "note: data.paste_classes has c, which no training mask shows, so there is nothing to paste" in notes

    def test_images_of_both_splits(self, tmp_path):
        folder(tmp_path)
        (tmp_path / "val/images/3.png").write_bytes((tmp_path / "train/images/1.png").read_bytes())
        (sentence,) = told(tmp_path)
        assert sentence.startswith("note: 1 of the 4 images for validation are also for training")
        assert sentence.endswith("val/images/3.png")

    def test_images_of_both_splits_in_another_format(self, tmp_path):
        folder(tmp_path)
        (tmp_path / "val/masks/3.png").write_bytes((tmp_path / "train/masks/1.png").read_bytes())
        Image.open(tmp_path / "train/images/1.png").save(tmp_path / "val/images/3.bmp")
        (tmp_path / "val/images/3.png").unlink()
        for _ in range(2):  # the second time, the labels are remembered
            assert [line.rpartition("/")[2] for line in told(tmp_path)] == ["3.bmp"]

    @pytest.mark.parametrize("split", ["", "{split}"], ids=["files", "copies"])
    def test_splits_of_the_same_images_are_refused(self, tmp_path, split):
        folder(tmp_path, split=split, images=2, splits=("train",))
        if split:
            for path in sorted((tmp_path / "train").rglob("*.png")):
                copy = tmp_path / "val" / path.relative_to(tmp_path / "train")
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        else:
            (tmp_path / "dataset.json").write_text('{"classes": ["a", "b"], "images": "images", "masks": "masks"}')
        with pytest.raises(
            InputError, match="all 2 images of 'val' are images of 'train' as well.*data.val_split to 'tr"
        ):
            told(tmp_path)


def test_training_says_it_every_time(tiny, tmp_path, capsys):
    """Notes on masks, on splits and on settings; the masks of the second run are not read again."""
    root = folder(tmp_path / "data", images=2)
    for path in root.glob("*/masks/*.png"):
        Image.fromarray(np.where(np.array(Image.open(path)), 255, 0).astype(np.uint8)).save(path)
    for run in ("first", "second"):
        changes = {"data.dataset": str(root), "data.crop": (32, 32), "steps": 1}
        training.train(override(tiny, changes), tmp_path / run)
        notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
        wanted = ("nothing can be learned", "nothing can be learned", "data.crop 32 32", "warmup_steps")
        assert len(notes) == len(wanted) and all(a in b for a, b in zip(wanted, notes, strict=True)), run
        assert '"label_map": {"0": 0, "255": 1}' in notes[0]


def test_one_class_trains_background_and_object(tiny, tmp_path, capsys):
    """The run and its model file hold both classes and what the masks mean."""
    root = folder(tmp_path / "data", images=2, classes=["crack"])
    for path in root.glob("*/masks/*.png"):
        Image.fromarray(np.array(Image.open(path)) * 255).save(path)
    report = training.train(override(tiny, {"data.dataset": str(root), "steps": 1}), tmp_path / "run")
    assert "value 255 is crack" in capsys.readouterr().err
    assert [*report["IoU"]] == ["background", "crack"]
    spec = load_experiment(str(tmp_path / "run")).data.spec
    assert spec.classes == ("background", "crack") and spec.label_map == {0: 0, 255: 1}


SAME = "started with 2 processes, goes on with 1: the same images in the same order, "


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, f"{SAME}and the same result to rounding"),
        ({"sync_bn": False}, "because BatchNorm sees one process's images, with sync_bn off"),
        ({"loss.terms": (("ohem", 1.0),)}, "because ohem chooses among one process's images"),
        ({"model.backbone.name": "convnext_atto", "model.backbone.options": {"drop_path_rate": 0.2}}, "DropPath drops"),
    ],
    ids=str,
)
def test_what_another_number_of_processes_keeps_is_said(tiny, changes, said):
    config = override(tiny, {"model.head.dropout": 0.3} | changes)
    text = about_ranks(config, build_model(config.model, ["a", "b"]), 2, 1)
    assert text.endswith(said) and text.startswith(SAME if not changes else f"note: {SAME}but the result will differ")
