"""What the dataset doctor says of a data set's folders, lists and splits."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_check import found, report_of, save

from emanet.config import DataConfig, DatasetSpec
from emanet.data import drawn as export
from emanet.data.check.quick import check
from emanet.data.check.splits import check_dataset, check_source, find_splits
from emanet.data.datasets import SPECS, open_dataset, resolve
from emanet.data.pack import pack
from emanet.errors import InputError


class TestFolders:
    def test_a_class_that_no_pixel_has_is_a_note(self, tmp_path):
        export.write_drawn(tmp_path / "drawn", {"train": 4, "val": 1})
        report = report_of(tmp_path / "drawn")
        notes = {finding.split: finding.text for finding in report.findings}
        assert report.exit_code == 0 and {finding.kind for finding in report.findings} == {"absent-class"}
        val = report.splits[1]
        absent = [name for name, count in zip(report.spec.classes, val.pixels, strict=False) if not count]
        assert notes["val"] == ", ".join(absent)

    def test_pixels_are_those_that_training_counts(self, scenes):
        for split in report_of(scenes).splits:
            counts = check(open_dataset(DataConfig(dataset=str(scenes)), split.name)).pixels
            assert split.pixels[: len(counts)].tolist() == counts.tolist() and split.pixels.sum() == counts.sum()

    def test_a_missing_split(self, scenes):
        shutil.rmtree(scenes / "val")
        report = report_of(scenes)
        assert found(report) == {("no-split", "warning", "val")} and report.exit_code == 3
        assert found(report_of(scenes, "val")) == {("no-split", "error", "val")}
        shutil.rmtree(scenes / "train")
        assert report_of(scenes).exit_code == 2

    def test_no_root(self, tmp_path):
        with pytest.raises(InputError, match="no folder .*nowhere for data set 'camvid'; name it with --root"):
            check_source("camvid", root=str(tmp_path / "nowhere"))

    def test_images_only_are_noted(self, scenes):
        shutil.copytree(scenes / "val" / "images", scenes / "test" / "images")
        (scenes / "test" / "masks").mkdir()
        noted = {item for item in found(report_of(scenes)) if item[0] != "absent-class"}
        assert noted == {("unlabelled", "note", "test")}
        assert ("image-without-mask", "error", "test/images/0001.jpg") in found(report_of(scenes, "test"))

    def test_all_masks_ignored(self, scenes):
        for mask in (scenes / "val" / "masks").iterdir():
            save(mask, np.full((145, 145), 255, np.uint8))
        wanted = {("all-ignored", "error", f"val/masks/{i:04d}.png") for i in range(3)}
        assert wanted <= found(report_of(scenes))
        with pytest.raises(InputError, match="every pixel of the 3 masks is ignored"):
            check(open_dataset(DataConfig(dataset=str(scenes)), "val"))

    def test_what_appears_twice_in_a_split_is_a_note(self, scenes):
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            folder = scenes / "train" / kind
            shutil.copyfile(folder / f"0000.{suffix}", folder / f"0009.{suffix}")
        twice = {("duplicate", "note", f"train/images/{name}.jpg") for name in ("0000", "0009")}
        assert {item for item in found(report_of(scenes)) if item[0] == "duplicate"} == twice

    def test_what_is_trained_on_and_scored_on(self, scenes):
        (scenes / "dataset.json").write_text(
            json.dumps({"classes": SPECS["drawn"].classes, "images": "train/images", "masks": "train/masks"})
        )
        report = report_of(scenes)
        told = [(f.kind, f.severity, f.text) for f in report.findings if f.kind == "duplicate"]
        assert told == [("duplicate", "warning", "6 images are in train and val")] and report.pairs == 6
        assert ("duplicate", "warning", "val") in found(report_of(scenes, "val", train_split="val"))


class TestPermissions:
    @pytest.fixture(autouse=True)
    def refusals(self, monkeypatch):
        """As for a user who is not root: nothing may be read, listed or asked of below the folders in it."""
        refused = set()

        def guard(owner, name):
            plain = getattr(owner, name)

            def guarded(path, *arguments, **options):
                inside = set(Path(path).parents) | ({Path(path)} if name == "scandir" else set())
                if refused & inside:
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
                return plain(path, *arguments, **options)

            monkeypatch.setattr(owner, name, guarded)

        guard(os, "scandir")
        guard(os, "stat")
        guard(Path, "stat")
        guard(Path, "open")
        return refused

    def test_of_a_split(self, scenes, refusals):
        refusals.add(scenes / "val")
        report = report_of(scenes)
        assert found(report, "error", "warning") == {("no-split", "error", "val")} and report.splits[0].counted == 6
        assert report.findings[0].text == f"{scenes}/val/images: Permission denied"

    @pytest.mark.parametrize("kind", ["images", "masks"])
    def test_of_a_folder(self, scenes, refusals, kind):
        refusals.add(scenes / "val" / kind)
        assert found(report_of(scenes), "error", "warning") == {("no-access", "error", f"val/{kind}")}
        with pytest.raises(InputError, match=f"cannot read folder .*val/{kind}: Permission denied"):
            open_dataset(DataConfig(dataset=str(scenes)), "val")

    def test_of_the_root(self, scenes, refusals):
        config = resolve(DataConfig(dataset=str(scenes)))
        refusals.add(scenes)
        assert {finding.kind for finding in check_dataset(config).findings} == {"no-split"}

    def test_of_listed_files(self, scenes, refusals):
        (scenes / "val.txt").write_text("train/images/0000.jpg train/masks/0000.png\na/b.jpg train/masks/0001.png\n")
        spec = DatasetSpec(classes=SPECS["drawn"].classes, split_list="{split}.txt")
        refusals.add(scenes / "a")
        report = check_dataset(DataConfig(dataset="x", spec=spec, root=str(scenes)), ["val"])
        assert found(report, "error") == {("unreadable", "error", "a/b.jpg")} and report.splits[0].counted == 1
        assert [finding.text for finding in report.findings if finding.severity == "error"] == ["Permission denied"]


def test_links_that_lead_nowhere_are_errors(scenes):
    (scenes / "train/images/0000.jpg").rename(scenes / "0000.jpg")
    (scenes / "train/images/0000.jpg").symlink_to("nowhere.jpg")
    (scenes / "val/masks/far").symlink_to("nowhere")
    report = report_of(scenes)
    wanted = {("broken-link", "error", "train/images/0000.jpg"), ("broken-link", "error", "val/masks/far")}
    assert found(report, "error", "warning") == wanted and report.exit_code == 2
    assert "is a link to nowhere" in report.findings[0].text


class TestLists:
    @pytest.fixture
    def voc(self, tmp_path):
        spec = DatasetSpec(
            classes=SPECS["drawn"].classes, images="JPEGImages", masks="Masks", split_list="lists/{split}.txt"
        )
        export.write_drawn(tmp_path / "drawn", {"train": 6})
        (tmp_path / "drawn" / "train" / "images").rename(tmp_path / "JPEGImages")
        (tmp_path / "drawn" / "train" / "masks").rename(tmp_path / "Masks")
        (tmp_path / "lists").mkdir()
        for split, lines in {"train": "0000 0001 0002", "val": "0003 0004", "both": "0001 0004"}.items():
            (tmp_path / "lists" / f"{split}.txt").write_text(lines.replace(" ", "\n"))
        return DataConfig(dataset="listed", spec=spec, root=str(tmp_path))

    def test_splits_are_the_lists(self, voc):
        assert find_splits(voc) == ["train", "val", "both"]
        report = check_dataset(voc)
        assert [split.pairs for split in report.splits] == [3, 2, 2] and report.exit_code == 0
        shared = {(item[2], item[1]) for item in found(report) if item[0] == "duplicate"}
        assert shared == {("JPEGImages/0001.jpg", "note"), ("JPEGImages/0004.jpg", "note")}

    def test_faults_of_lists(self, voc, tmp_path):
        (tmp_path / "lists" / "train.txt").write_text("0000\n0000\n0003\nno\n/JPEGImages/0005.jpg /Masks/5.png\n")
        (tmp_path / "lists" / "both.txt").write_text("")
        report = check_dataset(voc)
        assert {item for item in found(report) if item[0] != "absent-class"} == {
            ("missing-file", "error", "JPEGImages/no"),
            ("missing-file", "error", "Masks/5.png"),
            ("empty-split", "error", "lists/both.txt"),
            ("duplicate", "note", "JPEGImages/0000.jpg"),
            ("duplicate", "warning", "JPEGImages/0003.jpg"),
        }
        assert report.splits[0].pairs == 3

    def test_a_list_of_images_without_masks_is_noted(self, voc, tmp_path):
        shutil.copyfile(tmp_path / "JPEGImages" / "0000.jpg", tmp_path / "JPEGImages" / "x.jpg")
        (tmp_path / "lists" / "test.txt").write_text("x\n")
        assert ("unlabelled", "note", "test") in found(check_dataset(voc))


class TestPacked:
    @pytest.fixture
    def packed(self, scenes, tmp_path):
        for split in ("train", "val"):
            files = open_dataset(DataConfig(dataset=str(scenes)), split)
            pack(files.pairs, files.spec, split, tmp_path / "packed", 30_000)
        return tmp_path / "packed"

    def test_a_packed_data_set_is_that_of_its_files(self, scenes, packed):
        plain, again = report_of(scenes), report_of(packed)
        for split, other in zip(plain.splits, again.splits, strict=True):
            assert split.name == other.name and split.pixels.tolist() == other.pixels.tolist()
        assert again.exit_code == 0

    def test_damage(self, packed):
        index = json.loads((packed / "train.index.json").read_text())
        shard = packed / index["shards"][0][0]
        content = bytearray(shard.read_bytes())
        content[index["samples"][0][2] + 100] ^= 1
        shard.write_bytes(content)
        report = report_of(packed)
        assert found(report, "error") == {("truncated", "error", "train-000000.tar/0000.jpg")}
        shard.unlink()
        assert found(report_of(packed), "error") == {("no-split", "error", "train")}


def test_splits_are_found_by_their_pattern(tmp_path):
    for folder in ("images/training", "images/extra", "images/.hidden", "labels/training"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "images" / "linked").symlink_to("extra", target_is_directory=True)
    spec = DatasetSpec(
        classes=("a",), images="images/{split}", masks="labels/{split}", split_names={"train": "training"}
    )
    assert find_splits(DataConfig(spec=spec, root=str(tmp_path))) == ["train", "val", "extra", "linked"]
    (tmp_path / "dataset.json").touch()
    (tmp_path / "set [1] a" / "a").mkdir(parents=True)
    (tmp_path / "set [1] a" / "b").mkdir(parents=True)
    twice = DatasetSpec(classes=("a",), images="set [1] {split}/{split}", masks="{split}")
    assert find_splits(DataConfig(spec=twice, root=str(tmp_path))) == ["train", "val", "a"]
    top = DatasetSpec(classes=("a",), images="{split}", masks="{split}")
    assert find_splits(DataConfig(spec=top, root=str(tmp_path)))[2:] == ["images", "labels", "set [1] a"]
    one = DatasetSpec(classes=("a",), images="images", masks="labels")
    assert find_splits(DataConfig(spec=one, root=str(tmp_path))) == ["train", "val"]
