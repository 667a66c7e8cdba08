"""Checkpoints of every layout, with the right keys and shapes: where their values go, and what makes them fail.

That the converted models compute what the frameworks compute is test_parity.py's.
"""

import json
import pickle

import numpy as np
import pytest
import timm
import torch
from conftest import run_cli, sentence
from safetensors.torch import load_file, save_file
from source_shapes import AUX, C1, SHAPES, WHOLE, C, K

import emanet
from emanet.config import BackboneConfig
from emanet.convert.convert import convert
from emanet.data.datasets import SPECS
from emanet.errors import InputError
from emanet.experiments import load_experiment, read_header
from emanet.model import build_model

# By hand, beside the tables: where some keys of the file must arrive.
ARRIVE = {
    "original": {
        "extractor.0.0.weight": "backbone.net.conv1.0.weight",
        "extractor.1.running_var": "backbone.net.bn1.running_var",
        "extractor.6.5.bn3.bias": "backbone.net.layer3.5.bn3.bias",
        "emau.mu": "head.emau.bases",
        "emau.conv1.bias": "head.emau.conv_in.bias",
        "emau.conv2.1.running_mean": "head.emau.bn_out.running_mean",
        "fc1.0.conv.weight": "head.fc1.0.weight",
        "fc2.bias": "head.classifier.bias",
    },
    "mmseg": {
        "backbone.stem.6.weight": "backbone.net.conv1.6.weight",
        "backbone.stem.7.weight": "backbone.net.bn1.weight",
        "backbone.layer4.0.downsample.1.bias": "backbone.net.layer4.0.downsample.1.bias",
        "decode_head.ema_module.bases": "head.emau.bases",
        "decode_head.conv_cat.conv.weight": "head.concat.0.weight",
        "decode_head.conv_seg.weight": "head.classifier.weight",
        "auxiliary_head.conv_seg.bias": "aux_head.classifier.bias",
    },
    "ssseg": {
        "backbone_net.layer2.3.conv2.weight": "backbone.net.layer2.3.conv2.weight",
        "ema_mid_conv.weight": "head.emau.conv_in.weight",
        "bottleneck.1.running_mean": "head.fc1.1.running_mean",
        "decoder.1.weight": "head.concat.1.weight",
        "decoder.4.bias": "head.classifier.bias",
        "auxiliary_decoder.0.weight": "aux_head.fc0.0.weight",
    },
    "paddleseg": {
        "backbone.conv1_2._batch_norm._variance": "backbone.net.conv1.4.running_var",
        "backbone.conv1_3._batch_norm._mean": "backbone.net.bn1.running_mean",
        "backbone.bb_2_5.conv0._conv.weight": "backbone.net.layer3.5.conv1.weight",
        "backbone.bb_3_0.short._conv.weight": "backbone.net.layer4.0.downsample.1.weight",
        "head.emau.mu": "head.emau.bases",
        "head.ema_mid_conv.weight": "head.emau.conv_in.weight",
        "head.ema_out_conv._batch_norm.weight": "head.emau.bn_out.weight",
        "head.cls.1.weight": "head.classifier.weight",
        "head.aux.0._conv.weight": "aux_head.fc0.0.weight",
    },
}


def state_of(layout):
    """Every tensor one number of its own, spread without memory; what is small is random."""
    torch.manual_seed(0)
    return {
        key: torch.rand(shape) if np.prod(shape) < 5000 else torch.tensor(i / 100).expand(shape)
        for i, (key, shape) in enumerate(SHAPES[layout].items())
    }


@pytest.fixture(autouse=True)
def expanded_weights_are_read(monkeypatch):
    """The files here repeat one number per weight, to be small: what refuses them is test_foreign.py's."""
    monkeypatch.setattr("emanet.weights.foreign._require_real", lambda content, path, size: None)


def outer(layout, state):
    """A file's content around the weights, as each program writes it."""
    return {
        "original": {"net": state, "step": 30_000},
        "mmseg": {"meta": {"epoch": 1}, "state_dict": state, "optimizer": {"lr": 0.1}},
        "ssseg": {"cur_epoch": 1, "model": state},
    }.get(layout, state)


