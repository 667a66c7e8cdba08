"""Files to break and ways to break them: the corpora of test_hostile.py. Everything is a function of a seed."""

import io
import json
import pickle
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save

SUFFIXES = ("png", "jpg", "gif", "webp", "tif", "bmp", "ppm", "jp2", "npy")
# Where a format's parts begin: JPEG's markers, the four letters of PNG, RIFF and JPEG 2000, names in a zip or a pickle.
PARTS = re.compile(
    rb"\xff[\xc0-\xfe]|IHDR|PLTE|tRNS|IDAT|IEND|acTL|fcTL|fdAT|eXIf|VP8|ANMF|ANIM|EXIF|jp2[hc]|PK..|ctorch"
)
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 24, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
SIDES = (24, 33)


def image_seeds() -> dict[str, bytes]:
    """Sound files: every format in the modes that it has, by name."""
    rng = np.random.default_rng(0)
    smooth = np.add.outer(4 * np.arange(SIDES[0]), 3 * np.arange(SIDES[1]))[..., None] + np.array([0, 20, 40])
    pixels = (smooth + rng.integers(0, 9, smooth.shape)).astype(np.uint8)
    grey = pixels[..., 0]
    rgb, l8 = Image.fromarray(pixels), Image.fromarray(grey)
    rgba = Image.fromarray(np.dstack([pixels, grey]))
    palette = rgb.quantize(16)
    wide, real = Image.fromarray(grey.astype(np.uint16) * 200), Image.fromarray(grey.astype(np.float32))
    frames = {"save_all": True, "append_images": [l8.convert("RGB"), rgb.rotate(90)]}
    seeds = {
        "grey.jpg": _saved(l8, "JPEG"),
        "rgb.jpg": _saved(rgb, "JPEG"),
        "cmyk.jpg": _saved(rgb.convert("CMYK"), "JPEG"),
        "progressive.jpg": _saved(rgb, "JPEG", progressive=True, quality=90, subsampling=0),
        "rgb.png": _saved(rgb, "PNG"),
        "alpha.png": _saved(rgba, "PNG"),
        "greyalpha.png": _saved(rgba.convert("LA"), "PNG"),
        "sixteen.png": _saved(wide, "PNG"),
        "transparent.png": _saved(palette, "PNG", transparency=bytes(range(16))),
        "animated.png": _saved(rgb, "PNG", **frames),
        "interlaced.png": _interlaced(grey),
        "one.gif": _saved(palette, "GIF"),
        "animated.gif": _saved(rgb, "GIF", **frames),
        "lossy.webp": _saved(rgb, "WEBP"),
        "lossless.webp": _saved(rgba, "WEBP", lossless=True),
        "animated.webp": _saved(rgb, "WEBP", **frames),
        "raw.tif": _saved(rgb, "TIFF"),
        "deflate.tif": _saved(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "lzw.tif": _saved(l8, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": _saved(rgb, "TIFF", compression="jpeg"),
        "group4.tif": _saved(l8.convert("1"), "TIFF", compression="group4"),
        "strips.tif": _saved(rgb, "TIFF", tiffinfo={278: 4}, strip_size=400),
        "tiled.tif": _tiled(grey),
        "cmyk.tif": _saved(rgb.convert("CMYK"), "TIFF"),
        "sixteen.tif": _saved(wide, "TIFF"),
        "float.tif": _saved(real, "TIFF"),
        "pages.tif": _saved(rgb, "TIFF", **frames),
        "rgb.bmp": _saved(rgb, "BMP"),
        "palette.bmp": _saved(palette, "BMP"),
        "rgb.ppm": _saved(rgb, "PPM"),
        "grey.pgm": _saved(l8, "PPM"),
        "sixteen.pgm": _saved(wide, "PPM"),
        "bits.pbm": _saved(l8.convert("1"), "PPM"),
        "plain.pgm": b"P2 3 2 255\n0 1 2 3 4 255\n",
        "rgb.jp2": _saved(rgb, "JPEG2000"),
        "grey.jp2": _saved(l8, "JPEG2000", irreversible=True),
        "raw.j2k": _saved(rgb, "JPEG2000", no_jp2=True),
    }
    for bits in (1, 2, 4, 8):
        seeds[f"palette{bits}.png"] = _saved(rgb.quantize(1 << min(bits, 4)), "PNG", bits=bits)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        seeds[f"turned{turn}.{('jpg', 'png', 'webp', 'tif')[turn % 4]}"] = _saved(
            rgb, ("JPEG", "PNG", "WEBP", "TIFF")[turn % 4], exif=exif
        )
    arrays = {
        "rgb": pixels,
        "grey": grey,
        "fortran": np.asfortranarray(pixels),
        "long": grey.astype(np.int64),
        "big_endian": grey.astype(">u2"),
        "real": pixels.astype(np.float64),
        "channels": np.zeros((5, 4, 7), np.uint8),
        "empty": np.zeros((0, 5, 3), np.uint8),
        "no_channels": np.zeros((4, 5, 0), np.uint8),
        "scalar": np.uint8(3),
        "vector": np.arange(9, dtype=np.uint8),
        "records": np.zeros((3, 4), [("a", "u1"), ("b", "f4")]),
        "text": np.array([["a", "bc"]]),
        "dates": np.zeros((2, 2), "datetime64[s]"),
    }
    return seeds | {f"{name}.npy": _npy(array) for name, array in arrays.items()}


def bombs() -> dict[str, bytes]:
    """Small files that promise far more pixels than anyone has memory for, or more than they hold."""
    huge = 1 << 30
    flat, inflated = zlib.compress(bytes(20)), b"k\0\0" + zlib.compress(bytes(1 << 26))
    png = _png(huge, huge, 8, 2, zlib.compress(bytes(4096)))
    tiff = image_seeds()["raw.tif"]
    deflated = image_seeds()["deflate.tif"]
    gif = bytearray(image_seeds()["one.gif"])
    gif[6:10] = b"\xff" * 4
    bmp = bytearray(image_seeds()["rgb.bmp"])
    bmp[18:26] = struct.pack("<ii", huge, 1 - huge)
    shapes = [(huge, huge, 3), (huge, huge), (1 << 62, 1 << 62, 3), (-1, 5, 3), (1 << 40, 0, 3), (20_000, 20_000, 3)]
    return {
        "bomb.png": png,
        "text.png": _png(4, 4, 8, 0, flat, extra=_chunk(b"zTXt", inflated)),
        "profile.png": _png(4, 4, 8, 0, flat, extra=_chunk(b"iCCP", inflated)),
        "bomb.tif": _tags(tiff, {256: huge, 257: huge}),
        "strip.tif": _tags(tiff, {257: 60_000, 278: 60_000}),
        "deflated.tif": _tags(deflated, {256: 60_000, 257: 60_000}),
        "samples.tif": _tags(tiff, {277: 40_000}),
        "bomb.gif": bytes(gif),
        "bomb.bmp": bytes(bmp),
        "bomb.ppm": b"P6 1000000000 1000000000 255\n" + bytes(64),
        "digits.ppm": b"P6 " + b"9" * 5000 + b" 1 255\n",
        **{f"bomb{k}.npy": _npy_header(shape) for k, shape in enumerate(shapes)},
        "nested.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000,
        "minus.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 9900) + b"-" * 9900,
        "long.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", (1 << 32) - 1) + b"{",
    }


def largest() -> bytes:
    """A sound PNG of nearly as many pixels as are taken, in 21 kB."""
    return _png(13_000, 13_000, 1, 0, zlib.compress(bytes(13_000 * 1626), 9))


def image_corpus(count: int, marker: Path, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """name -> content: the seeds and bombs themselves, arrays with code, then `count` broken ones."""
    seeds = image_seeds()
    yield from (seeds | bombs()).items()
    yield "code.npy", _npy(np.array([[Payload(marker)]], dtype=object), allow_pickle=True)
    yield "pickle.npy", b"\x93NUMPY\x01\x00" + pickle.dumps(Payload(marker))
    yield from _broken(seeds, count, seed, SUFFIXES)


def checkpoint_corpus(model: Path, count: int, marker: Path, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """The same of weights: the model file, PyTorch's two formats, Paddle's, safetensors; and pickles with code."""
    state = load_file(model)
    with safe_open(model, "pt") as file:
        header = {"emanet": file.metadata()["emanet"]}  # without its checksum, which would find every change
    small = {key: value for key, value in state.items() if value.numel() < 4000}
    backbone = timm.create_model("test_resnet").state_dict()
    arrays = {key: value.numpy() for key, value in small.items()}
    seeds = {
        "model.safetensors": model.read_bytes(),
        "unsigned.safetensors": save(state, header),
        "small.safetensors": save(small),
        "zip.pth": _torch(small),
        "nested.pth": _torch({"state_dict": backbone, "epoch": 3, "arch": "test_resnet"}),
        "backbone.safetensors": save(backbone),
        "legacy.pth": _torch(small, _use_new_zipfile_serialization=False),
        "paddle2.pdparams": pickle.dumps(arrays, protocol=2),
        "paddle4.pdparams": pickle.dumps(arrays, protocol=4),
    }
    yield from seeds.items()
    loaded = Payload(marker)
    code = {
        "code.pth": _torch({**small, "x": loaded}),
        "legacycode.pth": _torch({**small, "x": loaded}, _use_new_zipfile_serialization=False),
        **{f"code{p}.pdparams": pickle.dumps({**arrays, "x": loaded}, protocol=p) for p in range(6)},
    }
    yield from code.items()
    yield from headers(model.read_bytes()).items()
    names = ("safetensors", "pth", "pdparams", "pt")
    yield from _broken(seeds, count - count // 5, seed, names)
    yield from _broken(code, count // 5, seed + 1, names)


def headers(model: bytes) -> dict[str, bytes]:
    """A model file with the header changed in ways that no bit flip would find."""
    length = int.from_bytes(model[:8], "little")
    header, values = json.loads(model[8 : 8 + length]), model[8 + length :]
    ours = json.loads(header["__metadata__"]["emanet"])
    found = {"length.safetensors": struct.pack("<Q", 1 << 60) + model[8:]}

    def put(name: str, text: str) -> None:
        changed = header | {"__metadata__": {"emanet": text}}
        raw = json.dumps(changed).encode()
        found[f"{name}.safetensors"] = struct.pack("<Q", len(raw)) + raw + values

    put("deep", "[" * 100_000)
    put("deepobject", '{"experiment":' * 50_000)
    put("text", "experiment")
    put("list", '["experiment"]')
    put("digits", '{"experiment": {"steps": ' + "9" * 5000 + "}}")
    for dotted, value in {
        "steps": [-1, 10**30, "x", None],
        "model": [[], None, 3],
        "model.head.channels": [-1, 0, 10**9, 10**30, 1.5],
        "model.head.em_steps": [10**12],
        "model.head.num_bases": [10**12],
        "model.head.name": ["", "EMA", "__class__"],
        "model.backbone.name": ["", "hf-hub:a/b", "../x", "resnet18"],
        "model.backbone.in_channels": [0, 10**12],
        "model.backbone.options": [{"checkpoint_path": "code.pth"}, {"pretrained": True}, {"no": 1}],
        "model.backbone.output_stride": [7, 0],
        "model.mean": [[], [float("nan")] * 3],
        "data.spec": [None, {}],
        "data.spec.classes": [[], ["a"], [str(i) for i in range(300)], ["a", "a", "b", "c", "d", "e"]],
        "eval.window": [[0, 0], [-5, 3], [10**12, 10**12]],
        "eval.scales": [[], [0.0], [float("inf")], [1e9], [1e-300]],
        "eval.overlap": [1.0, float("nan")],
    }.items():
        *path, last = dotted.split(".")
        for k, wrong in enumerate(value):
            changed = json.loads(json.dumps(ours))
            place = changed["experiment"]
            for name in path:
                place = place[name]
            place[last] = wrong
            put(f"{dotted}-{k}", json.dumps(changed))
    return found


class Payload:
    """Unpickled by a reader that runs what it reads, it leaves a file."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return exec, (f"open({self.marker!r}, 'w').close()",)


def _broken(seeds: dict[str, bytes], count: int, seed: int, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(seed)
    names = sorted(seeds)
    for number in range(count):
        name = names[number % len(names)]
        content = seeds[name]
        for _ in range(int(rng.choice([1, 1, 1, 2, 5]))):
            content = mutated(content, rng, seeds[names[int(rng.integers(len(names)))]])
        if name.endswith(".png") and rng.random() < 0.7:  # past the checksums, to what lies behind them
            content = _with_checksums(content)
        suffix = name.rpartition(".")[2] if rng.random() < 0.9 else suffixes[int(rng.integers(len(suffixes)))]
        yield f"{number:05d}-{name.replace('.', '_')}.{suffix}", content


def mutated(content: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """One change of any kind; `other` is a file to take a piece of."""
    data = bytearray(content or b"\0")
    size = len(data)
    # Half of the time near the beginning, where the headers are.
    at = int(rng.integers(size if rng.random() < 0.5 else min(size, 600)))
    run = int(2 ** rng.uniform(0, np.log2(size + 1)))
    parts = [0, *(found.start() for found in PARTS.finditer(content)), size]
    kind = rng.integers(11)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        del data[parts[int(rng.integers(len(parts)))] :]
    elif kind == 2:
        for _ in range(int(2 ** rng.uniform(0, 6))):
            data[int(rng.integers(size))] ^= 1 << int(rng.integers(8))
    elif kind == 3:
        data[at : at + run] = bytes([int(rng.choice([0, 255]))]) * min(run, size - at)
    elif kind in (4, 5):
        width, order = int(rng.choice([1, 2, 4, 8])), ("little", "big")[int(rng.integers(2))]
        value = int(rng.choice(EXTREMES)) & ((1 << 8 * width) - 1)
        data[at : at + width] = value.to_bytes(width, order)
    elif kind == 6:
        first, last = sorted(int(parts[k]) for k in rng.integers(len(parts), size=2))
        data[last:last] = data[first:last]
    elif kind == 7:
        a, b, c = sorted(int(parts[k]) for k in rng.integers(len(parts), size=3))
        data = data[:a] + data[b:c] + data[a:b] + data[c:]
    elif kind == 8:
        data[at:at] = rng.integers(0, 256, min(run, 4096), dtype=np.uint8).tobytes()
    elif kind == 9:
        del data[at : at + run]
    else:
        data = data + other if rng.random() < 0.3 else data[:at] + other + data[at:]
    return bytes(data)


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _torch(content: object, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def _npy(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(100)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(w: int, h: int, bits: int, kind: int, data: bytes, interlace: int = 0, extra: bytes = b"") -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, kind, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + head + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _interlaced(grey: np.ndarray) -> bytes:
    """Adam7, which Pillow reads and does not write."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [row for y, x, dy, dx in passes for row in grey[y::dy, x::dx] if row.size]
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return _png(grey.shape[1], grey.shape[0], 8, 0, data, interlace=1)


def _tiled(grey: np.ndarray) -> bytes:
    """A TIFF of 16x16 tiles, which Pillow reads and does not write."""
    h, w = grey.shape
    padded = np.pad(grey, ((0, -h % 16), (0, -w % 16)))
    tiles = [padded[y : y + 16, x : x + 16].tobytes() for y in range(0, h, 16) for x in range(0, w, 16)]
    count, start = len(tiles), 8 + 2 + 9 * 12 + 4
    data = start + 8 * count
    entries = [(256, 4, 1, w), (257, 4, 1, h), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (322, 3, 1, 16)]
    entries += [(323, 3, 1, 16), (324, 4, count, start), (325, 4, count, start + 4 * count)]
    offsets = struct.pack(f"<{count}I", *(data + 256 * k for k in range(count)))
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    sizes = struct.pack(f"<{count}I", *[256] * count)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + bytes(4) + offsets + sizes + b"".join(tiles)


def _tags(tiff: bytes, values: dict[int, int]) -> bytes:
    """A little-endian TIFF whose first directory has other numbers in these tags."""
    data = bytearray(tiff)
    (start,) = struct.unpack_from("<I", data, 4)
    for k in range(struct.unpack_from("<H", data, start)[0]):
        entry = start + 2 + 12 * k
        (tag,) = struct.unpack_from("<H", data, entry)
        if tag in values:
            struct.pack_into("<HII", data, entry + 2, 4, 1, values[tag])
    return bytes(data)


def _with_checksums(png: bytes) -> bytes:
    data, at = bytearray(png), 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)
