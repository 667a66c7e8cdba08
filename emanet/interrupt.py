"""SIGTERM and SIGINT make a run finish its step, save and stop; a second signal ends it at once."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """`with Interruption() as interruption:` true once a signal has arrived; interruption.by is its name.

    Python delivers signals to the main thread only; in another thread it stays false. tell: answer on stderr.
    """

    def __init__(self, tell: bool = True):
        self.by = ""
        self._tell = tell
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.by)

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            # Ignored signals stay ignored: Ctrl-C in a script must not end the script's `train &`.
            handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.__exit__()
        self.by = signal.Signals(number).name
        if self._tell:  # not with print: the signal may have arrived in the middle of one
            with contextlib.suppress(OSError):  # the reader may have ended at the same signal
                os.write(2, f"\n{self.by}: finishing the step, then saving; a second signal ends at once\n".encode())
