import contextlib
import gc
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, run_cli, sentence
from forks import run_forks
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import emanet
from emanet import train as training
from emanet.errors import InputError
from emanet.experiments import load_experiment, override, read_header, to_dict
from emanet.run.checkpoints import checkpoints
from emanet.run.log import read_log

PROGRAMS = ROOT / "tests" / "programs"
GOLDEN = ROOT / "tests" / "golden" / "loss_curve.json"


def losses(folder):
    return [line["loss"] for line in read_log(folder) if line["kind"] == "train"]


def weights(folder):
    return load_file(checkpoints(folder)[-1] / "model.safetensors")


def test_golden_loss_curve(tiny, tmp_path):
    """The whole of data, model, loss and optimiser in six numbers. Float order differs between machines: 0.1 %."""
    training.train(tiny, tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-3)


def test_a_run_folder_holds_everything(tiny, tmp_path, real_figures):
    run = tmp_path / "run"
    report = training.train(override(tiny, {"val_every": 3, "save_every": 2}), run)
    assert load_experiment(str(run)).steps == 6
    environment = json.loads((run / "environment.json").read_text())
    assert {"torch", "python", "command", "git_commit"} <= environment.keys()
    assert (run / "code" / "emanet" / "emau.py").read_text() == (ROOT / "emanet" / "emau.py").read_text()
    assert [folder.name for folder in checkpoints(run)] == ["000004", "000006"]
    assert json.loads((run / "evaluation.json").read_text())["mIoU"] == pytest.approx(report["mIoU"])
    assert {path.name for path in run.iterdir()} >= {"best.safetensors", "confusion.png", "curves.png", "log.jsonl"}
    assert sorted(path.name for path in (run / "pictures").iterdir()) == ["step_000003_0.png", "step_000006_0.png"]
    assert list((run / "tensorboard").glob("events*"))
    assert [line["step"] for line in read_log(run) if line["kind"] == "val"] == [3, 6]
    header = read_header(run / "best.safetensors")
    assert header["metrics"]["mIoU"] == max(row["mIoU"] for row in read_log(run) if row["kind"] == "val")
    assert emanet.load(run).classes == load_experiment(str(run)).data.spec.classes


def whole_and_cut(config, tmp_path, monkeypatch):
    """Runs `whole` and `cut`, which died in step 5 and was resumed: their weights are equal to the bit."""
    training.train(config, tmp_path / "whole")

    class Killed(Exception):
        pass

    advance = training.RunLog.advance

    def dies(self, step, loss, lr):
        if step == 5:
            raise Killed
        advance(self, step, loss, lr)

    monkeypatch.setattr(training.RunLog, "advance", dies)
    with pytest.raises(Killed):
        training.train(config, tmp_path / "cut")
    monkeypatch.undo()
    training.train(config, tmp_path / "cut", resume=True)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []


@pytest.mark.parametrize("changes", [{}, {"optim.average": 0.5, "optim.freeze_bn": 0.5, "data.last_crop": (41, 49)}])
def test_resumed_equals_uninterrupted_to_the_bit(tiny, tmp_path, monkeypatch, changes):
    tiny = override(tiny, changes | {"model.head.dropout": 0.3, "save_every": 2})
    whole_and_cut(tiny, tmp_path, monkeypatch)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut"), "and the log has every step once"


