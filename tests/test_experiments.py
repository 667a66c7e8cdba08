import contextlib
import dataclasses
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT, run_cli, sentence

from emanet.config import DatasetSpec, EngineConfig, EvalConfig, Experiment, HeadConfig, ModelConfig
from emanet.errors import InputError
from emanet.experiments import (
    checked,
    experiment_names,
    flatten,
    from_dict,
    load_experiment,
    names_with,
    override,
    read_header,
    to_dict,
)

GOLDEN = ROOT / "tests" / "golden" / "configs"
DEFAULTS = ROOT / "tests" / "golden" / "config_defaults.json"


def plain(values):
    """The values as JSON has them."""
    return json.loads(json.dumps(values))


def golden(path, values, request):
    """The content of a golden file, written anew with --write-docs."""
    if request.config.getoption("--write-docs"):
        path.write_text(json.dumps(values, indent=2) + "\n")
    return json.loads(path.read_text())


def test_defaults_equal_their_golden_file(request):
    """A changed default shows in review. To accept one: pytest tests/test_experiments.py -k golden --write-docs"""
    values = plain(flatten(Experiment()))
    assert values == golden(DEFAULTS, values, request)


@pytest.mark.parametrize("name", experiment_names())
def test_experiment_equals_its_golden_file(name, request):
    """The file holds what differs from the defaults, so that a new setting changes one file."""
    default = flatten(Experiment())
    values = plain({key: value for key, value in flatten(load_experiment(name)).items() if value != default[key]})
    assert values == golden(GOLDEN / f"{name}.json", values, request)


def test_every_golden_file_has_its_experiment():
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == experiment_names()


@pytest.mark.parametrize("name", experiment_names())
def test_no_experiment_has_an_unused_setting(name):
    assert checked(load_experiment(name)) == load_experiment(name)


@pytest.mark.parametrize("name", experiment_names())
def test_json_round_trip_keeps_every_value_and_type(name):
    config = load_experiment(name)
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(config)))) == config


def test_spec_round_trips_through_json():
    spec = DatasetSpec(classes=("a", "b"), palette=((1, 2, 3), (4, 5, 6)), label_map={7: 0, 255: 1})
    config = override(Experiment(), {"data.spec": spec})
    assert from_dict(Experiment, to_dict(config)).data.spec == spec


def test_override_makes_changes_that_fit_only_each_other():
    channels = {"model.backbone.in_channels": 4, "model.mean": (0.1,) * 4, "model.std": (0.2,) * 4}
    assert override(Experiment(), channels).model == override(Experiment(), dict(reversed(channels.items()))).model
    config = override(Experiment(), {"eval.flip": True, "eval": EvalConfig(scales=(2.0,)), "eval.mode": "slide"})
    assert config.eval == EvalConfig(scales=(2.0,), mode="slide") and override(config, {}) == config


