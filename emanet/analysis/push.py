"""The push command: a model file with its card, ready for the Hugging Face hub, in a folder or as one commit there.

    push(model="runs/a", repository="owner/name")              # uploads; folder="look" writes the same files there

Nothing of this machine goes along: the experiment and the facts in the model file are freed of paths first.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..atomic import write_json, write_text
from ..errors import InputError
from ..experiments import read_json, to_dict
from ..loading import read
from ..predict.inputs import find_images
from ..predict.predictor import Predictor
from ..run import log
from ..show.colours import GAP, rgb
from ..show.terminal import note, say
from ..weights import hub
from ..weights.model_file import ModelFile, write_model
from ..weights.paths import facts_without_paths, without_paths
from .card import About, card, eval_results, is_share

MOST_PICTURES = 4
LONGEST_SIDE = 640  # of a picture in the card, in pixels


def push(
    *,
    model: str,
    repository: str,
    folder: str = "",
    license: str = "",
    datasets: Sequence[str] = (),
    benchmark: str = "",
    images: str = "",
    pictures: bool = True,
    private: bool = False,
    replace_card: bool = False,
    device: str = "auto",
) -> None:
    """Write the files of a model for the hub, and push them to `owner/name` or its branch `owner/name@branch`.

    See the command's help for the arguments. folder: write them there, and push nothing. Raises InputError.
    """
    hub.parts(repository)
    if images and not pictures:
        raise InputError("--images and --no-pictures exclude each other")
    if folder and (private or replace_card):
        flag = "--private" if private else "--replace-card"
        raise InputError(f"{flag} is about the hub, but with --folder nothing is pushed")
    if folder and Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder: name another --folder")
    file = read(model)
    with contextlib.nullcontext(folder) if folder else tempfile.TemporaryDirectory() as place:
        names = _write(file, Path(place), repository, license, datasets, benchmark, images, pictures, device)
        if folder:
            say(f"wrote {', '.join(names)} into {folder}; nothing is pushed")
            return
        pushed = hub.commit(repository, Path(place), private=private, replace_card=replace_card)
    if pushed.kept_card:
        note(
            f"{hub.CARD} of {repository} is left as it is, and may be about an earlier model: --replace-card replaces "
            "it by the one that --folder shows"
        )
        names = [name for name in names if not hub.is_of_card(name)]
    say(f"pushed {', '.join(names)}: {pushed.url}")


def _write(
    file: ModelFile, folder: Path, repository: str, license: str, datasets: Sequence[str], benchmark: str, images: str,
    pictures: bool, device: str,
) -> list[str]:  # fmt: skip
    """Write everything, and return the paths below the folder."""
    predictor = Predictor(file, device=device)  # also shows that the file fits its model
    experiment = without_paths(file.experiment)
    facts = facts_without_paths(file.header)
    run = _run_of(file.path)
    drawn = _drawn(predictor, images) if images else _of_run(run, facts.get("step")) if run and pictures else []
    about = About(
        repository=repository.removeprefix(hub.PREFIX),
        experiment=experiment,
        header=facts,
        metrics=_metrics(file, run),
        parameters=sum(value.numel() for value in predictor.model.parameters()),
        license=license,
        datasets=datasets,
        pictures=[name for name, _ in drawn],
        caption=f"Image{'' if images else ', label'} and prediction{'' if images else ', of validation images'}.",
    )
    texts = {hub.CARD: card(about)}
    if benchmark:
        content = eval_results(about, benchmark)
        texts[f".eval_results/{benchmark.partition(':')[0].partition('/')[2]}.yaml"] = content
    for name, image in drawn:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, quality=90)  # pixels alone: no EXIF goes along
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / "config.json", to_dict(experiment))
    write_model(folder / hub.FILE, file.tensors, experiment, facts)
    return [hub.FILE, "config.json", *texts, *about.pictures]


def _run_of(path: Path) -> Path | None:
    """The run folder of a model file, if it lies in one."""
    folder = path.parent.parent.parent if path.parent.parent.name == "checkpoints" else path.parent
    return folder if (folder / log.FILE).is_file() else None


def _metrics(file: ModelFile, run: Path | None) -> dict[str, Any]:
    """The scores of exactly this file: its own, or those of the run's last validation if it is of the last step."""
    metrics = file.header.get("metrics")
    last = run and run / "evaluation.json"
    if not metrics and last and last.is_file() and file.header.get("step") == file.experiment.steps:
        metrics = read_json(last)
    return metrics if isinstance(metrics, dict) and is_share(metrics.get("mIoU")) else {}


def _of_run(run: Path, step: Any) -> list[tuple[str, Image.Image]]:
    """The images that the run drew at this step: image, label and prediction."""
    paths = sorted(run.glob(f"pictures/step_{step:06d}_*.png"))[:MOST_PICTURES] if isinstance(step, int) else []
    return [_picture(i, Image.open(path)) for i, path in enumerate(paths)]


def _drawn(predictor: Predictor, images: str) -> list[tuple[str, Image.Image]]:
    """The first images of a folder or a glob, each beside its prediction."""
    return [_picture(i, pair) for i, pair in enumerate(_pairs(predictor, images))]


def _pairs(predictor: Predictor, images: str) -> Iterator[Image.Image]:
    for path, _ in find_images([images])[:MOST_PICTURES]:
        pixels = predictor.pixels(path)
        gap = np.full((len(pixels), GAP, 3), 255, np.uint8)
        yield Image.fromarray(np.concatenate([rgb(pixels), gap, predictor.overlay(pixels, predictor(pixels))], axis=1))


def _picture(index: int, image: Image.Image) -> tuple[str, Image.Image]:
    """Its path in the repository, and the picture, no larger than the card shows it."""
    image = image.convert("RGB")
    image.thumbnail((3 * LONGEST_SIDE, LONGEST_SIDE))
    return f"{hub.PICTURES}/sample_{index}.jpg", image
