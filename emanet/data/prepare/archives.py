"""Archives: fetched over HTTP, resumed where they broke off, verified, and unpacked under a folder.

Only the standard library: no tool but Python is needed. What is interrupted goes on at the next call.
"""

import bz2
import gzip
import hashlib
import http.client
import lzma
import os
import re
import shutil
import socket
import struct
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

from ... import __version__
from ...errors import InputError

BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
SLOWEST = 1000  # bytes a second over so long
TRIES = 5  # in a row that brought less than a block beyond what was ever there
ATTEMPTS = 100  # per url, whatever they brought
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
    failures, most = [], _size(partial)
    for url in urls:
        failed = attempts = 0
        while failed < TRIES and attempts < ATTEMPTS:
            had, attempts = _size(partial), attempts + 1
            try:
                _receive(url, partial)
                return partial
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"{error.code} {error.reason}"
                if error.code == 416:  # nothing after our last byte: it is all there, or not the same file
                    if had and error.headers.get("Content-Range", "").endswith(f"*/{had}"):
                        return partial
                    partial.unlink(missing_ok=True)
                elif error.code < 500 and error.code not in (408, 429):
                    break
            except _Refused as error:
                reason = str(error)
                break
            except _Interrupted as error:
                reason = str(error)
            failed = 0 if _size(partial) >= most + BLOCK else failed + 1
            most = max(most, _size(partial))
            if failed < TRIES and attempts < ATTEMPTS:
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
        if isinstance(getattr(error, "reason", error), socket.gaierror):  # no network, or no such server
            raise _Refused(_reason(error)) from error
        raise _Interrupted(_reason(error)) from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _Refused("a web page answers in place of the file")
        stated = response.headers.get("Content-Length", "")
        length = int(stated) if re.fullmatch(r"\d{1,18}", stated) else 0
        if response.status == 206:
            extent = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.headers.get("Content-Range", ""))
            start, last, total = map(int, extent.groups()) if extent else (-1, -1, -1)
            if not have == start <= last < total or length not in (0, last + 1 - start):
                partial.unlink(missing_ok=True)
                raise _Interrupted("the server sent another part than asked for")
        else:  # a server that knows no Range sends everything
            start, total = 0, length
        free = shutil.disk_usage(partial.parent).free
        if total - start > free:
            need = f"{(total - start) / 1e9:.1f} GB are still to come, but {free / 1e9:.1f} GB are free"
            raise InputError(f"no room for {url} in {partial.parent}: {need}")
        with open(partial, "ab" if start else "wb") as file, bar(partial.stem, total, unit="bytes") as show:
            done = mark = start
            since = time.monotonic()
            while block := _read(response, min(BLOCK, total - done) if total else BLOCK):
                file.write(block)
                done += len(block)
                show(done)
                if (passed := time.monotonic() - since) > TIMEOUT:
                    if done - mark < SLOWEST * passed:
                        raise _Interrupted(f"less than {SLOWEST} bytes a second came")
                    since, mark = since + passed, done
    if total and done != total:
        raise _Interrupted(f"broke off after {done} of {total} bytes")


def _read(response: http.client.HTTPResponse, most: int) -> bytes:
    """What has come, as soon as there is something; nothing at the end."""
    try:
        return response.read1(most) if most else b""
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

    Only plain files are written, and none outside the root: links and devices in an archive have no effect. The whole
    archive is looked through before anything is written. Each file appears under its name when it is whole; one that is
    there already in its size is left alone.
    """
    root.mkdir(parents=True, exist_ok=True)
    marker = _marker(archive, root)
    marker.touch()
    try:
        free, need, count = shutil.disk_usage(root).free, 0, 0
        for target, size, _ in _taken(archive, path, root, "check"):
            need += 0 if _there(target, size) else size
            if need > free:
                raise InputError(f"no room to unpack {path} in {root}: it holds more than the {free / 1e9:.1f} GB free")
        for target, size, opened in _taken(archive, path, root, "unpack"):
            _write(opened, size, target)
            count += 1
    except RuntimeError as error:  # zipfile's, for members that are encrypted or compressed in a way it does not know
        raise InputError(f"{path} cannot be unpacked ({error})") from error
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"cannot unpack {path} into {root}: {error.strerror}") from error
        raise InputError(f"{path} is broken or incomplete ({error}); remove it and run the same again") from error
    missing = [given for given in archive.gives if not (root / given).exists()]
    if missing:
        raise InputError(f"{path} is not the archive it should be: it holds nothing for {', '.join(missing)}")
    marker.unlink()
    return count


BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, struct.error, OSError)
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}  # first bytes of a compressed tar
Opened = Callable[[], IO[bytes]]


def _taken(archive: Archive, path: Path, root: Path, doing: str) -> Iterator[tuple[Path, int, Opened]]:
    """Where each member that is taken goes, its size, and how it is opened."""
    members = _zipped if path.name.endswith(".zip") else _tarred
    for name, size, opened in members(path, f"{doing} {path.name}"):
        place = _place(name, archive.takes)
        if place:
            yield root / place, size, opened


def _zipped(path: Path, label: str) -> Iterator[tuple[str, int, Opened]]:
    """Every file of a zip; its checksum is compared as it is read."""
    with zipfile.ZipFile(path) as file, bar(label, len(file.infolist())) as show:
        for done, info in enumerate(file.infolist(), 1):
            if not info.is_dir():
                yield info.filename, info.file_size, lambda info=info: file.open(info)
            show(done)


def _tarred(path: Path, label: str) -> Iterator[tuple[str, int, Opened]]:
    """Every file of a tar, which is read to its very end: a compressed one has its checksum there."""
    with open(path, "rb") as raw, bar(label, _size(path), unit="bytes") as show:
        first = raw.read(8)
        raw.seek(0)
        opener = next((opener for magic, opener in PACKED.items() if first.startswith(magic)), None)
        stream = _Stream(opener(raw) if opener else raw)
        with tarfile.open(fileobj=stream, mode="r:") as file:
            for info in file:
                if info.issparse() or info.size < 0:
                    raise tarfile.ReadError(f"{info.name} is a sparse file or has no size")
                if info.isreg():
                    yield info.name, info.size, lambda info=info: file.extractfile(info)
                show(raw.tell())
            if stream.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError("its end is missing")
            while stream.read(BLOCK):
                show(raw.tell())


class _Stream:
    """What tarfile reads from: the last piece is kept, and a header cannot ask for more memory than a block."""

    def __init__(self, file: IO[bytes]):
        self.file, self.tell, self.seek, self.last = file, file.tell, file.seek, b""

    def read(self, size: int) -> bytes:
        if size > BLOCK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self.file.read(size)
        return self.last


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


def _there(target: Path, size: int) -> bool:
    return target.is_file() and _size(target) == size


def _write(opened: Opened, size: int, target: Path) -> None:
    if _there(target, size):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened() as source, replacing(target) as part:
        done = 0
        with open(part, "wb") as file:
            while done <= size and (block := source.read(BLOCK)):
                file.write(block)
                done += len(block)
        if done != size:
            raise EOFError(f"{target.name} has {'more' if done > size else 'fewer'} than the {size} bytes stated")


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
