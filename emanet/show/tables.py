"""Tables for the terminal and for Markdown, and the same facts as JSON and CSV."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..atomic import write_text
from ..errors import InputError, printable
from .terminal import say, show


@dataclass(frozen=True)
class Grid:
    """A table of texts. The first column is aligned left, and is the one that folds where the terminal is narrow."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    """Sentences below the table."""

    def __rich__(self) -> Group:
        table = Table(title=Text(self.title), title_justify="left", title_style="bold")
        for i, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        return Group(table, *map(Text, self.notes))

    def markdown(self) -> str:
        rows = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        lines = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"{self.title}:", "", *lines, *([""] if notes else []), *notes]) + "\n"


def _cell(text: str) -> str:
    """A Markdown cell: leading spaces, which show depth, survive only in a code span."""
    text = text.replace("|", "/")
    return f"`{text}`" if text.startswith(" ") else text


@dataclass(frozen=True)
class Row:
    """One quantity of several runs."""

    values: Sequence[float | None]
    """One per run; None: unknown."""
    text: Callable[[Any], str]
    """How a value is written."""
    better: int = 0
    """+1: more is better, -1: less is better, 0: neither."""


def side_by_side(title: str, names: Sequence[str], rows: Mapping[str, Row], *, differences: bool = False) -> Table:
    """One column per run, with the best value of each row in bold.

    differences: beside each value, 100 times its difference from the first run's.
    """
    table = Table(title=Text(title) if title else None, title_justify="left", title_style="bold")
    table.add_column("", overflow="fold")
    for name in names:
        table.add_column(Text(printable(name)), justify="right", overflow="fold")
    for name, row in rows.items():
        finite = [row.better * value for value in row.values if value is not None and math.isfinite(value)]
        best = max(finite) if row.better and len(row.values) > 1 and finite else None
        first, cells = row.values[0], []
        for i, value in enumerate(row.values):
            cell = Text("-" if value is None else row.text(value))
            if value is not None and row.better * value == best:
                cell.stylize("bold")
            if differences and i and value is not None and first is not None:
                cell.append(f" {100 * (value - first):+.2f}", "dim not bold")
            cells.append(cell)
        table.add_row(Text(printable(name)), *cells)
    return table


def put_out(
    grids: Sequence[Grid], records: Any, rows: Sequence[dict[str, Any]], *, json_file: str, csv_file: str, markdown: str
) -> None:
    """Write records as JSON, rows (of the same keys) as CSV and grids as Markdown.

    Each goes to a file, to nowhere ("") or to standard output ("-"). If none goes there, the grids are shown.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    texts = {
        json_file: json.dumps(records, indent=2),
        csv_file: table.getvalue().removesuffix("\n"),
        markdown: "\n".join(grid.markdown() for grid in grids).removesuffix("\n"),
    }
    for target in filter(None, texts):
        if target == "-":
            say(texts[target])
        else:
            write_text(Path(target), texts[target] + "\n")
    if "-" not in texts:
        show(*grids)


def require_different(json_file: str, csv_file: str, markdown: str) -> None:
    """InputError where put_out would write two of them to one place."""
    targets = [target for target in (json_file, csv_file, markdown) if target]
    if len(set(targets)) < len(targets):
        raise InputError("--json, --csv and --markdown need different files, and only one can go to the terminal")


def flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A record for CSV: the keys of nested objects become dotted names."""
    columns: dict[str, Any] = {}
    for key, value in record.items():
        columns |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return columns
