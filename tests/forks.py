"""Programs in processes of their own that need not import torch first: they are forks of a process that has.

The tests talk to it by lines of JSON: it forks once for each process of a job, and answers with their exit codes. It
computes nothing itself, so it has no threads; a fork of pytest's own process could not run backward().
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LATE = (
    "emanet.cli.train",
    "emanet.train",
    "emanet.analysis.score",
    "torch.utils.tensorboard",
    "matplotlib.backends.backend_agg",
)


def run_forks(program: str | Path, *arguments: object, ranks: int = 1, timeout: int = 200) -> tuple[int, str, str]:
    """`python PROGRAM ARGUMENTS` on so many ranks, as torchrun would start them; "emanet": the command line.

    Returns the first exit code that is not 0, and what all ranks wrote to stdout and stderr.
    """
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        jobs: list[dict[str, Any]] = []
        for rank in map(str, range(ranks)):
            variables = dict(os.environ) | ({"RANK": rank, "LOCAL_RANK": rank, **group} if ranks > 1 else {})
            files = [f"{folder}/{rank}.{name}" for name in ("out", "err")]
            words = [str(program), *map(str, arguments)]
            jobs.append({"words": words, "variables": variables, "files": files, "timeout": timeout})
        server = _server()
        assert server.stdin and server.stdout
        print(json.dumps(jobs), file=server.stdin, flush=True)
        codes = json.loads(server.stdout.readline())
        out, err = ("".join(Path(job["files"][i]).read_text() for job in jobs) for i in (0, 1))
    return next((code for code in codes if code), 0), out, err


@cache
def _server() -> subprocess.Popen:
    """The process to fork from; it ends with this one, as its stdin does."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__]
    return subprocess.Popen(command, cwd=ROOT, env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def run(job: dict[str, Any]) -> int:
    """In a fork: the program; returns its exit code."""
    os.setsid()
    signal.alarm(job["timeout"])
    os.environ.clear()
    os.environ.update(job["variables"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(job["files"], 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = job["words"]
    code: Any = 0
    try:
        if job["words"][0] == "emanet":
            runpy.run_module("emanet", run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(job["words"][0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code if isinstance(code, int) else 1


def prepare() -> None:
    """Import what a run imports, the late imports too; score runs and draw figures as conftest.py lets `tiny` do it."""
    for module in LATE:
        importlib.import_module(module)
    from emanet.architectures import home
    from emanet.data.datasets import DRAWN_COUNTS
    from emanet.show import figures

    home("test_resnet")
    DRAWN_COUNTS["val"] = 8
    for name in ("confusion_picture", "curves_picture"):
        setattr(figures, name, lambda shown, path: path.touch())


def main() -> None:
    prepare()
    for line in sys.stdin:
        children = []
        for job in json.loads(line):
            child = os.fork()
            if not child:
                os._exit(run(job))
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
