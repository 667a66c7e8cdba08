"""train EXPERIMENT: every setting of the experiment is a flag, with the experiment's own value as its default."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..config import BackboneConfig, Experiment
from ..errors import InputError
from ..experiments import FOLDER_FILES, experiment_names, inherit, load_experiment, override, read_json
from ..show.terminal import note
from ..weights import hub
from .flags import Folder, Switch, parse, shown_as


@dataclass(frozen=True)
class Train:
    """Train an experiment, or plan one for a data set and train that.

    A plan is kept as plan.py in the run folder. Flags overrule it.

    Also --root and --workers, short for --data.root and --data.workers.
    """

    config: Annotated[Experiment, tyro.conf.arg(name="")]
    out: Folder = ""
    """Run folder; default runs/NAME, or the next free runs/NAME-2."""
    resume: bool = False
    """Continue from the run folder's latest checkpoint, if it has one."""
    replay: Annotated[int | None, shown_as("STEP")] = None
    """On a run folder, which is left alone: compute this step again, and show where the first value appears that is not
    finite."""
    force: Switch = False
    """Train in bf16 even on a processor that only emulates it, many times slower than fp32."""
    hours: Annotated[float | None, shown_as("HOURS")] = None
    """On a data set: how long it may take, the planning included; default 1."""

    def run(self, source: str, before: Experiment, plan: str = "") -> None:
        from .. import distributed
        from ..run.folder import default_name, folder_to_resume
        from ..train import train

        config = self.config
        if config.data.dataset != before.data.dataset:  # a run's config carries its own data set's spec and root
            same_root = config.data.root == before.data.root
            config = override(config, {"data.spec": None} | ({"data.root": ""} if same_root else {}))
        config = inherit(config, before)
        out = folder_to_resume(source) if self.resume and not self.out and not plan else self.out
        try:
            train(config, out, name=default_name(source), resume=self.resume, plan=plan, force=self.force)
        finally:
            distributed.shutdown()


def is_data(source: str) -> bool:
    """Whether it is a data set's folder or JSON file, not an experiment, a run or a checkpoint."""
    path = Path(source).expanduser()
    if path.is_dir():
        return source not in experiment_names() and not any((path / name).is_file() for name in FOLDER_FILES)
    if path.suffix != ".json" or not path.is_file():
        return False
    document = read_json(path)
    return isinstance(document, dict) and "classes" in document


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m emanet train EXPERIMENT [--out DIR] [--resume] [--FIELD VALUE]")
        print("       python -m emanet train RUN --replay STEP")
        print("       python -m emanet train DATA [--hours H] [--out DIR] [--FIELD VALUE]\n")
        print("EXPERIMENT is a name, a .py file, a config.json or a run folder. Names:")
        print("\n".join(f"  {name}" for name in experiment_names()))
        print("\nDATA is a data set's folder or dataset.json; an experiment is planned for it.")
        print("\n`python -m emanet train EXPERIMENT --help` lists all settings and their values.")
        return
    source, flags = arguments[0], arguments[1:]
    if source.startswith("-"):
        raise InputError(f"train needs an EXPERIMENT before {source}; there are: {', '.join(experiment_names())}")
    if is_data(source):
        _train_data(source, flags)
        return
    experiment = load_experiment(hub.local(source, note))
    asked = parse(Train, flags, f"train {source}", default=Train(config=experiment))
    if asked.hours is not None:
        raise InputError(f"--hours is for a data set, not for the experiment {source}, whose length is --steps")
    if asked.replay is None:
        asked.run(source, experiment)
        return
    if asked.resume or asked.out:
        raise InputError("--replay looks at a step of the run and writes nothing; leave out --resume and --out")
    from ..analysis.replay import replay

    replay(inherit(asked.config, experiment), Path(source), asked.replay)


def _train_data(source: str, flags: list[str]) -> None:
    started = time.monotonic()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # each would measure something else
        raise InputError(
            f"{source} is a data set, and only one process can plan for it: first python -m emanet plan {source} --out "
            "plan.py, then torchrun on train plan.py"
        )
    # What the plan depends on is needed first: the flags are parsed once with any experiment, then with the plan.
    # One mean stands for any number of channels.
    anything = override(Experiment(), {"data.dataset": source, "model.mean": (0.5,), "model.std": (0.5,)})
    asked = parse(Train, flags, f"train {source}", default=Train(config=anything))
    if asked.replay is not None:
        raise InputError(f"{source} is a data set; to repeat a step of a run, name its folder: train RUN --replay STEP")
    if asked.resume:
        raise InputError(f"{source} is a data set; to continue a run, name its folder: train RUN --resume")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler, which measures memory, chats on stderr
    from ..analysis.plan import plan

    data, backbone = asked.config.data, asked.config.model.backbone
    planned = plan(
        source,
        hours=1.0 if asked.hours is None else asked.hours,
        root=data.root,
        train_split=data.train_split,
        val_split=data.val_split,
        channels=0 if backbone.in_channels == BackboneConfig().in_channels else backbone.in_channels,
        weights=backbone.pretrained if isinstance(backbone.pretrained, str) else "",
        device=asked.config.device,
        started=started,
    )
    default = Train(config=planned.experiment)
    parse(Train, flags, f"train {source}", default=default).run(source, planned.experiment, planned.text)