def test_override_reaches_nested_fields_and_names_the_nearest():
    config = override(Experiment(), {"model.head.channels": 256, "steps": 7})
    assert (config.model.head.channels, config.steps) == (256, 7)
    with pytest.raises(InputError, match="HeadConfig has no field 'chanels'; did you mean 'channels'"):
        override(config, {"model.head.chanels": 1})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data.spec.classes", "cannot set data.spec.classes: data.spec is None, without fields; set data.spec as a"),
        ("data.crop.0", r"data.crop is \(513, 513\), without fields"),
        ("steps.x.y", "cannot set steps.x.y: steps is 30000"),
        ("model.backbone.options.a", "model.backbone.options is {}, without fields"),
        ("model.", "ModelConfig has no field ''"),
        ("", "Experiment has no field ''"),
        (".steps", "Experiment has no field ''"),
    ],
)
def test_override_names_what_has_no_fields(name, message):
    with pytest.raises(InputError, match=message):
        override(Experiment(), {name: 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.head.rates": (2, 4, 6)},
            "model.head.rates is 2 4 6, but head 'ema' does not use it; these do: deeplabv3, deeplabv3plus",
        ),
        (
            {"model.head.name": "gcn", "model.head.channels": 64},
            "model.head.channels is 64, but head 'gcn' does not use it; all do but deeplabv3, deeplabv3plus, gcn",
        ),
        (
            {"model.head.name": "gcn", "model.head.dropout": 0.5},
            "nothing uses it while model.head.name is 'gcn' and model.aux_head is False",
        ),
        ({"model.head.name": "fcn", "model.head.backend": "triton"}, "head 'fcn' does not use it; these do: ema"),
        ({"device": "cpu", "model.head.backend": "triton"}, "nothing uses it while device is 'cpu'"),
        ({"model.aux_channels": 64}, "model.aux_channels is 64, but nothing uses it while model.aux_head is False"),
        (
            {"model.backbone.output_stride": 32, "model.backbone.dilation": "uniform"},
            "nothing uses it while model.backbone.output_stride is 32",
        ),
        ({"optim.name": "adamw", "optim.momentum": 0.5}, "optim 'adamw' does not use it; these do: sgd"),
    ],
)
def test_a_setting_that_nothing_uses_is_refused(changes, message):
    config = override(Experiment(), changes)
    with pytest.raises(InputError) as error:
        checked(config)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.head.name": "gcn", "model.aux_head": True, "model.head.dropout": 0.5},  # the auxiliary head's
        {"model.head.name": "refinenet", "model.head.decoder_channels": 64, "model.head.channels": 64},
        {"model.head.backend": "triton"},
        {"model.head.rates": (12, 24, 36)},  # the default
    ],
)
def test_settings_that_are_used_pass(changes):
    config = override(Experiment(), changes)
    assert checked(config) == config


def test_calibration_images_are_for_int8():
    assert checked(EngineConfig(precision="int8", calibrate=("x.png",))).calibrate == ("x.png",)
    with pytest.raises(InputError, match="calibrate is x.png, but nothing uses it while precision is 'fp32'"):
        checked(EngineConfig(calibrate=("x.png",)))


def test_an_unused_setting_is_refused_wherever_it_comes_from(tmp_path):
    text = "from emanet import load_experiment, override\nconfig = override(load_experiment('drawn'), {'%s': %r})\n"
    (tmp_path / "mine.py").write_text(text % ("model.head.bins", (1, 2)))
    values = to_dict(load_experiment("drawn"))
    values["model"]["head"]["bins"] = [1, 2]
    (tmp_path / "mine.json").write_text(json.dumps(values))
    out = ("--steps", 1, "--out", tmp_path / "out")
    for source in (["drawn", "--model.head.bins", 1, 2], [tmp_path / "mine.py"], [tmp_path / "mine.json"]):
        said = sentence(run_cli("train", *source, *out))
        assert "model.head.bins is 1 2, but head 'ema' does not use it; these do: pspnet" in said
    assert not (tmp_path / "out").exists()


def test_another_head_leaves_what_only_the_first_one_used():
    """Every experiment takes --model.head.name, also one with settings of its own head."""
    config = override(load_experiment("drawn"), {"model.head.name": "fcn"})
    assert checked(config).model.head == HeadConfig(name="fcn", channels=128)
    config = override(load_experiment("drawn"), {"model.head.name": "fcn", "model.head.num_bases": 16})
    with pytest.raises(InputError, match="model.head.num_bases is 16, but head 'fcn'"):
        checked(config)


def test_runs_from_before_the_check_are_read_without_what_they_did_not_use(tmp_path):
    values = to_dict(load_experiment("drawn"))
    values["model"]["head"]["bins"] = [1, 2]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_experiment(str(tmp_path)) == load_experiment("drawn")


@pytest.mark.parametrize(
    ("head", "new"),
    [
        ({"name": "deeplabv3", "fc1_channels": 64}, {"aspp_channels": 64}),
        ({"name": "deeplabv3plus", "fc1_channels": 0, "channels": 32}, {"aspp_channels": 32, "channels": 32}),
        ({"name": "refinenet", "fc1_channels": 0}, {"decoder_channels": 512}),
        ({"name": "refinenet", "fc1_channels": 64, "channels": 128}, {"decoder_channels": 64, "channels": 128}),
        ({"name": "nonlocal", "fc1_channels": 64}, {"fc1_channels": 64}),
        ({"fc1_channels": 0}, {"fc1_channels": 0}),
        ({"name": "refinenet", "decoder_channels": 64, "fc1_channels": 256}, {"decoder_channels": 64}),
    ],
)
def test_fc1_channels_of_older_files_goes_where_it_belongs(head, new):
    config = from_dict(ModelConfig, {"head": head})
    assert config.head == HeadConfig(**{"name": head.get("name", "ema")} | new)


