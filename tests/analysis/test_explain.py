"""What explain says: the responsibilities are the model's own, the numbers are right, the files are written."""

import importlib.util
import json
import math
import sys

import numpy as np
import pytest
import torch
from conftest import run_cli, sentence
from PIL import Image

from emanet.analysis.explain import class_use, explain, predict_explained, principal_components, shrunk_pixels
from emanet.config import IGNORE, EvalConfig
from emanet.data.datasets import SPECS
from emanet.data.synthetic import draw_scene
from emanet.emau import EMAU
from emanet.errors import InputError
from emanet.experiments import load_experiment, override
from emanet.inference import padded_logits, predict_labels
from emanet.loading import load
from emanet.model import build_model
from emanet.predict.predictor import Predictor
from emanet.show.attention import base_colours
from emanet.weights.model_file import save_model

SIZES = [(33, 41), (50, 37), (32, 70)]
VARIANTS = {
    "resnet": {},
    "half-pixel": {"model.align_corners": False},
    "padded-backbone": {"model.backbone.name": "test_convnext", "model.backbone.output_stride": 32},
    "relatives": {"model.head.relu_out": True, "model.head.eps": 1e-2, "model.head.em_steps": 2},
    "unrolled": {"model.head.gradient": "unrolled"},
}


def build(tiny, values=None):
    torch.manual_seed(0)
    return sharpened(build_model(override(tiny, values or {}).model, SPECS["drawn"]).eval())


def sharpened(model):
    """An untrained model's responsibilities are all 1 / K but for rounding; these differ."""
    emaus = [module for module in model.modules() if isinstance(module, EMAU)]
    for emau in emaus:
        emau.conv_in.weight.data *= 200
    return model


@pytest.fixture
def sharp(model):
    """The fixture's model file with such responsibilities."""
    save_model(model, sharpened(load(model)), load_experiment(str(model)), step=0)
    return model


def scene(size=(50, 37), index=1):
    return draw_scene(index, size=size)[0]


