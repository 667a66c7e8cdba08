"""A split in a few tar files instead of many small ones: few seeks, few open files, quick to copy.

    python -m emanet data pack camvid --root data/camvid --split train --out packed
    python -m emanet train camvid_mobilenetv2 --data.root packed

SPLIT-000000.tar and so on hold the files as they are, an image and then its mask: NAME.jpg, NAME.png, and NAME.mask.png
where both have the same ending. Tar stores them uncompressed, so SPLIT.index.json only has to say where each begins.
Any tar reads the shards, and the webdataset library reads them as samples.
"""

import contextlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from ..config import DatasetSpec
from ..errors import InputError, some
from ..experiments import from_dict, read_json, to_dict

FORMAT = "emanet.pack/1"
SUFFIX = ".index.json"


class Shard:
    """A tar file, opened once in each process at the first read; threads and forked processes may share it."""

    def __init__(self, path: Path):
        self.path = path

    @cached_property
    def descriptor(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def __reduce__(self):
        return Shard, (self.path,)  # a spawned process opens it anew

    def __del__(self):
        if "descriptor" in self.__dict__:
            os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a shard, with as much of pathlib.Path's interface as a Dataset needs."""

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
        """The shard's: while its size and time stay, so do its members."""
        return self.parent.stat()

    def read_bytes(self) -> bytes:
        """The file's content; ValueError unless it is what was packed."""
        content = os.pread(self.shard.descriptor, self.size, self.offset)  # no file position that others could move
        if len(content) != self.size or zlib.crc32(content) != self.crc:
            raise ValueError("its bytes are not those that were packed: the shard is damaged, or not the index's")
        return content

    def open(self, mode: str = "rb") -> BinaryIO:
        return io.BytesIO(self.read_bytes())


def packed_pairs(root: Path, split: str) -> list[tuple[Member, Member]]:
    """Every image and mask of a packed split, in its order; none where `root` is no packed folder.

    Raises InputError where another split is packed there, the index is broken, or the shards are not as it says.
    """
    path = _index(root, split)
    if not path.is_file():
        splits = [other.name.removesuffix(SUFFIX) for other in _indices(root)]
        if splits:
            raise InputError(f"the packed data set {root} has no split {split!r}; there are: {some(splits)}")
        return []
    index = _read_index(path)
    shards = []
    for name, size in index["shards"]:
        shards.append(Shard(root / name))
        found = shards[-1].path.stat().st_size if shards[-1].path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes, not {size}"
            raise InputError(f"shard {shards[-1].path} {state}: pack the split again, or copy it again")
    pairs = []
    for number, *places in index["samples"]:
        image, mask = (Member(shards[number], *places[i : i + 4]) for i in (0, 4))
        for member in (image, mask):
            if not 0 <= member.offset <= member.offset + member.size <= index["shards"][number][1]:
                raise InputError(f"{path} places {member.name} outside of its shard {member.parent}")
        pairs.append((image, mask))
    return pairs


def packed_spec(root: Path) -> DatasetSpec | None:
    """The spec with which a folder was packed; None where it is no packed folder. Raises InputError."""
    indices = _indices(root)
    if not indices:
        return None
    index = _read_index(indices[0])
    try:
        return from_dict(DatasetSpec, index["spec"])
    except InputError as error:
        raise InputError(f"{indices[0]}: {error}") from error


def _read_index(path: Path) -> dict[str, Any]:
    """An index whose every entry has its type. Raises InputError."""
    index = read_json(path)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(f"{path} is no index of the format {FORMAT}")
    place = [str, int, int, int]
    try:
        sound = all([*map(type, shard)] == [str, int] for shard in index["shards"])
        sound &= isinstance(index["spec"], dict)
        count = len(index["shards"])
        sound &= all([*map(type, s)] == [int, *place, *place] and 0 <= s[0] < count for s in index["samples"])
    except (KeyError, TypeError):
        sound = False
    if not (sound and index["samples"]):
        raise InputError(f"the index {path} is damaged: its list of shards or samples is not as it was written")
    return index


def pack(
    pairs: Sequence[tuple[Path, Path]],
    spec: DatasetSpec,
    split: str,
    out: Path,
    shard_bytes: int = 256_000_000,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Path]:
    """Write the files of a split, as they are, into shards of about that size, and then the index; the shards.

    Other splits may be in `out` already. Files have their names only once all of them are whole, the index last. Raises
    InputError where `out` holds this split or anything else, or a file cannot be read or written.
    """
    if any(isinstance(image, Member) for image, _ in pairs):
        raise InputError(f"{pairs[0][0].parent.parent} is packed already")
    _require_free(out, split)
    names, shards, samples, used = _names(pairs), [], [], 0
    partial: dict[Path, Path] = {}  # what is being written -> its name once it is whole
    try:
        out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            for done, (pair, pair_names) in enumerate(zip(pairs, names, strict=True), 1):
                contents = [_content(path) for path in pair]
                if not shards or used + sum(map(len, contents)) > shard_bytes:
                    stack.close()
                    shards.append(out / f"{_stem(split)}-{len(shards):06d}.tar")
                    file, tar = stack.enter_context(_shard(_partial(shards[-1], partial)))
                places = [_add(file, tar, *item) for item in zip(pair_names, contents, strict=True)]
                used = file.tell()
                samples.append([len(shards) - 1, *places[0], *places[1]])
                progress(done)
        sizes = [[shard.name, temporary.stat().st_size] for temporary, shard in partial.items()]
        index = {"format": FORMAT, "split": split, "spec": to_dict(spec), "shards": sizes, "samples": samples}
        with open(_partial(_index(out, split), partial), "w", encoding="utf-8") as text:
            json.dump(index, text)
            _to_disk(text)
        for temporary, final in partial.items():
            os.replace(temporary, final)
    except OSError as error:
        raise InputError(f"cannot pack into {out}: {error.strerror}") from error
    finally:
        for temporary in partial:
            temporary.unlink(missing_ok=True)
    return shards


def _require_free(out: Path, split: str) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is not a folder")
    if _index(out, split).exists():
        raise InputError(f"{out} holds the split {split!r} already")
    foreign = [path for path in out.iterdir() if not path.name.startswith(".")]  # what was interrupted is hidden
    if _indices(out):
        foreign = sorted(out.glob(f"{_stem(split)}-*.tar"))
    if foreign:
        raise InputError(f"{out} holds {some(sorted(path.name for path in foreign), 2)}, which no index names")


def _names(pairs: Sequence[tuple[Path, Path]]) -> list[tuple[str, str]]:
    """Names in the tar of every pair, all different: paths under the images' common folder.

    webdataset takes what comes before a file name's first dot as the sample's name, so there is no other dot.
    """
    images = [os.path.abspath(image) for image, _ in pairs]
    base = os.path.commonpath([os.path.dirname(image) for image in images])
    taken: dict[str, int] = {}
    names = []
    for image, (_, mask) in zip(images, pairs, strict=True):
        folder, file = os.path.split(os.path.relpath(image, base))
        stem, suffix = os.path.splitext(file)
        name = unique = os.path.join(folder, stem.replace(".", "_")).replace(os.sep, "/")
        while unique in taken:  # listed twice, or x.jpg beside x.png
            taken[name] += 1
            unique = f"{name}-{taken[name]}"
        taken[unique] = 1
        endings = [suffix.lower() or ".image", mask.suffix.lower() or ".mask"]
        names.append((unique + endings[0], unique + (endings[1] if endings[0] != endings[1] else f".mask{endings[1]}")))
    return names


@contextlib.contextmanager
def _shard(path: Path) -> Iterator[tuple[BinaryIO, tarfile.TarFile]]:
    with open(path, "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            yield file, tar
        _to_disk(file)


def _add(file: BinaryIO, tar: tarfile.TarFile, name: str, content: bytes) -> tuple[str, int, int, int]:
    """Append a member; its name, offset, size and checksum. Neither time nor owner: equal files, equal shards."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
    padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return name, file.tell() - padded, len(content), zlib.crc32(content)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _partial(path: Path, partial: dict[Path, Path]) -> Path:
    temporary = path.with_name(f".{path.name}.partial")
    partial[temporary] = path
    return temporary


def _indices(root: Path) -> list[Path]:
    return sorted(path for path in root.glob(f"*{SUFFIX}") if not path.name.startswith("."))


def _index(root: Path, split: str) -> Path:
    return root / f"{_stem(split)}{SUFFIX}"


def _stem(split: str) -> str:
    return split.replace("/", "_")
