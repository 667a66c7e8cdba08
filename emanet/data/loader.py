"""Batches, and the worker processes that read them.

Training and evaluation both get their samples through `delivered`, so that workers end with the main process and their
errors come out of it as InputError.
"""

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import Experiment
from ..errors import InputError
from ..interrupt import SIGNALS
from ..stages import cores, ordered

if TYPE_CHECKING:  # with torchvision, which takes a second and which evaluation does without
    from .transforms import TrainingSamples

PREFETCH = 4  # batches that each worker may be ahead
LONGEST = 70  # bytes of the temporary folder's path; a socket's may have 103 (macOS), and 32 are added
SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps it; Docker gives 64 MB


class _Careful(Dataset):
    """A data set that returns Unreadable for a bad sample. An error raised in a worker would arrive as a traceback."""

    def __init__(self, samples: Any):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.samples[index]
        except InputError as error:
            return Unreadable(str(error))


@dataclass(frozen=True)
class Unreadable:
    """What is wrong with a sample, in place of the sample or of the batch that it belongs to."""

    reason: str


def delivered(samples: Any, workers: int, **options: Any) -> Generator[Any, None, None]:
    """Iterate over DataLoader(samples, num_workers=workers, **options); the workers end with the iterator.

    samples: anything with samples[i], and with a length unless there is a batch_sampler.
    Raises InputError if a sample raises one, if the workers cannot be started, or if one of them dies.
    """
    # The loader draws a seed for its workers, which must not come between the draws of a step in another thread.
    options |= {"num_workers": workers, "worker_init_fn": end_with_main, "generator": torch.Generator()}
    batches = _start(DataLoader(_Careful(samples), **options))
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise InputError(
                f"a process that reads samples has died, probably for lack of memory ({error}); use fewer "
                "--workers, or 0 to read in the main process"
            ) from error
        if isinstance(batch, Unreadable):
            del batches  # a traceback would keep it, and its processes, alive
            raise InputError(batch.reason)
        yield batch


