"""Packed splits, read: tar shards, and the index that says where each file begins. pack.py writes them."""

import io
import os
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from ..config import DatasetSpec
from ..errors import InputError, some
from ..experiments import from_dict, read_json

FORMAT = "emanet.pack/1"
SUFFIX = ".index.json"


class Shard:
    """A tar file. Each process opens it once, at the first read; threads and forked processes may share it."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def descriptor(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def __reduce__(self) -> tuple[type["Shard"], tuple[Path]]:
        return Shard, (self.path,)  # a spawned process opens it anew

    def __del__(self) -> None:
        if "descriptor" in self.__dict__:
            os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a shard, with the part of pathlib.Path's interface that a Dataset needs."""

    shard: Shard
    name: str
    offset: int
    size: int
    crc: int

    def __str__(self) -> str:
        return str(self.parent / self.name)

    @property
    def parent(self) -> Path:
        return self.shard.path

    def absolute(self) -> Path:
        return self.parent.absolute() / self.name

    def stat(self) -> os.stat_result:
        """The shard's: while its size and time stay the same, so do its members."""
        return self.parent.stat()

    def read_bytes(self) -> bytes:
        """The file's content; ValueError unless it is what was packed."""
        content = os.pread(self.shard.descriptor, self.size, self.offset)  # threads share no file position
        if len(content) != self.size or zlib.crc32(content) != self.crc:
            raise ValueError("its bytes are not those that were packed: the shard or its index is damaged")
        return content

    def open(self, mode: str = "rb") -> BinaryIO:
        return io.BytesIO(self.read_bytes())


File = Path | Member
Pair = tuple[File, File]  # image, mask


def packed_pairs(root: Path, split: str) -> list[Pair]:
    """Image and mask of every pair of a packed split, in order; an empty list where `root` is not a packed folder.

    Raises InputError where only other splits are packed there, the index is broken, or a shard differs from the index.
    """
    path = index_path(root, split)
    if not path.is_file():
        splits = packed_splits(root)
        if splits:
            raise InputError(f"the packed data set {root} has no split {split!r}; there are: {some(splits)}")
        return []
    index = _read_index(path)
    shards = []
    for name, size in index["shards"]:
        shards.append(Shard(root / name))
        actual = shards[-1].path.stat().st_size if shards[-1].path.is_file() else None
        if actual != size:
            state = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
            raise InputError(f"shard {shards[-1].path} {state}: pack the split again, or copy it again")
    pairs: list[Pair] = []
    for number, *places in index["samples"]:
        image, mask = (Member(shards[number], *places[i : i + 4]) for i in (0, 4))
        for member in (image, mask):
            if not 0 <= member.offset <= member.offset + member.size <= index["shards"][number][1]:
                raise InputError(f"{path} places {member.name} outside its shard {member.parent}")
        pairs.append((image, mask))
    return pairs


def packed_spec(root: Path) -> DatasetSpec | None:
    """The spec that a folder was packed with; None where it is not a packed folder. Raises InputError."""
    splits = packed_splits(root)
    if not splits:
        return None
    path = index_path(root, splits[0])
    index = _read_index(path)
    try:
        return from_dict(DatasetSpec, index["spec"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def packed_splits(root: Path) -> list[str]:
    """The splits that are packed in a folder, sorted."""
    return [path.name.removesuffix(SUFFIX) for path in sorted(root.glob(f"[!.]*{SUFFIX}"))]


def index_path(root: Path, split: str) -> Path:
    return root / f"{stem(split)}{SUFFIX}"


def stem(split: str) -> str:
    """The part of the names of its files that stands for a split."""
    return split.replace("/", "_")


def _read_index(path: Path) -> dict[str, Any]:
    """An index whose every entry has its type. Raises InputError."""
    index = read_json(path)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(f"{path} is not an index of the format {FORMAT}")
    place = [str, int, int, int]
    try:
        sound = all([*map(type, shard)] == [str, int] for shard in index["shards"])
        sound &= isinstance(index["spec"], dict)
        count = len(index["shards"])
        sound &= all([*map(type, s)] == [int, *place, *place] and 0 <= s[0] < count for s in index["samples"])
    except (KeyError, TypeError):
        sound = False
    if not (sound and index["samples"]):
        raise InputError(f"the index {path} is damaged: pack the split again, or copy it again")
    return index
