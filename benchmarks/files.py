"""From file to file: what predict and evaluate lose against the network on the same images in memory, and where.

    python benchmarks/files.py [--images DIR] [--before CHECKOUT] [--repeats 5] [--csv FILE]

The network is `street`, by the engines of --engines; `onnx` is the exported model. Images: drawn scenes of 480x360 as
JPEG with masks, or the photographs of --images. A stage's share is its time alone, one image after the other, over the
network's; its part of what predict loses is smaller where stages overlap. Ratio: images/s over those of the bare
network, from uint8 pixels to labels, in the same repeat. --before: another checkout, measured by this script as well.
"""

import argparse
import contextlib
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Row, compare, machine, print_machine, print_table, write_csv
from PIL import Image

from emanet.atomic import replacing
from emanet.config import EvalConfig
from emanet.data.datasets import open_folders, spec_of
from emanet.data.images import read_visible, write_mask
from emanet.data.listing import OVERLAY
from emanet.data.synthetic import DrawnScenes
from emanet.deploy.artefact import Artefact
from emanet.deploy.export import export
from emanet.evaluate import counted, evaluate
from emanet.inference import calibration_input, predict_labels
from emanet.loading import read
from emanet.metrics import ConfusionMatrix
from emanet.predict import files
from emanet.predict.inputs import find_images
from emanet.predict.network import as_batch
from emanet.predict.predictor import Predictor

SIZE = 360, 480
BLACK = ((0, 0, 0),)
ENGINES = "plain", "openvino", "onnx"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", default="", help="a folder of photographs; default drawn scenes")
    parser.add_argument("--before", default="", help="a checkout of another version")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--engines", nargs="*", default=list(ENGINES))
    parser.add_argument("--count", type=int, default=24, help="images of a pass")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--csv", default="")
    parser.add_argument("--json", default="", help=argparse.SUPPRESS)  # what --before asks the other version for
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if not given.json:
        print_machine()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), given.images, given.count)
        for engine in given.engines:
            found = measured(Path(folder), engine, given.repeats, given.device)
            rows += [{"version": "", "engine": engine} | row for row in found]
    if given.json:
        Path(given.json).write_text(json.dumps(rows))
        return
    rows = [row | {"version": "after"} for row in rows]
    if given.before:
        rows = [row | {"version": "before"} for row in rows_of(given.before, given)] + rows
    for version in dict.fromkeys(row["version"] for row in rows):
        print_table([row for row in rows if row["version"] == version], version)
    if given.csv:
        write_csv(given.csv, rows, machine())


