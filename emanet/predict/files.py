"""Label files, folders and globs into a folder."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ..atomic import replacing, require_writable_folder
from ..config import IGNORE
from ..data.bands import Channels
from ..data.images import read_visible, write_mask
from ..errors import InputError
from ..inference import shared_size
from ..show.terminal import bar, note
from . import raster
from .inputs import channels_of, find_images
from .predictor import Predictor

JPEG_QUALITY = 90


@dataclass(frozen=True, eq=False)
class _Input:
    path: Path
    target: Path
    """The output's path without extension."""
    pixels: np.ndarray
    visible: np.ndarray | None
    """Which pixels are not hidden; None: all."""


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str],
    out: str | Path,
    *,
    overlay: bool = True,
    batch: int = 1,
    rasters: Literal["auto", "always", "never"] = "auto",
    bands: Sequence[int] = (),
    range: Sequence[float] = (),
) -> list[str]:
    """Write OUT/name.png (class indices with the palette) and OUT/name_overlay.jpg for every image of the inputs.

    inputs, name: as in find_images. batch: how many images of one padded size go through the model at once. An image
    that cannot be read is reported on stderr and left out; these reports are returned. Raises InputError, before
    anything is written, if there is no image, OUT cannot be written or OUT is a folder of the images.

    rasters: which TIFFs are predicted in windows, and become OUT/name.tif without an overlay. auto: those of
    raster.is_raster, or all TIFFs where bands are named. bands, range: as in DatasetSpec; default: the predictor's.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}, but must be at least 1")
    out, images = Path(out), find_images(inputs)
    in_windows = {path for path, _ in images if _goes_in_windows(path, rasters, bands)}
    bands, range = bands or predictor.input.bands, range or predictor.input.range
    channels = channels_of(predictor.model, bands, range, flags=True)
    _keep_inputs(images, out)
    require_writable_folder(out)
    failures: list[str] = []

    def skip(error: InputError) -> None:
        failures.append(str(error))
        note(f"skipped: {error}")

    plain = [(path, out / name) for path, name in images if path not in in_windows]
    done = 0
    with bar("predict", len(plain), hidden=not plain) as advance:
        for group in _groups(_read(predictor, channels, plain, skip), predictor, batch):
            labels = predictor.many([each.pixels for each in group])
            for each, own in zip(group, labels, strict=True):
                labelled = own if each.visible is None else np.where(each.visible, own, np.uint8(IGNORE))
                _write(predictor, each, labelled, overlay)
            done += len(group)
            advance(done + len(failures))
    for path, name in images:
        if path in in_windows:
            try:
                predictor.raster(path, out / f"{name}.tif", bands=bands, range=range, batch=batch, progress=True)
            except InputError as error:
                skip(error)
    return failures


def _goes_in_windows(path: Path, rasters: str, bands: Sequence[int]) -> bool:
    if rasters == "never":
        return False
    return bool(raster.tiff_tags(path)) if rasters == "always" or bands else raster.is_raster(path)


def _keep_inputs(images: Sequence[tuple[Path, Path]], out: Path) -> None:
    """InputError if an output would go into a folder of the inputs: it might replace an image or a mask."""
    folders = {path.resolve().parent: path for path, _ in images}
    for _, name in images:
        image = folders.get((out / name).resolve().parent)
        if image:
            raise InputError(f"the output folder {(out / name).parent} holds the image {image}; name another one")


def _read(
    predictor: Predictor, channels: Channels, images: Iterable[tuple[Path, Path]], skip: Callable[[InputError], None]
) -> Iterator[_Input]:
    for path, target in images:
        try:
            pixels, visible = read_visible(path, channels, max_pixels=predictor.max_pixels)
        except InputError as error:
            skip(error)
        else:
            yield _Input(path, target, pixels, visible)


def _groups(inputs: Iterable[_Input], predictor: Predictor, batch: int) -> Iterator[list[_Input]]:
    """Groups of up to `batch` images that can share a pass. At most 4 * batch images are held, however many sizes."""
    waiting: dict[tuple[int, int], list[_Input]] = {}
    for each in inputs:
        size = shared_size(predictor.model, each.pixels.shape[:2], predictor.config)
        waiting.setdefault(size, []).append(each)
        if len(waiting[size]) == batch or sum(map(len, waiting.values())) == 4 * batch:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()


def _write(predictor: Predictor, image: _Input, labels: np.ndarray, overlay: bool) -> None:
    target = image.target
    try:
        with replacing(Path(f"{target}.png")) as partial:
            write_mask(partial, labels, predictor.palette)
        if overlay:
            with replacing(Path(f"{target}_overlay.jpg")) as partial:
                Image.fromarray(predictor.overlay(image.pixels, labels)).save(partial, "JPEG", quality=JPEG_QUALITY)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write the prediction of {image.path} as {target}: {reason}") from error
