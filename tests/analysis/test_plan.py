import dataclasses
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import run_cli
from PIL import Image

from emanet.analysis import plan as module
from emanet.analysis.plan import (
    Machine,
    Measured,
    choose_batch,
    choose_crop,
    choose_evaluation,
    choose_loss,
    choose_network,
    choose_optimiser,
    choose_pixels,
    choose_steps,
    plan,
    plan_command,
    waiting,
    warnings,
)
from emanet.config import DatasetSpec
from emanet.data.fingerprint import ClassFacts, Fingerprint
from emanet.errors import InputError
from emanet.experiments import flatten, load_experiment

CPU = Machine("cpu", "2 CPU cores", 2, 8 << 30, True)
GPU = Machine("cuda", "A GPU", 16, 40 << 30, True)
MEASURED = Measured(batch=8, step=1.6, sample=0.01, validation=0.1, fixed=1 << 30, image=float(1 << 28))
SPEC = DatasetSpec(classes=("sky", "pole"))


def facts(**more) -> Fingerprint:
    classes = ClassFacts(900_000, 300, 80.0), ClassFacts(9_000, 250, 5.0)
    sizes = ((360, 480),) * 3
    values = {"train": 300, "val": 100, "read": 300, "sizes": sizes, "channels": 3, "classes": classes, "ignored": 0.0}
    return Fingerprint(**{**values, "mean": (0.4, 0.4, 0.4), "std": (0.2, 0.2, 0.2), "read_val": 100, **more})


def values(settings) -> dict:
    return {name: value for name, (value, _) in settings.items()}


def test_a_cpu_gets_a_small_network_and_a_gpu_the_papers():
    small, large = values(choose_network(facts(), CPU)), values(choose_network(facts(), GPU))
    assert small["model.head.name"] == "ema_fusion" and small["model.backbone.output_stride"] == 32
    assert large["model.backbone.name"] == "resnet50s" and large["precision"] == "bf16"


def test_a_small_gpu_gets_the_small_network_with_its_own_optimiser():
    small = Machine("cuda", "", 8, 4 << 30, True)
    assert values(choose_network(facts(), small))["model.head.name"] == "ema_fusion"
    assert choose_optimiser(facts(), small) == choose_optimiser(facts(), CPU) != choose_optimiser(facts(), GPU)
    assert "precision" not in choose_network(facts(), Machine("cuda", "", 16, 40 << 30, True, bf16=False))


def test_the_thinnest_class_decides_what_is_kept():
    thick = facts(classes=(ClassFacts(10, 1, 60.0), ClassFacts(10, 1, 50.0), ClassFacts(0, 0, 0.0)))
    for thin, fields in ((True, facts()), (False, thick)):
        assert values(choose_network(fields, CPU))["model.head.fc1_channels"] == (64 if thin else 0)
        assert values(choose_network(fields, GPU))["model.backbone.output_stride"] == (8 if thin else 16)


def test_weights():
    away = Machine("cpu", "", 2, 8 << 30, False)
    assert "model.backbone.pretrained" not in choose_network(facts(), CPU)
    assert values(choose_network(facts(), away))["model.backbone.pretrained"] is False
    assert "random weights" in " ".join(warnings(facts(), SPEC, away))
    named = Machine("cpu", "", 2, 8 << 30, False, "weights.safetensors")
    assert values(choose_network(facts(), named))["model.backbone.pretrained"] == "weights.safetensors"
    assert not warnings(facts(), SPEC, named)


def test_weights_that_are_not_there_are_refused_before_anything_is_measured(scenes):
    with pytest.raises(InputError, match=r"there is no file nowhere.pth of weights"):
        plan(str(scenes), weights="nowhere.pth")


def test_the_hub_and_its_cache(monkeypatch, tmp_path):
    """A machine without network may have the weights, and one behind a proxy may reach them."""
    where = SimpleNamespace(HF_HUB_OFFLINE=True, ENDPOINT="http://127.0.0.1:9")
    monkeypatch.setattr(module, "constants", where)
    assert not module._online()
    where.HF_HUB_OFFLINE = False
    assert not module._online()
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda repository, file: object())  # known to be absent
    assert not module.this_machine("cpu").online
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda repository, file: str(tmp_path / file))
    assert module.this_machine("cpu").online


