"""Training, whole, to be read downwards: the same code on a CPU, one GPU, or the ranks of torchrun.

    python -m emanet train EXPERIMENT [--steps 1000 ...]
    torchrun --nproc-per-node 4 -m emanet train EXPERIMENT

`net` is the plain model: what is saved and evaluated. `step_net` is the same weights with the loss, compiled and
wrapped for several ranks: what is called.
"""

import contextlib
import hashlib
import itertools
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import __version__, distributed
from .config import Experiment
from .data.check.quick import check, one_class
from .data.datasets import Dataset, open_dataset, resolve
from .data.loader import training_loader
from .data.transforms import TrainingSamples
from .errors import InputError, Interrupted, some
from .evaluate import evaluate
from .experiments import checked, flatten, load_experiment, override, read_json
from .interrupt import Interruption
from .loading import start_from
from .losses import PixelLoss
from .model import EMANet, build_model
from .ops import recompute
from .ops.sync_batch_norm import sync_batch_norm
from .optim import build_optimizer, lr_at, set_lr
from .run.checkpoints import checkpoints, load_checkpoint, put_back, save_best, save_checkpoint, set_aside
from .run.folder import RunFolder, pick_run_folder

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAY_DIFFER = ("data.root", "data.workers", "data.check", "device", "compile", "log_every", "val_every", "save_every")
# settings that a resumed run may change: the weights do not know
MAY_DIFFER += ("recompute", "keep_last", "keep_every", "skip_limit", "pictures", "eval.")
PER_MACHINE = ("data.root", "data.workers", "device")  # settings that may differ between the ranks of one training


class StepNet(nn.Module):
    """Model and loss as one module, so that DDP and compile see the whole pass and only a scalar leaves it."""

    def __init__(self, net: EMANet, loss: PixelLoss):
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """images (b, C, h, w) uint8, labels (b, h, w) uint8 -> the loss summed over pixels, float32."""
        low, aux = self.net.low_logits(self.net.normalise(images))
        spread = self.net.padded_size(labels.shape[1:]), self.net.align_corners
        loss = self.loss.of_low(low, labels, *spread)
        if aux is not None:
            loss = loss + self.loss.config.aux_weight * self.loss.of_low(aux, labels, *spread)
        return loss


@dataclass
class TrainingState:
    """How far a training is, beside its step: part of its checkpoints."""

    best: float = -1.0
    """mIoU of best.safetensors."""
    seconds: float = 0.0
    skipped: int = 0
    """Steps whose loss or gradient was not finite, and of them the latest in a row."""
    in_a_row: int = 0
    unvalidated: bool = False
    """A signal has cut this step's validation off."""
    recent: list[float] = field(default_factory=list)
    """Losses since the last line of the log."""


