"""The files of a split: pairs of an image and a mask, what is wrong with other files, and what is left out."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..config import DatasetSpec
from ..errors import InputError, some
from ..experiments import read_text
from .files import files_below
from .images import IMAGE_SUFFIXES
from .shards import Pair

UNPAIRED = {"image-without-mask": "images without a mask", "mask-without-image": "masks without an image"}


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

    def left_out(self) -> list[str]:
        """What is not used although training does not refuse it, in words."""
        texts = []
        for fault in self.faults:
            if not fault.sentence and fault.kind in UNPAIRED:
                texts.append(f"{len(fault.files)} {UNPAIRED[fault.kind]}: {some((f.name for f in fault.files), 3)}")
        if self.other:
            suffixes = Counter(path.suffix.lower() or "no extension" for path in self.other)
            kinds = some((f"{count} {suffix}" for suffix, count in suffixes.most_common()), 3)
            texts.append(f"{len(self.other)} files beside the images: {kinds}")
        return texts

    def sound(self) -> Sequence[Pair]:
        """The pairs. Raises InputError with the first fault for which training refuses the split."""
        for fault in self.faults:
            if fault.sentence:
                raise InputError(fault.sentence)
        return self.pairs


def list_folders(images: Path, masks: Path, spec: DatasetSpec) -> Listing:
    image_files, faults, other = _files(images, spec.image_suffix)
    mask_files, more, _ = _files(masks, spec.mask_suffix)
    faults += more
    other = [] if images == masks or spec.image_suffix else other
    pairs = [(path, mask_files[stem]) for stem, path in image_files.items() if stem in mask_files]
    if any(fault.kind == "no-access" for fault in faults):  # files that seem to be missing may be there
        return Listing(pairs, faults, other)
    if not image_files:
        pattern = f" named *{spec.image_suffix}" if spec.image_suffix else ""
        faults.append(Fault("empty-split", [images], f"{images} holds no image{pattern}"))
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
    Faults: two files of one stem, folders that cannot be read, links to nothing.
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
        if not (path.name.endswith(suffix) if suffix else path.suffix.lower() in IMAGE_SUFFIXES):
            other.append(path)
            continue
        name = path.relative_to(folder).as_posix()
        first = files.setdefault(composed(name[: -len(suffix or path.suffix)]), path)
        if first is not path:
            sentence = f"{first} and {path} have the same stem, so it is not clear which one a mask belongs to"
            faults.append(Fault("same-stem", [first, path], sentence))
    return files, faults, other


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def list_lines(root: Path, path: Path, split: str, spec: DatasetSpec, images: Path, masks: Path) -> Listing:
    """The split that a text file lists: one stem, or an image path and a mask path, a line."""
    if not path.is_file():
        raise InputError(f"no split {split!r}: there is no {path}")
    lines = [line.strip() for line in read_text(path, names=True).splitlines()]
    lines = [line for line in lines if line]
    faults: list[Fault] = []
    pairs: list[tuple[Path, Path]] = []
    unlisted: list[str] = []
    image_files: dict[str, Path] = {}
    mask_files: dict[str, Path] = {}
    if images.is_dir() and masks.is_dir():  # one walk instead of a look-up per stem and extension
        image_files, faults, _ = _files(images, spec.image_suffix)
        mask_files, more, _ = _files(masks, spec.mask_suffix)
        faults += more
    if not lines:
        faults.append(Fault("empty-split", [path], f"the split list {path} is empty"))
    for line in lines:
        stem = _stem_in(line, image_files, spec)
        if stem is not None:
            end = spec.mask_suffix or ".png"
            pairs.append((image_files[stem], mask_files.get(stem, masks / f"{stem}{end}")))
        elif both := _two_paths(line, root):
            pairs.append(both)
        elif not line.startswith("#"):
            unlisted.append(line)
    if unlisted:
        sentence = (
            f"{path} names {unlisted[0]!r}, but {images} has no image of that name; a line is an image's name below "
            "that folder, or the paths of an image and a mask with a tab, a comma or a space between them"
        )
        faults.append(Fault("missing-file", [images / name for name in unlisted], sentence))
    missing: set[Path] = set()
    for i, kind in enumerate(("image", "mask")):
        absent = [pair[i] for pair in pairs if not _is_there(pair[i])]
        if absent:
            sentence = f"{len(absent)} of {len(pairs)} {kind}s of {path} are missing: {some(absent, 3)}"
            faults.append(Fault("missing-file", absent, sentence))
            missing.update(absent)
    return Listing([pair for pair in pairs if missing.isdisjoint(pair)], faults)


def _stem_in(line: str, files: Mapping[str, Path], spec: DatasetSpec) -> str | None:
    """The key of `files` that a line means: with or without extension, `./` and quotes, with any slashes; or None."""
    for name in (line, line.strip("\"'").replace("\\", "/").removeprefix("./")):
        for suffix in ("", spec.image_suffix, Path(name).suffix):
            stem = composed(name[: -len(suffix)] if suffix and name.endswith(suffix) else name)
            if stem in files and (not suffix or suffix == spec.image_suffix or suffix.lower() in IMAGE_SUFFIXES):
                return stem
    return None


def _two_paths(line: str, root: Path) -> tuple[Path, Path] | None:
    """The image and the mask of a line that names both: quoted, or with a tab, comma, semicolon or space between them.

    Where names have spaces, the place between them is where both files exist; else the line must have two words.
    """
    quoted = re.findall(r"\"([^\"]*)\"", line)
    splits = [quoted] if len(quoted) == 2 else []
    splits += [parts for mark in "\t,;" if len(parts := line.split(mark)) == 2]
    words = line.split()
    found = [(_below(root, a), _below(root, b)) for a, b in splits]
    if len(words) == 2 and not found:
        found = [(_below(root, words[0]), _below(root, words[1]))]
    elif not found:
        halves = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
        found = [(a, b) for x, y in halves if _is_there(a := _below(root, x)) and _is_there(b := _below(root, y))]
    return found[0] if found else None


def _below(root: Path, name: str) -> Path:
    """A path of a list: absolute if there is such a file, else below the root, whatever slashes it has."""
    name = name.strip()
    for each in (name, name.replace("\\", "/")):
        path = Path(each)
        path = path if path.is_absolute() and _is_there(path) else root / each.lstrip("/")
        for form in ("NFC", "NFD"):
            if _is_there(same := path.with_name(unicodedata.normalize(form, path.name)) if path.name else path):
                return same
    return path


def _is_there(path: Path) -> bool:
    """Whether there is a file, or a folder on the way forbids to look: reading the file will report that."""
    try:
        return path.is_file()
    except PermissionError:
        return True
