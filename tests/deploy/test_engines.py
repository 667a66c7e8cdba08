import copy
import importlib.util
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import run_cli, sentence
from PIL import Image
from torch import nn

from emanet.config import EvalConfig
from emanet.deploy import engines
from emanet.deploy.engines import FOLDABLE, Compiled, check, faster, fold
from emanet.deploy.network import Network
from emanet.deploy.openvino import convert, quantise
from emanet.errors import InputError
from emanet.experiments import load_experiment, override
from emanet.heads import HEADS
from emanet.inference import probabilities
from emanet.model import build_model
from emanet.predict.files import predict_files
from emanet.predict.predictor import Predictor

CLOSE = 1e-4  # of the logits' spread: what float32 leaves after as many layers, in another order of sums
needs_openvino = pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="openvino is not installed")
EAGER_AND_OPENVINO = ["eager", pytest.param("openvino", marks=[pytest.mark.slow, needs_openvino])]
needs_nncf = pytest.mark.skipif(not importlib.util.find_spec("nncf"), reason="nncf is not installed")


def build(classes="abcde", **changes):
    """A tiny model in eval mode, whose BatchNorms do something and know their inputs as after a training."""
    torch.manual_seed(0)
    small = {"head.channels": 16, "head.num_bases": 8, "head.window": (5, 5)}
    small |= {f"head.{name}": 16 for name in ("fc1_channels", "aspp_channels", "decoder_channels")}
    names = {name.replace("__", "."): value for name, value in changes.items()}
    model = build_model(override(load_experiment("drawn").model, small | names), classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.3)
            module.momentum = 0.9
    for module in (model, model.backbone.net):  # a frozen one too
        module.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.rand(4, model.backbone.in_channels, 65, 65))
    return model.eval()


@pytest.fixture(scope="module")
def plain():
    return build()


@torch.no_grad()
def difference(quick, model, *size):
    """Of the logits, in their standard deviations; and the share of pixels of the same class."""
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    wanted, got = model(images), quick(images)
    assert got.shape == wanted.shape and got.dtype == torch.float32
    return ((got - wanted).abs().max() / wanted.std()).item(), (got.argmax(1) == wanted.argmax(1)).float().mean().item()


@torch.no_grad()
def same_as_plain(quick, model, size):
    images = torch.rand(size, generator=torch.Generator().manual_seed(2))
    wanted = model(images)
    torch.testing.assert_close(quick(images), wanted, rtol=0, atol=1e-4)


class TestFolding:
    @pytest.mark.parametrize("head", HEADS)
    def test_every_head(self, head):
        model = build(head__name=head, aux_head=True)
        network = copy.deepcopy(Network(model.backbone, model.head))
        fold(network, torch.zeros(1, 3, 33, 33))
        left = [name for name, module in network.named_modules() if isinstance(module, FOLDABLE)]
        assert left == (["head.context.norm"] if head == "encnet" else [])  # whose input are sums, no convolution's
        assert difference(faster(model, "eager"), model, 37, 50)[0] < CLOSE
        assert difference(faster(model, "eager"), model, 33, 33)[0] < CLOSE

    @pytest.mark.parametrize(
        "changes",
        [
            {
                "backbone__name": "mobilenetv2_035",
                "backbone__output_stride": 16,
                "backbone__options": {"pad_type": "same"},
            },
            {"backbone__name": "convnext_atto", "backbone__output_stride": 32},  # pads to its divisor
            {"backbone__name": "resnetv2_18", "backbone__output_stride": 8},  # normalises before it convolves
            {"backbone__frozen": True, "align_corners": False, "head__relu_out": True, "head__concat": True},
        ],
        ids=["activations inside norms", "padded", "norms first", "frozen"],
    )
    def test_other_backbones(self, changes):
        model = build(**changes)
        before = copy.deepcopy(model.state_dict())
        quick = faster(model, "eager")
        assert difference(quick, model, 45, 70)[0] < CLOSE
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_a_convolution_that_something_else_sees_stays(self):
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

            def forward(self, x):
                y = self.conv(x)
                return y + self.norm(y)

        both, twice = Both().eval(), nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU()).eval()
        x = torch.rand(1, 3, 4, 4)
        assert fold(both, x) == 0 and fold(nn.Sequential(twice, twice), x) == 0
        assert fold(twice, x) == 1 and isinstance(twice[1], nn.Sequential)

    def test_is_rounded_once(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16)).eval()
        conv, norm = net
        norm.running_mean.normal_(), norm.running_var.uniform_(0.1, 2)
        nn.init.uniform_(norm.weight, 0.5, 2), nn.init.normal_(norm.bias)
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = conv.weight.double() * scale[:, None, None, None]
        bias = norm.bias.double() - norm.running_mean.double() * scale
        assert fold(net, torch.zeros(1, 16, 5, 5)) == 1
        for folded, exact in ((net[0].weight, weight), (net[0].bias, bias)):
            assert ((folded.double() - exact).abs() <= exact.abs() * (2**-24 + 1e-12)).all()


