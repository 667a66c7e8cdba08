"""One step of a run again, to see where the first value that is not finite appears. The run folder is left alone."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import train as training
from ..config import Experiment
from ..data.loader import training_loader
from ..data.transforms import TrainingSamples
from ..errors import InputError, some
from ..experiments import checkpoints, holds_run, load_experiment, override
from ..run import skipped
from ..run.checkpoints import read_checkpoint
from ..run.deterministic import fix_workspace, same_bits
from ..run.folder import require_same
from ..show.terminal import bar, say


def replay(config: Experiment, folder: Path, step: int) -> str:
    """Say what step `step` of the run in `folder` comes to, and return the sentence that names the place.

    The step starts from the weights that the run kept of it (`keep_skipped`), or those of the latest checkpoint before
    it, or from the start of the run, and the steps in between are computed again. On one kind of CPU they are the run's
    own, to the bit. Runs in one process, whatever the number of the run's. Raises InputError.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("--replay computes a step in one process; start it without torchrun")
    if not holds_run(folder):
        raise InputError(f"{folder} is not a run folder, whose steps --replay could repeat")
    require_same(config, load_experiment(str(folder)), folder)
    if not 0 <= step < config.steps:
        kept = some(skipped.steps(folder), 8)
        raise InputError(f"--replay {step}: the run has steps 0 to {config.steps - 1}; skipped were {kept or 'none'}")
    # These change how a step is computed, not what.
    config = override(config, {"compile": False, "recompute": False, "data.workers": 0})
    fix_workspace(config)
    source = skipped.weights_before(folder, step) or _latest(folder, step)
    run = training.prepare(config, folder, "", bool(source), untouched=True)
    if source:
        run.state.load_state_dict(read_checkpoint(source, run.model, run.device), int(source.name))
    else:
        training.restore(run)
    facts = skipped.facts_of(folder, step)
    ranks = int(facts.get("ranks", 0)) or (run.state.progress.ranks if source else 0) or run.folder.ranks() or 1
    training.draw_as(run, ranks)

    start, names = run.state.step, [run.samples.name(i) for i in skipped.positions(config, step)]
    begin = f"from {source.relative_to(folder)}" if source else "from the start of the run"
    between = f", computing steps {start} to {step - 1} again" if step > start else ""
    say(f"step {step} {begin}{between}: {some(names, 8)}")
    step_net = training.wrap(run)
    batches = training_loader(run.samples, run.config, start, 0, 1, ranks)
    with bar("step", step - start) as advance, same_bits(config, run.device):
        for done in range(step - start):
            training.step(run, step_net, next(batches), stop=False)
            advance(done + 1)
    batch = next(batches)
    with Watch(step_net, run.samples, batch, config.accumulate) as watch, same_bits(config, run.device):
        loss, norm, *_ = training.step(run, step_net, batch, stop=False).read()
    told = f"the loss is {loss:.4g}, the gradient's norm {norm:.4g}"
    place = watch.first or "every value of it is finite"
    if facts and not watch.first:
        place += f", but in the run the loss was {facts['loss']}, the gradient's norm {facts['gradient_norm']}"
    say(told, place)
    return place


def _latest(folder: Path, step: int) -> Path | None:
    """The latest checkpoint from before the step that holds all that training needs."""
    fitting = [path for path in checkpoints(folder) if int(path.name) <= step and (path / "training.pt").is_file()]
    return fitting[-1] if fitting else None


@dataclass
class Watch:
    """Around a step: `first` says where the first value that is not finite appeared, in the order of computation.

    Watched are the weights before it, the batch, what goes into and comes out of every module, and the gradients of
    outputs and weights.
    """

    step_net: nn.Module
    samples: TrainingSamples
    batch: list[Tensor]
    passes: int
    first: str = ""
    _last: str = ""
    _pass: int = -1

    def __enter__(self) -> "Watch":
        self._handles: list[Any] = []
        for name, tensor in (*self.step_net.named_parameters(), *self.step_net.named_buffers()):
            self._note(tensor, f"the weights before the step, {_short(name)}")
        for name, module in self.step_net.named_modules():
            shown = f"{_short(name)} ({type(module).__name__})" if name else "the loss"
            self._handles += [
                module.register_forward_pre_hook(partial(self._enters, name, shown)),
                module.register_forward_hook(partial(self._leaves, name, shown)),
            ]
        for name, parameter in self.step_net.named_parameters():
            if parameter.requires_grad:
                hook = partial(self._note, place=f"the backward pass, the gradient of {_short(name)}")
                self._handles.append(parameter.register_hook(hook))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enters(self, name: str, shown: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._pass += not name
        what = f"what goes into {shown}{self._after()}" if name else "the batch itself"
        for tensor in _tensors(inputs):
            self._note(tensor, f"the forward pass, {what}", images=True)

    def _leaves(self, name: str, shown: str, module: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        inner = self._after() if name and next(module.children(), None) is not None else ""
        what = f"the output of {shown}" if name else shown
        for tensor in _tensors(outputs):
            self._note(tensor, f"the forward pass, {what}{inner}", images=True)
            if tensor.requires_grad:
                place = f"the backward pass, the gradient of {what}"
                tensor.register_hook(partial(self._note, place=place, images=True))
        self._last = shown

    def _after(self) -> str:
        return f", computed after {self._last}" if self._last else ""

    def _note(self, tensor: Tensor, place: str, images: bool = False) -> None:
        """Keep the place if it is the first where a value is not finite, with the images that have one there."""
        if self.first or not (tensor.is_floating_point() or tensor.is_complex()):
            return
        bad = ~tensor.detach().isfinite()
        count = int(bad.sum())
        if not count:
            return
        kinds = [kind for kind, mask in (("NaN", tensor.isnan()), ("infinite", tensor.isinf())) if mask.any()]
        self.first = f"the first value that is not finite is in {place}: {count:,} of {bad.numel():,} values, "
        self.first += " or ".join(kinds)
        share = len(self.batch[2]) // self.passes
        if images and bad.dim() > 1 and len(bad) == share:
            rows = self._pass * share + bad.flatten(1).any(1).nonzero().flatten()
            names = [self.samples.name(int(position)) for position in self.batch[2][rows.cpu()]]
            self.first += f", in {len(names)} of the {share} images: {some(names, 8)}"


def _short(name: str) -> str:
    """A name as in a model file; StepNet has the network under `net`."""
    return name.removeprefix("net.")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
