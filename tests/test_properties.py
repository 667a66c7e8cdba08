"""What must hold for any input of a kind, tried on inputs that hypothesis makes up."""

import json
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from emanet.config import IGNORE, DataConfig, DatasetSpec, EvalConfig, Experiment, OptimConfig, voc_palette
from emanet.data.images import read_image, read_mask, read_mask_values, write_mask
from emanet.data.transforms import augment
from emanet.errors import InputError
from emanet.experiments import flatten, from_dict, load_experiment, override, to_dict
from emanet.metrics import ConfusionMatrix
from emanet.ops.em_attention import em_attention, em_attention_plain, em_step
from emanet.ops.upsample import upsample_argmax
from emanet.weights import foreign
from emanet.windows import window_starts

# Outside of pytest, which has filters of its own, images.py silences Pillow itself.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
quick = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
sides = st.integers(1, 40)
numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(10**20), 10**20)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
LEAVES = sorted(flatten(Experiment()))
IMAGE_STARTS = (
    b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"P5 3 2 255\n", b"II*\0\x08\0\0\0",
    b"RIFF\xff\0\0\0WEBPVP8 ", b"\x93NUMPY\x01\0\x46\0{",
)  # fmt: skip
WEIGHT_STARTS = (b"", b"\x80\x02}", b"\x80\x04]", b"PK\x03\x04", b"\x20\0\0\0\0\0\0\0{", b"\x80\x02}q\0")
SPEC = DatasetSpec(classes=("a", "b", "c"))


def pixels(h: int, w: int, channels: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, channels), dtype=np.uint8)


@quick
@given(st.dictionaries(st.sampled_from(LEAVES), values, max_size=3))
def test_any_values_make_a_config_that_comes_back_or_a_sentence(changes):
    tree = to_dict(load_experiment("drawn"))
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        place = tree
        for name in path:
            place = place[name]
        place[last] = value
    try:
        config = from_dict(Experiment, tree)
    except InputError as error:
        assert "\n" not in str(error) and 0 < len(str(error)) < 1000
        return
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(config)))) == config
    assert all(np.isfinite(value) for value in flatten(config).values() if isinstance(value, float))


@quick
@given(values)
def test_anything_as_a_config_is_an_experiment_or_a_sentence(tree):
    for kind in (Experiment, DatasetSpec):
        try:
            assert isinstance(from_dict(kind, tree), kind)
        except InputError as error:
            assert str(error)


@quick
@given(st.dictionaries(st.sampled_from(["lr", "clip_norm", "poly_power"]), st.floats(1e-9, 10)))
def test_override_changes_what_it_names_and_nothing_else(changes):
    before = Experiment()
    after = override(before, {f"optim.{name}": value for name, value in changes.items()})
    for field in fields(OptimConfig):
        expected = changes.get(field.name, getattr(before.optim, field.name))
        assert getattr(after.optim, field.name) == expected
    assert override(after, {"optim": before.optim}) == before


@quick
@given(sides, sides, st.sampled_from([1, 3, 4]), st.sampled_from(["png", "tiff", "bmp", "ppm", "webp"]),
       st.integers(0, 99))  # fmt: skip
def test_lossless_formats_give_the_pixels_back(tmp_path, h, w, channels, suffix, seed):
    if channels == 4 and suffix in ("bmp", "ppm") or channels == 1 and suffix == "webp":
        channels = 3
    array = pixels(h, w, channels, seed)
    image = Image.fromarray(array[..., 0] if channels == 1 else array)
    image.save(tmp_path / f"x.{suffix}", **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(tmp_path / f"x.{suffix}", channels), array)


@quick
@given(sides, sides, st.integers(0, 99), st.integers(0, 2))
def test_masks_are_written_and_read_alike(tmp_path, h, w, seed, ignored):
    labels = np.random.default_rng(seed).choice(np.array([0, 1, 2] + [IGNORE] * ignored, np.uint8), (h, w))
    write_mask(tmp_path / "m.png", labels, voc_palette(3))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", SPEC), labels)


@quick
@given(st.binary(max_size=400), st.sampled_from(IMAGE_STARTS))
def test_any_bytes_are_an_image_or_a_sentence(tmp_path, content, start):
    path = tmp_path / "x.png"
    path.write_bytes(start + content)
    for read in (read_image, read_mask_values):
        try:
            assert read(path).size
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@quick
@given(st.binary(max_size=300), st.sampled_from(WEIGHT_STARTS))
def test_any_bytes_are_weights_or_a_sentence(tmp_path, content, start):
    path = tmp_path / "x.pth"
    path.write_bytes(start + content)
    try:
        assert isinstance(foreign.read(path), dict)
    except InputError as error:
        assert str(path) in str(error)


