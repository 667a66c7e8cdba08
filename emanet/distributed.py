"""Collective operations of the processes of one run (ranks): no-ops with one rank, exact with several."""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import InputError, Interrupted, some

# DDP must not send buffers around at every step. The option has another name in new versions of torch.
_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
KEEP_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers": False
}


def init(device: torch.device) -> None:
    """Join the group that torchrun announces in the environment; does nothing without torchrun."""
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
    """Turn the error that a backend raises when another rank ends into an InputError."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        text = str(error)
        if world_size() == 1 or not (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text):
            raise
        first = text.splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        raise InputError(f"rank {rank()} stops: another one has ended or cannot be reached: {first}") from error


def restarts() -> tuple[int, int]:
    """How often torchrun --max-restarts has restarted this run, and how often it may."""
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


def pick_device(name: str, *, training: bool = False) -> torch.device:
    """`auto`: this rank's CUDA device if there is one, else a Mac's GPU, else the CPU.

    training: not on a Mac's GPU, which has no float64 for the sums over pixels. InputError if the device does not exist
    or cannot train.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available() and not training
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"no device {name!r}: use auto, cpu, cuda, cuda:N or mps") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"no device {name!r}: use auto, cpu, cuda, cuda:N or mps")
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("no device 'mps': torch finds no GPU of a Mac here; use --device cpu")
        if training:
            raise InputError("training sums in float64, which a Mac's GPU does not have; use --device cpu")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"no device {name!r}: torch finds {torch.cuda.device_count()} CUDA devices here")
        torch.cuda.set_device(device)
    return device


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over all ranks; the same bits on every rank. No gradient flows through it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def take_rank_zeros(tensors: Iterable[Tensor]) -> None:
    """Overwrite every rank's tensors with those of rank 0."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def first_on_rank_zero(work: Callable[..., object], *arguments: Any) -> None:
    """Call work(*arguments) on rank 0 while the others wait. If it fails, every rank ends."""
    failed = torch.zeros(1)
    try:
        if rank() == 0:
            work(*arguments)
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
    """Every rank's value, by rank. The values are pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def agree(facts: Mapping[str, object]) -> None:
    """End every rank unless each fact has the same value on all of them; rank 0 names one that differs."""
    every = gather(facts)
    for name in dict.fromkeys(name for own in every for name in own):
        values = [own.get(name) for own in every]
        odd = [f"{value} on rank {i}" for i, value in enumerate(values) if value != values[0]]
        if odd:
            end(InputError(f"the ranks differ in {name}: {values[0]} on rank 0, but {some(odd)}"))


def end(why: InputError | Interrupted) -> NoReturn:
    """End every rank for the same reason, which rank 0 reports. Call it on all ranks."""
    raise why if rank() == 0 else SystemExit(why.exit_code)
