"""`deterministic`: runs on one kind of GPU end with the same bits, or a sentence names the operation that does not."""

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from ..config import Experiment
from ..errors import InputError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED = (":4096:8", ":16:8")  # the two values with which cuBLAS adds in one order (CUDA's documentation of cuBLAS)


def fix_workspace(config: Experiment) -> None:
    """Set the environment variable that cuBLAS reads as it starts. InputError if that is over and it was not set."""
    if not config.deterministic or os.environ.get(WORKSPACE) in FIXED:
        return
    if torch.cuda.is_initialized():
        raise InputError(f"deterministic: set the environment variable {WORKSPACE} to {FIXED[0]} before CUDA is used")
    os.environ[WORKSPACE] = FIXED[0]


@contextlib.contextmanager
def same_bits(config: Experiment, device: torch.device) -> Iterator[None]:
    """Around the steps of a run: only operations that give the same bits every time, if config.deterministic.

    InputError with the name of one that has no such form on the device.
    """
    if not config.deterministic:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        named = re.search(r"(\S+) does not have a deterministic implementation", str(error))
        if not named:
            raise
        raise InputError(
            f"deterministic: torch's {named[1]} does not give the same bits every time on {device.type}; use "
            "--no-deterministic, or settings that do without it"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags
