import itertools
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF

from emanet.config import IGNORE, DataConfig, DatasetSpec
from emanet.data.augmentations import _blurred, changed_looks, half_of_classes, held_pixel, paste, rotated, start_around
from emanet.data.datasets import open_dataset
from emanet.data.loader import training_loader
from emanet.data.pack import pack
from emanet.data.transforms import TrainingSamples, augment
from emanet.errors import InputError
from emanet.experiments import checked, load_experiment, override

FILL = (124, 116, 104)
SPEC = DatasetSpec(classes=("sky", "road", "car", "pole", "sign"))
CODES = np.array([[20, 200, 90], [160, 30, 60], [70, 120, 220], [230, 220, 40], [120, 90, 150]], np.uint8)
PLAIN = DataConfig(crop=(64, 64), scales=(0.75, 2.0), continuous_scale=True, spec=SPEC)
PASTE = {"paste": 1.0, "paste_classes": ("pole", "sign")}
OPTIONS = {
    "hue": {"hue": 40.0},
    "gamma": {"gamma": 0.5},
    "grey": {"grey": 1.0},
    "blur": {"blur": 1.0, "blur_sigma": (0.5, 0.6)},
    "rotate": {"rotate": 25.0},
    "class_crop": {"class_crop": 1.0},
    "paste": PASTE,
    "class_mix": {"class_mix": 1.0},
    "all": {"gamma": 0.2, "rotate": 25.0, "class_crop": 0.5, "class_mix": 0.5, **PASTE, "paste": 0.5},
}


class Memory:
    """A data set of arrays. Each class is a colour, so that a pixel tells its label."""

    def __init__(self, channels=3, count=5, size=(72, 90)):
        self.pairs = []
        for i in range(count):
            tiles = np.random.default_rng(i).integers(0, 5, (size[0] // 18 + 1, size[1] // 18 + 1))
            labels = np.kron(tiles, np.ones((18, 18), int))[: size[0], : size[1]].astype(np.uint8)
            codes = np.resize(CODES, (5, channels)) if channels != 3 else CODES
            self.pairs.append((codes[labels], labels))

    def __len__(self):
        return len(self.pairs)

    def name(self, index):
        return str(index)

    def read(self, index):
        return self.pairs[index]


def samples(changes, dataset=None, fill=FILL, seed=0):
    return TrainingSamples(dataset or Memory(), override(PLAIN, changes), fill, seed)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[:2], b[:2], strict=True))


def away_from_borders(labels):
    """Pixels with one label within 3 pixels, whose colours neither resampling nor the blur has mixed.

    Of a pasted class the outermost pixels have some of another colour, as in photographs: they stay where it is pasted
    beside its own class.
    """
    x = labels[None, None].float()
    most, least = F.max_pool2d(x, 7, 1, 3), -F.max_pool2d(-x, 7, 1, 3)
    return (most == least)[0, 0] & (labels != IGNORE)


@pytest.mark.parametrize("option", OPTIONS)
def test_pixels_and_labels_stay_together(option):
    changed, looks = samples(OPTIONS[option]), option in ("hue", "gamma", "grey", "blur", "all")
    different = 0
    for position in range(20):
        image, labels, _ = changed[position]
        assert image.dtype == labels.dtype == torch.uint8 and image.shape == (3, 64, 64) and labels.shape == (64, 64)
        assert image.permute(1, 2, 0).is_contiguous(), "the memory layout that loaders copy fast"
        sure = away_from_borders(labels)
        assert sure.float().mean() > 0.1
        codes, right = torch.from_numpy(CODES), []
        for label in labels[sure].unique():
            colours = image[:, sure & (labels == label)].T
            right.append((colours == (colours.mode(0).values if looks else codes[int(label)])).all(1))
        assert torch.cat(right).float().mean() > (0.9 if {"paste", "class_mix"} & OPTIONS[option].keys() else 0.999)
        different += not same((image, labels), samples({})[position])
    assert different >= 15


@pytest.mark.parametrize("option", ["hue", "gamma", "grey", "blur"])
def test_looks_leave_the_labels_alone(option):
    changed, plain = samples(OPTIONS[option]), samples({})
    for position in range(5):
        assert torch.equal(changed[position][1], plain[position][1])
        assert not torch.equal(changed[position][0], plain[position][0])


