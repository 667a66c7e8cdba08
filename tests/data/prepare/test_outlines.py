import numpy as np
import pytest

from emanet.data.prepare.outlines import ellipse, filled, turned


def whole(rings, size):
    """What `filled` finds, in an image of the size."""
    mask, left, top = filled(rings, size)
    result = np.zeros(size, bool)
    box = result[top : top + mask.shape[0], left : left + mask.shape[1]]
    assert box.shape == mask.shape
    box[:] = mask
    return result


def inside(rings, size):
    """Each centre by itself: how many edges a ray to the left crosses."""
    result = np.zeros(size, bool)
    for row, column in np.ndindex(*size):
        x, y = column + 0.5, row + 0.5
        for ring in rings:
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
                if (y0 <= y) != (y1 <= y):
                    result[row, column] ^= x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
    return result


@pytest.mark.parametrize("seed", range(20))
def test_random_polygons_with_holes(seed):
    rng = np.random.default_rng(seed)
    rings = [rng.uniform(-4, 20, (n, 2)) for n in (3, 7, 4)]
    if seed % 2:
        rings = [np.round(2 * ring) / 2 for ring in rings]  # edges through centres
    assert np.array_equal(whole(rings, (13, 17)), inside(rings, (13, 17)))


def test_shapes_that_share_an_edge_share_no_pixel():
    square = [(0, 0), (9.5, 0), (9.5, 9), (0, 9)]
    parts = [[square[0], square[1], square[2]], [square[0], square[2], square[3]]]
    counts = sum(whole([part], (9, 12)).astype(int) for part in parts)
    assert np.array_equal(counts, whole([square], (9, 12))) and counts.max() == 1


def test_an_ellipse_and_a_turn():
    y, x = np.mgrid[:20, :30] + 0.5
    assert np.array_equal(whole([ellipse((14, 9), (10, 5))], (20, 30)), ((x - 14) / 10) ** 2 + ((y - 9) / 5) ** 2 < 1)
    corners = np.array([(2, 4), (6, 4), (6, 5), (2, 5)], float)
    assert np.allclose(turned(corners, (2, 4), 90), [(2, 4), (2, 8), (1, 8), (1, 4)])


def test_the_mask_is_that_of_a_box():
    assert filled([np.array([(30, 50), (33, 50), (33, 54), (30, 54)])], (3000, 4000))[0].shape == (4, 3)
    assert filled([np.array([(-9, -9), (-5, -9), (-5, -5)])], (8, 8))[0].size == 0


@pytest.mark.parametrize("far", [np.nan, np.inf, 1e300])
def test_points_that_are_none(far):
    with pytest.raises(ValueError, match="none of them far outside"):
        filled([np.array([(0, 0), (9, 0), (-far, far)])], (8, 8))
