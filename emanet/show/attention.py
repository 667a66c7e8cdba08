"""Figures of the EM attention: which pixels the bases take, over the iterations and for each class.

Arrays in; arrays (H, W, 3) uint8 or files out. All heat maps of a figure share one scale, from 0 to `top`. The figures
of an image are panels and their titles, which Pillow draws: matplotlib, which the two figures of a split need, would
take longer to lay them out than the network takes for the image.
"""

import math
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..atomic import replacing
from .colours import Palette, rgb
from .figures import new_figure, save_figure
from .fonts import legible

Array = np.ndarray
Panel = tuple[Array, str]
"""A picture (h, w, 3) uint8 and its title."""
HEAT = ((74, 20, 134), (150, 30, 120), (214, 50, 80), (244, 110, 40), (253, 180, 40), (255, 245, 120))
"""Colours of 0 to 1 in equal steps, dark to light; the smaller the value, the less of its colour covers the image."""
SIDE = 400  # pixels of a panel's longer side
LINE = 26  # pixels of a line of text
GAP = 14  # pixels between panels
PNG_LEVEL = 1  # of zlib's 9; the default takes four times as long and makes heat maps larger


def heat_map(image: Array, z: Array, top: float = 1.0) -> Array:
    """The image in pale grey under the colours of z from 0 to `top`: (H, W, 3) uint8. image: (H, W, C), z: (H, W)."""
    share = np.clip(z / max(top, 1e-12), 0, 1).astype(np.float32)
    pale = 70 + (rgb(image) @ np.full(3, 0.65 / 3, np.float32))[..., None]
    alpha = 0.85 * np.sqrt(share)[..., None]
    colours = _heat().take(np.rint(255 * share).astype(np.intp), axis=0)  # three times as fast as _heat()[...]
    return np.rint(pale + alpha * (colours - pale)).astype(np.uint8)


@cache
def _heat() -> Array:
    """(256, 3) float32: the colours of 0 to 1."""
    places, steps = np.linspace(0, 1, 256), np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(places, steps, channel) for channel in np.array(HEAT).T], 1).astype(np.float32)


def fitted(picture: Array) -> Array:
    """(H, W, 3) uint8 or (H, W) float32, its longer side resized to SIDE; pixels that are enlarged stay squares."""
    h, w = picture.shape[:2]
    size = max(1, round(w * SIDE / max(h, w))), max(1, round(h * SIDE / max(h, w)))
    how = Image.Resampling.HAMMING if max(h, w) > SIDE else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize(size, how))


def owners_picture(owners: Array) -> Array:
    """(H, W) numbers of bases -> (H, W, 3) uint8 in base_colours."""
    return base_colours(int(owners.max()) + 1)[owners]


def owners_overlay(image: Array, owners: Array, alpha: float = 0.55) -> Array:
    """alpha * owners_picture + (1 - alpha) * image: (H, W, 3) uint8."""
    return np.rint(alpha * owners_picture(owners) + (1 - alpha) * rgb(image).astype(np.float32)).astype(np.uint8)


def base_colours(count: int) -> Array:
    """(count, 3) uint8: a base has the same colour in every figure and for every count; from 256 on they repeat.

    The hue advances by the golden ratio, so that each base falls between the hues before it, and saturation and
    brightness take turns of 4 and 7: of 64 colours, any two differ by 40 or more, summed over RGB.
    """
    k = np.arange(count) % 256
    hsv = np.stack([k * 0.6180339887 % 1, 0.3 + 0.7 * (k * 3 % 4) / 3, 0.6 + 0.4 * (k * 4 % 7) / 6], axis=1)
    return np.rint(255 * np.array([hsv_to_rgb(*row) for row in hsv.tolist()])).astype(np.uint8)


