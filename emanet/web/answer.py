"""What the page gets for an image: a photo's bytes in, one JSON object out. page.js draws it.

Everything that the page shows is in the answer, also the responsibilities of every EM iteration, so that the server
keeps nothing between two requests and a click asks it for nothing.
"""

import base64
import io
import json
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..config import IGNORE
from ..data.images import pixels_per_label, write_mask
from ..errors import InputError
from ..predict.predictor import Predictor
from ..show.attention import base_colours
from ..show.colours import IGNORE_COLOUR, colourise, rgb

if TYPE_CHECKING:
    from ..analysis.explain import Explanation

VIEW_SIDE = 1280  # pixels of the longer side of what the page shows; the files to download have the image's size
EXPLAINED_SIDE = 640  # of what is explained at most: an answer holds K * T numbers for each cell of its map
Array = np.ndarray


def answer(predictor: Predictor, name: str, content: bytes, *, explain: bool) -> dict[str, Any]:
    """The labels of an image file and, with `explain`, what its EM attention does.

    name: the model's, for the JSON file. Raises InputError in a sentence that names no path.
    """
    pixels, visible = _read(predictor, content)
    if explain:
        from ..analysis.explain import predict_explained

        labels, seen = predict_explained(predictor, pixels, EXPLAINED_SIDE)
    else:
        labels, seen = predictor(pixels), None
    if visible is not None:
        labels = np.where(visible, labels, np.uint8(IGNORE))
    h, w = labels.shape
    scale = min(1, VIEW_SIDE / max(h, w))
    size = max(1, round(w * scale)), max(1, round(h * scale))
    view = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    photo = Image.fromarray(rgb(pixels)).resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
    colours = Image.fromarray(colourise(labels, predictor.palette))
    classes = _classes(labels, predictor)
    report = {"model": name, "width": w, "height": h, "classes": classes}
    return report | {
        "view": size,
        "photo": f"data:image/jpeg;base64,{_base64(_saved(photo, 'JPEG', quality=88))}",
        "labels": _packed(np.asarray(view)),
        "files": {
            "labels.png": _base64(_index_png(labels, predictor)),
            "colours.png": _base64(_saved(colours, "PNG", compress_level=1)),
            "classes.json": _base64(json.dumps(report, indent=2).encode()),
        },
        "explain": None if seen is None else _explained(seen, len(predictor.classes)),
    }


def _read(predictor: Predictor, content: bytes) -> tuple[Array, Array | None]:
    """The pixels of a file that is on the disk only while it is read, and which of them are not hidden."""
    with tempfile.TemporaryDirectory(prefix="emanet-") as folder:
        path = Path(folder, "image")
        path.write_bytes(content)
        try:
            return predictor.read(path)
        except InputError as error:
            text = str(error).replace(f"image {path}", "this image")
            if folder in text:
                text = "cannot read this image"
            raise InputError(text) from None


def _classes(labels: Array, predictor: Predictor) -> list[dict[str, Any]]:
    """The classes in the labels, largest first, each with its index, name, colour and share of the pixels."""
    counts = pixels_per_label(labels)
    known = [*zip(range(len(predictor.classes)), predictor.classes, predictor.palette, strict=True)]
    known.append((IGNORE, "hidden in the file", IGNORE_COLOUR))
    found = [(index, text, colour) for index, text, colour in known if counts[index]]
    return [
        {
            "index": index,
            "name": text,
            "colour": "#" + bytes(colour).hex(),
            "pixels": int(counts[index]),
            "share": round(float(counts[index] / labels.size), 6),
        }
        for index, text, colour in sorted(found, key=lambda entry: -counts[entry[0]])
    ]


def _explained(seen: "Explanation", classes: int) -> dict[str, Any]:
    """Bytes that stand for 255 * sqrt(z): an error of at most 0.004 for z near 1, and of 0.0005 near 1 / 64."""
    steps, bases, h, w = seen.z.shape
    used = seen.used_by(seen.labels, classes)
    return {
        "z": _packed(np.rint(255 * np.sqrt(seen.z)).astype(np.uint8)),
        "steps": steps,
        "bases": bases,
        "map": [w, h],
        "size": seen.image.shape[1::-1],
        "cells": [seen.cell_of(1), seen.cell_of(0)],
        "colours": ["#" + bytes(colour).hex() for colour in base_colours(bases)],
        "entropy_share": [round(float(value), 4) for value in seen.entropy_share],
        "strongest": [round(float(value), 4) for value in seen.strongest],
        "used": {str(label): np.round(row, 4).tolist() for label, row in enumerate(used) if not np.isnan(row).any()},
    }


def _index_png(labels: Array, predictor: Predictor) -> bytes:
    file = io.BytesIO()
    write_mask(file, labels, predictor.palette)
    return file.getvalue()


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _packed(array: Array) -> str:
    """Bytes in zlib's format, which a browser's DecompressionStream("deflate") reads, in base64."""
    return _base64(zlib.compress(array.tobytes(), 1))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
