import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from emanet import backbones
from emanet.config import BackboneConfig
from emanet.errors import InputError


def build(name="test_resnet", **options):
    return backbones.build(BackboneConfig(name=name, **{"pretrained": False, **options}))


@pytest.mark.parametrize(("stride", "dilations"), [(8, [2, 8, 16]), (16, [1, 4, 8])])
def test_multi_grid_dilates_as_the_original(stride, dilations):
    net = build("resnet50s", output_stride=stride, multi_grid=(1, 2, 4)).net
    convs = [block.conv2 for block in net.layer4]
    assert [conv.dilation[0] for conv in convs] == [conv.padding[0] for conv in convs] == dilations
    assert [block.conv2.dilation[0] for block in net.layer3] == ([1, 2, 2, 2, 2, 2] if stride == 8 else [1] * 6)


@pytest.mark.parametrize(
    ("stride", "layer3", "layer4"), [(8, [2] * 6, [4] * 3), (16, [1] * 6, [2] * 3), (32, [1] * 6, [1] * 3)]
)
def test_uniform_dilates_as_paddleseg(stride, layer3, layer4):
    net = build("resnet50d", output_stride=stride, dilation="uniform").net
    assert [block.conv2.dilation[0] for block in net.layer3] == layer3
    assert [block.conv2.dilation[0] for block in net.layer4] == layer4
    averaged = [isinstance(layer[0].downsample[0], nn.AvgPool2d) for layer in (net.layer2, net.layer3, net.layer4)]
    assert averaged == [True, stride > 8, stride > 16]  # where the block strides
    assert net.layer1[0].downsample[0].__class__ is nn.Identity


def test_uniform_and_multi_grid():
    net = build("resnet50s", output_stride=8, dilation="uniform", multi_grid=(1, 2, 4)).net
    assert [block.conv2.dilation[0] for block in net.layer4] == [4, 8, 16]


def test_uniform_is_for_resnets():
    with pytest.raises(InputError, match="dilation is 'uniform', but mobilenetv2_100 is not a ResNet"):
        build("mobilenetv2_100", output_stride=8, dilation="uniform")


@pytest.mark.parametrize(("name", "millions"), [("resnet50s", 23.63), ("resnet101s", 42.62), ("resnet152s", 58.27)])
def test_the_originals_stem(name, millions):
    with torch.device("meta"):
        net = build(name).net
    stem = [m for m in net.conv1.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in stem] == [64, 64, 128] and {m.kernel_size for m in stem} == {(3, 3)}
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_any_number_of_input_channels(channels):
    maps = build(in_channels=channels)(torch.randn(1, channels, 33, 33))
    assert [m.shape[1] for m in maps] == build().channels


def test_frozen_keeps_weights_and_statistics():
    backbone = build(frozen=True).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    maps = backbone(torch.randn(2, 3, 33, 33))
    assert not maps[-1].requires_grad
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_a_file_of_the_whole_model_loads_and_gives_its_features(name, tmp_path):
    whole = timm.create_model(name)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    backbone = build(name, pretrained=str(tmp_path / "weights.pth"), output_stride=32).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)[-1], whole.eval().forward_intermediates(x, intermediates_only=True)[-1])


def test_a_file_with_other_keys_is_refused_by_name(tmp_path):
    path = tmp_path / "weights.pth"
    state = timm.create_model("test_resnet").state_dict()
    torch.save({key: value for key, value in state.items() if key != "bn1.weight"} | {"odd": torch.ones(1)}, path)
    with pytest.raises(InputError, match=r"weights.pth does not fit .*missing: bn1.weight; unexpected: odd"):
        build(pretrained=str(path))
    torch.save(state | {"bn1.weight": torch.ones(3)}, path)
    with pytest.raises(InputError, match=r"bn1.weight has shape \(3,\), not \(32,\)"):
        build(pretrained=str(path))
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot read weights from"):
        build(pretrained=str(path))
    with pytest.raises(InputError, match="no file of pretrained weights at"):
        build(pretrained=str(tmp_path / "absent.pth"))