@pytest.fixture
def write(tmp_path):
    def write(layout, state=None, **edit):
        state = (state or state_of(layout)) | edit
        path = tmp_path / "source.pth"
        torch.save(outer(layout, {key: value for key, value in state.items() if value is not None}), path)
        return path

    return write


def to_numpy(state):
    return {key: np.ascontiguousarray(value.numpy()) for key, value in state.items()}


@pytest.mark.parametrize("layout", WHOLE)
def test_every_value_arrives(layout, write, tmp_path):
    state = state_of(layout)
    if layout == "paddleseg":
        source = tmp_path / "model.pdparams"
        source.write_bytes(pickle.dumps(to_numpy(state) | {"StructuredToParameterName@@": {"a": "b"}}, protocol=4))
    else:
        source = write(layout, state)
    before = source.stat()
    experiment = convert(source, tmp_path / "ours.safetensors")
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    model = emanet.load(tmp_path / "ours.safetensors")
    ours = model.state_dict()
    for theirs, key in ARRIVE[layout].items():
        torch.testing.assert_close(ours[key], state[theirs], rtol=0, atol=0)
    sums = sorted(float(v.double().sum()) for k, v in state.items() if not k.endswith(("_mean", "._conv.bias")))
    skipped = ("running_mean", "num_batches_tracked", "mean", "std")
    assert sums == pytest.approx(
        sorted(float(v.double().sum()) for k, v in ours.items() if not k.endswith(skipped)), rel=1e-6
    )
    assert load_experiment(str(tmp_path / "ours.safetensors")) == experiment
    assert read_header(tmp_path / "ours.safetensors")["converted_from"] == source.name
    assert [path.name for path in tmp_path.iterdir()].count("ours.safetensors") == len(list(tmp_path.iterdir())) - 1


def test_paddles_biases_are_folded_exactly(tmp_path):
    """conv + bias, then BN: the same numbers from our conv without bias and BN, in inference and in training."""
    state = state_of("paddleseg")
    torch.save(state, tmp_path / "model.pth")
    convert(tmp_path / "model.pth", tmp_path / "ours.safetensors")
    ours = load_file(tmp_path / "ours.safetensors")
    for theirs, conv, bn in (
        ("head.ema_in_conv", "head.fc0.0", "head.fc0.1"),
        ("head.ema_out_conv", "head.emau.conv_out", "head.emau.bn_out"),
        ("head.bottleneck", "head.fc1.0", "head.fc1.1"),
        ("head.conv_cat", "head.concat.0", "head.concat.1"),
        ("head.aux.0", "aux_head.fc0.0", "aux_head.fc0.1"),
    ):
        bias, mean = state[f"{theirs}._conv.bias"], state[f"{theirs}._batch_norm._mean"]
        torch.testing.assert_close(ours[f"{bn}.running_mean"], mean - bias, rtol=0, atol=0)
        assert f"{conv}.bias" not in ours
        torch.testing.assert_close(ours[f"{bn}.bias"], state[f"{theirs}._batch_norm.bias"], rtol=0, atol=0)


FUNCTION = {
    "original": ("resnet50s", (1, 2, 4), "contract", True, 1e-6, False, False, False, (0.485, 0.456, 0.406), "voc"),
    "mmseg": ("resnet50c", (), "contract", False, 1e-12, True, False, True, (0.485, 0.456, 0.406), "cityscapes"),
    "ssseg": ("resnet50c", (), "contract", False, 1e-12, True, False, True, (0.485, 0.456, 0.406), "ade20k"),
    "paddleseg": ("resnet50d", (), "uniform", False, 1e-12, True, True, True, (0.5, 0.5, 0.5), "cityscapes"),
}


@pytest.fixture
def settled(monkeypatch):
    """convert() down to the experiment: no weights are written."""
    monkeypatch.setattr("emanet.convert.convert.save_model", lambda *arguments, **facts: None)
    return convert


