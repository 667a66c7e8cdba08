"""What a split stands for: lists of files from other systems, names in other forms, and what is left out."""

import json
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import run_cli
from PIL import Image

from emanet.config import DataConfig, DatasetSpec
from emanet.data.check.splits import find_splits
from emanet.data.datasets import list_split, open_dataset, open_folders, resolve
from emanet.data.images import read_image, write_mask
from emanet.data.pack import pack_source
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
        '"images/a b.jpg","masks/a b.png"',
        "images/a b.jpg masks/a b.png ",
        "a b.jpg, a b.png",
        "images/a b.jpg",
        ".\\images\\a b.jpg",
        "a b.JPG",
        "/images/a b.jpg /masks/a b.png",
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_line_may_have_spaces_slashes_and_extensions(tmp_path, line, ending):
    pair(tmp_path, "a b")
    assert listed(tmp_path, f"{line}{ending}") == ["a b.jpg"]


def test_an_image_may_be_listed_by_its_absolute_path_or_through_a_link(tmp_path):
    pair(tmp_path / "real", "a")
    (tmp_path / "linked").symlink_to("real", target_is_directory=True)
    for line in (f"{tmp_path}/real/images/a.jpg", f"{tmp_path}/linked/images/a.jpg"):
        assert listed(tmp_path / "linked", f"{line}\n") == ["a.jpg"]


def test_separators_within_names(tmp_path):
    for name in ("a,1", "b  1", "c;1"):
        pair(tmp_path, name)
    lines = [f"images/{name}.jpg masks/{name}.png" for name in ("a,1", "b  1", "c;1")]
    assert listed(tmp_path, "\n".join(lines)) == ["a,1.jpg", "b  1.jpg", "c;1.jpg"]


def test_a_line_of_two_meanings_is_refused(tmp_path):
    for name in ("a", "b c", "a b", "c"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="train.txt: 'a b c' can mean several pairs; write a tab between"):
        listed(tmp_path, "a b c\n")
    assert listed(tmp_path, "a\tb c\n") == ["a"]


def test_what_is_said_of_lines_that_name_nothing(tmp_path):
    pair(tmp_path, "IMG_1")
    pair(tmp_path, "élan")
    pair(tmp_path / "elsewhere", "x")
    said = {
        "img_1": r"images has no image of that name \(it has 'IMG_1'\)",
        "weed (1)": r"names 'weed \(1\)', but .*images has no image of that name; a line is",
        "elsewhere/images/x.jpg": "which is not in .*images, so its mask is not known",
        "/home/me/a.jpg /home/me/a.png": "1 of 1 images of .* are missing: /home/me/a.jpg$",
        "/images/no.jpg /masks/no.png": f"1 of 1 images of .* are missing: {tmp_path}/images/no.jpg$",
        "image,mask": "names 'image,mask', but .*images has no image of that name",
        "images/no 1.jpg masks/no 1.png": f"1 of 1 images of .* are missing: {tmp_path}/images/no 1.jpg$",
        "x" * 300 + " " + "y" * 300: "no image of that name",
    }
    for line, sentence in said.items():
        with pytest.raises(InputError, match=sentence):
            listed(tmp_path, f"{line}\n# not, this\n")
    with pytest.raises(InputError, match=r"; .*train.txt is not in UTF-8: save it so$"):
        listed(tmp_path, "élan".encode("latin-1"))


def test_a_list_of_comments_is_empty(tmp_path):
    pair(tmp_path, "a")
    with pytest.raises(InputError, match="the split list .*train.txt is empty"):
        listed(tmp_path, "\ufeff# a\n\n# b, c\n")


def test_images_that_are_listed_twice_are_told_of(tmp_path):
    pair(tmp_path, "a")
    pair(tmp_path, "b")
    listed(tmp_path, "a\nb\na.jpg\n")
    assert open_dataset(DataConfig(dataset=str(tmp_path)), "train").notes == ["listed more than once: 1 image: a.jpg"]


def test_folders_in_a_description_of_another_system(tmp_path):
    folder = unicodedata.normalize("NFD", "train/ä")
    pair(tmp_path / folder, "a")
    spec = {"classes": ["a", "b"], "images": ".\\{split}\\ä\\images", "masks": "{split}\\ä\\masks\\"}
    (tmp_path / "dataset.json").write_text(json.dumps(spec))
    assert len(open_dataset(DataConfig(dataset=str(tmp_path)), "train")) == 1
    spec = {"classes": ["a", "b"], "images": ".\\images\\{split}", "masks": "masks\\{split}"}
    (tmp_path / "dataset.json").write_text(json.dumps(spec))
    (tmp_path / "images" / "third").mkdir(parents=True)
    assert find_splits(resolve(DataConfig(dataset=str(tmp_path)))) == ["train", "val", "third"]


def test_the_list_and_folders_of_a_split_may_be_named_with_accents(tmp_path):
    folder = tmp_path / unicodedata.normalize("NFD", "é")
    pair(folder, "a")
    assert listed(tmp_path, unicodedata.normalize("NFC", "é/images/a.jpg é/masks/a.png")) == ["a.jpg"]


