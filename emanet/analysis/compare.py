"""Runs side by side: a table of what they reached, a table of the IoU of each class, and a figure of their curves.

    compare(["runs/a", "runs/b"], "curves.png")

A run is a folder with log.jsonl. Its config.json and environment.json add the planned steps and the parameters.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..experiments import load_experiment, read_json
from ..metrics import MEANS, percent
from ..run.log import read_log
from ..show.tables import Row, side_by_side
from ..show.terminal import note, show
from ..weights import hub

# name in the tables -> (how a value is written, +1: more is better, -1: less is better, 0: neither)
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


def compare(runs: Sequence[str | Path], picture: str | Path = "") -> dict[str, Any]:
    """Print the tables, draw the curves into the file `picture`, and return what the tables hold, ready for JSON.

    Returns {"runs": names, "metrics": {name: one value per run}, "IoU": {class: one value per run}}. IoU is that of the
    best validation; shares are in [0, 1]; None: unknown. A run that has logged nothing yet is left out, and
    named. Raises InputError for a folder that is not a run, and if no run has a log.
    """
    if not runs:
        raise InputError("compare needs at least one run folder")
    for run in filter(hub.is_name, runs):
        raise InputError(f"{run} is a model without the log of its run, which compare reads: use `evaluate` for models")
    folders = list(dict.fromkeys(Path(run) for run in runs))
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    logs: dict[str, list[dict[str, Any]]] = {}
    for name, folder in zip(names, folders, strict=True):
        try:
            logs[name] = read_log(folder)
        except InputError as error:  # `compare runs/*` while one of them starts
            if not (folder / "config.json").is_file() or (folder == folders[-1] and not logs):
                raise
            note(f"left out: {error}")
    if picture:
        from ..show.figures import require_figure

        require_figure(picture)
    summaries = [_summary(folder, logs[name]) for name, folder in zip(names, folders, strict=True) if name in logs]
    names = list(logs)
    metrics = {name: [summary.get(name) for summary, _ in summaries] for name in METRICS}
    metrics = {name: values for name, values in metrics.items() if any(value is not None for value in values)}
    classes = dict.fromkeys(name for _, iou in summaries for name in iou)
    ious = {name: [iou.get(name) for _, iou in summaries] for name in classes}

    show(side_by_side("", names, {name: Row(values, *METRICS[name]) for name, values in metrics.items()}))
    if ious:
        title = "IoU at the best mIoU" + (f", and its difference from {names[0]}" if len(names) > 1 else "")
        show(side_by_side(title, names, {name: Row(iou, percent, 1) for name, iou in ious.items()}, differences=True))
    if picture:
        from ..show.figures import curves_picture

        curves_picture(logs, picture)
    return {"runs": names, "metrics": metrics, "IoU": ious}


def _summary(folder: Path, log: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, float | None]]:
    """A run's values by the names of METRICS, and the IoU of each class at its best validation."""
    train = [row for row in log if row["kind"] == "train"]
    val = [row for row in log if row["kind"] == "val" and row.get("mIoU") is not None]
    summary: dict[str, Any] = {"steps done": log[-1]["step"]}
    if (folder / "config.json").exists():
        summary["steps planned"] = load_experiment(str(folder)).steps
    if (folder / "environment.json").exists():
        summary["parameters"] = read_json(folder / "environment.json").get("parameters")
    if train:
        speeds = [row["images_per_second"] for row in train if "images_per_second" in row]
        summary["last training loss"] = train[-1].get("loss")
        summary["images/s, median"] = statistics.median(speeds) if speeds else None
        summary["minutes"] = train[-1]["seconds"] / 60 if "seconds" in train[-1] else None
    if not val:
        return summary, {}
    best = max(val, key=lambda row: row["mIoU"])
    summary |= {"best mIoU": best["mIoU"], "its step": best["step"]}
    summary |= {f"last {name}": val[-1].get(name) for name in MEANS}
    return summary, best.get("IoU", {})
