import errno
import sys
import tempfile
import threading
import time
import weakref

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from forks import run_forks

from emanet.config import BackboneConfig, EvalConfig, HeadConfig, ModelConfig
from emanet.errors import InputError
from emanet.evaluate import counted, evaluate
from emanet.inference import (
    calibration_input,
    grid_size,
    predict_labels,
    predict_many,
    probabilities,
    shared_size,
)
from emanet.metrics import ConfusionMatrix
from emanet.model import build_model
from emanet.windows import window_starts


class Drawn:
    """Images of changing odd sizes, a function of i; read-only arrays, as PIL gives them."""

    def __init__(self, length=5, sizes=((33, 47), (1, 1), (40, 25))):
        self.length, self.sizes = length, sizes

    def __len__(self):
        return self.length

    def name(self, i):
        return f"drawn-{i}"

    def read(self, i):
        rng = np.random.default_rng(i)
        h, w = self.sizes[i % len(self.sizes)]
        image, labels = rng.integers(0, 256, (h, w, 3), np.uint8), rng.choice(np.uint8([0, 1, 2, 255]), (h, w))
        image.flags.writeable = labels.flags.writeable = False
        return image, labels


def tiny_model(align_corners=True):
    torch.manual_seed(0)
    config = ModelConfig(
        backbone=BackboneConfig(name="test_resnet", pretrained=False, output_stride=8),
        head=HeadConfig(channels=32, num_bases=8, fc1_channels=0),
        align_corners=align_corners,
    )
    model = build_model(config, ["a", "b", "c"]).eval()
    # An untrained network prefers one class everywhere: make the three take turns.
    with torch.no_grad():
        torch.nn.init.normal_(model.head.classifier.weight, std=3)
        model.head.classifier.bias -= model(images(33, 47)).mean((0, 2, 3))
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["corners", "centres"])
def model(request):
    return tiny_model(request.param)


def images(h, w, batch=1):
    return torch.rand(batch, 3, h, w, generator=torch.Generator().manual_seed(h * w))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("h", "w"), [(33, 47), (1, 1), (48, 49)])
def test_whole_is_the_model_on_the_padded_image(model, h, w):
    x = images(h, w)
    side_h, side_w = next(
        (a, b) for a in range(h, h + 8) for b in range(w, w + 8) if a % 8 == b % 8 == int(model.align_corners)
    )
    padded = model.mean.expand(1, 3, side_h, side_w).clone()  # the mean colour
    padded[:, :, :h, :w] = x
    with torch.no_grad():
        wanted = model(padded)[:, :, :h, :w]
    p = probabilities(model, x)
    assert p.shape == (1, 3, h, w) and p.dtype == torch.float32
    close(p, wanted.softmax(1))
    labels = predict_labels(model, x)
    assert labels.dtype == torch.uint8 and torch.equal(labels, wanted.argmax(1).to(torch.uint8))


def test_bytes_and_floats_are_the_same_image(model):
    x = (images(17, 20) * 255).to(torch.uint8)
    close(probabilities(model, x), probabilities(model, x / 255))


def test_the_images_of_a_batch_do_not_depend_on_each_other(model):
    x = images(21, 30, batch=2)
    config = EvalConfig(mode="slide", window=(17, 17), scales=(1.0, 1.5), flip=True)
    close(probabilities(model, x, config)[1:], probabilities(model, x[1:], config))


def test_flip_averages_the_mirrored_prediction(model):
    x = images(33, 47)
    flipped = EvalConfig(flip=True)
    mirrored = probabilities(model, x.flip(3)).flip(3)
    close(probabilities(model, x, flipped), (probabilities(model, x) + mirrored) / 2)
    assert not torch.allclose(mirrored, probabilities(model, x), atol=1e-3)  # so the average says something
    close(probabilities(model, x.flip(3), flipped), probabilities(model, x, flipped).flip(3))
    symmetric = torch.cat([x, x.flip(3)], dim=3)
    p = probabilities(model, symmetric, flipped)
    close(p, p.flip(3))


def test_scales_are_averaged_at_the_size_of_the_image(model):
    x = images(33, 47)
    align, wanted = model.align_corners, 0
    for size in ((16, 24), (33, 47), (58, 82)):  # 0.5, 1 and 1.75 times
        scaled = F.interpolate(x, size, mode="bilinear", align_corners=align)
        wanted = wanted + F.interpolate(probabilities(model, scaled), (33, 47), mode="bilinear", align_corners=align)
    p = probabilities(model, x, EvalConfig(scales=(0.5, 1.0, 1.75)))
    close(p, wanted / 3)
    close(p.sum(1), torch.ones(1, 33, 47))
    assert torch.equal(predict_labels(model, x, EvalConfig(scales=(0.5, 1.0, 1.75)))[0], p.argmax(1)[0].byte())


