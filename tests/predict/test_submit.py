"""Archives for the evaluation servers: what they hold is what the model predicts, in the server's values."""

import io
import tarfile
import unicodedata
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import run_cli, sentence
from PIL import Image

from emanet.config import EvalConfig, voc_palette
from emanet.data.specs import CITYSCAPES_IDS, SPECS
from emanet.errors import InputError
from emanet.experiments import override
from emanet.model import build_model
from emanet.predict.predictor import Predictor
from emanet.predict.submit import _images, _verify, format_of, submit
from emanet.weights.model_file import save_model

SIZES = [(33, 49), (40, 31), (17, 17)]


def saved(tiny, tmp_path, spec):
    """An untrained model of these classes, which predicts several of them: its BatchNorms know what images are like."""
    torch.manual_seed(0)
    experiment = override(tiny, {"data.spec": spec})
    model = build_model(experiment.model, spec).train()
    torch.nn.init.normal_(model.head.classifier.weight)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    model(torch.randint(0, 256, (4, 3, 33, 33), dtype=torch.uint8))
    path = tmp_path / "model.safetensors"
    save_model(path, model, experiment, step=0)
    return path


def pictures(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, size in zip(names, SIZES, strict=True):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        (folder / name).parent.mkdir(exist_ok=True)
        small.resize(size[::-1]).save(folder / name)
    return folder


def opened(content):
    image = Image.open(io.BytesIO(content))
    return image.mode, image.getpalette(), np.array(image)


VOC_NAMES = ["2008_000006.jpg", "2008_000011.jpg", "2011_003276.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_other_systems(tmp_path, encoding):
    pictures(tmp_path / unicodedata.normalize("NFD", "é"), VOC_NAMES)
    lines = ["# for the server", "", *(f".\\é\\{name}" for name in VOC_NAMES[:2])]
    (tmp_path / "test.txt").write_bytes("\r\n".join(lines).encode(encoding))
    images = _images(str(tmp_path / "test.txt"), format_of("voc", SPECS["voc"].classes))
    assert [path.name for path in images] == VOC_NAMES[:2] and all(path.is_file() for path in images)


@pytest.mark.parametrize("competition", ["comp6", "comp5"])
def test_voc(tiny, tmp_path, competition):
    model = saved(tiny, tmp_path, SPECS["voc"])
    folder, out = pictures(tmp_path / "JPEGImages", VOC_NAMES), tmp_path / "new" / "results.tar.gz"
    (tmp_path / "test.txt").write_text("".join(f"JPEGImages/{name}\n" for name in VOC_NAMES[:2]))
    flags = ["--competition", "comp5"] if competition == "comp5" else []
    done = run_cli("submit", model, "--images", tmp_path / "test.txt", "--out", out, *flags)
    assert done.returncode == 0 and f"{out}: 2 predictions for voc" in done.stdout, done.stderr
    predictor = Predictor(model)
    with tarfile.open(out) as tar:
        names = [f"results/VOC2012/Segmentation/{competition}_test_cls/{name[:-4]}.png" for name in VOC_NAMES[:2]]
        assert tar.getnames() == names
        for name, image in zip(names, VOC_NAMES, strict=False):
            mode, palette, labels = opened(tar.extractfile(name).read())
            assert mode == "P" and np.array_equal(labels, predictor(folder / image)) and len(np.unique(labels)) > 1
            assert palette[: 21 * 3] == np.array(voc_palette(21)).ravel().tolist()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_cityscapes_has_label_ids(tiny, tmp_path):
    model = saved(tiny, tmp_path, SPECS["cityscapes"])
    names = [f"{city}/{city}_00000{i}_000019_leftImg8bit.png" for i, city in enumerate(("berlin", "bonn", "munich"))]
    folder, out = pictures(tmp_path / "test", names), tmp_path / "results.zip"
    assert run_cli("submit", model, "--images", folder, "--out", out).returncode == 0
    predictor, seen = Predictor(model), set()
    with zipfile.ZipFile(out) as file:
        assert sorted(file.namelist()) == [name.split("/")[1] for name in names]
        for name in names:
            mode, _, values = opened(file.read(name.split("/")[1]))
            labels = predictor(folder / name)
            assert mode == "L" and np.array_equal(values, np.array(CITYSCAPES_IDS)[labels])
            seen |= set(np.unique(values).tolist())
    assert len(seen) > 3 and min(seen) >= 7
    pictures(folder, ["berlin/photo.png", "b.png", "c.png"])
    error = sentence(run_cli("submit", model, "--images", folder, "--out", out))
    assert "cityscapes images are named city_000000_000019*, unlike b.png, photo.png, c.png" in error


def test_ade20k_counts_from_one_and_flags_reach_the_predictor(tiny, tmp_path):
    model = saved(tiny, tmp_path, SPECS["ade20k"])
    names = [f"ADE_test_0000000{i}.jpg" for i in range(1, 4)]
    folder, out = pictures(tmp_path / "testing", names), tmp_path / "results.zip"
    flags = ["--scales", "0.75", "1.25", "--flip"]
    assert run_cli("submit", model, "--images", folder, "--out", out, "--format", "ade20k", *flags).returncode == 0
    settings = EvalConfig(scales=(0.75, 1.25), flip=True)
    several, single = Predictor(model, config=settings), Predictor(model)
    with zipfile.ZipFile(out) as file:
        found = {name: opened(file.read(f"{name[:-4]}.png"))[2] for name in names}
    for name, size in zip(names, SIZES, strict=True):
        assert found[name].shape == size and np.array_equal(found[name], several(folder / name) + 1)
    assert any((found[name] != single(folder / name) + 1).any() for name in names)


def test_coco_with_vocs_classes_is_vocs_format():
    assert format_of("auto", SPECS["coco_voc"].classes, "comp5").folder.endswith("comp5_test_cls/")
    assert format_of("auto", SPECS["cityscapes"].classes).values == CITYSCAPES_IDS
    assert format_of("ade20k", SPECS["ade20k"].classes).values == tuple(range(1, 151))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "the model's 8 classes are not those of VOC, Cityscapes or ADE20K"),
        (["--format", "voc"], "the model has 8 classes, but a submission to voc needs 21"),
        (["--format", "kitti"], "kitti"),
    ],
)
def test_a_model_of_other_classes_is_refused(model, tmp_path, flags, message):
    pictures(tmp_path / "images", VOC_NAMES)
    error = sentence(run_cli("submit", model, "--images", tmp_path / "images", "--out", tmp_path / "a.tar.gz", *flags))
    assert message in error and not (tmp_path / "a.tar.gz").exists()


