import dataclasses
import typing

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from emanet import heads
from emanet.config import HeadConfig, ModelConfig
from emanet.errors import InputError
from emanet.experiments import unused
from emanet.heads import dfn, ema_fusion, encnet, gcn, layers, non_local, psanet, refinenet

CHANNELS = (4, 6, 8, 10, 12)


def build(name, classes=3, **config):
    torch.manual_seed(0)
    small = {"channels": 8, "fc1_channels": 6, "aspp_channels": 6, "decoder_channels": 6}
    small |= {"num_bases": 4, "window": (3, 3), "dropout": 0.0}
    return heads.build(HeadConfig(name=name, **small | config), CHANNELS, classes)


def maps(batch=2):
    """What a backbone of output stride 8 makes of an image of 65 x 41 pixels."""
    torch.manual_seed(1)
    sizes = [(33, 21), (17, 11), (9, 6), (9, 6), (9, 6)]
    return [torch.randn(batch, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]


def cost(**config):
    """Multiply-adds in G and parameters in M as in Table 1: 513 x 513 pixels, ResNet-101, stride 8, 21 classes."""
    channels, sides = (128, 256, 512, 1024, 2048), (257, 129, 65, 65, 65)
    with FakeTensorMode(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        head = heads.build(HeadConfig(**config), channels, 21).eval()
        head([torch.empty(1, c, side, side) for c, side in zip(channels, sides, strict=True)])
    return counter.get_total_flops() / 2e9, sum(p.numel() for p in head.parameters()) / 1e6


@pytest.mark.parametrize(
    ("config", "giga", "millions"),
    [
        ({"name": "ema", "fc1_channels": 0}, 43.1, 10.0),
        ({"name": "ema", "channels": 256, "fc1_channels": 0}, 21.1, 4.87),
        ({"name": "ema"}, 48.1, 11.2),
        ({"name": "deeplabv3"}, 63.4, 15.5),
        ({"name": "deeplabv3plus"}, 85.2, 16.8),  # Table 1: 84.1 and 16.3
    ],
    ids=["ema-512", "ema-256", "ema-512+fc1", "deeplabv3", "deeplabv3plus"],
)
def test_costs_of_the_paper(config, giga, millions):
    """Table 1 (classifier of 21 classes), and the EMA head with fc1."""
    assert cost(**config) == pytest.approx((giga, millions), rel=0.01)


def test_cost_of_psanet_without_half_of_its_last_convolution_is_the_papers():
    giga, millions = cost(name="psanet")
    assert (giga, millions) == pytest.approx((97.4, 27.9), rel=0.01)
    half = 9 * 2048 * 512 / 1e6
    products = 2 * (33 * 33) ** 2 * 512 / 1e9
    assert (giga - half * 65 * 65 / 1e3 - products, millions - half) == pytest.approx((56.3, 18.5), rel=0.001)


def test_unknown_head_names_the_nearest():
    with pytest.raises(InputError, match="no head 'emma'; did you mean 'ema'"):
        heads.build(HeadConfig(name="emma"), [8], 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rates": ()}, "rates is"),
        ({"bins": (1, 0)}, "bins is"),
        ({"window": (0, 3)}, "window is"),
        ({"aspp_channels": 0}, "aspp_channels is"),
    ],
)
def test_impossible_settings_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        HeadConfig(**config)


class Reads:
    """A config that remembers which of its fields were read."""

    def __init__(self, config):
        self.config, self.names = config, set()

    def __getattr__(self, name):
        self.names.add(name)
        return getattr(self.config, name)


def another(value, hint):
    """A value of the same type that differs."""
    if typing.get_origin(hint) is typing.Literal:
        return next(option for option in typing.get_args(hint) if option != value)
    if isinstance(value, tuple):
        return tuple(item + 1 for item in value)
    return not value if isinstance(value, bool) else value / 2 if isinstance(value, float) else value + 1


@pytest.mark.parametrize("name", sorted(heads.HEADS))
def test_a_head_reads_the_settings_that_config_says_it_uses(name):
    hints, default = typing.get_type_hints(HeadConfig), HeadConfig()
    names = {field.name for field in dataclasses.fields(HeadConfig)} - {"name"}
    config = HeadConfig(name=name, **{key: another(getattr(default, key), hints[key]) for key in names})
    read = Reads(config)
    with torch.device("meta"):
        heads.build(read, CHANNELS, 3)
    refused = {key.removeprefix("head.") for key in unused(ModelConfig(head=config))}
    assert read.names - {"name"} == names - refused


@pytest.mark.parametrize("name", sorted(heads.HEADS))
def test_gradient_reaches_every_parameter(name):
    head = build(name).train()
    if name == "nonlocal":
        nn.init.ones_(head.block.bn_out.weight)  # 0 at the start: the block is the identity
    logits = head(maps())
    (logits * torch.randn_like(logits)).sum().backward()
    assert [n for n, p in head.named_parameters() if p.requires_grad and not p.grad.any()] == []


@pytest.mark.parametrize("name", sorted(heads.HEADS.keys() - {"gcn"}))  # whose channels are the classes
def test_dropout_takes_whole_channels_before_the_classifier(name):
    head, seen = build(name, dropout=0.5).train(), []
    head.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    head(maps())
    assert 0 < (seen[0] == 0).all(dim=(2, 3)).float().mean() < 1


@pytest.mark.parametrize("name", sorted(heads.HEADS))
def test_only_the_classifier_knows_the_classes(name):
    three, four = build(name).state_dict(), build(name, 4).state_dict()
    differ = [key for key in three if three[key].shape != four[key].shape]
    assert differ and all(key.startswith("classifier.") for key in differ)


@pytest.mark.parametrize("name", ["deeplabv3plus", "dfn", "ema_fusion", "gcn", "refinenet"])
def test_decoders_answer_at_the_stage_of_stride_4_and_take_what_there_is(name):
    head = build(name).eval()
    assert head(maps()).shape == (2, 3, 17, 11)
    finest, *four = maps()
    assert torch.equal(head([torch.zeros_like(finest), *four]), head(maps()))
    small = {"channels": 8, "aspp_channels": 6, "decoder_channels": 6}
    plain = heads.build(HeadConfig(name=name, **small), [12, 12], 3).eval()
    assert plain([torch.randn(1, 12, 5, 4)] * 2).shape == (1, 3, 5, 4)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("deeplabv3", "aspp_channels"),
        ("deeplabv3plus", "aspp_channels"),
        ("ema", "fc1_channels"),
        ("ema_fusion", "fc1_channels"),
        ("nonlocal", "fc1_channels"),
        ("refinenet", "decoder_channels"),
        ("pspnet", "channels"),
    ],
)
def test_width_before_the_classifier(name, setting):
    head = build(name, **{setting: 10}).eval()
    assert head.classifier.in_channels == 10 and head(maps()).shape[:2] == (2, 3)


