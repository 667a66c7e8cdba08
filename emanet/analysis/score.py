"""The evaluate command: which model on which images, and the result as a table, JSON and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import distributed
from ..atomic import require_writable, write_json
from ..config import IGNORE, DataConfig, DatasetSpec, Engine, EvalConfig, Precision
from ..data.datasets import Dataset, at_hand, open_dataset, open_folders, resolve, spec_of
from ..data.images import read_mask, read_mask_values
from ..data.listing import number
from ..data.synthetic import DrawnScenes
from ..deploy.artefact import Artefact, is_artefact
from ..errors import InputError
from ..evaluate import counted, evaluate
from ..experiments import override
from ..loading import read, stored_spec
from ..metrics import ConfusionMatrix, scores
from ..predict.predictor import Predictor
from ..show.figures import confusion_picture, require_figure
from ..show.terminal import note, show
from ..weights.model_file import ModelFile


@distributed.ending_together()
def score(
    *,
    model: str = "",
    images: str = "",
    masks: str = "",
    split: str = "",
    root: str = "",
    dataset: str = "",
    json: str = "",
    picture: str = "",
    device: str = "auto",
    workers: int = 0,
    max_pixels: int | None = None,
    settings: EvalConfig | None = None,
    engine: Engine = "plain",
    precision: Precision = "fp32",
    calibrate: Sequence[str] = (),
    force: bool = False,
    partial: bool = False,
) -> dict[str, Any]:
    """Score and show a model, or label maps; see the evaluate command's help for the arguments.

    partial: score what there is of images, masks and label maps that do not all belong together. settings: default:
    what the model file says. Returns the report (see metrics). Under torchrun the ranks share the
    images, all return the same report, and rank 0 shows and writes it. Raises InputError.
    """
    if bool(images) != bool(masks):
        raise InputError("--images and --masks belong together")
    if not model and not images:
        raise InputError("evaluate needs a MODEL, or --images and --masks")
    if partial and not images:
        raise InputError("--partial is about --images and --masks, which are not named")
    where = distributed.pick_device(device) if model else torch.device("cpu")
    distributed.init(where)
    try:
        distributed.first_on_rank_zero(require_writable, json)
        distributed.first_on_rank_zero(require_figure, picture)
        if model:
            how: dict[str, Any] = {"engine": engine, "precision": precision, "calibrate": calibrate, "force": force}
            how |= {"device": str(where), "config": settings, "max_pixels": max_pixels}
            matrix = _score_model(model, images, masks, split, root, dataset, workers, how, partial)
        else:
            matrix = _score_label_maps(images, masks, dataset, max_pixels, partial)
        report = matrix.report()
        if distributed.rank() == 0:
            labelled = [name for name, share in report["share"].items() if share]
            if len(labelled) == 1:  # such as masks of 0 and 255, where 255 is read as ignored
                note(f"note: the masks label nothing but {labelled[0]}, so the scores say nothing about other classes")
            show(scores(report))
            if json:
                write_json(Path(json), report)
            if picture:
                confusion_picture(matrix, picture)
        return report
    finally:
        distributed.shutdown()


def _score_model(
    model: str, images: str, masks: str, split: str, root: str, dataset: str, workers: int, how: dict[str, Any],
    partial: bool,
) -> ConfusionMatrix:  # fmt: skip
    file: ModelFile | Artefact = Artefact(model, how["device"]) if is_artefact(model) else read(model)
    data = at_hand(file.experiment.data, stored_spec(file.experiment).classes, dataset, root)
    channels = file.experiment.model.backbone.in_channels
    limit = {"max_pixels": how["max_pixels"]}
    samples: Dataset | DrawnScenes
    if images:
        samples = open_folders(Path(images), Path(masks), spec_of(data), channels, partial=partial, **limit)
    else:
        samples = open_dataset(data, split or data.val_split, channels, **limit)
    if isinstance(samples, Dataset):  # the drawn scenes have no files
        _tell(samples)
    predictor = Predictor(file, **how)
    with predictor.network.side_by_side(len(samples)) as at_once:
        if isinstance(file, Artefact) or at_once > 1:
            matrix = ConfusionMatrix(predictor.classes)
            labels_of = lambda image: torch.from_numpy(predictor(image.numpy()))  # noqa: E731
            return counted(labels_of, samples, matrix, predictor.config, workers, progress=True, at_once=at_once)
        return evaluate(predictor.model, samples, predictor.config, workers=workers, progress=True)


def _tell(samples: Dataset) -> None:
    """How many images are scored, and what is not, on rank 0."""
    if distributed.rank() == 0:
        note("; ".join([number(samples, "image"), *samples.notes]))


def _score_label_maps(
    predictions: str, masks: str, dataset: str, max_pixels: int | None, partial: bool
) -> ConfusionMatrix:
    """Label maps made elsewhere against masks; without a data set the classes are the values that occur."""
    spec = resolve(DataConfig(dataset=dataset)).spec if dataset else None
    read_as = spec or DatasetSpec(classes=tuple(str(value) for value in range(IGNORE)))
    samples = open_folders(Path(predictions), Path(masks), read_as, partial=partial, what="prediction")
    _tell(samples)
    pairs, without = samples.pairs, 0
    as_is = override(read_as, {"label_map": {}, "ignore_label": IGNORE})  # predictions hold classes, not mask values
    matrix = ConfusionMatrix(read_as.classes)
    for prediction, mask in pairs[distributed.rank() :: distributed.world_size()]:
        if spec is None and read_mask_values(prediction, max_pixels=max_pixels).ndim != 2:
            raise InputError(f"{prediction} is not a label map of one channel; name a MODEL to predict photographs")
        if spec is None and read_mask_values(mask, max_pixels=max_pixels).ndim != 2:
            raise InputError(f"{mask} holds colours; --dataset says which classes they are")
        predicted = read_mask(prediction, as_is, max_pixels=max_pixels)
        labels = read_mask(mask, read_as, max_pixels=max_pixels)
        if predicted.shape != labels.shape:
            raise InputError(f"{prediction} and its mask {mask} have different sizes")
        # No data: nothing is lost where the mask ignores the pixel too.
        missing = (predicted == IGNORE) & (labels != IGNORE)
        if missing.any() and not partial:
            text = f"{prediction} has no prediction (255) for {missing.mean():.1%} of its pixels, which {mask} labels"
            raise InputError(f"{text}; --partial leaves those pixels out")
        without += int(missing.sum())
        labels[missing], predicted[predicted == IGNORE] = IGNORE, 0
        matrix.add(torch.from_numpy(labels), torch.from_numpy(predicted))
    matrix.sum_over_ranks()
    if without:
        note(f"left out: {without:,} labelled pixels without a prediction")
    if spec is None:
        highest = int(matrix.counts.nonzero().max()) if matrix.counts.any() else 0
        trimmed = ConfusionMatrix(read_as.classes[: highest + 1])
        trimmed.counts += matrix.counts[: highest + 1, : highest + 1]
        return trimmed
    return matrix
