"""Outlines of annotation tools as pixels: a pixel is inside if its centre is."""

import math
from collections.abc import Sequence

import numpy as np

ELLIPSE_POINTS = 720
FAR = 1e9
"""Pixels. Products of larger numbers would overflow."""


def filled(rings: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """(mask, left, top): pixels whose centres lie inside an odd number of the rings, so that rings within are holes.

    The mask, bool, is that of the box around the rings, as far as it lies in the image of `size` (h, w).
    rings: arrays (n, 2) of x, y in pixels; the first pixel's centre is at 0.5, 0.5. A centre on an edge is inside on
    the left and top edges only, so shapes that share an edge do not share pixels. ValueError if a ring is something
    else.
    """
    outlines = [np.asarray(ring, np.float64) for ring in rings]
    for points in outlines:
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not (np.abs(points) < FAR).all():
            raise ValueError("an outline must be three or more pairs of numbers, none of them far outside the image")

    (left, right), (top, bottom) = (
        _first_centres(np.array([values.min(), values.max()]), end)
        for values, end in zip(np.concatenate(outlines).T, size[::-1], strict=True)
    )
    # How many edges lie between this centre and the one before.
    crossings = np.zeros((bottom - top, right - left + 1), np.int32)
    for points in outlines:
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
            if y0 > y1:
                x0, y0, x1, y1 = x1, y1, x0, y0
            rows = np.arange(*_first_centres(np.array([y0, y1]), size[0]))  # those whose centres lie between the ends
            if len(rows):
                x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                columns = np.clip(_first_centres(x, size[1]), left, right)  # rounding may lead out
                np.add.at(crossings, (rows - top, columns - left), 1)
    return (np.cumsum(crossings[:, :-1], 1) & 1).astype(bool), int(left), int(top)


def _first_centres(places: np.ndarray, end: int) -> np.ndarray:
    """For each place, the first pixel of a row or column whose centre is not before it; `end` if there is none."""
    return np.clip(np.ceil(places - 0.5), 0, end).astype(int)


def ellipse(centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """Points (n, 2) around an ellipse with radii along x and y."""
    angles = np.linspace(0, 2 * math.pi, ELLIPSE_POINTS, endpoint=False)
    return np.asarray(centre) + np.stack([radii[0] * np.cos(angles), radii[1] * np.sin(angles)], 1)


def turned(points: np.ndarray, centre: tuple[float, float], degrees: float) -> np.ndarray:
    """Points (n, 2) turned clockwise, as y points down."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.asarray(centre) + (points - np.asarray(centre)) @ np.array([[c, s], [-s, c]])
