"""The text of a config and the classes inside mmsegmentation's files, and what convert() makes of them."""

import re

import pytest
import torch
from source_shapes import AUX, C1
from test_convert import state_of

from emanet.config import EvalConfig
from emanet.convert.convert import convert
from emanet.convert.mmconfig import UNREAD, Stated, mmseg_classes, mmseg_settings, parse
from emanet.data.datasets import SPECS
from emanet.errors import InputError

TEXT = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    backbone=dict(type='ResNetV1c', dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True),
    decode_head=dict(type='EMAHead', num_stages=3, norm_cfg=norm_cfg, align_corners=True))
"""


def read(text, **options):
    return mmseg_settings({"meta": {"cfg": text}}, **options)


def replaced(old, new, **options):
    assert old in TEXT
    return read(TEXT.replace(old, new), **options)


@pytest.mark.parametrize("key", ["config", "cfg"])
def test_a_config_tells_what_the_weights_do_not(key):
    stated = mmseg_settings({"meta": {key: TEXT}})
    assert stated.settings == {
        "align_corners": True,
        "head.em_steps": 3,
        "backbone.output_stride": 8,
        "backbone.dilation": "contract",
        "bn_momentum": 0.1,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    assert stated.evaluation == EvalConfig() and not stated.unread


def test_other_configs():
    stride_16 = TEXT.replace(
        "dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)", "dilations=(1, 1, 1, 2), strides=(1, 2, 2, 1)"
    )
    assert read(stride_16).settings["backbone.output_stride"] == 16
    plain = replaced("dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True", "depth=50").settings
    assert plain["backbone.output_stride"] == 32 and "backbone.dilation" not in plain
    assert replaced("contract_dilation=True", "depth=50").settings["backbone.dilation"] == "uniform"
    data = "data_preprocessor=dict(mean=[127.5, 127.5, 127.5]), decode_head"
    assert replaced("decode_head", data).settings["mean"] == (0.485, 0.456, 0.406)  # 0.x's own comes first
    with pytest.raises(InputError, match="sets multi_grid .* give the factors with --multi-grid"):
        replaced("contract_dilation=True", "multi_grid=(4, 8, 16)")
    assert replaced("contract_dilation=True", "multi_grid=(4, 8, 16)", multi_grid_given=True).settings


@pytest.mark.parametrize(
    ("part", "setting", "message"),
    [
        ("backbone=dict(", "style='caffe'", "backbone.style to 'caffe'"),
        ("backbone=dict(", "avg_down=True", "backbone.avg_down to True"),
        ("backbone=dict(", "deep_stem=False", "backbone.deep_stem to False"),
        ("backbone=dict(", "conv_cfg=dict(type='DCNv2')", "backbone.conv_cfg to {'type': 'DCNv2'}"),
        ("backbone=dict(", "dcn=dict(type='DCN')", "backbone.dcn to"),
        ("backbone=dict(", "plugins=[dict(cfg=dict(type='GCB'))]", "backbone.plugins to"),
        ("backbone=dict(", "norm_cfg=dict(type='BN', eps=1e-3)", "backbone.norm_cfg eps to 0.001"),
        ("backbone=dict(", "norm_cfg=dict(type='GN')", "backbone.norm_cfg type to 'GN'"),
        ("backbone=dict(", "norm_cfg=dict(type='BN', momentum=0.01)", "norm_cfg momentum to 0.1"),
        ("decode_head=dict(", "act_cfg=dict(type='LeakyReLU')", "decode_head.act_cfg to"),
        ("decode_head=dict(", "act_cfg=None", "decode_head.act_cfg to None"),
        ("decode_head=dict(", "in_index=2", "decode_head.in_index to 2"),
        ("decode_head=dict(", "input_transform='resize_concat'", "decode_head.input_transform to 'resize_concat'"),
        ("decode_head=dict(", "out_channels=1", "decode_head.out_channels to 1"),
        ("decode_head=dict(", "threshold=0.3", "decode_head.threshold to 0.3"),
        ("model = dict(", "neck=dict(type='FPN')", "model.neck to"),
        ("model = dict(", "auxiliary_head=dict(type='FCNHead', dilation=2)", "auxiliary_head.dilation to 2"),
        ("model = dict(", "test_cfg=dict(mode='slide')", "test_cfg mode slide without crop_size and stride"),
    ],
)
def test_what_models_here_cannot_have_is_named(part, setting, message):
    with pytest.raises(InputError, match=re.escape(message)):
        replaced(part, f"{part}{setting}, ")


def test_another_type_is_named():
    for old, new in (("'EMAHead'", "'PSPHead'"), ("'ResNetV1c'", "'ResNeSt'")):
        with pytest.raises(InputError, match=new):
            replaced(old, new)
    assert replaced("'EMAHead'", "'mmseg.EMAHead'").settings
    with pytest.raises(
        InputError, match=r"strides \(1, 2, 1, 1\) with dilations \(1, 1, 1, 1\), which fit no output stride"
    ):
        replaced("(1, 1, 2, 4)", "(1, 1, 1, 1)")


def test_neutral_values_and_the_heads_numbers():
    settings = replaced(
        "num_stages=3",
        "num_stages=5, in_index=-1, momentum=0.25, channels=8, ema_channels=16, num_bases=4, concat_input=False, "
        "dropout_ratio=0.2, act_cfg=dict(type='ReLU'), conv_cfg=None, input_transform=None",
    ).settings
    head = {name.removeprefix("head."): value for name, value in settings.items() if name.startswith("head.")}
    numbers = {"em_steps": 5, "bases_keep": 0.75, "fc1_channels": 8, "channels": 16, "num_bases": 4}
    assert head == numbers | {"concat": False, "dropout": 0.2}


def test_windows_of_the_test_configuration():
    config = "test_cfg=dict(mode='slide', crop_size=(769, 769), stride=(513, 513)), decode_head"
    evaluation = replaced("decode_head", config).evaluation
    assert (evaluation.mode, evaluation.window) == ("slide", (769, 769))
    assert evaluation.overlap == pytest.approx(256 / 769, abs=1e-6)


PREPROCESSOR = "data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[51, 51, 51]{}), decode_head"


def test_pixels_of_both_versions():
    """0.x turns BGR to RGB unless told not to, 1.x only if told to."""
    new = TEXT.replace("img_norm_cfg", "other")
    settings = read(new.replace("decode_head", PREPROCESSOR.format(", bgr_to_rgb=True"))).settings
    assert settings["mean"] == (0.5, 0.5, 0.5) and settings["std"] == (0.2, 0.2, 0.2)
    assert replaced(", to_rgb=True", "").settings["mean"] == (0.485, 0.456, 0.406)
    for text in (
        TEXT.replace("to_rgb=True", "to_rgb=False"),
        new.replace("decode_head", PREPROCESSOR.format("")),
        new.replace("decode_head", PREPROCESSOR.format(", bgr_to_rgb=False")),
    ):
        with pytest.raises(InputError, match="BGR pixels .* but models here take RGB"):
            read(text)
    with pytest.raises(InputError, match="gives no mean for the pixels"):
        read(new.replace("decode_head", "data_preprocessor=dict(bgr_to_rgb=True), decode_head"))
    assert replaced("123.675", "1" + "0" * 400).unread == {"mean": "mean"}


def test_what_is_no_literal_is_told_and_not_taken():
    for old, new, ours, theirs in (
        ("strides=(1, 2, 1, 1)", "strides=(1, 2, f(), 1)", "backbone.output_stride", "strides"),
        ("strides=(1, 2, 1, 1)", "strides=(True, 2, 1, 1)", "backbone.output_stride", "strides"),
        ("num_stages=3", "num_stages=True", "head.em_steps", "num_stages"),
        ("align_corners=True", "align_corners=corners", "align_corners", "align_corners"),
        ("'ResNetV1c'", "f()", "backbone.type", "backbone.type"),
        ("norm_cfg=norm_cfg", "norm_cfg=f()", "decode_head.norm_cfg eps", "decode_head.norm_cfg eps"),
        ("img_norm_cfg = dict(", "img_norm_cfg = f(", "mean", "mean"),
    ):
        stated = replaced(old, new)
        assert stated.unread[ours] == theirs and ours not in stated.settings
    unread = read(TEXT + "model['decode_head']['align_corners'] = False\n").unread
    assert unread["align_corners"] == "align_corners" and unread["backbone.output_stride"] == "strides"


@pytest.mark.parametrize("content", [{}, {"meta": None}, {"meta": {"cfg": "no python (", "config": 3}}, {"meta": {}}])
def test_no_config_is_no_error(content):
    assert mmseg_settings(content) == Stated() and mmseg_classes(content) is None


def test_a_config_is_parsed_and_not_run(tmp_path):
    made = tmp_path / "made"
    found = parse(f"a = open({str(made)!r}, 'w')\nimport os\nn = -2\nb = dict(c=[1, -x, n, {{'d': a}}])\n")
    assert found == {"a": UNREAD, "n": -2, "b": {"c": (1, UNREAD, -2, {"d": UNREAD})}}
    assert found["a"] is found["b"]["c"][1] is UNREAD
    assert not made.exists()


def test_names_that_double_take_no_time():
    doubled = "a0 = (1,)\n" + "".join(f"a{i + 1} = (a{i}, a{i})\n" for i in range(60))
    for setting in ("style=a60", "strides=a60", "conv_cfg=a60"):
        try:
            read(f"{doubled}model = dict(backbone=dict({setting}))")
        except InputError as error:
            assert len(str(error)) < 10_000


@pytest.mark.parametrize(
    "text", ["(" * 100_000, "a = " + "-" * 100_000 + "1", "a = 1" + "+1" * 100_000, "a" + ".b" * 100_000]
)
def test_a_text_too_deep_for_the_parser_says_nothing(text):
    assert parse(text) == {}


def test_classes_of_both_versions():
    old = {"meta": {"CLASSES": ("sky", "road"), "PALETTE": [[1, 2, 3], [4, 5, 6]]}}
    new = {"meta": {"dataset_meta": {"classes": ["sky", "road"], "palette": [(1, 2, 3), (4, 5, 6)]}}}
    for content in (old, new):
        spec = mmseg_classes(content)
        assert spec.classes == ("sky", "road") and spec.palette == ((1, 2, 3), (4, 5, 6))
    assert mmseg_classes({"meta": {"CLASSES": ("sky", "road"), "PALETTE": "random"}}).palette == ()
    assert mmseg_classes({"meta": {"CLASSES": "sky"}}) is None
    assert mmseg_classes({"meta": {"CLASSES": ("bed ", " sky")}}).classes == ("bed", "sky")
    for colour in (float("inf"), float("nan"), "red", None):
        palette = [[colour, 0, 0], [0, 0, 0]]
        assert mmseg_classes({"meta": {"CLASSES": ("sky", "road"), "PALETTE": palette}}).palette == ()


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What convert() says of a file with this content, and the experiment; no weights are written."""
    monkeypatch.setattr(
        "emanet.weights.foreign._require_real", lambda content, path, size: None
    )  # state_of() repeats values
    monkeypatch.setattr("emanet.convert.convert.save_model", lambda *arguments, **facts: None)

    def told(content, **options):
        torch.save(content, tmp_path / "mine.pth")
        lines = []
        experiment = convert(tmp_path / "mine.pth", tmp_path / "x.safetensors", tell=lines.append, **options)
        assert all(len(line) <= 80 for line in lines)
        return experiment, {line[:14].strip(): line[14:].split() for line in lines}

    return told