@pytest.mark.parametrize("layout", WHOLE)
def test_each_layout_brings_its_function(layout, write, settled, tmp_path):
    experiment = settled(write(layout), tmp_path / "x.safetensors")
    model, head, backbone = experiment.model, experiment.model.head, experiment.model.backbone
    found = (backbone.name, backbone.multi_grid, backbone.dilation, model.align_corners, head.eps, head.renormalise)
    name, *rest, mean, dataset = FUNCTION[layout]
    assert (*found, head.relu_out, head.concat, model.mean) == (name, *rest, mean)
    assert (head.channels, head.num_bases, head.fc1_channels) == (C, K, C if layout == "ssseg" else C1)
    assert (model.aux_head, model.aux_channels) == ((False, 256) if layout == "original" else (True, AUX))
    assert (experiment.data.dataset, experiment.data.spec) == (dataset, SPECS[dataset])
    assert (backbone.output_stride, backbone.pretrained, head.em_steps) == (8, False, 3)


@pytest.mark.parametrize("layout", SHAPES)
def test_a_key_that_does_not_fit_is_named_as_the_file_names_it(layout, write, tmp_path):
    state = state_of(layout)
    plain = [key for key in state if not key.startswith("fc.")]
    for kind, key, edit in (
        *(("missing", key, None) for key in plain[:: len(plain) // 4]),
        ("unexpected", "module_of_mine.weight", torch.ones(2)),
        ("unexpected", plain[60].rsplit(".", 1)[0] + ".odd", torch.ones(2)),
        ("of another shape", plain[70], torch.ones(7, 3)),
        ("not floating point", plain[70], state[plain[70]].to(torch.complex64)),
    ):
        with pytest.raises(InputError) as error:
            convert(write(layout, state, **{key: edit}), tmp_path / "ours.safetensors")
        assert kind in str(error.value) and key in str(error.value), (kind, key)
    assert not (tmp_path / "ours.safetensors").exists()


def test_weights_that_are_no_numbers_are_refused_by_name(write, tmp_path):
    source = write("original", **{"fc2.bias": torch.full((21,), torch.nan)})
    with pytest.raises(InputError, match="not finite: fc2.bias"):
        convert(source, tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists()


def test_counters_and_prefixes_are_taken_by_name(write, tmp_path, settled):
    state = state_of("original") | {"extractor.1.num_batches_tracked": torch.tensor(7)}
    settled(write("original", {f"module.{key}": value for key, value in state.items()}), tmp_path / "x.safetensors")
    torch.save(state, tmp_path / "bare.pth")
    settled(tmp_path / "bare.pth", tmp_path / "x.safetensors")
    paddle = state_of("paddleseg") | {"backbone.conv1_logit": None}
    torch.save(paddle, tmp_path / "paddle.pth")
    settled(tmp_path / "paddle.pth", tmp_path / "x.safetensors")


def test_safetensors_and_half_precision_are_sources_too(tmp_path, write):
    state = {key: value.half().contiguous() for key, value in state_of("original").items()}
    save_file(state, tmp_path / "half.safetensors")
    convert(tmp_path / "half.safetensors", tmp_path / "ours.safetensors")
    ours = load_file(tmp_path / "ours.safetensors")
    assert torch.equal(ours["head.emau.bases"], state["emau.mu"].float())


def test_an_entry_is_chosen_by_name(tmp_path, settled):
    state = state_of("ssseg")
    torch.save({"model": {"a": torch.ones(1)}, "model_ema": state}, tmp_path / "x.pth")
    assert settled(tmp_path / "x.pth", tmp_path / "y.safetensors", entry="model_ema").model.head.channels == C
    with pytest.raises(InputError, match="has no table 'model_emma'; did you mean 'model_ema'"):
        convert(tmp_path / "x.pth", tmp_path / "y.safetensors", entry="model_emma")


def test_arguments_come_over_what_the_layout_and_the_file_say(write, settled, tmp_path):
    told = []
    experiment = settled(
        write("original"),
        tmp_path / "x.safetensors",
        layout="original",
        align_corners=False,
        output_stride=16,
        multi_grid=(),
        dilation="uniform",
        eps=1e-12,
        em_steps=5,
        mean=(0.5,),
        std=(0.25,),
        tell=told.append,
    )
    model = experiment.model
    assert (model.align_corners, model.backbone.output_stride, model.backbone.multi_grid) == (False, 16, ())
    assert (model.backbone.dilation, model.head.eps, model.head.em_steps) == ("uniform", 1e-12, 5)
    assert (model.mean, model.std) == ((0.5,), (0.25,))
    given = [line.split()[0] for line in told if line.endswith("given")]
    assert given == ["layout", "output", "layer4", "align_corners", "em_steps", "eps", "mean", "std"]
    assert all(len(line) <= 80 for line in told) and "dilations 2 2 2" in "".join(told)


def test_mmsegs_meta_comes_before_the_layout(write, tmp_path, settled):
    backbone = "strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), contract_dilation=True"
    config = f"model = dict(backbone=dict({backbone}), decode_head=dict(align_corners=True, num_stages=4))"
    names = tuple(f"kind {i}" for i in range(19))
    colours = [[i, i, i] for i in range(19)]
    for meta in (
        {"config": config, "CLASSES": names, "PALETTE": colours},
        {"cfg": config, "dataset_meta": {"classes": list(names), "palette": np.array(colours)}},
    ):
        torch.save({"meta": meta, "state_dict": state_of("mmseg")}, tmp_path / "mine.pth")
        experiment = settled(tmp_path / "mine.pth", tmp_path / "x.safetensors")
        model, data = experiment.model, experiment.data
        assert (model.align_corners, model.head.em_steps, model.backbone.output_stride) == (True, 4, 16)
        assert data.spec.classes == names and data.spec.palette[3] == (3, 3, 3) and data.dataset == "mine"
    meta = {"CLASSES": SPECS["cityscapes"].classes}
    torch.save({"meta": meta, "state_dict": state_of("mmseg")}, tmp_path / "mine.pth")
    assert settled(tmp_path / "mine.pth", tmp_path / "x.safetensors").data.dataset == "cityscapes"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dataset", "voc"),
        ("output_stride", 16),
        ("multi_grid", (1, 2, 4)),
        ("dilation", "uniform"),
        ("align_corners", False),
        ("eps", 1e-3),
        ("em_steps", 7),
    ],
)
def test_options_that_a_backbone_has_no_use_for_are_refused(option, value, write, tmp_path):
    message = f"is a backbone .layout encoding., which has no {option}; set these in train"
    with pytest.raises(InputError, match=message):
        convert(write("encoding"), tmp_path / "b.safetensors", **{option: value})


def test_classes_can_be_given_and_must_be_as_many(write, settled, tmp_path):
    spec = {"classes": [f"kind {i}" for i in range(21)]}
    (tmp_path / "dataset.json").write_text(json.dumps(spec))
    data = settled(write("original"), tmp_path / "x.safetensors", dataset=str(tmp_path / "dataset.json")).data
    assert data.spec.classes[20] == "kind 20" and data.root == str(tmp_path)
    with pytest.raises(InputError, match="source.pth has 21 classes, but data set cityscapes has 19"):
        convert(write("original"), tmp_path / "x.safetensors", dataset="cityscapes")
    state = state_of("original") | {"fc2.weight": torch.rand(3, C1, 1, 1), "fc2.bias": torch.rand(3)}
    spec = settled(write("original", state), tmp_path / "x.safetensors").data.spec
    assert spec.classes == ("class_0", "class_1", "class_2") and spec.colours[1] == (128, 0, 0)


def test_a_model_without_its_optional_parts(write, settled, tmp_path):
    bare = {key: value for key, value in state_of("mmseg").items() if "auxiliary" not in key and "conv_cat" not in key}
    model = settled(write("mmseg", bare), tmp_path / "x.safetensors").model
    assert (model.aux_head, model.head.concat) == (False, False)
    state = {key: value for key, value in state_of("original").items() if not key.startswith("fc1.")}
    state["fc2.weight"] = torch.rand(21, C, 1, 1)
    assert settled(write("original", state), tmp_path / "x.safetensors").model.head.fc1_channels == 0


@pytest.mark.parametrize(
    ("layout", "name"),
    [("encoding", "resnet50s"), ("torchvision", "resnet50"), ("v1c", "resnet50c"), ("timm", "resnet50d")],
)
def test_a_backbone_becomes_a_file_that_the_model_loads(layout, name, write, tmp_path):
    state, told = state_of(layout), []
    experiment = convert(write(layout, state), tmp_path / "b.safetensors", tell=told.append)
    assert experiment.model.backbone == BackboneConfig(name=name, pretrained=str(tmp_path / "b.safetensors"))
    assert told[0].split()[:2] == ["layout", layout]
    net = build_model(experiment.model, ["a", "b"]).backbone.net.state_dict()
    stem = {"v1c": "stem.7", "torchvision": "bn1"}.get(layout, "bn1")
    assert torch.equal(net["bn1.running_var"], state[f"{stem}.running_var"])
    assert torch.equal(net["layer4.2.bn3.bias"], state["layer4.2.bn3.bias"])
    assert torch.equal(load_file(tmp_path / "b.safetensors")["fc.bias"], state["fc.bias"])


def test_models_and_backbones_can_be_read_by_all_alike(write, tmp_path):
    source = write("torchvision")
    convert(source, tmp_path / "backbone.safetensors")
    assert (tmp_path / "backbone.safetensors").stat().st_mode == source.stat().st_mode


def test_any_model_of_timms_by_name(tmp_path):
    state = timm.create_model("test_convnext").state_dict()
    source, made = tmp_path / "model.safetensors", tmp_path / "b.safetensors"
    save_file(state, source)
    with pytest.raises(InputError, match="the keys of .* fit no layout .*--backbone"):
        convert(source, made)
    assert convert(source, made, backbone="test_convnext").model.backbone.name == "test_convnext"
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_convnext", "pretrained_cfg": pixels}))
    model = convert(source, made, force=True).model  # as in a folder of the hub
    assert (model.backbone.name, model.mean) == ("test_convnext", (0.5, 0.5, 0.5))
    (tmp_path / "config.json").unlink()
    torch.save({"arch": "test_convnext", "state_dict": state, "epoch": 3}, tmp_path / "last.pth")
    assert convert(tmp_path / "last.pth", made, force=True).model.backbone.name == "test_convnext"
    with pytest.raises(InputError, match="timm has no model 'test_convnxt'; did you mean"):
        convert(source, made, backbone="test_convnxt", force=True)


def test_places_that_cannot_be_written(write, settled, tmp_path):
    source = write("original")
    with pytest.raises(InputError, match="must end with .safetensors, not x.pth"):
        convert(source, tmp_path / "x.pth")
    existing = tmp_path / "old.safetensors"
    existing.write_bytes(b"precious")
    with pytest.raises(InputError, match="old.safetensors exists already; --force overwrites it"):
        convert(source, existing)
    assert existing.read_bytes() == b"precious"
    settled(source, existing, force=True)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        convert(source, tmp_path / "folder.safetensors")
    with pytest.raises(InputError, match="cannot write .*: File name too long"):
        convert(source, tmp_path / f"{'x' * 300}.safetensors")
    with pytest.raises(InputError, match="cannot write .*: (File exists|Not a directory)"):
        convert(source, source / "folder" / "x.safetensors")
    with pytest.raises(InputError, match="cannot be converted into itself"):
        convert(existing, existing, force=True)
    with pytest.raises(InputError, match="no layout 'orignal'; did you mean 'original'"):
        convert(source, tmp_path / "x.safetensors", layout="orignal")


def test_the_command(write, tmp_path):
    source = write("original", {key: value.contiguous() for key, value in state_of("original").items()})
    made = tmp_path / "sub" / "x.safetensors"
    done = run_cli("convert", source, made, "--no-align-corners", "--multi-grid", "1", "1", "1", "--dataset", "voc")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines[:-1])) <= 80 and lines[-1] == f"wrote {made}"
    assert any(line.split() == ["layer4", "dilations", "2", "4", "4", "given"] for line in lines)
    assert not load_experiment(str(made)).model.align_corners
    assert "--force overwrites it" in sentence(run_cli("convert", source, made))
    assert "exclude each other" in sentence(run_cli("convert", source, made, "--align-corners", "--no-align-corners"))
    assert "cannot read nowhere.pth" in sentence(run_cli("convert", "nowhere.pth", tmp_path / "y.safetensors"))
    assert "eps is 0.0" in sentence(run_cli("convert", source, made, "--force", "--eps", "0"))
    assert "no layout 'orig'" in sentence(run_cli("convert", source, made, "--force", "--from", "orig"))


