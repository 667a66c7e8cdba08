"""Figures of the EM attention: which pixels the bases take, over the iterations and for each class.

Arrays in; arrays (H, W, 3) uint8 or files out. All heat maps of a figure share one scale, from 0 to `top`. All but
the colours of bases needs matplotlib.
"""

from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from functools import cache
from pathlib import Path

import numpy as np

from .colours import Palette, rgb
from .figures import new_figure, save_figure
from .fonts import legible

Array = np.ndarray
HEAT = ((74, 20, 134), (150, 30, 120), (214, 50, 80), (244, 110, 40), (253, 180, 40), (255, 245, 120))
"""Colours of 0 to 1 in equal steps, dark to light; the smaller the value, the less of its colour covers the image."""
WIDTH = 11.0  # inches of a figure with a row of panels


def heat_map(image: Array, z: Array, top: float = 1.0) -> Array:
    """The image in pale grey under the colours of z from 0 to `top`: (H, W, 3) uint8. image: (H, W, C), z: (H, W)."""
    share = np.clip(z / max(top, 1e-12), 0, 1)
    pale = 70 + 0.65 * rgb(image).mean(2)[..., None]
    alpha = 0.85 * np.sqrt(share)[..., None]
    return np.rint(alpha * 255 * _heat()(share)[..., :3] + (1 - alpha) * pale).astype(np.uint8)


@cache
def _heat():
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("heat", np.array(HEAT) / 255)


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
    columns = _columns(image, len(panels))
    figure, axes = _grid(image, -(-len(panels) // columns), columns, 0.5)
    for place, (picture, title) in zip(axes.flat, panels, strict=False):
        _show(place, picture, title)
    _heat_bar(figure, axes, top, f"responsibility in {when}; percent: pixels of which the base has the largest share")
    save_figure(figure, path)


def owners_figure(
    image: Array, classes: Array, owners: Array, shares: Array, named: Sequence[int], path: str | Path
) -> None:
    """The image, its classes in colours (H, W, 3), and the base that owns each pixel; a legend of the named bases."""
    from matplotlib.patches import Patch

    panels = [
        (rgb(image), "image"),
        (classes, "predicted classes"),
        (owners_picture(owners), "base of the largest responsibility"),
        (owners_overlay(image, owners), "the same over the image"),
    ]
    figure, axes = _grid(image, 1, 4, 0.45)
    for place, (picture, title) in zip(axes.flat, panels, strict=True):
        _show(place, picture, title)
    colours = base_colours(len(shares)) / 255
    patches = [Patch(color=colours[k], label=f"{k}: {_percent(shares[k])}") for k in named]
    others = int((shares > 0).sum()) - len(named)
    if others:
        rest = 1 - shares[list(named)].sum()
        patches.append(Patch(color="none", label=f"{others} more: {_percent(rest)}"))
    figure.legend(handles=patches, loc="outside lower center", ncols=9, frameon=False, fontsize=8, handlelength=1.2)
    save_figure(figure, path)


def iterations_figure(
    heat_maps: Mapping[int, Sequence[Array]],
    top: float,
    entropy: Array,
    strongest: Array,
    num_bases: int,
    path: str | Path,
) -> None:
    """One row per base, one column per iteration; beside them the entropy (nats) and the largest responsibility.

    heat_maps: base -> its heat map at t = 1..T. entropy, strongest: (T,).
    """
    steps, rows = len(entropy), len(heat_maps)
    h, w = next(iter(heat_maps.values()))[0].shape[:2]
    width = min(1.9, 9 / steps)
    figure = new_figure(width * steps + 4.2, max((width * h / w + 0.1) * rows + 0.9, 4.6))
    halves = figure.add_gridspec(1, 2, width_ratios=(width * steps + 0.4, 3.6), left=0, right=1, bottom=0, top=1)
    maps, curves = (figure.add_subfigure(halves[0, i]) for i in range(2))
    figure.set_layout_engine("constrained", wspace=0.02, hspace=0.02, w_pad=0.04, h_pad=0.04)
    axes = maps.subplots(rows, steps, squeeze=False)
    for i, (base, pictures) in enumerate(heat_maps.items()):
        for j, picture in enumerate(pictures):
            _show(axes[i, j], picture, f"t = {j + 1}" if i == 0 else "")
        axes[i, 0].set_ylabel(f"base {base}", fontsize=9)
    _heat_bar(maps, axes, top, "responsibility")
    upper, lower = curves.subplots(2, 1)
    t = np.arange(1, steps + 1)
    upper.plot(t, entropy, "o-", color="C0")
    upper.set_title("entropy over the bases, nats", fontsize=9)
    if num_bases > 1:
        most = np.log(num_bases)
        share = upper.secondary_yaxis("right", functions=(lambda nats: nats / most, lambda share: share * most))
        share.set_ylabel(f"share of log {num_bases}", fontsize=8)
        share.tick_params(labelsize=8)
    lower.plot(t, strongest, "o-", color="C1")
    lower.set_title("largest responsibility of a pixel", fontsize=9)
    for place in (upper, lower):
        place.set_xticks(t)
        place.set_xlabel("EM iteration t; means over the map's pixels", fontsize=8)
        place.tick_params(labelsize=8)
        place.margins(x=0.15, y=0.25)
        place.set_box_aspect(0.75)
        place.grid(alpha=0.3)
    save_figure(figure, path)


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


def _grid(image: Array, rows: int, columns: int, more: float):
    """A figure WIDTH wide of rows x columns panels in the image's shape, and `more` inches below them."""
    h, w = image.shape[:2]
    width = min(WIDTH / columns, 3.2)
    figure = new_figure(width * columns, rows * ((width - 0.24) * h / w + 0.34) + more)
    axes = figure.subplots(rows, columns, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    return figure, axes


def _columns(image: Array, panels: int) -> int:
    """Fewer where the image is wide; rows as even as possible."""
    most = 3 if image.shape[1] > 1.8 * image.shape[0] else 4
    return -(-panels // -(-panels // most))


def _show(axes, picture: Array, title: str) -> None:
    axes.imshow(picture)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9)


def _heat_bar(figure, axes, top: float, label: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colours = heat_map(np.full((1, 256, 1), 128, np.uint8), np.linspace(0, 1, 256)[None])[0]  # over middle grey
    bar = ScalarMappable(Normalize(0, top), ListedColormap(colours / 255))
    place = figure.colorbar(bar, ax=axes, location="bottom", shrink=0.6, aspect=50, pad=0.02)
    place.set_label(label, fontsize=8)
    place.ax.tick_params(labelsize=8)
    place.outline.set_visible(False)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"
