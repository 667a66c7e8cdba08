"""Documentation is executed: every command and every Python block of the README, in its order, in one folder."""

import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, run_cli
from parity import cases
from PIL import Image

from emanet.data.synthetic import draw_scene
from emanet.experiments import experiment_names

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(?:# (\w+\.py)\n)?(.*?)```", README, re.S)
IN_CI = ("make demo", "make test", "pip install")  # .ci/run does these, in environments of their own


def test_every_block_runs(tmp_path):
    Image.fromarray(draw_scene(5, size=(97, 145))[0]).save(tmp_path / "photo.jpg")
    assert run_cli("train", "drawn", "--steps", "8", "--out", "runs/demo", cwd=tmp_path).returncode == 0  # make demo's
    _, shapes, _ = cases.load("original_resnet50_stride8")
    state = {key: torch.from_numpy(value) for key, value in cases.fill(shapes, 50).items()}
    torch.save({"net": state, "step": 30_000}, tmp_path / "original.pth")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    commands = 0
    for language, file, text in BLOCKS:
        if file:
            (tmp_path / file).write_text(text)
            continue
        lines = [text] if language == "python" else [line.split(" # ")[0].strip() for line in text.splitlines()]
        for line in lines:
            if language == "bash" and line.startswith(IN_CI):
                continue
            words = [sys.executable, "-c", line] if language == "python" else _command(line)
            done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            commands += 1
    assert commands >= 15
    for written in (
        "result.json",
        "confusion.png",
        "curves.png",
        "labelled/photo.png",
        "runs/two/best.safetensors",
        "converted/photo.png",
        "attention/photo/iterations.png",
        "attention/classes_pca.png",
    ):
        assert (tmp_path / written).stat().st_size > 0


def _command(line):
    program, *rest = shlex.split(line)
    known = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
    return [*known[program], *rest]


def test_what_is_not_run_here_is_run_by_ci():
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in script and "make demo" in script and "pip install" in script


@pytest.mark.parametrize(
    "path", ["README.md", "emanet/ops/README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / path).read_text()):
        assert ((ROOT / path).parent / target).exists(), target


def test_the_reading_order_names_every_file():
    listed = set(re.findall(r"\]\(\.\./(emanet/[^)]+\.py)\)", (ROOT / "docs" / "reading.md").read_text()))
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "emanet").rglob("*.py") if path.stat().st_size}
    assert listed == files


def test_the_spine_can_be_read_in_an_hour():
    spine = re.findall(r"^\d+\. \[(emanet/[^]]+)\]", (ROOT / "docs" / "reading.md").read_text(), re.M)
    assert len(spine) >= 12 and sum(len((ROOT / name).read_text().splitlines()) for name in spine) <= 1800


def test_no_figure_is_missing():
    assert "_MIOU" not in README and "DEMO" not in (ROOT / "docs" / "LOG.md").read_text()


def test_every_experiment_is_named():
    recipes = (ROOT / "docs" / "recipes.md").read_text()
    assert all(f"`{name}`" in recipes for name in experiment_names())
