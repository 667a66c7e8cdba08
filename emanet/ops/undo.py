"""Buffers as they were before a step, so that a step that is not finite can be undone without asking the device."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class BufferUndo:
    """`keep()` before a step, `undo(where)` after it. Covers the buffers of all modules in training mode.

    The copies of one dtype are views of one flat tensor, so that the number of kernels does not grow with the network.
    """

    def __init__(self, net: nn.Module):
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for module in net.modules():
            if module.training:  # a module in eval mode leaves its buffers alone
                for buffer in module.buffers(recurse=False):
                    by_dtype.setdefault(buffer.dtype, []).append(buffer)
        self._groups: list[tuple[list[Tensor], Tensor, list[Tensor]]] = []  # buffers, flat, copies: views of flat
        for buffers in by_dtype.values():
            sizes = [buffer.numel() for buffer in buffers]
            flat = buffers[0].new_empty(sum(sizes))
            copies = [part.view_as(buffer) for part, buffer in zip(flat.split(sizes), buffers, strict=True)]
            self._groups.append((buffers, flat, copies))
        self.undone = False
        self._may_look = all(flat.is_cpu for _, flat, _ in self._groups)  # there the value of `where` is ready

    def keep(self) -> None:
        for buffers, _, copies in self._groups:
            torch._foreach_copy_(copies, buffers)

    @contextlib.contextmanager
    def on_error(self) -> Iterator[None]:
        """Around what a step computes before it changes the weights: an error leaves the buffers as `keep` found them.

        `undone` then tells that the network is what it was before the step.
        """
        try:
            yield
        except Exception:
            for buffers, _, copies in self._groups:
                torch._foreach_copy_(buffers, copies)
            self.undone = True
            raise

    def undo(self, where: Tensor) -> None:
        """Restore every buffer if the bool scalar `where` is true. Nothing waits for its value."""
        if self._may_look and not where:
            return
        for buffers, flat, copies in self._groups:
            now = torch.cat([buffer.flatten() for buffer in buffers])
            torch.where(where, flat, now, out=flat)
            torch._foreach_copy_(buffers, copies)
