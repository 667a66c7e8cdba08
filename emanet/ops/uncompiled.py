"""torch.compiler.disable, put off until something is compiled."""

import functools
from collections.abc import Callable
from typing import Any

import torch


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator: torch.compile leaves the function as it is, and everything that it calls.

    torch's own decorator imports the whole compiler where a function is defined, which takes as long as torch itself.
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            if not disabled:
                disabled.append(torch.compiler.disable(function))
            return disabled[0](*args, **kwargs)
        return function(*args, **kwargs)

    return call
