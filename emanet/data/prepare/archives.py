"""Archives: download over HTTP, resume, verify, and unpack under a folder.

No tool but Python is needed. After an interruption the next call goes on from there.
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ... import __version__
from ...atomic import replacing
from ...errors import InputError
from ...show.terminal import bar, track

BLOCK = 1 << 20
TIMEOUT = 60.0  # seconds without a byte
SLOWEST = 1000  # bytes a second, on average over TIMEOUT
TRIES = 5  # in a row without progress: less than a BLOCK more than the most so far
ATTEMPTS = 100  # per url, with or without progress
PAUSE = 2.0  # seconds before the second try; each further pause is twice as long


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One file to fetch: its source, its checksums, and which members are unpacked."""

    name: str
    takes: dict[str, str]
    """Prefix of a member's name -> what replaces it under the root; members with other names are left out."""
    gives: tuple[str, ...]
    """Paths under the root; once all of them exist the archive is not needed."""
    urls: tuple[str, ...] = ()
    """Tried in this order; none: the user has to fetch it by hand."""
    page: str = ""
    """The page to fetch it from by hand."""
    digests: tuple[str, ...] = ()
    """`md5:...`, `sha1:...` or `sha256:...`; one must match. Empty for archives without a published checksum."""
    optional: bool = False
    """If it is not available, a note says so and the data set is made without it."""


def present(archive: Archive, root: Path) -> bool:
    """Whether the archive has been unpacked under the root, here or by other means."""
    return not _marker(archive, root).exists() and all((root / path).exists() for path in archive.gives)


def obtain(archive: Archive, folder: Path) -> Path:
    """The archive as a verified file of the folder, downloaded if it is not there. Raises InputError."""
    path = folder / archive.name
    if path.is_file():
        wrong = _mismatch(path, archive)
        if wrong:
            raise InputError(f"{path} is damaged or the wrong file: {wrong}; remove or replace it")
        return path
    if not archive.urls:
        raise InputError(f"there is no {path}: fetch it from {archive.page}")
    folder.mkdir(parents=True, exist_ok=True)
    download = fetch(archive.urls, path)
    wrong = _mismatch(download, archive)
    if wrong:
        download.unlink()
        raise InputError(f"the download of {archive.name} was damaged and removed: {wrong}; run the command again")
    os.replace(download, path)
    return path


def fetch(urls: tuple[str, ...], target: Path) -> Path:
    """Download the first url that answers, to target.partial; continues the file if it exists. Raises InputError."""
    download = target.with_name(f"{target.name}.partial")
    failures, most = [], _size(download)
    for url in urls:
        failed = attempts = 0
        while failed < TRIES and attempts < ATTEMPTS:
            had, attempts = _size(download), attempts + 1
            try:
                _receive(url, download)
                return download
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"{error.code} {error.reason}"
                if error.code == 416:  # no byte after our last one: the file is complete, or another one
                    if had and error.headers.get("Content-Range", "").endswith(f"*/{had}"):
                        return download
                    download.unlink(missing_ok=True)
                elif error.code < 500 and error.code not in (408, 429):
                    break
            except _Refused as error:
                reason = str(error)
                break
            except _Interrupted as error:
                reason = str(error)
            failed = 0 if _size(download) >= most + BLOCK else failed + 1
            most = max(most, _size(download))
            if failed < TRIES and attempts < ATTEMPTS:
                time.sleep(PAUSE * 2 ** max(failed - 1, 0))
        failures.append(f"{url} ({reason})")
    by_hand = f"fetch it by hand into {target.parent} and run the command again"
    raise InputError(f"cannot download {target.name} from {' or '.join(failures)}; {by_hand}")


class _Interrupted(Exception):
    """A fault of the network that may pass: try again."""


class _Refused(Exception):
    """A fault that will not pass: do not try again."""


def _receive(url: str, download: Path) -> None:
    have = _size(download)
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
            raise _Refused("the server sends a web page instead of the file")
        header = response.headers.get("Content-Length", "")
        length = int(header) if re.fullmatch(r"\d{1,18}", header) else 0
        if response.status == 206:
            extent = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.headers.get("Content-Range", ""))
            start, last, total = map(int, extent.groups()) if extent else (-1, -1, -1)
            if not have == start <= last < total or length not in (0, last + 1 - start):
                download.unlink(missing_ok=True)
                raise _Interrupted("the server sent another part of the file than was asked for")
        else:  # a server without Range support sends everything
            start, total = 0, length
        free = shutil.disk_usage(download.parent).free
        if total - start > free:
            need = f"{(total - start) / 1e9:.1f} GB are needed, but {free / 1e9:.1f} GB are free"
            raise InputError(f"no room for {url} in {download.parent}: {need}")
        with open(download, "ab" if start else "wb") as file, bar(download.stem, total, unit="bytes") as advance:
            done = mark = start
            since = time.monotonic()
            while block := _read(response, min(BLOCK, total - done) if total else BLOCK):
                file.write(block)
                done += len(block)
                advance(done)
                if (passed := time.monotonic() - since) > TIMEOUT:
                    if done - mark < SLOWEST * passed:
                        raise _Interrupted(f"less than {SLOWEST} bytes a second arrived")
                    since, mark = since + passed, done
    if total and done != total:
        raise _Interrupted(f"it ended after {done} of {total} bytes")


