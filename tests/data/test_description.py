import numpy as np
import pytest
from PIL import Image

from emanet.config import DataConfig, DatasetSpec
from emanet.data.datasets import open_dataset, resolve
from emanet.data.description import settled
from emanet.errors import InputError

CRACK = DatasetSpec(classes=("crack",))


@pytest.fixture
def masks(tmp_path):
    """Writes arrays as PNG masks and returns their paths."""

    def write(*arrays):
        paths = [tmp_path / f"{i}.png" for i in range(len(arrays))]
        for path, array in zip(paths, arrays, strict=True):
            Image.fromarray(np.array(array, np.uint8)).save(path)
        return paths

    return write


def labels(spec, path):
    from emanet.data.images import read_mask

    return read_mask(path, spec).tolist()


class TestOneClass:
    @pytest.mark.parametrize(
        ("mask", "read"),
        [
            ([[0, 255]], [[0, 1]]),
            ([[0, 1]], [[0, 1]]),
            ([[0, 1, 255]], [[0, 1, 255]]),
            ([[0, 38]], [[0, 1]]),
            ([[[0, 0, 0], [255, 255, 255]]], [[0, 1]]),
            ([[[0, 0, 0], [0, 200, 0]]], [[0, 1]]),
        ],
        ids=["0-255", "0-1", "0-1-ignored", "0-38", "black-white", "black-green"],
    )
    def test_becomes_background_and_object(self, masks, mask, read, capsys):
        paths = masks(np.zeros_like(mask), mask)
        spec = settled(CRACK, paths, "d")
        assert spec.classes == ("background", "crack") and labels(spec, paths[1]) == read
        assert "'crack' is the only class of d" in capsys.readouterr().err
        assert settled(spec, paths, "d") == spec and not capsys.readouterr().err, "it is settled"

    def test_a_mask_that_differs_is_refused_when_it_is_read(self, masks):
        first, other = masks([[0, 255]], [[0, 1]])
        with pytest.raises(InputError, match="values 1 that label_map lacks"):
            labels(settled(CRACK, [first], "d"), other)
        with pytest.raises(InputError, match="values 255 that label_map lacks"):
            labels(settled(CRACK, masks([[0, 128]]), "d"), masks([[0, 128]], [[0, 255]])[1])

    def test_keeps_its_colour(self, masks):
        spec = settled(DatasetSpec(classes=("crack",), palette=((255, 0, 0),)), masks([[0, 255]]), "d")
        assert spec.colours == ((0, 0, 0), (255, 0, 0))

    def test_its_own_ignore_label_is_not_the_object(self, masks):
        paths = masks([[0, 128, 255]])
        spec = settled(DatasetSpec(classes=("crack",), ignore_label=128), paths, "d")
        assert labels(spec, paths[0]) == [[0, 255, 1]]

    @pytest.mark.parametrize(
        ("spec", "mask", "message"),
        [
            (
                CRACK,
                [[0, 128, 255]],
                r'"classes": \["background", "crack"\], "label_map": {"0": 0, "128": 1, "255": 1}',
            ),
            (CRACK, [[[0, 0, 0], [9, 9, 9], [8, 8, 8]]], r'"palette": \[\[8, 8, 8\]\]'),
            (DatasetSpec(classes=("Background",)), [[0]], r'"classes": \["Background", "object"\]'),
            (DatasetSpec(classes=("crack",), palette=((0, 0, 0),)), [[0]], "gives 'crack' black"),
            (DatasetSpec(classes=("crack",), ignore_label=0), [[0, 1]], "leave ignore_label out"),
        ],
        ids=["values", "colours", "background", "black", "ignored"],
    )
    def test_what_cannot_be_guessed_is_refused(self, masks, spec, mask, message):
        with pytest.raises(InputError, match=message):
            settled(spec, masks(mask), "d")

    def test_masks_saved_as_jpeg_are_left_to_the_check(self, masks):
        assert len(settled(CRACK, masks([list(range(20))]), "d").classes) == 2
        assert len(settled(CRACK, masks([[[i, i, i] for i in range(20)]]), "d").classes) == 2

    def test_without_masks_or_with_a_label_map_it_stays(self, masks, tmp_path):
        assert settled(CRACK, [], "d") == CRACK
        assert settled(CRACK, [tmp_path / "none.png"], "d") == CRACK
        mapped = DatasetSpec(classes=("crack",), label_map={1: 0})
        assert settled(mapped, masks([[0, 255]]), "d") == mapped

    def test_empty_masks_are_background(self, masks):
        assert labels(settled(CRACK, masks([[0, 0]]), "d"), masks([[0, 0]])[0]) == [[0, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ignore_label": 0}, r'class \'a\'; if the classes start at 1, write "label_map": {"1": 0, "2": 1}'),
        ({"ignore_label": 1}, r'class \'b\'; to leave the class out, write "label_map": {"0": 0, "1": 255}'),
        ({"ignore_label": 7, "label_map": {0: 0, 7: 1}}, "label_map makes 7 class 'b'"),
        ({"ignore_colours": ((128, 0, 0),)}, "PASCAL VOC's colours, without a palette.* colour of class 'b'"),
        ({"palette": ((1, 1, 1), (2, 2, 2)), "ignore_colours": ((2, 2, 2),)}, "the palette's colour of class 'b'"),
        ({"images": "all", "masks": "all"}, "images and masks are the same files"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(InputError, match=f"data set 'voc': .*{message}"):
        resolve(DataConfig(spec=DatasetSpec(classes=("a", "b"), **changes)))


def test_a_long_label_map_is_cut():
    with pytest.raises(InputError, match=r'{"1": 0, "2": 1, "3": 2, ..., "150": 149}'):
        resolve(DataConfig(spec=DatasetSpec(classes=tuple(map(str, range(150))), ignore_label=0)))


def test_resolve_settles_a_folder_of_binary_masks(scenes):
    (scenes / "dataset.json").write_text('{"classes": ["crack"]}')
    for path in scenes.glob("*/masks/*.png"):
        Image.fromarray((np.array(Image.open(path)) == 0).astype(np.uint8) * 255).save(path)
    config = resolve(DataConfig(dataset=str(scenes)))
    assert config.spec.classes == ("background", "crack") and config.spec.label_map == {0: 0, 255: 1}
    _, labels = open_dataset(config, "val").read(0)
    assert set(np.unique(labels).tolist()) == {0, 1}
