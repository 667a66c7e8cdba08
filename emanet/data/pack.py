"""A split in a few tar files instead of many small ones: few seeks, few open files, quick to copy.

    python -m emanet data pack camvid --root data/camvid --split train --out packed
    python -m emanet train camvid_mobilenetv2 --data.root packed

SPLIT-000000.tar and so on hold the files unchanged, each image followed by its mask: NAME.jpg, NAME.png, and
NAME.mask.png where both have the same ending. Tar does not compress, so SPLIT.index.json only has to say where each
file begins. Any tar program reads the shards, and the webdataset library reads them as samples.
"""

import contextlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ..atomic import replacing
from ..config import DatasetSpec
from ..errors import InputError, some
from ..experiments import to_dict
from ..show.terminal import note, track
from .datasets import Dataset, open_dataset
from .named import data_of
from .shards import FORMAT, File, Member, Pair, index_path, packed_splits, stem

MEGABYTE = 10**6


def pack_source(source: str, out: str, root: str = "", split: str = "", shard_size: int = 256) -> str:
    """Pack one split of an experiment's data set, or of a data set by name, dataset.json or folder; returns a summary.

    root: the data set's folder; default: as for training. split: default: the training split. shard_size: in megabytes.
    Raises InputError.
    """
    if not out:
        raise InputError("data pack needs a folder to write into: --out FOLDER")
    if shard_size < 1:
        raise InputError(f"--shard-size is {shard_size}, but must be at least 1")
    config, _ = data_of(source, root)
    split = split or config.train_split
    dataset = open_dataset(config, split)
    if not isinstance(dataset, Dataset):
        raise InputError("the drawn scenes are not files; write some with `data draw FOLDER`, and pack that folder")
    name = dataset.spec.split_names.get(split, split)
    shards = pack(dataset.pairs, dataset.spec, name, Path(out), shard_size * MEGABYTE)
    size = sum(shard.stat().st_size for shard in shards) / MEGABYTE
    text = f"packed {len(dataset)} images of {split}: {len(shards)} tar files, {size:.1f} MB, in {out}"
    return "; ".join([text, *dataset.notes])


def pack(
    pairs: Sequence[Pair], spec: DatasetSpec, split: str, out: Path, shard_bytes: int = 256 * MEGABYTE
) -> list[Path]:
    """Write the files of a split, unchanged, into shards of about `shard_bytes`, then the index; returns the shards.

    `out` may hold other packed splits already. Files get their names once all of them are complete, the index last.
    Raises InputError where `out` holds this split or anything else, or a file cannot be read or written.
    """
    if any(isinstance(image, Member) for image, _ in pairs):
        raise InputError(f"{pairs[0][0].parent.parent} is packed already")
    _require_free(out, split)
    shards: dict[Path, Path] = {}  # name -> temporary name
    samples: list[list[str | int]] = []
    used = 0  # bytes of the last shard
    try:
        with replacing(index_path(out, split)) as index, contextlib.ExitStack() as complete:
            with contextlib.ExitStack() as current:
                for pair, names in track(zip(pairs, _names(pairs), strict=True), "pack", len(pairs)):
                    contents = [_content(path) for path in pair]
                    if not shards or used + sum(map(len, contents)) > shard_bytes:
                        current.close()
                        path = out / f"{stem(split)}-{len(shards):06d}.tar"
                        shards[path] = complete.enter_context(replacing(path))
                        file = current.enter_context(open(shards[path], "wb"))
                        tar = current.enter_context(tarfile.open(fileobj=file, mode="w"))
                    image, mask = (_add(file, tar, *item) for item in zip(names, contents, strict=True))
                    used = file.tell()
                    samples.append([len(shards) - 1, *image, *mask])
            sizes = [[path.name, temporary.stat().st_size] for path, temporary in shards.items()]
            record = {"format": FORMAT, "split": split, "spec": to_dict(spec), "shards": sizes, "samples": samples}
            index.write_text(json.dumps(record), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot pack into {out}: {error.strerror}") from error
    return list(shards)


def _require_free(out: Path, split: str) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is not a folder")
    if index_path(out, split).exists():
        raise InputError(f"{out} holds the split {split!r} already")
    if packed_splits(out):
        foreign = sorted(out.glob(f"{stem(split)}-*.tar"))
    else:
        foreign = sorted(path for path in out.iterdir() if not path.name.startswith("."))
    if foreign:
        raise InputError(f"{out} holds {some([path.name for path in foreign], 2)}, which no index names")
    if killed := sorted(path.name for path in out.glob(f".{stem(split)}*.partial")):
        note(f"note: an earlier run was killed and left {some(killed, 2)} in {out}; remove them to free the space")


def _names(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """Names in the tar of every pair, all different: paths relative to the images' common folder.

    webdataset takes a file name up to its first dot as the sample's name, so other dots are replaced.
    """
    images = [os.path.abspath(str(image)) for image, _ in pairs]
    base = os.path.commonpath([os.path.dirname(image) for image in images])
    taken: dict[str, int] = {}
    names = []
    for image, (_, mask) in zip(images, pairs, strict=True):
        folder, file = os.path.split(os.path.relpath(image, base))
        name, suffix = os.path.splitext(file)
        name = unique = os.path.join(folder, name.replace(".", "_")).replace(os.sep, "/")
        while unique in taken:  # listed twice, or x.jpg beside x.png
            taken[name] += 1
            unique = f"{name}-{taken[name]}"
        taken[unique] = 1
        endings = [suffix.lower() or ".image", os.path.splitext(str(mask))[1].lower() or ".mask"]
        names.append((unique + endings[0], unique + (endings[1] if endings[0] != endings[1] else f".mask{endings[1]}")))
    return names


def _add(file: BinaryIO, tar: tarfile.TarFile, name: str, content: bytes) -> tuple[str, int, int, int]:
    """Append a member; returns its name, offset, size and checksum. No time and no owner: equal files, equal shards."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
    padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return name, file.tell() - padded, len(content), zlib.crc32(content)


def _content(path: File) -> bytes:
    if os.path.exists(f"{path}.msk"):
        raise InputError(f"{path} has a mask beside it, {path}.msk, which would be left behind: write it into the TIFF")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
