"""Keys of others and ours, both ways, and which layout a file's keys are."""

import pytest

from emanet.convert.layouts import LAYOUTS, recognise, resnet_name, stem_of
from emanet.errors import InputError

PAIRS = [
    ("original", "extractor.0.3.weight", "backbone.net.conv1.3.weight"),
    ("original", "extractor.1.running_var", "backbone.net.bn1.running_var"),
    ("original", "extractor.6.22.bn3.bias", "backbone.net.layer3.22.bn3.bias"),
    ("original", "extractor.7.0.downsample.1.weight", "backbone.net.layer4.0.downsample.1.weight"),
    ("original", "fc0.bn.running_mean", "head.fc0.1.running_mean"),
    ("original", "emau.mu", "head.emau.bases"),
    ("original", "emau.conv2.1.weight", "head.emau.bn_out.weight"),
    ("original", "fc2.bias", "head.classifier.bias"),
    ("mmseg", "backbone.stem.7.weight", "backbone.net.bn1.weight"),
    ("mmseg", "decode_head.ema_mid_conv.conv.bias", "head.emau.conv_in.bias"),
    ("mmseg", "decode_head.conv_cat.bn.weight", "head.concat.1.weight"),
    ("mmseg", "auxiliary_head.convs.0.conv.weight", "aux_head.fc0.0.weight"),
    ("ssseg", "backbone_net.layer1.0.conv1.weight", "backbone.net.layer1.0.conv1.weight"),
    ("ssseg", "decoder.1.bias", "head.concat.1.bias"),
    ("ssseg", "decoder.4.weight", "head.classifier.weight"),
    ("ssseg", "auxiliary_decoder.4.bias", "aux_head.classifier.bias"),
    ("paddleseg", "backbone.conv1_3._batch_norm._mean", "backbone.net.bn1.running_mean"),
    ("paddleseg", "backbone.bb_2_35.conv1._conv.weight", "backbone.net.layer3.35.conv2.weight"),
    ("paddleseg", "backbone.bb_0_0.short._batch_norm._variance", "backbone.net.layer1.0.downsample.2.running_var"),
    ("paddleseg", "head.ema_out_conv._conv.bias", "head.emau.conv_out.bias"),
    ("paddleseg", "head.aux.2.weight", "aux_head.classifier.weight"),
    ("encoding", "conv1.6.weight", "conv1.6.weight"),
    ("torchvision", "fc.bias", "fc.bias"),
    ("v1c", "stem.4.bias", "conv1.4.bias"),
    ("timm", "blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.weight"),
]


@pytest.mark.parametrize(("layout", "theirs", "ours"), PAIRS)
def test_a_key_is_translated_and_back(layout, theirs, ours):
    assert LAYOUTS[layout].ours(theirs) == ours and LAYOUTS[layout].theirs(ours) == theirs


def test_no_two_prefixes_mean_the_same():
    for layout in LAYOUTS.values():
        assert len(set(layout.prefixes.values())) == len(layout.prefixes)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "timm"])
@pytest.mark.parametrize(
    "key", ["layer5.0.conv1.weight", "head", "", "extractor.2.weight", "fc1.weight", "stem.weight"]
)
def test_other_keys_are_unknown(layout, key):
    assert LAYOUTS[layout].ours(key) is None


def test_resnets_by_their_shapes():
    def shapes(stem, blocks, conv3="layer1.0.conv3.weight"):
        return stem | {f"layer3.{i}.conv1.weight": (1,) for i in range(blocks)} | {conv3: (1,)}

    deep = {"conv1.0.weight": (64, 3, 3, 3)}
    narrow = {"conv1.0.weight": (32, 3, 3, 3)}
    averaged = narrow | {"layer1.0.downsample.2.weight": (256,)}
    plain = {"conv1.weight": (64, 3, 7, 7)}
    for stem, kind in ((deep, "s"), (narrow, "c"), (averaged, "d"), (plain, "")):
        for blocks, depth in ((6, 50), (23, 101), (36, 152)):
            found = shapes(stem, blocks)
            assert resnet_name(found, stem_of(found)) == f"resnet{depth}{kind}"
    assert resnet_name(shapes(plain, 6, "layer1.0.conv2.weight"), "") == "resnet34"
    assert resnet_name(shapes(plain, 7), "") == resnet_name({"a": (1,)}, stem_of({"a": (1,)})) == ""
    wide = shapes(plain, 6) | {"layer1.1.conv2.weight": (128, 128, 3, 3)}
    assert resnet_name(wide, "") == ""


def test_an_unknown_layout_names_the_nearest_and_the_options():
    shapes = {"decode_head.conv_seg.weight": (1,), "decode_head.psp.0.weight": (1,), "neck.weight": (1,)}
    message = r"the keys of x.pth fit no layout \(for example 'decode_head.psp.0.weight'; mmseg knows 33%"
    with pytest.raises(
        InputError, match=message + r".*--from, or a timm model with --backbone; layouts: original, mmseg,"
    ):
        recognise(shapes, "", "x.pth")
    assert recognise(shapes, "convnext_tiny", "x.pth") == "timm"
    with pytest.raises(InputError, match="this program's own keys; there is nothing to convert"):
        recognise({"backbone.net.conv1.0.weight": (1,), "head.x": (1,)}, "", "x.pth")