@pytest.mark.parametrize("option", ["grey", "blur", "class_crop", "paste", "class_mix"])
def test_a_sample_that_chance_passes_over_is_the_plain_one(option):
    changed = samples({**OPTIONS[option], option: 1e-12})
    assert all(same(changed[position], samples({})[position]) for position in range(8))


@pytest.mark.parametrize("option", OPTIONS)
def test_samples_depend_on_seed_and_position_alone(option):
    first, again = samples(OPTIONS[option]), samples(OPTIONS[option])
    for position in (7, 3, 11):
        again[position]
    assert all(same(first[position], again[position]) for position in (3, 7, 11))
    assert not same(first[3], samples(OPTIONS[option], seed=1)[3])


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_any_number_of_channels(channels):
    options = {**OPTIONS["all"], **OPTIONS["blur"]}
    image, labels, _ = samples(options, Memory(channels), [9] * channels)[0]
    assert image.shape == (channels, 64, 64) and labels.unique().numel() > 1
    for name in ("hue", "grey"):
        with pytest.raises(InputError, match=f"data.{name} is for RGB images, not for {channels} channels"):
            samples(OPTIONS[name], Memory(channels), [9] * channels)


def test_samples_of_one_image_of_one_class_and_of_none():
    lone = Memory(count=1)
    assert same(samples({"class_mix": 1.0}, lone)[0], samples({}, lone)[0]), "the other image is the same one"
    assert not same(samples(PASTE, lone)[0], samples({}, lone)[0]), "but its crop is another, around a pole or sign"
    blank = Memory()
    blank.pairs = [(image, np.full_like(labels, IGNORE)) for image, labels in blank.pairs]
    everything = samples({**OPTIONS["all"], "class_mix": 1.0, "class_crop": 1.0, "paste": 1.0}, blank)
    assert (everything[0][1] == IGNORE).all()


def test_other_images_may_have_any_size():
    mixed = Memory()
    mixed.pairs[1::2] = Memory(size=(20, 130)).pairs[1::2]
    for position in range(10):
        image, labels, _ = samples(OPTIONS["paste"] | {"class_mix": 1.0}, mixed)[position]
        sure = away_from_borders(labels)
        assert (image.permute(1, 2, 0)[sure].numpy() == CODES[labels[sure].numpy()]).mean() > 0.9


def test_packed_splits_drawn_scenes_and_workers_give_the_same(scenes, tmp_path):
    options = {**OPTIONS["all"], "hue": 20.0, "grey": 0.2, "blur": 0.5, "paste_classes": ("ball", "tree")}
    changes = {f"data.{name}": value for name, value in options.items()} | {"data.crop": (33, 33)}
    experiment = override(load_experiment("drawn"), changes | {"batch_size": 4, "steps": 2})
    config = override(experiment, {"data.dataset": str(scenes), "data.root": str(scenes)}).data
    files = open_dataset(config, "train")
    config = override(config, {"spec": files.spec})
    pack(files.pairs, files.spec, "train", tmp_path / "packed")
    packed = open_dataset(override(config, {"root": str(tmp_path / "packed")}), "train")
    plain, shards = (TrainingSamples(dataset, config, FILL) for dataset in (files, packed))
    assert all(same(plain[position], shards[position]) for position in range(6))

    data = override(experiment.data, {"spec": files.spec})
    drawn = TrainingSamples(open_dataset(data, "train"), data, FILL)
    batches = [list(training_loader(drawn, override(experiment, {"data.workers": n}), 0, 0, 1)) for n in (0, 2)]
    for one, other in zip(*batches, strict=True):
        assert same(one, other)


# Rotation.


def parts(degrees, crop=(48, 40), size=(48, 40), flip=False, box=(slice(6, 30), slice(10, 30))):
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (60, 50, 3), np.uint8), rng.integers(0, 5, (60, 50), np.uint8)
    return image, labels, rotated(image, labels, box, size, crop, degrees, flip)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(slice(6, 30), slice(10, 30)), (slice(0, 60), slice(0, 50))])
