"""Finds everything that is wrong with a data set; training stops at the first fault.

    python -m emanet data check EXPERIMENT|DATASET

A pair is sound if it passes `pairs.check_pair`, as before a run. Here images are decoded too, causes are distinguished
(pairs.py), and splits are compared. An error: training refuses the data or would learn wrong labels; a warning: it is
suspicious; a note: worth knowing. report.py shows the result.
"""

import glob
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ...config import IGNORE, DataConfig, DatasetSpec
from ...errors import InputError, printable
from ...show.terminal import track
from ..bands import Channels
from ..datasets import THREADS, list_split, spec_of
from ..images import meanings
from ..listing import Fault, Listing
from ..named import data_of
from ..shards import File, Pair, index_path, packed_splits
from .pairs import Facts, Severity, inspect_pair
from .quick import one_class

SEVERITIES = ("error", "warning", "note")
EXIT_CODES = {"error": 2, "warning": 3, "note": 0}  # 1 is a fault of the program
KINDS = {
    "no-split": "The split cannot be listed",
    "no-access": "The folder cannot be read: look at its permissions",
    "broken-link": "The link leads to nothing: mend it, or remove it",
    "empty-split": "The split is empty",
    "unlabelled": "The split has no labels: its images can be predicted, but not trained or scored on",
    "missing-file": "The split's list names files that do not exist",
    "same-stem": "Two files have the same stem, so it is not clear which one a mask belongs to",
    "image-without-mask": "No mask has the image's stem",
    "mask-without-image": "No image has the mask's stem",
    "not-an-image": "The file lies among the images, but is not read as one",
    "empty-file": "The file has no bytes: write or copy it again",
    "unreadable": "The file cannot be read as an image or mask",
    "samples": "The image's bands or type are not those that are trained on: see bands and range in dataset.json",
    "truncated": "The file starts correctly, but its pixels are cut off or damaged: copy it again",
    "size": "Image and mask differ in size",
    "orientation": "EXIF turns the image or its mask, but not both: save both upright, without EXIF",
    "values": "The mask has values or colours that are not a class",
    "off-by-one": "The largest mask value is the number of classes, one too high: do classes start at 1?",
    "mask-kind": "Some masks are index images and some colour images: store all of them the same way",
    "lossy-mask": "The mask was saved as JPEG or interpolated: save masks as PNG, resize them with nearest neighbour",
    "palette": "The mask's own palette gives its values the colours of other classes",
    "all-ignored": "Every pixel is ignored",
    "duplicate": "The same pixels more than once: images to train on must not be scored on",
    "one-class": "The masks of the split label only one class: nothing can be learned from them",
    "unseen-class": "Validation has pixels of a class that training does not have, so it cannot be learned",
    "absent-class": "No pixel of the split has the class",
    "range": "The images have other values than 0 to 255",
    "refused": "Training refuses the pair",
}


class Finding(NamedTuple):
    """One fault or remark, about some files or a split."""

    kind: str
    severity: Severity
    split: str
    """Its name, or several names separated by commas."""
    files: tuple[File, ...]
    text: str
    pair: tuple[File, File] | None = None
    """The pair, if the finding is about one."""


