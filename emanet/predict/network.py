"""How a Predictor runs a model that is not exported: by torch, on any device and engine."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch

from ..config import Engine, EvalConfig, Precision
from ..deploy.artefact import side_by_side
from ..distributed import pick_device
from ..inference import calibration_input, predict_labels, predict_many, probabilities, shared_size
from ..loading import model_of
from ..model import EMANet
from ..processor import part_of
from ..show.terminal import note
from ..weights.model_file import ModelFile

SMALL = 10_000_000  # parameters: below, two images on a core each are done sooner than one after the other on both


class Shared:
    """The model itself, whose forward pass several threads may share: ready for any number of them."""

    ready = 1

    def get_ready(self, at_once: int) -> None:
        self.ready = at_once


class Network:
    """What deploy.artefact.Artefact is for an exported model: images (H, W, C) uint8 to labels and probabilities."""

    def __init__(self, model: EMANet | ModelFile, device: str, config: EvalConfig | None):
        if isinstance(model, ModelFile):
            config = config or model.experiment.eval
            model = model_of(model)
        self.device, self.config = pick_device(device), config or EvalConfig()
        if self.device.type == "mps":
            falls_back = os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1"
            rest = "on the CPU" if falls_back else "not at all: set PYTORCH_ENABLE_MPS_FALLBACK=1 first"
            note(f"computing on the Mac's GPU; what torch lacks there is done {rest}")
        self.model = model.to(self.device).eval()
        self.at_once, self.threads = 1, torch.get_num_threads()

    def quicken(self, engine: Engine, precision: Precision, images: Sequence[np.ndarray], force: bool = False) -> None:
        """Go on with deploy.engines.faster; images: for int8, those that it measures the range of values on."""
        from ..deploy.engines import faster

        inputs = [calibration_input(self.model, self.batch(image), self.config) for image in images]
        self.model = faster(self.model, engine, precision, inputs, force=force)

    def labels(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Class indices (H, W) uint8 of each image; those of one padded size go through in one pass."""
        with self._part():
            if len(images) == 1:
                return [predict_labels(self.model, self.batch(images[0]), self.config)[0].cpu().numpy()]
            found = predict_many(self.model, [self.batch(image)[0] for image in images], self.config)
            return [labels.cpu().numpy() for labels in found]

    @contextmanager
    def side_by_side(self, images: int) -> Iterator[int]:
        """As of deploy.artefact.Artefact: more than 1 for an engine, or a model on the CPU, that gains by it."""
        run = getattr(self.model.head, "run", None)
        threads = getattr(run, "threads", 1)
        if run is None and self.device.type == "cpu" and sum(p.numel() for p in self.model.parameters()) <= SMALL:
            run, threads = Shared(), self.threads
        with side_by_side(run, threads, images) as self.at_once:
            try:
                yield self.at_once
            finally:
                self.at_once = 1

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(classes, H, W) float32."""
        with self._part():
            return probabilities(self.model, self.batch(image), self.config)[0].cpu().numpy()

    def _part(self) -> AbstractContextManager[None]:
        return part_of(self.threads, self.at_once) if self.at_once > 1 else nullcontext()

    def shared_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Images of one such (h, w) can share a pass."""
        return shared_size(self.model, size, self.config)

    def batch(self, image: np.ndarray) -> torch.Tensor:
        return as_batch(image).to(self.device)


def as_batch(pixels: np.ndarray) -> torch.Tensor:
    """An image (H, W, C) as (1, C, H, W), a copy: the array may be read-only or flipped, and torch takes neither."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1)[None], order="C"))
