"""Two ranks of different batch sizes: BatchNorm as over one batch, and failures together.  torchrun ... FOLDER"""

import sys

import torch
from torch import nn

from emanet import distributed
from emanet.ops.sync_batch_norm import sync_batch_norm

distributed.init(torch.device("cpu"))
rank = distributed.rank()
torch.manual_seed(0)
x = torch.randn(6, 5, 4, 3)
weight = torch.rand(5, 3)
share = [slice(0, 2), slice(2, 6)][rank]  # ranks of different batch sizes

torch.manual_seed(1)
plain, synced = (nn.Sequential(nn.BatchNorm2d(5), nn.ReLU()) for _ in range(2))
for net in (plain, synced):
    nn.init.uniform_(net[0].weight)
synced.load_state_dict(plain.state_dict())
synced = sync_batch_norm(synced).train()
plain.train()
whole, part = x.clone().requires_grad_(), x[share].clone().requires_grad_()
target = torch.randn(6, 5, 4, 3)
(plain(whole) * target).sum().backward()
out = synced(part)
(out * target[share]).sum().backward()
torch.testing.assert_close(part.grad, whole.grad[share])
torch.testing.assert_close(distributed.sum_over_ranks(synced[0].weight.grad.clone()), plain[0].weight.grad)
torch.testing.assert_close(synced[0].running_mean, plain[0].running_mean)
torch.testing.assert_close(synced[0].running_var, plain[0].running_var)


def fails():
    raise ValueError("told by rank 0")


try:
    distributed.first_on_rank_zero(fails)
except ValueError:
    assert rank == 0
except SystemExit as end:
    assert rank == 1 and end.code == 2
else:
    raise AssertionError("a failure of rank 0 went unnoticed")
distributed.first_on_rank_zero(lambda: None)
open(f"{sys.argv[1]}/fine{rank}", "w").close()
distributed.shutdown()
