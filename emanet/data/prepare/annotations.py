"""The annotations of a labelling tool -> a folder data set: `data import TOOL SOURCE --out FOLDER`.

A tool is one file in tools/ with one function, `read(source, images) -> Export`. Everything after that is here and the
same for all tools: names of classes, splits, drawing, writing, and an account of what was read and what was left out.
"""

import hashlib
import importlib
import re
import shutil
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np

from ...atomic import write_json
from ...config import IGNORE, DatasetSpec, voc_palette
from ...errors import InputError, some, suggest
from ...show.tables import Grid
from ...show.terminal import note, say, show, track
from ..images import image_size, pixels_per_label, write_mask
from .image_files import Images, shared_end
from .tools import TOOLS

Colour = tuple[int, int, int]
BACKGROUND = "background"
SHARES = (0.8, 0.2)
SPLITS = ("train", "val", "test")
SYNONYMS = {
    "train": "train",
    "val": "val",
    "test": "test",
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
    "default": "",
}


class Region(NamedTuple):
    """Pixels of one label in an image."""

    label: str | None
    """A name of Export.classes; None: pixels to ignore."""
    mask: np.ndarray
    """(h, w) bool: which pixels of a box."""
    left: int = 0
    top: int = 0
    """Where the box lies in the image; it may reach beyond its edges."""


@dataclass(frozen=True, eq=False)
class Annotated:
    """One image with what was drawn on it."""

    name: str
    """Of the image and mask to write: a path without extension, whose `..` count nothing."""
    image: Path | bytes
    """The file, or its content where the export embeds it."""
    regions: Callable[[tuple[int, int]], Iterable[Region]]
    """Called once with the image's (h, w). Later regions cover earlier ones. May raise InputError: the image is then
    left out."""
    size: tuple[int, int] | None = None
    """(h, w) of the upright image as the export states it; other images are left out."""
    suffix: str = ""
    """File extension where `image` is its content."""
    split: str = ""
    """The tool's own split, if it has splits."""

    @property
    def extension(self) -> str:
        return self.suffix if isinstance(self.image, bytes) else self.image.suffix


