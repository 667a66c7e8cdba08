"""From images to label maps in Python; files.py does files, folders and globs.

    predictor = Predictor("runs/a")                  # a model file, a run folder or an EMANet; default: `street`
    predictor = Predictor("street.onnx")             # or an exported model, for which torch is not needed
    labels = predictor("photo.jpg")                  # (H, W) uint8, indices of predictor.classes
    drawing = predictor.overlay("photo.jpg", labels) # (H, W, 3) uint8

On the command line: python -m emanet predict MODEL IMAGES... --out FOLDER
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..config import IGNORE, Engine, EngineConfig, EvalConfig, Precision
from ..data.images import image_array, nan_free, read_visible
from ..deploy.artefact import Artefact, is_artefact
from ..errors import InputError
from ..experiments import checked
from ..show import colours
from .inputs import channels_of, find_images

if TYPE_CHECKING:  # torch is imported late: an exported model is used without it
    from ..model import EMANet
    from ..weights.model_file import ModelFile
    from .network import Network

Picture = np.ndarray | Image.Image | str | Path
CALIBRATION_IMAGES = 100  # int8 takes about this many, evenly spread over those it is given


class Predictor:
    """predictor(image) -> labels.

    An image is a path, a Pillow image (both with their EXIF orientation applied), or a uint8 array (H, W, C) with as
    many channels as the model has, RGB for three; (H, W) also works for one. Arrays of another kind raise ValueError,
    unless there is a range for them, files that cannot be read InputError. Pixels that a TIFF hides (no-data, mask,
    alpha) and NaN get 255.

    model: a model file, a run folder, the name of a model of the package, `hf:owner/name`, any of them as loading.read
    gives it; an EMANet, which moves to the device and into eval mode; or an exported model (.onnx, .xml, .pt2), which
    predicts in the one way that it was exported with. Default: the package's `street`, as a note says. config: how to
    predict; default: what the model file says, or whole images. engine, precision: see deploy/engines.py. calibrate:
    for int8, files, folders and globs of about a hundred images like those to come. force: see EngineConfig.
    max_pixels: see data.images.read_image. bands, range: as in DatasetSpec; default: those that the model was trained
    with. Arrays have the model's channels already, those of uint8 also its range.
    """

    def __init__(
        self,
        model: "EMANet | ModelFile | Artefact | str | Path | None" = None,
        *,
        device: str = "auto",
        config: EvalConfig | None = None,
        engine: Engine = "plain",
        precision: Precision = "fp32",
        calibrate: Sequence[str] = (),
        force: bool = False,
        max_pixels: int | None = None,
        bands: Sequence[int] = (),
        range: Sequence[float] = (),
    ):
        if calibrate:
            checked(EngineConfig(engine=engine, precision=precision, calibrate=tuple(calibrate)))
        self.max_pixels, quick = max_pixels, (engine, precision) != ("plain", "fp32")
        self.how = {"engine": engine, "precision": precision, "calibrate": list(calibrate)}
        if isinstance(model, Artefact) or is_artefact(model):
            artefact = model if isinstance(model, Artefact) else Artefact(str(model), device)
            if quick and (engine, precision) != ("auto", "fp32"):
                text = f"{artefact.path} is an exported model, which has its own engine and precision"
                raise InputError(f"{text}; choose none")
            quick = False
            artefact.require_way(config or EvalConfig())
            self.network: Artefact | Network = artefact
            self.source: Path | None = artefact.path
            self.function: Artefact | EMANet = artefact
            self.config = EvalConfig()
        else:
            from ..loading import read
            from .network import Network as NetworkByTorch

            file = read(model) if model is None or isinstance(model, str | Path) else model
            self.network = network = NetworkByTorch(file, device, config)
            self.source = getattr(file, "path", None)  # not of an EMANet
            self.function, self.config = network.model, network.config
        self.classes, self.palette = self.function.classes, self.function.palette
        self.channels = self.function.in_channels
        self.input = channels_of(self.function, bands, range)
        if quick:
            paths = [path for path, _ in find_images(calibrate)]
            paths = paths[:: max(1, round(len(paths) / CALIBRATION_IMAGES))]
            network.quicken(engine, precision, [self.pixels(path) for path in paths], force)
            self.function = network.model

    @property
    def model(self) -> "EMANet":
        """The network that predicts. InputError for an exported model, which has none."""
        if isinstance(self.function, Artefact):
            raise InputError(f"{self.function.path} is an exported model; this needs the one that it was made from")
        return self.function

    def __call__(self, image: Picture) -> np.ndarray:
        """Class indices (H, W) uint8, of the image's size."""
        pixels, visible = self.read(image)
        return _shown(self.network.labels([pixels])[0], visible)

    def many(self, images: Sequence[Picture]) -> list[np.ndarray]:
        """The same for several images, those of one padded size in one pass: what each has alone, to rounding."""
        seen = [self.read(image) for image in images]
        labels = self.network.labels([pixels for pixels, _ in seen])
        return [_shown(each, visible) for each, (_, visible) in zip(labels, seen, strict=True)]

    def probabilities(self, image: Picture) -> np.ndarray:
        """(classes, H, W) float32, of the image's size; they add up to 1 over the classes."""
        return self.network.probabilities(self.pixels(image))

    def many_with(
        self, images: Sequence[Picture], *, probabilities: bool = True
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Labels (H, W) uint8 of several images and, if wanted, their probabilities (classes, H, W) float32.

        With probabilities, one image at a time goes through the network, once: its labels are the indices of the
        largest probabilities, which are those of `many`, to rounding; of images that config.longest_side shrinks, a few
        in a thousand differ along outlines.
        """
        if not probabilities:
            return [(labels, None) for labels in self.many(images)]
        found: list[tuple[np.ndarray, np.ndarray | None]] = []
        for pixels, visible in map(self.read, images):
            p = self.network.probabilities(pixels)
            found.append((_shown(p.argmax(0).astype(np.uint8), visible), p))
        return found

    def raster(self, path: str | Path, out: str | Path, **options: Any) -> None:
        """Write the labels of a TIFF of any size as a TIFF, in windows: raster.predict_raster with its options."""
        from .raster import predict_raster

        options = {"bands": self.input.bands, "range": self.input.range} | options
        predict_raster(
            self.network if isinstance(self.network, Artefact) else self.network.model,
            path,
            out,
            self.config,
            **options,
        )

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


def _shown(labels: np.ndarray, visible: np.ndarray | None) -> np.ndarray:
    """Labels (H, W), 255 where the image is hidden."""
    return labels if visible is None else np.where(visible, labels, np.uint8(IGNORE))
