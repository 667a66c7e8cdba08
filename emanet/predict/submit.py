"""The submit command: predictions of test images, packed as the evaluation servers expect them.

VOC         tar.gz of results/VOC2012/Segmentation/comp6_test_cls/NAME.png: classes, with VOC's colour map
Cityscapes  zip of NAME.png: labelIds, not the 19 training classes; NAME begins with city_sequence_frame
ADE20K      zip of NAME.png: 1 to 150
"""

import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..atomic import replacing, require_writable
from ..config import IGNORE, voc_palette
from ..data.files import located
from ..data.images import image_size
from ..data.listing import number
from ..data.specs import SPECS
from ..errors import InputError, some
from ..experiments import read_text
from ..show.terminal import note, say, track
from .inputs import find_images, left_out
from .predictor import Predictor

SERVERS = ("voc", "cityscapes", "ade20k")


@dataclass(frozen=True)
class Format:
    """What a server expects: the values of the classes in its files, and how these are named and packed."""

    name: str
    values: tuple[int, ...]
    suffixes: tuple[str, ...]
    folder: str = ""
    palette: tuple[tuple[int, int, int], ...] = ()
    """Written into the PNGs; empty: they are greyscale."""
    stem: str = ""
    """A regular expression for the images' names without extension; empty: any name."""

    def png(self, labels: np.ndarray) -> bytes:
        """Class indices (H, W) as the PNG file that the server expects."""
        table = np.zeros(IGNORE + 1, np.uint8)
        table[: len(self.values)] = self.values
        image = Image.fromarray(table[labels])
        if self.palette:
            image.putpalette(np.array(self.palette, np.uint8).tobytes())
        file = io.BytesIO()
        image.save(file, format="PNG")
        return file.getvalue()

    def faults(self, png: bytes, size: tuple[int, int]) -> str:
        """What is wrong with a PNG; "" if it has the size (h, w) of the image and only values of classes."""
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            values = np.array(image)
        if values.shape != size:
            return f"its size is {values.shape}, the image's {size}"
        others = sorted({*np.unique(values).tolist()} - {*self.values})
        return f"it has the values {some(others)}" if others else ""


def format_of(name: str, classes: Sequence[str], competition: str = "comp6") -> Format:
    """The format of that name; `auto`: the one with these classes. Raises InputError if the classes do not fit."""
    if name == "auto":
        name = next((each for each in SERVERS if SPECS[each].classes == tuple(classes)), "")
        if not name:
            kinds = "VOC, Cityscapes or ADE20K"
            raise InputError(f"the model's {len(classes)} classes are not those of {kinds}; there is no other format")
    spec = SPECS[name]
    if len(classes) != len(spec.classes):
        raise InputError(f"the model has {len(classes)} classes, but a submission to {name} needs {len(spec.classes)}")
    differing = [f"{ours} for {theirs}" for ours, theirs in zip(classes, spec.classes, strict=True) if ours != theirs]
    if differing:
        raise InputError(f"the model's classes are not those of {name}, in their order: {some(differing, 3)}")
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

    Everything that can be checked before the first prediction is; at the end the archive is read back, and only then
    does it appear under its name. Raises InputError.
    """
    kind, target = format_of(format, predictor.classes, competition), Path(out)
    if not target.name.endswith(kind.suffixes):
        raise InputError(f"the server of {kind.name} takes a file named *{kind.suffixes[0]}, not {target.name}")
    paths = _images(images, kind)
    require_writable(target)
    names = [f"{kind.folder}{path.stem}.png" for path in paths]
    sizes = [image_size(path, max_pixels=predictor.max_pixels) for path in track(paths, "check")]
    with replacing(target) as partial:
        with _packed(partial, kind) as add:
            for name, path in track(list(zip(names, paths, strict=True)), "predict"):
                add(name, kind.png(predictor(path)))
        _verify(partial, kind, dict(zip(names, sizes, strict=True)))
    say(f"{target}: {len(names):,} predictions for {kind.name}, each of its image's size")
    return names


def _images(images: str, kind: Format) -> list[Path]:
    """The images of a folder, or those that a text file lists; no two may have the same name in the archive."""
    source = Path(images)
    if source.is_dir():
        paths = [path for path, _ in find_images([images])]
        note("; ".join([number(paths, "image"), *left_out([images])]))
    elif source.is_file() and source.suffix.lower() in ("", ".txt", ".lst"):
        lines = map(str.strip, read_text(source, names=True).splitlines())
        paths = [located(source.parent, line.removeprefix("./")) for line in lines if line and not line.startswith("#")]
        absent = [path for path in paths if not path.is_file()]
        if absent or not paths:
            what = f"{len(absent)} of {len(paths)} images are missing: {some(absent, 3)}" if paths else "it is empty"
            raise InputError(f"the list {source} must name one image per line, relative to its own folder: {what}")
    else:
        raise InputError(f"--images {images} is neither a folder nor a text file that lists images")
    misnamed = [path.name for path in paths if not re.fullmatch(kind.stem or ".+", path.stem)]
    if misnamed:
        raise InputError(f"{kind.name} images are named city_000000_000019*, unlike {some(misnamed, 3)}")
    taken: dict[str, Path] = {}
    for path in paths:
        if path.stem in taken:
            raise InputError(f"{taken[path.stem]} and {path} would have the same name in the archive")
        taken[path.stem] = path
    return paths


@contextmanager
def _packed(path: Path, kind: Format) -> Iterator[Callable[[str, bytes], None]]:
    """A new archive; yields add(name, content)."""
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
    """Read the archive back: exactly these files, each of its image's size and with values of classes only."""
    names = set()
    for name, content in _unpacked(path, kind):
        fault = kind.faults(content, sizes[name]) if name in sizes else "it belongs to no image"
        if fault:
            raise InputError(f"the archive was not finished, because {name} came out wrong: {fault}")
        names.add(name)
    if len(names) != len(sizes):
        raise InputError(f"the archive was not finished: it holds {len(names)} of {len(sizes)} predictions")


def _unpacked(path: Path, kind: Format) -> Iterator[tuple[str, bytes]]:
    if ".zip" in kind.suffixes:
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                yield name, file.read(name)
    else:
        with tarfile.open(path) as tar:
            for info in tar:
                content = tar.extractfile(info)
                yield info.name, content.read() if content else b""
