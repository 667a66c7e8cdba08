import functools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emanet.analysis.cost import peak_memory
from emanet.errors import InputError
from emanet.ops import em_attention as module
from emanet.ops.em_attention import EPS, em_attention, em_attention_plain, unit_columns
from emanet.ops.em_attention_cpu import em_attention_buffered, product


def reference(x, mu, steps):
    """The formulas pixel by pixel and base by base, in float64."""
    channels, pixels = x.shape
    for _ in range(steps):
        z = np.zeros((pixels, mu.shape[1]))
        for n in range(pixels):
            scores = np.array([x[:, n] @ mu[:, k] for k in range(mu.shape[1])])
            shares = np.exp(scores - scores.max())
            z[n] = shares / shares.sum()
        new = np.zeros_like(mu)
        for k in range(mu.shape[1]):
            base = sum(z[n, k] * x[:, n] for n in range(pixels)) / (EPS + z[:, k].sum())
            new[:, k] = base / (EPS + np.linalg.norm(base))
        mu = new
    return mu @ z.T, mu


def drawn(b=2, c=6, n=15, k=4, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, mu = torch.randn(b, c, n, generator=g), unit_columns(torch.randn(1, c, k, generator=g))
    return x.to(dtype), mu


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_equals_the_formulas(steps):
    x, mu = drawn(dtype=torch.float64)
    y, bases = em_attention(x, mu, steps)
    for image in range(len(x)):
        want_y, want_mu = reference(x[image].numpy(), mu[0].double().numpy(), steps)
        np.testing.assert_allclose(y[image], want_y, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(bases[image], want_mu, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("c", "n", "k"), [(1, 1, 1), (3, 1, 5), (16, 7, 64), (5, 65, 3)])
def test_odd_sizes(c, n, k):
    x, mu = drawn(b=1, c=c, n=n, k=k, dtype=torch.float64)
    y, bases = em_attention(x, mu)
    want_y, want_mu = reference(x[0].numpy(), mu[0].double().numpy(), 3)
    np.testing.assert_allclose(y[0], want_y, atol=1e-12)
    np.testing.assert_allclose(bases[0], want_mu, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x, mu = drawn(dtype=dtype)
    y, bases = em_attention(x, mu)
    want_y, want_bases = em_attention(x.float(), mu)
    assert y.dtype == dtype and bases.dtype == torch.float32
    assert torch.equal(y, want_y.to(dtype)) and torch.equal(bases, want_bases)


def test_autocast_does_not_reach_inside():
    x, mu = drawn()
    want = em_attention(x, mu)
    with torch.autocast("cpu", torch.bfloat16):
        got = em_attention(x, mu)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_no_gradient_passes():
    x, mu = drawn()
    y, bases = em_attention(x.requires_grad_(), mu)
    assert not y.requires_grad and not bases.requires_grad


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_gradient_of_unrolled_is_that_of_finite_differences(steps):
    x, mu = drawn(dtype=torch.float64)
    run = functools.partial(em_attention, steps=steps, gradient="unrolled")
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), mu.double().requires_grad_()))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_gradient_of_last_is_that_of_finite_differences_around_constant_bases(steps):
    x, mu = drawn(dtype=torch.float64)
    start = em_attention(x, mu, steps - 1)[1] if steps > 1 else mu
    one = functools.partial(em_attention, mu_1CK=start, steps=1, gradient="unrolled")
    assert torch.autograd.gradcheck(lambda pixels: one(pixels), (x.requires_grad_(),))

    weights = torch.randn_like(x)
    (wanted,) = torch.autograd.grad((one(x)[0] * weights).sum(), x)
    (found,) = torch.autograd.grad((em_attention(x, mu, steps, gradient="last")[0] * weights).sum(), x)
    torch.testing.assert_close(found, wanted)


def test_gradient_modes_compute_the_same_and_differ_in_gradient():
    x, mu = drawn(dtype=torch.float64)
    x.requires_grad_()
    outputs = {mode: em_attention(x, mu, gradient=mode)[0] for mode in ("detached", "last", "unrolled")}
    assert torch.equal(outputs["last"], outputs["unrolled"])
    torch.testing.assert_close(outputs["detached"], outputs["last"], rtol=1e-13, atol=1e-14)  # sums in another order
    last, unrolled = (torch.autograd.grad(outputs[mode].square().sum(), x)[0] for mode in ("last", "unrolled"))
    assert last.any() and (last - unrolled).abs().max() > 1e-3 * unrolled.abs().max()


