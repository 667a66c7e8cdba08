"""Data sets: one class that reads any of them from files, as its spec says. specs.py holds the table of specs.

A data set has `len(ds)`, `ds.read(i) -> (image (H, W, C) uint8, labels (H, W) uint8)` and `ds.name(i)`. A new one is a
DatasetSpec: an entry of SPECS, an argument in an experiment file, or a dataset.json beside the images.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from ..config import IGNORE, DataConfig, DatasetSpec
from ..errors import InputError, some, suggest
from ..experiments import from_dict, override, read_json, to_dict
from .bands import Channels
from .description import settled
from .files import located
from .images import read_mask, read_visible
from .listing import UNPAIRED, Listing, list_folders, list_lines
from .shards import File, Pair, packed_pairs, packed_spec
from .specs import SPECS
from .synthetic import SCENE_CLASSES, DrawnScenes

DRAWN_COUNTS = {"train": 4000, "val": 200}
THREADS = min(8, os.cpu_count() or 1)  # for checking pairs; each may hold an image of hundreds of megabytes
DRAWN_SIZE = (145, 145)  # 8k + 1 and 16k + 1: the grid of an align_corners model fits without padding


@dataclass(frozen=True)
class Dataset:
    """Pairs of an image file and a mask file, or of members of a packed split, read as the spec says."""

    pairs: Sequence[Pair]
    spec: DatasetSpec
    channels: int = 3
    max_pixels: int | None = None
    """See read_image; of images and masks."""
    notes: Sequence[str] = ()
    """What of the split is not used, or is used twice, in words."""

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        return str(self.pairs[index][0])

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """image (H, W, channels) uint8, labels (H, W) uint8: classes, or 255 = ignored. Raises InputError.

        What the image hides (no-data, see read_visible) is ignored, since prediction gives 255 there.
        """
        image, mask = self.pairs[index]
        pixels, visible = read_visible(image, self.input, max_pixels=self.max_pixels)
        labels = read_mask(mask, self.spec, max_pixels=self.max_pixels)
        if pixels.shape[:2] != labels.shape:
            raise InputError(size_difference(image, pixels.shape[:2], mask, labels.shape))
        if visible is not None:
            labels[~visible] = IGNORE
        return pixels, labels

    @cached_property
    def input(self) -> Channels:
        """How the image files become the model's channels. Raises InputError."""
        return Channels(self.channels, self.spec.bands, self.spec.range)

    @cached_property
    def listing(self) -> str:
        """A digest of the spec and of every file's name, size and time: while it stays the same, so do the files."""
        digest = hashlib.sha256(json.dumps(to_dict(self.spec)).encode())
        for path in (path for pair in self.pairs for path in pair):
            status = path.stat()
            digest.update(os.fsencode(f"{path.absolute()} {status.st_size} {status.st_mtime_ns}\n"))
        return digest.hexdigest()


def resolve(config: DataConfig) -> DataConfig:
    """The config with its spec and its root folder filled in; the drawn scenes have no root. Raises InputError.

    A spec of one class gets its background: see description.settled.
    """
    name = config.dataset
    root = Path("data") / name if name != "drawn" else ""
    spec = config.spec or SPECS.get(name)
    if spec is None:
        path = Path(name) / "dataset.json" if Path(name).is_dir() else Path(name)
        root = path.parent
        spec = _described(path) if path.is_file() else _undescribed(root) if Path(name).is_dir() else None
        if spec is None:
            raise InputError(f"no data set or dataset.json {name!r}{suggest(name, SPECS)}")
    config = override(config, {"spec": spec, "root": config.root or str(root)})
    try:
        return override(config, {"spec": settled(spec, _masks(config), name)})
    except InputError as error:
        raise InputError(f"data set {config.dataset!r}: {error}") from error


def _masks(config: DataConfig) -> Iterator[File]:
    """The masks for training and validation, as far as they can be listed."""
    for split in (config.train_split, config.val_split):
        with contextlib.suppress(InputError, OSError):  # whoever opens the split reports that
            yield from (mask for _, mask in list_split(config, split).pairs)


