"""Batches, and the worker processes that make them, which end with the main process."""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..config import Experiment
from ..errors import InputError
from ..interrupt import SIGNALS
from .transforms import TrainingSamples


def delivered(loader: DataLoader) -> Iterator[Any]:
    """The loader's batches. InputError where its processes cannot be started, or one has died."""
    batches = _start(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"a process that reads samples has died, as a rule for want of memory ({error}): give fewer "
                "--data.workers, or 0 to read in the process that trains"
            ) from error
        yield batch


def end_with_main(worker: int) -> None:
    """The loaders' worker_init_fn. Terminals and schedulers signal every process, but the step that is to be finished
    still needs its batch: a worker, in which SIGNALS are held back, ends only where the main process sends one."""
    parent = multiprocessing.parent_process().pid

    def listen() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != parent:
            pass
        os._exit(0)

    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited from _start only by a fork
        threading.Thread(target=listen, daemon=True).start()


def _start(loader: DataLoader) -> Iterator[Any]:
    """iter(loader), with SIGNALS held back meanwhile, for the processes to inherit."""
    if not hasattr(signal, "pthread_sigmask"):
        return iter(loader)  # no POSIX system
    child = signal.getsignal(signal.SIGCHLD)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return iter(loader)
    except OSError as error:
        raise InputError(
            f"cannot start {loader.num_workers} processes that read samples: {error.strerror}; lower --data.workers"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        if _is_torchs(signal.getsignal(signal.SIGCHLD)) and threading.current_thread() is threading.main_thread():
            # When a worker dies it would raise wherever the main thread is. Without it, waiting for a batch finds out.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if child is None or _is_torchs(child) else child)


def _is_torchs(handler: object) -> bool:
    return getattr(handler, "__module__", "").startswith("torch.")


PREFETCH = 4  # batches that each worker may be ahead


SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps it; Docker gives 64 MB


@dataclass(frozen=True)
class StepPositions:
    """For every step from `start` on, the positions of this rank's share of the batch."""

    start: int
    steps: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[range]:
        share = self.batch_size // self.world_size
        for step in range(self.start, self.steps):
            first = step * self.batch_size + self.rank * share
            yield range(first, first + share)


@dataclass(frozen=True)
class _Slots:
    """Shared memory for batches, written by a loader's workers in turn.

    Fresh shared memory for every batch takes a core longer, page by page, than resizing its images does.
    """

    images: Tensor  # (slots, b, h, w, C) uint8
    labels: Tensor  # (slots, b, h, w) uint8
    batch_size: int

    def __call__(self, samples: list[tuple[Tensor, Tensor, int]] | InputError) -> tuple[int, list[int]] | InputError:
        """In a worker: put a batch into its step's slot; the slot's number and the positions."""
        if isinstance(samples, InputError):
            return samples
        images, labels, positions = zip(*samples, strict=True)
        slot = positions[0] // self.batch_size % len(self.images)
        for i, (image, target) in enumerate(zip(images, labels, strict=True)):
            self.images[slot, i] = image.permute(1, 2, 0)
            self.labels[slot, i] = target
        return slot, list(positions)


def training_loader(
    samples: TrainingSamples, config: Experiment, start: int, rank: int, world_size: int
) -> Iterator[list[Tensor] | InputError]:
    """Batches [images (b, C, h, w) uint8 channels last, labels (b, h, w) uint8, positions (b,)] from step `start` on.

    A sample that cannot be read gives its InputError in place of the batch, for the caller to raise. Raises InputError
    at once where shared memory is too small for the workers, and from the iterator where one of them was killed.
    """
    workers, share = config.data.workers, config.batch_size // world_size
    # One slot more than batches can be under way: a batch is copied out before its slot's next one is asked for.
    shape = (PREFETCH * workers + 1 if workers else 1, share, *config.data.crop)
    images = torch.empty(*shape, len(samples.fill), dtype=torch.uint8)
    labels = torch.empty(shape, dtype=torch.uint8)
    if workers:
        _share(images, labels)
    loader = DataLoader(
        samples,
        batch_sampler=StepPositions(start, config.steps, config.batch_size, rank, world_size),
        num_workers=workers,
        collate_fn=_Slots(images, labels, config.batch_size),
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=end_with_main,
    )
    return _batches(loader, images, labels)


def _share(*tensors: Tensor) -> None:
    """Move them to shared memory; InputError where it has no room: filled beyond its end it would kill the process."""
    needed = sum(x.numel() for x in tensors)
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    try:
        if free < needed:
            raise RuntimeError
        for x in tensors:
            x.share_memory_()
    except RuntimeError as error:  # torch's own, where another rank has taken the rest meanwhile
        raise InputError(
            f"{SHARED_MEMORY} has {free} bytes free, but the batches of the loader's workers need {needed}: give fewer "
            "--data.workers (0 needs no shared memory), or to docker run a larger --shm-size"
        ) from error


def _batches(loader: DataLoader, images: Tensor, labels: Tensor) -> Iterator[list[Tensor] | InputError]:
    pinned = torch.cuda.is_available()
    for batch in delivered(loader):
        if isinstance(batch, InputError):
            yield batch
            continue
        slot, positions = batch
        taken = [torch.empty(x.shape, dtype=x.dtype, pin_memory=pinned).copy_(x) for x in (images[slot], labels[slot])]
        yield [taken[0].permute(0, 3, 1, 2), taken[1], torch.tensor(positions)]
