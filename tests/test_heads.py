import pytest
import torch

from emanet import heads
from emanet.config import HeadConfig
from emanet.errors import InputError


@pytest.mark.parametrize(
    ("channels", "fc1", "millions"), [(512, 0, 9.96), (256, 0, 4.85), (512, 256, 11.14)], ids=["512", "256", "512+fc1"]
)
def test_sizes_of_the_paper(channels, fc1, millions):
    """Table 1: 10.0 M and 4.87 M without fc1; with it 11.2 M (classifier of 21 classes)."""
    head = heads.build(HeadConfig(channels=channels, fc1_channels=fc1), [2048], 21)
    size = sum(p.numel() for p in head.parameters()) / 1e6
    assert size == pytest.approx(millions, rel=0.01)


def test_unknown_head_names_the_nearest():
    with pytest.raises(InputError, match="no head 'emma'; did you mean 'ema'"):
        heads.build(HeadConfig(name="emma"), [8], 2)


def test_auxiliary_head_sees_the_stage_before_the_last():
    head = heads.FCNHead([4, 8, 16], 3, HeadConfig(channels=6), level=-2).eval()
    maps = [torch.randn(1, 4, 9, 9), torch.randn(1, 8, 5, 5), torch.randn(1, 16, 5, 5)]
    assert head(maps).shape == (1, 3, 5, 5)
    assert torch.equal(head(maps), head([*maps[:2], torch.zeros_like(maps[2])]))
