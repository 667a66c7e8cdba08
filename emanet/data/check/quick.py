"""The check before a run: every mask is opened once, its size and values are compared."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...config import IGNORE, DatasetSpec
from ...errors import InputError, some
from ...show.terminal import bar
from ..datasets import THREADS, Dataset, size_difference
from ..images import image_size, meanings, pixels_per_label, read_mask
from ..shards import File, Pair


def check_pair(image: File, mask: File, spec: DatasetSpec) -> np.ndarray:
    """The labels (H, W) uint8 of a sound mask that has the size in its image's header. Raises InputError.

    Every pair must pass this before a run, and in `data check`, which looks further.
    """
    labels = read_mask(mask, spec)
    size = image_size(image)
    if size != labels.shape:
        raise InputError(size_difference(image, size, mask, labels.shape))
    return labels


def check(dataset: Dataset, progress: Callable[[int], None] = lambda done: None) -> np.ndarray | None:
    """Open every mask and every image's header before a run starts. `data check` finds all faults, this the first.

    Returns the pixels per label as int64 (256,), or None if the same listing has passed before. Raises InputError for
    the first file that is unreadable, differs in size from its pair or has values outside the classes, and where no
    pixel has a class.
    """
    cache = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    stamp = cache / "emanet" / "checked" / dataset.listing
    if stamp.exists():
        return None

    def count(pair: Pair) -> np.ndarray:
        return pixels_per_label(check_pair(*pair, dataset.spec))

    total = np.zeros(IGNORE + 1, np.int64)
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for done, counts in enumerate(pool.map(count, dataset.pairs), 1):
                total += counts
                progress(done)
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise
    if not total[:IGNORE].any():
        raise InputError(f"every pixel of the {len(dataset)} masks is ignored: {dataset.pairs[0][1].parent}")
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()
    except OSError:
        pass  # a read-only home: the check will simply run again
    return total


def one_class(pixels: np.ndarray, spec: DatasetSpec) -> str:
    """A sentence about masks that label only one of several classes, else "". pixels: per label (256,)."""
    (present,) = np.nonzero(pixels[:IGNORE])
    if len(spec.classes) == 1 or len(present) != 1:
        return ""
    share, meaning = pixels[IGNORE] / pixels.sum(), meanings(spec)
    binary = share and meaning.get(0) == present[0] and meaning.get(255) == IGNORE
    text = f"every labelled pixel is {spec.classes[present[0]]}, {share:.1%} of all pixels are ignored"
    return text + ": are masks 0 and 255?" * bool(binary)


def check_labels(dataset: object, tell: Callable[[str], object]) -> None:
    """`check` a data set made of files, with a progress bar; any other passes. tell: gets a note on absent classes."""
    if not isinstance(dataset, Dataset):
        return
    with bar(f"checking {len(dataset)} masks", len(dataset)) as advance:
        counts = check(dataset, advance)
    if counts is None:
        return
    absent = [name for name, count in zip(dataset.spec.classes, counts, strict=False) if not count]
    text = one_class(counts, dataset.spec) or (f"no pixel is labelled {some(absent)}" if absent else "")
    if text:
        tell(f"note: under {dataset.pairs[0][1].parent} {text}")
