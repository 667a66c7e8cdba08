"""evaluate MODEL: the scores of a model, or of label maps made elsewhere."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from ..config import EngineConfig, EvalConfig
from .flags import Device, File, Folder, Model, Name, Switch, Whole, parse_for_model


@dataclass(frozen=True)
class Evaluate:
    """Score a model, by default on the validation split of its own data set.

    Without MODEL, --images is a folder of label maps (PNGs of class indices).
    """

    model: Model = ""
    """A model file, a run folder, hf:owner/name on the hub, or `street`, which comes with the package."""
    images: Folder = ""
    """Folder of images instead of a data set; each needs a mask of the same stem under --masks."""
    masks: Folder = ""
    """Folder of masks, in the values or colours of the model's data set."""
    partial: Switch = False
    """Score what there is of images, masks and predictions that do not all belong together."""
    split: Name = ""
    """Split of the data set; default its validation split."""
    root: Folder = ""
    """Folder of the data set, if it has moved since training."""
    dataset: Name = ""
    """Another data set of the same classes: a name or a dataset.json."""
    json: File = ""
    """Write mIoU, pAcc, mAcc, fIoU (0 to 1) and IoU per class to this file."""
    picture: File = ""
    """Draw the confusion matrix into this file (.png, .pdf, .svg)."""
    workers: int = 0
    """Processes that read images ahead; 0: threads, which is faster on few cores."""
    max_pixels: Whole = None
    """Refuse larger images by their headers; default 179 million."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    how: Annotated[EngineConfig, tyro.conf.arg(name="")] = EngineConfig()
    settings: Annotated[EvalConfig, tyro.conf.arg(name="")] = EvalConfig()

    def run(self) -> None:
        from ..analysis.score import score

        options = {key: value for key, value in vars(self).items() if key != "how"}
        score(**options, **vars(self.how))


def main(arguments: list[str]) -> None:
    parse_for_model(Evaluate, arguments, "evaluate").run()
