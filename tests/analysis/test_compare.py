import json

import pytest

from emanet.analysis.compare import compare
from emanet.errors import InputError
from emanet.run.log import read_log

VAL = {"kind": "val", "pAcc": 0.9, "mAcc": 0.7, "fIoU": 0.8}


def train_row(step, loss=1.0, speed=30.0):
    return {"kind": "train", "step": step, "loss": loss, "lr": 0.01, "images_per_second": speed, "seconds": 6.0 * step}


def write_run(folder, rows, tail="", **files):
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    a = [train_row(10, 2.0, 1.0), train_row(20, 1.5, 30.0), train_row(30, 1.25, 32.0)]
    a += [
        {**VAL, "step": 20, "mIoU": 0.60, "IoU": {"sky": 0.8, "[road]": 0.4}},
        {**VAL, "step": 30, "mIoU": 0.55, "IoU": {"sky": 0.9, "[road]": 0.2}},
    ]
    b = [train_row(10, 0.5, 60.0), {**VAL, "step": 10, "mIoU": 0.65, "IoU": {"sky": 0.7, "[road]": 0.6, "car": None}}]
    return [
        write_run(tmp_path / "a", a, tail='{"kind": "train", "st', config={"steps": 30_000}),
        write_run(tmp_path / "b", b, environment={"parameters": 1234}),
    ]


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """A terminal of 80 columns with colours."""
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)


def test_the_table_holds_what_the_logs_say(runs):
    data = compare(runs)
    assert data["runs"] == ["a", "b"]
    assert data["metrics"] == {
        "steps done": [30, 10],
        "steps planned": [30_000, None],
        "best mIoU": [0.60, 0.65],
        "its step": [20, 10],
        "last mIoU": [0.55, 0.65],
        "last pAcc": [0.9, 0.9],
        "last mAcc": [0.7, 0.7],
        "last fIoU": [0.8, 0.8],
        "last training loss": [1.25, 0.5],
        "images/s, median": [30.0, 60.0],
        "minutes": [3.0, 1.0],
        "parameters": [None, 1234],
    }
    assert data["IoU"] == {"sky": [0.8, 0.7], "[road]": [0.4, 0.6], "car": [None, None]}  # of the best validation
    json.dumps(data)


def test_the_best_of_a_row_is_bold_and_classes_show_differences(runs, capsys):
    compare(runs)
    text = capsys.readouterr().out
    bold = "\x1b[1m"
    names = ("best mIoU", "loss", "sky", "road")
    rows = {name: next(line for line in text.splitlines() if name in line) for name in names}
    assert f"{bold}65.00" in rows["best mIoU"] and f"{bold}60.00" not in rows["best mIoU"]
    assert f"{bold}0.5000" in rows["loss"]  # less is better
    assert f"{bold}80.00" in rows["sky"] and "70.00" in rows["sky"] and "-10.00" in rows["sky"]
    assert "[road]" in rows["road"] and f"{bold}60.00" in rows["road"] and "+20.00" in rows["road"]


def test_one_run_has_neither_bold_nor_differences(runs, capsys):
    compare(runs[:1])
    text = capsys.readouterr().out
    assert "60.00" in text and "\x1b[1m60.00" not in text and "+0.00" not in text and "difference" not in text


def test_tables_fit_80_columns_with_long_names(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR")
    iou = {f"class {i} with a long name that goes on": 0.123 for i in range(10)}
    rows = [train_row(1), {**VAL, "step": 1, "mIoU": 0.5, "IoU": iou}]
    runs = [write_run(tmp_path / f"voc_resnet101_experiment_{i}", rows) for i in range(5)]
    compare(runs)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("12.30") == 50 and "…" not in text


def test_log_lines_cut_off_or_repeated_by_a_resumed_run(tmp_path):
    rows = [train_row(10, 3.0), train_row(20, 2.0)]
    lines = ['{"kind": "train", "step": 30, "lo' + json.dumps(train_row(30)), json.dumps(train_row(20, 1.0)), "[1]"]
    run = write_run(tmp_path / "run", rows, tail="\n".join(lines))
    assert [(row["step"], row["loss"]) for row in read_log(run)] == [(10, 3.0), (20, 1.0)]


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / side / "run", [train_row(1)]) for side in "ab"]
    data = compare(runs + runs[:1])
    assert data["runs"] == runs and data["IoU"] == {}


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path, capsys):
    compare([write_run(tmp_path / str(i), [train_row(1, loss)]) for i, loss in enumerate((float("nan"), 2.0))])
    text = capsys.readouterr().out
    assert "\x1b[1m2.0000" in text and "nan" in text


def test_a_folder_without_a_log_is_named(tmp_path, runs):
    with pytest.raises(InputError, match=r"nowhere is not a run: cannot read .*log\.jsonl"):
        compare([runs[0], str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match="holds no row"):
        compare([write_run(tmp_path / "empty", [], tail="\n{}\n")])


def test_a_run_that_has_not_logged_yet_is_left_out(tmp_path, runs, capsys):
    started = write_run(tmp_path / "started", [])
    (tmp_path / "started" / "config.json").write_text("{}")
    assert compare([started, *runs])["runs"] == compare(runs)["runs"]
    assert "left out: " in (told := capsys.readouterr().err) and "started/log.jsonl holds no row" in told
    with pytest.raises(InputError, match="holds no row"):
        compare([started])


def test_the_curves_are_drawn(tmp_path, runs):
    picture = tmp_path / "new" / "curves.png"
    compare(runs, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_shown(tmp_path, runs, capsys):
    for name in (".", "curves.txt", "a/curves.png/"):
        with pytest.raises(InputError, match="cannot write|is a folder"):
            (tmp_path / "a" / "curves.png").mkdir(parents=True, exist_ok=True)
            compare(runs, tmp_path / name)
    assert capsys.readouterr().out == ""
