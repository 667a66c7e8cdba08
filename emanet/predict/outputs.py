"""What `predict` writes of an image: a small function for each kind of output, in KINDS. docs/outputs.md shows them.

A new kind is a function and an entry of the table. What belongs to the whole folder is made at the end, of the images'
own files, so that it does not matter in which order, threads or processes those were written.
"""

import csv
import importlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..atomic import replacing
from ..config import IGNORE
from ..data.bands import installed
from ..data.images import pixels_per_label, write_mask
from ..data.listing import COLOURS, OVERLAY, UNCERTAINTY
from ..deploy.artefact import Artefact
from ..errors import InputError, suggest
from ..show import colours
from ..show.terminal import track
from . import polygons

JPEG_QUALITY = 90
ESCAPED = "backslashreplace"  # names that are not UTF-8: \udce9, which JSON's readers turn back into the name
Done = tuple[Path, Path]  # an image, and the path of its outputs without what KINDS add to it


@dataclass(frozen=True, eq=False)
class Prediction:
    """An image with what was predicted."""

    image: Path
    target: Path
    """The outputs' path, without what KINDS add to it."""
    pixels: np.ndarray
    """(H, W, C) uint8, as the model saw them."""
    labels: np.ndarray
    """(H, W) uint8, indices of classes; 255: the image hides the pixel."""
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    probabilities: np.ndarray | None = None
    """(classes, H, W) float32, where a kind needs them."""


@dataclass(frozen=True)
class Kind:
    """A kind of output."""

    ending: str = ""
    """Of an image's file, after its name; "": there is none."""
    write: Callable[[Path, Prediction], None] | None = None
    in_windows: str = ""
    """The ending for a TIFF that is read in windows; "": there is none."""
    of_raster: Callable[[Path, Done, Sequence[str]], None] | None = None
    """Writes that file from the raster of labels; None: raster.py writes it."""
    together: str = ""
    """The file of the whole folder; "": there is none."""
    gather: Callable[[Path, Sequence[Done], Path, Sequence[str]], None] | None = None
    """Writes that file of the folder; its images must all be done."""
    probabilities: bool = False
    """Whether they are needed, and not labels alone."""
    library: str = ""
    """What must be installed."""
    edited: bool = False
    """Whether people correct an image's file, so that one that is there is never replaced."""


def uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """The entropy of each pixel's probabilities as a share of the largest: (classes, H, W) -> (H, W) float32.

    -sum(p * log(p)) / log(classes): 0 where one class has all, 1 where all classes have the same.
    """
    total = np.zeros(probabilities.shape[1:], np.float32)
    for p in probabilities:
        total -= p * np.log(p, out=np.zeros_like(p), where=p > 0)
    return (total / math.log(max(2, len(probabilities)))).clip(0, 1)


def shares(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """How many pixels each class has and their shares of those that are not hidden; counts: of the labels 0 to 255."""
    own = counts[: len(classes)].tolist()
    total = max(1, sum(own))
    return {
        "hidden_pixels": int(counts[IGNORE]),
        "pixels": dict(zip(classes, own, strict=True)),
        "shares": {name: n / total for name, n in zip(classes, own, strict=True)},
    }


def coco_annotations(labels: np.ndarray, first_id: int, image_id: int) -> list[dict[str, Any]]:
    """The labels (H, W) of an image in COCO's format: each class one annotation with pycocotools' run lengths.

    A category's id is the index of its class plus 1. Pixels of 255 are in no annotation.
    """
    from pycocotools import mask as rle

    annotations: list[dict[str, Any]] = []
    for label in np.flatnonzero(pixels_per_label(labels)[:IGNORE]).tolist():
        code = rle.encode(np.asfortranarray(labels == label, np.uint8))
        annotations.append(
            {
                "id": first_id + len(annotations),
                "image_id": image_id,
                "category_id": label + 1,
                "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
                "area": int(rle.area(code)),
                "bbox": rle.toBbox(code).tolist(),
                "iscrowd": 0,
            }
        )
    return annotations


def _index(path: Path, done: Prediction) -> None:
    write_mask(path, done.labels, done.palette, quick=True)


def _overlay(path: Path, done: Prediction) -> None:
    mixed = colours.overlay(done.pixels, done.labels, done.palette)
    content = io.BytesIO()  # Pillow writes a JPEG past Python, and does not see that a full disk takes only a part
    Image.fromarray(mixed).save(content, "JPEG", quality=JPEG_QUALITY)
    path.write_bytes(content.getbuffer())


def _colour(path: Path, done: Prediction) -> None:
    Image.fromarray(colours.colourise(done.labels, done.palette)).save(path, "PNG")


def _probabilities(path: Path, done: Prediction) -> None:
    assert done.probabilities is not None
    halves = np.where(done.labels == IGNORE, np.float16(np.nan), done.probabilities.astype(np.float16))
    with open(path, "wb") as file:  # NumPy would add .npz to a path
        # Not compressed: that takes 25 times as long to save a quarter.
        np.savez(file, probabilities=halves, classes=np.array(done.classes))


def _uncertainty(path: Path, done: Prediction) -> None:
    assert done.probabilities is not None
    grey = np.where(done.labels == IGNORE, 1, uncertainty(done.probabilities))
    Image.fromarray(np.rint(255 * grey).astype(np.uint8)).save(path, "PNG")


def _shares(path: Path, done: Prediction) -> None:
    _write_shares(path, done.image, done.labels.shape, pixels_per_label(done.labels), done.classes)


def _raster_shares(path: Path, done: Done, classes: Sequence[str]) -> None:
    image, target = done
    with installed().open(Path(f"{target}.tif").absolute(), driver="GTiff") as file:
        counts = np.zeros(256, np.int64)
        for _, window in file.block_windows(1):
            counts += pixels_per_label(file.read(1, window=window))
        _write_shares(path, image, file.shape, counts, classes)


def _write_shares(path: Path, image: Path, size: Sequence[int], counts: np.ndarray, classes: Sequence[str]) -> None:
    _write_json(path, {"image": image.name, "height": size[0], "width": size[1]} | shares(counts, classes))


def _shares_table(path: Path, done: Sequence[Done], out: Path, classes: Sequence[str]) -> None:
    with open(path, "w", encoding="utf-8", errors=ESCAPED, newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "height", "width", "hidden_pixels", *classes])
        for name, (_, target) in zip(_below_inputs(done, out), done, strict=True):
            own = json.loads(Path(f"{target}{KINDS['shares'].ending}").read_text("utf-8"))
            row = [own[key] for key in ("height", "width", "hidden_pixels")]
            table.writerow([name, *row, *own["shares"].values()])