def test_the_saved_model_has_averaged_weights_and_training_goes_on_with_its_own(tiny, tmp_path):
    tiny = override(tiny, {"save_every": 1, "keep_last": 6, "steps": 3})
    training.train(tiny, tmp_path / "plain")
    report = training.train(override(tiny, {"optim.average": 0.5}), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "plain"), "what is trained does not change"
    averaged = None
    for step, (own, plain) in enumerate(zip(*map(checkpoints, (tmp_path / "run", tmp_path / "plain")), strict=True)):
        trained, wanted = torch.load(own / "training.pt")["trained"], load_file(plain / "model.safetensors")
        assert trained.keys() == wanted.keys() and all(torch.equal(trained[name], wanted[name]) for name in wanted)
        if averaged:
            keep = min(0.5, (1 + step) / (10 + step))
            averaged = {k: keep * averaged[k] + (1 - keep) * v for k, v in trained.items() if v.is_floating_point()}
            for name, value in averaged.items():
                torch.testing.assert_close(load_file(own / "model.safetensors")[name], value)
        averaged = load_file(own / "model.safetensors")
    best = load_file(tmp_path / "run" / "best.safetensors")
    assert all(torch.equal(best[name], averaged[name]) for name in best)
    again = run_cli("evaluate", tmp_path / "run", "--json", tmp_path / "again.json")
    assert again.returncode == 0 and json.loads((tmp_path / "again.json").read_text())["mIoU"] == report["mIoU"]


def test_an_average_starts_from_the_weights_of_init_from(tiny, tmp_path):
    training.train(override(tiny, {"steps": 1}), tmp_path / "first")
    changes = {"init_from": str(tmp_path / "first"), "optim.average": 0.9}
    run = training.prepare(override(tiny, changes), tmp_path / "second", "run", False)
    training.restore(run)
    first, averaged = weights(tmp_path / "first"), run.model.state_dict()
    assert all(torch.equal(averaged[name], first[name]) for name in first)


def test_resume_refuses_other_settings_and_runs_are_not_overwritten(tiny, tmp_path):
    run = tmp_path / "run"
    training.train(override(tiny, {"steps": 2}), run)
    with pytest.raises(InputError, match="already holds a run; continue it with --resume"):
        training.train(tiny, run)
    with pytest.raises(InputError, match=r"cannot be resumed with other settings: steps 2 -> 6"):
        training.train(tiny, run, resume=True)


def test_a_resumed_run_says_that_the_images_are_others(tiny, scenes, tmp_path, capsys):
    config = override(tiny, {"data.dataset": str(scenes), "steps": 1})
    training.train(config, tmp_path / "run")
    for kind, end in (("images", "jpg"), ("masks", "png")):
        (scenes / "train" / kind / f"0005.{end}").unlink()
    training.train(config, tmp_path / "run", resume=True)
    assert "note: train has 5 images, not those of before (6): the run" in capsys.readouterr().out


