import pytest
import torch
from torch import nn

from emanet import distributed
from emanet.ops.dropout import DrawnAsBefore, step_seed

IMAGES, CHANNELS, PASSES = 8, 5, 2


def as_torch(net, x, ranks):
    """What so many ranks drop in the passes of a step, with torch's own generator: (passes, images of a pass, ...)."""
    passes = x.unflatten(0, (PASSES, ranks, -1))
    dropped = []
    for rank in range(ranks):
        torch.manual_seed(step_seed(3, 7, rank))
        dropped.append(torch.stack([net(part) for part in passes[:, rank]]))
    return torch.cat(dropped, 1)


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (4, 2), (2, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_ranks_drop_the_same_channels(monkeypatch, before, now, dtype):
    x = torch.randn(IMAGES, CHANNELS, 3, 2).to(dtype).to(memory_format=torch.channels_last)
    plain, net = (nn.Sequential(nn.Dropout2d(0.3), nn.Dropout2d(0.5), nn.Dropout2d(0.0)) for _ in range(2))
    wanted = as_torch(plain, x, before)
    drawn = DrawnAsBefore(net, before, torch.device("cpu"))
    monkeypatch.setattr(distributed, "world_size", lambda: now)
    parts = []
    for rank in range(now):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        drawn.start(3, 7)
        parts.append(torch.stack([net(part) for part in x.unflatten(0, (PASSES, now, -1))[:, rank]]))
    assert torch.equal(torch.cat(parts, 1), wanted)
    assert (wanted == 0).any() and (wanted != 0).any()
    assert torch.equal(net.eval()(x), x)
