import json

import numpy as np
import pytest
import torch

from emanet.errors import InputError
from emanet.metrics import ConfusionMatrix, scores
from emanet.show.terminal import show


def slow_report(labels, predicted, classes):
    """The definitions, pixel set by pixel set."""
    predicted, labels = predicted[labels != 255], labels[labels != 255]
    ious, recalls, weighted = [], [], 0.0
    for c in range(classes):
        truth, guess = labels == c, predicted == c
        if (truth | guess).any():
            ious.append((truth & guess).sum() / (truth | guess).sum())
        if truth.any():
            recalls.append(guess[truth].mean())
            weighted += truth.mean() * ious[-1]
    return {"mIoU": np.mean(ious), "pAcc": (labels == predicted).mean(), "mAcc": np.mean(recalls), "fIoU": weighted}


@pytest.mark.parametrize("seed", range(5))
def test_report_equals_the_definitions(seed):
    rng = np.random.default_rng(seed)
    matrix = ConfusionMatrix("abcdefg")
    batches = []
    for shape in ((33, 47), (1, 1), (2, 5, 6)):
        labels = rng.choice([0, 1, 2, 4, 255], shape).astype(np.uint8)  # 3 only predicted; 5, 6 nowhere
        predicted = np.where(rng.random(shape) < 0.5, labels, rng.integers(0, 5, shape)).astype(np.uint8)
        predicted[labels == 255] = 255  # counts nowhere, so it need not be a class
        matrix.add(torch.from_numpy(labels), torch.from_numpy(predicted).long())
        batches.append((labels.ravel(), predicted.ravel()))
    labels, predicted = (np.concatenate(part) for part in zip(*batches, strict=True))
    report = matrix.report()
    wanted = slow_report(labels, predicted, 7)
    assert {name: report[name] for name in wanted} == pytest.approx(wanted, rel=1e-12)
    assert report["pixels"] == (labels != 255).sum() == matrix.counts.sum()
    assert report["absent"] == ["f", "g"] and report["IoU"]["f"] is None
    assert report["IoU"]["d"] == 0 and report["accuracy"]["d"] is None
    assert sum(report["share"].values()) == pytest.approx(1)


def test_rows_are_true_and_columns_predicted():
    matrix = ConfusionMatrix(["a", "b"])
    matrix.add(torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 0, 1]))
    assert matrix.counts.tolist() == [[1, 2], [0, 1]] and matrix.counts.dtype == torch.int64
    report = matrix.report()
    assert report["accuracy"] == {"a": 1 / 3, "b": 1.0} and report["IoU"] == {"a": 1 / 3, "b": 1 / 3}


def test_one_class():
    matrix = ConfusionMatrix(["all"])
    matrix.add(torch.tensor([0, 255]), torch.tensor([0, 0]))
    report = matrix.report()
    assert [report[name] for name in ("mIoU", "pAcc", "mAcc", "fIoU", "pixels")] == [1, 1, 1, 1, 1]


def test_nothing_labelled_gives_none_not_nan():
    matrix = ConfusionMatrix(["a", "b"])
    matrix.add(torch.full((3, 4), 255), torch.zeros(3, 4, dtype=torch.uint8))
    report = matrix.report()
    assert [report[name] for name in ("mIoU", "pAcc", "mAcc", "fIoU")] == [None] * 4
    assert report["absent"] == ["a", "b"] and report["pixels"] == 0
    assert "NaN" not in json.dumps(report)


@pytest.mark.parametrize(
    ("labels", "predicted", "message"),
    [([0, 2], [0, 0], "label 2"), ([0, 1], [0, 3], "prediction 3"), ([-1, 1], [0, 1], "label -1")],
)
def test_values_outside_the_classes_are_named_and_not_counted(labels, predicted, message):
    matrix = ConfusionMatrix(["a", "b"])
    with pytest.raises(InputError, match=message):
        matrix.add(torch.tensor(labels), torch.tensor(predicted))
    assert matrix.counts.sum() == 0


@pytest.mark.parametrize("classes", [1, 7, 254, 255])
def test_bytes_are_counted_as_other_integers_are(classes):
    rng = np.random.default_rng(classes)
    values = [*range(classes), 255]
    labels, predicted = (torch.from_numpy(rng.choice(values, (2, 50, 40)).astype(np.uint8)) for _ in range(2))
    predicted[(predicted == 255) & (labels != 255)] = 0
    labels[0, :3], predicted[0, :2] = 255, 255
    bytes_, others = (ConfusionMatrix([str(i) for i in range(classes)]) for _ in range(2))
    bytes_.add(labels, predicted)
    others.add(labels.long(), predicted.int())
    assert torch.equal(bytes_.counts, others.counts) and bytes_.counts.sum() == (labels != 255).sum()
    bytes_.add(labels.transpose(1, 2), predicted.transpose(1, 2))
    assert torch.equal(bytes_.counts, 2 * others.counts)
    labels[0, 3, 4], predicted[0, 3, 4] = 0, 255
    with pytest.raises(InputError, match=f"prediction 255 is not one of the {classes} classes"):
        bytes_.add(labels, predicted)
    assert torch.equal(bytes_.counts, 2 * others.counts)


def test_shapes_must_be_equal_and_names_unique():
    with pytest.raises(ValueError, match="predictions"):
        ConfusionMatrix(["a"]).add(torch.zeros(2, 3).long(), torch.zeros(3, 2).long())
    with pytest.raises(InputError, match="'a'"):
        ConfusionMatrix(["a", "b", "a"])


def test_table_fits_80_columns_and_shows_every_name_as_it_is(capsys):
    long = "a thing with a very long name, as in the larger data sets " * 2
    matrix = ConfusionMatrix(["[sky]", long, "nowhere"])
    matrix.add(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
    show(scores(matrix.report()))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "[sky]" in text and "66.67" in text and "75.00" in text
    assert "absent" in next(line for line in text.splitlines() if "nowhere" in line)
    assert text.splitlines()[-1] == "mIoU 58.33   pAcc 75.00   mAcc 83.33   fIoU 62.50   (4 pixels)"
