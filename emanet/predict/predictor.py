"""From pictures to label maps: one image from Python, or files, folders and globs into a folder.

    predictor = Predictor("runs/a")                  # a model file, a run folder or an EMANet
    labels = predictor("photo.jpg")                  # (H, W) uint8, indices of predictor.classes
    picture = predictor.overlay("photo.jpg", labels) # (H, W, 3) uint8

On the command line: python -m emanet predict MODEL IMAGES... --out FOLDER

TIFFs too large for memory or with a georeference go through raster.py.
"""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import nn

from ..config import Engine, EvalConfig, Precision
from ..data.images import IMAGE_SUFFIXES, image_array, read_image, write_mask
from ..deploy.engines import faster
from ..distributed import pick_device
from ..errors import InputError
from ..experiments import load_experiment
from ..inference import predict_labels, probabilities
from ..model import EMANet
from ..show import colours as pictures
from . import raster

Picture = np.ndarray | Image.Image | str | Path
JPEG_QUALITY = 90
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


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str],
    out: str | Path,
    *,
    overlay: bool = True,
    batch: int = 1,
    rasters: Literal["auto", "always", "never"] = "auto",
    bands: Sequence[int] = (),
) -> list[str]:
    """Write OUT/name.png (class indices with the palette) and OUT/name_overlay.jpg for every image of the inputs.

    inputs, name: as find_images has them. batch: so many images of one size, padded, go through the model at once. An
    unreadable image is reported on stderr and left out; returned are these reports. Raises InputError, before anything
    is written, if there is no image or OUT is a folder of the images.

    rasters: which TIFFs are predicted in windows, with their bands, and become OUT/name.tif without an overlay; auto:
    those of raster.is_raster, or where bands are named, always.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}, but must be at least 1")
    out, console = Path(out), Console(stderr=True)
    images = find_images(inputs)
    if rasters == "auto":
        chosen = raster.tiff_tags if bands else raster.is_raster
    else:
        chosen = raster.tiff_tags if rasters == "always" else (lambda _: False)
    large = {path: name for path, name in images if chosen(path)}
    if bands and not large:
        raise InputError(f"bands {' '.join(map(str, bands))} are named, but no image is a TIFF to be read by bands")
    folders = {path.resolve().parent: path for path, _ in images}
    for _, name in images:
        taken = folders.get((out / name).resolve().parent)
        if taken:
            raise InputError(f"the output folder {(out / name).parent} holds the image {taken}; name another one")
    failures = []
    waiting: dict[tuple[int, int], list[tuple[Path, Path, np.ndarray]]] = {}

    def failed(error: InputError) -> None:
        failures.append(str(error))
        console.print(f"skipped: {error}", markup=False, highlight=False, soft_wrap=True)

    def finish(size: tuple[int, int]) -> None:
        group = waiting.pop(size)
        for (path, name, pixels), labels in zip(group, predictor.many([each[2] for each in group]), strict=True):
            _write(predictor, path, out / name, pixels, labels, overlay)

    ordinary = [(path, name) for path, name in images if path not in large]
    hidden = not (ordinary and console.is_terminal)
    for path, name in track(ordinary, "predict", console=console, transient=True, disable=hidden):
        try:
            pixels = predictor.pixels(path)
        except InputError as error:
            failed(error)
            continue
        size = predictor.batch_size(pixels.shape[:2])
        waiting.setdefault(size, []).append((path, name, pixels))
        if len(waiting[size]) == batch:
            finish(size)
        elif sum(map(len, waiting.values())) >= 4 * batch:  # many sizes: memory does not grow with the folder
            finish(max(waiting, key=lambda size: len(waiting[size])))
    for size in list(waiting):
        finish(size)
    for path, name in large.items():
        try:
            predictor.raster(path, out / f"{name}.tif", bands=bands, batch=batch, progress=True)
        except InputError as error:
            failed(error)
    return failures


def _write(
    predictor: Predictor, path: Path, target: Path, pixels: np.ndarray, labels: np.ndarray, overlay: bool
) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_mask(f"{target}.png", labels, predictor.palette)
        if overlay:
            picture = Image.fromarray(predictor.overlay(pixels, labels))
            picture.save(f"{target}_overlay.jpg", quality=JPEG_QUALITY)
    except OSError as error:
        raise InputError(f"cannot write the prediction of {path} as {target}: {error.strerror or error}") from error


def find_images(inputs: Sequence[str]) -> list[tuple[Path, Path]]:
    """Files, folders (with their subfolders) and globs -> (file, name), sorted by file, each file once.

    A name is the path below the folder, or below the part of a glob before its first wildcard, without the extension.
    Files of one name keep their extension in it (a.jpg, a.png -> a_jpg, a_png), and if that does not help get a
    number (a_jpg, a_jpg_2). Folders and globs give files with IMAGE_SUFFIXES and no hidden ones; a file that is named
    is taken as it is. Raises InputError for an input without any image.
    """
    found: dict[Path, tuple[Path, Path]] = {}  # real path -> path as found, path below its input
    for given in inputs:
        below = _below(given)
        if not below:
            raise InputError(f"folder {given} holds no image" if Path(given).is_dir() else f"no image {given}")
        for path, relative in below:
            found.setdefault(path.resolve(), (path, relative))
    images = sorted(found.values())
    count = Counter(relative.with_suffix("") for _, relative in images)
    taken = {stem for stem, times in count.items() if times == 1}
    named = []
    for path, relative in images:
        stem = name = relative.with_suffix("")
        if count[stem] > 1:
            name = base = Path(f"{stem}_{relative.suffix[1:]}")
            number = 1
            while name in taken:
                number += 1
                name = Path(f"{base}_{number}")
            taken.add(name)
        named.append((path, name))
    return named


def _below(given: str) -> list[tuple[Path, Path]]:
    """The image files of one input, and their paths below its fixed part."""
    path = Path(given)
    if path.is_file():
        return [(path, Path(path.name))]
    if path.is_dir():
        root, files = path, _inside(path)
    else:
        parts = path.parts
        fixed = next((k for k, part in enumerate(parts) if glob.has_magic(part)), len(parts))
        root, rest = Path(*parts[:fixed]), parts[fixed:]
        if "**" in rest:  # pathlib's follows no links, which may lead in circles; glob's does, but finds no hidden ones
            matches = root.glob(os.path.join(*rest, *["*"] * (rest[-1] == "**")))
            files = [file for file in matches if not any(part[0] == "." for part in file.relative_to(root).parts)]
        else:
            files = [Path(name) for name in glob.glob(given)]
    known = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    return [(file, file.relative_to(root)) for file in known]


def _inside(root: Path) -> list[Path]:
    """The files of a folder and its subfolders, links to folders followed, each folder entered once; none hidden."""
    files, entered = [], {root.resolve()}
    for folder, folders, names in os.walk(root, followlinks=True):
        files += [Path(folder, name) for name in names if name[0] != "."]
        found = [name for name in folders if name[0] != "."]
        folders.clear()
        for name in sorted(found, key=lambda name: (Path(folder, name).is_symlink(), name)):
            real = Path(folder, name).resolve()
            if real not in entered:
                entered.add(real)
                folders.append(name)
    return files
