"""An exported model: one file that takes pixels and gives label maps, run by the one library that its kind needs.

    artefact = Artefact("street.onnx")                  # .onnx: onnxruntime; .xml: OpenVINO; .pt2: torch
    artefact(pixels)["labels"]                          # pixels (N, H, W, C) uint8 -> (N, H, W) uint8

Neither torch nor any other part of emanet that needs it is imported here, so that NumPy, Pillow and onnxruntime are
enough on a small machine. export.py writes these files.
"""

import hashlib
import importlib
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import numpy as np

from ..config import EvalConfig
from ..errors import InputError, out_of_memory
from ..experiments import experiment_of, parse_header
from ..stages import cores

MANY = 50  # images, from which on it pays to prepare for several at a time
AT_ONCE = 4  # at most, since each needs memory of its own
OUTPUTS = ("labels", "probabilities", "responsibilities")
EXTRAS = {
    "onnxruntime": "onnx",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "nncf": "int8",
}  # library -> the extra that installs it
SEAL = b"\x72\x4a\x0a\x06sha256\x12\x40"  # how protobuf writes the metadata entry sha256 of 64 letters, before them


class Artefact:
    """artefact(pixels) -> its outputs by name, for uint8 images (N, H, W, C).

    labels (N, H, W) uint8; probabilities (N, classes, H, W) float32, which add up to 1 over the classes;
    responsibilities (N, T, K, h, w) float32 of the EM iterations, which add up to 1 over the K bases, on the map of
    the padded image. Which of them there are is in `outputs`. Calls from several threads are safe.

    device: auto and cpu are the processor; cuda, for .onnx and .pt2, a GPU. threads: 0 is the library's own choice.
    Raises InputError that names the file: damaged, not one of ours, or without its library.
    """

    def __init__(self, path: str | Path, device: str = "auto", threads: int = 0):
        self.path, self.device, self.threads = Path(path), device, threads
        if not self.path.is_file():
            raise InputError(f"no exported model {self.path}")
        runtime = RUNTIMES[self.path.suffix.lower()]
        try:
            self.run = runtime(self.path, device, threads)
        except InputError:
            raise
        except Exception as error:  # every library has its own
            if out_of_memory(error):
                raise
            raise InputError(f"cannot read exported model {self.path}: {_line(error)}") from error
        header = parse_header(self.run.metadata, self.path)
        self.experiment, self.header = experiment_of(header["experiment"], self.path, header.get("emanet")), header
        how = header.get("exported")
        if not isinstance(how, dict) or self.experiment.data.spec is None:
            raise InputError(f"{self.path} was not written by `python -m emanet export`: its facts are missing")
        self.outputs: tuple[str, ...] = tuple(how["outputs"])
        spec = self.experiment.data.spec
        self.classes, self.palette = spec.classes, spec.colours
        self.bands, self.range = spec.bands, spec.range
        self.in_channels: int = self.experiment.model.backbone.in_channels

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != self.in_channels or not pixels.size:
            raise ValueError(f"pixels must be uint8 (N, H, W, {self.in_channels}), got {pixels.dtype} {pixels.shape}")
        found = self.run(np.ascontiguousarray(pixels))
        return dict(zip(self.outputs, found, strict=True))

    def labels(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Class indices (H, W) uint8 of each image (H, W, C); neighbours of one size go through together."""
        found: list[np.ndarray] = []
        while len(found) < len(images):
            start = len(found)
            end = next((i for i in range(start, len(images)) if images[i].shape != images[start].shape), len(images))
            found += list(self.output("labels", np.stack(images[start:end])))
        return found

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(classes, H, W) float32 of an image (H, W, C)."""
        return self.output("probabilities", image[None])[0]

    def output(self, name: str, pixels: np.ndarray) -> np.ndarray:
        """InputError if this file has no such output."""
        self.require_output(name)
        return self(pixels)[name]

    def require_output(self, name: str) -> None:
        if name not in self.outputs:
            outputs = " ".join((*self.outputs, name))
            raise InputError(f"{self.path} gives no {name}; export the model again with the outputs {outputs}")

    def require_way(self, config: EvalConfig) -> None:
        """InputError if images are to be predicted in another way than the file does: whole and at one scale."""
        side = self.experiment.eval.longest_side
        if config not in (EvalConfig(), EvalConfig(longest_side=side)):
            inside = f", and shrinks those with a longer side of more than {side} pixels" if side else ""
            text = f"{self.path} is an exported model, which takes whole images at one scale without flips{inside}"
            raise InputError(f"{text}; to predict in another way, name the model that it was exported from")

    def side_by_side(self, images: int) -> AbstractContextManager[int]:
        """Inside: how many images to give at a time, from threads of their own, as so many are to come.

        Two images on a core each are done sooner than one after the other on two cores, whose threads wait for each
        other at every layer, and for whatever else runs there. To prepare for it costs up to a second.
        """
        return side_by_side(self.run, (self.threads or cores()) if self.device in ("auto", "cpu") else 1, images)

    def shared_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Images of one size can share a pass; others cannot."""
        return size


@contextmanager
def side_by_side(run: Any, threads: int, images: int) -> Iterator[int]:
    """Inside: for how many calls at a time what runs a network is ready: more than 1 if it can and it pays."""
    at_once = min(AT_ONCE, threads)
    if images < MANY or at_once == 1 or not hasattr(run, "get_ready"):
        yield 1
        return
    before = run.ready
    run.get_ready(at_once)
    try:
        yield at_once
    finally:
        run.ready = before


class OnnxRuntime:
    def __init__(self, path: Path, device: str, threads: int):
        check_seal(path)
        ort = require("onnxruntime")
        self.ort, self.path, self.threads = ort, os.fspath(path), threads
        self.providers: list[Any] = ["CPUExecutionProvider"]
        if device.startswith("cuda"):
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise InputError(
                    f"this onnxruntime has no CUDA, so {path} cannot run on {device}; choose the device cpu"
                )
            _, _, number = device.partition(":")
            self.providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(number or 0)}))
        self.get_ready(1)
        self.metadata = self.ready.get_modelmeta().custom_metadata_map

    def get_ready(self, at_once: int) -> None:
        """Calls from several threads are possible in any case; what changes is how many threads each of them uses."""
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads if at_once == 1 else max(1, (self.threads or cores()) // at_once)
        options.log_severity_level = 3  # errors, which are raised too
        self.ready = self.ort.InferenceSession(self.path, options, self.providers)

    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        return self.ready.run(None, {"pixels": pixels})


class OpenVINO:
    def __init__(self, path: Path, device: str, threads: int):
        openvino = require("openvino")
        if device.startswith("cuda"):
            raise InputError(
                f"OpenVINO does not compute on {device}; choose the device cpu, or export the model to onnx"
            )
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise InputError(f"{weights} is missing, which belongs to {path}")
        core = openvino.Core()
        model = core.read_model(path)
        self.metadata = {key: model.get_rt_info(key).astype(str) for key in ("emanet", "sha256")}
        if hashlib.sha256(weights.read_bytes()).hexdigest() != self.metadata["sha256"]:
            raise InputError(f"{weights} is damaged, or does not belong to {path}: checksum mismatch")
        self.settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        self.settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
        self.model = model
        self.get_ready(1)

    def get_ready(self, at_once: int) -> None:
        self.ready = requests(self.model, self.settings, at_once)

    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        with held(self.ready) as request:
            return [array.copy() for array in request.infer([pixels], share_inputs=True).values()]


def requests(model: Any, settings: dict[str, Any], at_once: int) -> SimpleQueue[Any]:
    """A model of OpenVINO, ready for so many calls at a time, as the requests that make them."""
    how = {"PERFORMANCE_HINT": "LATENCY"} if at_once == 1 else {"NUM_STREAMS": at_once}
    compiled = require("openvino").Core().compile_model(model, "CPU", settings | how)
    free: SimpleQueue[Any] = SimpleQueue()
    for _ in range(at_once):
        free.put(compiled.create_infer_request())
    return free


@contextmanager
def held(free: SimpleQueue[Any]) -> Iterator[Any]:
    """One of them, which nobody else has meanwhile."""
    taken = free.get()
    try:
        yield taken
    finally:
        free.put(taken)


class Torch:
    def __init__(self, path: Path, device: str, threads: int):
        torch = require("torch")
        if not zipfile.is_zipfile(path) or (damaged := zipfile.ZipFile(path).testzip()):
            raise InputError(f"cannot read exported model {path}: {damaged or 'the file'} is damaged")
        extra = {"emanet": ""}
        program = torch.export.load(os.fspath(path), extra_files=extra)
        self.metadata, self.torch = extra, torch
        self.device = torch.device("cpu" if device == "auto" else device)
        self.network = program.module(check_guards=False).to(self.device)

    def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
        with self.torch.inference_mode():
            return [each.cpu().numpy() for each in self.network(self.torch.from_numpy(pixels).to(self.device))]


RUNTIMES: dict[str, Any] = {".onnx": OnnxRuntime, ".xml": OpenVINO, ".pt2": Torch}


def is_artefact(source: object) -> bool:
    """Whether a model is named that was exported, by the end of its name."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in RUNTIMES


def sealed(content: bytes) -> bytes:
    """An ONNX file with one more entry of its metadata at the end: the SHA-256 of all before it."""
    return content + SEAL + hashlib.sha256(content).hexdigest().encode()


def check_seal(path: Path) -> None:
    content = path.read_bytes()
    body, seal, digest = content[: -len(SEAL) - 64], content[-len(SEAL) - 64 : -64], content[-64:]
    if seal != SEAL or hashlib.sha256(body).hexdigest().encode() != digest:
        raise InputError(f"{path} is damaged, or was not written by `python -m emanet export`: no valid checksum")


def require(library: str) -> Any:
    # OpenVINO and NNCF tell a server of every conversion, in a fork of the process, unless this is not to be had.
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    try:
        return importlib.import_module(library)
    except ImportError as error:
        extra = EXTRAS.get(library)
        how = f'pip install "emanet[{extra}]"' if extra else f"pip install {library}"
        raise InputError(f"this needs {library}, which is not installed: {how}") from error


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
