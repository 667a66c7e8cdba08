"""Images that are in two data sets, found by the bytes of their files; `data check` compares decoded pixels as well."""

import hashlib
from collections.abc import Callable, Hashable, Sequence

from ..datasets import Dataset
from ..shards import File, Member

START = 1 << 16  # bytes that tell files of one size apart, nearly always


def shared_images(train: Dataset, val: Dataset) -> list[File]:
    """The images of `val` whose files are also in `train`, under any name.

    Only files of the same size as one of the other data set are opened, and only those that also begin alike are read
    whole.
    """
    ours = {str(image): image for image, _ in train.pairs}
    theirs = {str(image): image for image, _ in val.pairs}
    same = [image for name, image in theirs.items() if name in ours]
    left = [image for name, image in ours.items() if name not in theirs]
    right = [image for name, image in theirs.items() if name not in ours]
    for key in (_size, _start, _content):
        left, right = _alike(left, right, key)
    return same + right


def _alike(
    left: Sequence[File], right: Sequence[File], key: Callable[[File], Hashable]
) -> tuple[list[File], list[File]]:
    """The files of each side whose key a file of the other side has."""
    lefts, rights = [key(file) for file in left], [key(file) for file in right]
    both = {*lefts} & {*rights}
    return (
        [file for file, own in zip(left, lefts, strict=True) if own in both],
        [file for file, own in zip(right, rights, strict=True) if own in both],
    )


def _size(file: File) -> Hashable:
    return (file.size, file.crc) if isinstance(file, Member) else file.stat().st_size


def _start(file: File) -> Hashable:
    with file.open("rb") as stream:
        return hashlib.blake2b(stream.read(START)).digest()


def _content(file: File) -> Hashable:
    digest = hashlib.blake2b()
    with file.open("rb") as stream:
        while block := stream.read(16 * START):
            digest.update(block)
    return digest.digest()
