import json

import numpy as np
import pytest
import torch
from conftest import run_cli, sentence

from emanet import train as training
from emanet.analysis.replay import replay
from emanet.data.datasets import open_dataset
from emanet.errors import InputError
from emanet.experiments import override
from emanet.run import skipped

BAD = 4


@pytest.fixture
def tiny(tiny, scenes):
    """With few images to validate."""
    return override(tiny, {"data.dataset": str(scenes)})


def breaks(monkeypatch, how, step=BAD):
    """A module that gives what is not finite, in this step of every run."""
    original = training.step

    def at(run, step_net, batch, stop):
        if run.state.step != step:
            return original(run, step_net, batch, stop)
        with how(run):
            return original(run, step_net, batch, stop)

    monkeypatch.setattr(training, "step", at)


class Overflow:
    """The EM attention unit's second convolution gives inf for the second image."""

    def __init__(self, run):
        self.module = run.net.head.emau.conv_out

    def __enter__(self):
        forward = self.module.forward
        self.module.forward = lambda x: self.change(forward(x))

    def __exit__(self, *_):
        del self.module.forward

    def change(self, output):
        output = output.clone()
        output[1, 3, 2, :2] = torch.inf
        return output


class SteepGradient(Overflow):
    """Its gradient is infinite, though its values are finite."""

    def change(self, output):
        return output + (output - output.detach()).abs().sqrt()  # whose slope at 0 is infinite


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_bad_step_is_shown_again_without_a_change_to_the_run(tiny, tmp_path, monkeypatch, capsys):
    """From a checkpoint two steps before, with the same dropout: the same image has it at the same place."""
    breaks(monkeypatch, Overflow)
    config = override(tiny, {"save_every": 3, "keep_last": 9, "model.head.dropout": 0.3, "log_every": 1})
    training.train(config, tmp_path / "run")
    before, row = files(tmp_path / "run"), capsys.readouterr().out
    facts = json.loads((tmp_path / "run" / "skipped" / "000004.json").read_text())
    assert facts["step"] == BAD and facts["seed"] == config.seed and facts["ranks"] == 1
    assert facts["positions"] == list(range(16, 20)) and facts["loss"] in ("nan", "inf")
    assert f"the batch {', '.join(facts['images'])}\n" in row
    done = run_cli("train", tmp_path / "run", "--replay", BAD)
    assert done.returncode == 0, done.stderr
    first, figures, place = done.stdout.splitlines()
    assert first == (f"step 4 from checkpoints/000003, computing steps 3 to 3 again: {', '.join(facts['images'])}")
    assert figures.startswith(f"the loss is {facts['loss']}, the gradient's norm nan")
    assert place == (
        "the first value that is not finite is in the forward pass, the output of head.emau.conv_out (Conv2d): 2 of "
        f"1,600 values, infinite, in 1 of the 4 images: {facts['images'][1]}"
    )
    assert files(tmp_path / "run") == before


def test_the_gradients_are_watched_too(tiny, tmp_path, monkeypatch):
    breaks(monkeypatch, SteepGradient)
    training.train(tiny, tmp_path / "run")
    said = replay(training.load_experiment(str(tmp_path / "run")), tmp_path / "run", BAD)
    assert said.startswith(
        "the first value that is not finite is in the backward pass, the gradient of head.emau.conv_out.weight: 256"
    )


def test_the_weights_of_skipped_steps_are_kept_if_asked(tiny, tmp_path, monkeypatch, capsys):
    """Of the first ones only. The step starts from them, though there is no checkpoint before it."""
    breaks(monkeypatch, Overflow)
    breaks(monkeypatch, Overflow, step=5)
    folder = tmp_path / "run"
    training.train(override(tiny, {"keep_skipped": 1, "optim.average": 0.9}), folder)
    assert [path.name for path in sorted((folder / "skipped").iterdir())] == ["000004", "000004.json", "000005.json"]
    monkeypatch.undo()
    capsys.readouterr()
    said = replay(training.load_experiment(str(folder)), folder, BAD)
    assert capsys.readouterr().out.startswith("step 4 from skipped/000004: ")
    assert said == "every value of it is finite, but in the run the loss was nan, the gradient's norm nan"


def test_weights_that_are_not_finite_are_named_first(tiny, tmp_path, monkeypatch):
    training.train(tiny, tmp_path / "run")
    config, prepare = training.load_experiment(str(tmp_path / "run")), training.prepare

    def spoiled(*arguments, **options):
        run = prepare(*arguments, **options)
        with torch.no_grad():
            run.net.head.classifier.bias[1] = torch.nan
        return run

    monkeypatch.setattr(training, "prepare", spoiled)
    said = replay(config, tmp_path / "run", 0)
    assert said == (
        "the first value that is not finite is in the weights before the step, head.classifier.bias: 1 of 8 values, NaN"
    )


def test_nan_in_the_bands_of_an_image_is_ignored_not_learned(tiny, tmp_path):
    """Such pixels are hidden: their labels do not count, and the loss stays finite."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for i in range(4):
            image = rng.random((40, 40, 2), np.float32)
            image[: 40 if i == 0 else 3] = np.nan  # all of one image
            np.save(root / split / "images" / f"{i}.npy", image)
            np.save(root / split / "masks" / f"{i}.npy", rng.integers(0, 2, (40, 40)).astype(np.uint8))
    (root / "dataset.json").write_text(json.dumps({"classes": ["a", "b"], "range": [0, 1]}))
    changes = {"model.mean": (0.5,), "model.std": (0.5,), "model.backbone.in_channels": 2, "data.dataset": str(root)}
    config = override(tiny, changes)
    assert (open_dataset(training.resolve(config.data), "train", 2).read(0)[1] == 255).all()
    training.train(config, tmp_path / "run")
    assert skipped.steps(tmp_path / "run") == []


def test_what_cannot_be_replayed_is_said(tiny, tmp_path):
    training.train(override(tiny, {"steps": 1}), tmp_path / "run")
    for arguments, message in (
        (["--replay", "6"], "--replay 6: the run has steps 0 to 0; skipped were none"),
        (["--replay", "0", "--resume"], "--replay looks at a step of the run and writes nothing; leave out --resume"),
        (["--replay", "0", "--steps", "7"], "cannot be resumed with other settings: steps 1 -> 7"),
    ):
        assert message in sentence(run_cli("train", tmp_path / "run", *arguments))


def test_only_runs_can_be_replayed(scenes):
    assert "drawn is not a run folder" in sentence(run_cli("train", "drawn", "--replay", 1))
    assert "to repeat a step of a run, name its folder" in sentence(run_cli("train", scenes, "--replay", 1))
    with pytest.raises(InputError, match="without torchrun"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        replay(None, None, 0)
