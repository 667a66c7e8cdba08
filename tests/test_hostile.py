"""Broken and malicious files: each works or is refused in one sentence that names it; nothing hangs, nothing runs.

Files are read in a process of their own (programs/read_broken_files.py) with a time limit for each and a limit on
memory, so that a crash or a hang in a library shows as a failure here. The broken ones are functions of a seed
(mutations.py).
"""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from conftest import ROOT, Done, run_cli, run_process, sentence
from mutations import bombs, checkpoint_corpus, headers, image_corpus, image_seeds, largest
from PIL import Image

from emanet.config import BackboneConfig, DataConfig, EvalConfig, Experiment, HeadConfig, LossConfig, OptimConfig
from emanet.data.images import IMAGE_SUFFIXES, image_size, read_image, read_mask_values
from emanet.errors import InputError
from emanet.experiments import load_experiment, read_json, to_dict
from emanet.predict.inputs import find_images
from emanet.predict.predictor import Predictor
from emanet.weights import foreign

# In this process, where pytest has filters of its own; in others images.py silences Pillow itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
SECONDS, MEGABYTES = 20, 2000  # for a file; the largest image allowed takes 1.8 GB


def outcomes(kind: str, corpus: Iterable[tuple[str, bytes]], folder: Path) -> Counter:
    """(way of reading, "worked" or "sentence") -> how many files; fails at anything else."""
    names = []
    for name, content in corpus:
        (folder / name).write_bytes(content)
        names.append(name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "programs" / "read_broken_files.py"), kind, str(folder)]
    command += [str(SECONDS), str(MEGABYTES)]
    done = subprocess.run(command, input="\n".join(names), env=environment, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    at = lines[-1]["name"] if lines else "its start"
    assert done.returncode == 0, f"a crash or a hang (signal {-done.returncode}) at {at}: {done.stderr[-2000:]}"
    came = {line["name"]: line["came"] for line in lines if "came" in line}
    assert list(came) == names
    count: Counter = Counter()
    for name, ways in came.items():
        for way, result in ways.items():
            outcome, _, said = result.partition(": ")
            assert outcome != "fault", f"{name}, {way}: {said}"
            assert outcome == "worked" or name in said and "\n" not in said and len(said) < 1000, (
                f"{name}, {way}: {said}"
            )
            count[way, outcome] += 1
    assert not done.stderr, f"written to stderr by the way: {done.stderr[:2000]}"
    assert not (folder / "marker").exists(), "code from a file was run"
    return count


def test_some_broken_images(tmp_path):
    count = outcomes("images", image_corpus(100, tmp_path / "marker"), tmp_path)
    assert count["rgb", "worked"] > 60 and count["rgb", "sentence"] > 60


def test_some_broken_checkpoints(model, tmp_path):
    count = outcomes("checkpoints", checkpoint_corpus(model, 60, tmp_path / "marker"), tmp_path)
    assert count["load", "worked"] and count["convert", "worked"] and count["load", "sentence"] > 60


@pytest.mark.slow
def test_many_broken_images(tmp_path, capsys, repeats):
    size = repeats(6000, 300)
    corpus = itertools.chain([("largest.png", largest())], image_corpus(size, tmp_path / "marker", seed=1))
    count = outcomes("images", corpus, tmp_path)
    assert count["rgb", "worked"] > size / 6
    with capsys.disabled():
        print(f"\n{len(list(tmp_path.iterdir()))} images: {dict(count)}")


@pytest.mark.slow
def test_many_broken_checkpoints(model, tmp_path, capsys, repeats):
    size = repeats(1500, 100)
    folder = tmp_path / "files"
    folder.mkdir()
    count = outcomes("checkpoints", checkpoint_corpus(model, size, folder / "marker", seed=1), folder)
    assert count["load", "worked"] > size / 150 and count["foreign", "worked"] > size / 15
    with capsys.disabled():
        print(f"\n{count.total() // 5} checkpoints: {dict(count)}")


def predict_broken(model: Path, folder: Path, count: int, run: Callable[..., Done]) -> tuple[int, int]:
    """Predict a folder of broken images; how many have labels, how many were reported."""
    given = folder / "in"
    given.mkdir()
    files = {name: content for name, content in image_corpus(count, folder / "marker", seed=2) if len(content) < 20_000}
    files = {name: content for name, content in files.items() if Path(name).suffix in IMAGE_SUFFIXES}
    for name, content in files.items():
        (given / name).write_bytes(content)
    done = run("predict", model, given, "--out", folder / "out", "--no-overlay", "--max-pixels", 40_000)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    # Where the progress bar was, some lines are empty.
    first, *skipped, last = [line for line in done.stderr.splitlines() if line]
    assert first == f"{len(files)} images"
    assert skipped.pop().startswith(f"{len(files) - len(skipped)} done, {len(skipped)} skipped, named above; ")
    others = [line for line in skipped if not line.startswith("skipped: ")]
    assert not others, others
    assert last == f"error: images that could not be predicted: {len(skipped)}, named above"
    written = [path for path in (folder / "out").rglob("*") if path.suffix in (".png", ".tif")]
    assert len(written) + len(skipped) == len(files) and not (folder / "marker").exists()
    return len(written), len(skipped)


def test_a_folder_of_broken_images_is_predicted_as_far_as_it_goes(model, tmp_path):
    written, skipped = predict_broken(model, tmp_path, 60, run_cli)
    assert written > 40 and skipped > 40


@pytest.mark.slow
def test_a_large_folder_of_broken_images(model, tmp_path, capsys, repeats):
    written, skipped = predict_broken(model, tmp_path, repeats(1500, 150), run_process)
    with capsys.disabled():
        print(f"\npredict: {written} labelled, {skipped} skipped")


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 3)])
def test_thin_images_have_labels(model, tmp_path, size):
    Image.new("RGB", size[::-1], (90, 150, 30)).save(tmp_path / "x.png")
    for config in (None, EvalConfig(mode="slide", window=(33, 33), scales=(0.5, 1.0), flip=True)):
        assert Predictor(model, config=config)(tmp_path / "x.png").shape == size


