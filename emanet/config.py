"""Every setting of an experiment, as frozen dataclasses. How they are read and written: experiments.py.

This file imports neither torch nor the command line. Derived values are properties; nothing is stored twice. What a
setting is for stands in its docstring; who uses it and who may change it stands in its `setting(...)`.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from .errors import InputError, short

IGNORE = 255  # the value of ignored pixels in every label tensor, whatever value the mask files use
MOST = 1 << 16  # most channels, bases, or pixels of a side; beyond it torch fails with long errors of its own
LARGE = 1 << 53  # for every other number
# Arguments of timm.create_model that other settings give, or that would read a file.
NOT_OPTIONS = frozenset("pretrained checkpoint_path cache_dir features_only in_chans output_stride".split())
EM_HEADS = ("ema", "ema_fusion")  # the heads that run EM attention
Value = TypeVar("Value")


def setting(
    default: Value,
    *,
    used_by: Iterable[str] = (),
    unused_while: Mapping[str, tuple[object, ...]] | None = None,
    resume: bool = False,
    ranks: bool = False,
) -> Value:
    """A field with this default, and what experiments.py must know about it.

    used_by: values of the field `name` (heads, optimisers) or names in `terms` (losses) beside it that use the setting;
    empty: all.
    unused_while: fields with some of their values; nothing uses the setting while each field has one of these values.
    Fields are looked up in the same dataclass first, then in those around it.
    resume: a resumed run may change it. ranks: it may differ between the ranks of one run. On a field that holds
    another dataclass, both count for all settings in it.
    """
    marks = {"used_by": tuple(used_by), "unused_while": dict(unused_while or {}), "resume": resume, "ranks": ranks}
    return field(default=default, metadata=marks)


def expand_home(config: Any, *names: str) -> None:
    """A leading ~ in these settings, which are paths, becomes the home folder: from a file, no shell has done it."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str):
            object.__setattr__(config, name, os.path.expanduser(value))


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    name: str = "resnet101s"
    """A timm model that gives feature maps. resnet50s/101s/152s have the original's 64-64-128 stem."""
    pretrained: bool | str = True
    """True: timm's hub weights. A path: that file, every key of it. False: random."""
    output_stride: int = 8
    """8, 16 or 32: image pixels per pixel of the last feature map; later stages are dilated instead of strided. 14 is
    that of vision transformers with patches of 14 pixels."""
    multi_grid: tuple[int, ...] = ()
    """Factors on the dilations of a ResNet's last stage, one per block; 1 2 4 in the original. Empty: none."""
    dilation: Literal["contract", "uniform"] = setting("contract", unused_while={"output_stride": (14, 32)})
    """How the first block of a dilated stage is dilated. contract: by half of the stage's dilation, as in every other
    implementation; uniform: by all of it, and a ResNet-D's shortcut is averaged only where it strides, as in PaddleSeg.
    For ResNets."""
    in_channels: int = 3
    frozen: bool = False
    """Never change the weights and the BatchNorm statistics that were loaded."""
    keep: float = setting(0.0, unused_while={"frozen": (False,)})
    """GiB of memory in which training keeps a frozen backbone's maps of images that come again: in the data's own size
    and colours, not as random crops."""
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Further arguments of timm.create_model."""

    def __post_init__(self):
        expand_home(self, "pretrained")
        require_numbers(self)
        require(self.output_stride in (8, 14, 16, 32), "output_stride", self.output_stride, "8, 14, 16 or 32")
        require(self.keep >= 0, "keep", self.keep, "at least 0")
        require(1 <= self.in_channels <= MOST, "in_channels", self.in_channels, f"1 to {MOST}")
        require(all(1 <= k <= MOST for k in self.multi_grid), "multi_grid", self.multi_grid, f"numbers of 1 to {MOST}")
        taken = sorted(NOT_OPTIONS.intersection(self.options))
        if taken:
            raise InputError(f"options has {taken[0]!r}, which other settings decide; leave it out")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    name: str = "ema"
    """A name of emanet.heads.HEADS."""
    channels: int = setting(512, unused_while={"name": ("deeplabv3", "deeplabv3plus", "gcn")})
    """Width of the head, 512 in each head's own paper. In the EMA head it is the width of the EM attention, 512 or 256
    in the paper; in refinenet that of the coarsest stage."""
    num_bases: int = setting(64, used_by=EM_HEADS)
    em_steps: int = setting(3, used_by=EM_HEADS)
    gradient: Literal["detached", "last", "unrolled"] = setting("detached", used_by=EM_HEADS)
    """Which EM iterations carry gradient: none (released code), the last, all. See emanet/ops/README.md."""
    eps: float = setting(1e-6, used_by=EM_HEADS)
    """Added in both divisions of the M-step; 1e-12 gives what mmsegmentation, sssegmentation and PaddleSeg compute."""
    bases_keep: float = setting(0.9, used_by=EM_HEADS)
    """bases = bases_keep * bases + (1 - bases_keep) * mean of the batch's bases, in training only."""
    renormalise: bool = setting(False, used_by=EM_HEADS)
    """Scale the batch mean to unit columns before averaging it in, as mmsegmentation and PaddleSeg do."""
    relu_out: bool = setting(False, used_by=EM_HEADS)
    """One more ReLU after the unit's second 1x1 convolution, as in PaddleSeg."""
    backend: Literal["auto", "plain", "triton"] = setting(
        "auto", used_by=EM_HEADS, unused_while={"device": ("cpu",)}, resume=True
    )
    """Code that runs the EM attention, equal but for rounding. plain: PyTorch's own operations; triton: fused kernels,
    on CUDA, for bf16 and fp16 without gradient; auto: the fastest that has been measured on this kind of GPU. The CPU
    has its own fast form."""
    fc1_channels: int = setting(256, used_by=("ema", "ema_fusion", "nonlocal"))
    """Channels of the 3x3 convolution before the classifier; 0 leaves it out, as in the paper's Table 1, and
    ema_fusion's detail path with it."""
    concat: bool = setting(False, used_by=("ema",))
    """Join the backbone's last map to fc1's output by a 3x3 convolution, as mmsegmentation and PaddleSeg do."""
    dropout: float = setting(0.1, unused_while={"name": ("gcn",), "aux_head": (False,)})
    """Share of whole channels dropped before the classifier, and before that of the auxiliary head."""
    aspp_channels: int = setting(256, used_by=("deeplabv3", "deeplabv3plus"))
    """Width of the pyramid (ASPP), and of deeplabv3plus's decoder behind it; 256 in the papers."""
    rates: tuple[int, ...] = setting((12, 24, 36), used_by=("deeplabv3", "deeplabv3plus"))
    """Dilations of the pyramid's 3x3 convolutions at output stride 8; 6 12 18 suit 16."""
    decoder_channels: int = setting(256, used_by=("refinenet",))
    """Width of the stages that are finer than the coarsest; 256 in the paper."""
    bins: tuple[int, ...] = setting((1, 2, 3, 6), used_by=("pspnet",))
    """Each level of the pyramid averages over bins x bins parts of the image."""
    window: tuple[int, int] = setting((33, 33), used_by=("psanet",))
    """A pixel attends to others fewer than h rows and w columns away, on a map of half the size. 33 sees all of a
    513-pixel crop at output stride 8."""

    def __post_init__(self):
        require_numbers(self)
        require(1 <= self.num_bases <= MOST, "num_bases", self.num_bases, f"1 to {MOST}")
        require(1 <= self.em_steps <= 1000, "em_steps", self.em_steps, "1 to 1000")
        require(self.eps > 0, "eps", self.eps, "above 0")
        require(0 <= self.bases_keep <= 1, "bases_keep", self.bases_keep, "between 0 and 1")
        for name in ("channels", "aspp_channels", "decoder_channels"):
            require(1 <= getattr(self, name) <= MOST, name, getattr(self, name), f"1 to {MOST}")
        require(0 <= self.fc1_channels <= MOST, "fc1_channels", self.fc1_channels, f"0 to {MOST}")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        for name in ("rates", "bins", "window"):
            sizes = getattr(self, name)
            fits = bool(sizes) and 1 <= min(sizes) <= max(sizes) <= MOST
            require(fits, name, sizes, f"one or more numbers of 1 to {MOST}")

    @staticmethod
    def upgrade(values: dict[str, Any]) -> dict[str, Any]:
        """JSON values of older files: aspp_channels and decoder_channels were fc1_channels there (0: channels)."""
        name = {"deeplabv3": "aspp_channels", "deeplabv3plus": "aspp_channels", "refinenet": "decoder_channels"}.get(
            str(values.get("name"))
        )
        if name is None or name in values or "fc1_channels" not in values:
            return values
        values = dict(values)
        values[name] = values.pop("fc1_channels") or values.get("channels", 512)
        return values


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    aux_head: bool = False
    """Add an FCN head on the stage before the last; only the training loss uses it."""
    aux_channels: int = setting(256, unused_while={"aux_head": (False,)})
    align_corners: bool = True
    """How logits are upsampled; the original's choice is True."""
    bn_momentum: float = 0.1
    """Share of the running BatchNorm statistics that one batch replaces; 3e-4 in the original."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Of each channel, of images of 0 to 1; one value stands for all channels."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        require_numbers(self)
        require(1 <= self.aux_channels <= MOST, "aux_channels", self.aux_channels, f"1 to {MOST}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.backbone.in_channels):
                raise InputError(f"model.{name} has {len(values)} values for {self.backbone.in_channels} channels")
        require(0 <= self.bn_momentum <= 1, "bn_momentum", self.bn_momentum, "between 0 and 1")
        require(all(value > 0 for value in self.std), "std", self.std, "above 0")
        if max(*self.mean, *self.std) > 1:  # the network would see every image as one colour
            old = {"mean": self.mean, "std": self.std} if max(self.mean) > 1 else {"std": self.std}
            stated, divided = (
                " and ".join(f"model.{name} {' '.join(f'{value / by:.6g}' for value in old[name])}" for name in old)
                for by in (1, 255)
            )
            raise InputError(f"{stated}: images are 0 to 1 here, not 0 to 255, so divide by 255: {divided}")
        require(all(value >= 0 for value in self.mean), "mean", self.mean, "between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Where a data set keeps its files and what its mask values mean. In JSON: the same names.

    A mask of one channel (index or palette PNG) holds values; a mask of three channels holds colours of `palette`.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] = ()
    """RGB of each class; empty: PASCAL VOC's colour map."""
    images: str = "{split}/images"
    """Folder under the root, searched through its subfolders."""
    masks: str = "{split}/masks"
    split_list: str = ""
    """A text file under the root that names a split's images, one stem (or image and mask path) a line."""
    image_suffix: str = ""
    """How image names end, if not just with a known image extension: `_leftImg8bit.png`."""
    mask_suffix: str = ""
    """The same for masks: `_gtFine_labelIds.png`."""
    ignore_label: int = 255
    """Mask value of pixels that count nowhere."""
    ignore_colours: tuple[tuple[int, int, int], ...] = ()
    """The same for masks that hold colours."""
    label_map: dict[int, int] = field(default_factory=dict)
    """Mask value -> class (or 255 = ignored), where they differ. It must then list every value but ignore_label."""
    split_names: dict[str, str] = field(default_factory=dict)
    """Split -> what stands for {split} in its paths, where they differ: `{"val": "validation"}`."""
    bands: tuple[int, ...] = ()
    """Bands of an image file, counted from 1, that are the model's channels in this order; empty: all but alpha."""
    range: tuple[float, ...] = ()
    """Values of an image that become 0 and 255, others are clipped: `[0, 4095]`, or such a pair for each channel in
    turn. Empty: the images have 8 bits."""

    def __post_init__(self):
        require_numbers(self)
        require(all(band >= 1 for band in self.bands), "bands", self.bands, "bands counted from 1")
        pairs = [*zip(self.range[::2], self.range[1::2], strict=False)]
        rising = len(self.range) % 2 == 0 and all(low < high for low, high in pairs)
        require(rising, "range", self.range, "a lower and a higher value, or such a pair for each channel in turn")
        require(1 <= len(self.classes) <= IGNORE, "classes", f"{len(self.classes)} names", "1 to 255 names")
        twice = {name for name in self.classes if self.classes.count(name) > 1}
        require(not twice, "classes", f"{', '.join(sorted(twice))} twice", "names that differ")
        if self.palette and len(self.palette) != len(self.classes):
            raise InputError(f"palette has {len(self.palette)} colours for {len(self.classes)} classes")
        for colour in (*self.palette, *self.ignore_colours):
            require(all(0 <= value <= 255 for value in colour), "palette", colour, "RGB values of 0 to 255")
        for value, label in self.label_map.items():
            fits = 0 <= label < len(self.classes) or label == IGNORE
            require(fits, "label_map", f"{value}: {label}", "class indices or 255")
            require(abs(value) < LARGE, "label_map", f"{value}: {label}", "from values that a mask can have")

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        return self.palette or voc_palette(len(self.classes))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    dataset: str = "voc"
    """A name of emanet.data.datasets.SPECS, or the path of a JSON spec (or of a folder with a dataset.json)."""
    spec: DatasetSpec | None = None
    """The spec itself, in Python experiments; it wins over `dataset`."""
    root: str = setting("", resume=True, ranks=True)
    """Folder of the data set; default data/NAME, or the folder of the JSON spec."""
    train_split: str = "train"
    val_split: str = "val"
    crop: tuple[int, int] = (513, 513)
    """(h, w) of a training crop, in pixels."""
    last_crop: tuple[int, int] | None = None
    """(h, w) of the crops in the last steps of the run, usually larger ones; None: the same."""
    last_share: float = setting(0.1, unused_while={"last_crop": (None,)})
    """Share of the steps, at the end, whose crops have last_crop."""
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    """Each sample is scaled by one of them, drawn at random."""
    continuous_scale: bool = False
    """Draw the scale uniformly between two values `a b` of scales."""
    flip: float = 0.5
    """Chance that a sample is flipped left to right."""
    colour: float = 0.0
    """Strength of random brightness, contrast and saturation: factors are drawn from 1 ± colour."""
    hue: float = 0.0
    """Each sample's hues are turned by up to ± this many degrees of the colour circle. For RGB."""
    gamma: float = 0.0
    """Each sample's values of 0 to 1 are raised to a power drawn between 1 / (1 + gamma) and 1 + gamma."""
    grey: float = 0.0
    """Chance that a sample loses its colours. For RGB."""
    blur: float = 0.0
    """Chance that a sample is blurred."""
    blur_sigma: tuple[float, float] = setting((0.1, 2.0), unused_while={"blur": (0.0,)})
    """The least and the greatest sigma of the Gaussian blur, in pixels of the crop."""
    rotate: float = 0.0
    """Each sample is rotated by up to ± this many degrees; what lies outside of the image is ignored."""
    class_crop: float = 0.0
    """Chance that a crop is placed around a pixel of a class drawn from those in the image, each with the same chance:
    rare classes are seen more often."""
    paste: float = 0.0
    """Chance that all pixels of `paste_classes` in another image, augmented alike, are pasted over a sample."""
    paste_classes: tuple[str, ...] = setting((), unused_while={"paste": (0.0,)})
    """Names of rare or thin classes, such as `pole sign_symbol`."""
    class_mix: float = 0.0
    """Chance that half of the classes of another image, augmented alike, are pasted over a sample (ClassMix)."""
    workers: int | None = setting(None, resume=True, ranks=True)
    """Loader processes per rank; 0: a thread of the training process reads ahead. None: 0 if a CPU trains, whose cores
    are busy anyway, else up to 4 as there are cores. Batches do not depend on it."""
    keep: float = setting(0.5, resume=True)
    """GiB of memory, per rank, for training images that have been decoded and come again in the next epoch; 0: none."""
    check: bool = setting(True, resume=True)
    """Open every mask before training starts (once per list of files: the result is remembered)."""

    def __post_init__(self):
        expand_home(self, "dataset", "root")
        require_numbers(self)
        for name, crop in (("crop", self.crop), ("last_crop", self.last_crop or self.crop)):
            require(all(1 <= side <= MOST for side in crop), name, crop, f"(h, w), each 1 to {MOST}")
        require(0 < self.last_share <= 1, "last_share", self.last_share, "above 0 and at most 1")
        require_scales(self.scales)
        if self.continuous_scale:
            fits = len(self.scales) == 2 and self.scales[0] <= self.scales[1]
            require(fits, "scales", self.scales, "two numbers, the smaller first: continuous_scale is on")
        require(0 <= self.flip <= 1, "flip", self.flip, "between 0 and 1")
        require(0 <= self.colour < 1, "colour", self.colour, "at least 0 and below 1")
        for name in ("grey", "blur", "class_crop", "paste", "class_mix"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        for name in ("hue", "rotate"):
            require(0 <= getattr(self, name) <= 180, name, getattr(self, name), "0 to 180 degrees")
        require(0 <= self.gamma <= 10, "gamma", self.gamma, "0 to 10")
        low, high = self.blur_sigma
        require(
            0.1 <= low <= high <= 100, "blur_sigma", self.blur_sigma, "two numbers of 0.1 to 100, the smaller first"
        )
        require(0 <= (self.workers or 0) <= 1024, "workers", self.workers, "0 to 1024")
        require(self.keep >= 0, "keep", self.keep, "at least 0")

    @property
    def crops(self) -> dict[str, tuple[int, int]]:
        """Setting -> the (h, w) of crops that it asks for."""
        return {"data.crop": self.crop} | ({"data.last_crop": self.last_crop} if self.last_crop else {})


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    terms: tuple[tuple[str, float], ...] = (("cross_entropy", 1.0),)
    """Losses and their weights in the sum that is minimised: cross_entropy, ohem (hard pixels only), boundary (pixels
    near borders weigh more), dice, lovasz; see emanet/losses. Names and weights in turn: `cross_entropy 1 dice 0.5`."""
    average: Literal["all", "valid"] = "all"
    """all: divide by every pixel of the crop, the original's loss; valid: by the pixels that are not ignored."""
    class_weights: tuple[float, ...] = setting((), used_by=("cross_entropy", "ohem", "boundary"))
    """One factor per class; `valid` then divides by the sum of the pixels' weights."""
    ohem_threshold: float = setting(0.7, used_by=("ohem",))
    """ohem: only pixels whose true class has a probability of at most this count."""
    ohem_min_kept: int = setting(100_000, used_by=("ohem",))
    """ohem: but at least this many of the hardest pixels per image, taken over the images of a pass."""
    boundary_width: int = setting(3, used_by=("boundary",))
    """boundary: pixels at most this many rows and columns from two different labels are near a border."""
    boundary_weight: float = setting(5.0, used_by=("boundary",))
    """boundary: the weight of the pixels near a border; the others have 1."""
    aux_weight: float = setting(0.4, unused_while={"model.aux_head": (False,)})
    """Weight of the same loss on the auxiliary head's logits."""
    distill_weight: float = setting(1.0, unused_while={"distill": ("",)})
    """Weight of the distance to the teacher's probabilities, added to the loss of the labels."""
    distill_temperature: float = setting(1.0, unused_while={"distill": ("",)})
    """Both networks' logits are divided by it first: above 1, classes that the teacher finds unlikely count more."""

    def __post_init__(self):
        require_numbers(self)
        pairs = not isinstance(self.terms, dict) and all(
            isinstance(t, tuple | list) and len(t) == 2 for t in self.terms
        )
        require(pairs, "terms", self.terms, 'pairs such as (("cross_entropy", 1.0), ("dice", 0.5))')
        names, weights = [name for name, _ in self.terms], [weight for _, weight in self.terms]
        require(0 < len(set(names)) == len(names), "terms", self.terms, "one or more different losses")
        positive = all(isinstance(weight, int | float) and 0 < weight < LARGE for weight in weights)
        require(positive, "terms", self.terms, "losses with finite weights above 0")
        for name in ("aux_weight", "distill_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(0 < self.distill_temperature <= 100, "distill_temperature", self.distill_temperature, "above 0, to 100")
        require(self.ohem_min_kept >= 0, "ohem_min_kept", self.ohem_min_kept, "at least 0")
        require(0 < self.ohem_threshold <= 1, "ohem_threshold", self.ohem_threshold, "above 0 and at most 1")
        require(0 <= self.boundary_width <= 1000, "boundary_width", self.boundary_width, "0 to 1000")
        require(self.boundary_weight >= 0, "boundary_weight", self.boundary_weight, "at least 0")
        sound = all(weight >= 0 for weight in self.class_weights) and (
            not self.class_weights or any(self.class_weights)
        )
        require(sound, "class_weights", self.class_weights, "not negative, and not all 0")

    @staticmethod
    def upgrade(values: dict[str, Any]) -> dict[str, Any]:
        """JSON values of files from before `terms`: ohem_threshold above 0 meant OHEM, over all pixels in any case."""
        if "terms" in values or "ohem_threshold" not in values:
            return values
        if values["ohem_threshold"] != 0:
            return values | {"terms": [["ohem", 1.0]], "average": "all"}
        return {name: value for name, value in values.items() if name not in ("ohem_threshold", "ohem_min_kept")}


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 9e-3
    momentum: float = setting(0.9, used_by=("sgd",))
    weight_decay: float = 1e-4
    """On the weights of convolutions and linear layers; none on norms and biases."""
    bias_lr_scale: float = 2.0
    """Biases learn at bias_lr_scale * lr."""
    head_lr_scale: float = 1.0
    """Everything outside the backbone learns at head_lr_scale * lr."""
    layer_decay: float = setting(1.0, unused_while={"model.backbone.frozen": (True,)})
    """Each stage of the backbone, or block of a ViT, learns at layer_decay times the rate of the one after it; the last
    at lr."""
    schedule: Literal["poly", "cosine"] = "poly"
    """How the learning rate falls. cosine: lr(step) = lr * (1 + cos(pi * step / steps)) / 2"""
    poly_power: float = setting(0.9, unused_while={"schedule": ("cosine",)})
    """poly: lr(step) = lr * (1 - step / steps) ** poly_power"""
    lr_every: int = 10
    """Steps between updates of the learning rate."""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises linearly."""
    clip_norm: float = 0.0
    """Above 0: gradients are scaled down to this norm."""
    average: float = 0.0
    """Above 0, 0.999 for example: the model that is validated and saved has an average of the weights. After each step,
    averaged = keep * averaged + (1 - keep) * weights, with keep = min(average, (1 + step) / (10 + step))."""
    freeze_bn: float = 0.0
    """Share of the steps, at the end, in which BatchNorm uses its running statistics and leaves them as they are."""

    def __post_init__(self):
        require_numbers(self)
        require(self.lr > 0, "lr", self.lr, "above 0")
        require(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "above 0 and at most 1")
        require(0 <= self.average < 1, "average", self.average, "at least 0 and below 1")
        require(0 <= self.freeze_bn <= 1, "freeze_bn", self.freeze_bn, "between 0 and 1")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "at least 0 and below 1")
        for name in ("bias_lr_scale", "head_lr_scale", "poly_power", "warmup_steps", "clip_norm"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(self.lr_every >= 1, "lr_every", self.lr_every, "at least 1")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    mode: Literal["whole", "slide"] = "whole"
    """whole: the image at once. slide: overlapping windows, their probabilities averaged."""
    window: tuple[int, int] = setting((513, 513), unused_while={"mode": ("whole",)})
    """(h, w) of a window."""
    overlap: float = setting(1 / 3, unused_while={"mode": ("whole",)})
    """Share of a window that overlaps its neighbour."""
    scales: tuple[float, ...] = (1.0,)
    """The image is also predicted at these sizes; probabilities are averaged."""
    flip: bool = False
    """Also predict each image flipped left to right."""
    longest_side: int = setting(0, unused_while={"mode": ("slide",)})
    """Larger images are shrunk to this many pixels first, and their logits enlarged again: for a model whose objects
    would be too large for it in a photograph of many megapixels. 0: never."""

    def __post_init__(self):
        require_numbers(self)
        require(self.mode in ("whole", "slide"), "mode", self.mode, "whole or slide")
        require(all(side >= 1 for side in self.window), "window", self.window, "positive (h, w)")
        require(0 <= self.overlap < 1, "overlap", self.overlap, "at least 0 and below 1")
        require_scales(self.scales)
        require(self.longest_side >= 0, "longest_side", self.longest_side, "at least 0")


Engine = Literal["plain", "eager", "compile", "openvino", "auto"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a trained network is run: see deploy/engines.py. Not part of an experiment."""

    engine: Engine = "plain"
    """What runs the network. eager: BatchNorm folded into the convolutions; compile: through torch.compile as well;
    openvino: on the CPU, about as fast, for any size; auto: openvino on a CPU where it is installed, else eager,
    verified on a small image, and plain on mps. The results differ in rounding only."""
    precision: Precision = "fp32"
    """bf16: fast, close to fp32; fp16: for CUDA; int8: for openvino, fastest, at the cost of some mIoU."""
    calibrate: tuple[str, ...] = setting((), unused_while={"precision": ("fp32", "bf16", "fp16")})
    """For int8: files, folders and quoted globs of about a hundred images."""
    force: bool = setting(False, unused_while={"precision": ("fp32", "fp16", "int8")})
    """Use bf16 even on a processor that only emulates it, many times slower than fp32."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that defines one run. Lengths are in optimiser steps, never in epochs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig, metadata={"resume": True})
    steps: int = 30_000
    batch_size: int = 16
    """Images per optimiser step, over all ranks."""
    accumulate: int = 1
    """Forward and backward passes per optimiser step; each sees batch_size / accumulate images over all ranks.

    Gradients are those of the whole batch; BatchNorm and the moving average of the bases see one pass at a time.
    """
    seed: int = 0
    init_from: str = ""
    """A run folder, model file or hf:owner/name to start from; the classifier is left out where the class count
    differs."""
    distill: str = ""
    """A run folder, model file or hf:owner/name with the same classes, the teacher: the network also learns its
    probabilities."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type. EM attention and the loss stay in float32."""
    channels_last: bool = True
    compile: bool = setting(False, resume=True)
    deterministic: bool = setting(False, resume=True)
    """Use only operations that give the same bits every time, which costs time on a GPU; where there is none, the run
    ends with the operation's name."""
    recompute: bool = setting(False, resume=True)
    """Compute the backbone's blocks again in the backward pass instead of keeping their activations: the same
    gradients with less memory, in more time."""
    sync_bn: bool = True
    """BatchNorm statistics over all ranks, where there are several."""
    device: str = setting("auto", resume=True, ranks=True)
    """auto: CUDA if there is one, else the CPU. A Mac's GPU (mps) does not train."""
    log_every: int = setting(10, resume=True)
    """Steps between lines of the log."""
    val_every: int = setting(0, resume=True)
    """Steps between validations; 0: only after the last step."""
    save_every: int = setting(500, resume=True)
    """Steps between checkpoints to resume from. Validations, the end and signals save one too."""
    keep_last: int = setting(2, resume=True)
    """How many checkpoints to keep for resuming; two, in case one is damaged."""
    keep_every: int = setting(0, resume=True)
    """Above 0: also keep the models of all steps divisible by it. The best model is always kept."""
    skip_limit: int = setting(10, resume=True)
    """A step whose loss or gradient is not finite is skipped; so many in a row end the run."""
    keep_skipped: int = setting(0, resume=True)
    """Keep the weights and the optimiser of so many skipped steps, the first ones, for `train RUN --replay STEP`. A GPU
    is then waited for at every step."""
    pictures: int = setting(4, resume=True)
    """How many images to draw at each validation: image, label, prediction."""

    def __post_init__(self):
        expand_home(self, "init_from", "distill")
        require_numbers(self)
        require(self.batch_size <= MOST, "batch_size", self.batch_size, f"1 to {MOST}")
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every", "keep_last", "skip_limit"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("seed", "val_every", "keep_every", "keep_skipped", "pictures"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        if self.compile and self.recompute:
            raise InputError("compile and recompute cannot be combined: compiled code decides what it recomputes")
        if self.batch_size % self.accumulate:
            raise InputError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")

    def last(self, share: float) -> int:
        """The first step of the last `share` of the steps, which is one step at least; `steps` if share is 0."""
        return self.steps - max(round(share * self.steps), int(share > 0))


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        text = value[:200] if isinstance(value, str) else short(value)
        raise InputError(f"{name} is {text}, but must be {wanted}")


def require_numbers(config: Any) -> None:
    """Every number is finite and below 2^53: no NaN and no infinity, which bounds on one side would let pass."""
    for f in fields(config):
        value = getattr(config, f.name)
        for number in _leaves(value):
            if isinstance(number, int | float):
                require(abs(number) < LARGE, f.name, value, "finite and below 2^53 in size")


def _leaves(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        value = (*value.keys(), *value.values())
    if not isinstance(value, tuple):
        return (value,)
    return (leaf for item in value for leaf in _leaves(item))


def require_scales(scales: tuple[float, ...]) -> None:
    fits = len(scales) > 0 and all(0.01 <= scale <= 100 for scale in scales)
    require(fits, "scales", scales, "one or more numbers of 0.01 to 100")


def voc_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """PASCAL VOC's colour map: bit k of a label goes, from the top bit down, in turn to red, green and blue."""

    def colour(label: int) -> tuple[int, int, int]:
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= ((label >> bit) & 1) << (7 - bit // 3)
        return channels[0], channels[1], channels[2]

    return tuple(colour(label) for label in range(count))
