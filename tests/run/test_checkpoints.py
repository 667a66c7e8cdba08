import contextlib
import json
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

import emanet
from emanet.config import DatasetSpec
from emanet.errors import InputError
from emanet.experiments import load_experiment, override, read_header
from emanet.loading import model_path, read, start_from
from emanet.model import build_model
from emanet.run.checkpoints import checkpoints, load_checkpoint, put_back, save_best, save_checkpoint, set_aside
from emanet.weights.model_file import save_model

SPEC = DatasetSpec(classes=("a", "b"), palette=((1, 2, 3), (4, 5, 6)))


@pytest.fixture
def experiment(tiny):
    return override(tiny, {"data.spec": SPEC})


@pytest.fixture
def saved(experiment, tmp_path):
    model = build_model(experiment.model, SPEC).eval()
    path = tmp_path / "model.safetensors"
    save_model(path, model, experiment, step=7, metrics={"mIoU": 0.5})
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
    save_model(tmp_path / "m.safetensors", model, gone)
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


@pytest.mark.parametrize("where", ["weights", "classes", "name", "end"])
def test_a_flipped_bit_is_found(saved, where):
    path, model = saved
    content = bytearray(path.read_bytes())
    at = {"weights": -len(content) // 2, "classes": content.index(b'classes\\": [\\"a') + 14, "end": -1}
    at["name"] = content.index(b'"head.emau.bases"') + 6
    content[at[where]] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model.safetensors"):
        emanet.load(path)
    with pytest.raises(InputError, match=r"model.safetensors"):
        start_from(model, read(path))


def test_of_several_bits_none_goes_unseen(saved):
    path, _ = saved
    whole = path.read_bytes()
    for at in range(0, len(whole), len(whole) // 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(InputError, match="model.safetensors"):
            emanet.load(path)


@contextlib.contextmanager
def files_of_at_most(size):
    """Writing more fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_leaves_the_old_file(saved, experiment):
    path, model = saved
    before = path.read_bytes()
    with files_of_at_most(10_000), pytest.raises(OSError, match="File too large"):
        save_model(path, model, experiment)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("room", [10_000, 1_500_000], ids=["training.pt", "model"])
def test_a_failed_checkpoint_leaves_those_before(experiment, tmp_path, room):
    model = build_model(experiment.model, SPEC)
    training = {"optimizer": torch.zeros(300_000)}
    save_checkpoint(tmp_path, model, experiment, training, 10)
    with files_of_at_most(room):
        with pytest.raises(
            InputError, match="cannot write the checkpoint .*000020: File too large; --resume continues from"
        ):
            save_checkpoint(tmp_path, model, experiment, training, 20)
        with pytest.raises(InputError, match="File too large; there is none before it"):
            save_checkpoint(tmp_path / "other", model, experiment, training, 20)
        with pytest.raises(
            InputError, match="cannot write .*best.safetensors: File too large; what it held before stays"
        ):
            save_best(tmp_path, model, experiment, 20, {})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000010"]
    folder, training, broken = load_checkpoint(tmp_path, model, torch.device("cpu"))
    assert folder.name == "000010" and not broken and training["optimizer"].shape == (300_000,)


def test_start_from_another_class_count(saved, experiment):
    path, source = saved
    model = build_model(experiment.model, ["x", "y", "z"])
    loaded, fresh = start_from(model, read(path))
    assert fresh == ["head.classifier.weight", "head.classifier.bias"]
    assert torch.equal(model.head.fc0[0].weight, source.head.fc0[0].weight) and "head.fc0.0.weight" in loaded
    same = build_model(experiment.model, SPEC)
    assert start_from(same, read(path))[1] == []
    wider = build_model(override(experiment.model, {"head.channels": 24}), SPEC)
    with pytest.raises(InputError, match="of another shape: head.fc0.0.weight"):
        start_from(wider, read(path))


def test_retention_keeps_two_to_resume_and_every_nth(experiment, tmp_path):
    model = build_model(experiment.model, SPEC)
    experiment = override(experiment, {"keep_every": 20})
    for step in range(10, 60, 10):
        save_checkpoint(tmp_path, model, experiment, {"optimizer": {}}, step)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["000020", "000040", "000050"]
    assert not (tmp_path / "checkpoints/000020/training.pt").exists()
    save_checkpoint(tmp_path, model, override(experiment, {"keep_last": 3}), {"optimizer": {}}, 50)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["000020", "000040", "000050"]
    assert model_path(tmp_path).parent.name == "000050"
    older = tmp_path / "checkpoints" / "000020"
    assert model_path(older).parent == older and load_experiment(str(older)).keep_every == 20
    save_model(tmp_path / "best.safetensors", model, experiment)
    assert model_path(tmp_path).name == "best.safetensors"


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "torn":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["missing", "empty", "torn", "flipped"])
@pytest.mark.parametrize("name", ["model.safetensors", "training.pt"])
def test_the_checkpoint_before_a_broken_one_is_taken(experiment, tmp_path, name, how):
    model = build_model(experiment.model, SPEC)
    for step in (10, 20, 30):
        with torch.no_grad():
            model.head.classifier.bias.fill_(step)
        save_checkpoint(tmp_path, model, override(experiment, {"keep_last": 3}), {"best": step}, step)
    for step in (20, 30):
        damage(tmp_path / "checkpoints" / f"{step:06d}" / name, how)
    folder, training, broken = load_checkpoint(tmp_path, model, torch.device("cpu"))
    assert (folder.name, training["best"], model.head.classifier.bias[0].item()) == ("000010", 10, 10)
    assert [folder.name for folder in broken] == ["000030", "000020"]
    assert all(f"{folder.name}/{name}" in why for folder, why in broken.items())
    set_aside(broken)
    names = ["000010", "000020.broken", "000030.broken"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names
    damage(folder / name, how)
    with pytest.raises(InputError, match=f"has no checkpoint to resume from: .*000010/{name}"):
        load_checkpoint(tmp_path, model, torch.device("cpu"))


@pytest.mark.parametrize("when", ["between", "after"])
def test_a_checkpoint_is_never_gone_while_it_is_written_again(experiment, tmp_path, monkeypatch, when):
    """The folder of the same step, from before a validation that was cut off, is there until the new one is."""
    model = build_model(experiment.model, SPEC)
    save_checkpoint(tmp_path, model, experiment, {"best": 1}, 10)
    rename, renamed = type(tmp_path).rename, []

    def killed(path, target):
        if when == "between" and renamed:
            raise KeyboardInterrupt
        renamed.append(rename(path, target))

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "rename", killed)
        if when == "after":
            patch.setattr("emanet.run.checkpoints.sync_folder", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, model, experiment, {"best": 2}, 10)
    put_back(tmp_path)
    folder, training, broken = load_checkpoint(tmp_path, model, torch.device("cpu"))
    assert (folder.name, training["best"], broken) == ("000010", 1 if when == "between" else 2, {})
    save_checkpoint(tmp_path, model, experiment, {"best": 3}, 10)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000010"]


def test_a_checkpoint_without_a_checksum_says_so(experiment, tmp_path):
    model = build_model(experiment.model, SPEC)
    save_checkpoint(tmp_path, model, experiment, {}, 10)
    save_model(tmp_path / "checkpoints/000010/model.safetensors", model, experiment, step=10)
    with pytest.raises(InputError, match="000010: it was written by an old version of emanet, without checksums"):
        load_checkpoint(tmp_path, model, torch.device("cpu"))
