"""predict --resume: what is done is not done again, whatever ended the run before; anything else is."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emanet.config import BackboneConfig, DataConfig, DatasetSpec, EvalConfig, Experiment, HeadConfig, ModelConfig
from emanet.data.images import read_visible, write_mask
from emanet.errors import InputError
from emanet.model import build_model
from emanet.predict import files
from emanet.predict.files import predict_files
from emanet.predict.predictor import Predictor
from emanet.predict.resume import RECORD
from emanet.weights.model_file import save_model

SPEC = DatasetSpec(classes=("a", "b", "c"))
MODEL = ModelConfig(
    backbone=BackboneConfig(name="test_resnet", pretrained=False, output_stride=8),
    head=HeadConfig(channels=32, num_bases=8, fc1_channels=0),
)


def model_file(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_model(path, build_model(MODEL, SPEC).eval(), Experiment(model=MODEL, data=DataConfig(spec=SPEC)))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, and a model."""
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    for name in "abcde":
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).save(tmp_path / f"in/{name}.png")
    model_file(tmp_path / "m.safetensors")
    return tmp_path


def run(folder: Path, *, out: str = "out", model: str = "m.safetensors", config: EvalConfig | None = None, **options):
    """The names of the images that the network gets, and the failures."""
    predictor, seen = Predictor(folder / model, device="cpu", config=config), []
    known = {np.asarray(Image.open(path)).tobytes(): path.stem for path in sorted((folder / "in").glob("?.png"))}
    many = predictor.many

    def watched(images):
        seen.extend(known.get(image.tobytes(), "?") for image in images)
        return many(images)

    predictor.many = watched
    failures = predict_files(predictor, [str(folder / "in")], folder / out, **options)
    return "".join(seen), failures


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != RECORD}


def test_after_an_interrupt_the_rest_is_done_and_all_is_as_without_it(folder, monkeypatch, capfd):
    def interrupted(path, *arguments, **options):
        if path.name.startswith(".c.png"):
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        write_mask(path, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("emanet.predict.outputs.write_mask", interrupted)
        run(folder)
    made = contents(folder / "out").keys()
    assert {"a.png", "a_overlay.jpg", "b.png", "b_overlay.jpg"} <= made
    assert not any("partial" in name or name.startswith("c") for name in made)
    rest = "".join(name for name in "abcde" if not {f"{name}.png", f"{name}_overlay.jpg"} <= made)  # d may be written
    capfd.readouterr()
    assert run(folder, resume=True) == (rest, []) and "c" in rest
    assert f"\n{len(rest)} done, 0 skipped, {5 - len(rest)} there already; " in capfd.readouterr().err
    run(folder, out="whole")
    assert contents(folder / "out") == contents(folder / "whole") and len(contents(folder / "out")) == 10
    capfd.readouterr()
    assert run(folder, resume=True) == ("", [])
    assert "\n0 done, 0 skipped, 5 there already; " in capfd.readouterr().err


@pytest.mark.parametrize("stage", ["read_visible", "many"])
def test_an_interrupt_of_any_stage_ends_at_once_with_whole_files(folder, monkeypatch, stage):
    before, calls = threading.active_count(), []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    predictor = Predictor(folder / "m.safetensors", device="cpu")
    step = read_visible if stage == "read_visible" else predictor.many
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((files, stage) if stage == "read_visible" else (predictor, stage)), interrupted)
        predict_files(predictor, [str(folder / "in")], folder / "out")
    assert threading.active_count() == before and len(calls) <= 3 + files.THREADS
    run(folder, out="whole")
    whole = contents(folder / "whole")
    assert all(content == whole[name] for name, content in contents(folder / "out").items())
    run(folder, resume=True)
    assert contents(folder / "out") == whole


def test_without_resume_everything_is_done_again(folder):
    assert run(folder)[0] == run(folder)[0] == "abcde"


def test_what_is_missing_incomplete_or_older_than_its_image_is_done_again(folder):
    run(folder)
    (folder / "out/a.png").unlink()
    (folder / "out/b_overlay.jpg").unlink()
    time.sleep(0.02)  # file times move on in steps of a few milliseconds
    older = folder / "in/new.png"
    Image.new("RGB", (24, 16)).save(older)
    os.utime(older, (1, 1))
    older.replace(folder / "in/d.png")  # an older file in the place of another
    (folder / "in/e.png").touch()
    assert run(folder, resume=True) == ("abde", [])
    assert run(folder, resume=True, overlay=False) == ("", [])
    for path in (folder / "out").glob("*_overlay.jpg"):
        path.unlink()
    assert run(folder, resume=True, overlay=False) == ("", [])
    assert run(folder, resume=True) == ("abcde", []), "they have no overlays, which are now wanted"


