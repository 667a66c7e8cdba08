"""Every kind of picture and mask file, made here, must come back as the pixels it stands for, or be named as wrong."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from emanet.config import DatasetSpec, voc_palette
from emanet.data import images
from emanet.data.bands import Channels
from emanet.data.images import (
    image_array,
    image_size,
    pixels_per_label,
    read_image,
    read_mask,
    read_mask_values,
    write_mask,
)
from emanet.errors import InputError

H, W = 6, 9
PIXELS = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(20 * np.arange(H)[:, None], 20 * np.arange(W), np.uint8(90)), 2).astype(np.uint8)
LABELS = np.arange(H * W, dtype=np.uint8).reshape(H, W) % 3
SPEC = DatasetSpec(classes=("a", "b", "c"), palette=((10, 0, 0), (0, 20, 0), (0, 0, 30)), ignore_colours=((9, 9, 9),))


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Dataset has no geotransform")  # of rasterio, for plain TIFFs
        yield


def saved(folder, image, name="x.png", **options):
    path = folder / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif", "tiff", "webp", "jp2"])
def test_lossless_formats_keep_every_pixel(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, Image.fromarray(PIXELS), f"x.{suffix}", **options)
    pixels = read_image(path)
    np.testing.assert_array_equal(pixels, PIXELS)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable
    assert image_size(path) == (H, W) and path.suffix in images.IMAGE_SUFFIXES


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_jpeg_is_close(tmp_path, mode):
    path = saved(tmp_path, Image.fromarray(SMOOTH).convert(mode), "x.jpg", quality=98, subsampling=0)
    np.testing.assert_allclose(read_image(path).astype(int), SMOOTH, atol=6)


def test_cmyk_is_subtractive(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (W, H), (255, 0, 0, 0)), "x.tif")
    np.testing.assert_array_equal(read_image(path), np.full((H, W, 3), (0, 255, 255)))


def test_grey_becomes_three_equal_channels_and_back(tmp_path):
    grey = PIXELS[..., 0]
    path = saved(tmp_path, Image.fromarray(grey))
    np.testing.assert_array_equal(read_image(path), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(read_image(path, 1), grey[..., None])


def test_colour_becomes_grey_by_luma(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (W, H), (100, 200, 50)))
    np.testing.assert_array_equal(
        read_image(path, 1), np.full((H, W, 1), round(0.299 * 100 + 0.587 * 200 + 0.114 * 50))
    )


@pytest.mark.parametrize("transparency", [{}, {"transparency": 1}, {"transparency": bytes([0, 128, 255])}])
def test_palette_becomes_its_colours(tmp_path, transparency):
    image = Image.fromarray(LABELS)
    image.putpalette([1, 2, 3, 40, 50, 60, 200, 210, 220])
    pixels = read_image(saved(tmp_path, image, **transparency))
    np.testing.assert_array_equal(pixels, np.array([[1, 2, 3], [40, 50, 60], [200, 210, 220]])[LABELS])


def test_alpha_is_dropped_or_kept_but_never_blended(tmp_path):
    rgba = np.dstack([PIXELS, 100 * LABELS])
    path = saved(tmp_path, Image.fromarray(rgba))
    np.testing.assert_array_equal(read_image(path), PIXELS)
    np.testing.assert_array_equal(read_image(path, 4), rgba)
    grey_alpha = saved(tmp_path, Image.fromarray(rgba[..., 2:]), "la.png")
    np.testing.assert_array_equal(read_image(grey_alpha, 1)[..., 0], PIXELS[..., 2])


def test_one_bit_becomes_black_and_white(tmp_path):
    for name in ("x.png", "x.bmp", "x.pbm", "x.tif"):
        path = saved(tmp_path, Image.fromarray(LABELS == 1), name)
        np.testing.assert_array_equal(read_image(path, 1)[..., 0], 255 * (LABELS == 1), err_msg=name)


WIDE = np.linspace(0, 65535, H * W).astype(np.uint16).reshape(H, W)


def scaled(values, low, high):
    return np.rint((values.astype(np.float64) - low).clip(0, high - low) * 255 / (high - low)).astype(np.uint8)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_sixteen_bits_are_scaled_by_a_range_and_refused_without(tmp_path, name):
    path = saved(tmp_path, Image.fromarray(WIDE), name)
    with pytest.raises(
        InputError, match=rf'{name}: its pixels are (uint16|int32), from 0 to 65535; .*: "range": \[\d+, [\de+.]+\]'
    ):
        read_image(path)
    pixels = read_image(path, Channels(3, range=(1000, 40_000)))
    np.testing.assert_allclose(pixels[..., 1].astype(int), scaled(WIDE, 1000, 40_000), atol=1)
    assert pixels.min() == 0 and pixels.max() == 255 and (pixels == pixels[..., :1]).all()


def test_sixteen_bits_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(WIDE), exif=exif)
    found = read_image(path, Channels(1, range=(0, 65535)))[..., 0]
    np.testing.assert_array_equal(found, scaled(np.rot90(WIDE, -1), 0, 65535))


def test_thirty_two_bits_need_a_range(tmp_path):
    for dtype in (np.int32, np.float32):
        path = saved(tmp_path, Image.fromarray(LABELS.astype(dtype)), "x.tif")
        with pytest.raises(InputError, match=rf"x\.tif: its pixels are {np.dtype(dtype)}, from 0 to 2; state"):
            read_image(path)
        np.testing.assert_array_equal(read_image(path, Channels(1, range=(0, 2)))[..., 0], scaled(LABELS, 0, 2))


def test_alpha_is_not_invented(tmp_path):
    for name in ("x.png", "x.jpg", "x.tif"):
        path = saved(tmp_path, Image.fromarray(PIXELS), name)
        with pytest.raises(InputError, match=rf"{name}: it has 3 bands \(.*\), but the model takes 4 channels$"):
            read_image(path, 4)


def test_bands_of_a_plain_file_are_named(tmp_path):
    path = saved(tmp_path, Image.fromarray(PIXELS))
    np.testing.assert_array_equal(read_image(path, Channels(3, bands=(3, 1, 1))), PIXELS[..., [2, 0, 0]])
    np.testing.assert_array_equal(read_image(path, Channels(1, bands=(2,))), PIXELS[..., 1:2])
    with pytest.raises(InputError, match="it has bands 1 to 3, but no band 4"):
        read_image(path, Channels(1, bands=(4,)))
    cmyk = saved(tmp_path, Image.new("CMYK", (W, H)), "x.jpg")
    with pytest.raises(InputError, match="bands of 'CMYK' pixels cannot be named"):
        read_image(cmyk, Channels(1, bands=(4,)))
    np.save(tmp_path / "x.npy", np.dstack([PIXELS, PIXELS]))
    np.testing.assert_array_equal(read_image(tmp_path / "x.npy", Channels(2, bands=(6, 2))), PIXELS[..., [2, 1]])


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    first, second = Image.new("RGB", (W, H), (255, 0, 0)), Image.new("RGB", (W, H), (0, 0, 255))
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path, first, f"x.{suffix}", save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(read_image(path), np.asarray(first))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, suffix, orientation):
    # Where the displayed image's top left corner, and the pixel right of it, lie in the stored one (EXIF 2.3, 4.6.4).
    stored = np.zeros((32, 48, 3), np.uint8)
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (-1, 0), 7: (-1, -1), 8: (0, -1)}
    y, x = corner[orientation]
    stored[slice(0, 16) if y == 0 else slice(16, 32), slice(0, 16) if x == 0 else slice(32, 48)] = 250
    along_x = np.zeros_like(stored)
    along_x[:] = np.arange(48)[None, :, None]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "jpg" else {}
    path = saved(tmp_path, Image.fromarray(stored), f"x.{suffix}", exif=exif, **options)
    pixels = read_image(path)
    assert pixels.shape[:2] == image_size(path) == ((32, 48) if orientation < 5 else (48, 32))
    assert pixels[:16, :16].min() > 240 and pixels[16:].max() < 10 and pixels[:, 16:].max() < 10
    ramp = saved(tmp_path, Image.fromarray(along_x), f"ramp.{suffix}", exif=exif, **options)
    with Image.open(ramp) as image:
        np.testing.assert_array_equal(read_image(ramp), np.asarray(ImageOps.exif_transpose(image).convert("RGB")))


def test_broken_exif_does_not_cost_the_image(tmp_path):
    path = saved(tmp_path, Image.fromarray(PIXELS), exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(read_image(path), PIXELS)
    assert image_size(path) == (H, W)


def test_size_needs_the_header_only(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image))
    for suffix in ("png", "jpg", "bmp", "tif"):
        path = saved(tmp_path, Image.fromarray(np.tile(PIXELS, (20, 20, 1))), f"x.{suffix}")
        assert image_size(path) == (20 * H, 20 * W)
        if suffix != "tif":  # its header may be at the end
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            assert image_size(path) == (20 * H, 20 * W)
    assert not decoded


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "ppm", "jp2", "tif"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_truncated(tmp_path, suffix, share):
    path = saved(tmp_path, Image.fromarray(np.tile(PIXELS, (9, 9, 1))), f"x.{suffix}")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match=rf"^cannot read image .*x\.{suffix}: .*\w\)?$"):
        read_image(path)


def test_content_decides_not_the_extension(tmp_path):
    path = saved(tmp_path, Image.fromarray(PIXELS), "x.jpg", format="PNG")
    np.testing.assert_array_equal(read_image(path), PIXELS)
    array = tmp_path / "y.png"
    with array.open("wb") as file:
        np.save(file, PIXELS)
    np.testing.assert_array_equal(read_image(array), PIXELS)
    assert image_size(array) == (H, W)


def test_what_is_no_image(tmp_path):
    cases = {
        "empty.png": b"",
        "text.jpg": b"hello, world\n",
        "page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        for read in (read_image, image_size):
            with pytest.raises(
                InputError,
                match=f"{name}: it is " + ("empty" if not content else "damaged, or its format"),
            ):
                read(tmp_path / name)
    with pytest.raises(InputError, match="absent.png: No such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(InputError, match="directory"):
        read_image(tmp_path)


def test_too_many_pixels(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(PIXELS))
    np.save(tmp_path / "x.npy", PIXELS)
    for file in (path, tmp_path / "x.npy"):
        with pytest.raises(InputError, match=f"{file.name}: its 9 x 6 pixels are more than max_pixels, 53"):
            read_image(file, max_pixels=H * W - 1)
        assert read_image(file, max_pixels=H * W).shape == (H, W, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # as a caller may: an error over 20
    for read in (read_image, image_size):
        with pytest.raises(InputError, match=r"x\.png: its 54 pixels are more than max_pixels, 20$"):
            read(path)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_npy_of_any_channel_count(tmp_path, channels):
    array = np.random.default_rng(1).integers(0, 256, (channels, H, W), dtype=np.uint8).transpose(1, 2, 0)
    np.save(tmp_path / "x.npy", np.asfortranarray(array))
    pixels = read_image(tmp_path / "x.npy", channels)
    np.testing.assert_array_equal(pixels, array)
    assert pixels.flags.c_contiguous and type(pixels) is np.ndarray and image_size(tmp_path / "x.npy") == (H, W)
    with pytest.raises(InputError, match=rf"not \(H, W, {channels + 1}\)"):
        read_image(tmp_path / "x.npy", channels + 1)


def test_npy_grey_without_an_axis_and_what_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, LABELS)
    np.testing.assert_array_equal(read_image(path, 1), LABELS[..., None])
    np.save(path, PIXELS.astype(np.float32))
    with pytest.raises(InputError, match="float32"):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, Channels(range=(0, 100))), scaled(PIXELS, 0, 100))
    np.save(path, np.array([[{}]]), allow_pickle=True)
    with pytest.raises(InputError, match="cannot read image"):
        read_image(path)
    np.save(path, PIXELS)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="cannot read image"):
        read_image(path)


@pytest.mark.parametrize("shape", [(), (5,), (0, 5, 3), (4, 5, 0), (1, 2, 3, 4)])
def test_arrays_without_pixels(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    for read in (read_image, image_size, read_mask_values):
        with pytest.raises(InputError, match=r"x\.npy: it is uint8 \(.*\), not pixels"):
            read(tmp_path / "x.npy")


def test_other_channel_counts_need_other_files(tmp_path):
    path = saved(tmp_path, Image.fromarray(PIXELS))
    with pytest.raises(InputError, match=r"it has 3 bands \(R, G, B\), but the model takes 5 channels"):
        read_image(path, 5)


def test_image_array_leaves_the_image_as_it_was():
    image = Image.fromarray(LABELS)
    image.putpalette([1, 2, 3, 40, 50, 60, 200, 210, 220])
    image.info["transparency"] = 0
    assert image_array(image)[0, 1].tolist() == [40, 50, 60]
    assert image.mode == "P" and image.info["transparency"] == 0


def mask_images():
    palette = Image.fromarray(LABELS)
    palette.putpalette([7] * 768)
    grey_alpha = Image.fromarray(np.dstack([LABELS, 255 - LABELS]))
    colours = np.array(SPEC.palette, np.uint8)[LABELS]
    return {
        "grey.png": Image.fromarray(LABELS),
        "palette.png": palette,
        "palette.gif": palette,
        "palette.bmp": palette,
        "sixteen.png": Image.fromarray(LABELS.astype(np.uint16)),
        "sixteen.tif": Image.fromarray(LABELS.astype(np.uint16)),
        "thirtytwo.tif": Image.fromarray(LABELS.astype(np.int32)),
        "grey.pgm": Image.fromarray(LABELS),
        "alpha.png": grey_alpha,
        "rgb.png": Image.fromarray(colours),
        "rgb.tif": Image.fromarray(colours),
        "rgba.png": Image.fromarray(np.dstack([colours, 50 * LABELS])),
    }


@pytest.mark.parametrize("name", mask_images())
def test_masks_of_all_kinds(tmp_path, name):
    path = saved(tmp_path, mask_images()[name], name)
    labels = read_mask(path, SPEC)
    np.testing.assert_array_equal(labels, LABELS)
    assert labels.dtype == np.uint8 and labels.flags.c_contiguous and labels.flags.writeable


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_hold_what_they_say(tmp_path, bits):
    labels = LABELS % 2 if bits == 1 else LABELS
    palette = Image.fromarray(labels)
    palette.putpalette([9, 9, 9] * (1 << bits))
    np.testing.assert_array_equal(read_mask(saved(tmp_path, palette, bits=bits), SPEC), labels)
    # Grey of few bits, which Pillow reads stretched to 255.
    each = np.unpackbits(labels[..., None], axis=2)[..., -bits:].reshape(H, W * bits)
    path = raw_png(tmp_path, np.packbits(each, axis=1), W, bits, 0)
    np.testing.assert_array_equal(read_mask(path, SPEC), labels)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], labels * (255 // ((1 << bits) - 1)))


def raw_png(folder, rows, w, bits, kind):
    """A PNG that Pillow does not write. rows: (h, bytes) uint8; kind: 0 grey, 2 RGB, 6 RGBA."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", w, len(rows), bits, kind, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path = folder / "raw.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("kind", [2, 6])
