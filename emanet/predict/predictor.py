"""From images to label maps in Python; files.py does files, folders and globs.

    predictor = Predictor("runs/a")                  # a model file, a run folder or an EMANet
    labels = predictor("photo.jpg")                  # (H, W) uint8, indices of predictor.classes
    drawing = predictor.overlay("photo.jpg", labels) # (H, W, 3) uint8

On the command line: python -m emanet predict MODEL IMAGES... --out FOLDER
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..config import Engine, EngineConfig, EvalConfig, Precision
from ..data.images import image_array, read_image
from ..deploy.engines import faster
from ..distributed import pick_device
from ..experiments import checked
from ..inference import calibration_input, predict_labels, predict_many, probabilities
from ..loading import model_of, read
from ..model import EMANet
from ..show import colours
from ..weights.model_file import ModelFile
from .inputs import find_images
from .raster import predict_raster

Picture = np.ndarray | Image.Image | str | Path
CALIBRATION_IMAGES = 100  # int8 takes about this many, evenly spread over those it is given


class Predictor:
    """predictor(image) -> labels.

    An image is a path, a Pillow image (both with their EXIF orientation applied), or a uint8 array (H, W, C) with as
    many channels as the model has, RGB for three; (H, W) also works for one. Arrays of another kind raise ValueError,
    files that cannot be read InputError.

    model: a model file, a run folder, either of them as loading.read gives it, or an EMANet, which moves to the device
    and into eval mode. config: how to predict; default: what the model file says, or whole images. engine, precision:
    see deploy/engines.py. calibrate: for int8, files, folders and globs of about a hundred images like those to come.
    max_pixels: see data.images.read_image.
    """

    def __init__(
        self,
        model: EMANet | ModelFile | str | Path,
        *,
        device: str = "auto",
        config: EvalConfig | None = None,
        engine: Engine = "plain",
        precision: Precision = "fp32",
        calibrate: Sequence[str] = (),
        max_pixels: int | None = None,
    ):
        if calibrate:
            checked(EngineConfig(engine=engine, precision=precision, calibrate=tuple(calibrate)))
        if isinstance(model, str | Path):
            model = read(model)
        if isinstance(model, ModelFile):
            config = config or model.experiment.eval
            model = model_of(model)
        self.device, self.max_pixels = pick_device(device), max_pixels
        self.model, self.config = model.to(self.device).eval(), config or EvalConfig()
        self.classes, self.palette = model.classes, model.palette
        self.channels = model.backbone.in_channels
        if (engine, precision) != ("plain", "fp32"):
            paths = [path for path, _ in find_images(calibrate)]
            paths = paths[:: max(1, round(len(paths) / CALIBRATION_IMAGES))]
            inputs = [calibration_input(self.model, self._batch(path), self.config) for path in paths]
            self.model = faster(self.model, engine, precision, inputs)

    def __call__(self, image: Picture) -> np.ndarray:
        """Class indices (H, W) uint8, of the image's size."""
        return predict_labels(self.model, self._batch(image), self.config)[0].cpu().numpy()

    def many(self, images: Sequence[Picture]) -> list[np.ndarray]:
        """The same for several images, those of one padded size in one pass: what each has alone, to rounding."""
        batches = [self._batch(image)[0] for image in images]
        return [labels.cpu().numpy() for labels in predict_many(self.model, batches, self.config)]

    def probabilities(self, image: Picture) -> np.ndarray:
        """(classes, H, W) float32, of the image's size; they add up to 1 over the classes."""
        return probabilities(self.model, self._batch(image), self.config)[0].cpu().numpy()

    def raster(self, path: str | Path, out: str | Path, **options: Any) -> None:
        """Write the labels of a TIFF of any size as a TIFF, in windows: raster.predict_raster with its options."""
        predict_raster(self.model, path, out, self.config, **options)

    def overlay(self, image: Picture, labels: np.ndarray, alpha: float = 0.5) -> np.ndarray:
        """The image with its classes' colours mixed in at `alpha`: (H, W, 3) uint8 RGB."""
        return colours.overlay(self.pixels(image), labels, self.palette, alpha)

    def pixels(self, image: Picture) -> np.ndarray:
        """What the model sees of an image: (H, W, channels) uint8."""
        if isinstance(image, str | Path):
            return read_image(image, self.channels, max_pixels=self.max_pixels)
        if isinstance(image, Image.Image):
            return image_array(image, self.channels)
        image = np.asarray(image)
        if image.ndim == 2 and self.channels == 1:
            image = image[..., None]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.channels or not image.size:
            raise ValueError(f"image must be uint8 (H, W, {self.channels}), got {image.dtype} {image.shape}")
        return image

    def _batch(self, image: Picture) -> torch.Tensor:
        pixels = self.pixels(image).transpose(2, 0, 1)[None]
        # A copy: the array may be read-only or a flipped view, and torch takes neither.
        return torch.from_numpy(np.array(pixels, order="C")).to(self.device)
