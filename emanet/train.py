"""Training, to be read downwards: the same code on a CPU, one GPU, or the ranks of torchrun.

    python -m emanet train EXPERIMENT [--steps 1000 ...]
    torchrun --nproc-per-node 4 -m emanet train EXPERIMENT

`train` prepares, restores and loops. `net` is the plain model. `step_net` is the same weights with the loss, compiled
and wrapped for several ranks: it is called. `model` is what is saved and evaluated: `net` or its averaged weights.
"""

import copy
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from . import distributed
from .advice import about_ranks, about_settings, about_start, check_data
from .config import Experiment
from .data.datasets import open_dataset, resolve
from .data.listing import number
from .data.loader import processes, training_loader
from .data.transforms import TrainingSamples
from .errors import InputError, Interrupted, some
from .evaluate import evaluate
from .experiments import checked, load_experiment, override, read_json
from .inference import predict_logits
from .interrupt import Interruption
from .loading import load_teacher, read, start_from, stored_spec
from .losses import PixelLoss
from .metrics import ConfusionMatrix
from .model import EMANet, build_model
from .ops import recompute
from .ops.averaging import average_in, freeze_bn
from .ops.dropout import DrawnAsBefore, step_seed
from .ops.sync_batch_norm import sync_batch_norm
from .ops.undo import BufferUndo
from .optim import build_optimizer, lr_at, set_lr
from .processor import require_fast
from .run.checkpoints import State, checkpoints, load_checkpoint, put_back, save_best, save_checkpoint, set_aside
from .run.deterministic import fix_workspace, same_bits
from .run.folder import RunFolder, pick_run_folder, require_agreement, require_same
from .run.limits import limits_told, require_divisible
from .run.log import Clock, Drawings, RunLog
from .run.outcomes import Outcome, read_outcomes

AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@distributed.ending_together()
def train(
    config: Experiment, out: str | Path = "", *, name: str = "run", resume: bool = False, plan: str = "",
    force: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Run the experiment into the folder `out`, or runs/NAME, or the next free runs/NAME-2.

    Returns the report of the last validation (see metrics.report). With `resume` the run continues from its latest
    checkpoint, if it has one, and so does a restart by torchrun; on one kind of CPU it ends with the weights of a run
    that was never interrupted, to the bit; with another number of ranks, to rounding. SIGTERM and SIGINT finish the
    step, save, and raise Interrupted.
    Raises InputError before the first step for anything wrong with the data, the config or the weights; later if the
    loss or the gradient stays infinite or NaN, if a checkpoint cannot be written, or if another rank ends.
    """
    fix_workspace(config)
    run = prepare(checked(config), out, name, resume, plan, force)
    report = restore(run)
    if report is not None:
        return report
    distributed.first_on_rank_zero(open_folder, run)
    step_net = wrap(run)
    run.clock = Clock(run.state.progress.seconds, run.state.step)
    ranks = distributed.rank(), distributed.world_size(), run.state.progress.ranks
    batches = training_loader(run.samples, run.config, run.state.step, *ranks)
    with Interruption(tell=distributed.rank() == 0) as interruption:
        limits = limits_told(run.config, run.device, run.folder.path, partial(save_before_error, run))
        with run.log.bar(run.state.step, run.config.steps), limits, same_bits(run.config, run.device):
            if run.state.progress.unvalidated:
                validate_and_save(run, interruption, validate=True)
            unread: list[Outcome] = []
            for batch in batches:
                unread.append(step(run, step_net, batch, stop=bool(interruption)))
                after_step(run, unread, interruption)
        return finish(run)


class StepNet(nn.Module):
    """Model and loss as one module, so that DDP and compile see the whole pass and only a scalar leaves it."""

    def __init__(self, net: EMANet, loss: PixelLoss):
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, images: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        """images (b, C, h, w) uint8, labels (b, h, w) uint8 -> the loss summed over pixels, float32.

        teacher: logits (b, classes, h, w) of a network to learn from.
        """
        low, aux = self.net.low_logits(self.net.normalise(images))
        spread = self.net.padded_size(labels.shape[1:]), self.net.align_corners
        loss = self.loss.of_low(low, labels, *spread, teacher)
        if aux is not None:
            loss = loss + self.loss.config.aux_weight * self.loss.of_low(aux, labels, *spread)
        return loss


@dataclass
class Run:
    """What `prepare` makes and the other functions work on."""

    config: Experiment
    device: torch.device
    folder: RunFolder
    log: RunLog
    resume: bool
    """Continue from a checkpoint, if there is one."""
    has_checkpoint: bool
    samples: TrainingSamples
    val_set: Any
    net: EMANet
    model: EMANet
    """What is validated and saved: `net` itself, or with optim.average the average of its weights."""
    loss: PixelLoss
    teacher: EMANet | None
    """What `distill` names."""
    state: State
    undo: BufferUndo
    clock: Clock = field(default_factory=Clock)
    drawn: DrawnAsBefore | None = None
    """Dropout, if the run was started with another number of ranks."""
    matrix: ConfusionMatrix | None = None
    """Of the last validation."""


def prepare(
    config: Experiment,
    out: str | Path,
    name: str,
    resume: bool,
    plan: str = "",
    force: bool = False,
    *,
    untouched: bool = False,
) -> Run:
    """Data, model and optimiser. Writes nothing, but locks the run folder if it exists.

    untouched: not even that, and says nothing: for a look at the run in `out`, which may be going on.
    """
    if distributed.restarts()[1] and not str(out):
        raise InputError("torchrun --max-restarts needs a run folder to continue in: train ... --out FOLDER")
    device = distributed.pick_device(config.device, training=True)
    require_fast(config.precision, device, force or untouched)
    distributed.init(device)
    require_divisible(config)

    # Data. The resolved spec and root become part of the config, and so of every file written from here on.
    config = override(config, {"data": resolve(config.data)})
    channels = config.model.backbone.in_channels
    train_set = open_dataset(config.data, config.data.train_split, channels)
    val_set = open_dataset(config.data, config.data.val_split, channels)
    require_agreement(config, train_set, val_set)
    path, resume = (Path(out), resume) if untouched else pick_run_folder(out, name, resume)
    folder, log = RunFolder(path, plan), RunLog(path, distributed.rank() == 0 and not untouched)
    if not untouched:
        distributed.first_on_rank_zero(folder.lock)
        distributed.first_on_rank_zero(put_back, path)
    if config.data.check and not untouched:
        distributed.first_on_rank_zero(check_data, config, train_set, val_set, log.say)
    last_from = config.last(config.data.last_share) * config.batch_size
    room = int(config.data.keep * 2**30) // max(1, processes(config))
    samples = TrainingSamples(train_set, config.data, _fill(config, channels), config.seed, last_from, room)

    # Model: the same random start on every rank. Weights that `restore` replaces are not downloaded.
    spec = stored_spec(config)
    loss = PixelLoss(config.loss, spec.classes).to(device)
    teacher = load_teacher(config.distill, spec, channels, device) if config.distill else None
    has_checkpoint = resume and bool(checkpoints(path))
    distributed.agree({f"whether {path} has a checkpoint": has_checkpoint})
    torch.manual_seed(config.seed)
    replaced = has_checkpoint or config.init_from
    net = build_model(override(config.model, {"backbone.pretrained": False}) if replaced else config.model, spec)
    net = net.to(device, memory_format=_layout(config))  # type: ignore[call-overload]  # missing in torch's stubs
    averaged = copy.deepcopy(net).eval() if config.optim.average else None
    if distributed.world_size() > 1 and config.sync_bn:
        net = sync_batch_norm(net)
    if config.recompute:
        recompute.blocks(net.backbone)
    net.train()
    log.say(*(f"note: {text}" for text in about_settings(config, net)))

    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    state = State(build_optimizer(net, config.optim), scaler, trained=net if averaged else None)
    nets = net, averaged or net, loss, teacher
    return Run(config, device, folder, log, resume, has_checkpoint, samples, val_set, *nets, state, BufferUndo(net))


def restore(run: Run) -> dict[str, Any] | None:
    """Weights and state of the latest checkpoint, or the weights of init_from.

    Returns the report if the run is complete and there is nothing left to do.
    """
    config, path, state, world = run.config, run.folder.path, run.state, distributed.world_size()
    if not run.has_checkpoint:
        state.progress.ranks = world
        if run.resume:
            run.log.say(f"no checkpoint in {path}: starting from step 0")
        if config.init_from:
            file = read(config.init_from)
            loaded, fresh = start_from(run.net, file)
            run.model.load_state_dict(run.net.state_dict())
            rest = f"{len(fresh)} keep their initial values: {some(fresh) or 'none'}"
            run.log.say(f"from {config.init_from}: {len(loaded)} tensors; {rest}")
            run.log.say(*(f"note: {text}" for text in about_start(config, file.experiment)))
        return None
    earlier = load_experiment(str(path))
    require_same(config, earlier, path)
    source, saved, broken = load_checkpoint(path, run.model, run.device)
    distributed.agree({"the checkpoint to resume from": source.name})
    for problem in broken.values():
        run.log.say(f"warning: {problem}; continuing from {source.name}")
    distributed.first_on_rank_zero(set_aside, broken)
    state.load_state_dict(saved, int(source.name))
    run.log.say(f"resumed at step {state.step} of {config.steps}")
    before = draw_as(run, state.progress.ranks or run.folder.ranks() or world)
    if before != world:
        run.log.say(about_ranks(config, run.net, before, world))
    done = state.step == config.steps
    if done and not state.progress.unvalidated and run.folder.result.is_file() and config.eval == earlier.eval:
        return read_json(run.folder.result)
    state.progress.unvalidated |= done
    return None


def draw_as(run: Run, ranks: int) -> int:
    """Draw and share out the passes as so many ranks do. Returns their number."""
    run.state.progress.ranks = ranks
    if ranks != distributed.world_size():
        run.drawn = DrawnAsBefore(run.net, ranks, run.device)
    return ranks


def open_folder(run: Run) -> None:
    """Write how the run is made, and start its log."""
    config, net, state = run.config, run.net, run.state
    run.folder.write_origin(config, net, state.step)
    run.log.open(state.step, state.progress.unvalidated)
    count = sum(p.numel() for p in net.parameters())
    for split, dataset in ((config.data.train_split, run.samples.dataset), (config.data.val_split, run.val_set)):
        notes = getattr(dataset, "notes", ())  # the drawn scenes have none
        run.log.say("; ".join([f"{split}: {number(dataset, 'image')}", *notes]))
    run.log.say(
        f"{config.model.backbone.name} + {config.model.head.name}: {count / 1e6:.2f} M parameters, on {run.device}, "
        f"{config.steps} steps of {config.batch_size} images, into {run.folder.path}"
    )


def wrap(run: Run) -> nn.Module:
    """The step_net. Call it after `restore`: DDP sends rank 0's weights to the other ranks."""
    step_net: nn.Module = StepNet(run.net, run.loss)
    if run.config.compile:
        step_net = torch.compile(step_net)  # type: ignore[assignment]  # a module again
    if distributed.world_size() > 1:
        devices = [run.device.index] if run.device.type == "cuda" else None
        step_net = DistributedDataParallel(step_net, device_ids=devices, **distributed.KEEP_BUFFERS)
    return step_net


def step(run: Run, step_net: nn.Module, batch: list[Tensor], stop: bool) -> Outcome:
    """One optimiser step. If loss or gradient are not finite, it changes nothing; the device decides that by itself.

    batch: see training_loader. stop: this rank wants to stop after the step.
    """
    config, device, state = run.config, run.device, run.state
    rank, world = distributed.rank(), distributed.world_size()
    images, labels, positions = batch
    torch.manual_seed(step_seed(config.seed, state.step, rank))
    if run.drawn:
        run.drawn.start(config.seed, state.step)
    lr = lr_at(state.step, config.steps, config.optim)
    set_lr(state.optimizer, lr)
    freezes = config.last(config.optim.freeze_bn)
    if state.step == freezes and not config.sync_bn:
        distributed.take_rank_zeros(run.net.buffers())  # until now each rank had statistics of its own
    if state.step >= freezes:
        freeze_bn(run.net)  # in every step, as validations end with net.train()
    run.undo.keep()

    labels = labels.to(device, non_blocking=True)
    divisor = distributed.sum_over_ranks(run.loss.divisor(labels)).float()
    divisor = torch.where(divisor > 0, divisor, 1)  # if no pixel is labelled, the sum is 0 as well
    total = torch.zeros(2, device=device)  # the loss, and how many ranks want to stop
    share = len(images) // config.accumulate
    for i in range(config.accumulate):
        passed = slice(i * share, (i + 1) * share)
        part = images[passed].to(device, non_blocking=True, memory_format=_layout(config))
        # Gradients are summed over ranks once, in the last pass.
        last = i == config.accumulate - 1
        with (
            step_net.no_sync() if isinstance(step_net, DistributedDataParallel) and not last else nullcontext(),
            run.undo.on_error(),
        ):
            with torch.autocast(device.type, AUTOCAST[config.precision], enabled=config.precision != "fp32"):
                shown = predict_logits(run.teacher, part) if run.teacher else None
                loss = step_net(part, labels[passed], shown) / divisor
            state.scaler.scale(loss * world).backward()  # DDP averages over ranks; ours is a sum
        total[0] += loss.detach()
    own = total[0].clone()
    total[1] = float(stop)
    distributed.sum_over_ranks(total)

    state.scaler.unscale_(state.optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in run.net.parameters() if p.grad is not None])
    if config.optim.clip_norm:
        nn.utils.clip_grads_with_norm_(run.net.parameters(), config.optim.clip_norm, norm)
    # The same on all ranks: the loss is the sum of theirs, and so is the gradient.
    skip = ~(total[0].isfinite() & norm.isfinite())
    run.undo.undo(skip)
    _update(state.optimizer, skip)
    if config.optim.average:
        average_in(run.model, run.net, state.step, config.optim.average, skip)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return Outcome(state.step - 1, lr, positions, torch.stack([total[0], norm, own, total[1]]))


