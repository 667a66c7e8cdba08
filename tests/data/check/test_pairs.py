"""One pair of files, made here: what is wrong with it must be told, and nothing else."""

import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from emanet.config import DatasetSpec
from emanet.data import images
from emanet.data.check import pairs
from emanet.data.check.pairs import BLURRED, SIDEWAYS, blur, inspect_pair
from emanet.data.synthetic import SCENE_CLASSES, SCENE_PALETTE, draw_scene

SPEC = DatasetSpec(classes=SCENE_CLASSES, palette=SCENE_PALETTE)
COLOURS = np.array(SCENE_PALETTE, np.uint8)
SCENE, LABELS = draw_scene(7, size=(97, 129))


def told(folder, image=SCENE, mask=LABELS, spec=SPEC, image_exif=1, mask_exif=1, mask_name="mask.png"):
    """{(kind, severity)} of a pair of arrays or Pillow images, and the texts in one."""
    files = folder / "image.jpg", folder / mask_name
    for file, content, turn in zip(files, (image, mask), (image_exif, mask_exif), strict=True):
        exif = Image.Exif()
        exif[0x0112] = turn
        picture = content if isinstance(content, Image.Image) else Image.fromarray(content)
        picture.save(file, **({"exif": exif} if turn != 1 else {}))
    facts = inspect_pair(files, spec)
    texts = [text for *_, text in facts.findings]
    return {(kind, severity) for kind, severity, *_ in facts.findings}, "; ".join(texts)


def resized(array, factor, how):
    image = Image.fromarray(array)
    return np.array(image.resize((round(image.width * factor), round(image.height * factor)), how))


def test_a_sound_pair(tmp_path):
    assert told(tmp_path)[0] == set()
    facts = inspect_pair((tmp_path / "image.jpg", tmp_path / "mask.png"), SPEC)
    assert facts.counts.tolist() == np.bincount(LABELS.ravel(), minlength=256).tolist()
    assert facts.size == (97, 129) and facts.colours is False
    assert told(tmp_path, mask=COLOURS[LABELS])[0] == set()


def test_equal_pixels_have_equal_digests(tmp_path):
    told(tmp_path)
    image, mask = tmp_path / "image.jpg", tmp_path / "mask.png"
    with Image.open(image) as picture:
        picture.save(tmp_path / "copy.png")
        picture.save(tmp_path / "again.jpg", quality=30)
        np.save(tmp_path / "flat.npy", np.array(picture).reshape(129, 97, 3))
    digests = [inspect_pair((tmp_path / name, mask), SPEC).digest for name in ("copy.png", "again.jpg", "flat.npy")]
    own = inspect_pair((image, mask), SPEC).digest
    assert digests[0] == own and own not in digests[1:]


