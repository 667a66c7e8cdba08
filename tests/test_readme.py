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

README = ROOT / "README.md"
OWN_DATA = ROOT / "docs" / "your-own-data.md"
READING = ROOT / "docs" / "reading.md"
IN_CI = ("make demo", "make test", "pip install")  # .ci/run does these, in environments of their own
WRITTEN = ("--out", "--json", "--picture", "--html", "--csv", "--markdown")  # options that name what a command writes
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "emanet/ops/README.md", *DOCS]
LINES_AN_HOUR = 1850  # of code with its docstrings, read for the first time


class Step(NamedTuple):
    """A command, a Python block, or a Python block to save under a name."""

    line: int
    language: str
    file: str
    text: str


def steps(page: Path) -> list[Step]:
    found, whole = [], page.read_text("utf-8")
    for block in re.finditer(r"^```(bash|python)\n(?:# (\w+\.py)\n)?(.*?)^```", whole, re.S | re.M):
        language, file, text = block.groups()
        line = whole.count("\n", 0, block.start(3)) + 1
        if language == "python":
            found.append(Step(line, language, file or "", text))
            continue
        for number, command in enumerate(text.splitlines(), line):
            command = command.split(" # ")[0].strip()
            if command and not command.startswith(IN_CI):
                found.append(Step(number, language, "", command))
    return found


STEPS = {page: steps(page) for page in (README, OWN_DATA)}
# A run of seconds instead of minutes.
SHORT = {
    r"--steps \d+": "--steps 4 --batch-size 4",
    r"^torchrun .* drawn": r"\g<0> --data.dataset scenes",  # which has 10 images to score, not 200
    r"--hours \S+": "--hours 0.02 --steps 4 --optim.warmup-steps 0 --val-every 0",
    "--train 60": "--train 12",
}


class Session:
    """The folder in which a page is followed, and how far it has been."""

    def __init__(self, page: Path, folder: Path):
        self.page, self.folder, self.done = page, folder, 0

    def follow(self, number: int) -> None:
        """Take the steps up to this one that have not been taken; a failed one is not repeated."""
        while self.done <= number:
            self.done += 1
            self.take(STEPS[self.page][self.done - 1])

    def take(self, step: Step) -> None:
        if step.file:
            (self.folder / step.file).write_text(step.text)
        elif step.language == "python":
            before = os.getcwd()
            os.chdir(self.folder)
            try:
                exec(compile(step.text, f"{self.page.name}, line {step.line}", "exec"), {})
            finally:
                os.chdir(before)
        else:
            text = step.text
            for pattern, shorter in SHORT.items():
                text = re.sub(pattern, shorter, text)
            self.run(shlex.split(text))

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
    return Session(README, folder)


@pytest.fixture(scope="module")
def own_data(tmp_path_factory) -> Session:
    return Session(OWN_DATA, tmp_path_factory.mktemp("own-data"))


def each_step(page: Path) -> pytest.MarkDecorator:
    """A test for each command and block of a page, which tests in several processes do not tear apart."""
    names = [f"{step.line}: {step.text[:70]}" for step in STEPS[page]]
    return pytest.mark.parametrize("number", range(len(names)), ids=names)


@pytest.mark.xdist_group("readme")
@each_step(README)
def test_the_readme_can_be_followed(number, session):
    session.follow(number)


@pytest.mark.xdist_group("own-data")
@each_step(OWN_DATA)
def test_the_page_on_own_data_can_be_followed(number, own_data):
    """From images and labelme's files to overlays of a trained model."""
    own_data.follow(number)
    if number == len(STEPS[OWN_DATA]) - 1:
        assert len(list((own_data.folder / "labelled").glob("*_overlay.jpg"))) == 12
        assert (own_data.folder / "runs" / "mine" / "plan.py").is_file()


@pytest.mark.xdist_group("group")
def test_groups_are_not_torn_apart(request):
    """pytest 9.2.0 and xdist 3.8.0 together forget them without a word: everything above runs in every process then."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("needs -n and --dist loadgroup")
    assert request.node.nodeid.endswith("@group"), "install the versions of constraints.txt"


def test_the_readme_has_commands():
    assert len([step for step in STEPS[README] if step.language == "bash"]) >= 15
    assert any(step.file for step in STEPS[README]) and len(STEPS[OWN_DATA]) >= 6


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
    assert "_MIOU" not in README.read_text("utf-8") and "DEMO" not in (ROOT / "docs" / "LOG.md").read_text("utf-8")


def test_every_experiment_is_named():
    recipes = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    assert all(f"`{name}`" in recipes for name in experiment_names())