def test_a_run_that_died_before_its_first_log_line_resumes(tiny, tmp_path, monkeypatch):
    tiny = override(tiny, {"log_every": 10, "save_every": 3})
    advance = training.RunLog.advance
    monkeypatch.setattr(
        training.RunLog, "advance", lambda self, step, *a: advance(self, step, *a) if step < 5 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        training.train(tiny, tmp_path / "run")
    monkeypatch.undo()
    training.train(tiny, tmp_path / "run", resume=True)
    assert checkpoints(tmp_path / "run")[-1].name == "000006"
    assert (tmp_path / "run" / "environment-000003.json").exists()


def test_every_nth_model_stays_whenever_checkpoints_are_saved(tiny, tmp_path):
    training.train(override(tiny, {"keep_every": 2, "save_every": 5}), tmp_path / "run")
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["000002", "000004", "000005", "000006"]


def test_default_folders_are_numbered(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        training.train(override(tiny, {"steps": 1}), name="mine")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mine", "mine-2"]


def test_accumulated_passes_give_the_step_of_the_whole_batch(tiny, tmp_path):
    """Nearly: the head's BatchNorm sees one pass's images, so the losses are alike, not equal."""
    tiny = override(
        tiny, {"model.backbone.frozen": True, "model.head.name": "fcn", "steps": 1, "loss.average": "valid"}
    )
    training.train(tiny, tmp_path / "one")
    training.train(override(tiny, {"accumulate": 2}), tmp_path / "two")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one == pytest.approx(two, rel=0.05) and one != two


@pytest.mark.parametrize(
    "changes", [{"precision": "bf16"}, {"optim.name": "sgd", "optim.clip_norm": 1.0}, {"model.aux_head": True}]
)
def test_options_train(tiny, tmp_path, changes):
    training.train(override(tiny, {"steps": 2} | changes), tmp_path / "run", force=True)
    assert all(value == value and value < 100 for value in losses(tmp_path / "run"))


def test_a_teacher_changes_the_loss_and_stays_as_it_is(tiny, tmp_path, monkeypatch):
    """Resuming is exact too: the teacher is in eval mode and draws nothing."""
    tiny = override(tiny, {"model.head.dropout": 0.3, "save_every": 2})
    training.train(override(tiny, {"steps": 2}), tmp_path / "teacher")
    before = (tmp_path / "teacher" / "best.safetensors").read_bytes()
    taught = override(tiny, {"distill": str(tmp_path / "teacher"), "loss.distill_temperature": 2.0})
    whole_and_cut(taught, tmp_path, monkeypatch)
    training.train(tiny, tmp_path / "alone")
    assert all(a > b for a, b in zip(losses(tmp_path / "whole")[:1], losses(tmp_path / "alone"), strict=False))
    assert (tmp_path / "teacher" / "best.safetensors").read_bytes() == before


def test_a_teacher_of_other_classes_is_refused(tiny, tmp_path, scenes):
    training.train(override(tiny, {"steps": 1}), tmp_path / "teacher")
    spec = json.loads((scenes / "dataset.json").read_text())
    spec["classes"][0] = "air"
    (scenes / "dataset.json").write_text(json.dumps(spec))
    taught = override(tiny, {"distill": str(tmp_path / "teacher"), "data.dataset": str(scenes)})
    with pytest.raises(InputError, match="^distill: .*teacher has the classes .*, but the data set has .*'air'"):
        training.train(taught, tmp_path / "run")
    with pytest.raises(InputError, match="^loss.distill_weight is 0.5, but .*distill"):
        training.train(override(tiny, {"loss.distill_weight": 0.5}), tmp_path / "run")


def test_staged_training_says_what_was_loaded(tiny, tmp_path, scenes, capsys):
    training.train(override(tiny, {"steps": 1}), tmp_path / "first")
    spec = json.loads((scenes / "dataset.json").read_text())
    spec = {"classes": ["stuff", "thing"], "label_map": {i: int(i > 2) for i in range(len(spec["classes"]))}}
    (scenes / "dataset.json").write_text(json.dumps(spec))
    second = override(tiny, {"steps": 1, "init_from": str(tmp_path / "first"), "data.dataset": str(scenes)})
    training.train(second, tmp_path / "second")
    said = capsys.readouterr().out
    assert "2 keep their initial values: head.classifier.weight, head.classifier.bias" in said
    assert emanet.load(tmp_path / "second").classes == ("stuff", "thing")


def spoiled(monkeypatch, step, what):
    """In this step the loss, or only the gradient, has no finite value."""
    forward, steps = training.StepNet.forward, itertools.count()

    def spoil(self, images, labels, *teacher):
        loss = forward(self, images, labels, *teacher)
        if next(steps) != step:
            return loss
        if what == "loss":
            self.net.head.emau.bases.fill_(torch.nan)  # as a forward pass in which values overflowed leaves it
            return loss * torch.nan
        weight = next(p for p in self.parameters() if p.requires_grad)
        return loss + torch.sqrt(weight.flatten()[0] * 0)  # its slope at 0 is infinite

    monkeypatch.setattr(training.StepNet, "forward", spoil)


def test_norms_are_frozen_for_the_last_share_of_the_steps(tiny, tmp_path):
    """Also in the step after a validation, which ends with net.train()."""
    changes = {"optim.freeze_bn": 0.5, "save_every": 1, "keep_last": 6, "val_every": 4}
    training.train(override(tiny, changes), tmp_path / "run")
    saved = [load_file(folder / "model.safetensors") for folder in checkpoints(tmp_path / "run")]
    counts = [tensors["backbone.net.bn1.num_batches_tracked"].item() for tensors in saved]
    assert counts == [1, 2, 3, 3, 3, 3]
    assert torch.equal(saved[2]["head.emau.bn_out.running_var"], saved[5]["head.emau.bn_out.running_var"])
    assert not torch.equal(saved[2]["backbone.net.bn1.weight"], saved[3]["backbone.net.bn1.weight"])
    assert not torch.equal(saved[2]["head.emau.bases"], saved[3]["head.emau.bases"])


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_skipped_step_does_not_change_the_average(tiny, tmp_path, monkeypatch, what):
    spoiled(monkeypatch, 2, what)
    training.train(override(tiny, {"save_every": 1, "keep_last": 6, "optim.average": 0.9}), tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in checkpoints(tmp_path / "run")[1:3])
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_without_a_finite_value_changes_nothing(tiny, tmp_path, monkeypatch, capsys, what):
    tiny = override(tiny, {"save_every": 1, "keep_last": 6, "optim.momentum": 0.9})
    spoiled(monkeypatch, 2, what)
    training.train(tiny, tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in checkpoints(tmp_path / "run")[1:3])
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    said = capsys.readouterr().out
    assert "step 2 is skipped: the loss is " in said and "drawn/train/" in said
    assert "1 of 6 steps were skipped" in said
    rows = {row["step"]: row for row in read_log(tmp_path / "run") if row["kind"] == "train"}
    assert [rows[step]["skipped"] for step in (2, 4, 6)] == [0, 1, 1]
    assert "loss" not in rows[3] and rows[3]["skipped"] == 1
    last = checkpoints(tmp_path / "run")[-1] / "training.pt"
    progress = torch.load(last)["progress"]
    assert progress["skipped"] == 1 and progress["in_a_row"] == 0


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: values that Python looks at."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optim.name": "sgd", "optim.clip_norm": 1.0, "accumulate": 2},
        {"optim.average": 0.9, "optim.freeze_bn": 1.0},
    ],
)
def test_a_step_waits_for_nothing(tiny, tmp_path, changes, monkeypatch):
    config = override(tiny, changes | {"device": "cpu", "loss.average": "valid"})
    run = training.prepare(config, tmp_path / "run", "run", False)
    run.undo._may_look = False  # as on a GPU
    plain = lambda self, x, labels, *teacher: self.net.low_logits(self.net.normalise(x))[0].square().sum()  # noqa: E731
    monkeypatch.setattr(training.StepNet, "forward", plain)  # our upsampling reads tables of its own, on the CPU
    step_net = training.wrap(run)
    batches = training.training_loader(run.samples, config, 0, 0, 1)
    unread = [training.step(run, step_net, next(batches), stop=False)]  # the first one looks, see _update
    with Reads() as reads:
        unread.append(training.step(run, step_net, next(batches), stop=True))
    assert reads.count == 0
    assert [outcome.read()[3] for outcome in unread] == [0, 1] and run.state.step == 2


