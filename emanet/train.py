"""Training, whole, to be read downwards: the same code on a CPU, one GPU, or the ranks of torchrun.

    python -m emanet train EXPERIMENT [--steps 1000 ...]
    torchrun --nproc-per-node 4 -m emanet train EXPERIMENT

`net` is the plain model: what is saved and evaluated. `step_net` is the same weights with the loss, compiled and
wrapped for several ranks: what is called.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from . import checkpoint, distributed, recompute
from .config import Experiment
from .data.datasets import Dataset, check, open_dataset, resolve
from .data.transforms import TrainingSamples, training_loader
from .errors import InputError, some
from .evaluate import evaluate
from .experiments import checked, flatten, load_experiment, override
from .losses import PixelLoss
from .model import EMANet, build_model
from .optim import build_optimizer, lr_at, set_lr
from .rundir import RunFolder, pick_run_folder

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAY_DIFFER = ("data.root", "data.workers", "data.check", "device", "compile", "log_every", "val_every", "save_every")
# settings that a resumed run may change: the weights do not know
MAY_DIFFER += ("recompute", "keep_every", "pictures", "eval.")


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


def train(config: Experiment, out: str | Path = "", *, name: str = "run", resume: bool = False) -> dict[str, Any]:
    """Run the experiment into the folder `out`, or runs/NAME, or the next free runs/NAME-2.

    Returns the report of the last validation (see metrics). With `resume` the run continues from its latest
    checkpoint, if it has one. Raises InputError for anything wrong with the data, the config or the weights before the
    first step, and where the loss stops being finite.
    """
    config = checked(config)
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
    run = RunFolder(pick_run_folder(out, name, resume))
    if config.data.check:
        distributed.first_on_rank_zero(lambda: [check_labels(s, run.console) for s in (train_set, val_set)])
    samples = TrainingSamples(train_set, config.data, _fill(config, channels), config.seed)

    loss_fn = PixelLoss(config.loss, spec.classes).to(device)

    # Model: the same random start on every rank.
    torch.manual_seed(config.seed)
    start = resume and bool(checkpoint.checkpoints(run.folder))
    model_config = override(config.model, {"backbone.pretrained": False}) if start or config.init_from else config.model
    net = build_model(model_config, spec)
    if config.init_from and not start:
        loaded, fresh = checkpoint.start_from(net, config.init_from)
        run.say(f"from {config.init_from}: {len(loaded)} tensors; {len(fresh)} start anew: {some(fresh) or 'none'}")
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    net = net.to(device, memory_format=layout)
    if world > 1 and config.sync_bn:
        net = distributed.sync_batch_norm(net)
    if config.recompute:
        recompute.blocks(net.backbone)
    net.train()

    optimizer = build_optimizer(net, config.optim)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    first_step, best, seconds = 0, -1.0, 0.0
    if resume and not start:
        run.say(f"no checkpoint in {run.folder}: starting anew")
    if start:
        _require_same(config, load_experiment(str(run.folder)), run.folder)
        first_step, training = checkpoint.load_checkpoint(run.folder, net, device)
        optimizer.load_state_dict(training["optimizer"])
        scaler.load_state_dict(training["scaler"])
        best, seconds = training["best"], training["seconds"]
        run.say(f"resumed at step {first_step} of {config.steps}")
    run.open(config, net, first_step)

    step_net: nn.Module = StepNet(net, loss_fn)
    if config.compile:
        step_net = torch.compile(step_net)
    if world > 1:
        devices = [device.index] if device.type == "cuda" else None
        step_net = DistributedDataParallel(step_net, device_ids=devices, broadcast_buffers=False)
    autocast = torch.autocast(device.type, AUTOCAST[config.precision], enabled=config.precision != "fp32")
    parameters = [p for p in net.parameters() if p.requires_grad]

    def save(step: int) -> None:
        state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        state |= {"best": best, "seconds": seconds + time.perf_counter() - began}
        distributed.first_on_rank_zero(lambda: checkpoint.save_checkpoint(run.folder, net, config, state, step))

    report: dict[str, Any] = {}
    began = mark = time.perf_counter()
    recent: list[float] = []
    loader = training_loader(samples, config, first_step, rank, world)
    with run.bar(first_step, config.steps):
        for step, batch in enumerate(loader, first_step):
            if isinstance(batch, InputError):
                raise batch
            images, labels, positions = batch
            # Whatever a step draws (dropout) is a function of (seed, step, rank): resuming needs no generator state.
            torch.manual_seed(int(np.random.SeedSequence([config.seed, step, rank]).generate_state(1)[0]))
            lr = lr_at(step, config.steps, config.optim)
            set_lr(optimizer, lr)
            labels = labels.to(device, non_blocking=True)
            divisor = distributed.sum_over_ranks(loss_fn.divisor(labels)).float()
            divisor = torch.where(divisor > 0, divisor, 1)  # nothing is labelled: the sum is 0 as well
            total = torch.zeros((), device=device)
            for i in range(config.accumulate):
                passed = slice(i * share, (i + 1) * share)
                part = images[passed].to(device, non_blocking=True, memory_format=layout)
                # Gradients are summed over ranks once, in the last pass.
                last = i == config.accumulate - 1
                with contextlib.nullcontext() if last or world == 1 else step_net.no_sync():
                    with autocast:
                        loss = step_net(part, labels[passed]) / divisor
                    scaler.scale(loss * world).backward()  # DDP averages over ranks; ours is a sum
                total += loss.detach()
            own = total.item()
            value = distributed.sum_over_ranks(total).item()
            if not np.isfinite(value):
                files = some((samples.name(int(p)) for p in positions), 8)
                if np.isfinite(own):
                    time.sleep(2)  # another rank's batch: it says which, before a launcher ends it for our end
                    raise SystemExit(2)
                raise InputError(
                    f"the loss is {value} at step {step} with learning rate {lr:.3g}, on the batch {files}"
                )
            if config.optim.clip_norm:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(parameters, config.optim.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

            done = step + 1
            recent.append(value)
            run.advance(done, value, lr)
            if done % config.log_every == 0 or done == config.steps:
                now = time.perf_counter()
                rate, mark = len(recent) * config.batch_size / (now - mark), now
                elapsed = seconds + now - began
                run.log("train", step=done, loss=float(np.mean(recent)), lr=lr, images_per_second=rate, seconds=elapsed)
                recent.clear()
            validate = done == config.steps or (config.val_every and done % config.val_every == 0)
            if validate:
                take = run.picture_taker(config, net, done)
                matrix = evaluate(net, val_set, config.eval, workers=config.data.workers, on_sample=take)
                report = matrix.report()
                run.log("val", step=done, **report)
                if report["mIoU"] is not None and report["mIoU"] > best:
                    best = report["mIoU"]
                    facts = {"step": done, "metrics": report}
                    distributed.first_on_rank_zero(
                        lambda: checkpoint.save_model(run.folder / "best.safetensors", net, config, **facts)  # noqa: B023
                    )
                mark = time.perf_counter()
            if validate or done % config.save_every == 0 or (config.keep_every and done % config.keep_every == 0):
                save(done)
    if report:
        run.close(matrix)
    return report


def check_labels(dataset: object, console: Any) -> None:
    """Open every mask of a data set made of files, with a bar, before a training starts on it."""
    if not isinstance(dataset, Dataset):
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"checking {len(dataset)} masks", total=len(dataset))
        counts = check(dataset, lambda done: bar.update(task, completed=done))
    if counts is not None and not counts.all():
        absent = [name for name, count in zip(dataset.spec.classes, counts, strict=True) if not count]
        note = f"note: no pixel is labelled {some(absent)} under {dataset.pairs[0][1].parent}"
        console.print(note, markup=False, highlight=False, soft_wrap=True)


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
