"""Tiny copies of every public data set, as archives of the true layout, through `data prepare` and read back."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_cli, sentence
from PIL import Image
from test_archives import packed, serving

from emanet.config import DataConfig, voc_palette
from emanet.data.check.quick import check
from emanet.data.datasets import open_dataset
from emanet.data.prepare import recipes as prepare
from emanet.data.specs import SPECS
from emanet.experiments import load_experiment

scipy_io = pytest.importorskip("scipy.io")
rle = pytest.importorskip("pycocotools.mask")

SIZE = (12, 16)  # h, w


def jpg(size=SIZE) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size[::-1], (90, 120, 30)).save(file, "JPEG")
    return file.getvalue()


def png(labels, palette=False) -> bytes:
    image = Image.fromarray(np.asarray(labels, np.uint8))
    if palette:
        image.putpalette(np.array(voc_palette(256), np.uint8).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def mat(content) -> bytes:
    file = io.BytesIO()
    scipy_io.savemat(file, content)
    return file.getvalue()


def halves(left, right) -> np.ndarray:
    """A mask of two values, side by side."""
    values = np.full(SIZE, left)
    values[:, SIZE[1] // 2 :] = right
    return values


def sbd_mat(labels) -> bytes:
    """The published structure: a struct of borders per class (sparse), labels, and the classes that occur."""
    from scipy.sparse import csc_matrix

    borders = np.empty((20, 1), object)
    for label in range(20):
        borders[label, 0] = csc_matrix(SIZE, dtype=np.uint8)
    present = np.unique(labels[labels > 0]).reshape(-1, 1)
    return mat({"GTcls": {"Boundaries": borders, "Segmentation": np.uint8(labels), "CategoriesPresent": present}})


def stuff_mat(values) -> bytes:
    names = np.array([["unlabeled"], ["person"]], object)
    return mat({"S": np.uint8(values), "names": names, "captions": names, "regionMapStuff": np.uint16(values)})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a test puts its archives; their checksums are not those of the real ones."""
    made = {}
    for name, recipe in prepare.RECIPES.items():
        archives = tuple(replace(archive, digests=(), urls=()) for archive in recipe.archives)
        made[name] = replace(recipe, archives=tuple(replace(a, page=a.page or "the test") for a in archives))
    monkeypatch.setattr(prepare, "RECIPES", made)
    (tmp_path / "archives").mkdir()
    return tmp_path / "archives"