@pytest.mark.parametrize("window", [(33, 41), (33, 500), (100, 41)])
def test_a_window_that_holds_the_image_is_the_whole_image(model, window):
    x = images(33, 41)
    assert torch.equal(probabilities(model, x, EvalConfig(mode="slide", window=window)), probabilities(model, x))


def test_windows_are_averaged_where_they_overlap(model):
    x = images(17, 40)
    config = EvalConfig(mode="slide", window=(17, 25), overlap=0.25)
    left, right = probabilities(model, x[..., :25]), probabilities(model, x[..., 15:])
    p = probabilities(model, x, config)
    close(p[..., :15], left[..., :15])
    close(p[..., 15:25], (left[..., 15:] + right[..., :10]) / 2)
    close(p[..., 25:], right[..., 10:])


@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.5, 0.99])
def test_windows_cover_the_side_evenly(overlap):
    for side in range(1, 120):
        for window in (1, 7, 32):
            starts = window_starts(side, window, overlap)
            assert starts[0] == 0 and starts[-1] == max(0, side - window)
            steps = np.diff(starts)
            if len(steps):
                assert 1 <= steps.min() and steps.max() <= max(1, round(window * (1 - overlap)))
                assert steps.max() - steps.min() <= 1
                assert len(steps) == -(-(side - window) // max(1, round(window * (1 - overlap))))


SIZES = ((30, 40), (33, 41), (30, 40), (57, 20), (28, 39))  # on a grid of 8n + 1, four of them are 33 x 41


@pytest.mark.parametrize("config", [EvalConfig(), EvalConfig(scales=(1.0, 0.75), flip=True)], ids=["whole", "scales"])
def test_images_of_several_sizes_have_the_labels_that_each_has_alone(model, config):
    many = [images(*size)[0] for size in SIZES]
    for image, labels in zip(many, predict_many(model, many, config), strict=True):
        alone = predict_labels(model, image[None], config)[0]
        assert labels.shape == image.shape[1:] and labels.dtype == torch.uint8
        assert (labels == alone).float().mean() > 0.999
    assert predict_many(model, [], config) == []


def inputs_of(model, run):
    """The shapes and the values of what the backbone gets while `run()` runs."""
    seen = []
    hook = model.backbone.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    try:
        run()
    finally:
        hook.remove()
    return seen


def test_images_that_are_padded_alike_share_a_pass():
    model = tiny_model()
    seen = inputs_of(model, lambda: predict_many(model, [images(*size)[0] for size in SIZES]))
    assert [tuple(x.shape) for x in seen] == [(4, 3, 33, 41), (1, 3, 57, 25)]
    assert {shared_size(model, size, EvalConfig()) for size in SIZES} == {(33, 41), (57, 25)}
    flipped = EvalConfig(flip=True)
    assert {shared_size(model, size, flipped) for size in SIZES} == set(SIZES)


def test_calibration_inputs_are_what_the_network_gets(model):
    x = images(30, 44)
    (whole,) = inputs_of(model, lambda: predict_labels(model, x))
    assert torch.equal(calibration_input(model, x), whole)
    slide = EvalConfig(mode="slide", window=(17, 20), overlap=0.5)
    windows = inputs_of(model, lambda: predict_labels(model, x, slide))
    window = calibration_input(model, x, slide)
    assert {w.shape for w in windows} == {window.shape}
    assert torch.equal(window[..., :17, :20], model.normalise(x)[..., 6:23, 12:32])  # the middle


def slow_counts(model, dataset):
    counts = np.zeros((3, 3), int)
    for i in range(len(dataset)):
        image, labels = dataset.read(i)
        predicted = predict_labels(model, torch.tensor(image).permute(2, 0, 1)[None])[0].numpy()
        for true in range(3):
            for guess in range(3):
                counts[true, guess] += ((labels == true) & (predicted == guess)).sum()
    return counts


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluate_counts_every_labelled_pixel_once(model, workers):
    dataset = Drawn()
    seen = []
    matrix = evaluate(model, dataset, workers=workers, on_sample=lambda *sample: seen.append(sample))
    assert matrix.counts.tolist() == slow_counts(model, dataset).tolist()
    assert (matrix.counts.sum(0) > 0).all()  # every class is predicted, so a wrong column would show
    assert [i for i, *_ in seen] == [0, 1, 2, 3, 4]
    for i, image, labels, predicted in seen:
        assert (image == dataset.read(i)[0]).all() and (labels == dataset.read(i)[1]).all()
        assert predicted.shape == labels.shape and predicted.dtype == np.uint8
    matrix.add(torch.tensor([0]), torch.tensor([0]))  # an ordinary tensor, although made in evaluation


def test_images_are_read_and_counted_beside_the_network():
    """The network on the second image waits until the third is read and the first is counted."""
    events, seen = {"read 2": threading.Event(), "counted 0": threading.Event()}, []

    class Watched(Drawn):
        def read(self, i):
            sample = super().read(i)
            events.get(f"read {i}", threading.Event()).set()
            return sample

    def labels_of(image):
        if len(seen) == 1:
            assert all(event.wait(10) for event in events.values()), events
        seen.append(image.shape)
        return torch.zeros(image.shape[:2], dtype=torch.uint8)

    class Counting(ConfusionMatrix):
        def add(self, labels, predicted):
            super().add(labels, predicted)
            events["counted 0"].set()

    matrix = counted(labels_of, Watched(), Counting(["a", "b", "c"]), EvalConfig())
    assert [*map(tuple, seen)] == [Drawn().read(i)[0].shape for i in range(5)]
    assert matrix.counts.sum() == matrix.counts[:, 0].sum() == sum((Drawn().read(i)[1] != 255).sum() for i in range(5))


def test_images_side_by_side_are_counted_as_one_by_one(model):
    both, threads = threading.Barrier(2, timeout=20), set()

    def labels_of(image):
        threads.add(threading.get_ident())
        both.wait()
        return predict_labels(model, image.permute(2, 0, 1)[None])[0]

    matrix = counted(labels_of, Drawn(4), ConfusionMatrix(model.classes), EvalConfig(), at_once=2)
    assert matrix.counts.tolist() == slow_counts(model, Drawn(4)).tolist() and len(threads) == 2


def test_large_images_take_turns(model, monkeypatch):
    monkeypatch.setattr("emanet.windows.LARGE", 0)
    inside, most = set(), []

    def labels_of(image):
        inside.add(threading.get_ident())
        time.sleep(0.005)
        most.append(len(inside))
        inside.discard(threading.get_ident())
        return torch.zeros(image.shape[:2], dtype=torch.uint8)

    counted(labels_of, Drawn(5), ConfusionMatrix(model.classes), EvalConfig(), at_once=2)
    assert most == [1] * 5


def test_evaluate_of_nothing():
    assert evaluate(tiny_model(), Drawn(0)).report()["mIoU"] is None


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_restores_the_training_mode_and_leaves_the_model_as_it_was(training):
    model = tiny_model().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = []
    evaluate(model, Drawn(2), on_sample=lambda *_: modes.append(model.training))
    assert modes == [False, False] and model.training is training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ZeroDivisionError):
        evaluate(model, Drawn(2), on_sample=lambda *_: 1 / 0)
    assert model.training is training


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_named_in_one_sentence(workers):
    class Mismatch(Drawn):
        def read(self, i):
            image, labels = super().read(i)
            return image, labels[:-1] if i == 3 else labels

    class Outside(Drawn):
        def read(self, i):
            image, labels = super().read(i)
            return image, np.where(labels == 2, 7, labels).astype(np.uint8)

    model = tiny_model()
    with pytest.raises(InputError) as error:
        evaluate(model, Mismatch(), workers=workers)
    assert str(error.value) == "drawn-3: the image is (h, w) = (33, 47), but its labels are (32, 47)"
    with pytest.raises(InputError, match=r"^drawn-0: label 7 is not one of the 3 classes"):
        evaluate(model, Outside(), workers=workers)