def test_sixteen_bit_colours(tmp_path, kind):
    wide = np.linspace(0, 65535, H * W * 4).astype(">u2").reshape(H, W, 4)[..., : 3 if kind == 2 else 4]
    path = raw_png(tmp_path, np.ascontiguousarray(wide).view(np.uint8).reshape(H, -1), W, 16, kind)
    with pytest.raises(InputError, match="its pixels are uint16, from 0 to"):
        read_image(path)
    found = read_image(path, Channels(3, range=(300, 50_000)))
    np.testing.assert_allclose(found.astype(int), scaled(wide[..., :3], 300, 50_000), atol=1)
    with pytest.raises(InputError, match="cannot read mask .*8 bits per channel"):  # small values would all be black
        read_mask(path, SPEC)


def test_colours_of_another_maximum_are_no_mask(tmp_path):
    path = tmp_path / "x.ppm"
    for white in (255, 100):
        path.write_bytes(b"P6 1 1 %d\n" % white + bytes([10, 0, 0]))
        if white == 255:
            assert read_mask(path, SPEC).tolist() == [[0]]
        else:
            with pytest.raises(InputError, match="8 bits per channel"):
                read_mask(path, SPEC)


@pytest.mark.parametrize("white", [3, 20, 255, 300, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_pgm_masks_of_any_maximum(tmp_path, white, plain):
    path = tmp_path / "x.pgm"
    if plain:
        path.write_text(f"P2 {W} {H} {white}\n" + " ".join(map(str, LABELS.ravel())))
    else:
        data = LABELS.astype(">u2" if white > 255 else np.uint8).tobytes()
        path.write_bytes(f"P5 {W} {H} {white}\n".encode() + data)
    np.testing.assert_array_equal(read_mask(path, SPEC), LABELS)


def test_npy_masks(tmp_path):
    for dtype in (np.uint8, np.int64):
        np.save(tmp_path / "x.npy", LABELS.astype(dtype))
        np.testing.assert_array_equal(read_mask(tmp_path / "x.npy", SPEC), LABELS)
    np.save(tmp_path / "x.npy", np.array([[-1, 0, 2]]))
    with pytest.raises(InputError, match="has values -1 outside"):
        read_mask(tmp_path / "x.npy", SPEC)
    np.save(tmp_path / "x.npy", LABELS / 2)
    with pytest.raises(InputError, match="float64"):
        read_mask(tmp_path / "x.npy", SPEC)


def test_tiff_masks_that_pillow_does_not_read(tmp_path):
    rasterio, path = pytest.importorskip("rasterio"), tmp_path / "x.tif"

    def write(dtype, count=1):
        profile = {"driver": "GTiff", "height": H, "width": W, "count": count, "dtype": dtype}
        with rasterio.open(path, "w", **profile) as file:
            file.write(np.stack([LABELS.astype(dtype)] * count))
        return path

    for dtype in ("int64", "uint64"):
        np.testing.assert_array_equal(read_mask(write(dtype), SPEC), LABELS)
    for options, said in ((("float64",), rf"float64 \({H}, {W}\)"), (("uint8", 2), rf"uint8 \(2, {H}, {W}\)")):
        with pytest.raises(InputError, match=f"cannot read mask {path}: it is {said}, not integers"):
            read_mask(write(*options), SPEC)


def test_ignored_values(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[0, 1, 255]], np.uint8)))
    assert read_mask(path, SPEC).tolist() == [[0, 1, 255]]
    assert read_mask(path, DatasetSpec(classes=("a",), ignore_label=1, label_map={0: 0, 255: 255})).tolist() == [
        [0, 255, 255]
    ]
    path = saved(tmp_path, Image.fromarray(np.array([[0, 1, 2]], np.uint8)))
    assert read_mask(path, DatasetSpec(classes=("a", "b", "c"), ignore_label=0)).tolist() == [[255, 1, 2]]
    path = saved(tmp_path, Image.fromarray(np.array([[0, 255]], np.uint8)))
    with pytest.raises(InputError, match=r"has values 255 outside the 1 classes 0\.\.0 \(ignored: 7\)"):
        read_mask(path, DatasetSpec(classes=("a",), ignore_label=7))


