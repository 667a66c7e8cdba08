"""Each loss against its definition in NumPy, loop by loop; what all of them keep to; and how they are combined."""

import numpy as np
import pytest
import torch

from emanet.config import LossConfig
from emanet.losses import OF_CROSS_ENTROPY, OF_LOGITS, PixelLoss

TERMS = (*OF_CROSS_ENTROPY, *OF_LOGITS)
SETTINGS = {
    "ohem": {"ohem_threshold": 0.3, "ohem_min_kept": 7},
    "boundary": {"boundary_width": 2, "boundary_weight": 4.0},
}


def config(name, **changes):
    return LossConfig(terms=((name, 1.0),), **SETTINGS.get(name, {}), **changes)


def labels_of(case):
    rng = np.random.default_rng(3)
    if case == "one class":
        return np.zeros((2, 6, 5), np.uint8)
    if case == "one pixel":
        return np.array([[[2]]], np.uint8)
    labels = np.repeat(np.repeat(rng.integers(0, 4, (3, 3, 3)), 4, 1), 3, 2)[:, :11, :7].astype(np.uint8)
    if case == "a class that no image has":
        labels[labels == 1] = 3
    if case == "ignored here and there":
        labels[rng.random(labels.shape) < 0.3] = 255
    if case == "an image without labels":
        labels[1] = 255
    if case == "no labels at all":
        labels[:] = 255
    if case == "padded":
        labels[:, 8:] = labels[:, :, 5:] = 255
    if case == "a thin ignored line between objects":
        labels[:, :, :3], labels[:, :, 3], labels[:, :, 4:] = 1, 255, 2
    return labels


CASES = ["odd", "one class", "one pixel", "a class that no image has", "ignored here and there",
         "an image without labels", "no labels at all", "padded", "a thin ignored line between objects"]  # fmt: skip


def logits_of(labels, classes, scale=2.0):
    return scale * np.random.default_rng(4).standard_normal((len(labels), classes, *labels.shape[1:]))


def softmax(z):
    e = np.exp(z - z.max(0))
    return e / e.sum(0)


def entropies(logits, labels):
    """{(image, y, x): cross entropy} of the labelled pixels."""
    found = {}
    for i, y, x in np.argwhere(labels != 255):
        found[i, y, x] = -np.log(softmax(logits[i, :, y, x])[labels[i, y, x]])
    return found


def mean_cross_entropy(logits, labels):
    return sum(entropies(logits, labels).values()) / labels.size


def mean_boundary(logits, labels):
    total = 0.0
    for (i, y, x), loss in entropies(logits, labels).items():
        total += loss * border_weight(labels, (i, y, x))
    return total / labels.size


def border_weight(labels, place):
    i, y, x = place
    square = labels[i, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
    return 4.0 if len(set(square[square != 255])) > 1 else 1.0


def mean_ohem(logits, labels):
    losses = sorted(entropies(logits, labels).values(), reverse=True)
    hard = [loss for rank, loss in enumerate(losses) if rank < 7 * len(labels) or np.exp(-loss) <= 0.3]
    return np.mean(hard) if hard else 0.0


def of_each_image(of_class):
    def mean(logits, labels):
        images = []
        for z, y in zip(logits, labels, strict=True):
            p, y = softmax(z)[:, y != 255], y[y != 255]
            classes = sorted(set(y))
            images.append(np.mean([of_class(p[c], y == c) for c in classes]) if classes else 0.0)
        return np.mean(images)

    return mean


def dice_of_class(p, own):
    return 1 - 2 * (p * own).sum() / ((p**2).sum() + (own**2).sum())


def lovasz_of_class(p, own):
    """Integrate the Jaccard loss of {pixels whose error is at least t} over t: the extension's other definition."""
    errors = np.where(own, 1 - p, p)
    steps, total = np.unique([0.0, *errors]), 0.0
    for low, high in zip(steps[:-1], steps[1:], strict=True):
        wrong = errors >= high
        predicted = own ^ wrong
        total += (high - low) * (1 - (predicted & own).sum() / (predicted | own).sum())
    return total


REFERENCE = {
    "cross_entropy": mean_cross_entropy,
    "ohem": mean_ohem,
    "boundary": mean_boundary,
    "dice": of_each_image(dice_of_class),
    "lovasz": of_each_image(lovasz_of_class),
}


def mean(loss, logits, labels):
    return loss(logits, labels) / loss.divisor(labels).to(logits.dtype).clamp_min(1)


def test_every_loss_has_a_reference():
    assert set(REFERENCE) == set(TERMS)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("case", CASES)
class TestDefinition:
    def test_value(self, name, case):
        labels = labels_of(case)
        logits = logits_of(labels, 4)
        want = REFERENCE[name](logits, labels)
        got = mean(PixelLoss(config(name), "abcd"), torch.tensor(logits), torch.tensor(labels))
        assert got.dtype == torch.float64 and got.item() == pytest.approx(want, rel=1e-12, abs=1e-15)
        single = torch.tensor(logits, dtype=torch.float32)
        assert mean(PixelLoss(config(name), "abcd"), single, torch.tensor(labels)).item() == pytest.approx(want, 1e-5)

    def test_gradient_by_finite_differences(self, name, case):
        labels = torch.tensor(labels_of(case))
        logits = torch.tensor(logits_of(labels.numpy(), 4)).requires_grad_()
        loss = PixelLoss(config(name), "abcd")
        assert torch.autograd.gradcheck(
            lambda z: loss(z, labels), logits, fast_mode=True
        )  # all have a slope but at ties

    def test_from_low_logits(self, name, case):
        labels = torch.tensor(labels_of(case))
        low = torch.tensor(logits_of(np.zeros((len(labels), 3, 2)), 4)).requires_grad_()
        loss, (h, w) = PixelLoss(config(name), "abcd"), labels.shape[1:]
        high = torch.nn.functional.interpolate(low, (12, 8), mode="bilinear", align_corners=True)[:, :, :h, :w]
        got, want = loss.of_low(low, labels, (12, 8), True), loss(high, labels)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        ours, theirs = (torch.autograd.grad(value, low)[0] for value in (got, want))
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)

    def test_ignored_pixels_get_no_gradient(self, name, case):
        labels = torch.tensor(labels_of(case))
        logits = torch.tensor(logits_of(labels.numpy(), 4)).requires_grad_()
        value = PixelLoss(config(name), "abcd")(logits, labels)
        (gradient,) = torch.autograd.grad(value, logits)
        ignored = (labels == 255)[:, None].expand_as(gradient)
        assert gradient.isfinite().all() and not gradient[ignored].any()
        assert gradient[~ignored].any() or ignored.all()


