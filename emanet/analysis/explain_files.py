"""The explain command: figures of images and of a split, and their numbers as JSON.

python -m emanet explain [MODEL] IMAGE ... --out FOLDER
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..atomic import require_writable_folder, write_json
from ..data.datasets import open_dataset
from ..data.listing import number
from ..data.named import at_hand
from ..distributed import pick_device
from ..errors import InputError, out_of_memory, some
from ..loading import model_of, read
from ..model import EMANet
from ..predict.inputs import find_images, folders_of, left_out
from ..predict.predictor import Predictor
from ..show import attention as draw
from ..show.colours import Palette, colourise, rgb
from ..show.figures import require_matplotlib
from ..show.terminal import note, track
from .explain import ClassUse, Explanation, class_use, emau_of, explain, principal_components, shrunk_pixels

NAMED = 16  # bases in the legend of owners_figure.png


def explain_files(
    *, model: str, images: Sequence[str], out: str | Path, bases: Sequence[int], split: str, root: str, dataset: str,
    workers: int, max_pixels: int | None, device: str,
) -> list[str]:  # fmt: skip
    """The explain command: OUT/NAME/ for every image, and OUT/classes.json with figures for a split.

    See the command's help for the arguments, and find_images for NAME. An image that cannot be read or is too large for
    memory is reported on stderr and skipped; returns these reports. Raises InputError for everything else, before the
    work where possible.
    """
    if not images and not split:
        raise InputError("explain needs at least one image, folder or glob, after MODEL if one is named, or --split")
    if (root or dataset) and not split:
        raise InputError("--root and --dataset say where --split is found, but there is no --split")
    if bases and not images:
        raise InputError("--bases chooses what to draw of an image, but there is no image")
    if split:
        require_matplotlib()
    out, failures, where = Path(out), list[str](), pick_device(device)
    files = find_images(images)
    taken = folders_of(files)
    for folder in {place for _, name in files for place in (out / name, (out / name).parent)}:
        if folder.resolve() in taken:
            raise InputError(f"the output folder {folder} holds the image {taken[folder.resolve()]}; name another one")
    file, samples = read(model or None), None
    net = model_of(file).to(where)
    bases = check_bases(bases, net)
    if split:
        data = at_hand(file.experiment.data, net.classes, dataset, root)
        samples = open_dataset(data, split, net.backbone.in_channels, max_pixels=max_pixels)
    require_writable_folder(out)
    if images:
        note("; ".join([number(files, "image"), *left_out(images)]))
    predictor = Predictor(net, device=str(net.mean.device), max_pixels=max_pixels)
    try:
        for path, name in track(files, "explain"):
            try:
                pixels = shrunk_pixels(predictor.pixels(path), file.experiment.eval, net)
                seen = explain(net, pixels)
                _write_image(seen, path, out / name, bases or seen.top(), net.palette)
            except (InputError, MemoryError, RuntimeError) as error:
                memory = out_of_memory(error)
                if not memory and not isinstance(error, InputError):
                    raise
                failures.append(f"{path}: not enough memory to explain it; make it smaller" if memory else str(error))
                note(f"skipped: {failures[-1]}")
                continue
            note(f"{path}: explained in {out / name}")
        if samples is not None:
            _write_classes(class_use(net, samples, workers=workers, progress=True), split, out, net.palette)
            note(f"{split}: the classes' use of the bases in {out}")
    except OSError as error:
        raise InputError(f"cannot write into {out}: {error.strerror or error}") from error
    return failures


def _write_image(seen: Explanation, source: Path, folder: Path, bases: Sequence[int], palette: Palette) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    steps, image, named = len(seen.z), seen.image, seen.top(NAMED)
    top, top_of_all = largest(seen, bases), largest(seen, bases, every=True)
    heat_maps = {base: draw.heat_map(image, seen.over_image(base), top) for base in bases}
    pictures = {f"base_{base:03d}": picture for base, picture in heat_maps.items()}
    pictures |= {
        "owners": draw.owners_picture(seen.owners),
        "owners_overlay": draw.owners_overlay(image, seen.owners),
    }
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png", compress_level=draw.PNG_LEVEL)
    numbers = zip(seen.entropy, seen.entropy_share, seen.strongest, strict=True)
    report = {
        "image": str(source),
        "size": list(image.shape[:2]),
        "map": list(seen.inside.shape[2:]),
        "num_bases": seen.z.shape[1],
        "em_steps": steps,
        "iterations": [
            {"t": t, "entropy_nats": _short(h), "entropy_share_of_log_K": _short(share), "mean_max": _short(most)}
            for t, (h, share, most) in enumerate(numbers, 1)
        ],
        "bases_shown": list(bases),
        "scale_of_heat_maps": _short(top),
        "owned_share": {str(k): _short(seen.shares[k]) for k in seen.top(seen.z.shape[1])},
    }
    write_json(folder / "explain.json", report)
    when = f"iteration {steps} of {steps}"
    draw.responsibilities_figure(image, heat_maps, seen.shares, top, when, folder / "responsibilities.png")
    classes = colourise(seen.labels, palette)
    draw.owners_figure(image, classes, seen.owners, seen.shares, named, folder / "owners_figure.png")
    small = draw.fitted(rgb(image))  # so many heat maps of a large image would need gigabytes
    steps_of = {
        base: [draw.heat_map(small, draw.fitted(seen.over_image(base, t)), top_of_all) for t in range(1, steps + 1)]
        for base in bases
    }
    curves = seen.entropy, seen.strongest, seen.z.shape[1]
    draw.iterations_figure(steps_of, top_of_all, *curves, folder / "iterations.png")


def _write_classes(use: ClassUse, split: str, out: Path, palette: Palette) -> None:
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
    draw.usage_figure(use.matrix, use.classes, out / "classes_usage.png")
    draw.components_figure(points, use.labels, shares, use.classes, palette, out / "classes_pca.png")


def _short(value: float) -> float:
    return round(float(value), 6)


def largest(seen: Explanation, bases: Sequence[int], *, every: bool = False) -> float:
    """The largest responsibility of these bases in the image, in the last iteration or in all of them."""
    return float(seen.inside[slice(None) if every else slice(-1, None), list(bases)].max())


def check_bases(bases: Sequence[int], model: EMANet) -> list[int]:
    """The bases without repeats; InputError for one that the model does not have."""
    count = emau_of(model).bases.shape[2]
    strange = [base for base in bases if not 0 <= base < count]
    if strange:
        raise InputError(f"there is no base {some(strange)}: the model has {count}, numbered 0 to {count - 1}")
    return list(dict.fromkeys(bases))
