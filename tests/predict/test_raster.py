"""TIFFs in windows: blending, strips, no data, the place on Earth, and what is refused; 100 megapixels in `slow`."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_cli, sentence
from PIL import Image
from test_evaluate import tiny_model

from emanet import inference
from emanet.config import BackboneConfig, DataConfig, DatasetSpec, EvalConfig, Experiment, HeadConfig, ModelConfig
from emanet.data.bands import BandReader
from emanet.errors import InputError
from emanet.inference import predict_labels, probabilities
from emanet.predict import raster_file
from emanet.predict.files import predict_files
from emanet.predict.inputs import channels_of
from emanet.predict.outputs import uncertainty
from emanet.predict.predictor import Predictor
from emanet.predict.raster import (
    CACHE,
    LARGE,
    MEMORY,
    TILE,
    is_raster,
    predict_raster,
    tiff_tags,
)
from emanet.predict.resume import RECORD
from emanet.show.colours import IGNORE_COLOUR
from emanet.weights.model_file import save_model
from emanet.windows import window_starts, window_weight

rasterio = pytest.importorskip("rasterio")
from rasterio.control import GroundControlPoint  # noqa: E402
from rasterio.enums import ColorInterp  # noqa: E402
from rasterio.features import rasterize  # noqa: E402
from rasterio.rpc import RPC  # noqa: E402
from rasterio.transform import Affine  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
PLACE = {"crs": "EPSG:32633", "transform": Affine(0.5, 0.1, 400_000, 0.1, -0.5, 5_000_000)}
SIZE = (301, 333)  # more than one tile either way
CONFIG = EvalConfig(window=(65, 81), overlap=1 / 3)
LARGE_WINDOWS = EvalConfig(window=(305, 305), overlap=0)  # faster
GRID = [(0, 0), (0, 1), (1, 0), (1, 1)]
SPEC = DatasetSpec(classes=("a", "b", "c"))
TINY = ModelConfig(
    backbone=BackboneConfig(name="test_resnet", pretrained=False, output_stride=8),
    head=HeadConfig(channels=32, num_bases=8, fc1_channels=0),
)


@pytest.fixture(scope="module")
def model():
    model = tiny_model()
    with torch.no_grad():  # each class somewhere
        model.head.classifier.bias -= model(torch.tensor(drawn())[None]).mean((0, 2, 3))
    return model


def drawn(h=SIZE[0], w=SIZE[1], bands=3, seed=0) -> np.ndarray:
    """(bands, h, w): blocks of colours, so that neighbouring pixels mostly have one class."""
    blocks = np.random.default_rng(seed).integers(0, 256, (bands, -(-h // 12), -(-w // 12)))
    return blocks.repeat(12, 1).repeat(12, 2)[:, :h, :w].astype(np.uint8)


def write(path: Path, pixels: np.ndarray, meanings=(), mask=None, **profile) -> Path:
    count, h, w = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=h, width=w, dtype=pixels.dtype, **profile
    ) as file:
        if meanings:
            file.colorinterp = meanings
        file.write(pixels)
        if mask is not None:
            file.write_mask(mask)
    return path


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def labelled(model, path: Path, config=CONFIG, **options) -> np.ndarray:
    out = path.with_name(f"{path.stem}_labels.tif")
    predict_raster(model, path, out, config, **options)
    return read(out)


def blended(model, pixels: np.ndarray, config=CONFIG) -> np.ndarray:
    """The reference: every window of the whole image, in memory."""
    (h, w), (window_h, window_w) = pixels.shape[1:], config.window
    total = torch.zeros(3, h, w)
    weight = window_weight((min(h, window_h), min(w, window_w)), config.overlap)
    for top in window_starts(h, window_h, config.overlap):
        for left in window_starts(w, window_w, config.overlap):
            part = (..., slice(top, top + window_h), slice(left, left + window_w))
            p = probabilities(
                model, torch.tensor(pixels[part])[None], EvalConfig(flip=config.flip, scales=config.scales)
            )
            total[part] += p[0] * weight
    return total.argmax(0).numpy()


def program(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a file of tests/programs, which may import the tests' helpers."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "predict")))
    command = [sys.executable, str(ROOT / "tests" / "programs" / name), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)


class TestLabels:
    @pytest.mark.parametrize(
        "config",
        [
            CONFIG,
            EvalConfig(window=(65, 81), overlap=0.7),
            EvalConfig(window=(97, 65), overlap=0, flip=True, scales=(0.5, 1)),
        ],
    )
    def test_are_those_of_the_blended_windows(self, model, tmp_path, config):
        pixels = drawn()
        wanted = blended(model, pixels, config)
        assert (
            np.bincount(wanted.ravel(), minlength=3).min() > 500
        )  # every class, so that the comparison says something
        assert np.array_equal(labelled(model, write(tmp_path / "x.tif", pixels), config), wanted)

    @pytest.mark.parametrize("size", [(1, 1), (40, 50), (40, 200), (200, 40), (65, 81), (66, 82), (256, 257)])
    def test_of_any_size(self, model, tmp_path, size):
        pixels = drawn(*size)
        assert np.array_equal(labelled(model, write(tmp_path / "x.tif", pixels)), blended(model, pixels))

    def test_are_not_shrunk(self, model, tmp_path):
        pixels = drawn(100, 120)
        config = replace(CONFIG, longest_side=20)
        assert np.array_equal(labelled(model, write(tmp_path / "x.tif", pixels), config), blended(model, pixels))

    def test_do_not_depend_on_the_memory(self, model, tmp_path):
        pixels = drawn(130, 3 * TILE + 77)
        path = write(tmp_path / "x.tif", pixels)
        whole = labelled(model, path)
        for memory in (1, 2 * TILE * 65 * (4 * 3 + 3 + 16)):  # strips of one tile, of two
            assert np.array_equal(labelled(model, path, memory=memory), whole)
        assert np.array_equal(blended(model, pixels), whole)

    def test_of_several_windows_at_once_are_the_same_to_rounding(self, model, tmp_path):
        path = write(tmp_path / "x.tif", drawn())
        assert (labelled(model, path, batch=3) == labelled(model, path)).mean() > 0.999

    def test_agree_with_averaged_windows(self, model, tmp_path):
        pixels = drawn()
        averaged = EvalConfig(mode="slide", window=CONFIG.window, overlap=CONFIG.overlap)
        wanted = predict_labels(model, torch.tensor(pixels)[None], averaged)[0].numpy()
        found = labelled(model, write(tmp_path / "x.tif", pixels))
        assert (found == wanted).mean() > 0.8
        seen = np.zeros(SIZE, int)  # windows that see a pixel
        for top in window_starts(SIZE[0], 65, 1 / 3):
            for left in window_starts(SIZE[1], 81, 1 / 3):
                seen[top : top + 65, left : left + 81] += 1
        assert (seen == 1).sum() > 5000 and np.array_equal(found[seen == 1], wanted[seen == 1])

    def test_are_weighted_alike_everywhere(self):
        weight = window_weight((65, 65), 1 / 3)
        assert 0 < weight.min() < 0.01 and weight.max() == 1
        step = 65 - round(65 / 3)
        row = weight[32]
        sums = row[step:] + row[: 65 - step]
        torch.testing.assert_close(sums, torch.ones_like(sums))
        assert torch.equal(weight, weight.flip(0)) and torch.equal(weight, weight.T)
        assert torch.equal(window_weight((5, 7), 0), torch.ones(5, 7))


class TestNoData:
    def test_is_255_and_windows_of_it_are_skipped(self, model, tmp_path, monkeypatch):
        pixels = drawn()
        pixels[:, :, 150:] = 0
        pixels[0, :10, :10] = 0  # zero in one band is a value
        path = write(tmp_path / "x.tif", pixels, nodata=0)
        ran = []
        monkeypatch.setattr("emanet.inference.probabilities", lambda *a: ran.append(len(a[1])) or probabilities(*a))
        found = labelled(model, path)
        hidden = np.zeros(SIZE, bool)
        hidden[:, 150:] = True
        assert np.array_equal(found == 255, hidden)
        assert np.array_equal(found[:, :60], blended(model, pixels)[:, :60])
        lefts = [left for left in window_starts(SIZE[1], 81, 1 / 3) if left < 150]
        assert sum(ran) == len(lefts) * len(window_starts(SIZE[0], 65, 1 / 3))

    def test_of_alpha_and_of_a_mask_band(self, model, tmp_path):
        pixels, visible = drawn(), np.zeros(SIZE, np.uint8)
        visible[20:200, 30:300] = 255
        rgba = write(
            tmp_path / "rgba.tif",
            np.concatenate([pixels, visible[None]]),
            (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha),
        )
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            masked = write(tmp_path / "masked.tif", pixels, mask=visible)
        wanted = np.where(visible, blended(model, pixels), 255)
        for path in (rgba, masked):
            assert np.array_equal(labelled(model, path), wanted)

    def test_everywhere(self, model, tmp_path):
        assert (labelled(model, write(tmp_path / "x.tif", np.zeros((3, *SIZE), np.uint8), nodata=0)) == 255).all()


class TestFile:
    def test_is_tiled_compressed_coloured_and_keeps_its_place(self, model, tmp_path):
        path = write(tmp_path / "x.tif", drawn(), **PLACE)
        predict_raster(model, path, tmp_path / "new" / "y.tif", CONFIG)
        with rasterio.open(path) as source, rasterio.open(tmp_path / "new" / "y.tif") as file:
            assert (file.crs, file.transform, file.shape) == (source.crs, source.transform, SIZE)
            assert (file.count, file.dtypes, file.nodata) == (1, ("uint8",), 255)
            assert file.block_shapes == [(TILE, TILE)] and file.compression.name == "deflate"
            colours = file.colormap(1)
            assert [colours[i] for i in range(3)] == [(*colour, 255) for colour in model.palette]
            assert colours[255][:3] == IGNORE_COLOUR
        assert [each.name for each in (tmp_path / "new").iterdir()] == ["y.tif"]
        with Image.open(tmp_path / "new" / "y.tif") as image:  # as any other program sees it
            assert image.mode == "P" and np.array_equal(np.asarray(image), read(tmp_path / "new" / "y.tif"))

    def test_has_overviews_if_it_is_large(self, model, tmp_path):
        """As GDAL makes them: of one pixel of four, in tiles, with the palette and the nodata value."""
        path = write(tmp_path / "x.tif", drawn(600, 1100), **PLACE)
        predict_raster(model, path, tmp_path / "y.tif", LARGE_WINDOWS)
        labels = read(tmp_path / "y.tif")
        with rasterio.open(tmp_path / "y.tif") as file:
            assert file.overviews(1) == [2, 4] and not file.tags(1)
        for level, factor in enumerate((2, 4)):
            with rasterio.open(tmp_path / "y.tif", overview_level=level) as file:
                assert np.array_equal(file.read(1), labels[::factor, ::factor])
                assert (file.nodata, file.block_shapes) == (255, [(TILE, TILE)]) and file.compression.name == "deflate"
                assert file.colormap(1)[1] == (*model.palette[1], 255) and file.crs == rasterio.CRS.from_epsg(32633)
        predict_raster(model, write(tmp_path / "small.tif", drawn(20, 512)), tmp_path / "z.tif", LARGE_WINDOWS)
        with rasterio.open(tmp_path / "z.tif") as file:
            assert not file.overviews(1)

    def test_with_overviews_cut_off_does_not_read_back_as_it_was_written(self, model, tmp_path):
        path = write(tmp_path / "x.tif", drawn(600, 600))
        predict_raster(model, path, tmp_path / "y.tif", LARGE_WINDOWS)
        total, content = int(read(tmp_path / "y.tif").sum(dtype=np.int64)), (tmp_path / "y.tif").read_bytes()
        raster_file.verify(tmp_path / "y.tif", total, {})
        with rasterio.open(tmp_path / "y.tif") as file:
            last = max(int(file.get_tag_item(f"BLOCK_OFFSET_{i}_{j}", "TIFF", bidx=1, ovr=0)) for i, j in GRID)
        (tmp_path / "y.tif").write_bytes(content[: last + 5])
        assert np.array_equal(read(tmp_path / "y.tif").sum(dtype=np.int64), total)
        with pytest.raises(OSError, match="does not read back"):
            raster_file.verify(tmp_path / "y.tif", total, {})

    def test_of_probabilities_and_uncertainty(self, model, tmp_path):
        """Their largest are the labels, whatever the strips; hidden pixels are NaN."""
        pixels = drawn(130, TILE + 77)
        pixels[:, 40:90, 100:180] = 0
        path, outs = write(tmp_path / "x.tif", pixels, nodata=0, **PLACE), [tmp_path / f"{name}.tif" for name in "ypu"]
        found = []
        for memory in (MEMORY, 1):
            extra = {"probabilities": outs[1], "uncertainty": outs[2]}
            predict_raster(model, path, outs[0], CONFIG, memory=memory, **extra)
            with rasterio.open(outs[1]) as file, rasterio.open(outs[2]) as entropy:
                assert file.descriptions == tuple(model.classes) and entropy.descriptions == ("uncertainty",)
                for each in (file, entropy):
                    assert set(each.dtypes) == {"float32"} and np.isnan(each.nodata)
                    assert each.transform == PLACE["transform"] and each.crs == rasterio.CRS.from_epsg(32633)
                    assert set(each.block_shapes) == {(TILE, TILE)} and each.compression.name == "deflate"
                found.append((read(outs[0]), file.read(), entropy.read(1)))
        labels, p, entropy = found[0]
        for once, again in zip(*found, strict=True):
            np.testing.assert_array_equal(once, again)
        assert np.array_equal(np.isnan(p).all(0), labels == 255) and np.array_equal(np.isnan(entropy), labels == 255)
        seen = labels != 255
        assert np.array_equal(p[:, seen].argmax(0), labels[seen]) and np.allclose(p[:, seen].sum(0), 1)
        np.testing.assert_allclose(entropy[seen], uncertainty(p[:, seen][..., None])[:, 0], atol=1e-6)
        assert np.array_equal(labels, labelled(model, path))

    def test_keeps_control_points_and_rpcs(self, model, tmp_path):
        points = [
            GroundControlPoint(0, 0, 1, 2, 0),
            GroundControlPoint(0, 90, 3, 2, 0),
            GroundControlPoint(90, 0, 1, 5, 0),
        ]
        a = write(tmp_path / "a.tif", drawn(100, 100), gcps=points, crs="EPSG:4326")
        terms = [0.5] * 20
        rpc = RPC(0.0, 1.0, 2.0, 3.0, terms, terms, 4.0, 5.0, 6.0, 7.0, terms, terms, 8.0, 9.0)
        b = write(tmp_path / "b.tif", drawn(100, 100), rpcs=rpc)
        assert is_raster(a) and is_raster(b)
        for path in (a, b):
            predict_raster(model, path, tmp_path / "out.tif", CONFIG)
            with rasterio.open(path) as source, rasterio.open(tmp_path / "out.tif") as file:
                assert [(p.row, p.col, p.x, p.y) for p in file.gcps[0]] == [
                    (p.row, p.col, p.x, p.y) for p in source.gcps[0]
                ]
                assert file.gcps[1] == source.gcps[1] and file.rpcs == source.rpcs
        with rasterio.open(tmp_path / "out.tif") as file:
            assert file.rpcs.samp_scale == 9

    def test_appears_whole_or_not_at_all(self, model, tmp_path, monkeypatch):
        path = write(tmp_path / "x.tif", drawn())
        out = tmp_path / "out" / "y.tif"

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("emanet.inference.probabilities", interrupt)
        with pytest.raises(KeyboardInterrupt):
            predict_raster(model, path, out, CONFIG)
        assert list(out.parent.iterdir()) == []
        monkeypatch.undo()
        left = out.parent / f".y.tif.{os.getpid()}.partial"  # by a killed process that had the same number
        left.write_bytes(b"half")
        Path(f"{left}.aux.xml").write_bytes(b"half")
        predict_raster(model, path, out, CONFIG)
        assert list(out.parent.iterdir()) == [out]
        before = out.read_bytes()
        monkeypatch.setattr("os.fsync", interrupt)  # it is to be on the disk before the older one goes
        with pytest.raises(KeyboardInterrupt):
            predict_raster(model, path, out, CONFIG)
        assert list(out.parent.iterdir()) == [out] and out.read_bytes() == before

    def test_takes_the_place_of_an_older_ones_sidecars_too(self, model, tmp_path):
        path, out = write(tmp_path / "x.tif", drawn(500, 500)), tmp_path / "y.tif"
        predict_raster(model, path, out, CONFIG)
        with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(out, "r+") as file:  # as QGIS does
            file.build_overviews([2])
        (tmp_path / "y.tif.aux.xml").write_text(
            "<PAMDataset><PAMRasterBand band='1'><Metadata><MDI key='STATISTICS_MAXIMUM'>7</MDI></Metadata>"
            "</PAMRasterBand></PAMDataset>"
        )
        (tmp_path / "y.tif.msk").write_bytes(b"")
        assert len(list(tmp_path.glob("y.tif.*"))) == 3
        predict_raster(model, path, out, CONFIG)
        assert sorted(each.name for each in tmp_path.iterdir()) == ["x.tif", "y.tif"]
        with rasterio.open(out) as file:
            assert not file.overviews(1) and not file.tags(1)

    def test_keeps_a_crs_that_geotiff_has_no_keys_for(self, model, tmp_path):
        pole = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39 +lon_0=18 +ellps=sphere"
        path, out = write(tmp_path / "x.tif", drawn(40, 40), **{**PLACE, "crs": pole}), tmp_path / "out" / "y.tif"
        predict_raster(model, path, out, CONFIG)
        with rasterio.open(path) as source, rasterio.open(out) as file:
            assert file.crs == source.crs and file.crs and file.transform == source.transform
        assert sorted(each.name for each in out.parent.iterdir()) == ["y.tif", "y.tif.aux.xml"]
        predict_raster(model, write(tmp_path / "z.tif", drawn(40, 40), **PLACE), out, CONFIG)
        assert [each.name for each in out.parent.iterdir()] == ["y.tif"]

    def test_without_its_place_does_not_read_back_as_it_was_written(self, tmp_path):
        pixels = drawn(20, 20, 1)
        for lost, what in (("crs", "CRS"), ("transform", "transform")):
            path = write(tmp_path / "x.tif", pixels, **{key: value for key, value in PLACE.items() if key != lost})
            raster_file.verify(path, int(pixels.sum()), {})
            with pytest.raises(OSError, match=f"GeoTIFF cannot hold its {what}$"):
                raster_file.verify(path, int(pixels.sum()), PLACE)

    def test_is_that_of_a_name_in_gdals_syntax(self, model, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "x.tif", drawn(40, 40))
        write(tmp_path / "small.tif", drawn(20, 30)).rename("GTIFF_DIR:1:x.tif")
        predict_raster(model, "GTIFF_DIR:1:x.tif", "GTIFF_DIR:1:y.tif", CONFIG)
        assert read(tmp_path / "GTIFF_DIR:1:y.tif").shape == (20, 30)

    @pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signals")
    @pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
    def test_leaves_nothing_behind_a_signal(self, tmp_path, name):
        path, out = write(tmp_path / "x.tif", drawn()), tmp_path / "out" / "y.tif"
        done = program("raster_with_a_signal.py", path, out, name)
        number = getattr(signal, name)
        assert done.returncode == 128 + number and re.fullmatch(r"\.y\.tif\.\d+\.partial\n", done.stdout), done.stderr
        assert "Traceback" not in done.stderr and list(out.parent.iterdir()) == []

    def test_leaves_signals_as_they_were(self, model, tmp_path, monkeypatch):
        path, heard = write(tmp_path / "x.tif", drawn()), []
        before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
        try:
            monkeypatch.setattr(
                inference,
                "probabilities",
                lambda *a: (heard or signal.raise_signal(signal.SIGTERM), probabilities(*a))[1],
            )
            assert np.array_equal(labelled(model, path), blended(model, drawn()))  # a caller's handler is the caller's
        finally:
            signal.signal(signal.SIGTERM, before)
        assert heard == [signal.SIGTERM]
        monkeypatch.undo()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        labelled(model, path)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    def test_on_a_full_disk(self, tmp_path):
        """At any time: GDAL does not tell of the tiles that it fails to write as it closes a file."""
        path = write(tmp_path / "x.tif", np.random.default_rng(0).integers(0, 256, (3, 600, 600), np.uint8))
        done = program("raster_on_a_full_disk.py", path, tmp_path / "full.tif")
        said = done.stdout.splitlines()
        assert len(said) == 4, (said, done.stderr)
        assert "TIFF" not in done.stderr and "No space" not in done.stderr and "File too large" not in done.stderr
        assert all(line.startswith(f"cannot write {tmp_path / 'full.tif'}: ") for line in said), said
        assert [each.name for each in tmp_path.iterdir()] == ["x.tif"]


class TestRefused:
    @pytest.mark.parametrize("keep", [6, 200, 0.5, 0.99])
    def test_cut_off_files(self, model, tmp_path, keep):
        noise = np.random.default_rng(0).integers(0, 256, (3, *SIZE), np.uint8)
        data = write(
            tmp_path / "x.tif", noise, tiled=True, compress="deflate", blockxsize=64, blockysize=64
        ).read_bytes()
        (tmp_path / "x.tif").write_bytes(data[: keep if keep > 1 else int(len(data) * keep)])
        with pytest.raises(InputError) as error:
            labelled(model, tmp_path / "x.tif")
        assert re.fullmatch(f"cannot read image {re.escape(str(tmp_path))}/x.tif: [^\n]+", str(error.value))
        assert [each.name for each in tmp_path.iterdir()] == ["x.tif"]

    @pytest.mark.parametrize(
        ("pixels", "profile", "message"),
        [
            (drawn(9, 9, 2), {}, r"has 2 bands \(gray, undefined\), but the model takes 3 channels$"),
            (
                drawn(9, 9, 4),
                {"alpha": "no"},
                r"has 4 bands \(.*\), but the model takes 3 channels; name 3 of them: --bands 1 2 3$",
            ),
            (drawn(9, 9).astype(np.uint16), {}, r"its pixels are uint16, from \d+ to \d+; .*: --range \d+ \d+$"),
            (drawn(9, 9).astype(np.float32), {}, r"its pixels are float32, from \d+ to \d+; .*: --range \d+ \d+$"),
            (drawn(9, 9) // 16, {"nbits": 4}, "its pixels have 4 bits; --rasters never"),
        ],
    )
    def test_other_bands_and_types(self, model, tmp_path, pixels, profile, message):
        with pytest.raises(InputError, match=f"x.tif.*{message}"):
            labelled(model, write(tmp_path / "x.tif", pixels, **profile))

    def test_values_that_are_no_intensities(self, tmp_path):
        grey = Predictor(tiny_grey(), device="cpu")
        turned = Image.fromarray(drawn(9, 9)[0])
        turned.save(tmp_path / "turned.tif", tiffinfo={274: 6})
        turned.convert("P").save(tmp_path / "palette.tif")
        write(tmp_path / "white.tif", drawn(9, 9, 1), photometric="miniswhite")
        for name, what in (
            ("turned", "orientation is 6"),
            ("palette", "indices of a palette"),
            ("white", "zero is white"),
        ):
            with pytest.raises(InputError, match=f"{name}.tif: its .*{what}.*; --rasters never"):
                grey.raster(tmp_path / f"{name}.tif", tmp_path / "out.tif")

    def test_the_image_as_its_own_output(self, model, tmp_path):
        path = write(tmp_path / "x.tif", drawn(9, 9))
        before = path.read_bytes()
        with pytest.raises(InputError, match="would be overwritten"):
            predict_raster(model, path, tmp_path / "." / "x.tif")
        assert path.read_bytes() == before

    def test_paths_that_lead_nowhere(self, model, tmp_path):
        path = write(tmp_path / "x.tif", drawn(9, 9))
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
        for out in (tmp_path / "file" / "y.tif", tmp_path / "folder", tmp_path / ("n" * 256)):
            with pytest.raises(InputError, match=f"^cannot write {out}: "):
                predict_raster(model, path, out)
        with pytest.raises(InputError, match=f"^cannot read image {tmp_path}/no.tif: .*No such file"):
            predict_raster(model, tmp_path / "no.tif", tmp_path / "file")
        assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder", "x.tif"]

    def test_the_longest_name_that_the_disk_allows(self, model, tmp_path):
        path = write(tmp_path / "x.tif", drawn(9, 9))
        predict_raster(model, path, tmp_path / ("n" * 255))
        assert sorted(each.name for each in tmp_path.iterdir()) == ["n" * 255, "x.tif"]

    def test_without_rasterio(self, model, tmp_path, monkeypatch):
        path = write(tmp_path / "x.tif", drawn(9, 9))
        monkeypatch.setitem(sys.modules, "rasterio", None)
        with pytest.raises(InputError, match=r"x.tif in windows needs rasterio.*pip install 'emanet\[geo\]'"):
            labelled(model, path)


def tiny_grey():
    return tiny_bands(1)


def tiny_bands(count: int, spec=SPEC):
    from emanet.model import build_model

    torch.manual_seed(0)
    backbone = replace(TINY.backbone, in_channels=count)
    return build_model(replace(TINY, backbone=backbone, mean=(0.5,), std=(0.25,)), spec)


class TestBands:
    @pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64"])
    def test_of_more_than_eight_bits_by_the_range_of_training(self, tmp_path, dtype):
        """Seven bands, of which five in another order are the channels; whole and in windows; hidden values and NaN."""
        size, bands, range_ = (66, 90), (7, 1, 2, 3, 5), (-0.25, 0.5) if dtype.startswith("float") else (200, 3000)
        eight, hidden = drawn(*size, bands=7), np.zeros(size, bool)
        hidden[20:30, 40:60] = True
        samples = range_[0] + eight * ((range_[1] - range_[0]) / 255)
        samples = (samples if dtype.startswith("float") else samples.round()).astype(dtype)
        samples[:, 20:30, 40:60] = 9  # of no data
        if dtype.startswith("float"):
            samples[4, 50:60, :20], hidden[50:60, :20] = np.nan, True  # in one of the bands that are read
        path = write(tmp_path / "x.tif", samples, nodata=9, **PLACE)
        model = tiny_bands(5, replace(SPEC, bands=bands, range=range_)).eval()
        pixels = eight[[band - 1 for band in bands]]
        with rasterio.open(path) as file:
            assert model.bands == bands and model.range == range_
            pixels[:, hidden] = BandReader.of(file, path, channels_of(model)).read()[0][:, hidden]
        found = labelled(model, path)
        assert np.array_equal(found == 255, hidden) and len(np.unique(found)) > 2
        assert np.array_equal(found[~hidden], blended(model, pixels)[~hidden])
        predictor = Predictor(model, device="cpu")
        assert predict_files(predictor, [str(path)], tmp_path / "out", rasters="never") == []
        with Image.open(tmp_path / "out" / "x.png") as file:
            assert np.array_equal(file, np.where(hidden, 255, predictor(pixels.transpose(1, 2, 0))))
        with Image.open(tmp_path / "out" / "x_overlay.jpg") as file:
            assert file.size == size[::-1]

    def test_are_chosen_in_the_order_given(self, model, tmp_path):
        pixels = drawn(bands=5)
        path = write(tmp_path / "x.tif", pixels)
        assert np.array_equal(labelled(model, path, bands=(5, 1, 2)), blended(model, pixels[[4, 0, 1]]))
        for bands, message in (
            ((1, 2, 6), "bands 1 to 5, but no band 6"),
            ((1, 2), "2 bands are named, .* 3 channels"),
        ):
            with pytest.raises(InputError, match=message):
                labelled(model, path, bands=bands)


class TestFiles:
    def test_which_go_in_windows(self, tmp_path):
        plain, placed = write(tmp_path / "a.tif", drawn(9, 9)), write(tmp_path / "b.tiff", drawn(9, 9), **PLACE)
        big = write(tmp_path / "big.tif", drawn(9, 9), bigtiff="yes", **PLACE)
        assert (is_raster(plain), is_raster(placed), is_raster(big)) == (False, True, True)
        for bigtiff in ("no", "yes"):
            assert is_raster(write(big, drawn(9, 9), endianness="big", bigtiff=bigtiff, **PLACE))
            assert tiff_tags(big)[258] == (8, 8, 8)
        write(tmp_path / "world.tif", drawn(9, 9))
        (tmp_path / "world.tfw").write_text("2\n0\n0\n-2\n1001\n1999\n")
        write(tmp_path / "beside.tif", drawn(9, 9))
        place = "<GeoTransform>1, 2, 0, 1, 0, -2</GeoTransform>"
        (tmp_path / "beside.tif.aux.xml").write_text(f"<PAMDataset>{place}</PAMDataset>")
        (tmp_path / "a.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
        assert is_raster(tmp_path / "world.tif") and is_raster(tmp_path / "beside.tif") and not is_raster(plain)
        side = int(LARGE**0.5) + 1
        for name, height in (("huge.tif", side), ("large.tif", side - 3)):
            profile = {"width": side, "height": height, "count": 1, "dtype": "uint8", "sparse_ok": True, "tiled": True}
            with rasterio.open(tmp_path / name, "w", driver="GTiff", **profile):
                pass
        assert is_raster(tmp_path / "huge.tif") and not is_raster(tmp_path / "large.tif")
        Image.new("L", (9, 9)).save(tmp_path / "c.png")
        (tmp_path / "d.tif").write_bytes(b"II*\0\xff\xff\xff")
        words = struct.pack("<4sIHHHI4sHHI4sI", b"II*\0", 8, 2, 256, 2, 4, b"abc\0", 257, 4, 1, b"\xff" * 4, 0)
        (tmp_path / "e.tif").write_bytes(words)  # whose width is "abc"
        assert tiff_tags(tmp_path / "e.tif")[256] == "abc"
        assert not any(is_raster(tmp_path / name) for name in ("c.png", "d.tif", "e.tif"))

    def test_of_a_folder_go_their_ways(self, model, tmp_path, capfd):
        folder, out = tmp_path / "in", tmp_path / "out"
        folder.mkdir()
        write(folder / "a.tif", drawn(), **PLACE)
        write(folder / "b.tif", drawn())
        write(folder / "bad.tif", drawn(bands=2), **PLACE)
        predictor = Predictor(model, device="cpu", config=CONFIG)
        failures = predict_files(predictor, [str(folder)], out, overlay=False)
        assert len(failures) == 1 and "bad.tif: it has 2 bands" in failures[0]
        said = capfd.readouterr()  # no bar and no blank lines of one where no terminal is
        told = said.err.splitlines()
        assert (said.out, told[:-1]) == ("", ["3 images", f"skipped: {failures[0]}"])
        assert told[-1].startswith("2 done, 1 skipped, named above; ")
        assert sorted(path.name for path in out.iterdir()) == [RECORD, "a.tif", "b.png"]
        assert np.array_equal(read(out / "a.tif"), blended(model, drawn()))
        predict_files(predictor, [str(folder / "b.tif")], tmp_path / "all", rasters="always")
        predict_files(predictor, [str(folder / "b.tif")], tmp_path / "all", bands=(3, 2, 1), rasters="auto")
        assert np.array_equal(read(tmp_path / "all" / "b.tif"), blended(model, drawn()[::-1].copy()))
        predict_files(predictor, [str(folder / "a.tif")], tmp_path / "none", overlay=False, rasters="never")
        assert [path.name for path in (tmp_path / "none").iterdir()] == ["a.png"]
        whole = {"rasters": "never", "overlay": False}
        predict_files(predictor, [str(folder / "b.tif")], tmp_path / "whole", bands=(3, 2, 1), **whole)
        with Image.open(tmp_path / "whole" / "b.png") as image:
            assert np.array_equal(image, predictor(drawn()[::-1].transpose(1, 2, 0)))
        failures = predict_files(predictor, [str(folder / "b.tif")], out, bands=(1, 2, 4), **whole)
        assert len(failures) == 1 and "b.tif: it has bands 1 to 3, but no band 4" in failures[0]

    def test_outputs(self, model, tmp_path):
        """GeoJSON in the raster's CRS, opened again by rasterio and compared with the labels, and the shares."""
        (tmp_path / "in").mkdir()
        pixels = drawn()
        pixels[:, :20] = 0
        write(tmp_path / "in/a.tif", pixels, nodata=0, **PLACE)
        kinds, predictor = ["geojson", "shares", "uncertainty"], Predictor(model, device="cpu", config=CONFIG)
        assert predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", outputs=kinds) == []
        written = ["a.geojson", "a.tif", "a_shares.json", "a_uncertainty.tif", "shares.csv"]
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
        document, labels = json.loads((tmp_path / "out/a.geojson").read_text("utf-8")), read(tmp_path / "out/a.tif")
        assert document["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
        filled = [(each["geometry"], each["properties"]["label"]) for each in document["features"]]
        again = rasterize(filled, labels.shape, fill=255, transform=PLACE["transform"], dtype="uint8")
        assert np.array_equal(again, labels) and (labels == 255).sum() == 20 * SIZE[1]
        shares = json.loads((tmp_path / "out/a_shares.json").read_text("utf-8"))
        assert shares["hidden_pixels"] == 20 * SIZE[1] and sum(shares["pixels"].values()) == (labels != 255).sum()
        for kind in ("labelme", "coco", "overlay"):
            with pytest.raises(InputError, match=f"in/a.tif is read in windows, which give no {kind}, only index, "):
                predict_files(predictor, [str(tmp_path / "in")], tmp_path / "none", outputs=["index", kind])
        assert not (tmp_path / "none").exists()

    def test_from_the_command_line(self, model, tmp_path):
        path, file = write(tmp_path / "x.tif", drawn(bands=4), alpha="no", **PLACE), tmp_path / "m.safetensors"
        save_model(file, model, Experiment(model=TINY, data=DataConfig(spec=SPEC)))
        done = run_cli("predict", file, path, "--out", tmp_path / "out")
        assert "could not be predicted: 1" in sentence(done) and "4 bands" in done.stderr
        windows = ["--window", "65", "81", "--device", "cpu"]
        done = run_cli("predict", file, path, "--out", tmp_path / "out", "--bands", "1", "2", "3", *windows)
        assert done.returncode == 0, done.stderr
        assert np.array_equal(read(tmp_path / "out" / "x.tif"), blended(model, drawn(bands=4)[:3]))


def peak(path: Path, out: Path) -> float:
    """Peak resident MB of a process that predicts a TIFF."""
    done = program("raster_peak_memory.py", path, out)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def tiled(path: Path, h: int, w: int) -> Path:
    """A file of that size, written a tile at a time."""
    profile = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "interleave": "pixel"}
    with rasterio.open(
        path, "w", driver="GTiff", width=w, height=h, count=3, dtype="uint8", **profile, **PLACE
    ) as file:
        for k, (_, window) in enumerate(file.block_windows(1)):
            file.write(drawn(window.height, window.width, seed=k % 7), window=window)
    return path


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image(tmp_path):
    """105 megapixels against 4: their pixels alone have 315 MB, the float32 sums of their 3 classes 1.3 GB.

    The other image is so wide that a single strip would not do; then it is as much as it ever gets.
    """
    small = peak(tiled(tmp_path / "small.tif", 2048, 2048), tmp_path / "out.tif")
    for h, w, more in ((10_240, 10_240, 200), (600, 60_000, (MEMORY + CACHE) / 2**20)):
        large = peak(tiled(tmp_path / "large.tif", h, w), tmp_path / "out.tif")
        print(f"{h}x{w}: {large:.0f} MiB, 2048x2048: {small:.0f} MiB")
        with rasterio.open(tmp_path / "out.tif") as file:
            assert file.shape == (h, w) and file.block_shapes == [(TILE, TILE)] and file.transform == PLACE["transform"]
            assert file.crs == rasterio.CRS.from_string(PLACE["crs"])
            assert len(np.unique(file.read(1, window=((0, 512), (w - 512, w))))) > 1
        assert large - small < more


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name of a file is UTF-8")
def test_a_path_that_is_not_utf8_is_refused_in_a_sentence(model, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.tif")
    Image.new("RGB", (40, 40)).save(tmp_path / "a\udce9.tif")
    for image, out in (("a\udce9.tif", "o.tif"), ("a.tif", "o\udce9.tif")):
        with pytest.raises(InputError, match="GDAL takes only paths in UTF-8; rename it$"):
            predict_raster(model, tmp_path / image, tmp_path / out)
