import copy

import pytest
import torch

from emanet.config import OptimConfig
from emanet.experiments import load_experiment, override, unused
from emanet.model import build_model
from emanet.optim import build_optimizer, lr_at, set_lr


@pytest.fixture(scope="module")
def model():
    config = override(load_experiment("drawn").model, {"head.channels": 16, "head.num_bases": 8})
    return build_model(config, "abc")


def groups(model, config):
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, config)
    set_lr(optimizer, config.lr)
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_groups_of_the_recipe(model):
    found = groups(model, OptimConfig(lr=0.01, weight_decay=1e-4))
    assert found["backbone.net.conv1.0.weight"] == (0.01, 1e-4)
    assert found["backbone.net.bn1.weight"] == (0.01, 0)
    assert found["backbone.net.bn1.bias"] == (0.02, 0)
    assert found["head.classifier.bias"] == (0.02, 0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(found) == trained and "head.emau.conv_in.weight" not in trained


def test_head_scale_and_adamw(model):
    found = groups(model, OptimConfig(name="adamw", lr=0.01, head_lr_scale=10, bias_lr_scale=1))
    assert (
        found["head.fc0.0.weight"] == (pytest.approx(0.1), 1e-4)
        and found["head.classifier.bias"][0] == found["head.fc0.0.weight"][0]
    )
    assert found["backbone.net.conv1.0.weight"][0] == 0.01
    assert isinstance(build_optimizer(model, OptimConfig(name="adamw")), torch.optim.AdamW)


def test_poly_in_stairs_with_warm_up():
    config = OptimConfig(lr=1.0, lr_every=10)
    assert lr_at(0, 100, config) == lr_at(9, 100, config) == 1.0
    assert lr_at(10, 100, config) == lr_at(19, 100, config) == pytest.approx(0.9**0.9)
    assert lr_at(99, 100, config) == pytest.approx(0.1**0.9)
    warm = OptimConfig(lr=1.0, lr_every=10, warmup_steps=4)
    assert [lr_at(step, 100, warm) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_steps_are_the_plain_ones(model, name):
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.1)
    models = [copy.deepcopy(model) for _ in range(2)]
    ours, plain = (build_optimizer(each, config) for each in models)
    assert ours.defaults["fused"]
    for group in plain.param_groups:
        group["fused"], group["foreach"] = False, False
    for step in range(4):
        for each, optimizer in zip(models, (ours, plain), strict=True):
            torch.manual_seed(step)
            set_lr(optimizer, lr_at(step, 4, config))
            for parameter in each.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    for own, wanted in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-6)


def test_momentum_is_for_sgd_alone(model):
    """As config.py says: the optimiser that may not have it set does not take it."""
    for name in ("sgd", "adamw"):
        one, two = (build_optimizer(model, OptimConfig(name=name, momentum=m)).defaults for m in (0.5, 0.9))
        assert (one == two) == bool(unused(OptimConfig(name=name, momentum=0.5)))