def test_a_gpus_newest_outcome_is_read_a_step_later(tiny, tmp_path):
    run = training.prepare(override(tiny, {"device": "cpu", "log_every": 100}), tmp_path / "run", "run", False)
    run.device = torch.device("cuda")
    unread = [training.Outcome(i, 0.1, torch.tensor([0]), torch.tensor([1.0 + i, 1, 1, i])) for i in range(2)]
    assert not training.read_outcomes(run, unread, everything=False)
    assert run.state.progress.recent == [1.0] and [outcome.step for outcome in unread] == [1]
    assert training.read_outcomes(run, unread, everything=True) and not unread
    assert run.state.progress.recent == [1.0, 2.0]


def test_a_skipped_first_step_leaves_no_trace_in_the_momentum(tiny, tmp_path, monkeypatch):
    """Fused SGD makes its momentum in its first step, and does not fill it if that is skipped on the device."""
    tiny = override(tiny, {"optim.name": "sgd", "optim.momentum": 0.9, "save_every": 1, "keep_last": 6, "steps": 3})
    spoiled(monkeypatch, 0, "loss")
    training.train(tiny, tmp_path / "run")
    first, second, _ = (torch.load(folder / "training.pt")["optimizer"] for folder in checkpoints(tmp_path / "run"))
    assert first["state"] == {}
    assert all(state["momentum_buffer"].isfinite().all() for state in second["state"].values())


