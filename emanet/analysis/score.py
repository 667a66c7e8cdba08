"""The evaluate command: which model on which pictures, and the result as a table, JSON and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from .. import distributed
from ..atomic import write_json
from ..config import IGNORE, DataConfig, DatasetSpec, Engine, EvalConfig, Precision
from ..data.datasets import at_hand, open_dataset, open_folders, resolve
from ..data.images import read_mask, read_mask_values
from ..errors import InputError
from ..evaluate import evaluate
from ..experiments import load_experiment, override
from ..loading import load, model_path, spec_of
from ..metrics import ConfusionMatrix, print_report
from ..predict.predictor import Predictor


def score(
    model: str, images: str, masks: str, split: str, root: str, dataset: str, json: str, picture: str, device: str,
    settings: EvalConfig, engine: Engine = "plain", precision: Precision = "fp32", calibrate: Sequence[str] = (),
) -> dict:  # fmt: skip
    """See the command's help for the arguments. Returns the report (see metrics)."""
    if bool(images) != bool(masks):
        raise InputError("--images and --masks belong together")
    if not model and not images:
        raise InputError("evaluate needs a MODEL, or --images and --masks")
    if model:
        how = {"config": settings, "engine": engine, "precision": precision, "calibrate": calibrate}
        matrix = _score_model(model, images, masks, split, root, dataset, device, how)
    else:
        matrix = _score_label_maps(images, masks, dataset)
    report = matrix.report()
    if distributed.rank() == 0:
        print_report(report, Console())
        if json:
            write_json(Path(json), report)
        if picture:
            from ..show.figures import confusion_picture

            confusion_picture(matrix, picture)
    distributed.shutdown()
    return report


def _score_model(
    model: str, images: str, masks: str, split: str, root: str, dataset: str, device: str, how: dict[str, Any]
) -> ConfusionMatrix:
    where = distributed.pick_device(device)
    distributed.init(where)
    config = load_experiment(str(model_path(model)))
    data = at_hand(config.data, spec_of(config).classes, dataset, root)
    channels = config.model.backbone.in_channels
    if images:
        samples = open_folders(Path(images), Path(masks), data.spec, channels)
    else:
        samples = open_dataset(data, split or data.val_split, channels)
    predictor = Predictor(load(model), device=str(where), **how)
    return evaluate(predictor.model, samples, predictor.config, workers=2, progress=True)


def _score_label_maps(predictions: str, masks: str, dataset: str) -> ConfusionMatrix:
    """Label maps made elsewhere against masks; without a data set the classes are the values that occur."""
    spec = resolve(DataConfig(dataset=dataset)).spec if dataset else None
    read_as = spec or DatasetSpec(classes=tuple(str(value) for value in range(IGNORE)))
    pairs = open_folders(Path(predictions), Path(masks), read_as)
    as_is = override(read_as, {"label_map": {}, "ignore_label": IGNORE})  # predictions hold classes, not mask values
    matrix = ConfusionMatrix(read_as.classes)
    for prediction, mask in pairs.pairs:
        if spec is None and read_mask_values(prediction).ndim != 2:
            raise InputError(f"{prediction} is no label map of one channel; name a MODEL to predict photographs")
        predicted, labels = read_mask(prediction, as_is), read_mask(mask, read_as)
        if predicted.shape != labels.shape:
            raise InputError(f"{prediction} and its mask {mask} have different sizes")
        if (predicted == IGNORE).any():
            raise InputError(f"{prediction} has ignored pixels (255), but a prediction must name a class everywhere")
        matrix.add(torch.from_numpy(labels), torch.from_numpy(predicted))
    if spec is None:
        highest = int(matrix.counts.nonzero().max()) if matrix.counts.any() else 0
        trimmed = ConfusionMatrix(read_as.classes[: highest + 1])
        trimmed.counts += matrix.counts[: highest + 1, : highest + 1]
        return trimmed
    return matrix