def _coco(path: Path, done: Sequence[Done], out: Path, classes: Sequence[str]) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names = _below_inputs(done, out)
    for number, (_, target) in enumerate(track(done, "coco"), 1):
        with Image.open(f"{target}.png") as file:
            labels = np.asarray(file)
        h, w = labels.shape
        images.append({"id": number, "file_name": names[number - 1], "height": h, "width": w})
        annotations += coco_annotations(labels, len(annotations) + 1, number)
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(classes, 1)]
    lists = {"images": images, "annotations": annotations, "categories": categories}
    _write_json(path, {"info": {}, "licenses": [], **lists})


def _geojson(path: Path, done: Prediction) -> None:
    polygons.write_geojson(path, polygons.regions(done.labels), done.classes)


def _raster_geojson(path: Path, done: Done, classes: Sequence[str]) -> None:
    rasterio = installed()
    with rasterio.open(Path(f"{done[1]}.tif").absolute(), driver="GTiff") as file:
        placed = not file.transform.is_identity
        found = polygons.regions(rasterio.band(file, 1), file.transform)
        polygons.write_geojson(path, found, classes, polygons.crs_name(file.crs) if placed else "")


def _labelme(path: Path, done: Prediction) -> None:
    folder = done.target.parent.resolve()
    image = os.path.relpath(done.image.parent.resolve() / done.image.name, folder)
    _write_json(path, polygons.labelme(done.labels, done.classes, Path(image).as_posix()))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", "utf-8", ESCAPED)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """An OSError becomes one sentence, also GDAL's."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def _below_inputs(done: Sequence[Done], out: Path) -> list[str]:
    """The images' paths below the folders or globs that they were found by, but whole where two would be the same."""
    below = [str(PurePosixPath(*image.parts[-len(target.relative_to(out).parts) :])) for image, target in done]
    times = Counter(below)
    return [image.as_posix() if times[name] > 1 else name for (image, _), name in zip(done, below, strict=True)]


KINDS: Mapping[str, Kind] = {
    "index": Kind(".png", _index, in_windows=".tif"),
    "overlay": Kind(OVERLAY, _overlay),
    "colour": Kind(COLOURS, _colour),
    "probabilities": Kind(".npz", _probabilities, in_windows="_probabilities.tif", probabilities=True),
    "uncertainty": Kind(UNCERTAINTY, _uncertainty, in_windows="_uncertainty.tif", probabilities=True),
    "shares": Kind("_shares.json", _shares, "_shares.json", _raster_shares, "shares.csv", _shares_table),
    "coco": Kind(together="coco.json", gather=_coco, library="pycocotools"),
    "geojson": Kind(".geojson", _geojson, ".geojson", _raster_geojson, library="rasterio"),
    "labelme": Kind(".json", _labelme, library="rasterio", edited=True),
}
EXTRAS = {"pycocotools": "data", "rasterio": "geo"}


