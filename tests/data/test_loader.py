import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from emanet.data import loader
from emanet.data.datasets import open_dataset
from emanet.data.loader import StepPositions, training_loader
from emanet.data.transforms import TrainingSamples
from emanet.errors import InputError
from emanet.experiments import load_experiment, override


def samples(config):
    return TrainingSamples(open_dataset(config, config.train_split), config, (124, 116, 104), 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_ends_in_its_own_words(scenes, workers):
    config = override(
        load_experiment("drawn"),
        {"data.dataset": str(scenes), "data.workers": workers, "data.crop": (33, 33), "batch_size": 6, "steps": 1},
    )
    (scenes / "train" / "images" / "0003.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="0003.jpg") as error:
        list(training_loader(samples(config.data), config, 0, 0, 1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_and_evaluation_report_a_bad_file_with_the_same_words(scenes, workers, model):
    from emanet.evaluate import evaluate
    from emanet.loading import load

    (scenes / "val" / "masks" / "0001.png").write_bytes(b"no mask")
    config = override(load_experiment("drawn"), {"data.dataset": str(scenes), "data.train_split": "val"})
    config = override(config, {"data.workers": workers, "data.crop": (33, 33), "batch_size": 3, "steps": 1})
    said = []
    for work in (
        lambda: list(training_loader(samples(config.data), config, 0, 0, 1)),
        lambda: evaluate(load(model), open_dataset(config.data, "val"), workers=workers),
    ):
        with pytest.raises(InputError, match="0001.png") as error:
            work()
        said.append(str(error.value))
    assert said[0] == said[1]
    assert not multiprocessing.active_children(), "the workers have ended"


def of_files(scenes, **changes):
    changes = {"data.dataset": str(scenes), "data.crop": (33, 33), "batch_size": 2} | changes
    config = override(load_experiment("drawn"), changes)
    return samples(config.data), config


def test_too_little_shared_memory_is_a_sentence_before_any_worker_starts(scenes, monkeypatch):
    train, config = of_files(scenes, **{"data.workers": 2, "data.crop": (513, 513), "batch_size": 16})
    needed = 9 * 16 * 513 * 513 * 4
    message = f"^/dev/shm has 67108864 bytes free, .* need {needed} for .*: use fewer --workers .* --shm-size of"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**26, 0, 2**26))
        patch.setattr(loader, "SHARED_MEMORY", Path("/dev/shm"))
        patch.setattr(Path, "is_dir", lambda path: True)
        with pytest.raises(InputError, match=message):
            training_loader(train, config, 0, 0, 1)
        training_loader(train, override(config, {"data.workers": 0}), 0, 0, 1)

    def full(tensor):  # by another rank, after we looked
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(InputError, match=f"need {needed}"):
        training_loader(train, config, 0, 0, 1)


@pytest.mark.parametrize("waits", [True, False], ids=["while it waits", "while the caller computes"])
def test_a_worker_that_is_killed_is_a_sentence(scenes, waits, monkeypatch):
    polling = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(polling, "__defaults__", (0.5,))  # seconds, of 5
    handling = torch.utils.data._utils.signal_handling
    monkeypatch.setattr(handling, "_SIGCHLD_handler_set", False)
    if not waits:
        handling._set_SIGCHLD_handler()  # as after an evaluation in the same process
    train, config = of_files(scenes, **{"data.workers": 1, "steps": 40})
    batches = training_loader(train, config, 0, 0, 1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP if waits else signal.SIGKILL)
    if waits:
        threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL)).start()
    else:
        time.sleep(0.3)  # torch's own handler of the signal would raise here
    with pytest.raises(InputError, match=r"has died, .* \(DataLoader worker .*\); use fewer --workers") as error:
        list(batches)
    assert "\n" not in str(error.value)


def test_workers_that_are_spawned_give_the_same(scenes, monkeypatch):
    train, config = of_files(scenes, **{"data.workers": 1, "steps": 3})
    wanted = list(training_loader(train, override(config, {"data.workers": 0}), 1, 0, 1))
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        found = list(training_loader(train, config, 1, 0, 1))
    finally:
        multiprocessing.set_start_method(method, force=True)
    for batch, other in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


