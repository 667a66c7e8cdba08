"""The evaluate command."""

import json

import numpy as np
from conftest import run_cli, sentence
from PIL import Image
from safetensors.torch import load_file, save_file

from emanet.data.datasets import SPECS
from emanet.experiments import read_header


def reports(*runs):
    return [json.loads(path.read_text()) for path in runs]


def test_evaluate_on_folders_and_on_label_maps_agree(model, scenes, tmp_path):
    folders = ["--masks", scenes / "val" / "masks", "--json"]
    images = scenes / "val" / "images"
    picture = ["--picture", tmp_path / "confusion.png"]
    done = run_cli("evaluate", model, "--images", images, *folders, tmp_path / "a.json", *picture)
    assert done.returncode == 0, done.stderr
    assert run_cli("predict", model, images, "--out", tmp_path / "out", "--no-overlay").returncode == 0
    done = run_cli("evaluate", "--images", tmp_path / "out", *folders, tmp_path / "b.json", "--dataset", "drawn")
    assert done.returncode == 0, done.stderr
    done = run_cli("evaluate", "--images", tmp_path / "out", *folders, tmp_path / "c.json")
    assert done.returncode == 0, done.stderr
    a, b, c = reports(*(tmp_path / f"{name}.json" for name in "abc"))
    assert a == b and a["mIoU"] == c["mIoU"] and list(a["IoU"].values())[:7] == list(c["IoU"].values())[:7]
    assert 0 <= a["mIoU"] <= 1 and {"pAcc", "mAcc", "fIoU"} <= a.keys() and set(a["IoU"]) == set(SPECS["drawn"].classes)
    assert Image.open(tmp_path / "confusion.png").size[0] > 300


def test_label_maps_are_scored_as_they_are_whatever_the_masks_values_mean(tmp_path):
    for kind, value in (("maps", 1), ("masks", 7)):
        (tmp_path / kind).mkdir()
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / kind / "x.png")
    spec = {"classes": ["a", "b"], "label_map": {"0": 0, "7": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(spec))
    folders = ["--images", tmp_path / "maps", "--masks", tmp_path / "masks", "--dataset", tmp_path]
    assert run_cli("evaluate", *folders, "--json", tmp_path / "new" / "r.json").returncode == 0
    assert json.loads((tmp_path / "new" / "r.json").read_text())["mIoU"] == 1.0


def test_evaluate_settings_reach_the_evaluation(model, scenes, tmp_path):
    folders = ["--images", scenes / "val" / "images", "--masks", scenes / "val" / "masks", "--json"]
    plain = run_cli("evaluate", model, *folders, tmp_path / "a.json")
    more = ["--mode", "slide", "--window", "65", "65", "--scales", "0.75", "1.0", "--flip"]
    assert plain.returncode == run_cli("evaluate", model, *folders, tmp_path / "b.json", *more).returncode == 0
    a, b = reports(tmp_path / "a.json", tmp_path / "b.json")
    assert a["pixels"] == b["pixels"] and a["pAcc"] != b["pAcc"]


def test_evaluate_names_what_does_not_fit(model, scenes, tmp_path):
    images, masks = scenes / "val" / "images", scenes / "val" / "masks"
    assert "belong together" in sentence(run_cli("evaluate", model, "--images", images))
    assert "is no label map" in sentence(run_cli("evaluate", "--images", images, "--masks", masks))
    Image.fromarray(np.full((145, 145), 99, np.uint8)).save(masks / "0001.png")
    said = sentence(run_cli("evaluate", model, "--images", images, "--masks", masks))
    assert "0001.png has values 99 outside the 8 classes" in said
    (masks / "0001.png").unlink()
    assert "0001.jpg" in sentence(run_cli("evaluate", model, "--images", images, "--masks", masks))
    Image.fromarray(np.zeros((145, 145), np.uint8)).save(masks / "0001.png")
    tensors = load_file(model)
    save_file({"mean": tensors["mean"]}, model, {"emanet": json.dumps(read_header(model))})
    assert "missing: std" in sentence(run_cli("evaluate", model, "--images", images, "--masks", masks))
