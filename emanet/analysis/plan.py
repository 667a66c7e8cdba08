"""A recipe from the data: the plan command, and `train` without an experiment.

    python -m emanet plan mydata --hours 1 --out plan.py
    python -m emanet train plan.py

The data's fingerprint, the machine and the time decide a dozen settings. Each decision is a function below that returns
the settings with the reason for each, and the plan is an experiment file with these reasons as comments.
"""

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache

from .. import distributed
from ..atomic import require_writable, write_text
from ..config import DataConfig, DatasetSpec, Experiment
from ..data.datasets import open_dataset, resolve, spec_of
from ..data.fingerprint import Fingerprint, fingerprint
from ..data.loader import processes
from ..data.transforms import TrainingSamples
from ..errors import InputError, out_of_memory
from ..experiments import override
from ..inference import predict_labels
from ..losses import PixelLoss
from ..model import build_model
from ..optim import build_optimizer
from ..show.tables import Grid
from ..show.terminal import note, say, show
from ..stages import cores
from ..train import StepNet
from .cost import peak_memory
from .plan_file import Settings, write_python

GRID = 32
STARTING = 15.0  # seconds of a run before its first step and after its last: imports, checks, pictures
SHARE = 0.6  # of the free memory that a step may take
FEW, MANY = 2000, 400  # steps that are always worth taking; epochs after which more of them only repeat


@dataclass(frozen=True)
class Machine:
    device: str
    name: str
    cores: int
    memory: int
    """Free bytes, of the GPU if there is one."""
    online: bool = False
    """Whether the backbone's weights are in the hub's cache, or the hub can be reached."""
    weights: str = ""
    """A file of pretrained weights, instead of the hub's."""
    bf16: bool = True
    """Whether the GPU computes in bfloat16; older ones only imitate it, slowly."""

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def large(self) -> bool:
        """Whether it trains the paper's kind of network."""
        return self.gpu and self.memory >= 10 << 30

    @property
    def backbone(self) -> str:
        return "resnet50s" if self.large else "mobilenetv2_100"

    @property
    def pretrained(self) -> bool:
        return bool(self.weights) or self.online

    @property
    def learns_from_nothing(self) -> bool:
        """Whether a small machine has to start from random weights."""
        return not self.large and not self.pretrained


@dataclass(frozen=True)
class Plan:
    experiment: Experiment
    text: str
    """A Python file that defines the experiment."""


def plan(
    data: str, *, hours: float = 1.0, root: str = "", train_split: str = "train", val_split: str = "val",
    channels: int = 0, device: str = "auto", weights: str = "", started: float | None = None,
) -> Plan:  # fmt: skip
    """Measure a data set and this machine, and plan a run of `hours`. Shows what was measured.

    data: a data set's name, dataset.json or folder. channels: default: as many as its spec names bands, or 3. weights:
    a file for the backbone; default: the hub's. started: the time.monotonic() from which the hours count; default: they
    are for the run alone. Raises InputError.
    """
    if not 0.01 <= hours <= 10_000:
        raise InputError(f"hours is {hours:g}, but must be between 0.01 and 10,000")
    if weights and not Path(weights).expanduser().is_file():
        raise InputError(f"there is no file {weights} of weights for the backbone")
    wanted = DataConfig(dataset=data, root=root, train_split=train_split, val_split=val_split)
    config = resolve(wanted)
    spec = spec_of(config)
    channels = channels or len(spec.bands) or 3
    train_set, val_set = (open_dataset(config, split, channels) for split in (train_split, val_split))
    facts = fingerprint(train_set, val_set, len(spec.classes))
    machine = dataclasses.replace(this_machine(device), weights=weights)
    settings: Settings = {}
    for decide in (choose_network, choose_pixels, choose_crop, choose_loss, choose_optimiser, choose_evaluation):
        settings |= decide(facts, machine)
    experiment = override(Experiment(data=wanted), {name: value for name, (value, _) in settings.items()})
    measured = measure(experiment, spec, train_set, val_set, machine)
    batch, passes, why = choose_batch(experiment.batch_size, measured, machine)
    settings |= {"batch_size": (batch, why)} | ({"accumulate": (passes, "")} if passes > 1 else {})
    spent = 0.0 if started is None else time.monotonic() - started
    settings |= choose_steps(facts, measured, batch, hours * 3600 - spent, hours)
    settings |= choose_warmup(settings["steps"][0])
    experiment = override(experiment, {name: value for name, (value, _) in settings.items()})
    show(_table(facts, spec, machine, measured))
    for text in warnings(facts, spec, machine):
        note(f"note: {text}")
    title = f"{facts.train} training and {facts.val} validation images, {len(spec.classes)} classes"
    origin = f"{data} and {hours:g} hours on {machine.name}"
    return Plan(experiment, write_python(experiment, settings, title, origin))


