"""Activation checkpointing (Chen et al., arXiv 1604.06174): blocks are computed again in the backward pass.

Only a block's input and RNG state are kept; its activations are computed twice. The gradients are the same to the bit,
and a step takes about a third longer. BatchNorm's running statistics are updated once: the second computation works on
copies of them.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def blocks(net: nn.Module) -> list[str]:
    """Make every block of a backbone recompute in training, in place. Returns the blocks' names.

    Blocks are the outermost members of nn.Sequential that contain two convolutions or more and are not sequences
    themselves: bottlenecks, inverted residuals and so on. Names of weights do not change. Call it once, and do not
    deep-copy the network afterwards: the copy's blocks would run the original's.
    """
    blocks: dict[str, nn.Module] = {}
    for name, sequence in net.named_modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        for own, block in sequence.named_children():
            full = f"{name}.{own}" if name else own
            inside = any(full.startswith(f"{outer}.") for outer in blocks)
            convs = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in block.modules())
            if convs > 1 and not isinstance(block, nn.Sequential) and not inside:
                blocks[full] = block
    for block in blocks.values():
        block.forward = functools.partial(_recomputed, block, block.forward)
    return list(blocks)


def _recomputed(block: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not block.training:
        return forward(x)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return contextlib.nullcontext(), statistics_at_rest(block)

    return checkpoint(forward, x, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def statistics_at_rest(module: nn.Module) -> Iterator[None]:
    """Replace the module's buffers by copies for the duration, so that updates to them are lost."""
    kept = [(part, name, value) for part in module.modules() for name, value in part.named_buffers(recurse=False)]
    for part, name, value in kept:
        part._buffers[name] = value.clone()
    try:
        yield
    finally:
        for part, name, value in kept:
            part._buffers[name] = value
