"""Outlines of annotation tools as pixels: a pixel is inside if its centre is."""

import math
from collections.abc import Sequence

import numpy as np

ELLIPSE_POINTS = 720


def filled(rings: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: the pixels whose centres lie inside an odd number of the rings, so that rings within are holes.

    rings: arrays (n, 2) of x, y in pixels; the first pixel's centre is at 0.5, 0.5. A centre on an edge is inside on
    the left and top edges only, so shapes that share an edge do not share pixels. ValueError if a ring is something
    else.
    """
    h, w = size
    crossings = np.zeros((h, w + 1), np.int32)  # how many edges lie between this centre and the one before
    for ring in rings:
        points = np.asarray(ring, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
            raise ValueError("an outline must be three or more pairs of finite numbers")
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
            if y0 > y1:
                x0, y0, x1, y1 = x1, y1, x0, y0
            first, last = (int(np.clip(np.ceil(y - 0.5), 0, h)) for y in (y0, y1))
            if first < last:  # rows whose centres lie between the ends
                rows = np.arange(first, last)
                x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                np.add.at(crossings, (rows, np.clip(np.ceil(x - 0.5), 0, w).astype(int)), 1)
    return (np.cumsum(crossings[:, :w], 1) & 1).astype(bool)


def ellipse(centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """Points (n, 2) around an ellipse with radii along x and y."""
    angles = np.linspace(0, 2 * math.pi, ELLIPSE_POINTS, endpoint=False)
    return np.asarray(centre) + np.stack([radii[0] * np.cos(angles), radii[1] * np.sin(angles)], 1)


def turned(points: np.ndarray, centre: tuple[float, float], degrees: float) -> np.ndarray:
    """Points (n, 2) turned clockwise, as y points down."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.asarray(centre) + (points - np.asarray(centre)) @ np.array([[c, s], [-s, c]])
