"""From an empty shell to the first result: each command as a process of its own, against `import torch` alone.

    python benchmarks/start.py [--repeats 7] [--cpu-time] [--csv FILE]

Nothing is in the process yet, but the files are in the machine's cache. of_torch: how many times the time of
`import torch` in the same repeat; 1.5 is the target. --cpu-time counts the processors' time, of all threads, for a
machine that others use too.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from bench import ROOT, Row, compare, machine, print_machine, print_table, write_csv
from PIL import Image

PHOTO = ROOT / "examples" / "photos" / "crossing.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--csv", default="")
    given = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder), given.repeats, given.cpu_time)
    print_table(rows, f"one photo, {'time of the processors' if given.cpu_time else 'time on the clock'}")
    if given.csv:
        write_csv(given.csv, rows, machine())


def measured(folder: Path, repeats: int, cpu_time: bool) -> list[Row]:
    images, masks = folder / "images", folder / "masks"
    for each in (images, masks):
        each.mkdir()
    shutil.copy(PHOTO, images)
    with Image.open(PHOTO) as photo:
        Image.fromarray(np.zeros(photo.size[::-1], np.uint8)).save(masks / f"{PHOTO.stem}.png")
    emanet = [sys.executable, "-m", "emanet"]
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "emanet --help": [*emanet, "--help"],
        "predict": [*emanet, "predict", "street", str(PHOTO), "--out", str(folder / "labels")],
        "evaluate": [*emanet, "evaluate", "street", "--images", str(images), "--masks", str(masks)],
        "explain": [*emanet, "explain", "street", str(PHOTO), "--out", str(folder / "attention")],
    }
    clock = spent if cpu_time else time.perf_counter
    rows = compare({name: partial(run, command) for name, command in commands.items()}, repeats, warmup=1, clock=clock)
    for row in rows:
        fastest, slowest = row.pop("ratio_max"), row.pop("ratio_min")
        row |= {"of_torch": 1 / row.pop("ratio"), "of_torch_min": 1 / fastest, "of_torch_max": 1 / slowest}
        row["clock"] = "processors" if cpu_time else "wall"
    return rows


def run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def spent() -> float:
    """Seconds of the processors that the processes that have ended took."""
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main()
