"""The log of a run, read back."""

import json
from pathlib import Path
from typing import Any

from ..errors import InputError


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's log.jsonl by step; of rows repeated by a resumed run, the last.

    A line that is no JSON object is skipped: a crash cuts one off, and a resumed run may go on behind it.
    """
    path = Path(folder) / "log.jsonl"
    try:
        rows = read_rows(path)
    except OSError as error:
        raise InputError(f"{folder} is not a run: cannot read {path}: {error.strerror}") from error
    if not rows:
        raise InputError(f"{path} holds no row of a training yet")
    return rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The same of a file, which may hold none; OSError where there is no file."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = {}
    for line in lines:
        try:
            row = json.loads(line)
            rows[row["kind"], row["step"]] = row
        except (ValueError, TypeError, KeyError):
            continue
    return sorted(rows.values(), key=lambda row: row["step"])
