"""A packed split must be the split: the same samples, and whatever is wrong with it named in a sentence."""

import json
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch
from conftest import run_cli, sentence
from PIL import Image

from emanet.config import DataConfig, DatasetSpec
from emanet.data import pack as packing
from emanet.data.check.quick import check
from emanet.data.datasets import open_dataset
from emanet.data.loader import training_loader
from emanet.data.pack import pack
from emanet.data.shards import Member
from emanet.data.transforms import TrainingSamples
from emanet.errors import InputError
from emanet.experiments import load_experiment, override
from emanet.run.log import read_log
from emanet.train import train


def packed_scenes(scenes, out, shard_bytes=30_000):
    for split in ("train", "val"):
        files = open_dataset(DataConfig(dataset=str(scenes)), split)
        pack(files.pairs, files.spec, split, out, shard_bytes)
    return out


@pytest.fixture
def packed(scenes, tmp_path):
    return packed_scenes(scenes, tmp_path / "packed")


def opened(folder, split="train"):
    return open_dataset(DataConfig(dataset=str(folder)), split)


def test_the_same_samples_in_the_same_order(scenes, packed):
    for split, count in (("train", 6), ("val", 3)):
        plain, again = opened(scenes, split), opened(packed, split)
        assert len(again) == len(plain) == count and again.spec == plain.spec
        for i in range(count):
            assert os.path.basename(again.name(i)) == os.path.basename(plain.name(i))
            assert again.name(i).startswith(f"{packed}/{split}-00000")
            for array, wanted in zip(again.read(i), plain.read(i), strict=True):
                np.testing.assert_array_equal(array, wanted)
    assert len(list(packed.glob("train-*.tar"))) > 1


def test_a_root_may_be_packed_whatever_the_spec_comes_from(scenes, packed):
    spec = DatasetSpec(classes=("stuff", "thing"), label_map={i: int(i > 2) for i in range(8)})
    config = DataConfig(dataset=str(scenes), spec=spec, root=str(packed))
    (_, labels), (_, finer) = open_dataset(config, "val").read(1), opened(scenes, "val").read(1)
    np.testing.assert_array_equal(labels, finer > 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_files(scenes, packed, workers):
    changes = {"data.workers": workers, "data.crop": (33, 33), "batch_size": 4, "steps": 3}
    config = override(load_experiment("drawn"), changes)

    def batches(folder):
        samples = TrainingSamples(opened(folder), config.data, (124, 116, 104))
        return list(training_loader(samples, config, 0, 0, 1))

    for batch, wanted in zip(batches(packed), batches(scenes), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, wanted, strict=True))


def test_checks_are_remembered_until_a_shard_changes(scenes, packed):
    opens = []
    assert check(opened(packed), opens.append).pixels.tolist() == check(opened(scenes)).pixels.tolist()
    assert len(opens) == len(opened(packed))
    check(opened(packed), opens.append)
    assert len(opens) == len(opened(packed))
    os.utime(packed / "train-000000.tar", (1, 1))
    check(opened(packed), opens.append)
    assert len(opens) == 2 * len(opened(packed))


def test_shards_are_plain_tars_of_the_files_as_they_are(scenes, packed):
    found = {}
    for shard in sorted(packed.glob("val-*.tar")):
        with tarfile.open(shard) as tar:
            found |= {info.name: tar.extractfile(info).read() for info in tar}
    wanted = {path.name: path.read_bytes() for path in scenes.glob("val/*/*") if path.is_file()}
    assert found == wanted
    assert list(found) == ["0000.jpg", "0000.png", "0001.jpg", "0001.png", "0002.jpg", "0002.png"]


def test_webdataset_reads_the_shards(scenes, packed):
    webdataset = pytest.importorskip("webdataset")
    shards = [str(path) for path in sorted(packed.glob("train-*.tar"))]
    samples = webdataset.WebDataset(shards, shardshuffle=False).to_tuple("jpg", "png")
    for (image, mask), pair in zip(samples, opened(scenes).pairs, strict=True):
        assert [image, mask] == [path.read_bytes() for path in pair]


def test_equal_files_make_equal_shards(scenes, packed, tmp_path):
    again = packed_scenes(scenes, tmp_path / "again")
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in packed.iterdir()}


