"""What a run shows and records while it trains: log.jsonl, TensorBoard, images, and lines or a bar on the terminal."""

import contextlib
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..atomic import write_text, write_whole
from ..errors import InputError, utf8
from ..metrics import MEANS, percent, scores
from ..show import terminal
from ..show.colours import Palette, triptych

FILE = "log.jsonl"


class RunLog:
    """The log of one run folder. Rank 0 writes and speaks; on the other ranks every method does nothing."""

    def __init__(self, folder: Path, main: bool = True):
        self.folder, self.main = folder, main
        self.live = main and sys.stdout.isatty() and sys.stderr.isatty()  # a bar; elsewhere lines
        self._advance: Callable[..., None] = _nothing
        self._speed = ""
        self._writer: Any = None

    def open(self, step: int, unvalidated: bool = False) -> None:
        """Start the log; in a resumed run, cut it back to `step`, without its validation if that will be repeated."""
        if not self.main:
            return
        from torch.utils.tensorboard import SummaryWriter

        rows = [row for row in read_rows(self.folder / FILE) if row["step"] <= step] if step else []
        if unvalidated:
            rows = [row for row in rows if (row["kind"], row["step"]) != ("val", step)]
        write_text(self.folder / FILE, "".join(json.dumps(row) + "\n" for row in rows))
        try:
            self._writer = SummaryWriter(self.folder / "tensorboard", purge_step=step + 1)
        except UnicodeEncodeError:
            terminal.note(f"note: no curves for TensorBoard: it needs a folder with a name in UTF-8, not {self.folder}")

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def say(self, *lines: str) -> None:
        """Lines on stdout. One that cannot be written, as its disk is full, does not end the run."""
        if not self.main:
            return
        try:
            terminal.say(*lines)
        except InputError as error:
            terminal.note(f"warning: {error}; the run goes on")

    @contextlib.contextmanager
    def bar(self, step: int, steps: int) -> Iterator[None]:
        """A live bar on a terminal, removed however the block ends."""
        with terminal.bar("step", steps, hidden=not self.live) as self._advance:
            self._advance(step)
            yield

    def advance(self, step: int, loss: float, lr: float) -> None:
        """Move the bar: so many steps are done."""
        self._advance(step, label=f"step  loss {loss:.3f}  lr {lr:.2g}{self._speed}")

    def write(self, kind: str, *, step: int, **facts: Any) -> None:
        """One line of log.jsonl, the scalars of TensorBoard, and a line on the terminal if it has no bar.

        kind: "train" or "val". InputError if the file cannot be written.
        """
        if not self.main:
            return
        path = self.folder / FILE
        try:
            with open(path, "a") as file:
                file.write(json.dumps({"kind": kind, "step": step, **facts}) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {path} at step {step}: {error.strerror}") from error
        for name, value in facts.items() if self._writer else ():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, step)
            elif name == "IoU":
                for label, iou in value.items():
                    if iou is not None:
                        self._writer.add_scalar(f"{kind}-IoU/{utf8(label)}", iou, step)
        if kind == "val":
            self.say(f"step {step:6d}  " + "  ".join(f"{name} {percent(facts[name])}" for name in MEANS))
        elif self.live:
            self._speed = f"  {facts['images_per_second']:.1f} img/s"
        else:
            self.say(
                f"step {step:6d}  loss {facts.get('loss', math.nan):.4f}  lr {facts['lr']:.2e}  "
                f"{facts['images_per_second']:6.1f} images/s  {facts['seconds']:6.0f} s"
            )

    def images(self, step: int, drawn: dict[int, bytes]) -> None:
        """Write pictures/step_STEP_INDEX.png, also to TensorBoard. drawn: index of the sample -> PNG."""
        if not self.main:
            return
        for index, content in drawn.items():
            write_whole(self.folder / "pictures" / f"step_{step:06d}_{index}.png", content)
            pixels = np.asarray(Image.open(io.BytesIO(content)))
            if self._writer:
                self._writer.add_image(f"val/{index}", pixels, step, dataformats="HWC")

    def report(self, report: dict[str, Any]) -> None:
        """The metrics as a table on stdout."""
        if self.main:
            terminal.show(scores(report))


class Clock:
    """Seconds of a whole run, and steps per second of training alone, since the last time it was asked."""

    def __init__(self, seconds: float = 0.0, step: int = 0):
        """seconds: what earlier processes of the run took to get to `step`."""
        self._mark = time.perf_counter()
        self._began = self._mark - seconds
        self._step = step

    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def steps_per_second(self, step: int) -> float:
        now = time.perf_counter()
        speed = (step - self._step) / (now - self._mark)
        self._step, self._mark = step, now
        return speed

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count for steps_per_second: validations and checkpoints."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._mark += time.perf_counter() - began


class Drawings:
    """evaluate's on_sample: draws the first `count` samples of the data set as image, label and prediction."""

    def __init__(self, count: int, palette: Palette):
        self.count, self.palette = count, palette
        self.drawn: dict[int, bytes] = {}
        """Index of the sample -> PNG."""

    def __call__(self, index: int, image: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> None:
        if index < self.count:
            content = io.BytesIO()
            Image.fromarray(triptych(image, labels, predicted, self.palette)).save(content, "PNG")
            self.drawn[index] = content.getvalue()


def _nothing(*_: object, **__: object) -> None:
    pass


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's log.jsonl by step; of rows repeated by a resumed run, the last.

    Lines that are not JSON objects are skipped: a crash cuts one off, and a resumed run appends behind it.
    """
    path = Path(folder) / FILE
    try:
        rows = read_rows(path)
    except OSError as error:
        raise InputError(f"{folder} is not a run: cannot read {path}: {error.strerror}") from error
    if not rows:
        raise InputError(f"{path} holds no row: the run has not logged a step yet")
    return rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The same for a file that may be empty. OSError if there is none."""
    rows = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            rows[row["kind"], row["step"]] = row
        except (ValueError, TypeError, KeyError):
            continue
    return sorted(rows.values(), key=lambda row: row["step"])
