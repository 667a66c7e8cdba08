"""What a split stands for: lists of files from other systems, names in other forms, and what is left out."""

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import run_cli
from PIL import Image

from emanet.config import DataConfig
from emanet.data.datasets import list_split, open_dataset, open_folders, resolve
from emanet.data.images import read_image, write_mask
from emanet.errors import InputError
from emanet.experiments import read_json, read_text
from emanet.predict.inputs import left_out

PALETTE = ((0, 0, 0), (9, 9, 9))


def pair(root: Path, name: str, mask: str = "") -> None:
    for folder, end in (("images", ".jpg"), ("masks", ".png")):
        path = root / folder / f"{mask or name if end == '.png' else name}{end}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if end == ".jpg":
            Image.new("RGB", (6, 4)).save(path)
        else:
            write_mask(path, np.zeros((4, 6), np.uint8), PALETTE)


def listed(root: Path, content: bytes | str) -> list[str]:
    (root / "train.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    spec = {"classes": ["a", "b"], "images": "images", "masks": "masks", "split_list": "{split}.txt"}
    (root / "dataset.json").write_text(json.dumps(spec))
    config = resolve(DataConfig(dataset=str(root)))
    pairs = list_split(config, "train").sound()
    assert all(mask.is_file() for _, mask in pairs)
    return [image.name for image, _ in pairs]


@pytest.mark.parametrize(
    "line",
    [
        "a b",
        "a b.jpg",
        "./a b.jpg",
        '"a b.jpg"',
        "images/a b.jpg masks/a b.png",
        "images\\a b.jpg masks\\a b.png",
        "images/a b.jpg\tmasks/a b.png",
        "images/a b.jpg, masks/a b.png",
        '"images/a b.jpg" "masks/a b.png"',
        "/images/a b.jpg /masks/a b.png",
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_line_may_have_spaces_slashes_and_extensions(tmp_path, line, ending):
    pair(tmp_path, "a b")
    assert listed(tmp_path, f"{line}{ending}") == ["a b.jpg"]


def test_absolute_paths_and_files_elsewhere(tmp_path):
    pair(tmp_path / "far away", "a")
    pair(tmp_path / "root", "b")
    line = f"{tmp_path}/far away/images/a.jpg {tmp_path}/far away/masks/a.png"
    assert listed(tmp_path / "root", f"b\n{line}\n") == ["b.jpg", "a.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings_of_lists(tmp_path, encoding):
    pair(tmp_path, "élan")
    assert listed(tmp_path, "élan\r\n# a comment\n\nélan\n".encode(encoding)) == ["élan.jpg"] * 2


def test_a_list_in_the_encoding_of_the_names(tmp_path):
    name = b"\xe9lan".decode("utf-8", "surrogateescape")
    try:
        pair(tmp_path, name)
    except OSError:
        pytest.skip("this file system has no such names")
    assert listed(tmp_path, b"\xe9lan\n") == [f"{name}.jpg"]


def test_a_false_line_says_what_a_line_may_be(tmp_path):
    pair(tmp_path, "a")
    with pytest.raises(
        InputError, match="names 'b', but .*images has no image of that name; a line is an image's name"
    ):
        listed(tmp_path, "a\nb\n")


def test_composed_and_decomposed_names_belong_together(tmp_path):
    pair(tmp_path, unicodedata.normalize("NFD", "élan"), unicodedata.normalize("NFC", "élan"))
    spec = resolve(DataConfig(dataset="camvid")).spec
    assert len(open_folders(tmp_path / "images", tmp_path / "masks", spec)) == 1
    assert listed(tmp_path, "élan\n") and listed(tmp_path, unicodedata.normalize("NFD", "élan\n"))


def test_names_that_differ_in_case_only_are_named(tmp_path):
    pair(tmp_path, "IMG_1", "img_1")
    spec = resolve(DataConfig(dataset="camvid")).spec
    with pytest.raises(InputError, match="1 of 1 images have no mask in .*; some names differ only in upper and"):
        open_folders(tmp_path / "images", tmp_path / "masks", spec, partial=False)


def test_text_of_other_systems(tmp_path):
    path = tmp_path / "x.json"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"):
        path.write_bytes('{"a": "é"}'.encode(encoding))
        assert read_json(path) == {"a": "é"}
    path.write_bytes(b"one\ntwo \xe9")
    with pytest.raises(InputError, match="x.json is not text in UTF-8 or UTF-16, in line 2: save it as UTF-8"):
        read_text(path)
    path.write_bytes(b"")
    assert read_text(path) == ""


def test_what_is_left_out_is_counted(scenes):
    images = scenes / "train" / "images"
    for name in ("a.txt", "b.CR2", "c.cr2"):
        (images / name).touch()
    shutil.copy(scenes / "train" / "masks" / "0000.png", scenes / "train" / "masks" / "alone.png")
    left = open_dataset(DataConfig(dataset=str(scenes)), "train").left_out
    assert list(left) == ["1 masks without an image: alone.png", "3 files beside the images: 2 .cr2, 1 .txt"]
    assert not open_dataset(DataConfig(dataset=str(scenes)), "val").left_out
    done = run_cli("data", "check", scenes)
    assert "The file lies among the images" in done.stdout and "b.CR2" in done.stdout
    text = left_out([str(images)])
    assert text.startswith("left out, as they are no images: ") and all(f"1 {end}" in text for end in (".txt", ".CR2"))


def test_partial_folders_are_scored_only_if_asked(scenes):
    images, masks = scenes / "val" / "images", scenes / "val" / "masks"
    (images / "0001.jpg").unlink()
    spec = resolve(DataConfig(dataset=str(scenes))).spec
    with pytest.raises(InputError, match="1 of 3 masks have no image in .*: 0001; --partial scores the others"):
        open_folders(images, masks, spec, partial=False)
    assert len(open_folders(images, masks, spec, partial=True)) == 2


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_photographs_of_phones(tmp_path, kind):
    path = tmp_path / f"a.{kind.lower()}"
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    elif not Image.core or "AVIF" not in Image.registered_extensions().values():
        pytest.skip("this Pillow has no AVIF")
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16], pixels[:, :24, 0] = (0, 200, 0), 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    # A HEIC says how it is turned by itself; its reader has done so, and its EXIF must not turn it again.
    Image.fromarray(pixels).save(path, kind, quality=95, exif=exif)
    turned = pixels if kind == "HEIF" else np.rot90(pixels, -1)
    found = read_image(path)
    assert found.shape == turned.shape and np.abs(found.astype(int) - turned).mean() < 8


def test_heic_without_its_reader_is_named(tmp_path, monkeypatch):
    import builtins

    path = tmp_path / "a.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    real = builtins.__import__

    def without(name, *arguments, **named):
        if name == "pillow_heif":
            raise ImportError
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"a.HEIC: it is a HEIC photograph: pip install 'emanet\[heif\]'"):
        read_image(path)
