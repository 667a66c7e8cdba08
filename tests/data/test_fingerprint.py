import io

import numpy as np
import pytest
from PIL import Image

from emanet.config import IGNORE
from emanet.data import fingerprint as module
from emanet.data.fingerprint import areas_and_borders, difference_hash, fingerprint
from emanet.data.synthetic import draw_scene


class Pairs:
    def __init__(self, *pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def read(self, index):
        return self.pairs[index]


def scene(index, **options):
    return draw_scene(index, size=(97, 129), **options)


def test_thickness_is_the_width_of_a_strip_and_half_the_side_of_a_square():
    labels = np.zeros((100, 400), np.uint8)
    labels[40:46] = 1
    labels[10:30, 50:70] = 2
    facts = fingerprint(Pairs((np.zeros((100, 400, 3), np.uint8), labels)), Pairs(), 3)
    assert facts.classes[1].thickness == pytest.approx(6) and facts.classes[2].thickness == pytest.approx(10)


def test_borders_with_ignored_pixels_and_of_the_image_do_not_count():
    labels = np.full((4, 6), IGNORE, np.uint8)
    labels[:, :2], labels[2:, 2] = 0, 1
    areas, borders = areas_and_borders(labels)
    assert areas[:2].tolist() == [8, 2] and borders[0] == borders[1] == 2 and areas[IGNORE] == 14


def test_what_is_measured(monkeypatch):
    pairs = [scene(i) for i in range(6)]
    facts = fingerprint(Pairs(*pairs), Pairs(scene(0, split="val")), 8)
    images, labels = (np.array(each) for each in zip(*pairs, strict=True))
    assert (facts.train, facts.val, facts.read, facts.channels, facts.twins) == (6, 1, 6, 3, 0)
    assert facts.median == facts.largest == (97, 129)
    assert [each.pixels for each in facts.classes] == np.bincount(labels.ravel(), minlength=8).tolist()
    assert np.allclose(facts.mean, images.mean((0, 1, 2)) / 255, atol=0.02)
    assert np.allclose(facts.std, images.std((0, 1, 2)) / 255, atol=0.03)
    monkeypatch.setattr(module, "SAMPLE", 3)
    assert fingerprint(Pairs(*pairs), Pairs(), 8).read == 3


def test_near_duplicates_of_validation_images_are_found():
    image, labels = scene(3)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=60)
    again = np.array(Image.open(stream))
    train = Pairs(*(scene(i) for i in range(5)))
    assert fingerprint(train, Pairs((again, labels), scene(9), scene(11)), 8).twins == 1
    assert (difference_hash(image) ^ difference_hash(scene(4)[0])).sum() > 8


def test_grey_images():
    facts = fingerprint(Pairs((np.full((40, 40, 1), 51, np.uint8), np.zeros((40, 40), np.uint8))), Pairs(), 1)
    assert facts.channels == 1 and facts.mean == (0.2,) and facts.classes[0].thickness > 0
