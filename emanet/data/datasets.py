"""Data sets: one class that reads any of them from files, as its spec says; the table of specs is specs.py.

A data set is whatever has `len(ds)`, `ds.read(i) -> (image (H, W, C) uint8, labels (H, W) uint8)` and `ds.name(i)`.
A new one is a DatasetSpec: a line of SPECS, an argument in an experiment file, or a dataset.json beside the pictures.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..config import DataConfig, DatasetSpec
from ..errors import InputError, some, suggest
from ..experiments import from_dict, override, read_json, to_dict
from .images import IMAGE_SUFFIXES, read_image, read_mask
from .pack import Member, packed_pairs, packed_spec
from .specs import SPECS
from .synthetic import SCENE_CLASSES, DrawnScenes

DRAWN_COUNTS = {"train": 4000, "val": 200}
THREADS = min(8, os.cpu_count() or 1)  # that look at pairs; each may hold an image of hundreds of megabytes
DRAWN_SIZE = (145, 145)  # 8k + 1 and 16k + 1: the grid of an align_corners model fits without padding


class Fault(NamedTuple):
    """What is wrong with files of a split, told without opening them."""

    kind: str
    """One of KINDS in check.py."""
    files: Sequence[Path]
    sentence: str = ""
    """With which training refuses the split; "": it does not."""


class Listing(NamedTuple):
    """The pairs of a split, and what is wrong with its other files."""

    pairs: Sequence[tuple[Path | Member, Path | Member]]
    faults: Sequence[Fault] = ()

    def sound(self) -> Sequence[tuple[Path | Member, Path | Member]]:
        """The pairs, if a training can take the split as it is. Raises InputError with the first fault."""
        for fault in self.faults:
            if fault.sentence:
                raise InputError(fault.sentence)
        return self.pairs


@dataclass(frozen=True)
class Dataset:
    """Pairs of an image file and a mask file, or of members of a packed split, read as the spec says."""

    pairs: Sequence[tuple[Path | Member, Path | Member]]
    spec: DatasetSpec
    channels: int = 3

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """image (H, W, channels) uint8, labels (H, W) uint8: classes, or 255 = ignored."""
        image, mask = self.pairs[index]
        pixels, labels = read_image(image, self.channels), read_mask(mask, self.spec)
        if pixels.shape[:2] != labels.shape:
            raise InputError(size_difference(image, pixels.shape[:2], mask, labels.shape))
        return pixels, labels

    @cached_property
    def listing(self) -> str:
        """A digest of the spec and of every file's name, size and time: the same listing has the same content."""
        digest = hashlib.sha256(json.dumps(to_dict(self.spec)).encode())
        for path in (path for pair in self.pairs for path in pair):
            status = path.stat()
            digest.update(os.fsencode(f"{path.absolute()} {status.st_size} {status.st_mtime_ns}\n"))
        return digest.hexdigest()


def resolve(config: DataConfig) -> DataConfig:
    """The config with its spec and its root folder filled in; the drawn scenes have no root."""
    name = config.dataset
    root = Path("data") / name if name != "drawn" else ""
    if config.spec is not None:
        spec = config.spec
    elif name in SPECS:
        spec = SPECS[name]
    else:
        path = Path(name) / "dataset.json" if Path(name).is_dir() else Path(name)
        root = path.parent
        spec = packed_spec(root) if Path(name).is_dir() and not path.is_file() else None
        if spec is None and not path.is_file():
            raise InputError(f"no data set or dataset.json {name!r}{suggest(name, SPECS)}")
        document = read_json(path) if spec is None else None
        try:
            spec = spec or from_dict(DatasetSpec, document)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return override(config, {"spec": spec, "root": config.root or str(root)})


def at_hand(config: DataConfig, classes: Sequence[str], dataset: str = "", root: str = "") -> DataConfig:
    """A model's data set, resolved, where it lies now, or another one; InputError unless it has the model's classes."""
    if dataset:
        config = override(config, {"dataset": dataset, "spec": None, "root": ""})
    if root:
        config = override(config, {"root": root})
    config = resolve(config)
    if config.spec.classes != tuple(classes):
        count = len(config.spec.classes)
        raise InputError(f"data set {dataset} has {count} classes, the model {len(classes)} or other names")
    return config


def open_dataset(config: DataConfig, split: str, channels: int = 3) -> Dataset | DrawnScenes:
    """One split of a data set. Every image is known to have a mask; nothing has been decoded yet."""
    config = resolve(config)
    if not config.root:
        if split not in DRAWN_COUNTS:
            raise InputError(f"the drawn scenes have no split {split!r}{suggest(split, DRAWN_COUNTS)}")
        if channels != 3 or config.spec.classes != SCENE_CLASSES:
            raise InputError("the drawn scenes have 3 channels and classes of their own; set model or data otherwise")
        return DrawnScenes(split, count=DRAWN_COUNTS[split], size=DRAWN_SIZE)
    return Dataset(list_split(config, split).sound(), config.spec, channels)


def open_folders(images: Path, masks: Path, spec: DatasetSpec, channels: int = 3) -> Dataset:
    """The data set of every image under one folder with the mask of the same stem under another."""
    return Dataset(_list_folders(images, masks, spec).sound(), spec, channels)


