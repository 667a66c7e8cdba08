"""The commands as a user runs them: what they write, and that whatever is wrong ends in one sentence."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, run_cli, run_process, sentence
from PIL import Image

from emanet.cli import COMMANDS
from emanet.errors import InputError
from emanet.experiments import load_experiment, to_dict

SUBCOMMANDS = "data draw", "data prepare", "data pack", "data check", "config show", "config diff"


def test_importing_emanet_imports_no_torch():
    code = "import sys, emanet, emanet.cli, emanet.config; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split() == ["False", "False"]


def test_help_is_instant_and_lists_every_command():
    times = []
    for _ in range(5):
        began = time.perf_counter()
        done = run_process("--help")
        times.append(time.perf_counter() - began)
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert min(times) < 0.4


HELP_WITHOUT_TORCH = """
import contextlib, sys
from emanet.cli import main
for arguments in sys.argv[1:]:
    with contextlib.suppress(SystemExit):
        main([*arguments.split(), "--help"])
print("torch" in sys.modules, "numpy" in sys.modules)
"""


def test_every_command_has_help_without_torch():
    commands = [*COMMANDS, *SUBCOMMANDS, "train drawn"]
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TORCH, *commands], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.count("usage: python -m emanet") == len(commands) and done.stderr == ""
    assert done.stdout.endswith("False False\n")


def test_public_names_load_lazily():
    import emanet

    for name in emanet.__all__:
        assert getattr(emanet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        emanet.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["config", "shw"], "did you mean 'show'"),
        (["train", "drwn"], "no experiment, run folder or file 'drwn'; did you mean 'drawn'?"),
        (["train", "--steps", "3"], "train needs an EXPERIMENT before --steps"),
        (["train", "camvid_mobilenetv2", "--data.root", "nowhere"], "no folder nowhere for data set 'camvid'"),
        (["train", "drawn", "--steps", "0"], "steps is 0, but must be at least 1"),
        (["train", "drawn", "--data.dataset", "drown"], "no data set or dataset.json 'drown'; did you mean 'drawn'?"),
        (["train", "drawn", "--model.head.name", "emma"], "no head 'emma'; did you mean 'ema'?"),
        (["train", "drawn", "--model.backbone.name", "test_resnett"], "did you mean 'test_resnet'?"),
        (["train", "drawn", "--init-from", "nowhere.safetensors"], "no model file nowhere.safetensors"),
        (["train", "drawn", "--data.train-split", "trian"], "no split 'trian'; did you mean 'train'?"),
        (["evaluate"], "evaluate needs a MODEL, or --images and --masks"),
        (["evaluate", "nowhere.safetensors"], "no model file nowhere.safetensors"),
        (["evaluate", "sreet"], "no model file sreet; did you mean 'street'?"),
        (["predict", "nowhere", "x.jpg", "--out", "y"], "nowhere is neither a model nor an image: no model file, run"),
        (["predict", "drawn", "x.jpg", "--out", "y"], "drawn is an experiment, not a model: train it first"),
        (["predict", "--out", "y"], "predict needs at least one image, folder or glob, after MODEL if one is named"),
        (["predict", "street", "--out", "y"], "predict needs at least one image, folder or glob, after MODEL if one"),
        (["convert", "street", "x.safetensors"], "has this program's own keys; there is nothing to convert"),
        (["train", "drawn", "--device", "tpus"], "no device 'tpus': use auto, cpu, cuda, cuda:N or mps"),
        (["train", "drawn", "--device", "cuda:99"], "no device 'cuda:99': torch finds"),
        (["train", "drawn", "--log-every", "0"], "log_every is 0, but must be at least 1"),
        (["train", "drawn", "--optim.clip-norm", "-1"], "clip_norm is -1.0, but must be at least 0"),
        (
            ["train", "drawn", "--model.backbone.in-channels", "1", "--model.mean", "0.5", "--model.std", "0.5"],
            "the drawn scenes have 3 channels",
        ),
        (["data", "draw", "new", "--train", "0"], "every split needs at least one scene"),
        (["compare", "nowhere"], "nowhere is not a run"),
        (["config", "show", "nowhere.json"], "nowhere.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_end_in_one_sentence(arguments, message, tmp_path):
    assert message in sentence(run_cli(*arguments, cwd=tmp_path))


def test_a_process_of_its_own_ends_the_same_way(tmp_path):
    done = run_process("evaluate", "nowhere.safetensors", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: no model file nowhere.safetensors\n")


def test_predict_writes_label_maps_and_overlays(model, scenes, tmp_path):
    out = tmp_path / "out"
    done = run_cli("predict", model, scenes / "val" / "images", "--out", out)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir())[:3] == [".predict.json", "0000.png", "0000_overlay.jpg"]
    labels = Image.open(out / "0000.png")
    assert labels.mode == "P" and np.asarray(labels).shape == (145, 145) and np.asarray(labels).max() < 8
    assert Image.open(out / "0000_overlay.jpg").size == (145, 145)


def test_predict_goes_on_past_a_bad_file_and_says_so(model, scenes, tmp_path):
    (scenes / "val" / "images" / "0001.jpg").write_bytes(b"no picture")
    done = run_cli("predict", model, scenes / "val" / "images", "--out", tmp_path / "out", "--no-overlay")
    assert "could not be predicted: 1" in sentence(done) and "0001.jpg" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["0000.png", "0002.png"]
    done = run_cli("predict", model, scenes / "val/images", "--out", tmp_path / "out", "--no-overlay", "--resume")
    assert "0 done, 1 skipped, named above, 2 there already; " in done.stderr


def test_compare_puts_runs_side_by_side(tmp_path):
    for name, miou in (("a", 0.5), ("b", 0.75)):
        (tmp_path / name).mkdir()
        rows = [
            {"kind": "train", "step": 10, "loss": 1.0, "lr": 0.1, "images_per_second": 5.0, "seconds": 2.0},
            {"kind": "val", "step": 10, "mIoU": miou, "pAcc": 0.9, "mAcc": 0.8, "fIoU": 0.7, "IoU": {"x": miou}},
        ]
        (tmp_path / name / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run_cli("compare", tmp_path / "a", tmp_path / "b", "--picture", tmp_path / "curves.png")
    assert done.returncode == 0 and "75.00 +25.00" in done.stdout and (tmp_path / "curves.png").stat().st_size > 5000


def test_a_run_can_be_trained_on_with_another_data_set(tiny, tmp_path, scenes):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(tiny)))
    assert run_cli("train", tmp_path / "config.json", "--steps", "1", "--out", tmp_path / "a").returncode == 0
    done = run_cli("train", tmp_path / "a", "--data.dataset", scenes, "--out", tmp_path / "b")
    assert done.returncode == 0 and load_experiment(str(tmp_path / "b")).data.root == str(scenes)
    assert "did you mean 'drawn'" in sentence(run_cli("train", tmp_path / "b", "--data.dataset", "drown"))


def test_what_a_command_says_and_how_it_exits_is_its_own(monkeypatch):
    from emanet import train

    def speaks(*arguments, **named):
        print("a warning", file=sys.stderr)
        raise SystemExit(3)

    monkeypatch.setattr(train, "train", speaks)
    done = run_cli("train", "drawn", "--steps", "1")
    assert (done.returncode, done.stderr) == (3, "a warning\n")


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS, "train drawn"])
def test_help_fits_a_terminal(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = run_cli(*command.split(), "-h")
    assert done.returncode == 0 and command.split()[0] in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80, done.stdout


def test_prepare_names_all_that_is_to_be_fetched_and_where_it_cannot_go(tmp_path, monkeypatch):
    from emanet.data.prepare import archives as download

    def nowhere(urls, target):
        raise InputError(f"cannot download {target.name}")

    monkeypatch.setattr(download, "fetch", nowhere)
    said = sentence(run_cli("data", "prepare", "voc", "--root", tmp_path))
    assert "cannot download VOCtrainval_11-May-2012.tar; voc needs benchmark.tgz from https://" in said
    (tmp_path / "file").touch()
    said = sentence(run_cli("data", "prepare", "voc", "--root", tmp_path, "--archives", tmp_path / "file"))
    assert said == f"error: {tmp_path}/file is a file, but must be a folder"


def test_a_fault_of_ours_shows_its_traceback_and_asks_for_a_report(monkeypatch, tmp_path):
    from emanet.analysis import compare

    def broken(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(compare, "compare", broken)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = run_cli("compare", "x")
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and lines[0] == "Traceback (most recent call last):" and "second line" in lines
    assert lines[-1].startswith("error: this is a fault of emanet") and "report" in lines[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "RUN", "--picture"],
        ["profile", "drawn", "--json"],
        ["profile", "drawn", "--csv"],
        ["profile", "drawn", "--markdown"],
        ["evaluate", "MODEL", "--json"],
        ["evaluate", "MODEL", "--picture"],
        ["data", "check", "SCENES", "--json"],
        ["data", "check", "SCENES", "--html"],
        ["explain", "MODEL", "SCENES/val/images/0000.jpg", "--out"],
        ["predict", "MODEL", "SCENES/val/images/0000.jpg", "--out"],
        ["data", "pack", "SCENES", "--out"],
        ["convert", "MODEL"],
        ["submit", "MODEL", "--images", "SCENES/val/images", "--out"],
    ],
    ids=lambda arguments: " ".join(argument.lstrip("-") for argument in arguments),
)
def test_every_output_is_tried_before_the_work(arguments, model, scenes, tmp_path, monkeypatch):
    from emanet import evaluate
    from emanet.analysis import cost
    from emanet.convert import convert
    from emanet.data import pack
    from emanet.data.check import splits
    from emanet.predict import network, submit

    def work(*_, **__):
        raise AssertionError("the work began")

    works = [(evaluate, "predict_labels"), (cost, "multiply_adds"), (splits, "inspect_pair"), (pack, "_content")]
    for module, name in [*works, (network, "predict_labels"), (convert.foreign, "weights")]:
        monkeypatch.setattr(module, name, work)
    (tmp_path / "file").touch()
    (tmp_path / "log.jsonl").write_text(json.dumps({"kind": "train", "step": 1, "loss": 1.0}))
    real = {"MODEL": str(model), "RUN": str(tmp_path), "SCENES": str(scenes)}
    for word, path in real.items():
        arguments = [argument.replace(word, path) for argument in arguments]
    suffix = {"convert": ".safetensors", "submit": ".zip"}.get(arguments[0], ".png")
    monkeypatch.setattr(submit, "format_of", lambda *_: submit.Format("ade20k", tuple(range(8)), (".zip",)))
    done = run_cli(*arguments, f"file/x{suffix}", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "file" in sentence(done) and done.stdout == ""


def test_evaluate_refuses_larger_images_and_masks_than_max_pixels(model, scenes):
    folders = ["--images", scenes / "val" / "images", "--masks", scenes / "val" / "masks"]
    for limit, folder in ((1000, "images"), (30_000, "masks")):
        if folder == "masks":
            Image.new("L", (300, 300)).save(scenes / "val" / "masks" / "0000.png")
        said = sentence(run_cli("evaluate", model, *folders, "--max-pixels", limit))
        assert f"more than max_pixels, {limit}" in said and f"val/{folder}/000" in said