@pytest.mark.parametrize("name", ["ema", "ema_fusion", "nonlocal"])
def test_without_fc1_channels_the_classifier_has_channels(name):
    head = build(name, fc1_channels=0, channels=10).eval()
    assert head.classifier.in_channels == 10 and head(maps()).shape[:2] == (2, 3)


def test_fusion_attends_at_stride_8_and_answers_at_4_or_without_details_at_8():
    sizes, seen = [(33, 21), (17, 11), (9, 6), (5, 3), (3, 2)], []  # of a backbone without dilation
    stages = [torch.randn(1, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]
    for fc1_channels, size in ((6, (17, 11)), (0, (9, 6))):
        head = build("ema_fusion", fc1_channels=fc1_channels).eval()
        head.emau.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
        assert head(stages).shape == (1, 3, *size)
        changed = [
            not torch.equal(head([*stages[:i], -x, *stages[i + 1 :]]), head(stages)) for i, x in enumerate(stages)
        ]
        assert changed == [False, fc1_channels > 0, True, True, True]
    assert set(seen) == {(1, 8, 9, 6)}


def test_joining_is_a_convolution_of_the_concatenated_maps():
    torch.manual_seed(0)
    join = ema_fusion.Join([3, 4, 5], 6).eval()
    maps = [torch.randn(2, c, *size) for c, size in ((3, (9, 6)), (4, (5, 3)), (5, (3, 2)))]
    stacked = [maps[0], *(ema_fusion.upsample(x, (9, 6)) for x in (maps[1], ema_fusion.upsample(maps[2], (5, 3))))]
    weight = torch.cat([project[0].weight for project in join.project], dim=1)
    expected = nn.functional.conv2d(torch.cat(stacked, dim=1), weight) / (1 + join.project[0][1].eps) ** 0.5
    torch.testing.assert_close(join(maps), expected.relu())


def test_upsampling_is_the_same_for_a_part_of_the_map():
    x = torch.randn(1, 2, 8, 8)
    whole = ema_fusion.upsample(x, (16, 16))
    torch.testing.assert_close(ema_fusion.upsample(x[..., :5, :4], (9, 7)), whole[..., :9, :7])
    assert torch.equal(ema_fusion.upsample(x, (8, 8)), x)


def test_auxiliary_head_sees_the_stage_before_the_last():
    head = heads.FCNHead([4, 8, 16], 3, HeadConfig(channels=6), level=-2).eval()
    stages = [torch.randn(1, 4, 9, 9), torch.randn(1, 8, 5, 5), torch.randn(1, 16, 5, 5)]
    assert head(stages).shape == (1, 3, 5, 5)
    assert torch.equal(head(stages), head([*stages[:2], torch.zeros_like(stages[2])]))


def test_norm_of_pooled_maps_is_batchnorm_but_for_one_value():
    norm, plain = layers.PooledBatchNorm(3).train(), nn.BatchNorm2d(3).train()
    x = torch.randn(2, 3, 1, 1)
    assert torch.equal(norm(x), plain(x)) and torch.equal(norm.running_var, plain.running_var)
    torch.testing.assert_close(norm(x[:1]), plain.eval()(x[:1]))
    assert torch.equal(norm.running_mean, plain.running_mean)


def reach(module, size=41):
    """Which pixels change with the central one: (rows, columns), counted from the centre."""
    x = torch.zeros(1, next(p for p in module.parameters() if p.dim() == 4).shape[1], size, size)
    x[..., size // 2, size // 2] = 1
    y, x = (module(x) - module(torch.zeros_like(x)))[0, 0].nonzero(as_tuple=True)
    return set(zip((y - size // 2).tolist(), (x - size // 2).tolist(), strict=True))


def test_aspp_looks_as_far_as_the_rates():
    branches = build("deeplabv3", rates=(2, 5, 7)).aspp.branches
    assert reach(branches[0][0]) == {(0, 0)}
    for rate, branch in zip((2, 5, 7), list(branches)[1:4], strict=True):
        assert reach(branch[0]) == {(y, x) for y in (-rate, 0, rate) for x in (-rate, 0, rate)}
    assert len(branches) == 5 and branches[4].pool.output_size == 1


def test_pyramid_averages_over_parts_of_the_image():
    head, pooled = build("pspnet", bins=(1, 2, 3)).eval(), []
    for level in head.pyramid:
        level.conv.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))
    x = torch.randn(1, 12, 6, 12)
    head([x])
    for bins, means in zip((1, 2, 3), pooled, strict=True):
        parts = x.view(1, 12, bins, 6 // bins, bins, 12 // bins)
        torch.testing.assert_close(means, parts.mean(dim=(3, 5)))
    assert head.pyramid[0].conv[0].out_channels == 4


def test_non_local_block_is_softmax_attention():
    torch.manual_seed(0)
    block = non_local.NonLocal(6).eval()
    x = torch.randn(2, 6, 4, 3)
    assert torch.equal(block(x), x)  # starts as the identity
    nn.init.normal_(block.bn_out.weight)
    query, key, value = block.theta(x), block.phi(x), block.g(x)
    expected = torch.empty(2, 3, 4, 3)
    for b in range(2):
        for i in range(4):
            for j in range(3):
                weights = (key[b] * query[b, :, i, j, None, None]).sum(0).exp()
                expected[b, :, i, j] = (value[b] * weights).sum((1, 2)) / weights.sum()
    torch.testing.assert_close(block(x), x + block.bn_out(block.conv_out(expected)))


def test_non_local_attention_costs_the_square_of_the_pixels():
    block, costs = non_local.NonLocal(8), []
    for side in (8, 16):
        with FlopCounterMode(display=False) as counter:
            block(torch.zeros(2, 8, side, side))
        costs.append(counter.get_flop_counts()["Global"][torch.ops.aten.bmm])
    assert costs[1] == 16 * costs[0] > 0


@pytest.mark.parametrize("window", [(3, 2), (9, 9)], ids=["smaller", "larger"])
def test_psa_collects_and_distributes_as_a_loop_does(window):
    torch.manual_seed(0)
    h, w = 5, 4
    x = torch.randn(2, 3, h, w)
    predicted = torch.randn(2, (2 * window[0] - 1) * (2 * window[1] - 1), h, w)
    index, reached = psanet.offsets((h, w), window, torch.device("cpu"))
    table = predicted.unflatten(1, (2 * window[0] - 1, 2 * window[1] - 1))
    pixels = [(y, x) for y in range(h) for x in range(w)]
    collected, distributed = torch.zeros(2, 2, 3, h, w)
    for b in range(2):
        for t in pixels:
            near = [s for s in pixels if abs(s[0] - t[0]) < window[0] and abs(s[1] - t[1]) < window[1]]
            for out, own in ((collected, True), (distributed, False)):
                scores = []
                for s in near:
                    (py, px), (qy, qx) = (s, t) if own else (t, s)  # predicted at q for the offset p - q
                    scores.append(table[b, py - qy + window[0] - 1, px - qx + window[1] - 1, qy, qx])
                for s, weight in zip(near, torch.stack(scores).softmax(0), strict=True):
                    out[b, :, t[0], t[1]] += weight * x[b, :, s[0], s[1]]
    torch.testing.assert_close(psanet.collect(x, predicted, index, reached), collected)
    torch.testing.assert_close(psanet.distribute(x, predicted, index, reached), distributed)


def test_psa_works_on_the_halved_map():
    head, seen = build("psanet").eval(), []
    head.attention.collect_map.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    head(maps())
    assert seen == [(2, 25, 5, 3)]


def test_encoding_is_the_formula():
    torch.manual_seed(0)
    encoding = encnet.Encoding(5, 3)
    nn.init.normal_(encoding.codewords_KC)
    x = torch.randn(2, 5, 7)
    residuals = x.mT[:, :, None] - encoding.codewords_KC  # (B, N, K, C)
    weights = (-encoding.smoothing_K * residuals.square().sum(3)).exp()
    weights = weights / weights.sum(2, keepdim=True)
    torch.testing.assert_close(encoding(x), (weights[..., None] * residuals).sum(1))


def test_context_encoding_scales_whole_channels():
    torch.manual_seed(0)
    unit = encnet.ContextEncoding(6, 4).eval()
    x = torch.rand(2, 6, 5, 3) + 0.1
    scale = unit(x) / x
    torch.testing.assert_close(scale, scale[..., :1, :1].expand_as(scale))
    assert (scale > 1).all() and (scale < 2).all() and scale[0, :, 0, 0].std() > 0


def test_large_kernel_sees_a_square_by_either_way():
    for kernel in (5, gcn.KERNEL):
        unit, r = gcn.LargeKernel(1, 1, kernel), kernel // 2
        square = {(y, x) for y in range(-r, r + 1) for x in range(-r, r + 1)}
        assert reach(unit.left) == reach(unit.right) == reach(unit) == square
        assert sum(p.numel() for p in unit.left.parameters()) == 2 * kernel + 2
    assert {unit.left[0].kernel_size[0] for unit in build("gcn").classifier["large"]} == {15}


def test_residual_blocks_start_from_their_input():
    x = torch.randn(2, 6, 5, 4)
    for unit in (gcn.BoundaryRefinement(6), refinenet.ResidualUnit(6)):
        assert not torch.equal(unit(x), x)
        for p in unit.parameters():
            nn.init.zeros_(p)
        assert torch.equal(unit(x), x)
    unit = dfn.Refinement(6, 4)
    for p in unit.residual[1].parameters():
        nn.init.zeros_(p)
    assert torch.equal(unit(x), unit.unify(x).relu())


def test_chained_pooling_sees_four_pixels_after_two_links():
    unit = refinenet.ChainedPooling(1)
    for conv in unit.convs:
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
        conv.weight.data[:, :, 1, 1] = 1
    x = torch.zeros(1, 1, 11, 11)
    x[..., 5, 5], x[..., 0, 0] = 1, -1
    expected = torch.zeros(11, 11)
    expected[1:10, 1:10] += 1
    expected[3:8, 3:8] += 1
    expected[5, 5] += 1
    assert torch.equal(unit(x)[0, 0], expected)


def test_refinement_joins_a_coarser_map_of_another_width():
    block = refinenet.RefineBlock(4, 6).eval()
    x, coarser = torch.randn(1, 4, 9, 7), torch.randn(1, 6, 5, 4)
    assert block(x, coarser).shape == x.shape
    assert not torch.allclose(block(x, coarser), block(x, -coarser))
    assert not torch.allclose(block(x, coarser), block(-x, coarser))


def test_channel_attention_chooses_channels_of_the_finer_map():
    torch.manual_seed(0)
    unit = dfn.ChannelAttention(4)
    low, high = torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 3)
    gates = (unit(low, high) - high) / low
    torch.testing.assert_close(gates, gates.mean(dim=(2, 3), keepdim=True).expand_as(gates))
    assert (gates > 0).all() and (gates < 1).all()
    _, first, _, second, _ = unit.gate
    average = torch.cat([low, high], 1).mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(gates[..., :1, :1], second(first(average).relu()).sigmoid())


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and warns of sizes that become constants
@pytest.mark.parametrize("name", heads.HEADS)
def test_no_head_has_what_torchs_older_onnx_exporter_lacks(name):
    """That exporter, the default up to torch 2.8, traces the network and has no aten::mT."""
    graph = torch.jit.trace(build(name).eval(), (maps(1),), check_trace=False).inlined_graph
    assert "aten::" in str(graph) and "aten::mT" not in str(graph)
