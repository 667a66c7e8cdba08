"""Archives: fetched over HTTP, resumed where they broke off, verified, and unpacked under a folder.

Only the standard library: no tool but Python is needed. What is interrupted goes on at the next call.
"""

import gzip
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import __version__
from ..errors import InputError

BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
TRIES = 5  # in a row that brought nothing
PAUSE = 2.0  # seconds before the second try; each further one waits twice as long


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file to fetch: where from, how it is known to be whole, and what is taken from it."""

    name: str
    takes: dict[str, str]
    """Beginning of a member's name -> what stands for it under the root; members that begin otherwise are left out."""
    gives: tuple[str, ...]
    """Paths under the root: if they all exist, the archive is not needed any more."""
    urls: tuple[str, ...] = ()
    """Tried in turn; none: to be fetched by hand."""
    page: str = ""
    """The page where a person gets it."""
    digests: tuple[str, ...] = ()
    """`md5:...`, `sha1:...` or `sha256:...`, any of which will do; none are published for some archives."""
    optional: bool = False
    """Its absence is noted and no more."""


def present(archive: Archive, root: Path) -> bool:
    """Whether the archive has been unpacked under the root, here or by other means."""
    return not _marker(archive, root).exists() and all((root / path).exists() for path in archive.gives)


def obtain(archive: Archive, folder: Path) -> Path:
    """The archive as a verified file of the folder, downloaded if it is not there. Raises InputError."""
    path = folder / archive.name
    if path.is_file():
        wrong = _mismatch(path, archive)
        if wrong:
            raise InputError(f"{path} is broken or another file: {wrong}; remove it, or put the right one in its place")
        return path
    if not archive.urls:
        raise InputError(f"there is no {path}: fetch it from {archive.page}")
    folder.mkdir(parents=True, exist_ok=True)
    partial = fetch(archive.urls, path)
    wrong = _mismatch(partial, archive)
    if wrong:
        partial.unlink()
        raise InputError(f"the download of {archive.name} came out wrong and was removed: {wrong}; run the same again")
    os.replace(partial, path)
    return path


def fetch(urls: tuple[str, ...], target: Path) -> Path:
    """Download the first of the urls that answers into target.partial, from where that file ends. Raises InputError."""
    partial = target.with_name(f"{target.name}.partial")
    failures = []
    for url in urls:
        failed = 0
        while failed < TRIES:
            had = _size(partial)
            try:
                _receive(url, partial)
                return partial
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"{error.code} {error.reason}"
                if error.code == 416:  # nothing after our last byte: it is all there, or not the same file
                    if error.headers.get("Content-Range", "").endswith(f"*/{had}"):
                        return partial
                    partial.unlink(missing_ok=True)
                elif error.code < 500 and error.code not in (408, 429):
                    break
            except _Refused as error:
                reason = str(error)
                break
            except _Interrupted as error:
                reason = str(error)
            failed = 0 if _size(partial) > had else failed + 1
            if failed < TRIES:
                time.sleep(PAUSE * 2 ** max(failed - 1, 0))
        failures.append(f"{url} ({reason})")
    by_hand = f"fetch it by hand into {target.parent} and run the same again"
    raise InputError(f"cannot download {target.name} from {' or '.join(failures)}; {by_hand}")


class _Interrupted(Exception):
    """The network's fault, and worth another try."""


class _Refused(Exception):
    """Not worth another try."""


