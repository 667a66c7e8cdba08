"""The pictures of explain.py: heat maps and base colours as arrays (without matplotlib), and figures made of them.

All heat maps of a figure have one scale, from 0 to the largest responsibility of any of its panels.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from ..show.colours import Palette, colourise, rgb
from ..show.figures import new_figure, save_figure
from .explain import ClassUse, Explanation

Array = np.ndarray
HEAT = ((74, 20, 134), (150, 30, 120), (214, 50, 80), (244, 110, 40), (253, 180, 40), (255, 245, 120))
"""Colours of 0 to 1 in equal steps, dark to light; the smaller the value, the less of its colour covers the image."""
WIDTH = 11.0  # inches of a figure with a row of panels


def heat_map(image: Array, z: Array, top: float = 1.0) -> Array:
    """The image in pale grey under the colours of z from 0 to `top`: (H, W, 3) uint8. image: (H, W, C), z: (H, W)."""
    share = np.clip(z / max(top, 1e-12), 0, 1)
    at = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(share, at, channel) for channel in zip(*HEAT, strict=True)], axis=-1)
    pale = 70 + 0.65 * rgb(image).mean(2)[..., None]
    alpha = 0.85 * np.sqrt(share)[..., None]
    return np.rint(alpha * colours + (1 - alpha) * pale).astype(np.uint8)


def owners_picture(owners: Array) -> Array:
    """(H, W) bases -> (H, W, 3) uint8 in base_colours."""
    return base_colours(int(owners.max()) + 1)[owners]


def owners_overlay(image: Array, owners: Array, alpha: float = 0.55) -> Array:
    """alpha * owners_picture + (1 - alpha) * image: (H, W, 3) uint8."""
    return np.rint(alpha * owners_picture(owners) + (1 - alpha) * rgb(image).astype(np.float32)).astype(np.uint8)


def base_colours(count: int) -> Array:
    """(count, 3) uint8: base k has the same colour in every picture and for every count.

    Each is the one farthest, in CIE L*a*b*, from all before it, of a grid of colours neither black, white, grey nor
    glaring; from 256 on they repeat.
    """
    colours = _colour_order()
    return colours[np.arange(count) % len(colours)]


@cache
def _colour_order() -> Array:
    grid = np.stack(np.meshgrid(*[np.linspace(0, 255, 12)] * 3, indexing="ij"), -1).reshape(-1, 3)
    linear = np.where(grid > 10.3, ((grid / 255 + 0.055) / 1.055) ** 2.4, grid / 255 / 12.92)  # sRGB, IEC 61966-2-1
    xyz = linear @ np.array([[0.4339, 0.2126, 0.0178], [0.3763, 0.7152, 0.1095], [0.1898, 0.0722, 0.8727]])  # D65 = 1
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)  # CIE 15
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] > 32) & (lab[:, 0] < 90) & (chroma > 22) & (chroma < 80)
    grid, lab = grid[usable], lab[usable]
    nearest, order = np.linalg.norm(lab - lab[0], axis=1), [0]
    for _ in range(min(255, len(grid) - 1)):
        order.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[order[-1]], axis=1))
    return grid[order].round().astype(np.uint8)


def responsibilities_figure(seen: Explanation, bases: Sequence[int], path: str | Path) -> None:
    """The image, and the last iteration's responsibilities of each base over it."""
    top, shares = scale_of(seen, bases), seen.shares
    panels = [(rgb(seen.image), "image")]
    panels += [(heat_map(seen.image, seen.over_image(k), top), f"base {k}: {_percent(shares[k])}") for k in bases]
    columns = _columns(seen, len(panels))
    figure, axes = _grid(seen, -(-len(panels) // columns), columns, 0.5)
    for place, (picture, title) in zip(axes.flat, panels, strict=False):
        _show(place, picture, title)
    last = f"iteration {len(seen.z)} of {len(seen.z)}"
    _heat_bar(figure, axes, top, f"responsibility in {last}; percent: pixels of which the base has the largest share")
    save_figure(figure, path)


def owners_figure(seen: Explanation, palette: Palette, path: str | Path, *, named: int = 16) -> None:
    """The image, the predicted classes, and the base that owns each pixel, with a legend of the largest owners."""
    from matplotlib.patches import Patch

    panels = [
        (rgb(seen.image), "image"),
        (colourise(seen.labels, palette), "predicted classes"),
        (owners_picture(seen.owners), "base of the largest responsibility"),
        (owners_overlay(seen.image, seen.owners), "the same over the image"),
    ]
    figure, axes = _grid(seen, 1, 4, 0.45)
    for place, (picture, title) in zip(axes.flat, panels, strict=True):
        _show(place, picture, title)
    colours, shares, bases = base_colours(seen.z.shape[1]) / 255, seen.shares, seen.top(named)
    patches = [Patch(color=colours[k], label=f"{k}: {_percent(shares[k])}") for k in bases]
    rest = 1 - shares[bases].sum()
    others = int((shares > 0).sum()) - len(bases)
    if others:
        patches.append(Patch(color="none", label=f"{others} more: {_percent(rest)}"))
    figure.legend(handles=patches, loc="outside lower center", ncols=9, frameon=False, fontsize=8, handlelength=1.2)
    save_figure(figure, path)


def iterations_figure(seen: Explanation, bases: Sequence[int], path: str | Path) -> None:
    """One row per base and one column per iteration; beside them the entropy and the largest responsibility."""
    steps, top = len(seen.z), scale_of(seen, bases, every=True)
    h, w = seen.image.shape[:2]
    width = min(1.9, 9 / steps)
    figure = new_figure(width * steps + 4.2, max((width * h / w + 0.1) * len(bases) + 0.9, 4.6))
    maps, curves = figure.subfigures(1, 2, width_ratios=(width * steps + 0.4, 3.6))
    figure.get_layout_engine().set(wspace=0.02, hspace=0.02, w_pad=0.04, h_pad=0.04)
    axes = maps.subplots(len(bases), steps, squeeze=False)
    for i, base in enumerate(bases):
        for t in range(1, steps + 1):
            _show(axes[i, t - 1], heat_map(seen.image, seen.over_image(base, t), top), f"t = {t}" if i == 0 else "")
        axes[i, 0].set_ylabel(f"base {base}", fontsize=9)
    _heat_bar(maps, axes, top, "responsibility")
    upper, lower = curves.subplots(2, 1)
    t = np.arange(1, steps + 1)
    upper.plot(t, seen.entropy, "o-", color="C0")
    upper.set_title("entropy over the bases, nats", fontsize=9)
    count = seen.z.shape[1]
    if count > 1:
        share = upper.secondary_yaxis("right", functions=_of_log(count))
        share.set_ylabel(f"share of log {count}", fontsize=8)
        share.tick_params(labelsize=8)
    lower.plot(t, seen.strongest, "o-", color="C1")
    lower.set_title("largest responsibility of a pixel", fontsize=9)
    for place in (upper, lower):
        place.set_xticks(t)
        place.set_xlabel("EM iteration t; means over the map's pixels", fontsize=8)
        place.tick_params(labelsize=8)
        place.margins(x=0.15, y=0.25)
        place.set_box_aspect(0.75)
        place.grid(alpha=0.3)
    save_figure(figure, path)


def usage_figure(use: ClassUse, path: str | Path) -> None:
    """Rows: classes in the model's order; columns: bases; grey rows: classes without a labelled pixel."""
    matrix = np.ma.masked_invalid(use.matrix)
    classes, bases = matrix.shape
    cell = min(0.3, 12 / bases)
    figure = new_figure(cell * bases + 3, max(0.26 * classes, 1.5) + 1.2)
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    picture = axes.imshow(matrix, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(classes), use.classes, fontsize=9)
    step = -(-bases // 64) * (1 if cell > 0.25 else 2)
    axes.set_xticks(range(0, bases, step), range(0, bases, step), fontsize=8)
    axes.set_xlabel("base", fontsize=9)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(picture, ax=axes, label="mean responsibility", pad=0.01)
    save_figure(figure, path)


def components_figure(use: ClassUse, points: Array, shares: Array, palette: Palette, path: str | Path) -> None:
    """A dot for every class of every image, at its vector's projection on the first two principal components."""
    from matplotlib.lines import Line2D

    extent = np.maximum(np.ptp(points, axis=0), 1e-9)
    figure = new_figure(7.2, float(np.clip(5.2 * extent[1] / extent[0], 3, 7)) + 0.6)
    axes = figure.add_subplot()
    colours = np.array(palette) / 255
    # In the order of the images, so that no class lies on top of the others.
    axes.scatter(*points.T, s=16, c=colours[use.labels], edgecolors="0.25", linewidths=0.4)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colours[label], label=f"{use.classes[label]} ({count})")
        for label, count in enumerate(np.bincount(use.labels, minlength=len(use.classes)))
        if count
    ]
    axes.set_xlabel(f"first component ({_percent(shares[0])} of the variance)", fontsize=9)
    axes.set_ylabel(f"second component ({_percent(shares[1])})", fontsize=9)
    axes.set_aspect("equal", "datalim")
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    columns = -(-len(handles) // 24)
    style = dict(frameon=False, fontsize=8, title="class (images)", title_fontsize=9, ncols=columns)
    figure.legend(handles=handles, loc="outside right upper", **style)
    save_figure(figure, path)


def scale_of(seen: Explanation, bases: Sequence[int], *, every: bool = False) -> float:
    """The largest responsibility of these bases in the image, in the last iteration or in every one."""
    return float(seen.inside[slice(None) if every else slice(-1, None), list(bases)].max())


def _grid(seen: Explanation, rows: int, columns: int, more: float):
    """A figure WIDTH wide of rows x columns panels in the image's shape, and `more` inches below them."""
    h, w = seen.image.shape[:2]
    width = min(WIDTH / columns, 3.2)
    figure = new_figure(width * columns, rows * ((width - 0.24) * h / w + 0.34) + more)
    axes = figure.subplots(rows, columns, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    return figure, axes


def _columns(seen: Explanation, panels: int) -> int:
    """Fewer where the image is wide; rows as even as can be."""
    most = 3 if seen.image.shape[1] > 1.8 * seen.image.shape[0] else 4
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


def _of_log(count: int):
    return (lambda nats: nats / np.log(count)), (lambda share: share * np.log(count))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1f} %"
