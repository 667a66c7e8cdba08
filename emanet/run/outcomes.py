"""What the steps of a run came to: read a step later, counted, and said if a step was skipped."""

import itertools
import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import distributed
from ..config import Experiment
from ..errors import InputError, some
from . import skipped
from .checkpoints import State
from .folder import RunFolder
from .log import RunLog


class Training(Protocol):
    """A run, as far as its outcomes need it."""

    config: Experiment
    device: torch.device
    folder: RunFolder
    log: RunLog
    samples: Any
    """See data.transforms.TrainingSamples."""
    state: State

    @property
    def model(self) -> nn.Module: ...


class Outcome:
    """What a step came to. Its figures travel from the device while the next step is computed."""

    def __init__(self, step: int, lr: float, positions: Tensor, figures: Tensor):
        """figures: loss, gradient norm, this rank's part of the loss, and how many ranks want to stop."""
        self.step, self.lr, self.positions = step, lr, positions
        self._figures = figures.to("cpu", non_blocking=figures.is_cuda)  # it is waited for on CUDA alone
        self._arrived = torch.cuda.Event() if figures.is_cuda else None
        if self._arrived:
            self._arrived.record()

    def read(self) -> list[float]:
        if self._arrived:
            self._arrived.synchronize()
        return self._figures.tolist()


def read_outcomes(run: Training, unread: list[Outcome], everything: bool) -> bool:
    """Count and report what steps came to; whether a rank wants to stop.

    A GPU is never waited for unless all are needed: the newest outcome is left for the next call.
    """
    stop = False
    while unread and (everything or len(unread) > 1 or run.device.type == "cpu"):
        outcome = unread.pop(0)
        loss, norm, own, stopping = outcome.read()
        if math.isfinite(loss) and math.isfinite(norm):
            run.state.progress.in_a_row = 0
            run.state.progress.recent.append(loss)
        else:
            _report_skipped(run, outcome, loss, norm, own)
        run.log.advance(outcome.step + 1, loss, outcome.lr)
        stop |= stopping > 0
    return stop


def _report_skipped(run: Training, outcome: Outcome, loss: float, norm: float, own: float) -> None:
    """Say which step was skipped, with its images. InputError after skip_limit of them in a row."""
    progress = run.state.progress
    progress.skipped += 1
    progress.in_a_row += 1
    blamed = not math.isfinite(own) or math.isfinite(loss)  # otherwise it was another rank's part of the batch
    names = distributed.gather([run.samples.name(int(p)) for p in outcome.positions] if blamed else [])
    figures = f"the loss is {loss:.4g}, the gradient's norm {norm:.4g}, the learning rate {outcome.lr:.3g}"
    text = f"step {outcome.step} is skipped: {figures}, the batch {some(itertools.chain(*names), 8)}"
    distributed.first_on_rank_zero(_keep, run, outcome, loss, norm)
    if progress.in_a_row >= run.config.skip_limit:
        first = outcome.step - progress.in_a_row + 1
        look = f"`train {run.folder.path} --replay {first}` shows where the first one's begin"
        distributed.end(InputError(f"{text}; that makes {progress.in_a_row} in a row; {look}"))
    run.log.say(text)


def _keep(run: Training, outcome: Outcome, loss: float, norm: float) -> None:
    """Write what a replay of the step needs; a disk without room for it does not end the run."""
    config, positions = run.config, skipped.positions(run.config, outcome.step)
    facts = skipped.Skipped(
        step=outcome.step,
        loss=str(loss),
        gradient_norm=str(norm),
        lr=outcome.lr,
        seed=config.seed,
        ranks=run.state.progress.ranks,
        positions=list(positions),
        images=[run.samples.name(position) for position in positions],
    )
    try:
        skipped.keep(run.folder.path, facts, run.model, config, run.state)
    except OSError as error:
        run.log.say(f"warning: cannot keep what step {outcome.step} was, for --replay: {error.strerror or error}")
