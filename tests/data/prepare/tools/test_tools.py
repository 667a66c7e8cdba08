"""Each tool's export becomes the mask that is drawn independently, to the pixel."""

import base64
import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, run_cli
from PIL import Image

from emanet.config import voc_palette
from emanet.data.images import write_mask
from emanet.data.prepare.annotations import import_annotations
from emanet.data.prepare.tools import TOOLS
from emanet.data.prepare.tools.label_studio import unpacked
from emanet.errors import InputError

from .conftest import COLUMNS, ROWS, H, W, box, disc, photo, triangle


@pytest.fixture
def export(tmp_path) -> Path:
    """The folder of an export with a second image, so that there are two splits."""
    (tmp_path / "export").mkdir()
    return tmp_path / "export"


def write(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))


def png(mask: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "PNG")
    return stream.getvalue()


class TestLabelme:
    @staticmethod
    def document(*shapes: dict, name: str = "a.png") -> dict:
        shapes = tuple({"group_id": None, "flags": {}} | shape for shape in shapes)
        size = {"imageHeight": H, "imageWidth": W}
        return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None} | size

    def test_every_shape(self, export, imported):
        photo(export / "a.png"), photo(export / "b.png")
        bits = np.array([[True, False, True], [False, True, True]])
        shapes = [
            {"label": "road", "shape_type": "polygon", "points": [[2, 3], [20, 3], [20, 12], [2, 12]]},
            {"label": "car", "shape_type": "rectangle", "points": [[15, 10], [8, 5]]},
            {"label": "__ignore__", "shape_type": "rectangle", "points": [[10, 6], [12, 8]]},
            {"label": "sun", "shape_type": "circle", "points": [[28, 16], [28, 20]]},
            {"label": "road", "shape_type": "mask", "points": [[30, 1], [32, 2]], "mask": base64.b64encode(png(bits))},
            {"label": "wire", "shape_type": "line", "points": [[0, 18], [12, 18]]},
        ]
        shapes[4]["mask"] = shapes[4]["mask"].decode()
        write(export / "a.json", self.document(*shapes))
        write(export / "b.json", self.document(name="..\\photos\\b.png"))
        out = imported("labelme")
        assert out.classes == ("background", "car", "road", "sun", "wire")
        stored = np.zeros((H, W), bool)
        stored[1:3, 30:33] = bits
        # labelme's outlines belong to the shape; a line is 10 pixels wide.
        labels = out.labels("a")
        regions = [("road", box(2, 3, 21, 13)), ("car", box(8, 5, 16, 11)), (None, box(10, 6, 13, 9)), ("road", stored)]
        squared = (COLUMNS - 28) ** 2 + (ROWS - 16) ** 2  # from the middle of the circle, whose radius is 4
        certain = ((squared <= 3.5**2) | (squared >= 5**2)) & ~box(0, 13, 16, 24)
        sun = squared <= 4**2
        assert np.array_equal(labels[certain], out.drawn(*regions, ("sun", sun))[certain])
        assert ((labels == 4).sum(0)[1:12] == 10).all() and (labels == 4)[:, :13].sum() > 80
        assert (out.labels("b") == 0).all()

    def test_a_missing_image_comes_from_the_file_and_others_are_left_out(self, export, imported):
        content = photo(export / "gone.png").read_bytes()
        (export / "gone.png").unlink()
        write(export / "gone.json", self.document(name="gone.png") | {"imageData": base64.b64encode(content).decode()})
        write(export / "none.json", self.document(name="none.png"))
        write(export / "other.json", {"a": 1})
        write(export / "b.json", self.document({"label": "car", "points": [[1, 1], [5, 1], [5, 5]]}, name="b.png"))
        photo(export / "b.png"), photo(export / "alone.png")
        out = imported("labelme")
        assert {*out.names("train"), *out.names("val")} == {"gone.png", "b.png"}
        for reason in ("1 images without a JSON file: alone.png", "not labelme's: other.json", "image none.png"):
            assert reason in out.said

    def test_a_file_that_was_cut_off_is_left_out(self, export, imported):
        text = json.dumps(self.document({"label": "car", "points": [[1, 1], [5, 1], [5, 5]]}))
        for name in "abc":
            photo(export / f"{name}.png")
            write(export / f"{name}.json", text.replace("a.png", f"{name}.png")[: 40 if name == "b" else None])
        out = imported("labelme")
        assert "1 JSON files: " in out.said and "b.json is not JSON" in out.said
        assert {*out.names("train"), *out.names("val")} == {"a.png", "c.png"}

    def test_folders_of_splits(self, export, imported):
        for name in ("train/a", "train/b", "Validation/a"):
            photo(export / f"{name}.png")
            shape = {"label": "car", "points": [[1, 1], [5, 1], [5, 5]]}
            write(export / f"{name}.json", self.document(shape, name=f"{name[-1]}.png"))
        out = imported("labelme")
        assert out.names("val") == ["Validation/a.png"] and len(out.names("train")) == 2

    @pytest.mark.parametrize("label", [None, " "])
    def test_a_shape_without_a_label(self, export, imported, label):
        shapes = [{"label": each, "points": [[1, 1], [5, 1], [5, 5]]} for each in (label, "car", " car ")]
        for name, some in (("a", shapes), ("b", shapes[1:]), ("c", shapes[1:])):
            photo(export / f"{name}.png")
            write(export / f"{name}.json", self.document(*some, name=f"{name}.png"))
        out = imported("labelme")
        assert out.classes == ("background", "car") and "1 JSON files: a: a shape has no label" in out.said

    def test_as_labelme_converts_them(self, tmp_path):
        """Real files, and labelme's own masks of them. One pixel of an outline differs: Pillow has changed since."""
        source = SHARED / "data" / "tools" / "labelme"
        if not source.exists():
            pytest.skip(f"there is no {source}")
        import_annotations("labelme", source, tmp_path / "out")
        classes = json.loads((tmp_path / "out" / "dataset.json").read_text())["classes"]
        theirs = source.with_name("labelme_voc")
        names = (theirs / "class_names.txt").read_text().splitlines()
        value = {i: names.index("_background_" if name == "background" else name) for i, name in enumerate(classes)}
        table = np.array([value.get(i, 255) for i in range(256)])
        masks = list((tmp_path / "out").rglob("*.png"))
        assert len(masks) == 3
        for path in masks:
            theirs_mask = np.array(Image.open(theirs / "SegmentationClass" / path.name))
            assert np.count_nonzero(table[np.array(Image.open(path))] != theirs_mask) <= 1, path