@quick
@given(st.integers(1, 5000), st.integers(1, 600), st.floats(0, 0.95))
def test_windows_cover_a_side_and_overlap(side, window, overlap):
    starts = window_starts(side, window, overlap)
    assert starts[0] == 0 and max(starts[-1], 0) + window >= side and starts == sorted(set(starts))
    assert len(starts) == 1 or starts[-1] + window == side
    steps = np.diff(starts)
    assert all(steps <= max(1, round(window * (1 - overlap))))


@quick
@given(sides, sides, st.integers(1, 60), st.integers(1, 60), st.floats(0.3, 3), st.floats(0, 0.5), st.integers(0, 99))
def test_a_training_sample_is_of_its_images_labels(h, w, crop_h, crop_w, scale, colour, seed):
    image, labels = pixels(h, w, 3, seed), pixels(h, w, 1, seed + 1)[..., 0] % 3
    config = DataConfig(crop=(crop_h, crop_w), scales=(scale,), colour=colour)
    x, y = augment(image, labels, np.random.default_rng(seed), config, (9, 9, 9))
    assert x.shape == (3, crop_h, crop_w) and x.dtype == y.dtype == torch.uint8 and y.shape == (crop_h, crop_w)
    assert set(y.unique().tolist()) <= {*np.unique(labels).tolist(), IGNORE}
    again = augment(image, labels, np.random.default_rng(seed), config, (9, 9, 9))
    assert torch.equal(x, again[0]) and torch.equal(y, again[1])


@quick
@given(st.integers(1, 6), sides, sides, st.integers(0, 99))
def test_metrics_are_shares_and_add_up(classes, h, w, seed):
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.choice(np.array([*range(classes), IGNORE], np.uint8), (h, w)))
    predicted = torch.from_numpy(rng.integers(0, classes, (h, w), dtype=np.uint8))
    whole, parts, perfect = (ConfusionMatrix([f"c{i}" for i in range(classes)]) for _ in range(3))
    whole.add(labels, predicted)
    for row in range(h):  # in pieces it is the same
        parts.add(labels[row], predicted[row])
    assert torch.equal(whole.counts, parts.counts) and int(whole.counts.sum()) == int((labels != IGNORE).sum())
    perfect.add(labels, torch.where(labels == IGNORE, 0, labels))
    if (labels != IGNORE).any():
        report, best = whole.report(), perfect.report()
        assert all(0 <= report[name] <= 1 for name in ("mIoU", "pAcc", "mAcc", "fIoU"))
        assert report["mIoU"] <= report["mAcc"] + 1e-9 and best["mIoU"] == best["pAcc"] == 1


@quick
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.booleans(),
       st.integers(0, 99))  # fmt: skip
def test_upsampled_labels_are_those_of_upsampled_logits(h, w, classes, high_h, high_w, align_corners, seed):
    low = torch.randn(1, classes, h, w, generator=torch.Generator().manual_seed(seed))
    size = (max(h, high_h), max(w, high_w))
    high = F.interpolate(low, size, mode="bilinear", align_corners=align_corners)
    labels = upsample_argmax(low, size, size, align_corners)
    chosen = high.gather(1, labels.long()[:, None])[:, 0]
    torch.testing.assert_close(chosen, high.max(1).values, rtol=0, atol=1e-5)  # ties may fall either way


@quick
@given(st.integers(1, 50), st.integers(1, 8), st.integers(1, 8), st.integers(1, 5), st.integers(0, 99))
def test_responsibilities_are_shares_and_bases_are_of_unit_length(count, channels, bases, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    x = 10 * torch.randn(2, channels, count, generator=generator)
    mu = F.normalize(torch.randn(1, channels, bases, generator=generator), dim=1)
    z, new = em_step(x, mu.expand(2, -1, -1))
    torch.testing.assert_close(z.sum(2), torch.ones(2, count))
    assert (z >= 0).all() and (new.norm(dim=1) < 1 + 1e-5).all()
    for fast, plain in zip(em_attention(x, mu, steps), em_attention_plain(x, mu, steps), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


@quick
@given(st.lists(st.floats(-10, 1e3) | st.just(math.nan), min_size=1, max_size=3))
def test_scales_are_taken_or_refused(scales):
    try:
        assert all(0.01 <= scale <= 100 for scale in EvalConfig(scales=tuple(scales)).scales)
    except InputError:
        assert not all(0.01 <= scale <= 100 for scale in scales)
