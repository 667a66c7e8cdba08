import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import ROOT, run_cli
from forks import run_forks
from safetensors.torch import load_file

from emanet import train as training
from emanet.errors import InputError, Interrupted
from emanet.experiments import override, to_dict
from emanet.interrupt import Interruption
from emanet.run.checkpoints import checkpoints
from emanet.run.log import read_log

PROGRAMS = ROOT / "tests" / "programs"


def process(program, *arguments, **options):
    """A file of tests/programs in its own process group, as a terminal starts it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, PROGRAMS / program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **options)


@pytest.fixture
def config(tiny, scenes):
    """Twelve steps with dropout, on files, a loader's process, validations and checkpoints between."""
    changes = {"data.dataset": str(scenes), "data.workers": 1, "model.head.dropout": 0.3, "device": "cpu"}
    return override(tiny, changes | {"steps": 12, "val_every": 5, "save_every": 2, "log_every": 3})


def write(config, path):
    path.write_text(json.dumps(to_dict(config)))
    return path


def weights(run):
    return load_file(checkpoints(run)[-1] / "model.safetensors")


def same(a, b):
    assert [name for name in a if not torch.equal(a[name], b[name])] == [] and a.keys() == b.keys()


def rows(run):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in read_log(run)]


def test_a_signal_is_noted_and_the_next_one_ends():
    with Interruption(tell=False) as interruption:
        assert not interruption
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption and interruption.by == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption(tell=False) as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        assert not interruption and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_hears_no_signals():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interruption() as interruption:
            seen.append(bool(interruption) or signal.getsignal(signal.SIGTERM) is not before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_has_an_exit_code(config, tmp_path, monkeypatch, number):
    training.train(config, tmp_path / "whole")
    advance = training.RunLog.advance

    def signalled(self, step, *facts):
        if step == 7:
            os.kill(os.getpid(), number)
        advance(self, step, *facts)

    monkeypatch.setattr(training.RunLog, "advance", signalled)
    done = run_cli("train", write(config, tmp_path / "config.json"), "--out", tmp_path / "cut")
    assert done.returncode == 75 and done.stderr.splitlines()[-1].startswith(f"{signal.Signals(number).name}: step 8 ")
    assert checkpoints(tmp_path / "cut")[-1].name == "000008", "the signal came once step 7 was settled"
    monkeypatch.undo()
    training.train(config, tmp_path / "cut", resume=True)
    same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut"), "also where the signal came between two lines"


def test_a_validation_that_was_cut_off_is_made_up_for(config, tmp_path, monkeypatch):
    training.train(config, tmp_path / "whole")
    evaluate = training.evaluate

    def signalled(*arguments, **options):
        if next(validations) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **options)

    validations = itertools.count(1)
    monkeypatch.setattr(training, "evaluate", signalled)
    with pytest.raises(Interrupted, match="SIGTERM: step 12 of 12 is saved in .*cut; continue with --resume"):
        training.train(config, tmp_path / "cut")
    assert [row["step"] for row in read_log(tmp_path / "cut") if row["kind"] == "val"] == [5, 10]
    monkeypatch.undo()
    report = training.train(config, tmp_path / "cut", resume=True)
    same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    assert report == json.loads((tmp_path / "whole" / "evaluation.json").read_text())
    best = load_file(tmp_path / "whole" / "best.safetensors")
    same(best, load_file(tmp_path / "cut" / "best.safetensors"))


def test_a_complete_run_that_is_killed_while_it_is_validated_anew_is_not_complete(config, tmp_path, monkeypatch):
    run, config = tmp_path / "run", override(config, {"steps": 2, "data.workers": 0})
    training.train(config, run)
    slide = override(config, {"eval": {"mode": "slide", "window": (17, 17)}})
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            training.train(slide, run, resume=True)
    assert not (run / "evaluation.json").exists()
    report = training.train(slide, run, resume=True)
    assert report == json.loads((run / "evaluation.json").read_text())
    assert read_log(run)[-1]["kind"] == "val"


def test_a_run_whose_loader_meets_a_bad_file_ends(config, tmp_path):
    arguments = "raises", write(config, tmp_path / "config.json"), "--out", tmp_path / "run"
    code, _, said = run_forks(PROGRAMS / "train_with_a_bad_sample.py", *arguments)
    assert code == 2 and said == "error: /x/y.jpg is torn\n"