def test_marks_of_settings_reach_every_name_below():
    assert names_with("ranks") == {"data.root", "data.workers", "device"}
    resume = names_with("resume")
    assert {"eval.mode", "eval.window", "pictures", "data.root", "model.head.backend", "compile"} <= resume
    assert not resume & {"steps", "batch_size", "model.head.channels", "optim.lr", "data.crop"}
    assert names_with("ranks") <= resume <= set(flatten(Experiment()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 3}, "unknown field 'stepz'; did you mean 'steps'"),
        ({"model": {"head": {"chanels": 3}}}, "unknown field 'model.head.chanels'; did you mean 'channels'"),
        ({"steps": "many"}, "steps is 'many', but must be int"),
        ({"steps": True}, "steps is True, but must be int"),
        ({"optim": {"lr": "1e-4"}}, "optim.lr is '1e-4', but must be float"),
        ({"optim": {"lr": 0}}, "lr is 0.0, but must be above 0"),
        ({"precision": "fp8"}, "precision is 'fp8', but must be 'fp32' or 'bf16' or 'fp16'"),
        ({"data": {"crop": [1, 2, 3]}}, "data.crop is .*, but must be tuple"),
        ({"data": {"spec": {"classes": []}}}, "classes is 0 names"),
        ({"data": {"spec": {}}}, "field 'data.spec.classes' is missing"),
        ({"batch_size": 6, "accumulate": 4}, "batch_size 6 is not a multiple of accumulate 4"),
        ({"model": {"backbone": {"output_stride": 4}}}, "output_stride is 4, but must be 8, 14, 16 or 32"),
        ({"model": {"mean": [0.5, 0.5]}}, "model.mean has 2 values for 3 channels"),
        ({"optim": {"lr": 10**400}}, "optim.lr is 1000.*, but must be finite and below"),
        ({"data": {"scales": [1, 10**400]}}, "data.scales is 1000.*, but must be finite and below"),
        ({"steps": 10**400}, "steps is 1000.*, but must be finite and below"),
        ({"model": {"backbone": {"options": {"x": 10**400}}}}, "options is {'x': 1000.*, but must be finite"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(InputError, match=message):
        from_dict(Experiment, values)


def test_pretrained_keeps_bool_and_path_apart():
    for value in (True, False, "weights.pth"):
        read = from_dict(Experiment, {"model": {"backbone": {"pretrained": value}}})
        assert read.model.backbone.pretrained is value or read.model.backbone.pretrained == value
        assert type(read.model.backbone.pretrained) is type(value)


def test_flatten_names_every_leaf():
    flat = flatten(Experiment())
    assert flat["model.backbone.output_stride"] == 8 and flat["optim.lr"] == 9e-3
    assert not any(dataclasses.is_dataclass(value) for value in flat.values())


def test_load_experiment_from_file_folder_and_json(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from emanet import load_experiment, override\nconfig = override(load_experiment('drawn'), {'steps': 5})\n"
    )
    config = load_experiment(str(file))
    assert config.steps == 5
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert load_experiment(str(tmp_path)) == load_experiment(str(tmp_path / "config.json")) == config


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "config = 3", "defines no `config = Experiment"),
        ("a.py", "import nothing_there", "does not run: ModuleNotFoundError"),
        ("a.py", "from emanet.config import *\nconfig = Experiment(steps=0)", "steps is 0"),
        ("a.py", "from emanet.config import *\nconfig = Experiment(precision='fp8')", "a.py: precision is 'fp8'"),
        ("a.py", "from emanet.config import *\nconfig = Experiment(steps=2e0)", "a.py: steps is 2.0, but must be int"),
        ("a.py", "raise SystemExit(3)", "does not run: SystemExit"),
        ("a.json", "{", "is not JSON"),
        ("a.yaml", "steps: 3", "neither an experiment"),
    ],
)
def test_experiments_that_cannot_be_loaded(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        load_experiment(str(tmp_path / name))


def test_an_experiment_in_utf16_is_to_be_saved_as_utf8(tmp_path):
    (tmp_path / "a.py").write_text("config = 3", "utf-16")
    with pytest.raises(InputError, match="a.py does not run: SyntaxError: .*; save it as UTF-8$"):
        load_experiment(str(tmp_path / "a.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"optim": {"lr": 1e999}}', "lr is inf, but must be finite"),
        ('{"optim": {"lr": NaN}}', "lr is nan, but must be finite"),
        ('{"model": {"std": [1, 1, -Infinity]}}', "std is .*inf"),
        ('{"optim": {"lr": 1%s}}' % ("0" * 400), "optim.lr is 1000.*, but must be finite"),
        ('{"steps": 1%s}' % ("0" * 5000), "has a number of too many digits"),
        ('{"data": {"spec": %s}}' % ("[" * 100_000), "too many levels of brackets"),
        ('{"data": {"spec": ' + "[" * 300 + "]" * 300 + "}}", "data.spec is .*, but must be"),
        ('{"data":' * 300 + "1" + "}" * 300, "unknown field 'data.data'"),
    ],
)
def test_json_of_odd_numbers_and_depths_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_experiment(str(tmp_path / "a.json"))
    assert str(error.value).startswith(f"{tmp_path / 'a.json'}") and len(str(error.value)) < 600


def test_an_experiment_imports_the_files_beside_it_and_leaves_no_trace(tmp_path):
    for folder, steps in (("one", 11), ("two", 22)):
        (tmp_path / folder / "package").mkdir(parents=True)
        (tmp_path / folder / "common.py").write_text(f"from package import part\nSTEPS = {steps} + part.MORE\n")
        (tmp_path / folder / "package" / "__init__.py").write_text("")
        (tmp_path / folder / "package" / "part.py").write_text(f"MORE = {steps}\n")
        text = "import common\nfrom emanet.config import Experiment\nconfig = Experiment(steps=common.STEPS)\n"
        (tmp_path / folder / "mine.py").write_text(text)
    (tmp_path / "one" / "broken.py").write_text("import common\n1 / 0\n")
    path, modules = list(sys.path), set(sys.modules)
    assert load_experiment(str(tmp_path / "one" / "mine.py")).steps == 22
    with pytest.raises(InputError, match="ZeroDivisionError"):
        load_experiment(str(tmp_path / "one" / "broken.py"))
    assert load_experiment(str(tmp_path / "two" / "mine.py")).steps == 44
    with contextlib.chdir(tmp_path / "one"):
        assert load_experiment("mine.py").steps == 22
    assert sys.path == path and set(sys.modules) == modules


def test_an_experiment_beside_the_package_does_not_forget_it(tmp_path):
    (tmp_path / "emanet").symlink_to(ROOT / "emanet")
    (tmp_path / "mine.py").write_text("import emanet.losses\nconfig = emanet.load_experiment('drawn')\n")
    program = "import sys, emanet; emanet.load_experiment('mine.py'); print('emanet.losses' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_config_show_and_diff_print_what_differs():
    shown = run_cli("config", "show", "voc_resnet50").stdout
    assert "model.backbone.name = 'resnet50s'" in shown.splitlines()
    different = run_cli("config", "diff", "voc_resnet101", "voc_resnet101_256").stdout
    assert different == "model.head.channels: 512 -> 256\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.safetensors", b"\n<!DOCTYPE html>", "a web page, not a model"),
        ("a.onnx", b"\x08\x0apytorch", "an exported model"),
        ("a.pth", b"PK\x03\x04rest", "another program's checkpoint; turn it into a model: convert"),
        ("a.ckpt", b"\x80\x02}q", "another program's checkpoint"),
        ("a.jpg", b"\xff\xd8\xff\xe0", "the model comes first, then the images"),
    ],
)
def test_what_is_named_as_a_model_and_is_none(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    read = read_header if name.endswith(".safetensors") else load_experiment
    with pytest.raises(InputError, match=re.escape(said)):
        read(str(tmp_path / name))
