"""predict --outputs: every kind is opened again by the library of its format and compared with the labels."""

import csv
import json
import os
import sys
import typing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_predictor import IMAGE, files, tiny, write

from emanet.cli.predict import Kind
from emanet.config import voc_palette
from emanet.data.images import read_image
from emanet.data.prepare.annotations import import_annotations
from emanet.errors import InputError
from emanet.model import EMANet
from emanet.predict import outputs
from emanet.predict.files import predict_files
from emanet.predict.outputs import KINDS, Outputs, Prediction
from emanet.predict.predictor import Predictor

LABELS = np.array([[0, 0, 1, 1], [0, 2, 2, 255], [0, 2, 0, 255]], np.uint8)
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny()


def prediction(folder: Path, labels=LABELS, probabilities=None) -> Prediction:
    image = write(folder / "in" / "x.png", np.zeros((*labels.shape, 3), np.uint8))
    return Prediction(image, folder / "x", read_image(image), labels, CLASSES, voc_palette(3), probabilities)


def written(kind: str, folder: Path, **options) -> Path:
    Outputs((kind,)).write(prediction(folder, **options))
    return folder / f"x{KINDS[kind].ending}"


def test_the_command_knows_the_kinds():
    assert typing.get_args(Kind) == tuple(KINDS)


class TestKinds:
    def test_index(self, tmp_path):
        with Image.open(written("index", tmp_path)) as image:
            np.testing.assert_array_equal(image, LABELS)

    def test_colour(self, tmp_path):
        with Image.open(written("colour", tmp_path)) as image:
            assert image.mode == "RGB"
            table = np.array([*voc_palette(3), *[(224, 224, 192)] * 253])
            np.testing.assert_array_equal(image, table[LABELS])

    @pytest.mark.parametrize("kind", ["index", "overlay", "colour", "probabilities", "geojson"])
    def test_a_disk_that_takes_only_a_part_leaves_no_file(self, tmp_path, kind):
        resource = pytest.importorskip("resource")
        pytest.importorskip("rasterio")
        noise = np.random.default_rng(0).integers(0, 3, (160, 160), np.uint8)
        done = replace(prediction(tmp_path, noise), probabilities=np.zeros((3, 160, 160), np.float32))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(OSError):
                Outputs((kind,)).write(done)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert files(tmp_path) == ["in/x.png"]

    def test_probabilities_and_uncertainty(self, tmp_path):
        p = np.zeros((3, *LABELS.shape), np.float32)
        p[0], p[:, 0, 0], p[:, 0, 1] = 1, 1 / 3, (0.5, 0.5, 0)
        with np.load(written("probabilities", tmp_path, probabilities=p)) as file:
            assert file["classes"].tolist() == ["a", "b", "c"] and file["probabilities"].dtype == np.float16
            seen = np.where(LABELS == 255, np.nan, p)
            np.testing.assert_allclose(file["probabilities"], seen, atol=1e-3)
        wanted = np.zeros(LABELS.shape)
        wanted[0, 0], wanted[0, 1] = 1, np.log(2) / np.log(3)
        np.testing.assert_allclose(outputs.uncertainty(p), wanted, atol=1e-6)
        assert outputs.uncertainty(p).dtype == np.float32
        with Image.open(written("uncertainty", tmp_path, probabilities=p)) as image:
            assert image.mode == "L"
            np.testing.assert_array_equal(image, np.rint(255 * np.where(LABELS == 255, 1, wanted)))

    def test_uncertainty_of_one_class_is_none(self):
        assert not outputs.uncertainty(np.ones((1, 2, 2), np.float32)).any()

    def test_shares(self, tmp_path):
        found = json.loads(written("shares", tmp_path).read_text("utf-8"))
        size = {"image": "x.png", "height": 3, "width": 4, "hidden_pixels": 2}
        assert found == size | {"pixels": {"a": 5, "b": 2, "c": 3}, "shares": {"a": 0.5, "b": 0.2, "c": 0.3}}
        hidden = json.loads(written("shares", tmp_path, labels=np.full((2, 2), 255, np.uint8)).read_text("utf-8"))
        assert hidden["shares"] == {"a": 0, "b": 0, "c": 0}

    def test_labelme_finds_its_image(self, tmp_path):
        pytest.importorskip("rasterio")
        folder = tmp_path / "out" / "sub"
        Outputs(("labelme",)).write(replace(prediction(tmp_path), target=folder / "x"))
        stated = json.loads((folder / "x.json").read_text("utf-8"))["imagePath"]
        assert stated == "../../in/x.png" and (folder / stated).is_file()


