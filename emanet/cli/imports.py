"""How torch is imported by a command: once, and quickly."""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Run imports without the garbage collector, and have it pass over what they made from then on.

    An import of torch makes half a million objects that stay. The collector walks over all of them several times on the
    way, in every full collection later on, and twice when the process ends: a quarter of what `import torch` takes.
    Does nothing in a process that has torch already, which is not ours alone.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if "triton" not in sys.modules:  # it complains at the end about what the collector has passed over
            gc.freeze()
        gc.enable()