def test_gradients_pass_in_half_precision_and_under_autocast():
    x, mu = drawn()
    x = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        em_attention(x, mu, gradient="unrolled")[0].float().square().sum().backward()
    assert x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all() and x.grad.any()


def test_eps_is_that_of_both_divisions():
    x, mu = drawn(dtype=torch.float64)
    z = torch.softmax(x.mT @ mu.double(), 2)
    bases = x @ (z / (0.5 + z.sum(1, keepdim=True)))
    torch.testing.assert_close(em_attention(x, mu, 1, eps=0.5)[1], bases / (0.5 + bases.norm(dim=1, keepdim=True)))


def test_tiny_eps_is_what_the_relatives_compute():
    """They divide by max(norm, 1e-12)."""
    x, mu = drawn()
    z = torch.softmax(x.mT @ mu, 2)
    bases = torch.nn.functional.normalize(x @ torch.nn.functional.normalize(z, p=1, dim=1), dim=1)
    torch.testing.assert_close(em_attention(x, mu, 1, eps=1e-12)[1], bases)


@pytest.mark.parametrize("backend", ["auto", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, -1e4, 6e4, 1e30])
def test_constant_zero_and_huge_input_stays_finite(value, dtype, backend):
    x, mu = drawn()
    spike = x.clone()
    spike[0, 3, 4] = value
    for pixels in (torch.full_like(x, value), x * value, spike):
        pixels = pixels.clamp(torch.finfo(dtype).min / 2, torch.finfo(dtype).max / 2).to(dtype)
        y, bases = em_attention(pixels, mu, backend=backend)
        assert y.isfinite().all() and bases.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradient", ["last", "unrolled"])
def test_gradients_of_constant_zero_and_huge_input_stay_finite(gradient, dtype):
    """In float16 they may not: at zero they are 1 / eps, which float16 does not reach."""
    _, mu = drawn()
    for value in (0.0, 1.0, 1e4, 1e30):
        x = torch.full((2, 6, 15), value, dtype=dtype, requires_grad=True)
        em_attention(x, mu, gradient=gradient)[0].float().sum().backward()
        assert x.grad.isfinite().all(), value


def test_bases_do_not_depend_on_the_order_of_pixels():
    x, mu = drawn(dtype=torch.float64)
    order = torch.randperm(x.shape[2])
    y, bases = em_attention(x, mu)
    y_moved, bases_moved = em_attention(x[:, :, order], mu)
    torch.testing.assert_close(bases_moved, bases)
    torch.testing.assert_close(y_moved, y[:, :, order])


def test_wrong_shapes_are_named():
    x, mu = drawn()
    with pytest.raises(ValueError, match=r"\(2, 6, 3, 5\)"):
        em_attention(x.view(2, 6, 3, 5), mu)
    with pytest.raises(ValueError, match="at least one EM step"):
        em_attention(x, mu, 0)
    with pytest.raises(ValueError, match="detached, last, unrolled, not 'none'"):
        em_attention(x, mu, gradient="none")


def test_backends_are_named():
    x, mu = drawn()
    with pytest.raises(ValueError, match="auto, plain, triton, not 'cuda'"):
        em_attention(x, mu, backend="cuda")
    with pytest.raises(InputError, match=r"backend 'triton': (it .* input is on cpu|No module.*); choose 'auto'"):
        em_attention(x, mu, backend="triton")
    for one, two in zip(em_attention(x, mu, backend="plain"), em_attention(x, mu), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("capability", "chosen"), [((9, 0), "triton"), ((8, 0), "plain")])
def test_auto_takes_the_kernels_where_they_have_been_measured(monkeypatch, capability, chosen):
    """On an H100 or H200, for 16 bits without gradient. The tensor here only claims to be on CUDA."""
    kernels = pytest.importorskip("emanet.ops.em_attention_triton")
    called = []
    monkeypatch.setattr(module, "em_attention_plain", lambda *a, **k: called.append("plain"))
    monkeypatch.setattr(kernels, "em_attention_triton", lambda *a, **k: called.append("triton"))
    gpu = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)

    class Elsewhere(torch.Tensor):
        device, is_cuda = torch.device("cuda"), True

    x, mu = drawn()
    half = x.bfloat16().as_subclass(Elsewhere)
    for backend in ("auto", "plain", "triton"):
        em_attention(half, mu, backend=backend)
    assert called == [chosen, "plain", "triton"]
    called.clear()
    em_attention(half, mu, gradient="last")
    em_attention(x.as_subclass(Elsewhere), mu)
    assert called == ["plain", "plain"]


