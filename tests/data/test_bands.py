import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from emanet.config import DataConfig, DatasetSpec
from emanet.data.bands import BandReader, Channels
from emanet.data.datasets import Dataset, open_dataset
from emanet.data.images import image_size, read_image, read_visible
from emanet.data.pack import pack
from emanet.errors import InputError

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
H, W = 6, 9
RAMP = np.arange(5 * H * W).reshape(5, H, W)
REAL = sorted((ROOT.parent / "shared" / "data" / "files" / "geotiff").glob("*.tif"))


def write(path: Path, samples: np.ndarray, **profile) -> Path:
    size = {"count": len(samples), "height": samples.shape[1], "width": samples.shape[2], "dtype": samples.dtype}
    with rasterio.open(path, "w", driver="GTiff", **size, **profile) as file:
        file.write(samples)
    return path


def in_windows(path, channels, rows=4):
    """What predict_raster's reader gives, a few rows at a time."""
    with rasterio.open(path, driver="GTiff") as source:
        reader = BandReader.of(source, Path(path), channels)
        h, w = source.shape
        parts = [reader.read(((top, min(h, top + rows)), (0, w))) for top in range(0, h, rows)]
    pixels, visible = (np.concatenate([part[i] for part in parts], -2) for i in (0, 1))
    return pixels.transpose(1, 2, 0), visible


def both(path, channels):
    """(pixels, visible) of both readers, which must agree; InputError where either of them refuses the file."""
    try:
        pixels, visible = in_windows(path, channels, 512)
    except ValueError as error:
        raise InputError(str(error)) from error
    whole, shown = read_visible(path, channels)
    np.testing.assert_array_equal(whole, pixels)
    np.testing.assert_array_equal(np.ones(visible.shape, bool) if shown is None else shown, visible)
    return pixels, visible


class TestScale:
    @pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32", "float64", "uint8"])
    def test_range_becomes_0_and_255_and_the_rest_is_clipped(self, dtype):
        samples = np.array([[[0, 10, 20, 110, 120]]], dtype).T
        found = Channels(1, range=(10, 110)).scaled(samples).ravel()
        assert found.tolist() == [0, 0, 26, 255, 255] and found.dtype == np.uint8

    def test_each_channel_has_its_own(self):
        samples = np.full((2, 3, 2), 50, np.uint16)
        wanted = np.full((2, 3, 2), [128, 255])
        np.testing.assert_array_equal(Channels(2, range=(0, 100, 0, 50)).scaled(samples), wanted)
        across = Channels(2, range=(0, 100, 0, 50)).scaled(samples.transpose(2, 0, 1), 0)
        np.testing.assert_array_equal(across.transpose(1, 2, 0), wanted)

    def test_nan_and_infinities(self):
        samples = np.array([[[np.nan, np.inf, -np.inf, 1.0]]])
        assert Channels(4, range=(0, 2)).scaled(samples).ravel().tolist() == [0, 255, 0, 128]

    def test_what_cannot_be_meant(self):
        with pytest.raises(ValueError, match="pixels are uint8, but the range 0 4095 is for data of another type"):
            Channels(1, range=(0, 4095)).scaled(np.zeros((1, 1, 1), np.uint8))
        with pytest.raises(ValueError, match="pixels are uint8, but the range 0 1 is for"):
            Channels(1, range=(0, 1)).scaled(np.full((1, 1, 1), 2, np.uint8))
        assert Channels(1, range=(0, 1)).scaled(np.ones((1, 1, 1), np.uint8)) == 255
        with pytest.raises(ValueError, match="complex64, but must be real numbers"):
            Channels(1).scaled(np.zeros((1, 1, 1), np.complex64))
        with pytest.raises(ValueError, match="without any value"):
            Channels(1).scaled(np.full((1, 1, 1), np.nan))
        with pytest.raises(InputError, match="2 bands are named, but the model takes 3 channels"):
            Channels(3, bands=(1, 2))
        with pytest.raises(InputError, match="range has 4 numbers"):
            Channels(3, range=(1, 2, 1, 2))
        with pytest.raises(InputError, match="bands are counted from 1, so there is no band 0"):
            Channels(3, bands=(0, 1, 2))
        for range_, said in (((5, 5), "5 must be below 5"), ((0, 1, 0, 1, 2, 0.5), "2 must be below 0.5")):
            with pytest.raises(InputError, match=said):
                Channels(3, range=range_)
        for wrong in ({"range": (1.0, 1.0)}, {"range": (1.0,)}, {"range": (0.0, float("nan"))}, {"bands": (0,)}):
            with pytest.raises(InputError, match=next(iter(wrong))):
                DatasetSpec(classes=("a",), **wrong)

    def test_the_suggested_range_leaves_out_the_outermost_values(self):
        samples = np.linspace(1000, 2000, 10_000).reshape(100, 100, 1).astype(np.float32)
        samples[0, 0] = 1e6
        with pytest.raises(ValueError, match=r'float32, from 1000.* to 1e\+06; .*: "range": \[1010, 2000\] in'):
            Channels(1).scaled(samples)
        with pytest.raises(ValueError, match=r"--range 1010 2000$"):
            Channels(1, flags=True).scaled(samples)