@dataclass
class Export:
    """What a tool's `read` returns."""

    classes: list[str]
    """In the tool's own order, or sorted where it has none; without names that mean no class."""
    items: list[Annotated] = field(default_factory=list)
    palette: dict[str, Colour] = field(default_factory=dict)
    background: str = ""
    """The class that pixels without a region have in the tool, if it has one."""
    order: str = "Later objects are drawn over earlier ones."
    """How overlapping objects are drawn, a sentence of the account."""
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Why something was not read -> its names: files, or shapes as "NAME: what"."""


def import_annotations(
    tool: str,
    source: str | Path,
    out: str | Path,
    *,
    images: str | Path = "",
    rename: Sequence[str] = (),
    unlabelled: Literal["background", "ignore"] = "background",
    split: Sequence[float] = (),
    group_by: str = "",
) -> None:
    """Read an export, write it as a folder data set and show an account of it.

    images: where the images are, if they are not in the export. rename: "OLD=NEW" in the order they apply; several old
    names may have one new name, "OLD=" leaves the pixels of OLD unlabelled, and "*=NEW" is for all names that are not
    named. unlabelled: what pixels without an object become.
    split: shares of train, val and perhaps test, by a hash of the name; default: the tool's own splits, or SHARES.
    group_by: a regular expression; images in whose names it matches the same text stay in one split.

    Images are copied byte for byte. `out` must be new or empty; it appears when it is complete. Raises InputError.
    """
    if tool not in TOOLS:
        raise InputError(f"no annotation tool {tool!r}{suggest(tool, TOOLS)}")
    source, out = Path(source).expanduser(), Path(out).expanduser()
    if not source.exists():
        raise InputError(f"there is no {source}")
    if out.name in ("", ".."):
        raise InputError(f"--out {out}: name a new folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; name a new folder")
    if source.is_file() and (zipfile.is_zipfile(source) or tarfile.is_tarfile(source)):
        raise InputError(f"{source} is an archive: unpack it and name its folder")
    shares = _shares(split)
    folder = Path(images).expanduser() if str(images) else None
    if folder and not folder.is_dir():
        raise InputError(f"--images {folder} is not a folder")
    read = importlib.import_module(f".tools.{TOOLS[tool]}", __package__).read
    export: Export = read(source, Images(source, folder))
    if not export.items:
        raise InputError(f"{source} holds no annotated image of {tool}{_reasons(export)}")
    if "" in export.classes:
        raise InputError(f"{source} has a class without a name: give it one")
    alike = (name for name in export.classes if name.strip("_").lower() == BACKGROUND)  # Background, _background_
    export.background = export.background or next(alike, "")
    names = _renamed(export, rename)
    classes = _classes(export, names, unlabelled)
    spec = DatasetSpec(classes=tuple(classes), palette=_palette(export, names, classes))
    items = _once(export)
    if len(items) < 2:
        raise InputError(f"1 image is too few for a split to train on and one to measure on{_reasons(export)}")
    splits, how = _splits(items, shares, group_by)
    named = _uniquely_named(items, splits)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        account = _write(named, partial, export, spec, names, unlabelled)
        if not account.objects.keys() - {""}:
            count = sum(account.images.values())
            raise InputError(f"{source}: none of its {count} images has an object of a class{_reasons(export)}")
        write_json(partial / "dataset.json", {"classes": spec.classes, "palette": spec.palette})
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        raise InputError(f"cannot copy to {out}: {error.filename or ''} {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    account.show(export, out, spec, names, how)


def _reasons(export: Export) -> str:
    reasons = "; ".join(f"{reason}: {some(names, 3)}" for reason, names in export.left_out.items())
    return f" ({reasons})" if reasons else ""


def _renamed(export: Export, rename: Sequence[str]) -> dict[str, str]:
    """Tool's name -> class, "" for unlabelled."""
    names = {name: name for name in export.classes}
    named: set[str] = set()
    for entry in rename:
        old, equals, new = (part.strip() for part in entry.partition("="))
        if not equals:
            raise InputError(f"--map {entry} is not OLD=NEW, or OLD= to leave the pixels of OLD unlabelled")
        if old != "*" and old not in names:
            raise InputError(f"--map {entry}: there is no class {old!r}{suggest(old, names)}")
        for name in names.keys() - named if old == "*" else [old]:
            names[name] = new
        named |= {old}
    return names


def _classes(export: Export, names: Mapping[str, str], unlabelled: str) -> list[str]:
    classes = list(dict.fromkeys(names[name] for name in export.classes if names[name]))
    background = names.get(export.background, "") or BACKGROUND
    if unlabelled == "background" and background not in classes:
        classes.insert(0, background)
    if len(classes) < 2:
        raise InputError(f"only one class is left, {some(classes)}: a model has nothing to tell apart; change --map")
    if len(classes) > IGNORE:
        raise InputError(f"{len(classes)} classes are more than {IGNORE}; merge some with --map")
    return classes


def _palette(export: Export, names: Mapping[str, str], classes: Sequence[str]) -> tuple[Colour, ...]:
    """The tool's colours, the first one of a merged class. VOC's where they are missing or not unique."""
    colours = {names[name]: export.palette[name] for name in reversed(export.classes) if name in export.palette}
    if set(classes) - set(colours) == {BACKGROUND} and (0, 0, 0) not in colours.values():
        colours[BACKGROUND] = (0, 0, 0)
    own = tuple(colours[name] for name in classes if name in colours)
    return own if len(set(own)) == len(classes) else voc_palette(len(classes))


def _once(export: Export) -> list[Annotated]:
    """The items, with paths that stay inside the data set.

    Of several with one image file, the one that is named like it, or the first.
    """
    used: dict[Path, Annotated] = {}
    for item in export.items:
        if isinstance(item.image, Path):
            first = used.setdefault(item.image.resolve(), item)
            if _named_alike(item) and not _named_alike(first):
                used[item.image.resolve()] = item
    items = []
    for item in export.items:
        if isinstance(item.image, Path) and used[item.image.resolve()] is not item:
            export.left_out["annotations of an image for which others are used"].append(item.name)
        else:
            items.append(replace(item, name=_inside(item.name) or "image", split=_inside(item.split)))
    return items