class TestCOCO:
    @pytest.fixture
    def coco(self, predictor, tmp_path):
        api = pytest.importorskip("pycocotools.coco")
        for name in ("sub/a.png", "b.jpg", "b.png"):
            write(tmp_path / "in" / name, np.roll(IMAGE, len(name), 0))
        assert predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", outputs=["coco"]) == []
        assert files(tmp_path / "out") == ["b_jpg.png", "b_png.png", "coco.json", "sub/a.png"]
        return api.COCO(str(tmp_path / "out" / "coco.json"))

    def test_pycocotools_reads_the_label_maps(self, coco, predictor, tmp_path):
        images = coco.loadImgs(coco.getImgIds())
        assert [image["file_name"] for image in images] == ["b.jpg", "b.png", "sub/a.png"]
        categories = coco.loadCats(coco.getCatIds())
        assert [(each["id"], each["name"]) for each in categories] == [(1, "a"), (2, "b"), (3, "c")]
        for image, name in zip(images, ("b_jpg.png", "b_png.png", "sub/a.png"), strict=True):
            labels = np.full((image["height"], image["width"]), 255, np.uint8)
            for each in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
                mask = coco.annToMask(each).astype(bool)
                labels[mask] = each["category_id"] - 1
                rows, columns = np.nonzero(mask)
                x, y = columns.min(), rows.min()
                assert each["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
                assert each["area"] == mask.sum() and each["iscrowd"] == 0
            with Image.open(tmp_path / "out" / name) as file:
                np.testing.assert_array_equal(labels, file)

    def test_comes_back_by_data_import(self, coco, predictor, tmp_path):
        out = tmp_path / "data"
        import_annotations("coco", tmp_path / "out" / "coco.json", out, images=tmp_path / "in", unlabelled="ignore")
        assert json.loads((out / "dataset.json").read_text())["classes"] == ["a", "b", "c"]
        with Image.open(next(out.glob("*/masks/sub/a.png"))) as mask:
            np.testing.assert_array_equal(mask, predictor(tmp_path / "in" / "sub" / "a.png"))

    def test_hidden_pixels_are_in_no_annotation(self):
        pytest.importorskip("pycocotools")
        found = outputs.coco_annotations(LABELS, 7, 3)
        assert [(each["id"], each["image_id"], each["area"]) for each in found] == [
            (7, 3, 5),
            (8, 3, 2),
            (9, 3, 3),
        ]

    def test_without_pycocotools_it_is_refused(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pycocotools", None)
        with pytest.raises(InputError, match=r"output coco needs pycocotools, .*: pip install 'emanet\[data\]'"):
            Outputs.of(["coco"])


class TestPredictFiles:
    def test_all_kinds_of_one_pass(self, predictor, tmp_path, monkeypatch):
        pytest.importorskip("rasterio")
        pytest.importorskip("pycocotools")
        path, ran, run = write(tmp_path / "in/x.png"), [], EMANet.low_logits
        with monkeypatch.context() as patch:
            patch.setattr(EMANet, "low_logits", lambda *arguments: ran.append(1) or run(*arguments))
            assert predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", outputs=list(KINDS)) == []
        assert len(ran) == 1
        endings = ".geojson .json .npz .png _colour.png _overlay.jpg _shares.json _uncertainty.png".split()
        assert files(tmp_path / "out") == ["coco.json", "shares.csv", *(f"x{each}" for each in endings)]
        with np.load(tmp_path / "out" / "x.npz") as file, Image.open(tmp_path / "out" / "x.png") as labels:
            np.testing.assert_allclose(file["probabilities"], predictor.probabilities(path), atol=1e-3)
            top = np.take_along_axis(file["probabilities"], np.asarray(labels)[None].astype(int), 0)[0]
            np.testing.assert_array_equal(top, file["probabilities"].max(0))
            assert (np.asarray(labels) == predictor(path)).mean() > 0.999

    def test_shares_of_a_folder(self, predictor, tmp_path):
        for name in ("sub/a.png", "b.png"):
            write(tmp_path / "in" / name)
        (tmp_path / "in/bad.png").write_bytes(b"no image")
        assert len(predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", outputs=["shares"])) == 1
        assert files(tmp_path / "out") == ["b_shares.json", "shares.csv", "sub/a_shares.json"]
        with open(tmp_path / "out/shares.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["image"] for row in rows] == ["b.png", "sub/a.png"]
        labels = predictor(tmp_path / "in/b.png")
        for i, name in enumerate(CLASSES):
            assert float(rows[0][name]) == (labels == i).mean()

    def test_images_of_one_name_are_told_apart_in_the_folders_files(self, predictor, tmp_path):
        pytest.importorskip("pycocotools")
        for name in ("x/a.png", "y/a.png", "y/b.png"):
            write(tmp_path / name, IMAGE[: len(name) + ord(name[0]) - 100])
        inputs = [str(tmp_path / folder) for folder in "xy"]
        predict_files(predictor, inputs, tmp_path / "out", outputs=["shares", "coco"])
        with open(tmp_path / "out/shares.csv", encoding="utf-8", newline="") as file:
            rows = [(row["image"], int(row["height"])) for row in csv.DictReader(file)]
        assert rows == [(f"{tmp_path}/x/a.png", 27), (f"{tmp_path}/y/a.png", 28), ("b.png", 28)]
        images = json.loads((tmp_path / "out/coco.json").read_text("utf-8"))["images"]
        assert [(each["file_name"], each["height"]) for each in images] == rows

    def test_a_name_that_is_not_utf8(self, predictor, tmp_path):
        pytest.importorskip("pycocotools")
        pytest.importorskip("rasterio")
        image = write(tmp_path / os.fsdecode(b"in/lat\xe9.png"))
        write(tmp_path / "in/z.png")
        out, kinds = tmp_path / "out", ["index", "shares", "coco", "labelme"]
        assert predict_files(predictor, [str(tmp_path / "in")], out, outputs=kinds) == []
        assert r"lat\udce9.png" in (out / "shares.csv").read_text("utf-8")
        coco, shapes = (json.loads((out / name).read_text("utf-8")) for name in ("coco.json", f"{image.stem}.json"))
        assert coco["images"][0]["file_name"] == image.name and (out / shapes["imagePath"]).samefile(image)

    def test_an_exported_model_without_probabilities_is_refused_at_once(self, predictor, tmp_path):
        from emanet.deploy.artefact import Artefact

        network = Artefact.__new__(Artefact)
        network.path, network.outputs = Path("m.onnx"), ("labels",)
        exported = Predictor(predictor.model, device="cpu")
        exported.network = network
        write(tmp_path / "x.png")
        with pytest.raises(InputError, match="m.onnx gives no probabilities; export the model again"):
            predict_files(exported, [str(tmp_path / "x.png")], tmp_path / "out", outputs=["uncertainty"])
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "names, overlay, message",
        [
            (["indx"], True, "no output 'indx'; did you mean 'index'?"),
            (["colour"], False, "--no-overlay is for the default outputs"),
        ],
    )
    def test_names_are_checked(self, names, overlay, message):
        with pytest.raises(InputError, match=message):
            Outputs.of(names, overlay)

    def test_two_outputs_of_one_name_are_refused(self, predictor, tmp_path):
        for name in ("x.png", "x_colour.png", "coco.png"):
            write(tmp_path / "in" / name)
        for kinds, clash in ((["index", "colour"], "x_colour.png"), (["coco", "labelme"], "coco.json")):
            pytest.importorskip("rasterio" if "labelme" in kinds else "numpy")
            with pytest.raises(InputError, match=f"would both be {tmp_path}/out/{clash}; rename the image"):
                predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", outputs=kinds)
        assert not (tmp_path / "out").exists()

    def test_corrections_are_never_overwritten(self, predictor, tmp_path):
        pytest.importorskip("rasterio")
        for name in ("a", "b"):
            write(tmp_path / f"in/sub/{name}.png")
        (tmp_path / "out/sub").mkdir(parents=True)
        (tmp_path / "out/sub/b.json").write_text("corrected")
        with pytest.raises(InputError, match="out/sub/b.json is there already and may have been corrected"):
            predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", outputs=["index", "labelme"])
        assert files(tmp_path / "out") == ["sub/b.json"]
        assert (tmp_path / "out/sub/b.json").read_text() == "corrected"

    def test_a_name_too_long_for_shapes_leaves_the_others(self, predictor, tmp_path):
        pytest.importorskip("rasterio")
        for name in ("a", "x" * 251):  # fits with .png, but not with .json
            write(tmp_path / f"in/{name}.png")
        (failure,) = predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", outputs=["labelme"])
        assert failure.endswith("File name too long") and files(tmp_path / "out") == ["a.json"]

    def test_a_folder_file_that_cannot_be_written(self, predictor, tmp_path):
        write(tmp_path / "in/x.png")
        (tmp_path / "out/shares.csv").mkdir(parents=True)
        with pytest.raises(InputError, match="^cannot write .*/shares.csv: Is a directory"):
            predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", outputs=["shares"])
