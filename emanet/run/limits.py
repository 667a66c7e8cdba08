"""What the machine lacks for a run, or a batch for its ranks: a sentence that says what to change."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .. import distributed
from ..config import Experiment
from ..errors import InputError, out_of_memory
from .checkpoints import checkpoints


@contextlib.contextmanager
def limits_told(config: Experiment, device: torch.device, run: Path, save: Callable[[], object]) -> Iterator[None]:
    """Around the steps of a run: InputError with the settings to change, where memory or a compiler is missing.

    save: called first where memory is missing, to keep the steps before this one if it can.
    """
    try:
        yield
    except Exception as error:  # each library has its own
        if config.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            needed = ", install a C++ compiler" if device.type == "cpu" else ""
            raise InputError(f"torch could not compile the network ({first}){needed} or use --no-compile") from error
        if not out_of_memory(error):
            raise
        with contextlib.suppress(InputError, MemoryError, RuntimeError):  # it needs memory as well
            save()
        images, crops = config.batch_size // (distributed.world_size() * config.accumulate), config.data.crops
        ways = [f"a smaller {' or '.join(f'--{name}'.replace('_', '-') for name in crops)} or --batch-size"]
        sizes = " or ".join(f"{h} x {w}" for h, w in crops.values())
        if images > 1:
            ways.insert(0, f"a higher --accumulate (now {config.accumulate})")
        if config.precision == "fp32":
            ways.insert(0, "--precision bf16")
        free = "" if config.recompute or config.compile else "--recompute"  # the only one that a resumed run may change
        if free:
            ways.insert(0, free)
        saved = checkpoints(run)
        rest = f"; --resume {free}".rstrip() + f" continues from step {int(saved[-1].name)}" if saved else ""
        raise InputError(
            f"not enough memory on {device} for a step with {images} images of {sizes} pixels at once: use "
            f"{', '.join(ways[:-1])}{' or ' * (len(ways) > 1)}{ways[-1]}{rest}"
        ) from error


def require_divisible(config: Experiment) -> None:
    """InputError where a batch cannot be shared among ranks and passes, or leaves BatchNorm a single value."""
    world, passes = distributed.world_size(), config.accumulate
    share = config.batch_size // (world * passes)  # images of one pass on one rank
    if share * world * passes != config.batch_size:
        ranks = f"{world} rank{'s' * (world > 1)} x {passes} pass{'es' * (passes > 1)}"
        raise InputError(f"batch_size {config.batch_size} is not divisible by {ranks}")
    for name, crop in config.data.crops.items():
        if share == 1 and all(side <= config.model.backbone.output_stride for side in crop):
            raise InputError(
                f"BatchNorm cannot train on passes of 1 image with {name} {crop}: that is one pixel of its "
                f"feature map; use a larger batch_size or {name}"
            )
