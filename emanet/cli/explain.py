"""explain [MODEL] IMAGE ...: figures of what the EM attention does."""

from dataclasses import dataclass

from ..errors import InputError
from .flags import Device, Folder, Images, ModelOrNone, Name, Whole, Wholes, model_first, parse
from .imports import importing


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Draw which pixels the bases of the EM attention take, for every image."""

    model: ModelOrNone = ""
    """A model file, a run folder or hf:owner/name; default `street`, which labels photos of streets."""
    images: Images
    """Files, folders and quoted globs; none is needed with --split."""
    out: Folder = "attention"
    """Folder for the results, with a folder for each image in it."""
    bases: Wholes = ()
    """Numbers of the bases to draw; default the seven that own most pixels."""
    split: Name = ""
    """Also draw which bases the classes use in this split of the data set."""
    root: Folder = ""
    """Folder of the data set, if it has moved since training."""
    dataset: Name = ""
    """Another data set of the same classes: a name or a dataset.json."""
    workers: int = 2
    """Processes that read the split's images ahead; 0: none."""
    max_pixels: Whole = None
    """Refuse larger images by their headers; default 179 million."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    def run(self) -> None:
        with importing():
            from ..analysis.explain_files import explain_files

        failures = explain_files(**vars(self))
        if failures:
            raise InputError(f"images that could not be explained: {len(failures)}, named above")


def main(arguments: list[str]) -> None:
    model_first(parse(Explain, arguments, "explain")).run()