class TestExplanation:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_it_rebuilds_what_the_unit_computes(self, tiny, variant, size):
        model, image = build(tiny, VARIANTS[variant]), scene(size)
        emau = model.head.emau
        torch.nn.init.uniform_(emau.bn_out.weight)
        passed = []
        hook = emau.register_forward_hook(lambda module, inputs, output: passed.append((inputs[0], output)))
        seen = explain(model, image)
        hook.remove()
        (x, y), rebuilt = passed[0], torch.from_numpy(seen.rebuilt)[None]
        with torch.no_grad():
            again = torch.relu(x + emau.relu_out(emau.bn_out(emau.conv_out(rebuilt.relu()))))
        assert (y - x).abs().max() > 0.1  # the unit does something, so that agreeing means something
        torch.testing.assert_close(again, y, rtol=1e-4, atol=1e-4)

        steps, bases = emau.em_steps, emau.bases.shape[2]
        assert seen.z.shape == (steps, bases, *x.shape[2:]) and seen.mu.shape == (steps + 1, *emau.bases.shape[1:])
        np.testing.assert_allclose(seen.z.sum(1), 1, rtol=1e-5)
        assert seen.strongest[-1] > 0.2
        np.testing.assert_array_equal(seen.mu[0], emau.bases[0])
        np.testing.assert_array_equal(seen.labels, predict_labels(model, _batch(image))[0])

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("variant", ["resnet", "half-pixel", "padded-backbone"])
    def test_maps_lie_over_the_image_as_its_logits_do(self, tiny, variant, size):
        model, image = build(tiny, VARIANTS[variant]), scene(size)
        seen = explain(model, image)
        # The logits of a classifier that copies the responsibilities, through evaluation's own padding.
        model.head.forward = lambda features: torch.from_numpy(seen.z[-1])[None]
        with torch.no_grad():
            expected = padded_logits(model, model.normalise(_batch(image)))[0].numpy()
        maps = np.stack([seen.over_image(base) for base in range(len(expected))])
        assert maps.shape[1:] == size
        np.testing.assert_allclose(maps, expected, atol=1e-6)
        np.testing.assert_array_equal(seen.owners, expected.argmax(0))
        assert seen.shares.sum() == pytest.approx(1) and seen.top(3)[0] == np.bincount(seen.owners.ravel()).argmax()

    @pytest.mark.parametrize("variant", ["resnet", "half-pixel", "padded-backbone"])
    def test_cells_of_pixels_are_where_upsampling_reads_them(self, tiny, variant):
        seen = explain(build(tiny, VARIANTS[variant]), scene((50, 37)))
        for axis, side in enumerate((50, 37)):
            a, b = seen.cell_of(axis)
            cells = np.clip(a * (np.arange(side) + 0.5) / side + b, 0, seen.z.shape[2 + axis] - 1)
            ramp = np.arange(seen.z.shape[2 + axis], dtype=np.float32)
            seen.z[-1, 0] = ramp[:, None] if axis == 0 else ramp  # a map that holds the numbers of its cells
            read = seen.over_image(0)[:, 0] if axis == 0 else seen.over_image(0)[0]
            np.testing.assert_allclose(read, cells, atol=1e-4)

    @pytest.mark.parametrize(
        "config", [EvalConfig(), EvalConfig(longest_side=40), EvalConfig(flip=True), EvalConfig(mode="slide")]
    )
    def test_labels_and_iterations_together(self, tiny, config):
        model, image = build(tiny), scene((50, 67))
        predictor = Predictor(model, device="cpu", config=config)
        labels, seen = predict_explained(predictor, image, longest_side=60)
        np.testing.assert_array_equal(labels, predictor(image))
        alone = explain(model, shrunk_pixels(image, EvalConfig(longest_side=config.longest_side or 60), model))
        # The network's input is shrunk in floating point, `image` to whole numbers.
        assert np.abs(seen.z - alone.z).mean() < (0.02 if config.longest_side else 1e-6)
        assert seen.labels.shape == seen.image.shape[:2] == alone.image.shape[:2]
        assert (seen.labels == alone.labels).mean() > 0.9

    def test_padding_counts_in_no_number(self, tiny):
        for variant, size, inside in (
            ("resnet", (33, 42), (5, 6)),  # padded to 33 x 49, pixels 0, 8, ... 40 inside and 48 outside
            ("half-pixel", (33, 45), (4, 6)),  # to 40 x 48, centres at 3.5, 11.5, ... 35.5 and 43.5
        ):
            seen = explain(build(tiny, VARIANTS[variant]), scene(size))
            assert seen.inside.shape[2:] == inside and seen.z.shape[2:] != inside

    def test_numbers_against_their_definition(self, tiny):
        seen = explain(build(tiny), scene())
        z = torch.from_numpy(seen.inside).double()
        entropy = torch.distributions.Categorical(z.permute(0, 2, 3, 1)).entropy().mean((1, 2))
        np.testing.assert_allclose(seen.entropy, entropy, rtol=1e-6)
        np.testing.assert_allclose(seen.entropy_share, entropy / math.log(8), rtol=1e-6)
        np.testing.assert_allclose(seen.strongest, z.max(1).values.mean((1, 2)), rtol=1e-6)
        assert explain(build(tiny, {"model.head.num_bases": 1}), scene()).entropy_share.tolist() == [0, 0, 0]

    def test_the_model_is_left_as_it_was(self, tiny):
        model = build(tiny).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        explain(model, scene())
        assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert not model.head.emau.conv_in._forward_hooks and not model.backbone._forward_pre_hooks
        with pytest.raises(ValueError, match="uint8"):
            explain(model, scene().astype(float))
        assert model.training

    def test_a_model_without_bases_is_refused(self, tiny):
        with pytest.raises(InputError, match="no bases to explain: the model's head, FCNHead, has no EM attention"):
            explain(build(tiny, {"model.head.name": "fcn"}), scene())


