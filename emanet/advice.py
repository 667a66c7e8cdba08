"""What is said before the first step: settings that contradict each other or the data, in one sentence each.

Said in every run, not only in the first. What cannot be meant is refused elsewhere (config.py, data/description.py);
here are settings that work, but seldom as the user thinks.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from .config import Experiment
from .data.check.overlap import shared_images
from .data.check.quick import Checked, check_labels
from .data.datasets import Dataset, spec_of
from .errors import InputError, some
from .inference import grid_size
from .model import EMANet

HIGHEST_LR = {"sgd": 1.0, "adamw": 0.05}  # several times what any published recipe uses
LOWEST_LR = 1e-7
NOT_CLASSES = {"void", "ignore", "ignored", "unlabeled", "unlabelled", "dontcare"}


def check_data(config: Experiment, train_set: Any, val_set: Any, tell: Callable[[str], object]) -> None:
    """Check both data sets, as far as they are files, and tell what is suspicious of them or does not fit the settings.

    config: resolved. Raises InputError for what quick.check refuses, for a first image that the model does not take,
    and for splits of different names that have the same images.
    """
    files = [dataset for dataset in (train_set, val_set) if isinstance(dataset, Dataset)]
    same = len(files) == 2 and train_set.pairs == val_set.pairs
    checked = [check_labels(dataset, tell) for dataset in files[: 1 if same else 2]]
    for dataset in files:
        dataset.read(0)  # headers do not tell whether its bands and values are what the model takes
    notes: list[str] = []
    if len(files) == 2:
        notes += _about_splits(config, train_set, val_set, checked[0], checked[-1])
    if isinstance(train_set, Dataset):
        notes += _about_training(config, len(train_set), checked[0])
    for text in notes:
        tell(f"note: {text}")


def _about_splits(
    config: Experiment, train_set: Dataset, val_set: Dataset, train: Checked, val: Checked
) -> Iterator[str]:
    data, classes = config.data, spec_of(config.data).classes
    unseen = [name for name, a, b in zip(classes, train.pixels, val.pixels, strict=False) if b and not a]
    if unseen:
        yield f"validation has pixels of {some(unseen)}, which training has not, so they cannot be learned"
    shared = shared_images(train_set, val_set, train.labels, val.labels)
    meaning = "so the score does not tell how well new images are predicted"
    if data.train_split == data.val_split:
        yield f"data.val_split is the training split, {data.val_split}, {meaning}"
    elif len(shared) == len(val_set):
        raise InputError(
            f"all {len(shared)} images of {data.val_split!r} are images of {data.train_split!r} as well, {meaning}; "
            'give each split its own files (by "{split}" in the paths of dataset.json, or by split_list), or set '
            f"data.val_split to {data.train_split!r} to validate on the training images"
        )
    elif shared:
        count = f"{len(shared)} of the {len(val_set)} images for validation are also for training"
        yield f"{count}, {meaning}: {some(shared, 3)}"


def _about_training(config: Experiment, images: int, train: Checked) -> Iterator[str]:
    data, classes, stride = config.data, spec_of(config.data).classes, config.model.backbone.output_stride
    reached = [round(side * max(data.scales)) for side in train.largest]
    for name, crop in data.crops.items():
        if any(wanted > side for wanted, side in zip(crop, reached, strict=True)):
            size = f"{_sides(train.largest)} at most, {_sides(reached)} at the largest of data.scales"
            yield f"{name} {_sides(crop)} is larger than the images ({size}), so part of every crop is padding"
    for name, scales in (("data.scales", data.scales), ("eval.scales", config.eval.scales)):
        least = min(train.smallest) * min(scales)
        if least < stride:
            text = f"{name} has {min(scales):g}, at which the smallest images have {least:.0f} pixels on a side"
            yield f"{text}, less than the model's stride of {stride}"
    seen = config.steps * config.batch_size
    if seen < images:
        text = f"steps {config.steps} x batch_size {config.batch_size} is {seen} samples for {images} images"
        yield f"{text}, so some are never seen; steps are optimiser steps, not epochs"
    weights, pixels = np.array(config.loss.class_weights), train.pixels[: len(classes)]
    nowhere = [name for name, count in zip(classes, pixels, strict=True) if name in data.paste_classes and not count]
    if nowhere:
        yield f"data.paste_classes has {some(nowhere)}, which no training mask shows, so there is nothing to paste"
    if len(weights) == len(classes) and pixels.all() and weights.min() < weights.max():
        most, least_of_all = int(pixels.argmax()), int(pixels.argmin())
        if weights[most] == weights.max() and weights[least_of_all] == weights.min():
            text = f"gives {classes[most]}, the most frequent class, the largest weight"
            text += f" and {classes[least_of_all]}, the rarest, the smallest"
            yield f"loss.class_weights {text}; is their order that of the classes, {some(classes, 3)}?"


def about_settings(config: Experiment, net: EMANet) -> Iterator[str]:
    """What settings make of each other, whatever the data. config: resolved; net: the model built by it."""
    crop, optim, loss = config.data.crop, config.optim, config.loss
    classes = spec_of(config.data).classes
    for name, size in config.data.crops.items():
        yield from _about_grid(name, size, net)
    if config.model.backbone.frozen and not config.model.backbone.pretrained and not config.init_from:
        yield "model.backbone.frozen keeps the backbone's random weights; give it weights by model.backbone.pretrained"
    if config.deterministic and all(p.is_cpu for p in net.parameters()):
        yield (
            "deterministic changes little on the CPU, where runs with the same number of threads on one kind of "
            "processor are equal to the bit anyway; it adds that torch refuses operations that are not"
        )
    changing = ["data.scales"] if len(set(config.data.scales)) > 1 else []
    changing += [f"data.{name}" for name in ("colour", "hue", "gamma", "rotate") if getattr(config.data, name)]
    if config.model.backbone.keep and changing:
        yield f"model.backbone.keep keeps nothing that comes again, as every image is changed by {some(changing)}"
    if optim.head_lr_scale == 0:
        yield "optim.head_lr_scale is 0, so the head keeps its initial weights"
    if optim.warmup_steps >= config.steps:
        text = f"optim.warmup_steps {optim.warmup_steps} is not below steps {config.steps}"
        yield f"{text}, so the learning rate never reaches optim.lr {optim.lr:g}"
    if not LOWEST_LR <= optim.lr <= HIGHEST_LR[optim.name]:
        usual = {"sgd": "0.001 to 0.1", "adamw": "0.00005 to 0.005"}[optim.name]
        yield f"optim.lr {optim.lr:g} is far from what works with {optim.name}, usually {usual}"
    pixels = crop[0] * crop[1]
    if "ohem" in dict(loss.terms) and loss.ohem_min_kept >= pixels:
        text = f"loss.ohem_min_kept {loss.ohem_min_kept} is not below the {pixels} pixels of a crop"
        yield f"{text}, so ohem leaves out nothing; {pixels // 16} keeps at least a sixteenth"
    for name, flips, off in (("data.flip", config.data.flip, 0), ("eval.flip", config.eval.flip, False)):
        if flips and (sides := _exchanged(classes)):
            yield f"{name} is on, and flipping an image left to right exchanges {some(sides)}; set {name} {off}"
    for name in classes:
        if re.sub(r"[\W_]", "", name).casefold() in NOT_CLASSES:
            text = f"class {name!r} is learned and scored like any other"
            yield f'{text}; to ignore it, leave it out of "classes" and map its mask value to 255 in "label_map"'


def about_start(config: Experiment, source: Experiment) -> Iterator[str]:
    """Where the weights of init_from were made for other settings. source: the experiment of that run."""
    own, other = config.data.spec, source.data.spec
    if own and other and own.classes != other.classes and len(own.classes) == len(other.classes):
        names = zip(own.classes, other.classes, strict=True)
        where, (name, was) = next((label, pair) for label, pair in enumerate(names) if pair[0] != pair[1])
        yield f"class {where} is {name!r}, but {was!r} in {config.init_from}, whose classifier is kept nevertheless"
    for name in ("mean", "std", "align_corners"):
        value, before = getattr(config.model, name), getattr(source.model, name)
        if value != before:
            texts = [" ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in (value, before)]
            yield f"model.{name} is {texts[0]}, but {config.init_from} was trained with {texts[1]}"


def about_ranks(config: Experiment, net: EMANet, before: int, now: int) -> str:
    """What a run that goes on with another number of ranks keeps, and what it cannot."""
    reasons = []
    if not config.sync_bn and any(isinstance(m, nn.modules.batchnorm._NormBase) for m in net.modules()):
        reasons.append("BatchNorm sees one process's images, with sync_bn off")
    if "ohem" in dict(config.loss.terms):
        reasons.append("ohem chooses among one process's images")
    draws = {
        type(module).__name__
        for module in net.modules()
        if type(module).__name__ == "DropPath"
        and module.drop_prob
        or isinstance(module, nn.modules.dropout._DropoutNd)
        and module.p
        and not isinstance(module, nn.Dropout2d)
    }
    reasons += [f"each process draws what the backbone's {name} drops" for name in sorted(draws)]
    said = f"started with {before} process{'es' * (before > 1)}, goes on with {now}: the same images in the same order"
    if not reasons:
        return f"{said}, and the same result to rounding"
    return f"note: {said}, but the result will differ, because {' and '.join(reasons)}"


def _about_grid(name: str, crop: tuple[int, int], net: EMANet) -> Iterator[str]:
    """Where logits spread over a crop come to lie elsewhere than the backbone computed them; see grid_size."""
    stride = net.stride
    spread = net.padded_size(crop)
    above = grid_size(net, spread)
    if above == spread:
        return
    off = max((side - 1) % stride if net.align_corners else -side % stride for side in spread)
    what = f"{name} {_sides(crop)}: the model spreads its logits up to {off} pixels off, at the edges of a crop"
    if grid_size(net, net.padded_size(above)) != net.padded_size(above):  # the backbone pads to another grid
        why = f"this backbone pads images to a multiple of {net.backbone.divisor}"
        yield f"{what}, because {why}; set model.align_corners False"
        return
    below = [side if side == own else side - stride for side, own in zip(above, spread, strict=True)]
    sizes = " or ".join(_sides(size) for size in (below, above) if min(size) > 1)
    kind = "a multiple of the stride + 1 with" if net.align_corners else "a multiple of the stride without"
    yield f"{what}, as its sides should be {kind} model.align_corners; {sizes} fits"


def _exchanged(classes: Sequence[str]) -> list[str]:
    """The classes that become another one in a flipped image: left hand and right hand."""
    other = {"left": "right", "right": "left"}
    swapped = [re.sub("left|right", lambda match: other[match[0]], name.casefold()) for name in classes]
    plain = {name.casefold() for name in classes}
    return [name for name, swap in zip(classes, swapped, strict=True) if swap in plain - {name.casefold()}]


def _sides(size: Sequence[int]) -> str:
    """(h, w) as it is written for a setting."""
    return " ".join(map(str, size))
