"""What a command does not import: it would take longer than torch."""

import gc
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from emanet.cli.imports import importing

HEAVY = (
    "torch._dynamo torch._inductor sympy torchvision triton scipy pandas openvino timm.models.resnet matplotlib IPython"
).split()
PROGRAM = """
import sys
from emanet.cli import main
main(sys.argv[2:])
heavy = [name for name in sys.argv[1].split() if name in sys.modules]
assert not heavy, heavy
assert "torch" in sys.modules and "timm.models.efficientnet" in sys.modules
"""


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)).save(path)
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(masks / "a.png")
    return path


@pytest.mark.parametrize("command", ["predict", "evaluate", "explain"])
def test_a_first_result_needs_no_compiler_and_no_other_architecture(command, photo, tmp_path):
    out = str(tmp_path / "out")
    arguments = {
        "predict": ["predict", "street", str(photo), "--out", out],
        "evaluate": ["evaluate", "street", "--images", str(photo.parent), "--masks", str(tmp_path / "masks")],
        "explain": ["explain", "street", str(photo), "--out", out],
    }[command]
    command_line = [sys.executable, "-c", PROGRAM, " ".join(HEAVY), *arguments, "--device", "cpu"]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "leak" not in done.stderr  # of what the garbage collector passes over at the end


def test_importing_leaves_a_process_with_torch_alone():
    frozen = gc.get_freeze_count()
    with importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


def test_importing_collects_again_afterwards(monkeypatch):
    for name in ("torch", "triton"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        with pytest.raises(ImportError), importing():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() and gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
