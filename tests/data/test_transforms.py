import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from emanet.config import DataConfig
from emanet.data.datasets import open_dataset
from emanet.data.loader import StepPositions, training_loader
from emanet.data.transforms import TrainingSamples, augment
from emanet.errors import InputError
from emanet.experiments import load_experiment, override

FILL = (124, 116, 104)
PLAIN = DataConfig(crop=(32, 48), scales=(1.0,), flip=0.0)


def ramp(h=64, w=96):
    """An image whose red is its row, whose green its column, and labels that say the same of 16-pixel tiles."""
    rows, columns = np.mgrid[:h, :w]
    labels = (rows // 16 * 6 + columns // 16).astype(np.uint8)
    return np.stack([rows, columns, 0 * rows], 2).astype(np.uint8), labels


def rng(seed=0):
    return np.random.default_rng(seed)


def test_scale_one_is_a_plain_crop():
    image, labels = ramp()
    pixels, target = augment(image, labels, rng(), PLAIN, FILL)
    top, left = int(pixels[0, 0, 0]), int(pixels[1, 0, 0])
    assert pixels.shape == (3, 32, 48) and pixels.dtype == target.dtype == torch.uint8
    assert np.array_equal(pixels.permute(1, 2, 0), image[top : top + 32, left : left + 48])
    assert np.array_equal(target, labels[top : top + 32, left : left + 48])


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.25, 2.0])
def test_image_and_labels_stay_together_at_every_scale(scale):
    image, labels = ramp(256, 256)
    config = override(PLAIN, {"scales": (scale,), "flip": 0.5})
    for seed in range(8):
        pixels, target = augment(image, labels // 16 * 16, rng(seed), config, FILL)
        assert target.max() < 255
        _, target = augment(image, (np.mgrid[:256, :256][0]).astype(np.uint8), rng(seed), config, FILL)
        inside = target < 250  # 255 is a row as well as the ignore label
        apart = (pixels[0].int() - target.int()).abs()[inside]
        assert apart.max() <= 1, "labels must be the image's own rows, to half a source pixel and rounding"


def test_small_images_are_padded_right_and_bottom():
    image, labels = ramp(20, 96)
    pixels, target = augment(image, labels, rng(), PLAIN, FILL)
    assert (target[20:] == 255).all() and (target[:20] != 255).all()
    assert (pixels[:, 20:] == torch.tensor(FILL).view(3, 1, 1)).all()


def test_flip_mirrors_both():
    image, labels = ramp(32, 48)
    pixels, target = augment(image, labels, rng(), override(PLAIN, {"flip": 1.0}), FILL)
    assert np.array_equal(pixels.permute(1, 2, 0), image[:, ::-1]) and np.array_equal(target, labels[:, ::-1])


def test_colour_changes_pixels_but_not_labels():
    image, labels = ramp(32, 48)
    pixels, target = augment(image, labels, rng(), override(PLAIN, {"colour": 0.5}), FILL)
    assert not np.array_equal(pixels.permute(1, 2, 0), image) and np.array_equal(target, labels)


def test_colour_is_refused_where_it_means_nothing():
    with pytest.raises(InputError, match="data.colour is for grey and RGB images, not for 4 channels"):
        TrainingSamples([0], override(PLAIN, {"colour": 0.5}), (0, 0, 0, 0))


def test_every_scale_of_the_list_is_drawn_and_a_range_is_filled():
    image, labels = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    widths = set()
    for seed in range(40):
        _, target = augment(image, labels, rng(seed), override(PLAIN, {"scales": (0.25, 0.5), "crop": (64, 64)}), FILL)
        widths.add(int((target[0] != 255).sum()))
    assert widths == {16, 32}
    config = override(PLAIN, {"scales": (0.25, 0.75), "crop": (64, 64), "continuous_scale": True})
    widths = {int((augment(image, labels, rng(s), config, FILL)[1][0] != 255).sum()) for s in range(40)}
    assert len(widths) > 10 and min(widths) >= 16 and max(widths) <= 48


def plainly(image, labels, rng, config, fill):
    """What augment computes, step by step, with nothing done for speed: in float64, rounded at the end."""
    scale = rng.uniform(*config.scales) if config.continuous_scale else rng.choice(config.scales)
    box, size = [], []
    for side, crop in zip(labels.shape, config.crop, strict=True):
        wanted = max(1, round(crop / scale))
        length = min(side, wanted)
        start = int(rng.integers(side - length + 1))
        box.append(slice(start, start + length))
        size.append(crop if wanted <= side else min(crop, max(1, round(length * scale))))
    image, labels = image[tuple(box)], labels[tuple(box)]
    rows, columns = (((np.arange(n) + 0.5) * (m / n)).astype(int) for n, m in zip(size, labels.shape, strict=True))
    if rng.random() < config.flip:
        image, columns = image[:, ::-1], columns[::-1]
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].double()
    pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)[0].round()
    all_pixels = torch.tensor(fill, dtype=torch.uint8).view(-1, 1, 1).repeat(1, *config.crop)
    all_labels = torch.full(config.crop, 255, dtype=torch.uint8)
    all_pixels[:, : size[0], : size[1]] = pixels
    all_labels[: size[0], : size[1]] = torch.from_numpy(labels[rows[:, None], columns])
    return all_pixels, all_labels


def same_as_plainly(image, labels, config, fill=FILL, seeds=12):
    for seed in range(seeds):
        ours, wanted = (way(image, labels, rng(seed), config, fill) for way in (augment, plainly))
        assert torch.equal(ours[1], wanted[1]), (image.shape, config, seed)
        # The integer kernel rounds twice, after the rows and after the columns.
        assert (ours[0].int() - wanted[0].int()).abs().max() <= 1, (image.shape, config, seed)


