"""A server's life: one Predictor, shared by threads, with images of many sizes."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

GROWTH = 8  # MiB, beyond what a run of the same requests differs by; the leak of the test is five times as large


def life(model, requests, kept=0, engine="plain"):
    """What tests/programs/long_life.py measures with 8 threads."""
    program = ROOT / "tests" / "programs" / "long_life.py"
    command = [sys.executable, program, model, str(requests), "8", str(kept), engine]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="there is no /proc")
@pytest.mark.parametrize("engine", ["plain", "openvino"])
def test_a_shared_predictor_answers_as_alone_and_does_not_grow(model, repeats, engine):
    if engine == "openvino":
        pytest.importorskip("openvino")
    facts = life(model, repeats(2000, 200), engine=engine)
    assert facts["different"] == 0 and facts["grown"] < GROWTH, facts


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="there is no /proc")
def test_a_leak_would_be_seen(model, repeats):
    requests = repeats(2000, 200)
    assert life(model, requests, kept=80 * 2**20 // requests)["grown"] > GROWTH
