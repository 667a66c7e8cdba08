"""Names in pictures, in any script: by the fonts that have their characters, or by number where there is none.

axes.set_yticks(range(n), legible(classes, "class"))
with_fonts(figure)    # before it is saved: fonts for what its texts hold
"""

import contextlib
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import printable, some
from .terminal import note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 40  # characters of a name in a picture; of longer ones the middle is left out
SHAPED_SINCE = (3, 11)  # matplotlib's version; before it, Arabic stands in single letters and from left to right


def legible(names: Sequence[str], kind: str) -> list[str]:
    """The names as a picture shows them; "KIND 3" for the fourth where no font has its characters, told in a note.

    A long name is cut, and numbered if it would look like another one then. Needs matplotlib.
    """
    shown = [_short(name) for name in names]
    without = _without_font("".join(shown))
    numbered = {i for i, name in enumerate(shown) if shown.count(name) > 1 or without & set(name) or _shuffled(name)}
    for i in numbered:
        shown[i] = f"{kind} {i}"
    if numbered:
        _tell(f"pictures say {some(f'{kind} {i} for {names[i]}' for i in sorted(numbered))}")
    return [f" {name}" if name[:1] == "_" else name for name in shown]  # matplotlib's legends leave out "_a"


@cache
def _tell(text: str) -> None:
    """Once, however many pictures show these names."""
    note(f"note: no installed font can draw some names, so {text}; the fonts named Noto cover every script")


def with_fonts(figure: "Figure") -> None:
    """Let every text of the figure fall back on the fonts that its characters need; no text is a formula."""
    from matplotlib.text import Text

    texts: Any = figure.findobj(Text)
    more = _fonts_for(frozenset().union(*(text.get_text() for text in texts)))[0]
    for text in texts:
        text.set_parse_math(False)  # of "$5 and $10", which would be refused
        if more:
            text.set_fontfamily([*text.get_fontfamily(), *more])


def _short(name: str) -> str:
    """On one line, composed (e and its accent as one character) and without the marks that have no glyph."""
    name = unicodedata.normalize("NFC", name)
    name = printable("".join(c for c in name if unicodedata.category(c) != "Cf"))
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 16]}…{name[-15:]}"


def _without_font(text: str) -> frozenset[str]:
    return _fonts_for(frozenset(text))[1]


def _shuffled(name: str) -> bool:
    """Whether this matplotlib would draw the characters one by one, though they join, turn or stand on each other."""
    import matplotlib

    if matplotlib.__version_info__[:2] >= SHAPED_SINCE:
        return False
    return any(unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c)[0] == "M" for c in name)


@cache
def _fonts_for(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The fewest families that have what the default font lacks of the characters; and what none of them has."""
    from matplotlib import font_manager

    manager: Any = font_manager.fontManager
    missing = {c for c in characters if not c.isspace()}
    missing -= _drawn_by(font_manager.findfont(font_manager.FontProperties()), missing)
    families: list[str] = []
    for look_further in (False, True):  # matplotlib remembers what was installed when it was first used
        if look_further and missing:
            for path in set(font_manager.findSystemFonts()) - {font.fname for font in manager.ttflist}:
                with contextlib.suppress(Exception):  # damaged, or a bitmap that cannot be scaled
                    manager.addfont(path)
        while missing:
            upright = sorted(manager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400))
            drawn = [(font.name, _drawn_by(font.fname, missing)) for font in upright if "Last Resort" not in font.name]
            name, most = max(drawn, key=lambda pair: len(pair[1]), default=("", set()))
            if not most:
                break
            families.append(name)
            missing -= most
    return tuple(families), frozenset(missing)


def _drawn_by(path: str, characters: Iterable[str]) -> set[str]:
    """Which of the characters a font file has."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return {c for c in characters if font.get_char_index(ord(c))}
    except (OSError, RuntimeError):  # removed since matplotlib looked, or damaged
        return set()
