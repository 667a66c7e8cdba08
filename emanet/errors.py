"""Exceptions that the command line reports as one line, and helpers for writing that line."""

import difflib
import errno
import re
import reprlib
from collections.abc import Iterable

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


# What torch, its devices' libraries, OpenVINO and the loader of libraries say where memory is not enough.
_NO_MEMORY = re.compile(
    "can't allocate memory|annot allocate memory|not enough memory|out of memory|bad_alloc|ALLOC_FAILED|"
    "ALLOCATION_FAILURE|failed to map segment"
)


class InputError(Exception):
    """A file, key or value from the user is wrong. The message names it and says what to do."""

    exit_code = 2  # of the command


class Interrupted(Exception):
    """Stopped by a signal; progress has been saved. The message says how to resume."""

    exit_code = 75  # EX_TEMPFAIL in sysexits.h: try again


def suggest(name: str, options: Iterable[str], *, listed: bool = True) -> str:
    """The end of an error message: `; did you mean 'nearest'?`, or if none is near the options, if `listed`."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {some(options, 12)}" if options and listed else ""


def some(items: Iterable[object], limit: int = 5) -> str:
    """The first few items as text, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(str(item) for item in items[:limit]) + more


def short(value: object) -> str:
    """A value as it is written in an error message: its repr, cut to one line; it may be megabytes."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an int of more digits than Python prints
        return f"a {type(value).__name__} of too many digits"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of any library means that there was not enough memory, of the host or of a device."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    told = isinstance(error, RuntimeError | ImportError) and _NO_MEMORY.search(str(error))
    return isinstance(error, MemoryError) or bool(told)


def printable(text: str) -> str:
    """On one line and without control codes, which a file name may have and a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in utf8(text))


def utf8(text: str) -> str:
    """Without surrogates, which stand for bytes of a file name that are not UTF-8 and cannot be written as UTF-8."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
