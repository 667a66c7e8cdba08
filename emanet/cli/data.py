"""data import TOOL SOURCE, data check SOURCE, data prepare NAME, data pack SOURCE and data draw FOLDER."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .flags import File, Folder, Name, subcommand

Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT|DATASET")]


@dataclass(frozen=True)
class Draw:
    """Write drawn scenes: an example of a data set, or of an export."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A new or empty folder."""
    train: Annotated[int, tyro.conf.arg(metavar="N")] = 200
    """Images of the training split."""
    val: Annotated[int, tyro.conf.arg(metavar="N")] = 40
    """Images of the validation split."""
    labelme: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write images and JSON files of the annotation tool labelme, to import."""

    def run(self) -> None:
        from ..data.drawn import write_drawn, write_labelme

        if self.labelme:
            write_labelme(Path(self.folder), self.train + self.val)
        else:
            write_drawn(Path(self.folder), {"train": self.train, "val": self.val})


@dataclass(frozen=True)
class Prepare:
    """Download, unpack and convert a public data set, or go on doing so."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """voc, coco_voc, context59, context60, cocostuff10k, cocostuff164k, cityscapes or ade20k."""
    root: Folder = ""
    """Folder for the data set; default data/DATASET."""
    archives: Folder = ""
    """Folder of archives, used if they are there; default ROOT/archives."""

    def run(self) -> None:
        from ..data.prepare.recipes import prepare

        prepare(**vars(self))


@dataclass(frozen=True)
class Import:
    """Turn an annotation tool's export into a folder data set.

    An account says what was read and what was left out.
    """

    tool: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TOOL")]
    """coco, cvat, label-studio, labelme, masks, roboflow, supervisely, voc or yolo."""
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The export: its folder, unpacked, or its file."""
    out: Folder
    """A new or empty folder for the data set."""
    images: Folder = ""
    """Where the images are, if they are not in the export."""
    map: Annotated[tuple[str, ...], tyro.conf.arg(metavar="OLD=NEW")] = ()
    """Rename classes, or merge several into one; `OLD=` leaves its pixels unlabelled, `*=NEW` is for all the others."""
    unlabelled: Literal["background", "ignore"] = "background"
    """What pixels without an object become: a class of their own, or pixels that count nowhere."""
    split: Annotated[tuple[float, ...], tyro.conf.arg(metavar="SHARE")] = ()
    """Shares of train, val and perhaps test, by a hash of each name; default: the export's splits, or 0.8 0.2."""
    group_by: Annotated[str, tyro.conf.arg(metavar="REGEX")] = ""
    """The part of the names that images of one group share, such as '^[^_]*'; a group stays in one split."""

    def run(self) -> None:
        from ..data.prepare.annotations import import_annotations

        options = {name: value for name, value in vars(self).items() if name != "map"}
        import_annotations(**options, rename=self.map)


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
        from ..data.pack import pack_source
        from ..show.terminal import say

        say(pack_source(**vars(self)))


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
        from ..data.check.report import check_files

        sys.exit(check_files(**vars(self)))


def main(arguments: list[str]) -> None:
    subcommand({"draw": Draw, "import": Import, "prepare": Prepare, "pack": Pack, "check": Check}, arguments, "data")
