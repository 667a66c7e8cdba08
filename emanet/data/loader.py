"""What a DataLoader's processes deliver, and how they end: at no signal but the main process's, and if they die anyway,
with a sentence."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from ..errors import InputError
from ..interrupt import SIGNALS


def delivered(loader: DataLoader) -> Iterator[Any]:
    """The loader's batches. InputError where its processes cannot be started, or one has died."""
    batches = _start(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"a process that reads samples has died, as a rule for want of memory ({error}): give fewer "
                "--data.workers, or 0 to read in the process that trains"
            ) from error
        yield batch


def end_with_main(worker: int) -> None:
    """The loaders' worker_init_fn. Terminals and schedulers signal every process, but the step that is to be finished
    still needs its batch: a worker, in which SIGNALS are held back, ends only where the main process sends one."""
    parent = multiprocessing.parent_process().pid

    def listen() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != parent:
            pass
        os._exit(0)

    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited from _start only by a fork
        threading.Thread(target=listen, daemon=True).start()


def _start(loader: DataLoader) -> Iterator[Any]:
    """iter(loader), with SIGNALS held back meanwhile, for the processes to inherit."""
    if not hasattr(signal, "pthread_sigmask"):
        return iter(loader)  # no POSIX system
    child = signal.getsignal(signal.SIGCHLD)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return iter(loader)
    except OSError as error:
        raise InputError(
            f"cannot start {loader.num_workers} processes that read samples: {error.strerror}; lower --data.workers"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        if _is_torchs(signal.getsignal(signal.SIGCHLD)) and threading.current_thread() is threading.main_thread():
            # When a worker dies it would raise wherever the main thread is. Without it, waiting for a batch finds out.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if child is None or _is_torchs(child) else child)


def _is_torchs(handler: object) -> bool:
    return getattr(handler, "__module__", "").startswith("torch.")
