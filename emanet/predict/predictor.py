"""From images to label maps in Python; files.py does files, folders and globs.

    predictor = Predictor("runs/a")                  # a model file, a run folder or an EMANet; default: `street`
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

from ..config import IGNORE, Engine, EngineConfig, EvalConfig, Precision
from ..data.images import image_array, nan_free, read_visible
from ..deploy.engines import faster
from ..distributed import pick_device
from ..experiments import checked
from ..inference import calibration_input, predict_labels, predict_many, probabilities
from ..loading import model_of, read
from ..model import EMANet
from ..show import colours
from ..weights.model_file import ModelFile
from .inputs import channels_of, find_images
from .raster import predict_raster

Picture = np.ndarray | Image.Image | str | Path
CALIBRATION_IMAGES = 100  # int8 takes about this many, evenly spread over those it is given


class Predictor:
    """predictor(image) -> labels.

    An image is a path, a Pillow image (both with their EXIF orientation applied), or a uint8 array (H, W, C) with as
    many channels as the model has, RGB for three; (H, W) also works for one. Arrays of another kind raise ValueError,
    unless there is a range for them, files that cannot be read InputError. Pixels that a TIFF hides (no-data, mask,
    alpha) and NaN get 255.

    model: a model file, a run folder, the name of a model of the package, `hf:owner/name`, any of them as loading.read
    gives it, or an EMANet, which moves to the device and into eval mode; default: the package's `street`, as a note
    says. config: how to predict; default: what the model file says, or whole images. engine, precision: see
    deploy/engines.py. calibrate: for int8, files, folders and globs of about a hundred images like those to come.
    max_pixels: see data.images.read_image. bands, range: as in DatasetSpec; default: those that the model was trained
    with. Arrays have the model's channels already, those of uint8 also its range.
    """

    def __init__(
        self,
        model: EMANet | ModelFile | str | Path | None = None,
        *,
        device: str = "auto",
        config: EvalConfig | None = None,
        engine: Engine = "plain",
        precision: Precision = "fp32",
        calibrate: Sequence[str] = (),
        max_pixels: int | None = None,
        bands: Sequence[int] = (),
        range: Sequence[float] = (),
    ):
        if calibrate:
            checked(EngineConfig(engine=engine, precision=precision, calibrate=tuple(calibrate)))
        if model is None or isinstance(model, str | Path):
            model = read(model)
        if isinstance(model, ModelFile):
            config = config or model.experiment.eval
            model = model_of(model)
        self.device, self.max_pixels = pick_device(device), max_pixels
        self.model, self.config = model.to(self.device).eval(), config or EvalConfig()
        self.classes, self.palette = model.classes, model.palette
        self.channels = model.backbone.in_channels
        self.input = channels_of(model, bands, range)
        if (engine, precision) != ("plain", "fp32"):
            paths = [path for path, _ in find_images(calibrate)]
            paths = paths[:: max(1, round(len(paths) / CALIBRATION_IMAGES))]
            inputs = [calibration_input(self.model, self._batch(self.pixels(path)), self.config) for path in paths]
            self.model = faster(self.model, engine, precision, inputs)

    def __call__(self, image: Picture) -> np.ndarray:
        """Class indices (H, W) uint8, of the image's size."""
        pixels, visible = self.read(image)
        return _shown(predict_labels(self.model, self._batch(pixels), self.config)[0], visible)

    def many(self, images: Sequence[Picture]) -> list[np.ndarray]:
        """The same for several images, those of one padded size in one pass: what each has alone, to rounding."""
        seen = [self.read(image) for image in images]
        labels = predict_many(self.model, [self._batch(pixels)[0] for pixels, _ in seen], self.config)
        return [_shown(each, visible) for each, (_, visible) in zip(labels, seen, strict=True)]

    def probabilities(self, image: Picture) -> np.ndarray:
        """(classes, H, W) float32, of the image's size; they add up to 1 over the classes."""
        return probabilities(self.model, self._batch(self.pixels(image)), self.config)[0].cpu().numpy()

    def raster(self, path: str | Path, out: str | Path, **options: Any) -> None:
        """Write the labels of a TIFF of any size as a TIFF, in windows: raster.predict_raster with its options."""
        options = {"bands": self.input.bands, "range": self.input.range} | options
        predict_raster(self.model, path, out, self.config, **options)

    def overlay(self, image: Picture, labels: np.ndarray, alpha: float = 0.5) -> np.ndarray:
        """The image with its classes' colours mixed in at `alpha`: (H, W, 3) uint8 RGB."""
        return colours.overlay(self.pixels(image), labels, self.palette, alpha)

    def pixels(self, image: Picture) -> np.ndarray:
        """What the model sees of an image: (H, W, channels) uint8."""
        return self.read(image)[0]

    def read(self, image: Picture) -> tuple[np.ndarray, np.ndarray | None]:
        """The same, and which pixels are not hidden, as in images.read_visible."""
        if isinstance(image, str | Path):
            return read_visible(image, self.input, max_pixels=self.max_pixels)
        if isinstance(image, Image.Image):
            return image_array(image, self.input), None
        image = np.asarray(image)
        if image.ndim == 2 and self.channels == 1:
            image = image[..., None]
        if image.ndim != 3 or image.shape[2] != self.channels or not image.size:
            raise ValueError(f"image must be uint8 (H, W, {self.channels}), got {image.dtype} {image.shape}")
        if image.dtype == np.uint8:
            return image, None  # as read_visible gives them
        if not self.input.range:
            kind = f"image must be uint8 (H, W, {self.channels}), got {image.dtype} {image.shape}"
            example = "(255 * image).round().astype('uint8') for values of 0 to 1"
            raise ValueError(f"{kind}; write {example}, or give Predictor the range of its values: range=(0, 1)")
        return self.input.scaled(image), nan_free(image)

    def _batch(self, pixels: np.ndarray) -> torch.Tensor:
        return as_batch(pixels).to(self.device)


def as_batch(pixels: np.ndarray) -> torch.Tensor:
    """An image (H, W, C) as (1, C, H, W), a copy: the array may be read-only or flipped, and torch takes neither."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1)[None], order="C"))


def _shown(labels: torch.Tensor, visible: np.ndarray | None) -> np.ndarray:
    """Labels (H, W) as an array, 255 where the image is hidden."""
    array = labels.cpu().numpy()
    return array if visible is None else np.where(visible, array, np.uint8(IGNORE))
