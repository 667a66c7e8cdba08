"""The pictures of docs/models/street.md, outputs.md, attention.md and the README: what `street` says of photos.

python tools/street_pictures.py
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

from emanet.cli.explain import Explain  # noqa: E402
from emanet.predict.outputs import uncertainty  # noqa: E402
from emanet.predict.predictor import Predictor  # noqa: E402

GAP = 4
PICTURES = {"street.jpg": ["crossing.jpg"], "street_fails.jpg": ["houses.jpg", "pavement.jpg"]}


def picture(predictor: Predictor, photos: Sequence[Path]) -> Image.Image:
    """A row for each photo, it and its overlay; below them the legend."""
    pairs = [np.asarray(Image.open(photo).convert("RGB")) for photo in photos]
    rows = []
    for pixels in pairs:
        row = np.full((len(pixels) + GAP, 2 * pixels.shape[1] + GAP, 3), 255, np.uint8)
        row[: len(pixels), : pixels.shape[1]] = pixels
        row[: len(pixels), pixels.shape[1] + GAP :] = predictor.overlay(pixels, predictor(pixels))
        rows.append(row)
    return Image.fromarray(np.concatenate([*rows, legend(predictor, rows[0].shape[1])]))


def legend(predictor: Predictor, width: int) -> np.ndarray:
    """One line of the classes' colours and names, evenly spread: (h, width, 3) uint8."""
    strip = Image.new("RGB", (width, 30), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(16)
    names = [name.replace("_", " ") for name in predictor.classes]
    widths = [24 + draw.textlength(name, font) for name in names]
    space, left = (width - sum(widths)) / len(names), 0.0
    for name, colour, own in zip(names, predictor.palette, widths, strict=True):
        draw.rectangle((left, 7, left + 16, 23), tuple(colour))
        draw.text((left + 21, 5), name, "black", font)
        left += own + space
    return np.asarray(strip)


def doubts(predictor: Predictor, photo: Path) -> Image.Image:
    """The overlay of a photo beside its uncertainty."""
    ((labels, probabilities),) = predictor.many_with([photo])
    assert probabilities is not None
    grey = np.rint(255 * uncertainty(probabilities)).astype(np.uint8)
    gap = np.full((len(grey), GAP, 3), 255, np.uint8)
    return Image.fromarray(np.hstack([predictor.overlay(photo, labels), gap, np.stack([grey] * 3, -1)]))


def iterations(photo: Path, bases: Sequence[int]) -> Image.Image:
    """iterations.png of `explain`, as a smaller file."""
    with tempfile.TemporaryDirectory() as folder:
        Explain(model="street", images=(str(photo),), out=folder, bases=tuple(bases), device="cpu").run()
        with Image.open(Path(folder) / photo.stem / "iterations.png") as drawn:
            return drawn.quantize(256, Image.Quantize.MAXCOVERAGE)


if __name__ == "__main__":
    predictor = Predictor("street", device="cpu")
    (ROOT / "docs" / "images").mkdir(exist_ok=True)
    for name, photos in PICTURES.items():
        drawn = picture(predictor, [ROOT / "examples" / "photos" / photo for photo in photos])
        drawn.save(ROOT / "docs" / "images" / name, quality=85, optimize=True)
    beside = doubts(predictor, ROOT / "examples" / "photos" / "crossing.jpg")
    beside.save(ROOT / "docs" / "images" / "outputs.jpg", quality=85, optimize=True)
    attention = iterations(ROOT / "examples" / "photos" / "crossing.jpg", [42, 54, 29])
    attention.save(ROOT / "docs" / "attention.png", optimize=True)