def test_a_second_signal_ends_also_where_a_worker_waits_for_a_file(config, tmp_path):
    arguments = "waits", write(config, tmp_path / "config.json"), "--out", tmp_path / "run"
    running = process("train_with_a_bad_sample.py", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        for line in running.stdout:
            if line.startswith("step      5  mIoU"):
                break
        time.sleep(0.5)
        for _ in range(2):
            os.killpg(running.pid, signal.SIGINT)
            time.sleep(0.3)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130 and said.endswith("error: interrupted\n") and "Traceback" not in said


def test_what_the_output_is_piped_into_may_end_first(config, tmp_path):
    """`train 2>&1 | tee log`, and Ctrl-C: tee is gone when the signal is answered."""
    arguments = "SIGINT", write(config, tmp_path / "config.json"), "--out", tmp_path / "run"
    running = process("train_with_a_signal.py", *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        running.stdout.close()
        assert running.wait(timeout=60) == 75
    finally:
        running.kill()
    assert checkpoints(tmp_path / "run")[-1].name == "000008"


def killed(config, tmp_path, kills, ranks, name="SIGKILL"):
    """What tests/interrupted.py reports of each kill."""
    arguments = write(config, tmp_path / "config.json"), tmp_path, "--kills", kills, "--ranks", ranks, "--signal", name
    code, out, err = run_forks(ROOT / "tests" / "interrupted.py", *arguments, timeout=900)
    assert code == 0, err[-3000:]
    print(out)
    return [json.loads(line) for line in out.splitlines()]


def check_kills(facts, count, ranks):
    assert len(facts) == count
    for kill in facts:
        assert kill["resumed"] == [0] * ranks and kill["differ"] == [], kill
        assert kill["ended"] < 30, "a survivor ends within a bounded time"
        assert set(kill["codes"]) <= {-9, 0, 2}, kill
    ended = [kill["said"] for kill in facts if kill["codes"][0] == 2]
    assert all(len(said) == 1 and "another one has ended or cannot be reached" in said[0] for said in ended), ended


LAST_STEPS = {"optim.average": 0.5, "optim.freeze_bn": 0.5, "data.last_crop": (41, 41), "data.last_share": 0.5}


@pytest.mark.early
@pytest.mark.parametrize("options", [{}, LAST_STEPS], ids=["plain", "last steps"])
def test_killed_and_resumed_is_the_same_to_the_bit(config, tmp_path, options):
    check_kills(killed(override(config, options), tmp_path, 3, 1), 3, 1)


@pytest.mark.slow
def test_killed_at_20_random_moments_and_resumed(config, tmp_path, repeats):
    kills = repeats(20, 4)
    check_kills(killed(override(config, {"steps": 24}), tmp_path, kills, 1), kills, 1)


@pytest.mark.slow
def test_two_processes_killed_at_20_random_moments_and_resumed(config, tmp_path, repeats):
    kills = repeats(20, 4)
    check_kills(killed(override(config, {"steps": 24}), tmp_path, kills, 2), kills, 2)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_signalled_at_random_moments_and_resumed(config, tmp_path, ranks, repeats):
    facts = killed(override(config, {"steps": 24}), tmp_path, repeats(20, 10), ranks, "SIGTERM")
    for kill in facts:
        assert kill["resumed"] == [0] * ranks and kill["differ"] == [], kill
    # Before the first step and after the last one a signal ends a process as ever.
    steps = [kill for kill in facts if kill["there"] and kill["there"][-1] != "000024"]
    assert steps and all(set(kill["codes"]) == {75} for kill in steps), steps


@pytest.mark.early
@pytest.mark.parametrize("name", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_torchrun_restarts_from_the_last_checkpoint(config, tmp_path, name):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WHOLE": str(tmp_path / "whole")}
    launch = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"
    program = PROGRAMS / "train_with_a_signal.py", name, write(config, tmp_path / "config.json"), "--out"
    command = [sys.executable, *launch, *program, tmp_path / "cut"]
    cut = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert cut.returncode == 0, cut.stderr[-3000:]
    assert f"resumed at step {6 if name == 'SIGKILL' else 8} of 12" in cut.stdout
    same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_restarts_need_a_folder_to_go_on_in(config, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(InputError, match="torchrun --max-restarts needs a run folder to continue in: train ... --out"):
        training.train(config)