def test_label_map(tmp_path):
    spec = DatasetSpec(classes=("road", "car"), label_map={-1: 255, 7: 0, 8: 255, 26: 1, 26001: 1, 100000: 0})
    path = saved(tmp_path, Image.fromarray(np.array([[7, 8, 26, 255]], np.uint8)))
    assert read_mask(path, spec).tolist() == [[0, 255, 1, 255]]
    path = saved(tmp_path, Image.fromarray(np.array([[7, 26001]], np.uint16)))
    assert read_mask(path, spec).tolist() == [[0, 1]]
    path = saved(tmp_path, Image.fromarray(np.array([[7, 1, 0]], np.uint8)))  # class indices, but not mask values
    with pytest.raises(InputError, match=r"^mask .*x\.png has values 0, 1 that label_map lacks \(ignored: 255\)$"):
        read_mask(path, spec)
    mapped_wins = DatasetSpec(classes=("a", "b"), ignore_label=1, label_map={0: 0, 1: 1})
    path = saved(tmp_path, Image.fromarray(np.array([[0, 1]], np.uint8)))
    assert read_mask(path, mapped_wins).tolist() == [[0, 1]]


def test_bad_values_are_named(tmp_path):
    spec = DatasetSpec(classes=tuple("abcdefghijk"))
    path = saved(tmp_path, Image.fromarray(np.array([[12, 0, 11, 255, 11]], np.uint8)))
    with pytest.raises(InputError) as error:
        read_mask(path, spec)
    assert str(error.value) == f"mask {path} has values 11, 12 outside the 11 classes 0..10 (ignored: 255)"
    with pytest.raises(InputError, match=r"ignored: 255\); if classes start at 1, name what 0 is"):
        read_mask(path, DatasetSpec(classes=tuple("abcdefghijkl")))
    path = saved(tmp_path, Image.fromarray(np.arange(100, 120, dtype=np.uint8)[None]))
    with pytest.raises(InputError, match="100, 101, 102, 103, 104 and 15 more outside"):
        read_mask(path, spec)


