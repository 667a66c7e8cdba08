"""Label Studio: the JSON or JSON-MIN export with brushes, polygons, rectangles and ellipses, or one PNG per label.

Results are drawn in their order. A pixel belongs to an outline if its centre lies inside. The PNG export does not say
which image a PNG belongs to: its folder must also hold the JSON export.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

from ....errors import InputError
from ....experiments import read_json
from ...files import files_below
from ..annotations import Annotated, Export, Region
from ..image_files import Images
from ..outlines import ellipse, filled, turned

KINDS = ("brush", "polygon", "rectangle", "ellipse")
PNG = re.compile(r"task-(\d+)-annotation-(\d+)-by-[^-]*-[^-]+-(.+)-\d+\.png")


def read(source: Path, images: Images) -> Export:
    """source: the JSON file, or the folder that holds it, and perhaps images and PNGs of labels."""
    files = files_below(source) if source.is_dir() else [source]
    export = Export(classes=[], order="Later results of an annotation are drawn over earlier ones.")
    drawn: dict[tuple[str, str], list[tuple[str, Path]]] = defaultdict(list)  # task, annotation -> labels and PNGs
    for path in sorted(files):
        if match := PNG.fullmatch(path.name):
            drawn[match[1], match[2]].append((match[3], path))
    names: set[str] = set()
    for path in sorted(path for path in files if path.suffix.lower() == ".json"):
        tasks = read_json(path)
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            export.left_out["JSON files that are not a list of tasks"].append(path.name)
            continue
        for task in tasks:
            names |= _read_task(path, task, drawn, images, export)
    if drawn and not export.items:
        raise InputError(f"{source} holds PNGs of labels, but not the JSON export that says which image a task is")
    for pngs in drawn.values():
        export.left_out["PNGs of other tasks or annotations than the JSON export's"] += [path.name for _, path in pngs]
    export.classes = sorted(names)
    return export


def _read_task(
    path: Path,
    task: Mapping[str, Any],
    drawn: dict[tuple[str, str], list[tuple[str, Path]]],
    images: Images,
    export: Export,
) -> set[str]:
    """Add the task's image to the export. Returns the labels on it."""
    where = f"{path.name}, task {task.get('id')}"
    try:
        data = task.get("data", task)
        annotation, results = _results(task, where, export)
        stated = next((str(data[key]) for key in ("image", "img", "photo", "picture") if data.get(key)), "")
        stated = stated or next((value for value in data.values() if isinstance(value, str) and "/" in value), "")
        if not stated:
            raise InputError(f"{where}: its data names no image")
        image = images.find(_local(stated))
        pngs = drawn.pop((str(task.get("id")), str(annotation)), [])
        if pngs:
            size, shapes = None, []
        else:
            shapes = [shape for result in results if (shape := _checked(result, where, export))]
            sizes = {(int(each["original_height"]), int(each["original_width"])) for _, _, each in shapes}
            if len(sizes) > 1:
                raise InputError(f"{where}: its results are of images of several sizes")
            size = sizes.pop() if sizes else None
    except InputError as error:
        export.left_out["images"].append(str(error))
        return set()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: task {task.get('id')} is not as Label Studio writes it: {error!r}") from error
    # An uploaded file has eight digits in front of its own name.
    name = re.sub(r"^[0-9a-f]{8}-", "", PurePosixPath(image.name).stem)
    regions = partial(_from_pngs, pngs) if pngs else partial(_regions, where, shapes)
    export.items.append(Annotated(name, image, regions, size))
    return {name for name, _ in pngs} | {name for name, _, _ in shapes}


def _results(task: Mapping[str, Any], where: str, export: Export) -> tuple[Any, list[Mapping[str, Any]]]:
    """The number and the results of a task's first annotation that was not cancelled; JSON-MIN has no other."""
    annotations = task.get("annotations", task.get("completions"))
    if annotations is None:
        listed = [each for value in task.values() if isinstance(value, list) for each in value]
        return task.get("annotation_id"), [
            {**each, "value": each, "type": next((key for key in each if key.endswith("labels")), "")}
            for each in listed
            if isinstance(each, dict) and "original_width" in each
        ]
    valid = [each for each in annotations if not each.get("was_cancelled")]
    if len(valid) < len(annotations):
        export.left_out["cancelled annotations"].append(where)
    if not valid:
        raise InputError(f"{where}: it has no annotation")
    if len(valid) > 1:
        export.left_out["further annotations of one task"].append(where)
    if task.get("predictions"):
        export.left_out["predictions"].append(where)
    return valid[0].get("id"), valid[0]["result"]