def test_one_open_file_per_shard_also_after_pickling(packed):
    def count():
        links = [os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd")]
        return sum(os.path.realpath(link).startswith(str(packed.resolve())) for link in links if os.path.exists(link))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("there is no /proc")
    files = opened(packed)
    assert count() == 0, "opened only when read"
    for i in range(6):
        files.read(i)
        files.read(i)
    shards = len(list(packed.glob("train-*.tar")))
    assert count() == shards
    sent = pickle.loads(pickle.dumps(files))
    np.testing.assert_array_equal(sent.read(2)[0], files.read(2)[0])
    assert count() == shards + 1
    del files, sent
    assert count() == 0


def pair(folder, name, image=".jpg", mask=".png", value=0):
    paths = [folder / "images" / f"{name}{image}", folder / "masks" / f"{name}{mask}"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (10 * value, 20, 30)).save(paths[0])
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(paths[1])
    return tuple(paths)


def test_names_are_unique_and_have_one_dot(tmp_path):
    pairs = [
        pair(tmp_path, "a/one", value=1),
        pair(tmp_path, "b/one", value=2),
        pair(tmp_path, "b/one.left", value=3),
        pair(tmp_path, "b/two", image=".PNG", value=4),
        pair(tmp_path, "c.d/two", image=".png", mask=".tif", value=5),
    ]
    np.save(tmp_path / "images" / "b" / "two.npy", np.full((4, 6, 3), 9, np.uint8))
    pairs += [pairs[0], (tmp_path / "images" / "b" / "two.npy", pairs[3][1]), pairs[0]]
    spec = DatasetSpec(classes=tuple("abcdef"))
    pack(pairs, spec, "all/of it", tmp_path / "out")
    files = open_dataset(DataConfig(spec=spec, root=str(tmp_path / "out")), "all/of it")
    names = [member.name for members in files.pairs for member in members]
    assert names == (
        "a/one.jpg a/one.png b/one.jpg b/one.png b/one_left.jpg b/one_left.png b/two.png b/two.mask.png "
        "c.d/two.png c.d/two.tif a/one-2.jpg a/one-2.png b/two-2.npy b/two-2.png a/one-3.jpg a/one-3.png"
    ).split(" ")
    assert [int(files.read(i)[1][0, 0]) for i in range(8)] == [1, 2, 3, 4, 5, 1, 4, 1]
    assert (files.read(6)[0] == 9).all()
    assert check(files).pixels.sum() == 8 * 24


def test_long_and_foreign_names(tmp_path):
    names = ["ü" * 20, "x" * 150, "two words", "new\nline", "back\\slash", "in a/日本語"]
    pairs = [pair(tmp_path, name, value=i) for i, name in enumerate(names)]
    spec = DatasetSpec(classes=tuple("abcdef"))
    (shard,) = pack(pairs, spec, "train", tmp_path / "out")
    with tarfile.open(shard) as tar:
        assert tar.getnames() == [f"{name}.{ending}" for name in names for ending in ("jpg", "png")]
    files = open_dataset(DataConfig(spec=spec, root=str(tmp_path / "out")), "train")
    assert [int(files.read(i)[1][0, 0]) for i in range(6)] == list(range(6))


@pytest.mark.parametrize("stage", ["reading", "disk", "index", "key"])
def test_what_is_interrupted_leaves_nothing(scenes, tmp_path, monkeypatch, capsys, stage):
    out, files = tmp_path / "packed", opened(scenes)
    error, message = InputError, "cannot pack into .*packed: No space left on device"
    if stage == "reading":
        (scenes / "train" / "masks" / "0004.png").unlink()
        message = r"cannot read .*0004\.png: No such file"
    elif stage == "key":
        error, message = KeyboardInterrupt, None

    def fails(*values):
        raise KeyboardInterrupt if stage == "key" else OSError(28, "No space left on device")

    if stage == "index":
        monkeypatch.setattr(packing, "to_dict", fails)
    elif stage != "reading":
        monkeypatch.setattr(packing, "_add", fails)
    with pytest.raises(error, match=message):
        pack(files.pairs, files.spec, "train", out, 30_000)
    assert list(out.iterdir()) == []
    with pytest.raises(InputError, match="holds no dataset.json: write one"):
        opened(out)
    if stage != "reading":
        monkeypatch.undo()
        (out / ".train-000000.tar.1.partial").write_bytes(b"left by a process that was killed")
        pack(files.pairs, files.spec, "train", out, 30_000)
        assert len(opened(out)) == 6 and ".train-000000.tar.1.partial" in capsys.readouterr().err


def test_shards_without_an_index_are_not_packed_over(scenes, packed):
    files = opened(scenes)
    (packed / "train.index.json").unlink()
    with pytest.raises(InputError, match=r"packed holds train-000000\.tar, .*which no index names"):
        pack(files.pairs, files.spec, "train", packed)
    with pytest.raises(InputError, match="has no split 'train'; there are: val"):
        opened(packed)


def damage(packed, change):
    """Change the index, or the middle of the first image."""
    index = json.loads((packed / "train.index.json").read_text())
    if change == "byte":
        shard = packed / index["shards"][0][0]
        content = bytearray(shard.read_bytes())
        content[index["samples"][0][2] + index["samples"][0][3] // 2] ^= 1
        shard.write_bytes(content)
    else:
        change(index)
    (packed / "train.index.json").write_text(json.dumps(index))


def test_a_damaged_member_is_named_with_its_shard(packed):
    damage(packed, "byte")
    files = opened(packed)
    for read in (lambda: files.read(0), lambda: check(files)):
        with pytest.raises(InputError, match=r"cannot read image .*train-000000\.tar/0000\.jpg: its bytes are not"):
            read()
    files.read(1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda p: (p / "train-000001.tar").unlink(), r"shard .*train-000001\.tar is missing"),
        (
            lambda p: os.truncate(p / "train-000000.tar", 9000),
            r"shard .*train-000000\.tar has 9000 bytes instead of \d+",
        ),
        (lambda p: os.truncate(p / "train.index.json", 700), r"train\.index\.json is not JSON"),
        (
            lambda p: (p / "train.index.json").write_text("[]"),
            r"^[^:]*train\.index\.json is not an index of the format",
        ),
        (lambda p: damage(p, lambda i: i.update(format="other")), "is not an index of the format"),
        (lambda p: damage(p, lambda i: i.pop("shards")), r"index .*train\.index\.json is damaged"),
        (lambda p: damage(p, lambda i: i.update(samples=[])), "is damaged"),
        (lambda p: damage(p, lambda i: i.pop("spec")), "is damaged"),
        (lambda p: damage(p, lambda i: i["samples"][1].pop()), "is damaged"),
        (lambda p: damage(p, lambda i: i["samples"][1].__setitem__(0, 99)), "is damaged"),
        (
            lambda p: damage(p, lambda i: i["samples"][1].__setitem__(2, 10**9)),
            r"train\.index\.json places 0001\.jpg outside its shard .*train-00000\d\.tar",
        ),
        (lambda p: damage(p, lambda i: i["samples"][1].__setitem__(3, -1)), r"places 0001\.jpg outside"),
        (
            lambda p: damage(p, lambda i: i.update(spec={"clases": []})),
            "unknown field 'clases'; did you mean 'classes'",
        ),
    ],
)
def test_a_damaged_index_or_shard_is_named(packed, fault, message):
    fault(packed)
    with pytest.raises(InputError, match=message) as error:
        opened(packed)
    assert "\n" not in str(error.value)