class TestEngines:
    def test_plain_float32_is_the_model_itself(self, plain):
        assert faster(plain) is plain

    @pytest.mark.parametrize("engine", ["plain", "eager"])
    @pytest.mark.parametrize("size", [(0, 3, 33, 33), (2, 3, 1, 1), (1, 3, 1, 9), (3, 3, 9, 2)], ids=str)
    def test_any_batch_and_size(self, plain, engine, size):
        same_as_plain(faster(plain, engine), plain, size)

    @pytest.mark.parametrize("engine", EAGER_AND_OPENVINO)
    @pytest.mark.parametrize(
        "changes",
        [
            {"classes": "a"},
            {"mean": (0.5,), "std": (0.2,), "backbone__in_channels": 1},
            {"mean": (0.5,), "std": (0.2,), "backbone__in_channels": 5},
        ],
        ids=["one class", "one channel", "five channels"],
    )
    def test_other_counts(self, engine, changes):
        model = build(**changes)
        same_as_plain(faster(model, engine), model, (1, model.backbone.in_channels, 37, 50))

    @pytest.mark.parametrize("engine", ["eager", pytest.param("openvino", marks=needs_openvino)])
    @pytest.mark.parametrize("layout", ["channels_last", "a part", "transposed", "expanded"])
    def test_any_layout(self, plain, request, engine, layout):
        images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
        images = {
            "channels_last": images.contiguous(memory_format=torch.channels_last),
            "a part": images[:, :, 3:36, ::2],
            "transposed": images.mT,
            "expanded": images[:, :1].expand(2, 3, 40, 40),
        }[layout]
        fast = request.getfixturevalue("quick") if engine == "openvino" else faster(plain, engine)
        kept = images.clone()
        with torch.no_grad():
            torch.testing.assert_close(fast.low_logits(images)[0], plain.low_logits(images)[0], rtol=0, atol=1e-4)
        assert torch.equal(images, kept)

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    @pytest.mark.parametrize("engine", ["plain", *EAGER_AND_OPENVINO])
    def test_extreme_values(self, plain, engine, precision):
        x = 1e4 * torch.randn(1, 3, 41, 33, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted, got = (model.low_logits(x)[0] for model in (plain, faster(plain, engine, precision, force=True)))
        assert wanted.std() > 10 and got.isfinite().all()
        off = (got - wanted).abs().max() / wanted.std()
        assert off < (CLOSE if precision == "fp32" else 0.3)

    @pytest.mark.parametrize("engine", ["plain", "eager"])
    def test_bfloat16(self, plain, engine):
        off, same = difference(faster(plain, engine, "bf16", force=True), plain, 41, 33)
        assert 1e-4 < off < 0.2 and same > 0.9  # bfloat16 has 8 bits

    @pytest.mark.parametrize(
        "engine, precision, device, message",
        [
            ("onnx", "fp32", "cpu", "no engine 'onnx'; there are: plain, eager, compile, openvino"),
            ("eager", "fp8", "cpu", "no precision 'fp8'; there are: fp32, bf16, fp16, int8"),
            ("plain", "int8", "cpu", "int8 needs --engine openvino, not plain"),
            ("compile", "int8", "cuda", "int8 needs --engine openvino, not compile"),
            ("eager", "int8", "cpu", "int8 needs --engine openvino, not eager"),
            ("eager", "fp16", "cpu", "fp16 needs a CUDA device, not cpu; bf16 is the fast type of CPUs"),
            ("openvino", "fp16", "cpu", "fp16 needs a CUDA device"),
            ("openvino", "fp32", "cuda", "the openvino engine computes on the CPU, not on cuda; give --device cpu"),
        ],
    )
    def test_what_does_not_go_together(self, engine, precision, device, message):
        with pytest.raises(InputError, match=message):
            check(engine, precision, torch.device(device))

    def test_no_compiler(self, plain, monkeypatch):
        monkeypatch.setenv("CXX", "no-such-compiler")
        with pytest.raises(
            InputError, match=r"needs a C\+\+ compiler for the CPU, but no-such-compiler is not installed"
        ):
            faster(plain, "compile")

    def test_a_compiler_that_fails(self, monkeypatch, tmp_path):
        from torch._inductor import config

        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        quick = Compiled(nn.Conv2d(3, 3, 1).eval().requires_grad_(False))
        with config.patch({"cpp.cxx": (None, "false")}), pytest.raises(InputError) as error:
            quick(torch.rand(1, 3, 9, 9))
        assert str(error.value).startswith("torch could not compile the network (") and "\n" not in str(error.value)

    def test_int8_without_images(self, plain):
        with pytest.raises(InputError, match="name a folder of them with --calibrate"):
            faster(plain, "openvino", "int8")

    def test_evaluation_and_windows_take_it(self, plain):
        quick, images = faster(plain, "eager"), torch.rand(1, 3, 50, 61)
        config = EvalConfig(mode="slide", window=(33, 33), scales=(1.0, 1.25), flip=True)
        wanted, got = (probabilities(model, images, config) for model in (plain, quick))
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)

    @pytest.mark.slow
    def test_compiled(self, plain):
        quick = faster(plain, "compile")
        with torch.inference_mode():
            assert difference(quick, plain, 33, 41)[0] < CLOSE
        for size in ((33, 41), (50, 70), (64, 39)):
            assert difference(quick, plain, *size)[0] < CLOSE


