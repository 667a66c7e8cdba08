"""Predictor and predict_files with a tiny random model: sizes, orientation, names, and what happens to bad files."""

import errno
import os
import re
import threading
import unicodedata
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emanet.config import BackboneConfig, DataConfig, DatasetSpec, EvalConfig, Experiment, HeadConfig, ModelConfig
from emanet.data import images
from emanet.data.images import read_image
from emanet.deploy import artefact
from emanet.errors import InputError
from emanet.model import build_model
from emanet.predict import network
from emanet.predict.files import WRITERS, predict_files
from emanet.predict.inputs import find_images, left_out
from emanet.predict.predictor import Predictor
from emanet.predict.resume import RECORD
from emanet.stages import THREADS
from emanet.weights.model_file import save_model

TINY = ModelConfig(
    backbone=BackboneConfig(name="test_resnet", pretrained=False, output_stride=8),
    head=HeadConfig(channels=32, num_bases=8, fc1_channels=0),
)
IMAGE = np.kron(np.random.default_rng(0).integers(0, 256, (3, 4, 3)), np.ones((13, 15, 1))).astype(np.uint8)


def tiny(channels: int = 3) -> Predictor:
    torch.manual_seed(0)
    backbone = replace(TINY.backbone, in_channels=channels)
    config = replace(TINY, backbone=backbone, mean=(0.45,), std=(0.225,))
    return Predictor(build_model(config, ["a", "b", "c"]), device="cpu")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny()


