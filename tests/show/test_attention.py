import numpy as np
import pytest

from emanet.show.attention import (
    base_colours,
    components_figure,
    heat_map,
    iterations_figure,
    owners_figure,
    owners_overlay,
    owners_picture,
    responsibilities_figure,
    usage_figure,
)

IMAGE = np.full((20, 30, 3), 128, np.uint8)


def test_base_colours_differ_and_stay():
    colours = base_colours(64).astype(int)
    distance = abs(colours[:, None] - colours).sum(2) + 999 * np.eye(64, dtype=int)
    assert distance.min() >= 40
    np.testing.assert_array_equal(base_colours(512)[:64], colours)
    np.testing.assert_array_equal(base_colours(512)[256:], base_colours(256))


def test_heat_grows_with_the_responsibility():
    z = np.linspace(0, 0.5, 50, dtype=np.float32)[None]
    picture = heat_map(np.full((1, 50, 3), 128, np.uint8), z, 0.5).astype(int)
    warmth = picture[0, :, 0] - picture[0, :, 2]
    assert picture[0, 0].std() == 0 and warmth[-1] > 100 and (picture[0, 0] != picture[0, 3]).any()


def test_owners_have_the_colours_of_their_bases():
    owners = np.array([[0, 5], [5, 2]])
    np.testing.assert_array_equal(owners_picture(owners), base_colours(6)[owners])
    mixed = owners_overlay(np.zeros((2, 2, 1), np.uint8), owners, alpha=0.5)
    np.testing.assert_array_equal(mixed, np.rint(base_colours(6)[owners] / 2).astype(np.uint8))


@pytest.mark.parametrize("bases", [1, 300])
def test_figures_of_one_base_and_of_many(tmp_path, bases):
    shares = np.full(bases, 1 / bases)
    owners = np.arange(600).reshape(20, 30) % bases
    maps = {0: IMAGE}
    responsibilities_figure(IMAGE, maps, shares, 0.5, "iteration 1 of 1", tmp_path / "r.png")
    owners_figure(IMAGE, IMAGE, owners, shares, [0], tmp_path / "o.png")
    iterations_figure({0: [IMAGE]}, 0.5, np.ones(1), np.ones(1), bases, tmp_path / "i.png")
    usage = np.random.default_rng(0).random((3, bases))
    usage[1] = np.nan
    usage_figure(usage, "abc", tmp_path / "u.png")
    points = np.random.default_rng(1).random((9, 2))
    palette = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    components_figure(points, np.arange(9) % 3, np.array([0.7, 0.2]), "abc", palette, tmp_path / "c.pdf")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("r.png", "o.png", "i.png", "u.png", "c.pdf"))
