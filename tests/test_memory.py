"""Memory stays flat: over 5,000 predictions, 5,000 evaluated images, and a folder of 5,000 files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

COUNT, WARM = 5000, 500
PARTS = """
import os, sys
sys.path[:0] = sys.argv[1:3]
import numpy as np, torch
from test_evaluate import Drawn, tiny_model

COUNT, WARM = int(sys.argv[3]), int(sys.argv[4])
SIZES = [(20 + 13 * (7 * i % 11), 25 + 17 * i) for i in range(11)]  # (20, 25) to (150, 195), none twice
torch.set_num_threads(1)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def watch(i):
    if i in (WARM, COUNT - 1):
        print(resident(), flush=True)
"""
PREDICT = """
from emanet.predict.predictor import Predictor
predictor, data = Predictor(tiny_model(), device="cpu"), Drawn(COUNT, SIZES)
for i in range(COUNT):
    predictor(data.read(i)[0])
    watch(i)
"""
EVALUATE = """
from emanet.evaluate import evaluate
evaluate(tiny_model(), Drawn(COUNT, SIZES), on_sample=lambda i, *_: watch(i), workers=WORKERS)
"""
FILES = """
from pathlib import Path
from PIL import Image
from emanet.predict.predictor import predictor as predict
folder = Path(sys.argv[5])
data = Drawn(len(SIZES), SIZES)
(folder / "in").mkdir()
for i in range(COUNT):
    name = folder / "in" / f"{i:04}.png"
    if i < len(SIZES):
        Image.fromarray(data.read(i)[0]).save(name)
    else:
        os.link(folder / "in" / f"{i % len(SIZES):04}.png", name)  # find_images takes symbolic links for one file
written, write = iter(range(COUNT)), predict._write
def counted(*arguments):
    write(*arguments)
    watch(next(written))
predict._write = counted
predict.predict_files(predict.Predictor(tiny_model(), device="cpu"), [str(folder / "in")], folder / "out", batch=BATCH)
assert len(list((folder / "out").iterdir())) == 2 * COUNT
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory in use is read from /proc")
@pytest.mark.parametrize(
    "part",
    [
        PREDICT,
        EVALUATE.replace("WORKERS", "0"),
        EVALUATE.replace("WORKERS", "2"),
        FILES.replace("BATCH", "1"),
        FILES.replace("BATCH", "4"),
    ],
    ids=["predictions", "evaluated images", "evaluated images, workers", "files", "files in batches"],
)
def test_resident_memory_is_flat(part: str, tmp_path: Path):
    """Within 2 % between the 500th image and the 5,000th, of images of eleven sizes."""
    command = [sys.executable, "-c", PARTS + part, str(ROOT), str(ROOT / "tests"), str(COUNT), str(WARM), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    warm, last = map(float, done.stdout.split())
    print(f"{warm:.1f} MiB after {WARM}, {last:.1f} MiB after {COUNT}: {last / warm - 1:+.2%}")
    assert abs(last / warm - 1) < 0.02