def _named_alike(item: Annotated) -> bool:
    """Whether the image's path ends with the item's name."""
    parts = PurePosixPath(_inside(item.name)).parts
    return isinstance(item.image, Path) and shared_end(item.image.with_suffix("").parts, parts) == len(parts)


def _inside(stated: str) -> str:
    parts = (part.lstrip(".") for part in re.split(r"[/\\\0]+", stated))
    return "/".join(part for part in parts if part)


def _uniquely_named(items: Sequence[Annotated], splits: Sequence[str]) -> list[tuple[str, str, Annotated]]:
    """(split, name, item), sorted. Images of one name in a split keep their extension in it, or get a number too."""
    ordered = sorted(zip(splits, items, strict=True), key=lambda each: (each[0], each[1].name, each[1].extension))
    count = Counter((split, item.name) for split, item in ordered)
    taken = {each for each, times in count.items() if times == 1}
    named = []
    for split, item in ordered:
        name = item.name
        if count[split, name] > 1:
            name = stem = f"{name}_{item.extension[1:]}"
            number = 1
            while (split, name) in taken:
                number += 1
                name = f"{stem}_{number}"
            taken.add((split, name))
        named.append((split, name, item))
    return named


def _shares(split: Sequence[float]) -> tuple[float, ...]:
    if split and (not 2 <= len(split) <= 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6 or min(split[:2]) == 0):
        text = " ".join(f"{share:g}" for share in split)
        raise InputError(f"--split {text}: give two or three shares (train, val, test) that add up to 1: 0.8 0.2")
    return tuple(split)


def _splits(items: Sequence[Annotated], shares: tuple[float, ...], group_by: str) -> tuple[list[str], str]:
    """The split of each item, and a sentence on where they come from."""
    own = [SYNONYMS.get(item.split.lower(), item.split) for item in items]
    if not shares and len(set(own)) > 1 and "train" in own:
        if group_by:
            raise InputError("--group-by needs --split: the export has splits of its own, which are kept otherwise")
        how = "the splits are the export's own"
        how += "" if "val" in own else "; none of them is val, on which training measures: --split draws one"
        return [split or "train" for split in own], how
    shares = shares or SHARES
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise InputError(f"--group-by {group_by}: not a regular expression: {error}") from error
    groups = [_group(item.name, pattern) if group_by else item.name for item in items]
    if group_by and len(set(groups)) < len(shares):
        raise InputError(f"--group-by {group_by} finds only {some(sorted(set(groups)))}: too few groups to split")
    position = {group: _position(group) for group in groups}
    limits = np.cumsum(shares)[:-1]
    split_of = {group: SPLITS[int(np.searchsorted(limits, at, "right"))] for group, at in position.items()}
    how = f"drawn by a hash of {'each group' if group_by else 'each name'}, {' '.join(f'{s:g}' for s in shares)}"
    if len(position) < len(shares):
        raise InputError(f"{some(sorted(position))}: too few images for {len(shares)} splits")
    ordered = sorted(position, key=position.__getitem__)
    if set(split_of.values()) < {name for name, share in zip(SPLITS, shares, strict=False) if share}:
        # Too few names for their hashes to fill every split: at least one each, in the order of the hashes.
        bounds = [max(i, round(limit * len(ordered))) for i, limit in enumerate(limits, 1)]
        bounds = [min(bound, len(ordered) - (len(bounds) - i)) for i, bound in enumerate(bounds)]
        split_of = {group: SPLITS[int(np.searchsorted(bounds, i, "right"))] for i, group in enumerate(ordered)}
        how += "; with so few images, each split was given at least one"
    if len(set(own)) > 1:
        how += f"; the export's own splits ({some(sorted(set(own) - {''}))}) are not used"
    return [split_of[group] for group in groups], how


def _group(name: str, pattern: re.Pattern[str]) -> str:
    match = pattern.search(name)
    if match is None:
        raise InputError(f"--group-by {pattern.pattern} does not match the name {name!r}")
    return match[1] if pattern.groups else match[0]