@pytest.fixture(scope="module")
def quick(plain):
    return faster(plain, "openvino")


@needs_openvino
class TestOpenVINO:
    @pytest.mark.parametrize("size", [(33, 33), (37, 50), (64, 96)])
    def test_float32_at_any_size(self, plain, quick, size):
        assert difference(quick, plain, *size)[0] < CLOSE

    @pytest.mark.parametrize("sides", [(1, 1), (1, 9), (9, 1), (2, 70), (8, 8), (9, 9), (10, 17)], ids=str)
    @pytest.mark.parametrize("batch", [0, 1, 2])
    def test_images_smaller_than_a_window_of_pooling(self, plain, quick, sides, batch):
        """After another image: OpenVINO may give that one's result without an error."""
        same_as_plain(quick, plain, (1, 3, 65, 65))
        same_as_plain(quick, plain, (batch, 3, *sides))

    def test_threads_may_share_one(self, plain, quick):
        images = [torch.rand(1, 3, 40 + i, 50) for i in range(4)]
        with torch.no_grad():
            wanted = [plain(x) for x in images]

        def run(i):
            with torch.no_grad():
                return [quick(images[i]) for _ in range(8)]

        with ThreadPoolExecutor(4) as pool:
            for found, exact in zip(pool.map(run, range(4)), wanted, strict=True):
                for each in found:
                    torch.testing.assert_close(each, exact, rtol=0, atol=1e-4)

    @pytest.mark.slow
    @pytest.mark.parametrize("head", HEADS)
    def test_every_head(self, head):
        model = build(head__name=head, aux_head=True)
        quick = faster(model, "openvino")
        for size in ((2, 3, 37, 50), (1, 3, 1, 1), (1, 3, 9, 17)):
            same_as_plain(quick, model, size)

    @pytest.mark.parametrize(
        "changes",
        [{"head__name": "psanet"}, {"backbone__name": "mobilenetv2_035", "backbone__options": {"pad_type": "same"}}],
        ids=["offsets by size", "padding by size"],
    )
    def test_what_computes_with_sizes(self, changes):
        model = build(**changes)
        assert difference(faster(model, "openvino"), model, 37, 50)[0] < CLOSE

    def test_bfloat16(self, plain):
        off, same = difference(faster(plain, "openvino", "bf16"), plain, 37, 50)
        assert off < 0.2 and same > 0.9

    @needs_nncf
    def test_int8_spares_the_attention(self, plain):
        calibration = [plain.normalise(torch.rand(1, 3, 41, 41)) for _ in range(16)]
        quick = faster(plain, "openvino", "int8", calibration)
        ops = quick.head.run.model.get_ordered_ops()
        products = [op for op in ops if op.get_type_name() == "MatMul"]
        assert len(products) == 2 * plain.head.emau.em_steps + 1
        for op in products:
            assert all(i.get_source_output().get_node().get_type_name() != "FakeQuantize" for i in op.inputs())
        assert sum(op.get_type_name() == "FakeQuantize" for op in ops) > 10
        assert difference(quick, plain, 37, 50)[1] > 0.9


