"""The files of a split: pairs of an image and a mask, what is wrong with other files, and what is left out."""

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Sequence, Sized
from pathlib import Path
from typing import NamedTuple

from ..config import DatasetSpec
from ..errors import InputError, some
from ..experiments import read_text
from .files import by_extension, files_below, leads_nowhere, located
from .images import IMAGE_SUFFIXES
from .shards import Pair

UNPAIRED = {"image-without-mask": ("image", "a mask"), "mask-without-image": ("mask", "an image")}  # what lacks what
# The ends of what `predict` writes beside NAME.png to be looked at.
OVERLAY, COLOURS, UNCERTAINTY = PICTURES = ("_overlay.jpg", "_colour.png", "_uncertainty.png")
RASTERS = ("_probabilities.tif", "_uncertainty.tif")  # the same of NAME.tif, for other programs


class Fault(NamedTuple):
    """What is wrong with files of a split, as far as their names tell."""

    kind: str
    """One of KINDS in check/splits.py."""
    files: Sequence[Path]
    sentence: str = ""
    """Why training refuses the split; "": it does not."""


class Listing(NamedTuple):
    """The pairs of a split, and what is wrong with its other files."""

    pairs: Sequence[Pair]
    faults: Sequence[Fault] = ()
    other: Sequence[Path] = ()
    """Files among the images that are not read as images."""

    def notes(self) -> list[str]:
        """What is not used although training does not refuse it, and what is used twice, in words."""
        texts = []
        for fault in self.faults:
            if not fault.sentence and fault.kind in UNPAIRED:
                what, lacks = UNPAIRED[fault.kind]
                names = some((path.name for path in fault.files), 3)
                texts.append(f"left out: {number(fault.files, what)} without {lacks}: {names}")
        if self.other:
            texts.append(f"left out: {number(self.other, 'file')} beside the images: {by_extension(self.other)}")
        repeated = [Path(str(image)).name for (image, _), count in Counter(self.pairs).items() if count > 1]
        if repeated:
            texts.append(f"listed more than once: {number(repeated, 'image')}: {some(repeated, 3)}")
        return texts

    def sound(self) -> Sequence[Pair]:
        """The pairs. Raises InputError with the first fault for which training refuses the split."""
        for fault in self.faults:
            if fault.sentence:
                raise InputError(fault.sentence)
        return self.pairs


