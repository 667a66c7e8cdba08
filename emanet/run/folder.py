"""The run folder: which one, who may write in it, and what says how the run was made. Only rank 0 writes.

config.json  environment.json (environment-STEP.json where it was resumed)  code/  log.jsonl  tensorboard/  pictures/
checkpoints/STEP/  skipped/  best.safetensors  evaluation.json  confusion.png  curves.png
"""

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .. import __version__, distributed
from ..atomic import replacing, require_writable_folder, write_json, write_text
from ..config import Experiment
from ..errors import InputError, some
from ..experiments import checkpoints, experiment_names, flatten, names_with, read_json, to_dict
from ..metrics import ConfusionMatrix
from .log import RunLog, read_log

PACKAGE = Path(__file__).parent.parent
WRITTEN = "best.safetensors evaluation.json confusion.png curves.png log.jsonl pictures tensorboard".split()
LAUNCH = ".launch"  # a file in the run folder: see _launch


def default_name(source: str) -> str:
    """A run's name from what it is made of: an experiment's name, a file, a run folder, or a file in one.

    A run folder gives its whole name (runs/lr0.01 -> lr0.01), and so do its config.json, models and checkpoints.
    """
    folder = folder_of(source)
    return folder.name if folder else Path(source).resolve().stem


def folder_of(source: str) -> Path | None:
    """The run folder that a folder, or a file in one, belongs to; None for an experiment's name and other files."""
    path = Path(source).resolve()
    if source in experiment_names():
        return None
    if path.name in ("config.json", "best.safetensors", "model.safetensors") and not path.is_dir():
        path = path.parent
    elif not path.is_dir():
        return None
    return path.parent.parent if path.parent.name == "checkpoints" else path


def folder_to_resume(source: str) -> str:
    """The run folder that `train SOURCE --resume` goes on in; "" for runs/NAME. Raises InputError."""
    folder = folder_of(source)
    if folder is None:
        return ""
    if folder == Path(source).resolve():
        return source
    if checkpoints(folder):  # another place would begin a new run without its weights
        raise InputError(f"{source} is part of a run; to continue it, name its folder: train {folder} --resume")
    return ""


def pick_run_folder(out: str | Path, name: str, resume: bool) -> tuple[Path, bool]:
    """`out`, or runs/NAME with the first free number; and whether to continue the run in it.

    An existing run is continued only with `resume`, or if torchrun has started the same run again.
    """
    folder = Path(out) if str(out) else Path("runs") / name
    count = 1
    while not str(out) and not resume and (folder / "config.json").exists():
        count += 1
        folder = Path("runs") / f"{name}-{count}"
    if distributed.restarts()[0] and (folder / LAUNCH).exists():
        resume = resume or (folder / LAUNCH).read_text() == _launch()
    choice: list[Any] = [folder, resume, (folder / "config.json").exists() and not resume]
    if distributed.world_size() > 1:
        dist.broadcast_object_list(choice)  # rank 0 may create the folder before another rank looks
    folder, resume, taken = choice
    if taken:
        distributed.end(InputError(f"{folder} already holds a run; continue it with --resume or name another --out"))
    return folder, resume


