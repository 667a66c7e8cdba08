"""Exported models against plain PyTorch: pixels whose label differs, time of an image, size of the file.

    python benchmarks/export.py [--repeats 7] [--only BACKBONE ...] [--targets onnx openvino torch] [--csv FILE]

Networks have random weights, which changes neither times nor sizes, and makes ties between classes as likely as can be.
Both sides take uint8 pixels and give labels. The program of a network is traced once and feeds every target.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from bench import Row, compare, machine, print_machine, print_table, write_csv

from emanet.config import BackboneConfig, EvalConfig
from emanet.data.datasets import SPECS
from emanet.deploy.artefact import Artefact
from emanet.deploy.export import SUFFIXES, WRITERS
from emanet.deploy.program import program_of
from emanet.experiments import load_experiment, override, to_dict
from emanet.inference import predict_labels
from emanet.model import build_model

SIZES = ((360, 480), (97, 131), (513, 513))
NETWORKS = {  # name -> backbone and what else is not as in voc_resnet50
    "resnet50s + ema": (BackboneConfig(name="resnet50s", pretrained=False, output_stride=16), {}),
    "mobilenetv2 + ema_fusion": (
        BackboneConfig(name="mobilenetv2_100", pretrained=False, output_stride=32, options={"pad_type": "same"}),
        {"head.name": "ema_fusion", "head.channels": 128, "head.fc1_channels": 64, "align_corners": False},
    ),
    "efficientnet_lite0 + ema_fusion": (
        BackboneConfig(name="tf_efficientnet_lite0", pretrained=False, output_stride=32),
        {"head.name": "ema_fusion", "head.channels": 128, "head.fc1_channels": 64, "align_corners": False},
    ),
    "convnext_tiny + ema": (BackboneConfig(name="convnext_tiny", pretrained=False, output_stride=32), {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of the networks' names; default all")
    parser.add_argument("--targets", nargs="*", default=list(SUFFIXES))
    parser.add_argument("--csv", default="")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    print_machine()
    rows: list[Row] = []
    for name in NETWORKS:
        if not given.only or name.startswith(tuple(given.only)):
            rows += measured(name, given.targets, given.repeats)
            print_table(rows[-len(given.targets) * len(SIZES) :], name)
    if given.csv:
        write_csv(given.csv, rows, machine())


def measured(name: str, targets: list[str], repeats: int) -> list[Row]:
    torch.manual_seed(0)
    backbone, changes = NETWORKS[name]
    experiment = load_experiment("voc_resnet50")
    experiment = override(experiment, {"model.backbone": backbone, **{f"model.{k}": v for k, v in changes.items()}})
    experiment = override(experiment, {"data.spec": SPECS["voc"], "eval": EvalConfig()})
    model = build_model(experiment.model, SPECS["voc"]).eval()
    how = {"to": "", "outputs": ["labels"], "precision": "fp32"}
    header = json.dumps({"experiment": to_dict(experiment), "exported": how})
    program = program_of(model)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        artefacts, megabytes = {}, {}
        for target in targets:
            path = Path(folder) / f"{target}{SUFFIXES[target]}"
            WRITERS[target](program, path, header, "fp32", ())
            artefacts[target] = Artefact(path, threads=torch.get_num_threads())
            megabytes[target] = sum(each.stat().st_size for each in Path(folder).glob(f"{target}.*")) / 1e6
        for h, w in SIZES:
            pixels = np.random.default_rng(0).integers(0, 256, (1, -(-h // 8), -(-w // 8), 3), np.uint8)
            pixels = pixels.repeat(8, 1).repeat(8, 2)[:, :h, :w]
            x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
            wanted = predict_labels(model, x).numpy()
            runs = {"pytorch": lambda x=x: predict_labels(model, x)}
            runs |= {target: lambda a=a, p=pixels: a(p) for target, a in artefacts.items()}
            for row in compare(runs, repeats)[1:]:
                target = row["name"]
                other = float((artefacts[target](pixels)["labels"] != wanted).mean())
                extra = {"network": name, "size": f"{h}x{w}", "other_labels": other, "MB": round(megabytes[target], 1)}
                rows.append(row | extra)
    return rows


if __name__ == "__main__":
    main()