class TestClassUse:
    def test_against_the_maps_over_the_images(self, tiny):
        model, scenes = build(tiny), _Scenes([(40, 44), (33, 50)])
        use = class_use(model, scenes)
        points = []
        for i in range(2):
            image, labels = scenes.read(i)
            seen = explain(model, image)
            maps = np.stack([seen.over_image(base) for base in range(8)], axis=-1)
            for label in np.unique(labels[labels != IGNORE]):
                points.append((scenes.name(i), label, maps[labels == label].mean(0)))
        names, labels, vectors = zip(*points, strict=True)
        assert use.images == list(names) and use.labels.tolist() == list(labels)
        np.testing.assert_allclose(use.vectors, vectors, atol=1e-6)
        assert not (use.labels == 0).any() and np.isnan(use.matrix[0]).all()  # class 0 is ignored everywhere
        for label in np.unique(use.labels):
            mine = [vector for other, vector in zip(labels, vectors, strict=True) if other == label]
            np.testing.assert_allclose(use.matrix[label], np.mean(mine, axis=0), atol=1e-6)

    def test_principal_components_find_planted_directions(self):
        rng = np.random.default_rng(0)
        planted = np.linalg.qr(rng.normal(size=(12, 2)))[0].T
        at = rng.normal(size=(500, 2)) * (3, 1)
        points = 0.2 + at @ planted + 0.01 * rng.normal(size=(500, 12))
        projections, directions, shares = principal_components(points)
        overlap = (directions * planted).sum(1)
        np.testing.assert_allclose(abs(overlap), 1, atol=5e-3)
        np.testing.assert_allclose(projections * overlap, at - at.mean(0), atol=0.2)
        np.testing.assert_allclose(shares, at.var(0) / at.var(0).sum(), atol=0.01)
        assert all(row[abs(row).argmax()] > 0 for row in directions)

    def test_principal_components_of_hardly_anything(self):
        for points in (np.ones((1, 5)), np.ones((4, 5)), np.arange(3.0)[:, None]):
            projections, directions, shares = principal_components(points)
            assert projections.shape == (len(points), 2) and directions.shape == (2, points.shape[1])
            assert np.isfinite(projections).all() and 0 <= shares.sum() <= 1 + 1e-9


