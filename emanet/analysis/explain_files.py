"""The explain command: pictures of images and of a split, and their numbers as JSON.

python -m emanet explain MODEL IMAGE ... --out FOLDER
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from ..atomic import write_json
from ..data.datasets import at_hand, open_dataset
from ..errors import InputError, some
from ..experiments import load_experiment
from ..loading import load, model_path
from ..model import EMANet
from ..predict.inputs import find_images
from ..show.colours import Palette
from . import explain_figures as draw
from .explain import ClassUse, Explanation, class_use, emau_of, explain, principal_components


def explain_files(
    model: str, inputs: Sequence[str], out: str | Path, *, bases: Sequence[int] = (), split: str = "", root: str = "",
    dataset: str = "", device: str = "auto",
) -> list[str]:  # fmt: skip
    """The explain command: OUT/NAME/ for every image of the inputs, and OUT/classes.json with pictures for a split.

    See the command's help for the arguments, find_images for NAME. An unreadable image is reported on stderr and left
    out; returned are these reports. Without matplotlib everything but the figures is written, then InputError raised.
    """
    if not inputs and not split:
        raise InputError("explain needs at least one image, folder or glob after MODEL, or --split")
    if (root or dataset) and not split:
        raise InputError("--root and --dataset say where --split is to be found, which is missing")
    if bases and not inputs:
        raise InputError("--bases chooses what is shown of an image, and there is none")
    net, out, failures = load(model, device), Path(out), []
    bases = check_bases(bases, net)
    images = find_images(inputs)
    taken = {path.resolve().parent: path for path, _ in images}
    for folder in {place for _, name in images for place in (out / name, (out / name).parent)}:
        if folder.resolve() in taken:
            raise InputError(f"the output folder {folder} holds the image {taken[folder.resolve()]}; name another one")
    samples = None
    if split:
        data = at_hand(load_experiment(str(model_path(model))).data, net.classes, dataset, root)
        samples = open_dataset(data, split, net.backbone.in_channels)
    figures = importlib.util.find_spec("matplotlib") is not None
    console = Console(stderr=True)
    try:
        for path, name in track(images, "explain", console=console, transient=True, disable=not console.is_terminal):
            try:
                seen = explain(net, path)
            except InputError as error:
                failures.append(str(error))
                console.print(f"skipped: {error}", markup=False, highlight=False, soft_wrap=True)
                continue
            _write_image(seen, path, out / name, bases or seen.top(), net.palette, figures)
            console.print(f"{path}: explained in {out / name}", markup=False, highlight=False, soft_wrap=True)
        if samples is not None:
            _write_classes(class_use(net, samples, progress=True), split, out, net.palette, figures)
            console.print(f"{split}: the classes' use of the bases in {out}", markup=False, soft_wrap=True)
    except OSError as error:
        raise InputError(f"cannot write into {out}: {error.strerror or error}") from error
    if not figures:
        raise InputError('all but the figures is written; they need matplotlib: pip install "emanet[plots]"')
    return failures


def _write_image(
    seen: Explanation, source: Path, folder: Path, bases: Sequence[int], palette: Palette, figures: bool
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    top = draw.scale_of(seen, bases)
    pictures = {"owners": draw.owners_picture(seen.owners)}
    pictures["owners_overlay"] = draw.owners_overlay(seen.image, seen.owners)
    for base in bases:
        pictures[f"base_{base:03d}"] = draw.heat_map(seen.image, seen.over_image(base), top)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    numbers = zip(seen.entropy, seen.entropy_share, seen.strongest, strict=True)
    report = {
        "image": str(source),
        "size": list(seen.image.shape[:2]),
        "map": list(seen.inside.shape[2:]),
        "num_bases": seen.z.shape[1],
        "em_steps": len(seen.z),
        "iterations": [
            {"t": t, "entropy_nats": _short(h), "entropy_share_of_log_K": _short(share), "mean_max": _short(most)}
            for t, (h, share, most) in enumerate(numbers, 1)
        ],
        "bases_shown": list(bases),
        "scale_of_heat_maps": _short(top),
        "owned_share": {str(k): _short(seen.shares[k]) for k in seen.top(seen.z.shape[1])},
    }
    write_json(folder / "explain.json", report)
    if figures:
        draw.responsibilities_figure(seen, bases, folder / "responsibilities.png")
        draw.owners_figure(seen, palette, folder / "owners_figure.png")
        draw.iterations_figure(seen, bases, folder / "iterations.png")


def _write_classes(use: ClassUse, split: str, out: Path, palette: Palette, figures: bool) -> None:
    points, directions, shares = principal_components(use.vectors)
    rows = zip(use.classes, use.matrix, strict=True)
    report = {
        "split": split,
        "explained_variance": [_short(share) for share in shares],
        "directions": [[_short(value) for value in direction] for direction in directions],
        "usage": {name: None if np.isnan(row).any() else [_short(value) for value in row] for name, row in rows},
        "points": [
            {"image": image, "class": use.classes[label], "at": [_short(value) for value in point]}
            for image, label, point in zip(use.images, use.labels, points, strict=True)
        ],
    }
    write_json(out / "classes.json", report)
    if figures:
        draw.usage_figure(use, out / "classes_usage.png")
        draw.components_figure(use, points, shares, palette, out / "classes_pca.png")


def _short(value: float) -> float:
    return round(float(value), 6)


def check_bases(bases: Sequence[int], model: EMANet) -> list[int]:
    """The bases, each once, if the model has them all; InputError otherwise."""
    count = emau_of(model).bases.shape[2]
    strange = [base for base in bases if not 0 <= base < count]
    if strange:
        raise InputError(f"there is no base {some(strange)}: the model has {count}, numbered 0 to {count - 1}")
    return list(dict.fromkeys(bases))
