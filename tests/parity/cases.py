"""What the parity cases share: the weights, the images, and the files of expected outputs. numpy alone.

Weights are a function of their key and shape, so that a framework and a test make the same ones without a file between
them; a case's file holds the framework's keys and shapes, its settings, and a few thousand numbers that it computed.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent.parent / "golden" / "parity"
EVERY = 8  # of the logits' rows and columns, one in so many is kept
GAIN = {50: 0.5, 101: 0.45, 152: 0.4}  # BatchNorm weights from here to its double: EM neither uniform nor saturated


def values(key: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    """Random float32 for a weight: He-scaled kernels, unit-column bases, BatchNorm statistics that vary.

    RandomState is numpy's frozen generator: the same numbers in every version.
    """
    random = np.random.RandomState(zlib.crc32(key.encode()))
    drawn = random.standard_normal(shape)
    name = key.rsplit(".", 1)[-1]
    if name in ("mu", "bases"):
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    elif len(shape) > 1:
        drawn *= np.sqrt(2 / np.prod(shape[1:]))
    elif name in ("running_var", "_variance"):
        drawn = 0.5 + random.uniform(size=shape)
    elif name == "weight":
        drawn = gain * (1 + random.uniform(size=shape))
    else:
        drawn *= 0.1
    return drawn.astype(np.float32)


def fill(shapes: dict[str, tuple[int, ...]], layers: int) -> dict[str, np.ndarray]:
    """The weights of a checkpoint of a ResNet-`layers`; counters (num_batches_tracked) are integers."""
    return {key: values(key, shape, GAIN[layers]) if shape else np.zeros((), np.int64) for key, shape in shapes.items()}


def image(height: int, width: int, count: int = 1) -> np.ndarray:
    """Pictures (count, height, width, 3) uint8 with structure at several scales, so that pixels differ and agree."""
    random = np.random.RandomState(height * 10_000 + width * 10 + count)
    y, x = np.mgrid[:height, :width][..., None] / 3
    waves = sum(np.sin(x / 2**k * random.randn(3) + y / 2**k * random.randn(3)) for k in range(5))
    noise = random.randn(count, height, width, 3) * 0.5
    return np.uint8(np.clip(128 + 40 * (waves + noise), 0, 255))


def labels(height: int, width: int, count: int) -> np.ndarray:
    """Labels (count, height, width) uint8 in blocks, a part of them 255."""
    random = np.random.RandomState(height)
    blocks = random.randint(0, 22, (count, height // 8 + 1, width // 8 + 1)).astype(np.uint8)
    blocks[blocks == 21] = 255
    return blocks.repeat(8, 1).repeat(8, 2)[:, :height, :width]


def sketch(tensor: np.ndarray) -> tuple[float, float]:
    """The norm of an array and its product with a fixed random direction: what equal arrays have in common."""
    flat = tensor.astype(np.float64).ravel()
    return float(np.linalg.norm(flat)), float(
        flat @ np.random.RandomState(flat.size % 2**32).standard_normal(flat.size)
    )


def save(name: str, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]], **arrays: np.ndarray) -> None:
    """settings must hold `layout`, the (height, width) of `size`, and what the framework was set to."""
    FOLDER.mkdir(exist_ok=True)
    head = json.dumps({"settings": settings, "shapes": {key: list(shape) for key, shape in shapes.items()}})
    packed = np.frombuffer(zlib.compress(head.encode(), 9), np.uint8)
    np.savez_compressed(FOLDER / f"{name}.npz", head=packed, **arrays)


def load(name: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = dict(file)
    head = json.loads(zlib.decompress(arrays.pop("head").tobytes()))
    return head["settings"], {key: tuple(shape) for key, shape in head["shapes"].items()}, arrays


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.npz"))
