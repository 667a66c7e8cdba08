"""What an image's bytes become: the predictor's own labels, and the responsibilities of `explain`."""

import base64
import io
import json
import tempfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from emanet.config import EvalConfig
from emanet.data.datasets import SPECS
from emanet.data.synthetic import draw_scene
from emanet.errors import InputError
from emanet.experiments import override
from emanet.model import build_model
from emanet.predict.predictor import Predictor
from emanet.show.colours import colourise
from emanet.web.answer import answer


@pytest.fixture
def predictor(tiny):
    torch.manual_seed(0)
    model = build_model(tiny.model, SPECS["drawn"]).eval()
    model.head.emau.conv_in.weight.data *= 200  # responsibilities that differ
    torch.nn.init.normal_(model.head.classifier.weight)
    return Predictor(model, device="cpu")


def saved(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def decoded(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def unpacked(text, shape):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)


def test_everything_that_is_sent_is_the_predictors(predictor):
    pixels = draw_scene(1, size=(50, 37))[0]
    labels = predictor(pixels)
    sent = answer(predictor, "drawn", saved(pixels), explain=True)
    assert json.loads(json.dumps(sent))["view"] == [37, 50]  # w, h
    np.testing.assert_array_equal(unpacked(sent["labels"], (50, 37)), labels)
    np.testing.assert_array_equal(decoded(sent["files"]["labels.png"]), labels)
    np.testing.assert_array_equal(decoded(sent["files"]["colours.png"]), colourise(labels, predictor.palette))
    report = json.loads(base64.b64decode(sent["files"]["classes.json"]))
    assert report["model"] == "drawn" and (report["width"], report["height"]) == (37, 50)
    counts = np.bincount(labels.ravel(), minlength=len(predictor.classes))
    assert {entry["index"]: entry["pixels"] for entry in report["classes"]} == {
        label: count for label, count in enumerate(counts) if count
    }
    assert sum(entry["share"] for entry in report["classes"]) == pytest.approx(1, abs=1e-5)
    assert all(predictor.classes[entry["index"]] == entry["name"] for entry in report["classes"])


def test_responsibilities_arrive_within_their_error(predictor):
    from emanet.analysis.explain import explain

    pixels = draw_scene(1, size=(50, 37))[0]
    sent, seen = answer(predictor, "drawn", saved(pixels), explain=True)["explain"], explain(predictor.model, pixels)
    z = (unpacked(sent["z"], seen.z.shape) / 255) ** 2
    np.testing.assert_allclose(z, seen.z, atol=0.0041)
    assert (sent["steps"], sent["bases"]) == seen.z.shape[:2] and sent["map"] == list(seen.z.shape[:1:-1])
    for label, row in sent["used"].items():
        mine = np.stack([seen.over_image(base)[seen.labels == int(label)].mean() for base in range(8)])
        np.testing.assert_allclose(row, mine, atol=1e-4)


def test_large_images_are_shown_smaller_and_labelled_whole(predictor):
    pixels = np.resize(draw_scene(1, size=(64, 64))[0], (40, 1600, 3))
    sent = answer(predictor, "drawn", saved(pixels), explain=True)
    assert sent["width"] == 1600 and sent["view"] == (1280, 32) and sent["explain"]["size"] == (640, 16)
    assert decoded(sent["files"]["labels.png"]).shape == (40, 1600)
    np.testing.assert_array_equal(decoded(sent["files"]["labels.png"]), predictor(pixels))


def test_hidden_pixels_are_named(predictor):
    pixels = np.dstack([draw_scene(1, size=(40, 32))[0], np.full((40, 32), 255, np.uint8)])
    pixels[:5, :, 3] = 0
    sent = answer(predictor, "drawn", saved(pixels, "TIFF"), explain=False)
    hidden = [entry for entry in sent["classes"] if entry["index"] == 255]
    assert sent["explain"] is None and hidden[0]["pixels"] == 160 and hidden[0]["name"] == "hidden in the file"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot read this image: it is empty"),
        (b"no image at all", "cannot read this image: it is damaged, or its format is not one of"),
        (saved(np.zeros((90, 90, 3), np.uint8)), "cannot read this image: its 90 x 90 pixels are more than max_pixels"),
        (saved(draw_scene(1, size=(40, 40))[0])[:400], "cannot read this image: "),
        (b"II*\0" + b"\xff" * 90, "cannot read this image"),
    ],
    ids=["empty", "text", "too large", "cut off", "broken TIFF"],
)
def test_no_path_is_in_what_is_said_of_a_bad_image(predictor, content, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    predictor.max_pixels = 5000
    with pytest.raises(InputError) as failed:
        answer(predictor, "drawn", content, explain=False)
    assert str(failed.value).startswith(sentence) and str(tmp_path) not in str(failed.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [EvalConfig(longest_side=40), EvalConfig(scales=(0.5, 1.0)), EvalConfig(flip=True)])
def test_labels_are_those_of_the_models_own_evaluation(predictor, config):
    own = Predictor(predictor.model, device="cpu", config=config)
    pixels = draw_scene(1, size=(50, 67))[0]
    sent = answer(own, "drawn", saved(pixels), explain=True)
    np.testing.assert_array_equal(decoded(sent["files"]["labels.png"]), own(pixels))
    side = 40 if config.longest_side else 67
    assert max(sent["explain"]["size"]) == side and sent["explain"]["steps"] == 3


def test_a_head_without_em_attention(tiny):
    model = build_model(override(tiny, {"model.head.name": "fcn"}).model, SPECS["drawn"]).eval()
    sent = answer(Predictor(model, device="cpu"), "fcn", saved(draw_scene(1, size=(40, 32))[0]), explain=False)
    assert sent["explain"] is None and sent["classes"]
