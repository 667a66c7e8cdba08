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


@pytest.mark.parametrize("arguments", [[name] for name in COMMANDS] + [["train", "drawn"], ["config", "diff"]])
def test_every_command_has_help_without_torch(arguments):
    done = run_cli(*arguments, "--help")
    assert done.returncode == 0 and "usage: python -m emanet" in done.stdout and not done.stderr


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
        (["predict", "nowhere", "x.jpg", "--out", "y"], "no model file nowhere"),
        (["train", "drawn", "--device", "tpus"], "no device 'tpus': use auto, cpu, cuda or cuda:N"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "drawn", "--stepz", "3"], "error: Unrecognized options: --stepz, 3; did you mean --steps?"),
        (["train", "drawn", "--optim.lr", "fast"], "--optim.lr: could not convert string to float: 'fast'"),
        (["train", "drawn", "--precision", "bf1"], "invalid choice 'bf1' for argument '--precision'"),
        (["evaluate", "--jsn", "x"], "did you mean --json?"),
        (["predict"], "MODEL A model file or a run folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unknown_flags_and_values_name_the_nearest(arguments, message):
    assert message in sentence(run_cli(*arguments))


def test_a_process_of_its_own_ends_the_same_way(tmp_path):
    done = run_process("evaluate", "nowhere.safetensors", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: no model file nowhere.safetensors\n")


def test_predict_writes_label_maps_and_overlays(model, scenes, tmp_path):
    out = tmp_path / "out"
    done = run_cli("predict", model, scenes / "val" / "images", "--out", out)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir())[:2] == ["0000.png", "0000_overlay.jpg"]
    labels = Image.open(out / "0000.png")
    assert labels.mode == "P" and np.asarray(labels).shape == (145, 145) and np.asarray(labels).max() < 8
    assert Image.open(out / "0000_overlay.jpg").size == (145, 145)


def test_predict_goes_on_past_a_bad_file_and_says_so(model, scenes, tmp_path):
    (scenes / "val" / "images" / "0001.jpg").write_bytes(b"no picture")
    done = run_cli("predict", model, scenes / "val" / "images", "--out", tmp_path / "out", "--no-overlay")
    assert "could not be predicted: 1" in sentence(done) and "0001.jpg" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0000.png", "0002.png"]


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


SUBCOMMANDS = "data draw", "data prepare", "data pack", "data check", "config show", "config diff"


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS])
def test_help_fits_a_terminal(command):
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


def test_a_fault_of_ours_is_a_sentence_with_a_report(monkeypatch, capsys):
    from emanet import cli

    def broken(arguments):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(cli.models, "train", broken)
    with pytest.raises(SystemExit) as end:
        cli.main(["train"])
    said = capsys.readouterr().err
    assert end.value.code == 1 and said.startswith("error: unexpected RuntimeError: first line (the traceback is in ")
    report = said.split("is in ")[1].strip().rstrip(")")
    assert "second line" in open(report).read()