@pytest.mark.parametrize("status", [200, 403])
def test_any_answer_of_the_hub_counts(monkeypatch, status):
    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        where = SimpleNamespace(HF_HUB_OFFLINE=False, ENDPOINT=f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(module, "constants", where)
        assert module._online()


def test_memory_of_a_container(monkeypatch, tmp_path):
    """8 GiB allowed, 7 used, of which 5 are files that the kernel drops on demand."""
    texts = {"memory.max": 8 << 30, "memory.current": 7 << 30, "memory.stat": f"anon 1\ninactive_file {5 << 30}"}
    for name, text in texts.items():
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {64 << 20} kB\n")
    places = {"/sys/fs/cgroup": tmp_path, "/proc/meminfo": tmp_path / "meminfo"}
    monkeypatch.setattr(module, "Path", places.__getitem__)
    assert module._free_memory() == 6 << 30
    (tmp_path / "memory.max").write_text("max\n")
    assert module._free_memory() == 64 << 30


@pytest.mark.parametrize(
    "size, crop, scales",
    [
        ((360, 480), (320, 320), (0.75, 2.0)),
        ((50, 50), (64, 64), (0.75, 2.0)),
        ((512, 1024), (320, 320), (0.7, 1.5)),
        ((4000, 6000), (320, 320), (0.25, 1.5)),
    ],
)
def test_crops_fit_the_images_and_the_grid(size, crop, scales):
    found = values(choose_crop(facts(sizes=(size,) * 3), CPU))
    assert found["data.crop"] == crop and found["data.scales"] == scales


def test_classes_are_weighted_if_one_is_rare():
    assert values(choose_loss(facts(), CPU))["loss.class_weights"] == (0.7, 5.0)
    even = facts(classes=(ClassFacts(100, 1, 5.0), ClassFacts(50, 1, 5.0)))
    assert "loss.class_weights" not in choose_loss(even, CPU)
    absent = facts(classes=(ClassFacts(900, 1, 5.0), ClassFacts(0, 0, 0.0), ClassFacts(9, 1, 5.0)))
    assert values(choose_loss(absent, CPU))["loss.class_weights"][1] == 1.0


def test_other_channels_get_their_own_mean():
    found = values(choose_pixels(facts(channels=4, mean=(0.1,) * 4, std=(0.3,) * 4), CPU))
    assert found["model.backbone.in_channels"] == 4 and found["model.mean"] == (0.1,) * 4
    assert not choose_pixels(facts(), CPU)
    assert "data.colour" not in choose_crop(facts(channels=4), CPU)


def test_large_images_are_evaluated_in_windows():
    assert values(choose_evaluation(facts(), CPU))["eval.mode"] == "whole"
    assert values(choose_evaluation(facts(sizes=((3000, 4000),)), CPU))["eval.mode"] == "slide"


def test_a_batch_that_does_not_fit_is_split_into_passes():
    assert choose_batch(8, MEASURED, CPU)[:2] == (8, 1)
    assert choose_batch(8, MEASURED, Machine("cpu", "", 2, 3 << 30, True))[:2] == (8, 4)
    assert choose_batch(8, MEASURED, Machine("cpu", "", 2, 1 << 30, True))[:2] == (8, 4)


def test_steps_fill_the_time_with_its_validations():
    """8 images take 1.6 s + 8 * 0.01 s; a validation takes 10 s."""
    found = values(choose_steps(facts(), MEASURED, 8, 3600, 1))
    assert found["steps"] == int((3600 - 15 - 4 * 10) / 1.68) and found["val_every"] == -(-found["steps"] // 4)
    assert "val_every" not in choose_steps(facts(), MEASURED, 8, 200, 0.05)
    steps, why = choose_steps(facts(train=20), MEASURED, 8, 1e6, 300)["steps"]
    assert steps == 2000 and "after 800 epochs more only repeat" in why  # not for ever
    with pytest.raises(InputError, match="0.01 hours are too few: 20 steps and a validation take 0.02 hours here"):
        choose_steps(facts(), MEASURED, 8, 36, 0.01)


def test_workers_read_while_a_gpu_computes():
    assert waiting(0.08, 0.01, 8, GPU) == 0 and waiting(0.2, 0.01, 8, GPU) == pytest.approx(0.015)
    assert waiting(0.2, 0.01, 0, GPU) == 0.2
    assert waiting(0.08, 0.1, 0, CPU) == 0.08 and waiting(0.08, 0.1, 4, CPU) == 0.02


def test_only_missing_memory_is_called_so(scenes, monkeypatch):
    for text, kind in (("DefaultCPUAllocator: can't allocate memory", InputError), ("a fault", RuntimeError)):

        def fail(*arguments, text=text):
            raise RuntimeError(text)

        monkeypatch.setattr(module, "peak_memory", fail)
        with pytest.raises(kind, match="not enough memory|a fault"):
            plan(str(scenes))


def test_without_pretrained_weights_a_cpu_gets_a_small_network():
    alone = Machine("cpu", "2 CPU cores", 2, 8 << 30, online=False)
    chosen = values(choose_network(facts(), alone))
    assert chosen["model.backbone.name"] == "test_resnet" and chosen["model.backbone.output_stride"] == 8
    assert chosen["model.backbone.pretrained"] is False and "model.head.name" not in chosen
    assert values(choose_optimiser(facts(), alone))["optim.lr"] == 3e-3
    assert values(choose_crop(facts(), alone))["data.scales"] == (0.9, 1.1)
    small = facts(sizes=((145, 145),) * 3)
    assert values(choose_optimiser(small, alone))["batch_size"] == 16
    for machine in (CPU, dataclasses.replace(alone, weights="w.safetensors")):
        assert values(choose_network(facts(), machine))["model.backbone.name"] == "mobilenetv2_100"
        assert values(choose_optimiser(facts(), machine))["optim.lr"] == 2e-3
        assert values(choose_optimiser(small, machine))["batch_size"] == 8


def test_what_a_person_should_know():
    text = " ".join(warnings(facts(twins=3, classes=(ClassFacts(9, 4, 3.0), ClassFacts(0, 0, 0.0))), SPEC, CPU))
    for part in ("3 of 100 validation images nearly equal", "shows pole", "few images show sky (4)"):
        assert part in text


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path):
    (tmp_path / "file").touch()
    for out, why in (("plan.txt", r"an experiment is a .py file: --out plan.py"), ("file/plan.py", "cannot write")):
        with pytest.raises(InputError, match=why):
            plan_command(str(tmp_path / out), data="unused")


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(module, "measure", lambda *arguments: MEASURED)
    monkeypatch.setattr(module, "_online", lambda: True)


def test_the_command_writes_a_file_once(scenes, tmp_path, measured):
    out = tmp_path / "plan.py"
    done = run_cli("plan", scenes, "--hours", ".2", "--out", out)
    assert done.returncode == 0 and "6 training images, 3 for validation" in done.stdout and "train" in done.stdout
    planned = load_experiment(str(out))
    assert planned.data.dataset == str(scenes) and planned.steps == 2000 or planned.steps > 100
    assert flatten(planned)["model.head.name"] == "ema_fusion"
    again = run_cli("plan", scenes, "--out", out)
    assert again.returncode == 2 and "exists; name another file" in again.stderr
    assert run_cli("plan", scenes, "--hours", "0").returncode == 2
    shown = run_cli("plan", scenes, "--hours", ".2").stdout
    assert "config = Experiment(" in shown


def test_a_real_measurement(scenes):
    """Everything is measured on a tiny crop; the time is honest: no step takes less than nothing."""
    planned = plan(str(scenes), hours=0.05)
    assert planned.experiment.data.crop == (128, 128) and planned.experiment.steps >= 20
    assert re.search(r"\d\.\d\d s a step here \(measured\)", planned.text)


def test_a_data_set_of_four_channels(scenes, tmp_path, measured, monkeypatch):
    monkeypatch.setattr(module, "_online", lambda: False)  # as nothing is downloaded, random weights
    for path in scenes.glob("*/images/*.jpg"):
        rgb = np.asarray(Image.open(path))
        np.save(path.with_suffix(".npy"), np.concatenate([rgb, 255 - rgb[..., :1]], 2))
        path.unlink()
    planned = plan(str(scenes), channels=4).experiment
    assert planned.model.backbone.in_channels == len(planned.model.mean) == len(planned.model.std) == 4
    short = (
        "--steps",
        "1",
        "--optim.warmup-steps",
        "0",
        "--val-every",
        "0",
        "--batch-size",
        "2",
        "--data.crop",
        "33",
        "33",
    )
    four = "--model.backbone.in-channels", "4"
    done = run_cli("train", scenes, "--hours", ".1", "--out", tmp_path / "run", *short, *four)
    assert done.returncode == 0, done.stderr
    assert len(load_experiment(str(tmp_path / "run")).model.mean) == 4


def test_train_on_a_folder_runs_its_plan(scenes, tmp_path, measured):
    run, short = (
        tmp_path / "run",
        ("--steps", "2", "--optim.warmup-steps", "0", "--val-every", "0", "--batch-size", "2"),
    )
    small = "--model.backbone.name", "mobilenetv2_035", "--model.backbone.no-pretrained", "--data.crop", "64", "64"
    pretrained = "--model.backbone.pretrained", "False"
    done = run_cli("train", scenes, "--hours", ".1", "--out", run, *short, *small[:2], *pretrained, *small[3:])
    assert done.returncode == 0, done.stderr
    kept = load_experiment(str(run / "plan.py"))
    trained = load_experiment(str(run))
    assert (trained.steps, trained.model.head.name) == (2, kept.model.head.name) and kept.steps > 2
    assert run_cli("train", scenes, "--resume").returncode == 2
    assert run_cli("train", run, "--resume").returncode == 0


def test_several_processes_do_not_plan(scenes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run_cli("train", scenes)
    assert done.returncode == 2 and f"first python -m emanet plan {scenes} --out plan.py" in done.stderr


def test_a_folder_without_a_description(tmp_path):
    (tmp_path / "photos").mkdir()
    done = run_cli("train", tmp_path / "photos")
    assert done.returncode == 2 and "holds no dataset.json: write one" in done.stderr
