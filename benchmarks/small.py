"""The model `street` by every engine, beside other heads on its backbone and a network of a tenth of its size.

    python benchmarks/small.py [--repeats 15] [--images DIR] [--csv FILE]

Images of 480x360 one by one, from uint8 pixels to labels. The other networks have random weights, which does not change
how long they take. --images: a folder of photographs for int8 to measure its ranges on; default random ones.
"""

import argparse
import warnings
from collections.abc import Callable

import numpy as np
import torch
from bench import Row, compare, machine, print_machine, print_table, write_csv

from emanet.deploy.engines import check, faster
from emanet.errors import InputError
from emanet.experiments import load_experiment, override
from emanet.inference import calibration_input, predict_labels
from emanet.loading import load
from emanet.model import EMANet, build_model
from emanet.predict.inputs import find_images
from emanet.predict.network import as_batch
from emanet.predict.predictor import Predictor

SIZE = 360, 480
ENGINES = (("eager", "fp32"), ("compile", "fp32"), ("openvino", "fp32"), ("openvino", "int8"))
OTHERS = {  # what is not as in the experiment `street`
    "deeplabv3, stride 16": {"backbone.output_stride": 16, "head.name": "deeplabv3", "head.aspp_channels": 256},
    "pspnet, stride 16": {"backbone.output_stride": 16, "head.name": "pspnet", "head.channels": 512},
    "ema_fusion of 32, mobilenetv2_035": {
        "backbone.name": "mobilenetv2_035", "head.channels": 32, "head.fc1_channels": 16, "head.num_bases": 32,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--images", default="")
    parser.add_argument("--csv", default="")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    print_machine()
    rows = measured(given.repeats, given.images)
    print_table(rows, "480x360, batch 1, uint8 pixels to labels")
    if given.csv:
        write_csv(given.csv, rows, machine())


def measured(repeats: int, folder: str) -> list[Row]:
    street = load("street")
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    images = [pixels]
    if folder:
        paths = [path for path, _ in find_images([folder])]
        images = [Predictor(street, device="cpu").pixels(path) for path in paths[:: max(1, len(paths) // 100)]]
    models: dict[str, EMANet] = {"street, plain": street}
    for engine, precision in ENGINES:
        try:
            check(engine, precision, torch.device("cpu"))
            inputs = [calibration_input(street, as_batch(image)) for image in images] if precision == "int8" else []
            models[f"street, {engine} {precision}"] = faster(street, engine, precision, inputs)
        except InputError as error:
            print(f"not measured: {engine} {precision}: {error}")
    config = override(load_experiment("street"), {"model.backbone.pretrained": False}).model
    for name, changes in OTHERS.items():
        models[name] = build_model(override(config, changes), street.classes).eval()
    x = as_batch(pixels)
    runs: dict[str, Callable[[], object]] = {
        name: lambda model=model: predict_labels(model, x) for name, model in models.items()
    }
    rows = compare(runs, repeats)
    for row in rows:
        model = models[row["name"]]
        parameters = sum(p.numel() for p in model.parameters()) or sum(p.numel() for p in street.parameters())
        row["images/s"], row["M parameters"] = 1000 / row["ms"], parameters / 1e6
    return rows


if __name__ == "__main__":
    main()
