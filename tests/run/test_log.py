import contextlib
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from emanet.run import log as runlog
from emanet.run.log import Clock, Drawings, RunLog, read_log


@pytest.fixture
def log(tmp_path):
    log = RunLog(tmp_path)
    log.open(0)
    return log


def test_resuming_cuts_the_log_back(log):
    for step in (10, 20, 30):
        log.write("train", step=step, loss=1.0, lr=0.1, images_per_second=2.0, seconds=3.0)
    log.write("val", step=20, mIoU=0.5, pAcc=0.5, mAcc=0.5, fIoU=0.5, IoU={"a": 0.5, "b": None})
    log.open(20)
    rows = [json.loads(line) for line in (log.folder / "log.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["step"]) for row in rows] == [("train", 10), ("train", 20), ("val", 20)]
    log.open(20, unvalidated=True)
    assert [(row["kind"], row["step"]) for row in read_log(log.folder)] == [("train", 10), ("train", 20)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar_and_it_is_removed_when_a_step_fails(tmp_path, monkeypatch):
    out, err = Terminal(), Terminal()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        log = RunLog(tmp_path)
        log.open(0)
        with pytest.raises(ZeroDivisionError), log.bar(4, 10):
            log.write("train", step=5, loss=2.5, lr=0.1, images_per_second=2.0, seconds=3.0)
            log.advance(5, 2.5, 0.1)
            raise ZeroDivisionError
    assert "loss 2.500  lr 0.1  2.0 img/s" in err.getvalue() and "5/10" in err.getvalue()
    assert err.getvalue().endswith("\x1b[2K"), "the line of the bar is cleared"
    assert "loss" not in out.getvalue(), "no lines beside the bar"


def test_elsewhere_lines_are_shown(log, capsys):
    with log.bar(0, 10):
        log.advance(5, 2.5, 0.1)
        log.write("train", step=5, loss=2.5, lr=0.1, images_per_second=2.0, seconds=3.0)
    said = capsys.readouterr()
    assert said.out.startswith("step      5  loss 2.5000  lr 1.00e-01") and not said.err


def test_other_ranks_write_and_say_nothing(tmp_path, capsys):
    log = RunLog(tmp_path / "run", main=False)
    log.open(0)
    with log.bar(0, 10):
        log.advance(5, 2.5, 0.1)
        log.write("train", step=5, loss=2.5)
        log.images(5, {0: b"png"})
        log.say("anything")
    log.close()
    assert capsys.readouterr() == ("", "") and not (tmp_path / "run").exists()


def test_a_reader_that_ends_does_not_end_the_run(log, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        for _ in range(3):
            log.say("a line")


def test_pauses_do_not_count_for_the_speed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(runlog.time, "perf_counter", lambda: now[0])
    clock = Clock(seconds=30.0, step=4)
    now[0] += 5  # 10 steps of half a second, and a validation of a minute in between
    with clock.paused():
        now[0] += 60
    assert clock.steps_per_second(14) == pytest.approx(10 / 5)
    now[0] += 2
    assert clock.steps_per_second(16) == pytest.approx(1) and clock.seconds() == pytest.approx(30 + 67)


def test_the_first_samples_are_drawn(log):
    drawings = Drawings(2, [(0, 0, 0), (255, 0, 0)])
    labels = np.ones((4, 6), np.uint8)
    for index in range(3):
        drawings(index, np.zeros((4, 6, 3), np.uint8), labels, labels)
    log.images(7, drawings.drawn)
    paths = sorted((log.folder / "pictures").iterdir())
    assert [path.name for path in paths] == ["step_000007_0.png", "step_000007_1.png"]
    assert Image.open(paths[0]).size == (3 * 6 + 2 * 4, 4)


def test_a_folder_with_a_name_that_is_not_utf8_has_a_log_without_tensorboard(tmp_path, capsys):
    log = RunLog(tmp_path / "r\udce9")
    log.folder.mkdir()
    log.open(0)
    log.write("train", step=1, loss=1.0, lr=0.1, images_per_second=2.0, seconds=3.0)
    drawings = Drawings(1, [(0, 0, 0)])
    drawings(0, np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    log.images(1, drawings.drawn)
    log.close()
    assert [row["step"] for row in read_log(log.folder)] == [1] and (log.folder / "pictures").is_dir()
    assert "TensorBoard" in capsys.readouterr().err


def test_class_names_that_are_not_utf8_reach_tensorboard(log):
    log.write("val", step=1, mIoU=0.5, pAcc=0.5, mAcc=0.5, fIoU=0.5, IoU={"r\udce9": 0.5})
    log.close()
    (file,) = (log.folder / "tensorboard").iterdir()
    assert "val-IoU/r\N{REPLACEMENT CHARACTER}".encode() in file.read_bytes()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_under_the_output_does_not_end_the_run(log, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        log.say("a line")
        log.say("another")
    assert "No space left on device; the run goes on" in capsys.readouterr().err