def test_colours(tmp_path):
    colours = np.array([[[0, 20, 0], [9, 9, 9], [0, 0, 30], [10, 0, 0]]], np.uint8)
    assert read_mask(saved(tmp_path, Image.fromarray(colours)), SPEC).tolist() == [[1, 255, 2, 0]]
    colours[0, 1], colours[0, 2] = (1, 2, 3), (0, 20, 1)
    path = saved(tmp_path, Image.fromarray(colours))
    with pytest.raises(InputError) as error:
        read_mask(path, SPEC)
    assert str(error.value) == f"mask {path} has colours (0, 20, 1), (1, 2, 3) that the palette lacks"


def test_colours_of_the_voc_map_when_there_is_no_palette(tmp_path):
    labels = np.arange(21, dtype=np.uint8).reshape(3, 7)
    path = saved(tmp_path, Image.fromarray(np.array(voc_palette(21), np.uint8)[labels]))
    np.testing.assert_array_equal(read_mask(path, DatasetSpec(classes=tuple("abcdefghijklmnopqrstu"))), labels)


def test_colours_that_cannot_be_told_apart(tmp_path):
    twins = DatasetSpec(classes=("a", "b"), palette=((1, 1, 1), (1, 1, 1)))
    with pytest.raises(InputError, match="two classes have the same"):
        read_mask(saved(tmp_path, Image.new("RGB", (2, 2), (1, 1, 1))), twins)
    assert read_mask(saved(tmp_path, Image.new("L", (2, 1), 1)), twins).tolist() == [[1, 1]]


