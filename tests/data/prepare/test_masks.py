"""Published annotations to index PNGs: in several processes, what is broken is named. Layouts: test_prepare."""

import numpy as np
import pytest
from PIL import Image
from test_recipes import SIZE, halves, mat, sbd_mat

from emanet.data.prepare import masks as annotations
from emanet.errors import InputError


def test_many_files_are_converted_in_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(annotations, "CHUNK", 4)
    monkeypatch.setattr(annotations.multiprocessing, "cpu_count", lambda: 2)
    jobs = []
    for i in range(9):
        (tmp_path / f"{i}.mat").write_bytes(sbd_mat(halves(i, 20)))
        jobs.append((tmp_path / f"{i}.mat", tmp_path / "masks" / f"{i}.png"))
    annotations.run(annotations.sbd, jobs, "test")
    assert all(np.array_equal(np.array(Image.open(target)), halves(i, 20)) for i, (_, target) in enumerate(jobs))
    (tmp_path / "7.mat").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot read .*7.mat"):
        annotations.run(annotations.sbd, jobs, "test")


@pytest.mark.parametrize(
    ("function", "content", "message"),
    [
        (annotations.sbd, mat({"GTcls": {"Segmentation": np.uint8(halves(0, 21))}}), "has label 21"),
        (annotations.sbd, mat({"GTinst": 1}), "it has no 'GTcls'"),
        (
            annotations.context,
            mat({"LabelMap": np.uint16(halves(0, 460))}),
            "has values 0 to 460, but the largest is 459",
        ),
        (annotations.context, mat({"LabelMap": np.zeros((2, 2, 2))}), r"not \(H, W\)"),
        (annotations.cocostuff, mat({"S": np.uint8(halves(0, 183))}), "the largest is 182"),
        (annotations.cocostuff, b"", "cannot read .*x.mat"),
    ],
)
def test_broken_annotations_are_named_and_leave_nothing(tmp_path, function, content, message):
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(InputError, match=message):
        function(tmp_path / "x.mat", tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.mat"]


@pytest.mark.parametrize("shape", [[[1, 2]], {"size": [1, 1], "counts": "x"}, {"size": list(SIZE), "counts": ["a"]}])
def test_broken_coco_regions_are_named(tmp_path, shape):
    with pytest.raises(InputError, match="the COCO regions of 7 cannot be drawn"):
        annotations.coco([(1, False, shape)], SIZE, tmp_path / "7.png", 0)
