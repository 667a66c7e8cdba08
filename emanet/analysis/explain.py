"""What EM attention does: which pixels each base takes, how that sharpens, and which bases a class uses.

    seen = emanet.explain("runs/a", "photo.jpg")  # a model file, run folder or EMANet; any image a Predictor takes
    seen.z                                        # (T, K, h, w): the responsibilities of every EM iteration
    seen.owners                                   # (H, W): the base with the largest responsibility for each pixel
    seen.entropy                                  # (T,): mean over the pixels, in nats

Everything comes from the model's own forward pass, padded as in evaluation: a hook keeps what enters the EM, and
em_step repeats the iterations from the unit's own bases. The figures are in show/attention.py, the command in
explain_files.py.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..config import EvalConfig
from ..distributed import pick_device
from ..emau import EMAU
from ..errors import InputError
from ..evaluate import evaluate
from ..inference import shrunk, shrunk_size
from ..loading import model_of, read
from ..model import EMANet
from ..ops.em_attention import em_step
from ..predict.network import as_batch
from ..predict.predictor import Picture, Predictor

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Explanation:
    """The EM iterations t = 1..T on one image, on its feature map of (h, w) pixels.

    The unit rebuilds the map from mu[T] and z[T - 1]: the last bases, and the last responsibilities, which were
    computed before the last M-step. The map may cover padding at the right and the bottom, which took part in the EM;
    `inside` and everything computed from it leave those pixels out.
    """

    image: Array
    """(H, W, channels) uint8, as the model gets it."""
    labels: Array
    """(H, W) uint8, the predicted classes."""
    z: Array
    """(T, K, h, w) float32: responsibilities, z[t - 1] in iteration t; they sum to 1 over the K bases."""
    mu: Array
    """(T + 1, C, K) float32: mu[0] are the unit's bases, mu[t] those after iteration t."""
    padded: tuple[int, int]
    """The padded image's (h, w), to which the model upsamples its logits before it crops them to (H, W)."""
    align_corners: bool

    @property
    def inside(self) -> Array:
        """z without the map pixels whose centres lie in the padding: (T, K, at most h, at most w)."""
        counts = []
        for cells, padded, side in zip(self.z.shape[2:], self.padded, self.image.shape[:2], strict=True):
            if self.align_corners:
                centres = np.linspace(0, padded - 1, cells)
            else:
                centres = (np.arange(cells) + 0.5) * padded / cells - 0.5
            counts.append(max(1, int((centres < side - 0.5).sum())))
        return self.z[:, :, : counts[0], : counts[1]]

    @property
    def entropy(self) -> Array:
        """(T,): entropy of a pixel's responsibilities in nats, at most log K; mean over the map's pixels."""
        z = self.inside.astype(np.float64)
        return -(z * np.log(np.maximum(z, 1e-30))).sum(1).mean((1, 2))

    @property
    def entropy_share(self) -> Array:
        """(T,): entropy / log K; 1 if all bases share every pixel equally, 0 if every pixel has one base."""
        bases = self.z.shape[1]
        return self.entropy / math.log(bases) if bases > 1 else np.zeros(len(self.z))

    @property
    def strongest(self) -> Array:
        """(T,): a pixel's largest responsibility, mean over the map's pixels."""
        return self.inside.max(1).mean((1, 2), dtype=np.float64)

    @property
    def rebuilt(self) -> Array:
        """(C, h, w): the map as the unit rebuilds it, mu z^T (paper, equation 14), before its second convolution."""
        return np.einsum("ck,khw->chw", self.mu[-1], self.z[-1])

    def over_image(self, base: int, iteration: int | None = None) -> Array:
        """(H, W) float32: a base's responsibilities, upsampled to the image; of the last iteration or one in 1..T."""
        low = torch.from_numpy(self.z[-1 if iteration is None else iteration - 1, base])
        return _upsample(low, self.padded, self.image.shape[:2], self.align_corners).numpy()

    @cached_property
    def owners(self) -> Array:
        """(H, W) int32: the base with the largest responsibility in the last iteration."""
        best, owners = self.over_image(0), np.zeros(self.image.shape[:2], np.int32)
        for base in range(1, self.z.shape[1]):  # one at a time: K maps of the image's size may need gigabytes
            z = self.over_image(base)
            owners[z > best] = base
            np.maximum(best, z, out=best)
        return owners

    @cached_property
    def shares(self) -> Array:
        """(K,): the share of the image's pixels that each base owns."""
        return np.bincount(self.owners.ravel(), minlength=self.z.shape[1]) / self.owners.size

    def used_by(self, labels: Array, classes: int) -> Array:
        """(classes, K): responsibilities of the last iteration, mean over each class's pixels in labels (H, W).

        NaN for a class without a pixel. Upsampling is linear, so its derivative says how much each cell of the map
        counts for a class: K maps of the image's size are not needed.
        """
        z, used = self.z[-1].astype(np.float64), np.full((classes, self.z.shape[1]), np.nan)
        truth, size = torch.from_numpy(labels.astype(np.int64)), self.image.shape[:2]
        with torch.enable_grad():
            cells = torch.zeros(self.z.shape[2:], requires_grad=True)
            high = _upsample(cells, self.padded, size, self.align_corners)
            for label in (label for label in np.unique(labels) if label < classes):
                mask = (truth == int(label)).float()
                (weights,) = torch.autograd.grad(high, cells, mask, retain_graph=True)
                used[label] = (z * weights.double().numpy()).sum((1, 2)) / float(mask.sum())
        return used

    def cell_of(self, axis: int) -> tuple[float, float]:
        """(a, b) such that a * s + b is the map's cell at the share s of the image's height (axis 0) or width (1)."""
        side, padded, cells = self.image.shape[axis], self.padded[axis], self.z.shape[2 + axis]
        if self.align_corners:
            scale = (cells - 1) / max(padded - 1, 1)
            return side * scale, -0.5 * scale
        return side * cells / padded, -0.5

    def top(self, count: int = 7) -> list[int]:
        """The `count` bases that own most pixels, largest first; fewer if fewer own any."""
        order = np.argsort(-self.shares, kind="stable")[:count]
        return [int(base) for base in order if self.shares[base] > 0]