class TestCOCO:
    @staticmethod
    def document(name: str = "a.png", *annotations: dict) -> dict:
        return {
            "images": [{"id": 7, "file_name": name, "height": H, "width": W}],
            "categories": [{"id": 3, "name": "car"}, {"id": 90, "name": "road"}],
            "annotations": [{"id": i, "image_id": 7, "iscrowd": 0} | each for i, each in enumerate(annotations)],
        }

    @staticmethod
    def runs(mask: np.ndarray) -> dict:
        """Uncompressed run lengths, column by column, from outside."""
        counts, last, flat = [0], False, mask.T.ravel()
        for value in flat:
            if value == last:
                counts[-1] += 1
            else:
                counts.append(1)
                last = value
        return {"size": [H, W], "counts": counts}

    def test_polygons_run_lengths_and_crowds(self, export, imported):
        rle = pytest.importorskip("pycocotools.mask")
        compressed = rle.encode(np.asfortranarray(disc(28, 16, 5).astype(np.uint8)))
        compressed["counts"] = compressed["counts"].decode()
        ring = disc(10, 10, 8) & ~disc(10, 10, 4)
        write(
            export / "annotations" / "instances_train2017.json",
            self.document(
                "sub/a.png",
                {"category_id": 3, "segmentation": [[5, 4, 9, 4, 9, 8, 5, 8], [20, 4, 24, 4, 24, 8, 20, 8]]},
                {"category_id": 90, "segmentation": self.runs(ring)},
                {"category_id": 90, "segmentation": compressed},
                {"category_id": 3, "segmentation": self.runs(box(0, 0, W, 20)), "iscrowd": 1},
                {"category_id": 3, "bbox": [1, 1, 4, 4]},
            ),
        )
        write(export / "annotations" / "instances_val2017.json", self.document("sub/b.png"))
        photo(export / "images" / "sub" / "a.png"), photo(export / "images" / "sub" / "b.png")
        out = imported("coco")
        assert out.classes == ("background", "car", "road") and out.names("val") == ["sub/b.png"]
        squares = box(5, 4, 9, 8) | box(20, 4, 24, 8)
        regions = (None, box(0, 0, W, 20)), ("road", ring), ("road", disc(28, 16, 5)), ("car", squares)
        assert np.array_equal(out.labels("a"), out.drawn(*regions))
        assert "1 objects with a box but no outline" in out.said
        assert "1 regions of crowds, whose pixels are ignored; if they are objects, set their iscrowd to 0" in out.said

    @pytest.mark.parametrize(
        "segmentation",
        [
            [[0, 0, 1e9, 0, 1e9, 1e9]],
            [[0, 0, float("nan"), 0, 1, 1]],
            [[1, 2, 3, 4, 5, 6, 7]],
            {"size": [H, W], "counts": [1, 2]},
            {"size": [H, W], "counts": [-1, H * W + 1]},
            {"size": [H, W], "counts": "0"},
            {"size": [H, W], "counts": "P0P0P"},
        ],
    )
    def test_what_would_end_the_process_or_show_foreign_memory(self, export, imported, segmentation):
        pytest.importorskip("pycocotools")
        for name in "abc":
            photo(export / f"{name}.png")
            shape = segmentation if name == "a" else [[1, 1, 9, 1, 9, 9]]
            write(export / f"{name}.json", self.document(f"{name}.png", {"category_id": 3, "segmentation": shape}))
        out = imported("coco")
        assert "a: a.png: its regions cannot be drawn" in out.said and not list(out.folder.rglob("a.png"))

    def test_files_of_key_points_and_outlines_without_an_area(self, export, imported):
        pytest.importorskip("pycocotools")
        square = {"category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
        for split in ("train", "val"):
            photo(export / f"{split}.png")
            line = {"category_id": 3, "segmentation": [[1, 1, 9, 1]]}
            document = self.document(f"{split}.png", square, line)
            write(export / f"instances_{split}2017.json", document)
            document["categories"] = [{"id": 3, "name": "person", "keypoints": ["nose"]}]
            document["annotations"] = []
            write(export / f"person_keypoints_{split}2017.json", document)
        out = imported("coco")
        assert out.classes == ("background", "car", "road") and out.names("val") == ["val.png"]
        assert np.array_equal(out.labels("train"), out.drawn(("car", box(1, 1, 9, 9))))
        assert "2 outlines of fewer than three points" in out.said and "2 JSON files of keypoints" in out.said

    def test_one_file_for_images_in_folders_of_splits(self, export, imported):
        pytest.importorskip("pycocotools")
        document = self.document("train/a.png", {"category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9]]})
        document["images"].append({"id": 8, "file_name": "val\\a.png", "height": H, "width": W})
        write(export / "labels.json", document)
        photo(export / "train" / "a.png"), photo(export / "val" / "a.png", seed=1)
        out = imported("coco")
        assert out.names("train") == ["train/a.png"] and out.names("val") == ["val/a.png"]

    def test_annotations_of_images_that_were_removed_are_left_out(self, export, imported):
        pytest.importorskip("pycocotools")
        square = {"category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
        for split in ("train", "val"):
            photo(export / f"{split}.png")
            write(export / f"{split}.json", self.document(f"{split}.png", square, square | {"image_id": 99}))
        out = imported("coco")
        assert np.array_equal(out.labels("train"), out.drawn(("car", box(1, 1, 9, 9))))
        assert "2 annotations of images that the file does not list: train.json: car of image_id 99" in out.said

    def test_roboflows_project_category_is_left_out(self, export, imported):
        for split in ("train", "valid"):
            document = self.document(f"{split}.png", {"category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]})
            document["categories"].insert(0, {"id": 0, "name": "my-project", "supercategory": "none"})
            document["categories"][1]["supercategory"] = "my-project"
            write(export / split / "_annotations.coco.json", document)
            photo(export / split / f"{split}.png")
        out = imported("coco")
        assert out.classes == ("background", "car", "road") and out.names("val") == ["valid.png"]

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"categories": [{"id": 3}]}, "lacks 'name'"),
            ({"annotations": [{"image_id": 99, "category_id": 3}]}, "image_id 99"),
            ({"annotations": [{"image_id": 7, "category_id": 4}]}, "lacks 4, or names a category"),
            ({"images": 3}, "without images, annotations, categories"),
            ({"categories": [{"id": 3, "name": "car"}, {"id": 3, "name": "bus"}]}, "two categories have the same id"),
        ],
    )
    def test_what_is_no_coco(self, export, imported, change, message):
        photo(export / "a.png")
        write(export / "x.json", self.document() | change)
        with pytest.raises(InputError, match=message):
            imported("coco")


class TestYOLO:
    def test_polygons(self, export, imported):
        pytest.importorskip("yaml")
        write(
            export / "data.yaml", "path: /elsewhere\ntrain: images/train\nval: images/val\nnames: {0: car, 1: road}\n"
        )
        for split in ("train", "val"):
            photo(export / "images" / split / f"{split}.jpg")
        small = "0 " + " ".join(f"{x / W} {y / H}" for x, y in ((6, 4), (9, 4), (9, 7), (6, 7)))
        large = "1 " + " ".join(f"{x / W:.9f} {y / H:.9f}" for x, y in ((4, 2), (30, 2), (4, 22)))
        write(export / "labels" / "train" / "train.txt", f"{small}\n{large}\n0 0.5 0.5 0.1 0.1\n")
        out = imported("yolo")
        assert out.classes == ("background", "car", "road") and out.names("val") == ["val.jpg"]
        assert np.array_equal(out.labels("train"), out.drawn(("road", triangle()), ("car", box(6, 4, 9, 7))))
        assert (out.labels("val") == 0).all() and "label files that are missing" in out.said
        assert "1 boxes without an outline: train.txt, line 3" in out.said

    def test_a_list_of_images_and_folders_above(self, export, imported):
        pytest.importorskip("yaml")
        write(export / "data.yaml", "train: ../train/images\nval: val.txt\nnames: [car, road]\n")
        photo(export / "train" / "images" / "a.jpg"), photo(export / "other" / "images" / "b.jpg")
        write(export / "val.txt", "./other/images/b.jpg\n")
        write(export / "other" / "labels" / "b.txt", "0 0 0 1 0 1 1 0 1")
        out = imported("yolo")
        assert out.names("train") == ["a.jpg"] and (out.labels("b") == 1).all()

    def test_key_points_are_refused(self, export, imported):
        pytest.importorskip("yaml")
        write(export / "data.yaml", "train: images\nnames: [car]\nkpt_shape: [17, 3]\n")
        with pytest.raises(InputError, match="describes key points"):
            imported("yolo")

    @pytest.mark.parametrize(
        "line, message",
        [
            ("7 0 0 1 0 1 1", "not a class"),
            ("-1 0 0 1 0 1 1", "not a class"),
            ("0 0 0 9 0 9 9", "shares of the image"),
            ("0 0 0 1 1", "boxes"),
            ("x", "not a"),
        ],
    )
    def test_lines_that_are_no_polygons(self, export, imported, line, message):
        pytest.importorskip("yaml")
        write(export / "data.yaml", "train: images\nnames: [car, road]\n")
        for name in "ab":
            photo(export / "images" / f"{name}.jpg")
            write(export / "labels" / f"{name}.txt", line)
        with pytest.raises(InputError, match=message):
            imported("yolo")

    @pytest.mark.parametrize(
        "line", ["data/images/{0}/{0}.jpg", "/home/x/images/{0}/{0}.jpg", "C:\\images\\{0}\\{0}.JPG"]
    )
    @pytest.mark.parametrize("images", ["export/images", "elsewhere"])
    def test_lists_of_another_machine(self, export, imported, tmp_path, line, images):
        pytest.importorskip("yaml")
        write(export / "data.yaml", "path: ./\ntrain: train.txt\nval: val.txt\nnames: {0: car, 1: road}\n")
        for split in ("train", "val"):
            write(export / f"{split}.txt", f"{line.format(split)}\ngone.jpg\n")
            write(export / "labels" / split / f"{split}.txt", "1 0 0 1 0 1 1 0 1")
            photo(tmp_path / images / split / f"{split}.jpg")
        out = imported("yolo", images=tmp_path / images)
        assert [Path(name).name for name in out.names("val")] == ["val.jpg"] and (out.labels("train") == 2).all()
        assert "2 images: train.txt: image gone.jpg: it is not here" in out.said

    def test_a_split_that_is_not_in_the_export(self, export, imported):
        pytest.importorskip("yaml")
        write(export / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [car]\n")
        for name in "ab":
            photo(export / "train" / "images" / f"{name}.jpg")
            write(export / "train" / "labels" / f"{name}.txt", "0 0 0 1 0 1 1 0 1")
        out = imported("yolo")
        assert "1 splits of data.yaml that are not here: val, ../valid/images" in out.said
        assert len(out.names("train")) == len(out.names("val")) == 1


class TestVOC:
    COLOURS = ((0, 0, 0), (10, 20, 30), (200, 0, 0))

    @pytest.mark.parametrize("kind", ["palette", "colours", "grey"])
    def test_any_labelmap(self, export, imported, kind):
        write(
            export / "labelmap.txt",
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:10,20,30::\ncar:200,0,0::\n",
        )
        labels = np.zeros((H, W), np.uint8)
        labels[triangle()], labels[box(6, 4, 9, 7)] = 1, 2
        for name in "ab":
            photo(export / "JPEGImages" / f"{name}.jpg")
            path = export / "SegmentationClass" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            if kind == "palette":  # another order than the labelmap's: the colours count
                write_mask(path, (2 - labels).astype(np.uint8), self.COLOURS[::-1])
            else:
                Image.fromarray(np.array(self.COLOURS, np.uint8)[labels] if kind == "colours" else labels).save(path)
        write(export / "ImageSets" / "Segmentation" / "train.txt", "a\nmissing\n")
        write(export / "ImageSets" / "Segmentation" / "val.txt", "b.jpg\n")
        out = imported("voc")
        assert out.classes == ("background", "road", "car") and out.palette == self.COLOURS
        assert out.names("train") == ["a.jpg"] and "1 names in ImageSets without a mask: missing" in out.said
        assert np.array_equal(out.labels("b"), out.drawn(("road", triangle()), ("car", box(6, 4, 9, 7))))

    @pytest.mark.parametrize("folder", ["SegmentationClass", "SegmentationClassPNG"])
    def test_labelmes_conversion(self, export, imported, folder):
        write(export / "class_names.txt", "_background_\nleaf\nspot\n")
        labels = np.zeros((H, W), np.uint8)
        labels[triangle()], labels[box(6, 4, 9, 7)], labels[box(9, 4, 12, 7)] = 1, 2, 255
        for name in "ab":
            photo(export / "JPEGImages" / f"{name}.jpg")
            photo(export / "SegmentationClassVisualization" / f"{name}.jpg", seed=1)
            (export / folder).mkdir(exist_ok=True)
            write_mask(export / folder / f"{name}.png", labels, voc_palette(256))
        (export / "SegmentationClass").mkdir(exist_ok=True)
        np.save(export / "SegmentationClass" / "a.npy", labels)
        photo(export / "SegmentationClassVisualization" / "c.jpg")
        photo(export / folder / "c.png")
        out = imported("voc")
        assert out.classes == ("background", "leaf", "spot") and "masks with no image: c" in out.said
        regions = ("leaf", triangle()), ("spot", box(6, 4, 9, 7)), (None, box(9, 4, 12, 7))
        assert np.array_equal(out.labels("a"), out.drawn(*regions))
        copy = next(out.folder.rglob("images/a.jpg"))
        assert copy.read_bytes() == (export / "JPEGImages" / "a.jpg").read_bytes()

    def test_a_mask_of_two_images(self, export, imported):
        (export / "SegmentationClass").mkdir()
        for name in ("a.jpg", "a.png", "b.jpg", "c.jpg"):
            photo(export / "JPEGImages" / name)
            Image.fromarray(np.zeros((H, W), np.uint8)).save(export / "SegmentationClass" / f"{name[0]}.png")
        out = imported("voc")
        assert "1 masks with several images: a" in out.said and not list(out.folder.rglob("a.*"))
        assert "There is no label map: their colours stand for VOC's classes" in " ".join(out.said.split())

    def test_masks_after_the_last_listed_one_are_left_out_too(self, export, imported):
        (export / "SegmentationClass").mkdir()
        for name in "abyz":
            photo(export / "JPEGImages" / f"{name}.jpg")
            Image.fromarray(np.zeros((H, W), np.uint8)).save(export / "SegmentationClass" / f"{name}.png")
        for split, name in (("train", "a"), ("val", "b")):
            write(export / "ImageSets" / "Segmentation" / f"{split}.txt", name)
        out = imported("voc")
        assert out.names("train") == ["a.jpg"] and "2 masks that no list in ImageSets names: y, z" in out.said

    def test_vocs_own_colours_and_outlines(self, export, imported):
        colours = np.zeros((H, W, 3), np.uint8)
        colours[triangle()], colours[box(6, 4, 9, 7)] = (128, 0, 0), (224, 224, 192)
        for name in "ab":
            photo(export / "JPEGImages" / f"{name}.jpg")
            (export / "SegmentationClass").mkdir(exist_ok=True)
            Image.fromarray(colours).save(export / "SegmentationClass" / f"{name}.png")
        out = imported("voc")
        assert len(out.classes) == 21
        assert np.array_equal(out.labels("a"), out.drawn(("aeroplane", triangle()), (None, box(6, 4, 9, 7))))

    def test_a_colour_of_no_class(self, export, imported):
        write(export / "labelmap.txt", "background 0 0 0\ncar 9 9 9\n")
        photo(export / "JPEGImages" / "a.jpg")
        (export / "SegmentationClass").mkdir()
        Image.fromarray(np.full((H, W, 3), 8, np.uint8)).save(export / "SegmentationClass" / "a.png")
        photo(export / "JPEGImages" / "b.jpg")
        Image.fromarray(np.full((H, W, 3), 9, np.uint8)).save(export / "SegmentationClass" / "b.png")
        assert r"a.png holds the colours (8, 8, 8), which no class has" in imported("voc").said


class TestMasks:
    @pytest.mark.parametrize("named", [False, True])
    def test_colours_are_found(self, export, imported, named):
        colours = np.zeros((H, W, 3), np.uint8)
        colours[triangle()] = (0, 176, 0)
        for split in ("train", "val"):
            photo(export / split / "images" / f"{split}.jpg")
            (export / split / "masks").mkdir()
            Image.fromarray(colours).save(export / split / "masks" / f"{split}_mask.png")
        if named:
            write(export / "class_dict.csv", "name,r,g,b\nground,0,0,0\nleaf,0,176,0\n")
        out = imported("masks", rename=() if named else ("colour_00b000=leaf",))
        assert out.classes == (("ground", "leaf") if named else ("background", "leaf"))
        assert np.array_equal(out.labels("train"), triangle().astype(np.uint8))
        assert out.palette == ((0, 0, 0), (0, 176, 0)) and out.names("val") == ["val.jpg"]

    def test_grey_values(self, export, imported):
        for name in "ab":
            photo(export / "Images" / f"{name}.jpg")
            (export / "Masks").mkdir(exist_ok=True)
            Image.fromarray(triangle().astype(np.uint8) * 255).save(export / "Masks" / f"{name}.png")
        out = imported("masks", rename=("value_255=leaf",))
        assert out.classes == ("background", "leaf") and np.array_equal(out.labels("a"), triangle().astype(np.uint8))

    def test_a_broken_mask_leaves_its_image_out(self, export, imported):
        (export / "masks").mkdir()
        for name in "abc":
            photo(export / "images" / f"{name}.jpg")
            content = png(triangle().astype(np.uint8))
            (export / "masks" / f"{name}.png").write_bytes(content[:50] if name == "b" else content)
        out = imported("masks", rename=("value_1=leaf",))
        assert "1 images: b: cannot read mask" in out.said and not list(out.folder.rglob("b.*"))
        assert np.array_equal(out.labels("a"), triangle().astype(np.uint8))
        for name in "ac":
            (export / "masks" / f"{name}.png").write_bytes(b"")
        with pytest.raises(InputError, match="cannot read mask .*a.png"):
            import_annotations("masks", export, out.folder.with_name("none"))

    def test_folders_of_splits_beside_their_masks(self, export, imported):
        """As CamVid is published, and a label map of more colours than masks without names may have."""
        colours = np.zeros((H, W, 3), np.uint8)
        colours[..., 0] = COLUMNS
        colours[..., 1] = ROWS // 8
        write(export / "class_dict.csv", "\n".join(f"c{r}_{g},{r},{g},0" for r in range(W) for g in range(3)))
        for split in ("train", "val"):
            photo(export / split / f"{split}.png")
            (export / f"{split}_labels").mkdir()
            Image.fromarray(colours).save(export / f"{split}_labels" / f"{split}_L.png")
        out = imported("masks", unlabelled="ignore")
        assert len(out.classes) == 108 and out.names("val") == ["val.png"]
        assert np.array_equal(out.labels("train"), 3 * COLUMNS + ROWS // 8)

    def test_images_that_lie_elsewhere(self, export, imported, tmp_path):
        for name in "ab":
            photo(tmp_path / "photos" / f"{name}.jpg")
            Image.fromarray(triangle().astype(np.uint8)).save(export / f"{name}.png")
        out = imported("masks", images=tmp_path / "photos")
        assert np.array_equal(out.labels("a"), triangle().astype(np.uint8))

    def test_two_images_of_one_mask(self, export, imported):
        photo(export / "images" / "a.jpg"), photo(export / "images" / "a.png"), photo(export / "masks" / "a.png")
        with pytest.raises(InputError, match=r"a.jpg and .*a.png have the same stem"):
            imported("masks")

    @pytest.mark.parametrize("value", [1, 255])
    def test_jpeg_keeps_black_and_white_at_most(self, export, imported, value):
        mask = np.zeros((H, W), np.uint8)
        mask[:16, :16] = value
        for name in "ab":
            photo(export / "images" / f"{name}.png")
            (export / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(export / "masks" / f"{name}.jpg", quality=100)
        if value == 255:
            assert np.array_equal(imported("masks").labels("a"), mask // 255)
        else:
            with pytest.raises(InputError, match="a.jpg holds colours that JPEG has made"):
                imported("masks")

    def test_soft_edges_are_refused(self, export, imported):
        photo(export / "images" / "a.jpg")
        photo(export / "masks" / "a.png", seed=1)
        with pytest.raises(InputError, match="more than 64 colours"):
            imported("masks")


class TestRoboflow:
    def test_masks(self, export, imported):
        labels = np.zeros((H, W), np.uint8)
        labels[triangle()], labels[box(6, 4, 9, 7)] = 2, 1
        for split in ("train", "valid", "test"):
            photo(export / split / f"{split}_jpg.rf.0a1b.jpg")
            Image.fromarray(labels).save(export / split / f"{split}_jpg.rf.0a1b_mask.png")
            write(export / split / "_classes.csv", "Pixel Value, Class\n0, background\n1, car\n2, road\n")
        photo(export / "train" / "alone.jpg")
        out = imported("roboflow")
        assert out.classes == ("background", "car", "road")
        assert out.names("val") == ["valid_jpg.rf.0a1b.jpg"] and len(out.names("test")) == 1
        assert np.array_equal(out.labels("train_jpg.rf.0a1b"), labels)
        assert "1 images without a mask: alone.jpg" in out.said

    def test_the_values_of_masks_with_a_palette_count(self, export, imported):
        for split in ("train", "valid"):
            photo(export / split / "a.jpg")
            write_mask(export / split / "a_mask.png", triangle().astype(np.uint8), ((7, 7, 7), (1, 0, 0)))
            write(export / split / "_classes.csv", "Pixel Value, Class\n0, background\n1, car\n")
        assert np.array_equal(imported("roboflow").labels("a"), triangle().astype(np.uint8))

    def test_a_broken_table(self, export, imported):
        write(export / "train" / "_classes.csv", f"Pixel Value, Class\n0, {'x' * 140000}\n")
        with pytest.raises(InputError, match="_classes.csv: every line must be"):
            imported("roboflow")
        write(export / "train" / "_classes.csv", "Pixel Value, Class\nzero, background\n")
        with pytest.raises(InputError, match="_classes.csv: every line must be"):
            imported("roboflow")


class TestSupervisely:
    def test_bitmaps_and_polygons_with_holes(self, export, imported):
        classes = [{"title": "road", "shape": "polygon", "color": "#0A141E"}, {"title": "car", "color": "#C80000"}]
        write(export / "meta.json", {"classes": classes, "tags": []})
        bits = disc(3.5, 3.5, 3.4)[:7, :7]
        rgba = np.zeros((7, 7, 4), np.uint8)
        rgba[bits] = 255
        data = base64.b64encode(zlib.compress(png(rgba))).decode()
        ring = {"exterior": [[2, 2], [20, 2], [20, 15], [2, 15]], "interior": [[[5, 5], [10, 5], [10, 10], [5, 10]]]}
        objects = [
            {"classTitle": "road", "geometryType": "polygon", "points": ring},
            {"classTitle": "car", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [25, 14]}},
            {
                "classTitle": "car",
                "geometryType": "rectangle",
                "points": {"exterior": [[16, 12], [22, 18]], "interior": []},
            },
            {"classTitle": "car", "geometryType": "point", "points": {"exterior": [[1, 1]], "interior": []}},
        ]
        for split in ("train", "val"):
            photo(export / split / "img" / f"{split}.png")
            document = {"size": {"height": H, "width": W}, "objects": objects if split == "train" else []}
            write(export / split / "ann" / f"{split}.png.json", document)
        out = imported("supervisely")
        assert out.classes == ("background", "road", "car")
        stored = np.zeros((H, W), bool)
        stored[14:21, 25:32] = bits
        regions = ("road", box(2, 2, 21, 16) & ~box(5, 5, 11, 11)), ("car", stored), ("car", box(16, 12, 23, 19))
        assert np.array_equal(out.labels("train"), out.drawn(*regions))
        assert out.palette == ((0, 0, 0), (10, 20, 30), (200, 0, 0)) and out.names("val") == ["val/val.png"]
        assert "1 objects without an area: train.png: point, car" in out.said

    def test_older_projects_have_the_kind_of_shape_in_meta_json_alone(self, export, imported):
        write(export / "meta.json", {"classes": [{"title": "car", "shape": "rectangle", "color": "#FF0000"}]})
        square = {"classTitle": "car", "bitmap": None, "points": {"exterior": [[3, 4], [8, 9]], "interior": []}}
        for name in "ab":
            photo(export / "d" / "img" / f"{name}.png")
            write(export / "d" / "ann" / f"{name}.png.json", {"size": {"height": H, "width": W}, "objects": [square]})
        out = imported("supervisely")
        assert np.array_equal(out.labels("a"), out.drawn(("car", box(3, 4, 9, 10))))

    def test_a_broken_bitmap_leaves_its_image_out(self, export, imported):
        write(export / "meta.json", {"classes": [{"title": "car", "color": "#FF0000"}]})
        broken = {"classTitle": "car", "geometryType": "bitmap", "bitmap": {"data": "AAAA", "origin": [0, 0]}}
        for name in "abc":
            photo(export / "d" / "img" / f"{name}.png")
            square = {"classTitle": "car", "points": {"exterior": [[3, 4], [8, 9]]}, "geometryType": "rectangle"}
            objects = [broken if name == "a" else square]
            write(export / "d" / "ann" / f"{name}.png.json", {"size": {"height": H, "width": W}, "objects": objects})
        out = imported("supervisely")
        assert "left out: 1 images: d/a: a.png: a bitmap of car cannot be read" in out.said
        assert not list(out.folder.rglob("a.png"))

    def test_a_broken_file_leaves_its_image_out(self, export, imported):
        write(export / "meta.json", {"classes": [{"title": "car", "color": "#FF0000"}]})
        square = {"classTitle": "car", "points": {"exterior": [[3, 4], [8, 9]]}, "geometryType": "rectangle"}
        whole = {"size": {"height": H, "width": W}, "objects": [square]}
        for name, document in {"a": whole, "b": '{"size"', "c": whole, "d": {"size": 5}}.items():
            photo(export / "d" / "img" / f"{name}.png")
            write(export / "d" / "ann" / f"{name}.png.json", document)
        out = imported("supervisely")
        assert {*out.names("train"), *out.names("val")} == {"d/a.png", "d/c.png"}
        assert "2 images: " in out.said and "b.png.json is not JSON" in out.said and "lacks the size" in out.said


class TestCVAT:
    LABELS = (
        "<annotations><version>1.1</version><meta><task><labels>"
        "<label><name>car</name><color>#c80000</color></label><label><name>road</name><color>#0a141e</color></label>"
        "</labels></task></meta>"
    )

    def test_images(self, export, imported):
        bits = disc(3, 3, 2.9)[:6, :6].ravel()
        starts = np.flatnonzero(np.diff(bits.astype(int), prepend=0, append=0))
        runs = np.diff(starts, prepend=0, append=bits.size) if not bits[-1] else np.diff(starts, prepend=0)
        shapes = f"""
          <box label="car" xtl="6" ytl="4" xbr="9" ybr="7" z_order="2"/>
          <polygon label="road" points="4,2;30,2;4,22" z_order="1"/>
          <mask label="car" rle="{", ".join(map(str, runs))}" left="32" top="20" width="6" height="6" z_order="0"/>
          <ellipse label="road" cx="28" cy="18" rx="4" ry="4" z_order="0"/>
          <points label="car" points="1,2" z_order="0"/><polygon label="" points="1,2;3,4;5,6" z_order="0"/>"""
        image = f'<image id="{{}}" name="{{}}" subset="{{}}" width="{W}" height="{H}">{{}}</image>'
        images = image.format(0, "a.png", "Train", shapes) + image.format(0, "a.png", "Validation", "")
        write(export / "annotations.xml", f"{self.LABELS}{images}</annotations>")
        photo(export / "images" / "Train" / "a.png"), photo(export / "images" / "Validation" / "a.png", seed=1)
        out = imported("cvat")
        assert out.classes == ("background", "car", "road") and out.palette == ((0, 0, 0), (200, 0, 0), (10, 20, 30))
        stored = np.zeros((H + 6, W + 6), bool)
        stored[20:26, 32:38] = bits.reshape(6, 6)
        regions = [("car", stored[:H, :W]), ("road", disc(28, 18, 4)), ("road", triangle()), ("car", box(6, 4, 9, 7))]
        first, second = (
            np.array(Image.open(out.folder / "train" / "images" / "a.png")),
            photo(export / "b.png", seed=1),
        )
        assert not np.array_equal(first, np.array(Image.open(second)))  # each subset's own image of that name
        assert np.array_equal(out.labels("a"), out.drawn(*regions))
        assert "shapes without an area: a.png: points" in out.said and "label the file does not define" in out.said

    def test_a_turned_box(self, export, imported):
        """Turned by 90 degrees about its centre: 8 x 2 becomes 2 x 8."""
        shape = '<box label="car" xtl="8" ytl="9" xbr="16" ybr="11" rotation="90.0" z_order="0"/>'
        images = "".join(f'<image id="0" name="{name}.png" width="{W}" height="{H}">{shape}</image>' for name in "ab")
        write(export / "x.xml", f"{self.LABELS}{images}</annotations>")
        photo(export / "a.png"), photo(export / "b.png")
        out = imported("cvat")
        assert np.array_equal(out.labels("a"), out.drawn(("car", box(11, 6, 13, 14))))

    def test_segmentation_mask(self, export, imported):
        write(export / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:200,0,0::\n")
        for name in "ab":
            photo(export / "JPEGImages" / f"{name}.jpg")
            (export / "SegmentationClass").mkdir(exist_ok=True)
            write_mask(
                export / "SegmentationClass" / f"{name}.png", triangle().astype(np.uint8), ((0, 0, 0), (200, 0, 0))
            )
        write(export / "ImageSets" / "Segmentation" / "default.txt", "a\nb\n")
        assert np.array_equal(imported("cvat").labels("a"), triangle().astype(np.uint8))

    @pytest.mark.parametrize(
        "shape, message",
        [
            ('<mask label="car" rle="0,10000000000" left="0" top="0" width="100000" height="100000"/>', "larger than"),
            ('<mask label="car" rle="1,2" left="0" top="0" width="2" height="2"/>', "do not add up to 2 x 2"),
            ('<mask label="car" rle="4" left="inf" top="0" width="2" height="2"/>', "cannot be read"),
            ('<polygon label="car" points="1;2"/>', "three or more pairs"),
            ('<polygon label="car" points="1,2;3,nan;5,6"/>', "pairs of numbers"),
        ],
    )
    def test_a_shape_that_cannot_be_drawn_leaves_its_image_out(self, export, imported, shape, message):
        box = '<box label="car" xtl="6" ytl="4" xbr="9" ybr="7"/>'
        for name, inner in (("a", shape), ("b", box), ("c", "")):
            photo(export / f"{name}.png")
            image = f'<image id="0" name="{name}.png" width="{W}" height="{H}">{inner}</image>'
            write(export / f"{name}.xml", f"{self.LABELS}{image}</annotations>")
        out = imported("cvat")
        assert message in out.said and not list(out.folder.rglob("a.png"))
        assert "1 images have no object, all their pixels are unlabelled: c" in out.said

    def test_names_and_subsets_stay_in_the_data_set(self, export, imported):
        image = f'<image id="0" name="x/../../../../{{0}}.png" subset="{{1}}" width="{W}" height="{H}">'
        image += '<box label="car" xtl="6" ytl="4" xbr="9" ybr="7"/></image>'
        images = image.format("a", "train") + image.format("b", "../../../up") + image.format("c", ".hid")
        write(export / "x.xml", f"{self.LABELS}{images}</annotations>")
        for name in "abc":
            photo(export / f"{name}.png")
        out = imported("cvat")
        found = {path.relative_to(out.folder).as_posix() for path in out.folder.parent.rglob("images/**/*.png")}
        assert found == {"train/images/x/a.png", "up/images/x/b.png", "hid/images/x/c.png"}

    @pytest.mark.parametrize(
        "text, message",
        [
            ('<?xml version="1.0" encoding="big5"?><annotations/>', "cannot be read as XML: multi-byte"),
            ('<?xml version="1.0" encoding="none"?><annotations/>', "cannot be read as XML: unknown encoding"),
            (
                '<image name="a.png" width="36" height="24"><box label="car" z_order="x"/></image>',
                "a z_order that is not",
            ),
        ],
    )
    def test_files_that_mean_nothing(self, export, imported, text, message):
        photo(export / "a.png")
        write(export / "a.xml", text if text[1] == "?" else f"{self.LABELS}{text}</annotations>")
        with pytest.raises(InputError, match=message):
            imported("cvat")

    @pytest.mark.parametrize(
        "text, message", [("<annotations>", "cannot be read as XML"), ("<a/>", "no annotated image")]
    )
    def test_broken_files(self, export, imported, text, message):
        write(export / "annotations.xml", text)
        with pytest.raises(InputError, match=message):
            imported("cvat")


class TestLabelStudio:
    @staticmethod
    def packed(mask: np.ndarray) -> list[int]:
        """A brush's code, by runs of up to 256 equal values and, for the first two pixels, values one by one."""
        values = np.repeat(np.where(mask.ravel(), 255, 0), 4)
        bits = f"{len(values):032b}{7:05b}{2:04b}{7:04b}{7:04b}{7:04b}"
        bits += "0" + "00" + f"{7:03b}" + "".join(f"{value:08b}" for value in values[:8])
        at = 8
        while at < len(values):
            run = 1
            while run < 256 and at + run < len(values) and values[at + run] == values[at]:
                run += 1
            bits += "1" + "01" + f"{run - 1:08b}" + f"{values[at]:08b}"
            at += run
        bits += "0" * (-len(bits) % 8)
        return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]

    def result(self, kind: str, label: str, **value: object) -> dict:
        value = {f"{kind}labels": [label]} | value
        return {"type": f"{kind}labels", "original_width": W, "original_height": H, "image_rotation": 0, "value": value}

    def results(self) -> list[dict]:
        share = [[100 * x / W, 100 * y / H] for x, y in ((4, 2), (30, 2), (4, 22))]
        part = {"x": 600 / W, "y": 400 / H, "width": 300 / W, "height": 300 / H, "rotation": 0}
        round_part = {"x": 2800 / W, "y": 1800 / H, "radiusX": 400 / W, "radiusY": 400 / H}
        return [
            self.result("polygon", "road", points=share),
            self.result("rectangle", "car", **part),
            self.result("ellipse", "road", **round_part),
            self.result("brush", "car", format="rle", rle=self.packed(disc(20, 12, 3))),
            self.result("keypoint", "car", x=1, y=1),
        ]

    def expected(self, out) -> np.ndarray:
        parts = ("car", box(6, 4, 9, 7)), ("road", disc(28, 18, 4)), ("car", disc(20, 12, 3))
        return out.drawn(("road", triangle()), *parts)

    @pytest.mark.parametrize("form", ["JSON", "JSON-MIN"])
    def test_results(self, export, imported, form):
        photo(export / "images" / "0a1b2c3d-a.png"), photo(export / "images" / "b.png")
        a, b = "/data/upload/1/0a1b2c3d-a.png", "/data/local-files/?d=some%2Fb.png"
        if form == "JSON":
            cancelled = {"id": 1, "was_cancelled": True, "result": []}
            tasks = [
                {"id": 5, "data": {"image": a}, "annotations": [cancelled, {"id": 2, "result": self.results()}]},
                {"id": 6, "data": {"image": b}, "annotations": [{"id": 3, "result": []}], "predictions": [{"id": 4}]},
                {"id": 7, "data": {"image": b}, "annotations": []},
            ]
        else:
            flat = [each["value"] | {"original_width": W, "original_height": H} for each in self.results()]
            tasks = [{"id": 5, "image": a, "tag": flat}, {"id": 6, "image": b}]
        write(export / "project.json", tasks)
        out = imported("label-studio")
        assert out.classes == ("background", "car", "road")
        assert np.array_equal(out.labels("a"), self.expected(out)) and (out.labels("b") == 0).all()
        assert "without a label or an area" in out.said
        if form == "JSON":
            for reason in (
                "cancelled annotations: project.json, task 5",
                "predictions: project.json, task 6",
                "task 7",
            ):
                assert reason in out.said

    def test_a_png_per_label(self, export, imported):
        tasks = [
            {"id": n, "data": {"image": f"/x/{name}.png"}, "annotations": [{"id": n + 3, "result": []}]}
            for n, name in enumerate("ab")
        ]
        photo(export / "a.png"), photo(export / "b.png")
        for task, label, mask in ((0, "wet-road", triangle()), (1, "car", disc(20, 12, 3))):
            name = f"task-{task}-annotation-{task + 3}-by-1-tag-{label}-0.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(export / name)
        with pytest.raises(InputError, match="not the JSON export"):
            imported("label-studio")
        write(export / "project.json", tasks)
        out = imported("label-studio")
        assert np.array_equal(out.labels("a"), out.drawn(("wet-road", triangle())))
        assert np.array_equal(out.labels("b"), out.drawn(("car", disc(20, 12, 3))))

    def test_a_brush_of_another_size(self):
        with pytest.raises(ValueError, match="four for each"):
            unpacked(self.packed(disc(20, 12, 3)), (H, W + 1))
        with pytest.raises(ValueError, match="end too early"):
            unpacked(self.packed(disc(20, 12, 3))[:-4], (H, W))

    def test_a_brush_that_label_studio_encoded(self):
        """By label-studio-sdk 2.1.2, whose encoder agrees with `unpacked` on 200 further masks."""
        code = [0, 0, 0, 140, 57, 27, 254, 35, 0, 183, 255, 124, 2, 63, 248, 192, 35, 255, 190, 1, 111, 255, 15, 128]
        expected = np.zeros((5, 7), bool)
        expected[1:4, 2:5], expected[2, 3], expected[4, 6] = True, False, True
        assert np.array_equal(unpacked([*code, 71, 254], (5, 7)), expected)

    def test_the_pngs_of_another_annotation_and_results_without_an_area(self, export, imported):
        choice = {"type": "choices", "value": {"choices": ["good"]}}
        relation = {"type": "relation", "from_id": "a", "to_id": "b"}
        short = self.result("polygon", "road", points=[[1, 1], [2, 2]])
        for n, name in enumerate("ab"):
            photo(export / f"{name}.png", seed=n)
            results = [
                self.result("polygon", "road", points=[[0, 0], [50, 0], [50, 100], [0, 100]]),
                choice,
                relation,
                short,
            ]
            write(
                export / f"{name}.json",
                [{"id": n, "data": {"image": f"{name}.png"}, "annotations": [{"id": 8, "result": results}, {"id": 9}]}],
            )
        Image.fromarray(triangle().astype(np.uint8) * 255).save(export / "task-0-annotation-9-by-1-tag-car-0.png")
        out = imported("label-studio")
        assert np.array_equal(out.labels("a"), out.drawn(("road", box(0, 0, W // 2, H))))
        assert "1 PNGs of other tasks or annotations" in out.said
        assert "6 results without a label or an area: a.json, task 0: choices, a.json, task 0: relation" in out.said

    def test_results_of_several_images_in_one_task_are_not_drawn_on_one(self, export, imported):
        for name in "abc":
            photo(export / f"{name}.png")
        other = self.result("brush", "car", format="rle", rle=[]) | {"original_width": W + 1}
        tasks = [
            {"id": n, "data": {"image": f"{name}.png"}, "annotations": [{"id": n, "result": self.results()[:1] + more}]}
            for n, (name, more) in enumerate({"a": [other], "b": [], "c": []}.items())
        ]
        write(export / "p.json", tasks)
        out = imported("label-studio")
        assert "task 0: its results are of images of several sizes" in out.said and not list(out.folder.rglob("a.png"))


@pytest.mark.parametrize("tool", TOOLS)
def test_an_empty_folder_and_wrong_files_are_one_sentence(export, imported, tool):
    if tool in ("coco", "yolo"):
        pytest.importorskip({"coco": "pycocotools", "yolo": "yaml"}[tool])
    with pytest.raises(InputError):
        imported(tool)
    for name in ("a.json", "meta.json", "data.yaml", "annotations.xml", "labelmap.txt", "_classes.csv"):
        for content in ("", "[1, 2", '{"shapes": 3}', "[[]]", "\x00\x01"):
            write(export / name, content)
            with pytest.raises(InputError) as refused:
                imported(tool)
            assert "\n" not in str(refused.value)
    assert not (export.parent / "out").exists()


@pytest.mark.parametrize("tool", TOOLS)
def test_an_archive_is_to_be_unpacked(tmp_path, tool):
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("a.json", "{}")
    with pytest.raises(InputError, match="export.zip is an archive: unpack it"):
        import_annotations(tool, tmp_path / "export.zip", tmp_path / "out")


def test_the_command(export, tmp_path):
    for name in "abc":
        photo(export / f"{name}.png")
        write(
            export / f"{name}.json",
            TestLabelme.document({"label": "car", "points": [[1, 1], [9, 1], [9, 9]]}, name=f"{name}.png"),
        )
    done = run_cli(
        "data", "import", "labelme", export, "--out", tmp_path / "out", "--map", "car=vehicle", "--split", ".5", ".5"
    )
    assert (
        done.returncode == 0
        and "vehicle (from car)" in done.stdout
        and "Next: python -m emanet data check" in done.stdout
    )
    assert run_cli("data", "check", tmp_path / "out").returncode in (0, 3)
