"""data prepare NAME, data check SOURCE, data pack SOURCE and data draw FOLDER."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..errors import InputError
from .flags import File, Folder, Name, subcommand

Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT|DATASET")]


@dataclass(frozen=True)
class Draw:
    """Write drawn scenes as a folder data set, an example of the layout."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A new or empty folder."""
    train: int = 200
    """Images of the training split."""
    val: int = 40
    """Images of the validation split."""

    def run(self) -> None:
        from ..data.drawn import write_drawn

        write_drawn(Path(self.folder), {"train": self.train, "val": self.val})


@dataclass(frozen=True)
class Prepare:
    """Download, unpack and convert a public data set; continues where it stopped."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """voc, coco_voc, context59, context60, cocostuff10k, cocostuff164k, cityscapes or ade20k."""
    root: Annotated[Folder, tyro.conf.arg(metavar="DATASET_FOLDER")] = ""
    """Folder for the data set; default data/DATASET."""
    archives: Annotated[Folder, tyro.conf.arg(metavar="ARCHIVES_FOLDER")] = ""
    """Folder of archives, used if they are there; default ROOT/archives."""
    workers: Annotated[int, tyro.conf.arg(metavar="PROCESSES")] = 0
    """Processes that convert masks; 0: one per core."""

    def run(self) -> None:
        from ..data.prepare.recipes import prepare

        prepare(**vars(self))


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Store a split in a few tar files; `train --root OUT` reads them."""

    source: Source
    """An experiment, or a data set's name, dataset.json or folder."""
    out: Folder
    """Folder for the tar files; it may hold other splits already."""
    root: Folder = ""
    """Folder of the data set; default as in training."""
    split: Name = ""
    """Which split; default the experiment's for training, or train."""
    shard_size: Annotated[int, tyro.conf.arg(metavar="MEGABYTES")] = 256
    """Size of a tar file."""

    def run(self) -> None:
        from ..data.datasets import Dataset, open_dataset
        from ..data.pack import pack
        from ..show.terminal import bar, say

        if self.shard_size < 1:
            raise InputError(f"--shard-size is {self.shard_size}, but must be at least 1")
        data, _ = _data_of(self.source, self.root)
        split = self.split or data.train_split
        dataset = open_dataset(data, split)
        if not isinstance(dataset, Dataset):
            raise InputError("the drawn scenes are not files; write some with `data draw`, and pack that folder")
        what = dataset.pairs, dataset.spec, dataset.spec.split_names.get(split, split), Path(self.out)
        with bar("pack", len(dataset)) as advance:
            shards = pack(*what, self.shard_size * 10**6, advance)
        size = sum(shard.stat().st_size for shard in shards) / 1e6
        say(f"packed {len(dataset)} images of {split}: {len(shards)} tar files, {size:.1f} MB, in {self.out}")


@dataclass(frozen=True)
class Check:
    """Find everything that is wrong with the files of a data set.

    Every image and mask is decoded, and splits are compared.

    Exit code 2: errors; training would fail, or learn wrong labels.

    Exit code 3: warnings, but no errors; something is suspicious.

    Exit code 0: sound; there may be notes.
    """

    source: Source
    """An experiment, or a data set's name, dataset.json or folder."""
    root: Folder = ""
    """Folder of the data set; default as in training."""
    split: Name = ""
    """Which split; default those an experiment uses, else all there are."""
    json: File = ""
    """Write all findings: every file, and the pixels of each class."""
    html: File = ""
    """Write a page to look at, with images of faulty pairs."""
    channels: int = 0
    """Channels of the images; default those of the experiment, or 3."""

    def run(self) -> None:
        import os

        from rich.console import Console

        from ..atomic import require_writable, write_json, write_text
        from ..data.check.report import page, print_report, record
        from ..data.check.splits import check_dataset
        from ..data.datasets import resolve
        from ..show.terminal import bar, say

        config, experiment = _data_of(self.source, self.root)
        config = resolve(config)
        if not config.root:
            say("The drawn scenes are not files, they are drawn as they are read: there is nothing to check.")
            return
        require_writable(self.json, self.html)
        splits = [self.split] if self.split else [config.train_split, config.val_split] if experiment else []
        channels = self.channels or (experiment.model.backbone.in_channels if experiment else 3)
        with bar("check") as advance:
            report = check_dataset(config, splits, channels, advance)
        if self.json:
            write_json(Path(self.json), record(report))
        if self.html:
            write_text(Path(self.html), page(report))
        console = Console()
        with console.capture() as shown:  # rich would end the process where nobody reads on (head, less)
            print_report(report, console)
        try:
            print(shown.get(), end="", flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left in the buffer
        sys.exit(report.exit_code)


def _data_of(source: str, root: str) -> tuple[Any, Any]:
    """The DataConfig of an experiment, or of a data set's name, dataset.json or folder; and the experiment, or None."""
    from ..config import DataConfig
    from ..experiments import FOLDER_FILES, experiment_names, load_experiment, override

    path = Path(source)
    known = path.suffix in (".py", ".safetensors") or path.name == "config.json" or source in experiment_names()
    known |= any((path / file).is_file() for file in FOLDER_FILES)
    experiment = load_experiment(source) if known else None
    data = experiment.data if experiment else DataConfig(dataset=source)
    return override(data, {"root": root}) if root else data, experiment


def main(arguments: list[str]) -> None:
    subcommand({"draw": Draw, "prepare": Prepare, "pack": Pack, "check": Check}, arguments, "data")