@dataclass(frozen=True, eq=False)
class ClassUse:
    """How much each class uses each base: one point for every class of every image."""

    classes: tuple[str, ...]
    vectors: Array
    """(points, K) float32: responsibilities of the last iteration, mean over the class's pixels in the image."""
    labels: Array
    """(points,): the class."""
    images: list[str]
    """(points,): the image's name."""

    @property
    def matrix(self) -> Array:
        """(classes, K): mean over the images with the class, each counting once; NaN for a class without an image."""
        of_classes = [self.vectors[self.labels == label] for label in range(len(self.classes))]
        unseen = np.full(self.vectors.shape[1], np.nan)
        return np.stack([vectors.mean(0, dtype=np.float64) if len(vectors) else unseen for vectors in of_classes])


def explain(model: EMANet | str | Path, image: Picture) -> Explanation:
    """The EM iterations on one image, which goes through the network whole, at the size at which the model predicts it.

    An EMANet stays on its device and in its mode; a path is loaded onto the GPU if there is one. Raises InputError for
    a model without EM attention and for files that cannot be read, ValueError for arrays that do not fit the model.
    """
    if isinstance(model, EMANet):
        net, config = model, EvalConfig()
    else:
        file, where = read(model), pick_device("auto")
        net, config = model_of(file).to(where), file.experiment.eval
    training = net.training
    try:
        with _Watch(net) as watch:
            predictor = Predictor(net, device=str(net.mean.device))
            pixels = shrunk_pixels(predictor.pixels(image), config, net)
            labels = predictor(pixels)
        return watch.explanation(pixels, labels)
    finally:
        net.train(training)


def predict_explained(predictor: Predictor, pixels: Array, longest_side: int = 0) -> tuple[Array, Explanation]:
    """The predictor's labels (H, W) of pixels (H, W, channels) uint8, and the EM iterations, if possible of one pass.

    longest_side: explain the image shrunk to this, or to less if the predictor does; 0: no limit of ours. Raises
    InputError for a model without EM attention, and for a predictor with another engine than `plain`.
    """
    net, config = predictor.model, predictor.config
    sides = [side for side in (config.longest_side, longest_side) if side]
    whole = EvalConfig(longest_side=min(sides, default=0))
    small = shrunk_pixels(pixels, whole, net)
    with _Watch(net) as watch:
        labels = predictor(pixels)
        if replace(config, longest_side=0) == EvalConfig() and small.shape[:2] == shrunk_size(pixels.shape[:2], config):
            rows, columns = (
                (np.arange(side) * 2 + 1) * of // (2 * side)
                for side, of in zip(small.shape[:2], labels.shape, strict=True)
            )
            return labels, watch.explanation(small, labels[rows][:, columns])
        shown = Predictor(net, device=str(net.mean.device))(small)
        return labels, watch.explanation(small, shown)


