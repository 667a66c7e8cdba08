"""Tables of text for the terminal and for Markdown, and the same facts as JSON and CSV."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..atomic import write_text
from ..errors import InputError


@dataclass(frozen=True)
class Grid:
    """One table: the first column is aligned left, and is the one that folds where the terminal is narrow."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def print(self, console: Console) -> None:
        table = Table(title=Text(self.title), title_justify="left", title_style="bold")
        for i, name in enumerate(self.header):
            table.add_column(Text(name), justify="right" if i else "left", no_wrap=bool(i), overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        for note in self.notes:
            console.print(note, highlight=False, markup=False)

    def markdown(self) -> str:
        rows = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        # Leading spaces are depth, which Markdown drops and code spans keep.
        lines = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"{self.title}:", "", *lines, *([""] if notes else []), *notes]) + "\n"


def _cell(text: str) -> str:
    text = text.replace("|", "/")
    return f"`{text}`" if text.startswith(" ") else text


def put_out(
    grids: Sequence[Grid], records: Any, rows: Sequence[dict[str, Any]], *, json_file: str, csv_file: str, markdown: str
) -> None:
    """Records to JSON, rows of the same keys to CSV, grids to Markdown: each to a file, to nowhere ("") or, for "-",
    to standard output. Where none of them goes there, the grids do.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    texts = {
        json_file: json.dumps(records, indent=2) + "\n",
        csv_file: table.getvalue(),
        markdown: "\n".join(grid.markdown() for grid in grids),
    }
    targets = [target for target in (json_file, csv_file, markdown) if target]
    if len(set(targets)) < len(targets):
        raise InputError("--json, --csv and --markdown need different files, and only one can go to the terminal")
    for target in targets:
        if target == "-":
            sys.stdout.write(texts[target])
        else:
            write_text(Path(target), texts[target])
    if "-" not in targets:
        console = Console()
        for grid in grids:
            grid.print(console)


def flat(record: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Objects within objects as dotted names, for CSV."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        found |= flat(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return found
