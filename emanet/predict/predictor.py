"""From pictures to label maps: one image from Python, or files, folders and globs into a folder.

    predictor = Predictor("runs/a")                  # a model file, a run folder or an EMANet
    labels = predictor("photo.jpg")                  # (H, W) uint8, indices of predictor.classes
    picture = predictor.overlay("photo.jpg", labels) # (H, W, 3) uint8

On the command line: python -m emanet predict MODEL IMAGES... --out FOLDER

TIFFs too large for memory or with a georeference go through raster.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..config import Engine, EvalConfig, Precision
from ..data.images import image_array, read_image
from ..deploy.engines import faster
from ..distributed import pick_device
from ..experiments import load_experiment
from ..inference import predict_labels, probabilities
from ..model import EMANet
from ..show import colours as pictures
from . import raster
from .inputs import find_images

Picture = np.ndarray | Image.Image | str | Path
CALIBRATION_IMAGES = 100  # about so many are taken, evenly spread, where more are given


class Predictor:
    """predictor(image) -> labels.

    An image is a path, a Pillow image (both with their EXIF orientation applied), or a uint8 array (H, W, C) of as
    many channels as the model has, RGB where there are three; also (H, W) where there is one. Arrays that do not fit
    raise ValueError, files InputError. A model that is handed in goes to the device and into eval mode.
    config: how to predict; default is what the model's file says, or whole images. engine, precision: see fast.py.
    calibrate: for int8, files, folders and globs of a hundred images like those to come. max_pixels: see read_image.
    """

    def __init__(
        self,
        model: EMANet | str | Path,
        *,
        device: str = "auto",
        config: EvalConfig | None = None,
        engine: Engine = "plain",
        precision: Precision = "fp32",
        calibrate: Sequence[str] = (),
        max_pixels: int | None = None,
    ):
        if not isinstance(model, nn.Module):
            from ..loading import load, model_path

            path = model_path(model)
            model, config = load(path), config or load_experiment(str(path)).eval
        self.device, self.max_pixels = pick_device(device), max_pixels
        self.model, self.config = model.to(self.device).eval(), config or EvalConfig()
        self.classes, self.palette = model.classes, model.palette
        self.channels = model.backbone.in_channels
        if (engine, precision) != ("plain", "fp32"):
            self.model = faster(self.model, engine, precision, self._calibration(calibrate))

    def __call__(self, image: Picture) -> np.ndarray:
        """Class indices (H, W) uint8, of the image's size."""
        return predict_labels(self.model, self._batch(image), self.config)[0].cpu().numpy()

    def many(self, images: Sequence[Picture]) -> list[np.ndarray]:
        """The same for several images, those of one batch_size in one pass: what each has alone, to rounding."""
        batches = [self._batch(image) for image in images]
        groups: dict[tuple[int, int], list[int]] = {}
        for i, batch in enumerate(batches):
            groups.setdefault(self.batch_size(batch.shape[2:]), []).append(i)
        found: dict[int, np.ndarray] = {}
        for size, members in groups.items():
            stacked = torch.cat([self._filled(batches[i], size) for i in members])
            labels = predict_labels(self.model, stacked, self.config).cpu().numpy()
            for i, own in zip(members, labels, strict=True):
                h, w = batches[i].shape[2:]
                found[i] = own[:h, :w]
        return [found[i] for i in range(len(batches))]

    def batch_size(self, size: Sequence[int]) -> tuple[int, int]:
        """(h, w) of the batches that images of this size go with: as evaluate pads them if whole and at one scale."""
        h, w = size
        if self.config.mode != "whole" or self.config.scales != (1.0,) or self.config.flip:
            return h, w
        extra, stride = int(self.model.align_corners), self.model.stride
        return h + -(h - extra) % stride, w + -(w - extra) % stride

    def _filled(self, batch: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """uint8 images as floats in [0, 1], filled up with the mean colour itself, which has no place in uint8."""
        h, w = batch.shape[2:]
        filled = self.model.mean.expand(len(batch), self.channels, *size).clone()
        filled[:, :, :h, :w] = batch / 255
        return filled

    def _calibration(self, given: Sequence[str]) -> list[torch.Tensor]:
        """Normalised images as the model will get them: whole, or a window from the middle of each."""
        paths = [path for path, _ in find_images(given)] if given else []
        inputs = []
        for path in paths[:: max(1, round(len(paths) / CALIBRATION_IMAGES))]:
            batch = self._batch(path)
            if self.config.mode == "slide":
                (h, w), (window_h, window_w) = batch.shape[2:], self.config.window
                top, left = max(0, h - window_h) // 2, max(0, w - window_w) // 2
                batch = batch[:, :, top : top + window_h, left : left + window_w]
            inputs.append(self.model.normalise(self._filled(batch, self.batch_size(batch.shape[2:]))))
        return inputs

    def probabilities(self, image: Picture) -> np.ndarray:
        """(classes, H, W) float32, of the image's size; they add up to 1 over the classes."""
        return probabilities(self.model, self._batch(image), self.config)[0].cpu().numpy()

    def raster(self, path: str | Path, out: str | Path, **options: Any) -> None:
        """Write the labels of a TIFF of any size as a TIFF, in windows: raster.predict_raster with its options."""
        raster.predict_raster(self.model, path, out, self.config, **options)

    def overlay(self, image: Picture, labels: np.ndarray, alpha: float = 0.5) -> np.ndarray:
        """The image with alpha parts of its classes' colours over it: (H, W, 3) uint8 RGB."""
        return pictures.overlay(self.pixels(image), labels, self.palette, alpha)

    def pixels(self, image: Picture) -> np.ndarray:
        """What the model gets to see of an image: (H, W, channels) uint8."""
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
        # A copy: the array may be read-only or a mirrored view, and torch takes neither.
        return torch.from_numpy(np.array(pixels, order="C")).to(self.device)
