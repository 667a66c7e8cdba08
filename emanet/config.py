"""Every setting of an experiment, as frozen dataclasses. How they are read and written: experiments.py.

This file imports neither torch nor the command line. Derived values are properties; nothing is stored twice.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from .errors import InputError

IGNORE = 255  # the value of ignored pixels in every label tensor, whatever value the mask files use
MOST = 1 << 16  # channels, bases, pixels of a side: more is a slip, which torch would answer with its own long errors
LARGE = 1 << 53  # for every other number
# What create_model is told by other settings, or would load a file for that nobody meant to be read.
NOT_OPTIONS = frozenset("pretrained checkpoint_path cache_dir features_only in_chans output_stride".split())


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    name: str = "resnet101s"
    """A timm model that gives feature maps. resnet50s/101s/152s have the original's 64-64-128 stem."""
    pretrained: bool | str = True
    """True: timm's hub weights. A path: that file, every key of it. False: random."""
    output_stride: int = 8
    """8, 16 or 32: image pixels per pixel of the last feature map; later stages are dilated instead of strided."""
    multi_grid: tuple[int, ...] = ()
    """Factors on the last stage's 3x3 dilations of a ResNet, one per block; 1 2 4 in the original. Empty: none."""
    dilation: Literal["contract", "uniform"] = "contract"
    """Where stages are dilated. contract: a stage's first block takes half of its dilation, as everywhere but in
    PaddleSeg; uniform: all of it, and a ResNet-D's shortcut is averaged only where it strides, as in PaddleSeg."""
    in_channels: int = 3
    frozen: bool = False
    """Keep the weights and the BatchNorm statistics as they were loaded."""
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Further arguments of timm.create_model."""

    def __post_init__(self):
        require(self.output_stride in (8, 16, 32), "output_stride", self.output_stride, "8, 16 or 32")
        require(1 <= self.in_channels <= MOST, "in_channels", self.in_channels, f"1 to {MOST}")
        require(all(1 <= k <= MOST for k in self.multi_grid), "multi_grid", self.multi_grid, f"numbers of 1 to {MOST}")
        taken = sorted(NOT_OPTIONS.intersection(self.options))
        if taken:
            raise InputError(f"options has {taken[0]!r}, which is set otherwise or not at all")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    name: str = "ema"
    channels: int = 512
    """Channels in which the EM attention works; 512 or 256 in the paper. Likewise of the other heads, each 512 in its
    own paper; gcn works in one channel per class, deeplabv3 and deeplabv3plus in fc1_channels."""
    num_bases: int = 64
    em_steps: int = 3
    gradient: Literal["detached", "last", "unrolled"] = "detached"
    """Which EM iterations carry gradient: none (released code), the last, all. See emanet/ops/README.md."""
    eps: float = 1e-6
    """Added in both divisions of the M-step; 1e-12 gives what mmsegmentation, sssegmentation and PaddleSeg compute."""
    bases_keep: float = 0.9
    """bases = bases_keep * bases + (1 - bases_keep) * mean of the batch's bases, in training only."""
    renormalise: bool = False
    """Scale the batch mean to unit columns before averaging it in, as mmsegmentation and PaddleSeg do."""
    relu_out: bool = False
    """One more ReLU after the unit's second 1x1 convolution, as in PaddleSeg."""
    fc1_channels: int = 256
    """ema, nonlocal: channels of the 3x3 convolution before the classifier; 0 leaves it out, as in the paper's Table 1.
    The width of deeplabv3, of deeplabv3plus and of refinenet's finer stages, each 256 in its own paper; 0: channels."""
    concat: bool = False
    """Join the backbone's last map to fc1's output by a 3x3 convolution, as in mmsegmentation and its relatives."""
    dropout: float = 0.1
    """Share of whole channels dropped before the classifier; gcn has nothing there to drop."""
    rates: tuple[int, ...] = (12, 24, 36)
    """deeplabv3, deeplabv3plus: dilations of the pyramid's 3x3 convolutions at output stride 8; 6 12 18 suit 16."""
    bins: tuple[int, ...] = (1, 2, 3, 6)
    """pspnet: each level of the pyramid averages over bins x bins parts of the image."""
    window: tuple[int, int] = (33, 33)
    """psanet: a pixel attends to others fewer than h rows and w columns away, on a map of half the size. 33 sees all of
    a 513-pixel crop at output stride 8."""

    def __post_init__(self):
        require_numbers(self)
        require(1 <= self.num_bases <= MOST, "num_bases", self.num_bases, f"1 to {MOST}")
        require(1 <= self.em_steps <= 1000, "em_steps", self.em_steps, "1 to 1000")
        require(self.eps > 0, "eps", self.eps, "above 0")
        require(0 <= self.bases_keep <= 1, "bases_keep", self.bases_keep, "between 0 and 1")
        require(1 <= self.channels <= MOST, "channels", self.channels, f"1 to {MOST}")
        require(0 <= self.fc1_channels <= MOST, "fc1_channels", self.fc1_channels, f"0 to {MOST}")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        for name in ("rates", "bins", "window"):
            sizes = getattr(self, name)
            fits = bool(sizes) and 1 <= min(sizes) <= max(sizes) <= MOST
            require(fits, name, sizes, f"one or more numbers of 1 to {MOST}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    aux_head: bool = False
    """An FCN head on the stage before the last, used by the loss only."""
    aux_channels: int = 256
    align_corners: bool = True
    """How logits are upsampled; the original's choice is True."""
    bn_momentum: float = 0.1
    """Share of the running BatchNorm statistics that one batch replaces; 3e-4 in the original."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        require_numbers(self)
        require(1 <= self.aux_channels <= MOST, "aux_channels", self.aux_channels, f"1 to {MOST}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.backbone.in_channels):
                raise InputError(f"model.{name} has {len(values)} values for {self.backbone.in_channels} channels")
        require(0 <= self.bn_momentum <= 1, "bn_momentum", self.bn_momentum, "between 0 and 1")
        require(all(value > 0 for value in self.std), "std", self.std, "above 0")


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

    def __post_init__(self):
        require_numbers(self)
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
    root: str = ""
    """Folder of the data set; default data/NAME, or where the JSON spec lies."""
    train_split: str = "train"
    val_split: str = "val"
    crop: tuple[int, int] = (513, 513)
    """(h, w) of a training crop, in pixels."""
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    """One is drawn per sample; two values `a b` with continuous_scale: uniformly between them."""
    continuous_scale: bool = False
    flip: float = 0.5
    """Chance of a mirrored sample."""
    colour: float = 0.0
    """Strength of random brightness, contrast and saturation: factors are drawn from 1 ± colour."""
    workers: int = 4
    """Loader processes per rank. Batches do not depend on it."""
    check: bool = True
    """Open every mask before training starts (once per listing: the result is remembered)."""

    def __post_init__(self):
        require_numbers(self)
        require(all(1 <= side <= MOST for side in self.crop), "crop", self.crop, f"(h, w), each 1 to {MOST}")
        require_scales(self.scales)
        fits = len(self.scales) == 2 and self.scales[0] <= self.scales[1]
        require(
            fits or not self.continuous_scale, "scales", self.scales, "two, the smaller first: continuous_scale is on"
        )
        require(0 <= self.flip <= 1, "flip", self.flip, "between 0 and 1")
        require(0 <= self.colour < 1, "colour", self.colour, "at least 0 and below 1")
        require(0 <= self.workers <= 1024, "workers", self.workers, "0 to 1024")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    terms: tuple[tuple[str, float], ...] = (("cross_entropy", 1.0),)
    """Losses and their weights in the sum that is minimised: cross_entropy, ohem (hard pixels only), boundary (pixels
    near borders weigh more), dice, lovasz; see emanet/losses. As a flag: `--loss.terms cross_entropy 1 dice 0.5`."""
    average: Literal["all", "valid"] = "all"
    """all: divide by every pixel of the crop, the original's loss; valid: by the pixels that are not ignored."""
    class_weights: tuple[float, ...] = field(default=(), metadata={"terms": ("cross_entropy", "ohem", "boundary")})
    """One factor per class; `valid` then divides by the sum of the pixels' weights."""
    ohem_threshold: float = field(default=0.7, metadata={"terms": ("ohem",)})
    """ohem: only pixels whose true class has a probability of at most this count."""
    ohem_min_kept: int = field(default=100_000, metadata={"terms": ("ohem",)})
    """ohem: but at least this many of the hardest pixels per image, taken over the images of a pass."""
    boundary_width: int = field(default=3, metadata={"terms": ("boundary",)})
    """boundary: pixels at most this many rows and columns from two different labels are near a border."""
    boundary_weight: float = field(default=5.0, metadata={"terms": ("boundary",)})
    """boundary: the weight of the pixels near a border; the others have 1."""
    aux_weight: float = 0.4
    """Weight of the same loss on the auxiliary head's logits."""

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
        require(self.aux_weight >= 0, "aux_weight", self.aux_weight, "at least 0")
        require(self.ohem_min_kept >= 0, "ohem_min_kept", self.ohem_min_kept, "at least 0")
        require(0 < self.ohem_threshold <= 1, "ohem_threshold", self.ohem_threshold, "above 0 and at most 1")
        require(0 <= self.boundary_width <= 1000, "boundary_width", self.boundary_width, "0 to 1000")
        require(self.boundary_weight >= 0, "boundary_weight", self.boundary_weight, "at least 0")
        require(all(weight >= 0 for weight in self.class_weights), "class_weights", self.class_weights, "not negative")
        for f in fields(self):
            users = f.metadata.get("terms", names)
            if getattr(self, f.name) != f.default and not set(users) & set(names):
                used, chosen = " and ".join(users), ", ".join(names)
                raise InputError(f"loss.{f.name} is used by {used} only, but loss.terms has {chosen}")

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
    momentum: float = 0.9
    """SGD's momentum."""
    weight_decay: float = 1e-4
    """On the weights of convolutions and linear layers; none on norms and biases."""
    bias_lr_scale: float = 2.0
    """Biases learn at bias_lr_scale * lr."""
    head_lr_scale: float = 1.0
    """Everything outside the backbone learns at head_lr_scale * lr."""
    poly_power: float = 0.9
    """lr(step) = lr * (1 - step / steps) ** poly_power"""
    lr_every: int = 10
    """Steps between updates of the learning rate."""
    warmup_steps: int = 0
    """The learning rate first rises linearly over so many steps."""
    clip_norm: float = 0.0
    """Above 0: gradients are scaled down to this norm."""

    def __post_init__(self):
        require_numbers(self)
        require(self.lr > 0, "lr", self.lr, "above 0")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "at least 0 and below 1")
        for name in ("bias_lr_scale", "head_lr_scale", "poly_power", "warmup_steps", "clip_norm"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(self.lr_every >= 1, "lr_every", self.lr_every, "at least 1")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    mode: Literal["whole", "slide"] = "whole"
    """whole: the image at once. slide: overlapping windows, their probabilities averaged."""
    window: tuple[int, int] = (513, 513)
    """(h, w) of a window."""
    overlap: float = 1 / 3
    """Share of a window that its neighbour covers too."""
    scales: tuple[float, ...] = (1.0,)
    """The image is also predicted at these sizes; probabilities are averaged."""
    flip: bool = False
    """And mirrored."""

    def __post_init__(self):
        require_numbers(self)
        require(self.mode in ("whole", "slide"), "mode", self.mode, "whole or slide")
        require(all(side >= 1 for side in self.window), "window", self.window, "positive (h, w)")
        require(0 <= self.overlap < 1, "overlap", self.overlap, "at least 0 and below 1")
        require_scales(self.scales)


Engine = Literal["plain", "eager", "compile", "openvino"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a trained network is run: see fast.py. Part of no experiment."""

    engine: Engine = "plain"
    """What runs the network. eager: BatchNorm folded into the convolutions; compile: through torch.compile as well;
    openvino: on the CPU, the fastest there. The same results to rounding."""
    precision: Precision = "fp32"
    """bf16: fast, near fp32; fp16: for CUDA; int8: openvino's, fastest, for some mIoU."""
    calibrate: tuple[str, ...] = ()
    """For int8: files, folders and quoted globs of a hundred images."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training, whole. Everything counts in optimiser steps, never in epochs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    steps: int = 30_000
    batch_size: int = 16
    """Images per optimiser step, over all ranks."""
    accumulate: int = 1
    """Forward and backward passes per optimiser step; each sees batch_size / accumulate images over all ranks.

    Gradients are those of the whole batch; BatchNorm and the moving average of the bases go by passes.
    """
    seed: int = 0
    init_from: str = ""
    """A run folder or model file to start from; the classifier is left out where the class count differs."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type. EM attention and the loss stay in float32."""
    channels_last: bool = True
    compile: bool = False
    recompute: bool = False
    """Compute the backbone's blocks again in the backward pass instead of keeping what is inside them: the same
    gradients with less memory, in more time."""
    sync_bn: bool = True
    """BatchNorm statistics over all ranks, where there are several."""
    device: str = "auto"
    """auto: CUDA if there is one, else the CPU."""
    log_every: int = 10
    val_every: int = 0
    """Steps between validations; 0: only after the last step."""
    save_every: int = 500
    """Steps between checkpoints to resume from. Validations, the end and signals save one too."""
    keep_last: int = 2
    """So many checkpoints to resume from stay; of two, one may get damaged."""
    keep_every: int = 0
    """Models of steps that are multiples of it stay for good; the best one always does."""
    skip_limit: int = 10
    """A step whose loss or gradient is not finite changes nothing; so many in a row end the training."""
    pictures: int = 4
    """Validation images drawn at each validation: image, label, prediction."""

    def __post_init__(self):
        require_numbers(self)
        require(self.batch_size <= MOST, "batch_size", self.batch_size, f"1 to {MOST}")
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every", "keep_last", "skip_limit"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("seed", "val_every", "keep_every", "pictures"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        if self.compile and self.recompute:
            raise InputError("compile and recompute exclude each other: compiled code chooses what it computes again")
        if self.batch_size % self.accumulate:
            raise InputError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        text = str(value)
        raise InputError(f"{name} is {text[:200]}{'...' * (len(text) > 200)}, but must be {wanted}")


def require_numbers(config: Any) -> None:
    """No NaN, no infinity, nothing that 64 bits have no room for: bounds on one side let some of them pass."""
    for f in fields(config):
        value = getattr(config, f.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float):
                require(math.isfinite(number) and abs(number) < LARGE, f.name, value, "finite and below 2^53 in size")


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
