"""Bilinear upsampling that ends in labels or in a loss, without the logits at full size.

An image of 1024x2048 pixels and 150 classes has 1.26 GB of float32 logits, of which argmax keeps 2 MB and cross entropy
one number. Here the upsampling is done in blocks that stay in the cache, and what it is needed for right behind it.
A GPU that has room for the logits at full size is faster with them, and takes them: docs/performance.md.

Shapes: B images, C classes, (h, w) the low map, (H, W) the pixels; n tiles of at most T rows and S columns. A tile is a
group of neighbouring pixels that lie between the same low rows and columns: its pixels mix the same four logits.
Everywhere `padded` is the size over which the low map is spread, `size` (H, W) what is kept of it, from the upper left.
The arithmetic is float32 (float64 for float64 logits) whatever autocast says.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..config import IGNORE
from .autocast import no_autocast
from .uncompiled import uncompiled

# Values in a block, of which a few copies exist at a time. CPU: they fit into the cache. CUDA: few launches. A single
# tile's rows may have CUT times as many before they are cut, which repeats the horizontal half of the upsampling.
BLOCK = {"cpu": 1 << 20}
BLOCK_ELSEWHERE = 1 << 24
CUT = 4
ROOM = 1 / 16  # of a GPU's memory, for what the formula needs with the logits at full size
FEW_PIXELS = 4  # in a tile: then comparing tiles costs more than comparing pixels


@uncompiled
@torch.no_grad()
def upsample_argmax(
    low: Tensor, padded: Sequence[int], size: Sequence[int], align_corners: bool, *, max_probability: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """F.interpolate(low, padded, mode="bilinear")[:, :, :H, :W].argmax(1), with memory that does not grow with C.

    low: (B, C, h, w) logits of any floating dtype, C at most 256.
    Returns labels (B, H, W) uint8; with max_probability also the softmax of the pixel's class (B, H, W), float32 or
    float64. Labels can differ from the formula's only where rounding decides: where the two largest logits are closer
    than 1e-5 of the largest in the map; of equal ones, it may not be the first. A pixel whose tile has a NaN gets the
    first class that is NaN there, as from the formula. Infinite logits make pixels NaN, as there, but not all the same.
    Raises ValueError for more than 256 classes, whose labels do not fit into uint8.

    A pixel's logits are a mean of its tile's four corners, so a class that is above another at no corner is above it
    nowhere in the tile. Compared at the pixels are therefore only the class with the largest sum over the corners and
    those above it at some corner: inside of objects none. With max_probability, and where tiles are tiny, every class
    of every pixel is computed, a block of rows at a time.
    """
    if low.shape[1] > 256:
        raise ValueError(f"labels are uint8, and {low.shape[1]} classes do not fit into it")
    with no_autocast(low.device.type):
        low = _exact(low)
        shape = (low.shape[0], *size)
        labels = torch.empty(shape, dtype=torch.uint8, device=low.device)
        if low.is_meta:
            return (labels, low.new_empty(shape)) if max_probability else labels
        if not max_probability and _has_room(low[:1], padded, 1):
            for image, kept in zip(low, labels, strict=True):
                kept[:] = full_size(image[None], padded, size, align_corners)[0].argmax(0)
            return labels
        rows, columns = (_tiles(low, axis, padded, size, align_corners) for axis in (0, 1))
        pixels = rows.pixels.shape[1] * columns.pixels.shape[1]
        if max_probability or pixels < FEW_PIXELS:
            probability = low.new_empty(shape if max_probability else 0)
            for block in _row_blocks(low, padded, size, align_corners):
                high = _spread(low, block, padded, size, align_corners)
                labels[block.place] = high.argmax(1).to(torch.uint8)
                if max_probability:
                    probability[block.place] = F.log_softmax(high, 1).amax(1).exp_()
            return (labels, probability) if max_probability else labels
        together = max(1, _budget(low) // (max(4 * low.shape[1], 2 * pixels) * len(columns.before)))
        columns = _Tiles(*(field.to(low.device) for field in columns))
        for i in range(len(low)):
            for block in _blocks(rows, together, slice(i, i + 1), low.device):
                _label_tiles(low[i, :, block.low], block.tiles, columns, labels[i, block.pixels])
        return labels


@uncompiled
def upsample_cross_entropy(low: Tensor, labels: Tensor, padded: Sequence[int], align_corners: bool) -> Tensor:
    """F.cross_entropy of the upsampled logits with the labels, for each pixel: (B, H, W), 0 where they are 255.

    low: (B, C, h, w) logits of any floating dtype. labels: (B, H, W) uint8 or int64, 255 = ignored.
    Differentiable once, with respect to low: the backward pass computes the logits again, block by block, and so
    neither pass keeps anything that is as large as C values for each pixel; on a GPU, where they have no room.
    """
    if _has_room(low, padded, 4) and not torch.are_deterministic_algorithms_enabled():
        with no_autocast(low.device.type):
            high = full_size(_exact(low), padded, labels.shape[1:], align_corners)
            return F.cross_entropy(high, labels.long(), ignore_index=IGNORE, reduction="none")
    return _CrossEntropy.apply(_exact(low), labels, tuple(padded), align_corners)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, low: Tensor, labels: Tensor, padded: tuple[int, int], align_corners: bool) -> Tensor:
        ctx.save_for_backward(low, labels)
        ctx.padded, ctx.align_corners = padded, align_corners
        size = labels.shape[1:]
        losses = low.new_empty(labels.shape)
        with no_autocast(low.device.type):
            for block in _row_blocks(low, padded, size, align_corners):
                index, ignored = _targets(labels[block.place])
                log_p = F.log_softmax(_spread(low, block, padded, size, align_corners), 1)
                found = log_p.gather(1, index)[:, 0].neg_()
                losses[block.place] = found.masked_fill_(ignored, 0)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        low, labels = ctx.saved_tensors
        padded, align_corners, size = ctx.padded, ctx.align_corners, labels.shape[1:]
        grad_low = torch.zeros_like(low)
        with no_autocast(low.device.type):
            for block in _row_blocks(low, padded, size, align_corners):
                index, ignored = _targets(labels[block.place])
                scale = grad[block.place].masked_fill_(ignored, 0)[:, None]
                p = F.log_softmax(_spread(low, block, padded, size, align_corners), 1).exp_()  # faster than softmax
                grad_high = p.mul_(scale).scatter_add_(1, index, -scale)  # softmax - 1 at the label
                _gather_up(grad_low, grad_high, block, padded, align_corners)
        return grad_low, None, None, None


def _exact(low: Tensor) -> Tensor:
    return low.to(torch.promote_types(low.dtype, torch.float32)).contiguous()


def _has_room(low: Tensor, padded: Sequence[int], copies: int) -> bool:
    """Whether `low` is on a GPU in whose memory `copies` of its logits at full size take little."""
    if not low.is_cuda:
        return False
    needed = copies * low.shape[0] * low.shape[1] * padded[0] * padded[1] * max(4, low.element_size())
    return needed <= ROOM * torch.cuda.get_device_properties(low.device).total_memory


def full_size(low: Tensor, padded: Sequence[int], size: Sequence[int], align_corners: bool) -> Tensor:
    """The logits at full size, (B, C, H, W), in float32 at least; the plain formula."""
    low = low.to(torch.promote_types(low.dtype, torch.float32))
    high = F.interpolate(low, tuple(padded), mode="bilinear", align_corners=align_corners)
    return high[..., : size[0], : size[1]]


def _budget(low: Tensor) -> int:
    return BLOCK.get(low.device.type, BLOCK_ELSEWHERE)


class _Tiles(NamedTuple):
    """The tiles along one axis, in order."""

    before: Tensor
    """(n,) int64: the low row (or column) at or before the tile's pixels."""
    after: Tensor
    """(n,) int64: the one behind it, the same at the end."""
    pixels: Tensor
    """(n, T) int64: the rows (or columns) of the image; shorter tiles repeat their last."""
    weights: Tensor
    """(n, T): the weight of `after`; `before` has the rest of 1."""
    counts: Tensor
    """(n,) int64: pixels without the repetitions."""


