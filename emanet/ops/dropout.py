"""What a step draws, as a function of (seed, step, rank); the same draws with another number of ranks."""

import functools

import numpy as np
import torch
from torch import Tensor, nn

from .. import distributed


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a rank's generator in a step: resuming needs no generator state."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


class DrawnAsBefore:
    """Makes every nn.Dropout2d of a network draw what `ranks` ranks would have drawn, whatever their number is now.

    Each of those ranks has a generator of its own, and draws for its images of a pass. All ranks of today draw for all
    of them, in their order, and use the part that belongs to their own images. The draws are torch's own, bit for bit.
    """

    def __init__(self, net: nn.Module, ranks: int, device: torch.device):
        self.generators = [torch.Generator(device) for _ in range(ranks)]
        for module in net.modules():
            if isinstance(module, nn.Dropout2d) and module.p:
                module.forward = functools.partial(self._drop, module)  # type: ignore[method-assign]

    def start(self, seed: int, step: int) -> None:
        """Before the passes of a step."""
        for rank, generator in enumerate(self.generators):
            generator.manual_seed(step_seed(seed, step, rank))

    @torch.compiler.disable
    def _drop(self, module: nn.Dropout2d, x: Tensor) -> Tensor:
        """x (b, C, h, w): this rank's images of a pass."""
        if not module.training:
            return x
        keep, first = 1 - module.p, distributed.rank() * len(x)
        share = len(x) * distributed.world_size() // len(self.generators)
        drawn = [x.new_empty(share, x.shape[1], 1, 1).bernoulli_(keep, generator=own) for own in self.generators]
        return x * torch.cat(drawn)[first : first + len(x)].div_(keep)
