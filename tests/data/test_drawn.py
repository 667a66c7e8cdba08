import json

import numpy as np
import pytest

from emanet.config import DataConfig
from emanet.data.datasets import DRAWN_SIZE, open_dataset
from emanet.data.drawn import write_drawn
from emanet.data.synthetic import SCENE_CLASSES, draw_scene
from emanet.errors import InputError


def test_written_scenes_read_back_with_their_labels(tmp_path):
    write_drawn(tmp_path / "new", {"train": 2, "val": 1})
    assert json.loads((tmp_path / "new" / "dataset.json").read_text())["classes"] == list(SCENE_CLASSES)
    train = open_dataset(DataConfig(dataset=str(tmp_path / "new")), "train")
    assert len(train) == 2
    for i in range(2):
        assert np.array_equal(train.read(i)[1], draw_scene(i, split="train", size=DRAWN_SIZE)[1])


def test_files_are_never_written_over(tmp_path):
    (tmp_path / "precious").touch()
    with pytest.raises(InputError, match="is not empty"):
        write_drawn(tmp_path, {"train": 1})
