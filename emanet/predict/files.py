"""Label files, folders and globs into a folder.

Reading, the network and writing overlap: threads read the next images and write the results of the last ones, while
the caller's thread runs the network, or several do, each with an image of its own, where an engine gains by it.
"""

import errno
import tempfile
import time
import unicodedata
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from ..atomic import require_writable_folder
from ..config import IGNORE
from ..data.bands import Channels
from ..data.images import read_visible
from ..data.listing import number
from ..errors import InputError, out_of_memory
from ..show.terminal import bar, note
from ..stages import THREADS, ordered, side_by_side
from ..windows import enough_memory
from . import raster
from .inputs import VIDEO_SUFFIXES, find_images, folders_of, left_out
from .outputs import Outputs, Prediction
from .predictor import Predictor
from .resume import RECORD, begin, made_by, without_results

WRITERS = 4  # threads; they wait for the disk most of the time
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other file could be written either


@dataclass(frozen=True, eq=False)
class _Input:
    path: Path
    target: Path
    """The output's path without extension."""
    pixels: np.ndarray
    visible: np.ndarray | None
    """Which pixels are not hidden; None: all."""


@dataclass(frozen=True)
class _Skipped:
    path: Path
    reason: InputError


_Labelled = tuple[_Input, tuple[np.ndarray, np.ndarray | None]]  # with its labels, and its probabilities if needed


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str],
    out: str | Path,
    *,
    outputs: Sequence[str] = (),
    overlay: bool = True,
    batch: int = 1,
    rasters: Literal["auto", "always", "never"] = "auto",
    bands: Sequence[int] = (),
    range: Sequence[float] = (),
    resume: bool = False,
) -> list[str]:
    """Write OUT/name.png (class indices with the palette) and OUT/name_overlay.jpg for every image of the inputs.

    inputs, name: as in find_images. outputs: names of outputs.KINDS to be written instead. overlay: False leaves it out
    of the default. batch: how many images of one padded size go through the model at once. An image that cannot be
    read, is too large for memory or has too long a name is reported on stderr and left out; these reports are returned,
    in the order of the images. Up to 4 * batch images are held until others of their size come; max(batch, THREADS) + 1
    are read ahead, and max(batch, WRITERS) + 1 are being written. Raises InputError, before anything is written, if
    there is no image, an output cannot be had of one, OUT cannot be written or OUT is a folder of the images; later if
    the disk is full.

    rasters: which TIFFs are predicted in windows, and become OUT/name.tif without an overlay. auto: those of
    raster.is_raster, or all TIFFs where bands are named. bands, range: as in DatasetSpec; default: the predictor's.

    resume: leave out images whose results are there, whole and newer than the image, by the same model and options as
    a record in OUT says (resume.py); files that people may have corrected stay, however old they are. Raises InputError
    if it says something else. One image alone has no record.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}, but must be at least 1")
    kinds = Outputs.of(outputs, overlay)
    kinds.require(predictor.network)
    out, every = Path(out), find_images(inputs)
    images = without_results(every, out)
    in_windows = {path for path, _ in images if _goes_in_windows(path, rasters, bands)}
    bands, range = bands or predictor.input.bands, range or predictor.input.range
    channels = replace(predictor.input, bands=tuple(bands), range=tuple(range), flags=True)
    _keep_inputs(images, out)
    kinds.check(images, in_windows, out)
    kept = kinds.edited(images, out)
    if kept and not resume:
        raise InputError(f"{kept[0]} is there already and may have been corrected; name another folder, or remove it")
    require_writable_folder(out)
    _require_distinct(images, out)
    own = [f"left out, as predict has written them: {len(every) - len(images)} in {out}"] * (len(every) > len(images))
    note("; ".join([number(images, "image"), *own, *left_out(inputs, VIDEO_SUFFIXES)]))
    start, ready = time.monotonic(), set[Path]()
    if resume or len(images) > 1 or (out / RECORD).exists():
        options = {"bands": list(bands), "range": list(range), "rasters": rasters}
        results = {path: kinds.files(out / name, path in in_windows) for path, name in images}
        ready = begin(out, made_by(predictor, **options), images, results, kept, resume)
    failures: dict[Path, list[str]] = {}

    def skip(path: Path, error: InputError) -> None:
        failures.setdefault(path, []).append(str(error))
        note(f"skipped: {error}")

    due = [(path, name) for path, name in images if path not in ready]
    plain = [(path, out / name) for path, name in due if path not in in_windows]
    read, finish = partial(_read, predictor, channels), partial(_finish, predictor, kinds)
    writing = max(batch, WRITERS)
    with (
        bar("predict", len(plain), hidden=not plain) as advance,
        predictor.network.side_by_side(len(plain)) as at_once,
        closing(ordered(read, plain, THREADS, max(batch, THREADS))) as pictures,
        closing(_labelled(predictor, pictures, kinds, batch, at_once)) as labelled,
        closing(ordered(finish, labelled, WRITERS, writing)) as finished,
    ):
        for done, (path, errors) in enumerate(finished, 1):
            for error in errors:
                skip(path, error)
            advance(done)
    for path, name in due:
        if path in in_windows:
            config, target = replace(predictor.config, mode="slide"), out / name
            how: dict = {"bands": bands, "range": range, "batch": batch, "progress": True}
            try:
                with enough_memory(path, config.window, config):
                    predictor.raster(path, Path(f"{target}.tif"), **how, **kinds.beside(target))
                kinds.write_of_raster(path, target, predictor.classes)
            except InputError as error:
                skip(path, error)
    if len(images) > 1:
        _sum_up(len(due) - len(failures), len(failures), len(ready), time.monotonic() - start)
    whole = [(path, out / name) for path, name in images if path not in failures]
    kinds.gather(whole, out, predictor.classes)
    return [reason for path, _ in images for reason in failures.get(path, ())]


def _sum_up(done: int, skipped: int, ready: int, seconds: float) -> None:
    there = f", {ready} there already" if ready else ""
    named = ", named above" if skipped else ""
    note(f"{done} done, {skipped} skipped{named}{there}; {seconds:.1f} s, {done / max(seconds, 1e-9):.3g} images/s")


def _goes_in_windows(path: Path, rasters: str, bands: Sequence[int]) -> bool:
    if rasters == "never":
        return False
    return bool(raster.tiff_tags(path)) if rasters == "always" or bands else raster.is_raster(path)


def _keep_inputs(images: Sequence[tuple[Path, Path]], out: Path) -> None:
    """InputError if an output would go into a folder of the inputs: it might replace an image or a mask."""
    folders = folders_of(images)
    for _, name in images:
        image = folders.get((out / name).resolve().parent)
        if image:
            raise InputError(f"the output folder {(out / name).parent} holds the image {image}; name another one")


def _require_distinct(images: Sequence[tuple[Path, Path]], out: Path) -> None:
    """InputError if two outputs would be one file: some disks tell neither A from a nor an accent from a letter's."""
    first: dict[str, tuple[Path, Path]] = {}
    for path, name in images:
        other, alike = first.setdefault(unicodedata.normalize("NFC", str(name)).casefold(), (path, name))
        if alike != name:
            with tempfile.TemporaryDirectory(dir=out, prefix=".") as trial:
                folder = Path(trial)
                (folder / alike).parent.mkdir(parents=True, exist_ok=True)
                (folder / alike).touch()
                if (folder / name).exists():
                    raise InputError(f"{other} and {path} would have one output on the disk of {out}; rename one")