@dataclass
class Split:
    """Statistics of a split."""

    name: str
    pairs: int = 0
    counted: int = 0
    """The number of sound masks; `pixels` and `masks` count these."""
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    """By label."""
    masks: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    """By label: in how many masks it occurs."""
    strays: Counter[int] = field(default_factory=Counter)
    """Mask value that is not a class -> pixels."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """(h, w) -> images."""


@dataclass(frozen=True)
class Report:
    name: str
    root: Path
    spec: DatasetSpec
    splits: Sequence[Split]
    findings: Sequence[Finding]
    """The most severe first."""
    pairs: int
    """How many were checked, each once."""
    seconds: float

    @property
    def worst(self) -> Severity:
        return self.findings[0].severity if self.findings else "note"

    @property
    def exit_code(self) -> int:
        """2 with errors, 3 with warnings only, 0 for a sound data set."""
        return EXIT_CODES[self.worst]

    @property
    def classes(self) -> list[str]:
        """Their names, to be shown."""
        return [printable(name) for name in self.spec.classes]

    def relative(self, file: File) -> str:
        return str(file).removeprefix(f"{self.root}/")

    def shown(self, file: File) -> str:
        return printable(self.relative(file))

    def groups(self) -> list[tuple[Severity, str, list[Finding]]]:
        """Findings by severity and kind."""
        grouped = defaultdict(list)
        for finding in self.findings:
            grouped[finding.severity, finding.kind].append(finding)
        return [(*key, found) for key, found in grouped.items()]


def check_source(source: str, root: str = "", split: str = "", channels: int = 0) -> Report | None:
    """Check an experiment's data set, or one by name, dataset.json or folder; None for the drawn scenes: no files.

    split: default: the two that an experiment uses, of a data set all there are. channels: of the images; default: the
    experiment's, as many as bands are named, or 3. Raises InputError where there is no data set at all.
    """
    config, experiment = data_of(source, root)
    if not config.root:
        return None
    splits = [split] if split else [config.train_split, config.val_split] if experiment else []
    usual = experiment.model.backbone.in_channels if experiment else len(spec_of(config).bands) or 3
    return check_dataset(config, splits, channels or usual)


def check_dataset(config: DataConfig, splits: Sequence[str] = (), channels: int = 3) -> Report:
    """Check every pair of the named splits of a resolved config that has a root; of all splits if none is named.

    Named splits must exist and have labels; of others it is only noted.
    """
    began = time.monotonic()
    spec = spec_of(config)
    Channels(channels, spec.bands, spec.range)  # raises InputError where they contradict each other
    findings: list[Finding] = []
    listings = {}
    for name in splits or find_splits(config):
        listing = _listing(config, name, name in splits, findings)
        if listing is not None:
            listings[name] = listing
    if not listings:  # what is only suspicious of one split
        findings = [finding._replace(severity="error") for finding in findings]
    where: dict[Pair, list[str]] = defaultdict(list)  # pair -> the splits that list it, as often as they do
    for name, listing in listings.items():
        for pair in listing.pairs:
            where[pair].append(name)
    facts = _inspect_all(list(where), partial(inspect_pair, spec=spec, channels=channels))
    _unlike_the_others(facts)
    for pair, seen in facts.items():
        names = ", ".join(dict.fromkeys(where[pair]))
        findings += [Finding(kind, severity, names, files, text, pair) for kind, severity, files, text in seen.findings]
    summaries = [_add_up(name, listing.pairs, facts, spec) for name, listing in listings.items()]
    for split in summaries:
        pairs = listings[split.name].pairs
        required = split.name in (splits or (config.train_split, config.val_split))
        findings += _of_a_split(split, {pair: facts[pair] for pair in pairs}, spec, required)
    findings += _unlike_samples(facts, where, spec)
    findings += _unseen(summaries, config)
    findings += _duplicates({pair: seen.digest for pair, seen in facts.items()}, where, config)
    for split in summaries:
        split.name = printable(split.name)
    findings = [finding._replace(split=printable(finding.split), text=printable(finding.text)) for finding in findings]
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), list(KINDS).index(finding.kind)))
    seconds = time.monotonic() - began
    return Report(config.dataset, Path(config.root), spec, summaries, findings, len(facts), seconds)


def find_splits(config: DataConfig) -> list[str]:
    """The splits for training and validation, then all others under the root."""
    root, spec = Path(config.root), spec_of(config)
    first = [config.train_split, config.val_split]
    names = packed_splits(root)
    if not names:
        patterns = [pattern for pattern in (spec.split_list or spec.images, spec.masks) if "{split}" in pattern]
        if not patterns:
            return first  # which are the same files
        pattern = PurePosixPath(patterns[0].replace("\\", "/")).as_posix()
        parts = pattern.strip("/").split("{split}")
        before, *after = map(re.escape, parts)
        exact = re.compile(before + "([^/.][^/]*)" + r"\1".join(after))
        places = sorted(root.glob("*".join(map(glob.escape, parts))))
        places = [path for path in places if os.path.isfile(path) == (patterns[0] == spec.split_list)]
        names = [match[1] for path in places if (match := exact.fullmatch(path.relative_to(root).as_posix()))]
    split_of = {there: name for name, there in spec.split_names.items()}
    return list(dict.fromkeys(first + [split_of.get(name, name) for name in names]))


def _listing(config: DataConfig, split: str, named: bool, findings: list[Finding]) -> Listing | None:
    """The split's pairs, or None if it cannot be listed. Faults of its files are added to the findings."""
    required = named or split in (config.train_split, config.val_split)
    try:
        listing = list_split(config, split)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        findings.append(Finding("no-split", "error", split, (), text))
        return None
    except InputError as error:
        packed = index_path(Path(config.root), spec_of(config).split_names.get(split, split)).is_file()
        severity: Severity = "error" if named or packed else "warning" if required else "note"
        findings.append(Finding("no-split", severity, split, (), str(error)))
        return None
    maskless = {"image-without-mask", "missing-file"}
    if not (listing.pairs or required) and listing.faults and all(fault.kind in maskless for fault in listing.faults):
        findings.append(Finding("unlabelled", "note", split, (), "its images have no masks"))
        return None
    findings += [finding for fault in listing.faults for finding in _of_a_fault(fault, split)]
    if listing.other:
        findings.append(Finding("not-an-image", "note", split, tuple(listing.other), ""))
    return listing


