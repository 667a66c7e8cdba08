"""The dataset doctor must find every planted fault, name its file and kind, and find nothing in sound data."""

import json
import os
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import run_cli, sentence
from PIL import Image

from emanet.config import DataConfig, DatasetSpec
from emanet.data import export
from emanet.data.check import KINDS, check_dataset, find_splits
from emanet.data.datasets import SPECS, check, open_dataset, resolve
from emanet.data.pack import pack
from emanet.errors import InputError


def report_of(root, *splits, **changes):
    return check_dataset(resolve(DataConfig(dataset=str(root), **changes)), splits)


def found(report, *severities):
    """{(kind, severity, file)} of every file of every finding; the split stands for a file where there is none."""
    return {
        (finding.kind, finding.severity, file)
        for finding in report.findings
        for file in (list(map(report.shown, finding.files)) or [finding.split])
        if finding.severity in (severities or ("error", "warning", "note"))
    }


def values(path):
    return np.array(Image.open(path))


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A folder data set whose images are not square."""
    monkeypatch.setattr(export, "DRAWN_SIZE", (97, 129))
    export.write_drawn(tmp_path / "drawn", {"train": 26, "val": 4})
    return tmp_path / "drawn"


@pytest.fixture
def few_of_camvid(tmp_path, camvid):
    root = tmp_path / "camvid"
    for split, count in (("train", 26), ("val", 4)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
            for path in sorted((camvid / split / kind).iterdir())[:count]:
                shutil.copyfile(path, root / split / kind / path.name)
    spec = {"classes": SPECS["camvid"].classes, "palette": SPECS["camvid"].palette}
    (root / "dataset.json").write_text(json.dumps(spec))
    return root


class Planter:
    """Faults, one in each pair of the training split; what they must be found as is `expected`."""

    def __init__(self, root):
        self.root, self.expected = root, set()
        self.spec = resolve(DataConfig(dataset=str(root))).spec
        self.pairs = iter(open_dataset(DataConfig(dataset=str(root)), "train").pairs)

    def pair(self, kind, severity, *which):
        """The next pair; the fault is expected of its `image`, its `mask`, or both."""
        image, mask = next(self.pairs)
        for path in [{"image": image, "mask": mask}[name] for name in which]:
            self.expect(kind, severity, path)
        return image, mask

    def expect(self, kind, severity, path):
        self.expected.add((kind, severity, str(path.relative_to(self.root))))

    def files(self):
        for which in (0, 1):
            name = ("image", "mask")[which]
            path = self.pair("truncated", "error", name)[which]
            os.truncate(path, path.stat().st_size // 2)
            path = self.pair("empty-file", "error", name)[which]
            os.truncate(path, 0)
            path = self.pair("unreadable", "error", name)[which]
            path.write_text("This is no picture.")
        self.pair("image-without-mask", "error", "image")[1].unlink()
        self.pair("mask-without-image", "warning", "mask")[0].unlink()
        image, _ = self.pair("same-stem", "error", "image")
        other = image.with_suffix(".webp")
        shutil.copyfile(image, other)
        self.expect("same-stem", "error", other)

    def geometry(self):
        _, mask = self.pair("size", "error", "image", "mask")
        save(mask, values(mask)[:-8])
        for turn, which, severity in ((6, 0, "error"), (8, 1, "error"), (3, 0, "warning"), (2, 1, "warning")):
            path = self.pair("orientation", severity, "image", "mask")[which]
            exif = Image.Exif()
            exif[0x0112] = turn
            with Image.open(path) as image:
                image.save(path, exif=exif)

    def masks(self):
        classes = len(self.spec.classes)
        palette = np.array(self.spec.palette, np.uint8)

        def inside(path):
            """Its values without ignored ones, and the last class among them."""
            array = values(path) % classes
            array[:9, :9] = classes - 1
            return array

        def plant(kind, severity, change):
            _, mask = self.pair(kind, severity, "mask")
            save(mask, change(inside(mask)))

        def resized(array):
            image = Image.fromarray(array)
            return np.array(image.resize((image.width * 2, image.height * 2), Image.BILINEAR).resize(image.size))

        def stray(array):
            array[20:40, 30:60] = 77
            return array

        plant("off-by-one", "error", lambda array: array + 1)
        plant("values", "error", stray)
        plant("lossy-mask", "warning", resized)
        plant("mask-kind", "warning", lambda array: palette[array])
        plant("mask-kind", "error", lambda array: np.array(Image.fromarray(palette[array]).convert("L")))
        plant("mask-kind", "error", lambda array: np.repeat(array[..., None], 3, 2))
        plant("all-ignored", "warning", lambda array: np.full_like(array, 255))
        _, mask = self.pair("lossy-mask", "error", "mask")
        again = mask.with_suffix(".jpg")
        save(again, 20 * inside(mask), quality=75)
        self.expected.remove(("lossy-mask", "error", str(mask.relative_to(self.root))))
        self.expect("lossy-mask", "error", again)
        mask.unlink()
        _, mask = self.pair("lossy-mask", "error", "mask")
        save(mask.with_suffix(".jpg"), np.where(values(mask) == 255, 255, inside(mask)), quality=75)
        save(mask, values(mask.with_suffix(".jpg")))
        mask.with_suffix(".jpg").unlink()

    def splits(self):
        image, mask = self.pair("duplicate", "warning", "image")
        copy = self.root / "val" / "images" / "copy.png"
        Image.open(image).save(copy)
        shutil.copyfile(mask, self.root / "val" / "masks" / "copy.png")
        self.expect("duplicate", "warning", copy)
        for kind in ("images", "masks"):
            (self.root / "test" / kind).mkdir(parents=True)
        self.expect("empty-split", "error", self.root / "test" / "images")


@pytest.mark.parametrize("data", ["drawn", "few_of_camvid"])
def test_every_planted_fault_is_found_and_nothing_else(data, request):
    root = request.getfixturevalue(data)
    assert not found(report_of(root), "error", "warning")
    planter = Planter(root)
    planter.files()
    planter.geometry()
    planter.masks()
    planter.splits()
    report = report_of(root)
    empty = [finding for finding in report.findings if finding.kind == "empty-split"]
    assert [finding.text for finding in empty] == [f"{root}/test/images holds no image"]
    assert found(report, "error", "warning") == planter.expected
    assert report.exit_code == 2 and len(planter.expected) > 25
    grave = {kind for kind, *_ in planter.expected}
    assert grave == set(KINDS) - {"no-split", "unlabelled", "missing-file", "palette", "absent-class", "refused"}
    with pytest.raises(InputError):
        open_dataset(DataConfig(dataset=str(root)), "train")


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
            counts = check(open_dataset(DataConfig(dataset=str(scenes)), split.name))
            assert split.pixels[: len(counts)].tolist() == counts.tolist() and split.pixels.sum() == counts.sum()

    def test_a_missing_split(self, scenes):
        shutil.rmtree(scenes / "val")
        report = report_of(scenes)
        assert found(report) == {("no-split", "warning", "val")} and report.exit_code == 1
        assert found(report_of(scenes, "val")) == {("no-split", "error", "val")}
        shutil.rmtree(scenes / "train")
        assert report_of(scenes).exit_code == 2

    def test_no_root(self, tmp_path):
        with pytest.raises(InputError, match="no folder .*nowhere for data set 'camvid'; name it with --root"):
            check_dataset(resolve(DataConfig(dataset="camvid", root=str(tmp_path / "nowhere"))))

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

    def test_foreign_names(self, scenes):
        for kind, suffix in (("images", b".jpg"), ("masks", b".png")):
            folder = os.fsencode(scenes / "train" / kind)
            os.rename(os.path.join(folder, b"0000" + suffix), os.path.join(folder, b"<b>[red]\xff" + suffix))
        os.truncate(os.path.join(os.fsencode(scenes / "train" / "images"), b"<b>[red]\xff.jpg"), 0)
        done = run_cli("data", "check", scenes, "--json", scenes / "x.json", "--html", scenes / "x.html")
        assert done.returncode == 2 and "train/images/<b>[red]\N{REPLACEMENT CHARACTER}.jpg: it is empty" in done.stdout
        assert "&lt;b&gt;[red]" in (scenes / "x.html").read_text()
        json.loads((scenes / "x.json").read_text())


class TestMasks:
    @staticmethod
    def change(root, change):
        for mask in sorted(root.glob("*/masks/*.png")):
            save(mask, change(values(mask)))

    def test_classes_counted_from_1(self, drawn):
        self.change(drawn, lambda array: array + 1)
        report = report_of(drawn)
        counted = [finding.text for finding in report.findings if finding.kind == "off-by-one" and not finding.files]
        assert counted and counted[0] == "8 occurs, 0 in no mask: the classes seem to be counted from 1"
        assert not found(report, "error") - {item for item in found(report) if item[0] == "off-by-one"}

    def test_a_class_too_many(self, drawn):
        def change(array):
            array[:5] = 8
            return array

        self.change(drawn, change)
        report = report_of(drawn)
        assert {finding.kind for finding in report.findings} == {"off-by-one"}
        assert all(finding.files and "; 0 is " in finding.text for finding in report.findings)
        assert report.splits[0].strays == {8: 26 * 5 * 129}

    def test_a_grey_mask_among_colours(self, drawn):
        palette = np.array(SPECS["drawn"].palette, np.uint8)
        self.change(drawn, lambda array: palette[array])
        assert not found(report_of(drawn), "error", "warning")
        grey, index = drawn / "train" / "masks" / "0003.png", drawn / "train" / "masks" / "0004.png"
        with Image.open(grey) as image:
            image.convert("L").save(grey)
        save(index, np.zeros((97, 129), np.uint8))
        assert found(report_of(drawn), "error", "warning") == {
            ("mask-kind", "error", "train/masks/0003.png"),
            ("mask-kind", "warning", "train/masks/0004.png"),
        }

    def test_colours_out_of_the_palette(self, drawn):
        mask = drawn / "train" / "masks" / "0003.png"
        save(mask, np.full((97, 129, 3), (1, 2, 3), np.uint8))
        (finding,) = [finding for finding in report_of(drawn).findings if finding.severity != "note"]
        assert finding.kind == "mask-kind" and finding.text.endswith("colours (1, 2, 3) in 100.00% of its pixels")
        self.change(
            drawn, lambda array: np.array(SPECS["drawn"].palette, np.uint8)[array] if array.ndim == 2 else array
        )
        assert found(report_of(drawn), "error") == {("values", "error", "train/masks/0003.png")}


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
    spec = DatasetSpec(
        classes=("a",), images="images/{split}", masks="labels/{split}", split_names={"train": "training"}
    )
    assert find_splits(DataConfig(spec=spec, root=str(tmp_path))) == ["train", "val", "extra"]
    (tmp_path / "dataset.json").touch()
    (tmp_path / "set [1] a" / "a").mkdir(parents=True)
    (tmp_path / "set [1] a" / "b").mkdir(parents=True)
    twice = DatasetSpec(classes=("a",), images="set [1] {split}/{split}", masks="{split}")
    assert find_splits(DataConfig(spec=twice, root=str(tmp_path))) == ["train", "val", "a"]
    top = DatasetSpec(classes=("a",), images="{split}", masks="{split}")
    assert find_splits(DataConfig(spec=top, root=str(tmp_path)))[2:] == ["images", "labels", "set [1] a"]
    one = DatasetSpec(classes=("a",), images="images", masks="labels")
    assert find_splits(DataConfig(spec=one, root=str(tmp_path))) == ["train"]


class TestCommand:
    def test_exit_code_json_and_page(self, drawn, tmp_path):
        written = tmp_path / "new" / "check.json", tmp_path / "new" / "check.html"
        done = run_cli("data", "check", drawn, "--json", written[0], "--html", written[1])
        assert (done.returncode, done.stderr) == (0, "") and ": sound; 30" in done.stdout
        stated = json.loads(written[0].read_text())
        assert stated["exit_code"] == 0 and stated["counts"]["error"] == 0 and stated["splits"][0]["pairs"] == 26
        os.unlink(drawn / "train" / "images" / "0000.jpg")
        assert run_cli("data", "check", drawn).returncode == 1
        for i in range(1, 6):
            os.truncate(drawn / "train" / "images" / f"{i:04d}.jpg", 0)
        done = run_cli("data", "check", drawn, "--json", written[0], "--html", written[1])
        assert done.returncode == 2 and "and 2 more: --json FILE lists all" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
        files = [f["files"] for f in json.loads(written[0].read_text())["findings"] if f["kind"] == "empty-file"]
        assert files == [[f"train/images/{i:04d}.jpg"] for i in range(1, 6)]
        text = written[1].read_text()
        assert "http" not in text and "src='data:image/png" in text and all(file[0] in text for file in files)
        HTMLParser().feed(text)

    def test_an_experiment_uses_two_splits(self, drawn, tmp_path):
        shutil.copytree(drawn / "val", drawn / "test")
        run_file = tmp_path / "mine.py"
        run_file.write_text(
            "from emanet import load_experiment, override\n"
            f"config = override(load_experiment('drawn'), {{'data.dataset': {str(drawn)!r}}})\n"
        )
        assert run_cli("data", "check", run_file).returncode == 0
        assert run_cli("data", "check", drawn).returncode == 1, "test is val"
        assert run_cli("data", "check", drawn, "--split", "test").returncode == 0

    def test_nothing_to_check_in_drawn_scenes(self):
        done = run_cli("data", "check", "drawn")
        assert done.returncode == 0 and "nothing to check" in done.stdout and len(done.stdout.splitlines()) == 1

    def test_sentences(self, drawn, tmp_path):
        assert "no data set or dataset.json 'camvit'" in sentence(run_cli("data", "check", "camvit"))
        assert "is a folder" in sentence(run_cli("data", "check", drawn, "--html", tmp_path))

    def test_help_fits_and_states_the_exit_codes(self):
        done = run_cli("data", "check", "-h")
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert all(f"Exit code {code}" in done.stdout for code in range(3))


def test_camvid_is_sound(camvid):
    report = check_dataset(resolve(DataConfig(dataset="camvid", root=str(camvid))))
    assert report.exit_code == 0 and not report.findings
    assert [(split.pairs, split.counted) for split in report.splits] == [(367, 367), (101, 101)]