def test_no_angle_is_a_plain_resize(flip, box):
    image, labels, (pixels, target, outside) = parts(0.0, box=box, flip=flip)
    scale = 48 / (box[0].stop - box[0].start)
    config = override(PLAIN, {"crop": (48, 40), "scales": (scale, scale), "flip": float(flip)})
    part = np.ascontiguousarray(image[*box]), labels[*box]
    wanted = augment(*part, np.random.default_rng(0), config, FILL)
    assert not outside.any() and (target == wanted[1].numpy()).mean() > 0.99  # ties may fall to either side
    inner = (slice(None), slice(2, -2), slice(2, -2))  # at the edge `rotated` sees the image beyond the part
    assert (pixels[inner].int() - wanted[0][inner].int()).abs().max() <= 1


def test_a_right_angle_turns_the_part_about_its_middle():
    square = (slice(10, 40), slice(10, 40))
    image, labels, (pixels, target, outside) = parts(90.0, (30, 30), (30, 30), box=square)
    assert not outside.any()
    turned = [np.rot90(x[*square], k) for x in (labels, image) for k in (1, 3)]
    way = [np.mean(target == turned[k]) for k in (0, 1)]
    assert max(way) > 0.99
    wanted = turned[2 + int(np.argmax(way))].astype(int)
    assert np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 1


def test_corners_show_more_of_the_image_and_are_ignored_only_outside_of_it():
    assert not parts(20.0, (20, 20), (20, 20), box=(slice(20, 40), slice(15, 35)))[2][2].any()
    image, labels, (_, target, outside) = parts(20.0, (60, 50), (60, 50), box=(slice(0, 60), slice(0, 50)))
    assert 0.05 < outside.mean() < 0.4 and outside[0, 0] and outside[-1, -1] and not outside[30, 25]
    assert (target[outside] == IGNORE).all() and (target[~outside] != IGNORE).all()
    config = override(PLAIN, {"crop": (60, 50), "scales": (1.0, 1.0), "rotate": 30.0})
    filled = 0
    for seed in range(5):
        pixels, target = augment(image, labels, np.random.default_rng(seed), config, FILL)
        assert (pixels.permute(1, 2, 0)[target == IGNORE] == torch.tensor(FILL)).all()
        filled += int((target == IGNORE).sum())
        assert pixels.permute(1, 2, 0).is_contiguous()
    assert filled


def test_angles_are_drawn_from_both_sides():
    image = np.zeros((65, 65, 3), np.uint8)
    rows, columns = np.mgrid[:65, :65] - 32
    labels = ((rows * 1000 > columns) * 1).astype(np.uint8)  # a level border through the middle
    config = override(PLAIN, {"crop": (65, 65), "scales": (1.0, 1.0), "rotate": 20.0, "flip": 0.0})
    angles = []
    for seed in range(40):
        target = augment(image, labels, np.random.default_rng(seed), config, FILL)[1].numpy()
        left, right = (np.flatnonzero(target[:, column] == 1)[0] for column in (16, 48))
        angles.append(np.degrees(np.arctan2(right - left, 32)))
    assert -24 < min(angles) < -12 and 12 < max(angles) < 24  # to about 2 pixels in 32


# Crops around a class.


def test_each_class_and_then_each_of_its_pixels_is_drawn_equally_often():
    labels = np.full((6, 7), 255, np.uint8)
    labels[2, 1:5], labels[4, 6] = 3, 9  # four pixels of one class, one of another
    places = (np.arange(16) + 0.5) / 16
    drawn = Counter(held_pixel(labels, (), place) for place in itertools.product(places, places))
    assert drawn == {(2, 1): 32, (2, 2): 32, (2, 3): 32, (2, 4): 32, (4, 6): 128}
    assert {held_pixel(labels, (9, 0, 9), place) for place in itertools.product(places, places)} == {(4, 6)}
    assert held_pixel(labels, (0, 1), (0.5, 0.5)) is None
    assert held_pixel(np.full((3, 3), 255, np.uint8), (), (0.5, 0.5)) is None


