"""Other people's files, read without running anything from them: PyTorch's, Paddle's .pdparams, safetensors.

A pickle is a program that may call whatever it names. PyTorch's files go through torch.load(weights_only=True), which
calls only what makes tensors; others through an Unpickler that knows no function or class but the stand-ins below.
"""

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from .errors import InputError, some

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a PyTorch file that is no zip
MAX_PICKLE = 1 << 28  # bytes of a zip's own pickle, which holds names and sizes: the values lie beside it
MAX_TUPLES = 50_000  # a checkpoint has about ten per tensor; nested ones would overflow the stack when hashed
MAX_MEMO = 10_000_000
NUMPY_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


class Inert:
    """Stands for an object of a class that is not here: takes whatever the file has for it, and does nothing."""

    def __new__(cls, *arguments, **named):
        return object.__new__(cls)

    def __init__(self, *arguments, **named):
        pass

    def __setstate__(self, state):
        """Present in every stand-in, so that no pickle can set attributes."""


class Kind(Inert):
    """Stands for numpy.dtype, of plain numbers in the usual byte order."""

    def __init__(self, code, *arguments):
        self.code = code

    def __setstate__(self, state):
        if state[1] not in ("<", "|", "="):
            raise pickle.UnpicklingError("an array has another byte order")


class Array(Inert):
    """Stands for numpy.ndarray and for the function that numpy's pickles make one with."""

    state: tuple = ()

    def __setstate__(self, state):
        self.state = state

    def value(self) -> np.ndarray:
        """The array itself, checked; ValueError if what the file says of it does not agree."""
        _, shape, kind, fortran, raw = self.state
        if not isinstance(kind, Kind) or kind.code not in NUMPY_KINDS or not isinstance(raw, bytes):
            raise ValueError("an array of other things than numbers")
        if math.prod(shape) * np.dtype(kind.code).itemsize != len(raw) or any(side < 0 for side in shape):
            raise ValueError("an array of another size than its values")
        return np.frombuffer(raw, f"<{kind.code}").reshape(shape, order="F" if fortran else "C").copy()


class Encode(Inert):
    """Stands for _codecs.encode, as pickles of protocol 2 spell bytes."""

    def __new__(cls, text, encoding="latin1"):
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
        return str.encode(text, "latin1")


class Table(dict):
    """Stands for OrderedDict; attributes that a pickle gives it are dropped."""

    def __setstate__(self, state):
        pass


NUMPY = {
    f"{module}.{name}": stand_in
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    for name, stand_in in {"ndarray": Array, "_reconstruct": Array, "dtype": Kind, "scalar": Inert}.items()
}
PLAIN = NUMPY | {"collections.OrderedDict": Table, "_codecs.encode": Encode}
# What trainings leave beside the weights: it becomes Inert. Methods come as getattr(class, name), which does nothing.
BESIDE = ("mmengine.", "mmcv.", "mmseg.", "argparse.Namespace", "builtins.getattr", "__builtin__.getattr")


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors, tables and plain values by name. Its format is told from its bytes.

    Raises InputError with the reason if it is none, is damaged or needs anything but data to be made.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        if start.startswith(b"PK\x03\x04"):
            content = _read_torch(path, _zip_pickle(path))
        elif start.startswith(b"\x80") and _is_legacy_torch(start):
            with open(path, "rb") as file:
                content = _read_torch(path, file, pickles=4)
        elif start.startswith(b"\x80"):
            content = _read_pickle(path)
        elif start[8:9] == b"{" and 8 + int.from_bytes(start[:8], "little") <= size:
            from safetensors.torch import load_file

            content = load_file(path)
        elif start[257:262] == b"ustar":
            raise InputError(
                f"{path} is a .tar: unpack it first, or, if PyTorch wrote it before 2017, save it anew with a later one"
            )
        else:
            raise InputError(f"{path} is no checkpoint: neither PyTorch's, nor Paddle's, nor safetensors")
    except InputError:
        raise
    except Exception as error:  # each format has its own errors, and damaged files have any
        raise InputError(f"cannot read {path}: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no table of weights but a {type(content).__name__}")
    return content


def _reason(error: Exception) -> str:
    """A library's message down to its first clause."""
    first = (str(error).splitlines() or [""])[0].split(". ")[0].rstrip(".")
    return first or type(error).__name__


def _is_legacy_torch(start: bytes) -> bool:
    try:
        return any(value == TORCH_MAGIC for _, value, _ in pickletools.genops(io.BytesIO(start)))
    except ValueError:  # the pickle is longer than `start`: PyTorch's first one is not
        return False


def _zip_pickle(path: Path) -> IO[bytes]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any("/code/" in entry.filename for entry in entries):
            raise InputError(f"{path} is a TorchScript archive, which is code: save its state_dict() instead")
        inner = [entry for entry in entries if entry.filename.rsplit("/", 1)[-1] == "data.pkl"]
        if len(inner) != 1:
            raise InputError(f"{path} is a zip, but not one of PyTorch's")
        if inner[0].file_size > MAX_PICKLE or sum(e.file_size for e in entries) > path.stat().st_size:
            raise InputError(f"{path} is compressed or larger inside than out, as no file of PyTorch's is")
        return io.BytesIO(archive.read(inner[0]))


def _read_torch(path: Path, file: IO[bytes], pickles: int = 1) -> Any:
    """Whatever lies beside the weights and is of a class known by name only becomes Inert."""
    names = {name for _ in range(pickles) for name in _scan(file)}
    numbers = {name: stand_in for name, stand_in in NUMPY.items() if name in names}
    other = {name: type(name, (Inert,), {}) for name in names if name.startswith(BESIDE)}
    allowed = [(stand_in, name.replace("__builtin__", "builtins")) for name, stand_in in (numbers | other).items()]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = str(error)
        culprits = [name for name in names if f" {name.removeprefix('__builtin__.')} " in said]
        culprits = culprits or sorted(name for name in names if not name.startswith(("torch", "collections", *BESIDE)))
        raise InputError(_refusal(path, culprits)) from error


def _refusal(path: Path, names: Sequence[str]) -> str:
    what = f"it needs {some(names)}, which is code and not data" if names else "its pickle does more than hold data"
    return f"{path} is refused, and nothing in it was run: {what}"


def _read_pickle(path: Path) -> Any:
    data = path.read_bytes()
    _scan(io.BytesIO(data))

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}"
            if full not in PLAIN:
                raise InputError(_refusal(path, [full]))
            return PLAIN[full]

    content = Restricted(io.BytesIO(data)).load()
    if not isinstance(content, dict):
        return content
    return {key: torch.from_numpy(v.value()) if isinstance(v, Array) else v for key, v in content.items()}


def _scan(file: IO[bytes]) -> set[str]:
    """The names that the next pickle of a file refers to, read but not run; ValueError for one that is no data.

    Names put together on the stack (protocol 4) are missing: find_class sees them, and weights_only takes none.
    """
    names: set[str] = set()
    tuples = 0
    for operation, value, _ in pickletools.genops(file):
        tuples += operation.name.startswith("TUPLE")
        if operation.name == "GLOBAL":
            names.add(value.replace(" ", "."))
        elif operation.name.startswith("EXT") or tuples > MAX_TUPLES:
            raise ValueError("its pickle is not one of weights")
        elif operation.name.endswith("PUT") and int(value) > MAX_MEMO:
            raise ValueError("its pickle asks for more memory than weights need")
    return names
