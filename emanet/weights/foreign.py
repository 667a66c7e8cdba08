"""Read other people's checkpoints without running anything in them: PyTorch's, Paddle's .pdparams, safetensors.

A pickle is a program: it can call any function that it names. PyTorch files go through torch.load(weights_only=True),
which only calls what makes tensors. Other pickles go through an Unpickler that knows nothing but the stand-ins below.
"""

import io
import math
import pickle
import pickletools
import struct
import sys
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, some, suggest
from ..experiments import utf8_name, what_instead

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a PyTorch file from before the zip format
MAX_PICKLE = 1 << 28  # bytes; the pickle in a zip holds names and sizes only, the values are entries of their own
MAX_NESTED = 50_000  # values within a tuple, shared ones counted each time: as many are visited to hash it as a key
MAX_MEMO = 10_000_000  # a pickle can ask for a memo of any size, which is allocated at once
SLACK = 1 << 20  # bytes that the tensors of a file may have beyond twice its size
ENTRIES = (
    "net", "state_dict", "model", "model_state_dict", "model_state", "network", "weights", "params",
    "model_ema", "ema_state_dict", "state_dict_ema", "ema_model_state_dict", "params_ema", "ema",
)  # fmt: skip
COUNTERS = ("steps", "n_averaged")  # of averaged models, beside their weights: mmengine's, PyTorch's
# What wraps a network puts its own name before every key: torch.compile, DataParallel, Lightning and other trainers.
WRAPPERS = ("_orig_mod.", "module.", "model.", "net.", "network.", "_forward_module.", "backbone.", "encoder.")
NUMPY_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


class Inert:
    """Stands for an object of an unknown class: accepts any arguments and does nothing."""

    def __new__(cls, *arguments, **named):
        return object.__new__(cls)

    def __init__(self, *arguments, **named):
        pass

    def __setstate__(self, state):
        """Defined in every stand-in, so that no pickle can set attributes."""


class Kind(Inert):
    """Stands for numpy.dtype: plain numbers, little-endian."""

    def __init__(self, code, *arguments):
        self.code = code

    def __setstate__(self, state):
        if state[1] not in ("<", "|", "="):
            raise pickle.UnpicklingError("an array is not little-endian")


class Array(Inert):
    """Stands for numpy.ndarray and for the function that makes one in numpy's pickles."""

    state: tuple = ()

    def __setstate__(self, state):
        self.state = state

    def value(self) -> np.ndarray:
        """The array, checked; ValueError if shape, dtype and bytes do not agree."""
        _, shape, kind, fortran, raw = self.state
        if not isinstance(kind, Kind) or kind.code not in NUMPY_KINDS or not isinstance(raw, bytes):
            raise ValueError("an array does not hold numbers")
        if math.prod(shape) * np.dtype(kind.code).itemsize != len(raw) or any(side < 0 for side in shape):
            raise ValueError("an array's shape does not match its bytes")
        return np.frombuffer(raw, f"<{kind.code}").reshape(shape, order="F" if fortran else "C").copy()


class Encode(Inert):
    """Stands for _codecs.encode: pickles of protocol 2 write bytes with it."""

    def __new__(cls, text, encoding="latin1"):
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}")
        return str.encode(text, "latin1")


class Table(dict):
    """Stands for OrderedDict; attributes set by a pickle are dropped."""

    def __setstate__(self, state):
        pass


class Default:
    """Stands for defaultdict and other classes of dicts: one that torch.load fills and sets attributes of."""

    def __new__(cls, *arguments):
        return OrderedDict()


class Items:
    """Stands for deque and for other classes of lists: a plain list, which is all that torch.load appends to."""

    def __new__(cls, *arguments):
        return []


NUMPY = {
    f"{module}.{name}": stand_in
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    for name, stand_in in {"ndarray": Array, "_reconstruct": Array, "dtype": Kind, "scalar": Inert}.items()
}
PLAIN = NUMPY | {"collections.OrderedDict": Table, "_codecs.encode": Encode}
ALLOCATES = ("builtins.bytearray", "__builtin__.bytearray")  # any number of bytes; weights_only allows it
# Objects that trainers save beside the weights become Inert, which runs nothing: those of any installed or own package,
# and these of the standard library. Methods are saved as getattr(class, name).
HARMLESS = (
    "argparse.Namespace", "types.SimpleNamespace", "pathlib.", "datetime.", "decimal.", "fractions.", "uuid.", "enum.",
    "collections.", "functools.partial", "__main__.", "copyreg._reconstructor", "copy_reg._reconstructor",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in (
        "getattr", "set", "frozenset", "slice", "complex", "range", "object", "list", "dict", "tuple", "int", "float",
        "str", "bool", "bytes",
    )),
)  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors, tables and plain values by name. The format is detected from the bytes.

    Raises InputError if the file is not a checkpoint, is damaged, or would have to run code.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() and not path.is_dir():  # reading a pipe would block
            raise InputError(f"cannot read {path}: not a regular file")
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    try:
        # Safetensors first: it begins with a length, whose bytes may look like any other format's magic number.
        if start[8:9] == b"{" and 8 + int.from_bytes(start[:8], "little") <= size:
            from safetensors.torch import load_file

            with utf8_name(path) as name:
                content = load_file(name)
        elif start.startswith(b"PK\x03\x04"):
            content = _read_torch(path, _zip_pickle(path))
        elif start.startswith(b"\x80") and _is_legacy_torch(start):
            with open(path, "rb") as file:
                content = _read_torch(path, file, pickles=5)
        elif start.startswith(b"\x80"):
            content = _read_pickle(path, size)
        elif start[257:262] == b"ustar":
            raise InputError(
                f"{path} is a .tar: unpack it, or save it again with a PyTorch newer than 2017 if it is a checkpoint"
            )
        else:
            raise InputError(what_instead(path) or f"{path} is not a checkpoint of PyTorch, Paddle or safetensors")
    except InputError:
        raise
    except Exception as error:  # each format has its own errors, and a damaged file can raise any
        raise InputError(f"cannot read {path}: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a table of weights")
    _require_real(content, path, size)
    return content