def _local(stated: str) -> str:
    """The path in a URL or in Label Studio's own links: /data/upload/1/ab12cd34-a.jpg, /data/local-files/?d=a.jpg."""
    url = urlsplit(stated)
    local = parse_qs(url.query).get("d")
    return unquote(local[0] if local else url.path)


def _checked(result: Mapping[str, Any], where: str, export: Export) -> tuple[str, str, Mapping[str, Any]] | None:
    """(class, kind, result), or None and a line in the account."""
    kind = str(result.get("type", "")).removesuffix("labels")
    value = result.get("value") or {}
    labels = value.get(f"{kind}labels") or []
    if kind not in KINDS or not labels or (kind == "polygon" and len(value["points"]) < 3):
        export.left_out["results without a label or an area"].append(f"{where}: {result.get('type')}")
        return None
    if result.get("image_rotation"):
        raise InputError(f"{where}: it was annotated on a rotated image; rotate the image itself instead")
    if len(labels) > 1:
        export.left_out["further labels of one result"].append(f"{where}: {', '.join(map(str, labels[1:]))}")
    return str(labels[0]), kind, result


def _regions(where: str, shapes: list[tuple[str, str, Mapping[str, Any]]], size: tuple[int, int]) -> Iterator[Region]:
    for name, kind, result in shapes:
        value = result["value"]
        try:
            if kind == "brush":
                yield Region(name, unpacked(value["rle"], size))
            else:
                yield Region(name, *filled([_outline(kind, value, size)], size))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{where}: a {kind} of {name} cannot be read: {error}") from error


def _from_pngs(pngs: list[tuple[str, Path]], size: tuple[int, int]) -> Iterator[Region]:
    for name, path in pngs:
        try:
            with Image.open(path, formats=["PNG"]) as image:
                mask = np.array(image.convert("L")) > 0
        except Exception as error:  # Pillow's decoders raise nearly anything on broken files
            raise InputError(f"cannot read {path}: {error}") from error
        if mask.shape != size:
            raise InputError(f"{path.name} has another size than its image")
        yield Region(name, mask)


def _outline(kind: str, value: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Points (n, 2) in pixels; the export has per cent of the image's sides."""
    scale = np.array([size[1], size[0]]) / 100
    if kind == "polygon":
        return np.array(value["points"], np.float64) * scale
    x, y, degrees = float(value["x"]), float(value["y"]), float(value.get("rotation") or 0)
    if kind == "rectangle":  # turned about its first corner
        w, h = float(value["width"]), float(value["height"])
        points = np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)])
    else:
        points = ellipse((x, y), (float(value["radiusX"]), float(value["radiusY"])))
    return turned(points * scale, (x * scale[0], y * scale[1]), degrees)


def unpacked(rle: list[int], size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: where the opacity of a brush is above 0. ValueError where the code does not fit the size.

    The code is bits: the number of values (32), a value's bits less 1 (5), and four widths less 1 (4 each). Then, until
    all values are there, a flag, a choice of width (2), a count less 1 of that width, and one value if the flag is set,
    which is repeated, or else as many values. The values are RGBA of each pixel.
    """
    h, w = size
    if not isinstance(rle, list):
        raise ValueError("its run lengths are not a list")
    code = "".join(f"{byte:08b}" for byte in bytes(rle))
    at = 0

    def take(bits: int) -> int:
        nonlocal at
        at += bits
        if at > len(code):
            raise ValueError("its run lengths end too early")
        return int(code[at - bits : at], 2)

    total, word = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    if total != h * w * 4 or word > 8:
        raise ValueError(f"its run lengths hold {total} values, not four for each of {w} x {h} pixels")
    values = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        repeated = take(1)
        count = take(widths[take(2)]) + 1
        if done + count > total:
            raise ValueError("its run lengths are longer than the image")
        values[done : done + count] = take(word) if repeated else [take(word) for _ in range(count)]
        done += count
    return values.reshape(h, w, 4)[..., 3] > 0