def test_mmsegs_test_configuration_becomes_the_evaluation(told):
    config = "model = dict(test_cfg=dict(mode='slide', crop_size=(512, 1024), stride=(256, 512)))"
    experiment, rows = told({"meta": {"cfg": config}, "state_dict": state_of("mmseg")})
    assert experiment.eval == EvalConfig(mode="slide", window=(512, 1024), overlap=0.5)
    assert rows["evaluation"][:4] == ["slide,", "512x1024,", "overlap", "0.50"]


def test_what_mmsegs_config_computes_is_said_to_be_unread(told):
    config = "model = dict(backbone=dict(strides=strides), decode_head=dict(num_stages=True, momentum=0.5))"
    experiment, rows = told({"meta": {"cfg": config}, "state_dict": state_of("mmseg")})
    assert experiment.model.head.bases_keep == 0.5 and experiment.model.head.em_steps == 3
    assert rows["output stride"] == "8 default: strides unreadable".split()
    assert rows["em_steps"] == "3 default: num_stages unreadable".split()
    assert rows["not read"][:3] == ["num_stages", "and", "2"]
    config = "model = dict(decode_head=dict(ema_channels=99))"
    with pytest.raises(InputError, match="of another shape: .*decode_head.ema_in_conv.conv.weight"):
        told({"meta": {"cfg": config}, "state_dict": state_of("mmseg")})