def test_a_backbones_flags_work_as_told(write, tmp_path):
    state = {key: value.contiguous() for key, value in state_of("encoding").items()}
    done = run_cli("convert", write("encoding", state), tmp_path / "b.safetensors")
    flags = [word for line in done.stdout.splitlines() if line.startswith("    --") for word in line.split()]
    sizes = ["--steps", "1", "--batch-size", "1", "--data.crop", "33", "33", "--model.head.channels", "4"]
    done = run_cli("train", "drawn", *flags, *sizes, "--data.workers", "0", "--seed", "-1", cwd=tmp_path)
    assert "seed is -1" in sentence(done)  # every flag before it was understood


def test_wrapped_checkpoints_of_other_trainers(tmp_path):
    """torch.compile, DDP, Lightning and PyTorch's tutorial: the same weights, with what was removed named."""
    state = timm.create_model("resnet18").state_dict()
    wrapped = {
        "compiled": {f"_orig_mod.{key}": value for key, value in state.items()},
        "both": {f"module._orig_mod.{key}": value for key, value in state.items()},
        "lightning": {"global_step": 9, "state_dict": {f"model.{key}": value for key, value in state.items()}},
        "tutorial": {"epoch": 3, "model_state_dict": state, "loss": 0.3},
        "timm_by_name": {"state_dict": {f"encoder.{key}": value for key, value in state.items()}, "arch": "resnet18"},
    }
    for name, content in wrapped.items():
        torch.save(content, tmp_path / f"{name}.pth")
        lines: list[str] = []
        convert(tmp_path / f"{name}.pth", tmp_path / f"{name}.safetensors", tell=lines.append)
        found = load_file(tmp_path / f"{name}.safetensors")
        assert torch.equal(found["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
        assert name == "tutorial" or any(line.startswith("prefix") for line in lines), lines


def test_a_part_of_a_larger_network_is_taken_by_its_prefix(tmp_path):
    state = timm.create_model("resnet18").state_dict()
    content = {f"encoder.{key}": value for key, value in state.items()} | {"decoder.x.weight": torch.ones(300, 2)}
    content |= {f"segmentation_head.{i}.weight": torch.ones(2) for i in range(200)}
    torch.save(content, tmp_path / "smp.pth")
    with pytest.raises(InputError, match="take them with --prefix encoder."):
        convert(tmp_path / "smp.pth", tmp_path / "x.safetensors")
    lines: list[str] = []
    convert(tmp_path / "smp.pth", tmp_path / "x.safetensors", prefix="encoder.", tell=lines.append)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["conv1.weight"], state["conv1.weight"])
    assert any(line.startswith("prefix        encoder.") for line in lines)


def test_a_model_beside_the_weights_of_its_loss_is_taken_by_its_prefix(tmp_path):
    """As Lightning saves it."""
    state = {f"model.{key}": value for key, value in state_of("original").items()}
    torch.save({"state_dict": state | {"criterion.weight": torch.ones(21)}}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="a model of layout original: take them with --prefix model.$"):
        convert(tmp_path / "last.ckpt", tmp_path / "x.safetensors")
    convert(tmp_path / "last.ckpt", tmp_path / "x.safetensors", prefix="model.")
    assert emanet.load(tmp_path / "x.safetensors").backbone.net.conv1[0].weight.shape[1] == 3


def test_a_backbone_of_wrapped_keys_is_loaded_as_it_is(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "x.pth")
    config = BackboneConfig(name="test_resnet", pretrained=str(tmp_path / "x.pth"))
    net = emanet.backbones.build(config).net
    assert torch.equal(net.state_dict()["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])


@pytest.mark.parametrize("prefix", ["backbone.", "model.backbone.", "encoder."])
def test_a_backbone_under_the_name_of_that_part(tmp_path, prefix):
    state = timm.create_model("resnet18").state_dict()
    torch.save({"state_dict": {f"{prefix}{key}": value for key, value in state.items()}}, tmp_path / "x.pth")
    lines: list[str] = []
    convert(tmp_path / "x.pth", tmp_path / "x.safetensors", tell=lines.append)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["conv1.weight"], state["conv1.weight"])
    assert any(line.startswith(f"prefix        {prefix} ") for line in lines), lines