def _receive(url: str, partial: Path) -> None:
    have = _size(partial)
    headers = {"User-Agent": f"emanet/{__version__}"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_reason(error)) from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _Refused("a web page answers in place of the file")
        extent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status == 206 and extent and int(extent[1]) == have:
            start, total = have, int(extent[2])
        elif response.status == 206:
            partial.unlink(missing_ok=True)
            raise _Interrupted("the server sent another part than asked for")
        else:  # a server that knows no Range sends everything
            start, total = 0, int(response.headers.get("Content-Length", 0))
        free = shutil.disk_usage(partial.parent).free
        if total - start > free:
            need = f"{(total - start) / 1e9:.1f} GB are still to come, but {free / 1e9:.1f} GB are free"
            raise InputError(f"no room for {url} in {partial.parent}: {need}")
        with open(partial, "ab" if start else "wb") as file, bar(partial.stem, total, unit="bytes") as show:
            while block := _read(response):
                file.write(block)
                show(file.tell())
            done = file.tell()
    if total and done != total:
        raise _Interrupted(f"broke off after {done} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_reason(error)) from error


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _mismatch(path: Path, archive: Archive) -> str:
    """What is wrong with a file's checksum, or nothing."""
    kinds = {digest.partition(":")[0] for digest in archive.digests}
    if not kinds:
        return ""
    sums = {kind: hashlib.new(kind, usedforsecurity=False) for kind in sorted(kinds)}
    with open(path, "rb") as file, bar(f"verify {archive.name}", _size(path), unit="bytes") as show:
        while block := file.read(BLOCK):
            for value in sums.values():
                value.update(block)
            show(file.tell())
    found = [f"{kind}:{value.hexdigest()}" for kind, value in sums.items()]
    if set(found) & set(archive.digests):
        return ""
    return f"its checksum is {', '.join(found)}, not {' or '.join(archive.digests)}"


def unpack(archive: Archive, path: Path, root: Path) -> int:
    """Write what the archive takes under the root; returns how many files that are. Raises InputError.

    Only plain files are written, and none outside the root: links and devices in an archive have no effect. Each file
    appears under its name when it is whole; one that is there already in its size is left alone.
    """
    root.mkdir(parents=True, exist_ok=True)
    marker = _marker(archive, root)
    marker.touch()
    members, count = _zipped if path.name.endswith(".zip") else _tarred, 0
    try:
        for name, size, opened in members(path):
            place = _place(name, archive.takes)
            if place:
                _write(opened, size, root / place)
                count += 1
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path} is broken or incomplete ({error}); remove it and run the same again") from error
    missing = [given for given in archive.gives if not (root / given).exists()]
    if missing:
        raise InputError(f"{path} is not the archive it should be: it holds nothing for {', '.join(missing)}")
    marker.unlink()
    return count


Member = tuple[str, int, Callable[[], IO[bytes]]]


def _zipped(path: Path) -> Iterator[Member]:
    """Every file of a zip; its checksum is compared as it is read."""
    with zipfile.ZipFile(path) as file, bar(f"unpack {path.name}", len(file.infolist())) as show:
        for done, info in enumerate(file.infolist(), 1):
            if not info.is_dir():
                yield info.filename, info.file_size, lambda info=info: file.open(info)
            show(done)


def _tarred(path: Path) -> Iterator[Member]:
    with open(path, "rb") as raw, tarfile.open(fileobj=raw) as file:
        with bar(f"unpack {path.name}", _size(path), unit="bytes") as show:
            for info in file:
                if info.isreg():
                    yield info.name, info.size, lambda info=info: file.extractfile(info)
                show(raw.tell())


def _place(name: str, takes: dict[str, str]) -> str:
    """Where a member goes under the root; nothing if it is not taken."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
        raise InputError(f"the archive wants to write outside its folder, to {name!r}: it is not to be trusted")
    clean = str(path)
    for prefix, stead in takes.items():
        if clean.startswith(prefix):
            return stead + clean[len(prefix) :]
    return ""


def _write(opened: Callable[[], IO[bytes]], size: int, target: Path) -> None:
    if target.is_file() and _size(target) == size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened() as source, replacing(target) as part:
        with open(part, "wb") as file:
            shutil.copyfileobj(source, file, BLOCK)
        if _size(part) != size:
            raise EOFError(f"{target.name} ends after {_size(part)} of {size} bytes")


def _marker(archive: Archive, root: Path) -> Path:
    return root / f".unpacking-{archive.name}"


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path to write; it becomes the target at the end, or disappears with an exception."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def bar(label: str, total: int, *, unit: str = "") -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, and what it is told how much is done."""
    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total or None)
        yield lambda done: progress.update(task, completed=done)
