"""Autocast off, for code that computes in float32."""

import contextlib

import torch


def no_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """Turn autocast off, on devices that have it; `meta` has none."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
