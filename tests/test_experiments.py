import dataclasses
import json

import pytest
from conftest import ROOT, run_cli

from emanet.config import DatasetSpec, Experiment
from emanet.errors import InputError
from emanet.experiments import experiment_names, flatten, from_dict, load_experiment, override, to_dict

GOLDEN = ROOT / "tests" / "golden" / "configs"


@pytest.mark.parametrize("name", experiment_names())
def test_experiment_equals_its_golden_dump(name):
    """A changed default shows in review. To accept one: python -m emanet config show NAME --format json > FILE"""
    assert to_dict(load_experiment(name)) == json.loads((GOLDEN / f"{name}.json").read_text())


def test_every_golden_dump_has_its_experiment():
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == experiment_names()


@pytest.mark.parametrize("name", experiment_names())
def test_json_round_trip_keeps_every_value_and_type(name):
    config = load_experiment(name)
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(config)))) == config


def test_spec_round_trips_through_json():
    spec = DatasetSpec(classes=("a", "b"), palette=((1, 2, 3), (4, 5, 6)), label_map={7: 0, 255: 1})
    config = override(Experiment(), {"data.spec": spec})
    assert from_dict(Experiment, to_dict(config)).data.spec == spec


def test_override_reaches_nested_fields_and_names_the_nearest():
    config = override(Experiment(), {"model.head.channels": 256, "steps": 7})
    assert (config.model.head.channels, config.steps) == (256, 7)
    with pytest.raises(InputError, match="HeadConfig has no field 'chanels'; did you mean 'channels'"):
        override(config, {"model.head.chanels": 1})


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
        ({"model": {"backbone": {"output_stride": 4}}}, "output_stride is 4, but must be 8, 16 or 32"),
        ({"model": {"mean": [0.5, 0.5]}}, "model.mean has 2 values for 3 channels"),
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


def test_config_show_and_diff_print_what_differs():
    shown = run_cli("config", "show", "voc_resnet50").stdout
    assert "model.backbone.name = 'resnet50s'" in shown.splitlines()
    different = run_cli("config", "diff", "voc_resnet101", "voc_resnet101_256").stdout
    assert different == "model.head.channels: 512 -> 256\n"