def test_validations_do_not_count_for_the_speed(tiny, tmp_path, monkeypatch):
    now, step, evaluate = [0.0], training.step, training.evaluate
    monkeypatch.setattr("emanet.run.log.time.perf_counter", lambda: now[0])

    def a_second(*arguments, **options):
        now[0] += 1
        return step(*arguments, **options)

    def a_minute(*arguments, **options):
        now[0] += 60
        return evaluate(*arguments, **options)

    monkeypatch.setattr(training, "step", a_second)
    monkeypatch.setattr(training, "evaluate", a_minute)
    training.train(override(tiny, {"log_every": 2, "val_every": 3}), tmp_path / "run")
    rows = [row for row in read_log(tmp_path / "run") if row["kind"] == "train"]
    assert [row["images_per_second"] for row in rows] == pytest.approx([4, 4, 4])
    assert [row["seconds"] for row in rows] == pytest.approx([2, 64, 66])


def test_skipped_steps_have_a_limit_that_names_step_rate_and_files(tiny, tmp_path):
    wild = override(tiny, {"optim.name": "sgd", "optim.lr": 1e15, "optim.warmup_steps": 0, "skip_limit": 3})
    message = r"step \d is skipped: the loss is .*(nan|inf), the learning rate .*, the batch drawn/train/.* 3 in a row"
    with pytest.raises(InputError, match=message):
        training.train(wild, tmp_path / "run")


def test_a_limit_that_was_passed_before_is_not_stepped_over(tiny, tmp_path):
    wild = {"optim.name": "sgd", "optim.lr": 1e15, "optim.warmup_steps": 0, "steps": 8, "save_every": 5}
    with pytest.raises(InputError, match="that makes 6 in a row"):
        training.train(override(tiny, wild | {"skip_limit": 6}), tmp_path / "run")
    with pytest.raises(InputError, match="that makes 5 in a row"):
        training.train(override(tiny, wild | {"skip_limit": 2}), tmp_path / "run", resume=True)


def test_a_log_that_cannot_be_written_is_one_sentence(tiny, tmp_path, monkeypatch):
    advance = training.RunLog.advance

    def unwritable(self, step, *facts):
        if step == 3:
            (self.folder / "log.jsonl").unlink()
            (self.folder / "log.jsonl").mkdir()
        advance(self, step, *facts)

    monkeypatch.setattr(training.RunLog, "advance", unwritable)
    with pytest.raises(InputError, match="cannot write .*log.jsonl at step 3: Is a directory"):
        training.train(tiny, tmp_path / "run")


