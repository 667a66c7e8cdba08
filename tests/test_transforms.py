import itertools

import numpy as np
import pytest
import torch

from emanet.config import DataConfig
from emanet.data.datasets import open_dataset
from emanet.data.transforms import StepPositions, TrainingSamples, augment, training_loader
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


def test_another_seed_gives_other_samples():
    assert not torch.equal(samples(seed=0)[5][0], samples(seed=1)[5][0])


def test_positions_of_ranks_make_up_the_batch():
    ranks = [list(StepPositions(1, 3, 8, rank, 4)) for rank in range(4)]
    assert [p for share in ranks for p in share[0]] == list(range(8, 16))
    assert [p for share in ranks for p in share[1]] == list(range(16, 24))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_arrives_as_its_sentence(scenes, workers):
    config = override(
        load_experiment("drawn"),
        {"data.dataset": str(scenes), "data.workers": workers, "data.crop": (33, 33), "batch_size": 6, "steps": 1},
    )
    (scenes / "train" / "images" / "0003.jpg").write_bytes(b"no picture")
    train = samples(config.data)
    (batch,) = training_loader(train, config, 0, 0, 1)
    assert isinstance(batch, InputError) and "0003.jpg" in str(batch) and "Traceback" not in str(batch)