@pytest.mark.parametrize("passes", [1, 2])
def test_another_number_of_ranks_has_the_same_images_in_every_pass(passes):
    def of(world, ranks=0):
        """(steps, passes, images): each pass's images of all ranks, in the order of the ranks."""
        own = [[*StepPositions(1, 4, 12, rank, world, passes, ranks)] for rank in range(world)]
        return np.array(own).reshape(world, 3, passes, -1).transpose(1, 2, 0, 3).reshape(3, passes, -1)

    assert [*StepPositions(1, 4, 12, 1, 3, passes)] == [list(range(12 * step + 4, 12 * step + 8)) for step in (1, 2, 3)]
    for world in (1, 2, 3, 6):
        for ranks in (1, 2, 3):
            assert np.array_equal(of(world, ranks), of(ranks)), (world, ranks)
    assert np.array_equal(of(2), of(1)) == (passes == 1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("last_crop", [(65, 49), (17, 49)], ids=["larger", "lower and wider"])
def test_the_last_steps_have_crops_of_their_own_wherever_a_run_is_resumed(scenes, workers, last_crop):
    changes = {"data.workers": workers, "data.last_crop": last_crop, "data.last_share": 0.5, "steps": 4}
    _, config = of_files(scenes, **changes)
    train = TrainingSamples(open_dataset(config.data, "train"), config.data, (124, 116, 104), 0, last_from=4)
    whole = list(training_loader(train, config, 0, 0, 1))
    assert [tuple(labels.shape[1:]) for _, labels, _ in whole] == [(33, 33)] * 2 + [last_crop] * 2
    for images, labels, positions in whole:
        for image, target, position in zip(images, labels, positions, strict=True):
            own = train[int(position)]
            assert torch.equal(image, own[0]) and torch.equal(target, own[1])
    for start in (1, 3):
        for batch, other in zip(training_loader(train, config, start, 0, 1), whole[start:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_more_workers_than_the_system_allows_is_a_sentence(scenes, monkeypatch):
    def refused(*_):
        raise OSError(24, "Too many open files")

    train, config = of_files(scenes, **{"data.workers": 2})
    monkeypatch.setattr(torch.utils.data.dataloader.DataLoader, "__iter__", refused)
    with pytest.raises(InputError, match="^cannot start 2 processes that read samples: Too many open files; use fewer"):
        next(training_loader(train, config, 0, 0, 1))


def test_without_workers_a_thread_reads_one_batch_ahead_and_ends_with_the_iterator():
    """It draws nothing from the caller's generator, and the caller keeps its number of threads."""
    taken, before, threads, running = [], torch.get_rng_state(), torch.get_num_threads(), threading.active_count()

    def batches():
        time.sleep(0.05)  # torch's first operation comes after the caller has gone on
        for i in range(9):
            taken.append((i, threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
            yield i

    torch.set_num_threads(2)
    try:
        reading = loader.ahead(batches())
        assert next(reading) == 0 and torch.get_num_threads() == 2
        assert next(reading) == 1
        time.sleep(0.1)
        assert taken == [(i, False, 1) for i in range(3)], "and no further"
        reading.close()
        assert threading.active_count() == running and len(taken) == 3
        assert list(loader.ahead(iter([]))) == [] and list(loader.ahead(iter("ab"))) == ["a", "b"]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_draws_nothing_from_the_callers_generator(scenes):
    train, config = of_files(scenes, **{"data.workers": 0, "steps": 2})
    before = torch.get_rng_state()
    assert len(list(training_loader(train, config, 0, 0, 1))) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_of_the_reader_arrives_behind_the_batches_before_it():
    def broken():
        yield 1
        raise InputError("torn")

    reading = loader.ahead(broken())
    assert next(reading) == 1
    with pytest.raises(InputError, match="^torn$"):
        next(reading)


def test_how_many_processes_read_follows_the_machine_unless_it_is_set(monkeypatch):
    config = override(load_experiment("drawn"), {"data.workers": None})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert loader.processes(config) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16), raising=False)
    assert loader.processes(config) == 4 and loader.processes(override(config, {"device": "cpu"})) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader.processes(config) == 3 and loader.processes(override(config, {"data.workers": 7})) == 7
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(2))
    assert loader.processes(config) == 1