def test_a_validation_that_fails_costs_no_step(tiny, tmp_path, monkeypatch, scenes):
    def none_left(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")

    config = override(tiny, {"val_every": 3, "data.dataset": str(scenes)})
    with monkeypatch.context() as patch, pytest.raises(InputError) as raised:
        patch.setattr("emanet.evaluate.predict_labels", none_left)
        training.train(config, tmp_path / "run")
    assert str(raised.value).startswith(f"{scenes}/val/images/0000.jpg: not enough memory to")
    assert str(raised.value).endswith(f"; step 3 of 6 is saved in {tmp_path}/run; continue with --resume")
    training.train(config, tmp_path / "run", resume=True)
    assert [row["step"] for row in read_log(tmp_path / "run") if row["kind"] == "val"] == [3, 6]


def test_a_step_too_large_for_memory_costs_no_step_before_it(tiny, tmp_path, monkeypatch, scenes):
    """The buffers that its first pass has changed are as they were."""
    config, passes = override(tiny, {"accumulate": 2, "data.dataset": str(scenes)}), itertools.count(1)
    forward = training.StepNet.forward

    def limited(self, images, labels, *teacher):
        loss = forward(self, images, labels, *teacher)
        if next(passes) == 8:  # the second pass of the fourth step
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")
        return loss

    training.train(config, tmp_path / "whole")
    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match="; --resume --recompute continues from step 3$"),
    ):
        patch.setattr(training.StepNet, "forward", limited)
        training.train(config, tmp_path / "run")
    training.train(config, tmp_path / "run", resume=True)
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(tmp_path / "run").items())
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_network_that_cannot_be_compiled_is_a_sentence(tiny, tmp_path, monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    def broken(*arguments, **options):
        raise TorchDynamoException("\nno compiler\nmore")

    monkeypatch.setattr(training, "step", broken)
    with pytest.raises(InputError, match=r"could not compile the network \(no compiler\), install .* --no-compile$"):
        training.train(override(tiny, {"compile": True}), tmp_path / "run")


def test_a_step_too_large_for_memory_says_what_to_lower(tiny, tmp_path, monkeypatch):
    step = training.step

    def limited(run, *arguments, **options):
        if run.state.step == 3:
            raise MemoryError
        return step(run, *arguments, **options)

    monkeypatch.setattr(training, "step", limited)
    ways = "use --recompute, --precision bf16, a higher --accumulate (now 1) or a smaller --data.crop or --batch-size"
    start = "not enough memory on cpu for a step with 4 images of 33 x 33 pixels at once: "
    larger = "of 33 x 33 or 65 x 49 pixels at once: .* or a smaller --data.crop or --data.last-crop or --batch-size$"
    with pytest.raises(InputError, match=larger):
        training.train(override(tiny, {"data.last_crop": (65, 49)}), tmp_path / "run")
    for options, rest in (({}, ways), ({"save_every": 2}, f"{ways}; --resume --recompute continues from step 2")):
        with pytest.raises(InputError, match=f"^{re.escape(start + rest)}"):
            training.train(override(tiny, options), tmp_path / f"run{len(options)}")


def test_a_broken_checkpoint_costs_steps_not_the_run(tiny, tmp_path, capsys):
    tiny = override(tiny, {"save_every": 2})
    training.train(tiny, tmp_path / "run")
    whole = weights(tmp_path / "run")
    broken = checkpoints(tmp_path / "run")[-1]
    (broken / "training.pt").write_bytes((broken / "training.pt").read_bytes()[:-1])
    training.train(tiny, tmp_path / "run", resume=True)
    assert "training.pt: file is damaged: checksum mismatch; continuing from 000004" in capsys.readouterr().out
    again = weights(tmp_path / "run")
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    assert sorted(path.name for path in broken.parent.iterdir()) == ["000004", "000006", "000006.broken"]


def test_a_run_that_ended_before_its_results_were_written_writes_them(tiny, tmp_path, monkeypatch):
    report = training.train(tiny, tmp_path / "run")
    assert training.train(tiny, tmp_path / "run", resume=True) == report
    for path in (tmp_path / "run").glob("*.png"):
        path.unlink()
    (tmp_path / "run" / "evaluation.json").unlink()
    assert training.train(tiny, tmp_path / "run", resume=True) == report
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == report
    assert (tmp_path / "run" / "curves.png").exists()
    flipped = training.train(override(tiny, {"eval.flip": True}), tmp_path / "run", resume=True)
    assert flipped != report and json.loads((tmp_path / "run" / "evaluation.json").read_text()) == flipped
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines if row["kind"] == "val"] == [6]


