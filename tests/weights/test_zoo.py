"""The models that come with the package: their files, their name wherever a model is, and their cards.

python -m pytest tests/weights/test_zoo.py --write-docs    # writes the tables of docs/models
"""

import runpy
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_cli, sentence
from PIL import Image
from safetensors import safe_open

import emanet
from emanet.errors import InputError
from emanet.experiments import load_experiment
from emanet.loading import model_path, read, start_from
from emanet.model import build_model
from emanet.predict.inputs import means_model
from emanet.weights import zoo
from emanet.weights.model_file import read_model

NOTE = "no model is named: using 'street', which comes with emanet and labels street photos"
CARD = ROOT / "docs" / "models" / "street.md"


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def package():
    """The function of tools/package_model.py that writes a model of the package."""
    return runpy.run_path(str(ROOT / "tools" / "package_model.py"))["package"]


class TestFile:
    def test_is_small_and_says_where_it_is_from(self):
        assert zoo.names() == ["street"]
        path = zoo.path_of("street")
        file = read_model(path)
        assert path.stat().st_size < 12_000_000
        assert {"backbone", "data", "seed", "commit", "step", "metrics", "mIoU_before_rounding"} <= file.header.keys()
        assert abs(file.header["metrics"]["mIoU"] - file.header["mIoU_before_rounding"]) < 0.0005
        with safe_open(path, "np") as raw:
            assert len(raw.metadata()["sha256"]) == 64
            assert '"/' not in raw.metadata()["emanet"].replace('\\"', '"'), "a path of the machine it was made on"
        assert file.experiment.eval == load_experiment("street").eval
        assert file.experiment.model.head == load_experiment("street").model.head

    def test_is_read_to_the_bit(self):
        state = emanet.load("street").state_dict()
        with safe_open(zoo.path_of("street"), "np") as raw:
            assert set(raw.keys()) == state.keys()
            halves = 0
            for name in raw.keys():
                stored, value = raw.get_tensor(name), state[name].numpy()
                halves += stored.size * (stored.dtype == np.float16)
                assert value.dtype == (np.float32 if stored.dtype == np.float16 else stored.dtype)
                assert np.array_equal(value.astype(stored.dtype), stored) and np.array_equal(value, stored), name
        assert halves > 0.95 * sum(value.numel() for value in state.values())

    def test_a_changed_byte_is_refused(self, tmp_path):
        content = bytearray(zoo.path_of("street").read_bytes())
        content[-1] ^= 1
        (tmp_path / "street.safetensors").write_bytes(content)
        with pytest.raises(InputError, match="street.safetensors: file is damaged: checksum mismatch"):
            read_model(tmp_path / "street.safetensors")

    def test_is_in_the_wheel(self):
        """.ci/run builds one and predicts with it."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
        assert any(
            fnmatch(zoo.path_of("street").name, each) for each in project["tool"]["setuptools"]["package-data"]["*"]
        )


class TestName:
    def test_is_a_model_everywhere(self, monkeypatch, tmp_path, photo, capfd):
        monkeypatch.chdir(tmp_path)
        labels = emanet.Predictor("street", device="cpu")("photo.jpg")
        assert labels.shape == (40, 56) and emanet.load("street").classes[3] == "road"
        assert emanet.explain("street", "photo.jpg").owners.shape == (40, 56)
        assert capfd.readouterr().err == ""  # there is nothing to say of a name that is unmistakable
        for folder, pixels in (("images", np.asarray(Image.open(photo))), ("masks", labels)):
            (tmp_path / folder).mkdir()
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / "a.png")
        done = run_cli("evaluate", "street", "--images", "images", "--masks", "masks", "--workers", 0, cwd=tmp_path)
        assert done.returncode == 0 and "mIoU 100.00" in done.stdout, done.stderr
        done = run_cli("predict", "street", "photo.jpg", "--out", "out", cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == "1 image\n"
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "photo.png")), labels)

    def test_a_run_of_that_name_here_is_meant_instead(self, model, monkeypatch, tmp_path, capfd):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "street").mkdir()
        assert model_path("street") == zoo.path_of("street")  # an empty folder is not a model
        model.rename(tmp_path / "street" / "best.safetensors")
        assert read("street").path == Path("street/best.safetensors")
        said = (
            "'street' is the model at street/best.safetensors here, not the one of that name that comes with emanet\n"
        )
        assert capfd.readouterr().err == said
        assert emanet.Predictor(device="cpu").classes[3] == "road"  # without a name it is always the package's
        (tmp_path / "street" / "best.safetensors").unlink()
        (tmp_path / "street" / "config.json").touch()
        with pytest.raises(InputError, match="street holds no model"):
            read("street")

    def test_a_folder_of_images_of_that_name_is_told_of(self, tmp_path, photo):
        (tmp_path / "street").mkdir()
        photo.rename(tmp_path / "street" / "photo.jpg")
        done = run_cli("predict", "street", "--out", "out", cwd=tmp_path)
        assert "predict needs at least one image" in sentence(done)
        assert (
            "'street' is the model that comes with emanet; for images in the folder here write ./street" in done.stderr
        )
        assert run_cli("predict", "./street", "--out", "out", cwd=tmp_path).returncode == 0
        assert (tmp_path / "out" / "photo.png").is_file()

    def test_its_weights_start_a_model_of_other_classes(self):
        config = load_experiment("street").model
        config = emanet.override(config, {"backbone.pretrained": False})
        model = build_model(config, ["a", "b"])
        loaded, fresh = start_from(model, read("street"))
        assert fresh == ["head.classifier.weight", "head.classifier.bias"] and len(loaded) > 200
        stored = read("street").tensors
        assert all(torch.equal(model.state_dict()[name], stored[name].to(model.state_dict()[name])) for name in loaded)


class TestWithoutAName:
    def test_the_predictor_says_which_model_it_takes(self, photo, capfd):
        predictor = emanet.Predictor(device="cpu")
        assert capfd.readouterr().err == f"{NOTE}\n"
        assert np.array_equal(predictor(photo), emanet.Predictor("street", device="cpu")(photo))
        assert predictor.config.longest_side == 640  # what the file says

    def test_predict_labels_images(self, tmp_path, photo):
        (tmp_path / "more").mkdir()
        photo.rename(tmp_path / "more" / "photo.jpg")
        for arguments in (["more/photo.jpg"], ["more"], ["more/*.jpg"], ["more", "more/photo.jpg"]):
            done = run_cli("predict", *arguments, "--out", "out", "--no-overlay", cwd=tmp_path)
            assert done.returncode == 0 and done.stderr == f"{NOTE}\n1 image\n"
            (tmp_path / "out" / "photo.png").unlink()

    def test_explain_draws_images(self, tmp_path, photo):
        done = run_cli("explain", "photo.jpg", "--bases", 1, cwd=tmp_path)
        assert done.returncode == 0 and done.stderr.startswith(f"{NOTE}\n1 image\n")
        assert (tmp_path / "attention" / "photo" / "explain.json").is_file()

    def test_what_the_first_argument_means(self, monkeypatch, tmp_path, photo, model):
        monkeypatch.chdir(tmp_path)
        Path("runs").mkdir()
        Path("runs/config.json").touch()  # a run without a checkpoint yet: its own pictures are not meant
        Path("images").mkdir()
        Path("odd").write_bytes(photo.read_bytes())
        Path("other.pth").write_bytes(b"PK\x03\x04")
        for name in ("street", "drawn", "runs", str(model), "other.pth"):
            assert means_model(name), name
        for name in ("photo.jpg", "images", "odd", "*.jpg", "missing.jpg", "images/**"):
            assert not means_model(name), name
        for name in ("nothing", "runs/a", "sub/model"):
            with pytest.raises(InputError, match=f"^{name} is neither a model nor an image: "):
                means_model(name)


class TestPackage:
    def test_a_run_becomes_a_small_file(self, package, model, scenes, tmp_path):
        images, masks = str(scenes / "val" / "images"), str(scenes / "val" / "masks")
        out = tmp_path / "out.safetensors"
        facts = package(model, images, masks, out, commit="abc", data="drawn scenes", longest_side=99)
        before, file = read(model), read(out)
        assert file.header["metrics"] == facts["metrics"] and file.header["commit"] == "abc"
        assert file.experiment.eval.longest_side == 99 and file.experiment.model.backbone.pretrained is False
        for name, tensor in file.tensors.items():
            stored = before.tensors[name]
            half = stored.dim() > 1 and name.endswith(".weight")
            assert tensor.dtype == (torch.float16 if half else stored.dtype), name
            assert torch.equal(tensor, stored.half() if half else stored), name
        package.__globals__["LARGEST"] = 1000
        with pytest.raises(InputError, match="bytes, but a model of the package may have 1,000"):
            package(model, images, masks, tmp_path / "again.safetensors", commit="abc")
        assert not (tmp_path / "again.safetensors").exists()

    def test_a_value_beyond_float16_is_refused(self, package):
        layer = torch.nn.Conv2d(1, 1, 1)
        layer.weight.data.fill_(1e5)
        with pytest.raises(InputError, match="weight has values that float16 does not hold"):
            package.__globals__["rounded"](layer)

    def test_paths_are_taken_out(self, package):
        config = emanet.override(load_experiment("street"), {"data.root": "/a/b", "init_from": "/c", "device": "cpu"})
        clean = package.__globals__["without_paths"](config)
        assert (clean.data.root, clean.init_from, clean.device) == ("", "", "cpu")


def tables(name: str) -> str:
    """What docs/models says of a file, from the file."""
    header = read_model(zoo.path_of(name)).header
    metrics = header["metrics"]
    means = ", ".join(f"{mean} {100 * metrics[mean]:.2f}" for mean in ("mIoU", "pAcc", "mAcc", "fIoU"))
    lines = [
        "| what | value |",
        "| --- | --- |",
        f"| CamVid val | {means} |",
        f"| mIoU before rounding to float16 | {100 * header['mIoU_before_rounding']:.2f} |",
        f"| size | {zoo.path_of(name).stat().st_size / 1e6:.1f} MB |",
        f"| parameters | {sum(value.numel() for value in emanet.load(name).parameters()):,} |",
        f"| backbone's weights | {header['backbone']} |",
        f"| data | {header['data']} |",
        f"| seed, step | {header['seed']}, {header['step']:,} |",
        f"| commit of the code that trained it | {header['commit']} |",
        "",
        "| class | IoU | accuracy | share of pixels |",
        "| --- | ---: | ---: | ---: |",
    ]
    for label in metrics["IoU"]:
        values = (f"{100 * metrics[key][label]:.2f}" for key in ("IoU", "accuracy", "share"))
        lines.append(f"| {label} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def test_the_card_has_the_figures_of_the_file(request):
    start, end = "<!-- figures -->\n", "<!-- /figures -->"
    before, rest = CARD.read_text("utf-8").split(start)
    written, after = rest.split(end)
    if request.config.getoption("--write-docs"):
        CARD.write_text(before + start + tables("street") + end + after, "utf-8")
        return
    assert written == tables("street"), "python -m pytest tests/weights/test_zoo.py --write-docs"


@pytest.mark.early
def test_evaluate_gives_the_figure_of_the_card(camvid):
    folders = ["--images", camvid / "val" / "images", "--masks", camvid / "val" / "masks"]
    done = run_cli("evaluate", "street", *folders, "--workers", 0, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    measured = float(done.stdout.split("mIoU ")[1].split()[0])
    assert abs(measured - 100 * read("street").header["metrics"]["mIoU"]) < 0.1


def test_a_picture_is_the_photo_beside_its_overlay(photo):
    draw = runpy.run_path(str(ROOT / "tools" / "street_pictures.py"))["picture"]
    predictor = emanet.Predictor("street", device="cpu")
    drawn = np.asarray(draw(predictor, [photo, photo]))
    pixels = predictor.pixels(photo)
    assert drawn.shape == (2 * 44 + 30, 2 * 56 + 4, 3)
    for top in (0, 44):
        assert np.array_equal(drawn[top : top + 40, :56], pixels)
        assert np.array_equal(drawn[top : top + 40, 60:], predictor.overlay(pixels, predictor(pixels)))


def test_the_photographs_are_small_and_their_sources_named():
    photos = sorted((ROOT / "examples" / "photos").iterdir())
    notice = (ROOT / "NOTICE").read_text("utf-8")
    assert len(photos) >= 3
    for photo in photos:
        assert photo.stat().st_size <= 200_000 and f"examples/photos/{photo.name}" in notice
