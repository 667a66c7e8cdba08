import sys

import numpy as np
import pytest
import torch
from PIL import Image

from emanet.errors import InputError
from emanet.metrics import ConfusionMatrix
from emanet.show.figures import confusion_picture, curves_picture, require_figure


def random_matrix(classes: int) -> ConfusionMatrix:
    matrix = ConfusionMatrix([f"class number {i}" for i in range(classes)])
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(1, classes, (4000,), generator=g)  # class 0 is only predicted
    guess = torch.randint(0, classes, (4000,), generator=g)
    matrix.add(labels, torch.where(torch.rand(4000, generator=g) < 0.7, labels, guess))
    return matrix


def run_log(shift: float = 0.0, steps: int = 200) -> list[dict]:
    rng = np.random.default_rng(0)
    rows = [{"kind": "val", "step": s, "mIoU": s / (s + 80) - shift} for s in range(20, steps, 20)]
    for s in range(1, steps):
        loss, lr = 2 / (1 + s / 50) + rng.random() / 4 + shift, 0.01 * (1 - s / steps) ** 0.9
        rows.append({"kind": "train", "step": s, "loss": loss, "lr": lr})
    return rows


@pytest.mark.parametrize("classes", [2, 30])
def test_confusion_picture_shows_rows_normalised(tmp_path, classes):
    path = tmp_path / "new" / "matrix.png"
    confusion_picture(random_matrix(classes), path)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert (pixels == 217).all(2).any()  # the grey row of the class without labels
    # A correct share of 0.7 or more is dark blue, whatever the number of pixels; nothing else in the matrix is.
    cells = pixels[:, : pixels.shape[1] * 3 // 4]
    assert ((cells[..., 2] - cells[..., 0] > 90) & (cells[..., 0] < 60)).sum() > 500


def test_curves_picture_draws_every_run_and_skips_what_is_not_finite(tmp_path):
    broken = [{"kind": "train", "step": 1, "loss": float("nan"), "lr": 0.1}, {"kind": "val", "step": 1, "mIoU": None}]
    path = tmp_path / "curves.png"
    curves_picture({"first": run_log(), "second": run_log(0.2), "broken": broken}, path)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):  # matplotlib's C0, C1, C2
        assert (abs(pixels - colour).max(2) < 8).sum() > 50


def test_a_suffix_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match=r"curves\.txt"):
        curves_picture({"run": run_log()}, tmp_path / "curves.txt")


def test_a_place_that_cannot_be_written_is_named_once(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match=f"^cannot write {tmp_path}/a.png: Is a directory$"):
        confusion_picture(random_matrix(2), tmp_path / "a.png")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r'pip install "emanet\[plots\]"'):
        confusion_picture(random_matrix(2), tmp_path / "matrix.png")


def test_a_figure_that_could_not_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    require_figure("")
    require_figure(tmp_path / "new" / "a.png", tmp_path / "b.PDF")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new"]
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for name, said in (("a.txt", "suffix"), ("a", "suffix"), ("folder.png", "is a folder"), ("file/a.png", "cannot")):
        with pytest.raises(InputError, match=said):
            require_figure(tmp_path / name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="matplotlib"):
        require_figure(tmp_path / "a.png")
