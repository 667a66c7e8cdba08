"""Annotations as their authors publish them -> index PNGs, in several processes.

Each function writes one mask and can be called again: a file appears under its name only when it is whole.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from ...config import IGNORE
from ...errors import InputError
from ..images import write_mask
from ..specs import COCOSTUFF_NUMBERS, CONTEXT_VALUES, SPECS
from .archives import bar, replacing

CHUNK = 32  # files that a process takes at a time


def sbd(source: Path, target: Path) -> None:
    """SBD's .mat: GTcls.Segmentation holds VOC's classes, 0 to 20."""
    labels = _labels(source, lambda content: content["GTcls"]["Segmentation"][0, 0])
    if labels.max(initial=0) > 20:
        raise InputError(f"{source} has label {labels.max()}, but VOC's classes end at 20")
    _save(target, labels, SPECS["voc"].colours)


def context(source: Path, target: Path) -> None:
    """PASCAL Context's .mat: LabelMap holds 459 values; 59 of them are classes 1 to 59, the others background."""
    table = np.zeros(460, np.uint8)
    table[list(CONTEXT_VALUES)] = np.arange(1, 60)
    _save(target, _looked_up(source, "LabelMap", table), SPECS["context60"].colours)


def cocostuff(source: Path, target: Path) -> None:
    """COCO-Stuff 10k's .mat: S holds COCO's category numbers, 0 where there is no label."""
    table = np.full(183, IGNORE, np.uint8)
    table[list(COCOSTUFF_NUMBERS)] = np.arange(len(COCOSTUFF_NUMBERS))
    _save(target, _looked_up(source, "S", table), SPECS["cocostuff10k"].colours)


def coco(regions: Sequence[tuple[int, bool, Any]], size: tuple[int, int], target: Path, least: int) -> bool:
    """Draw COCO's regions (label, is a crowd, segmentation); False, and no file, unless more than `least` pixels show.

    Regions overlap and COCO gives no order: the smaller lies on top, since the larger shows anyway. A crowd is a
    blob around many objects, not their outline: its pixels are ignored where no single object covers them.
    """
    from pycocotools import mask as rle

    h, w = size
    labels = np.zeros((h, w), np.uint8)
    try:
        drawn = [(crowd, label, _encoded(shape, h, w)) for label, crowd, shape in regions]
        for crowd, label, code in sorted(drawn, key=lambda item: (not item[0], -int(rle.area(item[2])))):
            labels[rle.decode(code).astype(bool)] = IGNORE if crowd else label
    except Exception as error:  # whatever pycocotools, a C extension, makes of broken input
        raise InputError(f"the COCO regions of {target.stem} cannot be drawn: {error}") from error
    if np.count_nonzero((labels > 0) & (labels != IGNORE)) <= least:
        return False
    _save(target, labels, SPECS["coco_voc"].colours)
    return True


def _encoded(shape: Any, h: int, w: int) -> dict:
    """COCO's polygons or run lengths (plain or compressed) as one compressed run-length code."""
    from pycocotools import mask as rle

    if isinstance(shape, list):
        return rle.merge(rle.frPyObjects(shape, h, w))
    if tuple(shape["size"]) != (h, w):
        raise ValueError(f"a region's size is {shape['size']}, the image's {[h, w]}")
    return rle.frPyObjects(shape, h, w) if isinstance(shape["counts"], list) else shape


def _looked_up(source: Path, variable: str, table: np.ndarray) -> np.ndarray:
    values = _labels(source, lambda content: content[variable])
    if values.min(initial=0) < 0 or values.max(initial=0) >= len(table):
        raise InputError(f"{source} has values {values.min()} to {values.max()}, but they end at {len(table) - 1}")
    return table[values]


def _labels(source: Path, take: Callable[[dict], np.ndarray]) -> np.ndarray:
    """An integer array (H, W) of a .mat file; InputError where the file has none."""
    from scipy.io import loadmat

    try:
        values = np.asarray(take(loadmat(source, appendmat=False)))
        if values.ndim != 2:
            raise ValueError(f"its labels have the shape {values.shape}, not (H, W)")
        return values.astype(np.int64)
    except Exception as error:  # scipy raises nearly anything on broken files
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise InputError(f"cannot read {source}: {what}") from error


def _save(target: Path, labels: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part:
        write_mask(part, labels.astype(np.uint8), palette)


def run(function: Callable, jobs: Sequence[tuple], label: str, workers: int = 0) -> list:
    """[function(*job) for job in jobs] in `workers` processes (0: one per core), with a progress bar."""
    workers = min(workers or os.cpu_count() or 1, len(jobs) // CHUNK)  # a few files are done before a process starts
    results = []
    with bar(label, len(jobs)) as show:
        if workers <= 1:
            for job in jobs:
                results.append(function(*job))
                show(len(results))
            return results
        # Spawned, not forked: the progress bar is a thread, and a fork copies its locks.
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawned, initializer=_leave_interrupts_to_the_parent) as pool:
            try:
                for result in pool.map(function, *zip(*jobs, strict=True), chunksize=CHUNK):
                    results.append(result)
                    show(len(results))
            except BrokenProcessPool as error:
                what = "a process ended without a word, perhaps for lack of memory"
                raise InputError(f"{label}: {what}; run the same again with --workers 1") from error
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return results


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
