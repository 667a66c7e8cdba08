"""Other people's files, read without running anything from them: PyTorch's, Paddle's .pdparams, safetensors.

A pickle is a program that may call whatever it names. PyTorch's files go through torch.load(weights_only=True), which
calls only what makes tensors; others through an Unpickler that knows no function or class but the stand-ins below.
"""

import io
import math
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, some, suggest

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a PyTorch file that is no zip
MAX_PICKLE = 1 << 28  # bytes of a zip's own pickle, which holds names and sizes: the values lie beside it
MAX_STEPS = 100_000_000  # of hashing, over all tuples of a pickle: a second; a checkpoint has some 100 per tensor
MAX_MEMO = 10_000_000
LITTLE = 1 << 20  # bytes that a file's tensors may have beyond twice its own
ENTRIES = ("net", "state_dict", "model", "model_ema", "ema_state_dict", "state_dict_ema")
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
# Operations that no pickle of weights has: they copy what is on the stack, hash it, or name things by number.
STRANGE = ("DUP", "FROZENSET", "EXT1", "EXT2", "EXT4")
IN_PLACE = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD", "MEMOIZE")
ALLOCATES = ("builtins.bytearray", "__builtin__.bytearray")  # of any size; PyTorch takes it for data
# What trainings leave beside the weights: it becomes Inert. Methods come as getattr(class, name), which does nothing.
BESIDE = ("mmengine.", "mmcv.", "mmseg.", "argparse.Namespace", "builtins.getattr", "__builtin__.getattr")


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors, tables and plain values by name. Its format is told from its bytes.

    Raises InputError with the reason if it is none, is damaged or needs anything but data to be made.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() and not path.is_dir():  # a pipe would be waited for
            raise InputError(f"cannot read {path}: it is no file")
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        # First, since the length that it begins with may have any bytes, those of the others too.
        if start[8:9] == b"{" and 8 + int.from_bytes(start[:8], "little") <= size:
            from safetensors.torch import load_file

            content = load_file(path)
        elif start.startswith(b"PK\x03\x04"):
            content = _read_torch(path, _zip_pickle(path))
        elif start.startswith(b"\x80") and _is_legacy_torch(start):
            with open(path, "rb") as file:
                content = _read_torch(path, file, pickles=5)
        elif start.startswith(b"\x80"):
            content = _read_pickle(path, size)
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
    _require_real(content, path, size)
    return content


def weights(content: Mapping[str, Any], entry: str, path: Path) -> tuple[str, dict[str, Any]]:
    """The table of weights in a file's content and its name there, empty for the content itself.

    Without the `module.` of DataParallel and of averaged models, and without the latter's counter.
    """
    tables = [name for name, value in content.items() if isinstance(value, Mapping)]
    if entry and entry not in tables:
        raise InputError(f"{path} has no table {entry!r}{suggest(entry, tables)}")
    entry = entry or next((name for name in ENTRIES if name in tables), "")
    state = dict(content[entry] if entry else content)
    if not state or not all(isinstance(key, str) for key in state):
        raise InputError(f"{path} holds no table of weights by name")
    inner = {key.removeprefix("module."): value for key, value in state.items() if key.startswith("module.")}
    counters = [key for key in state if key in ("steps", "n_averaged")]  # mmengine's, PyTorch's
    return entry, inner if inner and len(inner) + len(counters) == len(state) else state


def tables(content: Mapping[str, Any], entry: str) -> list[tuple[str, str, str]]:
    """Rows on which table of a file was taken, where it has several, and what else there is."""
    left = [name for name in content if entry and name != entry]
    other = [name for name in left if name in ENTRIES and isinstance(content[name], Mapping)]
    rows = [("weights", entry, f"or --entry {other[0]}")] if other else []
    left = [name for name in left if name not in other]
    return rows + ([("not used", some(left, 2), "no weights")] if left else [])


