"""What every benchmark shares: which machine, fair timing, the table and the CSV.

    from bench import compare, machine, print_table, write_csv

    rows = compare({"plain": lambda: f(x), "ours": lambda: g(x)}, repeats=20)
    print_table(rows)
    write_csv("figures.csv", rows, machine())

A figure without its surroundings says nothing: print `machine()` above every table. Timings on a shared machine drift,
so the callables take turns within each repeat, and the ratio is taken within a repeat before any median.
"""

import csv
import datetime
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
Row = dict[str, Any]
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}  # a processor without AVX-512, for torch


def machine() -> dict[str, str]:
    """Processor, GPU, versions, date, commit and command, as text."""
    found = {"date": datetime.date.today().isoformat(), "commit": _commit()}
    found["command"] = shlex.join(map(_shown, sys.argv))
    found["processor"] = f"{_processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    found["versions"] = f"Python {platform.python_version()}, torch {torch.__version__}"
    return found


def compare(
    callables: Mapping[str, Callable[[], object]],
    repeats: int = 20,
    *,
    calls: int = 1,
    warmup: int = 2,
    device: str | torch.device = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Time callables by turns: a row each, with median, min, max in milliseconds per call, and the ratio to the first.

    ratio: the first one's time over this one's in the same repeat, so more than 1 is faster; median, min, max over the
    repeats. calls: how often a callable runs within one timing; more for those of microseconds. Every other repeat goes
    through them backwards, so that none always follows the same one. CUDA is waited for at both ends of a timing.
    clock: time.process_time counts this process's CPU time, for a processor that others use too; one thread only.
    """
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    for run in callables.values():
        for _ in range(warmup):
            run()
    times: dict[str, list[float]] = {name: [] for name in callables}
    for repeat in range(repeats):
        for name in list(callables)[:: -1 if repeat % 2 else 1]:
            wait()
            start = clock()
            for _ in range(calls):
                callables[name]()
            wait()
            times[name].append((clock() - start) / calls * 1e3)
    first = next(iter(times.values()))
    rows = []
    for name, taken in times.items():
        ratios = [base / own for base, own in zip(first, taken, strict=True)]
        rows.append({"name": name, "repeats": repeats} | _spread("ms", taken) | _spread("ratio", ratios))
    return rows


def both_kinds(rows: Sequence[Row]) -> list[Row]:
    """The rows, and those of this same program where torch may use AVX2 alone; a column `cpu` tells them apart.

    The program must take --csv. OpenVINO has a oneDNN of its own, which may not obey.
    """
    kind = torch.backends.cpu.get_cpu_capability().lower()
    marked = [{"cpu": kind, **row} for row in rows]
    if kind != "avx512":
        return marked
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "avx2.csv"
        command = [sys.executable, *sys.argv, "--csv", str(file)]
        subprocess.run(command, env=os.environ | AVX2, check=True)
        with open(file, newline="", encoding="utf-8") as text:
            return marked + [{name: row[name] for name in marked[0]} for row in csv.DictReader(text)]


def print_table(rows: Sequence[Row], title: str = "") -> None:
    """Rows of the same keys as aligned columns; floats with four significant digits."""
    texts = [list(rows[0])]
    texts += [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    if title:
        print(f"\n{title}")
    for line in texts:
        cells = [
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def print_machine() -> None:
    print("\n".join(f"{name}: {value}" for name, value in machine().items()))


def write_csv(file: str | Path, rows: Sequence[Row], where: Mapping[str, str]) -> None:
    """Rows of the same keys, each followed by the machine's."""
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, [*rows[0], *where])
        writer.writeheader()
        writer.writerows({**row, **where} for row in rows)


def _shown(argument: str) -> str:
    """An argument as it is for anybody: of an absolute path what is below the repository, or else its name."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """The commit's short hash, with a + where the tree has changes of its own; - outside a repository."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True
    )
    return done.stdout.strip() or "-"
