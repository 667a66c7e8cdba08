import pytest
import torch
from torch import nn

from emanet.ops.undo import BufferUndo


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    net.register_buffer("bases", torch.randn(1, 2, 5))
    net(torch.randn(2, 3, 4, 4))
    return net


@pytest.mark.parametrize("may_look", [True, False], ids=["on the CPU", "as on a GPU"])
@pytest.mark.parametrize("skip", [True, False])
def test_buffers_come_back_only_if_the_step_is_skipped(skip, may_look):
    net = network()
    undo = BufferUndo(net)
    undo._may_look = may_look
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    undo.keep()
    with torch.no_grad():
        net(torch.full((2, 3, 4, 4), torch.nan))  # what NaN has touched cannot be computed back
        net.bases.fill_(torch.inf)
    after = {name: buffer.clone() for name, buffer in net.named_buffers()}
    assert after["0.num_batches_tracked"] == 2 and not after["0.running_mean"].isfinite().any()
    undo.undo(torch.tensor(skip))
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer.nan_to_num(7), (before if skip else after)[name].nan_to_num(7)), name
    undo.keep()
    net(torch.randn(2, 3, 4, 4))
    undo.undo(torch.tensor(False))
    assert net[0].num_batches_tracked == (2 if skip else 3), "a later step starts from there"


def test_modules_in_eval_mode_are_left_out():
    net = network()
    net[2].eval()
    undo = BufferUndo(net)
    covered = {id(buffer) for buffers, _, _ in undo._groups for buffer in buffers}
    assert covered == {id(buffer) for buffer in (*net[0].buffers(), net.bases)}
