"""How arguments are read, and what is said about those that do not fit."""

import importlib
import inspect
import sys
from dataclasses import dataclass, fields
from typing import Literal

import pytest
from conftest import run_cli, sentence

from emanet.analysis import score
from emanet.cli import convert, data, evaluate, predict, submit
from emanet.cli.flags import Model, Switch, flags_of, parse, parse_for_model
from emanet.config import EvalConfig
from emanet.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "drawn", "--stepz", "3"], "unknown option --stepz; did you mean --steps?"),
        (["train", "drawn", "--data_rot=x"], "unknown option --data_rot=x; did you mean --data.root?"),
        (["train", "drawn", "--no-aux-head"], "unknown option --no-aux-head; did you mean --model.no-aux-head?"),
        (["train", "drawn", "--qqq"], "unknown option --qqq; `python -m emanet train drawn --help` lists all"),
        (["train", "drawn", "more"], "unexpected argument 'more'; `python -m emanet train drawn --help` lists"),
        (["train", "drawn", "--optim.lr", "fast"], "--optim.lr is 'fast', but must be a number"),
        (["train", "drawn", "--steps", "1e3"], "--steps is '1e3', but must be a whole number"),
        (["train", "drawn", "--precision", "bf1"], "--precision is 'bf1', but must be fp32, bf16 or fp16"),
        (["train", "drawn", "--data.crop", "3"], "--data.crop needs INT INT"),
        (["train", "drawn", "--steps"], "--steps needs INT"),
        (["evaluate", "--jsn", "x"], "unknown option --jsn; did you mean --json?"),
        (["compare", "--picture"], "--picture needs FILE"),
        (["predict"], "predict needs --out DIR; `python -m emanet predict --help` explains them"),
        (["predict", "m", "x.jpg", "--ot", "y"], "unknown option --ot; did you mean --out?"),
        (["evaluate", "street", "--window", "9", "9"], "window is 9 9, but nothing uses it while mode is 'whole'"),
        (
            ["predict", "street", "x.jpg", "--out", "y", "--mode", "slide", "--longest-side", "9"],
            "longest_side is 9, but",
        ),
        (["data", "check"], "data check needs EXPERIMENT|DATASET"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_one_sentence(arguments, message):
    assert sentence(run_cli(*arguments)).startswith(f"error: {message}")


@dataclass(frozen=True)
class Command:
    """A command."""

    model: Model
    """A model."""
    steps: int = 3
    kind: Literal["a", "b"] = "a"
    flip: bool = False
    force: Switch = False
    root: str = ""
    settings: EvalConfig = EvalConfig()


def test_arguments_become_the_dataclass_over_its_defaults():
    command = parse(Command, ["m", "--steps", "5", "--settings.scales", "0.5", "2"], "test")
    assert command == Command("m", steps=5, settings=EvalConfig(scales=(0.5, 2.0)))
    assert parse(Command, ["n", "--flip"], "test", default=command).settings.scales == (0.5, 2.0)


def test_flags_of_lists_what_the_command_takes():
    flags = list(flags_of(Command))
    assert flags[:6] == ["--steps", "--kind", "--flip", "--no-flip", "--force", "--root"]
    assert {"--settings.scales", "--settings.no-flip"} <= set(flags) and "--no-force" not in flags


@pytest.mark.parametrize("flag", ["--root", "--data.root"])
def test_a_flag_of_two_names_has_both_everywhere(flag):
    assert (
        parse(Command, ["m", flag, "here"], "test").root == parse(Command, ["m", f"{flag}=here"], "test").root == "here"
    )
    said = sentence(run_cli("train", "camvid_mobilenetv2", flag, "nowhere"))
    assert "no folder nowhere for data set 'camvid'" in said
    assert "no folder nowhere" in sentence(run_cli("data", "check", "voc", flag, "nowhere"))


@pytest.mark.parametrize("flag", ["--settings.no-flip", "--no-settings.flip"])
def test_a_setting_is_turned_off_in_both_spellings(flag):
    on = Command("m", settings=EvalConfig(flip=True))
    assert not parse(Command, ["m", flag], "test", default=on).settings.flip


def test_without_the_hook_tyro_says_it_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro._errors", None)
    done = run_cli("evaluate", "--jsn", "x")
    assert done.returncode == 2 and "--jsn" in done.stderr and "--json" in done.stderr


def test_an_invalid_setting_is_its_own_sentence():
    with pytest.raises(InputError, match="overlap is 1.5"):
        parse(Command, ["m", "--settings.overlap", "1.5"], "test")


CALLED = [
    (evaluate.Evaluate, score.score),
    (predict.Predict, "predict.files.predict_files"),
    (predict.Predict, "predict.predictor.Predictor"),
    (submit.Submit, "predict.submit.submit"),
    (convert.Convert, "convert.convert.convert"),
    (data.Prepare, "data.prepare.recipes.prepare"),
    (data.Pack, "data.pack.pack_source"),
    (data.Check, "data.check.report.check_files"),
]


@pytest.mark.parametrize(("command", "called"), CALLED, ids=lambda value: getattr(value, "__name__", value))
def test_a_default_is_the_same_in_the_command_and_in_what_it_calls(command, called):
    """Help must not import torch, so that a command cannot look its defaults up."""
    if isinstance(called, str):
        module, _, name = called.rpartition(".")
        called = getattr(importlib.import_module(f"emanet.{module}"), name)
    defaults = {name: parameter.default for name, parameter in inspect.signature(called).parameters.items()}
    own = {field.name: field.default for field in fields(command)}
    shared = [name for name in own if name in defaults and inspect.Parameter.empty is not defaults[name]]
    assert shared
    for name in set(shared) - {"settings", "align_corners"}:
        assert own[name] == defaults[name] or not (own[name] or defaults[name]), name


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("--lr", "--optim.lr"),
        ("--learning_rate", "--optim.lr"),
        ("--batch", "--batch-size"),
        ("--gpus=1", "--device"),
        ("--crop_size", "--data.crop"),
        ("--num-workers", "--data.workers"),
        ("--weights", "--model.backbone.pretrained"),
        ("--output-dir", "--out"),
        ("--channels", "--model.head.channels"),  # by the last part of the name
        ("--num_base", "--model.head.num-bases"),  # by letters
        ("--data-dir", "--data.root"),
    ],
)
def test_what_other_programs_call_a_flag(typed, meant):
    done = run_cli("train", "drawn", typed, "1")
    assert done.returncode == 2 and f"did you mean {meant}?" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "typed, said",
    [
        ("--epochs", "did you mean --steps?; a run's length"),
        ("--nc", "dataset.json"),
        ("--ignore-index", "ignore_label"),
    ],
)
def test_settings_that_are_no_flag(typed, said):
    assert said in run_cli("train", "drawn", typed, "1").stderr