def test_a_file_is_read_as_any_foreign_one(tmp_path):
    path = tmp_path / "weights.pth"
    for content, message in (
        ({"x": bytearray(3)}, "cannot read weights from .*weights.pth: it is refused, .*bytearray"),
        (
            {"bn1.weight": torch.zeros(1).expand(32)},
            "cannot read weights from .*: bn1.weight in it is an expanded view",
        ),
        ({"bn1.weight": 3}, "cannot read weights from .*: bn1.weight is not a tensor"),
        ({"state_dict": 3}, "cannot read weights from .*: state_dict is not a tensor"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=message):
            build(pretrained=str(path))


def test_a_file_of_three_channels_is_adapted_to_four(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pth")
    backbone = build(pretrained=str(tmp_path / "weights.pth"), in_channels=4)
    assert backbone.net.state_dict()["conv1.0.weight"].shape[1] == 4


def test_shared_mobilenet_loads_strictly(mobilenet_weights):
    options = {"pad_type": "same", "bn_eps": 1e-3}
    backbone = build("mobilenetv2_100", pretrained=mobilenet_weights, options=options)
    assert backbone.net.bn1.running_mean.abs().sum() > 0


def test_wrong_names_and_arguments():
    with pytest.raises(InputError, match="no model 'resnet101z'; did you mean"):
        build("resnet101z")
    with pytest.raises(InputError, match="cannot be built with"):
        build(options={"no_such_argument": 1})
    with pytest.raises(InputError, match="multi_grid"):
        build("mobilenetv2_100", multi_grid=(1, 2, 4))


def test_a_model_of_fixed_stride_is_taken_at_its_own():
    assert build("densenet121", output_stride=32).stride == 32
    with pytest.raises(InputError, match="output_stride is 8, but densenet121 gives 32"):
        build("densenet121", output_stride=8)


def test_without_hub_the_error_says_what_to_do(monkeypatch):
    def offline(*arguments, **keywords):
        raise OSError("no route")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match="cannot get the pretrained weights of resnet50s .* model.backbone.pretrained"):
        build("resnet50s", pretrained=True)


def test_a_vision_transformer_takes_images_of_any_size_and_the_whole_models_weights(tmp_path):
    name = "test_vit"  # patches of 16
    whole = timm.create_model(name, num_classes=0)
    file = tmp_path / "vit.safetensors"
    save_file({key: value.half() for key, value in whole.state_dict().items()}, file)
    backbone = build(name, pretrained=str(file), output_stride=16, options={"out_indices": 1})
    assert (backbone.stride, backbone.divisor, len(backbone.channels)) == (16, 32, 1)
    (maps,) = backbone(torch.randn(1, 3, 64, 96))
    assert maps.shape[2:] == (4, 6)
    torch.testing.assert_close(
        backbone.net.state_dict()["model.cls_token"], whole.cls_token.detach(), atol=1e-3, rtol=0
    )


def test_patches_of_14_pixels_pad_to_14():
    with torch.device("meta"):
        backbone = build("vit_small_patch14_dinov2", output_stride=14)
        assert (backbone.stride, backbone.divisor) == (14, 14)
        assert backbone(torch.randn(1, 3, 28, 42))[-1].shape[2:] == (2, 3)


def test_a_frozen_backbone_keeps_the_maps_of_images_that_come_again(monkeypatch):
    backbone = build(frozen=True, keep=1.0).train()
    calls, forward = [], backbone.net.forward
    monkeypatch.setattr(backbone.net, "forward", lambda x: calls.append(len(x)) or forward(x))
    x = torch.randn(2, 3, 32, 32)
    first, again, turned = backbone(x), backbone(x), backbone(x.flip(0))
    assert calls == [1, 1]
    for a, b, c, plain in zip(first, again, turned, forward(x), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c.flip(0))
        torch.testing.assert_close(a, plain)
    backbone(x.view(2, 3, 16, 64))
    assert calls == [1, 1, 1, 1], "another shape is another image"
    backbone.eval()(x)
    assert calls[-1] == 2, "only in training"
    assert not any("kept" in key for key in backbone.state_dict())
    kept = build(frozen=True, keep=1e-6).train()
    assert kept(x) and not kept.kept.maps, "no more memory than allowed"
