"""Runs side by side: one table of what they reached, one of the IoU of each class, one picture of their curves.

    compare(["runs/a", "runs/b"], "curves.png")

A run is a folder with log.jsonl and, for the steps planned and the parameters, config.json and environment.json.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..experiments import load_experiment, read_json
from ..metrics import MEANS, percent
from ..run.log import read_log

Cells = Sequence[float | None]

# name in the tables -> (format, +1: more is better, -1: less is better, 0: neither)
METRICS: dict[str, tuple[Callable[[Any], str], int]] = {
    "steps done": ("{:,}".format, 0),
    "steps planned": ("{:,}".format, 0),
    "best mIoU": (percent, 1),
    "its step": ("{:,}".format, 0),
    **{f"last {name}": (percent, 1) for name in MEANS},
    "last training loss": ("{:.4f}".format, -1),
    "images/s, median": ("{:.1f}".format, 1),
    "minutes": ("{:.1f}".format, 0),
    "parameters": ("{:,}".format, 0),
}


def compare(runs: Sequence[str], out: str | None = None, console: Console | None = None) -> dict[str, Any]:
    """Print the tables, write the curves to `out`, and return what the tables hold, ready for JSON.

    Returns {"runs": names, "metrics": {name: one value per run}, "IoU": {class: one value per run}}, where IoU is that
    of the best validation; shares are in [0, 1]; None: unknown. Raises InputError for a run without a log.
    """
    folders = list(dict.fromkeys(Path(run) for run in runs))
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    logs = {name: read_log(folder) for name, folder in zip(names, folders, strict=True)}
    summaries = [_summary(folder, log) for folder, log in zip(folders, logs.values(), strict=True)]
    metrics = {name: [summary.get(name) for summary, _ in summaries] for name in METRICS}
    metrics = {name: values for name, values in metrics.items() if any(value is not None for value in values)}
    classes = dict.fromkeys(name for _, iou in summaries for name in iou)
    ious = {name: [iou.get(name) for _, iou in summaries] for name in classes}

    console = console or Console()
    console.print(_table("", names, {name: (values, *METRICS[name]) for name, values in metrics.items()}))
    if ious:
        title = "IoU at the best mIoU" + (f", and its difference to {names[0]}" if len(names) > 1 else "")
        console.print(_table(title, names, {name: (values, percent, 1) for name, values in ious.items()}, True))
    if out:
        from ..show.figures import curves_picture

        curves_picture(logs, out)
    return {"runs": names, "metrics": metrics, "IoU": ious}


def _summary(folder: Path, log: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Values by the names of METRICS, and the IoU of each class at the best validation."""
    train = [row for row in log if row["kind"] == "train"]
    val = [row for row in log if row["kind"] == "val" and row.get("mIoU") is not None]
    found: dict[str, Any] = {"steps done": log[-1]["step"]}
    if (folder / "config.json").exists():
        found["steps planned"] = load_experiment(str(folder)).steps
    if (folder / "environment.json").exists():
        found["parameters"] = read_json(folder / "environment.json").get("parameters")
    if train:
        speeds = [row["images_per_second"] for row in train if "images_per_second" in row]
        found["last training loss"] = train[-1].get("loss")
        found["images/s, median"] = statistics.median(speeds) if speeds else None
        found["minutes"] = train[-1]["seconds"] / 60 if "seconds" in train[-1] else None
    if not val:
        return found, {}
    best = max(val, key=lambda row: row["mIoU"])
    found |= {"best mIoU": best["mIoU"], "its step": best["step"]}
    found |= {f"last {name}": val[-1].get(name) for name in MEANS}
    return found, best.get("IoU", {})


def _table(
    title: str,
    names: Sequence[str],
    rows: dict[str, tuple[Cells, Callable[[Any], str], int]],
    differences: bool = False,
) -> Table:
    """One column per run, the best of a row bold; with differences, each value's to the first run beside it."""
    table = Table(title=Text(title) if title else None, title_justify="left", title_style="bold")
    table.add_column("", overflow="fold")
    for name in names:
        table.add_column(Text(name), justify="right", overflow="fold")
    for name, (values, show, sign) in rows.items():
        known = [sign * value for value in values if value is not None and math.isfinite(value)]
        best = max(known) if sign and len(values) > 1 and known else None
        cells = []
        for i, value in enumerate(values):
            cell = Text("-" if value is None else show(value))
            if value is not None and sign * value == best:
                cell.stylize("bold")
            if differences and i and value is not None and values[0] is not None:
                cell.append(f" {100 * (value - values[0]):+.2f}", "dim not bold")
            cells.append(cell)
        table.add_row(Text(name), *cells)
    return table
