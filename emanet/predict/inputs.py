"""Which images a command's arguments mean (files, folders, globs), the names of results, and how to read them."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..data.bands import Channels
from ..data.files import files_below
from ..data.images import IMAGE_SUFFIXES
from ..errors import InputError, some
from ..model import EMANet


def find_images(inputs: Sequence[str]) -> list[tuple[Path, Path]]:
    """Files, folders (with their subfolders) and globs -> (file, name), sorted by file, each file once.

    A name is the path below the folder, or below the part of a glob before its first wildcard, without the extension.
    Files of one name keep their extension in it (a.jpg, a.png -> a_jpg, a_png), and if that does not help get a
    number (a_jpg, a_jpg_2). Folders and globs give files with IMAGE_SUFFIXES that are not hidden; a file that is named
    is taken whatever its extension. Raises InputError for an input without any image.
    """
    unique: dict[Path, tuple[Path, Path]] = {}  # real path -> path, path below its input
    for source in inputs:
        images = _images_of(source)
        if not images:
            raise InputError(f"folder {source} holds no image" if Path(source).is_dir() else f"no image {source}")
        for path, relative in images:
            unique.setdefault(path.resolve(), (path, relative))
    pairs = sorted(unique.values())
    count = Counter(relative.with_suffix("") for _, relative in pairs)
    taken = {stem for stem, times in count.items() if times == 1}
    named = []
    for path, relative in pairs:
        stem = name = relative.with_suffix("")
        if count[stem] > 1:
            name = base = Path(f"{stem}_{relative.suffix[1:]}")
            number = 1
            while name in taken:
                number += 1
                name = Path(f"{base}_{number}")
            taken.add(name)
        named.append((path, name))
    return named


def left_out(inputs: Sequence[str]) -> str:
    """Which files and folders in the folders are not read, in words, files by extension; "" if there are none."""
    folders = [path for source in inputs if (path := Path(source)).is_dir()]
    refused: list[OSError] = []
    files = [file for folder in folders for file in files_below(folder, refused.append)]
    other = [file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]
    count = Counter(file.suffix or "without an extension" for file in other)
    kinds = some((f"{times} {suffix}" for suffix, times in count.most_common()), 4)
    texts = [f"left out, as they are no images: {kinds}"] if other else []
    texts += [f"left out, as it cannot be read: folder {error.filename} ({error.strerror})" for error in refused]
    return "; ".join(texts)


def _images_of(source: str) -> list[tuple[Path, Path]]:
    """The image files of one input, and their paths below its fixed part."""
    path = Path(source)
    if path.is_file():
        return [(path, Path(path.name))]
    if path.is_dir():
        root, files = path, files_below(path)
    else:
        parts = path.parts
        fixed = next((k for k, part in enumerate(parts) if glob.has_magic(part)), len(parts))
        root, rest = Path(*parts[:fixed]), parts[fixed:]
        if "**" in rest:  # by pathlib, which follows no links: they may lead in circles. It does find hidden files
            matches = root.glob(os.path.join(*rest, *["*"] * (rest[-1] == "**")))
            files = [file for file in matches if not any(part[0] == "." for part in file.relative_to(root).parts)]
        else:
            files = [Path(name) for name in glob.glob(source)]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    return [(file, file.relative_to(root)) for file in images]


def channels_of(
    model: EMANet, bands: Sequence[int] = (), range: Sequence[float] = (), *, flags: bool = False
) -> Channels:
    """How files become a model's images: as in its training, or by other bands or another range."""
    return Channels(model.backbone.in_channels, tuple(bands) or model.bands, tuple(range) or model.range, flags)
