"""Which images a command means: files, folders and globs, and how their results are called."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..data.files import files_below
from ..data.images import IMAGE_SUFFIXES
from ..errors import InputError


def find_images(inputs: Sequence[str]) -> list[tuple[Path, Path]]:
    """Files, folders (with their subfolders) and globs -> (file, name), sorted by file, each file once.

    A name is the path below the folder, or below the part of a glob before its first wildcard, without the extension.
    Files of one name keep their extension in it (a.jpg, a.png -> a_jpg, a_png), and if that does not help get a
    number (a_jpg, a_jpg_2). Folders and globs give files with IMAGE_SUFFIXES and no hidden ones; a file that is named
    is taken as it is. Raises InputError for an input without any image.
    """
    found: dict[Path, tuple[Path, Path]] = {}  # real path -> path as found, path below its input
    for given in inputs:
        below = _below(given)
        if not below:
            raise InputError(f"folder {given} holds no image" if Path(given).is_dir() else f"no image {given}")
        for path, relative in below:
            found.setdefault(path.resolve(), (path, relative))
    images = sorted(found.values())
    count = Counter(relative.with_suffix("") for _, relative in images)
    taken = {stem for stem, times in count.items() if times == 1}
    named = []
    for path, relative in images:
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


def _below(given: str) -> list[tuple[Path, Path]]:
    """The image files of one input, and their paths below its fixed part."""
    path = Path(given)
    if path.is_file():
        return [(path, Path(path.name))]
    if path.is_dir():
        root, files = path, files_below(path)
    else:
        parts = path.parts
        fixed = next((k for k, part in enumerate(parts) if glob.has_magic(part)), len(parts))
        root, rest = Path(*parts[:fixed]), parts[fixed:]
        if "**" in rest:  # pathlib's follows no links, which may lead in circles; glob's does, but finds no hidden ones
            matches = root.glob(os.path.join(*rest, *["*"] * (rest[-1] == "**")))
            files = [file for file in matches if not any(part[0] == "." for part in file.relative_to(root).parts)]
        else:
            files = [Path(name) for name in glob.glob(given)]
    known = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    return [(file, file.relative_to(root)) for file in known]