def _read(response: http.client.HTTPResponse, most: int) -> bytes:
    """The bytes that have arrived, waiting for the first; b"" at the end."""
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
    """What is wrong with a file's checksum; "" if it matches or none is published."""
    kinds = {digest.partition(":")[0] for digest in archive.digests}
    if not kinds:
        return ""
    sums = {kind: hashlib.new(kind, usedforsecurity=False) for kind in sorted(kinds)}
    with open(path, "rb") as file, bar(f"verify {archive.name}", _size(path), unit="bytes") as advance:
        while block := file.read(BLOCK):
            for value in sums.values():
                value.update(block)
            advance(file.tell())
    actual = [f"{kind}:{value.hexdigest()}" for kind, value in sums.items()]
    if set(actual) & set(archive.digests):
        return ""
    return f"checksum mismatch: {', '.join(actual)}, not {' or '.join(archive.digests)}"


def unpack(archive: Archive, path: Path, root: Path) -> int:
    """Write the members that the archive takes under the root; returns their number. Raises InputError.

    Only plain files are written, and none outside the root: links and devices in an archive have no effect. The whole
    archive is read once before anything is written. Each file gets its name once it is complete; a file that already
    exists with the right size is left alone.
    """
    root.mkdir(parents=True, exist_ok=True)
    marker = _marker(archive, root)
    marker.touch()
    try:
        free, need, count = shutil.disk_usage(root).free, 0, 0
        for target, size, _ in _taken(archive, path, root, "check"):
            need += 0 if _is_there(target, size) else size
            if need > free:
                raise InputError(f"no room to unpack {path} in {root}: it holds more than the {free / 1e9:.1f} GB free")
        for target, size, opened in _taken(archive, path, root, "unpack"):
            _write(opened, size, target)
            count += 1
    except RuntimeError as error:  # zipfile's, for members that are encrypted or in an unknown compression
        raise InputError(f"{path} cannot be unpacked ({error})") from error
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"cannot unpack {path} into {root}: {error.strerror}") from error
        raise InputError(f"{path} is damaged or incomplete ({error}); remove it and run the command again") from error
    missing = [name for name in archive.gives if not (root / name).exists()]
    if missing:
        raise InputError(f"{path} is not the right archive: it holds nothing for {', '.join(missing)}")
    if hasattr(os, "sync"):
        os.sync()  # once, instead of fsync for every file
    marker.unlink()
    return count


BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, struct.error, OSError)
COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}  # by first bytes
NOWHERE = os.path.abspath("/nowhere")  # a folder without links: those that the user made under the root are followed
Opened = Callable[[], Any]  # returns a binary file to read


def _taken(archive: Archive, path: Path, root: Path, doing: str) -> Iterator[tuple[Path, int, Opened]]:
    """Target, size and opener of every member that is taken."""
    members = _zipped if path.name.endswith(".zip") else _tarred
    for name, size, opened in members(path, f"{doing} {path.name}"):
        place = _place(name, archive.takes)
        if place:
            yield root / place, size, opened


def _zipped(path: Path, label: str) -> Iterator[tuple[str, int, Opened]]:
    """Name, size and opener of every file of a zip. Reading a member compares its checksum."""
    with zipfile.ZipFile(path) as file:
        for info in track(file.infolist(), label):
            if not info.is_dir():
                yield info.filename, info.file_size, partial(file.open, info)


def _tarred(path: Path, label: str) -> Iterator[tuple[str, int, Opened]]:
    """The same of a tar. It is read to its very end, where a compressed one has its checksum."""
    with open(path, "rb") as raw, bar(label, _size(path), unit="bytes") as advance:
        first = raw.read(8)
        raw.seek(0)
        opener = next((opener for magic, opener in COMPRESSED.items() if first.startswith(magic)), None)
        stream: Any = _Stream(opener(raw) if opener else raw)
        with tarfile.open(fileobj=stream, mode="r:") as file:
            for info in file:
                if info.issparse() or info.size < 0:
                    raise tarfile.ReadError(f"{info.name} is a sparse file or has no size")
                if info.isreg():
                    yield info.name, info.size, partial(file.extractfile, info)
                advance(raw.tell())
            if stream.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError("its end is missing")
            while stream.read(BLOCK):
                advance(raw.tell())


class _Stream:
    """What tarfile reads from. Keeps the last piece, and refuses headers that ask for more memory than a BLOCK."""

    def __init__(self, file: IO[bytes]):
        self.file, self.tell, self.seek, self.last = file, file.tell, file.seek, b""

    def read(self, size: int) -> bytes:
        if size > BLOCK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.last = self.file.read(size)
        return self.last


def _place(name: str, takes: dict[str, str]) -> str:
    """Where a member of a tar or zip goes under the root; "" if it is not taken. InputError if that leads outside."""
    clean = str(PurePosixPath(name.replace("\\", "/")))
    for prefix, replacement in takes.items():
        if clean.startswith(prefix):
            try:
                return tarfile.data_filter(tarfile.TarInfo(replacement + clean[len(prefix) :]), NOWHERE).name
            except tarfile.FilterError as error:
                raise InputError(f"the archive wants to write outside its folder, to {name!r}: unsafe") from error
    return ""


def _is_there(target: Path, size: int) -> bool:
    return target.is_file() and _size(target) == size


def _write(opened: Opened, size: int, target: Path) -> None:
    if _is_there(target, size):
        return
    with opened() as source, replacing(target, durable=False) as temporary:
        done = 0
        with open(temporary, "wb") as file:
            while done <= size and (block := source.read(BLOCK)):
                file.write(block)
                done += len(block)
        if done != size:
            raise EOFError(f"{target.name} has {'more' if done > size else 'fewer'} than the stated {size} bytes")


def _marker(archive: Archive, root: Path) -> Path:
    return root / f".unpacking-{archive.name}"
