import errno
import shutil
from pathlib import Path

import pytest

from emanet.config import DatasetSpec
from emanet.errors import InputError
from emanet.experiments import override
from emanet.model import build_model
from emanet.run import folder as rundir
from emanet.run.folder import RunFolder, default_name, folder_to_resume, pick_run_folder, require_same

SPEC = DatasetSpec(classes=("a", "b"))


def chosen(*arguments):
    folder, resume = pick_run_folder(*arguments)
    return str(folder), resume


def test_a_run_is_continued_or_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert chosen("", "x", False) == ("runs/x", False)
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "config.json").touch()
    assert chosen("", "x", False) == ("runs/x-2", False)
    assert chosen("", "x", True) == ("runs/x", True)
    assert chosen("runs/x", "y", True) == ("runs/x", True)
    with pytest.raises(InputError, match="runs/x already holds a run"):
        pick_run_folder("runs/x", "y", False)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("voc_resnet101", "voc_resnet101"),
        ("experiments/wide.py", "wide"),
        ("experiments/lr0.01.json", "lr0.01"),
        ("runs/lr0.01", "lr0.01"),
        ("runs/lr0.01/", "lr0.01"),
        ("runs/lr0.01/config.json", "lr0.01"),
        ("runs/lr0.01/best.safetensors", "lr0.01"),
        ("runs/lr0.01/checkpoints/000400", "lr0.01"),
        ("runs/lr0.01/checkpoints/000400/model.safetensors", "lr0.01"),
        ("models/street.safetensors", "street"),
    ],
)
def test_the_default_name_is_that_of_the_experiment_or_run(tmp_path, monkeypatch, source, name):
    (tmp_path / "runs/lr0.01/checkpoints/000400").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert default_name(source) == name


def test_a_run_is_continued_by_its_folder(tmp_path, monkeypatch):
    (tmp_path / "runs/a/checkpoints/000400").mkdir(parents=True)
    (tmp_path / "runs/a/checkpoints/000400/training.pt").touch()
    (tmp_path / "drawn").mkdir()
    monkeypatch.chdir(tmp_path)
    for part in ("checkpoints/000400", "best.safetensors", "config.json", "checkpoints/000400/model.safetensors"):
        with pytest.raises(InputError, match=f"a/{part} is part of a run; .*: train .*/runs/a --resume"):
            folder_to_resume(f"runs/a/{part}")
    assert folder_to_resume("runs/a/") == "runs/a/"
    for experiment in ("drawn", "mine.py", "configs/config.json"):
        assert folder_to_resume(experiment) == ""


def test_the_folder_that_one_stands_in_has_a_name_too(tmp_path, monkeypatch):
    (tmp_path / "lr0.01").mkdir()
    monkeypatch.chdir(tmp_path / "lr0.01")
    assert default_name(".") == default_name("config.json") == "lr0.01"


@pytest.mark.parametrize("name", ["none", "a-job"])
def test_a_restart_continues_what_the_same_launch_began_and_nothing_else(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
    config = override(tiny, {"data.spec": SPEC})
    RunFolder(tmp_path / "run").write_origin(config, build_model(config.model, SPEC), 0)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert pick_run_folder(tmp_path / "run", "x", False) == (tmp_path / "run", True)
    if name == "none":
        monkeypatch.setattr(rundir.os, "getppid", lambda: -1)  # not that of any process, nor 1 (a daemon)
    else:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another-job")
    with pytest.raises(InputError, match="run already holds a run"):
        pick_run_folder(tmp_path / "run", "x", False)
    assert pick_run_folder(tmp_path / "new", "x", False) == (tmp_path / "new", False)


def test_a_resumed_run_may_change_what_does_not_affect_the_weights(tiny, tmp_path):
    require_same(override(tiny, {"log_every": 7, "data.workers": 3, "eval.flip": True}), tiny, tmp_path)
    with pytest.raises(InputError, match="other settings: batch_size 4 -> 8"):
        require_same(override(tiny, {"batch_size": 8, "log_every": 7}), tiny, tmp_path)


class Named(list):
    """A data set as far as its names go."""

    name = list.__getitem__


def test_other_images_than_before_are_noted(tiny, tmp_path):
    config = override(tiny, {"data.spec": SPEC, "data.root": "d/"})
    run = RunFolder(tmp_path / "run")
    names = Named(["d/train/a.jpg", "d/train/b.jpg"])
    files = rundir.files_of(config, names, Named(["d/val/c.jpg"]))
    assert list(run.about_files(files)) == [], "there is no file to compare with"
    run.write_origin(config, build_model(config.model, SPEC), 0, files)
    moved = Named(["/e/train/a.jpg", "/e/train/b.jpg"]), Named(["/e/val/c.jpg"])
    assert list(run.about_files(rundir.files_of(override(config, {"data.root": "/e"}), *moved))) == []
    (note,) = run.about_files(rundir.files_of(config, Named([*names, "d/train/z.jpg"]), Named(["d/val/c.jpg"])))
    assert note.startswith("train has 3 images, not those of before (2): the run will not end as it would have")


def test_git_state_is_this_packages_own_or_none(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(rundir, "PACKAGE", tmp_path / "site-packages" / "emanet")
    assert rundir.environment(build_model(tiny.model, SPEC))["git_commit"] is None


def test_the_copy_of_a_read_only_install_can_be_written_again(tmp_path, monkeypatch):
    package, copy = tmp_path / "site" / "emanet", tmp_path / "run" / "code" / "emanet"
    (package / "ops" / "__pycache__").mkdir(parents=True)
    for name in ("a.py", "ops/b.py", "ops/__pycache__/b.pyc"):
        (package / name).write_text("x = 1")
        (package / name).chmod(0o444)
    (package / "ops").chmod(0o555)
    monkeypatch.setattr(rundir, "PACKAGE", package)
    rundir.copy_code(copy)
    files = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*"))
    assert files == ["a.py", "ops", "ops/b.py"] and all(path.stat().st_mode & 0o200 for path in copy.rglob("*"))
    shutil.copytree(package, copy, dirs_exist_ok=True)  # as earlier versions did it
    copy.chmod(0o555)
    (package / "ops" / "b.py").chmod(0o644)
    (package / "ops" / "b.py").write_text("x = 2")
    rundir.copy_code(copy)
    assert (copy / "ops" / "b.py").read_text() == "x = 2"
    (package / "ops").chmod(0o755)


def test_a_full_disk_is_that_of_the_copy(tmp_path, monkeypatch):
    (tmp_path / "emanet").mkdir()
    (tmp_path / "emanet" / "a.py").write_text("x = 1")
    monkeypatch.setattr(rundir, "PACKAGE", tmp_path / "emanet")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as raised:
        rundir.copy_code(tmp_path / "run" / "code")
    assert raised.value.filename == str(tmp_path / "run" / "code" / "a.py")
