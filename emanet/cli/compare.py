"""compare RUN ...: what several runs reached, side by side."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from .flags import File, parse, shown_as


@dataclass(frozen=True)
class Compare:
    """Metrics of run folders side by side."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, shown_as("RUN ...")] = ()
    """Run folders."""
    picture: File = ""
    """Draw the curves of the runs into this file (.png, .pdf, .svg)."""

    def run(self) -> None:
        from ..analysis.compare import compare

        compare(self.runs, self.picture)


def main(arguments: list[str]) -> None:
    parse(Compare, arguments, "compare").run()
