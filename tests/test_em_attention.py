import functools

import numpy as np
import pytest
import torch

from emanet.ops.em_attention import EPS, em_attention, unit_columns


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
    assert torch.equal(outputs["detached"], outputs["last"]) and torch.equal(outputs["last"], outputs["unrolled"])
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


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4, -1e4])
def test_constant_and_huge_input_stays_finite(value):
    _, mu = drawn()
    y, bases = em_attention(torch.full((2, 6, 15), value), mu)
    assert y.isfinite().all() and bases.isfinite().all()


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