@pytest.mark.parametrize("name", TERMS)
class TestEveryLoss:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("path", ["full", "low"])
    def test_what_is_not_finite_is_not_hidden(self, name, value, path):
        labels = torch.tensor(labels_of("ignored here and there"))
        logits = torch.tensor(logits_of(labels.numpy(), 4), dtype=torch.float32)
        labels[0, 5, 3] = 2
        logits[0, 1, 5, 3] = value
        loss = PixelLoss(config(name), "abcd")
        total = loss(logits, labels) if path == "full" else loss.of_low(logits, labels, (11, 7), True)
        assert not total.isfinite()

    def test_a_class_ruled_out_is_a_large_loss_where_it_is_the_label(self, name):
        """-inf is a probability of 0: an infinite cross entropy, and 1 for losses of overlap."""
        labels = torch.zeros(1, 3, 3, dtype=torch.uint8)
        logits = torch.zeros(1, 2, 3, 3)
        logits[:, 0] = float("-inf")
        value = mean(PixelLoss(config(name), "ab"), logits, labels)
        assert value == (1 if name in OF_LOGITS else float("inf"))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("path", ["full", "low"])
    def test_half_precision_is_computed_in_float32(self, name, dtype, path):
        labels = torch.tensor(labels_of("padded"))
        logits = torch.tensor(logits_of(labels.numpy(), 4)).to(dtype).requires_grad_()
        loss = PixelLoss(config(name), "abcd")

        def run(z):
            return loss(z, labels) if path == "full" else loss.of_low(z, labels, (11, 7), True)

        want = run(logits.float())
        with torch.autocast("cpu", torch.bfloat16):
            got = run(logits)
        assert got.dtype == torch.float32 and torch.equal(got, want)
        assert torch.autograd.grad(got, logits)[0].dtype == dtype

    def test_a_perfect_prediction_costs_nothing(self, name):
        labels = torch.tensor(labels_of("an image without labels"))
        logits = 200 * torch.nn.functional.one_hot(labels.long().clamp_max(3), 4).permute(0, 3, 1, 2).double()
        assert abs(mean(PixelLoss(config(name), "abcd"), logits, labels).item()) < 1e-12

    @pytest.mark.parametrize("average", ["all", "valid"])
    def test_parts_add_up_to_the_whole(self, name, average):
        """Over ranks and accumulated passes. OHEM chooses its pixels within a pass, so its passes are averaged."""
        labels = torch.tensor(labels_of("an image without labels"))
        labels[2, :4] = 255
        logits = torch.tensor(logits_of(labels.numpy(), 4))
        loss = PixelLoss(config(name, average=average), "abcd")
        parts = [(logits[:1], labels[:1]), (logits[1:], labels[1:])]
        divisor = sum(loss.divisor(y) for _, y in parts)
        assert divisor == loss.divisor(labels)
        total = sum(loss(*part) for part in parts) / divisor
        if name == "ohem":
            shares = [loss.divisor(y) / divisor for _, y in parts]
            want = sum(share * mean(loss, *part) for share, part in zip(shares, parts, strict=True))
        else:
            want = mean(loss, logits, labels)
        torch.testing.assert_close(total, want, rtol=1e-12, atol=0)

    def test_descent_lowers_it(self, name):
        labels = torch.tensor(labels_of("padded"))
        logits = torch.zeros(3, 4, 11, 7, requires_grad=True)
        loss = PixelLoss(config(name), "abcd")
        optimizer = torch.optim.Adam([logits], 0.1)
        first = mean(loss, logits, labels).item()
        for _ in range(30):
            optimizer.zero_grad()
            mean(loss, logits, labels).backward()
            optimizer.step()
        valid = labels != 255
        assert mean(loss, logits, labels).item() < 0.5 * first
        assert torch.equal(logits.argmax(1)[valid], labels[valid].long())


