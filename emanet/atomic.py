"""Files written whole: whoever reads `path` sees the old file or all of the new one, also after a power failure."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Beside its place, onto the disk, then renamed. Folders on the way are made; a failure leaves nothing behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)  # writing itself does not say
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    write_whole(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def move_whole(partial: Path, path: Path) -> None:
    """The same for a file that another library has written beside its place."""
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """A rename is on the disk once its folder is."""
    if os.name == "posix":  # elsewhere folders cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
