"""What `data check` found, as a table for the terminal, as JSON, and as one HTML page that needs nothing else."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.bar import Bar
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...config import IGNORE, DatasetSpec
from ...errors import InputError, some
from ...show.colours import IGNORE_COLOUR
from ..images import meanings, read_image, read_mask_values
from .pairs import File
from .splits import KINDS, SEVERITIES, Finding, Report, Split, printable, utf8

FIRST = 3  # files named in the terminal, and pairs pictured in the page, of a kind
MOST = 500  # files named in the page, of a kind; the JSON has all
STRAY = (255, 0, 255)  # in pictures of masks: a value that is no class
STYLES = {"error": "bold white on red", "warning": "bold black on yellow", "note": "bold white on blue"}


def print_report(report: Report, console: Console) -> None:
    splits, first = report.splits, Table()
    for i, name in enumerate(("split", "pairs", "sound masks", "images (width x height)", "ignored")):
        first.add_column(name, justify="right" if i else "left", overflow="fold")
    for split in splits:
        ignored = f"{_share(split, IGNORE):.1%}" if split.counted else "-"
        first.add_row(Text(split.name), str(split.pairs), str(split.counted), _sizes(split), ignored)
    if splits:
        console.print(first)
    if any(split.counted for split in splits):
        console.print(_histogram(report, console))
    for split in splits:
        if split.strays:
            said = f"{split.name}: mask values that are no class: {some(_strays(split), 4)}"
            console.print(said, markup=False, highlight=False)
    for severity, kind, found in report.groups():
        title = Text.assemble((f" {severity.upper()} ", STYLES[severity]), (f" {kind}", "bold"), f" ({len(found)})")
        console.print()
        console.print(title)
        console.print(Padding(Text(_explained(kind)), (0, 0, 0, 2)))
        for finding in found[:FIRST]:
            console.print(Padding(Text(_line(report, finding)), (0, 0, 0, 4)))
        if len(found) > FIRST:
            console.print(f"    and {len(found) - FIRST} more: --json FILE lists all", highlight=False)
    console.print()
    console.print(verdict(report), markup=False, highlight=False)


def verdict(report: Report) -> str:
    """The outcome in a sentence."""
    counts = [
        f"{count} {severity}{'s' * (count > 1)}"
        for severity, count in _counts(report).items()
        if count and severity != "note"
    ]
    found = " and ".join(counts) if counts else "sound"
    where = f"{report.name} in {report.root}" if Path(report.name) != report.root else report.name
    pairs = f"{report.pairs} pair{'s' * (report.pairs != 1)}"
    return f"{printable(where)}: {found}; {pairs} looked at in {report.seconds:.1f} s."


def record(report: Report) -> dict[str, Any]:
    """Everything as plain JSON values; paths are under `root`, or else whole."""
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
    """The report as HTML: histograms as bars, and pictures of the first pairs of each kind."""
    worst = report.worst if report.exit_code else "sound"
    name = printable(report.name)
    counts = "".join(f"<b class='{key}'>{n} {key}{'s' * (n != 1)}</b>" for key, n in _counts(report).items() if n)
    rows = "".join(
        f"<tr><th>{escape(split.name)}<td>{split.pairs:,}<td>{split.counted:,}<td>{escape(_sizes(split))}"
        f"<td>{f'{_share(split, IGNORE):.2%}' if split.counted else ''}"
        for split in report.splits
    )
    strays = "".join(
        f"<p>{escape(split.name)}: mask values that are no class: {escape(some(_strays(split), 12))}"
        for split in report.splits
        if split.strays
    )
    return f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(name)}: data check</title><style>{STYLE}</style>
<header class="{worst}"><h1>{escape(name)}</h1><p>{escape(verdict(report))}<p>{counts}</header>
<main><h2>Splits</h2><div class="wide"><table><tr><th>split<th>pairs<th>sound masks<th>images (width x height)
<th>ignored{rows}</table></div>{strays}
<h2>Classes</h2><p>Share of the labelled pixels of the sound masks, and in how many masks the class occurs.
<div class="wide">{_bars(report)}</div>
<h2>Findings</h2><p>In pictures of masks, magenta is what is no class, cream what is ignored.
{"".join(_section(report, *group) for group in report.groups()) or "<p>There are none."}</main></html>
"""


STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#667;--line:#d9dde4;--paper:#fff;--card:#f6f7f9;
--error:#c62f3b;--warning:#b77900;--note:#3567b0;--sound:#24834b}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--soft:#9aa3b2;--line:#363d49;--paper:#14181f;--card:#1c222b;
--error:#ee6a73;--warning:#e0a83a;--note:#77a5ea;--sound:#5cc487}}
body{margin:0;font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
header{padding:1.2rem 2rem;border-left:10px solid;background:var(--card)}
header.error{border-color:var(--error)}header.warning{border-color:var(--warning)}header.sound{border-color:var(--sound)}
h1{margin:0;font-size:1.5rem;overflow-wrap:anywhere}h2{margin:2rem 0 .5rem;font-size:1.2rem}
p{margin:.3rem 0;overflow-wrap:anywhere}main{padding:0 2rem 3rem;max-width:75rem}.wide{overflow-x:auto}
b.error,b.warning,b.note{color:#fff;border-radius:1em;padding:.1em .7em;margin-right:.5em;font-size:.85em}
b.error{background:#c62f3b}b.warning{background:#a66e00}b.note{background:#3567b0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.2rem .7rem;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,th.split{text-align:left}tr:first-child th{color:var(--soft);font-weight:500}
td.bar{width:14rem;padding-right:0}td.bar i{display:block;height:.9em;border-radius:2px;min-width:1px;
box-shadow:inset 0 0 0 1px #8886}td.none{color:var(--soft)}
.swatch{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin-right:.5em;vertical-align:-.1em;
box-shadow:inset 0 0 0 1px #8886}
section{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;margin:.8rem 0}
section h3{margin:0;font-size:1rem}ul{margin:.4rem 0;padding-left:1.2rem}li{overflow-wrap:anywhere}
li span{color:var(--soft)}code{font-size:.92em}summary{cursor:pointer}
.pictures{display:flex;flex-wrap:wrap;gap:.8rem}figure{margin:.5rem 0;max-width:26rem}
figure img{height:96px;border-radius:3px;margin-right:4px}figcaption{font-size:.8em;color:var(--soft);
overflow-wrap:anywhere}.gone{display:inline-block;height:96px;width:96px;border:1px dashed var(--soft);
border-radius:3px;text-align:center;line-height:96px;font-size:.8em;color:var(--soft);margin-right:4px;
vertical-align:top;box-sizing:border-box}
"""


def _bars(report: Report) -> str:
    splits = [split for split in report.splits if split.counted]
    longest = max((_shares(report, split).max() for split in splits), default=0) or 1
    names = "".join(f"<th class=split>{escape(split.name)}<th>pixels<th>masks" for split in splits)
    rows = []
    for label, (name, colour) in enumerate(zip(report.spec.classes, report.spec.colours, strict=True)):
        rgb = "rgb({},{},{})".format(*colour)
        cells = []
        for split in splits:
            share, masks = _shares(report, split)[label], int(split.masks[label])
            bar = f"<i style='width:{share / longest:.2%};background:{rgb}'></i>" if share else ""
            grey = "" if share else " class=none"
            cells.append(f"<td class=bar>{bar}<td{grey}>{share:.2%}<td{grey}>{masks:,}")
        rows.append(f"<tr><th><span class=swatch style='background:{rgb}'></span>{escape(name)}{''.join(cells)}")
    return f"<table><tr><th>class{names}{''.join(rows)}</table>"


def _section(report: Report, severity: str, kind: str, found: Sequence[Finding]) -> str:
    pictures = "".join(_figure(report, finding) for finding in found[:FIRST])
    items = "".join(f"<li>{_item(report, finding)}" for finding in found[:MOST])
    more = f"<p>and {len(found) - MOST:,} more, which the JSON lists" if len(found) > MOST else ""
    return (
        f"<section><h3><b class='{severity}'>{severity}</b>{kind} ({len(found):,})</h3><p>{escape(_explained(kind))}"
        f"<div class=pictures>{pictures}</div>"
        f"<details{' open' * (len(found) <= 10)}><summary>files</summary><ul>{items}</ul>{more}</details></section>"
    )


def _item(report: Report, finding: Finding) -> str:
    where, text = _parts(report, finding, limit=10)
    return f"<code>{escape(where)}</code> <span>{escape(text)}</span>"


def _figure(report: Report, finding: Finding) -> str:
    """Image and mask of a pair, or two images that are alike."""
    if finding.pair:
        shown = [(finding.pair[0], False), (finding.pair[1], True)]
    elif finding.kind == "duplicate":
        shown = [(file, False) for file in finding.files[:2]]
    else:
        return ""
    pictures = "".join(_picture(file, mask, report.spec) for file, mask in shown)
    return f"<figure>{pictures}<figcaption>{escape(report.shown(shown[0][0]))}</figcaption></figure>"


def _picture(file: File, mask: bool, spec: DatasetSpec, height: int = 96) -> str:
    try:
        image = Image.fromarray(_coloured(file, spec) if mask else read_image(file))
    except InputError:
        return "<span class=gone>unreadable</span>"
    size = max(round(image.width * height / image.height), 1), height
    nearest, smooth = Image.Resampling.NEAREST, Image.Resampling.BILINEAR
    image = image.resize(size, nearest if mask else smooth)
    stream = io.BytesIO()
    image.save(stream, **({"format": "PNG"} if mask else {"format": "JPEG", "quality": 80}))
    kind, code = "png" if mask else "jpeg", base64.b64encode(stream.getvalue()).decode()
    return f"<img alt='{'mask' if mask else 'image'}' src='data:image/{kind};base64,{code}'>"


def _coloured(file: File, spec: DatasetSpec) -> np.ndarray:
    """(H, W, 3) uint8 of a mask, also of one with values that are no class."""
    values = read_mask_values(file)
    if values.ndim == 3:
        return values
    picture = np.full((*values.shape, 3), STRAY, np.uint8)
    for value, label in meanings(spec).items():
        picture[values == value] = IGNORE_COLOUR if label == IGNORE else spec.colours[label]
    return picture


def _histogram(report: Report, console: Console) -> Table:
    splits = [split for split in report.splits if split.counted]
    drawn = len(splits) <= 2 and "utf" in console.encoding.lower()
    longest = max(_shares(report, split).max() for split in splits) or 1
    table = Table()
    table.add_column("class", overflow="fold")
    for split in splits:
        table.add_column(Text(f"{split.name} %"), justify="right")
        if len(splits) <= 2:
            table.add_column("masks", justify="right")
        if drawn:
            table.add_column("")
    for label, name in enumerate(report.spec.classes):
        row: list[Any] = [Text(name)]
        for split in splits:
            share = float(_shares(report, split)[label])
            row.append(f"{share:.2%}".rstrip("%"))
            row += [str(split.masks[label])] * (len(splits) <= 2) + [Bar(longest, 0, share, width=11)] * drawn
        table.add_row(*row)
    return table


def _explained(kind: str) -> str:
    return KINDS[kind] + "." * (not KINDS[kind].endswith("?"))


def _line(report: Report, finding: Finding) -> str:
    return ": ".join(filter(None, _parts(report, finding, FIRST)))


def _parts(report: Report, finding: Finding, limit: int) -> tuple[str, str]:
    """Which files, or which split where there are none; what is said of them."""
    return some(map(report.shown, finding.files), limit) or finding.split, finding.text


def _share(split: Split, label: int) -> float:
    return split.pixels[label] / max(split.pixels.sum(), 1)


def _shares(report: Report, split: Split) -> np.ndarray:
    """Of the labelled pixels, per class."""
    pixels = split.pixels[: len(report.spec.classes)]
    return pixels / max(pixels.sum(), 1)


def _counts(report: Report) -> dict[str, int]:
    return {severity: sum(finding.severity == severity for finding in report.findings) for severity in SEVERITIES}


def _sizes(split: Split) -> str:
    names = [f"{w}x{h}" for (h, w), _ in split.sizes.most_common()]
    return f"{names[0]}, {len(names) - 1} more" if len(names) > 1 else "".join(names)


def _strays(split: Split) -> Iterable[str]:
    return [f"{value} ({count} pixels)" for value, count in split.strays.most_common()]