def test_memory_does_not_grow_with_the_data_set():
    arrays, most = [], 0

    class Watched(Drawn):
        def read(self, i):
            sample = super().read(i)
            arrays.extend(weakref.ref(array) for array in sample)
            return sample

    def watch(i, image, labels, predicted):
        nonlocal most
        arrays.extend(weakref.ref(array) for array in (image, labels, predicted))
        most = max(most, sum(ref() is not None for ref in arrays))

    evaluate(tiny_model(), Watched(12, sizes=((9, 9),)), on_sample=watch)
    assert len(arrays) == 60 and most <= 10


def test_progress_goes_to_stderr_where_it_is_wanted(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the captured stream for a terminal
    evaluate(tiny_model(), Drawn(2), progress=True)
    shown = capsys.readouterr()
    assert "evaluate" in shown.err and "2/2" in shown.err and shown.out == ""
    evaluate(tiny_model(), Drawn(2))
    assert capsys.readouterr() == ("", "")


def test_after_an_error_the_workers_end_at_once():
    with pytest.raises(ZeroDivisionError) as held:  # a traceback that lives on keeps the frames of evaluate alive
        evaluate(tiny_model(), Drawn(50), workers=1, on_sample=lambda *_: 1 / 0)
    assert held and mp.active_children() == []


def rank_main(folder):
    """What each rank does; this file is also the program of the test below."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model, seen = tiny_model(), []
    together = evaluate(model, Drawn(7), on_sample=lambda i, *_: seen.append(i))
    with pytest.raises(InputError) as error:  # on rank 0, while rank 1 has finished and waits
        evaluate(model, LastIsBad(7))
    dist.destroy_process_group()
    alone = evaluate(model, Drawn(7))  # in this process too: the same threads and so the same rounding
    result = {"together": together.counts, "alone": alone.counts, "seen": seen, "error": str(error.value)}
    torch.save(result, f"{folder}/{rank}.pt")


class LastIsBad(Drawn):
    def read(self, i):
        image, labels = super().read(i)
        return image, labels[:-1] if i == 6 else labels


def test_two_ranks_count_exactly_what_one_counts_and_end_together(tmp_path):
    code, _, err = run_forks(__file__, tmp_path, ranks=2)
    assert code == 0, err
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["seen"] == [0, 2, 4, 6] and second["seen"] == [1, 3, 5]
    assert first["alone"].sum() > 0
    for result in (first, second):
        assert torch.equal(result["together"], first["alone"])
    assert first["error"].startswith("drawn-6: the image is (h, w) = (33, 47), but its labels are (32, 47)")
    assert "another one has ended or cannot be reached: " in second["error"] and "\n" not in second["error"]


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        (EvalConfig(), "mode slide predicts it in windows"),
        (EvalConfig(mode="slide", window=(17, 17)), "split the image or make it smaller"),
        (EvalConfig(mode="slide", window=(99, 99)), "smaller windows need less"),
    ],
)
def test_an_image_too_large_for_memory_is_named(model, monkeypatch, config, hint):
    def none_left(*arguments):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("emanet.evaluate.predict_labels", none_left)
    with pytest.raises(InputError, match=f"^drawn-0: not enough memory to predict 47 x 33 pixels; {hint}$"):
        evaluate(model, Drawn(), config)


def test_workers_take_a_temporary_folder_with_a_path_too_long_for_a_socket(model, monkeypatch, tmp_path):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert torch.equal(evaluate(model, Drawn(), workers=1).counts, evaluate(model, Drawn()).counts)


def test_without_any_temporary_folder_workers_are_refused(model, monkeypatch):
    def nowhere():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/']")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", nowhere)
    with pytest.raises(InputError, match="1 processes that read .*: No usable temporary directory .*; .* or 0 to read"):
        evaluate(model, Drawn(), workers=1)
    evaluate(model, Drawn())


@pytest.mark.parametrize("config", [{}, {"scales": (1.0, 0.5), "flip": True}], ids=["one pass", "scales"])
def test_an_image_beyond_the_longest_side_is_predicted_smaller(model, config):
    x = images(40, 64)
    small = F.interpolate(x, (20, 32), mode="bilinear", align_corners=model.align_corners, antialias=True)
    wanted = F.interpolate(
        probabilities(model, small, EvalConfig(**config)), (40, 64), mode="bilinear", align_corners=model.align_corners
    )
    shrinking = EvalConfig(longest_side=32, **config)
    close(probabilities(model, x, shrinking), wanted)
    labels = predict_labels(model, x, shrinking)
    assert labels.shape == (1, 40, 64) and (labels == wanted.argmax(1)).float().mean() > 0.97
    assert torch.equal(predict_many(model, list(x), shrinking)[0], labels[0])
    assert not torch.allclose(wanted, probabilities(model, x, EvalConfig(**config)), atol=1e-3)
    for enough in (64, 0):
        same = EvalConfig(longest_side=enough, **config)
        assert torch.equal(predict_labels(model, x, same), predict_labels(model, x, EvalConfig(**config)))


def test_windows_and_shared_passes_know_the_longest_side(model):
    x, window = images(17, 40), {"mode": "slide", "window": (17, 25)}
    slide = EvalConfig(longest_side=20, **window)  # unused there
    assert torch.equal(probabilities(model, x, slide), probabilities(model, x, EvalConfig(**window)))
    assert shared_size(model, (30, 41), EvalConfig(longest_side=40)) == (30, 41)
    assert shared_size(model, (30, 40), EvalConfig(longest_side=40)) == grid_size(model, (30, 40))
    assert max(calibration_input(model, images(32, 64), EvalConfig(longest_side=32)).shape[2:]) <= 40


if __name__ == "__main__":
    rank_main(sys.argv[1])