def write(path: Path, pixels: np.ndarray = IMAGE, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


class TestPredictor:
    def test_array_pillow_image_and_path_are_one(self, predictor, tmp_path):
        labels = predictor(IMAGE)
        assert labels.shape == IMAGE.shape[:2] and labels.dtype == np.uint8
        assert len(np.unique(labels)) > 1  # else the comparisons here would prove little
        path = write(tmp_path / "x.png")
        for image in (Image.fromarray(IMAGE), path, str(path), np.asfortranarray(IMAGE)):
            np.testing.assert_array_equal(predictor(image), labels)
        read_only = IMAGE.copy()
        read_only.flags.writeable = False
        np.testing.assert_array_equal(predictor(read_only), labels)
        np.testing.assert_array_equal(predictor(IMAGE[:, ::-1]), predictor(IMAGE[:, ::-1].copy()))

    def test_labels_are_of_the_displayed_image(self, predictor, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # stored lying on its left side
        path = write(tmp_path / "x.png", np.rot90(IMAGE), exif=exif)
        np.testing.assert_array_equal(predictor(path), predictor(IMAGE))
        with Image.open(path) as image:
            np.testing.assert_array_equal(predictor(image), predictor(IMAGE))

    @pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1), (7, 5), (31, 63)])
    def test_any_size(self, predictor, size):
        image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
        assert predictor(image).shape == size
        probabilities = predictor.probabilities(image)
        assert probabilities.shape == (3, *size) and probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)

    def test_labels_are_the_most_probable_classes(self, predictor):
        np.testing.assert_array_equal(predictor.probabilities(IMAGE).argmax(0), predictor(IMAGE))

    def test_the_config_is_used(self, predictor):
        flipping = Predictor(predictor.model, device="cpu", config=EvalConfig(flip=True))
        probabilities = flipping.probabilities(IMAGE)
        mirrored = flipping.probabilities(IMAGE[:, ::-1])[..., ::-1]
        np.testing.assert_allclose(mirrored, probabilities, atol=1e-5)
        assert np.abs(probabilities - predictor.probabilities(IMAGE)).max() > 1e-4
        np.testing.assert_array_equal(flipping(IMAGE), probabilities.argmax(0))

    def test_model_comes_in_eval_mode_with_its_classes(self):
        model = build_model(TINY, ["a", "b", "c"]).train()
        predictor = Predictor(model, device="cpu")
        assert not model.training
        assert predictor.classes == ("a", "b", "c") and predictor.palette == model.palette

    def test_other_channel_counts(self, tmp_path):
        grey, five = tiny(1), tiny(5)
        assert (grey.channels, five.channels) == (1, 5)
        np.testing.assert_array_equal(grey(IMAGE[..., 0]), grey(IMAGE[..., :1]))
        np.testing.assert_array_equal(grey(Image.fromarray(IMAGE[..., 0])), grey(IMAGE[..., :1]))
        bands = np.dstack([IMAGE, IMAGE[..., :2]])
        np.save(tmp_path / "bands.npy", bands)
        np.testing.assert_array_equal(five(tmp_path / "bands.npy"), five(bands))
        for predictor, image in ((grey, IMAGE[..., 0]), (five, bands)):
            assert predictor.overlay(image, predictor(image)).shape == IMAGE.shape

    @pytest.mark.parametrize(
        "image",
        [IMAGE.astype(np.float32), IMAGE[..., :2], IMAGE[..., 0], IMAGE[None], IMAGE[:0], IMAGE.transpose(2, 0, 1)],
    )
    def test_arrays_that_do_not_fit(self, predictor, image):
        with pytest.raises(ValueError, match=r"must be uint8 \(H, W, 3\), got"):
            predictor(image)

    def test_arrays_of_floats_say_what_to_write_or_have_a_range(self, predictor):
        floats = (IMAGE / 255).astype(np.float32)
        with pytest.raises(ValueError, match=r"float32 .*; write \(255 \* image\).*, or .* range=\(0, 1\)"):
            predictor(floats)
        np.testing.assert_array_equal(predictor((255 * floats).round().astype("uint8")), predictor(IMAGE))
        ranged = Predictor(predictor.model, device="cpu", range=(0, 1))
        np.testing.assert_array_equal(ranged(floats), predictor(IMAGE))
        floats[0, 0] = np.nan
        assert ranged(floats)[0, 0] == 255 and (ranged.many([floats])[0] == 255).sum() == 1

    def test_bands_and_range_travel_in_the_model_file(self, tmp_path):
        spec = DatasetSpec(classes=("a", "b", "c"), bands=(3, 2, 1), range=(0.0, 2550.0))
        model = build_model(TINY, spec).eval()
        save_model(tmp_path / "m.safetensors", model, Experiment(model=TINY, data=DataConfig(spec=spec)))
        predictor = Predictor(tmp_path / "m.safetensors", device="cpu")
        np.save(tmp_path / "x.npy", IMAGE.astype(np.uint16) * 10)
        np.testing.assert_array_equal(predictor.pixels(tmp_path / "x.npy"), IMAGE[..., ::-1])
        out = tmp_path / "out"
        assert predict_files(predictor, [str(tmp_path / "x.npy")], out, overlay=False) == []
        with Image.open(out / "x.png") as labels:
            np.testing.assert_array_equal(labels, predictor(tmp_path / "x.npy"))
        other = {"bands": (1, 2, 3), "range": (0, 255), "overlay": False}
        np.save(tmp_path / "y.npy", IMAGE.astype(np.int32))
        assert predict_files(predictor, [str(tmp_path / "y.npy")], out, **other) == []
        plain = Predictor(build_model(TINY, DatasetSpec(classes=spec.classes)), device="cpu")
        plain.model.load_state_dict(model.state_dict())
        with Image.open(out / "y.png") as labels:
            np.testing.assert_array_equal(labels, plain(IMAGE))
        failures = predict_files(plain, [str(tmp_path / "x.npy")], out, overlay=False)
        assert len(failures) == 1 and "its pixels are uint16, from 0 to 2" in failures[0] and "--range " in failures[0]

    def test_overlay_mixes_image_and_palette(self, predictor):
        labels = np.full(IMAGE.shape[:2], 1, np.uint8)
        labels[0, 0] = 255
        picture = predictor.overlay(IMAGE, labels, alpha=0.25)
        wanted = np.rint(0.25 * np.array(predictor.palette[1]) + 0.75 * IMAGE)
        wanted[0, 0] = IMAGE[0, 0]
        np.testing.assert_array_equal(picture, wanted)

    def test_model_from_a_file(self, tmp_path):
        spec = DatasetSpec(classes=("a", "b", "c"))
        model = build_model(TINY, spec).eval()
        save_model(tmp_path / "m.safetensors", model, Experiment(model=TINY, data=DataConfig(spec=spec)))
        from_file = Predictor(tmp_path / "m.safetensors", device="cpu")
        np.testing.assert_array_equal(
            from_file.probabilities(IMAGE), Predictor(model, device="cpu").probabilities(IMAGE)
        )
        assert from_file.classes == spec.classes

    def test_missing_model(self, tmp_path):
        with pytest.raises(InputError, match="no.safetensors"):
            Predictor(tmp_path / "no.safetensors", device="cpu")


