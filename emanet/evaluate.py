"""Predict every image of a data set and count the result in a confusion matrix.

    matrix = evaluate(model, dataset, EvalConfig(scales=(0.75, 1.0, 1.25), flip=True))
    print(matrix.report()["mIoU"])

A data set is any object with len(dataset), dataset.name(i) and dataset.read(i) -> image (H, W, C) uint8,
labels (H, W) uint8 with 255 = ignored. Images may differ in size. How an image is predicted is in inference.py.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import distributed
from .config import EvalConfig
from .data.loader import delivered
from .errors import InputError
from .inference import predict_labels
from .metrics import ConfusionMatrix
from .model import EMANet
from .show.terminal import bar
from .stages import THREADS, ordered, side_by_side
from .windows import enough_memory

OnSample = Callable[[int, np.ndarray, np.ndarray, np.ndarray], None]


def evaluate(
    model: EMANet,
    dataset: Any,
    config: EvalConfig = EvalConfig(),
    *,
    workers: int = 0,
    progress: bool = False,
    on_sample: OnSample | None = None,
    until: Callable[[], bool] = lambda: False,
) -> ConfusionMatrix:
    """The confusion matrix of the whole data set, the same on every rank; each image is counted on exactly one.

    workers: processes that decode ahead; 0: threads, whose number follows the machine. progress: a bar on stderr, on
    rank 0 only. on_sample(i, image, labels, predicted): called after each image, before the network sees another one,
    on the rank that has it, with uint8 arrays. until: called before each image; once it returns True, this rank skips
    the rest. Images are read and counted beside the network. Needs memory for a few images only. For autocast, call it
    inside torch.autocast.
    Raises InputError that names the sample if image and labels differ in size, a label is not a class or there is not
    enough memory for it; the other ranks then raise one too.
    """
    device = model.mean.device

    def labels_of(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return predict_labels(model, image.permute(2, 0, 1)[None].to(device), config)[0]

    training = model.training
    model.eval()
    try:
        matrix = ConfusionMatrix(model.classes, device)
        return counted(labels_of, dataset, matrix, config, workers, progress, on_sample, until)
    finally:
        model.train(training)


def counted(
    labels_of: Callable[[Tensor], Tensor], dataset: Any, matrix: ConfusionMatrix, config: EvalConfig, workers: int = 0,
    progress: bool = False, on_sample: OnSample | None = None, until: Callable[[], bool] = lambda: False,
    at_once: int = 1,
) -> ConfusionMatrix:  # fmt: skip
    """The same of any function from an image (H, W, C) to its labels (H, W), both uint8, counted into `matrix`.

    at_once: how many images are given to it side by side, from threads; one with on_sample.
    """
    indices = range(len(dataset))[distributed.rank() :: distributed.world_size()]  # no padding: none counts twice
    samples = _Samples(dataset, indices)
    by_threads = ordered(samples.__getitem__, range(len(indices)), THREADS, THREADS)
    read = delivered(samples, workers, batch_size=None) if workers else by_threads

    def predict(sample: tuple[int, tuple[Tensor, Tensor]]) -> tuple[int, Tensor, Tensor]:
        i, (image, labels) = sample
        with enough_memory(dataset.name(i), image.shape[:2], config):
            found = labels_of(image)
        if on_sample:  # here: the network may be at the next image when this one is counted
            on_sample(i, image.numpy(), labels.numpy(), found.cpu().numpy())
        return i, labels, found

    def count(sample: tuple[int, Tensor, Tensor]) -> None:
        i, labels, found = sample
        try:
            matrix.add(labels, found)
        except InputError as error:
            raise InputError(f"{dataset.name(i)}: {error}") from error

    due = takewhile(lambda _: not until(), zip(indices, read, strict=True))
    predicted = side_by_side(predict, due, 1 if on_sample else at_once)
    # Closed at the end: after an error, the garbage collector would take 5 seconds for each of the workers.
    with (
        bar("evaluate", len(indices), hidden=not progress or distributed.rank() > 0) as advance,
        closing(read),
        closing(predicted),
        closing(ordered(count, predicted)) as results,
    ):
        for done, _ in enumerate(results, 1):
            advance(done)
    with distributed.ending_together():
        matrix.sum_over_ranks()
    return matrix


class _Samples:
    """The samples of one rank as tensors, images (H, W, C), for the loader."""

    def __init__(self, dataset: Any, indices: Sequence[int]):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        i = self.indices[k]
        image, labels = self.dataset.read(i)
        if image.shape[:2] != labels.shape:
            sizes = f"{image.shape[:2]}, but its labels are {labels.shape}"
            raise InputError(f"{self.dataset.name(i)}: the image is (h, w) = {sizes}")
        return torch.from_numpy(image.copy()), torch.from_numpy(labels.copy())  # readers may give read-only arrays
