import os

import pytest
import torch
from safetensors.torch import load_file

from emanet import train as training
from emanet.errors import InputError
from emanet.experiments import override
from emanet.ops.upsample import _narrowed_by_product
from emanet.run.checkpoints import checkpoints
from emanet.run.deterministic import WORKSPACE, fix_workspace, same_bits


@pytest.fixture
def tiny(tiny, scenes):
    return override(tiny, {"data.dataset": str(scenes), "steps": 3, "model.head.dropout": 0.3, "deterministic": True})


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv(WORKSPACE, "")


def weights(folder):
    return load_file(checkpoints(folder)[-1] / "model.safetensors")


def same(a, b):
    return [name for name in a if not torch.equal(a[name], b[name])] == []


def test_on_a_cpu_it_gives_what_a_run_without_it_gives_and_says_so(tiny, tmp_path, capsys):
    on_cpu = override(tiny, {"device": "cpu"})
    training.train(on_cpu, tmp_path / "run")
    assert "note: deterministic changes little on the CPU, where runs with" in capsys.readouterr().out
    training.train(override(on_cpu, {"deterministic": False}), tmp_path / "other")
    assert "deterministic" not in capsys.readouterr().out
    assert same(weights(tmp_path / "run"), weights(tmp_path / "other"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_that_cannot_be_is_named(tiny, tmp_path, monkeypatch):
    """The words are torch's own."""
    forward = training.StepNet.forward

    def odd(self, *batch):
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        torch.empty(4).put_(torch.tensor([0]), torch.ones(1))
        return forward(self, *batch)

    monkeypatch.setattr(training.StepNet, "forward", odd)
    said = "^deterministic: torch's put_ does not give the same bits every time on cpu; use --no-deterministic, or"
    with pytest.raises(InputError, match=said):
        training.train(override(tiny, {"device": "cpu"}), tmp_path / "run")
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


def test_other_errors_stay_and_the_flags_are_put_back(tiny):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(RuntimeError, match="another"), same_bits(tiny, torch.device("cpu")):
            raise RuntimeError("another")
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_cublas_is_told_before_cuda_starts(tiny, monkeypatch):
    fix_workspace(override(tiny, {"deterministic": False}))
    assert not os.environ[WORKSPACE]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(InputError, match="^deterministic: set the environment variable CUBLAS_WORKSPACE_CONFIG to "):
        fix_workspace(tiny)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    fix_workspace(tiny)
    assert os.environ[WORKSPACE] == ":4096:8"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setenv(WORKSPACE, ":16:8")
    fix_workspace(tiny)
    assert os.environ[WORKSPACE] == ":16:8", "the user's"


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("side", "width"), [(5, 33), (9, 9), (1, 8), (7, 20)])
def test_the_adjoint_by_a_product_is_torchs(align_corners, side, width):
    wide = torch.randn(2, 3, 4, width, dtype=torch.float64)
    sizes = [4, width], [2, 3, 4, side]
    wanted = torch.ops.aten.upsample_bilinear2d_backward(wide, *sizes, align_corners, None, None)
    torch.testing.assert_close(_narrowed_by_product(wide, side, align_corners), wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_two_runs_on_a_gpu_are_equal_to_the_bit(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":4096:8")  # other tests may have started CUDA
    config = override(tiny, {"device": "cuda", "steps": 20, "model.aux_head": True, "precision": "bf16"})
    for name in ("one", "two"):
        training.train(config, tmp_path / name)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