def test_mask_of_another_kind(tmp_path):
    with pytest.raises(InputError, match="cannot read mask .*'CMYK'"):
        read_mask(saved(tmp_path, Image.new("CMYK", (2, 2)), "x.tif"), SPEC)
    (tmp_path / "y.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read mask .*y\.png: it is empty"):
        read_mask(tmp_path / "y.png", SPEC)


def test_masks_are_turned_only_if_they_say_so(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(LABELS), exif=exif)
    np.testing.assert_array_equal(read_mask(path, SPEC), np.rot90(LABELS, -1))


def test_mask_values_are_raw(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[3, 200]], np.uint8)))
    assert read_mask_values(path).tolist() == [[3, 200]]
    path = saved(tmp_path, Image.fromarray(PIXELS))
    np.testing.assert_array_equal(read_mask_values(path), PIXELS)


def test_pixels_are_counted_by_label():
    labels = np.random.default_rng(0).integers(0, 256, (40, 60)).astype(np.uint8)
    for view in (labels, labels.T, labels[::2, 3:]):
        assert pixels_per_label(view).tolist() == np.bincount(view.ravel(), minlength=256).tolist()
    assert pixels_per_label(labels).dtype == np.int64


def test_long_runs_and_noise_translate_alike(tmp_path):
    noise = np.random.default_rng(2).integers(0, 5, (50, 70)).astype(np.uint8)
    noise[20:30] = 4
    table = {0: 3, 1: 255, 2: 0, 3: 1, 4: 2}
    spec = DatasetSpec(classes=tuple("abcd"), label_map=table)
    wanted = np.vectorize(table.get)(noise)
    np.testing.assert_array_equal(read_mask(saved(tmp_path, Image.fromarray(noise)), spec), wanted)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (37, 1), (36, 48)])