def rows_of(checkout: str, given: argparse.Namespace) -> list[Row]:
    """What this script finds with the package of another checkout."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--json", str(result), "--repeats", str(given.repeats)]
        command += ["--count", str(given.count), "--images", given.images and os.path.abspath(given.images)]
        environment = os.environ | {"PYTHONPATH": os.path.abspath(checkout)}
        subprocess.run([*command, "--engines", *given.engines], env=environment, cwd=folder, check=True)
        return json.loads(result.read_text())


def make_images(folder: Path, source: str, count: int) -> None:
    """images/*.jpg and masks/*.png below the folder. Of photographs the masks are black: one class."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    if source:
        for i, (path, _) in enumerate(find_images([source])[:count]):
            shutil.copy(path, folder / f"images/{i:03d}{path.suffix}")
            with Image.open(path) as image:
                write_mask(folder / f"masks/{i:03d}.png", np.zeros(image.size[::-1], np.uint8), BLACK)
        return
    scenes = DrawnScenes("val", count=count, size=SIZE)
    for i in range(count):
        image, labels = scenes.read(i)
        Image.fromarray(image).save(folder / f"images/{i:03d}.jpg", quality=92)
        write_mask(folder / f"masks/{i:03d}.png", labels, BLACK)


def measured(folder: Path, engine: str, repeats: int, device: str = "cpu") -> list[Row]:
    """Rows of the stages, of a pass through all images alone, and of predict and evaluate."""
    street = read("street")
    if engine == "onnx":
        path = folder / "street.onnx"
        export(street, "onnx", path)
        make = lambda: Predictor(Artefact(path, threads=torch.get_num_threads()))  # noqa: E731
    else:
        make = lambda: Predictor(street, device=device, engine=engine)  # type: ignore[arg-type]  # noqa: E731
    predictor, one = make(), make()  # the first may come to take several images at a time
    paths = sorted((folder / "images").iterdir())
    images = [predictor.pixels(path) for path in paths]
    samples = open_folders(folder / "images", folder / "masks", spec_of(street.experiment.data))
    out = folder / "out"

    def bare() -> None:
        for pixels in images:
            one.network.labels([pixels])

    def predict(overlay: bool) -> None:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # how many images there are
            files.predict_files(predictor, [str(folder / "images")], out, overlay=overlay)

    def score(workers: int) -> None:
        network = predictor.network  # versions before had no side_by_side
        several = network.side_by_side(len(samples)) if hasattr(network, "side_by_side") else contextlib.nullcontext(1)
        with several as at_once:
            how = {"at_once": at_once} if at_once > 1 else {}
            if isinstance(predictor.function, Artefact) or at_once > 1:
                labels_of = lambda image: torch.from_numpy(predictor(image.numpy()))  # noqa: E731
                counted(labels_of, samples, ConfusionMatrix(predictor.classes), EvalConfig(), workers, **how)
            else:
                evaluate(predictor.model, samples, predictor.config, workers=workers)

    ways: dict[str, Callable[[], object]] = {
        "the network alone": bare,
        "predict": lambda: predict(True),
        "predict, no overlays": lambda: predict(False),
        "evaluate": lambda: score(0),
        "evaluate, 2 processes": lambda: score(2),
    }
    whole = compare(ways, repeats, warmup=1)
    for row in whole:
        row |= {key: row[key] / len(images) for key in ("ms", "ms_min", "ms_max")}
    alone = whole[0]["ms"]
    parts = stages(one, paths[0], images[0], out, 4 * repeats, device)
    return [row | {"share": row["ms"] / alone, "images/s": 1000 / row["ms"]} for row in whole + parts]


def stages(predictor: Predictor, path: Path, pixels: np.ndarray, out: Path, repeats: int, device: str) -> list[Row]:
    """Each stage alone on one image. An exported model does the first three of the network in one."""
    labels = predictor.network.labels([pixels])[0]
    drawn = Image.fromarray(predictor.overlay(pixels, labels))
    quick: dict[str, Any] = {"quick": True} if "quick" in inspect.signature(write_mask).parameters else {}

    def on_disk() -> None:
        for end in (".png", OVERLAY):
            with replacing(out / f"stage{end}") as partial:
                partial.write_bytes(b"")

    ways: dict[str, Callable[[], object]] = {"decode": lambda: read_visible(path, predictor.input)}
    if not isinstance(predictor.function, Artefact):
        model, config = predictor.model, predictor.config
        batch = as_batch(pixels).to(model.mean.device)
        x = calibration_input(model, batch, config)
        ways |= {
            "normalise, pad": lambda: calibration_input(model, batch, config),
            "network": torch.no_grad()(lambda: model.low_logits(x)),
            "all to labels": lambda: predict_labels(model, batch, config),
        }
    ways |= {
        "PNG": lambda: write_mask(io.BytesIO(), labels, predictor.palette, **quick),
        "overlay": lambda: predictor.overlay(pixels, labels),
        "JPEG": lambda: drawn.save(io.BytesIO(), "JPEG", quality=90),
        "files on the disk": on_disk,
    }
    rows = compare(ways, repeats, device=device)
    by_name = {row["name"]: row for row in rows}
    if whole := by_name.get("all to labels"):  # the rest of it
        before = [by_name[name] for name in ("normalise, pad", "network")]
        rest = whole["ms"] - sum(row["ms"] for row in before)
        whole |= {"name": "resize, argmax", "ms": rest, "ms_min": "", "ms_max": ""}
    return [row | {key: "" for key in ("ratio", "ratio_min", "ratio_max")} for row in rows]


if __name__ == "__main__":
    main()