@pytest.mark.parametrize("side, length", [(1, 1), (9, 1), (9, 4), (9, 9)])
def test_a_crop_is_placed_uniformly_over_what_holds_the_pixel(side, length):
    for pixel in range(side):
        fits = [start for start in range(side - length + 1) if start <= pixel < start + length]
        places = (np.arange(5 * len(fits)) + 0.5) / (5 * len(fits))
        assert Counter(start_around(pixel, length, side, place) for place in places) == dict.fromkeys(fits, 5)
        assert start_around(pixel, length, side, np.nextafter(1, 0)) == fits[-1]


def test_class_balanced_crops_hold_the_rare_class_half_of_the_time():
    image, labels = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    labels[50, 7] = 1
    config = override(PLAIN, {"crop": (8, 8), "scales": (1.0, 1.0), "class_crop": 1.0})

    def shown(config, *around):
        rngs = map(np.random.default_rng, range(200))
        return sum(bool((augment(image, labels, rng, config, FILL, *around)[1] == 1).any()) for rng in rngs)

    assert shown(override(config, {"class_crop": 0.0})) < 12
    assert 80 < shown(config) < 125
    assert 35 < shown(override(config, {"class_crop": 0.5})) < 70
    assert shown(config, (1,)) == 200


# Looks.


def looked(image, changes):
    config = override(PLAIN, {"crop": image.shape[:2], "scales": (1.0, 1.0), "flip": 0.0, **changes})
    labels = np.zeros(image.shape[:2], np.uint8)
    return augment(image, labels, np.random.default_rng(0), config, FILL)[0]


def test_hue_keeps_greys_and_the_mean_of_the_channels():
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
    assert np.array_equal(looked(grey, {"hue": 180.0}).permute(1, 2, 0), grey)
    image = np.random.default_rng(0).integers(100, 156, (16, 16, 3), np.uint8)
    turned = looked(image, {"hue": 60.0}).permute(1, 2, 0)
    assert np.abs(turned.numpy().mean(2) - image.mean(2)).max() <= 0.67 and not np.array_equal(turned, image)


def test_hue_turns_red_by_a_third_into_green_or_blue(monkeypatch):
    red = np.full((4, 4, 3), (200, 0, 0), np.uint8)
    for degrees, wanted in ((120.0, (0, 200, 0)), (-120.0, (0, 0, 200))):

        class Drawn:
            def uniform(self, low, high, degrees=degrees):
                assert (low, high) == (-150.0, 150.0)
                return degrees

        turned = changed_looks(torch.from_numpy(red).permute(2, 0, 1), (), Drawn(), override(PLAIN, {"hue": 150.0}))
        assert turned[:, 0, 0].tolist() == list(wanted)


def test_gamma_keeps_black_white_and_the_order():
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, 2)
    curve = looked(ramp, {"gamma": 1.0})[0].flatten().int()
    assert curve[0] == 0 and curve[255] == 255 and (curve.diff() >= 0).all() and (curve != torch.arange(256)).any()


def test_grey_samples_have_three_equal_channels():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    grey = looked(image, {"grey": 1.0})
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2]) and grey.shape == (3, 16, 16)
    changes = {"grey": 1.0, "rotate": 45.0, "scales": (0.1, 0.1), "crop": (16, 16)}
    pixels, labels = augment(image, image[..., 0], np.random.default_rng(0), override(PLAIN, changes), FILL)
    assert (pixels.permute(1, 2, 0)[labels == IGNORE] == torch.tensor(FILL)).all(), "the fill stays as it is"


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_torchvisions_away_from_the_edge(sigma):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).permute(2, 0, 1)
    reach = int(np.ceil(3 * sigma))
    wanted = TF.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2)
    inner = (slice(None), slice(reach, -reach), slice(reach, -reach))
    assert (_blurred(image, sigma)[inner].int() - wanted[inner].int()).abs().max() <= 1
    flat = torch.full((3, 5, 6), 77, dtype=torch.uint8)
    assert torch.equal(_blurred(flat, sigma), flat)


# Parts of other images.


