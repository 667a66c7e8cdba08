"""The dataset doctor must find every planted fault, name its file and kind, and find nothing in sound data."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from emanet.config import DataConfig
from emanet.data import drawn as export
from emanet.data.check.report import check_files
from emanet.data.check.splits import KINDS, check_dataset
from emanet.data.datasets import SPECS, open_dataset, resolve
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
            for path in sorted((camvid / split / kind).iterdir())[::14][:count]:
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
    elsewhere = {
        "not-an-image",
        "no-split",
        "no-access",
        "broken-link",
        "unlabelled",
        "missing-file",
        "palette",
        "absent-class",
        "refused",
        "samples",
        "range",
    }
    assert grave == set(KINDS) - elsewhere - {"one-class", "unseen-class"}
    with pytest.raises(InputError):
        open_dataset(DataConfig(dataset=str(root)), "train")


class TestSamples:
    """Bands and types of images."""

    @pytest.fixture
    def wide(self, scenes):
        """The scenes with images of 16 bits."""
        for image in sorted(scenes.glob("*/images/*")):
            pixels = values(image)
            image.unlink()
            np.save(image.with_suffix(".npy"), pixels.astype(np.uint16) * 16)
        return scenes

    def state(self, root, **fields):
        spec = json.loads((root / "dataset.json").read_text()) | fields
        (root / "dataset.json").write_text(json.dumps(spec))

    def test_without_a_range_one_is_suggested(self, wide):
        report = report_of(wide)
        assert {kind for kind, *_ in found(report, "error")} == {"samples"}
        last = report.findings[-1]
        assert last.kind == "range" and re.search(r'from 0 to \d+, nearly all from .*; "range": \[.*\] in', last.text)
        low, high = map(float, re.search(r"\[(.*), (.*)\]", last.text).groups())
        self.state(wide, range=[low, high])
        report = report_of(wide)
        assert (
            report.exit_code == 0
            and report.findings[-1].kind == "range"
            and "dataset.json" not in report.findings[-1].text
        )

    def test_one_image_of_another_type_or_number_of_bands(self, wide):
        self.state(wide, range=[0, 4080], bands=[1, 2, 3])
        paths = sorted(wide.glob("train/images/*"))
        first, second = (np.load(path) for path in paths[:2])
        np.save(paths[0], first.astype(np.float32))
        np.save(paths[1], np.dstack([second, second]))
        report = report_of(wide)
        warned = [finding for finding in report.findings if finding.severity == "warning"]
        assert [(finding.kind, finding.files[0]) for finding in warned] == [("samples", path) for path in paths[:2]]
        assert "3 bands of float32" in warned[0].text and "6 bands of uint16" in warned[1].text
        assert warned[0].text.endswith("others 3 bands of uint16")
        page = wide / "check.html"
        assert check_files(str(wide), html=str(page)) == 3 and page.read_text().count("data:image/jpeg") >= 2


class TestMasks:
    @staticmethod
    def change(root, change):
        for mask in sorted(root.glob("*/masks/*.png")):
            save(mask, change(values(mask)))

    def test_classes_counted_from_1(self, drawn):
        self.change(drawn, lambda array: array + 1)
        report = report_of(drawn)
        counted = [finding.text for finding in report.findings if finding.kind == "off-by-one" and not finding.files]
        assert counted and counted[0] == "8 occurs, but 0 in no mask: the classes seem to start at 1"
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

    def test_two_classes_as_0_and_255(self, scenes):
        self.change(scenes, lambda array: np.where(array > 0, 255, 0).astype(np.uint8))
        (scenes / "dataset.json").write_text('{"classes": ["back", "front"]}')
        report = report_of(scenes)
        assert found(report, "error", "warning") == {("one-class", "warning", split) for split in ("train", "val")}
        assert (
            all(f.text.endswith('"label_map": {"0": 0, "255": 1} into dataset.json') for f in report.findings)
            and report.exit_code == 3
        )
        for spec in ('{"classes": ["back", "front"], "label_map": {"0": 0, "255": 1}}', '{"classes": ["back"]}'):
            (scenes / "dataset.json").write_text(spec)
            assert report_of(scenes).exit_code == 0

    def test_masks_of_zeros(self, scenes):
        self.change(scenes, np.zeros_like)
        report = report_of(scenes)
        assert {finding.kind for finding in report.findings} == {"one-class"}
        first = report.spec.classes[0]
        assert report.findings[0].text == f"every labelled pixel is {first}, 0.0% of all pixels are ignored"

    def test_ignored_borders_and_one_mask_a_split_are_sound(self, scenes):
        for path in [*scenes.glob("*/*/*[1-9].*")]:
            path.unlink()

        def change(array):
            array[:, :5], array[:, 5:9] = 255, 1
            array[:, 9:] = 0
            return array

        self.change(scenes, change)
        report = report_of(scenes)
        assert [split.pairs for split in report.splits] == [1, 1] and report.exit_code == 0

    def test_a_class_that_only_validation_has(self, scenes):
        for mask in (scenes / "train" / "masks").iterdir():
            save(mask, values(mask) % 7)
        (unseen,) = [f for f in report_of(scenes).findings if f.severity == "warning"]
        assert (unseen.kind, unseen.split, unseen.text) == ("unseen-class", "val", SPECS["drawn"].classes[7])
        shutil.rmtree(scenes / "train")
        assert "unseen-class" not in {finding.kind for finding in report_of(scenes).findings}

    def test_colours_out_of_the_palette(self, drawn):
        mask = drawn / "train" / "masks" / "0003.png"
        save(mask, np.full((97, 129, 3), (1, 2, 3), np.uint8))
        (finding,) = [finding for finding in report_of(drawn).findings if finding.severity != "note"]
        assert finding.kind == "mask-kind" and finding.text.endswith("colours (1, 2, 3) in 100.00% of its pixels")
        self.change(
            drawn, lambda array: np.array(SPECS["drawn"].palette, np.uint8)[array] if array.ndim == 2 else array
        )
        assert found(report_of(drawn), "error") == {("values", "error", "train/masks/0003.png")}


def test_camvid_is_sound(camvid):
    report = check_dataset(resolve(DataConfig(dataset="camvid", root=str(camvid))))
    assert report.exit_code == 0 and not report.findings
    assert [(split.pairs, split.counted) for split in report.splits] == [(367, 367), (101, 101)]