def list_split(config: DataConfig, split: str) -> Listing:
    """The files of one split of a resolved config that has a root. Raises InputError where there is no such split."""
    spec, root = config.spec, Path(config.root)
    if not root.is_dir():
        raise InputError(f"no folder {root} for data set {config.dataset!r}; name it with --data.root")
    split = spec.split_names.get(split, split)
    packed = packed_pairs(root, split)
    if packed:
        return Listing(packed)
    images, masks = (root / folder.replace("{split}", split) for folder in (spec.images, spec.masks))
    if spec.split_list:
        return _list_lines(root, root / spec.split_list.replace("{split}", split), split, spec, images, masks)
    return _list_folders(images, masks, spec)


def _list_folders(images: Path, masks: Path, spec: DatasetSpec) -> Listing:
    (image_files, faults), (mask_files, more) = _files(images, spec.image_suffix), _files(masks, spec.mask_suffix)
    faults += more
    if any(fault.kind == "no-access" for fault in faults):  # what is missing may be there
        return Listing([(path, mask_files[stem]) for stem, path in image_files.items() if stem in mask_files], faults)
    if not image_files:
        named = f" named *{spec.image_suffix}" * bool(spec.image_suffix)
        faults.append(Fault("empty-split", [images], f"{images} holds no image{named}"))
    alone = [path for stem, path in image_files.items() if stem not in mask_files]
    if alone:
        sentence = f"{len(alone)} of {len(image_files)} images have no mask in {masks}: {some(alone, 3)}"
        faults.append(Fault("image-without-mask", alone, sentence))
    unused = [path for stem, path in mask_files.items() if stem not in image_files]
    if unused:
        faults.append(Fault("mask-without-image", unused))
    return Listing([(path, mask_files[stem]) for stem, path in image_files.items() if stem in mask_files], faults)


def _files(folder: Path, suffix: str) -> tuple[dict[str, Path], list[Fault]]:
    """Stem, relative to the folder -> file, sorted; nothing hidden. And those whose stem is taken, folders not read."""
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    found: dict[str, Path] = {}
    refused: list[OSError] = []
    paths = []
    for here, folders, names in os.walk(folder, onerror=refused.append):
        folders[:] = [name for name in folders if name[0] != "."]
        paths += [Path(here, name) for name in names if name[0] != "."]
    sentences = [(Path(error.filename), f"cannot read folder {error.filename}: {error.strerror}") for error in refused]
    faults = [Fault("no-access", [path], sentence) for path, sentence in sentences]
    for path in sorted(paths):
        if not (path.name.endswith(suffix) if suffix else path.suffix.lower() in IMAGE_SUFFIXES):
            continue
        name = path.relative_to(folder).as_posix()
        first = found.setdefault(name[: -len(suffix or path.suffix)], path)
        if first is not path:
            sentence = f"{first} and {path} have the same stem, so that a mask could be either's"
            faults.append(Fault("same-stem", [first, path], sentence))
    return found, faults


def _list_lines(root: Path, path: Path, split: str, spec: DatasetSpec, images: Path, masks: Path) -> Listing:
    if not path.is_file():
        raise InputError(f"no split {split!r}: there is no {path}")
    lines = [line.split() for line in path.read_text("utf-8-sig", "replace").splitlines() if line.strip()]
    faults, pairs, unknown = [], [], []
    image_files, mask_files = {}, {}
    if any(len(line) == 1 for line in lines):  # one walk instead of a look-up per stem and extension
        (image_files, faults), (mask_files, more) = _files(images, spec.image_suffix), _files(masks, spec.mask_suffix)
        faults += more
    if not lines:
        faults.append(Fault("empty-split", [path], f"the split list {path} is empty"))
    for image, *mask in lines:
        if mask:
            pairs.append((root / image.lstrip("/"), root / mask[0].lstrip("/")))
        elif image in image_files:
            pairs.append((image_files[image], mask_files.get(image, masks / f"{image}{spec.mask_suffix or '.png'}")))
        else:
            unknown.append(image)
    if unknown:
        sentence = f"{path} names {unknown[0]!r}, but there is no such image in {images}"
        faults.append(Fault("missing-file", [images / stem for stem in unknown], sentence))
    missing: set[Path] = set()
    for i, kind in enumerate(("image", "mask")):
        absent = [pair[i] for pair in pairs if not _is_there(pair[i])]
        if absent:
            sentence = f"{len(absent)} of {len(pairs)} {kind}s of {path} are missing: {some(absent, 3)}"
            faults.append(Fault("missing-file", absent, sentence))
            missing.update(absent)
    return Listing([pair for pair in pairs if missing.isdisjoint(pair)], faults)


def _is_there(path: Path) -> bool:
    """Whether there is a file, or something in a folder that must not be searched: reading it will say so."""
    try:
        return path.is_file()
    except PermissionError:
        return True


def size_difference(image: object, image_hw: tuple[int, ...], mask: object, mask_hw: tuple[int, ...]) -> str:
    return f"{image} is {image_hw[1]}x{image_hw[0]}, but its mask {mask} is {mask_hw[1]}x{mask_hw[0]} (width x height)"