def test_an_image_that_failed_is_tried_again(folder):
    (folder / "in/f.jpg").write_bytes(b"no image")
    seen, (failure,) = run(folder)
    assert seen == "abcde" and "f.jpg" in failure
    assert run(folder, resume=True) == ("", [failure])
    Image.open(folder / "in/a.png").convert("RGB").save(folder / "in/f.jpg")
    assert run(folder, resume=True) == ("?", [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "other.safetensors"}, "model 'm.safetensors' then, 'other.safetensors' now; SHA-256 "),
        ({"config": EvalConfig(flip=True)}, "(flip False then, True now)"),
        ({"bands": (3, 2, 1)}, "(bands [] then, [3, 2, 1] now)"),
    ],
)
def test_results_of_another_model_or_way_are_named_and_left_alone(folder, change, said):
    run(folder)
    model_file(folder / "other.safetensors", seed=1)
    before = contents(folder / "out")
    with pytest.raises(InputError) as error:
        run(folder, resume=True, **change)
    told = str(error.value)
    assert told.startswith(f"the results in {folder}/out were made otherwise (") and said in told
    assert contents(folder / "out") == before
    assert len(run(folder, **change)[0]) == 5 and run(folder, resume=True, **change) == ("", [])


def test_a_model_is_known_by_its_content(folder):
    run(folder)
    (folder / "m.safetensors").rename(folder / "n.safetensors")
    assert run(folder, model="n.safetensors", resume=True) == ("", [])
    model_file(folder / "n.safetensors", seed=1)
    with pytest.raises(InputError, match="SHA-256"):
        run(folder, model="n.safetensors", resume=True)


def test_results_of_a_run_in_between_are_not_taken_for_those_of_the_last(folder):
    """Of all images, and of one alone."""
    run(folder)
    model_file(folder / "other.safetensors", seed=1)
    predict_files(Predictor(folder / "other.safetensors", device="cpu"), [str(folder / "in/b.png")], folder / "out")
    with pytest.raises(InputError, match="made otherwise"):
        run(folder, resume=True)
    assert run(folder, model="other.safetensors", resume=True) == ("acde", [])


def test_a_folder_without_a_record_is_begun_anew(folder):
    run(folder)
    (folder / "out" / RECORD).unlink()
    assert run(folder, resume=True) == ("abcde", [])
    (folder / "out" / RECORD).write_text("[]")
    with pytest.raises(InputError, match="is not a record of predict; leave --resume out"):
        run(folder, resume=True)


def test_the_record_says_what_made_the_results_and_one_image_alone_has_none(folder):
    run(folder)
    record = json.loads((folder / "out" / RECORD).read_text())
    assert record["model"] == "m.safetensors" and len(record["SHA-256"]) == 64
    assert (record["engine"], record["mode"], record["rasters"]) == ("plain", "whole", "auto")
    predictor = Predictor(folder / "m.safetensors", device="cpu")
    predict_files(predictor, [str(folder / "in/a.png")], folder / "one")
    assert sorted(path.name for path in (folder / "one").iterdir()) == ["a.png", "a_overlay.jpg"]


def test_a_model_that_was_made_in_python_cannot_be_known_again(folder):
    predictor = Predictor(build_model(MODEL, SPEC), device="cpu")
    with pytest.raises(InputError, match="resume needs a model that was read from a file"):
        predict_files(predictor, [str(folder / "in")], folder / "out", resume=True)


def test_rasters_are_not_done_again(folder, monkeypatch):
    pytest.importorskip("rasterio")
    for path in (folder / "in").iterdir():
        path.unlink()
    for name in "xy":
        Image.new("RGB", (40, 30), 50).save(folder / f"in/{name}.tif")
    done = []
    raster = Predictor.raster
    monkeypatch.setattr(
        Predictor, "raster", lambda self, path, *a, **k: (done.append(path.stem), raster(self, path, *a, **k))
    )
    run(folder, rasters="always")
    (folder / "out/y.tif").unlink()
    run(folder, rasters="always", resume=True)
    assert done == ["x", "y", "y"]