def test_paste_takes_exactly_the_pixels_of_the_classes():
    rng = np.random.default_rng(0)
    (image, labels), (other, theirs) = (
        (
            torch.from_numpy(rng.integers(0, 256, (9, 7, 4), np.uint8)).permute(2, 0, 1),
            torch.from_numpy(rng.choice(np.uint8([0, 1, 2, 255]), (9, 7))),
        )
        for _ in range(2)
    )
    before = image.clone(), labels.clone()
    paste(image, labels, other, theirs, [2, 0])
    over = (theirs == 2) | (theirs == 0)
    assert torch.equal(labels, torch.where(over, theirs, before[1]))
    assert torch.equal(image, torch.where(over, other, before[0]))


def test_named_classes_of_another_image_are_pasted():
    data, pasted = Memory(), samples(PASTE)
    for position in range(10):
        plain, mixed = samples({})[position][1], pasted[position][1]
        changed = plain != mixed
        assert set(mixed[changed].tolist()) <= {3, 4}
        assert set(mixed.unique().tolist()) & {3, 4}, "the other image's crop is placed to hold one"
    assert sum(int((pasted[p][1] == 3).sum()) for p in range(10)) > sum(
        int((samples({})[p][1] == 3).sum()) for p in range(10)
    )
    assert np.array_equal(data.read(0)[0], pasted.dataset.read(0)[0]), "the data set is not written to"


def test_the_chances_are_those_stated():
    changed = Counter()
    for name in ("paste", "class_mix"):
        some_of_them, plain = samples({**OPTIONS[name], name: 0.3}), samples({})
        changed[name] = sum(not same(some_of_them[position], plain[position]) for position in range(150))
    assert 30 <= changed["paste"] <= 60 and 30 <= changed["class_mix"] <= 60


def test_half_of_the_classes_rounded_up():
    labels = torch.tensor([[0, 7, 255], [3, 3, 9]], dtype=torch.uint8)
    drawn = [half_of_classes(labels, np.random.default_rng(seed)) for seed in range(60)]
    assert {len(classes) for classes in drawn} == {2} and all(len(set(classes)) == 2 for classes in drawn)
    assert set(Counter(itertools.chain(*drawn))) == {0, 3, 7, 9}
    assert half_of_classes(torch.full((2, 2), 5, dtype=torch.uint8), np.random.default_rng(0)) == [5]
    assert half_of_classes(torch.full((2, 2), 255, dtype=torch.uint8), np.random.default_rng(0)) == []


def test_unknown_and_missing_names_are_refused_when_the_data_set_is_opened():
    with pytest.raises(InputError, match="data.paste_classes has 'poles', which is not a class; did you mean 'pole'?"):
        samples({"paste_classes": ("sky", "poles"), "paste": 0.1})
    with pytest.raises(InputError, match="data.paste is on; name in data.paste_classes what to paste: sky, road"):
        samples({"paste": 0.1})


@pytest.mark.parametrize(
    "name, value",
    [("hue", 181.0), ("gamma", -0.1), ("grey", 1.1), ("blur", -1.0), ("blur_sigma", (2.0, 1.0)),
     ("blur_sigma", (0.0, 1.0)), ("rotate", -5.0), ("class_crop", 2.0), ("paste", 1.5), ("class_mix", -0.5)],
)  # fmt: skip
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(InputError, match=f"^{name} is .*, but must be "):
        override(DataConfig(), {name: value})


@pytest.mark.parametrize("name, value", [("blur_sigma", (1.0, 2.0)), ("paste_classes", ("sky",))])
def test_settings_of_an_option_that_is_off_are_refused(name, value):
    with pytest.raises(InputError, match=f"data.{name}"):
        checked(override(load_experiment("drawn"), {f"data.{name}": value}))


def test_real_images(camvid):
    config = DataConfig(dataset="camvid", root=str(camvid), crop=(160, 160))
    dataset = open_dataset(config, "train")
    config = override(config, {**OPTIONS["all"], "paste_classes": ("pole", "sign_symbol"), "spec": dataset.spec})
    mixed = TrainingSamples(dataset, config, FILL)
    for position in range(4):
        image, labels, _ = mixed[position]
        assert image.shape == (3, 160, 160) and set(labels.unique().tolist()) <= {*range(11), IGNORE}