def _update(optimizer: Optimizer, skip: Tensor) -> None:
    """optimizer.step(), unless the bool scalar `skip` is true, which fused optimisers look up on the device."""
    # Looked at once: a skipped first step would leave fused SGD's momentum uninitialised.
    if optimizer.state or not skip:
        optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as GradScaler does it
        optimizer.step()


def after_step(run: Run, unread: list[Outcome], interruption: Interruption) -> None:
    """Read outcomes, log, validate, save, and stop if a signal arrived."""
    config, done = run.config, run.state.step
    last = done == config.steps
    log = last or done % config.log_every == 0
    validate = last or (config.val_every > 0 and done % config.val_every == 0)
    save = done % config.save_every == 0 or (config.keep_every > 0 and done % config.keep_every == 0)
    # A skipped step's weights are kept before the next step changes them.
    stop = read_outcomes(run, unread, everything=log or validate or save or config.keep_skipped > 0)
    if stop:
        read_outcomes(run, unread, everything=True)
    if log:
        write_log(run)
    if validate or save or stop:
        with run.clock.paused():
            validate_and_save(run, interruption, validate, stop)


def write_log(run: Run) -> None:
    progress, done = run.state.progress, run.state.step
    facts = {"loss": float(np.mean(progress.recent))} if progress.recent else {}
    facts |= {"lr": lr_at(done - 1, run.config.steps, run.config.optim)}
    facts |= {"images_per_second": run.clock.steps_per_second(done) * run.config.batch_size}
    run.log.write("train", step=done, **facts, seconds=run.clock.seconds(), skipped=progress.skipped)
    progress.recent = []