class TestCommand:
    def test_an_image_and_a_split(self, sharp, scenes, tmp_path):
        Image.fromarray(scene((50, 67))).save(tmp_path / "photo.png")
        split = ["--split", "val", "--dataset", scenes]
        done = run_cli("explain", sharp, tmp_path / "photo.png", "--out", tmp_path / "out", "--bases", 5, 2, 5, *split)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "out" / "photo"
        names = "base_002 base_005 owners owners_overlay responsibilities owners_figure iterations".split()
        assert sorted(path.stem for path in folder.glob("*.png")) == sorted(names)
        for path in [*folder.glob("*.png"), *(tmp_path / "out").glob("*.png")]:
            assert len(np.unique(np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3), axis=0)) > 1, path
        assert Image.open(folder / "base_002.png").size == Image.open(folder / "owners.png").size == (67, 50)

        report = json.loads((folder / "explain.json").read_text())
        seen = explain(load(sharp), tmp_path / "photo.png")
        assert report["bases_shown"] == [5, 2] and [row["t"] for row in report["iterations"]] == [1, 2, 3]
        np.testing.assert_allclose([row["entropy_nats"] for row in report["iterations"]], seen.entropy, atol=1e-5)
        np.testing.assert_allclose([row["mean_max"] for row in report["iterations"]], seen.strongest, atol=1e-5)
        assert sum(report["owned_share"].values()) == pytest.approx(1, abs=1e-4)
        owners = np.asarray(Image.open(folder / "owners.png"))
        np.testing.assert_array_equal(owners, base_colours(8)[seen.owners])

        report = json.loads((tmp_path / "out" / "classes.json").read_text())
        assert list(report["usage"]) == list(SPECS["drawn"].classes) and np.shape(report["directions"]) == (2, 8)
        assert all(row is None or sum(row) == pytest.approx(1, abs=1e-4) for row in report["usage"].values())
        assert {point["class"] for point in report["points"]} == {k for k, row in report["usage"].items() if row}
        assert (tmp_path / "out" / "classes_usage.png").exists() and (tmp_path / "out" / "classes_pca.png").exists()

    def test_bad_images_are_reported_and_the_others_explained(self, sharp, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
        Image.fromarray(scene((40, 40))).save(tmp_path / "in" / "good.jpg")
        done = run_cli("explain", sharp, tmp_path / "in", "--out", tmp_path / "out")
        assert sentence(done) == "error: images that could not be explained: 1, named above"
        assert "broken.png" in done.stderr and (tmp_path / "out" / "good" / "explain.json").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "explain needs at least one image, folder or glob, after MODEL if one is named, or --split"),
            (["photo.png", "--bases", "3", "8"], "there is no base 8: the model has 8, numbered 0 to 7"),
            (["photo.png", "--bases", "-1"], "there is no base -1"),
            (["photo.png", "--root", "x"], "--root and --dataset say where --split is found, but there is no --split"),
            (["--split", "val", "--bases", "1"], "--bases chooses what to draw of an image, but there is no image"),
            (["--split", "vla"], "did you mean 'val'"),
            (["--split", "val", "--dataset", "voc"], "data set 'voc' has 21 classes, but the model has 8"),
            (["nowhere.png"], "no image nowhere.png"),
            (["photo.png", "--out", "."], "holds the image photo.png; name another one"),
            (["photo.png", "--out", "photo.png/out"], "cannot write photo.png/out"),
        ],
    )
    def test_what_is_wrong_ends_in_a_sentence(self, sharp, tmp_path, arguments, message):
        Image.fromarray(scene((40, 40))).save(tmp_path / "photo.png")
        out = [] if "--out" in arguments else ["--out", "out"]
        assert message in sentence(run_cli("explain", sharp, *arguments, *out, cwd=tmp_path))
        assert not (tmp_path / "out").exists()

    def test_an_image_too_large_for_memory_is_reported(self, sharp, tmp_path, monkeypatch):
        def limited(model, pixels):
            if len(pixels) > 20:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return explain(model, pixels)

        monkeypatch.setattr("emanet.analysis.explain_files.explain", limited)
        for name, side in (("large", 30), ("small", 20)):
            (tmp_path / "in").mkdir(exist_ok=True)
            Image.new("RGB", (side, side), (90, 150, 30)).save(tmp_path / "in" / f"{name}.png")
        done = run_cli("explain", sharp, tmp_path / "in", "--out", tmp_path / "out")
        assert done.returncode == 2 and "skipped: " in done.stderr and "in/large.png: not enough memory" in done.stderr
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["small"]

    def test_only_a_split_needs_matplotlib_and_says_so_before_the_work(self, sharp, scenes, tmp_path, monkeypatch):
        Image.fromarray(scene((40, 40))).save(tmp_path / "photo.png")
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        arguments = ["explain", sharp, tmp_path / "photo.png", "--out", tmp_path / "out"]
        said = sentence(run_cli(*arguments, "--split", "val", "--dataset", scenes))
        assert said == 'error: figures need matplotlib: pip install "emanet[plots]"'
        assert not (tmp_path / "out").exists()
        assert run_cli(*arguments).returncode == 0 and (tmp_path / "out" / "photo" / "iterations.png").exists()

    def test_larger_images_and_masks_than_max_pixels_are_refused(self, sharp, scenes, tmp_path):
        Image.fromarray(scene((40, 40))).save(tmp_path / "photo.png")
        limit = ["--out", tmp_path / "out", "--max-pixels"]
        done = run_cli("explain", sharp, tmp_path / "photo.png", *limit, 1599)
        assert sentence(done) == "error: images that could not be explained: 1, named above"
        assert "more than max_pixels, 1599" in done.stderr
        assert run_cli("explain", sharp, tmp_path / "photo.png", *limit, 1600).returncode == 0
        split = ["--split", "val", "--dataset", scenes, "--data.workers", 0]
        assert "more than max_pixels, 1600" in sentence(run_cli("explain", sharp, *split, *limit, 1600))


class _Scenes:
    """Drawn scenes of the given sizes whose sky is ignored."""

    def __init__(self, sizes):
        self.scenes = [draw_scene(i, size=size) for i, size in enumerate(sizes)]

    def __len__(self):
        return len(self.scenes)

    def name(self, index):
        return f"scene {index}"

    def read(self, index):
        image, labels = self.scenes[index]
        return image, np.where(labels == 0, IGNORE, labels).astype(np.uint8)


def _batch(image):
    return torch.from_numpy(image.transpose(2, 0, 1)[None].copy())