class TestBands:
    @pytest.mark.parametrize("interleave", ["pixel", "band"])
    @pytest.mark.parametrize("photometric", ["MINISBLACK", "RGB"])
    def test_that_are_not_alpha_arrive_or_are_refused(self, tmp_path, photometric, interleave):
        samples = RAMP[:4].astype(np.uint8)
        path = write(tmp_path / "x.tif", samples, photometric=photometric, alpha="no", interleave=interleave)
        np.testing.assert_array_equal(both(path, Channels(4))[0], samples.transpose(1, 2, 0))
        np.testing.assert_array_equal(
            both(path, Channels(3, bands=(4, 1, 2)))[0], samples[[3, 0, 1]].transpose(1, 2, 0)
        )
        assert image_size(path) == (H, W)
        with pytest.raises(
            InputError, match=r'4 bands .* takes 3 channels; name 3 of them: "bands": \[1, 2, 3\] in .*_channels to 4$'
        ):
            read_image(path)
        with pytest.raises(InputError, match="no band 5"):
            read_image(path, Channels(1, bands=(5,)))

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_three_of_grey(self, tmp_path, dtype):
        samples = RAMP[:3].astype(dtype)
        path = write(tmp_path / "x.tif", samples, photometric="MINISBLACK")
        range_ = () if dtype == np.uint8 else (0, 255)
        np.testing.assert_array_equal(both(path, Channels(3, range=range_))[0], samples.transpose(1, 2, 0))

    def test_of_five(self, tmp_path):
        path = write(tmp_path / "x.tif", RAMP.astype(np.uint16))
        found = both(path, Channels(5, range=(0, 255)))[0]
        np.testing.assert_array_equal(found, RAMP.transpose(1, 2, 0).clip(0, 255))
        with pytest.raises(InputError, match="uint16, from 0 to 269"):
            both(path, Channels(5))

    def test_one_grey_band_becomes_three_channels(self, tmp_path):
        path = write(tmp_path / "x.tif", RAMP[:1].astype(np.uint8))
        np.testing.assert_array_equal(both(path, Channels(3))[0], RAMP[0][..., None].repeat(3, 2))

    def test_alpha_is_dropped_and_hides(self, tmp_path):
        rgba = RAMP[:4].astype(np.uint8)
        rgba[3] = 255 * (RAMP[0] % 2)
        path = write(tmp_path / "x.tif", rgba, photometric="RGB", alpha="YES")
        pixels, visible = both(path, Channels(3))
        np.testing.assert_array_equal(pixels, rgba[:3].transpose(1, 2, 0))
        np.testing.assert_array_equal(visible, rgba[3] > 0)
        np.testing.assert_array_equal(both(path, Channels(4))[0], rgba.transpose(1, 2, 0))

    def test_without_rasterio_are_refused(self, tmp_path, monkeypatch):
        path = write(tmp_path / "x.tif", RAMP[:4].astype(np.uint8))
        plain = write(tmp_path / "plain.tif", RAMP[:3].astype(np.uint8), photometric="RGB")
        monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
        with pytest.raises(InputError, match=r"x\.tif: its bands .* rasterio.*pip install 'emanet\[geo\]'"):
            read_image(path)
        np.testing.assert_array_equal(read_image(plain), RAMP[:3].transpose(1, 2, 0))


