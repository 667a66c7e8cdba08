"""Processes: what does nothing with one of them and is exact with several."""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import InputError, Interrupted, some

# What keeps DDP from sending buffers around at every step. The option has another name in new versions.
_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
KEEP_BUFFERS = {"forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers": False}


def init(device: torch.device) -> None:
    """Join the group that torchrun announces in the environment; nothing without torchrun."""
    if "RANK" in os.environ and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        store, rank, world = next(dist.rendezvous("env://"))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # torchrun's own store outlives a restart, and holds the addresses of processes that have ended
            # (github.com/pytorch/pytorch/issues/135712).
            store = dist.PrefixStore(f"restart {restarts()[0]}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(minutes=30))


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """The end of another rank, which comes as whatever the backend raises, as an InputError."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        text = str(error)
        if world_size() == 1 or not (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text):
            raise
        first = text.splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        raise InputError(f"rank {rank()} ends, as another one has ended or cannot be reached: {first}") from error


def restarts() -> tuple[int, int]:
    """How often torchrun --max-restarts has started this training again, and how often it may."""
    names = "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"
    done, allowed = (int(os.environ.get(name, 0)) for name in names)
    return done, allowed


def shutdown() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def pick_device(name: str) -> torch.device:
    """`auto`: this rank's CUDA device if there is one, else the CPU. InputError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"no device {name!r}: it is auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"no device {name!r}: it is auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"no device {name!r}: torch finds {torch.cuda.device_count()} CUDA devices here")
        torch.cuda.set_device(device)
    return device


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's tensor, in place; the same bits on every rank. Carries no gradient."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def take_rank_zeros(tensors: Iterable[Tensor]) -> None:
    """Every rank's tensors become those of rank 0, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def first_on_rank_zero(work: Callable[[], None]) -> None:
    """Run work on rank 0 alone, the others waiting; where it fails, every rank ends."""
    failed = torch.zeros(1)
    try:
        if rank() == 0:
            work()
    except BaseException:
        failed += 1
        raise
    finally:
        if world_size() > 1:
            failed = failed.to("cuda" if dist.get_backend() == "nccl" else "cpu")
            dist.all_reduce(failed)
    if failed.item():
        raise SystemExit(2)  # rank 0 has said why


def gather(value: Any) -> list[Any]:
    """Every rank's value, by rank; values that pickle takes."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def agree(**facts: object) -> None:
    """Every rank ends unless each fact is the same on all of them; rank 0 says which is not."""
    every = gather(facts)
    for name in dict.fromkeys(name for own in every for name in own):
        values = [own.get(name) for own in every]
        odd = [f"{value} on rank {i}" for i, value in enumerate(values) if value != values[0]]
        if odd:
            end(InputError(f"the ranks differ in {name}: {values[0]} on rank 0, but {some(odd)}"))


def end(why: InputError | Interrupted) -> NoReturn:
    """On all ranks for the same reason, which rank 0 tells."""
    raise why if rank() == 0 else SystemExit(why.exit_code)