@pytest.mark.parametrize("crop", [(1, 1), (1, 9), (17, 5), (33, 65), (90, 70)])
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (23, 1), (31, 47), (64, 64)])
def test_samples_are_what_plain_steps_give(crop, size):
    image = rng().integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = rng(1).integers(0, 4, size, dtype=np.uint8)
    labels[labels == 3] = 255
    same_as_plainly(image, labels, DataConfig(crop=crop))
    same_as_plainly(image, labels, DataConfig(crop=crop, scales=(0.3, 2.7), continuous_scale=True), seeds=4)


@pytest.mark.parametrize("value", [0, 255])
def test_extreme_pixels_and_all_ignored_labels(value):
    image, labels = np.full((31, 47, 3), value, np.uint8), np.full((31, 47), 255, np.uint8)
    same_as_plainly(image, labels, DataConfig(crop=(33, 65)))
    image[::2, ::2] = 255 - value
    same_as_plainly(image, labels, DataConfig(crop=(33, 65)))


@pytest.mark.parametrize("layout", ["a part", "transposed"])
def test_any_layout(layout):
    image, labels = rng().integers(0, 256, (64, 94, 3), np.uint8), rng(1).integers(0, 4, (64, 94), np.uint8)
    image = {"a part": image[::2, 5::2], "transposed": image.transpose(1, 0, 2)}[layout]
    labels = {"a part": labels[::2, 5::2], "transposed": labels.T}[layout]
    same_as_plainly(image, labels, DataConfig(crop=(33, 65)))


def test_memory_that_nobody_wrote_to_is_not_read(monkeypatch):
    wanted = list(batches(0, 0))
    make, torch_make = np.empty, torch.empty
    monkeypatch.setattr(np, "empty", lambda *a, **k: np.full_like(make(*a, **k), 77))
    monkeypatch.setattr(torch, "empty", lambda *a, **k: torch_make(*a, **k).fill_(99))
    image = rng().integers(0, 256, (31, 47, 3), np.uint8)
    same_as_plainly(image, image[..., 0], DataConfig(crop=(33, 65)))
    for batch, other in zip(batches(1, 0), wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_any_number_of_channels(channels):
    image = rng().integers(0, 256, (40, 30, channels), dtype=np.uint8)
    same_as_plainly(image, image[..., 0], DataConfig(crop=(33, 33)), tuple(range(channels)))


def test_real_images(camvid):
    config = DataConfig(dataset="camvid", root=str(camvid))
    files = open_dataset(config, "val")
    for i in range(0, 101, 25):
        same_as_plainly(*files.read(i), config, seeds=3)


def test_the_source_is_neither_changed_nor_shared():
    image, labels = ramp(32, 48)
    kept = image.copy(), labels.copy()
    pixels, target = augment(image, labels, rng(), PLAIN, FILL)
    pixels.zero_(), target.zero_()
    assert np.array_equal(image, kept[0]) and np.array_equal(labels, kept[1])


def samples(config=None, seed=0):
    config = config or load_experiment("drawn").data
    return TrainingSamples(open_dataset(config, "train"), config, FILL, seed)


def test_an_epoch_sees_every_image_once():
    few = TrainingSamples(list(range(7)), PLAIN, FILL)
    orders = [[few.index(epoch * 7 + i) for i in range(7)] for epoch in range(3)]
    assert all(sorted(order) == list(range(7)) for order in orders) and orders[0] != orders[1]


def batches(workers, start, ranks=1):
    config = override(
        load_experiment("drawn"), {"data.workers": workers, "data.crop": (33, 33), "batch_size": 4, "steps": 3}
    )
    loaders = [training_loader(samples(config.data), config, start, rank, ranks) for rank in range(ranks)]
    for parts in zip(*loaders, strict=True):
        yield [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


def test_batches_depend_on_neither_workers_ranks_nor_where_a_run_resumed():
    whole = list(batches(0, 0))
    assert len(whole) == 3
    for other in (list(batches(2, 0)), list(batches(0, 0, ranks=2))):
        for a, b in itertools.product(range(3), range(3)):
            assert torch.equal(whole[a][b], other[a][b])
    (resumed,) = batches(0, 2)
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole[2], strict=True))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_stay_when_later_ones_take_their_place_in_shared_memory(workers):
    changes = {"data.workers": workers, "data.crop": (9, 17), "batch_size": 2, "steps": 21}
    config = override(load_experiment("drawn"), changes)
    train = samples(config.data)
    for step, (images, labels, positions) in enumerate(list(training_loader(train, config, 2, 0, 1)), 2):
        assert positions.tolist() == [2 * step, 2 * step + 1]
        assert images.is_contiguous(memory_format=torch.channels_last) and images.shape == (2, 3, 9, 17)
        for i in range(2):
            assert torch.equal(images[i], train[2 * step + i][0]) and torch.equal(labels[i], train[2 * step + i][1])


def test_another_seed_gives_other_samples():
    assert not torch.equal(samples(seed=0)[5][0], samples(seed=1)[5][0])


def test_positions_of_ranks_make_up_the_batch():
    ranks = [list(StepPositions(1, 3, 8, rank, 4)) for rank in range(4)]
    assert [p for share in ranks for p in share[0]] == list(range(8, 16))
    assert [p for share in ranks for p in share[1]] == list(range(16, 24))