def _of_a_fault(fault: Fault, split: str) -> list[Finding]:
    severity: Severity = "error" if fault.sentence else "warning"
    if fault.kind == "same-stem":
        return [Finding(fault.kind, severity, split, tuple(fault.files), "")]
    text = fault.sentence if fault.kind in ("empty-split", "no-access", "broken-link") else ""
    return [Finding(fault.kind, severity, split, (file,), text) for file in fault.files]


def _inspect_all(pairs: Sequence[Pair], inspect: Callable[[Pair], Facts]) -> dict[Pair, Facts]:
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            return dict(zip(pairs, track(pool.map(inspect, pairs), "check", len(pairs)), strict=True))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _unlike_the_others(facts: Mapping[tuple[File, File], Facts]) -> None:
    """Colour masks among index masks, or the other way round."""
    kinds = Counter(seen.colours for seen in facts.values() if seen.colours is not None)
    if len(kinds) < 2:
        return
    fewer = kinds[True] <= kinds[False]
    have, others = ("colours", "values") if fewer else ("values", "colours")
    for (_, mask), seen in facts.items():
        if seen.colours is not fewer or any(kind == "mask-kind" for kind, *_ in seen.findings):
            continue
        text = f"it holds {have}, {kinds[not fewer]} others hold {others}"
        why = [i for i, (kind, *_) in enumerate(seen.findings) if kind == "values"]
        for i in why:
            seen.findings[i] = ("mask-kind", "error", (mask,), f"{text}: {seen.findings[i][3]}")
        if not why:
            seen.add("mask-kind", "warning", [mask], text)


def _unlike_samples(
    facts: Mapping[Pair, Facts], where: Mapping[Pair, list[str]], spec: DatasetSpec
) -> Iterator[Finding]:
    """Images whose bands or types are not those of the others, and what range the values of other types have."""
    kinds = Counter(seen.samples for seen in facts.values() if seen.samples)
    usual, most = kinds.most_common(1)[0] if kinds else (None, 0)
    for pair, seen in facts.items():
        if seen.samples and seen.samples != usual and not any(kind == "samples" for kind, *_ in seen.findings):
            text = f"{_bands(seen.samples)}, {most} others {_bands(usual)}"
            yield Finding("samples", "warning", ", ".join(dict.fromkeys(where[pair])), (pair[0],), text, pair)
    extents = [seen.extent for seen in facts.values() if seen.extent]
    if extents:
        least, low = (min(extent[i][0] for extent in extents) for i in (0, 1))
        greatest, high = (max(extent[i][1] for extent in extents) for i in (0, 1))
        text = f"{len(extents)} images have values from {least:g} to {greatest:g}, nearly all from {low:g} to {high:g}"
        hint = "" if spec.range else "; " + Channels().setting("range", [f"{low:g}", f"{high:g}"])
        yield Finding("range", "note", "", (), text + hint)


def _bands(samples: tuple[str, int] | None) -> str:
    return f"{samples[1]} bands of {samples[0]}" if samples else ""


