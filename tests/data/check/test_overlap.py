from pathlib import Path

import numpy as np
from PIL import Image

from emanet.config import DataConfig, DatasetSpec
from emanet.data.check.overlap import START, shared_images
from emanet.data.datasets import Dataset, open_dataset
from emanet.data.pack import pack_source

SPEC = DatasetSpec(classes=("a", "b"))


def data_set(folder: Path, **contents: bytes) -> Dataset:
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return Dataset([(folder / name, folder / "mask") for name in contents], SPEC)


def names(train, val):
    return sorted(Path(str(file)).name for file in shared_images(train, val))


def test_files_of_the_same_bytes_are_found_under_any_name(tmp_path):
    long = bytes(START)
    train = data_set(tmp_path / "t", a=b"1", b=b"22", c=long + b"x", d=b"333", e=b"333")
    val = data_set(tmp_path / "v", q=b"22", r=b"2", s=long + b"y", a=b"4444", t=b"333", u=b"333")
    assert names(train, val) == ["q", "t", "u"]


def test_files_of_two_sizes_are_not_opened(tmp_path, monkeypatch):
    train, val = data_set(tmp_path / "t", a=b"1"), data_set(tmp_path / "v", a=b"22")
    monkeypatch.setattr(Path, "open", None)
    assert names(train, val) == [] and names(train, train) == ["a"]


def test_the_same_pixels_in_another_format(tmp_path):
    """Files are decoded only where the labels agree; a file that cannot be read is like no other."""
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    train, val = data_set(tmp_path / "t", a=b"", b=b"1"), data_set(tmp_path / "v", a=b"22", b=b"333", c=b"x")
    Image.fromarray(pixels).save(tmp_path / "t" / "a", "PNG")
    for name in ("a", "b"):
        Image.fromarray(pixels).save(tmp_path / "v" / name, "BMP")
    found = shared_images(train, val, ["1", "2"], ["1", "3", "2"])
    assert [file.name for file in found] == ["a"]


def test_packed_splits(scenes, tmp_path):
    (scenes / "val" / "images" / "0001.jpg").write_bytes((scenes / "train" / "images" / "0004.jpg").read_bytes())
    for split in ("train", "val"):
        pack_source(str(scenes), out=str(tmp_path / "packed"), split=split)
    train, val = (open_dataset(DataConfig(dataset=str(tmp_path / "packed")), split) for split in ("train", "val"))
    assert names(train, val) == ["0001.jpg"]
