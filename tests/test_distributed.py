import pytest
import torch
from conftest import ROOT
from forks import run_forks
from torch import nn

from emanet import distributed
from emanet.errors import InputError
from emanet.ops.sync_batch_norm import SyncBatchNorm, sync_batch_norm


def test_two_ranks_normalise_like_one_and_fail_together(tmp_path):
    code, _, err = run_forks(ROOT / "tests" / "programs" / "two_ranks.py", tmp_path, ranks=2)
    assert code == 0, err[-2000:]
    assert sorted(path.name for path in tmp_path.glob("fine*")) == ["fine0", "fine1"]


def test_ranks_that_differ_are_told_apart(monkeypatch):
    others = {"model.head.num_bases": 32, "the files of val": "c"}
    own = {"steps": 3, "model.head.num_bases": 64, "the files of val": "c"}
    distributed.agree(own)
    monkeypatch.setattr(distributed, "gather", lambda facts: [facts, facts, facts | others])
    with pytest.raises(InputError, match="the ranks differ in model.head.num_bases: 64 on rank 0, but 32 on rank 2"):
        distributed.agree(own)
    distributed.agree(own | others)
    monkeypatch.setattr(distributed, "rank", lambda: 2)
    with pytest.raises(SystemExit) as end:  # rank 0 says it
        distributed.agree(own)
    assert end.value.code == 2


def test_only_the_end_of_another_rank_becomes_a_sentence(monkeypatch):
    def fails(error):
        with distributed.ending_together():
            raise error

    closed = (
        "[/somewhere/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:41. More."
    )
    with pytest.raises(RuntimeError, match="gloo"):
        fails(RuntimeError(closed))  # there is no other rank
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    sentence = r"rank 0 stops: another one has ended or cannot be reached: Connection closed by peer \[10.0.0.2\]:41$"
    with pytest.raises(InputError, match=sentence):
        fails(RuntimeError(closed))
    with pytest.raises(InputError, match="cannot be reached: timeout"):
        fails(torch.distributed.DistBackendError("timeout"))
    with pytest.raises(RuntimeError, match="shape"):
        fails(RuntimeError("shape mismatch"))


def test_frozen_layers_stay_frozen():
    net = sync_batch_norm(nn.Sequential(nn.BatchNorm2d(3).requires_grad_(False)))
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_the_layer_stands_for_timms_with_its_activation():
    from timm.layers import BatchNormAct2d

    torch.manual_seed(0)
    norm = BatchNormAct2d(4)
    nn.init.uniform_(norm.weight)
    x = torch.randn(2, 4, 3, 3)
    want = norm.train()(x)
    net = sync_batch_norm(nn.Sequential(BatchNormAct2d(4)))
    net[0].load_state_dict(norm.state_dict())
    assert type(net[0]) is SyncBatchNorm and list(net.state_dict()) == [f"0.{name}" for name in norm.state_dict()]
    torch.testing.assert_close(net(x), want)


@pytest.fixture
def mac(monkeypatch):
    """As on a Mac with a GPU that torch can use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_a_macs_gpu_predicts_but_does_not_train(mac):
    assert distributed.pick_device("auto").type == distributed.pick_device("mps").type == "mps"
    assert distributed.pick_device("auto", training=True).type == "cpu"
    with pytest.raises(InputError, match="training sums in float64, .* use --device cpu"):
        distributed.pick_device("mps", training=True)


def test_a_macs_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="no device 'mps': torch finds no GPU of a Mac here"):
        distributed.pick_device("mps")
