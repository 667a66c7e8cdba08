import os
import unicodedata
from pathlib import Path

from emanet.data.files import by_extension, files_below, leads_nowhere, located


def relative(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in files_below(folder))


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_subfolders_but_nothing_hidden(tmp_path):
    touch(*(tmp_path / name for name in ("a.png", "x/b.png", "x/y/c", ".hidden", ".thumbs/d.png", "x/.z/e.png")))
    assert relative(tmp_path) == ["a.png", "x/b.png", "x/y/c"]


def test_links_are_followed_and_no_folder_is_entered_twice(tmp_path):
    touch(tmp_path / "elsewhere/a.png", tmp_path / "in/own/b.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "in/linked")
    os.symlink("linked", tmp_path / "in/again")
    os.symlink("..", tmp_path / "in/own/circle")
    os.symlink("own", tmp_path / "in/a_link_that_sorts_first")
    touch(tmp_path / "in/own/deep/c.png")
    os.symlink("own/deep", tmp_path / "in/shortcut")
    assert relative(tmp_path / "in") == ["again/a.png", "own/b.png", "own/deep/c.png"]


def test_folders_that_cannot_be_read_are_reported(tmp_path, monkeypatch):
    touch(tmp_path / "closed/a.png", tmp_path / "b.png")
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    errors = []
    assert files_below(tmp_path, errors.append) == [tmp_path / "b.png"]
    assert [error.filename for error in errors] == [str(tmp_path / "closed")]


def test_names_of_other_systems_are_located(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    touch(tmp_path / decomposed / f"{composed}.png", tmp_path / "a\\b.png", tmp_path / "a" / "c.png")
    found = tmp_path / decomposed / f"{composed}.png"
    for folder in (composed, decomposed):
        for name in (composed, decomposed):
            for slash in "/\\":
                assert located(tmp_path, f"{folder}{slash}{name}.png") == found
    assert located(tmp_path, "a\\b.png") == tmp_path / "a\\b.png"
    assert located(tmp_path, "a\\c.png") == located(Path(), f"{tmp_path}/a/c.png") == tmp_path / "a/c.png"
    assert located(tmp_path, "no\\c.png") == tmp_path / "no/c.png"


def test_files_are_counted_by_extension():
    assert by_extension(map(Path, ("a.CR2", "b.cr2", "c", "d.txt"))) == "2 .cr2, 1 without an extension, 1 .txt"


def test_links_that_lead_nowhere(tmp_path):
    touch(tmp_path / "a")
    for name, target in (("good", "a"), ("bad", "nothing"), ("circle", "circle")):
        os.symlink(target, tmp_path / name)
    assert [name for name in ("a", "good", "bad", "circle") if leads_nowhere(tmp_path / name)] == ["bad", "circle"]