def test_images_weigh_equally_or_by_their_labelled_pixels():
    labels = torch.tensor(labels_of("odd"))
    labels[0, 2:] = labels[2] = 255
    logits = torch.tensor(logits_of(labels.numpy(), 4))
    each = [REFERENCE["dice"](logits[i : i + 1].numpy(), labels[i : i + 1].numpy()) for i in range(3)]
    for average, weights in (("all", [1, 1, 1]), ("valid", [14, 77, 0])):
        got = mean(PixelLoss(config("dice", average=average), "abcd"), logits, labels)
        assert got.item() == pytest.approx(np.average(each, weights=weights), rel=1e-12)


@pytest.mark.parametrize("path", ["full", "low"])
def test_terms_are_added_by_weight(path):
    labels = torch.tensor(labels_of("ignored here and there"))
    logits = torch.tensor(logits_of(labels.numpy(), 4))
    weights = {"cross_entropy": 1.0, "ohem": 0.25, "boundary": 3.0, "dice": 0.5, "lovasz": 2.0}
    chosen = SETTINGS["ohem"] | SETTINGS["boundary"]
    loss = PixelLoss(LossConfig(terms=tuple(weights.items()), **chosen), "abcd")
    total = loss(logits, labels) if path == "full" else loss.of_low(logits, labels, (11, 7), True)
    want = sum(factor * REFERENCE[name](logits.numpy(), labels.numpy()) for name, factor in weights.items())
    assert (total / loss.divisor(labels)).item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("average", ["all", "valid"])
@pytest.mark.parametrize("name", OF_CROSS_ENTROPY)
def test_class_weights(name, average):
    labels = labels_of("ignored here and there")
    logits, weights = logits_of(labels, 4), (0.5, 2.0, 0.0, 1.5)
    loss = PixelLoss(config(name, class_weights=weights, average=average), "abcd")
    each = entropies(logits, labels)
    factor = {place: weights[labels[place]] for place in each}
    if name == "ohem":
        order = sorted(each, key=each.get, reverse=True)
        hard = [place for rank, place in enumerate(order) if rank < 21 or np.exp(-each[place]) <= 0.3]
        amount = len(hard) if average == "all" else sum(factor[place] for place in hard)
        want = sum(each[place] * factor[place] for place in hard) / amount
    else:
        each = {p: loss * (border_weight(labels, p) if name == "boundary" else 1) for p, loss in each.items()}
        amount = labels.size if average == "all" else sum(factor.values())
        want = sum(each[place] * factor[place] for place in each) / amount
    got = mean(loss, torch.tensor(logits), torch.tensor(labels))
    assert got.item() == pytest.approx(want, rel=1e-7)  # class weights are float32


@pytest.mark.parametrize("name", OF_CROSS_ENTROPY)
def test_what_comes_from_cross_entropy_needs_no_logits_at_full_size(name, monkeypatch):
    def refuse(*_):
        raise AssertionError("the plain path was taken")

    monkeypatch.setattr(PixelLoss, "forward", refuse)
    low, labels = torch.zeros(1, 4, 2, 2), torch.zeros(1, 9, 9, dtype=torch.uint8)
    PixelLoss(config(name), "abcd").of_low(low, labels, (9, 9), True)
    with pytest.raises(AssertionError, match="the plain path was taken"):
        PixelLoss(LossConfig(terms=((name, 1.0), ("dice", 1.0))), "abcd").of_low(low, labels, (9, 9), True)


@pytest.mark.parametrize("name", TERMS)
def test_it_can_be_compiled_around(name):
    loss, labels = PixelLoss(config(name), "abcd"), torch.tensor(labels_of("padded"))
    low = torch.tensor(logits_of(np.zeros((3, 3, 2)), 4)).requires_grad_()

    def step(low):
        return loss.of_low(low * 2, labels, (12, 8), True) / 3

    got, want = torch.compile(step, backend="aot_eager")(low), step(low)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, low), torch.autograd.grad(want, low))


@pytest.mark.parametrize("name", OF_LOGITS)
def test_float32_is_exact_for_a_large_image(name):
    """A class of one pixel among a million: differences of fractions, and sums of small numbers, would show."""
    labels = torch.zeros(1, 1000, 1000, dtype=torch.uint8)
    labels[0, 3, 5] = 1
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 1000, 1000, generator=generator, dtype=torch.float64)
    loss, gradients, values = PixelLoss(config(name), "ab"), [], []
    for dtype in (torch.float32, torch.float64):
        z = logits.to(dtype).requires_grad_()
        values.append(mean(loss, z, labels))
        gradients.append(torch.autograd.grad(values[-1], z)[0].double())
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)
    off = (gradients[0] - gradients[1]).norm() / gradients[1].norm()
    assert off < 1e-3
