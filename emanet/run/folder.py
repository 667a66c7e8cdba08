"""The run folder, and what a training shows while it runs. Only rank 0 writes and speaks.

config.json  environment.json (environment-STEP.json where it was resumed)  log.jsonl  code/  tensorboard/  pictures/
checkpoints/STEP/  best.safetensors  evaluation.json  confusion.png  curves.png
"""

import contextlib
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import __version__, distributed
from ..atomic import write_json, write_text, write_whole
from ..config import Experiment
from ..errors import InputError
from ..experiments import to_dict
from ..metrics import MEANS, ConfusionMatrix, percent, print_report
from ..model import EMANet
from ..show.colours import triptych
from .log import read_log, read_rows

PACKAGE = Path(__file__).parent.parent
LAUNCH = ".launch"  # file in the run folder: see _launch


def pick_run_folder(out: str | Path, name: str, resume: bool) -> tuple[Path, bool]:
    """`out`, or runs/NAME with the first free number; and whether to go on with the run in it.

    An existing run is only ever continued, where that is wanted or torchrun has started the same training again.
    """
    folder = Path(out) if str(out) else Path("runs") / name
    count = 1
    while not str(out) and not resume and (folder / "config.json").exists():
        count += 1
        folder = Path("runs") / f"{name}-{count}"
    if distributed.restarts()[0] and (folder / LAUNCH).exists():
        resume = resume or (folder / LAUNCH).read_text() == _launch()
    choice = [folder, resume, (folder / "config.json").exists() and not resume]
    if distributed.world_size() > 1:
        dist.broadcast_object_list(choice)  # rank 0 may create the folder before another rank looks
    if choice[2]:
        distributed.end(InputError(f"{out} already holds a run; continue it with --resume or name another --out"))
    return choice[0], choice[1]


