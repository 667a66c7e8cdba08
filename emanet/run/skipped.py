"""What is kept of a step that was skipped because a value was not finite: skipped/STEP.json in the run folder.

With `keep_skipped` also skipped/STEP/, a checkpoint of the weights and the optimiser before the step. All else follows
from (seed, step) and the number of ranks, so this is what analysis/replay.py needs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..atomic import write_json
from ..config import Experiment
from ..experiments import read_json
from .checkpoints import STEP_DIGITS, State, write_checkpoint

FOLDER = "skipped"


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """One skipped step. The figures are texts, since JSON has no infinity."""

    step: int
    loss: str
    gradient_norm: str
    lr: float
    seed: int
    ranks: int
    """How many draw and share the passes: as many as the run was started with."""
    positions: list[int] = field(default_factory=list)
    """Of the batch's samples, as in data.transforms.TrainingSamples."""
    images: list[str] = field(default_factory=list)
    """Their names, in the same order."""


def positions(config: Experiment, step: int) -> range:
    """Of the samples of a step's batch, over all ranks."""
    return range(step * config.batch_size, (step + 1) * config.batch_size)


def keep(run: Path, facts: Skipped, model: nn.Module, config: Experiment, state: State) -> None:
    """Write what is known of a step that has just been skipped. OSError if it cannot be written.

    With room left in config.keep_skipped also the weights: the step changed none of them.
    """
    write_json(run / FOLDER / f"{_name(facts.step)}.json", asdict(facts))
    if sum(path.is_dir() for path in (run / FOLDER).iterdir()) < config.keep_skipped:
        training = state.state_dict()
        if scaler := training["scaler"]:  # which has lowered its scale since
            training["scaler"] = scaler | {"scale": scaler["scale"] / scaler["backoff_factor"]}
        write_checkpoint(run / FOLDER / _name(facts.step), model, config, training, facts.step)


def weights_before(run: Path, step: int) -> Path | None:
    """The checkpoint from just before a skipped step, if it was kept."""
    folder = run / FOLDER / _name(step)
    return folder if folder.is_dir() else None


def facts_of(run: Path, step: int) -> dict[str, Any]:
    """What skipped/STEP.json holds; nothing if there is none."""
    path = run / FOLDER / f"{_name(step)}.json"
    return read_json(path) if path.is_file() else {}


def steps(run: Path) -> Sequence[int]:
    """The steps that were skipped, in order."""
    return sorted(int(path.stem) for path in (run / FOLDER).glob("*.json") if path.stem.isdecimal())


def _name(step: int) -> str:
    return f"{step:0{STEP_DIGITS}d}"
