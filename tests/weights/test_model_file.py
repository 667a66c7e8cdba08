"""Model files: each is opened, checked and parsed once, whatever reads it."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import emanet
from emanet import experiments
from emanet.errors import InputError
from emanet.loading import read
from emanet.weights import foreign, model_file
from emanet.weights.model_file import read_model


def test_what_was_written_comes_back(model):
    file = read_model(model)
    assert file.path == model and file.header["step"] == 0 and file.experiment.data.spec.classes[0] == "sky"
    assert file.tensors.keys() == load_file(model).keys()
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in load_file(model).items())


@pytest.mark.parametrize("use", [emanet.load, emanet.Predictor, read], ids=["load", "Predictor", "read"])
def test_it_is_opened_checked_and_parsed_once(model, monkeypatch, use):
    calls = []

    def counted(module, name):
        function = getattr(module, name)

        def call(*arguments, **options):
            if name != "from_dict" or arguments[0] is emanet.Experiment:  # it calls itself for the fields
                calls.append(name)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    counted(model_file, "safe_open")
    counted(model_file, "_digest")
    counted(experiments, "from_dict")
    monkeypatch.setattr("safetensors.safe_open", lambda *arguments: pytest.fail("opened again"))
    use(model)
    assert sorted(calls) == ["_digest", "from_dict", "safe_open"]


def test_a_changed_byte_is_noticed(model):
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    with pytest.raises(InputError, match=f"^cannot read model file {model}: file is damaged: checksum mismatch$"):
        read_model(model)


def test_files_of_other_programs_have_no_checksum(model):
    header = read_model(model).header
    save_file(load_file(model), model, {"emanet": json.dumps(header)})
    assert read_model(model).header == header
    for metadata, message in (
        (None, "holds weights but no emanet header"),
        ({"emanet": "{"}, "cannot read model file"),
        ({"emanet": json.dumps({"experiment": {"stepz": 1}})}, "unknown field 'stepz'; did you mean 'steps'"),
    ):
        save_file(load_file(model), model, metadata)
        with pytest.raises(InputError, match=message) as error:
            read_model(model)
        assert str(model) in str(error.value)


def test_weights_that_are_not_numbers_are_refused(model):
    """As of a run that diverged: every pixel would be of the first class."""
    file = read_model(model)
    file.tensors["head.classifier.bias"][2] = float("nan")
    model_file.write_model(model, file.tensors, file.experiment, file.header)
    for use in (emanet.load, emanet.Predictor):
        with pytest.raises(InputError, match=f"{model} does not fit .*: not finite: head.classifier.bias$"):
            use(model)


@pytest.mark.parametrize(
    "version, said", [("9.1", "; emanet 9.1 has written it, and this is "), (emanet.__version__, "")]
)
def test_a_setting_of_a_newer_version(model, version, said):
    header = read_model(model).header | {"emanet": version}
    header["experiment"]["model"]["head"]["sparkle"] = 3
    save_file(load_file(model), model, {"emanet": json.dumps(header)})
    for use in (read_model, experiments.load_experiment):
        with pytest.raises(InputError, match="unknown field 'model.head.sparkle'") as raised:
            use(model)
        assert (said in str(raised.value)) and (("has written it" in str(raised.value)) == bool(said))


def test_empty_and_odd_tensors_keep_their_checksum(tmp_path, model):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("empty", torch.zeros(0, 3))
            self.register_buffer("scalar", torch.tensor(3))
            self.register_buffer("turned", torch.ones(2, 3, dtype=torch.bfloat16).mT)

    model_file.save_model(tmp_path / "odd.safetensors", Odd(), read_model(model).experiment)
    tensors = read_model(tmp_path / "odd.safetensors").tensors
    assert tensors["empty"].shape == (0, 3) and tensors["scalar"] == 3 and tensors["turned"].dtype == torch.bfloat16


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name of a file is UTF-8")
def test_a_model_file_with_a_name_that_is_not_utf8(model):
    renamed = model.rename(model.with_name("m\udce9.safetensors"))
    file = read_model(renamed)
    assert file.path == renamed and file.experiment == experiments.load_experiment(str(renamed))
    assert foreign.read(renamed).keys() == file.tensors.keys() and emanet.Predictor(renamed).classes[0] == "sky"
