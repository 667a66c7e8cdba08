"""Exceptions that the command line reports as one line, and helpers for writing that line."""

import difflib
import reprlib
from collections.abc import Iterable

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


class InputError(Exception):
    """A file, key or value from the user is wrong. The message names it and says what to do."""

    exit_code = 2  # of the command


class Interrupted(Exception):
    """Stopped by a signal; progress has been saved. The message says how to resume."""

    exit_code = 75  # EX_TEMPFAIL in sysexits.h: try again


def suggest(name: str, options: Iterable[str]) -> str:
    """The end of an error message: `; did you mean 'nearest'?`, or the options if none is near."""
    options = sorted(options)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {some(options, 12)}" if options else ""


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
