"""push MODEL OWNER/NAME: a model and its card on the Hugging Face hub."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from .flags import Device, Folder, Model, Name, Switch, parse, shown_as


@dataclass(frozen=True, kw_only=True)
class Push:
    """Publish a model on the Hugging Face hub, with a model card, as one commit.

    Paths of this machine are left out, and a README.md that is there stays.
    """

    model: Model
    """A model file, a run folder or `street`, the model that comes with the package."""
    repository: Annotated[str, tyro.conf.Positional, shown_as("OWNER/NAME")]
    """Repository on the hub, made if it does not exist; OWNER/NAME@BRANCH for a branch of it."""
    folder: Folder = ""
    """Write the files into this new folder, to look at them, and push nothing."""
    license: Name = ""
    """Of the weights, by the hub's name for it: apache-2.0, cc-by-nc-4.0, other."""
    datasets: Annotated[tuple[str, ...], shown_as("NAME ...")] = ()
    """The training data, by the hub's names."""
    benchmark: Annotated[str, shown_as("OWNER/NAME:TASK")] = ""
    """A benchmark data set of the hub that the mIoU is of, for .eval_results."""
    images: Annotated[str, shown_as("DIR")] = ""
    """Show the first four of these images, with their predictions, in the card."""
    pictures: bool = True
    """Else show the validation images that the run has drawn; they become public."""
    private: Switch = False
    """Make the repository private; an existing public one is refused."""
    replace_card: Switch = False
    """Replace a README.md that the repository has."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps, for --images."""

    def run(self) -> None:
        from ..analysis.push import push

        push(**vars(self))


def main(arguments: list[str]) -> None:
    parse(Push, arguments, "push").run()