@distributed.ending_together()
def train(config: Experiment, out: str | Path = "", *, name: str = "run", resume: bool = False) -> dict[str, Any]:
    """Run the experiment into the folder `out`, or runs/NAME, or the next free runs/NAME-2.

    Returns the report of the last validation (see metrics.report). With `resume` the run continues from its latest
    checkpoint, if it has one; on one kind of CPU with the weights, to the bit, of a run that was never interrupted.
    torchrun's restarts do so too. SIGTERM and SIGINT finish the step, save, and raise Interrupted.
    Raises InputError for anything wrong with the data, the config or the weights before the first step, where the loss
    or the gradient stays without a finite value, where a checkpoint cannot be written, and where another rank ends.
    """
    config = checked(config)
    if distributed.restarts()[1] and not str(out):
        raise InputError("torchrun --max-restarts needs a run folder to go on in: train ... --out FOLDER")
    device = distributed.pick_device(config.device)
    distributed.init(device)
    rank, world = distributed.rank(), distributed.world_size()
    share = config.batch_size // (world * config.accumulate)  # images of one pass on one rank
    if share * world * config.accumulate != config.batch_size:
        raise InputError(f"batch_size {config.batch_size} is no multiple of {world} ranks x {config.accumulate} passes")

    if share == 1 and all(side <= config.model.backbone.output_stride for side in config.data.crop):
        raise InputError(
            f"BatchNorm cannot train on passes of 1 image with crops of {config.data.crop}: one pixel each"
        )

    # Data: the resolved spec and root become part of the config, and so of every file written from here on.
    config = override(config, {"data": resolve(config.data)})
    spec = config.data.spec
    channels = config.model.backbone.in_channels
    train_set = open_dataset(config.data, config.data.train_split, channels)
    val_set = open_dataset(config.data, config.data.val_split, channels)
    shared = {key: value for key, value in flatten(config).items() if key not in PER_MACHINE}
    files = {f"the files of {s}": _listing(d, config.data.root) for s, d in (("train", train_set), ("val", val_set))}
    distributed.agree(**{"the version of emanet": __version__}, **shared, **files)
    folder, resume = pick_run_folder(out, name, resume)
    run = RunFolder(folder)
    distributed.first_on_rank_zero(lambda: (run.own(), put_back(folder)))
    if config.data.check:
        distributed.first_on_rank_zero(lambda: [check_labels(s, run.console) for s in (train_set, val_set)])
    samples = TrainingSamples(train_set, config.data, _fill(config, channels), config.seed)

    loss_fn = PixelLoss(config.loss, spec.classes).to(device)

    # Model: the same random start on every rank.
    torch.manual_seed(config.seed)
    start = resume and bool(checkpoints(run.folder))
    distributed.agree(**{f"whether {run.folder} has a checkpoint": start})
    model_config = override(config.model, {"backbone.pretrained": False}) if start or config.init_from else config.model
    net = build_model(model_config, spec)
    if config.init_from and not start:
        loaded, fresh = start_from(net, config.init_from)
        run.say(f"from {config.init_from}: {len(loaded)} tensors; {len(fresh)} start anew: {some(fresh) or 'none'}")
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    net = net.to(device, memory_format=layout)
    if world > 1 and config.sync_bn:
        net = sync_batch_norm(net)
    if config.recompute:
        recompute.blocks(net.backbone)
    net.train()

    optimizer = build_optimizer(net, config.optim)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    first_step, progress = 0, TrainingState()
    if resume and not start:
        run.say(f"no checkpoint in {run.folder}: starting anew")
    if start:
        earlier = load_experiment(str(run.folder))
        _require_same(config, earlier, run.folder)
        source, training, broken = load_checkpoint(run.folder, net, device)
        distributed.agree(**{"the checkpoint to resume from": source.name})
        first_step, progress = int(source.name), TrainingState(**training["progress"])
        for problem in broken.values():
            run.say(f"warning: {problem}; going on from {source.name}")
        distributed.first_on_rank_zero(lambda: set_aside(broken))
        optimizer.load_state_dict(training["optimizer"])
        scaler.load_state_dict(training["scaler"])
        run.say(f"resumed at step {first_step} of {config.steps}")
        complete = first_step == config.steps and not progress.unvalidated and run.result.is_file()
        if complete and config.eval == earlier.eval:
            return read_json(run.result)  # there is nothing left to do
    unvalidated = progress.unvalidated or first_step == config.steps
    distributed.first_on_rank_zero(lambda: run.open(config, net, first_step, unvalidated))

    step_net: nn.Module = StepNet(net, loss_fn)
    if config.compile:
        step_net = torch.compile(step_net)
    if world > 1:
        devices = [device.index] if device.type == "cuda" else None
        step_net = DistributedDataParallel(step_net, device_ids=devices, **distributed.KEEP_BUFFERS)
    autocast = torch.autocast(device.type, AUTOCAST[config.precision], enabled=config.precision != "fp32")
    parameters = [p for p in net.parameters() if p.requires_grad]
    began = mark = time.perf_counter()
    before, matrix = progress.seconds, None

    def settle(done: int, validate: bool, stop: bool) -> None:
        """What follows a step: a validation, a checkpoint, and the end that a signal asked for.

        A validation that a signal cuts off is left to the resumed run, which begins with it.
        """
        nonlocal matrix, mark
        if validate and not stop:
            if not config.sync_bn:
                distributed.take_rank_zeros(net.buffers())  # whose statistics are saved, so that they are scored
            take = run.picture_taker(config, net, done)
            options = {"workers": config.data.workers, "on_sample": take, "until": lambda: bool(asked)}
            found = evaluate(net, val_set, config.eval, **options)
            stop = distributed.sum_over_ranks(torch.tensor(float(bool(asked)), device=device)).item() > 0
            if not stop:
                matrix, report = found, found.report()
                run.log("val", step=done, **report)
                if report["mIoU"] is not None and report["mIoU"] > progress.best:
                    progress.best = report["mIoU"]
                    distributed.first_on_rank_zero(lambda: save_best(run.folder, net, config, done, report))
            mark = time.perf_counter()
        if validate or stop or done % config.save_every == 0 or (config.keep_every and done % config.keep_every == 0):
            progress.seconds = before + time.perf_counter() - began
            progress.unvalidated = validate and stop
            state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(), "progress": asdict(progress)}
            distributed.first_on_rank_zero(lambda: save_checkpoint(run.folder, net, config, state, done))
        if stop:
            by = next(name for name in distributed.gather(asked.by) if name)
            saved = f"step {done} of {config.steps} is saved in {run.folder}; --resume goes on"
            distributed.end(Interrupted(f"{by}: {saved}"))

    logged = first_step
    loader = training_loader(samples, config, first_step, rank, world)
    with Interruption(tell=rank == 0) as asked, run.bar(first_step, config.steps):
        if unvalidated:
            settle(first_step, True, False)
        for step, batch in enumerate(loader, first_step):
            if isinstance(batch, InputError):
                raise InputError(str(batch))  # raised itself, it would keep this frame, and with it the loader, alive
            images, labels, positions = batch
            # Whatever a step draws (dropout) is a function of (seed, step, rank): resuming needs no generator state.
            torch.manual_seed(int(np.random.SeedSequence([config.seed, step, rank]).generate_state(1)[0]))
            lr = lr_at(step, config.steps, config.optim)
            set_lr(optimizer, lr)
            buffers = [buffer.clone() for buffer in net.buffers()]
            labels = labels.to(device, non_blocking=True)
            divisor = distributed.sum_over_ranks(loss_fn.divisor(labels)).float()
            divisor = torch.where(divisor > 0, divisor, 1)  # nothing is labelled: the sum is 0 as well
            total = torch.zeros(2, device=device)  # the loss, and whether a signal asks to stop
            for i in range(config.accumulate):
                passed = slice(i * share, (i + 1) * share)
                part = images[passed].to(device, non_blocking=True, memory_format=layout)
                # Gradients are summed over ranks once, in the last pass.
                last = i == config.accumulate - 1
                with contextlib.nullcontext() if last or world == 1 else step_net.no_sync():
                    with autocast:
                        loss = step_net(part, labels[passed]) / divisor
                    scaler.scale(loss * world).backward()  # DDP averages over ranks; ours is a sum
                total[0] += loss.detach()
            own = total[0].clone()
            total[1] = float(bool(asked))
            value, stop = distributed.sum_over_ranks(total).tolist()
            scaler.unscale_(optimizer)
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if config.optim.clip_norm:
                nn.utils.clip_grads_with_norm_(parameters, config.optim.clip_norm, norm)
            if math.isfinite(value) and math.isfinite(norm):
                scaler.step(optimizer)
                progress.in_a_row = 0
                progress.recent.append(value)
            else:  # the same on all ranks: the loss is the sum of theirs, and so is the gradient
                for buffer, kept in zip(net.buffers(), buffers, strict=True):
                    buffer.copy_(kept)
                progress.skipped += 1
                progress.in_a_row += 1
                blamed = not math.isfinite(own) or math.isfinite(value)  # else it was another rank's batch
                names = distributed.gather([samples.name(int(p)) for p in positions] if blamed else [])
                what = f"the loss is {value:.4g}, the gradient's norm {norm:.4g}, the learning rate {lr:.3g}"
                what = f"step {step} is skipped: {what}, the batch {some(itertools.chain(*names), 8)}"
                if progress.in_a_row >= config.skip_limit:
                    distributed.end(InputError(f"{what}; that makes {progress.in_a_row} in a row"))
                run.say(what)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

            done = step + 1
            run.advance(done, value, lr)
            if done % config.log_every == 0 or done == config.steps:
                now = time.perf_counter()
                facts = {"loss": float(np.mean(progress.recent))} if progress.recent else {}
                facts |= {"lr": lr, "images_per_second": (done - logged) * config.batch_size / (now - mark)}
                run.log("train", step=done, **facts, seconds=before + now - began, skipped=progress.skipped)
                progress.recent, logged, mark = [], done, now
            settle(done, done == config.steps or (config.val_every and done % config.val_every == 0), stop > 0)
        if progress.skipped:
            run.say(f"{progress.skipped} of {config.steps} steps were skipped: their loss or gradient was not finite")
        run.close(matrix)
    return matrix.report()