@pytest.mark.parametrize("which", ["image", "mask"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientations(tmp_path, turn, which):
    """Each on the image or on the mask alone, whose pixels are stored alike."""
    expected = set() if turn == 1 else {("orientation", "error" if turn in SIDEWAYS else "warning")}
    assert told(tmp_path, **{f"{which}_exif": turn})[0] == expected


@pytest.mark.parametrize("turn", SIDEWAYS)
def test_a_mask_of_the_image_as_displayed(tmp_path, turn):
    assert told(tmp_path, mask=np.ascontiguousarray(LABELS.T), image_exif=turn)[0] == set()
    assert told(tmp_path, image_exif=turn, mask_exif=turn)[0] == set()
    square = told(tmp_path, image=SCENE[:, :97], mask=LABELS[:, :97], image_exif=turn)
    assert square[0] == {("orientation", "warning")} and "keeps its size" in square[1]


@pytest.mark.parametrize("factor", [0.5, 0.8, 2])
@pytest.mark.parametrize("seed", range(3))
def test_interpolation_is_told_from_sound_masks(factor, seed):
    labels = draw_scene(seed, size=(97, 129))[1]
    assert blur(labels) < BLURRED / 2
    assert blur(resized(labels, factor, Image.Resampling.NEAREST)) < BLURRED / 1.5
    assert blur(resized(labels, factor, Image.Resampling.BILINEAR)) > 1.5 * BLURRED


def test_blur_does_not_depend_on_the_rows_at_once(monkeypatch):
    values = np.random.default_rng(0).integers(0, 9, (97, 40)).astype(np.uint8)
    whole = blur(values)
    for rows in (1, 5, 48, 95, 96, 97):
        monkeypatch.setattr(pairs, "ROWS", rows)
        assert blur(values) == whole > 0


def test_memory_is_a_few_bytes_a_pixel():
    values = np.random.default_rng(0).integers(0, 9, (2048, 2048)).astype(np.uint8)
    for look in (blur, images.pixels_per_label):
        tracemalloc.start()
        look(values)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * values.size


def test_lossy_masks(tmp_path):
    doubled = resized(COLOURS[LABELS], 2, Image.Resampling.BILINEAR)
    image = resized(SCENE, 2, Image.Resampling.BILINEAR)
    assert told(tmp_path, image, doubled)[0] == {("lossy-mask", "error")}
    assert told(tmp_path, image, resized(LABELS, 2, Image.Resampling.BILINEAR))[0] == {("lossy-mask", "warning")}
    for mask, severity in ((np.zeros_like(LABELS), "warning"), (LABELS, "error"), (COLOURS[LABELS], "error")):
        assert told(tmp_path, mask=mask, mask_name="mask.jpg")[0] == {("lossy-mask", severity)}


def test_ignored_outlines_are_no_blur(tmp_path):
    labels = LABELS.copy()
    labels[:-1][LABELS[:-1] != LABELS[1:]] = 255
    labels[:, :-1][LABELS[:, :-1] != LABELS[:, 1:]] = 255
    assert told(tmp_path, mask=labels)[0] == set()


def test_a_palette_that_was_sorted(tmp_path):
    coloured = Image.fromarray(LABELS)
    coloured.putpalette(COLOURS.tobytes())
    assert told(tmp_path, mask=coloured)[0] == set()
    present = coloured.convert("RGB")
    again = present.convert("P", palette=Image.Palette.ADAPTIVE, colors=len(present.getcolors()))
    kinds, text = told(tmp_path, mask=again)
    assert kinds == {("palette", "warning")} and "but has the colour of" in text


def test_values_and_label_maps(tmp_path):
    spec = DatasetSpec(classes=("a", "b"), label_map={value: value % 2 for value in range(7)})
    kinds, text = told(tmp_path, mask=np.where(LABELS > 5, 7, LABELS).astype(np.uint8), spec=spec)
    assert kinds == {("values", "error")} and text.startswith("7 in "), "with a label_map, 7 is not one too far"


def test_what_no_diagnosis_explains_is_refused(tmp_path):
    spec = DatasetSpec(classes=SCENE_CLASSES, palette=(SCENE_PALETTE[1], *SCENE_PALETTE[1:]))
    kinds, text = told(tmp_path, mask=np.array(spec.palette, np.uint8)[LABELS], spec=spec)
    assert kinds == {("refused", "error")} and "two classes have the same colour" in text


def test_several_faults_of_a_pair(tmp_path):
    mask = np.full((20, 20), 99, np.uint8)
    assert told(tmp_path, mask=mask)[0] == {("size", "error"), ("values", "error")}
    for name in ("image.jpg", "mask.png"):
        (tmp_path / name).write_bytes(b"")
    facts = inspect_pair((tmp_path / "image.jpg", tmp_path / "mask.png"), SPEC)
    assert [(kind, str(files[0].name)) for kind, _, files, _ in facts.findings] == [
        ("empty-file", "image.jpg"),
        ("empty-file", "mask.png"),
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    told(tmp_path)
    (tmp_path / "mask.png").unlink()
    os.mkfifo(tmp_path / "mask.png")
    facts = inspect_pair((tmp_path / "image.jpg", tmp_path / "mask.png"), SPEC)
    assert [kind for kind, *_ in facts.findings] == ["unreadable"]


def test_wide_and_array_masks(tmp_path):
    told(tmp_path)
    np.save(tmp_path / "mask.npy", LABELS.astype(np.int64) * 1000)
    facts = inspect_pair((tmp_path / "image.jpg", tmp_path / "mask.npy"), SPEC)
    ((kind, severity, files, text),) = facts.findings
    assert (kind, severity, files) == ("values", "error", (tmp_path / "mask.npy",)) and "1000, 2000" in text
    np.save(tmp_path / "mask.npy", LABELS.astype(np.int32))
    assert inspect_pair((tmp_path / "image.jpg", tmp_path / "mask.npy"), SPEC).findings == []
