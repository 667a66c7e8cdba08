"""The tensors of a file of weights."""

from pathlib import Path

from torch import Tensor

from ..errors import InputError, some
from . import foreign


def read_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch file read without running code from it."""
    if not Path(path).is_file():
        raise InputError(f"there is no file of pretrained weights at {path}")
    try:
        content = foreign.read(Path(path))
    except InputError as error:
        reason = str(error).removeprefix(f"cannot read {Path(path)}: ").replace(str(Path(path)), "it", 1)
        raise InputError(f"cannot read weights from {path}: {reason}") from error
    _, state = foreign.weights(content, "", Path(path))
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise InputError(f"cannot read weights from {path}: {some(odd)} is not a tensor")
    return state
