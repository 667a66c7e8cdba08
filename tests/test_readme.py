"""Documentation is executed: every command and every Python block of the README is a test, in its order, in one folder.

python -m pytest tests/test_readme.py --write-docs    # writes the table of files in docs/reading.md
"""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import ROOT, run_cli
from parity import cases
from PIL import Image

from emanet.data.synthetic import draw_scene
from emanet.experiments import experiment_names

README = (ROOT / "README.md").read_text("utf-8")
READING = ROOT / "docs" / "reading.md"
IN_CI = ("make demo", "make test", "pip install")  # .ci/run does these, in environments of their own
WRITTEN = ("--out", "--json", "--picture", "--html", "--csv", "--markdown")  # options that name what a command writes
PAGES = ["README.md", "emanet/ops/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
LINES_AN_HOUR = 1800  # of code with its docstrings, read for the first time


class Step(NamedTuple):
    """A command, a Python block, or a Python block to save under a name."""

    line: int
    language: str
    file: str
    text: str


def steps() -> list[Step]:
    found = []
    for block in re.finditer(r"^```(bash|python)\n(?:# (\w+\.py)\n)?(.*?)^```", README, re.S | re.M):
        language, file, text = block.groups()
        line = README.count("\n", 0, block.start(3)) + 1
        if language == "python":
            found.append(Step(line, language, file or "", text))
            continue
        for number, command in enumerate(text.splitlines(), line):
            command = command.split(" # ")[0].strip()
            if command and not command.startswith(IN_CI):
                found.append(Step(number, language, "", command))
    return found


STEPS = steps()


class Session:
    """The folder in which the README is followed, and how far it has been."""

    def __init__(self, folder: Path):
        self.folder, self.done = folder, 0

    def follow(self, number: int) -> None:
        """Take the steps up to this one that have not been taken; a failed one is not repeated."""
        while self.done <= number:
            self.done += 1
            self.take(STEPS[self.done - 1])

    def take(self, step: Step) -> None:
        if step.file:
            (self.folder / step.file).write_text(step.text)
        elif step.language == "python":
            before = os.getcwd()
            os.chdir(self.folder)
            try:
                exec(compile(step.text, f"README.md, line {step.line}", "exec"), {})
            finally:
                os.chdir(before)
        else:
            self.run(shlex.split(re.sub(r"--steps \d+", "--steps 4", step.text)))

    def run(self, words: list[str]) -> None:
        if words[:3] == ["python", "-m", "emanet"]:
            done = run_cli(*words[3:], cwd=self.folder)  # in this process, which has torch loaded already
        else:
            assert words[0] == "torchrun", words
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
            )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        for option, value in zip(words, words[1:], strict=False):
            if option in WRITTEN:
                written = self.folder / value
                assert any(written.iterdir()) if written.is_dir() else written.stat().st_size, f"{option} {value}"


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    """A photo, a checkpoint of the original's, and a run of eight steps in the place of `make demo`'s."""
    folder = tmp_path_factory.mktemp("readme")
    Image.fromarray(draw_scene(5, size=(97, 145))[0]).save(folder / "photo.jpg")
    assert run_cli("train", "drawn", "--steps", "8", "--out", "runs/demo", cwd=folder).returncode == 0
    _, shapes, _ = cases.load("original_resnet50_stride8")
    state = {key: torch.from_numpy(value) for key, value in cases.fill(shapes, 50).items()}
    torch.save({"net": state, "step": 30_000}, folder / "original.pth")
    return Session(folder)


@pytest.mark.xdist_group("readme")
@pytest.mark.parametrize("number", range(len(STEPS)), ids=[f"{step.line}: {step.text[:70]}" for step in STEPS])
def test_the_readme_can_be_followed(number, session):
    session.follow(number)


def test_the_readme_has_commands():
    assert len([step for step in STEPS if step.language == "bash"]) >= 15 and any(step.file for step in STEPS)


def test_what_is_not_run_here_is_run_by_ci():
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in script and "make demo" in script and "pip install" in script


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / path).read_text("utf-8")):
        assert ((ROOT / path).parent / target).exists(), target


def test_the_spine_can_be_read_in_an_hour():
    """All files that the numbered steps link, however many a step has."""
    numbered = re.findall(r"^\d+\. .*?(?=^\d+\. |^$|^#)", READING.read_text("utf-8"), re.S | re.M)
    files = [name for step in numbered for name in re.findall(r"\]\(\.\./(emanet/[^)]+\.py)\)", step)]
    lines = {name: len((ROOT / name).read_text("utf-8").splitlines()) for name in files}
    assert len(numbered) >= 5 and len(lines) >= 12
    assert sum(lines.values()) <= LINES_AN_HOUR, f"{sum(lines.values())} lines: {lines}"


def test_the_table_of_files(request):
    """docs/reading.md names every file with the first sentence of its docstring, and about how long it is."""
    files = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "emanet").rglob("*.py"))}
    rows = {name: (len(path.read_text("utf-8").splitlines()), purpose(path)) for name, path in files.items()}
    rows = {name: row for name, row in rows.items() if row[0]}
    text = READING.read_text("utf-8")
    start, end = "<!-- files -->\n", "<!-- /files -->"
    before, rest = text.split(start)
    written, after = rest.split(end)
    if request.config.getoption("--write-docs"):
        lines = [f"| [{name.removeprefix('emanet/')}](../{name}) | {n} | {what} |" for name, (n, what) in rows.items()]
        table = "\n".join(["| file | lines | what it is |", "| --- | ---: | --- |", *lines, ""])
        READING.write_text(before + start + table + end + after, "utf-8")
        return
    found = re.findall(r"^\| \[.*?\]\(\.\./(\S+)\) \| (\d+) \| (.*) \|$", written, re.M)
    hint = "python -m pytest tests/test_readme.py --write-docs"
    assert {name: what for name, _, what in found} == {name: what for name, (_, what) in rows.items()}, hint
    for name, lines, _ in found:  # about: not every edit needs a new table
        assert abs(int(lines) - rows[name][0]) <= max(20, rows[name][0] // 4), f"{name}: {hint}"


def purpose(path: Path) -> str:
    """The first sentence of a module's docstring, as a cell of a table."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    if not docstring and path.stat().st_size:
        raise AssertionError(f"{path} does not begin with a docstring")
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s+(?=[A-Z`])", paragraph)[0].rstrip(".:").replace("|", "\\|").replace("_", "\\_")


def test_no_figure_is_missing():
    assert "_MIOU" not in README and "DEMO" not in (ROOT / "docs" / "LOG.md").read_text("utf-8")


def test_every_experiment_is_named():
    recipes = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    assert all(f"`{name}`" in recipes for name in experiment_names())
