"""Exported models compute what the model does, at any size, without torch where torch is not needed."""

import importlib.util
import io
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_cli, sentence
from PIL import Image
from torch import nn

from emanet.analysis.export import export_model
from emanet.config import EvalConfig
from emanet.data.datasets import SPECS
from emanet.data.images import read_mask_values
from emanet.deploy import artefact as artefact_module
from emanet.deploy import export as export_module
from emanet.deploy.artefact import Artefact, is_artefact
from emanet.deploy.export import export
from emanet.deploy.program import MatrixPool, Whole, pad_explicitly
from emanet.errors import InputError
from emanet.experiments import load_experiment, override
from emanet.heads import HEADS
from emanet.inference import predict_labels, probabilities
from emanet.model import EMANet, build_model
from emanet.predict.files import predict_files
from emanet.predict.predictor import Predictor
from emanet.weights.model_file import ModelFile, read_model, save_model


def installed(*names: str) -> pytest.MarkDecorator:
    lacking = [name for name in names if not importlib.util.find_spec(name)]
    return pytest.mark.skipif(bool(lacking), reason=f"not installed: {', '.join(lacking)}")


needs_onnx = installed("onnx", "onnxscript", "onnxruntime")
needs_openvino = installed("onnx", "onnxscript", "openvino")
needs_int8 = installed("onnx", "onnxscript", "openvino", "nncf")
pytestmark = pytest.mark.xdist_group("export")  # the same exported models for all
SIZES = [(1, 97, 130), (1, 5, 9), (3, 64, 64), (1, 65, 40)]  # one below the stride, odd and even ones, a batch


def model_file(folder: Path, **changes: object) -> ModelFile:
    """A tiny model whose BatchNorms do something, as after a training."""
    torch.manual_seed(0)
    values: dict[str, object] = {"head.channels": 16, "head.num_bases": 8, "head.window": (5, 5)}
    values |= {f"head.{name}": 16 for name in ("fc1_channels", "aspp_channels", "decoder_channels")}
    values |= {name.replace("__", "."): value for name, value in changes.items() if name != "longest_side"}
    experiment = load_experiment("drawn")
    experiment = replace(experiment, eval=EvalConfig(longest_side=int(str(changes.get("longest_side", 0)))))
    experiment = override(experiment, {f"model.{name}": value for name, value in values.items()})
    experiment = override(experiment, {"data.spec": SPECS["drawn"]})
    model = build_model(experiment.model, SPECS["drawn"])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.3)
            module.momentum = 0.9
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.rand(4, model.in_channels, 65, 65))
    path = folder / "tiny.safetensors"
    save_model(path, model.eval(), experiment, step=7)
    return read_model(path)


def model_of(file: ModelFile) -> EMANet:
    return Predictor(file, device="cpu").model