@dataclass(frozen=True)
class Outputs:
    """The kinds that were chosen; default: index and overlay, or index alone for a TIFF that is read in windows."""

    names: tuple[str, ...]
    chosen: bool = True
    """Whether they were named, so that what cannot be had is refused."""

    @classmethod
    def of(cls, names: Sequence[str], overlay: bool = True) -> "Outputs":
        """InputError for unknown names, libraries that are not installed, and names together with overlay=False."""
        if unknown := [name for name in names if name not in KINDS]:
            raise InputError(f"no output {unknown[0]!r}{suggest(unknown[0], KINDS)}")
        if names and not overlay:
            raise InputError("--no-overlay is for the default outputs; leave overlay out of --outputs instead")
        for name, library in ((name, KINDS[name].library) for name in names if KINDS[name].library):
            try:
                installed() if library == "rasterio" else importlib.import_module(library)
            except (ImportError, ValueError) as error:
                how = f"pip install 'emanet[{EXTRAS[library]}]'"
                raise InputError(f"the output {name} needs {library}, which is not installed: {how}") from error
        if not names:
            return cls(("index", "overlay") if overlay else ("index",), chosen=False)
        first = ("index",) if "coco" in names else ()  # which is made of the label maps
        return cls(tuple(dict.fromkeys((*first, *names))))

    @property
    def probabilities(self) -> bool:
        """Whether a kind needs them."""
        return any(KINDS[name].probabilities for name in self.names)

    def require(self, network: object) -> None:
        """InputError for an exported model without probabilities where a kind needs them."""
        if self.probabilities and isinstance(network, Artefact):
            network.require_output("probabilities")

    def check(self, images: Iterable[tuple[Path, Path]], in_windows: set[Path], out: Path) -> None:
        """InputError where an image cannot have an output, or two outputs would be one file. images: as find_images."""
        without = [name for name in self.names if not KINDS[name].in_windows]
        if self.chosen and without and in_windows:
            able = ", ".join(name for name, kind in KINDS.items() if kind.in_windows)
            text = f"{min(in_windows)} is read in windows, which give no {without[0]}, only {able}"
            raise InputError(f"{text}; leave {without[0]} or the image out, or read it whole with --rasters never")
        taken = {out / KINDS[name].together: Path("the whole folder") for name in self.names if KINDS[name].together}
        for path, name in images:
            for file in self.files(out / name, path in in_windows):
                first = taken.setdefault(file, path)
                if first != path:
                    raise InputError(f"the outputs of {first} and {path} would both be {file}; rename the image")

    def edited(self, images: Iterable[tuple[Path, Path]], out: Path) -> list[Path]:
        """The files that are there and that people may have corrected. images: as find_images."""
        endings = [KINDS[name].ending for name in self.names if KINDS[name].edited]
        paths = (Path(f"{out / name}{ending}") for _, name in images for ending in endings)
        return [path for path in paths if os.path.exists(path)]  # False where a name is too long

    def files(self, target: Path, in_windows: bool = False) -> list[Path]:
        """The files of one image."""
        endings = [KINDS[name].in_windows if in_windows else KINDS[name].ending for name in self.names]
        endings = [".tif", *(each for each in endings if each != ".tif")] if in_windows else endings
        return [Path(f"{target}{ending}") for ending in endings if ending]

    def write(self, done: Prediction) -> None:
        """The image's files, each of them whole or not at all; edited ones stay. OSError, MemoryError."""
        for name in self.names:
            path = Path(f"{done.target}{KINDS[name].ending}")
            if (write := KINDS[name].write) and not (KINDS[name].edited and os.path.exists(path)):
                with replacing(path) as partial:
                    write(partial, done)

    def beside(self, target: Path) -> dict[str, Path]:
        """The further files that predict_raster writes, as its options."""
        own = [(name, KINDS[name]) for name in self.names if KINDS[name].probabilities]
        return {name: Path(f"{target}{kind.in_windows}") for name, kind in own}

    def write_of_raster(self, image: Path, target: Path, classes: Sequence[str]) -> None:
        """The files that are made of a raster of labels. InputError where one cannot be written."""
        for name in self.names:
            if write := KINDS[name].of_raster:
                path = Path(f"{target}{KINDS[name].in_windows}")
                with _said(path), replacing(path) as partial:
                    write(partial, (image, target), classes)

    def gather(self, done: Sequence[Done], out: Path, classes: Sequence[str]) -> None:
        """The files of the whole folder. InputError where one cannot be written."""
        for name in self.names:
            if gather := KINDS[name].gather:
                path = out / KINDS[name].together
                with _said(path), replacing(path) as partial:
                    gather(partial, done, out, classes)