def _add_up(name: str, pairs: Sequence[tuple[File, File]], facts: Mapping[tuple, Facts], spec: DatasetSpec) -> Split:
    split = Split(name, len(pairs))
    for seen in (facts[pair] for pair in pairs):
        if seen.size:
            split.sizes[seen.size] += 1
        if seen.counts is not None:
            split.counted += 1
            split.pixels += seen.counts
            split.masks += seen.counts > 0
        split.strays.update({value: count for value, count in seen.values.items() if value not in meanings(spec)})
    return split


def _of_a_split(split: Split, facts: Mapping[tuple, Facts], spec: DatasetSpec, required: bool) -> list[Finding]:
    """Findings about all masks of a split together."""
    blank = [
        (image, mask)
        for (image, mask), seen in facts.items()
        if seen.counts is not None and not seen.counts[:IGNORE].any()
    ]
    if blank and len(blank) == len(facts) and not required:
        return [Finding("unlabelled", "note", split.name, (), "every pixel of its masks is ignored")]
    severity: Severity = "error" if len(blank) == len(facts) else "warning"
    findings = [Finding("all-ignored", severity, split.name, (pair[1],), "", pair) for pair in blank]
    classes = len(spec.classes)
    used_0 = split.pixels[0] or any(0 in seen.values for seen in facts.values())
    if split.strays[classes] and not spec.label_map and not used_0:
        text = f"{classes} occurs, but 0 in no mask: the classes seem to start at 1"
        findings.append(Finding("off-by-one", "error", split.name, (), text))
    absent = [name for name, count in zip(spec.classes, split.pixels[:classes], strict=True) if not count]
    if alone := one_class(split.pixels, spec):
        findings.append(Finding("one-class", "warning", split.name, (), alone))
    elif absent and split.counted:
        findings.append(Finding("absent-class", "note", split.name, (), ", ".join(absent)))
    return findings


def _unseen(splits: Sequence[Split], config: DataConfig) -> list[Finding]:
    """Classes that occur for validation only. Nothing is reported unless every mask for training was counted."""
    named = {split.name: split for split in splits}
    train, val = named.get(config.train_split), named.get(config.val_split)
    if not (train and val and train.counted == train.pairs > 0):
        return []
    counts = zip(spec_of(config).classes, train.pixels, val.pixels, strict=False)
    unseen = [name for name, trained, scored in counts if scored and not trained]
    return [Finding("unseen-class", "warning", val.name, (), ", ".join(unseen))] if unseen else []


def _duplicates(
    digests: Mapping[Pair, bytes | None], where: Mapping[Pair, list[str]], config: DataConfig
) -> list[Finding]:
    """Images that are in two splits, or twice in one, by their pixels."""
    same_pixels: dict[bytes, list[Pair]] = defaultdict(list)
    for pair, digest in digests.items():
        if digest is not None:
            same_pixels[digest].append(pair)
    findings = []
    shared: dict[tuple[str, ...], list[File]] = defaultdict(list)  # splits -> images that each of them lists
    severity: Severity
    for pairs in same_pixels.values():
        splits = tuple(dict.fromkeys(split for pair in pairs for split in where[pair]))
        files = tuple(dict.fromkeys(pair[0] for pair in pairs))
        if len(files) == 1 and len(splits) > 1:
            shared[splits].append(files[0])
        elif len(files) > 1 or len(where[pairs[0]]) > len(splits):
            severity = "warning" if len(splits) > 1 else "note"
            text = f"the same pixels in {len(files)} files" if len(files) > 1 else "it is listed twice"
            findings.append(Finding("duplicate", severity, ", ".join(splits), files, text))
    if config.train_split == config.val_split and any(config.val_split in splits for splits in where.values()):
        findings.append(Finding("duplicate", "warning", config.val_split, (), "it is for training and for validation"))
    for splits, images in shared.items():
        severity = "warning" if {config.train_split, config.val_split} <= set(splits) else "note"
        text = f"{len(images)} image{' is' if len(images) == 1 else 's are'} in {' and '.join(splits)}"
        findings.append(Finding("duplicate", severity, ", ".join(splits), tuple(images), text))
    return findings