def noise(*shape: int) -> np.ndarray:
    coarse = np.random.default_rng(sum(shape)).integers(0, 256, (shape[0], 8, 8, *shape[3:]), np.uint8)
    return coarse.repeat(-(-shape[1] // 8), 1).repeat(-(-shape[2] // 8), 2)[:, : shape[1], : shape[2]]


def assert_equal(function, model: EMANet, config: EvalConfig = EvalConfig(), atol: float = 1e-4) -> None:
    """Labels and probabilities of any size are the model's, but for pixels where two classes tie to rounding."""
    for size in SIZES:
        pixels = noise(*size, model.in_channels)
        x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        labels, p = (np.asarray(each) for each in function(pixels))
        wanted = probabilities(model, x, config).numpy()
        assert labels.dtype == np.uint8 and labels.shape == size
        np.testing.assert_allclose(p, wanted, rtol=0, atol=atol)
        other = labels != predict_labels(model, x, config).numpy()
        top = np.sort(wanted, 1)
        assert not (other & (top[:, -1] - top[:, -2] > 2 * atol)).any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def file(folder) -> ModelFile:
    return model_file(folder)


@pytest.fixture(scope="module")
def onnx(folder, file) -> Path:
    path = folder / "tiny.onnx"
    export(file, "onnx", path, outputs=("labels", "probabilities", "responsibilities"))
    return path


class TestProgram:
    def test_longest_side_is_inside(self, tmp_path):
        model = model_of(model_file(tmp_path, align_corners=False))
        whole = Whole(model, ("labels", "probabilities"), longest_side=60)
        assert_equal(lambda pixels: whole(torch.from_numpy(pixels)), model, EvalConfig(longest_side=60))

    def test_other_outputs_are_refused(self, tmp_path):
        model = model_of(model_file(tmp_path, head__name="fcn"))
        with pytest.raises(InputError, match="does not have"):
            Whole(model, ("responsibilities",))
        with pytest.raises(InputError, match="outputs are one or more of labels"):
            Whole(model, ("logits",))

    def test_same_convolutions_get_constant_padding(self, tmp_path):
        same = {"backbone.name": "test_efficientnet", "backbone.output_stride": 32}
        same |= {"backbone.options": {"pad_type": "same"}, "head.name": "ema_fusion", "align_corners": False}
        model = model_of(model_file(tmp_path, **{name.replace(".", "__"): value for name, value in same.items()}))
        whole = Whole(model, ("labels", "probabilities"))
        kinds = {type(module).__name__ for module in whole.modules()}
        assert "Conv2dSame" not in kinds and "ConstantPad2d" in kinds
        assert_equal(lambda pixels: whole(torch.from_numpy(pixels)), model)

    def test_padding_that_changes_with_the_size_is_refused(self, tmp_path, monkeypatch):
        from emanet.deploy import program
        from emanet.deploy.network import Network

        options = {"backbone__name": "test_efficientnet", "backbone__output_stride": 32, "align_corners": False}
        model = model_of(model_file(tmp_path, backbone__options={"pad_type": "same"}, **options))
        monkeypatch.setattr(program, "sides", lambda model, size: list(size))  # images off the grid
        with pytest.raises(InputError, match="pads differently at different image sizes"):
            pad_explicitly(Network(model.backbone, model.head), model)

    @pytest.mark.parametrize("bins", [1, 2, 3, 6])
    def test_matrix_pool_is_adaptive_pooling(self, bins):
        for size in ((7, 13), (1, 5), (6, 6)):
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(MatrixPool(bins)(x), nn.AdaptiveAvgPool2d(bins)(x))


def check_side_by_side(network, folder: Path, monkeypatch) -> None:
    """Twelve images through predict_files, two at a time from two threads: the same files as one by one."""
    (folder / "many").mkdir()
    for i in range(12):
        Image.fromarray(noise(1, 40, 48 + 8 * (i % 3), 3)[0]).save(folder / f"many/{i:02d}.png")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    exported = isinstance(network, Artefact)
    predictor = Predictor(network) if exported else Predictor(network, device="cpu", engine="openvino")
    run, asked = predictor.network.run if exported else predictor.model.head.run, []
    with predictor.network.side_by_side(12) as at_once:
        assert at_once == 1
    predict_files(predictor, [str(folder / "many")], folder / "one", overlay=False)
    monkeypatch.setattr(artefact_module, "MANY", 12)
    alone = run.ready
    both, threads = threading.Barrier(2, timeout=20), set()
    get_ready, call = type(run).get_ready, type(run).__call__

    def together(self, x):
        threads.add(threading.get_ident())
        both.wait()
        return call(self, x)

    monkeypatch.setattr(type(run), "get_ready", lambda self, at_once: [get_ready(self, at_once), asked.append(at_once)])
    monkeypatch.setattr(type(run), "__call__", together)
    assert predict_files(predictor, [str(folder / "many")], folder / "two", overlay=False) == []
    assert asked == [2] and len(threads) == 2 and run.ready is alone
    for path in (folder / "one").glob("*.png"):
        assert path.read_bytes() == (folder / "two" / path.name).read_bytes()


@needs_onnx
class TestOnnx:
    def test_it_is_the_model_at_every_size(self, file, onnx):
        artefact = Artefact(onnx)
        assert_equal(lambda pixels: [artefact(pixels)[name] for name in ("labels", "probabilities")], model_of(file))
        z = artefact(noise(2, 65, 81, 3))["responsibilities"]
        assert z.shape[:3] == (2, 3, 8)
        np.testing.assert_allclose(z.sum(2), 1, rtol=0, atol=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("head", HEADS)
    def test_every_head_at_every_size(self, head, tmp_path):
        file, path = model_file(tmp_path, head__name=head), tmp_path / "x.onnx"
        export(file, "onnx", path, outputs=("labels", "probabilities"))
        artefact = Artefact(path)
        assert_equal(lambda pixels: [artefact(pixels)[name] for name in ("labels", "probabilities")], model_of(file))

    def test_responsibilities_are_those_that_explain_shows(self, file, onnx):
        from emanet.analysis.explain import explain

        image = noise(1, 65, 81, 3)
        seen = explain(model_of(file), image[0])
        np.testing.assert_allclose(Artefact(onnx)(image)["responsibilities"][0], seen.z, rtol=0, atol=1e-4)

    def test_axes_operations_and_facts_of_the_file(self, file, onnx):
        import onnx as library

        proto = library.load(onnx)
        library.checker.check_model(proto)
        shape = [axis.dim_param or axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim]
        assert shape == ["N", "H", "W", 3]
        assert proto.opset_import[0].version >= 20
        for node in proto.graph.node:
            pads = [each.s for each in node.attribute if each.name == "auto_pad"]
            assert pads in ([], [b"NOTSET"]), "SAME padding is computed wrongly by some runtimes"
        facts = json.loads({entry.key: entry.value for entry in proto.metadata_props}["emanet"])
        assert facts["step"] == 7 and facts["exported"]["outputs"][0] == "labels"
        artefact = Artefact(onnx)
        assert artefact.classes == model_of(file).classes and artefact.palette == model_of(file).palette

    def test_predict_evaluate_and_submit_take_it(self, file, onnx, tmp_path):
        for i in range(3):
            (tmp_path / "images").mkdir(exist_ok=True)
            (tmp_path / "masks").mkdir(exist_ok=True)
            Image.fromarray(noise(1, 40 + 8 * i, 48, 3)[0]).save(tmp_path / f"images/{i}.png")
            Image.fromarray(np.full((40 + 8 * i, 48), i, np.uint8)).save(tmp_path / f"masks/{i}.png")
        assert predict_files(Predictor(str(onnx)), [str(tmp_path / "images")], tmp_path / "a", batch=2) == []
        assert predict_files(Predictor(file), [str(tmp_path / "images")], tmp_path / "b") == []
        for i in range(3):
            found, wanted = (read_mask_values(tmp_path / out / f"{i}.png") for out in "ab")
            assert (found != wanted).mean() < 0.01
        predict_files(Predictor(str(onnx)), [str(tmp_path / "images")], tmp_path / "p", outputs=["probabilities"])
        for i in range(3):
            wanted = Predictor(file, device="cpu").probabilities(tmp_path / f"images/{i}.png")
            np.testing.assert_allclose(np.load(tmp_path / f"p/{i}.npz")["probabilities"], wanted, atol=2e-3)
        scored = []
        for model in (onnx, file.path):
            arguments = "--images", tmp_path / "images", "--masks", tmp_path / "masks", "--json", tmp_path / "s.json"
            done = run_cli("evaluate", model, *arguments, "--workers", 0)
            assert done.returncode == 0, done.stderr
            scored.append(json.loads((tmp_path / "s.json").read_text())["mIoU"])
        assert scored[0] == pytest.approx(scored[1], abs=0.01)

    def test_several_at_a_time_are_the_same(self, onnx, tmp_path, monkeypatch):
        check_side_by_side(Artefact(onnx, threads=2), tmp_path, monkeypatch)

    def test_what_it_cannot_do_is_said(self, onnx, tmp_path):
        Image.fromarray(noise(1, 40, 48, 3)[0]).save(tmp_path / "x.png")
        common = "predict", onnx, tmp_path / "x.png", "--out", tmp_path / "out"
        assert "takes whole images at one scale" in sentence(run_cli(*common, "--flip"))
        assert "has its own engine" in sentence(run_cli(*common, "--engine", "eager"))
        assert run_cli(*common, "--engine", "auto").returncode == 0 and (tmp_path / "out" / "x.png").is_file()
        assert "exported model" in sentence(run_cli("explain", onnx, tmp_path / "x.png"))
        assert "already" in sentence(run_cli("export", onnx, "--to", "onnx"))
        with pytest.raises(InputError, match="needs the one that it was made from"):
            _ = Predictor(str(onnx)).model

    def test_the_page_of_demo_labels_with_it(self, onnx):
        from emanet.web.answer import answer
        from emanet.web.page import Page

        page = Page(Predictor(str(onnx)), "tiny")
        assert "gives labels alone" in page.refusal
        content = io.BytesIO()
        Image.fromarray(noise(1, 40, 48, 3)[0]).save(content, "PNG")
        found = answer(page.predictor, "tiny", content.getvalue(), explain=not page.refusal)
        assert found["explain"] is None and found["files"]["labels.png"]

    def test_rasters_need_its_probabilities(self, file, onnx, tmp_path):
        pytest.importorskip("rasterio")
        Image.fromarray(noise(1, 40, 48, 3)[0]).save(tmp_path / "x.tif")
        config = EvalConfig(mode="slide", window=(32, 32))
        for model, name in ((str(onnx), "a"), (file, "b")):
            predictor = Predictor(model, device="cpu")
            predictor.config = config
            predictor.raster(tmp_path / "x.tif", tmp_path / f"{name}.tif")
        assert (read_mask_values(tmp_path / "a.tif") != read_mask_values(tmp_path / "b.tif")).mean() < 0.01

    @pytest.mark.parametrize("change", [lambda data: data[:-200], lambda data: data[:5000] + b"x" + data[5001:]])
    def test_damage_is_found(self, onnx, tmp_path, change):
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(change(onnx.read_bytes()))
        with pytest.raises(InputError, match=r"broken\.onnx is damaged"):
            Artefact(broken)

    def test_another_programs_file_is_refused(self, tmp_path):
        (tmp_path / "other.onnx").write_bytes(b"\x08\x07")
        with pytest.raises(InputError, match="was not written by"):
            Artefact(tmp_path / "other.onnx")

    def test_a_file_that_differs_is_not_left(self, file, onnx, tmp_path, monkeypatch):
        def write(program, path: Path, *rest) -> None:
            path.write_bytes(onnx.read_bytes())

        monkeypatch.setattr(export_module, "program_of", lambda *rest: None)
        monkeypatch.setitem(export_module.WRITERS, "onnx", write)
        export(file, "onnx", tmp_path / "same.onnx")
        wrong = override(file.experiment, {"eval.longest_side": 50})
        with pytest.raises(InputError, match=r"other\.onnx was not written, because it does not compute"):
            export(replace(file, experiment=wrong), "onnx", tmp_path / "other.onnx")
        assert [path.name for path in tmp_path.iterdir()] == ["same.onnx"]

    def test_paths_of_this_machine_stay_here(self, file, tmp_path, monkeypatch):
        headers = []
        monkeypatch.setattr(export_module, "program_of", lambda *rest: None)
        monkeypatch.setitem(export_module.WRITERS, "onnx", lambda program, path, header, *rest: headers.append(header))
        monkeypatch.setattr(export_module, "Artefact", lambda path: None)
        monkeypatch.setattr(export_module, "compare", lambda *rest: export_module.Comparison(1, 1, 0, None))
        ours = override(file.experiment, {"data.root": "/home/me/drawn", "init_from": "/home/me/runs/a"})
        export(replace(file, experiment=ours), "onnx", tmp_path / "x.onnx")
        assert "/home/me" not in headers[0] and json.loads(headers[0])["experiment"]["init_from"] == "a"

    def test_it_runs_without_torch(self, onnx, tmp_path):
        """In a process in which neither torch nor anything that needs it can be imported."""
        Image.fromarray(noise(1, 40, 48, 3)[0]).save(tmp_path / "x.png")
        program = f"""
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "torchvision", "safetensors", "onnx", "tensorboard", "jinja2"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refused())
from emanet import Predictor
labels = Predictor({str(onnx)!r})({str(tmp_path / "x.png")!r})
assert labels.shape == (40, 48), labels.shape
assert "rich" not in sys.modules and "tyro" not in sys.modules
from emanet.cli import main
main(["predict", {str(onnx)!r}, {str(tmp_path / "x.png")!r}, "--out", {str(tmp_path / "out")!r}])
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(
            read_mask_values(tmp_path / "out/x.png"), Predictor(str(onnx))(tmp_path / "x.png")
        )


class TestTorch:
    def test_it_is_the_model_at_every_size(self, file, tmp_path):
        path = tmp_path / "tiny.pt2"
        found = export(file, "torch", path, outputs=("labels", "probabilities"))
        assert found.other_labels <= 1e-4
        artefact = Artefact(path)
        assert_equal(lambda pixels: [artefact(pixels)[name] for name in ("labels", "probabilities")], model_of(file))
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        with pytest.raises(InputError, match="damaged"):
            Artefact(path)


@needs_openvino
class TestOpenVINO:
    def test_several_at_a_time_are_the_same(self, file, tmp_path, monkeypatch):
        check_side_by_side(file, tmp_path, monkeypatch)

    @pytest.mark.slow
    def test_it_is_the_model_at_every_size(self, tmp_path):
        file = model_file(tmp_path, align_corners=False, longest_side=60)
        path = tmp_path / "tiny.xml"
        export(file, "openvino", path, outputs=("labels", "probabilities"))
        artefact, config = Artefact(path), EvalConfig(longest_side=60)
        both = ("labels", "probabilities")
        assert_equal(lambda pixels: [artefact(pixels)[name] for name in both], model_of(file), config)
        weights = path.with_suffix(".bin")
        weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
        with pytest.raises(InputError, match="checksum mismatch"):
            Artefact(path)
        weights.unlink()
        with pytest.raises(InputError, match=r"tiny\.bin is missing"):
            Artefact(path)

    @pytest.mark.slow
    @needs_int8
    def test_int8_says_what_it_costs(self, file, tmp_path, capsys):
        (tmp_path / "images").mkdir()
        for i in range(4):
            Image.fromarray(noise(1, 65, 81 + 8 * i, 3)[0]).save(tmp_path / f"images/{i}.png")
        options = {"to": "openvino", "out": str(tmp_path / "q.xml"), "precision": "int8"}
        export_model(model=str(file.path), images=str(tmp_path / "images"), **options)
        assert "against the labels of PyTorch" in capsys.readouterr().out
        (tmp_path / "masks").mkdir()
        for i in range(4):
            Image.fromarray(np.full((65, 81 + 8 * i), i, np.uint8)).save(tmp_path / f"masks/{i}.png")
        folders = {"images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")}
        export_model(model=str(file.path), **folders, **options)
        assert "PyTorch in float32" in capsys.readouterr().out
        half = export_model(model=str(file.path), **(options | {"precision": "fp16", "out": str(tmp_path / "h.xml")}))
        assert half.with_suffix(".bin").stat().st_size < 0.6 * sum(t.nbytes for t in file.tensors.values())


class TestCommand:
    def test_wrong_input_is_refused_before_the_work(self, file, tmp_path):
        def refusal(*arguments: object) -> str:
            return sentence(run_cli("export", file.path, *arguments, cwd=tmp_path))

        assert "is a file named *.onnx" in refusal("--to", "onnx", "--out", "x.pb")
        assert "--precision int8 is not one of --to onnx" in refusal("--to", "onnx", "--precision", "int8")
        assert "name a folder of them with --images" in refusal("--to", "openvino", "--precision", "int8")
        assert "--masks is for" in refusal("--to", "openvino", "--masks", "x")
        assert "each once" in refusal("--to", "torch", "--outputs", "labels", "labels")
        assert "--to" in refusal()
        assert list(tmp_path.glob("tiny*")) == []

    def test_the_size_that_is_told_is_its_own(self, file, tmp_path, monkeypatch):
        (tmp_path / "tiny.bin").write_bytes(bytes(9_000_000))  # of an .xml, say

        def written(file: ModelFile, to: str, out: Path, **options: object) -> int:
            return out.write_bytes(bytes(2_500_000))

        monkeypatch.setattr("emanet.analysis.export.export", written)
        done = run_cli("export", file.path, "--to", "torch", "--out", tmp_path / "tiny.pt2")
        assert "tiny.pt2: 2.5 MB, " in done.stdout

    def test_kinds_of_names(self):
        assert is_artefact("a.onnx") and is_artefact(Path("b.XML")) and is_artefact("c.pt2")
        assert not is_artefact("street") and not is_artefact(None)