class _Block(NamedTuple):
    """Neighbouring tiles of rows, of some images. In `tiles`, low rows and pixels count from the block's first ones."""

    tiles: _Tiles
    images: slice
    low: slice
    """The low rows that the block mixes."""
    pixels: slice
    """The rows of the image that it covers."""
    place: tuple[slice, Tensor]
    """Index into (B, H, W) that gives the block's pixels as (b, n, T, W)."""


def _tiles(
    low: Tensor, axis: int, padded: Sequence[int], size: Sequence[int], align_corners: bool, longest: int = 1 << 30
) -> _Tiles:
    """The tiles of rows (axis 0) or columns (1) of low (B, C, h, w), of at most `longest` pixels each, on the CPU."""
    side, spread, kept = low.shape[2 + axis], padded[axis], size[axis]
    # The weights are F.interpolate's own, which an identity shows; other rounding of positions would be another image.
    matrix = F.interpolate(torch.eye(side, dtype=low.dtype)[None], spread, mode="linear", align_corners=align_corners)
    matrix = matrix[0, :, :kept]
    before = (matrix != 0).to(torch.uint8).argmax(0)
    weights = matrix.gather(0, (before + 1).clamp_max(side - 1)[None])[0]

    usual = -(-spread // side)
    length = min(kept, -(-usual // -(-usual // longest)))  # equal parts of the usual number between two low pixels
    used, members = before.unique_consecutive(return_counts=True)
    parts = -(-members // length)
    owner = torch.arange(len(used)).repeat_interleave(parts)
    start = (torch.arange(len(owner)) - (parts.cumsum(0) - parts)[owner]) * length
    counts = (members[owner] - start).clamp_max(length)
    start += (members.cumsum(0) - members)[owner]
    pixels = start[:, None] + torch.minimum(torch.arange(length), counts[:, None] - 1)
    fields = (used[owner], (used[owner] + 1).clamp_max(side - 1), pixels, weights[pixels], counts)
    return _Tiles(*fields)


def _blocks(rows: _Tiles, together: int, images: slice, device: torch.device) -> Iterator[_Block]:
    for parts in zip(*(field.split(together) for field in rows), strict=True):
        tiles = _Tiles(*parts)
        low = slice(int(tiles.before[0]), int(tiles.after[-1]) + 1)
        pixels = slice(int(tiles.pixels[0, 0]), int(tiles.pixels[-1, -1]) + 1)
        place = (images, tiles.pixels.to(device, non_blocking=True))
        tiles = tiles._replace(
            before=tiles.before - low.start, after=tiles.after - low.start, pixels=tiles.pixels - pixels.start
        )
        yield _Block(_Tiles(*(field.to(device, non_blocking=True) for field in tiles)), images, low, pixels, place)


def _row_blocks(low: Tensor, padded: Sequence[int], size: Sequence[int], align_corners: bool) -> Iterator[_Block]:
    """As many images and tiles of rows at a time as the budget has room for with all columns and classes."""
    budget, row = _budget(low), low.shape[1] * padded[1]
    rows = _tiles(low, 0, padded, size, align_corners, longest=max(1, CUT * budget // row))
    fitting = max(1, budget // (row * rows.pixels.shape[1]))
    images = max(1, min(len(low), fitting))
    for start in range(0, len(low), images):
        yield from _blocks(rows, fitting // images, slice(start, start + images), low.device)


def _spread(low: Tensor, block: _Block, padded: Sequence[int], size: Sequence[int], align_corners: bool) -> Tensor:
    """The upsampled logits of a block: (b, C, n, T, W)."""
    part, rows = low[block.images, :, block.low], block.tiles
    wide = F.interpolate(part, (part.shape[2], padded[1]), mode="bilinear", align_corners=align_corners)
    wide = wide[..., : size[1]]
    return torch.lerp(wide[:, :, rows.before, None], wide[:, :, rows.after, None], rows.weights[..., None])


def _gather_up(grad_low: Tensor, grad: Tensor, block: _Block, padded: Sequence[int], align_corners: bool) -> None:
    """The adjoint of _spread: added to grad_low (B, C, h, w) is what the block's grad (b, C, n, T, W) comes to."""
    part, rows = grad_low[block.images, :, block.low], block.tiles
    once = torch.arange(rows.pixels.shape[1], device=grad.device) < rows.counts[:, None]
    shares = torch.stack([1 - rows.weights, rows.weights], 1) * once[:, None]  # (n, 2, T)
    mixed = shares @ grad  # (b, C, n, 2, W)
    wide = grad.new_zeros(*part.shape[:3], padded[1])
    kept = wide[..., : grad.shape[-1]]
    kept.index_add_(2, rows.before, mixed[..., 0, :])
    kept.index_add_(2, rows.after, mixed[..., 1, :])
    if wide.is_cuda and torch.are_deterministic_algorithms_enabled():
        part += _narrowed_by_product(wide, part.shape[3], align_corners)
        return
    sizes = list(wide.shape[2:]), list(part.shape)
    part += torch.ops.aten.upsample_bilinear2d_backward(wide, *sizes, align_corners, None, None)


def _narrowed_by_product(wide: Tensor, side: int, align_corners: bool) -> Tensor:
    """The adjoint of upsampling (..., side) to wide (..., W): a product, which adds in the same order always."""
    eye = torch.eye(side, dtype=wide.dtype, device=wide.device)
    across = F.interpolate(eye[None], wide.shape[-1], mode="linear", align_corners=align_corners)[0]
    return wide @ across.T


def _targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of a block's labels (b, n, T, W): int64 (b, 1, n, T, W) with 0 where they are ignored, and where."""
    ignored = labels == IGNORE
    return labels.long().masked_fill_(ignored, 0)[:, None], ignored


def _label_tiles(logits: Tensor, rows: _Tiles, columns: _Tiles, labels: Tensor) -> None:
    """Write the labels (R, W) of a block's rows, from its low rows (C, r, w). See upsample_argmax."""
    nx, w = len(columns.before), logits.shape[2]
    places = [y[:, None] * w + x for y in (rows.before, rows.after) for x in (columns.before, columns.after)]
    corners = logits.flatten(1).index_select(1, torch.stack(places).flatten()).unflatten(1, (4, -1))  # (C, 4, n)
    best = corners.sum(1).argmax(0)
    held = corners.gather(0, best.expand(1, 4, -1))[0]  # (4, n)
    rivals = corners[:, 0] > held[0]  # (C, n)
    for corner in range(1, 4):
        rivals |= corners[:, corner] > held[corner]

    over_columns = best.to(torch.uint8).view(-1, nx).repeat_interleave(columns.counts, 1)
    labels[:] = over_columns.repeat_interleave(rows.counts, 0)

    count, tiles = rivals.sum(0).sort(descending=True)  # so those with more than k rivals are the first many[k]
    many = count.bincount().flip(0).cumsum(0).flip(0)[1:].tolist()
    if not many:
        return
    count, tiles = count[: many[0]], tiles[: many[0]]
    y, x = tiles // nx, tiles % nx
    down, across = rows.weights[y], columns.weights[x]
    value = _mixed(held[:, tiles], down, across)
    label = best[tiles, None, None].to(torch.uint8).expand(value.shape).clone()
    classes = rivals[:, tiles].mT.nonzero()[:, 1]  # tile after tile
    start = count.cumsum(0) - count
    for k, m in enumerate(many):
        rival = classes[start[:m] + k]
        challenge = _mixed(corners[rival, :, tiles[:m]].mT, down[:m], across[:m])
        wins = challenge > value[:m]
        label[:m] = torch.where(wins, rival.to(torch.uint8)[:, None, None], label[:m])
        torch.maximum(value[:m], challenge, out=value[:m])
    labels[rows.pixels[y][:, :, None], columns.pixels[x][:, None]] = label


def _mixed(corners: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(n, T, S): the pixels of n tiles from their corners (4, n), row by row, and weights (n, T) and (n, S)."""
    upper = torch.lerp(corners[0, :, None], corners[1, :, None], across)
    lower = torch.lerp(corners[2, :, None], corners[3, :, None], across)
    return torch.lerp(upper[:, None], lower[:, None], down[..., None])
