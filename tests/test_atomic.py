import pytest

from emanet import atomic
from emanet.errors import InputError


def test_what_is_written_is_there_whole_with_its_folders(tmp_path):
    path = tmp_path / "new" / "deep" / "a.json"
    atomic.write_json(path, {"a": [1, 2]})
    assert path.read_text() == '{\n  "a": [\n    1,\n    2\n  ]\n}\n'
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")

    def fails(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os if call == "fsync" else type(path), call, fails)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_text(path, "new")
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*a.txt"):
        atomic.write_text(tmp_path / "a.txt", "new")


def test_two_processes_writing_one_file_use_two_temporary_files(tmp_path, monkeypatch):
    names = []
    for process in (1, 2):
        monkeypatch.setattr(atomic.os, "getpid", lambda process=process: process)
        with atomic.replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text(str(process))
            names.append(temporary.name)
    assert len(set(names)) == 2 and [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_what_could_not_be_written_is_known_before_the_work(tmp_path):
    atomic.require_writable("", tmp_path / "new" / "a.json")
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        atomic.require_writable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write .*file/a.json: "):
        atomic.require_writable(tmp_path / "file" / "a.json")


def test_a_folder_to_write_into_is_tried_and_made(tmp_path):
    atomic.require_writable_folder(tmp_path / "new" / "deep")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "deep"]
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "deep"):
        with pytest.raises(InputError, match=f"^cannot write {folder}: (Not a directory|.*/file is not a folder)$"):
            atomic.require_writable_folder(folder)


def test_an_empty_name_is_not_the_folder_that_one_is_in():
    with pytest.raises(InputError, match="name of the output folder is empty; write . for the folder"):
        atomic.require_writable_folder("")


def test_what_a_killed_process_of_the_same_number_left_is_replaced(tmp_path):
    with atomic.replacing(tmp_path / "a.txt") as temporary:
        pass_on = temporary
        temporary.write_text("half")
    pass_on.write_text("half")
    with atomic.replacing(tmp_path / "a.txt") as temporary:
        assert not temporary.exists()
        temporary.write_text("whole")
    assert (tmp_path / "a.txt").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file or directory: .*other.txt"):
        with atomic.replacing(tmp_path / "a.txt"):
            (tmp_path / "other.txt").read_text()


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127])
def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path, name):
    atomic.require_writable(tmp_path / name)
    atomic.write_text(tmp_path / name, "whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_long_names_that_begin_alike_have_temporary_files_of_their_own(tmp_path):
    with atomic.replacing(tmp_path / ("x" * 200 + "1")) as one, atomic.replacing(tmp_path / ("x" * 200 + "2")) as two:
        assert one != two
        one.touch()
        two.touch()
