import json
import subprocess
import sys

import pytest
from conftest import ROOT

from emanet.errors import InputError
from emanet.show.tables import Grid, Row, flat, put_out, require_different, side_by_side
from emanet.show.terminal import show

GRID = Grid("Title", ["", "[a]"], [["  x|y", "1"]], ["a note"])
NOWHERE = {"json_file": "", "csv_file": "", "markdown": ""}


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_a_grid_as_markdown():
    assert GRID.markdown() == "Title:\n\n|  | [a] |\n| --- | ---: |\n| `  x/y` | 1 |\n\n- a note\n"


def test_everything_goes_where_it_should(tmp_path, capsys):
    records, rows = [{"a": {"b": 1}}], [{"a.b": 1}]
    put_out([GRID], records, rows, **NOWHERE)
    shown = capsys.readouterr().out
    assert "[a]" in shown and "  x|y" in shown and shown.endswith("a note\n")
    put_out([GRID], records, rows, json_file="-", csv_file=str(tmp_path / "t.csv"), markdown=str(tmp_path / "t.md"))
    assert json.loads(capsys.readouterr().out) == records
    assert (tmp_path / "t.csv").read_text() == "a.b\n1\n" and (tmp_path / "t.md").read_text() == GRID.markdown()
    put_out([GRID, GRID], records, rows, **NOWHERE | {"markdown": "-"})
    assert capsys.readouterr().out == GRID.markdown() + "\n" + GRID.markdown()


def test_one_place_for_two_outputs_is_refused():
    require_different("a", "", "-")
    for files in (("a", "a", ""), ("-", "", "-")):
        with pytest.raises(InputError, match="need different files"):
            require_different(*files)


def test_flat_names_nested_values_with_dots():
    assert flat({"a": 1, "b": {"c": {"d": 2}, "e": 3}}) == {"a": 1, "b.c.d": 2, "b.e": 3}


def test_side_by_side_marks_the_best_and_adds_differences(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    rows = {"more": Row([0.5, None, 0.75], "{:.2f}".format, 1), "less": Row([2.0, float("nan"), 3.0], str, -1)}
    show(side_by_side("", ["a", "b", "c"], rows, differences=True))
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "e" in line}
    assert "\x1b[1m0.75" in lines["more"] and "+25.00" in lines["more"] and " - " in lines["more"]
    assert "\x1b[1m2.0" in lines["less"]


def test_a_reader_that_has_gone_ends_neither_the_command_nor_its_exit_code():
    code = "from emanet.show.terminal import say, show; say('x' * 999_999); show('y'); say('z'); raise SystemExit(3)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 3
