"""The files that a folder or a name stands for."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import some


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


def located(root: Path, name: str) -> Path:
    """root / name as the disk spells it, if it is there: with slashes of any system, accents in either form.

    A Mac decomposes é into two characters in the names of files, other systems keep one. An absolute name stays so.
    """
    for each in dict.fromkeys((name, name.replace("\\", "/"))):
        path = root / each
        if not each.isascii() and not os.path.lexists(path):
            path = root
            for part in Path(each).parts:
                forms = (path / unicodedata.normalize(form, part) for form in ("NFC", "NFD"))
                path = next(filter(os.path.lexists, forms), path / part)
        if os.path.lexists(path):
            break
    return path


def leads_nowhere(path: Path) -> bool:
    """Whether it is a link to something that is not there."""
    return os.path.islink(path) and not os.path.exists(path)


def by_extension(files: Iterable[Path]) -> str:
    """How many files there are, by extension: `3 .cr2, 1 .txt`."""
    counts = Counter(path.suffix.lower() or "without an extension" for path in files)
    return some((f"{count} {suffix}" for suffix, count in counts.most_common()), 4)
