"""The export command: which model, what it is compared on, and what int8 costs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import EvalConfig
from ..data.images import read_image, read_mask
from ..data.listing import list_folders
from ..deploy.artefact import Artefact, is_artefact
from ..deploy.export import SUFFIXES, export, require_exportable
from ..errors import InputError
from ..evaluate import counted
from ..inference import predict_labels
from ..loading import model_of, model_path, read, stored_spec
from ..metrics import ConfusionMatrix
from ..predict.inputs import channels_of, find_images
from ..show.terminal import note, say
from ..weights import hub
from ..weights.model_file import ModelFile

COMPARED, MEASURED = 8, 100  # images, evenly spread over those given: to compare on, and for int8 to measure on


def export_model(
    *,
    model: str = "",
    to: str,
    out: str = "",
    outputs: Sequence[str] = ("labels",),
    precision: str = "fp32",
    images: str = "",
    masks: str = "",
    runtime: str = "",
    max_pixels: int | None = None,
) -> Path:
    """Write a model for another runtime and say how it compares; see the command's help. Returns what was written.

    Raises InputError, before the work begins where it can be known.
    """
    if masks and precision != "int8":
        raise InputError("--masks is for --precision int8, which is measured against them")
    if masks and not images:
        raise InputError("--images and --masks belong together")
    if runtime and to != "web":
        raise InputError(f"--runtime is for --to web, not for {to}")
    if is_artefact(model):
        raise InputError(f"{model} is an exported model already; name the one that it was made from")
    target = Path(out or f"{name_of(model)}{'-web' if to == 'web' else SUFFIXES[to]}")
    if to == "web":
        if precision != "fp32" or tuple(outputs) != ("labels",) or images:
            raise InputError("--to web writes what its page needs: leave out --outputs, --precision and --images")
        from ..deploy.web import export_web

        found = export_web(read(model or None), target, title=name_of(model), runtime=runtime)
        say(f"{target}: {found}", f"to look at it: python -m http.server --directory {target}")
        return target
    require_exportable(to, target, outputs, precision, bool(images))
    paths = [path for path, _ in find_images([images])] if images else []
    file = read(model or None)
    channels = channels_of(_Reads(file))
    limit = MEASURED if precision == "int8" else COMPARED
    chosen = [read_image(path, channels, max_pixels=max_pixels) for path in paths[:: max(1, -(-len(paths) // limit))]]
    left_out = _left_out(file.experiment.eval)
    if left_out:
        note(f"the exported model takes whole images at one scale; left out: {left_out}")
    found = export(file, to, target, outputs=outputs, precision=precision, images=chosen)
    files = [target, target.with_suffix(".bin")] if to == "openvino" else [target]
    say(f"{target}: {sum(path.stat().st_size for path in files) / 1e6:.1f} MB, {found}")
    if not images:
        note("compared on random images only; --images DIR compares on yours")
    if precision == "int8":
        say(_cost(file, Artefact(target), paths, images, masks, max_pixels))
    return target


def name_of(model: str) -> str:
    """What the result is called where nothing else is said: the run's, the file's or the repository's name."""
    if hub.is_name(model):
        return hub.parts(model)[0].partition("/")[2]
    path = model_path(model or None)
    if path.stem in ("best", "model"):
        folder = path.resolve().parent
        return (folder.parent.parent if folder.parent.name == "checkpoints" else folder).name
    return path.stem


class _Reads:
    """How a model file's images are read, before its model is built."""

    def __init__(self, file: ModelFile):
        spec = stored_spec(file.experiment)
        self.in_channels, self.bands, self.range = file.experiment.model.backbone.in_channels, spec.bands, spec.range


def _left_out(config: EvalConfig) -> str:
    parts = [f"mode {config.mode}"] if config.mode != "whole" else []
    parts += ["scales " + " ".join(map(str, config.scales))] if config.scales != (1.0,) else []
    return ", ".join([*parts, *(["flip"] if config.flip else [])])


def _cost(
    file: ModelFile, artefact: Artefact, paths: Sequence[Path], images: str, masks: str, max_pixels: int | None
) -> str:
    """What int8 costs in mIoU: on the masks, or else against the labels of the model itself."""
    model, config = model_of(file), EvalConfig(longest_side=file.experiment.eval.longest_side)
    spec, channels = stored_spec(file.experiment), channels_of(model)

    def by_file(image: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(artefact.labels([image.numpy()])[0])

    def mean(samples: Any, labels_of: Callable[[torch.Tensor], torch.Tensor]) -> float:
        matrix = counted(labels_of, samples, ConfusionMatrix(model.classes), config, progress=True)
        return 100 * matrix.report()["mIoU"]

    def by_torch(image: torch.Tensor) -> torch.Tensor:
        return predict_labels(model, image.permute(2, 0, 1)[None], config)[0]

    def read(path: Path) -> np.ndarray:
        return read_image(path, channels, max_pixels=max_pixels)

    if masks:
        pairs = list_folders(Path(images), Path(masks), spec).sound()
        samples = _Samples(pairs, lambda pair: (read(pair[0]), read_mask(pair[1], spec, max_pixels=max_pixels)))
        quick, whole = mean(samples, by_file), mean(samples, by_torch)
        return f"int8: mIoU {quick:.2f}, PyTorch in float32 {whole:.2f}: {quick - whole:+.2f} points"
    own = _Samples([(path,) for path in paths], lambda each: _with_labels(read(each[0]), by_torch))
    text = f"int8: mIoU {mean(own, by_file):.2f} against the labels of PyTorch in float32 on {len(paths)} images"
    return f"{text} (100 is no difference); with --masks it is measured against yours"


def _with_labels(image: np.ndarray, labels_of: Callable[[torch.Tensor], torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    return image, labels_of(torch.from_numpy(image)).numpy()


class _Samples:
    """Pairs of image and labels as evaluate takes a data set, each read when it is asked for."""

    def __init__(self, files: Sequence[Any], read: Callable[[Any], tuple[np.ndarray, np.ndarray]]):
        self.files, self.of = files, read

    def __len__(self) -> int:
        return len(self.files)

    def name(self, i: int) -> str:
        return str(self.files[i][0])

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.of(self.files[i])
