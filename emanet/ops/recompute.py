"""Activation checkpointing (Chen et al., arXiv 1604.06174): blocks that are computed again in the backward pass.

Kept are a block's input and random state; what is inside exists twice in time and never in all blocks at once. The
gradients are the same to the bit, for about a third more time. BatchNorm's running statistics move once a pass: the
second computation has copies of them.
"""

import contextlib
import functools
from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def blocks(net: nn.Module) -> list[str]:
    """Make every block of a backbone recompute in training, in place; names of weights stay. Returns the blocks' names.

    Blocks are the outermost members of its sequences that hold two convolutions or more and are no sequence themselves:
    bottlenecks, inverted residuals and their like. Ask for it once; a deep copy made later would run the original.
    """
    found: dict[str, nn.Module] = {}
    for name, sequence in net.named_modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        for own, block in sequence.named_children():
            full = f"{name}.{own}" if name else own
            inside = any(full.startswith(f"{outer}.") for outer in found)
            convs = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in block.modules())
            if convs > 1 and not isinstance(block, nn.Sequential) and not inside:
                found[full] = block
    for block in found.values():
        block.forward = functools.partial(_recomputed, block, block.forward)
    return list(found)


def _recomputed(block: nn.Module, forward, x: Tensor) -> Tensor:
    if not block.training:
        return forward(x)
    contexts = lambda: (contextlib.nullcontext(), statistics_at_rest(block))  # noqa: E731
    return checkpoint(forward, x, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def statistics_at_rest(module: nn.Module) -> Iterator[None]:
    """Buffers are copies meanwhile, so that what changes them changes nothing for good."""
    kept = [(part, name, value) for part in module.modules() for name, value in part.named_buffers(recurse=False)]
    for part, name, value in kept:
        part._buffers[name] = value.clone()
    try:
        yield
    finally:
        for part, name, value in kept:
            part._buffers[name] = value
