"""Label files, folders and globs into a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from ..data.images import write_mask
from ..errors import InputError
from . import raster
from .inputs import find_images
from .predictor import Predictor

JPEG_QUALITY = 90


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
