"""The same numbers as the original and its relatives, out of their own checkpoints: docs/parity.md is made here.

The expected outputs under golden/parity/ were computed by the frameworks themselves (tests/parity/*.py). Every file of
weights is written in the framework's layout and goes through `convert`.

    python -m pytest tests/test_parity.py --write-docs    # writes the tables of docs/parity.md
"""

import pickle
import re
import shutil

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import ROOT
from parity import cases

import emanet
from emanet import backbones
from emanet.config import BackboneConfig, LossConfig, ModelConfig, OptimConfig
from emanet.convert.convert import convert
from emanet.losses import PixelLoss
from emanet.optim import build_optimizer, set_lr
from emanet.train import StepNet
from emanet.weights.tensors import read_weights

BOUND = 1e-4  # of the spread (largest less smallest) of what is compared
FACTOR = 10  # between the table's differences and this processor's, which adds in another order
ROUNDING = {"float32": 1e-7, "float64": 1e-13}  # smaller differences say nothing
pytestmark = pytest.mark.xdist_group("parity")  # the last test checks what the others have measured
DOCS = ROOT / "docs" / "parity.md"
LOGITS = [name for name in cases.names() if not name.startswith(("training", "encoding"))]


def write_checkpoint(folder, settings, shapes):
    """A file as the framework writes it."""
    state, layout = cases.fill(shapes, settings["layers"]), settings["layout"]
    path = folder / ("model.pdparams" if layout == "paddleseg" else "model.pth")
    if layout == "paddleseg":
        path.write_bytes(pickle.dumps(state | {key: {} for key in settings["others"]}, protocol=2))
        return path
    tensors = {key: torch.from_numpy(value) for key, value in state.items()}
    outer = {
        "original": lambda: {"net": tensors, "step": 30_000},
        "mmseg": lambda: {"meta": {"CLASSES": tuple(map(str, range(19))), "iter": 80_000}, "state_dict": tensors},
        "ssseg": lambda: {"cur_epoch": 220, "model": tensors},
        "encoding": lambda: tensors,
    }
    torch.save(outer[layout](), path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The file of a case. Cases that differ in settings alone are neighbours, and have the same: the last one stays."""
    folder, last = tmp_path_factory.mktemp("parity"), {}

    def source_of(settings, shapes):
        kind = [settings["layout"], settings["layers"], settings.get("others"), shapes]
        if last.get("kind") != kind:
            last.update(kind=kind, path=write_checkpoint(folder, settings, shapes))
        return last["path"]

    yield source_of
    shutil.rmtree(folder)


def converted(name, source, folder, **overrides):
    settings, shapes, expected = cases.load(name)
    convert(source(settings, shapes), folder / "ours.safetensors", **overrides)
    return settings, expected, emanet.load(folder / "ours.safetensors")


def difference(ours, theirs) -> float:
    return float(np.abs(ours - theirs).max() / (theirs.max() - theirs.min()))


@pytest.fixture(scope="module")
def measured():
    """Row of the table -> largest difference, filled by the tests above the one that checks the table."""
    return {}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_of_a_converted_file(name, source, tmp_path, measured):
    settings, expected, model = converted(name, source, tmp_path, **_not_in_the_file(name))
    images = torch.from_numpy(cases.image(*settings["size"])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        ours = model(images)[0, :, :: cases.EVERY, :: cases.EVERY].numpy()
    (tmp_path / "ours.safetensors").unlink()
    measured[name] = difference(ours, expected["logits"])
    assert measured[name] < BOUND


def _not_in_the_file(name):
    """What the weights cannot tell: the framework's configuration had it, and so must the command line."""
    settings = cases.load(name)[0]
    default = {"original": True, "mmseg": False, "ssseg": False, "paddleseg": False}[settings["layout"]]
    overrides = {} if settings["align_corners"] == default else {"align_corners": settings["align_corners"]}
    return overrides | ({} if settings["stride"] == 8 else {"output_stride": settings["stride"]})


def test_features_of_a_converted_backbone(tmp_path, measured):
    """PyTorch-Encoding's ResNet, whose files the original starts from, as model.backbone.pretrained."""
    settings, shapes, expected = cases.load("encoding_resnet50")
    convert(write_checkpoint(tmp_path, settings, shapes), tmp_path / "backbone.safetensors")
    config = BackboneConfig(name="resnet50s", pretrained=str(tmp_path / "backbone.safetensors"), multi_grid=(1, 2, 4))
    pixels = torch.from_numpy(cases.image(*settings["size"])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (ModelConfig().mean, ModelConfig().std))
    with torch.inference_mode():
        ours = backbones.build(config).eval()((pixels - mean) / std)[-1][0, ::16].numpy()
    measured["encoding_resnet50"] = difference(ours, expected["features"])
    assert measured["encoding_resnet50"] < BOUND


def test_logits_of_a_torchvision_backbone(tmp_path, measured):
    """Its ResNet-50 is timm's resnet50: one framework's file, the other's network, the same classification."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50()
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in cases.fill(shapes, 50).items()})
    torch.save(theirs.state_dict(), tmp_path / "resnet50.pth")
    convert(tmp_path / "resnet50.pth", tmp_path / "backbone.safetensors")
    ours = timm.create_model("resnet50")
    ours.load_state_dict(read_weights(str(tmp_path / "backbone.safetensors")))
    pixels = torch.from_numpy(cases.image(64, 96)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        measured["torchvision_resnet50"] = difference(ours.eval()(pixels).numpy(), theirs.eval()(pixels).numpy())
    assert measured["torchvision_resnet50"] < BOUND


def test_steps_of_training(source, tmp_path, measured):
    """The original's own training session, dropout off: loss, gradients, and after the steps bases and weights.

    In float64: a network of random weights makes of float32's rounding a tenth of some gradients, in either code.
    """
    settings, expected, model = converted("training", source, tmp_path)
    model.train().double().head.dropout.p = 0.0
    loss_fn = PixelLoss(LossConfig(average="all"), model.classes)
    step_net, optim = StepNet(model, loss_fn), OptimConfig()  # its defaults are the original's
    optimizer = build_optimizer(model, optim)
    set_lr(optimizer, optim.lr)
    size, batch = settings["size"], settings["batch"]
    images = torch.from_numpy(cases.image(*size, batch)).permute(0, 3, 1, 2)
    images = images.to(model.mean.dtype) / 255
    labels = torch.from_numpy(cases.labels(*size, batch))
    losses, gradients = [], None
    for _ in range(settings["steps"]):
        loss = step_net(images, labels) / loss_fn.divisor(labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if gradients is None:
            gradients = np.array([cases.sketch(p.grad.numpy()) for p in model.parameters() if p.grad is not None])
        optimizer.step()

    state = {key: value.numpy() for key, value in model.state_dict().items() if key not in ("mean", "std")}
    weights = np.array([cases.sketch(value) for value in state.values()])
    where = f"training, {settings['steps']} steps of the original's session"
    found = {
        f"{where}: losses": float(np.abs(np.array(losses) / expected["losses"] - 1).max()),
        f"{where}: gradients of the first step": share_of_norm(gradients, expected["gradients"]),
        f"{where}: weights and BatchNorm statistics": share_of_norm(weights, expected["weights"]),
        f"{where}: bases": difference(state["head.emau.bases"][0, ::8], expected["bases"]),
    }
    measured |= found
    assert max(found.values()) < BOUND, found


def share_of_norm(ours, theirs):
    """How far norm and projection of any array are off, as a share of its norm: see cases.sketch."""
    return float((np.abs(ours - theirs) / np.maximum(theirs[:, :1], 1e-12)).max())


def test_the_table(measured, request):
    """Every row of the table in docs/parity.md was measured here, now, and differs by a factor of ten at most."""
    if len(measured) < len(LOGITS) + 6:
        pytest.skip("a part of the cases was left out")
    rows = {name: f"| {title(name)} | {value:.0e} |" for name, value in measured.items()}
    table = "\n".join(["| case | largest difference |", "| --- | --- |", *rows.values(), ""])
    text = DOCS.read_text()
    start, end = "<!-- measured -->\n", "<!-- end -->"
    before, rest = text.split(start)
    written, after = rest.split(end)
    if request.config.getoption("--write-docs"):
        DOCS.write_text(before + start + table + end + after)
        return
    documented = dict(re.findall(r"^\| (.+) \| (\S+e[-+]\d+) \|$", written, re.M))
    assert documented.keys() == {title(name) for name in measured}
    for name, here in measured.items():
        least = ROUNDING["float64" if name.startswith("training") else "float32"]
        there = max(float(documented[title(name)]), least)
        assert there / FACTOR <= max(here, least) <= there * FACTOR, f"{name}: {here:.0e}, documented {there:.0e}"


def title(name):
    """`paddleseg_resnet50_stride8_align` -> `PaddleSeg, ResNet-50, stride 8, align_corners`."""
    words = {
        "original": "original", "mmseg": "mmsegmentation", "ssseg": "sssegmentation", "paddleseg": "PaddleSeg",
        "encoding": "PyTorch-Encoding backbone", "torchvision": "torchvision backbone", "align": "align_corners",
        "noalign": "no align_corners",
    }  # fmt: skip
    parts = [words.get(part, part) for part in name.split("_")]
    return re.sub(
        r"\b(resnet|stride)(\d+)",
        lambda m: f"{m[1].replace('resnet', 'ResNet-').replace('stride', 'stride ')}{m[2]}",
        ", ".join(parts),
    )
