"""config show EXPERIMENT and config diff A B."""

import json
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ..config import Experiment
from ..errors import InputError
from ..experiments import flatten, load_experiment, override, to_dict
from ..show.terminal import note
from ..weights import hub
from .flags import subcommand

Source = Annotated[str, tyro.conf.Positional]


@dataclass(frozen=True)
class Show:
    """Every setting of an experiment, run, config.json or model file."""

    experiment: Annotated[Source, tyro.conf.arg(metavar="EXPERIMENT")]
    """A name, a .py file, a config.json, a run folder or a model file."""
    format: Literal["flat", "json"] = "flat"
    """flat: one `name = value` a line; json: what a run's config.json holds."""

    def run(self) -> None:
        from ..show.terminal import say

        experiment = load_experiment(hub.local(self.experiment, note))
        if self.format == "json":
            say(json.dumps(to_dict(experiment), indent=2))
        else:
            say(*(f"{name} = {value!r}" for name, value in flatten(experiment).items()))


@dataclass(frozen=True)
class Diff:
    """What differs between two experiments, run folders or model files."""

    a: Annotated[Source, tyro.conf.arg(metavar="A")]
    """A name, a .py file, a config.json, a run folder or a model file."""
    b: Annotated[Source, tyro.conf.arg(metavar="B")]
    """The same."""

    def run(self) -> None:
        from ..show.terminal import say

        flat_a, flat_b = (flatten(_with_spec(load_experiment(hub.local(source, note)))) for source in (self.a, self.b))
        names = [name for name in flat_a | flat_b if flat_a.get(name) != flat_b.get(name)]
        say(*(f"{name}: {flat_a.get(name)!r} -> {flat_b.get(name)!r}" for name in names))


def _with_spec(experiment: Experiment) -> Experiment:
    """The experiment with its data set's spec and root filled in, as in a run's config, if they can be found."""
    from ..data.datasets import resolve

    try:
        return override(experiment, {"data": resolve(experiment.data)})
    except InputError:
        return experiment


def main(arguments: list[str]) -> None:
    subcommand({"show": Show, "diff": Diff}, arguments, "config")
