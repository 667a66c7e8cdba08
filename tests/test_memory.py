"""Memory stays flat: over 5,000 predictions, 5,000 evaluated images, and a folder of 5,000 files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory in use is read from /proc")
@pytest.mark.parametrize("way", ["predict", "evaluate-0", "evaluate-2", "files-1", "files-4"])
def test_resident_memory_is_flat(way: str, tmp_path: Path, repeats):
    """Within 2 % between the 500th image and the 5,000th, of images of eleven sizes."""
    count, warm = repeats(5000, 1000), 500
    program = ROOT / "tests" / "programs" / "resident_memory.py"
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(program), way, str(count), str(warm), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    first, last = map(float, done.stdout.split())
    print(f"{first:.1f} MiB after {warm}, {last:.1f} MiB after {count}: {last / first - 1:+.2%}")
    assert abs(last / first - 1) < 0.02