def validate_and_save(run: Run, interruption: Interruption, validate: bool, stop: bool = False) -> None:
    """Validate unless a signal stops the run, write a checkpoint, and stop.

    A validation cut short, by a signal or an image that cannot be read or is too large, is rerun on resume.
    """
    state, path = run.state, run.folder.path
    failure: InputError | None = None
    if validate and not stop:
        try:
            stop = not validated(run, interruption)
        except InputError as error:
            if distributed.world_size() > 1:  # whose other ranks have ended
                raise
            failure, stop = error, True
    state.progress.seconds = run.clock.seconds()
    state.progress.unvalidated = validate and stop
    distributed.first_on_rank_zero(save_checkpoint, path, run.model, run.config, state.state_dict(), state.step)
    if stop:
        saved = f"step {state.step} of {run.config.steps} is saved in {path}; continue with --resume"
        if failure:
            raise InputError(f"{failure}; {saved}") from failure
        by = next(name for name in distributed.gather(interruption.by) if name)
        distributed.end(Interrupted(f"{by}: {saved}"))


def save_before_error(run: Run) -> None:
    """Write a checkpoint after an error in a step, if the step has changed nothing yet."""
    if run.undo.undone and distributed.world_size() == 1 and run.state.step:
        run.state.progress.seconds = run.clock.seconds()
        save_checkpoint(run.folder.path, run.model, run.config, run.state.state_dict(), run.state.step)


def validated(run: Run, interruption: Interruption) -> bool:
    """Evaluate the network, log the result and keep the best model; False if a signal cut it short."""
    config, net, done = run.config, run.model, run.state.step
    if not config.sync_bn:
        distributed.take_rank_zeros(net.buffers())  # rank 0's statistics are the ones that are saved
    drawings = Drawings(config.pictures, net.palette)
    matrix = evaluate(
        net,
        run.val_set,
        config.eval,
        workers=processes(config),
        on_sample=drawings,
        until=lambda: bool(interruption),
    )
    if any(distributed.gather(bool(interruption))):
        return False
    run.matrix, report = matrix, matrix.report()
    run.log.write("val", step=done, **report)
    for drawn in distributed.gather(drawings.drawn):
        run.log.images(done, drawn)
    if report["mIoU"] is not None and report["mIoU"] > run.state.progress.best:
        run.state.progress.best = report["mIoU"]
        distributed.first_on_rank_zero(save_best, run.folder.path, net, config, done, report)
    return True


def finish(run: Run) -> dict[str, Any]:
    """Show and write the result: the report of the last validation."""
    assert run.matrix is not None  # every run validates after its last step
    skipped, steps, report = run.state.progress.skipped, run.config.steps, run.matrix.report()
    if skipped:
        run.log.say(f"{skipped} of {steps} steps were skipped: their loss or gradient was not finite")
    run.log.close()
    run.log.report(report)
    distributed.first_on_rank_zero(run.folder.write_result, run.matrix, run.log)
    return report


def _fill(config: Experiment, channels: int) -> list[int]:
    """The colour outside of an image: the mean, 0 to 255, of each channel."""
    mean = config.model.mean if len(config.model.mean) == channels else config.model.mean * channels
    return [round(255 * value) for value in mean]


def _layout(config: Experiment) -> torch.memory_format:
    return torch.channels_last if config.channels_last else torch.contiguous_format
