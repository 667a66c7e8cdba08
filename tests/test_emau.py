import pytest
import torch

from emanet import emau as module
from emanet.emau import EMAU
from emanet.ops.em_attention import em_attention, unit_columns


def unit(**options):
    torch.manual_seed(0)
    return EMAU(8, 5, **options)


def test_equals_the_block_of_the_paper():
    emau, x = unit().eval(), torch.randn(2, 8, 4, 6)
    pixels = emau.conv_in(x).flatten(2)
    rebuilt = em_attention(pixels, emau.bases, 3)[0].view(2, 8, 4, 6)
    want = torch.relu(x + emau.bn_out(emau.conv_out(torch.relu(rebuilt))))
    torch.testing.assert_close(emau(x), want)


@pytest.mark.parametrize("renormalise", [False, True])
def test_bases_move_by_their_formula_in_training_only(renormalise):
    emau, x = unit(renormalise=renormalise), torch.randn(3, 8, 4, 6)
    before = emau.bases.clone()
    emau.eval()(x)
    assert torch.equal(emau.bases, before)

    mean = em_attention(emau.conv_in(x).flatten(2), before, 3)[1].mean(0, keepdim=True)
    mean = unit_columns(mean) if renormalise else mean
    memory = emau.bases.data_ptr()
    emau.train()(x)
    torch.testing.assert_close(emau.bases, 0.9 * before + 0.1 * mean)
    assert emau.bases.data_ptr() == memory


def test_backend_is_for_cuda_alone(monkeypatch):
    """A model that was trained with the kernels runs on the CPU as every other does."""
    asked = []

    def attend(x, mu, steps, *, backend, **options):
        asked.append(backend)
        return em_attention(x, mu, steps, backend="plain", **options)

    monkeypatch.setattr(module, "em_attention", attend)
    x = torch.randn(2, 8, 4, 6)
    assert torch.equal(unit(backend="triton").eval()(x), unit().eval()(x))

    class OnCuda(torch.Tensor):
        is_cuda = True

    unit(backend="triton").eval()(x.as_subclass(OnCuda))
    assert asked == ["auto", "auto", "triton"]


def test_what_is_trained():
    emau = unit().train()
    x = torch.randn(2, 8, 4, 6, requires_grad=True)
    emau(x).sum().backward()
    assert x.grad is not None and emau.conv_out.weight.grad is not None
    assert [name for name, p in emau.named_parameters() if p.grad is None] == ["conv_in.weight", "conv_in.bias"]


@pytest.mark.parametrize("gradient", ["last", "unrolled"])
def test_where_gradient_passes_the_first_convolution_learns(gradient):
    emau = unit(gradient=gradient).train()
    bases = emau.bases.clone()
    emau(torch.randn(2, 8, 4, 6)).square().sum().backward()
    assert all(p.grad is not None for p in emau.parameters()) and emau.conv_in.weight.grad.any()
    assert not emau.bases.requires_grad and not torch.equal(emau.bases, bases)


def test_relu_out_is_before_the_sum():
    emau, x = unit(relu_out=True).eval(), torch.randn(2, 8, 4, 6)
    rebuilt = em_attention(emau.conv_in(x).flatten(2), emau.bases, 3)[0].view(2, 8, 4, 6)
    want = torch.relu(x + emau.bn_out(emau.conv_out(torch.relu(rebuilt))).relu())
    torch.testing.assert_close(emau(x), want)


def test_the_random_projection_and_the_bases_are_part_of_the_weights():
    assert {"conv_in.weight", "conv_in.bias", "bases"} <= set(unit().state_dict())
    torch.testing.assert_close(unit().bases.norm(dim=1), torch.ones(1, 5))


@pytest.mark.parametrize("gradient", ["detached", "last"])
@pytest.mark.parametrize("training", [False, True])
def test_compiles_as_one_graph(gradient, training):
    emau, x = unit(gradient=gradient).train(training), torch.randn(2, 8, 4, 6)
    same = unit(gradient=gradient).train(training)
    torch.testing.assert_close(torch.compile(emau, fullgraph=True, backend="aot_eager")(x), same(x))
    torch.testing.assert_close(emau.bases, same.bases)


def test_is_exported_with_any_size():
    emau = unit().eval()
    sizes = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    program = torch.export.export(emau, (torch.randn(2, 8, 4, 6),), dynamic_shapes=(sizes,))
    other = torch.randn(2, 8, 9, 5)
    torch.testing.assert_close(program.module()(other), emau(other))


def test_channels_last_stays_and_is_not_copied(monkeypatch):
    monkeypatch.setattr("emanet.ops.em_attention_cpu.is_wide", lambda: True)  # the path that keeps it
    emau = unit().eval()
    x = torch.randn(2, 8, 4, 6).contiguous(memory_format=torch.channels_last)
    seen = []
    emau.conv_in.register_forward_hook(lambda _, __, out: seen.append(out))
    emau.conv_out.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        y = emau.to(memory_format=torch.channels_last)(x)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (*seen, y))
    assert seen[0].flatten(2).data_ptr() == seen[0].data_ptr()
    torch.testing.assert_close(y, emau(x.contiguous()))


def test_meta_tensors_pass():
    assert unit().to("meta").eval()(torch.empty(2, 8, 4, 6, device="meta")).shape == (2, 8, 4, 6)
