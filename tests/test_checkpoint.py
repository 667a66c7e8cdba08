import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import emanet
from emanet import checkpoint
from emanet.config import DatasetSpec
from emanet.errors import InputError
from emanet.experiments import load_experiment, override, read_header
from emanet.model import build_model

SPEC = DatasetSpec(classes=("a", "b"), palette=((1, 2, 3), (4, 5, 6)))


@pytest.fixture
def experiment(tiny):
    return override(tiny, {"data.spec": SPEC})


@pytest.fixture
def saved(experiment, tmp_path):
    model = build_model(experiment.model, SPEC).eval()
    path = tmp_path / "model.safetensors"
    checkpoint.save_model(path, model, experiment, step=7, metrics={"mIoU": 0.5})
    return path, model


def test_one_file_gives_the_model_back(saved):
    path, model = saved
    again = emanet.load(path)
    images = torch.randint(0, 256, (1, 3, 40, 33), dtype=torch.uint8)
    assert torch.equal(again(images), model(images)) and not again.training
    assert (again.classes, again.palette) == (SPEC.classes, SPEC.palette)
    assert read_header(path)["step"] == 7


def test_a_pretrained_path_that_is_gone_does_not_matter(experiment, tmp_path):
    model = build_model(experiment.model, SPEC)
    gone = override(experiment, {"model.backbone.pretrained": "/gone.pth"})
    checkpoint.save_model(tmp_path / "m.safetensors", model, gone)
    assert emanet.load(tmp_path / "m.safetensors").classes == SPEC.classes


def change(path, edit):
    header = read_header(path)
    tensors = load_file(path)
    edit(header, tensors)
    save_file(tensors, path, {"emanet": json.dumps(header)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h, t: t.pop("mean"), "does not fit the model: missing: mean"),
        (lambda h, t: t.update(odd=torch.ones(1)), "does not fit the model: unexpected: odd"),
        (lambda h, t: t.update(mean=torch.ones(2)), r"of another shape: mean \(2,\) for \(1, 3, 1, 1\)"),
        (lambda h, t: h["experiment"]["data"].update(spec=None), "its classes are unknown"),
        (lambda h, t: h["experiment"].update(stepz=1), "unknown field 'stepz'"),
    ],
    ids=["missing", "unexpected", "shape", "classes", "field"],
)
def test_a_file_that_does_not_fit_names_what(saved, edit, message):
    path, _ = saved
    change(path, edit)
    with pytest.raises(InputError, match=message):
        emanet.load(path)


def test_files_that_are_no_models(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="no model file"):
        emanet.load(path)
    path.write_bytes(b"abc")
    with pytest.raises(InputError, match="cannot read model file .*m.safetensors"):
        emanet.load(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(InputError, match="no emanet header"):
        emanet.load(path)


def test_a_truncated_file_is_named(saved):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot read model file"):
        emanet.load(path)


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    path, model = saved
    before = path.read_bytes()
    monkeypatch.setattr(checkpoint.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save_model(path, model, load_experiment(str(path)))
    assert path.read_bytes() == before


def test_start_from_another_class_count(saved, experiment):
    path, source = saved
    model = build_model(experiment.model, ["x", "y", "z"])
    loaded, fresh = checkpoint.start_from(model, str(path))
    assert fresh == ["head.classifier.weight", "head.classifier.bias"]
    assert torch.equal(model.head.fc0[0].weight, source.head.fc0[0].weight) and "head.fc0.0.weight" in loaded
    same = build_model(experiment.model, SPEC)
    assert checkpoint.start_from(same, str(path))[1] == []
    wider = build_model(override(experiment.model, {"head.channels": 24}), SPEC)
    with pytest.raises(InputError, match="of another shape: head.fc0.0.weight"):
        checkpoint.start_from(wider, str(path))


def test_retention_keeps_two_to_resume_and_every_nth(experiment, tmp_path):
    model = build_model(experiment.model, SPEC)
    experiment = override(experiment, {"keep_every": 20})
    for step in range(10, 60, 10):
        checkpoint.save_checkpoint(tmp_path, model, experiment, {"optimizer": {}}, step)
    assert [folder.name for folder in checkpoint.checkpoints(tmp_path)] == ["000020", "000040", "000050"]
    assert not (tmp_path / "checkpoints/000020/training.pt").exists()
    assert checkpoint.model_path(tmp_path).parent.name == "000050"
    older = tmp_path / "checkpoints" / "000020"
    assert checkpoint.model_path(older).parent == older and load_experiment(str(older)).keep_every == 20
    checkpoint.save_model(tmp_path / "best.safetensors", model, experiment)
    assert checkpoint.model_path(tmp_path).name == "best.safetensors"
