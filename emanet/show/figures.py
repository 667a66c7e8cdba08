"""Figures with matplotlib: the confusion matrix, and the curves of one run or several."""

import importlib.util
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..atomic import replacing, require_writable
from ..errors import InputError
from .fonts import legible, with_fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Confusion(Protocol):
    """A metrics.ConfusionMatrix."""

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def counts(self) -> Any: ...  # a tensor (classes, classes) of pixels: [true class, predicted class]


def confusion_picture(matrix: Confusion, path: str | Path) -> None:
    """Rows: true classes, each as shares of its labelled pixels. Grey rows: classes without a labelled pixel.

    Up to 25 classes the cells hold percent; a dot is less than half a percent. The suffix of path (.png, .pdf, .svg)
    is the format. Raises InputError without matplotlib, and where the file cannot be written.
    """
    counts = matrix.counts.cpu().numpy()
    labelled = counts.sum(1, keepdims=True)
    shares = np.ma.masked_array(counts / np.maximum(labelled, 1), np.broadcast_to(labelled == 0, counts.shape))
    n = len(counts)
    cell = 0.36 if n <= 25 else 0.15  # inches: room for the number, or just for a name of 6 points
    figure = new_figure(cell * n + 3, cell * n + 2.2)  # before the import below: it reports a missing matplotlib
    from matplotlib.colors import PowerNorm

    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # the root shows rare confusions too
    size = 9 if n <= 25 else 6
    names = legible(matrix.classes, "class")
    axes.set_xticks(range(n), names, rotation=90, fontsize=size)
    axes.set_yticks(range(n), names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if n <= 25:
        for row, column in zip(*np.nonzero(~shares.mask & (counts > 0)), strict=True):
            share = shares[row, column]
            text = f"{100 * share:.0f}" if share >= 0.005 else "·"
            colour = "white" if share > 0.4 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(picture, ax=axes, shrink=min(1, 3 / (cell * n)), label="share of the true class")
    save_figure(figure, path)


def curves_picture(logs: dict[str, list[dict[str, Any]]], path: str | Path) -> None:
    """Training loss, learning rate and validation mIoU over the steps, one colour per run.

    logs: name of a run -> rows of its log.jsonl (kind, step, loss, lr, mIoU); values that are not finite are left out.
    Raises InputError as confusion_picture does.
    """
    figure = new_figure(13, 4.2)
    loss_axes, lr_axes, miou_axes = figure.subplots(1, 3)
    for i, (name, rows) in enumerate(zip(legible(list(logs), "run"), logs.values(), strict=True)):
        style = dict(color=f"C{i}", linestyle=("-", "--", ":")[i // 10 % 3])  # there are ten colours
        steps, loss = _curve(rows, "train", "loss")
        loss_axes.plot(steps, loss, **style, alpha=0.25, linewidth=0.8)
        loss_axes.plot(steps, _smooth(loss), **style, linewidth=1.6)
        lr_axes.plot(*_curve(rows, "train", "lr"), **style, linewidth=1.6)
        steps, miou = _curve(rows, "val", "mIoU")
        miou_axes.plot(steps, 100 * miou, **style, linewidth=1.6, marker="o", markersize=4, label=name)
    loss_axes.set_ylim(bottom=0)
    for axes, title in ((loss_axes, "training loss"), (lr_axes, "learning rate"), (miou_axes, "validation mIoU, %")):
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(len(logs), 4), frameon=False)
    save_figure(figure, path)


def _curve(rows: Iterable[dict[str, Any]], kind: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["step"], row[key]) for row in rows if row["kind"] == kind and row.get(key) is not None]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over a twentieth of the points; over fewer at the ends."""
    window = np.ones(min(len(values), 2 * (len(values) // 40) + 1))
    if not len(values):
        return values
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def require_figure(*paths: str | Path) -> None:
    """Before the work: InputError without matplotlib, and for a file that could not be written. "" is skipped."""
    if not any(paths):
        return
    require_matplotlib()
    require_writable(*paths)
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    for path in (path for path in paths if path):
        if Path(path).suffix.lower()[1:] not in formats:
            raise InputError(f"cannot write {path}: the suffix of a figure is one of .png, .pdf, .svg, .jpg")


def require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError('figures need matplotlib: pip install "emanet[plots]"')
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # no advice about its folders where there is no home


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of that size in inches; InputError without matplotlib."""
    require_matplotlib()
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    return figure


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write the figure in the format of the path's suffix; missing folders are made."""
    with_fonts(figure)
    try:
        with replacing(Path(path)) as temporary:
            figure.savefig(temporary, format=Path(path).suffix[1:], dpi=150)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib does not write
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
