import numpy as np
import pytest
from PIL import Image

from emanet.show.attention import (
    SIDE,
    base_colours,
    components_figure,
    fitted,
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


@pytest.mark.parametrize(("h", "w"), [(20, 30), (900, 600), (1, 2000)])
def test_panels_have_one_longer_side_and_colours_that_are_in_the_picture(h, w):
    image = np.zeros((h, w, 3), np.uint8)
    image[:, w // 2 :] = 255, 100, 0
    panel = fitted(image)
    assert max(panel.shape) == SIDE and min(panel.shape[:2]) == max(1, round(SIDE * min(h, w) / max(h, w)))
    assert (panel[0, 0] == 0).all() and (panel[-1, -1] == (255, 100, 0)).all()
    colours = np.unique(panel.reshape(-1, 3), axis=0)
    assert len(colours) == 2 if max(h, w) < SIDE else (colours <= (255, 100, 0)).all()
    z = fitted(image[..., 0].astype(np.float32) / 255)
    assert z.dtype == np.float32 and z.shape == panel.shape[:2] and z[-1, -1] == 1


@pytest.mark.parametrize(("bases", "rows"), [(1, [2]), (4, [3, 2]), (7, [4, 4])])
def test_the_image_and_every_base_have_a_panel(tmp_path, bases, rows):
    image = np.full((20, 30, 3), (0, 0, 200), np.uint8)
    maps = {base: np.full((20, 30, 3), (10 + base, 200, 0), np.uint8) for base in range(bases)}
    responsibilities_figure(image, maps, np.ones(bases), 0.5, "iteration 1 of 1", tmp_path / "r.png")
    pixels = read(tmp_path / "r.png")
    places = [np.argwhere((pixels == picture[0, 0]).all(2)) for picture in (image, *maps.values())]
    assert all(len(place) == SIDE * round(SIDE * 20 / 30) for place in places)
    corners = [tuple(place.min(0)) for place in places]
    assert corners == sorted(corners)
    tops = [top for top, _ in corners]
    assert [tops.count(top) for top in sorted(set(tops))] == rows


def test_bars_of_the_iterations_are_as_long_as_their_numbers(tmp_path):
    entropy, strongest = np.log(16) * np.array([1, 0.75, 0.25]), np.array([0.25, 0.5, 1])
    iterations_figure({0: [IMAGE] * 3, 5: [IMAGE] * 3}, 0.5, entropy, strongest, 16, tmp_path / "i.png")
    pixels = read(tmp_path / "i.png")
    for colour, shares in (((31, 119, 180), (1, 0.75, 0.25)), ((255, 127, 14), (0.25, 0.5, 1))):
        filled = (pixels == colour).all(2)
        bars = filled[filled.any(1)][0].reshape(3, -1)  # a column for each iteration
        assert bars.sum(1).tolist() == [SIDE * share for share in shares]


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


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)
