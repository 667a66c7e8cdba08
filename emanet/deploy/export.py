"""A trained model as one file for another runtime, compared with PyTorch before it is left there.

    export(model_file, "onnx", Path("street.onnx"))      # .onnx, .xml with .bin for OpenVINO, .pt2 for torch

program.py has the one program that every target is made from, artefact.py what runs the files.
"""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .. import __version__
from ..atomic import require_writable, sync_folder
from ..config import EvalConfig
from ..errors import InputError
from ..experiments import to_dict
from ..inference import predict_labels, probabilities
from ..loading import model_of
from ..model import EMANet
from ..weights.model_file import ModelFile
from .artefact import Artefact, require, sealed
from .program import program_of, quiet

Target = Literal["onnx", "openvino", "torch"]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
PRECISIONS = {"onnx": ("fp32",), "openvino": ("fp32", "fp16", "int8"), "torch": ("fp32",)}
OPSET = 20
MOST_LABELS = 1e-4  # share of the pixels whose label may be another: two logits that are equal to rounding
MOST_PROBABILITY = 1e-4
MOST_IN_HALF = 1e-2  # of fp16, for labels and probabilities
WORDS = {"onnx": "onnx", "openvino": "openvino", "torch": "torch"}


@dataclass(frozen=True)
class Comparison:
    """How an exported model differs from PyTorch in float32."""

    images: int
    pixels: int
    other_labels: float
    """Share of all pixels."""
    probability: float | None
    """The largest difference; None where the file gives no probabilities."""

    def __str__(self) -> str:
        text = f"{self.other_labels:.4%} of {self.pixels:,} pixels in {self.images} images have another label"
        return text if self.probability is None else f"{text}; probabilities differ by {self.probability:.1e} at most"


def export(
    file: ModelFile,
    to: Target,
    out: Path,
    *,
    outputs: Sequence[str] = ("labels",),
    precision: str = "fp32",
    images: Sequence[np.ndarray] = (),
) -> Comparison:
    """Write `out` and compare it with PyTorch on `images`, (H, W, C) uint8, and on random ones of three sizes.

    int8 measures its ranges on `images`. The file appears only if it agrees: at most MOST_LABELS of the pixels have
    another label and no probability differs by more than MOST_PROBABILITY, in fp16 MOST_IN_HALF; int8 is not held to a
    limit, and the caller reports what it costs. Raises InputError, with the difference where there is one.
    """
    if out.suffix.lower() != SUFFIXES[to]:
        raise InputError(f"a model for {to} is a file named *{SUFFIXES[to]}, not {out.name}")
    if precision not in PRECISIONS[to]:
        kinds = " or ".join(PRECISIONS[to])
        raise InputError(f"--precision {precision} is not one of --to {to}, which has {kinds}")
    if precision == "int8" and not images:
        raise InputError("int8 needs images to measure the range of values on; name a folder of them with --images")
    require_writable(out)
    model, config = model_of(file), file.experiment.eval
    if config != EvalConfig(longest_side=config.longest_side):
        config = EvalConfig(longest_side=config.longest_side)  # whole, at one scale
    program = program_of(model, outputs, config)
    how = {"to": to, "outputs": list(outputs), "precision": precision, "opset": OPSET if to == "onnx" else None}
    facts = {key: value for key, value in file.header.items() if key not in ("experiment", "exported")}
    header = facts | {"emanet": __version__, "experiment": to_dict(file.experiment), "exported": how}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem[:40]}.") as folder:
        partial = Path(folder) / out.name
        WRITERS[to](program, partial, json.dumps(header), precision, images)
        found = compare(Artefact(partial), model, config, images)
        limit = MOST_IN_HALF if precision == "fp16" else MOST_LABELS
        if precision != "int8" and (found.other_labels > limit or (found.probability or 0) > limit):
            raise InputError(f"{out} was not written, because it does not compute what the model does: {found}")
        for each in sorted(Path(folder).iterdir(), reverse=True):  # .bin before .xml
            os.replace(each, out.parent / each.name)
    sync_folder(out.parent)
    return found


def compare(artefact: Artefact, model: EMANet, config: EvalConfig, images: Sequence[np.ndarray]) -> Comparison:
    """On the images and on noise: smaller than the stride, of odd sides, and a batch of two with soft edges."""
    stride, channels = model.stride, model.backbone.in_channels
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (2, 12, 16, channels), np.uint8)
    batches = [
        random.integers(0, 256, (1, max(1, stride - 3), max(1, stride // 2 + 1), channels), np.uint8),
        random.integers(0, 256, (1, 97, 131, channels), np.uint8),
        coarse.repeat(12, 1).repeat(10, 2),
        *(image[None] for image in images),
    ]
    pixels = others = 0
    largest = None
    for batch in batches:
        x = torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())
        found = artefact(batch)
        pixels += batch[..., 0].size
        if "labels" in found:
            others += int((found["labels"] != predict_labels(model, x, config).numpy()).sum())
        if "probabilities" in found:
            p = probabilities(model, x, config).numpy()
            largest = max(largest or 0, float(np.abs(found["probabilities"] - p).max()))
            if "labels" not in found:
                others += int((found["probabilities"].argmax(1) != p.argmax(1)).sum())
    return Comparison(sum(map(len, batches)), pixels, others / pixels, largest)


def to_onnx(program: Any, path: Path, header: str, precision: str, images: Sequence[np.ndarray]) -> None:
    """One file with the weights inside. Axes are called N, H and W."""
    onnx, _ = require("onnx"), require("onnxscript")
    outputs = json.loads(header)["exported"]["outputs"]
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
            input_names=["pixels"],
            output_names=outputs,
        )
    assert exported is not None
    proto = exported.model_proto
    del proto.graph.value_info[:]  # sizes of the maps inside, under other names of the axes
    axes = {"labels": "NHW", "probabilities": ("N", None, "H", "W"), "responsibilities": ("N", None, None, "h", "w")}
    for value in (*proto.graph.input, *proto.graph.output):
        names = axes.get(value.name, "NHW")
        for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            if name and not axis.HasField("dim_value"):
                axis.dim_param = name
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {"emanet": header})
    path.write_bytes(sealed(proto.SerializeToString()))


def to_torch(program: Any, path: Path, header: str, precision: str, images: Sequence[np.ndarray]) -> None:
    torch.export.save(program, os.fspath(path), extra_files={"emanet": header})


WRITERS: dict[str, Callable[..., None]] = {"onnx": to_onnx, "torch": to_torch}
