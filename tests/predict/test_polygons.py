"""Label maps as polygons: opened again by the formats' own libraries, they fill to the same label map."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emanet.data.images import read_mask_values
from emanet.data.prepare.annotations import import_annotations
from emanet.errors import InputError
from emanet.predict import polygons
from emanet.predict.outputs import Outputs

rasterio = pytest.importorskip("rasterio")
from rasterio.features import rasterize  # noqa: E402
from rasterio.transform import Affine  # noqa: E402

CLASSES = ("background", "road", "a class", "tree")
RING = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 0, 2],  # a ring around a ring around one pixel, and single pixels that touch at corners
        [0, 1, 2, 2, 2, 1, 2, 0],
        [0, 1, 2, 0, 2, 1, 0, 2],
        [0, 1, 2, 2, 2, 1, 0, 0],
        [0, 1, 1, 1, 1, 1, 0, 255],
        [3, 0, 0, 255, 0, 0, 3, 3],
    ],
    np.uint8,
)


def maps() -> list[np.ndarray]:
    """RING and random label maps: noise of single pixels over blocks, with holes, hidden pixels and thin lines."""
    found = [RING, np.full((1, 1), 2, np.uint8), np.zeros((5, 3), np.uint8), np.full((2, 2), 255, np.uint8)]
    for seed in range(25):
        draw = np.random.default_rng(seed)
        h, w, block = (*draw.integers(1, 24, 2), draw.integers(1, 5))
        labels = draw.integers(0, 4, (h, w)).repeat(block, 0).repeat(block, 1).astype(np.uint8)
        noise = draw.random(labels.shape)
        labels[noise < 0.1], labels[noise > 0.95] = draw.integers(0, 4), 255
        found.append(labels)
    return found


def geojson(labels, crs="", transform=None, path=Path("x.geojson")) -> dict:
    polygons.write_geojson(path, polygons.regions(labels, transform), CLASSES, crs)
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestGeoJSON:
    @pytest.mark.parametrize("transform", [None, Affine(0.5, 0.1, 400_000, 0.1, -0.5, 5_000_000)])
    def test_fills_to_the_label_map(self, transform):
        place = transform or Affine.identity()
        for labels in maps():
            features = geojson(labels, transform=transform)["features"]
            filled = [(each["geometry"], each["properties"]["label"]) for each in features]
            again = np.full_like(labels, 255)
            if filled:  # rasterize refuses none
                rasterize(filled, out=again, transform=place)
            np.testing.assert_array_equal(again, labels)
            assert all(each["properties"]["class"] == CLASSES[each["properties"]["label"]] for each in features)

    def test_a_region_with_a_hole_is_one_polygon(self):
        ring = next(each for each in geojson(RING)["features"] if each["properties"]["class"] == "road")
        outline, hole = ring["geometry"]["coordinates"]
        assert {tuple(corner) for corner in outline} == {(1, 1), (6, 1), (6, 6), (1, 6)}
        assert {tuple(corner) for corner in hole} == {(2, 2), (5, 2), (5, 5), (2, 5)}

    def test_names_a_crs_where_there_is_one(self):
        assert "crs" not in geojson(RING)
        for code, name in ((32633, "urn:ogc:def:crs:EPSG::32633"), (4326, "urn:ogc:def:crs:OGC:1.3:CRS84")):
            crs = polygons.crs_name(rasterio.CRS.from_epsg(code))
            assert geojson(RING, crs)["crs"] == {"type": "name", "properties": {"name": name}}
        own = rasterio.CRS.from_proj4("+proj=tmerc +lon_0=11.3 +lat_0=47 +ellps=bessel +units=m")
        assert polygons.crs_name(own) == own.to_wkt() and polygons.crs_name(None) == ""

    @pytest.mark.parametrize("code", [32633, 4326, None])
    def test_geopandas_reads_it(self, code):
        geopandas = pytest.importorskip("geopandas")
        own = rasterio.CRS.from_proj4("+proj=tmerc +lon_0=11.3 +lat_0=47 +ellps=bessel +units=m")
        transform = Affine(2, 0, 11, 0, -2, 47)
        geojson(RING, polygons.crs_name(rasterio.CRS.from_epsg(code) if code else own), transform)
        frame = geopandas.read_file("x.geojson")
        assert frame.crs.to_epsg() == code and (code or "11.3" in frame.crs.to_wkt())
        assert frame.geometry.is_valid.all()
        filled = zip(frame.geometry, frame["label"], strict=True)
        again = rasterize(filled, RING.shape, fill=255, transform=transform, dtype="uint8")
        np.testing.assert_array_equal(again, RING)


class TestLabelme:
    def test_its_own_library_draws_the_label_map(self):
        labelme = pytest.importorskip("labelme", exc_type=ImportError)  # needs libraries of the system too
        from labelme.utils import shapes_to_label

        values = {"_background_": 0, "road": 1, "a class": 2, "tree": 3, "__ignore__": 255}
        for labels in maps():
            h, w = labels.shape
            Image.new("RGB", (w, h)).save("x.png")
            Path("x.json").write_text(json.dumps(polygons.labelme(labels, CLASSES, "x.png")), "utf-8")
            file = labelme.LabelFile("x.json")  # which opens the image and compares sizes
            again, _ = shapes_to_label((h, w), file.shapes, values)
            np.testing.assert_array_equal(again, labels)

    @pytest.mark.parametrize("unlabelled", ["background", "ignore"])
    def test_comes_back_by_data_import(self, unlabelled):
        """Label map -> labelme -> our import -> the same mask, with holes, single pixels and hidden pixels."""
        classes = CLASSES if unlabelled == "background" else ("sky", *CLASSES[1:])
        for i, labels in enumerate(maps()):
            Path("in").mkdir(exist_ok=True)
            Image.new("RGB", labels.shape[::-1]).save(f"in/{i}.png")
            Path(f"in/{i}.json").write_text(json.dumps(polygons.labelme(labels, classes, f"{i}.png")), "utf-8")
        import_annotations("labelme", "in", "out", unlabelled=unlabelled)
        imported = json.loads(Path("out/dataset.json").read_text())["classes"]
        place = [imported.index(name) for name in classes] + [0] * (255 - len(classes)) + [255]
        for i, labels in enumerate(maps()):
            (mask,) = Path("out").glob(f"*/masks/{i}.png")
            np.testing.assert_array_equal(read_mask_values(mask), np.array(place)[labels])

    def test_shapes(self):
        document = polygons.labelme(RING, CLASSES, "../images/x.jpg")
        assert (document["imagePath"], document["imageData"]) == ("../images/x.jpg", None)
        assert (document["imageHeight"], document["imageWidth"]) == RING.shape
        names = [shape["label"] for shape in document["shapes"]]
        # What surrounds comes first. The background at the edges has no shape, that in the hole has one.
        assert names[:2] == ["road", "a class"] and names.count("_background_") == 1
        assert (names.count("__ignore__"), names.count("a class"), names.count("tree")) == (2, 4, 2)
        (road,) = (shape["points"] for shape in document["shapes"] if shape["label"] == "road")
        assert sorted(road) == [[1.05, 1.05], [1.05, 5.95], [5.95, 1.05], [5.95, 5.95]]


def test_threads_find_the_same():
    labels = maps() * 4
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda each: polygons.labelme(each, CLASSES, "x"), labels)
        assert list(found) == [polygons.labelme(each, CLASSES, "x") for each in labels]


def test_without_rasterio_it_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    for kind in ("geojson", "labelme"):
        with pytest.raises(InputError, match=rf"output {kind} needs rasterio, .*: pip install 'emanet\[geo\]'"):
            Outputs.of([kind])
