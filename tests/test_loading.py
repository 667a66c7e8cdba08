import torch
from torch import nn

from emanet.loading import Unfilled, load, model_of, read


def test_what_a_file_holds_is_not_drawn_at_random_first():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = load("street")
    assert torch.equal(torch.get_rng_state(), before), "nothing was drawn"
    file = read("street")
    state = model.state_dict()
    assert state.keys() == file.tensors.keys()
    assert all(torch.equal(state[key], file.tensors[key]) for key in state)
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])


def test_values_beyond_those_of_the_file_have_no_memory():
    with Unfilled(1000):
        first, second, bases = nn.Linear(10, 10), nn.Linear(1 << 20, 1 << 20), torch.randn(5, 5) * 2
    assert not first.weight.is_meta and second.weight.is_meta and bases.is_meta
    assert second.weight.shape == (1 << 20, 1 << 20)


def test_a_model_with_far_more_values_while_it_is_built_loads_all_the_same(monkeypatch):
    limits = []
    init = Unfilled.__init__

    def tight(self, most=1 << 60):
        limits.append(most)
        init(self, 10 if len(limits) == 1 else most)

    monkeypatch.setattr(Unfilled, "__init__", tight)
    model = model_of(read("street"))
    assert len(limits) == 2 and not any(value.is_meta for value in model.state_dict().values())
