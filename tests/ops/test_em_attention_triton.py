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


# Largest difference from float64, in parts of the largest value: of the output and the bases, and of gradients. Half
# precision input is the same in float64, so only the rounding of y and of the gradient of x is its own.
# The interpreter cuts bfloat16 off where a GPU rounds: twice the error.
# With 512 channels and fewer pixels than bases, bases of few pixels have 5e-5 in plain float32 too.
TOLERANCES = {
    torch.float32: {"y": 4e-6, "mu": 1e-4, "grad": 1e-4},
    torch.float16: {"y": 1e-3, "mu": 1e-4, "grad": 2e-3},
    torch.bfloat16: {"y": 2**-7 if INTERPRETED else 2**-8, "mu": 1e-4, "grad": 1e-2},
}
SIZES = [(2, 16, 1, 5), (2, 48, 7, 1), (1, 16, 33 * 47, 5), (1, 512, 40, 64), (1, 16, 37, 200)]
CASES = [(size, torch.float32) for size in SIZES] + [(SIZES[i], t) for i in (1, 3) for t in list(TOLERANCES)[1:]]


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


def drawn(b, c, n, k, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, mu = torch.randn(b, c, n, generator=g), unit_columns(torch.randn(1, c, k, generator=g))
    return x.to(DEVICE, dtype), mu.to(DEVICE)


def differs(found, exact, scale=None):
    scale = exact.abs().max() if scale is None else scale
    assert found.shape == exact.shape and found.isfinite().all()
    return ((found.double() - exact).abs().max() / scale).item()


@poisoned
@pytest.mark.parametrize(("size", "dtype"), CASES, ids=str)
def test_values(size, dtype):
    x, mu = drawn(*size, dtype)
    y, bases = em_attention(x, mu, backend="triton")
    want_y, want_bases = em_attention_plain(x.double(), mu.double())
    assert y.dtype == dtype and bases.dtype == torch.float32
    assert differs(y, want_y) < TOLERANCES[dtype]["y"] and differs(bases, want_bases) < TOLERANCES[dtype]["mu"]


@poisoned
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gradient", ["last", "unrolled"])
def test_gradients(size, gradient):
    check_gradients(size, gradient, torch.float32)


@poisoned
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gradient", ["last", "unrolled"])
def test_gradients_of_half_precision(dtype, gradient):
    check_gradients((1, 48, 90, 5), gradient, dtype)


def check_gradients(size, gradient, dtype):
    """With regard to x and to the first bases, from y and from the last bases."""
    x, mu = drawn(*size, dtype)
    g = torch.Generator().manual_seed(1)
    g_y, g_mu = torch.randn(size[:3], generator=g).to(DEVICE), torch.randn(*size[:2], size[3], generator=g).to(DEVICE)
    g_y = g_y.to(dtype)
    grads = []
    for run, kind in ((functools.partial(em_attention, backend="triton"), dtype), (em_attention_plain, torch.float64)):
        pixels = x.to(kind, copy=True).requires_grad_()
        start = mu.to(torch.promote_types(kind, torch.float32), copy=True).requires_grad_()
        y, bases = run(pixels, start, gradient=gradient)
        torch.autograd.backward([y, bases], [g_y.to(y.dtype), g_mu.to(bases.dtype)])
        assert (start.grad is None) == (gradient == "last") and pixels.grad.dtype == kind
        grads.append([grad for grad in (pixels.grad, start.grad) if grad is not None])
    # One pixel is every base's mean, and one base takes every pixel, whatever the bases were: the gradient of those is
    # rounding, and is measured by that of x.
    scale = grads[1][0].abs().max() if min(size[2], size[3]) == 1 else None
    for found, exact in zip(*grads, strict=True):
        assert differs(found, exact, scale) < TOLERANCES[dtype]["grad"]


@poisoned
@pytest.mark.parametrize("steps", [1, 2])
def test_fewer_steps(steps):
    x, mu = drawn(2, 16, 30, 5)
    x.requires_grad_()
    for gradient in ("last", "unrolled"):
        y, exact = em_attention(x, mu, steps, gradient=gradient, backend="triton")[0], x.detach().double()
        want = em_attention_plain(exact.requires_grad_(), mu.double(), steps, gradient=gradient)[0]
        assert differs(y, want) < 4e-6
        (grad,), (want_grad,) = torch.autograd.grad(y.sum(), x), torch.autograd.grad(want.sum(), exact)
        assert differs(grad, want_grad) < 5e-5


@poisoned
def test_gradient_from_the_bases_alone():
    x, mu = drawn(1, 16, 30, 5)
    exact = x.double().requires_grad_()
    em_attention(x.requires_grad_(), mu, gradient="last", backend="triton")[1].sum().backward()
    em_attention_plain(exact, mu.double(), gradient="last")[1].sum().backward()
    assert differs(x.grad, exact.grad) < 1e-4


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
    other = other.detach().requires_grad_()
    found, found_bases = em_attention(other, mu, gradient="last", backend="triton")
    torch.testing.assert_close(found, y, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found_bases, bases, rtol=1e-6, atol=1e-6)
    if layout == "channels_last":
        assert found.unflatten(2, (6, 7)).is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(found.sum(), other)
    exact = x.double().requires_grad_()
    em_attention_plain(exact, mu.double(), gradient="last")[0].sum().backward()
    assert differs(grad, exact.grad) < 5e-5


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
    g = torch.ones_like(x)
    for found, want in zip(*(both(pixels, mu, g) for pixels in (far, x)), strict=True):
        assert torch.equal(found, want)


def both(x, mu, g_y):
    """y and the gradient."""
    x = x.detach().requires_grad_()
    y, _ = em_attention(x, mu, gradient="unrolled", backend="triton")
    return y, *torch.autograd.grad(y, x, g_y)


@poisoned
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -1e4])
def test_constant_and_huge_input(value, dtype):
    x, mu = drawn(1, 32, 40, 5, dtype)
    for filled in (torch.full_like(x, value), x * value):
        y, bases = em_attention(filled.requires_grad_(), mu, gradient="last", backend="triton")
        assert y.isfinite().all() and bases.isfinite().all()
        want_y, want_bases = em_attention_plain(filled.detach(), mu)
        torch.testing.assert_close(bases, want_bases, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(y, want_y, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)
        (grad,) = torch.autograd.grad(y.float().sum(), filled)
        assert grad.isfinite().all()


@poisoned
def test_the_same_bits_twice():
    runs = []
    for _ in range(2):
        x, mu = drawn(2, 16, 33 * 3, 20)
        y, bases = em_attention(x.requires_grad_(), mu.requires_grad_(), gradient="unrolled", backend="triton")
        runs.append((y, bases, *torch.autograd.grad(y.square().sum() + bases.sum(), (x, mu))))
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


@poisoned
def test_modes_give_the_same_bits_and_detached_no_gradient():
    x, mu = drawn(1, 32, 40, 5)
    x.requires_grad_()
    y = {mode: em_attention(x, mu, gradient=mode, backend="triton")[0] for mode in ("detached", "last", "unrolled")}
    assert torch.equal(y["detached"], y["last"]) and torch.equal(y["last"], y["unrolled"])
    assert not y["detached"].requires_grad and y["last"].requires_grad


@poisoned
@pytest.mark.parametrize(("precision", "tolerance"), [("high", 1e-4), ("medium", 5e-2)])
def test_products_in_tf32_are_torchs_own_option(precision, tolerance):
    """The interpreter's products are exact, but the tiles are those of TF32."""
    x, mu = drawn(1, 48, 150, 20)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        y, _ = em_attention(x.requires_grad_(), mu, gradient="last", backend="triton")
        (grad,) = torch.autograd.grad(y.sum(), x)
    finally:
        torch.set_float32_matmul_precision(before)
    exact = x.detach().double().requires_grad_()
    want = em_attention_plain(exact, mu.double(), gradient="last")[0]
    assert differs(y, want) < tolerance
    assert differs(grad, torch.autograd.grad(want.sum(), exact)[0]) < tolerance


@poisoned
def test_bases_of_their_own_for_every_image():
    x, mu = drawn(2, 16, 30, 5)
    own = torch.cat([mu, mu.flip(2)])
    y, _ = em_attention(x, own, backend="triton")
    for image in range(2):
        alone, _ = em_attention(x[image : image + 1], own[image : image + 1], backend="triton")
        torch.testing.assert_close(y[image : image + 1], alone, rtol=1e-6, atol=1e-6)


@poisoned
def test_autocast_does_not_reach_inside():
    x, mu = drawn(1, 32, 40, 5)
    with torch.autocast(DEVICE, torch.bfloat16):
        y, bases = em_attention(x, mu, backend="triton")
    want_y, want_bases = em_attention(x, mu, backend="triton")
    assert torch.equal(y, want_y) and torch.equal(bases, want_bases)


@on_device
def test_the_operators_keep_torchs_rules():
    from emanet.ops.em_attention_triton import em_backward, em_forward

    x, mu = drawn(1, 16, 9, 5)
    x.requires_grad_()
    mu_BKC = mu.mT.clone().requires_grad_()
    torch.library.opcheck(em_forward, (x, mu_BKC, 2, 1e-6, 2))
    with torch.no_grad():
        outputs = em_forward(x, mu_BKC, 2, 1e-6, 1)
        arguments = (torch.ones_like(x), torch.ones_like(mu_BKC), x, *outputs[1:], 1e-6, 1)
    torch.library.opcheck(em_backward, tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments))