def test_a_hint_names_a_flag_of_that_command():
    assert "did you mean --root?" in run_cli("evaluate", "x", "--data_dir", "y").stderr
    assert "--help` lists all" in run_cli("evaluate", "x", "--epochs", "3").stderr


@pytest.mark.parametrize(
    "command, typed, said",
    [
        (("evaluate", "m"), "--out", "--help` lists all"),  # not --root, which only looks like it
        (("evaluate", "m"), "--weights", "name the model without a flag"),
        (("predict", "m", "a.png"), "--source", "name the images without a flag"),
        (("predict", "m", "a.png"), "--bs", "did you mean --batch?"),
        (("profile", "drawn"), "--imgsz", "did you mean --size?"),
        (("train", "drawn"), "--optim.learning-rate", "did you mean --optim.lr?"),
    ],
)
def test_a_hint_is_not_a_flag_of_another_meaning(command, typed, said):
    assert said in run_cli(*command, typed, "1").stderr


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (evaluate.Evaluate, ["street", "--images", "a", "--masks", "b", "--partial"]),
        (predict.Predict, ["street", "a.png", "--out", "b", "--resume"]),
    ],
)
def test_a_switch_is_on_where_the_model_decides_other_defaults(command, arguments):
    """The arguments are read twice, the second time with the model's own settings."""
    on = arguments[-1].removeprefix("--")
    assert getattr(parse_for_model(command, arguments, "test", images=command is predict.Predict), on) is True
    assert getattr(parse_for_model(command, arguments[:-1], "test", images=command is predict.Predict), on) is False