def check_labels(dataset: object, console: Any) -> None:
    """Open every mask of a data set made of files, with a bar, before a training starts on it."""
    if not isinstance(dataset, Dataset):
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"checking {len(dataset)} masks", total=len(dataset))
        counts = check(dataset, lambda done: bar.update(task, completed=done))
    if counts is None:
        return
    absent = [name for name, count in zip(dataset.spec.classes, counts, strict=False) if not count]
    note = one_class(counts, dataset.spec) or (f"no pixel is labelled {some(absent)}" if absent else "")
    if note:
        where = dataset.pairs[0][1].parent
        console.print(f"note: under {where} {note}", markup=False, highlight=False, soft_wrap=True)


def _listing(dataset: object, root: str) -> str:
    """A digest of a data set's names in their order, wherever a machine has it."""
    names = (dataset.name(i).removeprefix(root) for i in range(len(dataset)))
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _fill(config: Experiment, channels: int) -> list[int]:
    mean = config.model.mean if len(config.model.mean) == channels else config.model.mean * channels
    return [round(255 * value) for value in mean]


def _require_same(config: Experiment, before: Experiment, folder: Path) -> None:
    now, then = flatten(config), flatten(before)
    changed = [
        f"{name} {then.get(name)} -> {now.get(name)}"
        for name in now | then
        if now.get(name) != then.get(name) and not name.startswith(MAY_DIFFER)
    ]
    if changed:
        raise InputError(f"{folder} cannot be resumed with other settings: {some(changed)}")