def _launch() -> str:
    """What all restarts of one torchrun have in common: its name for the job, if it has one, or else its process."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"{platform.node()} {os.getppid()}" if name == "none" else name


class _Console(Console):
    """Goes on in silence where whoever read the output has ended (`| head`): the training is not to end with it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with contextlib.suppress(OSError, AttributeError):  # an output that is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class RunFolder:
    def __init__(self, folder: Path):
        self.folder = folder
        self.main = distributed.rank() == 0
        self.console = _Console(quiet=not self.main)
        self._rate = ""
        self._writer: Any = None
        self._lock: Any = None

    def open(self, config: Experiment, net: EMANet, step: int, unvalidated: bool = False) -> None:
        """Write what the run is made of; in a resumed run, cut the log back to the step it goes on from, without its
        validation if that is to come."""
        if not self.main:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        self.own()
        write_text(self.folder / LAUNCH, _launch())
        write_json(self.folder / "config.json", to_dict(config))
        write_json(self.folder / f"environment{f'-{step:06d}' * bool(step)}.json", environment(net))
        shutil.copytree(
            PACKAGE, self.folder / "code" / "emanet", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
        )
        kept = [row for row in read_rows(self.folder / "log.jsonl") if row["step"] <= step] if step else []
        if unvalidated:
            kept = [row for row in kept if (row["kind"], row["step"]) != ("val", step)]
        write_text(self.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        self._writer = SummaryWriter(self.folder / "tensorboard", purge_step=step + 1)
        count = sum(p.numel() for p in net.parameters())
        device = next(net.parameters()).device
        self.say(
            f"{config.model.backbone.name} + {config.model.head.name}: {count / 1e6:.2f} M parameters, on {device}, "
            f"{config.steps} steps of {config.batch_size} images, into {self.folder}"
        )

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def own(self) -> None:
        """InputError if another process trains in this folder. The lock ends with this process, however that ends."""
        if self._lock or not self.folder.is_dir():
            return
        try:
            import fcntl
        except ImportError:
            return  # not on this system
        self._lock = open(self.folder / ".lock", "w")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock's would live on in a loader's workers
        except (BlockingIOError, PermissionError) as error:
            raise InputError(f"another training is at work in {self.folder}") from error
        except OSError:
            pass  # a file system without locks

    @contextlib.contextmanager
    def bar(self, step: int, steps: int) -> Iterator[None]:
        """A live bar on a terminal, put away however the block ends; elsewhere the lines of `log` are all."""
        columns = [TextColumn("step"), MofNCompleteColumn(), BarColumn(None), TextColumn("{task.fields[facts]}")]
        live = self.main and self.console.is_terminal
        with Progress(*columns, TimeRemainingColumn(), console=self.console, disable=not live) as self._bar:
            self._task = self._bar.add_task("", total=steps, completed=step, facts="")
            yield

    def advance(self, step: int, loss: float, lr: float) -> None:
        self._bar.update(self._task, completed=step, facts=f"loss {loss:.3f}  lr {lr:.2g}{self._rate}")

    def log(self, kind: str, *, step: int, **facts: Any) -> None:
        """One line of log.jsonl, the scalars of TensorBoard, and a line for whoever has no bar."""
        if not self.main:
            return
        path = self.folder / "log.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps({"kind": kind, "step": step, **facts}) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {path} at step {step}: {error.strerror}") from error
        for name, value in facts.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, step)
            elif name == "IoU":
                for label, iou in value.items():
                    if iou is not None:
                        self._writer.add_scalar(f"{kind}-IoU/{label}", iou, step)
        if kind == "train" and self.console.is_terminal:
            self._rate = f"  {facts['images_per_second']:.1f} img/s"
        elif kind == "train":
            self.say(
                f"step {step:6d}  loss {facts.get('loss', math.nan):.4f}  lr {facts['lr']:.2e}  "
                f"{facts['images_per_second']:6.1f} images/s  {facts['seconds']:6.0f} s"
            )
        else:
            means = "  ".join(f"{name} {percent(facts[name])}" for name in MEANS)
            self.say(f"step {step:6d}  {means}")

    def picture_taker(self, config: Experiment, net: EMANet, step: int) -> Callable[..., None] | None:
        """What evaluate calls with each sample: the first few are drawn as image, label and prediction."""
        if not self.main:
            return None

        def take(index: int, image: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> None:
            if index >= config.pictures:
                return
            drawn = triptych(image, labels, predicted, net.palette)
            path = self.folder / "pictures" / f"step_{step:06d}_{index}.png"
            content = io.BytesIO()
            Image.fromarray(drawn).save(content, "PNG")
            write_whole(path, content.getbuffer())
            self._writer.add_image(f"val/{index}", drawn, step, dataformats="HWC")

        return take

    def close(self, matrix: ConfusionMatrix) -> None:
        """The result on the screen and as files."""
        if not self.main:
            return
        self._bar.stop()
        self._writer.close()
        report = matrix.report()
        print_report(report, self.console)
        try:
            from ..show.figures import confusion_picture, curves_picture

            confusion_picture(matrix, self.folder / "confusion.png")
            curves_picture({self.folder.name: read_log(self.folder)}, self.folder / "curves.png")
        except InputError as error:  # without matplotlib a run is whole all the same
            self.say(f"no plots: {error}")
        except OSError as error:
            raise InputError(f"cannot draw into {self.folder}: {error.strerror or error}") from error
        write_json(self.result, report)  # last: with it the run is complete
        self.say(f"in {self.folder}: best.safetensors, evaluation.json, log.jsonl, pictures/, tensorboard/")

    @property
    def result(self) -> Path:
        return self.folder / "evaluation.json"


def environment(net: EMANet) -> dict[str, Any]:
    """Where and from what a run was made: versions, machine, command, git state of the package."""
    import timm
    import torchvision

    def git(*arguments: str) -> str | None:
        if not (PACKAGE.parent / ".git").exists():
            return None  # installed: whatever repository lies further up is not ours
        try:
            done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    return {
        "emanet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "ranks": distributed.world_size(),
        "parameters": sum(p.numel() for p in net.parameters()),
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git_commit": git("rev-parse", "HEAD"),
        "git_changes": git("status", "--porcelain", "--", "."),
    }