def test_what_promises_gigapixels_is_refused_by_its_header(tmp_path):
    files = bombs()
    for name in ("bomb.png", "bomb.tif", "deflated.tif", "bomb.gif", "bomb.ppm"):
        (tmp_path / name).write_bytes(files[name])
        for read in (read_image, image_size, read_mask_values):
            with pytest.raises(InputError, match=rf"{name}: its .* pixels are more than max_pixels, \d+$"):
                read(tmp_path / name)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_can_be_raised_above_pillows(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # an error over 1,000
    Image.new("L", (40, 50)).save(tmp_path / "x.png")
    for limit in (None, 1999):
        with pytest.raises(InputError, match="pixels are more than max_pixels, (1000|1999)$"):
            read_image(tmp_path / "x.png", max_pixels=limit)
    assert read_image(tmp_path / "x.png", max_pixels=2000).shape == (50, 40, 3)


def test_predict_takes_the_limit(model, tmp_path):
    Image.new("RGB", (40, 50)).save(tmp_path / "x.png")
    command = ("predict", model, tmp_path / "x.png", "--out", tmp_path / "out", "--max-pixels")
    done = run_cli(*command, 1999)
    assert "x.png: its 40 x 50 pixels are more than max_pixels, 1999" in done.stderr.replace("\n", " ")
    assert "could not be predicted: 1" in sentence(done)
    assert run_cli(*command, 2000).returncode == 0


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    os.mkfifo(tmp_path / "config.json")
    for path in (tmp_path / "x.png", Path("/dev/zero")):
        for read in (read_image, image_size, read_mask_values):
            with pytest.raises(InputError, match="it is not a file but a pipe or a device"):
                read(path)
        with pytest.raises(InputError, match="not a regular file"):
            foreign.read(path)
    with pytest.raises(InputError, match="not a regular file"):
        read_json(tmp_path / "config.json")
    with pytest.raises(InputError, match="no experiment"):
        load_experiment(str(tmp_path))


def test_a_folder_with_everything_but_files(model, tmp_path):
    """Pipes, folders named as images, links in circles: none is waited for, and the one image is found once."""
    given = tmp_path / "in"
    (given / "folder.png" / "deep").mkdir(parents=True)
    os.mkfifo(given / "pipe.png")
    (given / "self.png").symlink_to("self.png")
    (given / "gone.jpg").symlink_to("nowhere")
    for name in ("a", "b", "folder.png/c", "folder.png/deep/d"):
        (given / name).symlink_to(given)
    (given / ".hidden.png").write_bytes(b"")
    (given / "folder.png" / "x.ppm").write_bytes(b"P6 1 1 255\nabc")
    for pattern in (given, given / "**", given / "**" / "*.ppm", given / "*" / "x.ppm"):
        assert [path.name for path, _ in find_images([str(pattern)])] == ["x.ppm"]
    done = run_cli("predict", model, given, "--out", tmp_path / "out")
    assert done.returncode == 0 and (tmp_path / "out/folder.png/x.png").is_file()


def test_names_that_are_hard_to_print(model, tmp_path):
    given = tmp_path / "in"
    given.mkdir()
    names = [
        b"-o.png",
        b"two\nlines.png",
        b"\xff\xfe.png",
        b"[bold]x.png",
        b"*.png",
        b" .png",
        "\u202e\u00e9.png".encode(),
    ]
    for name in names:
        with open(os.path.join(os.fsencode(given), name), "wb") as file:
            file.write(image_seeds()["rgb.png"])
        with open(os.path.join(os.fsencode(given), b"bad" + name), "wb"):
            pass
    done = run_process("predict", model, given, "--out", tmp_path / "out", "--no-overlay")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("skipped: ") == len(names) == done.stderr.count("it is empty")
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == sorted([*names, b".predict.json"])


BAD = {
    "model": {
        "backbone": [
            {"output_stride": 7}, {"in_channels": 0}, {"in_channels": 10**9}, {"multi_grid": [1, -2, 4]},
            {"options": {"checkpoint_path": "evil.pth"}}, {"options": {"pretrained": True}}, {"options": []},
            {"name": 3}, {"name": None}, {"dilation": "sideways"},
        ],
        "head": [
            {"channels": 0}, {"channels": 10**30}, {"num_bases": -1}, {"em_steps": 10**12}, {"eps": float("nan")},
            {"eps": float("inf")}, {"dropout": 1.0}, {"dropout": float("nan")}, {"rates": []}, {"bins": [0]},
            {"window": [33]}, {"window": [33, 10**9]}, {"bases_keep": -0.1}, {"fc1_channels": -1}, {"chanels": 3},
        ],
        "": [{"mean": [float("nan")] * 3}, {"std": [0.0] * 3}, {"std": [float("inf")] * 3}, {"mean": []}, {"mean": 1},
             {"aux_channels": 0}, {"bn_momentum": 2}, {"align_corners": "yes"}, {"head": 3}],
    },
    "data": {
        "": [{"crop": [0, 5]}, {"crop": [-5, 5]}, {"crop": [10**9, 10**9]}, {"scales": []}, {"scales": [0.0]},
             {"scales": [float("inf")]}, {"scales": [1e-300]}, {"flip": 2}, {"flip": float("nan")}, {"workers": -1},
             {"workers": 10**6}, {"colour": 1.0}, {"root": 3}],
        "spec": [{}, {"classes": []}, {"classes": "abc"}, {"classes": ["a"] * 2},
                 {"classes": [f"{i}" for i in range(300)]}, {"classes": ["a"], "palette": [[1, 2]]},
                 {"classes": ["a"], "palette": [[1, 2, 256]]},
                 {"classes": ["a"], "label_map": {"x": 0}}, {"classes": ["a"], "label_map": {"1": 7}},
                 {"classes": ["a"], "label_map": {str(10**40): 0}}, {"classes": ["a"], "ignore_label": 10**40},
                 {"classes": [3]}, {"classes": ["a"], "images": None}],
    },
    "loss": {"": [{"average": "none"}, {"class_weights": [-1.0]}, {"class_weights": [float("nan")]},
                  {"class_weights": [float("inf")]}, {"ohem_threshold": 1.5}, {"ohem_min_kept": -1},
                  {"boundary_width": -1}, {"boundary_weight": -1.0}, {"terms": {"dice": 1}},
                  {"terms": []}, {"terms": [["dice"]]}, {"terms": [["dice", float("nan")]]}, {"terms": [["dice", 0]]},
                  {"aux_weight": float("nan")}]},
    "optim": {"": [{"lr": float("nan")}, {"lr": float("inf")}, {"lr": 0}, {"lr": -1e-3}, {"lr": "1e-3"},
                   {"momentum": 1}, {"weight_decay": float("inf")}, {"lr_every": 0}, {"warmup_steps": -1},
                   {"name": "lion"},
                   {"clip_norm": float("nan")}, {"poly_power": -1}]},
    "eval": {"": [{"mode": "tiled"}, {"window": [0, 0]}, {"overlap": 1.0}, {"overlap": float("nan")},
                  {"scales": [1e9]}]},
    "": {"": [{"steps": 0}, {"steps": 10**30}, {"steps": 1.5}, {"steps": None}, {"steps": True}, {"batch_size": 0},
              {"batch_size": 10**9}, {"seed": -1}, {"seed": 2**64}, {"precision": "fp8"}, {"accumulate": 0},
              {"save_every": 0}, {"x" * 10**5: 1}, {"steps": "9" * 10**5}, {"model": []}, {"model": [[]] * 10**5}]},
}  # fmt: skip


def test_impossible_settings_are_refused_in_a_sentence(tmp_path):
    count = 0
    for part, groups in BAD.items():
        for group, cases in groups.items():
            for wrong in cases:
                values = to_dict(load_experiment("drawn"))
                place = values[part] if part else values
                if group == "spec":
                    place[group] = wrong
                else:
                    (place[group] if group else place).update(wrong)
                path = tmp_path / f"{count}.json"
                path.write_text(json.dumps(values))
                with pytest.raises(InputError) as error:
                    load_experiment(str(path))
                said = str(error.value)
                assert said.startswith(f"{path}: ") and "\n" not in said and len(said) < 1000, said
                count += 1
    assert count > 90


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (OptimConfig, "lr", float("nan")),
        (OptimConfig, "weight_decay", float("inf")),
        (HeadConfig, "eps", float("inf")),
        (DataConfig, "scales", (1.0, float("inf"))),
        (LossConfig, "class_weights", (1.0, float("inf"))),
        (EvalConfig, "overlap", float("nan")),
        (Experiment, "seed", 1 << 64),
        (BackboneConfig, "in_channels", 1 << 20),
    ],
)
def test_impossible_settings_are_refused_in_python_too(kind, name, value):
    with pytest.raises(InputError, match=f"^{name} is .*, but must be "):
        kind(**{name: value})