@needs_openvino
def test_no_server_is_told_of_a_conversion():
    code = """
import subprocess
import sys
from emanet.deploy.artefact import require
require("openvino")
from openvino.tools.ovc import telemetry_utils
assert "stub" in telemetry_utils.tm.__name__, telemetry_utils.tm
assert sys.modules["openvino_telemetry"] is None
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class TestAuto:
    def test_without_openvino_it_is_eager(self, plain, monkeypatch, capsys):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert difference(faster(plain, "auto"), plain, 65, 97)[0] < CLOSE
        said = " ".join(capsys.readouterr().err.split())
        assert "engine: eager; its logits are the model's; openvino is often faster still: pip install" in said

    @needs_openvino
    def test_openvino_where_it_gives_the_models_logits(self, plain, capsys):
        quick = faster(plain, "auto")
        assert quick is not plain
        assert "engine: openvino; its logits are the model's" in capsys.readouterr().err
        assert difference(quick, plain, 65, 97)[0] < CLOSE

    def test_the_engine_that_is_tried_is_the_devices(self, plain, monkeypatch, capsys):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        monkeypatch.setitem(engines.FASTEST, "cpu", engines.FASTEST["cuda"])
        assert difference(faster(plain, "auto"), plain, 65, 97)[0] < CLOSE
        assert "engine: eager; its logits are the model's" in capsys.readouterr().err
        monkeypatch.delitem(engines.FASTEST, "cpu")
        assert faster(plain, "auto") is plain
        assert "engine: plain; no engine is known to be faster on cpu" in capsys.readouterr().err

    @pytest.mark.slow
    @needs_openvino
    def test_not_an_engine_that_gives_others(self, plain, monkeypatch, capsys):
        monkeypatch.setattr(engines, "difference", lambda model, quick: 0.5)
        assert faster(plain, "auto") is plain
        assert (
            "engine: plain; openvino's logits differ from the model's by 0.5 of their spread" in capsys.readouterr().err
        )

    def test_a_difference_is_seen(self, plain):
        other = copy.deepcopy(plain)
        assert engines.difference(plain, other) == 0
        with torch.no_grad():
            next(other.head.parameters()).mul_(1.1)
        assert engines.difference(plain, other) > engines.CLOSE


def test_bf16_where_it_is_emulated_needs_force(plain, monkeypatch):
    monkeypatch.setattr("emanet.processor.emulates_bf16", lambda: True)
    with pytest.raises(InputError, match="bf16 is about 8 times slower"):
        faster(plain, "eager", "bf16")
    faster(plain, "eager", "bf16", force=True)


@pytest.mark.parametrize(("package", "extra"), [("openvino", "openvino"), ("nncf", "int8")])
def test_a_package_that_is_not_there_is_named_with_its_extra(monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as error:
        convert(nn.Identity(), torch.zeros(1)) if package == "openvino" else quantise(None, [])
    assert str(error.value) == f'this needs {package}, which is not installed: pip install "emanet[{extra}]"'


class TestBatches:
    sizes = ((30, 40), (33, 41), (30, 40), (57, 20), (28, 39))  # padded to a grid of 8n + 1, four of them are alike

    def images(self):
        draw = np.random.default_rng(0)
        return [draw.integers(0, 256, (*size, 3), np.uint8) for size in self.sizes]

    def test_arrays_at_once_equal_one_by_one(self, plain):
        predictor = Predictor(plain, device="cpu")
        for image, labels in zip(self.images(), predictor.many(self.images()), strict=True):
            assert labels.shape == image.shape[:2] and labels.dtype == np.uint8
            assert (labels == predictor(image)).mean() > 0.999

    @pytest.mark.parametrize("batch", [2, 3, 9])
    def test_files(self, plain, tmp_path, batch):
        predictor = Predictor(plain, device="cpu", engine="eager")
        for i, image in enumerate(self.images()):
            (tmp_path / "in").mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / f"in/{i}.png")
        assert predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", overlay=False, batch=batch) == []
        for i, image in enumerate(self.images()):
            with Image.open(tmp_path / f"out/{i}.png") as written:
                assert (np.asarray(written) == predictor(image)).mean() > 0.999
        with pytest.raises(InputError, match="batch is 0, but must be at least 1"):
            predict_files(predictor, [str(tmp_path / "in")], tmp_path / "out", batch=0)


class TestCommands:
    def test_predict_and_evaluate(self, model, scenes, tmp_path):
        common = ("--engine", "eager", "--precision", "bf16", "--force", "--device", "cpu")
        done = run_cli("predict", model, scenes / "val/images", "--out", tmp_path / "out", "--batch", 2, *common)
        assert done.returncode == 0, done.stderr
        done = run_cli("evaluate", model, "--images", scenes / "val/images", "--masks", scenes / "val/masks", *common)
        assert done.returncode == 0, done.stderr

    def test_int8_needs_images(self, model, scenes, tmp_path):
        common = ("--device", "cpu", "--engine", "openvino", "--precision", "int8")
        done = run_cli("predict", model, scenes / "val/images", "--out", tmp_path / "out", *common)
        assert "--calibrate" in sentence(done)

    @needs_openvino
    @needs_nncf
    def test_int8_with_images(self, model, scenes, tmp_path):
        common = (
            "--device",
            "cpu",
            "--engine",
            "openvino",
            "--precision",
            "int8",
            "--calibrate",
            scenes / "train/images",
        )
        done = run_cli(
            "predict",
            model,
            scenes / "val/images",
            "--out",
            tmp_path / "out",
            "--mode",
            "slide",
            "--window",
            65,
            65,
            *common,
        )
        assert done.returncode == 0, done.stderr


def test_threads_take_turns_in_a_compiled_network():
    """The options that compile it are the whole process's: two threads at once would leave them on."""
    import torch._inductor.config as inductor

    compiled, before, together, most = Compiled(torch.nn.Conv2d(1, 1, 1)), inductor.freezing, [], []

    def network(x):
        together.append(1)
        time.sleep(0.01)
        most.append(len(together))
        together.pop()
        return x

    compiled.network = network
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: compiled(torch.zeros(1, 1, 2, 2)), range(8)))
    assert max(most) == 1 and len(most) == 8 and inductor.freezing is before
