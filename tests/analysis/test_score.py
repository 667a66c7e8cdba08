"""The evaluate command."""

import json

import numpy as np
import pytest
from conftest import run_cli, sentence
from forks import run_forks
from PIL import Image
from safetensors.torch import load_file, save_file

from emanet.analysis.score import score
from emanet.data.datasets import SPECS
from emanet.errors import InputError
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


def test_colours_mean_nothing_without_a_data_set(tmp_path):
    """Those of VOC would otherwise be taken, and some are in other palettes too, for other classes."""
    colours = ((128, 0, 0), (0, 128, 0))
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["a", "b"], "palette": colours}))
    for kind, pixels in (("predicted", np.eye(8)), ("masks", np.array(colours)[np.eye(8, dtype=int)])):
        (tmp_path / kind).mkdir()
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / kind / "x.png")
    folders = {"images": str(tmp_path / "predicted"), "masks": str(tmp_path / "masks")}
    with pytest.raises(InputError, match="masks/x.png holds colours; --dataset says which classes they are"):
        score(**folders)
    assert score(**folders, dataset=str(tmp_path))["mIoU"] == 1


def test_binary_label_maps_against_masks_of_0_and_255(tmp_path, capsys):
    """With the data set's description both values count; without it 255 is ignored, and that is said."""
    for kind, value in (("maps", 1), ("val/masks", 255), ("val/images", 9)):
        (tmp_path / kind).mkdir(parents=True)
        Image.fromarray(np.array([[0, value, value]], np.uint8)).save(tmp_path / kind / "x.png")
    (tmp_path / "dataset.json").write_text('{"classes": ["crack"]}')
    files = {"images": str(tmp_path / "maps"), "masks": str(tmp_path / "val" / "masks")}
    report = score(**files, dataset=str(tmp_path))
    assert report["pixels"] == 3 and report["IoU"] == {"background": 1.0, "crack": 1.0}
    assert "label nothing but" not in capsys.readouterr().err
    assert score(**files)["pixels"] == 1
    assert "note: the masks label nothing but 0, so the scores say nothing" in capsys.readouterr().err


def test_partial_needs_folders():
    with pytest.raises(InputError, match="--partial is about --images and --masks, which are not named"):
        score(model="model", partial=True)


def test_evaluate_settings_reach_the_evaluation(model, scenes, tmp_path):
    folders = ["--images", scenes / "val" / "images", "--masks", scenes / "val" / "masks", "--json"]
    plain = run_cli("evaluate", model, *folders, tmp_path / "a.json")
    more = ["--mode", "slide", "--window", "65", "65", "--scales", "0.75", "1.0", "--flip"]
    assert plain.returncode == run_cli("evaluate", model, *folders, tmp_path / "b.json", *more).returncode == 0
    a, b = reports(tmp_path / "a.json", tmp_path / "b.json")
    assert a["pixels"] == b["pixels"] and a["pAcc"] != b["pAcc"]


