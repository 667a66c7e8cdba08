"""Trainings killed at random moments and resumed, against one that was left alone: what tests/test_interrupt.py runs.

    python tests/interrupted.py config.json FOLDER --kills 20 [--ranks 2] [--signal SIGTERM]

Every training is a fork of this process, so that its start takes no seconds; the signal goes to it and to its loader's
processes. With two ranks, every other time only one gets it: after SIGKILL the other has to end by itself.
Prints a JSON object a kill: after how many seconds, the checkpoints that were there, how the survivor ended, and which
tensors of the resumed run's model differ from the uninterrupted one's.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch
from forks import prepare
from safetensors.torch import load_file

from emanet import cli
from emanet.run.checkpoints import checkpoints


def start(config: str, out: Path, ranks: int) -> list[int]:
    """The ranks' process numbers; what they say goes into OUT.RANK.txt."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.setpgid(0, 0)
        if ranks > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        said = open(f"{out}.{rank}.txt", "a")
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        code = 0
        try:
            cli.main(["train", config, "--out", str(out), "--resume"])
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    return children


def wait(children: list[int]) -> list[int]:
    """Exit codes; of a killed one, minus its signal."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--signal", default="SIGKILL")
    given = parser.parse_args()
    number = signal.Signals[given.signal]
    torch.set_num_threads(1)

    prepare()
    began = time.monotonic()
    assert wait(start(given.config, given.folder / "whole", given.ranks)) == [0] * given.ranks
    took = time.monotonic() - began
    last = checkpoints(given.folder / "whole")[-1].name
    model = Path("checkpoints") / last / "model.safetensors"
    whole = load_file(given.folder / "whole" / model)

    kills = trials = 0
    while kills < given.kills:
        trials += 1
        run = given.folder / f"cut{trials}"
        survivor = given.ranks > 1 and kills % 2
        children = start(given.config, run, given.ranks)
        while survivor and not run.exists():  # before they have met, one waits half an hour for the other
            time.sleep(0.01)
        moment = random.uniform(0, took)
        time.sleep(moment)
        for child in children[1:] if survivor else children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, number)
        began = time.monotonic()
        codes = wait(children)
        ended = time.monotonic() - began
        if set(codes) == {0}:
            continue  # too late, it was done
        kills += 1
        there = [folder.name for folder in checkpoints(run)]
        said = [line for line in Path(f"{run}.0.txt").read_text().splitlines() if line.startswith("error: ")]
        resumed = wait(start(given.config, run, given.ranks))
        cut = load_file(run / model) if resumed == [0] * given.ranks else {}
        differ = [name for name in whole if name not in cut or not torch.equal(whole[name], cut[name])]
        facts = {
            "kill": kills,
            "after": round(moment, 2),
            "of": round(took, 2),
            "codes": codes,
            "ended": round(ended, 1),
        }
        facts |= {"there": there, "resumed": resumed, "differ": differ}
        print(json.dumps(facts | {"said": said}), flush=True)


if __name__ == "__main__":
    main()
