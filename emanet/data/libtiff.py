"""Keeping libtiff quiet: it writes warnings and errors to stderr by itself, beside the exceptions that are reported."""

import ctypes
from contextlib import suppress


def silence(extension: str) -> None:
    """Take the error handler from the libtiff that a compiled module (its file) carries; nothing where it has none."""
    with suppress(AttributeError, OSError):
        handler = ctypes.CDLL(extension).TIFFSetErrorHandler
        handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        handler(None)
