import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from emanet.config import DataConfig
from emanet.data.datasets import DRAWN_SIZE, open_dataset
from emanet.data.drawn import write_drawn, write_labelme
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


def test_labelme_files_hold_the_labels(tmp_path):
    """Drawn again from the files as labelme describes them: a PNG of the box's pixels, and the box's corners."""
    write_labelme(tmp_path / "new", 2)
    for i in range(2):
        document = json.loads((tmp_path / "new" / f"{i:04d}.json").read_text())
        assert (tmp_path / "new" / document["imagePath"]).is_file()
        labels = np.zeros((document["imageHeight"], document["imageWidth"]), np.uint8)
        for shape in document["shapes"]:
            (left, top), (right, bottom) = shape["points"]
            mask = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
            labels[top : bottom + 1, left : right + 1][mask] = SCENE_CLASSES.index(shape["label"])
        assert np.array_equal(labels, draw_scene(i, split="train", size=DRAWN_SIZE)[1])
