import pytest
import torch
from torch import nn

from emanet.emau import EMAU
from emanet.errors import InputError
from emanet.ops.em_attention import em_attention
from emanet.predict.carried import carried_bases


def test_carried_bases_start_where_the_image_before_ended():
    torch.manual_seed(0)
    emau, (first, second) = EMAU(8, 5).eval(), torch.randn(2, 1, 8, 4, 6)
    buffer, trained = emau.bases, emau.bases.clone()
    alone = emau(first), emau(second)
    ended = em_attention(emau.conv_in(first).flatten(2), trained, 3)[1]
    rebuilt = em_attention(emau.conv_in(second).flatten(2), ended, 3)[0].view_as(second)
    want = torch.relu(second + emau.bn_out(emau.conv_out(torch.relu(rebuilt))))
    with carried_bases(nn.Sequential(emau)), torch.no_grad():
        torch.testing.assert_close(emau(first), alone[0])
        torch.testing.assert_close(emau(second), want)
    assert (want - alone[1]).abs().max() > 1e-4
    assert emau.bases is buffer and torch.equal(buffer, trained) and torch.equal(emau(second), alone[1])


def test_bases_are_only_carried_by_networks_that_have_them():
    with pytest.raises(InputError, match="network with EM attention, with --engine plain"), carried_bases(nn.ReLU()):
        pass
