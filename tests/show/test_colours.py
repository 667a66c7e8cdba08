import numpy as np
import pytest

from emanet.errors import InputError
from emanet.show.colours import GAP, IGNORE_COLOUR, colourise, overlay, triptych

PALETTE = ((0, 0, 0), (200, 10, 0), (0, 0, 255))
LABELS = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)


def test_colourise():
    picture = colourise(LABELS, PALETTE)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[0, 0, 0], [200, 10, 0], [0, 0, 255]], [list(IGNORE_COLOUR), [200, 10, 0], [0, 0, 0]]]


def test_labels_without_a_colour_are_refused():
    with pytest.raises(InputError, match="label 3"):
        colourise(np.array([[3]], np.uint8), PALETTE)


def test_overlay_mixes_and_leaves_ignored_pixels_alone():
    image = np.full((2, 3, 3), 100, np.uint8)
    mixed = overlay(image, LABELS, PALETTE, alpha=0.25)
    assert mixed.dtype == np.uint8
    assert mixed[0, 1].tolist() == [125, 78, 75]  # 0.25 * (200, 10, 0) + 75, rounded to even
    assert mixed[1, 0].tolist() == [100, 100, 100]
    assert (overlay(image, LABELS, PALETTE, alpha=1)[LABELS != 255] == colourise(LABELS, PALETTE)[LABELS != 255]).all()


@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 0.55, 1])
def test_an_overlay_is_its_formula_to_the_pixel(alpha):
    rng = np.random.default_rng(0)
    image, labels = rng.integers(0, 256, (90, 80, 3), np.uint8), rng.choice(np.uint8([0, 1, 2, 255]), (90, 80))
    mixed = np.rint(alpha * colourise(labels, PALETTE) + (1 - alpha) * image.astype(np.float32))
    wanted = np.where(labels[..., None] == 255, image, mixed)
    for kind in (np.uint8, np.int64):
        np.testing.assert_array_equal(overlay(image, labels.astype(kind), PALETTE, alpha), wanted)
    with pytest.raises(InputError, match="label 3 has no colour"):
        overlay(image, np.full_like(labels, 3), PALETTE)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_triptych(channels):
    image = np.arange(6 * channels, dtype=np.uint8).reshape(2, 3, channels)
    predicted = LABELS % 2
    picture = triptych(image, LABELS, predicted, PALETTE)
    assert picture.shape == (2, 9 + 2 * GAP, 3) and picture.dtype == np.uint8
    assert (picture[:, 3 : 3 + GAP] == 255).all()
    assert (picture[:, 3 + GAP : 6 + GAP] == colourise(LABELS, PALETTE)).all()
    assert (picture[:, 6 + 2 * GAP :] == colourise(predicted, PALETTE)).all()
    assert (picture[:, :3] == (image[..., :3] if channels >= 3 else image[..., :1])).all()
