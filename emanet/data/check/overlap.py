"""Images that are in two data sets, found without decoding all of them; `data check` compares the pixels of all."""

import hashlib
from collections.abc import Callable, Hashable, Sequence

from ...errors import InputError
from ..datasets import Dataset
from ..images import read_image
from ..shards import File, Member

START = 1 << 16  # bytes that tell files of one size apart, nearly always


def shared_images(
    train: Dataset, val: Dataset, train_labels: Sequence[str] = (), val_labels: Sequence[str] = ()
) -> list[File]:
    """The images of `val` that are also in `train`: the same bytes under any name, or the same pixels.

    Only files of the same size as one of the other data set are opened, and only those that also begin alike are read
    whole. train_labels, val_labels: Checked.labels of quick.py; images are decoded where these agree.
    """
    ours = {str(image): image for image, _ in train.pairs}
    theirs = {str(image): image for image, _ in val.pairs}
    same = [image for name, image in theirs.items() if name in ours]
    left = [image for name, image in ours.items() if name not in theirs]
    right = [image for name, image in theirs.items() if name not in ours]
    bytewise = left, right
    for key in (_size, _start, _content):
        bytewise = _alike(*bytewise, key)
    labels = dict(zip(ours, train_labels, strict=False)) | dict(zip(theirs, val_labels, strict=False))
    left, right = ([file for file in side if labels.get(str(file))] for side in (left, right))
    pixelwise = _alike(*_alike(left, right, lambda file: labels[str(file)]), lambda file: _pixels(file, val.channels))
    return list(dict.fromkeys(same + bytewise[1] + pixelwise[1]))


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


def _pixels(file: File, channels: int) -> Hashable:
    try:
        return hashlib.blake2b(read_image(file, channels).tobytes()).digest()
    except InputError:  # whoever trains on it or scores it reports that
        return str(file)


def _content(file: File) -> Hashable:
    digest = hashlib.blake2b()
    with file.open("rb") as stream:
        while block := stream.read(16 * START):
            digest.update(block)
    return digest.digest()