class TestStorage:
    """How a TIFF keeps its samples makes no difference between the readers."""

    @pytest.mark.parametrize(
        "profile",
        [
            {"compress": "lzw", "predictor": 2},
            {"compress": "deflate", "interleave": "band", "tiled": True, "blockxsize": 16, "blockysize": 16},
            {"compress": "webp", "webp_lossless": True},
            {"compress": "jpeg"},
            {"compress": "jpeg", "photometric": "YCBCR"},
            {"bigtiff": "yes", "endianness": "big"},
        ],
        ids=lambda profile: "-".join(map(str, profile.values())),
    )
    def test_of_colours(self, tmp_path, profile):
        samples = np.random.default_rng(0).integers(0, 256, (3, 37, 53), np.uint8)
        path = write(tmp_path / "x.tif", samples, **{"photometric": "RGB"} | profile)
        found = both(path, Channels(3))[0]
        if profile.get("compress") != "jpeg":
            np.testing.assert_array_equal(found, samples.transpose(1, 2, 0))

    def test_of_eight_bits_with_a_sign(self, tmp_path):
        path = write(tmp_path / "x.tif", RAMP[:1].astype(np.int8) - 20)
        with pytest.raises(InputError, match="its pixels are int8, from -20 to 33"):
            read_image(path, 1)
        np.testing.assert_array_equal(both(path, Channels(1, range=(-20, 235)))[0][..., 0], RAMP[0])

    def test_of_cmyk_in_windows(self, tmp_path):
        path = write(tmp_path / "x.tif", RAMP[:4].astype(np.uint8), photometric="CMYK")
        assert read_image(path).shape == (H, W, 3)
        for channels in (3, 4):
            with pytest.raises(InputError, match="amounts of ink|4 bands"):
                both(path, Channels(channels))
        with pytest.raises(InputError, match="it has 4 bands"):
            read_image(path, 4)


class TestMeaning:
    """What Pillow shows and GDAL does not: read whole, refused in windows."""

    def test_of_eight_bits(self, tmp_path):
        grey = Image.fromarray(RAMP[0].astype(np.uint8))
        grey.save(tmp_path / "turned.tif", tiffinfo={274: 6})
        grey.convert("P").save(tmp_path / "palette.tif")
        grey.convert("CMYK").save(tmp_path / "cmyk.tif")
        grey.convert("1").save(tmp_path / "bit.tif")
        write(tmp_path / "white.tif", RAMP[:1].astype(np.uint8), photometric="miniswhite", nodata=3)
        for name in ("turned", "palette", "cmyk", "bit", "white"):
            path, channels = tmp_path / f"{name}.tif", Channels(4 if name == "cmyk" else 1)
            read_image(path, 1)
            with rasterio.open(path) as source, pytest.raises(ValueError, match="its (zero|pixels|orient)"):
                BandReader.of(source, path, channels)
        np.testing.assert_array_equal(read_image(tmp_path / "white.tif", 1)[..., 0], 255 - RAMP[0])

    def test_of_more_bits_is_refused(self, tmp_path):
        path = write(tmp_path / "x.tif", RAMP[:1].astype(np.uint16), photometric="miniswhite")
        with pytest.raises(InputError, match=r"x\.tif: its zero is white$"):
            read_image(path, Channels(1, range=(0, 255)))


