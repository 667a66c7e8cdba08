import math

import pytest
import torch
import torch.nn.functional as F

from emanet.config import LossConfig
from emanet.errors import InputError
from emanet.losses import PixelLoss


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 5, 7), generator=g).to(torch.uint8)
    labels[0, :3] = 255
    return torch.randn(2, 3, 5, 7, generator=g, requires_grad=True), labels


def mean(loss, logits, labels):
    return loss(logits, labels) / loss.divisor(labels).float()


def test_all_divides_by_ignored_pixels_too_and_valid_does_not(batch):
    logits, labels = batch
    total = F.cross_entropy(logits, labels.long(), ignore_index=255, reduction="sum")
    torch.testing.assert_close(mean(PixelLoss(LossConfig(average="all"), "abc"), logits, labels), total / 70)
    torch.testing.assert_close(mean(PixelLoss(LossConfig(average="valid"), "abc"), logits, labels), total / 49)


def test_class_weights_are_those_of_torch(batch):
    weights = (0.5, 1.0, 3.0)
    want = F.cross_entropy(batch[0], batch[1].long(), torch.tensor(weights), ignore_index=255)
    loss = PixelLoss(LossConfig(average="valid", class_weights=weights), "abc")
    torch.testing.assert_close(mean(loss, *batch), want)
    with pytest.raises(InputError, match="has 3 values for 2 classes"):
        PixelLoss(LossConfig(class_weights=weights), "ab")


@pytest.mark.parametrize("average", ["all", "valid"])
def test_sums_and_divisors_of_parts_add_up_to_the_whole(batch, average):
    loss = PixelLoss(LossConfig(average=average), "abc")
    logits, labels = batch
    parts = sum(loss(logits[i : i + 1], labels[i : i + 1]) for i in range(2))
    divisor = sum(loss.divisor(labels[i : i + 1]) for i in range(2))
    torch.testing.assert_close(parts / divisor.float(), mean(loss, logits, labels))


def test_hard_pixels_are_those_below_the_threshold_or_the_hardest(batch):
    logits, labels = batch
    each = F.cross_entropy(logits, labels.long(), ignore_index=255, reduction="none")[labels != 255]
    hard = each[each > -math.log(0.3)]
    assert 0 < len(hard) < len(each)
    loss = PixelLoss(LossConfig(ohem_threshold=0.3, ohem_min_kept=1), "abc")
    torch.testing.assert_close(mean(loss, logits, labels), hard.mean())
    loss = PixelLoss(LossConfig(ohem_threshold=1e-9, ohem_min_kept=5), "abc")  # 5 an image, 2 images
    torch.testing.assert_close(mean(loss, logits, labels), each.topk(10).values.mean())
    loss = PixelLoss(LossConfig(ohem_threshold=0.3, ohem_min_kept=10**6), "abc")
    torch.testing.assert_close(mean(loss, logits, labels), each.mean())


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_nan_is_not_hidden(batch, threshold):
    logits, labels = batch
    loss = PixelLoss(LossConfig(ohem_threshold=threshold), "abc")
    assert loss(logits * float("nan"), labels).isnan()


@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_all_ignored_gives_zero_and_a_zero_gradient(batch, threshold):
    logits, labels = batch[0], torch.full((2, 5, 7), 255, dtype=torch.uint8)
    loss = PixelLoss(LossConfig(average="valid", ohem_threshold=threshold), "abc")
    value = loss(logits, labels)
    value.backward()
    assert value.item() == 0 and not logits.grad.any()