def test_classes_in_another_order_are_refused():
    classes = list(SPECS["voc"].classes)
    classes[1], classes[2] = classes[2], classes[1]
    with pytest.raises(InputError, match="not those of voc, in their order: bicycle for aeroplane, aeroplane for bicy"):
        format_of("voc", classes)


class Fake:
    """A predictor of constant labels."""

    classes, max_pixels = SPECS["voc"].classes, None

    def __init__(self, fail_at=None, turned=False):
        self.calls, self.fail_at, self.turned = 0, fail_at, turned

    def __call__(self, path):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        w, h = Image.open(path).size
        return np.full((w, h) if self.turned else (h, w), 20, np.uint8)


def test_what_is_interrupted_or_wrong_leaves_no_archive(tmp_path):
    folder, out = pictures(tmp_path / "images", VOC_NAMES), tmp_path / "a.tar.gz"
    out.write_bytes(b"an earlier one")
    with pytest.raises(KeyboardInterrupt):
        submit(Fake(fail_at=3), str(folder), str(out))
    with pytest.raises(
        InputError, match=r"2008_000006.png came out wrong: its size is \(49, 33\), the image's \(33, 49"
    ):
        submit(Fake(turned=True), str(folder), str(out))
    assert out.read_bytes() == b"an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["a.tar.gz", "images"]
    assert len(submit(Fake(), str(folder), str(out))) == 3


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_the_archive_is_read_back(tmp_path, suffix):
    name = "voc" if suffix == ".tar.gz" else "ade20k"
    kind = replace(format_of(name, SPECS[name].classes), folder="")
    content, path = kind.png(np.zeros((2, 3), np.uint8)), tmp_path / f"a{suffix}"
    other = io.BytesIO()
    Image.fromarray(np.full((2, 3), 200, np.uint8)).save(other, "PNG")
    for members, message in [
        ({"a.png": content}, "it holds 1 of 2 predictions"),
        ({"a.png": content, "c.png": content}, "c.png came out wrong: it belongs to no image"),
        ({"a.png": content, "b.png": other.getvalue()}, "b.png came out wrong: it has the values 200"),
        ({"a.png": content, "b.png": content}, None),
    ]:
        if suffix == ".zip":
            with zipfile.ZipFile(path, "w") as file:
                for member, data in members.items():
                    file.writestr(member, data)
        else:
            with tarfile.open(path, "w:gz") as file:
                for member, data in members.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    file.addfile(info, io.BytesIO(data))
        sizes = {"a.png": (2, 3), "b.png": (2, 3)}
        if message:
            with pytest.raises(InputError, match=message):
                _verify(path, kind, sizes)
        else:
            _verify(path, kind, sizes)


def test_what_a_user_can_get_wrong_is_said_before_the_first_prediction(tmp_path):
    folder, never = pictures(tmp_path / "images", VOC_NAMES), Fake(fail_at=1)

    def refused(images, out="a.tar.gz"):
        with pytest.raises(InputError) as error:
            submit(never, str(images), str(tmp_path / out))
        assert never.calls == 0
        return str(error.value)

    assert "the server of voc takes a file named *.tar.gz, not a.zip" in refused(folder, "a.zip")
    (tmp_path / "folder.tar.gz").mkdir()
    assert "folder.tar.gz is a folder; give the name of a file" in refused(folder, "folder.tar.gz")
    assert "cannot write " in refused(folder, f"images/{VOC_NAMES[0]}/a.tar.gz")
    assert "is neither a folder nor a text file" in refused(folder / VOC_NAMES[0])
    assert "is neither a folder nor a text file" in refused(tmp_path / "nowhere")
    (tmp_path / "list.txt").write_text("images/2008_000006.jpg\nimages/nothing.jpg\n")
    assert "1 of 2 images are missing: " in refused(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\n# a comment\n")
    assert "it is empty" in refused(tmp_path / "list.txt")
    (folder / "2008_000011.png").write_bytes(b"")
    assert "would have the same name in the archive" in refused(folder)
    (folder / "2008_000011.jpg").unlink()
    assert "cannot read image" in refused(folder) and "it is empty" in refused(folder)