def weights(content: Mapping[str, Any], entry: str, path: Path) -> tuple[str, dict[str, Any]]:
    """The name and content of the table of weights in a file; the name is empty if the file itself is the table.

    Without an entry of a known name it is the only table of tensors. The counters of averaged models are left out.
    """
    inner = [name for name, value in content.items() if isinstance(value, Mapping)]
    if entry and entry not in inner:
        raise InputError(f"{path} has no table {entry!r}{suggest(entry, inner)}")
    holding = [name for name in inner if _tensors(content[name])]
    only = holding[0] if len(holding) == 1 and _tensors(content[holding[0]]) > _tensors(content) else ""
    entry = entry or next((name for name in ENTRIES if name in holding), only)
    state = dict(content[entry] if entry else content)
    if not _tensors(state):  # tables within tables
        nested = [name for name, value in state.items() if isinstance(value, Mapping)]
        if not entry and len(nested) == 1:
            inside, state = weights(state[nested[0]], "", path)
            return f"{nested[0]}.{inside}".rstrip("."), state
        if nested:
            raise InputError(f"{path} has tables {some(nested)}: name the one of weights to convert, as its entry")
    if not state or not all(isinstance(key, str) for key in state):
        raise InputError(f"{path} does not hold weights by name")
    own = {key: value for key, value in state.items() if key not in COUNTERS}
    return entry, own if own and all(key.startswith("module.") for key in own) else state


def _tensors(table: Mapping[str, Any]) -> int:
    return sum(isinstance(value, Tensor) for value in table.values())


