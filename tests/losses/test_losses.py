"""PixelLoss as cross entropy and OHEM against torch, and the settings of the loss."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
import tyro

from emanet.config import Experiment, LossConfig
from emanet.errors import InputError
from emanet.experiments import checked, experiment_of, from_dict, load_experiment, override, to_dict
from emanet.losses import PixelLoss

OHEM = (("ohem", 1.0),)


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
    loss = PixelLoss(LossConfig(terms=OHEM, ohem_threshold=0.3, ohem_min_kept=1), "abc")
    torch.testing.assert_close(mean(loss, logits, labels), hard.mean())
    loss = PixelLoss(LossConfig(terms=OHEM, ohem_threshold=1e-9, ohem_min_kept=5), "abc")  # 5 an image, 2 images
    torch.testing.assert_close(mean(loss, logits, labels), each.topk(10).values.mean())
    loss = PixelLoss(LossConfig(terms=OHEM, ohem_threshold=0.3, ohem_min_kept=10**6), "abc")
    torch.testing.assert_close(mean(loss, logits, labels), each.mean())


def test_hard_pixels_of_all_pixels_are_cross_entropy(batch):
    """Over passes too, with average valid; by weight, where classes have one."""
    labels = batch[1]
    for weights in ((), (0.5, 1.0, 3.0)):
        settings = {"average": "valid", "class_weights": weights}
        every = PixelLoss(LossConfig(terms=OHEM, ohem_threshold=1.0, **settings), "abc")
        plain = PixelLoss(LossConfig(**settings), "abc")
        parts = sum(every(batch[0][i : i + 1], labels[i : i + 1]) for i in range(2))
        torch.testing.assert_close(parts / plain.divisor(labels).float(), mean(plain, batch[0], labels))


def test_an_unknown_loss_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="^loss.terms has an unknown loss 'dise'; did you mean .*dice"):
        PixelLoss(LossConfig(terms=(("dise", 1.0),)), "abc")
    with pytest.raises(InputError, match="^loss.terms has an unknown loss 'xyz'; there are: boundary, cross_entropy, "):
        PixelLoss(LossConfig(terms=(("xyz", 1.0),)), "abc")


@pytest.mark.parametrize(
    ("changes", "user", "terms"),
    [
        ({"ohem_threshold": 0.5}, "ohem", "cross_entropy"),
        ({"ohem_min_kept": 5}, "ohem", "boundary"),
        ({"boundary_width": 5}, "boundary", "dice"),
        ({"boundary_weight": 2.0}, "boundary", "cross_entropy"),
        ({"class_weights": (1.0, 2.0)}, "cross_entropy, ohem, boundary", "lovasz"),
    ],
)
def test_a_setting_that_no_term_uses_is_refused(changes, user, terms):
    (name,) = changes
    with pytest.raises(InputError, match=f"^loss.{name} is .*, but loss '{terms}' does not use it; these do: {user}$"):
        checked(Experiment(loss=LossConfig(terms=((terms, 1.0),), **changes)))
    checked(Experiment(loss=LossConfig(terms=((terms, 1.0), (user.split(",")[0], 0.5)), **changes)))


@pytest.mark.parametrize(
    "terms",
    [(), (("dice", 0.0),), (("dice", -1.0),), (("dice", float("nan")),), (("dice", 1e300),), (("dice", "1"),),
     (("dice", 1.0), ("dice", 2.0)), {"dice": 1.0}, ("dice", 1.0), (("dice",),)],
    ids=str,
)  # fmt: skip
def test_impossible_terms_are_refused(terms):
    with pytest.raises(InputError, match="^terms is .*, but must be "):
        LossConfig(terms=terms)


def test_terms_survive_json_and_override():
    config = override(load_experiment("drawn"), {"loss.terms": (("cross_entropy", 1.0), ("dice", 0.5))})
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(config)))) == config
    assert checked(override(config, {"loss.terms": [["dice", 1]]})).loss.terms == (("dice", 1.0),)


def test_terms_as_flags():
    arguments = ["--loss.terms", "cross_entropy", "1", "lovasz", "0.5", "--loss.average", "valid"]
    config = tyro.cli(Experiment, args=arguments, config=(tyro.conf.AvoidSubcommands,))
    assert config.loss == LossConfig(terms=(("cross_entropy", 1.0), ("lovasz", 0.5)), average="valid")


def test_files_written_before_there_were_terms_mean_the_same():
    def read(**loss):
        values = to_dict(load_experiment("drawn"))
        return experiment_of(values | {"loss": loss}, "config.json").loss

    old = {"average": "valid", "class_weights": [], "ohem_min_kept": 100, "aux_weight": 0.3}
    assert read(**old, ohem_threshold=0.0) == LossConfig(average="valid", aux_weight=0.3)
    want = LossConfig(terms=OHEM, average="all", ohem_threshold=0.7, ohem_min_kept=100, aux_weight=0.3)
    assert read(**old, ohem_threshold=0.7) == want, "OHEM divided by every pixel, whatever average said"
    with pytest.raises(InputError, match="^config.json: loss.ohem_threshold is 'x', but must be float"):
        read(ohem_threshold="x")
    with pytest.raises(InputError, match="^config.json: loss is 3, but must be an object"):
        experiment_of({"loss": 3}, "config.json")


def test_distillation_is_the_divergence_from_the_teacher_at_labelled_pixels(batch):
    logits, labels = batch
    teacher = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    for weights in ((), (0.5, 1.0, 3.0)):
        settings = LossConfig(average="valid", class_weights=weights, distill_weight=0.7, distill_temperature=2.0)
        loss = PixelLoss(settings, "abc")
        each = F.kl_div((logits / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="none").sum(1) * 4
        known = labels != 255
        factors = torch.tensor(weights)[labels[known].long()] if weights else torch.ones(int(known.sum()))
        want = loss(logits, labels) + 0.7 * (each[known] * factors).sum()
        torch.testing.assert_close(loss(logits, labels, teacher), want)
        torch.testing.assert_close(loss(logits, labels, logits.detach()), loss(logits, labels))


def test_distillation_from_logits_of_a_lower_stride_is_that_of_upsampled_ones():
    low, labels = torch.randn(2, 3, 3, 3), torch.randint(0, 3, (2, 8, 7))
    teacher = torch.randn(2, 3, 8, 7)
    loss = PixelLoss(LossConfig(), "abc")
    high = F.interpolate(low, (9, 9), mode="bilinear", align_corners=True)[:, :, :8, :7]
    torch.testing.assert_close(loss.of_low(low, labels, (9, 9), True, teacher), loss(high, labels, teacher))
