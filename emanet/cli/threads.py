"""What torch reads from the environment when it is imported, chosen before that."""

import os
import sys
from pathlib import Path


def let_mac_fall_back() -> None:
    """Let torch do on the CPU what a Mac's GPU does not do, if that is the device; the user's own setting wins."""
    if sys.platform == "darwin":
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def choose_wait_policy(loadavg: Path = Path("/proc/loadavg")) -> None:
    """Make waiting OpenMP threads sleep if other work is running on this machine; the user's OMP_WAIT_POLICY wins.

    By default they spin. On a quiet machine that is 5 to 8 % faster for a small network; on a busy one they take the
    processor from the very threads that they wait for. Does nothing where there is no /proc.
    """
    try:
        running = int(loadavg.read_text().split()[3].split("/")[0])  # "0.20 0.18 0.12 1/80 11206"
    except OSError:
        return
    if running > 1:  # this process is one
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
