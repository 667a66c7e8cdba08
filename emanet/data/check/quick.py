"""The check before a run: every mask is opened once, its size and values are compared."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...atomic import write_json
from ...config import IGNORE, DatasetSpec
from ...errors import InputError, some
from ...show.terminal import bar
from ..datasets import THREADS, Dataset
from ..images import meanings
from .pairs import Facts, inspect_mask

SAMPLED = 8  # one mask in so many is looked at for interpolated borders: usually all masks have them, or none


class Checked(NamedTuple):
    """What the check of one split found."""

    pixels: np.ndarray
    """Per label, int64 (256,)."""
    smallest: tuple[int, int]
    """The least height and the least width of an image."""
    largest: tuple[int, int]
    notes: list[str]
    """What is suspicious of its files."""
    labels: list[str]
    """A digest of each mask's size and pixels per label, or "" if it has one label only; in the order of the pairs."""


def check(dataset: Dataset, progress: Callable[[int], None] = lambda done: None) -> Checked:
    """Open every mask and every image's header before a run starts. `data check` finds all faults, this the first.

    What it found is remembered as long as the listing stays the same. Raises InputError for the first file that is
    unreadable, differs in size from its pair or has values outside the classes, and where no pixel has a class.
    """
    cache = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))
    stamp = cache / "emanet" / "checked" / f"{dataset.listing}.json"
    try:
        remembered = json.loads(stamp.read_text("utf-8"))
        return Checked(np.array(remembered["pixels"], np.int64), *(remembered[name] for name in Checked._fields[1:]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not checked yet, or by another version

    def inspect(number: int) -> Facts:
        return inspect_mask(dataset.pairs[number], dataset.spec, borders=number % SAMPLED == 0)

    total = np.zeros(IGNORE + 1, np.int64)
    sizes, blank, found, kinds, labels = set(), [], defaultdict(list), defaultdict(list), []
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for done, facts in enumerate(pool.map(inspect, range(len(dataset))), 1):
                assert facts.counts is not None and facts.size  # of every mask that is not refused
                total += facts.counts
                sizes.add(facts.size)
                several = np.count_nonzero(facts.counts) > 1
                key = facts.counts.tobytes() + repr(facts.size).encode()
                labels.append(hashlib.blake2b(key, digest_size=8).hexdigest() if several else "")
                mask = dataset.pairs[done - 1][1]
                kinds["colours" if facts.colours else "values"].append(mask)
                if not facts.counts[:IGNORE].any():
                    blank.append(mask)
                for kind, _, files, text in facts.findings:
                    found[kind].append(f"{files[-1]}: {text}")
                progress(done)
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise
    if not total[:IGNORE].any():
        raise InputError(f"every pixel of the {len(dataset)} masks is ignored: {dataset.pairs[0][1].parent}")
    notes = [f"{some(texts, 1)}; `data check` lists all such files" for texts in found.values()]
    if len(kinds) > 1:
        kind, fewer = min(kinds.items(), key=lambda item: len(item[1]))
        notes.append(f"{len(fewer)} of {len(dataset)} masks hold {kind}, unlike the others: {some(fewer, 3)}")
    if blank:
        notes.append(f"every pixel is ignored in {some(blank, 3)}")
    smallest, largest = (tuple(pick(side) for side in zip(*sizes, strict=True)) for pick in (min, max))
    checked = Checked(total, smallest, largest, notes, labels)
    try:
        write_json(stamp, checked._asdict() | {"pixels": total.tolist()})
    except OSError:
        pass  # a read-only home: the check will simply run again
    return checked


def one_class(pixels: np.ndarray, spec: DatasetSpec) -> str:
    """A sentence about masks that label only one class, else "". pixels: per label (256,)."""
    (present,) = np.nonzero(pixels[:IGNORE])
    if len(present) != 1:
        return ""
    share, meaning = pixels[IGNORE] / pixels.sum(), meanings(spec)
    text = f"every labelled pixel is {spec.classes[present[0]]}, {share:.1%} of all pixels are ignored"
    if share and len(spec.classes) == 2 and meaning.get(0) == present[0] and meaning.get(255) == IGNORE:
        text += f'; if 255 is {spec.classes[1]}, write "label_map": {{"0": 0, "255": 1}} into dataset.json'
    return text


def check_labels(dataset: Dataset, tell: Callable[[str], object]) -> Checked:
    """`check` with a progress bar. tell: gets notes on what is suspicious, every time."""
    with bar(f"checking {len(dataset)} masks", len(dataset)) as advance:
        checked = check(dataset, advance)
    folder = dataset.pairs[0][1].parent
    absent = [name for name, count in zip(dataset.spec.classes, checked.pixels, strict=False) if not count]
    if alone := one_class(checked.pixels, dataset.spec):
        tell(f"note: nothing can be learned from the masks under {folder}: {alone}")
    elif absent:
        tell(f"note: under {folder} no pixel is labelled {some(absent)}")
    for text in checked.notes:
        tell(f"note: {text}")
    return checked