def _require_real(content: Any, path: Path, size: int) -> None:
    """Every tensor is plain, and its values lie in the file: a few bytes can claim to be as many as they like."""
    total, seen, waiting = 0, set(), [("", content)]
    while waiting:
        name, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += [(key if isinstance(key, str) else name, item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(name, item) for item in value]
        elif isinstance(value, Tensor):
            if value.is_meta or value.is_quantized or value.is_nested or value.layout != torch.strided:
                kind = "meta" if value.is_meta else "quantised" if value.is_quantized else "sparse"
                raise InputError(f"{name} in {path} is a {kind} tensor, not a plain one")
            claimed = value.numel() * value.element_size()
            if claimed > value.untyped_storage().nbytes():
                raise InputError(f"{name} in {path} repeats its values, as no weight does: save a copy of it")
            total += claimed
    if total > 2 * size + LITTLE:
        raise InputError(f"{path} has {size} bytes, but its tensors claim {total}")


def _reason(error: Exception) -> str:
    """A library's message down to its first clause."""
    first = (str(error).splitlines() or [""])[0].split(". ")[0].rstrip(".") or type(error).__name__
    slips = (AttributeError, LookupError, TypeError, UnicodeError, EOFError, OSError, struct.error)  # of its reader
    return f"it is damaged ({first})" if isinstance(error, slips) else first


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
        # PyTorch finds entries in either case.
        inner = [entry for entry in entries if entry.filename.rsplit("/", 1)[-1].lower() == "data.pkl"]
        if len(inner) != 1:
            raise InputError(f"{path} is a zip, but not one of PyTorch's")
        if inner[0].file_size > MAX_PICKLE or sum(e.file_size for e in entries) > path.stat().st_size:
            raise InputError(f"{path} is compressed or larger inside than out, as no file of PyTorch's is")
        damaged = archive.testzip()
        if damaged:
            raise InputError(f"{path} is damaged, or was saved without checksums: {damaged} does not match its own")
        return io.BytesIO(archive.read(inner[0]))


def _read_torch(path: Path, file: IO[bytes], pickles: int = 1) -> Any:
    """Whatever lies beside the weights and is of a class known by name only becomes Inert."""
    names = {name for _ in range(pickles) for name in _scan(file)}
    if names.intersection(ALLOCATES):
        raise InputError(_refusal(path, ["builtins.bytearray"]))
    numbers = {name: stand_in for name, stand_in in NUMPY.items() if name in names}
    other = {name: type(name, (Inert,), {}) for name in names if name.startswith(BESIDE)}
    allowed = [(stand_in, name.replace("__builtin__", "builtins")) for name, stand_in in (numbers | other).items()]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old protocols are no concern of who has the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = str(error)
        culprits = [name for name in names if f" {name.removeprefix('__builtin__.')} " in said]
        culprits = culprits or sorted(name for name in names if not name.startswith(("torch", "collections", *BESIDE)))
        raise InputError(_refusal(path, culprits)) from error


def _refusal(path: Path, names: Sequence[str]) -> str:
    what = f"it needs {some(names)}, which is code and not data" if names else "its pickle does more than hold data"
    return f"{path} is refused, and nothing in it was run: {what}"


def _read_pickle(path: Path, size: int) -> Any:
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
    total = 0
    for key, value in content.items():
        if isinstance(value, Array):
            content[key] = torch.from_numpy(value.value())
            total += content[key].nbytes
        if total > 2 * size + LITTLE:
            raise InputError(f"{path} has {size} bytes, but its arrays claim more than {total}")
    return content


def _scan(file: IO[bytes]) -> set[str]:
    """The names that the next pickle of a file refers to, read but not run; ValueError for one that is no data.

    Names put together on the stack (protocol 4) are missing: find_class sees them, and weights_only takes none.
    Hashing a tuple takes as many steps as it has parts, in all levels and counted anew wherever one is shared, so that
    a hundred bytes can hold 2^45 of them. The stack is followed, as in pickletools.dis, to count them beforehand.
    """
    names: set[str] = set()
    stack: list[int | None] = []  # steps that hashing each value takes, at most; None is a mark
    memo: dict[int, int | None] = {}
    steps = 0
    for operation, value, _ in pickletools.genops(file):
        name, before = operation.name, operation.stack_before
        if name in STRANGE:
            raise ValueError("its pickle is not one of weights")
        if name == "GLOBAL":
            names.add(value.replace(" ", "."))
        if name.endswith("PUT"):
            if int(value) > MAX_MEMO:
                raise ValueError("its pickle asks for more memory than weights need")
            memo[int(value)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        parts: list[int | None] = []
        count = len(before)
        if pickletools.markobject in before:
            count = before.index(pickletools.markobject)
            while (part := stack.pop()) is not None:
                parts.append(part)
        parts += [stack.pop() for _ in range(count)]
        made: int | None = 1
        if name.startswith("TUPLE"):
            made = 1 + sum(part or 0 for part in parts)
        elif name.endswith("GET"):
            made = memo[int(value)]
        elif name in IN_PLACE:
            made = parts[-1]
        elif name == "MARK":
            made = None
        elif isinstance(value, str | bytes | bytearray):
            made = 1 + len(value) // 100
        stack += [made] * len(operation.stack_after)
        steps += (made or 0) if name.startswith("TUPLE") or name.endswith("GET") else 0
        if steps > MAX_STEPS:
            raise ValueError("its pickle nests or repeats tuples as no weights do")
    return names