def _launch() -> str:
    """What all restarts of one torchrun have in common: the job's name, or else torchrun's process."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"{platform.node()} {os.getppid()}" if name == "none" else name


def require_same(config: Experiment, before: Experiment, folder: Path) -> None:
    """InputError if a resumed run changes a setting that affects the weights."""
    now, then, free = flatten(config), flatten(before), names_with("resume")
    changed = [
        f"{name} {then.get(name)} -> {now.get(name)}"
        for name in now | then
        if now.get(name) != then.get(name) and name not in free
    ]
    if changed:
        raise InputError(f"{folder} cannot be resumed with other settings: {some(changed)}")


def require_agreement(config: Experiment, train_set: Any, val_set: Any) -> None:
    """Every rank must have the same version, settings and files."""
    facts: dict[str, object] = {"the version of emanet": __version__}
    own = names_with("ranks")
    facts |= {name: value for name, value in flatten(config).items() if name not in own}
    for split, (_, names) in files_of(config, train_set, val_set).items():
        facts[f"the files of {split}"] = names
    distributed.agree(facts)


def files_of(config: Experiment, train_set: Any, val_set: Any) -> dict[str, list[Any]]:
    """Split -> how many images it has, and a digest of their names."""
    splits = {config.data.train_split: train_set, config.data.val_split: val_set}
    return {split: [len(dataset), _listing(dataset, config.data.root)] for split, dataset in splits.items()}


def _listing(dataset: Any, root: str) -> str:
    """A digest of the names in a data set, in order, that does not depend on its root."""
    root = str(Path(root)) if root else ""
    names = (dataset.name(i).removeprefix(root) for i in range(len(dataset)))
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:12]


class RunFolder:
    def __init__(self, path: Path, plan: str = ""):
        """plan: the text of a plan.py to keep, if the run is one that was planned."""
        self.path, self.plan = path, plan
        self.result = path / "evaluation.json"
        """The last validation's report; a run that has it is complete."""
        self._lock: Any = None

    def lock(self) -> None:
        """InputError if another process trains in this folder. The lock ends with this process, however that ends."""
        if self._lock or not self.path.is_dir():
            return
        try:
            import fcntl
        except ImportError:  # not on this system
            return
        self._lock = open(self.path / ".lock", "w")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock's would live on in a loader's workers
        except (BlockingIOError, PermissionError) as error:
            raise InputError(f"another process is training in {self.path}; name another --out") from error
        except OSError:
            pass  # a file system without locks

    def before(self) -> dict[str, Any]:
        """The latest environment file; empty if it cannot be read."""
        with contextlib.suppress(IndexError, InputError, TypeError, ValueError):
            return dict(read_json(sorted(self.path.glob("environment*.json"), key=_step_of)[-1]))
        return {}

    def ranks(self) -> int:
        """How many ranks wrote the latest environment file, for checkpoints that do not say; 0 if it does not say."""
        ranks = self.before().get("ranks")
        return ranks if isinstance(ranks, int) else 0

    def about_files(self, files: Mapping[str, list[Any]]) -> Iterator[str]:
        """Which splits have other images than when the run was last going on. files: see files_of."""
        earlier: Any = self.before().get("files") or {}
        for split, (count, _) in files.items():
            if split in earlier and earlier[split] != files[split]:
                text = f"{split} has {count} images, not those of before ({earlier[split][0]})"
                yield f"{text}: the run will not end as it would have without the interruption"

    def write_origin(
        self, config: Experiment, net: nn.Module, step: int, files: Mapping[str, list[Any]] | None = None
    ) -> None:
        """Make the folder; write the config, the environment of a run that starts at `step`, and the code."""
        require_writable_folder(self.path)
        self.lock()
        self.result.unlink(missing_ok=True)  # not complete until it is written again
        write_text(self.path / LAUNCH, _launch())
        write_json(self.path / "config.json", to_dict(config))
        if self.plan:
            write_text(self.path / "plan.py", self.plan)
        made = environment(net) | {"files": files or {}}
        write_json(self.path / f"environment{f'-{step:06d}' * bool(step)}.json", made)
        copy_code(self.path / "code" / "emanet")

    def write_result(self, matrix: ConfusionMatrix, log: RunLog) -> None:
        """Write confusion.png, curves.png and evaluation.json, and say so."""
        try:
            from ..show.figures import confusion_picture, curves_picture

            confusion_picture(matrix, self.path / "confusion.png")
            curves_picture({self.path.name: read_log(self.path)}, self.path / "curves.png")
        except (InputError, OSError, MemoryError) as error:  # a run without them is complete all the same
            log.say(f"no plots: {error or 'not enough memory'}")
        write_json(self.result, matrix.report())  # last: with it the run is complete
        made = [name for name in WRITTEN if (self.path / name).exists()]
        log.say(f"in {self.path}: {', '.join(made)}")


def _step_of(environment: Path) -> int:
    """The step of an environment file; 0 for the first."""
    digits = environment.stem.removeprefix("environment").removeprefix("-")
    return int(digits) if digits.isdecimal() else 0


def copy_code(folder: Path) -> None:
    """The package without its permissions: shutil.copytree would make the copy of a read-only install read-only."""
    for source in PACKAGE.rglob("*"):
        if source.is_file() and "__pycache__" not in source.parts:
            target = folder / source.relative_to(PACKAGE)
            with contextlib.suppress(OSError):
                target.parent.chmod(target.parent.stat().st_mode | 0o700)  # read-only in runs of earlier versions
            with replacing(target, durable=False) as temporary:
                temporary.write_bytes(source.read_bytes())  # not copyfile, whose errors name the source


def environment(net: nn.Module) -> dict[str, Any]:
    """What a run was made with: versions, machine, command, and the package's git state."""
    import timm
    import torchvision

    def git(*arguments: str) -> str | None:
        if not (PACKAGE.parent / ".git").exists():
            return None  # installed: a repository further up is not ours
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