def test_without_triton_its_backend_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "emanet.ops.em_attention_triton", None)
    with pytest.raises(InputError, match="backend 'triton': .*em_attention_triton"):
        em_attention(*drawn(), backend="triton")


@pytest.mark.parametrize("size", [(1, 16, 1, 5), (2, 48, 33 * 47, 5), (1, 512, 65, 64), (1, 16, 7, 1)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every other pixel"])
def test_the_buffered_path_is_the_plain_one(size, layout, monkeypatch):
    monkeypatch.setattr("emanet.ops.em_attention_cpu.is_wide", lambda: True)  # on any processor
    x, mu = drawn(*size, dtype=torch.float64)
    if layout == "channels_last":
        x = x.mT.contiguous().mT
    elif layout == "every other pixel":
        x = torch.stack([x, x + 1], 3).flatten(2)[:, :, ::2]
    before = x.clone()
    for one, two in zip(em_attention_buffered(x, mu, eps=EPS), em_attention_plain(x, mu), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-12)
    assert torch.equal(x, before)
    y = em_attention(x, mu)[0]
    assert y.stride() == (x.stride() if layout != "every other pixel" else y.contiguous().stride())


@pytest.mark.parametrize("size", [(2, 48, 33 * 47, 5), (1, 512, 65 * 65, 64), (1, 32, 70, 200)])
def test_float32_is_as_exact_as_plain_float32(size):
    x, mu = drawn(*size)
    exact = em_attention_plain(x.double(), mu.double())
    for ours, plain, wanted in zip(em_attention(x, mu), em_attention_plain(x, mu), exact, strict=True):
        error, allowed = ((found.double() - wanted).abs().max() for found in (ours, plain))
        assert error < 4 * allowed + 1e-7 * wanted.abs().max()  # oneDNN adds in longer runs


def test_the_buffered_path_needs_no_more_than_the_plain_one_and_a_copy(monkeypatch):
    """One matrix of pixels and bases is ours; what oneDNN needs for a product differs by processor and is measured."""
    monkeypatch.setattr("emanet.ops.em_attention_cpu.is_wide", lambda: True)
    x, mu = drawn(2, 8, 5000, 64)
    cpu = torch.device("cpu")
    needed = peak_memory(lambda: em_attention(x, mu), cpu)
    x_NC, z_NK = x[0].T.contiguous(), torch.rand(5000, 64)
    scores, sums, outs = (
        peak_memory(lambda a=a, b=b: product(a, b), cpu) for a, b in ((x_NC, mu[0]), (x[0], z_NK), (mu[0], z_NK.T))
    )
    outputs, copy, matrix = 4 * x.numel(), 4 * x[0].numel(), 4 * z_NK.numel()
    bases = 4 * mu.numel()
    assert outputs + matrix <= needed < outputs + copy + max(scores, matrix + sums, matrix + outs) + 8 * bases
    assert needed < peak_memory(lambda: em_attention_plain(x, mu), cpu)


def test_memory_that_nobody_wrote_to_is_not_read(monkeypatch):
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, make=make, **k: make(*a, **k).fill_(torch.nan))
    x, mu = drawn(2, 16, 700, 5)
    y, bases = em_attention(x, mu)
    assert y.isfinite().all() and bases.isfinite().all()


@pytest.mark.parametrize("gradient", ["detached", "last", "unrolled"])
def test_meta_tensors_have_the_shapes(gradient):
    x, mu = torch.empty(2, 16, 12, device="meta", dtype=torch.bfloat16), torch.empty(1, 16, 5, device="meta")
    y, bases = em_attention(x.requires_grad_(), mu, gradient=gradient)
    assert (y.shape, y.dtype, bases.shape, bases.dtype) == (x.shape, x.dtype, (2, 16, 5), torch.float32)
    assert y.device.type == "meta" and y.requires_grad == (gradient != "detached")


def test_no_pixels():
    _, mu = drawn()
    y, bases = em_attention(torch.zeros(2, 6, 0), mu)
    assert y.shape == (2, 6, 0) and not bases.any()