def unwrapped(state: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The prefix that was removed, and the table without it: first none, then one more of WRAPPERS each time."""
    removed, inner = "", dict(state)
    yield removed, inner
    while wrapper := next((each for each in WRAPPERS if inner and all(key.startswith(each) for key in inner)), ""):
        removed, inner = removed + wrapper, {key.removeprefix(wrapper): value for key, value in inner.items()}
        yield removed, inner


def part(state: Mapping[str, Any], prefix: str, path: Path) -> dict[str, Any]:
    """The values whose keys begin with a prefix, without it. InputError, with the first parts there are, for none."""
    inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not inner:
        firsts = Counter(f"{key.partition('.')[0]}." for key in state)
        raise InputError(f"no key of {path} begins with {prefix!r}; they begin with {some(firsts)}")
    return inner


def tables(content: Mapping[str, Any], entry: str) -> list[tuple[str, str, str]]:
    """What to tell the user: which table was used if there are several, and what was not used."""
    left = [name for name in content if entry and name not in (entry, entry.partition(".")[0])]
    other = [name for name in left if name in ENTRIES and isinstance(content[name], Mapping)]
    rows = [("weights", entry, f"or --entry {other[0]}")] if other else []
    left = [name for name in left if name not in other]
    return rows + ([("not used", some(left, 2), "not weights")] if left else [])


def _require_real(content: Any, path: Path, size: int) -> None:
    """InputError unless every tensor is plain and its values are in the file: few bytes can claim any size."""
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
                raise InputError(f"{name} in {path} is an expanded view of fewer values: save it with .clone()")
            total += claimed
    if total > 2 * size + SLACK:
        raise InputError(f"{path} has {size} bytes, but its tensors claim {total}")


def _reason(error: Exception) -> str:
    """The first clause of a library's message."""
    first = (str(error).splitlines() or [""])[0].split(". ")[0].rstrip(".") or type(error).__name__
    slips = (
        AttributeError,
        LookupError,
        TypeError,
        UnicodeError,
        EOFError,
        OSError,
        struct.error,
    )  # errors inside the reader
    return f"it is damaged ({first})" if isinstance(error, slips) else first


def _is_legacy_torch(start: bytes) -> bool:
    try:
        return any(value == TORCH_MAGIC for _, value, _ in pickletools.genops(io.BytesIO(start)))
    except ValueError:  # this pickle is longer than `start`, and PyTorch's first one never is
        return False


def _zip_pickle(path: Path) -> IO[bytes]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any("/code/" in entry.filename for entry in entries):
            raise InputError(f"{path} is a TorchScript archive, which is code: save its state_dict() instead")
        # PyTorch ignores the case of entry names.
        inner = [entry for entry in entries if entry.filename.rsplit("/", 1)[-1].lower() == "data.pkl"]
        if len(inner) != 1:
            raise InputError(f"{path} is a zip file, but PyTorch did not write it")
        if inner[0].file_size > MAX_PICKLE or sum(e.file_size for e in entries) > path.stat().st_size:
            raise InputError(f"{path} is a compressed zip file, which PyTorch never writes")
        damaged = archive.testzip()
        if damaged:
            raise InputError(f"{path} is damaged, or was saved without checksums: checksum mismatch in {damaged}")
        return io.BytesIO(archive.read(inner[0]))


def _read_torch(path: Path, file: IO[bytes], pickles: int = 1) -> Any:
    """torch.load with weights_only; harmless objects become Inert."""
    names = {name for _ in range(pickles) for name in _scan(file)}
    if names.intersection(ALLOCATES):
        raise InputError(_refusal(path, ["builtins.bytearray"]))
    numbers = {name: stand_in for name, stand_in in NUMPY.items() if name in names}
    other: dict[str, type] = {name: type(name, (Inert,), {}) for name in names if _is_harmless(name)}
    other |= {name: type(name, (Default,), {}) for name in names if name == "collections.defaultdict"}
    allowed: list[Any]
    try:
        for _ in range(len(other) + 1):
            allowed = [(each, name.replace("__builtin__", "builtins")) for name, each in (numbers | other).items()]
            try:
                with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about old formats, which the user cannot change
                    return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:  # an Inert that is filled is a list or a dict of its own class
                filled = [name for name, each in other.items() if issubclass(each, Inert) and f".{name}'" in str(error)]
                if not filled or not any(word in str(error) for word in ("append", "extend", "SETITEM")):
                    raise
                stand_in = Default if "SETITEM" in str(error) else Items
                other |= {name: type(name, (stand_in,), {}) for name in filled}
        raise AssertionError("each round replaces a stand-in")
    except pickle.UnpicklingError as error:
        said = str(error)
        culprits = [name for name in names if f"GLOBAL {name.removeprefix('__builtin__.')} was" in said]
        known = (*PLAIN, "collections.defaultdict", "collections.Counter")
        own = (name for name in names if not (name in known or name.startswith("torch") or _is_harmless(name)))
        culprits = culprits or [name for name in other if f".{name}'" in said] or sorted(own)
        raise InputError(_refusal(path, culprits)) from error


def _is_harmless(name: str) -> bool:
    """Whether objects of this class may stand beside weights: not those of torch, which torch.load judges itself."""
    top = name.partition(".")[0]
    if name in PLAIN or top == "torch" or name in ("collections.OrderedDict", "collections.Counter"):
        return False
    known = top in sys.stdlib_module_names or top in ("__builtin__", "copy_reg", "__main__")
    return name.startswith(HARMLESS) if known else True


def _refusal(path: Path, names: Sequence[str]) -> str:
    what = f"it needs {some(names)}, which is code, not data" if names else "its pickle does more than hold data"
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
        if total > 2 * size + SLACK:
            raise InputError(f"{path} has {size} bytes, but its arrays claim more than {total}")
    return content


def _scan(file: IO[bytes]) -> set[str]:
    """The names that the next pickle of a file refers to, read but not run.

    Names put together on the stack (protocol 4) are missing: find_class sees them, and weights_only refuses them.
    """
    names: set[str] = set()
    stack: list[int] = []  # how many values each object holds, as far as they are hashed with it; 0 for a mark
    memo: dict[int, int] = {}
    argument: Any
    for operation, argument, _ in pickletools.genops(file):
        name = operation.name
        if name == "GLOBAL":
            names.add(argument.replace(" ", "."))
        if name == "DUP":
            stack.append(stack[-1])
        elif name.endswith("GET"):
            stack.append(memo[int(argument)])
        elif name == "MEMOIZE" or name.endswith("PUT"):
            place = len(memo) if argument is None else int(argument)
            if place > MAX_MEMO:
                raise ValueError("its pickle is larger than weights need")
            memo[place] = stack[-1]
        else:
            before, taken = list(operation.stack_before), []
            if pickletools.markobject in before:
                while held := stack.pop():
                    taken.append(held)
                before = before[: before.index(pickletools.markobject)]
            taken += [stack.pop() for _ in before]
            held = 1 + sum(taken) * (name.startswith("TUPLE") or name in ("REDUCE", "NEWOBJ", "FROZENSET"))
            if held > MAX_NESTED:
                raise ValueError("its pickle nests more than weights need")
            stack += [0 if kind is pickletools.markobject else held for kind in operation.stack_after]
    return names
