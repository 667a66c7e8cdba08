"""Models on the hub, against a stand-in for its HTTP interface on this machine: no test leaves it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_cli, sentence
from huggingface_hub import constants
from PIL import Image

import emanet
from emanet.analysis.export import name_of
from emanet.data.datasets import SPECS
from emanet.errors import InputError
from emanet.experiments import load_experiment
from emanet.loading import read
from emanet.model import build_model
from emanet.train import prepare, restore
from emanet.weights import hub as ours
from emanet.weights.model_file import read_model, save_model


@pytest.fixture
def stored(hub, model):
    """The repository own/scenes with a model, and its commit."""
    return hub.add("own/scenes", {"model.safetensors": model.read_bytes()})


class TestName:
    def test_what_is_one(self):
        assert ours.parts("hf:own/scenes") == ("own/scenes", None)
        assert ours.parts("hf:own/my.scenes_2-b@refs/pr/1") == ("own/my.scenes_2-b", "refs/pr/1")
        assert ours.parts("own/scenes@v1.0") == ("own/scenes", "v1.0")
        assert ours.is_name("hf:own/scenes") and ours.is_name(Path("hf:own/scenes")) and not ours.is_name("./hf:own")

    @pytest.mark.parametrize(
        "name", ["hf:", "hf:scenes", "hf:own/scenes/x", "hf:own/scenes@", "hf:own/sc enes", "hf://own/x"]
    )
    def test_what_is_none(self, name):
        with pytest.raises(InputError, match=f"^{name} is not the name of a model on the hub: write hf:owner/name, or"):
            ours.path_of(name)

    def test_one_that_a_hub_refuses(self, hub):
        with pytest.raises(InputError, match="^own/a--b cannot be the name of a repository: "):
            ours.path_of("hf:own/a--b")
        assert hub.requests == []


class TestDownload:
    def test_a_model_is_downloaded_once(self, hub, model, stored, capfd):
        file = read("hf:own/scenes")
        said = f"the model is model.safetensors of own/scenes on the hub, commit {stored[:12]}\n"
        assert capfd.readouterr().err == said
        assert all(torch.equal(file.tensors[name], value) for name, value in read_model(model).tensors.items())
        hub.requests.clear()
        assert read("hf:own/scenes").path == file.path
        assert hub.requests == ["HEAD /own/scenes/resolve/main/model.safetensors"]

    def test_a_revision_is_a_branch_a_tag_or_a_commit(self, hub, model, stored, tmp_path):
        newer = hub.add("own/scenes", {"model.safetensors": b"newer"})
        hub.add("own/scenes", {"model.safetensors": b"other"}, branch="feature/x")
        hub.repositories["own/scenes"].refs["v1"] = stored
        assert ours.path_of("hf:own/scenes").read_bytes() == b"newer"
        assert ours.path_of("hf:own/scenes@feature/x").read_bytes() == b"other"
        assert ours.path_of("hf:own/scenes@v1").read_bytes() == model.read_bytes()
        assert ours.path_of(f"hf:own/scenes@{stored}") == ours.path_of("hf:own/scenes@v1")
        assert ours.pinned("hf:own/scenes") == f"hf:own/scenes@{newer}" and ours.pinned("street") == "street"

    def test_a_commit_in_the_cache_needs_no_network(self, hub, stored):
        path = ours.path_of("hf:own/scenes")
        hub.requests.clear()
        assert ours.path_of(f"hf:own/scenes@{stored}") == path and hub.requests == []

    def test_offline_the_cache_is_used(self, hub, stored, monkeypatch):
        path = ours.path_of("hf:own/scenes")
        hub.close()
        assert ours.path_of("hf:own/scenes") == path  # the hub has gone
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert ours.path_of("hf:own/scenes") == path
        with pytest.raises(InputError) as caught:
            ours.path_of("hf:own/other")
        assert str(caught.value) == (
            f"own/other is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it"
        )

    def test_a_token_opens_a_private_model(self, hub, model, monkeypatch):
        hub.add("own/secret", {"model.safetensors": model.read_bytes()}, private=True)
        monkeypatch.setenv("HF_TOKEN", "reader")
        assert ours.path_of("hf:own/secret").read_bytes() == model.read_bytes()

    def test_it_is_checked_like_any_file(self, hub, model, tmp_path):
        content = bytearray(model.read_bytes())
        content[-1] ^= 1
        hub.add("own/damaged", {"model.safetensors": bytes(content)})
        with pytest.raises(InputError, match="^cannot read model file .*own--damaged.*: file is damaged: checksum"):
            emanet.load("hf:own/damaged")
        torch.save({"a": torch.zeros(1)}, tmp_path / "pickle")
        hub.add("own/pickle", {"model.safetensors": (tmp_path / "pickle").read_bytes()})
        with pytest.raises(InputError, match="is another program's checkpoint; turn it into a model"):
            emanet.load("hf:own/pickle")

    def test_the_environment_says_where_the_hub_and_the_cache_are(self, hub, stored, tmp_path):
        """In a process of its own, as huggingface_hub reads its settings once; and no torch is needed for it."""
        code = "import sys; from emanet.weights import hub; print(hub.path_of('hf:own/scenes'), 'torch' in sys.modules)"
        changed = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **changed}, capture_output=True, text=True
        )
        place = tmp_path / "home" / "hub" / "models--own--scenes" / "snapshots" / stored / "model.safetensors"
        assert done.stdout.split() == [str(place), "False"], done.stderr


class TestRefusal:
    """What stands in the way, each in one sentence."""

    def refusal(self, name: str) -> str:
        with pytest.raises(InputError) as caught:
            ours.path_of(name)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_no_repository(self, hub, monkeypatch):
        none = f"there is no model own/none on {hub.url}, or "
        assert self.refusal("hf:own/none") == (
            none + "it is private and needs a token: run `hf auth login` or set HF_TOKEN"
        )
        monkeypatch.setenv("HF_TOKEN", "reader")
        assert self.refusal("hf:own/none") == none + "your token may not read it"

    def test_a_private_one_without_a_token(self, hub):
        hub.add("own/secret", {"model.safetensors": b""}, private=True)
        assert "or it is private and needs a token: run `hf auth login`" in self.refusal("hf:own/secret")

    def test_a_gated_one(self, hub, monkeypatch):
        hub.add("own/gated", {"model.safetensors": b""}, gated=True)
        gated = f"own/gated is gated: ask for access at {hub.url}/own/gated"
        assert self.refusal("hf:own/gated") == f"{gated}, and run `hf auth login` or set HF_TOKEN"
        monkeypatch.setenv("HF_TOKEN", "reader")
        assert self.refusal("hf:own/gated") == gated

    def test_no_revision(self, hub, stored):
        assert self.refusal("hf:own/scenes@v2") == (
            "own/scenes has no revision v2: name a branch, a tag or a whole commit hash"
        )

    def test_no_model_file(self, hub):
        hub.add("own/other", {"pytorch_model.bin": b""})
        assert self.refusal("hf:own/other@main") == (
            "own/other@main has no model.safetensors, so it is not a model that `push` has written"
        )

    def test_a_wrong_token(self, hub, stored, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "old")
        assert self.refusal("hf:own/scenes") == (
            f"{hub.url} does not know the token in use, or there is none: run `hf auth login` or set HF_TOKEN"
        )

    def test_no_network(self, hub):
        hub.close()
        missing = f"own/scenes is not in the cache {constants.HF_HUB_CACHE}, and "
        assert self.refusal("hf:own/scenes").startswith(f"{missing}{hub.url} cannot be reached: ")

    def test_a_hub_that_fails(self, hub):
        hub.broken = True
        missing = f"own/scenes is not in the cache {constants.HF_HUB_CACHE}, and "
        assert self.refusal("hf:own/scenes") == f"{missing}{hub.url} answers with error 500: the hub is down"

    def test_a_cache_that_cannot_be_written(self, hub, stored, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
        assert self.refusal("hf:own/scenes").startswith(f"cannot read own/scenes: {tmp_path / 'file'}")

    def test_a_command_ends_with_it(self, hub):
        for command in (["predict", "hf:own/none", "x.jpg", "--out", "out"], ["evaluate", "hf:own/none"]):
            assert "there is no model own/none" in sentence(run_cli(*command))


class TestEverywhere:
    """Wherever a model is taken, hf:own/scenes is one."""

    @pytest.fixture
    def photo(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photo.png")
        return tmp_path / "photo.png"

    def test_python(self, stored, model, photo):
        labels = emanet.Predictor(model, device="cpu")(photo)
        assert np.array_equal(emanet.Predictor("hf:own/scenes", device="cpu")(photo), labels)
        assert np.array_equal(emanet.explain("hf:own/scenes", photo).labels, labels)
        assert emanet.load(Path("hf:own/scenes")).classes == emanet.load(model).classes

    def test_predict_takes_settings_and_weights_of_one_commit(self, hub, stored, photo, tmp_path):
        done = run_cli("predict", "hf:own/scenes", "photo.png", "--out", "out", cwd=tmp_path)
        assert done.returncode == 0 and (tmp_path / "out" / "photo.png").is_file(), done.stderr
        assert f"model.safetensors of own/scenes on the hub, commit {stored[:12]}\n" in done.stderr
        assert hub.requests.count("HEAD /own/scenes/resolve/main/model.safetensors") == 1

    @pytest.mark.parametrize(
        "command",
        [
            ["evaluate", "hf:own/scenes", "--root", "scenes", "--dataset", "scenes", "--workers", 0],
            ["explain", "hf:own/scenes", "photo.png", "--bases", 1],
            ["profile", "hf:own/scenes", "--size", 33, 33],
            ["config", "show", "hf:own/scenes"],
            ["train", "hf:own/scenes", "--help"],
            ["config", "diff", "hf:own/scenes", "drawn"],
        ],
        ids=lambda command: str(command[0]),
    )
    def test_commands(self, stored, photo, scenes, tmp_path, command):
        done = run_cli(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"the model is model.safetensors of own/scenes on the hub, commit {stored[:12]}\n" in done.stderr

    def test_submit(self, hub, photo, tmp_path):
        experiment = emanet.override(load_experiment("drawn"), {"data.spec": SPECS["voc"], "model.head.channels": 16})
        save_model(tmp_path / "voc.safetensors", build_model(experiment.model, SPECS["voc"]), experiment)
        hub.add("own/voc", {"model.safetensors": (tmp_path / "voc.safetensors").read_bytes()})
        (tmp_path / "images").mkdir()
        photo.rename(tmp_path / "images" / "photo.png")
        done = run_cli("submit", "hf:own/voc", "--images", "images", "--out", "voc.tar.gz", cwd=tmp_path)
        assert done.returncode == 0 and (tmp_path / "voc.tar.gz").stat().st_size, done.stderr

    def test_training_starts_from_one_and_learns_from_one(self, stored, model, tiny, tmp_path):
        config = emanet.override(tiny, {"init_from": "hf:own/scenes", "distill": "hf:own/scenes"})
        run = prepare(config, tmp_path / "run", "run", resume=False)
        restore(run)
        assert torch.equal(run.net.head.classifier.weight, read_model(model).tensors["head.classifier.weight"])
        assert torch.equal(run.teacher.head.classifier.weight, run.net.head.classifier.weight)

    def test_what_is_exported_has_the_name_of_the_repository(self, stored):
        assert name_of("hf:own/scenes") == name_of(f"hf:own/scenes@{stored}") == "scenes"

    def test_convert(self, hub, stored, tmp_path):
        done = run_cli("convert", "hf:own/scenes", tmp_path / "x.safetensors")
        assert "has this program's own keys; there is nothing to convert" in sentence(done)

    def test_compare_says_what_is_missing(self, stored):
        assert "hf:own/scenes is a model without the log of its run" in sentence(run_cli("compare", "hf:own/scenes"))
