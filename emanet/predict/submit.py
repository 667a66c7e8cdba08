"""The submit command: predictions of test images, packed as the evaluation servers take them.

VOC         tar.gz of results/VOC2012/Segmentation/comp6_test_cls/NAME.png: classes, with VOC's colour map
Cityscapes  zip of NAME.png: labelIds, not the 19 training classes; NAME begins with city_sequence_frame
ADE20K      zip of NAME.png: 1 to 150
"""

import io
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from ..config import IGNORE, voc_palette
from ..data.images import image_size
from ..data.specs import SPECS
from ..errors import InputError, some
from .inputs import find_images
from .predictor import Predictor


@dataclass(frozen=True)
class Format:
    """What a server takes: the values of the model's classes in its files, and how these are called and packed."""

    name: str
    values: tuple[int, ...]
    suffixes: tuple[str, ...]
    folder: str = ""
    palette: tuple[tuple[int, int, int], ...] = ()
    """Written into the PNGs; without it they are grey, of one channel."""
    stem: str = ""
    """What an image's name must look like, as a regular expression."""

    def png(self, labels: np.ndarray) -> bytes:
        """Class indices (H, W) as the file that the server takes."""
        table = np.zeros(IGNORE + 1, np.uint8)
        table[: len(self.values)] = self.values
        image = Image.fromarray(table[labels])
        if self.palette:
            image.putpalette(np.array(self.palette, np.uint8).tobytes())
        file = io.BytesIO()
        image.save(file, format="PNG")
        return file.getvalue()

    def faults(self, png: bytes, size: tuple[int, int]) -> str:
        """What is wrong with a file that was written; nothing if it holds a value of every pixel of the image."""
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            values = np.array(image)
        if values.shape != size:
            return f"its size is {values.shape}, the image's {size}"
        strange = sorted({*np.unique(values).tolist()} - {*self.values})
        return f"it has the values {some(strange)}" if strange else ""


def format_of(name: str, classes: Sequence[str], competition: str = "comp6") -> Format:
    """The format of that name, or with `auto` the one of these classes. Raises InputError if they do not fit it."""
    known = ("voc", "cityscapes", "ade20k")
    if name == "auto":
        name = next((each for each in known if SPECS[each].classes == tuple(classes)), "")
        if not name:
            kinds = "VOC, Cityscapes or ADE20K"
            raise InputError(f"the model's {len(classes)} classes are not those of {kinds}, whose servers are known")
    spec = SPECS[name]
    if len(classes) != len(spec.classes):
        raise InputError(f"the model has {len(classes)} classes, but a submission to {name} needs {len(spec.classes)}")
    other = [f"{ours} for {theirs}" for ours, theirs in zip(classes, spec.classes, strict=True) if ours != theirs]
    if other:
        raise InputError(f"the model's classes are not those of {name}, in their order: {some(other, 3)}")
    of_class = {label: value for value, label in spec.label_map.items() if label != IGNORE}
    values = tuple(of_class.get(label, label) for label in range(len(classes)))
    if name == "voc":
        folder = f"results/VOC2012/Segmentation/{competition}_test_cls/"
        return Format(name, values, (".tar.gz", ".tgz"), folder, voc_palette(256))
    stem = r".+_\d{6}_\d{6}(_.*)?" if name == "cityscapes" else ""
    return Format(name, values, (".zip",), stem=stem)


def submit(
    predictor: Predictor, images: str, out: str, *, format: str = "auto", competition: str = "comp6"
) -> list[str]:
    """Write the archive `out`; see the command's help for the arguments. Returns the names of its files.

    What can be known to fail is found before the first prediction, the archive is read back at the end, and it has
    its name only when all of that is right. Raises InputError.
    """
    kind, target = format_of(format, predictor.classes, competition), Path(out)
    if not target.name.endswith(kind.suffixes):
        raise InputError(f"the server of {kind.name} takes a file named *{kind.suffixes[0]}, not {target.name}")
    paths = _images(images, kind)
    console = Console(stderr=True)
    bar = {"console": console, "transient": True, "disable": not console.is_terminal}
    sizes = {path: image_size(path) for path in track(paths, "check", **bar)}
    names = [f"{kind.folder}{path.stem}.png" for path in paths]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with _packed(partial, kind) as add:
            for name, path in track(list(zip(names, paths, strict=True)), "predict", **bar):
                add(name, kind.png(predictor(path)))
        _verify(partial, kind, dict(zip(names, sizes.values(), strict=True)))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{target}: {len(names):,} predictions for {kind.name}, each of its image's size")
    return names


def _images(given: str, kind: Format) -> list[Path]:
    """The images of a folder, or those that a text file lists; no two may come to the same name in the archive."""
    source = Path(given)
    if source.is_dir():
        paths = [path for path, _ in find_images([given])]
    elif source.is_file() and source.suffix.lower() in ("", ".txt", ".lst"):
        lines = [line.strip() for line in source.read_text("utf-8", "replace").splitlines() if line.strip()]
        paths = [source.parent / line for line in lines]
        absent = [path for path in paths if not path.is_file()]
        if absent or not paths:
            what = f"{len(absent)} of {len(paths)} images are missing: {some(absent, 3)}" if paths else "it is empty"
            raise InputError(f"the list {source} must name one image a line, relative to its own folder: {what}")
    else:
        raise InputError(f"--images {given} is neither a folder nor a text file that lists images")
    strange = [path.name for path in paths if not re.fullmatch(kind.stem or ".+", path.stem)]
    if strange:
        raise InputError(f"{kind.name} images are named city_000000_000019*, unlike {some(strange, 3)}")
    taken: dict[str, Path] = {}
    for path in paths:
        if path.stem in taken:
            raise InputError(f"{taken[path.stem]} and {path} would have the same name in the archive")
        taken[path.stem] = path
    return paths


@contextmanager
def _packed(path: Path, kind: Format) -> Iterator[Callable[[str, bytes], None]]:
    """A new archive, and what adds a file to it."""
    if ".zip" in kind.suffixes:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            yield file.writestr
        return

    def add(name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))

    with tarfile.open(path, "w:gz") as tar:
        yield add


def _verify(path: Path, kind: Format, sizes: dict[str, tuple[int, int]]) -> None:
    """Read the archive back: exactly these files, each of its image's size and with values that the server knows."""
    found = set()
    for name, content in _unpacked(path, kind):
        fault = kind.faults(content, sizes[name]) if name in sizes else "it belongs to no image"
        if fault:
            raise InputError(f"the archive was not finished, because {name} came out wrong: {fault}")
        found.add(name)
    if len(found) != len(sizes):
        raise InputError(f"the archive was not finished: it holds {len(found)} of {len(sizes)} predictions")


def _unpacked(path: Path, kind: Format) -> Iterator[tuple[str, bytes]]:
    if ".zip" in kind.suffixes:
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                yield name, file.read(name)
    else:
        with tarfile.open(path) as tar:
            for info in tar:
                yield info.name, tar.extractfile(info).read()
