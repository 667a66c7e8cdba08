"""train EXPERIMENT: every setting of the experiment is a flag, with the experiment's own value as its default."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..config import Experiment
from ..errors import InputError
from ..experiments import experiment_names, inherit, load_experiment, override
from .flags import Folder, parse


@dataclass(frozen=True)
class Train:
    """Train an experiment.

    Also --root and --workers, short for --data.root and --data.workers.
    """

    config: Annotated[Experiment, tyro.conf.arg(name="")]
    out: Folder = ""
    """Run folder; default runs/NAME, or the next free runs/NAME-2."""
    resume: bool = False
    """Continue from the run folder's latest checkpoint, if it has one."""

    def run(self, source: str, before: Experiment) -> None:
        from .. import distributed
        from ..run.folder import default_name
        from ..train import train

        config = self.config
        if config.data.dataset != before.data.dataset:  # a run's config carries its own data set's spec and root
            same_root = config.data.root == before.data.root
            config = override(config, {"data.spec": None} | ({"data.root": ""} if same_root else {}))
        config = inherit(config, before)
        out = source if self.resume and not self.out and Path(source).is_dir() else self.out
        try:
            train(config, out, name=default_name(source), resume=self.resume)
        finally:
            distributed.shutdown()


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m emanet train EXPERIMENT [--out DIR] [--resume] [--FIELD VALUE]\n")
        print("EXPERIMENT is a name, a .py file, a config.json or a run folder. Names:")
        print("\n".join(f"  {name}" for name in experiment_names()))
        print("\n`python -m emanet train EXPERIMENT --help` lists all settings and their values.")
        return
    source, flags = arguments[0], arguments[1:]
    if source.startswith("-"):
        raise InputError(f"train needs an EXPERIMENT before {source}; there are: {', '.join(experiment_names())}")
    experiment = load_experiment(source)
    parse(Train, flags, f"train {source}", default=Train(config=experiment)).run(source, experiment)
