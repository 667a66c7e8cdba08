import json

import pytest
from rich.console import Console

from emanet.config import DatasetSpec
from emanet.errors import InputError
from emanet.experiments import override
from emanet.model import build_model
from emanet.run import folder as rundir
from emanet.run.folder import RunFolder, pick_run_folder


def chosen(*arguments):
    folder, resume = pick_run_folder(*arguments)
    return str(folder), resume


def test_a_run_is_continued_or_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert chosen("", "x", False) == ("runs/x", False)
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "config.json").touch()
    assert chosen("", "x", False) == ("runs/x-2", False)
    assert chosen("", "x", True) == ("runs/x", True)
    assert chosen("runs/x", "y", True) == ("runs/x", True)
    with pytest.raises(InputError, match="runs/x already holds a run"):
        pick_run_folder("runs/x", "y", False)


@pytest.mark.parametrize("name", ["none", "a-job"])
def test_a_restart_continues_what_the_same_launch_began_and_nothing_else(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
    spec = DatasetSpec(classes=("a", "b"))
    config = override(tiny, {"data.spec": spec})
    RunFolder(tmp_path / "run").open(config, build_model(config.model, spec), 0)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert pick_run_folder(tmp_path / "run", "x", False) == (tmp_path / "run", True)
    if name == "none":
        monkeypatch.setattr(rundir.os, "getppid", lambda: 1)
    else:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another-job")
    with pytest.raises(InputError, match="run already holds a run"):
        pick_run_folder(tmp_path / "run", "x", False)
    assert pick_run_folder(tmp_path / "new", "x", False) == (tmp_path / "new", False)


@pytest.fixture
def opened(tiny, tmp_path):
    run = RunFolder(tmp_path / "run")
    spec = DatasetSpec(classes=("a", "b"))
    config = override(tiny, {"data.spec": spec})
    net = build_model(config.model, spec)
    run.open(config, net, 0)
    return run, config, net


def test_resuming_cuts_the_log_back(opened):
    run, config, net = opened
    for step in (10, 20, 30):
        run.log("train", step=step, loss=1.0, lr=0.1, images_per_second=2.0, seconds=3.0)
    run.open(config, net, 20)
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20]


def test_git_state_is_this_packages_own_or_none(opened, monkeypatch, tmp_path):
    _, _, net = opened
    monkeypatch.setattr(rundir, "PACKAGE", tmp_path / "site-packages" / "emanet")
    assert rundir.environment(net)["git_commit"] is None


def test_the_bar_is_put_away_when_a_step_fails(opened):
    run, _, _ = opened
    run.console = Console(force_terminal=True, width=80)
    with pytest.raises(ZeroDivisionError), run.bar(0, 10):
        run.advance(1, 2.5, 0.1)
        _ = 1 / 0
    assert not run._bar.live.is_started
