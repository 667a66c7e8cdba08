"""The result of `data check`: a table for the terminal, JSON, and one HTML page that needs no other file."""

import base64
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from rich.bar import Bar
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...atomic import require_writable, write_json, write_text
from ...config import IGNORE, DatasetSpec
from ...errors import InputError, printable, some, utf8
from ...show.colours import IGNORE_COLOUR, rgb
from ...show.terminal import say, show
from ..bands import Channels
from ..images import meanings, read_image, read_mask_values
from ..shards import File
from .splits import KINDS, SEVERITIES, Finding, Report, Split, check_source

FIRST = 3  # of each kind: files named in the terminal, pairs shown in the page
MOST = 500  # of each kind: files named in the page; the JSON has all
STRAY = (255, 0, 255)  # the colour of mask values that are not a class
STYLES = {"error": "bold white on red", "warning": "bold black on yellow", "note": "bold white on blue"}


def check_files(source: str, root: str = "", split: str = "", channels: int = 0, json: str = "", html: str = "") -> int:
    """`data check`: check, write the JSON and the page where named, print the tables; returns the exit code.

    The other arguments are those of check_source. Raises InputError.
    """
    require_writable(json, html)
    report = check_source(source, root, split, channels)
    if report is None:
        say("The drawn scenes are not files, they are drawn when they are read: there is nothing to check.")
        return 0
    if json:
        write_json(Path(json), record(report))
    if html:
        write_text(Path(html), page(report))
    try:
        show(*tables(report))
    except SystemExit:  # how rich ends where the reader of the output (head, less) has gone
        pass
    return report.exit_code


def tables(report: Report) -> Iterator[RenderableType]:
    """What the terminal shows."""
    splits, summary = report.splits, Table()
    for i, name in enumerate(("split", "pairs", "sound masks", "images (width x height)", "ignored")):
        summary.add_column(name, justify="right" if i else "left", overflow="fold")
    for split in splits:
        ignored = f"{_share(split, IGNORE):.1%}" if split.counted else "-"
        summary.add_row(Text(split.name), str(split.pairs), str(split.counted), _sizes(split), ignored)
    if splits:
        yield summary
    if any(split.counted for split in splits):
        yield _histogram(report)
    for split in splits:
        if split.strays:
            yield Text(f"{split.name}: mask values that are not a class: {_strays(split, 4)}")
    for severity, kind, findings in report.groups():
        title = Text.assemble((f" {severity.upper()} ", STYLES[severity]), (f" {kind}", "bold"), f" ({len(findings)})")
        yield from (Text(), title, Padding(Text(_explained(kind)), (0, 0, 0, 2)))
        for finding in findings[:FIRST]:
            yield Padding(Text(": ".join(filter(None, _parts(report, finding, FIRST)))), (0, 0, 0, 4))
        if len(findings) > FIRST:
            yield Text(f"    and {len(findings) - FIRST} more: --json FILE lists all")
    yield from (Text(), Text(verdict(report)))


def verdict(report: Report) -> str:
    """The outcome in a sentence."""
    counts = [
        f"{count} {severity}{'s' * (count > 1)}"
        for severity, count in _counts(report).items()
        if count and severity != "note"
    ]
    outcome = " and ".join(counts) if counts else "sound"
    where = f"{report.name} in {report.root}" if Path(report.name) != report.root else report.name
    pairs = f"{report.pairs} pair{'s' * (report.pairs != 1)}"
    return f"{printable(where)}: {outcome}; {pairs} checked in {report.seconds:.1f} s."


def record(report: Report) -> dict[str, Any]:
    """Everything as plain JSON values; paths are relative to `root` where they are below it."""
    names = report.spec.classes
    return {
        "format": "emanet.check/1",
        "dataset": utf8(report.name),
        "root": utf8(str(report.root)),
        "exit_code": report.exit_code,
        "counts": _counts(report),
        "splits": [
            {
                "name": split.name,
                "pairs": split.pairs,
                "sound_masks": split.counted,
                "sizes": [{"height": h, "width": w, "images": n} for (h, w), n in split.sizes.most_common()],
                "pixels": dict(zip(names, split.pixels.tolist(), strict=False)),
                "masks": dict(zip(names, split.masks.tolist(), strict=False)),
                "ignored_pixels": int(split.pixels[IGNORE]),
                "values_without_class": {str(value): count for value, count in sorted(split.strays.items())},
            }
            for split in report.splits
        ],
        "findings": [
            {
                "kind": finding.kind,
                "severity": finding.severity,
                "split": finding.split,
                "files": [utf8(report.relative(file)) for file in finding.files],
                "text": finding.text,
            }
            for finding in report.findings
        ],
        "seconds": round(report.seconds, 3),
    }


def page(report: Report) -> str:
    """The report as HTML, by report.html.jinja: histograms as bars, and the first pairs of each kind as images."""
    templates = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=templates, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    splits = [
        {
            "name": split.name,
            "pairs": f"{split.pairs:,}",
            "counted": f"{split.counted:,}",
            "sizes": _sizes(split),
            "ignored": f"{_share(split, IGNORE):.2%}" if split.counted else "",
            "strays": _strays(split, 12) if split.strays else "",
        }
        for split in report.splits
    ]
    return environment.get_template("report.html.jinja").render(
        name=printable(report.name),
        verdict=verdict(report),
        worst=report.worst if report.exit_code else "sound",
        counts=_counts(report),
        splits=splits,
        counted=[split.name for split in report.splits if split.counted],
        classes=_bars(report),
        groups=[_group(report, *group) for group in report.groups()],
    )