def _undescribed(folder: Path) -> DatasetSpec:
    """The spec of a folder without a dataset.json: packed files hold one, and a public data set may keep its name."""
    spec = packed_spec(folder) or SPECS.get(folder.resolve().name)
    if spec is None or not spec.images:
        example = '{"classes": ["road", "car", ...]}'
        raise InputError(
            f"{folder} holds no dataset.json: write one that names the classes in the order of the mask values, "
            f"{example}, or let `data import masks` find the colours of its masks"
        )
    return spec


def _described(path: Path) -> DatasetSpec:
    document = read_json(path)
    try:
        return from_dict(DatasetSpec, document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def spec_of(config: DataConfig) -> DatasetSpec:
    """The spec of a resolved config."""
    if config.spec is None:
        raise ValueError(f"the config of data set {config.dataset!r} has no spec: pass it through resolve first")
    return config.spec


def open_dataset(
    config: DataConfig, split: str, channels: int = 3, *, max_pixels: int | None = None
) -> Dataset | DrawnScenes:
    """One split of a data set. Every image has a mask; no file has been opened yet. Raises InputError."""
    config = resolve(config)
    spec = spec_of(config)
    if not config.root:
        if split not in DRAWN_COUNTS:
            raise InputError(f"the drawn scenes have no split {split!r}{suggest(split, DRAWN_COUNTS)}")
        if channels != 3 or spec.classes != SCENE_CLASSES:
            raise InputError("the drawn scenes have 3 channels and their own classes; change the model or the data set")
        return DrawnScenes(split, count=DRAWN_COUNTS[split], size=DRAWN_SIZE)
    listing = list_split(config, split)
    return Dataset(listing.sound(), spec, channels, max_pixels, [*listing.notes(), *_changes(config)])


def _changes(config: DataConfig) -> Iterator[str]:
    """That the dataset.json of a resolved config is not what its spec was read from, in words: a run keeps its own."""
    path = Path(config.dataset)
    path = path / "dataset.json" if path.is_dir() else path
    if config.dataset in SPECS or not path.is_file():
        return
    try:
        now, own = _described(path), spec_of(config)
    except InputError:  # not needed: the spec is known
        return
    if len(now.classes) == 1:  # settled adds to it what masks show
        names = [] if now.classes[0] in own.classes else ["classes"]
    else:
        names = [f.name for f in fields(DatasetSpec) if getattr(now, f.name) != getattr(own, f.name)]
    if names:
        yield f"{path} now has other {some(names)}; the run's own are used"


def open_folders(
    images: Path, masks: Path, spec: DatasetSpec, channels: int = 3, *, max_pixels: int | None = None,
    partial: bool = False, what: str = "image",
) -> Dataset:  # fmt: skip
    """The data set of every image under one folder with the mask of the same stem under another. Raises InputError.

    partial: leave out images without a mask and masks without an image, which are refused otherwise. what: what the
    images are called; each "prediction" may have its overlay beside it.
    """
    listing = list_folders(images, masks, spec, overlays=what == "prediction")
    faults = []
    for fault in listing.faults:
        if fault.kind in UNPAIRED and listing.pairs:
            total, names = len(listing.pairs) + len(fault.files), some((path.stem for path in fault.files), 3)
            text = fault.sentence or f"{len(fault.files)} of {total} masks have no {what} in {images}: {names}"
            fault = fault._replace(sentence="" if partial else f"{text}; --partial scores the others")
        faults.append(fault)
    listing = listing._replace(faults=faults)
    return Dataset(listing.sound(), spec, channels, max_pixels, listing.notes())


def list_split(config: DataConfig, split: str) -> Listing:
    """The files of one split of a resolved config that has a root. Raises InputError where there is no such split."""
    spec, root = spec_of(config), Path(config.root)
    if not root.is_dir():
        raise InputError(f"no folder {root} for data set {config.dataset!r}; name its folder with --root")
    split = spec.split_names.get(split, split)
    packed = packed_pairs(root, split)
    if packed:
        return Listing(packed)
    images, masks, lines = (
        located(root, place.replace("{split}", split)) for place in (spec.images, spec.masks, spec.split_list)
    )
    if spec.split_list:
        return list_lines(root, lines, split, spec, images, masks)
    return list_folders(images, masks, spec)


def size_difference(image: object, image_hw: tuple[int, ...], mask: object, mask_hw: tuple[int, ...]) -> str:
    return f"{image} is {image_hw[1]}x{image_hw[0]}, but its mask {mask} is {mask_hw[1]}x{mask_hw[0]} (width x height)"