def plan_command(out: str, **options: Any) -> None:
    """The plan command: show the file, and write it to `out` if that is named."""
    if out and not out.endswith(".py"):
        raise InputError(f"--out is {out}, but an experiment is a .py file: --out {Path(out).stem or 'plan'}.py")
    if out and Path(out).exists():
        raise InputError(f"{out} exists; name another file, or remove it")
    require_writable(out)
    planned = plan(**options)
    if out:
        write_text(Path(out), planned.text)
        say(f"\nwritten: {out}\nNext: python -m emanet train {out}")
    else:
        say("", planned.text)


# What is measured.


def this_machine(device: str = "auto") -> Machine:
    where = distributed.pick_device(device, training=True)
    if where.type == "cuda":
        memory, name = torch.cuda.mem_get_info(where)[0], torch.cuda.get_device_name(where)
    else:
        memory, name = _free_memory(), f"{cores()} CPU core{'s' * (cores() > 1)}"
    bf16 = where.type == "cuda" and torch.cuda.get_device_capability(where) >= (8, 0)
    machine = Machine(where.type, name, cores(), memory, bf16=bf16)
    return dataclasses.replace(machine, online=_cached(machine.backbone) or _online())


def _free_memory() -> int:
    """Bytes that are free for this process: the machine's, or those of the container around it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text().strip() for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Files that were read count as used, but the kernel drops them where memory is needed.
        return max(0, min(free, int(limit) - int(used) + int(statistics.get("inactive_file", 0))))
    except (OSError, ValueError):  # no such limit
        return free


def _cached(backbone: str) -> bool:
    """Whether the hub's cache holds the weights of a timm model."""
    source: Any = timm.get_pretrained_cfg(backbone)
    files = "model.safetensors", "pytorch_model.bin"
    return any(isinstance(try_to_load_from_cache(source.hf_hub_id, file), str) for file in files)