def test_files_of_the_folder_list_what_was_done_before_too(folder):
    pytest.importorskip("pycocotools")
    kinds = ["shares", "coco"]
    run(folder, outputs=kinds)
    whole = contents(folder / "out")
    for name in ("b.png", "coco.json", "shares.csv"):
        (folder / "out" / name).unlink()
    assert run(folder, outputs=kinds, resume=True) == ("b", []) and contents(folder / "out") == whole
    assert whole["shares.csv"].count(b"\n") == 1 + 5


def test_corrections_survive_and_the_rest_is_done(folder):
    pytest.importorskip("rasterio")
    run(folder, outputs=["labelme"])
    (folder / "out/b.json").write_text("corrected")
    (folder / "out/c.json").unlink()
    assert run(folder, outputs=["labelme"], resume=True) == ("c", [])
    assert (folder / "out/b.json").read_text() == "corrected"


def test_corrections_survive_where_the_image_is_done_again(folder):
    """Because it has changed, or another result of it is missing, or the record is lost."""
    pytest.importorskip("rasterio")
    kinds = {"outputs": ["labelme", "index"]}
    run(folder, **kinds)
    (folder / "out/b.json").write_text("corrected")
    (folder / "out/b.png").unlink()
    assert run(folder, resume=True, **kinds) == ("b", [])
    time.sleep(0.02)  # file times move on in steps of a few milliseconds
    (folder / "in/b.png").touch()
    assert run(folder, resume=True, **kinds) == ("b", []) and run(folder, resume=True, **kinds) == ("", [])
    (folder / "out" / RECORD).unlink()
    assert run(folder, resume=True, **kinds) == ("abcde", [])
    assert (folder / "out/b.json").read_text() == "corrected"


def test_results_of_other_images_of_the_same_names_are_not_taken_for_theirs(folder):
    shutil.copytree(folder / "in", folder / "other")
    time.sleep(0.02)
    run(folder)
    before, predictor = contents(folder / "out"), Predictor(folder / "m.safetensors", device="cpu")
    told = f"^{folder}/out/a.png was made of {folder}/in/a.png, not of {folder}/other/a.png; name another --out, or "
    for _ in range(2):  # a refused run leaves the record as it was
        with pytest.raises(InputError, match=told):
            predict_files(predictor, [str(folder / "other")], folder / "out", resume=True)
    assert contents(folder / "out") == before and run(folder, resume=True) == ("", [])


def test_images_that_are_added_are_told_from_others_too(folder):
    """Of three images of one name, the second comes later: it gets the number that another one had."""
    for name in "xyz":
        (folder / name).mkdir()
        Image.new("RGB", (24, 16), "xyz".index(name)).save(folder / name / "n.png")
    time.sleep(0.02)
    predictor = Predictor(folder / "m.safetensors", device="cpu")
    predict_files(predictor, [str(folder / name) for name in "xz"], folder / "out")
    record = folder / "out" / RECORD
    written = record.stat().st_mtime_ns
    predict_files(predictor, [str(folder / name) for name in "xz"] + [str(folder / "in")], folder / "out", resume=True)
    assert record.stat().st_mtime_ns == written, "what was done before the record stays done"
    assert json.loads(record.read_text())["images"]["b"] == f"{folder}/in/b.png"
    with pytest.raises(InputError, match="n_png_2.png was made of .*/z/n.png, not of .*/y/n.png"):
        predict_files(predictor, [str(folder / name) for name in "xyz"], folder / "out", resume=True)


def test_results_in_a_folder_of_the_inputs_are_not_taken_for_images(folder, capfd):
    Image.new("RGB", (24, 16)).save(folder / "in/f_overlay.jpg")
    (folder / "in/sub").mkdir()
    Image.new("RGB", (24, 16)).save(folder / "in/sub/g.png")
    run(folder, out="in/out")
    assert run(folder, out="in/out", resume=True) == ("", []) and run(folder, out="in/out") == ("abcde??", [])
    (folder / "in/out/sub/g.png").unlink()
    capfd.readouterr()
    assert run(folder, out="in/out", resume=True) == ("?", [])
    assert capfd.readouterr().err.startswith(
        f"7 images; left out, as predict has written them: 13 in {folder}/in/out\n"
    )
    Image.new("RGB", (24, 16)).save(folder / "in/out/other.png")
    with pytest.raises(InputError, match="the output folder .*in/out holds the image .*in/out/other.png"):
        run(folder, out="in/out")
    predictor = Predictor(folder / "m.safetensors", device="cpu")
    with pytest.raises(InputError, match="holds the image"):
        predict_files(predictor, [str(folder / "in/out/a.png")], folder / "in/out")