def _position(name: str) -> float:
    """A number in [0, 1) that only the name decides, so that further images do not move this one."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6]) / (1 << 48)


@dataclass
class _Account:
    """What was written."""

    images: Counter[str] = field(default_factory=Counter)
    """Split -> images."""
    objects: Counter[str] = field(default_factory=Counter)
    """Class -> regions; "": ignored ones."""
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    empty: list[str] = field(default_factory=list)
    """Images without a region of a class that is kept."""

    def show(self, export: Export, out: Path, spec: DatasetSpec, names: Mapping[str, str], how: str) -> None:
        total = max(1, int(self.pixels.sum()))
        rows = []
        for label, name in enumerate(spec.classes):
            merged = [old for old, new in names.items() if new == name and old != name]
            text = f"{name} (from {', '.join(merged)})" if merged else name
            rows.append((text, str(self.objects[name]), f"{self.pixels[label] / total:.2%}"))
        rows.append(("ignored", str(self.objects[""]), f"{self.pixels[IGNORE] / total:.2%}"))
        show(Grid("", ("class", "objects", "pixels"), rows))
        dropped = [old for old, new in names.items() if not new]
        if dropped:
            say(f"unlabelled by --map: {', '.join(dropped)}")
        say(export.order)
        say(f"{sum(self.images.values())} images: {_counts(self.images)}; {how}.")
        if self.empty:
            note(f"{len(self.empty)} images have no object, all their pixels are unlabelled: {some(self.empty, 3)}")
        for reason, left in export.left_out.items():
            note(f"left out: {len(left)} {reason}: {some(left, 3)}")
        say(f"Next: python -m emanet data check {out}")


def _counts(images: Mapping[str, int]) -> str:
    ordered = sorted(images, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
    return ", ".join(f"{split} {images[split]}" for split in ordered)


def _write(
    items: Sequence[tuple[str, str, Annotated]],
    out: Path,
    export: Export,
    spec: DatasetSpec,
    names: Mapping[str, str],
    unlabelled: str,
) -> _Account:
    """Copy every image and draw its mask."""
    account = _Account()
    background = names.get(export.background, "") or BACKGROUND
    start = spec.classes.index(background) if unlabelled == "background" else IGNORE
    label_of: dict[str | None, int] = {None: IGNORE}
    label_of |= {old: spec.classes.index(new) if new else start for old, new in names.items()}
    for split, name, item in track(items, "import"):
        image = out / split / "images" / f"{name}{item.extension}"
        image.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(item.image, bytes):
            image.write_bytes(item.image)
        else:
            shutil.copyfile(item.image, image)
        try:
            size = image_size(image)
            if item.size and item.size != size:
                stated = f"{item.size[1]}x{item.size[0]}"
                raise InputError(f"it is {size[1]}x{size[0]}, its annotations are for {stated} (width x height)")
            labels = np.full(size, start, np.uint8)
            drawn: Counter[str] = Counter()
            for region in item.regions(size):
                _draw(labels, region, label_of[region.label])
                if region.label is None or names[region.label]:
                    drawn[names[region.label] if region.label else ""] += 1
        except InputError as error:
            image.unlink()
            export.left_out["images"].append(f"{name}: {str(error).replace(str(image), name)}")
            continue
        mask = out / split / "masks" / f"{name}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        write_mask(mask, labels, spec.colours)
        account.images[split] += 1
        account.empty += [] if drawn else [name]
        account.objects += drawn
        account.pixels += pixels_per_label(labels)
    if not account.images:
        raise InputError(f"no image could be imported: {some(export.left_out['images'], 3)}")
    return account


def split_in(path: Path, root: Path) -> str:
    """The split that the name of a file, or of a folder between it and `root`, names: instances_val2017.json is val."""
    for part in reversed(path.relative_to(root).parts if path.is_relative_to(root) else path.parts[-1:]):
        for word in re.split(r"[^a-z]+", part.lower()):
            if split := SYNONYMS.get(word):
                return split
    return ""


def _draw(labels: np.ndarray, region: Region, label: int) -> None:
    """Set the region's pixels, as far as they lie in the image."""
    (h, w), (own_h, own_w) = labels.shape, region.mask.shape
    top, left = max(0, -region.top), max(0, -region.left)
    bottom, right = min(own_h, h - region.top), min(own_w, w - region.left)
    if top < bottom and left < right:
        box = labels[region.top + top : region.top + bottom, region.left + left : region.left + right]
        box[region.mask[top:bottom, left:right]] = label