def _online() -> bool:
    """Whether the hub answers, through a proxy if the environment names one."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=3).close()
    except HTTPError:  # an answer
        return True
    except (OSError, HTTPException):
        return False
    return True


@dataclass(frozen=True)
class Measured:
    batch: int
    """Images of the step that was measured."""
    step: float
    """Seconds of that step without its images."""
    sample: float
    """Seconds that a step waits for each image to be read and augmented."""
    validation: float
    """Seconds to validate an image."""
    fixed: float
    """Bytes of a step that do not depend on its images."""
    image: float
    """Bytes of a step for each image."""


def measure(experiment: Experiment, spec: DatasetSpec, train_set: Any, val_set: Any, machine: Machine) -> Measured:
    """Two real steps on random pixels after one to warm up, and their memory for one and two images."""
    device = torch.device(machine.device)
    net = build_model(override(experiment.model, {"backbone.pretrained": False}), spec)
    net = net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    step_net = StepNet(net, PixelLoss(experiment.loss, spec.classes).to(device))
    optimizer = build_optimizer(net, experiment.optim)
    channels, crop = experiment.model.backbone.in_channels, experiment.data.crop

    def step(batch: int) -> float:
        start = time.monotonic()
        images = torch.randint(0, 256, (batch, channels, *crop), dtype=torch.uint8, device=device)
        labels = torch.randint(0, len(spec.classes), (batch, *crop), dtype=torch.uint8, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(machine.device, torch.bfloat16, enabled=experiment.precision == "bf16"):
            (step_net(images, labels) / labels.numel()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if machine.gpu:
            torch.cuda.synchronize()
        return time.monotonic() - start

    batch = experiment.batch_size
    try:
        step(2)
        two, four = (peak_memory(lambda b=b: step(b), device) for b in (2, 4))  # type: ignore[misc]
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"this machine has not enough memory for a step of 4 images of {crop[0]}x{crop[1]}") from error
    image = max(1.0, (four - two) / 2)
    fixed = max(0.0, two - 2 * image) + 3 * sum(p.numel() * p.element_size() for p in net.parameters())
    batch = min(batch, max(2, int((SHARE * machine.memory - fixed) / image)))
    step(batch)
    seconds = min(step(batch), step(batch))
    samples = TrainingSamples(train_set, experiment.data, [128] * channels, 0)
    start = time.monotonic()
    for position in range(count := min(16, 2 * batch)):
        samples[position]
    sample = waiting((time.monotonic() - start) / count, seconds / batch, processes(experiment), machine)
    net.eval()
    start = time.monotonic()
    for index in range(count := min(3, len(val_set))):
        pixels = torch.from_numpy(val_set.read(index)[0]).permute(2, 0, 1)[None].to(device)
        predict_labels(net, pixels, experiment.eval)
    return Measured(batch, seconds, sample, (time.monotonic() - start) / count, fixed, image)


def waiting(reading: float, computing: float, workers: int, machine: Machine) -> float:
    """Seconds that a step waits for an image, if reading it and computing on it take so long.

    Workers share the reading. A GPU computes meanwhile; on a CPU they take the time from each other.
    """
    reading /= max(1, workers)
    return max(0.0, reading - computing) if machine.gpu and workers else reading


# What is decided.


def choose_network(facts: Fingerprint, machine: Machine) -> Settings:
    thinnest = min((each.thickness for each in facts.classes if each.pixels), default=0.0)
    settings: Settings = {}
    if machine.large:
        stride = 8 if thinnest < 24 else 16
        text = f"the paper's kind of network: {machine.name} has {machine.memory / 2**30:.0f} GiB free"
        settings["model.backbone.name"] = machine.backbone, text
        why = (
            f"the thinnest class is about {thinnest:.0f} pixels wide: {'8 keeps it' if stride == 8 else '16 shows it'}"
        )
        settings["model.backbone.output_stride"] = stride, why
        settings["model.head.channels"] = 512, "the paper's width"
        if machine.bf16:
            settings["precision"] = "bf16", "half the memory of float32 on a GPU"
    elif machine.learns_from_nothing:
        text = "half a million parameters: what learned most from random weights in minutes on a CPU"
        settings["model.backbone.name"] = "test_resnet", text
        settings["model.backbone.output_stride"] = 8, ""
        settings["model.head.channels"] = 128, ""
        settings["model.head.num_bases"] = 32, ""
        settings["model.head.fc1_channels"] = 0, ""
        settings["model.head.dropout"] = 0.0, "a small network hardly overfits"
    else:
        text = f"1.9 M parameters with its head: the best that was measured on a CPU, chosen for {machine.name}"
        settings["model.backbone.name"] = machine.backbone, text
        settings["model.backbone.output_stride"] = 32, "the head joins strides 8, 16 and 32 itself"
        settings["model.head.name"] = "ema_fusion", "EM attention on three stages, made for small networks"
        settings["model.head.channels"] = 128, ""
        if thinnest < 24:
            why = f"a path at stride 4 for details: the thinnest class is about {thinnest:.0f} pixels wide"
            settings["model.head.fc1_channels"] = 64, why
        else:
            why = f"no path for details: the thinnest class is about {thinnest:.0f} pixels wide"
            settings["model.head.fc1_channels"] = 0, why
        settings["model.head.dropout"] = 0.0, "a small network on images at random scales hardly overfits"
    if machine.weights:
        settings["model.backbone.pretrained"] = (
            machine.weights,
            "the file that was named; mean, std and options must be its own",
        )
    elif not machine.pretrained:
        why = "the hub is out of reach. Nothing helps as much as ImageNet weights: name a file, or True for the hub"
        settings["model.backbone.pretrained"] = False, why
    settings["model.align_corners"] = False, f"crops and padded images then lie on one grid of {GRID} pixels"
    return settings


def choose_pixels(facts: Fingerprint, machine: Machine) -> Settings:
    if facts.channels == 3:
        return {}
    return {
        "model.backbone.in_channels": (facts.channels, "as the images have"),
        "model.mean": (facts.mean, "measured on the training images"),
        "model.std": (facts.std, ""),
    }


def choose_crop(facts: Fingerprint, machine: Machine) -> Settings:
    most = 512 if machine.gpu else 320
    h, w = facts.median
    crop = tuple(min(most, max(64, side // GRID * GRID)) for side in (h, w))
    low = min(1.0, max(0.25, round(0.75 * min(1.0, 1.5 * max(crop[0] / h, crop[1] / w)) * 20) / 20))
    spread = max(max(size) for size in facts.sizes) / min(max(size) for size in facts.sizes)
    high = 2.0 if low >= 0.75 else 1.5
    why = f"images are {w}x{h} (middle width x height); " + (
        "a crop shows all of one" if crop[0] >= h and crop[1] >= w else f"{crop[1]}x{crop[0]} shows enough of one"
    )
    settings: Settings = {"data.crop": (crop, why + f"; a multiple of {GRID}")}
    why = f"objects are seen smaller and larger; the images' longer sides differ by a factor of {spread:.1f}"
    if machine.learns_from_nothing:
        low, high = round(min(0.9, 1.2 * low), 2), 1.1
        why = "near their own size: random weights have no time to learn every size"
    settings["data.scales"] = (low, high), why
    settings["data.continuous_scale"] = True, "any scale between the two"
    if facts.channels == 3:
        settings["data.colour"] = 0.2, "brightness, contrast and saturation vary by 20 %"
    workers = 0 if machine.cores <= 2 and not machine.gpu else min(8, max(1, machine.cores // 2))
    settings["data.workers"] = (
        workers,
        f"{machine.cores} cores: {'more processes only wait' if not workers else 'half read images'}",
    )
    return settings


def choose_loss(facts: Fingerprint, machine: Machine) -> Settings:
    why = f"{facts.ignored:.1%} of the pixels are ignored: they do not count" if facts.ignored else "per labelled pixel"
    settings: Settings = {"loss.average": ("valid", why)}
    present = np.array([each.pixels for each in facts.classes if each.pixels], float)
    if len(present) and present.max() / present.min() > 5:
        median = float(np.median(present))
        weights = tuple(
            round(min(5.0, max(0.25, math.sqrt(median / each.pixels))), 1) if each.pixels else 1.0
            for each in facts.classes
        )
        why = f"the rarest class has 1 pixel for {present.max() / present.min():.0f} of the most frequent: "
        settings["loss.class_weights"] = weights, why + "sqrt(median / frequency), 0.25 to 5"
    return settings


def choose_optimiser(facts: Fingerprint, machine: Machine) -> Settings:
    if machine.large:
        batch = 16
        return {
            "optim.lr": (9e-3, "SGD as in the paper, at its batch of 16"),
            "batch_size": (batch, ""),
        }
    many = machine.learns_from_nothing and max(facts.median) <= 200
    return {
        "optim.name": ("adamw", "learns faster than SGD in few steps"),
        "optim.lr": (3e-3, "from random weights") if machine.learns_from_nothing else (2e-3, ""),
        "optim.weight_decay": (1e-2, ""),
        "optim.bias_lr_scale": (1.0, ""),
        "optim.lr_every": (1, ""),
        "batch_size": (16 if many else 8, ""),
    }


def choose_evaluation(facts: Fingerprint, machine: Machine) -> Settings:
    h, w = facts.largest
    if h * w <= (4 << 20 if machine.gpu else 2 << 20):
        return {"eval.mode": ("whole", f"the largest image, {w}x{h}, goes through the network at once")}
    window = (1024, 1024)
    why = f"the largest image, {w}x{h}, is too large for the network at once"
    return {"eval.mode": ("slide", why), "eval.window": (window, "")}


def choose_batch(wanted: int, measured: Measured, machine: Machine) -> tuple[int, int, str]:
    """batch_size, accumulate and the reason."""
    fits = int((SHARE * machine.memory - measured.fixed) / measured.image)
    passes = 1
    while passes < wanted and wanted // passes > max(2, fits):
        passes *= 2
    need = (measured.fixed + measured.image * wanted / passes) / 2**30
    why = f"a pass of {wanted // passes} images takes {need:.1f} of {machine.memory / 2**30:.0f} free GiB (measured)"
    return wanted, passes, why


def choose_steps(facts: Fingerprint, measured: Measured, batch: int, seconds: float, hours: float) -> Settings:
    """How many steps fit, and when to validate."""
    step = batch * (measured.step / measured.batch + measured.sample)
    validation = facts.val * measured.validation
    times = 4 if 4 * validation < 0.15 * seconds else 1
    fits = int((seconds - STARTING - times * validation) / step)
    if fits < 20:
        needed = (STARTING + validation + 20 * step) / 3600
        raise InputError(f"{hours:g} hours are too few: 20 steps and a validation take {needed:.2f} hours here")
    most = max(FEW, MANY * facts.train // batch)
    steps = min(fits, most)
    epochs = steps * batch / facts.train
    why = f"{step:.2f} s a step here (measured): {hours:g} hours hold {fits:,}"
    why += f"; that is {epochs:.1f} epochs" if steps == fits else f"; after {epochs:.0f} epochs more only repeat"
    settings: Settings = {"steps": (steps, why)}
    if times > 1:
        settings["val_every"] = (
            math.ceil(steps / times),
            f"{times} validations of {validation:.0f} s; the best model is kept",
        )
    return settings


def choose_warmup(steps: int) -> Settings:
    return {"optim.warmup_steps": (min(100, steps // 10), "a tenth of the run, at most 100")}


def warnings(facts: Fingerprint, spec: DatasetSpec, machine: Machine) -> list[str]:
    """What a person should know before starting the run."""
    texts = []
    if not machine.pretrained:
        text = "the hub is out of reach, so the network starts from random weights and will be much worse"
        texts.append(f"{text}; give a file of ImageNet weights as model.backbone.pretrained")
    if facts.twins:
        text = f"{facts.twins} of {facts.read_val} validation images nearly equal a training image"
        texts.append(f"{text}: the score will be too high; split by video or place instead")
    absent = [name for name, each in zip(spec.classes, facts.classes, strict=True) if not each.pixels]
    if absent:
        texts.append(f"no training image that was read shows {', '.join(absent[:5])}")
    rare = [
        f"{name} ({each.images})"
        for name, each in zip(spec.classes, facts.classes, strict=True)
        if 0 < each.images < 10 and facts.read >= 20
    ]
    if rare:
        texts.append(f"few images show {', '.join(rare[:5])}: more of them help more than any setting")
    return texts


def _table(facts: Fingerprint, spec: DatasetSpec, machine: Machine, measured: Measured) -> Grid:
    total = max(1, sum(each.pixels for each in facts.classes))
    rows = [
        (name, f"{each.pixels / total:.2%}", str(each.images), f"{each.thickness:.0f}" if each.pixels else "-")
        for name, each in zip(spec.classes, facts.classes, strict=True)
    ]
    small, large = min(facts.sizes), facts.largest
    read = "" if facts.read == facts.train else f" ({facts.read} were read)"
    notes = [
        f"{facts.train} training images{read}, {facts.val} for validation; {facts.channels} channels",
        f"sizes {small[1]}x{small[0]} to {large[1]}x{large[0]}; {facts.ignored:.1%} of the pixels are ignored",
        f"{machine.name}, {machine.memory / 2**30:.1f} GiB free; a step of {measured.batch} images takes "
        f"{measured.step + measured.batch * measured.sample:.2f} s",
    ]
    return Grid("", ("class", "pixels", "images", "width"), rows, notes)
