"""Walking folders: the files that a folder stands for."""

import os
from collections.abc import Callable
from pathlib import Path


def files_below(folder: str | Path, on_error: Callable[[OSError], object] | None = None) -> list[Path]:
    """The files of a folder and its subfolders, unsorted. Hidden files and folders (".name") are left out.

    Links to folders are followed, and each real folder is entered once, so links may form a circle; a folder that can
    be reached both directly and through a link keeps its direct path. on_error: called with the OSError, which names
    the folder, for each folder that cannot be read.
    """
    files: list[Path] = []
    entered: set[Path] = set()
    starts = [Path(folder)]  # links are added: they are walked once everything that needs no link is known
    for start in starts:
        for here, folders, names in os.walk(start, onerror=on_error):
            real = Path(here).resolve()
            folders[:] = sorted(name for name in folders if name[0] != "." and real not in entered)
            if real not in entered:
                files += [Path(here, name) for name in names if name[0] != "."]
                starts += [path for name in folders if (path := Path(here, name)).is_symlink()]
            entered.add(real)
    return files