def names(inputs: Sequence[str | Path]) -> dict[str, str]:
    """File -> name, as find_images has them, relative to the working directory and in its order."""
    return {os.path.relpath(path): name.as_posix() for path, name in find_images([str(given) for given in inputs])}


class TestFindImages:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        return tmp_path

    def touch(self, *files):
        for file in files:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).touch()

    def test_folder_with_subfolders(self):
        self.touch("in/b.JPG", "in/a/b.png", "in/a/c.tar.jpg", "in/notes.txt", "in/.b.jpg", "in/.thumbs/b.jpg")
        wanted = {"in/a/b.png": "a/b", "in/a/c.tar.jpg": "a/c.tar", "in/b.JPG": "b"}
        for given in ("in", "in/", Path("in").resolve()):
            assert list(names([given]).items()) == list(wanted.items())

    def test_what_is_hidden_is_left_out_of_globs_too(self):
        self.touch("in/a.jpg", "in/.b.jpg", "in/.ipynb_checkpoints/a.jpg", "in/x/.hidden/deep/c.jpg")
        for given in ("in", "in/*", "in/**", "in/**/*.jpg", "**/*.jpg"):
            assert list(names([given])) == ["in/a.jpg"]

    def test_globs(self):
        self.touch("in/x/1.jpg", "in/y/1.jpg", "in/y/2.png", "in/y/deep/3.jpg", "in/y/2.txt")
        assert names(["in/*/1.jpg"]) == {"in/x/1.jpg": "x/1", "in/y/1.jpg": "y/1"}
        assert names(["in/y/*"]) == {"in/y/2.png": "2", "in/y/1.jpg": "1"}
        assert names(["in/**/*.jpg"]) == {"in/x/1.jpg": "x/1", "in/y/1.jpg": "y/1", "in/y/deep/3.jpg": "y/deep/3"}
        assert names(["**/2.*", "./in/y/[12].png"]) == {"in/y/2.png": "in/y/2"}

    def test_brackets_in_names_are_no_glob(self):
        self.touch("in [1]/a.jpg", "b[0].jpg", "b0.jpg")
        assert names(["in [1]", "b[0].jpg"]) == {"b[0].jpg": "b[0]", "in [1]/a.jpg": "a"}

    def test_a_named_file_needs_no_extension(self):
        self.touch("photo", "photo.heic")
        assert names(["photo"]) == {"photo": "photo"}

    def test_linked_folders(self):
        self.touch("elsewhere/a.jpg", "in/b.jpg")
        os.symlink("../elsewhere", "in/linked")
        assert names(["in"]) == {"in/b.jpg": "b", "in/linked/a.jpg": "linked/a"}

    def test_each_file_once(self):
        self.touch("in/a.jpg")
        os.symlink("in", "linked")
        assert names(["in/a.jpg", "in", "in/*.jpg", "./in/../in/a.jpg", "linked"]) == {"in/a.jpg": "a"}

    def test_two_links_to_one_file_are_two_images(self):
        self.touch("store/1f")
        Path("in").mkdir()
        for name in ("a.jpg", "b.jpg"):
            os.symlink("../store/1f", f"in/{name}")
        assert names(["in"]) == {"in/a.jpg": "a", "in/b.jpg": "b"}

    def test_globs_follow_links_and_circles_end(self):
        self.touch("elsewhere/a.jpg", "elsewhere/deep/b.JPG", "in/c.jpg", "in/d.txt")
        os.symlink("../elsewhere", "in/linked")
        os.symlink("..", "elsewhere/deep/circle")
        every = {"in/c.jpg": "c", "in/linked/a.jpg": "linked/a", "in/linked/deep/b.JPG": "linked/deep/b"}
        assert names(["in"]) == names(["in/**"]) == names(["in/**/*.*"]) == every
        assert list(names(["in/**/*.jpg"])) == ["in/c.jpg", "in/linked/a.jpg"]
        assert list(names(["in/**/deep/*"])) == ["in/linked/deep/b.JPG"]
        assert list(names(["in/*/**/deep/**"])) == ["in/linked/deep/b.JPG"]

    def test_accents_may_be_composed_or_not(self):
        self.touch(unicodedata.normalize("NFD", "é/ü.jpg"))
        for given in ("é", "é/ü.jpg", "é/*"):
            assert len(names([unicodedata.normalize("NFC", given)])) == 1

    def test_what_is_no_image_is_told_of(self):
        self.touch("in/a.CR2", "in/b.cr2", "in/c.txt", "in/sub/d.nef", "some/a.jpg", "some/b.cr2", "some/sub/c.jpg")
        for given in ("in", "in/**"):
            with pytest.raises(InputError, match=r"only files that are not read as images: 2 .cr2, 1 .txt, 1 .nef"):
                find_images([given])
        os.symlink("nothing.jpg", "some/broken.jpg")
        assert left_out(["some/a.jpg"]) == []
        for given in ("some", "some/*"):
            texts = ["left out, as they are no images: 1 .cr2", "left out, as they lead nowhere: links some/broken.jpg"]
            assert left_out([given]) == texts
        with pytest.raises(InputError, match="some/broken.jpg is a link to nothing.jpg, which does not exist"):
            find_images(["some/broken.jpg"])

    def test_same_names_in_two_folders_given_as_one(self):
        self.touch("in/x/1.jpg", "in/y/1.jpg")
        assert names(["in"]) == {"in/x/1.jpg": "x/1", "in/y/1.jpg": "y/1"}

    def test_one_stem_with_two_extensions(self):
        self.touch("in/a.jpg", "in/a.png", "in/b.jpg")
        assert names(["in"]) == {"in/a.jpg": "a_jpg", "in/a.png": "a_png", "in/b.jpg": "b"}

    def test_one_name_from_two_places(self):
        self.touch("x/a.jpg", "y/a.jpg", "z/a.png")
        wanted = {"x/a.jpg": "a_jpg", "y/a.jpg": "a_jpg_2", "z/a.png": "a_png"}
        assert names(["x", "y", "z"]) == names(["z", "y/a.jpg", "x"]) == wanted

    def test_a_made_up_name_is_not_another_files(self):
        self.touch("in/a.jpg", "in/a.png", "in/a_png.jpg")
        assert names(["in"]) == {"in/a.jpg": "a_jpg", "in/a.png": "a_png_2", "in/a_png.jpg": "a_png"}

    @pytest.mark.parametrize("given", ["empty", "absent.jpg", "empty/*.jpg", "*.jpg"])
    def test_nothing_found(self, given):
        self.touch("in/a.jpg", "empty/readme.txt")
        with pytest.raises(InputError) as error:
            find_images(["in", given])
        assert given in str(error.value)


