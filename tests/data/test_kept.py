"""Decoded images that are kept: read once as far as the memory goes, and the same samples as without."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_augmentations import OPTIONS, Memory, samples

from emanet.config import DataConfig
from emanet.data.kept import Kept
from emanet.errors import InputError


def test_what_fits_is_read_once_and_the_rest_every_time():
    asked = []

    def read(index):
        asked.append(index)
        return np.full((4, 5, 3), index, np.uint8), np.full((4, 5), index, np.uint8)

    kept = Kept(read, 2 * 80 + 79)
    for _ in range(3):
        for index in range(4):
            image, labels = kept(index)
            assert image.shape == (4, 5, 3) and (image == index).all() and (labels == index).all()
    assert asked == [0, 1, 2, 3, 2, 3, 2, 3]


def test_an_image_that_cannot_be_read_is_tried_again():
    left = iter([InputError("the disk is away")])

    def read(index):
        for error in left:
            raise error
        return np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)

    kept = Kept(read, 100)
    with pytest.raises(InputError):
        kept(0)
    assert kept(0)[1].shape == (1, 1) and kept(0)[1] is kept(0)[1]


@pytest.mark.parametrize("name", ["plain", *OPTIONS])
def test_samples_are_the_same(name):
    """Also in the third epoch: nothing that changes a sample changes what is kept."""
    changes = OPTIONS.get(name, {})
    kept = replace(samples(changes), room=1 << 30)
    for position in range(3 * len(Memory())):
        for a, b in zip(samples(changes)[position], kept[position], strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    assert len(kept.read.kept) == len(Memory())


def test_a_negative_size_is_refused():
    with pytest.raises(InputError, match="keep is -1, but must be at least 0"):
        DataConfig(keep=-1)