class TestHidden:
    def test_by_no_data_by_a_mask_and_by_nan(self, tmp_path):
        samples = RAMP[:1].astype(np.float32)
        wanted = RAMP[0] != 7
        numbered = write(tmp_path / "a.tif", samples, nodata=7)
        samples[0][~wanted] = np.nan
        nan = write(tmp_path / "b.tif", samples)
        masks = []
        for name, inside in (("c.tif", True), ("d.tif", False)):
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside):
                masks.append(write(tmp_path / name, RAMP[:1].astype(np.uint8)))
                with rasterio.open(masks[-1], "r+") as file:
                    file.write_mask(wanted)
        assert Path(f"{masks[1]}.msk").exists()
        for path in (numbered, nan):
            assert np.array_equal(both(path, Channels(1, range=(0, 255)))[1], wanted), path
        for path in masks:
            assert np.array_equal(both(path, Channels(1))[1], wanted), path
        np.save(tmp_path / "x.npy", samples[0])
        assert np.array_equal(read_visible(tmp_path / "x.npy", Channels(1, range=(0, 255)))[1], wanted)

    def test_pixels_are_ignored_in_training_also_when_packed(self, tmp_path):
        samples = RAMP[:3].astype(np.uint16)
        samples[:, 0, 0] = 65535
        mask = tmp_path / "m.png"
        Image.fromarray(np.ones((H, W), np.uint8)).save(mask)
        pairs = [(write(tmp_path / "x.tif", samples, nodata=65535), mask)]
        spec = DatasetSpec(classes=("a", "b"), bands=(2, 1), range=(0.0, 255.0))
        pack(pairs, spec, "train", tmp_path / "packed")
        packed = open_dataset(DataConfig(dataset=str(tmp_path / "packed")), "train", 2)
        assert packed.spec == spec
        for dataset in (Dataset(pairs, spec, 2), packed):
            image, labels = dataset.read(0)
            np.testing.assert_array_equal(image, samples[[1, 0]].clip(0, 255).transpose(1, 2, 0))
            assert labels[0, 0] == 255 and (labels.ravel()[1:] == 1).all()


@pytest.mark.skipif(not REAL, reason="no real GeoTIFFs in ../shared")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_files_are_read_alike_or_refused(path):
    with warnings.catch_warnings(), rasterio.open(path) as file:
        warnings.simplefilter("ignore")
        count, dtype, palette = file.count, np.dtype(file.dtypes[0]), file.colorinterp[0].name == "palette"
        alpha = file.colorinterp[-1].name == "alpha"
        big = file.width * file.height > 10_000_000
    channels = count - alpha
    if big or palette:
        with pytest.raises((InputError, ValueError), match="max_pixels|palette"):
            read_image(path, channels, max_pixels=10_000_000)
            both(path, Channels(channels))
        return
    if dtype != np.uint8:
        with pytest.raises(
            InputError, match=rf"its pixels are {dtype}, from .* to .*; state the values|without any value"
        ):
            read_image(path, channels)
    range_ = () if dtype == np.uint8 else (-1000.0, 5000.0)
    pixels, visible = both(path, Channels(channels, range=range_))
    assert pixels.shape == (*image_size(path), channels) and visible.any() == (
        path.name != "inverted_lat.tif"
    )  # nothing but no-data


@pytest.mark.parametrize(("name", "driver"), [("x.png", "PNG"), ("x.ppm", "PNM"), ("x.jp2", "JP2OpenJPEG")])
def test_colours_of_sixteen_bits_in_other_formats(tmp_path, name, driver):
    samples = np.arange(3 * 40 * 50).reshape(3, 40, 50).astype(np.uint16) * 10
    size = {"count": 3, "height": 40, "width": 50, "dtype": "uint16"}
    exact = {"QUALITY": 100, "REVERSIBLE": "YES"} if driver == "JP2OpenJPEG" else {}
    with rasterio.open(tmp_path / name, "w", driver=driver, **size, **exact) as file:
        file.write(samples)
    assert image_size(tmp_path / name) == (40, 50)
    with pytest.raises(InputError, match=rf"{name}: its pixels are uint16, from 0 to 59990"):
        read_image(tmp_path / name)
    channels = Channels(3, range=(0, 60_000))
    np.testing.assert_array_equal(read_image(tmp_path / name, channels), channels.scaled(samples, 0).transpose(1, 2, 0))


def test_colours_of_sixteen_bits_must_be_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with rasterio.open(tmp_path / "x.png", "w", driver="PNG", count=3, height=H, width=W, dtype="uint16") as file:
        file.write(RAMP[:3].astype(np.uint16))
    content = (tmp_path / "x.png").read_bytes()
    block = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    (tmp_path / "x.png").write_bytes(content[:33] + chunk + content[33:])  # after the header
    with pytest.raises(InputError, match="its colours of 16 bits have the orientation 6; save it upright"):
        read_image(tmp_path / "x.png", Channels(3, range=(0, 255)))


def test_packing_leaves_no_mask_behind(tmp_path):
    path = write(tmp_path / "x.tif", RAMP[:3].astype(np.uint8))
    Path(f"{path}.msk").touch()
    with pytest.raises(InputError, match=r"x\.tif has a mask beside it"):
        pack([(path, path)], DatasetSpec(classes=("a",)), "train", tmp_path / "packed")
