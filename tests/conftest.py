"""What several test files need: a tiny experiment, a folder data set, the command line in a process of its own."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from emanet.cli import main
from emanet.config import Experiment
from emanet.data.datasets import DRAWN_COUNTS
from emanet.experiments import load_experiment, override
from emanet.weights.model_file import save_model

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background: tests send it, and children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tiny images: two threads on two busy cores wait for each other
DRAWN_COUNTS["val"] = 8  # instead of 200: nothing depends on how many scenes a run is scored on


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-docs", action="store_true", help="write the tables in docs/ that tests make")
    parser.addoption("--short", action="store_true", help="with -m slow: the same tests with fewer repeats, for CI")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """No bytes in the name of a test: a file's may hold the time, and every process must find the same tests."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("early") is None)


@pytest.fixture
def repeats(request) -> Callable[[int, int], int]:
    """`repeats(full, short)`: how often a slow test does the same; `short` with --short."""
    return lambda full, short: short if request.config.getoption("--short") else full


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path, monkeypatch):
    """Which data sets have been checked is remembered per test only; tables are drawn for a usual terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def real_figures() -> None:
    """For tests that look at a run's curves and confusion matrix: with `tiny` alone, they are empty files."""


@pytest.fixture
def tiny(request) -> Iterator[Experiment]:
    """A run of a second, in this process."""
    from emanet.analysis import score  # noqa: F401  imports confusion_picture by name: it keeps the real one
    from emanet.show import figures

    with pytest.MonkeyPatch.context() as patch:
        if "real_figures" not in request.fixturenames:
            for name in ("confusion_picture", "curves_picture"):
                patch.setattr(figures, name, lambda shown, path: path.touch())
        yield tiny_experiment()


def tiny_experiment() -> Experiment:
    return override(
        load_experiment("drawn"),
        {
            "model.head.channels": 16,
            "model.head.num_bases": 8,
            "model.head.dropout": 0.0,
            "data.crop": (33, 33),
            "data.workers": 0,
            "steps": 6,
            "batch_size": 4,
            "log_every": 1,
            "pictures": 1,
            "val_every": 0,
        },
    )


@pytest.fixture
def scenes(tmp_path) -> Path:
    """A folder data set of drawn scenes: 6 for training, 3 for validation."""
    from emanet.data.drawn import write_drawn

    write_drawn(tmp_path / "scenes", {"train": 6, "val": 3})
    return tmp_path / "scenes"


@pytest.fixture
def model(tiny, tmp_path):
    """A model file for the drawn scenes, untrained."""
    from emanet.data.datasets import SPECS
    from emanet.model import build_model

    torch.manual_seed(0)
    experiment = override(tiny, {"data.spec": SPECS["drawn"]})
    path = tmp_path / "model.safetensors"
    model = build_model(experiment.model, SPECS["drawn"])
    torch.nn.init.normal_(model.head.classifier.weight)  # strong enough that every class is predicted somewhere
    save_model(path, model, experiment, step=0)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine in the place of huggingface.co, with an empty cache and no token."""
    from huggingface_hub import constants
    from local_hub import LocalHub

    hub = LocalHub()
    home = tmp_path / "hf"
    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its attempts to reach a hub
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def camvid() -> Path:
    return _shared("data", "camvid")


@pytest.fixture(scope="session")
def mobilenet_weights() -> str:
    return str(_shared("weights", "mobilenetv2_100_imagenet.safetensors"))


def _shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return path


class Done(NamedTuple):
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


def run_cli(*arguments: object, cwd: Path | str = ROOT) -> Done:
    """`python -m emanet ARGUMENTS` in this process, which has torch loaded already."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code or 0
    return Done(code, out.getvalue(), err.getvalue())


def run_process(*arguments: object, cwd: Path | str = ROOT) -> Done:
    """The same in a process of its own, as a user runs it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "emanet", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    return Done(done.returncode, done.stdout, done.stderr)


def sentence(done: Done) -> str:
    """The one line that a command failed with; fails itself if there was a traceback or a success."""
    assert done.returncode not in (0, 1), (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]