class TestPredictFiles:
    def test_label_map_and_overlay(self, predictor, tmp_path):
        path = write(tmp_path / "in/sub/x.png")
        assert predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out") == []
        assert files(tmp_path / "out") == ["sub/x.png", "sub/x_overlay.jpg"]
        labels = predictor(path)
        with Image.open(tmp_path / "out/sub/x.png") as image:
            assert image.mode == "P"
            np.testing.assert_array_equal(np.asarray(image), labels)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.array(predictor.palette)[labels])
        picture = read_image(tmp_path / "out/sub/x_overlay.jpg")
        assert np.abs(picture.astype(int) - predictor.overlay(IMAGE, labels)).mean() < 8

    def test_without_overlay(self, predictor, tmp_path):
        write(tmp_path / "x.png")
        predict_files(predictor, [str(tmp_path / "x.png")], tmp_path / "out", overlay=False)
        assert files(tmp_path / "out") == ["x.png"]

    def test_a_bad_file_is_reported_and_the_others_go_on(self, predictor, tmp_path, capfd):
        write(tmp_path / "in/a.png")
        write(tmp_path / "in/z.png")
        (tmp_path / "in/b[bold].png").write_bytes(b"no image")
        failures = predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", overlay=False)
        assert len(failures) == 1 and failures[0].startswith(f"cannot read image {tmp_path}/in/b[bold].png: ")
        assert files(tmp_path / "out") == ["a.png", "z.png"]
        said = f"3 images\nskipped: {failures[0]}\n2 done, 1 skipped, named above; "
        told = capfd.readouterr().err  # no blank lines of a bar where no terminal is
        assert told.startswith(said) and re.fullmatch(r"\d+\.\d s, \d\S* images/s\n", told.removeprefix(said))

    @pytest.mark.parametrize(
        "given, out",
        [
            ("in", "in"),
            ("in/x.jpg", "in/../in"),
            ("in", "link"),
            ("in/sub", "in/sub"),
            ("links", "links"),
            ("links", "in"),
        ],
    )
    def test_images_are_never_overwritten(self, predictor, tmp_path, monkeypatch, given, out):
        monkeypatch.chdir(tmp_path)
        for file in ("in/x.jpg", "in/sub/x.jpg"):
            write(Path(file))
        mask = write(Path("in/x.png"))  # perhaps the mask of x.jpg: not an input of `in/x.jpg`, still not ours
        os.symlink("in", "link")
        Path("links").mkdir()
        os.symlink("../in/x.jpg", "links/y.jpg")
        before = {file: Path("in", file).read_bytes() for file in files(Path("in"))}
        with pytest.raises(InputError, match="the output folder .* holds the image"):
            predict_files(predictor, [given], out)
        assert {file: Path("in", file).read_bytes() for file in files(Path("in"))} == before and mask.exists()

    def test_a_folder_that_cannot_be_written(self, predictor, tmp_path):
        write(tmp_path / "x.png")
        (tmp_path / "out").write_text("a file")
        predictor = Predictor(predictor.model, device="cpu")
        predictor.many = None  # not called: the folder is tried first
        with pytest.raises(InputError, match=f"^cannot write {tmp_path}/out: "):
            predict_files(predictor, [str(tmp_path / "x.png")], tmp_path / "out")

    def test_a_name_that_cannot_be_written_is_reported_and_the_others_go_on(self, predictor, tmp_path, capfd):
        long = "x" * 248  # fits with .png, but not with _overlay.jpg
        for name in ("a", "folder", long, "y"):
            write(tmp_path / f"in/{name}.png")
        (tmp_path / "out/folder.png").mkdir(parents=True)
        failures = predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out")
        assert [failure.partition(" as ")[0].rpartition("/")[2] for failure in failures] == [
            "folder.png",
            f"{long}.png",
        ]
        assert "File name too long" in failures[1] and all(
            failure in capfd.readouterr().err for failure in failures[:1]
        )
        written = ["a.png", "a_overlay.jpg", f"{long}.png", "y.png", "y_overlay.jpg"]
        assert files(tmp_path / "out") == sorted(written)

    def test_names_that_the_disk_does_not_tell_apart_are_refused(self, predictor, tmp_path, monkeypatch):
        names = ["A", "a", "b", "e\u0301", "\u00e9"]
        for name in names:
            write(tmp_path / f"in/{name}.png")
        assert predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", overlay=False) == []
        assert files(tmp_path / "out") == sorted(f"{name}.png" for name in names)
        exists = Path.exists
        monkeypatch.setattr(Path, "exists", lambda path: path.name == "a" or exists(path))
        with pytest.raises(InputError, match="in/A.png and .*in/a.png would have one output on the disk of .*other"):
            predict_files(predictor, [str(tmp_path / "in")], tmp_path / "other")
        assert files(tmp_path / "other") == []

    def test_a_full_disk_ends_it(self, predictor, tmp_path, monkeypatch):
        def full(*arguments, **options):
            raise OSError(errno.ENOSPC, "No space left on device")

        for name in ("a", "b"):
            write(tmp_path / f"in/{name}.png")
        monkeypatch.setattr("emanet.predict.outputs.write_mask", full)
        with pytest.raises(InputError, match="cannot write the prediction of .*a.png .*: No space left on device"):
            predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out")
        assert files(tmp_path / "out") == []

    @pytest.mark.parametrize("batch", [1, 3])
    def test_images_too_large_for_memory_are_reported_and_the_others_go_on(self, predictor, tmp_path, batch):
        """In groups that do not fit, each image is tried alone."""
        for name, side in (("a", 40), ("b", 90), ("c", 40), ("d", 35)):
            write(tmp_path / f"in/{name}.png", IMAGE[:1, :1].repeat(side, 0).repeat(side, 1))
        limited = Predictor(predictor.model, device="cpu")

        def many(images):
            if sum(image.size for image in images) > 3 * 50 * 50:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")
            return Predictor.many(limited, images)

        limited.many = many
        failures = predict_files(limited, [str(tmp_path / "in")], tmp_path / "out", overlay=False, batch=batch)
        assert failures == [
            f"{tmp_path}/in/b.png: not enough memory to predict 90 x 90 pixels; mode slide predicts it in windows"
        ]
        assert files(tmp_path / "out") == ["a.png", "c.png", "d.png"]

    def test_an_overlay_too_large_for_memory_is_reported(self, predictor, tmp_path, monkeypatch):
        def none_left(*arguments):
            raise MemoryError

        write(tmp_path / "in/a.png")
        monkeypatch.setattr("emanet.show.colours.overlay", none_left)
        (failure,) = predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out")
        assert failure.endswith(": not enough memory") and files(tmp_path / "out") == ["a.png"]

    def test_other_errors_are_faults_of_ours(self, predictor, tmp_path):
        def broken(images):
            raise RuntimeError("shapes do not fit")

        write(tmp_path / "in/a.png")
        broken_one = Predictor(predictor.model, device="cpu")
        broken_one.many = broken
        with pytest.raises(RuntimeError, match="shapes"):
            predict_files(broken_one, [str(tmp_path / "in")], tmp_path / "out")

    @pytest.mark.parametrize("result", ["write_mask", "Path.write_bytes"], ids=["label map", "overlay"])
    def test_half_a_file_never_stands(self, predictor, tmp_path, monkeypatch, result):
        """An interrupt while a result is written leaves the one of before."""

        def interrupted(path, *arguments, **options):
            with open(path, "wb") as file:
                file.write(b"half")
            raise KeyboardInterrupt

        write(tmp_path / "in/x.png")
        predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out")
        before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"emanet.predict.outputs.{result}", interrupted)
            predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out")
        assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before and len(before) == 2

    @pytest.mark.parametrize("batch", [1, 3])
    def test_memory_does_not_grow_with_the_folder(self, predictor, tmp_path, monkeypatch, batch):
        """Of images that all have another size, never more than six batches: four wait, one is read, one is written."""
        for side in range(8, 8 * 50, 8):
            write(tmp_path / f"in/{side:03}.png", IMAGE[:1].repeat(side, 0)[:, :16])
        held, most = weakref.WeakSet(), []
        read = images.read_visible

        class Pixels(np.ndarray):
            """An array that weak references and sets take."""

            __hash__ = object.__hash__
            __eq__ = object.__eq__

        def watched(path, channels, **options):
            pixels = read(path, channels, **options)[0].view(Pixels)
            held.add(pixels)
            most.append(len(held))
            return pixels, None

        monkeypatch.setattr("emanet.predict.files.read_visible", watched)
        assert predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", overlay=False, batch=batch) == []
        assert (
            len(files(tmp_path / "out")) == 49
            and max(most) <= 4 * batch + max(batch, THREADS) + max(batch, WRITERS) + 4
        )

    def test_reading_and_writing_go_on_beside_the_network(self, predictor, tmp_path, monkeypatch):
        """The network on the second image waits until the third is read and the first is written."""
        for name in "abc":
            write(tmp_path / f"in/{name}.png")
        watched, seen = Predictor(predictor.model, device="cpu"), iter("abc")
        events = {"read c": threading.Event(), "write a": threading.Event()}
        read, write_mask = images.read_visible, images.write_mask

        def reading(path, *arguments, **options):
            events.get(f"read {path.stem}", threading.Event()).set()
            return read(path, *arguments, **options)

        def writing(path, *arguments, **options):
            events.get(f"write {path.name[1]}", threading.Event()).set()
            write_mask(path, *arguments, **options)

        def many(images):
            if next(seen) == "b":
                assert all(event.wait(10) for event in events.values()), events
            return Predictor.many(watched, images)

        watched.many = many
        monkeypatch.setattr("emanet.predict.files.read_visible", reading)
        monkeypatch.setattr("emanet.predict.outputs.write_mask", writing)
        assert predict_files(watched, [str(tmp_path / "in")], tmp_path / "out", overlay=False) == []
        assert files(tmp_path / "out") == ["a.png", "b.png", "c.png"]

    def test_failures_come_in_the_order_of_the_images_whichever_stage_fails(self, predictor, tmp_path, capfd):
        for name in ("a", "c", "e"):
            write(tmp_path / f"in/{name}.png")
        for name in ("b", "d"):
            (tmp_path / f"in/{name}.png").write_bytes(b"no image")
        for name in ("a", "c"):
            (tmp_path / f"out/{name}.png").mkdir(parents=True)  # cannot be replaced by a file
        for batch in (1, 4):
            failures = predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", overlay=False, batch=batch)
            assert [Path(text.split(" as ")[0].split(": ")[0]).stem for text in failures] == ["a", "b", "c", "d"]
            said = capfd.readouterr().err.splitlines()[1:5]
            assert (said if batch == 1 else sorted(said, key=lambda line: line.partition("in/")[2])) == [
                f"skipped: {text}" for text in failures
            ]

    def test_twice_into_one_folder(self, predictor, tmp_path):
        write(tmp_path / "in/x.png")
        for _ in range(2):
            predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out")
        assert files(tmp_path / "out") == ["x.png", "x_overlay.jpg"]