def test_bytes_translate_like_wider_values(size):
    """Masks of 8 bits have a way of their own through the table."""
    values = np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)
    tables = [
        {value: value for value in range(256)},
        {-1: 0, 300: 7} | {value: value * 7 % 256 for value in range(0, 256, 3)},
        {int(values[0, 0]): 255},
    ]
    for table in tables:
        for view in (values, values[::-1, ::2], values.T):
            labels, unknown = images._translate(view, table)
            wide_labels, wide_unknown = images._translate(view.astype(np.int32), table)
            known = np.isin(view, list(table))
            np.testing.assert_array_equal(labels[known], wide_labels[known])
            assert unknown == wide_unknown and labels.shape == view.shape
            assert labels.dtype == np.uint8 and labels.flags.writeable and labels.flags.c_contiguous


def test_palette_masks_with_ignored_pixels(tmp_path):
    labels = np.array([[0, 1, 255], [2, 255, 255], [1, 0, 2]], np.uint8)
    image = Image.fromarray(labels)
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    for name in ("x.png", "x.bmp", "x.tif"):
        np.testing.assert_array_equal(read_mask(saved(tmp_path, image, name), SPEC), labels, err_msg=name)


def test_write_mask_round_trip(tmp_path):
    labels = np.array([[0, 1, 2, 255], [2, 2, 0, 1]], np.uint8)
    write_mask(tmp_path / "m.png", labels, SPEC.colours)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", SPEC), labels)
    with Image.open(tmp_path / "m.png") as image:
        assert image.format == "PNG" and image.mode == "P"
        shown = np.asarray(image.convert("RGB"))
    assert shown[0].tolist() == [[10, 0, 0], [0, 20, 0], [0, 0, 30], [224, 224, 192]]
    header = (tmp_path / "m.png").read_bytes()[16:29]
    assert header[8:10] == bytes([8, 3])  # 8 bits per pixel, indexed
    for wrong in (labels.astype(np.int64), labels[None]):
        with pytest.raises(ValueError, match="must be uint8"):
            write_mask(io.BytesIO(), wrong, SPEC.colours)
