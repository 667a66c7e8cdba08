"""profile EXPERIMENT ...: what models cost, and the paper's Table 1 beside what is counted here."""

import os
from dataclasses import dataclass
from typing import Annotated

import tyro

from .flags import Device, File, parse, shown_as


@dataclass(frozen=True)
class Profile:
    """What a model costs: parameters, multiply-adds, and measured memory.

    Alone, or with -, --json, --csv and --markdown print to the terminal.
    """

    experiments: Annotated[tuple[str, ...], tyro.conf.Positional, shown_as("[EXPERIMENT ...]")] = ()
    """Names, .py files, config.json files, run folders, model files or hf:owner/name on the hub."""
    size: tuple[int, int] = (513, 513)
    """Height and width of the images, in pixels."""
    batch: int = 1
    """Images at a time."""
    json: File = ""
    """Write the figures as a list of objects."""
    csv: File = ""
    """Write them as a table with a header."""
    markdown: File = ""
    """Write them as Markdown tables."""
    device: Device = "auto"
    """Where memory is measured: auto, cpu, cuda or cuda:N."""
    memory: bool = False
    """Measure the memory of an inference beyond the weights."""
    training: bool = False
    """Measure the memory of a training step as well."""
    by_module: bool = False
    """Add a line for each module of the backbone and the heads."""
    paper: bool = False
    """The paper's Table 1 beside what is counted here, instead of experiments."""
    published: bool = False
    """The published figures that this project knows, instead of experiments."""

    def run(self) -> None:
        # The profiler that measures memory logs on stderr; it reads this when torch is imported.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        from ..analysis.cost import profile

        profile(**vars(self))


def main(arguments: list[str]) -> None:
    following = [*arguments[1:], "--"][: len(arguments)]
    words = [word for pair in zip(arguments, following, strict=True) for word in _with_dash(*pair)]
    parse(Profile, words, "profile").run()


def _with_dash(word: str, following: str) -> list[str]:
    """The word, and "-" after a file's flag that has no file."""
    return [word, "-"] if word in ("--json", "--csv", "--markdown") and following.startswith("--") else [word]
