"""Flicker of a video's labels: how many change where the picture does not, with trained and with carried bases.

    python benchmarks/flicker.py [--model street] [--camvid DIR] [--frames 12] [--csv FILE]

Clips: photos of examples/photos with new noise in every frame, once still and once panned by 2 pixels a frame; with
--camvid, a folder of consecutive frames and their masks (`images` and `masks`), also scored. A pixel is constant if the
scene is (photos), or if its grey value changes by at most 3 of 255 (camvid). Panned frames are compared where they
overlap. Nothing is timed: the figures are the same on every machine, to rounding.
"""

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from bench import ROOT, Row, machine, print_machine, print_table, write_csv

from emanet.data.datasets import SPECS
from emanet.data.images import read_image, read_mask
from emanet.metrics import ConfusionMatrix
from emanet.predict.carried import carried_bases
from emanet.predict.predictor import Predictor

CONSTANT = 3  # grey values of 255
NOISE = 3  # standard deviation, of 255
STEP = 2  # pixels a frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="street")
    parser.add_argument("--camvid", default="")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--csv", default="")
    given = parser.parse_args()
    print_machine()
    predictor = Predictor(given.model, device="cpu")
    photos = [read_image(path) for path in sorted((ROOT / "examples" / "photos").glob("*.jpg"))]
    clips = {
        "photos, still": [list(noisy(photo, given.frames, 0)) for photo in photos],
        "photos, panned": [list(noisy(photo, given.frames, STEP)) for photo in photos],
    }
    rows = []
    for name, frames in clips.items():
        rows += [{"clip": name} | row for row in both(predictor, frames, STEP if "panned" in name else 0)]
    if given.camvid:
        files = sorted(Path(given.camvid, "images").iterdir())
        masks = [read_mask(Path(given.camvid, "masks", f"{path.stem}.png"), SPECS["camvid"]) for path in files]
        rows += [
            {"clip": "camvid"} | row for row in both(predictor, [[read_image(path) for path in files]], None, masks)
        ]
    print_table(rows, "share of constant pixels whose label changes from frame to frame, in percent")
    if given.csv:
        write_csv(given.csv, rows, machine())


def noisy(photo: np.ndarray, count: int, step: int) -> Iterator[np.ndarray]:
    random, w = np.random.default_rng(0), photo.shape[1] - step * (count - 1)
    for i in range(count):
        view = photo[:, i * step : i * step + w]
        yield np.clip(np.rint(view + random.normal(0, NOISE, view.shape)), 0, 255).astype(np.uint8)


def both(
    predictor: Predictor, clips: list[list[np.ndarray]], step: int | None, masks: list[np.ndarray] | None = None
) -> Iterator[Row]:
    """A row for each way. step: pixels between frames of a constant scene; None: it moves by itself."""
    for way in ("trained", "carried"):
        constant = changed = total = 0
        matrix = ConfusionMatrix(predictor.classes)
        for frames in clips:
            with carried_bases(predictor.model) if way == "carried" else nullcontext():
                labels = [predictor(frame) for frame in frames]
            for before, after, old, new in zip(frames, frames[1:], labels, labels[1:], strict=False):
                cut = step or 0
                same = np.ones(old[:, cut:].shape, bool) if step is not None else steady(before, after)
                differ = old[:, cut:] != new[:, : new.shape[1] - cut]
                total, constant, changed = total + same.size, constant + same.sum(), changed + (same & differ).sum()
            for predicted, mask in zip(labels, masks or [], strict=False):
                matrix.add(torch.from_numpy(mask.astype(np.int64)), torch.from_numpy(predicted.astype(np.int64)))
        row: Row = {"bases": way, "frames": sum(map(len, clips)), "constant %": 100 * constant / total}
        yield row | {"changed %": 100 * changed / constant, "mIoU %": 100 * matrix.report()["mIoU"] if masks else ""}


def steady(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Which pixels (H, W) hardly change their grey value."""
    return np.abs(before.mean(2) - after.mean(2)) <= CONSTANT


if __name__ == "__main__":
    main()
