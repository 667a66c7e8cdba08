import warnings

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.text import Text

from emanet.metrics import ConfusionMatrix
from emanet.show import fonts
from emanet.show.attention import components_figure, usage_figure
from emanet.show.figures import confusion_picture, curves_picture, new_figure, save_figure
from emanet.show.fonts import legible, with_fonts

CHINESE = ["sky", "\u5929\u7a7a", "\u9053\u8def"]
HARD = [
    *CHINESE,
    "_background_",
    "$x$ and $y",
    "a\nb",
    "long " * 50,
    "r\udce9",
    "e\u0301t\u00e9",
    "a\u200cb",
    "<b>[red]",
]


@pytest.fixture(autouse=True)
def only_matplotlibs_fonts(monkeypatch):
    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    for function in (fonts._fonts_for, fonts._tell):
        function.cache_clear()
    yield
    fonts._fonts_for.cache_clear()


def install(path, characters: str, monkeypatch) -> None:
    """A font whose glyphs are squares, as one that was installed after matplotlib first looked."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 700), (800, 700), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", *(f"g{i}" for i in range(len(characters)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): name for c, name in zip(characters, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path), str(path.parent / "broken.ttf")])
    (path.parent / "broken.ttf").write_bytes(b"no font")


def test_names_without_a_font_are_numbered_and_told_once(capsys):
    for _ in range(2):
        assert legible(CHINESE, "class") == ["sky", "class 1", "class 2"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "class 1 for \u5929\u7a7a, class 2 for \u9053\u8def" in said


def test_a_font_that_has_the_characters_is_used(tmp_path, monkeypatch, capsys):
    install(tmp_path / "squares.ttf", "\u5929\u7a7a\u9053\u8def", monkeypatch)
    assert legible(CHINESE, "class") == CHINESE
    figure = new_figure(2, 2)
    text = figure.text(0.5, 0.5, "a \u5929")
    with_fonts(figure)
    assert text.get_fontfamily()[-1] == "Squares"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "a.png")
    assert capsys.readouterr().err == ""


def test_what_a_name_may_hold_and_how_it_is_shown():
    shown = dict(zip(HARD, legible(HARD, "class"), strict=True))
    assert shown["_background_"] == " _background_", "a legend would leave it out"
    assert shown["a\nb"] == "a\\nb" and shown["e\u0301t\u00e9"] == "\u00e9t\u00e9" and shown["a\u200cb"] == "ab"
    assert shown["r\udce9"] == "r\N{REPLACEMENT CHARACTER}" and shown["<b>[red]"] == "<b>[red]"
    assert len(shown["long " * 50]) == fonts.LONGEST and "\u2026" in shown["long " * 50]
    same = ["x" * 30 + "1" + "x" * 30, "x" * 30 + "2" + "x" * 30]
    assert legible([*same, "y"], "run") == ["run 0", "run 1", "y"], "cut, they would be one name"


def test_writing_from_right_to_left_is_numbered_where_it_would_be_shuffled(monkeypatch):
    names = ["\u0633\u0645\u0627\u0621", "\u05e9\u05de\u05d9\u05d9\u05dd"]
    monkeypatch.setattr(matplotlib, "__version_info__", (3, 11, 0))
    assert legible(names, "class") == names  # DejaVu has Arabic and Hebrew
    monkeypatch.setattr(matplotlib, "__version_info__", (3, 10, 9))
    assert legible(names, "class") == ["class 0", "class 1"]


def test_every_picture_takes_every_name_without_a_warning(tmp_path, recwarn):
    n = len(HARD)
    matrix = ConfusionMatrix(HARD)
    matrix.add(torch.arange(n), torch.arange(n))
    rows = [{"kind": "train", "step": 1, "loss": 1.0, "lr": 0.1}, {"kind": "val", "step": 1, "mIoU": 0.5}]
    confusion_picture(matrix, tmp_path / "confusion.png")
    curves_picture(dict.fromkeys(HARD, rows), tmp_path / "curves.png")
    usage_figure(np.ones((n, 4)), HARD, tmp_path / "usage.png")
    components_figure(
        np.random.default_rng(0).random((n, 2)), np.arange(n), np.ones(2), HARD, [(0, 0, 0)] * n, tmp_path / "c.png"
    )
    assert len(list(tmp_path.iterdir())) == 4 and not recwarn.list


def test_the_legend_of_a_picture_has_every_class(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("emanet.show.attention.save_figure", lambda figure, path: seen.append(figure))
    components_figure(
        np.eye(2), np.arange(2), np.ones(2), ["_background_", "road"], [(0, 0, 0)] * 2, tmp_path / "c.png"
    )
    texts = {text.get_text() for text in seen[0].findobj(Text)}
    assert {" _background_ (1)", "road (1)"} <= texts
