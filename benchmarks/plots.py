"""The pictures of docs/performance.md, from the figures beside them.

    python benchmarks/plots.py [docs/performance]

The folder holds what the benchmarks wrote with --csv; the pictures go there too, and nothing is measured.
attention.png: time and memory of EM and non-local attention over the pixels. targets.png: the rows that have a target.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from emanet.errors import InputError  # noqa: E402
from emanet.show.figures import new_figure, save_figure  # noqa: E402

Row = dict[str, str]


class Target(NamedTuple):
    """A ratio that a row should reach."""

    label: str
    file: str
    row: Row
    """What columns of it hold."""
    ratio: float


FORWARD = {"what": "forward, float32, B C N K T = (1, 512, 4225, 64, 3)", "name": "ours"}
LARGE = {"case": "1024x2048/150", "name": "ours"}
TARGETS = (
    Target("EM attention, 1 thread", "em_attention_1.csv", FORWARD, 1.2),
    Target("EM attention, 2 threads", "em_attention.csv", FORWARD, 1.2),
    Target("labels of 150 classes, scene", "upsample_1.csv", LARGE | {"for": "labels", "logits": "scene"}, 2),
    Target("labels of 150 classes, noise", "upsample_1.csv", LARGE | {"for": "labels", "logits": "noise"}, 2),
    Target("loss of 150 classes, gradient", "upsample_1.csv", LARGE | {"for": "loss"}, 2),
    Target("training samples", "data.csv", {"name": "ours"}, 4),
    Target("network, compile fp32", "network.csv", {"name": "compile-fp32"}, 1.5),
    Target("network, openvino fp32", "network.csv", {"name": "openvino-fp32"}, 1.5),
    Target("network, openvino int8", "network.csv", {"name": "openvino-int8"}, 3),
)
REACHED, MISSED = "#4477aa", "#ee7733"  # told apart by any eyes


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent / "docs" / "performance"
    attention(folder)
    targets(folder)


def attention(folder: Path) -> None:
    figure = new_figure(9, 3.8)
    rows = [row for row in _rows(folder / "scaling.csv") if row["table"] in ("attention", "exponents")]
    for axes, key, unit in zip(figure.subplots(1, 2), ("ms", "MiB"), ("time, ms", "memory, MiB"), strict=True):
        for name, label, colour in (("non-local", "non-local attention", MISSED), ("em", "EM attention", REACHED)):
            own = [row for row in rows if row["name"] == name]
            exponent = next(float(row[f"{key}_exponent"]) for row in own if row["table"] == "exponents")
            own = [row for row in own if row["table"] == "attention"]
            pixels, values = [int(row["side"]) ** 2 for row in own], [float(row[key]) for row in own]
            axes.plot(pixels, values, color=colour, marker="o", label=f"{label}: pixels to the {exponent:.2f}")
        axes.set(xscale="log", yscale="log", xlabel="pixels of the feature map", ylabel=unit)
        axes.set_xticks(pixels, [f"{row['side']}x{row['side']}" for row in own])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, folder / "attention.png")


def targets(folder: Path) -> None:
    """Bars of medians with a line from the smallest to the largest ratio, and a mark where the target is."""
    figure = new_figure(9, 0.36 * len(TARGETS) + 1)
    axes = figure.add_subplot()
    for place, target in enumerate(TARGETS):
        row = _row(folder / target.file, target.row)
        ratio, smallest, largest = (float(row[key]) for key in ("ratio", "ratio_min", "ratio_max"))
        axes.barh(place, ratio, 0.6, color=REACHED if ratio >= target.ratio else MISSED)
        axes.plot([smallest, largest], [place, place], color="black", linewidth=1)
        axes.plot([target.ratio] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2.5)
        axes.text(max(largest, target.ratio) * 1.05, place, f"{ratio:.2f} of {target.ratio:g}", va="center", fontsize=9)
    axes.set_yticks(range(len(TARGETS)), [target.label for target in TARGETS])
    axes.invert_yaxis()
    axes.set(
        xscale="log", xlim=(0.7, 40), xlabel="times as fast as the baseline; black mark: the target; line: min to max"
    )
    axes.set_xticks([1, 2, 3, 5, 10, 20], ["1", "2", "3", "5", "10", "20"])
    axes.minorticks_off()
    axes.axvline(1, color="0.6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, folder / "targets.png")


def _row(path: Path, wanted: Row) -> Row:
    rows = [row for row in _rows(path) if row.get("cpu", "avx512") == "avx512"]  # the bars are of one kind of CPU
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    if len(found) != 1:
        raise InputError(f"{path} has {len(found)} rows of {wanted}, not one")
    return found[0]


def _rows(path: Path) -> list[Row]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; a benchmark writes it with --csv") from error


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
