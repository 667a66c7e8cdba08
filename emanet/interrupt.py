"""SIGTERM and SIGINT ask a training to finish its step, to save and to end; a second one ends it at once."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """`with Interruption() as asked:` true once a signal has come, whose name is asked.by.

    Python hears signals in the main thread only; in another one it stays false. tell: answer on stderr.
    """

    def __init__(self, tell: bool = True):
        self.by = ""
        self._tell = tell
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.by)

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            # What is ignored stays so: a script's `train &` is not to end with the script's Ctrl-C.
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.__exit__()
        self.by = signal.Signals(number).name
        if self._tell:  # print is not to be used here: the signal may have come in the middle of one
            with contextlib.suppress(OSError):  # whoever read it may have ended at the same signal
                os.write(2, f"\n{self.by}: finishing the step, then saving; a second signal ends at once\n".encode())
