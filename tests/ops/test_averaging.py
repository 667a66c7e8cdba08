import copy

import pytest
import torch

from emanet.experiments import load_experiment, override
from emanet.model import build_model
from emanet.ops.averaging import average_in, freeze_bn


@pytest.fixture(scope="module")
def model():
    config = override(load_experiment("drawn").model, {"head.channels": 16, "head.num_bases": 8})
    return build_model(config, "abc")


def test_the_average_forgets_its_start_and_then_keeps_as_told(model):
    averaged, net, no = copy.deepcopy(model), copy.deepcopy(model), torch.tensor(False)
    bias, bases = averaged.head.classifier.bias, averaged.head.emau.bases
    wanted, wanted_bases = bias.detach().clone(), bases.clone()
    for step, keep in enumerate((1 / 10, 2 / 11, 3 / 12, 0.3, 0.3)):
        for value in (*net.parameters(), *net.buffers()):
            value.data = torch.randn(value.shape) if value.is_floating_point() else value + 1
        average_in(averaged, net, step, 0.3, no)
        wanted = keep * wanted + (1 - keep) * net.head.classifier.bias.detach()
        wanted_bases = keep * wanted_bases + (1 - keep) * net.head.emau.bases
    torch.testing.assert_close(bias.detach(), wanted)
    torch.testing.assert_close(bases, wanted_bases)
    assert averaged.backbone.net.bn1.num_batches_tracked == 5
    average_in(averaged, model, 5, 0.3, torch.tensor(True))
    torch.testing.assert_close(bias.detach(), wanted)


def test_frozen_norms_normalise_by_their_statistics_and_keep_them(model):
    net = copy.deepcopy(model).train()
    net.head.dropout.p = 0.0
    images = torch.rand(2, 3, 33, 33)
    freeze_bn(net)
    before = {name: value.clone() for name, value in net.named_buffers()}
    low = net.low_logits(images)[0]
    low.square().sum().backward()
    changed = {name for name, value in net.named_buffers() if not torch.equal(value, before[name])}
    assert changed == {"head.emau.bases"}
    assert net.backbone.net.bn1.weight.grad.abs().sum() > 0
    net.load_state_dict(before, strict=False)
    net.eval()
    torch.testing.assert_close(net.low_logits(images)[0], low)
    net.train()
    assert all(module.training for module in net.modules())