def shrunk_pixels(pixels: Array, config: EvalConfig, model: EMANet) -> Array:
    """Pixels (H, W, C) uint8 at the size at which the model predicts them with config: see its longest_side."""
    return shrunk(as_batch(pixels), config, model.align_corners)[0].permute(1, 2, 0).numpy()


def class_use(model: EMANet, dataset: Any, *, workers: int = 0, progress: bool = False) -> ClassUse:
    """How the classes, by the true labels, use the bases over a data set; ignored pixels are left out.

    dataset, workers, progress: see evaluate. Keeps K numbers for each class of each image, and one image at a time.
    Raises InputError if nothing is labelled.
    """
    vectors: list[Array] = []
    labels: list[int] = []
    images: list[str] = []

    def take(index: int, image: Array, truth: Array, predicted: Array) -> None:
        seen = watch.explanation(image, predicted)
        used = seen.used_by(truth, len(model.classes))
        present = np.flatnonzero(~np.isnan(used[:, 0]))
        vectors.append(used[present].astype(np.float32))
        labels.extend(present.tolist())
        images.extend([dataset.name(index)] * len(present))

    with _Watch(model) as watch:
        evaluate(model, dataset, workers=workers, progress=progress, on_sample=take)
    if not labels:
        raise InputError("no image of the data set has a labelled pixel")
    return ClassUse(model.classes, np.concatenate(vectors), np.array(labels), images)


def principal_components(vectors: Array, count: int = 2) -> tuple[Array, Array, Array]:
    """Of points (n, K): projections (n, count), unit directions (count, K), shares of the variance (count,).

    The largest entry of a direction is positive. If n or K allows fewer directions than `count`, the others are zeros.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    _, s, right = np.linalg.svd(centred, full_matrices=False)
    directions, shares = np.zeros((count, vectors.shape[1])), np.zeros(count)
    kept = min(count, len(s))
    largest = np.abs(right[:kept]).argmax(1)
    directions[:kept] = right[:kept] * np.sign(right[np.arange(kept), largest])[:, None]
    shares[:kept] = s[:kept] ** 2 / max((s**2).sum(), 1e-30)
    return centred @ directions.T, directions, shares


class _Watch:
    """While entered, hooks keep what the latest forward pass put into the EM, and the size of the backbone's input."""

    def __init__(self, model: EMANet):
        self.model, self.emau = model, emau_of(model)

    def __enter__(self) -> "_Watch":
        self._hooks = [
            self.emau.conv_in.register_forward_hook(self._keep_map),
            self.model.backbone.register_forward_pre_hook(self._keep_size),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep_map(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], x_BCHW: torch.Tensor) -> None:
        self._x_BCHW = x_BCHW

    def _keep_size(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        h, w = inputs[0].shape[2:]
        self._padded = h, w

    @torch.no_grad()
    def explanation(self, image: Array, labels: Array) -> Explanation:
        """The EM iterations of the latest forward pass, which was on this one image."""
        h, w = self._x_BCHW.shape[2:]
        x_BCN = self._x_BCHW.flatten(2).float()  # as em_attention, which computes in float32 under autocast too
        mu_BCK: torch.Tensor = self.emau.bases.float()
        z: list[torch.Tensor] = []
        mu = [mu_BCK]
        with torch.autocast(x_BCN.device.type, enabled=False):
            for _ in range(self.emau.em_steps):
                z_BNK, mu_BCK = em_step(x_BCN, mu_BCK, self.emau.eps)
                z.append(z_BNK.mT.unflatten(2, (h, w)))
                mu.append(mu_BCK)
        return Explanation(
            image=image,
            labels=labels,
            z=torch.cat(z).cpu().numpy(),
            mu=torch.cat(mu).cpu().numpy(),
            padded=self._padded,
            align_corners=self.model.align_corners,
        )


def emau_of(model: EMANet) -> EMAU:
    """The model's EM attention unit; InputError if it has none."""
    emau = next((module for module in model.modules() if isinstance(module, EMAU)), None)
    if emau is None:
        head = type(model.head).__name__
        raise InputError(f"there are no bases to explain: the model's head, {head}, has no EM attention")
    return emau


def _upsample(low: torch.Tensor, padded: tuple[int, int], size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """(h, w) -> (H, W) as EMANet upsamples its logits, without the padding of evaluation."""
    high = F.interpolate(low[None, None], padded, mode="bilinear", align_corners=align_corners)
    return high[0, 0, : size[0], : size[1]]
