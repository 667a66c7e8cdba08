"""One contract for every head on every backbone at every stride."""

import itertools
import json

import pytest
import timm
import torch
from safetensors.torch import save_file

import emanet
from emanet.config import DatasetSpec
from emanet.errors import InputError
from emanet.experiments import load_experiment, override, to_dict
from emanet.heads import HEADS
from emanet.loading import read, start_from
from emanet.model import build_model
from emanet.weights.model_file import save_model

BACKBONES = ["test_resnet", "test_convnext", "mobilenetv2_100", "resnet50s"]
SPEC = DatasetSpec(classes=("a", "b", "c"))
DECODERS = ("deeplabv3plus", "dfn", "ema_fusion", "gcn", "refinenet")  # their logits have stride 4


def experiment(backbone="test_resnet", head="ema", stride=8, **changes):
    base = {
        "model.backbone.name": backbone,
        "model.backbone.output_stride": stride,
        "model.head.name": head,
        "model.head.channels": 16,
        "model.head.num_bases": 8,
        "model.head.fc1_channels": 16,
        "model.head.aspp_channels": 16,
        "model.head.decoder_channels": 16,
        "model.head.window": (4, 4),
        "data.spec": SPEC,
    }
    return override(load_experiment("drawn"), base | changes)


def build(*arguments, **changes):
    torch.manual_seed(0)
    return build_model(experiment(*arguments, **changes).model, SPEC)


def contracts():
    """Every combination; of the large backbones at other strides than 8, the paper's head alone is quick."""
    for head, backbone, stride in itertools.product(sorted(HEADS), BACKBONES, (8, 16, 32)):
        quick = head == "ema" or stride == 8 or backbone.startswith("test_")
        yield pytest.param(head, backbone, stride, marks=[] if quick else pytest.mark.slow)


@pytest.mark.parametrize(("head", "backbone", "stride"), [*contracts()])
class TestContract:
    def test_learns_at_odd_sizes_and_survives_a_file(self, head, backbone, stride, tmp_path):
        config = experiment(backbone, head, stride)
        model = build(backbone, head, stride).train()
        images = torch.randint(0, 256, (2, 3, 65, 43), dtype=torch.uint8)
        logits = model(images)
        assert logits.shape == (2, 3, 65, 43) and logits.dtype == torch.float32
        logits.square().mean().backward()
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
        assert next(model.head.classifier.parameters()).grad.any() and next(model.head.parameters()).grad.any()

        padded = 96 if model.backbone.divisor == 32 else 65
        low = model.low_logits(model.normalise(images))[0]
        assert low.shape[2] == -(-padded // (4 if head in DECODERS else stride))
        save_model(tmp_path / "m.safetensors", model, config, step=3)
        again = emanet.load(tmp_path / "m.safetensors")
        assert torch.equal(again(images), model.eval()(images))
        assert again.classes == ("a", "b", "c") and again.palette == SPEC.colours


def test_floats_of_0_to_255_are_refused():
    model = build("test_resnet").eval()
    images = torch.randint(0, 256, (1, 3, 33, 33), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"go up to 255, but floats must be in \[0, 1\]"):
        model(images.float())
    torch.testing.assert_close(model(images / 255), model(images))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert model.normalise(mode.from_tensor(images / 255)).shape == images.shape
    exported = torch.export.export(model, (images / 255,)).module()  # without the check
    torch.testing.assert_close(exported(images / 255), model(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
@pytest.mark.parametrize("head", sorted(HEADS))
def test_any_size(head, backbone):
    model = build(backbone, head).eval()
    for size in [(1, 1), (1, 40), (33, 1), (47, 33)]:
        logits = model(torch.rand(1, 3, *size))
        assert logits.shape == (1, 3, *size) and logits.isfinite().all()


@pytest.mark.parametrize(("head", "old"), [("deeplabv3", 6), ("deeplabv3plus", 0), ("refinenet", 6), ("ema", 0)])
def test_model_files_from_before_the_split_of_fc1_channels_load(head, old, tmp_path):
    """Written with fc1_channels for all heads, without newer settings, and with some that nothing used."""
    new = {"ema": "fc1_channels", "refinenet": "decoder_channels"}.get(head, "aspp_channels")
    config = experiment(head=head, **{f"model.head.{new}": old or 16 * (head != "ema")})
    torch.manual_seed(0)
    model = build_model(config.model, SPEC).eval()
    values = to_dict(config)
    for name in ("aspp_channels", "decoder_channels", "backend"):
        del values["model"]["head"][name]
    values["model"]["head"] |= {"fc1_channels": old, "rates": [12, 24, 36], "bins": [5]}
    header = {"emanet": json.dumps({"experiment": values})}
    save_file(model.state_dict(), tmp_path / "m.safetensors", header)
    images = torch.rand(1, 3, 33, 33)
    assert torch.equal(emanet.load(tmp_path / "m.safetensors")(images), model(images))


def test_uint8_and_float_are_the_same_pixels():
    model = build().eval()
    images = torch.randint(0, 256, (1, 3, 33, 33), dtype=torch.uint8)
    torch.testing.assert_close(model(images), model(images / 255))


def test_floats_of_0_to_255_are_refused_and_normalised_ones_warned_of():
    model = build().eval()
    images = torch.rand(1, 3, 33, 33)
    with pytest.raises(ValueError, match=r"in \[0, 1\]: divide by 255, or pass uint8"):
        model(images * 255)
    with pytest.warns(UserWarning, match="as if normalised already"):
        model((images - 0.45) / 0.225)
    model(images * 1.2 - 0.1)  # as bicubic resizing may leave it
    model.normalise(images[:0])
    build().to("meta").normalise(images.to("meta"))


def test_float64_images_are_welcome():
    images = torch.rand(1, 3, 33, 33, dtype=torch.float64)
    assert build().eval()(images).dtype == torch.float32


def test_normalises_with_its_own_buffers():
    model = build(**{"model.mean": (0.1, 0.2, 0.3), "model.std": (0.5, 0.25, 1.0)})
    white = model.normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    torch.testing.assert_close(white.flatten(), torch.tensor([1.8, 3.2, 0.7]))
    assert {"mean", "std"} <= dict(model.named_buffers()).keys()


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\), got \(3, 33, 33\)"):
        build()(torch.rand(3, 33, 33))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), got \(1, 4, 33, 33\)"):
        build()(torch.rand(1, 4, 33, 33))
    with pytest.raises(TypeError, match="uint8 in .* or floating in .*int64"):
        build()(torch.zeros(1, 3, 33, 33, dtype=torch.int64))


def test_float32_out_under_autocast_and_bases_in_float32():
    model = build().train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(2, 3, 33, 33))
    assert logits.dtype == torch.float32 and model.head.emau.bases.dtype == torch.float32


