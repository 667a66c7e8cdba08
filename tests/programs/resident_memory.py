"""Print the resident memory in MiB after WARM images and after COUNT.

    python resident_memory.py WAY COUNT WARM FOLDER

WAY is predict, evaluate-WORKERS or files-BATCH. tests/ is on PYTHONPATH.
"""

import os
import sys
from pathlib import Path

import torch
from PIL import Image
from test_evaluate import Drawn, tiny_model

from emanet.evaluate import evaluate
from emanet.predict import files
from emanet.predict.predictor import Predictor

SIZES = [(20 + 13 * (7 * i % 11), 25 + 17 * i) for i in range(11)]  # (20, 25) to (150, 195), none twice


def main(way: str, count: int, warm: int, folder: Path) -> None:
    def watch(number: int) -> None:
        if number in (warm, count - 1):
            statm = Path("/proc/self/statm").read_text()
            print(int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, flush=True)

    way, _, option = way.partition("-")
    data = Drawn(count, SIZES)
    if way == "predict":
        predictor = Predictor(tiny_model(), device="cpu")
        for i in range(count):
            predictor(data.read(i)[0])
            watch(i)
    elif way == "evaluate":
        evaluate(tiny_model(), data, on_sample=lambda i, *_: watch(i), workers=int(option))
    else:
        write_images(data, count, folder / "in")
        numbers, finish = iter(range(count)), files._finish

        def finish_and_watch(*arguments):
            done = finish(*arguments)
            watch(next(numbers))
            return done

        files._finish = finish_and_watch
        predictor = Predictor(tiny_model(), device="cpu")
        files.predict_files(predictor, [str(folder / "in")], folder / "out", batch=int(option))
        assert len(list((folder / "out").iterdir())) == 2 * count + 1  # and the record for --resume


def write_images(data: Drawn, count: int, folder: Path) -> None:
    """Eleven images under many names: hard links."""
    folder.mkdir()
    for i in range(count):
        name = folder / f"{i:04}.png"
        if i < len(SIZES):
            Image.fromarray(data.read(i)[0]).save(name)
        else:
            os.link(folder / f"{i % len(SIZES):04}.png", name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