def files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != RECORD)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


@pytest.mark.parametrize("outputs", [("index",), ("index", "uncertainty")])
def test_a_small_network_takes_two_images_side_by_side(tmp_path, monkeypatch, outputs):
    """A core each, where there are many of them: the same files as one by one on both cores."""
    for i in range(6):
        write(tmp_path / f"in/{i}.png", np.roll(IMAGE, 7 * i, 1)[: 30 + i % 2])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(artefact, "MANY", 6)
    predictor, both, threads = tiny(), threading.Barrier(2, timeout=20), set()
    with predictor.network.side_by_side(5) as at_once:
        assert at_once == 1
    with monkeypatch.context() as patch:
        patch.setattr(network, "SMALL", 1000)
        predict_files(predictor, [str(tmp_path / "in")], tmp_path / "one", outputs=outputs)
    assert not asked

    def together(module, inputs):
        threads.add(threading.get_ident())
        both.wait()

    predictor.model.backbone.register_forward_pre_hook(together)
    assert predict_files(predictor, [str(tmp_path / "in")], tmp_path / "two", outputs=outputs) == []
    assert len(threads) == 2 and sorted(asked) == [1] * 6 + [2] * 6
    assert files(tmp_path / "one") == files(tmp_path / "two") != []
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_calibration_images_without_int8_are_refused(model, scenes):
    with pytest.raises(InputError, match="calibrate is .*, but nothing uses it while precision is"):
        Predictor(model, engine="eager", calibrate=[str(scenes / "val/images")])
