import copy
import math

import pytest
import torch

from emanet import backbones
from emanet.config import BackboneConfig, OptimConfig
from emanet.errors import InputError
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


def test_cosine_in_stairs_with_warm_up():
    config = OptimConfig(lr=1.0, lr_every=10, schedule="cosine", warmup_steps=4)
    assert [lr_at(step, 100, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_at(50, 100, config) == lr_at(59, 100, config) == pytest.approx(0.5)
    assert lr_at(99, 100, config) == pytest.approx((1 - math.cos(math.pi / 10)) / 2)


def test_poly_power_is_for_poly_alone():
    for schedule in ("poly", "cosine"):
        one, two = (OptimConfig(schedule=schedule, poly_power=power) for power in (0.5, 0.9))
        assert (lr_at(50, 100, one) == lr_at(50, 100, two)) == bool(unused(one))


def test_each_stage_learns_slower_than_the_one_after_it(model):
    found = groups(model, OptimConfig(lr=1.0, bias_lr_scale=2, head_lr_scale=10, layer_decay=0.5))
    stems = ("conv1.0", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1")
    rates = [found[f"backbone.net.{name}.weight"][0] for name in stems]
    assert rates == [0.0625, 0.125, 0.25, 0.5, 1.0]
    assert found["backbone.net.bn1.bias"] == (0.125, 0) and found["head.fc0.0.weight"][0] == 10


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "convnext_atto", "mobilenetv2_050"])
def test_a_stage_is_what_its_map_is_the_first_to_depend_on(name):
    backbone = backbones.build(BackboneConfig(name=name, pretrained=False, output_stride=32)).eval()
    members, seen = backbones.stages(backbone), set()
    maps = backbone(torch.randn(1, 3, 32, 32))
    assert len(members) == len(maps)
    for own, output in zip(members, maps, strict=True):
        gradients = torch.autograd.grad(output.sum(), list(backbone.parameters()), retain_graph=True, allow_unused=True)
        needed = {p for p, gradient in zip(backbone.parameters(), gradients, strict=True) if gradient is not None}
        assert set(own) == needed - seen
        seen |= needed
    assert len(seen) == len(list(backbone.parameters()))


def test_a_vit_learns_by_block_and_a_backbone_of_unknown_stages_is_refused(model):
    config = BackboneConfig(name="test_vit", pretrained=False, output_stride=16)
    vit = backbones.build(config)
    first, *blocks = backbones.stages(vit)
    names = {p: name for name, p in vit.named_parameters()}
    assert {names[p].split(".")[2] for p in first} == {"cls_token", "pos_embed", "patch_embed"}
    assert [{names[p].split(".")[3] for p in own if "blocks" in names[p]} for own in blocks] == [
        {str(i)} for i in range(len(blocks))
    ]
    other = copy.deepcopy(model)
    other.backbone.net.feature_info = backbones.build(config).net.feature_info
    with pytest.raises(InputError, match="optim.layer_decay is 0.9, but this backbone does not say where its stages"):
        build_optimizer(other, OptimConfig(layer_decay=0.9))


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
