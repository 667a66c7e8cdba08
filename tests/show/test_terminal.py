import io
import os
import sys

import pytest

from emanet.errors import InputError
from emanet.show.tables import Grid
from emanet.show.terminal import bar, note, say, show, track


def test_results_go_to_stdout_and_notes_to_stderr_as_they_are(capsys):
    say("[bold]a", "b" * 200)
    note("skipped: [red]x.png")
    assert capsys.readouterr() == ("[bold]a\n" + "b" * 200 + "\n", "skipped: [red]x.png\n")


def test_off_a_terminal_there_is_no_bar(capsys):
    assert list(track([1, 2], "work")) == [1, 2] and list(track(iter("ab"), "work", 2)) == ["a", "b"]
    with bar("work") as advance:
        advance(1, 5)
    assert capsys.readouterr() == ("", "")


def test_what_the_encoding_of_the_output_lacks_is_written_out(monkeypatch):
    for encoding, shown in (("ascii", r"\u5929 r\udce9"), ("utf-8", "\u5929 r\\udce9")):
        content = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding))
        say("\u5929 r\udce9")
        show("\u5929 r\udce9")
        assert content.getvalue().decode(encoding) == f"{shown}\n{shown}\n"


def test_a_note_is_one_line_whatever_the_name_of_the_file(capsys):
    note("skipped: a\nb\x1b[31m\udce9.jpg")
    assert capsys.readouterr().err == "skipped: a\\nb\\x1b[31m\N{REPLACEMENT CHARACTER}.jpg\n"


def test_a_bar_takes_every_label(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    with bar("predict [/red] {x}.tif", 2) as advance:
        advance(1)
    assert "predict [/red] {x}.tif" in shown.getvalue()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_an_output_that_cannot_be_written_is_an_error(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(InputError, match="cannot write to standard output: No space left"):
            say("a result")


def test_a_narrow_terminal_keeps_the_names_in_tables(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    show(Grid("", ["class", "IoU", "accuracy", "share of pixels"], [["a road", "60.94", "100.00", "31.56"]]))
    shown = capsys.readouterr().out
    assert "a road" in shown and "60.94" in shown and "100.00" in shown and "31.56" in shown


def test_a_name_in_a_table_is_one_line_without_control_codes(capsys):
    show(Grid("", ["class", "IoU"], [["a\nb\x1b[31m[/]", "60.94"]]))
    assert "a\\nb\\x1b[31m[/]" in capsys.readouterr().out
