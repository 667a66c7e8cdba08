"""The text of a config and the classes inside mmsegmentation's files."""

import pytest

from emanet.errors import InputError
from emanet.mmconfig import mmseg_classes, mmseg_settings, parse

TEXT = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    backbone=dict(type='ResNetV1c', dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True),
    decode_head=dict(type='EMAHead', num_stages=3, norm_cfg=norm_cfg, align_corners=True))
"""


@pytest.mark.parametrize("key", ["config", "cfg"])
def test_a_config_tells_what_the_weights_do_not(key):
    assert mmseg_settings({"meta": {key: TEXT}}) == {
        "align_corners": True,
        "head.em_steps": 3,
        "backbone.output_stride": 8,
        "backbone.dilation": "contract",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }


def test_other_configs():
    def settings(old, new):
        assert old in TEXT
        return mmseg_settings({"meta": {"cfg": TEXT.replace(old, new)}})

    assert settings("strides=(1, 2, 1, 1)", "strides=(1, 2, 2, 1)")["backbone.output_stride"] == 16
    assert settings("contract_dilation=True", "depth=50")["backbone.dilation"] == "uniform"
    assert "align_corners" not in settings("align_corners=True", "align_corners=corners")
    data = "data_preprocessor=dict(mean=[127.5, 127.5, 127.5]), decode_head"
    assert settings("decode_head", data)["mean"] == (0.485, 0.456, 0.406)  # 0.x's own comes first
    with pytest.raises(InputError, match="sets multi_grid .* name the factors with --multi-grid"):
        settings("contract_dilation=True", "multi_grid=(4, 8, 16)")
    with pytest.raises(InputError, match="BGR pixels, but models here read RGB"):
        settings("to_rgb=True", "to_rgb=False")
    assert mmseg_settings(
        {"meta": {"cfg": TEXT.replace("contract_dilation=True", "multi_grid=(4, 8, 16)")}}, multi_grid_given=True
    )


@pytest.mark.parametrize("content", [{}, {"meta": None}, {"meta": {"cfg": "no python (", "config": 3}}, {"meta": {}}])
def test_no_config_is_no_error(content):
    assert mmseg_settings(content) == {} and mmseg_classes(content) is None


def test_a_config_is_parsed_and_not_run(tmp_path):
    made = tmp_path / "made"
    assert parse(f"a = open({str(made)!r}, 'w')\nimport os\nb = dict(c=[1, -x, {{'d': 2}}])\n") == {
        "a": None,
        "b": {"c": (1, None, {"d": 2})},
    }
    assert not made.exists()


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
