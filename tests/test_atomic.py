import pytest

from emanet import atomic


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
