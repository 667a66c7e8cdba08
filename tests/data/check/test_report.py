"""What `data check` writes: the table, the JSON, the page, and its exit code."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import ROOT, run_cli, sentence
from PIL import Image

from emanet.config import DatasetSpec
from emanet.data import drawn as export
from emanet.data.check.report import _coloured
from emanet.data.images import read_mask
from emanet.show.colours import IGNORE_COLOUR


@pytest.fixture
def drawn(tmp_path):
    export.write_drawn(tmp_path / "drawn", {"train": 26, "val": 4})
    return tmp_path / "drawn"


def test_pictures_mean_what_labels_mean(tmp_path):
    Image.fromarray(np.array([[0, 255, 7, 9]], np.uint8)).save(tmp_path / "mask.png")
    for spec in (
        DatasetSpec(classes=("a", "b"), label_map={0: 0, 255: 1, 7: 255, 9: 255}),
        DatasetSpec(classes=tuple("abcdefghij"), ignore_label=0, label_map={255: 3, 7: 1, 9: 255}),
    ):
        labels = read_mask(tmp_path / "mask.png", spec)[0].tolist()
        wanted = [IGNORE_COLOUR if label == 255 else spec.colours[label] for label in labels]
        assert [tuple(colour) for colour in _coloured(tmp_path / "mask.png", spec)[0].tolist()] == wanted


def test_foreign_names(scenes):
    for kind, suffix in (("images", b".jpg"), ("masks", b".png")):
        folder = os.fsencode(scenes / "train" / kind)
        os.rename(os.path.join(folder, b"0000" + suffix), os.path.join(folder, b"<b>[red]\xff" + suffix))
    os.truncate(os.path.join(os.fsencode(scenes / "train" / "images"), b"<b>[red]\xff.jpg"), 0)
    done = run_cli("data", "check", scenes, "--json", scenes / "x.json", "--html", scenes / "x.html")
    assert done.returncode == 2 and "train/images/<b>[red]\N{REPLACEMENT CHARACTER}.jpg: it is empty" in done.stdout
    assert "&lt;b&gt;[red]" in (scenes / "x.html").read_text()
    json.loads((scenes / "x.json").read_text())


def test_class_names_with_control_codes_and_surrogates(scenes):
    spec = json.loads((scenes / "dataset.json").read_text())
    spec["classes"][:2] = ["\x1b[2J<b>", "\ud800"]
    (scenes / "dataset.json").write_text(json.dumps(spec))
    done = run_cli("data", "check", scenes, "--json", scenes / "x.json", "--html", scenes / "x.html")
    assert r"\x1b[2J<b>" in done.stdout and "\x1b" not in done.stdout + done.stderr
    assert r"\x1b[2J&lt;b&gt;" in (scenes / "x.html").read_text()
    assert list(json.loads((scenes / "x.json").read_text())["splits"][0]["pixels"])[:2] == spec["classes"][:2]


def test_one_split_for_training_and_validation(scenes, tmp_path):
    text = (
        f"config = override(load_experiment('drawn'), {{'data.dataset': {str(scenes)!r}, 'data.val_split': 'train'}})"
    )
    (tmp_path / "mine.py").write_text(f"from emanet import load_experiment, override\n{text}\n")
    done = run_cli("data", "check", tmp_path / "mine.py", "--html", tmp_path / "x.html")
    assert done.returncode == 3 and "it is for training and for validation" in (tmp_path / "x.html").read_text()


class TestCommand:
    def test_exit_code_json_and_page(self, drawn, tmp_path):
        written = tmp_path / "new" / "check.json", tmp_path / "new" / "check.html"
        done = run_cli("data", "check", drawn, "--json", written[0], "--html", written[1])
        assert (done.returncode, done.stderr) == (0, "") and ": sound; 30" in " ".join(done.stdout.split())
        stated = json.loads(written[0].read_text())
        assert stated["exit_code"] == 0 and stated["counts"]["error"] == 0 and stated["splits"][0]["pairs"] == 26
        os.unlink(drawn / "train" / "images" / "0000.jpg")
        assert run_cli("data", "check", drawn).returncode == 3
        for i in range(1, 6):
            os.truncate(drawn / "train" / "images" / f"{i:04d}.jpg", 0)
        done = run_cli("data", "check", drawn, "--json", written[0], "--html", written[1])
        assert done.returncode == 2 and "and 2 more: --json FILE lists all" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
        files = [f["files"] for f in json.loads(written[0].read_text())["findings"] if f["kind"] == "empty-file"]
        assert files == [[f"train/images/{i:04d}.jpg"] for i in range(1, 6)]
        text = written[1].read_text()
        assert "http" not in text and 'src="data:image/png' in text and all(file[0] in text for file in files)
        HTMLParser().feed(text)

    def test_an_experiment_uses_two_splits(self, drawn, tmp_path):
        shutil.copytree(drawn / "val", drawn / "test")
        run_file = tmp_path / "mine.py"
        run_file.write_text(
            "from emanet import load_experiment, override\n"
            f"config = override(load_experiment('drawn'), {{'data.dataset': {str(drawn)!r}}})\n"
        )
        assert run_cli("data", "check", run_file).returncode == 0
        assert run_cli("data", "check", drawn).returncode == 3, "test is val"
        assert run_cli("data", "check", drawn, "--split", "test").returncode == 0

    def test_nothing_to_check_in_drawn_scenes(self):
        done = run_cli("data", "check", "drawn")
        assert done.returncode == 0 and "nothing to check" in done.stdout and len(done.stdout.splitlines()) == 1

    def test_sentences(self, drawn, tmp_path):
        assert "no data set or dataset.json 'camvit'" in sentence(run_cli("data", "check", "camvit"))
        assert "is a folder" in sentence(run_cli("data", "check", drawn, "--html", tmp_path))

    def test_help_fits_and_states_the_exit_codes(self):
        done = run_cli("data", "check", "-h")
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert all(f"Exit code {code}" in done.stdout for code in (0, 2, 3)) and "Exit code 1" not in done.stdout

    def test_names_with_control_codes(self, scenes):
        (scenes / "train" / "images" / "0000.jpg").rename(scenes / "train" / "images" / "\x1b[2J\n.jpg")
        done = run_cli("data", "check", scenes, "--json", scenes / "x.json")
        assert r"train/images/\x1b[2J\n.jpg" in done.stdout and "\x1b[2J" not in done.stdout
        found = json.loads((scenes / "x.json").read_text())["findings"]
        assert ["train/images/\x1b[2J\n.jpg"] in [finding["files"] for finding in found], "for programs, as it is"

    def test_files_and_exit_code_outlive_the_reader(self, scenes, tmp_path):
        (scenes / "train" / "images" / "0000.jpg").unlink()
        reader, writer = os.pipe()
        os.close(reader)
        files = tmp_path / "a.json", tmp_path / "b.html"
        command = [sys.executable, "-m", "emanet", "data", "check", scenes, "--json", files[0], "--html", files[1]]
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=100)
        finally:
            os.close(writer)
        assert (done.returncode, done.stderr) == (3, "") and all(file.stat().st_size for file in files)

    def test_a_folder_of_a_known_name(self, scenes, tmp_path, monkeypatch):
        shutil.copytree(scenes, tmp_path / "camvid")
        monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
        said = sentence(run_cli("data", "check", "camvid", cwd=tmp_path))
        assert said.endswith("name it with --root, or write ./camvid to mean that folder")
        (tmp_path / "camvid" / "dataset.json").unlink()
        assert sentence(run_cli("data", "check", "camvid", cwd=tmp_path)).endswith("name it with --root ./camvid")

    def test_one_of_each(self, scenes):
        for kind in ("images", "masks"):
            for path in sorted((scenes / "train" / kind).iterdir())[1:]:
                path.unlink()
            shutil.rmtree(scenes / "val" / kind)
            shutil.copytree(scenes / "train" / kind, scenes / "val" / kind)
        spec = json.loads((scenes / "dataset.json").read_text())
        (scenes / "dataset.json").write_text(json.dumps({**spec, "images": "train/images", "masks": "train/masks"}))
        shown = run_cli("data", "check", scenes).stdout
        assert "1 image is in train and val" in shown and re.search(r"1\s+pair\s+checked", shown)