def test_a_swapped_place_is_no_other_sample(packed):
    damage(packed, lambda index: index["samples"][0].__setitem__(2, index["samples"][0][2] + 512))
    with pytest.raises(InputError, match=r"0000\.jpg: its bytes are not those that were packed"):
        opened(packed).read(0)


def test_the_command_packs_and_trains(scenes, tiny, tmp_path):
    for split, source in (("train", scenes), ("val", scenes / "dataset.json")):
        done = run_cli("data", "pack", source, "--split", split, "--out", "packed", cwd=tmp_path)
        count = {"train": 6, "val": 3}[split]
        assert done.returncode == 0 and done.stdout.startswith(f"packed {count} images of {split}: 1 tar files, 0.")
    changes = {"data.dataset": str(scenes), "steps": 1}
    train(override(tiny, changes), tmp_path / "plain")
    shutil.rmtree(scenes / "train")
    train(override(tiny, {**changes, "data.root": str(tmp_path / "packed")}), tmp_path / "run")
    plain, ours = (read_log(tmp_path / run)[0]["loss"] for run in ("plain", "run"))
    assert plain == ours


def test_an_experiment_gives_its_data_set_and_split(scenes, tmp_path):
    text = "from emanet.config import DataConfig, Experiment\n"
    text += f"config = Experiment(data=DataConfig(dataset={str(scenes)!r}, train_split='val'))\n"
    (tmp_path / "mine.py").write_text(text)
    done = run_cli("data", "pack", "mine.py", "--out", "packed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(opened(tmp_path / "packed", "val")) == 3


def test_a_split_may_have_another_name_in_its_paths(tmp_path):
    files = [pair(tmp_path / "validation", "one")]
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["a"], "split_names": {"val": "validation"}}))
    for name in ("val", "validation"):
        out = tmp_path / f"packed_{name}"
        assert run_cli("data", "pack", tmp_path, "--split", name, "--out", out).returncode == 0
        assert [opened(out, split).name(0) for split in ("val", "validation")] == [
            str(out / "validation-000000.tar" / files[0][0].name)
        ] * 2


def test_wrong_uses_end_in_a_sentence(scenes, packed, tmp_path):
    cases = {
        (scenes, "--out", packed): "packed holds the split 'train' already",
        (packed, "--out", tmp_path / "new"): "packed is packed already",
        (scenes,): "data pack needs --out DIR",
        (scenes, "--out", tmp_path / "new", "--shard-size", "0"): "--shard-size is 0, but must be at least 1",
        ("drawn", "--out", tmp_path / "new"): "the drawn scenes are not files",
        ("camvit", "--out", tmp_path / "new"): "no data set or dataset.json 'camvit'; did you mean 'camvid'",
        (scenes, "--out", scenes): "scenes holds dataset.json, train and 1 more, which no index names",
        (scenes, "--out", scenes / "dataset.json"): "dataset.json is not a folder",
        (scenes, "--out", scenes / "dataset.json" / "new"): "cannot pack into .*: Not a directory",
    }
    for arguments, message in cases.items():
        said = sentence(run_cli("data", "pack", *arguments))
        assert all(part in said for part in message.split(".*")), said
    assert not (tmp_path / "new").exists()


def test_members_are_as_much_of_a_path_as_is_needed(packed):
    member = opened(packed).pairs[0][0]
    assert isinstance(member, Member) and str(member) == f"{packed}/train-000000.tar/0000.jpg"
    with member.open() as file:
        assert file.read() == member.read_bytes()