def test_which_of_two_tables_was_taken(told):
    state = state_of("mmseg")
    averaged = {f"module.{key}": value for key, value in state.items()} | {"steps": torch.tensor(3)}
    content = {"state_dict": state, "ema_state_dict": averaged, "meta": {}}
    rows = told(content)[1]
    assert rows["weights"] == "state_dict or --entry ema_state_dict".split() and rows["not used"][0] == "meta"
    rows = told(content, entry="ema_state_dict")[1]
    assert rows["weights"] == "ema_state_dict or --entry state_dict".split()
    assert "weights" not in told({"state_dict": state, "meta": {}})[1]


def test_class_counts_that_models_here_cannot_have(told, tmp_path):
    for count, message in (
        (1, "mine.pth has one output channel"),
        (256, "has 256 classes; at most 255 are possible"),
    ):
        classes = {"fc2.weight": torch.rand(count, C1, 1, 1), "fc2.bias": torch.rand(count)}
        with pytest.raises(InputError, match=message):
            told(state_of("original") | classes)


@pytest.mark.parametrize("count", [59, 60])
def test_classes_are_not_guessed_where_code_bases_order_them_differently(count, told):
    classes = {"fc2.weight": torch.rand(count, C1, 1, 1), "fc2.bias": torch.rand(count)}
    assert told(state_of("original") | classes)[0].data.spec.classes[:2] == ("class_0", "class_1")


def test_class_names_are_compared_without_blanks(told):
    spec = SPECS["ade20k"]
    names = [f"{name} " if name == "bed" else name for name in spec.classes]
    classes = {
        "decode_head.conv_seg.weight": torch.rand(150, C1, 1, 1),
        "decode_head.conv_seg.bias": torch.rand(150),
        "auxiliary_head.conv_seg.weight": torch.rand(150, AUX, 1, 1),
        "auxiliary_head.conv_seg.bias": torch.rand(150),
    }
    data = told({"meta": {"CLASSES": names}, "state_dict": state_of("mmseg") | classes})[0].data
    assert (data.dataset, data.spec) == ("ade20k", spec)
