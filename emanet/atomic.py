"""Atomic writes: write a temporary file, fsync, rename. A reader sees the old file or all of the new one."""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InputError


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path to write; it becomes `path` when the block ends, or is removed when the block raises.

    Folders on the way are made. An OSError names `path` instead of the temporary file, whose name holds the process
    id: two processes that write the same file do not disturb each other. durable: False leaves out fsync, which takes
    milliseconds, for thousands of small files that can be made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        if os.path.lexists(temporary):  # left by a killed process that had the same number
            temporary.unlink()
        yield temporary
        if durable:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and str(error.filename) in ("None", str(temporary)):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(path.parent)


def _beside(path: Path) -> Path:
    """Where `path` is written first. Never longer than `path`, whose name may be the longest that the disk allows."""
    name, whole = path.name, os.fsencode(path.name)
    if len(whole) > 100:
        name = f"{name[:20]}.{zlib.crc32(whole):08x}"
    return path.with_name(f".{name}.{os.getpid()}.partial")


def write_whole(path: Path, content: bytes | memoryview) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    write_whole(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def sync_folder(folder: Path) -> None:
    """fsync a folder: until then a power failure may undo a rename in it."""
    if os.name == "posix":  # elsewhere folders cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def require_writable(*paths: str | Path) -> None:
    """Before hours of work: InputError for the first path that could not be written as a file afterwards.

    Empty paths are skipped, folders on the way are made, existing files stay as they are.
    """
    for path in (Path(path) for path in paths if path):
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file to write")
        _try_writing(path, _beside(path))


def require_writable_folder(folder: str | Path) -> None:
    """The same for a folder that files will be written into; it is made."""
    if not str(folder):  # --out "$OUT" with a variable that is not set
        raise InputError("the name of the output folder is empty; write . for the folder you are in")
    _try_writing(Path(folder), Path(folder) / f".{os.getpid()}.partial")


def _try_writing(path: Path, trial: Path) -> None:
    try:
        trial.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except FileExistsError as error:
        raise InputError(f"cannot write {path}: {error.filename} is not a folder") from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