def _read(predictor: Predictor, channels: Channels, image: tuple[Path, Path]) -> _Input | _Skipped:
    path, target = image
    try:
        return _Input(path, target, *read_visible(path, channels, max_pixels=predictor.max_pixels))
    except InputError as error:
        return _Skipped(path, error)


def _labelled(
    predictor: Predictor, inputs: Iterable[_Input | _Skipped], kinds: Outputs, batch: int, at_once: int
) -> Generator[_Labelled | _Skipped, None, None]:
    """The images with their labels, each or a batch as soon as it has been read; `at_once` of these side by side."""

    def labels(group: list[_Input] | _Skipped) -> list[_Labelled | _Skipped]:
        return [group] if isinstance(group, _Skipped) else list(_labels(predictor, group, kinds))

    with closing(side_by_side(labels, _groups(inputs, predictor, batch), at_once)) as found:
        for each in found:
            yield from each


def _groups(inputs: Iterable[_Input | _Skipped], predictor: Predictor, batch: int) -> Iterator[list[_Input] | _Skipped]:
    """Groups of up to `batch` images that can share a pass. At most 4 * batch images are held, however many sizes."""
    waiting: dict[tuple[int, int], list[_Input]] = {}
    for each in inputs:
        if isinstance(each, _Skipped):
            yield each
            continue
        h, w = each.pixels.shape[:2]
        size = predictor.network.shared_size((h, w))
        waiting.setdefault(size, []).append(each)
        if len(waiting[size]) == batch or sum(map(len, waiting.values())) == 4 * batch:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()


def _labels(predictor: Predictor, group: list[_Input], kinds: Outputs) -> Iterator[_Labelled | _Skipped]:
    """The images with their labels, one at a time where memory is not enough for all; without those too large."""
    try:
        with enough_memory(group[0].path, group[0].pixels.shape[:2], predictor.config):
            labels = predictor.many_with([each.pixels for each in group], probabilities=kinds.probabilities)
    except InputError as error:
        if len(group) == 1:
            yield _Skipped(group[0].path, error)
            return
        labels = []
    if labels:
        yield from zip(group, labels, strict=True)
    else:  # outside of the except clause, which keeps what filled the memory
        for each in group:
            yield from _labels(predictor, [each], kinds)


def _finish(predictor: Predictor, kinds: Outputs, labelled: _Labelled | _Skipped) -> tuple[Path, list[InputError]]:
    """Write an image's results; returns its path and what went wrong with it. InputError where the disk is full."""
    if isinstance(labelled, _Skipped):
        return labelled.path, [labelled.reason]
    image, (labels, probabilities) = labelled
    if image.visible is not None:
        labels = np.where(image.visible, labels, np.uint8(IGNORE))
    target, names, palette = image.target, predictor.classes, predictor.palette
    try:
        kinds.write(Prediction(image.path, target, image.pixels, labels, names, palette, probabilities))
    except (OSError, MemoryError) as error:
        reason = "not enough memory" if out_of_memory(error) else getattr(error, "strerror", None) or error
        failure = InputError(f"cannot write the prediction of {image.path} as {target}: {reason}")
        if getattr(error, "errno", None) in FULL:
            raise failure from error
        return image.path, [failure]
    return image.path, []