@pytest.mark.parametrize("head", sorted(HEADS))
def test_learns_under_autocast(head):
    model = build(head=head).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(2, 3, 33, 33))
    logits.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.head.parameters() if p.requires_grad)
    assert next(model.head.parameters()).grad.any()


@pytest.mark.parametrize("head", sorted(HEADS))
def test_learns_from_one_image_at_a_time(head):
    """BatchNorm after global pooling would see one value per channel."""
    model = build(head=head).train()
    model(torch.rand(1, 3, 10, 33)).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.head.parameters() if p.requires_grad)


@pytest.mark.parametrize("head", sorted(HEADS))
def test_goes_to_other_classes(head, tmp_path):
    source = build(head=head)
    save_model(tmp_path / "m.safetensors", source, experiment(head=head))
    target = build_model(experiment(head=head).model, ["w", "x", "y", "z"])
    loaded, fresh = start_from(target, read(tmp_path / "m.safetensors"))
    assert fresh and all(key.startswith("head.classifier.") for key in fresh)
    weights = source.state_dict()
    assert all(torch.equal(target.state_dict()[key], weights[key]) for key in loaded if key not in ("mean", "std"))


def test_auxiliary_logits_in_training_only():
    model = build(**{"model.aux_head": True})
    x = model.normalise(torch.rand(2, 3, 33, 33))
    assert model.train().low_logits(x)[1].shape[:2] == (2, 3)
    assert model.eval().low_logits(x)[1] is None


def test_align_corners_is_applied():
    images = torch.rand(1, 3, 33, 33)
    with_it, without = build().eval(), build(**{"model.align_corners": False}).eval()
    assert not torch.allclose(with_it(images), without(images))


def test_batchnorm_momentum_reaches_every_layer():
    model = build(**{"model.bn_momentum": 3e-4})
    assert {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {3e-4}


def test_class_names_are_enough_to_build():
    model = build_model(experiment().model, ["x", "y"])
    assert model.classes == ("x", "y") and len(model.palette) == 2


@pytest.mark.parametrize("head", sorted(HEADS))
def test_batch_of_one_matches_batch_of_many(head):
    model = build(head=head).eval()
    images = torch.rand(3, 3, 41, 33)
    torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-4, atol=1e-5)


def test_hub_weights_need_their_own_statistics(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **rest: create(name, **rest))  # no download
    half = (0.5, 0.5, 0.5)  # how timm's test models were trained
    hub = {"model.backbone.pretrained": True}
    assert build(**hub, **{"model.mean": half, "model.std": half}).stride == 8
    with pytest.raises(InputError, match=r"test_resnet need model.mean \(0.5, 0.5, 0.5\)"):
        build(**hub)


def test_unknown_head_is_an_input_error():
    with pytest.raises(InputError, match="no head"):
        build(head="transformer")
