"""What the processor of this machine can do, and what follows from it: measured on AVX-512 and on AVX2.

`ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2` makes torch take a processor with AVX-512 for one with AVX2 alone.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import InputError


@contextmanager
def part_of(threads: int, at_once: int) -> Iterator[None]:
    """Torch's operations of this thread in its part of `threads`, where `at_once` work side by side; then in all."""
    torch.set_num_threads(max(1, threads // at_once))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def is_wide() -> bool:
    """Whether torch computes with AVX-512 here. What is faster with it is often slower without: docs/performance.md."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def emulates_bf16() -> bool:
    """Whether bf16 is computed in float32 here, by many small conversions: on the processors of PCs without AVX-512."""
    return platform.machine().lower() in ("x86_64", "amd64") and not is_wide()


def require_fast(precision: str, device: torch.device, force: bool) -> None:
    """InputError for a precision that this processor only emulates, unless `force`."""
    if precision == "bf16" and device.type == "cpu" and emulates_bf16() and not force:
        raise InputError(
            "bf16 is about 8 times slower than fp32 on this processor, which has no AVX-512 and emulates it; "
            "use --precision fp32, or --force if you want it all the same"
        )
