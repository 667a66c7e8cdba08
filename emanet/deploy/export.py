"""A trained model as one file for another runtime, compared with PyTorch before it is left there.

    export(model_file, "onnx", Path("street.onnx"))      # .onnx, .xml with .bin for OpenVINO, .pt2 for torch

program.py has the one program that every target is made from, artefact.py what runs the files.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from ..weights.paths import facts_without_paths, without_paths
from .artefact import Artefact, require, sealed
from .network import quiet
from .program import program_of

SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
PRECISIONS = {"onnx": ("fp32",), "openvino": ("fp32", "fp16", "int8"), "torch": ("fp32",)}
OPSET = 20
NEEDS = {  # what writes and runs the file
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch": (),
}
LIMITS = {  # share of the pixels that may have another label, and how far a probability may be off
    "fp32": (1e-4, 1e-4),  # two logits that are equal to rounding
    "fp16": (1e-2, 0.1),
    "int8": (1.0, 1.0),  # the caller measures what it costs
}
IN_FLOAT32 = ("MatMul", "Softmax", "ReduceSum", "ReduceL2", "Divide", "Interpolate")  # operations of OpenVINO


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
    to: str,
    out: Path,
    *,
    outputs: Sequence[str] = ("labels",),
    precision: str = "fp32",
    images: Sequence[np.ndarray] = (),
) -> Comparison:
    """Write `out` and compare it with PyTorch on `images`, (H, W, C) uint8, and on random ones of three sizes.

    The file predicts whole images at one scale, with the model's `longest_side`, if it has one. int8 measures its
    ranges on `images`. Paths of this machine are left out of the metadata. The file appears only if it agrees with
    PyTorch within LIMITS; else InputError has the difference.
    """
    require_exportable(to, out, outputs, precision, bool(images))
    model, config = model_of(file), EvalConfig(longest_side=file.experiment.eval.longest_side)
    program = program_of(model, outputs, config)
    how = {"to": to, "outputs": list(outputs), "precision": precision, "opset": OPSET if to == "onnx" else None}
    facts = facts_without_paths(file.header) | {"emanet": __version__, "exported": how}
    header = facts | {"experiment": to_dict(without_paths(file.experiment))}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem[:40]}.") as folder:
        partial = Path(folder) / out.name
        WRITERS[to](program, partial, json.dumps(header), precision, images)
        found = compare(Artefact(partial), model, config, images)
        most_labels, most_probability = LIMITS[precision]
        if found.other_labels > most_labels or (found.probability or 0) > most_probability:
            raise InputError(f"{out} was not written, because it does not compute what the model does: {found}")
        for each in sorted(Path(folder).iterdir(), reverse=True):  # .bin before .xml
            os.replace(each, out.parent / each.name)
    sync_folder(out.parent)
    return found


def require_exportable(to: str, out: Path, outputs: Sequence[str], precision: str, images: bool) -> None:
    """InputError, before the work begins, for what could not be written; `images`: whether there are some."""
    if out.suffix.lower() != SUFFIXES[to]:
        raise InputError(f"a model for {to} is a file named *{SUFFIXES[to]}, not {out.name}")
    if precision not in PRECISIONS[to]:
        kinds = " or ".join(PRECISIONS[to])
        raise InputError(f"--precision {precision} is not one of --to {to}, which has {kinds}")
    if precision == "int8" and not images:
        raise InputError("int8 needs images to measure the range of values on; name a folder of them with --images")
    if not outputs or len({*outputs}) < len(outputs):
        raise InputError("--outputs names one or more outputs, each once")
    for library in NEEDS[to] + ("nncf",) * (precision == "int8"):
        require(library)
    require_writable(out)


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
    onnx = require("onnx")
    outputs = json.loads(header)["exported"]["outputs"]
    with quiet():
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


def to_openvino(program: Any, path: Path, header: str, precision: str, images: Sequence[np.ndarray]) -> None:
    """.xml with its .bin; fp16 is how the weights are stored, int8 how convolutions multiply."""
    openvino = require("openvino")
    onnx = path.with_suffix(".onnx")
    to_onnx(program, onnx, header, precision, images)
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file goes, the model stays
    model = core.read_model(onnx)
    onnx.unlink()
    _antialias(model)
    if precision == "int8":
        model = _quantised(model, images)
    model.set_rt_info(header, "emanet")
    model.set_rt_info("", "sha256")
    for _ in range(2):  # the second time with the checksum
        openvino.save_model(model, path, compress_to_fp16=precision == "fp16")
        model.set_rt_info(hashlib.sha256(path.with_suffix(".bin").read_bytes()).hexdigest(), "sha256")


def _antialias(model: Any) -> None:
    """Shrink with Pillow's filter, which is torch's: OpenVINO ignores that an ONNX Resize asks for antialiasing."""
    from openvino import opset13
    from openvino.utils import replace_node

    for node in model.get_ordered_ops():
        if node.get_type_name() == "Interpolate" and node.get_attributes()["antialias"]:
            sizes = opset13.gather(node.input_value(1), opset13.constant([2, 3]), opset13.constant(0))
            mode, axes = "bilinear_pillow", opset13.constant([2, 3])
            replace_node(node, opset13.interpolate(node.input_value(0), sizes, mode, "sizes", axes=axes))


def _quantised(model: Any, images: Sequence[np.ndarray]) -> Any:
    """Convolutions in int8; the matrix products and softmaxes of EM attention and its relatives stay in float32."""
    nncf = require("nncf")
    with quiet():
        return nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in images]),
            preset=nncf.QuantizationPreset.MIXED,  # activations other than ReLU's have both signs
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(types=list(IN_FLOAT32), validate=False),
        )


WRITERS: dict[str, Callable[..., None]] = {"onnx": to_onnx, "openvino": to_openvino, "torch": to_torch}
