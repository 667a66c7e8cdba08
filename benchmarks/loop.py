"""Training's real loop against a bare loop of the same step on a batch in memory, and its ways of reading.

    python benchmarks/loop.py                        # drawn scenes, drawn as they are read: the experiment `drawn`
    python benchmarks/loop.py camvid_mobilenetv2 --data.root CAMVID --steps 8

The real loop reads, steps, logs and looks for signals, as `train` does; it neither validates nor saves within a timing.
Each way has its own loader, which is started before; time more steps than the 4 batches that a process may be ahead.
The images that `data.keep` has room for are in memory before, as from the second epoch on; `--data.keep 0`: the first.
Further flags are settings of the experiment, as for `train`.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from emanet.cli.threads import choose_wait_policy  # noqa: E402

choose_wait_policy()  # as the command does, before torch is imported

import torch  # noqa: E402
from bench import compare, machine, print_machine, print_table, write_csv  # noqa: E402

from emanet import train as training  # noqa: E402
from emanet.cli.flags import parse  # noqa: E402
from emanet.cli.train import Train  # noqa: E402
from emanet.config import Experiment  # noqa: E402
from emanet.data import loader  # noqa: E402
from emanet.experiments import load_experiment, override  # noqa: E402
from emanet.interrupt import Interruption  # noqa: E402

LONG = 1_000_000  # steps of the run: more than are ever done


def run_of(config: Experiment, folder: Path) -> tuple[training.Run, torch.nn.Module]:
    run = training.prepare(config, folder, "loop", False)
    training.restore(run)
    training.open_folder(run)
    return run, training.wrap(run)


def real(run: training.Run, step_net: torch.nn.Module, batches: Iterator[Any], steps: int) -> Callable[[], None]:
    """`steps` steps of the loop in train()."""
    interruption, unread = Interruption(), []

    def loop() -> None:
        for _ in range(steps):
            unread.append(training.step(run, step_net, next(batches), stop=bool(interruption)))
            training.after_step(run, unread, interruption)

    return loop


def measured(config: Experiment, folder: Path, steps: int, repeats: int, most: int) -> list[dict[str, Any]]:
    run, step_net = run_of(config, folder)
    batch = next(loader.training_loader(run.samples, override(config, {"data.workers": 0}), 0, 0, 1))

    def bare() -> None:
        for _ in range(steps):
            training.step(run, step_net, batch, stop=False).read()

    for index in range(len(run.samples.dataset) if config.data.keep else 0):
        run.samples.read(index)
    ways: dict[str, Callable[[], None]] = {"the same step on a batch in memory": bare}
    ahead = loader.ahead
    loader.ahead = lambda batches: batches  # type: ignore[assignment]
    plain = loader.training_loader(run.samples, override(config, {"data.workers": 0}), 0, 0, 1)
    loader.ahead = ahead
    ways["read between the steps"] = real(run, step_net, plain, steps)
    names = {0: "read by a thread, 0 workers", 1: "1 worker process"}
    for workers in (0, *(2**i for i in range(most.bit_length()))):
        name = names.get(workers, f"{workers} worker processes")
        batches = loader.training_loader(run.samples, override(config, {"data.workers": workers}), 0, 0, 1)
        ways[name] = real(run, step_net, batches, steps)
    rows = compare(ways, repeats, warmup=1, device=run.device)
    for row in rows:
        row["images/s"] = 1e3 * steps * config.batch_size / row.pop("ms")
        del row["ms_min"], row["ms_max"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default="drawn")
    parser.add_argument("--steps-timed", type=int, default=12, help="steps of one timing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="at most as many loader processes")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    given, flags = parser.parse_known_args()
    experiment = load_experiment(given.experiment)
    config = parse(Train, flags, "loop.py", default=Train(config=experiment)).config
    changes = {"steps": LONG, "save_every": LONG, "val_every": 0, "data.check": False}
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        rows = measured(override(config, changes), run, given.steps_timed, given.repeats, given.processes)
    print_machine()
    print_table(rows, f"{given.experiment}, batches of {config.batch_size}; ratio to the first line")
    if given.csv:
        write_csv(given.csv, rows, machine())


if __name__ == "__main__":
    main()