def test_settings_by_flag(tmp_path):
    for flag in ("--optim.lr=nan", "--optim.lr=inf", "--data.crop=0 0", "--steps=-3", "--model.head.em-steps=1000000"):
        name, _, value = flag.partition("=")
        done = run_cli("train", "drawn", "--out", tmp_path / "run", name, *value.split())
        assert "must be" in sentence(done) and not (tmp_path / "run").exists()


TEXTS = {
    "empty": b"",
    "deep list": b"[" * 200_000,
    "deep object": b'{"model":' * 100_000,
    "digits": b'{"steps": ' + b"9" * 5000 + b"}",
    "binary": bytes(range(256)),
    "utf-16": '{"steps": 3}'.encode("utf-16")[:-1],
    "list": b"[]",
    "null": b"null",
    "cut": b'{"steps": 3, "mod',
    "zeros": bytes(1 << 20),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_configs_and_specs_that_are_no_json(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(InputError, match="config.json"):
        load_experiment(str(tmp_path))
    (tmp_path / "dataset.json").write_bytes(text)
    done = run_cli("train", "drawn", "--data.dataset", tmp_path, "--out", tmp_path / "run")
    assert "dataset.json" in sentence(done) and "unexpected" not in sentence(done)


def test_a_model_file_names_no_other_file_to_load(model, tmp_path):
    """timm's create_model would read the checkpoint_path that is among its arguments."""
    (tmp_path / "x.safetensors").write_bytes(headers(model.read_bytes())["model.backbone.options-0.safetensors"])
    with pytest.raises(InputError, match="x.safetensors: options has 'checkpoint_path', which other settings decide"):
        load_experiment(str(tmp_path / "x.safetensors"))