@on_device
def test_the_unit_compiles_with_the_kernels(monkeypatch):
    import emanet.emau as module

    monkeypatch.setattr(module, "em_attention", lambda *a, **k: em_attention(*a, **k | {"backend": "triton"}))
    torch.manual_seed(0)
    unit = EMAU(16, 5, gradient="last").eval().to(DEVICE)
    x = torch.randn(1, 16, 5, 6, device=DEVICE)
    want = unit(x)
    found = torch.compile(unit, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, want)


@on_device
def test_the_unit_is_exported_with_the_kernels(monkeypatch):
    import emanet.emau as module

    monkeypatch.setattr(module, "em_attention", lambda *a, **k: em_attention(*a, **k | {"backend": "triton"}))
    torch.manual_seed(0)
    unit = EMAU(16, 5).eval().to(DEVICE)
    sides = {2: torch.export.Dim("h", min=2), 3: torch.export.Dim("w", min=2)}
    program = torch.export.export(unit, (torch.randn(1, 16, 5, 6, device=DEVICE),), dynamic_shapes=(sides,))
    assert any("em_forward" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(1, 16, 4, 9, device=DEVICE)
    torch.testing.assert_close(program.module()(x), unit(x))


def test_meta_tensors_have_the_shapes():
    x, mu = torch.empty(2, 16, 12, device="meta", dtype=torch.bfloat16), torch.empty(1, 16, 5, device="meta")
    y, bases = em_attention(x.requires_grad_(), mu, gradient="last", backend="triton")
    assert (y.shape, y.dtype, bases.shape, bases.dtype) == (x.shape, x.dtype, (2, 16, 5), torch.float32)
    y.sum().backward()
    assert x.grad.shape == x.shape and x.grad.dtype == x.dtype


def test_what_it_cannot_take_is_said():
    mu = torch.empty(1, 16, 5, device="meta")
    with pytest.raises(InputError, match=r"float32, float16 and bfloat16, not torch\.float64"):
        em_attention(torch.empty(2, 16, 12, device="meta", dtype=torch.float64), mu, backend="triton")
    with pytest.raises(InputError, match="256 bases"):
        em_attention(torch.empty(2, 16, 12, device="meta"), torch.empty(1, 16, 300, device="meta"), backend="triton")
    with pytest.raises(InputError, match="empty"):
        em_attention(torch.empty(2, 16, 0, device="meta"), mu, backend="triton")
    if not INTERPRETED:
        with pytest.raises(InputError, match="it runs on CUDA, and the input is on cpu"):
            em_attention(torch.zeros(2, 16, 12), torch.zeros(1, 16, 5), backend="triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_unit_takes_the_kernels_where_they_are_asked_for():
    torch.manual_seed(0)
    x, units = torch.randn(1, 16, 5, 6, device=DEVICE), [EMAU(16, 5).to(DEVICE).eval() for _ in range(2)]
    units[1].load_state_dict(units[0].state_dict())
    pixels = units[0].conv_in(x).flatten(2)
    exact, kernels = (em_attention(pixels, units[0].bases, backend=backend)[0] for backend in ("auto", "triton"))
    assert torch.equal(exact, em_attention_plain(pixels, units[0].bases)[0]) and not torch.equal(exact, kernels)
    units[1].backend = "triton"
    torch.testing.assert_close(units[1](x), units[0](x), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(INTERPRETED, reason="compiles, which the interpreter does not")
@pytest.mark.parametrize(
    "bases", [64, pytest.param(5, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("precision", ["highest", pytest.param("high", marks=pytest.mark.slow)])
def test_the_kernels_compile_for_gpus_that_are_not_here(bases, dtype, precision, monkeypatch):
    """For an A100, with the shared memory of smaller ones: 99 KiB a program (compute capability 8.6)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from emanet.ops import em_attention_triton as ours

    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    blocks = ours._Plan(torch.empty(16, 512, 65 * 65, device="meta", dtype=dtype), bases).blocks
    options = {name: blocks.pop(name) for name in ("num_warps", "num_stages")}
    images = {"x_ptr", "v_ptr", "g_y_ptr", "g_x_ptr", "y_ptr"}
    for kernel, more in (
        (ours.accumulate_kernel, {"KEEP_Z": True}),
        (ours.step_backward_kernel, {"LAST": True}),
        (ours.rebuild_kernel, {}),
        (ours.new_bases_kernel, {"BC": 512}),
    ):
        constants = {name: value for name, value in (blocks | more).items() if name in kernel.arg_names}
        types = {}
        for name in kernel.arg_names:
            pointer = "*bf16" if name in images and dtype == torch.bfloat16 else "*fp32"
            types[name] = pointer if name.endswith("_ptr") else "fp32" if name == "eps" else "i32"
        source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
        assert compiled.metadata.shared <= 99 * 1024, kernel.__name__