def _bars(report: Report) -> list[dict[str, Any]]:
    """A row per class of the page's histogram, with a cell per split."""
    splits = [split for split in report.splits if split.counted]
    longest = max((_shares(report, split).max() for split in splits), default=0) or 1
    rows = []
    for label, (name, colour) in enumerate(zip(report.classes, report.spec.colours, strict=True)):
        shares = [float(_shares(report, split)[label]) for split in splits]
        cells = [
            {"share": share, "width": f"{share / longest:.2%}", "masks": int(split.masks[label])}
            for share, split in zip(shares, splits, strict=True)
        ]
        rows.append({"name": name, "rgb": "rgb({},{},{})".format(*colour), "cells": cells})
    return rows


def _group(report: Report, severity: str, kind: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """One section of the page."""
    return {
        "severity": severity,
        "kind": kind,
        "count": len(findings),
        "explained": _explained(kind),
        "figures": [figure for finding in findings[:FIRST] for figure in _figures(report, finding)],
        "lines": [_parts(report, finding, limit=10) for finding in findings[:MOST]],
    }


def _figures(report: Report, finding: Finding) -> list[dict[str, Any]]:
    """Image and mask of a pair, or two images with the same pixels."""
    if finding.pair:
        files = [(finding.pair[0], False), (finding.pair[1], True)]
    elif finding.kind == "duplicate" and finding.files:
        files = [(file, False) for file in finding.files[:2]]
    else:
        return []
    shots = [{"alt": "mask" if mask else "image", "source": _source(file, mask, report.spec)} for file, mask in files]
    return [{"caption": report.shown(files[0][0]), "shots": shots}]


def _source(file: File, mask: bool, spec: DatasetSpec, height: int = 96) -> str:
    """A small copy of an image or a coloured mask as a data URI; nothing where the file cannot be read."""
    channels = Channels(len(spec.bands) or 3, spec.bands, spec.range)
    try:
        image = Image.fromarray(_coloured(file, spec) if mask else rgb(read_image(file, channels)))
    except InputError:
        return ""
    size = max(round(image.width * height / image.height), 1), height
    image = image.resize(size, Image.Resampling.NEAREST if mask else Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    if mask:
        image.save(stream, "PNG")
    else:
        image.save(stream, "JPEG", quality=80)
    return f"data:image/{'png' if mask else 'jpeg'};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _coloured(file: File, spec: DatasetSpec) -> np.ndarray:
    """(H, W, 3) uint8 of a mask, which may hold values that are not a class."""
    values = read_mask_values(file)
    if values.ndim == 3:
        return values
    coloured = np.full((*values.shape, 3), STRAY, np.uint8)
    for value, label in meanings(spec).items():
        coloured[values == value] = IGNORE_COLOUR if label == IGNORE else spec.colours[label]
    return coloured


def _histogram(report: Report) -> Table:
    splits = [split for split in report.splits if split.counted]
    unicode = "utf" in (sys.stdout.encoding or "utf-8").lower()
    longest = max(_shares(report, split).max() for split in splits) or 1
    table = Table()
    table.add_column("class", overflow="fold")
    for split in splits:
        table.add_column(Text(f"{split.name} %"), justify="right")
        if len(splits) <= 2:
            table.add_column("masks", justify="right")
            if unicode:
                table.add_column("")
    for label, name in enumerate(report.classes):
        row: list[RenderableType] = [Text(name)]
        for split in splits:
            share = float(_shares(report, split)[label])
            row.append(f"{share:.2%}".rstrip("%"))
            if len(splits) <= 2:
                row.append(str(split.masks[label]))
                if unicode:
                    row.append(Bar(longest, 0, share, width=11))
        table.add_row(*row)
    return table


def _explained(kind: str) -> str:
    return KINDS[kind] + "." * (not KINDS[kind].endswith("?"))


def _parts(report: Report, finding: Finding, limit: int) -> tuple[str, str]:
    """The files, or the split where there are none; and what is wrong with them."""
    return some(map(report.shown, finding.files), limit) or finding.split, finding.text


def _share(split: Split, label: int) -> float:
    return split.pixels[label] / max(split.pixels.sum(), 1)


def _shares(report: Report, split: Split) -> np.ndarray:
    """Share of the labelled pixels, per class."""
    pixels = split.pixels[: len(report.classes)]
    return pixels / max(pixels.sum(), 1)


def _counts(report: Report) -> dict[str, int]:
    return {severity: sum(finding.severity == severity for finding in report.findings) for severity in SEVERITIES}


def _sizes(split: Split) -> str:
    names = [f"{w}x{h}" for (h, w), _ in split.sizes.most_common()]
    return f"{names[0]}, {len(names) - 1} more" if len(names) > 1 else "".join(names)


def _strays(split: Split, limit: int) -> str:
    return some([f"{value} ({count} pixels)" for value, count in split.strays.most_common()], limit)
