"""plan DATA: an experiment file from a data set, with the reason for each setting."""

import os
from dataclasses import dataclass
from typing import Annotated

import tyro

from .flags import Device, File, Folder, Name, parse


@dataclass(frozen=True)
class Plan:
    """Measure a data set and this machine, and write an experiment for them.

    Each setting has its reason as a comment. `train DATA` trains it at once.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A data set's folder, dataset.json or name."""
    hours: float = 1.0
    """How long the run may take on this machine."""
    out: File = ""
    """Write the experiment to this new .py file; default: show it."""
    root: Folder = ""
    """Folder of the data set; default as in training."""
    train_split: Name = "train"
    """The split to train on."""
    val_split: Name = "val"
    """The split to validate on."""
    channels: int = 0
    """Channels of the images; default: the bands that dataset.json names, or 3."""
    weights: File = ""
    """A file of pretrained weights for the backbone; default: the hub's."""
    device: Device = "auto"
    """auto, cpu or cuda."""

    def run(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which measures memory, chats on stderr
        from ..analysis.plan import plan_command

        plan_command(**vars(self))


def main(arguments: list[str]) -> None:
    parse(Plan, arguments, "plan").run()