def responsibilities_figure(
    image: Array, heat_maps: Mapping[int, Array], shares: Array, top: float, when: str, path: str | Path
) -> None:
    """The image, and the heat map of each base with its share of the pixels. when: the iteration, for the legend."""
    panels = [(rgb(image), "image")]
    panels += [(picture, f"base {base}: {_percent(shares[base])}") for base, picture in heat_maps.items()]
    columns = -(-len(panels) // -(-len(panels) // 4))  # at most four, and rows as even as possible
    label = f"responsibility in {when}; percent: pixels of which the base has the largest share"
    _save([_grid(_fitted(panels), columns), _scale(top, label)], path)


def owners_figure(
    image: Array, classes: Array, owners: Array, shares: Array, named: Sequence[int], path: str | Path
) -> None:
    """The image, its classes in colours (H, W, 3), and the base that owns each pixel; a legend of the named bases."""
    panels = [
        (rgb(image), "image"),
        (classes, "predicted classes"),
        (owners_picture(owners), "base of the largest responsibility"),
        (owners_overlay(image, owners), "the same over the image"),
    ]
    colours = base_colours(len(shares))
    legend = [(np.tile(colours[k], (LINE // 2, 90, 1)), f"{k}: {_percent(shares[k])}") for k in named]
    others = int((shares > 0).sum()) - len(named)
    if others:
        rest = 1 - shares[list(named)].sum()
        legend.append((np.full((1, 1, 3), 255, np.uint8), f"{others} more: {_percent(rest)}"))
    _save([_grid(_fitted(panels), 4), _grid(legend, 9)], path)


def iterations_figure(
    heat_maps: Mapping[int, Sequence[Array]],
    top: float,
    entropy: Array,
    strongest: Array,
    num_bases: int,
    path: str | Path,
) -> None:
    """A column per iteration: the entropy (nats) and the largest responsibility, both also as bars; a row per base.

    heat_maps: base -> its heat map at t = 1..T. entropy, strongest: (T,).
    """
    panels: list[Panel] = []
    for t, nats in enumerate(entropy, 1):
        share = nats / (math.log(num_bases) or 1)
        title = f"t = {t}: entropy {nats:z.2f} nats, {100 * share:z.0f} % of log K"
        panels.append((_bar(share, (31, 119, 180)), title))
    panels += [(_bar(most, (255, 127, 14)), f"largest responsibility {most:.2f}") for most in strongest]
    for base, pictures in heat_maps.items():
        panels += _fitted([(picture, f"base {base}, t = {t}") for t, picture in enumerate(pictures, 1)])
    label = f"responsibility; the bars are means over the map's pixels; the entropy is at most log K, K = {num_bases}"
    _save([_grid(panels, len(entropy)), _scale(top, label)], path)


def usage_figure(usage: Array, classes: Sequence[str], path: str | Path) -> None:
    """usage (classes, K): rows in the order of the classes, columns are bases; grey rows (NaN): classes never seen."""
    count, bases = usage.shape
    cell = min(0.3, 12 / bases)
    figure = new_figure(cell * bases + 3, max(0.26 * count, 1.5) + 1.2)
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    picture = axes.imshow(np.ma.masked_invalid(usage), cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(count), legible(classes, "class"), fontsize=9)
    step = -(-bases // 64) * (1 if cell > 0.25 else 2)
    axes.set_xticks(range(0, bases, step), [str(base) for base in range(0, bases, step)], fontsize=8)
    axes.set_xlabel("base", fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(picture, ax=axes, label="mean responsibility", pad=0.01)
    save_figure(figure, path)


def components_figure(
    points: Array, labels: Array, shares: Array, classes: Sequence[str], palette: Palette, path: str | Path
) -> None:
    """A dot for every class of every image, at its projection on the first two principal components.

    points: (n, 2); labels: (n,) classes; shares: (2,) of the variance.
    """
    from matplotlib.lines import Line2D

    extent = np.maximum(np.ptp(points, axis=0), 1e-9)
    figure = new_figure(7.2, float(np.clip(5.2 * extent[1] / extent[0], 3, 7)) + 0.6)
    axes = figure.add_subplot()
    colours = np.array(palette) / 255
    # In the order of the images, so that no class lies on top of the others.
    x, y = points.T
    axes.scatter(x, y, s=16, c=colours[labels], edgecolors="0.25", linewidths=0.4)
    names = legible(classes, "class")
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colours[label], label=f"{names[label]} ({count})")
        for label, count in enumerate(np.bincount(labels, minlength=len(classes)))
        if count
    ]
    axes.set_xlabel(f"first component ({_percent(shares[0])} of the variance)", fontsize=9)
    axes.set_ylabel(f"second component ({_percent(shares[1])})", fontsize=9)
    axes.set_aspect("equal", "datalim")
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    style = dict(frameon=False, fontsize=8, title="class (images)", title_fontsize=9, ncols=-(-len(handles) // 24))
    figure.legend(handles=handles, loc="outside right upper", **style)
    save_figure(figure, path)


def _fitted(panels: Sequence[Panel]) -> list[Panel]:
    return [(fitted(picture), title) for picture, title in panels]


def _bar(share: float, colour: tuple[int, int, int]) -> Array:
    """(h, SIDE, 3) uint8: filled from the left by this share."""
    bar = np.full((LINE // 2, SIDE, 3), 232, np.uint8)
    bar[:, : round(SIDE * share)] = colour
    return bar


def _grid(panels: Sequence[Panel], columns: int) -> Image.Image:
    """Rows of panels, each in the middle of its cell and under its title."""
    columns = min(columns, len(panels))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [LINE + max(len(picture) for picture, _ in row) + GAP for row in rows]
    cell = GAP + max(max(picture.shape[1], math.ceil(_font().getlength(title))) for picture, title in panels)
    sheet = Image.new("RGB", (cell * columns, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        y = sum(heights[:i])
        for j, (picture, title) in enumerate(row):
            draw.text((cell * (j + 0.5), y + LINE / 2), title, "black", _font(), anchor="mm")
            sheet.paste(Image.fromarray(picture), (cell * j + (cell - picture.shape[1]) // 2, y + LINE))
    return sheet


def _scale(top: float, label: str) -> Image.Image:
    """The colours of heat maps from 0 to `top`, over middle grey, with five values and a label below them."""
    long, edge = 800, 60
    colours = heat_map(np.full((18, long, 1), 128, np.uint8), np.linspace(0, 1, long)[None])
    strip = Image.new("RGB", (long + 2 * edge, 18 + 2 * LINE), "white")
    strip.paste(Image.fromarray(colours), (edge, 0))
    draw = ImageDraw.Draw(strip)
    for share in (0, 0.25, 0.5, 0.75, 1):
        draw.text((edge + long * share, 18 + LINE / 2), f"{top * share:#.2g}", "black", _font(), anchor="mm")
    draw.text((strip.width / 2, 18 + LINE * 1.5), label, "black", _font(), anchor="mm")
    return strip


@cache
def _font():
    return ImageFont.load_default(18)


def _save(parts: Sequence[Image.Image], path: str | Path) -> None:
    """Write the parts below each other, each in the middle, as a PNG; missing folders are made."""
    sheet = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    y = 0
    for part in parts:
        sheet.paste(part, ((sheet.width - part.width) // 2, y))
        y += part.height
    with replacing(Path(path), durable=False) as temporary:  # it can be drawn again
        sheet.save(temporary, "PNG", compress_level=PNG_LEVEL)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"