def end_with_main(worker: int) -> None:
    """The loaders' worker_init_fn: only the main process may end a worker.

    Terminals and schedulers signal every process, but the step to finish still needs its batch. So SIGNALS are blocked
    in a worker, and a thread ends it when one comes from its parent.

    Samples leave a worker by a socket in the temporary folder. One with a longer path would only be noticed there, and
    the main process would wait for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in workers only
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST:
        tempfile.tempdir = "/tmp"

    def listen() -> None:
        while signal.sigwaitinfo(SIGNALS).si_pid != parent.pid:
            pass
        os._exit(0)

    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # inherited from _start only by a fork
        threading.Thread(target=listen, daemon=True).start()


def _start(loader: DataLoader) -> Iterator[Any]:
    """iter(loader), with SIGNALS blocked while its processes start, so that they inherit the block."""
    if not hasattr(signal, "pthread_sigmask"):  # not a POSIX system
        return iter(loader)
    child = signal.getsignal(signal.SIGCHLD)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        if loader.num_workers:
            tempfile.TemporaryDirectory().cleanup()
        return iter(loader)
    except OSError as error:
        raise InputError(
            f"cannot start {loader.num_workers} processes that read samples: {error.strerror}; use fewer --workers, or "
            "0 to read in the main process"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        if _is_torchs(signal.getsignal(signal.SIGCHLD)) and threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever the main thread is when a worker dies. Waiting for a batch finds out too.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL if child is None or _is_torchs(child) else child)


def _is_torchs(handler: object) -> bool:
    return getattr(handler, "__module__", "").startswith("torch.")


@dataclass(frozen=True)
class StepPositions:
    """For every step from `start` on, the positions of this rank's share of the batch, pass by pass.

    passes: of a step; what is in one, in which order, is as the run was started, with `ranks` ranks. 0: as many as now.
    """

    start: int
    steps: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    passes: int = 1
    ranks: int = 0

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        ranks = self.ranks or self.world_size
        of_pass = self.batch_size // self.passes
        # A rank has its share of the batch in a row; its first images are in the first pass, and so on.
        batch = np.arange(self.batch_size).reshape(ranks, self.passes, -1).swapaxes(0, 1).reshape(self.passes, of_pass)
        own = batch.reshape(self.passes, self.world_size, -1)[:, self.rank].flatten()
        for step in range(self.start, self.steps):
            yield (step * self.batch_size + own).tolist()


@dataclass(frozen=True)
class _Slots:
    """Shared memory for batches, written by the workers in turn.

    Allocating shared memory for every batch costs more CPU time (page faults) than resizing its images. A slot holds
    the largest crop; smaller ones are at its start.
    """

    images: Tensor  # (slots, b, h, w, C) uint8
    labels: Tensor  # (slots, b, h, w) uint8
    batch_size: int

    def __call__(self, samples: list[Any]) -> tuple[int, list[int]] | Unreadable:
        """The collate_fn, run in a worker: copy the samples into their step's slot.

        samples: (image, labels, position) or Unreadable. Returns the slot's number and the positions.
        """
        for sample in samples:
            if isinstance(sample, Unreadable):
                return sample
        images, labels, positions = zip(*samples, strict=True)
        slot = positions[0] // self.batch_size % len(self.images)
        for i, (image, target) in enumerate(zip(images, labels, strict=True)):
            h, w = target.shape
            self.images[slot, i, :h, :w] = image.permute(1, 2, 0)
            self.labels[slot, i, :h, :w] = target
        return slot, list(positions)


def training_loader(
    samples: "TrainingSamples", config: Experiment, start: int, rank: int, world_size: int, ranks: int = 0
) -> Iterator[list[Tensor]]:
    """Batches [images (b, C, h, w) uint8 channels last, labels (b, h, w) uint8, positions (b,)] from step `start` on.

    ranks: how many the run was started with; 0: as many as now.

    Raises InputError at once if shared memory is too small for the workers, and as `delivered` does from the iterator.
    """
    workers, share = processes(config), config.batch_size // world_size
    # One slot more than there can be batches on their way: a batch is copied out before its slot is used again.
    h, w = (max(sides) for sides in zip(*config.data.crops.values(), strict=True))
    shape = (PREFETCH * workers + 1 if workers else 1, share, h, w)
    images = torch.empty(*shape, len(samples.fill), dtype=torch.uint8)
    labels = torch.empty(shape, dtype=torch.uint8)
    if workers:
        _share(images, labels)
    filled = delivered(
        samples,
        workers,
        batch_sampler=StepPositions(start, config.steps, config.batch_size, rank, world_size, config.accumulate, ranks),
        collate_fn=_Slots(images, labels, config.batch_size),
        prefetch_factor=PREFETCH if workers else None,
    )
    batches = _batches(filled, images, labels, samples)
    return batches if workers else ahead(batches)


def processes(config: Experiment) -> int:
    """How many loader processes a rank starts: config.data.workers, or what was measured to be fast for the device.

    Where a CPU trains, a process takes as much from the step as a thread that reads ahead, and costs its start and a
    copy of every batch. A GPU leaves the cores of its host to as many as 4.
    """
    if config.data.workers is not None:
        return config.data.workers
    if config.device == "cpu" or not torch.cuda.is_available():
        return 0
    return min(4, max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


def ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, read in a thread of this process while the caller works on the one before.

    Decoding and resizing release Python's lock. Nothing is copied between processes, and where the caller's threads
    wait for each other the reader takes the time; its own operations use one thread.
    """
    threads, end = torch.get_num_threads(), object()

    def read() -> Iterator[Any]:
        # torch gives a new thread its number at the first question or operation, which would replace one set before.
        torch.get_num_threads()
        torch.set_num_threads(1)
        yield "started"
        yield from batches

    reader = read()
    with closing(ordered(lambda _: next(reader, end), repeat(None))) as reading:
        next(reading)
        torch.set_num_threads(threads)  # what the reader set also counts for threads that start later
        for batch in reading:
            if batch is end:
                return
            yield batch


def _share(*tensors: Tensor) -> None:
    """Move tensors to shared memory. InputError if it has no room: writing beyond its end would kill the process."""
    needed = sum(x.numel() for x in tensors)
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
    try:
        if free < needed:
            raise RuntimeError
        for x in tensors:
            x.share_memory_()
    except RuntimeError as error:  # torch's own, if another rank has taken the rest in the meantime
        raise InputError(
            f"{SHARED_MEMORY} has {free} bytes free, but the loader's workers need {needed} for their batches: use "
            "fewer --workers (0 needs no shared memory), or a larger --shm-size of docker run"
        ) from error


def _batches(
    filled: Iterator[tuple[int, list[int]]], images: Tensor, labels: Tensor, samples: "TrainingSamples"
) -> Iterator[list[Tensor]]:
    pinned = torch.cuda.is_available()
    for slot, positions in filled:
        h, w = samples.config_at(positions[0]).crop
        parts = images[slot, :, :h, :w], labels[slot, :, :h, :w]
        taken = [torch.empty(x.shape, dtype=x.dtype, pin_memory=pinned).copy_(x) for x in parts]
        yield [taken[0].permute(0, 3, 1, 2), taken[1], torch.tensor(positions)]
