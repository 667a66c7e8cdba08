"""Label maps as polygons: GeoJSON, and the JSON of labelme, whose corrected shapes `data import labelme` reads again.

A polygon is a region: pixels of one label that are connected by their sides. Its outline runs along the edges of
pixels, so that filling the polygons gives the label map back, pixel by pixel. The outlines are GDAL's, by rasterio
(extra geo).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import IGNORE
from ..data.bands import installed

Region = tuple[int, list[list[tuple[float, float]]]]  # a label, and closed rings of (x, y): the outline, then holes
BACKGROUND, HIDDEN = "_background_", "__ignore__"  # labelme's names of pixels without a class, and of those to ignore
INSET = 0.05  # pixels; see labelme


def regions(labels: Any, transform: Any = None) -> Iterator[Region]:
    """The regions of a label map (H, W) uint8, or of a band of a dataset of rasterio, those of 255 included.

    transform: of pixels, whose upper left corner is 0, 0, to other coordinates, as an affine.Affine.
    """
    installed()  # here and in the main thread before: it silences a warning that threads would let through
    from rasterio.features import shapes
    from rasterio.transform import IDENTITY

    for geometry, label in shapes(labels, connectivity=4, transform=transform or IDENTITY):
        yield int(label), geometry["coordinates"]


def write_geojson(path: Path, found: Iterable[Region], classes: Sequence[str], crs: str = "") -> None:
    """Write a FeatureCollection: each region a Polygon with its `class` and its `label`, the index of the class.

    crs: crs_name of the coordinates. RFC 7946 knows WGS 84 alone; the member `crs` is that of the GeoJSON before it,
    which GDAL, QGIS and geopandas read and write. Without it, coordinates are pixels and y points down. Pixels of 255
    are left out.
    """
    named = json.dumps({"type": "name", "properties": {"name": crs}})
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", ' + f'"crs": {named}, ' * bool(crs) + '"features": [')
        separator = "\n"
        for label, rings in found:
            if label != IGNORE:
                properties = {"class": classes[label], "label": label}
                geometry = {"type": "Polygon", "coordinates": rings}
                feature = {"type": "Feature", "properties": properties, "geometry": geometry}
                file.write(separator + json.dumps(feature, ensure_ascii=False))
                separator = ",\n"
        file.write("\n]}\n")


def crs_name(crs: Any) -> str:
    """What GeoJSON calls a CRS of rasterio: its URN, or its WKT where it has no code; "" for none."""
    if not crs:
        return ""
    authority = crs.to_authority()
    if authority == ("EPSG", "4326"):
        return "urn:ogc:def:crs:OGC:1.3:CRS84"  # the same with longitude first, as in GeoJSON
    return "urn:ogc:def:crs:{}::{}".format(*authority) if authority else crs.to_wkt()


def labelme(labels: np.ndarray, classes: Sequence[str], image: str) -> dict[str, Any]:
    """The content of labelme's JSON file for a label map (H, W) uint8; image: its path from the folder of that file.

    labelme's polygons have no holes, but later shapes cover earlier ones: a region comes after those that surround it.
    Pixels without a shape are the background there, so a class of that name needs shapes only inside of others: its
    regions at the edges of the image are left out.

    labelme draws a polygon with Pillow, which cuts coordinates down to whole pixels and draws the outline too. The
    outlines lie INSET inside of their pixels' edges: both ends of a row are then cut down to pixels of the region.
    """
    h, w = labels.shape
    named = {i: BACKGROUND if name.strip("_").lower() == "background" else name for i, name in enumerate(classes)}
    named[IGNORE] = HIDDEN
    found = []
    for label, rings in regions(labels):
        corners = np.array(rings[0][:-1])
        touches = (corners.min(0) == 0).any() or (corners.max(0) == (w, h)).any()
        if named[label] != BACKGROUND or not touches:
            found.append((_area(corners), named[label], corners))
    found.sort(key=lambda each: -abs(each[0]))
    shapes = [
        {
            "label": name,
            "points": _inset(corners, np.sign(area) * INSET).round(2).tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for area, name, corners in found
    ]
    size = {"imageHeight": h, "imageWidth": w}
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None, **size}


def _area(corners: np.ndarray) -> float:
    """The signed area of a polygon (n, 2): positive where its inside is to the right of the way, as y points down."""
    (x, y), (next_x, next_y) = corners.T, np.roll(corners, -1, 0).T
    return float((x * next_y - next_x * y).sum() / 2)


def _inset(corners: np.ndarray, by: float) -> np.ndarray:
    """Corners (n, 2) of a polygon along rows and columns, moved to its inside: to the right of the way for by > 0."""
    way = np.sign(np.roll(corners, -1, 0) - corners)
    inside = np.stack([-way[:, 1], way[:, 0]], 1)
    return corners + by * (inside + np.roll(inside, 1, 0))
