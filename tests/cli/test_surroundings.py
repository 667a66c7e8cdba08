"""The commands where a system lacks something: a home, a folder, open streams, room in the terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_cli, sentence

import emanet.cli
from emanet.cli import main


def command(*arguments: str, shell: str = "", cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """`python -m emanet ARGUMENTS` in a process of its own, with redirections of the shell after it."""
    variables = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **environment}
    run = f'"$0" -m emanet "$@" {shell}'
    return subprocess.run(
        ["bash", "-c", run, sys.executable, *arguments], cwd=cwd, env=variables, capture_output=True, text=True
    )


def test_a_home_is_meant_by_a_tilde_wherever_it_stands(monkeypatch, tmp_path):
    got = []
    monkeypatch.setattr(emanet.cli, "_dispatch", got.extend)
    monkeypatch.setenv("HOME", str(tmp_path))
    main(["predict", "~/m", "--out=~/o", "--steps=3", "a~", "~nobody-of-this-name/x", "--", "~"])
    home = str(tmp_path)
    assert got == ["predict", f"{home}/m", f"--out={home}/o", "--steps=3", "a~", "~nobody-of-this-name/x", "--", home]


@pytest.mark.parametrize("shell", [">&-", "<&-", ">&- 2>&-"])
def test_closed_streams_are_no_fault_of_ours(shell):
    done = command("config", "show", "drawn", shell=shell)
    assert done.returncode == 0 and done.stderr == ""


def test_a_terminal_without_unicode_gets_names_written_out(tmp_path):
    folder = tmp_path / "r\udce9"
    done = command("config", "show", str(folder), PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.isascii()


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a folder in use cannot be deleted")
def test_a_folder_that_was_deleted_is_named(tmp_path):
    (tmp_path / "gone").mkdir()
    script = 'import os, sys; os.rmdir(os.getcwd()); from emanet.cli import main; main(["config", "show", "drawn"])'
    variables = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "gone", env=variables, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr == (
        "error: the folder you are in has been deleted; change to another one\n"
    )


def test_a_name_with_control_codes_stays_on_one_line():
    said = sentence(run_cli("config", "show", "a\nb\x1b[31m"))
    assert "a\\nb\\x1b[31m" in said.replace("\\\\", "\\")
