"""Bases that are carried from frame to frame of a video, in place of the trained ones."""

import contextlib
from collections.abc import Iterator

from torch import nn

from ..emau import EMAU
from ..errors import InputError


@contextlib.contextmanager
def carried_bases(model: nn.Module) -> Iterator[None]:
    """Within it, EM starts from the bases that it ended with on the image before; on the first, from the trained ones.

    For images one at a time, by a model in eval mode, which has its trained bases again afterwards. InputError for a
    model without EMAU: one without EM attention, or one that another engine runs.
    """
    units = [module for module in model.modules() if isinstance(module, EMAU)]
    if not units:
        raise InputError("bases can only be carried by a network with EM attention, with --engine plain")
    trained = [unit.bases for unit in units]
    try:
        for unit in units:
            unit.carries = True
        yield
    finally:
        for unit, bases in zip(units, trained, strict=True):
            unit.carries, unit.bases = False, bases
