"""The Triton kernels: run by Triton's interpreter on the CPU, and the same tests on a GPU where there is one.

The interpreter is chosen when triton is imported, for a whole process. So the tests of this file run in a process of
their own with TRITON_INTERPRET=1, which `test_in_the_interpreter` starts; there, and on CUDA, they are not skipped.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emanet.emau import EMAU
from emanet.errors import InputError
from emanet.ops.em_attention import em_attention, em_attention_plain, unit_columns

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def on_device(test):
    """Runs in the interpreter and on CUDA; skipped where there is neither."""
    reason = "needs CUDA or the interpreter"
    return pytest.mark.gpu(pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason=reason)(test))


def poisoned(test):
    """On device, and memory that nobody has written to is NaN."""
    return on_device(pytest.mark.usefixtures("poison")(test))


# Largest difference from float64, in parts of the largest value. The input is the same in float64, so of y it is the
# rounding of y itself. The interpreter cuts bfloat16 off where a GPU rounds: twice the error, also of bases kept in
# two such values. With fewer pixels than bases, bases of few pixels have 5e-5 in plain float32 too.
TOLERANCES = {
    torch.float16: {"y": 1e-3, "mu": 1e-4},
    torch.bfloat16: {"y": 2**-7 if INTERPRETED else 2**-8, "mu": 4e-4 if INTERPRETED else 2e-4},
}
SIZES = [(2, 16, 1, 5), (2, 48, 7, 1), (1, 16, 33 * 47, 5), (1, 512, 40, 64), (1, 16, 37, 100), (2, 200, 150, 20)]


@pytest.mark.early
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(Path(__file__))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.fixture
def poison(monkeypatch):
    """New memory is NaN."""

    def fill(make, *args, **kwargs):
        made = make(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() and made.device.type != "meta" else made

    monkeypatch.setattr(torch, "empty", functools.partial(fill, torch.empty))
    monkeypatch.setattr(torch, "empty_like", functools.partial(fill, torch.empty_like))
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: fill(new_empty, self, *a, **k))


def drawn(b, c, n, k, dtype=torch.float16, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, mu = torch.randn(b, c, n, generator=g), unit_columns(torch.randn(1, c, k, generator=g))
    return x.to(DEVICE, dtype), mu.to(DEVICE)


def differs(found, exact):
    assert found.shape == exact.shape and found.isfinite().all()
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


@poisoned
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values(size, dtype):
    x, mu = drawn(*size, dtype)
    y, bases = em_attention(x, mu, backend="triton")
    want_y, want_bases = em_attention_plain(x.double(), mu.double())
    assert y.dtype == dtype and bases.dtype == torch.float32
    assert differs(y, want_y) < TOLERANCES[dtype]["y"] and differs(bases, want_bases) < TOLERANCES[dtype]["mu"]


@poisoned
@pytest.mark.parametrize("steps", [1, 2])
def test_fewer_steps(steps):
    x, mu = drawn(2, 16, 30, 5)
    y, bases = em_attention(x, mu, steps, backend="triton")
    want_y, want_bases = em_attention_plain(x.double(), mu.double(), steps)
    assert differs(y, want_y) < 1e-3 and differs(bases, want_bases) < 1e-4


@poisoned
@pytest.mark.parametrize("layout", ["channels_last", "every other pixel", "reversed order of dimensions"])
def test_any_strides(layout):
    x, mu = drawn(2, 32, 6 * 7, 5)
    if layout == "channels_last":
        other = x.unflatten(2, (6, 7)).contiguous(memory_format=torch.channels_last).flatten(2)
    elif layout == "every other pixel":
        other = torch.stack([x, x + 1], 3).flatten(2)[:, :, ::2]
    else:
        other = x.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert other.stride() != x.stride()
    y, bases = em_attention(x, mu, backend="triton")
    found, found_bases = em_attention(other, mu, backend="triton")
    assert torch.equal(found, y) and torch.equal(found_bases, bases)
    if layout == "channels_last":
        assert found.unflatten(2, (6, 7)).is_contiguous(memory_format=torch.channels_last)


@on_device
def test_offsets_of_more_than_31_bits():
    """The third image begins 2.4e9 values behind the first; of what lies between them no page is ever touched."""
    x, mu = drawn(3, 16, 9, 5, torch.float16)
    try:
        far = torch.empty(2_400_000_000 + 16 * 9, dtype=x.dtype, device=DEVICE)
    except RuntimeError:
        pytest.skip("there are no 5 GB of addresses")
    far = far.as_strided(x.shape, (1_200_000_000, 9, 1))
    far.copy_(x)
    for found, want in zip(*(em_attention(pixels, mu, backend="triton") for pixels in (far, x)), strict=True):
        assert torch.equal(found, want)


@poisoned
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -1e4])
def test_constant_and_huge_input(value, dtype):
    x, mu = drawn(1, 32, 40, 5, dtype)
    for filled in (torch.full_like(x, value), x * value):
        y, bases = em_attention(filled, mu, backend="triton")
        assert y.isfinite().all() and bases.isfinite().all()
        want_y, want_bases = em_attention_plain(filled, mu)
        torch.testing.assert_close(bases, want_bases, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(y, want_y, rtol=2e-2 if dtype == torch.bfloat16 else 2e-3, atol=1e-4)


@poisoned
def test_the_same_bits_twice():
    (y, bases), again = (em_attention(*drawn(2, 16, 33 * 3, 20), backend="triton") for _ in range(2))
    assert torch.equal(y, again[0]) and torch.equal(bases, again[1])


@poisoned
def test_bases_of_their_own_for_every_image():
    x, mu = drawn(2, 16, 30, 5)
    own = torch.cat([mu, mu.flip(2)])
    y, _ = em_attention(x, own, backend="triton")
    for image in range(2):
        alone, _ = em_attention(x[image : image + 1], own[image : image + 1], backend="triton")
        assert torch.equal(y[image : image + 1], alone)


@poisoned
def test_autocast_does_not_reach_inside():
    x, mu = drawn(1, 32, 40, 5)
    with torch.autocast(DEVICE, torch.bfloat16):
        y, bases = em_attention(x, mu, backend="triton")
    want_y, want_bases = em_attention(x, mu, backend="triton")
    assert torch.equal(y, want_y) and torch.equal(bases, want_bases)


@on_device
def test_the_operator_keeps_torchs_rules():
    from emanet.ops.em_attention_triton import em_forward

    x, mu = drawn(1, 16, 9, 5)
    torch.library.opcheck(em_forward, (x, mu.mT.clone(), 2, 1e-6))


@on_device
def test_the_unit_compiles_with_the_kernels(monkeypatch):
    unit, x = unit_with_kernels(monkeypatch)
    with torch.autocast(DEVICE, torch.bfloat16):
        want = unit(x)
        found = torch.compile(unit, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, want)


@on_device
def test_the_unit_is_exported_with_the_kernels(monkeypatch):
    unit, x = unit_with_kernels(monkeypatch)
    sides = {2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        program = torch.export.export(unit, (x,), dynamic_shapes=(sides,))
        assert any("em_forward" in str(node.target) for node in program.graph.nodes)
        x = torch.randn(1, 16, 4, 9, device=DEVICE)
        torch.testing.assert_close(program.module()(x), unit(x))


def unit_with_kernels(monkeypatch):
    """A unit that takes them also on the CPU, where the interpreter runs them; an image."""
    import emanet.emau as module

    monkeypatch.setattr(module, "em_attention", lambda *a, **k: em_attention(*a, **k | {"backend": "triton"}))
    torch.manual_seed(0)
    return EMAU(16, 5).eval().to(DEVICE), torch.randn(1, 16, 5, 6, device=DEVICE)


def test_meta_tensors_have_the_shapes():
    x, mu = torch.empty(2, 16, 12, device="meta", dtype=torch.bfloat16), torch.empty(1, 16, 5, device="meta")
    y, bases = em_attention(x.requires_grad_(), mu, backend="triton")
    assert (y.shape, y.dtype, bases.shape, bases.dtype) == (x.shape, x.dtype, (2, 16, 5), torch.float32)
    assert not y.requires_grad


def test_what_it_cannot_take_is_said():
    x, mu = torch.empty(2, 16, 12, device="meta", dtype=torch.bfloat16), torch.empty(1, 16, 5, device="meta")
    with pytest.raises(InputError, match=r"float16 and bfloat16, not torch\.float32"):
        em_attention(x.float(), mu, backend="triton")
    with pytest.raises(InputError, match="128 bases"):
        em_attention(x, torch.empty(1, 16, 300, device="meta"), backend="triton")
    with pytest.raises(InputError, match="empty"):
        em_attention(x[:, :, :0], mu, backend="triton")
    with pytest.raises(InputError, match="no gradient, and gradient is 'last'"):
        em_attention(x, mu, gradient="last", backend="triton")
    if not INTERPRETED:
        with pytest.raises(InputError, match="it runs on CUDA, and the input is on cpu"):
            em_attention(torch.zeros(2, 16, 12, dtype=torch.float16), torch.zeros(1, 16, 5), backend="triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_auto_takes_the_kernels_where_they_have_been_measured(dtype):
    x, mu = drawn(2, 64, 30 * 40, 16, dtype)
    kernels, plain = (em_attention(x, mu, backend=backend)[1] for backend in ("triton", "plain"))
    assert not torch.equal(kernels, plain)
    wanted = kernels if torch.cuda.get_device_capability() == (9, 0) else plain
    assert torch.equal(em_attention(x, mu)[1], wanted)
    assert torch.equal(em_attention(x, mu, gradient="last")[1], plain)
    assert torch.equal(em_attention(x.float(), mu)[1], em_attention_plain(x.float(), mu)[1])


@pytest.mark.skipif(INTERPRETED, reason="compiles, which the interpreter does not")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("bases", [64, *(pytest.param(k, marks=pytest.mark.slow) for k in (5, 128))])
def test_the_kernels_compile_for_gpus_that_are_not_here(bases, capability, monkeypatch):
    """With the arguments that they are called with; for an A100 and an H100, within the shared memory of the former."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from emanet.ops import em_attention_triton as ours

    compiled = []

    class Compile:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            assert all(1 <= size < 2**31 for size in grid)
            return self.compile

        def compile(self, *values, num_warps=4, num_stages=3, **constants):
            types = dict.fromkeys(constants, "constexpr")
            for name, value in zip(self.kernel.arg_names, values, strict=False):
                if name == "x_C" or name == "y_C":  # what strides of 1 are compiled to
                    types[name], constants[name] = "constexpr", value
                elif isinstance(value, torch.Tensor):
                    types[name] = "*bf16" if value.dtype == torch.bfloat16 else "*fp32"
                else:
                    types[name] = "fp32" if isinstance(value, float) else "i32"
            source = ASTSource(self.kernel, types, constants)
            options = {"num_warps": num_warps, "num_stages": num_stages}
            done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            assert done.metadata.shared <= 163 * 1024, self.kernel.__name__
            compiled.append(self.kernel.__name__)

    for name in ("responsibilities_kernel", "sums_kernel", "new_bases_kernel", "rebuild_kernel"):
        monkeypatch.setattr(ours, name, Compile(getattr(ours, name)))
    x = torch.zeros(1, 40, 30, 512, dtype=torch.bfloat16).permute(0, 3, 1, 2).flatten(2)  # channels_last
    ours.launch(x, torch.zeros(1, bases, 512), 1, 1e-6)
    assert len(compiled) == 4
