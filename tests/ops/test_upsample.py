"""Labels and losses without logits at full size, against F.interpolate and what torch does with its output."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from emanet.analysis.cost import peak_memory
from emanet.config import BackboneConfig, HeadConfig, LossConfig, ModelConfig
from emanet.inference import padded_logits, predict_labels
from emanet.losses import PixelLoss
from emanet.model import build_model
from emanet.ops import upsample
from emanet.ops.upsample import upsample_argmax, upsample_cross_entropy
from emanet.train import StepNet

# (B, classes, h, w), the size they are spread over, the size that is kept
CASES = {
    "stride 8, with corners": ((2, 5, 5, 7), (33, 49), (33, 49)),
    "stride 8, without": ((2, 5, 4, 7), (32, 56), (32, 56)),
    "odd scales": ((2, 4, 7, 9), (50, 61), (50, 61)),
    "cut off": ((2, 4, 5, 7), (40, 56), (33, 50)),
    "cut off within the first tile": ((1, 4, 5, 7), (40, 56), (3, 2)),
    "one pixel of logits": ((2, 3, 1, 1), (8, 9), (8, 9)),
    "one row of logits": ((1, 3, 1, 6), (8, 48), (8, 41)),
    "one pixel": ((2, 3, 1, 1), (1, 1), (1, 1)),
    "one pixel kept": ((1, 3, 2, 2), (16, 16), (1, 1)),
    "one class": ((2, 1, 3, 3), (17, 17), (17, 17)),
    "two classes": ((1, 2, 6, 5), (41, 33), (41, 33)),
    "150 classes": ((1, 150, 6, 5), (41, 33), (41, 33)),
    "255 classes": ((1, 255, 3, 3), (17, 17), (17, 17)),
    "hardly larger": ((1, 4, 9, 9), (10, 13), (10, 13)),
    "the same size": ((1, 4, 9, 9), (9, 9), (9, 9)),
    "smaller": ((2, 4, 20, 20), (7, 3), (7, 3)),
}
TIE = 1e-5  # of the largest logit: so close, rounding decides
OHEM = (("ohem", 1.0),)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(params=[None, 300, "room"], ids=["one block", "many blocks", "at full size"], autouse=True)
def block(request, monkeypatch):
    if request.param == "room":
        monkeypatch.setattr(upsample, "_has_room", lambda *_: True)
    elif request.param:
        monkeypatch.setattr(upsample, "BLOCK", {"cpu": request.param})
    return request.param


def logits(shape, dtype=torch.float32, spread=3.0):
    """Half noise, half a slope: tiles of one class and tiles of many."""
    g = torch.Generator().manual_seed(sum(shape))
    b, c, h, w = shape
    slope = torch.randn(b, c, 1, 1, generator=g) * torch.linspace(-3, 3, h)[:, None]
    return (spread * (torch.randn(shape, generator=g, dtype=torch.float64) + slope)).to(dtype)


def plain(low, padded, size, align_corners):
    low = low.to(torch.promote_types(low.dtype, torch.float32))
    return F.interpolate(low, padded, mode="bilinear", align_corners=align_corners)[:, :, : size[0], : size[1]]


def assert_labels(labels, high, low):
    assert labels.dtype == torch.uint8 and labels.shape == high[:, 0].shape
    differ = labels != high.argmax(1)
    chosen = high.gather(1, labels[:, None].long())[:, 0]
    assert ((high.amax(1) - chosen)[differ] <= TIE * low.abs().max()).all()
    assert differ.float().mean() < 0.01


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("case", CASES)
class TestEverySize:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_labels_and_probabilities(self, case, align_corners, dtype):
        shape, padded, size = CASES[case]
        low = logits(shape, dtype)
        high = plain(low, padded, size, align_corners)
        assert_labels(upsample_argmax(low, padded, size, align_corners), high, low.double())
        labels, p = upsample_argmax(low, padded, size, align_corners, max_probability=True)
        assert_labels(labels, high, low.double())
        torch.testing.assert_close(p, high.softmax(1).amax(1), rtol=1e-5, atol=1e-6)

    def test_losses_and_gradients(self, case, align_corners):
        shape, padded, size = CASES[case]
        low, labels = logits(shape, torch.float64).requires_grad_(), targets(shape, size)
        want = F.cross_entropy(
            plain(low, padded, size, align_corners), labels.long(), ignore_index=255, reduction="none"
        )
        found = upsample_cross_entropy(low, labels, padded, align_corners)
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
        weights = torch.rand(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(gradient(found, low, weights), gradient(want, low, weights), rtol=1e-12, atol=1e-12)


def targets(shape, size):
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, shape[1], (shape[0], *size), generator=g).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=g) < 0.2] = 255
    return labels


def gradient(values, low, weights=1):
    return torch.autograd.grad((values * weights).sum(), low)[0]


@pytest.mark.parametrize("align_corners", [True, False])
def test_many_classes_in_a_tile(align_corners):
    """Noise alone: nearly every class of every tile must be compared at its pixels."""
    low = torch.randn(1, 60, 9, 12, generator=torch.Generator().manual_seed(0))
    labels = upsample_argmax(low, (72, 96), (70, 96), align_corners)
    assert_labels(labels, plain(low, (72, 96), (70, 96), align_corners), low)
    assert len(labels.unique()) > 30


def test_a_class_that_leads_at_no_corner_can_lead_in_between():
    low = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.4, 1.4]])[None, :, None].expand(1, 3, 2, 2)
    labels = upsample_argmax(low, (9, 9), (9, 9), True)
    assert labels[0].tolist() == [[0, 0, 0, 2, 2, 2, 1, 1, 1]] * 9


def test_equal_classes_give_the_first():
    assert not upsample_argmax(torch.zeros(1, 4, 3, 3), (17, 17), (17, 17), True).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_extreme_values(dtype):
    low = logits((1, 5, 5, 5), dtype, spread=1e4).requires_grad_()
    high = plain(low, (33, 33), (33, 33), True)
    assert_labels(upsample_argmax(low, (33, 33), (33, 33), True), high, low.detach().double())
    labels = targets(low.shape, (33, 33))
    found = upsample_cross_entropy(low, labels, (33, 33), True)
    want = F.cross_entropy(high, labels.long(), ignore_index=255, reduction="none")
    torch.testing.assert_close(found, want, rtol=1e-5, atol=0.1)
    # The softmax of logits of 3e4, whose own rounding is 2e-3.
    torch.testing.assert_close(gradient(found, low), gradient(want, low), rtol=1e-2, atol=0.1)


@pytest.mark.parametrize("align_corners", [True, False])
def test_nan_wins_as_in_torch(align_corners):
    low = logits((1, 4, 5, 5))
    low[0, 2, 1, 3] = low[0, 1, 4, 4] = float("nan")
    high = plain(low, (40, 40), (37, 40), align_corners)
    labels = upsample_argmax(low, (40, 40), (37, 40), align_corners)
    assert high.isnan().any() and torch.equal(labels, high.argmax(1).to(torch.uint8))
    known = targets(low.shape, (37, 40))
    losses = upsample_cross_entropy(low, known, (40, 40), align_corners)
    assert torch.equal(losses.isnan(), high.isnan().any(1) & (known != 255))


@pytest.mark.parametrize("layout", ["channels_last", "a part", "transposed"])
def test_any_layout(layout):
    low = logits((2, 6, 8, 10))
    strange = {
        "channels_last": low.contiguous(memory_format=torch.channels_last),
        "a part": torch.cat([low, low], 3)[..., 10:],
        "transposed": low.mT.contiguous().mT,
    }[layout].requires_grad_()
    labels = targets(low.shape, (57, 73))
    assert not strange.is_contiguous()
    assert torch.equal(
        upsample_argmax(strange, (57, 73), (57, 73), True), upsample_argmax(low, (57, 73), (57, 73), True)
    )
    found = upsample_cross_entropy(strange, labels.mT.contiguous().mT, (57, 73), True)
    low = low.requires_grad_()
    want = upsample_cross_entropy(low, labels, (57, 73), True)
    assert torch.equal(found, want) and torch.equal(gradient(found, strange), gradient(want, low))


@pytest.mark.parametrize("align_corners", [True, False])
def test_gradients_are_those_of_finite_differences(align_corners):
    low, labels = logits((2, 3, 3, 2), torch.float64).requires_grad_(), targets((2, 3), (14, 9))
    assert torch.autograd.gradcheck(lambda x: upsample_cross_entropy(x, labels, (16, 9), align_corners), low)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"average": "valid"},
        {"class_weights": (0.5, 1.0, 3.0, 0.0)},
        {"terms": OHEM, "ohem_threshold": 0.3, "ohem_min_kept": 1},
        {"terms": OHEM, "ohem_threshold": 1e-9, "ohem_min_kept": 50},
        {"terms": OHEM, "ohem_threshold": 0.5, "class_weights": (0.5, 1.0, 3.0, 0.1)},
    ],
    ids=str,
)
def test_every_loss(config, dtype):
    loss, tolerance = PixelLoss(LossConfig(**config), "abcd"), 1e-12 if dtype == torch.float64 else 1e-5
    low = logits((2, 4, 5, 7), dtype).requires_grad_()
    labels = targets(low.shape, (33, 50))
    want = loss(plain(low, (40, 56), (33, 50), True), labels)
    found = loss.of_low(low, labels, (40, 56), True)
    assert found.dtype == want.dtype
    torch.testing.assert_close(found, want, rtol=tolerance, atol=0)
    if "terms" not in config:
        high, weights = plain(low.double(), (40, 56), (33, 50), True), loss.weights
        weights = weights if weights is None else weights.double()
        stated = F.cross_entropy(high, labels.long(), weights, ignore_index=255, reduction="sum")
        torch.testing.assert_close(found.double(), stated, rtol=tolerance, atol=0)
    ours, theirs = gradient(found, low), gradient(want, low)
    assert ours.dtype == dtype
    rounding = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, tolerance)
    torch.testing.assert_close(ours, theirs, rtol=rounding, atol=rounding * theirs.abs().max().item())


def test_hard_pixels_of_equal_loss_count_all():
    loss = PixelLoss(LossConfig(terms=OHEM, ohem_threshold=1e-9, ohem_min_kept=5), "abc")
    low, labels = torch.zeros(1, 3, 2, 2, requires_grad=True), torch.zeros(1, 9, 9, dtype=torch.uint8)
    found = loss.of_low(low, labels, (9, 9), True)
    torch.testing.assert_close(found, torch.tensor(3.0).log() * 81)
    torch.testing.assert_close(gradient(found, low).sum((2, 3)), torch.tensor([[-54.0, 27.0, 27.0]]))


@pytest.mark.parametrize("terms", [LossConfig().terms, OHEM], ids=str)
def test_all_ignored_gives_zero_and_a_zero_gradient(terms):
    loss = PixelLoss(LossConfig(terms=terms), "abc")
    low, labels = logits((2, 3, 3, 3)).requires_grad_(), torch.full((2, 17, 17), 255, dtype=torch.uint8)
    value = loss.of_low(low, labels, (17, 17), True)
    assert value == 0 and not gradient(value, low).any()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_images_and_no_content_have_the_shapes(device):
    low = torch.zeros(0 if device == "cpu" else 2, 4, 5, 5, device=device, dtype=torch.bfloat16).requires_grad_()
    known = torch.zeros(len(low), 33, 30, device=device, dtype=torch.uint8)
    labels = upsample_argmax(low, (33, 33), (33, 30), True)
    assert (labels.shape, labels.dtype, labels.device) == (known.shape, torch.uint8, known.device)
    labels, p = upsample_argmax(low, (33, 33), (33, 30), True, max_probability=True)
    assert labels.shape == p.shape == known.shape and p.dtype == torch.float32
    losses = upsample_cross_entropy(low, known, (33, 33), True)
    assert losses.shape == known.shape and losses.device == known.device
    assert gradient(losses, low).shape == low.shape


def test_more_classes_than_labels_have_values_are_refused():
    low = torch.zeros(1, 256, 2, 2)
    low[:, 255] = 1
    assert (upsample_argmax(low, (9, 9), (9, 9), True) == 255).all()
    with pytest.raises(ValueError, match="257 classes do not fit"):
        upsample_argmax(torch.zeros(1, 257, 2, 2), (9, 9), (9, 9), True)


@pytest.mark.parametrize("case", CASES)
def test_memory_that_nobody_wrote_to_is_not_read(case, monkeypatch):
    shape, padded, size = CASES[case]
    low, labels = logits(shape).requires_grad_(), targets(shape, size)
    want = upsample_cross_entropy(low, labels, padded, True)
    want_grad = gradient(want, low)
    wanted = upsample_argmax(low, padded, size, True, max_probability=True)

    def poisoned(make, *values, **options):
        made = make(*values, **options)
        return made.fill_(torch.nan if made.is_floating_point() else 99)

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *values, make=make, **options: poisoned(make, *values, **options))
    found = upsample_cross_entropy(low, labels, padded, True)
    assert torch.equal(found, want) and torch.equal(gradient(found, low), want_grad)
    got = upsample_argmax(low, padded, size, True, max_probability=True)
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
    assert not (upsample_argmax(low, padded, size, True) == 99).any() or shape[1] > 99


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_logits_of_one_pixel_reach_no_further_than_its_tiles(value):
    low = logits((1, 4, 5, 5))
    want = upsample_argmax(low, (33, 33), (33, 33), True)
    low[0, 2, 1, 3] = value
    labels = upsample_argmax(low, (33, 33), (33, 33), True)
    far = torch.ones(33, 33, dtype=torch.bool)
    far[0:17, 16:33] = False
    assert torch.equal(labels[0][far], want[0][far])
    if value > 0:
        assert torch.equal(labels, plain(low, (33, 33), (33, 33), True).argmax(1).to(torch.uint8))


def test_labels_that_are_no_class_are_an_error(block):
    error, text = (IndexError, "Target 3") if block == "room" else (RuntimeError, "index 3")
    with pytest.raises(error, match=f"{text} is out of bounds"):
        upsample_cross_entropy(torch.zeros(1, 3, 1, 1), torch.full((1, 8, 8), 3), (8, 8), True)


def test_full_size_is_for_gpus_with_room(monkeypatch):
    monkeypatch.undo()
    memory = SimpleNamespace(total_memory=16 * 4 * 4 * 3 * 40 * 50)  # 16 times four copies of the logits
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    assert not upsample._has_room(logits((1, 3, 5, 7)), (40, 50), 4)
    on_gpu = SimpleNamespace(is_cuda=True, device="cuda", shape=(1, 3, 5, 7), element_size=lambda: 2)
    assert upsample._has_room(on_gpu, (40, 50), 4) and not upsample._has_room(on_gpu, (40, 50), 5)


def test_autocast_changes_nothing():
    low, labels = logits((2, 4, 5, 7)).requires_grad_(), targets((2, 4), (33, 50))
    want = upsample_cross_entropy(low, labels, (33, 50), True)
    expected = gradient(want, low), upsample_argmax(low, (33, 50), (33, 50), True)
    with torch.autocast("cpu", torch.bfloat16):
        found = upsample_cross_entropy(low, labels, (33, 50), True)
        assert torch.equal(found, want) and torch.equal(gradient(found, low), expected[0])
        assert torch.equal(upsample_argmax(low, (33, 50), (33, 50), True), expected[1])


def test_what_is_around_it_can_be_compiled():
    low, labels = logits((2, 4, 5, 7)).requires_grad_(), targets((2, 4), (33, 50))
    loss = PixelLoss(LossConfig(), "abcd")

    def step(low):
        return loss.of_low(low * 2, labels, (33, 50), True) / 3

    found, want = torch.compile(step, backend="aot_eager")(low), step(low)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(gradient(found, low), gradient(want, low))


def test_what_is_around_the_labels_can_be_compiled_for_any_size():
    run = torch.compile(lambda low, size: upsample_argmax(low * 2, size, size, True) + 1, backend="aot_eager")
    for shape, size in (((1, 4, 5, 7), (33, 49)), ((2, 4, 6, 3), (41, 17)), ((1, 4, 7, 9), (49, 65))):
        low = logits(shape)
        assert torch.equal(run(low, size), upsample_argmax(low * 2, size, size, True) + 1)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])  # the second pads its images
def test_models_train_and_predict_as_with_logits_at_full_size(backbone, align_corners):
    config = ModelConfig(
        backbone=BackboneConfig(name=backbone, pretrained=False, output_stride=8),
        head=HeadConfig(channels=16, num_bases=8, fc1_channels=16),
        aux_head=True,
        align_corners=align_corners,
    )
    torch.manual_seed(0)
    model = build_model(config, "abcd").eval()
    torch.nn.init.normal_(model.head.classifier.weight)
    images, labels = torch.rand(2, 3, 37, 50), targets((2, 4), (37, 50))
    with torch.no_grad():
        high = padded_logits(model, model.normalise(images))
        assert_labels(predict_labels(model, images), high, high)
    model.training = True  # so that there are auxiliary logits, while nothing depends on the batch
    x = model.normalise(images)
    high, aux = (model.upsample(low, (37, 50)) for low in model.low_logits(x))
    loss = PixelLoss(LossConfig(), "abcd")
    found = StepNet(model, loss)(images, labels)
    torch.testing.assert_close(found, loss(high, labels) + 0.4 * loss(aux, labels))


@pytest.mark.parametrize("block", [None], indirect=True)
def test_memory_does_not_grow_with_the_classes():
    """Of the plain way only its logits are counted, and it has three times as much in training."""
    cpu, size = torch.device("cpu"), (513, 513)
    labels = targets((1, 50), size)

    def train(low):
        upsample_cross_entropy(low, labels, size, True).sum().backward()

    runs = {
        "labels": lambda low: upsample_argmax(low, size, size, True),
        "probabilities": lambda low: upsample_argmax(low, size, size, True, max_probability=True),
        "loss": train,
    }
    few, many = logits((1, 50, 65, 65)).requires_grad_(), logits((1, 250, 65, 65)).requires_grad_()
    peaks = {
        name: (peak_memory(lambda r=r: r(few), cpu), peak_memory(lambda r=r: r(many), cpu)) for name, r in runs.items()
    }
    logits_at_full_size = 250 * 513 * 513 * 4
    assert peaks["labels"][1] < 0.05 * logits_at_full_size, peaks
    assert max(peaks["probabilities"][1], peaks["loss"][1]) < 0.05 * 3 * logits_at_full_size, peaks
    assert all(of_many < 2 * of_few for of_few, of_many in peaks.values()), peaks
