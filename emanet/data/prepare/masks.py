"""Annotations as their authors publish them -> index PNGs, in several processes.

Each function writes one mask. A mask gets its name once it is complete, so an interrupted call can be repeated.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from ...atomic import replacing
from ...config import IGNORE
from ...errors import InputError
from ...show.terminal import track
from ..images import write_mask
from ..specs import COCOSTUFF_NUMBERS, CONTEXT_VALUES, SPECS

CHUNK = 32  # files handed to a process at a time


def sbd(source: Path, target: Path) -> None:
    """SBD's .mat: GTcls.Segmentation holds VOC's classes, 0 to 20."""
    labels = _labels(source, lambda content: content["GTcls"]["Segmentation"][0, 0])
    if labels.max(initial=0) > 20:
        raise InputError(f"{source} has label {labels.max()}, but VOC's largest is 20")
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
    """Draw COCO's regions (label, is a crowd, segmentation). Writes a file and returns True if more than `least` pixels
    are labelled.

    Regions overlap and COCO defines no order: smaller ones are drawn over larger ones, which stay visible anyway. A
    crowd is a rough region around many objects: its pixels are ignored where no single object covers them.
    """
    from pycocotools import mask as rle

    h, w = size
    labels = np.zeros((h, w), np.uint8)
    try:
        drawn = [(crowd, label, encoded(shape, h, w)) for label, crowd, shape in regions]
        for crowd, label, code in sorted(drawn, key=lambda item: (not item[0], -int(rle.area(item[2])))):
            labels[rle.decode(code).astype(bool)] = IGNORE if crowd else label
    except Exception as error:  # pycocotools, a C extension, raises nearly anything on broken input
        raise InputError(f"the COCO regions of {target.stem} cannot be drawn: {error}") from error
    if np.count_nonzero((labels > 0) & (labels != IGNORE)) <= least:
        return False
    _save(target, labels, SPECS["coco_voc"].colours)
    return True


def encoded(shape: Any, h: int, w: int) -> dict:
    """COCO's polygons or run lengths, plain or compressed, as compressed run lengths.

    Outlines of fewer than three points have no area and are left out. ValueError for what the C code would take without
    a check: points without a number or far away end the process, and run lengths that are too few show what was in
    memory before.
    """
    from pycocotools import mask as rle

    if isinstance(shape, list):
        rings = [np.asarray(ring, np.float64) for ring in shape if len(ring) >= 6]
        if not rings or any(ring.ndim != 1 or len(ring) % 2 for ring in rings):
            raise ValueError("an outline is not the x and y of three or more points")
        if not all((np.abs(ring) <= 10 * (h + w)).all() for ring in rings):
            raise ValueError("an outline has points far outside the image")
        return rle.merge(rle.frPyObjects([ring.tolist() for ring in rings], h, w))
    if tuple(shape["size"]) != (h, w):
        raise ValueError(f"a region's size is {shape['size']}, the image's {[h, w]}")
    plain = isinstance(shape["counts"], list)
    runs = shape["counts"] if plain else run_lengths(shape["counts"])
    if min(runs, default=0) < 0 or sum(runs) != h * w:
        raise ValueError(f"run lengths do not add up to the {w} x {h} pixels of the image")
    return rle.frPyObjects(shape, h, w) if plain else shape


def run_lengths(counts: str | bytes) -> list[int]:
    """Of COCO's compressed form. Raises ValueError.

    Each character less 48 has five bits of a number, low ones first, and a sixth that says whether more follow. Numbers
    are signed, and from the fourth on, differences from the last but one.
    """
    runs: list[int] = []
    value = bits = 0
    for byte in counts.encode() if isinstance(counts, str) else counts:
        value |= (byte - 48 & 31) << bits
        bits += 5
        if not byte - 48 & 32:
            value -= (byte - 48 & 16) << bits - 4
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = bits = 0
    if bits:
        raise ValueError("run lengths end within a number")
    return runs


def _looked_up(source: Path, variable: str, table: np.ndarray) -> np.ndarray:
    values = _labels(source, lambda content: content[variable])
    if values.min(initial=0) < 0 or values.max(initial=0) >= len(table):
        raise InputError(f"{source} has values {values.min()} to {values.max()}, but the largest is {len(table) - 1}")
    return table[values]


def _labels(source: Path, take: Callable[[dict], np.ndarray]) -> np.ndarray:
    """An integer array (H, W) of a .mat file. Raises InputError."""
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
    with replacing(target, durable=False) as temporary:
        write_mask(temporary, labels.astype(np.uint8), palette)


def run(function: Callable, jobs: Sequence[tuple], label: str) -> list:
    """[function(*job) for job in jobs], in one process per core, with a progress bar. Raises InputError."""
    workers = min(multiprocessing.cpu_count(), len(jobs) // CHUNK)  # a few files take less time than starting a process
    if workers <= 1:
        return [function(*job) for job in track(jobs, label)]
    # Spawned, not forked: the progress bar is a thread, and a fork would copy its locks.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawned, initializer=_leave_interrupts_to_the_parent) as pool:
        try:
            return list(track(pool.map(function, *zip(*jobs, strict=True), chunksize=CHUNK), label, len(jobs)))
        except BrokenProcessPool as error:
            raise InputError(
                f"{label}: a process was killed, perhaps for lack of memory; free some and run the command again"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
