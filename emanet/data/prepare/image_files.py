"""The images that an export of an annotation tool names, perhaps by paths of another machine."""

import itertools
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ...errors import InputError
from ..files import files_below
from ..images import IMAGE_SUFFIXES
from ..listing import composed


class Images:
    """The image files of an export, and the folder that --images names if they are elsewhere."""

    def __init__(self, *folders: Path | None):
        self.folders = [folder if folder.is_dir() else folder.parent for folder in folders if folder]
        found = dict.fromkeys(path for folder in self.folders for path in files_below(folder))
        self.files = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
        self.named: dict[str, list[Path]] = defaultdict(list)
        for path in self.files:
            self.named[_alike(path.name)].append(path)

    def find(self, stated: str, *near: Path) -> Path:
        """The file that an export states as a path, perhaps one of another machine.

        It is looked for at this path from the folders `near` and from the export, then at the ends of the path there,
        then by its name alone, in any case and Unicode form. Raises InputError where it is missing, or where several
        files have this name and none lies where the path says.
        """
        relative = PurePosixPath(stated.replace("\\", "/"))
        inside = [part for part in relative.parts if part not in ("/", "..", ".")]
        folders = (*near, *self.folders)
        paths = [folder / relative for folder in folders if not relative.is_absolute()]
        paths += [folder.joinpath(*inside[start:]) for folder in folders for start in range(len(inside))]
        for path in paths:
            if os.path.isfile(path):  # unlike Path.is_file, also for names that the disk finds too long
                return path
        same = self.named.get(_alike(relative.name), [])
        if len(same) > 1:  # those whose folders are the stated ones as far as possible
            ends = [shared_end(path.parts, inside) for path in same]
            same = [path for path, end in zip(same, ends, strict=True) if end == max(ends)]
        if len(same) != 1:
            why = f"{len(same)} files have this name" if same else "it is not here; --images names another folder"
            raise InputError(f"image {stated if len(stated) < 300 else stated[:300] + '...'}: {why}")
        return same[0]


def _alike(name: str) -> str:
    """The same for names that differ in case or in Unicode's form only."""
    return composed(name).casefold()


def shared_end(path: Sequence[str], other: Sequence[str]) -> int:
    """How many of the last parts are alike."""
    pairs = zip(reversed(path), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: _alike(pair[0]) == _alike(pair[1]), pairs))