def test_a_file_that_cannot_be_written_is_refused_before_the_work(model, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("emanet.analysis.score.read", lambda path: pytest.fail("the model was read"))
    monkeypatch.setattr("emanet.analysis.score.open_folders", lambda *arguments: pytest.fail("the images were listed"))
    folders = ["--images", scenes / "val" / "images", "--masks", scenes / "val" / "masks"]
    for what in ([model, *folders], folders):
        for flag in ("--json", "--picture"):
            (tmp_path / "x.png").mkdir(exist_ok=True)
            error = sentence(run_cli("evaluate", *what, flag, tmp_path / "x.png"))
            assert f"{tmp_path}/x.png is a folder; give the name of a file to write" in error
            error = sentence(run_cli("evaluate", *what, flag, model / "x.png"))
            assert f"cannot write {model}/x.png: {model} is not a folder" in error


def test_figures_and_limits_are_those_of_the_command(model, scenes, tmp_path):
    folders = ["--images", scenes / "val" / "images", "--masks", scenes / "val" / "masks"]
    assert ".png, .pdf, .svg" in sentence(run_cli("evaluate", model, *folders, "--picture", tmp_path / "x.txt"))
    for what in ([model, *folders], folders):
        assert "more than max_pixels" in sentence(run_cli("evaluate", *what, "--max-pixels", 145 * 145 - 1))


@pytest.mark.parametrize("command", ["predict", "submit"])
def test_outputs_are_tried_before_the_model_is_read(model, scenes, tmp_path, monkeypatch, command):
    monkeypatch.setattr("emanet.loading.read", lambda path: pytest.fail("the model was read"))
    out = tmp_path / "file" / ("a.tar.gz" if command == "submit" else "folder")
    (tmp_path / "file").touch()
    images = ["--images", scenes / "val/images"] if command == "submit" else [scenes / "val/images"]
    error = sentence(run_cli(command, model, *images, "--out", out))
    assert f"cannot write {out}: " in error


def test_two_ranks_score_label_maps_once(scenes, tmp_path):
    """One table, one file, and the figures that one process has."""
    masks = scenes / "val" / "masks"
    for i, mask in enumerate(sorted(masks.iterdir())):
        labels = np.array(Image.open(mask))
        labels[:, : 20 * i] = i
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(labels).save(tmp_path / "maps" / mask.name)
    command = ["evaluate", "--images", tmp_path / "maps", "--masks", masks, "--json"]
    code, out, err = run_forks("emanet", *command, tmp_path / "two.json", ranks=2)
    assert code == 0, err
    assert out.count("mIoU") == 1
    assert run_cli(*command, tmp_path / "one.json").returncode == 0
    one, two = reports(tmp_path / "one.json", tmp_path / "two.json")
    assert one == two and 0 < one["mIoU"] < 1


def test_two_ranks_end_with_a_sentence_for_a_bad_mask(model, scenes):
    bad = sorted((scenes / "val" / "masks").iterdir())[2]  # the last of rank 0, while rank 1 waits
    Image.fromarray(np.full((145, 145), 99, np.uint8)).save(bad)
    folders = "--images", scenes / "val" / "images", "--masks", scenes / "val" / "masks"
    code, _, err = run_forks("emanet", "evaluate", model, *folders, ranks=2)
    errors = [line for line in err.splitlines() if "error: " in line]
    assert sum(f"{bad.name} has values 99" in line for line in errors) == 1, err
    assert code != 0 and "unexpected" not in err and not (set(errors[2:])), err


def test_evaluate_names_what_does_not_fit(model, scenes, tmp_path):
    images, masks = scenes / "val" / "images", scenes / "val" / "masks"
    assert "belong together" in sentence(run_cli("evaluate", model, "--images", images))
    assert "is not a label map" in sentence(run_cli("evaluate", "--images", images, "--masks", masks))
    Image.fromarray(np.full((145, 145), 99, np.uint8)).save(masks / "0001.png")
    said = sentence(run_cli("evaluate", model, "--images", images, "--masks", masks))
    assert "0001.png has values 99 outside the 8 classes" in said
    (masks / "0001.png").unlink()
    assert "0001.jpg" in sentence(run_cli("evaluate", model, "--images", images, "--masks", masks))
    Image.fromarray(np.zeros((145, 145), np.uint8)).save(masks / "0001.png")
    tensors = load_file(model)
    save_file({"mean": tensors["mean"]}, model, {"emanet": json.dumps(read_header(model))})
    assert "missing: std" in sentence(run_cli("evaluate", model, "--images", images, "--masks", masks))


def test_pixels_without_a_prediction(tmp_path, capsys):
    """255 in a label map: nothing where the mask ignores the pixel too; else refused, or left out if asked."""
    for folder in ("maps", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.array([[0, 0, 1, 1], [255, 255, 1, 1]], np.uint8)
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    prediction = np.where(mask == 255, 255, mask).astype(np.uint8)
    Image.fromarray(prediction).save(tmp_path / "maps" / "a.png")
    where = {"images": str(tmp_path / "maps"), "masks": str(tmp_path / "masks")}
    assert score(**where)["mIoU"] == 1
    prediction[0, 0] = 255
    Image.fromarray(prediction).save(tmp_path / "maps" / "a.png")
    with pytest.raises(InputError, match="no prediction .255. for 12.5% of its pixels, which .* labels; --partial"):
        score(**where)
    assert score(**where, partial=True)["mIoU"] == 1
    assert "1 labelled pixels without a prediction" in capsys.readouterr().err