def number(items: Sized, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{len(items)} {what}{'s' * (len(items) != 1)}"


def list_folders(images: Path, masks: Path, spec: DatasetSpec, *, overlays: bool = False) -> Listing:
    """The images of a folder, each with the mask of its stem.

    overlays: the images are label maps that `predict` has written, as .png or .tif; do without its overlays of them.
    """
    image_files, faults, other = _files(images, spec.image_suffix)
    if overlays:
        start = spec.image_suffix.rpartition(".")[0]
        for ending in (".png", ".tif") if spec.image_suffix and not image_files else ():
            image_files |= _files(images, f"{start}{ending}")[0]
        image_files = {stem: path for stem, path in image_files.items() if not _is_overlay(path)}
    mask_files, more, _ = _files(masks, spec.mask_suffix)
    faults += more
    other = [] if images == masks or spec.image_suffix else other
    broken = {path for fault in faults if fault.kind == "broken-link" for path in fault.files}
    pairs = [(path, mask_files[stem]) for stem, path in image_files.items() if stem in mask_files]
    pairs = [pair for pair in pairs if broken.isdisjoint(pair)]
    if any(fault.kind == "no-access" for fault in faults):  # files that seem to be missing may be there
        return Listing(pairs, faults, other)
    if not image_files:
        pattern = f" named *{spec.image_suffix}" if spec.image_suffix else ""
        only = f", only files that are not read as images: {by_extension(other)}" if other else ""
        faults.append(Fault("empty-split", [images], f"{images} holds no image{pattern}{only}"))
    alone = [path for stem, path in image_files.items() if stem not in mask_files]
    if alone:
        sentence = f"{len(alone)} of {len(image_files)} images have no mask in {masks}: {some(alone, 3)}"
        in_lower_case = {stem.lower() for stem in mask_files}
        if any(stem.lower() in in_lower_case for stem in image_files if stem not in mask_files):
            sentence += "; some names differ only in upper and lower case"
        faults.append(Fault("image-without-mask", alone, sentence))
    unused = [path for stem, path in mask_files.items() if stem not in image_files]
    if unused:
        faults.append(Fault("mask-without-image", unused))
    return Listing(pairs, faults, other)


def _files(folder: Path, suffix: str) -> tuple[dict[str, Path], list[Fault], list[Path]]:
    """Stem relative to the folder -> file, sorted; faults; and the other files.

    Stems are in Unicode's composed form (NFC): a Mac writes é as two characters in names, other systems as one.
    Faults: two files of one stem, folders that cannot be read, links to nothing. The suffix is compared in any case.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    refused: list[OSError] = []
    paths = sorted(files_below(folder, refused.append))
    faults = [
        Fault("no-access", [Path(error.filename)], f"cannot read folder {error.filename}: {error.strerror}")
        for error in refused
    ]
    files: dict[str, Path] = {}
    other = []
    for path in paths:
        if leads_nowhere(path):
            sentence = f"{path} is a link to {os.readlink(path)}, which does not exist or cannot be reached"
            faults.append(Fault("broken-link", [path], sentence))
            if not path.suffix:  # it may have been a folder
                continue
        if not (_ends(path.name, suffix) if suffix else path.suffix.lower() in IMAGE_SUFFIXES):
            other.append(path)
            continue
        name = path.relative_to(folder).as_posix()
        first = files.setdefault(composed(name[: -len(suffix or path.suffix)]), path)
        if first is not path:
            sentence = f"{first} and {path} have the same stem, so it is not clear which one a mask belongs to"
            faults.append(Fault("same-stem", [first, path], sentence))
    return files, faults, other


def _is_overlay(path: Path) -> bool:
    """Whether `predict` has written this beside a label map."""
    ending = next((each for each in (*PICTURES, *RASTERS) if path.name.endswith(each)), "")
    label_map = path.name.removesuffix(ending) + (".tif" if ending in RASTERS else ".png")
    return bool(ending) and path.with_name(label_map).exists()


def _ends(name: str, suffix: str) -> bool:
    """Whether a name has more than this suffix at its end, in any case."""
    return len(name) > len(suffix) and name[-len(suffix) :].lower() == suffix.lower()


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def list_lines(root: Path, path: Path, split: str, spec: DatasetSpec, images: Path, masks: Path) -> Listing:
    """The split that a text file lists: an image, or an image path and a mask path, a line."""
    if not path.is_file():
        raise InputError(f"no split {split!r}: there is no {path}")
    text = read_text(path, names=True)
    lines = [line for each in text.splitlines() if (line := each.strip())]
    faults: list[Fault] = []
    pairs: list[tuple[Path, Path]] = []
    unlisted: list[str] = []
    image_files: dict[str, Path] = {}
    mask_files: dict[str, Path] = {}
    if images.is_dir() and masks.is_dir():  # one walk instead of a look-up per stem and extension
        image_files, faults, _ = _files(images, spec.image_suffix)
        mask_files, more, _ = _files(masks, spec.mask_suffix)
        faults = [fault for fault in faults + more if fault.kind != "broken-link"]  # it matters where it is listed
    places = (os.path.relpath(images, root), os.path.abspath(images), os.path.realpath(images))
    folders = [composed(f"{place}/") for place in dict.fromkeys(places)]
    for line in lines:
        stem = _stem_in(line, image_files, spec, folders)
        if stem is not None:
            end = spec.mask_suffix or ".png"
            pairs.append((image_files[stem], mask_files.get(stem, masks / f"{stem}{end}")))
        elif both := _two_paths(line, path, (root, images), (root, masks)):
            pairs.append(both)
        elif not line.startswith("#"):
            unlisted.append(line)
    if not pairs and not unlisted:
        faults.append(Fault("empty-split", [path], f"the split list {path} is empty"))
    hint = f"; {path} is not in UTF-8: save it so" if re.search("[\udc80-\udcff]", text) else ""
    if unlisted:
        first = unlisted[0]
        why = f"but {images} has no image of that name"
        if _is_there(_below((root,), first)):
            why = f"which is not in {images}, so its mask is not known"
        elif same := _stem_in(first.lower(), {stem.lower() for stem in image_files}, spec):
            why += f" (it has {next(stem for stem in image_files if stem.lower() == same)!r})"
        sentence = (
            f"{path} names {first!r}, {why}; a line is an image's name below "
            f"that folder, or the paths of an image and a mask with a tab, a comma or a space between them{hint}"
        )
        faults.append(Fault("missing-file", [images / name for name in unlisted], sentence))
    missing: set[Path] = set()
    for i, kind in enumerate(("image", "mask")):
        absent = [pair[i] for pair in pairs if not _is_there(pair[i])]
        if absent:
            sentence = f"{len(absent)} of {len(pairs)} {kind}s of {path} are missing: {some(absent, 3)}{hint}"
            faults.append(Fault("missing-file", absent, sentence))
            missing.update(absent)
    return Listing([pair for pair in pairs if missing.isdisjoint(pair)], faults)


def _stem_in(line: str, files: Container[str], spec: DatasetSpec, folders: Iterable[str] = ()) -> str | None:
    """The key of `files` that a line means: with or without extension, `./` and quotes, with any slashes; or None.

    folders: the ways to write the images' folder, which may stand before the name.
    """
    plain = composed(line.strip("\"'").replace("\\", "/").removeprefix("./"))
    inner = [plain[len(folder) :] for folder in folders if plain.startswith(folder)]
    for name in (composed(line), plain, *inner):
        for suffix in ("", spec.image_suffix, Path(name).suffix):
            stem = name[: -len(suffix)] if suffix and _ends(name, suffix) else name
            if stem in files and (not suffix or suffix == spec.image_suffix or suffix.lower() in IMAGE_SUFFIXES):
                return stem
    return None


def _two_paths(line: str, path: Path, images: Sequence[Path], masks: Sequence[Path]) -> tuple[Path, Path] | None:
    """The image and the mask of a line that names both: quoted, or with a tab, comma, semicolon or space between them.

    Where names have these too, the place between them is where both files exist: InputError if there are several. None
    if the line does not seem to name two files. images, masks: the folders that paths are relative to.
    """
    quoted = re.findall(r"\"([^\"]*)\"", line)
    halves = [quoted] if len(quoted) == 2 else []
    halves += [parts for mark in "\t,;" if len(parts := line.split(mark)) == 2]
    halves += [[line[: gap.start()], line[gap.end() :]] for gap in re.finditer(r"\s+", line)]
    pairs = [(_below(images, image), _below(masks, mask)) for image, mask in dict.fromkeys(map(tuple, halves))]
    there = list(dict.fromkeys(pair for pair in pairs if all(map(_is_there, pair))))
    if sum(all(map(os.path.isfile, pair)) for pair in there) > 1:
        raise InputError(f"{path}: {line!r} can mean several pairs; write a tab between the image and the mask")
    if not there and not line.startswith("#"):  # files that are missing
        there = [pair for pair in pairs if all(each.suffix.lower() in IMAGE_SUFFIXES for each in pair)]
    return there[0] if there else None


def _below(folders: Sequence[Path], name: str) -> Path:
    """A path of a list: absolute if there is such a file, else below one of the folders, whatever slashes it has."""
    name = name.strip().strip("\"'")
    paths = (located(folder, each) for each in dict.fromkeys((name, name.lstrip("/\\"))) for folder in folders)
    inner = folders[0] / name.lstrip("/\\")
    return next(filter(_is_there, paths), inner if os.path.isdir(inner.parent) else folders[0] / name)


def _is_there(path: Path) -> bool:
    """Whether there is a file, or a folder on the way forbids to look: reading the file will report that."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except PermissionError:
        return True
    except (OSError, ValueError):  # no name that a disk can have
        return False