def test_two_runs_do_not_share_a_folder(tiny, tmp_path):
    training.train(override(tiny, {"steps": 1}), tmp_path / "run")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, PROGRAMS / "hold_folder.py", tmp_path / "run"]
    holder = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        later = tmp_path / "run" / "checkpoints" / "000009"  # the other one's, just being written
        later.mkdir()
        with pytest.raises(InputError, match="another process is training in .*run"):
            training.train(override(tiny, {"steps": 1}), tmp_path / "run", resume=True)
        later.rmdir()
    finally:
        holder.kill()
        holder.wait()
    training.train(override(tiny, {"steps": 1}), tmp_path / "run", resume=True)


def test_faulty_data_stops_before_the_first_step(tiny, tmp_path, scenes):
    (scenes / "val" / "masks" / "0001.png").write_bytes((scenes / "val" / "masks" / "0001.png").read_bytes()[:50])
    with pytest.raises(InputError, match="0001.png"):
        training.train(override(tiny, {"data.dataset": str(scenes)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_image_that_the_model_does_not_take_leaves_no_folder(tiny, tmp_path, scenes):
    for path in (scenes / "val" / "images").iterdir():
        Image.fromarray(np.full(Image.open(path).size[::-1], 4000, np.uint16)).save(path.with_suffix(".png"))
        path.unlink()
    with pytest.raises(InputError, match=r"cannot read image .*val/images/0000.png: .*range"):
        training.train(override(tiny, {"data.dataset": str(scenes)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_does_not_fit_leaves_no_folder(tiny, tmp_path):
    with pytest.raises(InputError, match="loss.class_weights has 2 values for 8 classes"):
        training.train(override(tiny, {"loss.class_weights": (1.0, 2.0)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_must_divide(tiny, tmp_path):
    with pytest.raises(InputError, match="is not a multiple of accumulate"):
        training.train(override(tiny, {"batch_size": 5, "accumulate": 2}), tmp_path / "run")


def weights_of_ranks(config, tmp_path, ranks):
    """Train with so many ranks into tmp_path/runRANKS; each one's weights."""
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    arguments = tmp_path / "config.json", tmp_path / f"run{ranks}"
    code, _, err = run_forks(PROGRAMS / "train_and_keep_weights.py", *arguments, ranks=ranks)
    assert code == 0, err[-3000:]
    return [torch.load(tmp_path / f"run{ranks}" / f"rank{rank}.pt") for rank in range(ranks)]


LAST_STEPS = {"optim.average": 0.5, "optim.freeze_bn": 0.5, "data.last_crop": (41, 41), "data.last_share": 0.5}


@pytest.mark.parametrize("options", [{"loss.average": "all"}, {"loss.average": "valid"} | LAST_STEPS], ids=str)
def test_two_processes_train_as_one(tiny, tmp_path, options):
    """The joint batch split over two gloo ranks: the same weights to float tolerance, the very same bases on both."""
    changes = {"steps": 4, "optim.name": "sgd", "optim.lr": 0.02, "optim.warmup_steps": 0}
    changes |= {
        "data.scales": (0.2, 1.0),
        "device": "cpu",
    }  # small images: ranks differ in their share of ignored pixels
    config = override(tiny, changes | options)
    (one,) = weights_of_ranks(config, tmp_path, 1)
    first, second = weights_of_ranks(config, tmp_path, 2)
    assert torch.equal(first["head.emau.bases"], second["head.emau.bases"])
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=2e-3, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")
        assert torch.equal(first[name], second[name]), name
    assert losses(tmp_path / "run2") == pytest.approx(losses(tmp_path / "run1"), rel=1e-4)


def killed_at(monkeypatch, step):
    """From here on, runs die once that step is done."""
    advance = training.RunLog.advance
    monkeypatch.setattr(training.RunLog, "advance", lambda self, s, *a: 1 / 0 if s == step else advance(self, s, *a))


def test_a_run_goes_on_with_another_number_of_processes(tiny, scenes, tmp_path, monkeypatch, capsys):
    """Started with two gloo processes and resumed by one, and the other way round: the same weights to 1e-9."""
    changes = {
        "model.head.dropout": 0.3,
        "save_every": 2,
        "batch_size": 8,
        "device": "cpu",
        "data.dataset": str(scenes),
    }
    config = override(tiny, changes | {"accumulate": 2, "loss.average": "valid"} | LAST_STEPS)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    build_model = training.build_model
    monkeypatch.setattr(training, "build_model", lambda *arguments: build_model(*arguments).double())
    training.train(config, tmp_path / "whole1")
    with monkeypatch.context() as patch, contextlib.suppress(ZeroDivisionError):
        killed_at(patch, 5)
        training.train(config, tmp_path / "cut1")
    gc.collect()  # closes the lock
    code, out, err = run_forks(PROGRAMS / "train_in_double.py", tmp_path / "config.json", tmp_path, ranks=2)
    assert code == 0, err[-3000:]
    goes_on = "the same images in the same order, and the same result to rounding"
    assert f"started with 1 process, goes on with 2: {goes_on}" in out
    training.train(config, tmp_path / "cut2", resume=True)
    assert f"started with 2 processes, goes on with 1: {goes_on}" in capsys.readouterr().out
    for ranks in (1, 2):
        whole, cut = weights(tmp_path / f"whole{ranks}"), weights(tmp_path / f"cut{ranks}")
        assert whole["head.classifier.weight"].dtype == torch.float64
        for name, value in whole.items():
            torch.testing.assert_close(cut[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    one, two = (weights(tmp_path / name)["head.classifier.weight"] for name in ("whole1", "whole2"))
    assert (one - two).abs().max() > 1e-4, "they draw differently from the start, so the test can fail"


def test_norms_that_are_not_synchronised_are_the_same_on_all_ranks_once_they_are_frozen(tiny, tmp_path):
    changes = {"sync_bn": False, "device": "cpu", "steps": 4, "optim.freeze_bn": 0.5, "optim.average": 0.5}
    first, second = weights_of_ranks(override(tiny, changes), tmp_path, 2)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_without_synchronised_norms_the_score_is_the_saved_models(tiny, tmp_path, scenes):
    """Each rank's BatchNorm has statistics of its own then; rank 0's are saved."""
    changes = {"sync_bn": False, "device": "cpu", "steps": 8, "data.dataset": str(scenes), "optim.lr": 1e-2}
    changes |= {"pictures": 2}
    (tmp_path / "config.json").write_text(json.dumps(to_dict(override(tiny, changes))))
    code, _, err = run_forks("emanet", "train", tmp_path / "config.json", "--out", tmp_path / "run", ranks=2)
    assert code == 0, err[-3000:]
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    scored = run_cli("evaluate", tmp_path / "run", "--json", tmp_path / "again.json")
    assert scored.returncode == 0 and json.loads((tmp_path / "again.json").read_text())["mIoU"] == written["mIoU"]
    drawn = sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir())
    assert drawn == ["step_000008_0.png", "step_000008_1.png"], "each was evaluated by another rank"


def test_two_ranks_end_with_a_sentence(tiny, tmp_path, scenes):
    (scenes / "train" / "masks" / "0000.png").unlink()
    arguments = "train", "drawn", "--out", tmp_path / "run", "--data.dataset", scenes
    code, _, err = run_forks("emanet", *arguments, ranks=2)
    assert code == 2 and any("0000.jpg" in line and line.startswith("error: ") for line in err.splitlines())


def test_the_command_trains_and_resumes(tiny, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(tiny)))
    run = tmp_path / "run"
    done = run_cli("train", tmp_path / "config.json", "--out", run, "--steps", "2")
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines()[1:-1] if not line.startswith(("note: ", "test_resnet"))]
    assert "mIoU" in done.stdout and max(map(len, table)) <= 80
    again = run_cli("train", run, "--resume")
    assert again.returncode == 0 and "resumed at step 2 of 2" in again.stdout
    assert f"the run is complete; its result is in {run / 'evaluation.json'}" in again.stdout
    assert "already holds a run" in sentence(run_cli("train", tmp_path / "config.json", "--out", run))
