import contextlib
import copy

import pytest
import torch

from emanet import train
from emanet.analysis.cost import measure
from emanet.config import Experiment
from emanet.errors import InputError
from emanet.experiments import load_experiment, override
from emanet.model import build_model
from emanet.ops import recompute

BACKBONES = {"test_resnet": 4, "mobilenetv2_035": 17, "convnext_atto": 12}


def pair(name="test_resnet", stride=8, **options):
    """A model in training mode and its recomputing copy."""
    torch.manual_seed(0)
    changes = {"backbone.name": name, "backbone.output_stride": stride, "backbone.options": options}
    small = {"head.channels": 16, "head.num_bases": 8}
    model = build_model(override(load_experiment("drawn").model, changes | small), "abc").train()
    own = copy.deepcopy(model)
    return model, own, recompute.blocks(own.backbone)


def step(model):
    torch.manual_seed(1)
    images = torch.rand(2, 3, 65, 65, generator=torch.Generator().manual_seed(2))
    model.low_logits(model.normalise(images))[0].square().sum().backward()


@pytest.mark.parametrize("name", BACKBONES)
def test_same_gradients_and_statistics_to_the_bit(name):
    model, own, names = pair(name, 32 if name == "convnext_atto" else 8, drop_path_rate=0.2)
    assert len(names) == BACKBONES[name] and list(own.state_dict()) == list(model.state_dict())
    for each in (model, own):
        step(each)
    for (label, wanted), got in zip(model.named_parameters(), own.parameters(), strict=True):
        assert (wanted.grad is None and got.grad is None) or torch.equal(wanted.grad, got.grad), label
    for label, value in model.state_dict().items():
        assert torch.equal(value, own.state_dict()[label]), label


def test_without_the_guard_statistics_move_twice(monkeypatch):
    """That the test above would see it."""
    monkeypatch.setattr(recompute, "statistics_at_rest", lambda module: contextlib.nullcontext())
    model, own, _ = pair()
    for each in (model, own):
        step(each)
    norm = "backbone.net.layer1.0.bn1.num_batches_tracked"
    assert (model.state_dict()[norm], own.state_dict()[norm]) == (1, 2)


def test_less_memory():
    """Of 17 blocks one is in memory at a time: 0.23 of it, with AVX-512 and with AVX2."""
    model, own, _ = pair("mobilenetv2_035")
    device = torch.device("cpu")
    kept, recomputed = (measure(each, (129, 129), 2, device, training=True)["training"] for each in (model, own))
    assert recomputed < 0.4 * kept


def test_a_run_gives_the_same_losses(tiny, tmp_path):
    runs = {flag: override(tiny, {"recompute": flag, "steps": 2}) for flag in (False, True)}
    plain, own = (train.train(config, tmp_path / str(flag)) for flag, config in runs.items())
    assert plain == own


def test_not_with_compile():
    with pytest.raises(InputError, match="compile and recompute cannot be combined"):
        override(Experiment(), {"compile": True, "recompute": True})