def test_suffixes_are_compared_in_any_case(tmp_path):
    pair(tmp_path, "a_x")
    (tmp_path / "images/a_x.jpg").rename(tmp_path / "images/a_X.JPG")
    (tmp_path / "masks/a_x.png").rename(tmp_path / "masks/a_y.PNG")
    spec = DatasetSpec(classes=("a", "b"), image_suffix="_x.jpg", mask_suffix="_y.png")
    assert len(open_folders(tmp_path / "images", tmp_path / "masks", spec)) == 1


@pytest.mark.parametrize("suffix", ["", ".jpg"])
def test_links_to_nothing_hide_no_files(tmp_path, suffix):
    pair(tmp_path, "a")
    for folder in ("images", "masks"):
        (tmp_path / folder / "far").symlink_to("nowhere", target_is_directory=True)
    spec = DatasetSpec(classes=("a", "b"), image_suffix=suffix)
    with pytest.raises(InputError, match="images/far is a link to nowhere, which does not exist or cannot"):
        open_folders(tmp_path / "images", tmp_path / "masks", spec)
    assert listed(tmp_path, "a\n") == ["a.jpg"], "the list does not need the link"


def test_a_folder_of_other_files_is_described(tmp_path):
    pair(tmp_path, "a")
    (tmp_path / "images/a.jpg").rename(tmp_path / "images/a.CR2")
    with pytest.raises(InputError, match="images holds no image, only files that are not read as images: 1 .cr2"):
        open_folders(tmp_path / "images", tmp_path / "masks", DatasetSpec(classes=("a", "b")))


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
    assert list(open_dataset(DataConfig(dataset=str(scenes)), "train").notes) == [
        "left out: 1 mask without an image: alone.png",
        "left out: 3 files beside the images: 2 .cr2, 1 .txt",
    ]
    assert not open_dataset(DataConfig(dataset=str(scenes)), "val").notes
    assert pack_source(str(scenes), str(scenes / "packed")).endswith("beside the images: 2 .cr2, 1 .txt")
    done = run_cli("data", "check", scenes)
    assert "The file lies among the images" in done.stdout and "b.CR2" in done.stdout
    assert left_out([str(images)]) == ["left out, as they are no images: 2 .cr2, 1 .txt"]


def test_partial_folders_are_scored_only_if_asked(scenes):
    images, masks = scenes / "val" / "images", scenes / "val" / "masks"
    (images / "0001.jpg").unlink()
    spec = resolve(DataConfig(dataset=str(scenes))).spec
    with pytest.raises(InputError, match="1 of 3 masks have no image in .*: 0001; --partial scores the others"):
        open_folders(images, masks, spec, partial=False)
    assert len(open_folders(images, masks, spec, partial=True)) == 2
    (masks / "0000.png").unlink()
    with pytest.raises(InputError, match="1 of 2 images have no mask in .*0000.jpg; --partial scores the others"):
        open_folders(images, masks, spec)


def test_overlays_beside_predictions_are_no_predictions(scenes):
    masks = scenes / "val" / "masks"
    spec = resolve(DataConfig(dataset=str(scenes))).spec
    maps = scenes / "maps"
    shutil.copytree(masks, maps)
    shutil.copy(scenes / "val" / "images" / "0000.jpg", maps / "0000_overlay.jpg")
    assert len(open_folders(maps, masks, spec, what="prediction")) == 3
    with pytest.raises(InputError, match="1 of 4 images have no mask"):
        open_folders(maps, masks, spec)
    for name in ("0000_colour.png", "0001_uncertainty.png"):
        shutil.copy(masks / "0000.png", maps / name)
    assert len(open_folders(maps, masks, spec, what="prediction")) == 3
    for name in ("0000_colour.png", "0001_uncertainty.png"):
        (maps / name).unlink()
    (maps / "0002.png").rename(maps / "0002.tif")
    for name in ("0002_uncertainty.tif", "0002_probabilities.tif"):
        shutil.copy(masks / "0000.png", maps / name)
    assert len(open_folders(maps, masks, spec, what="prediction")) == 3
    (maps / "0000_overlay.jpg").rename(maps / "alone_overlay.jpg")
    for name in ("0002_uncertainty.tif", "0002_probabilities.tif"):
        (maps / name).unlink()
    with pytest.raises(InputError, match="1 of 4 images have no mask"):
        open_folders(maps, masks, spec, what="prediction")


@pytest.mark.parametrize(("suffix", "written"), [("_rgb.jpg", "_rgb.png"), (".jpg", ".png"), ("_a.b.jp2", "_a.b.tif")])
def test_predictions_have_the_images_suffix_but_for_its_extension(scenes, suffix, written):
    masks, maps = scenes / "val" / "masks", scenes / "maps"
    maps.mkdir()
    for path in masks.iterdir():
        shutil.copy(path, maps / f"{path.stem}{written}")
    spec = replace(resolve(DataConfig(dataset=str(scenes))).spec, image_suffix=suffix)
    assert len(open_folders(maps, masks, spec, what="prediction")) == 3
    with pytest.raises(InputError, match=f"holds no image named .{suffix}"):
        open_folders(maps, masks, spec)


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