def prepared(name, folder, *more):
    done = run_cli("data", "prepare", name, "--root", folder.parent / name, "--archives", folder, *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def labels_of(name, folder, split) -> dict[str, np.ndarray]:
    dataset = open_dataset(DataConfig(dataset=name, root=str(folder.parent / name)), split)
    check(dataset)
    read = {Path(dataset.name(i)).name: dataset.read(i) for i in range(len(dataset))}
    assert all(image.shape == (*labels.shape, 3) for image, labels in read.values())
    return {name: labels for name, (_, labels) in read.items()}


def same(found, expected):
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert np.array_equal(found[name], expected[name]), name


def voc_archives(folder, test=True):
    top, lists = "VOCdevkit/VOC2012", "VOCdevkit/VOC2012/ImageSets/Segmentation"
    masks = {"2007_1": halves(0, 1), "2007_2": halves(2, 255), "2007_3": halves(3, 0)}
    stems = [*masks, "2008_4", "2008_5", "2008_9"]
    files = {f"{top}/JPEGImages/{stem}.jpg": jpg() for stem in stems}
    files |= {f"{top}/SegmentationClass/{stem}.png": png(labels, palette=True) for stem, labels in masks.items()}
    files |= {f"{lists}/train.txt": b"2007_1\n2007_2\n", f"{lists}/val.txt": b"2007_3\n"}
    files |= {f"{lists}/trainval.txt": b"2007_1\n2007_2\n2007_3\n", f"{top}/Annotations/2007_1.xml": b"<x/>"}
    packed(folder / "VOCtrainval_11-May-2012.tar", files)
    # SBD's own masks of VOC's train (2007_1) and val (2007_3) must not be used, nor its val image trained on
    sbd = {"2007_1": halves(9, 9), "2008_4": halves(4, 0), "2007_3": halves(9, 9), "2008_5": halves(0, 20)}
    top = "benchmark_RELEASE/dataset"
    files = {f"{top}/cls/{stem}.mat": sbd_mat(labels) for stem, labels in sbd.items()}
    files |= {f"{top}/img/2008_4.jpg": b"large", f"{top}/train.txt": b"2007_1\n2008_4\n2007_3\n"}
    packed(folder / "benchmark.tgz", files | {f"{top}/val.txt": b"2008_5\n"})
    if test:
        members = {"VOCdevkit/VOC2012/JPEGImages/2008_7.jpg": jpg(), f"{lists}/test.txt": b"2008_7\n"}
        packed(folder / "VOC2012test.tar", members)
    return masks, sbd


def test_voc(folder):
    masks, sbd = voc_archives(folder)
    said = prepared("voc", folder)
    root = folder.parent / "voc"
    same(labels_of("voc", folder, "train"), {f"{stem}.jpg": masks[stem] for stem in ("2007_1", "2007_2")})
    same(labels_of("voc", folder, "val"), {"2007_3.jpg": masks["2007_3"]})
    assert len(labels_of("voc", folder, "trainval")) == 3
    expected = {f"{stem}.jpg": masks[stem] for stem in ("2007_1", "2007_2")}
    same(labels_of("voc", folder, "trainaug"), expected | {f"{s}.jpg": sbd[s] for s in ("2008_4", "2008_5")})
    assert (root / "test.txt").read_text() == "JPEGImages/2008_7.jpg\n"
    assert not (root / "Annotations").exists() and not (root / "sbd" / "img").exists()
    assert "trainaug         4 images, but 10,582 are published" in said
    assert f"1 images without masks, for submit --images {root}/test.txt, but 1,456 are published" in said
    assert f"python -m emanet train voc_resnet101 --data.root {root}" in said
    assert Image.open(root / "SegmentationClassAug" / "2008_4.png").mode == "P"


def test_it_goes_on_offline_and_touches_nothing_that_is_done(folder):
    voc_archives(folder, test=False)
    first = prepared("voc", folder)
    assert "no test images: there is no" in first and "VOC2012test.tar: fetch it from http://host.robots" in first
    root = folder.parent / "voc"
    for path in folder.iterdir():
        path.unlink()
    (root / "SegmentationClassAug" / "2008_5.png").unlink()
    (root / "SegmentationClassAug" / ".2008_5.png.1.part").write_bytes(b"half")
    (root / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("mine\n")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    prepared("voc", folder)
    changed = {path.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed == {"trainaug.txt"} and len(labels_of("voc", folder, "trainaug")) == 4
    assert (root / "ImageSets" / "Segmentation" / "trainaug.txt.old").read_text() == "mine\n"


@pytest.mark.parametrize("name", ["context59", "context60"])
def test_context(folder, name):
    top = "VOCdevkit/VOC2010"
    maps = {"2008_1": halves(2, 458), "2008_2": halves(431, 9), "2008_3": halves(1, 0)}
    files = {f"{top}/JPEGImages/{stem}.jpg": jpg() for stem in [*maps, "2010_1"]}
    files |= {f"{top}/ImageSets/Main/train.txt": b"2008_1\n2008_3\n", f"{top}/ImageSets/Main/val.txt": b"2008_2\n"}
    packed(folder / "VOCtrainval_03-May-2010.tar", files | {f"{top}/ImageSets/Main/cow_train.txt": b"2008_1 -1\n"})
    values = {stem: mat({"LabelMap": np.uint16(labels)}) for stem, labels in maps.items()}
    packed(folder / "trainval.tar.gz", {f"trainval/{stem}.mat": content for stem, content in values.items()})
    said = prepared(name, folder)
    assert "train            2 images, but 4,998 are published" in said and "but 5,105 are published" in said
    if name == "context60":
        same(labels_of(name, folder, "train"), {"2008_1.jpg": halves(1, 59), "2008_3.jpg": halves(0, 0)})
        same(labels_of(name, folder, "val"), {"2008_2.jpg": halves(0, 2)})
    else:
        same(labels_of(name, folder, "train"), {"2008_1.jpg": halves(0, 58), "2008_3.jpg": halves(255, 255)})
        same(labels_of(name, folder, "val"), {"2008_2.jpg": halves(255, 1)})


def test_cocostuff10k(folder):
    stems = [f"COCO_train2014_00000000007{i}" for i in range(3)]
    values = dict(zip(stems, (halves(0, 1), halves(11, 13), halves(92, 182)), strict=True))
    files = {f"images/{stem}.jpg": jpg() for stem in stems}
    files |= {f"annotations/{stem}.mat": stuff_mat(content) for stem, content in values.items()}
    files |= {"imageLists/train.txt": "\n".join(stems[:2]).encode(), "imageLists/test.txt": stems[2].encode()}
    packed(folder / "cocostuff-10k-v1.1.zip", files | {"cocostuff-labels.txt": b"0: unlabeled"})
    said = prepared("cocostuff10k", folder)
    assert "but 9,000 are published" in said and "but 1,000 are published" in said
    expected = {f"{stems[0]}.jpg": halves(255, 0), f"{stems[1]}.jpg": halves(10, 11)}
    same(labels_of("cocostuff10k", folder, "train"), expected)
    for split in ("test", "val"):
        same(labels_of("cocostuff10k", folder, split), {f"{stems[2]}.jpg": halves(80, 170)})
    classes = SPECS["cocostuff10k"].classes
    assert (classes[0], classes[10], classes[11], classes[80]) == ("person", "fire hydrant", "stop sign", "banner")


def coco_images(folder, size=SIZE):
    for split in ("train", "val"):
        packed(folder / f"{split}2017.zip", {f"{split}2017/{i:012}.jpg": jpg(size) for i in range(1, 6)})


def test_cocostuff164k(folder):
    coco_images(folder)
    values = {split: {i: halves(i - 1, 181) for i in range(1, 6)} for split in ("train", "val")}
    values["val"][5] = halves(12, 255)
    masks = {f"{s}2017/{i:012}.png": png(v) for s, found in values.items() for i, v in found.items()}
    packed(folder / "stuffthingmaps_trainval2017.zip", masks)
    prepared("cocostuff164k", folder)
    same(labels_of("cocostuff164k", folder, "train"), {f"{i:012}.jpg": halves(i - 1, 170) for i in range(1, 6)})
    assert np.array_equal(labels_of("cocostuff164k", folder, "val")["000000000005.jpg"], halves(11, 255))


def box(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def coded(region, compressed):
    """A region as COCO writes run lengths: compressed text, or counts of alternating runs, column by column."""
    if compressed:
        code = rle.encode(np.asfortranarray(region.astype(np.uint8)))
        return {"size": code["size"], "counts": code["counts"].decode()}
    flat = np.concatenate([[0], region.T.ravel(), [1 - region.T.ravel()[-1]]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges])).tolist()
    return {"size": list(region.shape), "counts": counts}


def coco_json(shapes, size) -> bytes:
    """instances_*.json of five images; shapes: (image, category, segmentation, is a crowd)."""
    images = [{"id": i, "file_name": f"{i:012}.jpg", "height": size[0], "width": size[1]} for i in range(1, 6)]
    found = [
        {"id": n, "image_id": i, "category_id": category, "segmentation": shape, "iscrowd": int(crowd), "area": 1.0}
        for n, (i, category, shape, crowd) in enumerate(shapes)
    ]
    return json.dumps({"images": images, "annotations": found, "categories": []}).encode()


def test_coco_with_vocs_classes(folder):
    size = (60, 80)
    coco_images(folder, size)
    region = np.zeros(size, bool)
    region[10:30, 5:65] = True
    shapes = [
        (1, 1, box(0, 0, 80, 40), False),  # a person of 3,200 pixels
        (1, 18, box(10, 10, 20, 20), False),  # a dog of 400 before it: on top, though it is written later or earlier
        (2, 44, box(10, 10, 20, 20), False),
        (2, 67, box(0, 0, 80, 40), False),  # a dining table under the bottle, named after it
        (2, 28, box(0, 0, 80, 60), False),  # an umbrella is no class of VOC: background
        (3, 1, box(0, 0, 30, 30), False),  # 900 pixels: not enough to train on
        (4, 3, box(0, 0, 40, 40), False),
        (4, 1, coded(region, compressed=False), True),  # a crowd: ignored where there is no single object
        (5, 1, coded(region, compressed=True), True),  # nothing but a crowd: 0 labelled pixels
    ]
    val = [(1, 72, coded(region, compressed=True), False), (2, 1, box(0, 0, 4, 4), False)]
    files = {"annotations/instances_train2017.json": coco_json(shapes, size)}
    files |= {"annotations/instances_val2017.json": coco_json(val, size), "annotations/captions_val2017.json": b"{}"}
    packed(folder / "annotations_trainval2017.zip", files)
    said = prepared("coco_voc", folder)
    one = np.zeros(size)
    one[:40] = 15
    one[10:30, 10:30] = 12
    two = np.zeros(size)
    two[:40] = 11
    two[10:30, 10:30] = 5
    four = np.where(region, 255, 0)
    four[:40, :40] = 7
    expected = {"000000000001.jpg": one, "000000000002.jpg": two, "000000000004.jpg": four}
    same(labels_of("coco_voc", folder, "train"), expected)
    found = labels_of("coco_voc", folder, "val")
    assert len(found) == 5 and np.array_equal(found["000000000001.jpg"], np.where(region, 20, 0))
    assert not found["000000000005.jpg"].any() and (found["000000000002.jpg"] == 15).sum() == 16
    assert "train            3 images\n" in said and "val              5 images, but 5,000 are published" in said
    masks = folder.parent / "coco_voc" / "masks_voc" / "train2017"
    before = {path.name: path.stat().st_mtime_ns for path in masks.iterdir()}
    prepared("coco_voc", folder)
    assert before == {path.name: path.stat().st_mtime_ns for path in masks.iterdir()} and len(before) == 3


def test_cityscapes(folder):
    values = {"train": halves(7, 33), "val": halves(4, 11), "test": halves(1, 3)}
    images, masks = {"README": b"x"}, {"license.txt": b"x"}
    for split, labels in values.items():
        name = f"{split}/aachen/aachen_000000_000019"
        images[f"leftImg8bit/{name}_leftImg8bit.png"] = png(np.zeros((*SIZE, 3)))
        masks[f"gtFine/{name}_gtFine_labelIds.png"] = png(labels)
        masks[f"gtFine/{name}_gtFine_instanceIds.png"] = png(labels)
        masks[f"gtFine/{name}_gtFine_polygons.json"] = b"{}"
    error = sentence(run_cli("data", "prepare", "cityscapes", "--root", folder.parent / "cityscapes"))
    assert "cityscapes needs leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip" in error
    assert "https://www.cityscapes-dataset.com/downloads/, put them into" in error
    packed(folder / "leftImg8bit_trainvaltest.zip", images)
    error = sentence(
        run_cli("data", "prepare", "cityscapes", "--root", folder.parent / "cityscapes", "--archives", folder)
    )
    assert "needs gtFine_trainvaltest.zip, which" in error and f"put it into {folder}" in error
    packed(folder / "gtFine_trainvaltest.zip", masks)
    said = prepared("cityscapes", folder)
    same(labels_of("cityscapes", folder, "train"), {"aachen_000000_000019_leftImg8bit.png": halves(0, 18)})
    same(labels_of("cityscapes", folder, "val"), {"aachen_000000_000019_leftImg8bit.png": halves(255, 2)})
    root = folder.parent / "cityscapes"
    assert f"1 images without masks, for submit --images {root}/leftImg8bit/test, but 1,525 are published" in said
    assert not (root / "README").exists()


def test_ade20k(folder):
    top, values = "ADEChallengeData2016", {"training": halves(0, 1), "validation": halves(2, 150)}
    files = {f"{top}/sceneCategories.txt": b"x"}
    for split, labels in values.items():
        files[f"{top}/images/{split}/ADE_{split[:5]}_00000001.jpg"] = jpg()
        files[f"{top}/annotations/{split}/ADE_{split[:5]}_00000001.png"] = png(labels)
    packed(folder / "ADEChallengeData2016.zip", files)
    packed(folder / "release_test.zip", {"release_test/testing/ADE_test_00000001.jpg": jpg()})
    said = prepared("ade20k", folder)
    for split in ("train", "training"):
        same(labels_of("ade20k", folder, split), {"ADE_train_00000001.jpg": halves(255, 0)})
    for split in ("val", "validation"):
        same(labels_of("ade20k", folder, split), {"ADE_valid_00000001.jpg": halves(1, 149)})
    assert "but 20,210 are published" in said and "release_test/testing, but 3,352 are published" in said


def test_what_is_not_there_is_downloaded(folder, monkeypatch):
    top = "ADEChallengeData2016"
    files = {f"{top}/images/{s}/a.jpg": jpg() for s in ("training", "validation")}
    files |= {f"{top}/annotations/{s}/a.png": png(halves(0, 1)) for s in ("training", "validation")}
    with serving(monkeypatch) as server:
        server.content = packed(folder / "ADEChallengeData2016.zip", files).read_bytes()
        server.break_after = [len(server.content) // 2]
        (folder / "ADEChallengeData2016.zip").unlink()
        digests = (f"sha1:{hashlib.sha1(server.content).hexdigest()}",)
        trainval, test = (replace(a, urls=(server.url,)) for a in prepare.RECIPES["ade20k"].archives)
        archives = (replace(trainval, digests=digests), replace(test, digests=("md5:0",)))
        monkeypatch.setitem(prepare.RECIPES, "ade20k", replace(prepare.RECIPES["ade20k"], archives=archives))
        said = prepared("ade20k", folder)
        same(labels_of("ade20k", folder, "train"), {"a.jpg": halves(255, 0)})
        assert "no test images: the download of release_test.zip was damaged and removed" in said
        assert [path.name for path in folder.iterdir()] == ["ADEChallengeData2016.zip"]
        assert server.asked[1] == f"bytes={len(server.content) // 2}-"


def test_true_counts_are_said_without_a_but(folder, monkeypatch):
    counts = {"train": 2, "trainaug": 4, "val": 1, "trainval": 3}
    monkeypatch.setitem(prepare.RECIPES, "voc", replace(prepare.RECIPES["voc"], counts=counts))
    voc_archives(folder, test=False)
    assert "published" not in prepared("voc", folder)


def test_what_a_user_can_get_wrong_ends_in_one_sentence(tmp_path, folder, monkeypatch):
    def error(*arguments):
        return sentence(run_cli("data", "prepare", *arguments, cwd=tmp_path))

    assert "no data set 'vok' to prepare; did you mean 'voc'?" in error("vok")
    (tmp_path / "nested" / "VOCdevkit" / "VOC2012").mkdir(parents=True)
    assert "name nested/VOCdevkit/VOC2012 itself with --root" in error("voc", "--root", "nested")
    voc_archives(folder)
    (folder / "benchmark.tgz").write_bytes(b"no archive")
    assert "benchmark.tgz is damaged or incomplete" in error("voc", "--archives", folder)
    root = tmp_path / "data" / "voc"
    packed(
        folder / "benchmark.tgz",
        {"benchmark_RELEASE/dataset/cls/x.mat": b"", "benchmark_RELEASE/dataset/train.txt": b"y"},
    )
    assert "is not the right archive: it holds nothing for sbd/val.txt" in error("voc", "--archives", folder)
    (root / "sbd" / "val.txt").touch()
    (root / ".unpacking-benchmark.tgz").unlink()
    assert "1 of 1 annotations are missing: data/voc/sbd/cls/y.mat" in error("voc", "--archives", folder)
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    assert "preparing voc needs scipy, which is not installed: pip install 'emanet[data]'" in error("voc")
    assert "preparing coco_voc needs pycocotools, which" in error("coco_voc")


def test_no_coco_file_and_no_member_of_it(folder, tmp_path):
    coco_images(folder)
    files = {f"annotations/instances_{split}2017.json": b'{"annotations": []}' for split in ("train", "val")}
    packed(folder / "annotations_trainval2017.zip", files)
    error = sentence(run_cli("data", "prepare", "coco_voc", "--root", tmp_path / "c", "--archives", folder))
    assert "instances_train2017.json is not a file of COCO instances: 'images'" in error


def test_every_recipe_is_whole():
    assert set(prepare.RECIPES) == set(SPECS) - {"drawn", "camvid"}
    for name, recipe in prepare.RECIPES.items():
        experiment, *flags = recipe.train.split()
        config = load_experiment(experiment).data
        assert name == (flags[1] if flags else config.dataset)
        for archive in recipe.archives:
            assert archive.urls or archive.page
            assert all(url.rsplit("/", 1)[1] == archive.name for url in archive.urls)
            lengths = {"md5": 32, "sha1": 40, "sha256": 64}
            assert all(len(digest.partition(":")[2]) == lengths[digest.partition(":")[0]] for digest in archive.digests)
            assert all(
                any(given.startswith(place.rstrip("/")) for place in archive.takes.values()) for given in archive.gives
            )


def test_the_users_guide_names_what_is_fetched_and_what_is_published():
    text = (ROOT / "docs" / "datasets.md").read_text().split("## A public data set")[1]
    for name, recipe in prepare.RECIPES.items():
        row = next(line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line)
        for count in (*recipe.counts.values(), *(count for _, count in recipe.unlabelled.values())):
            assert count is None or f"({count:,})" in row
        assert all(f"`{archive.name}`" in row for archive in recipe.archives if not archive.urls)
        assert f"data prepare {name}" in text and f"train {recipe.train.split()[0]} " in text
