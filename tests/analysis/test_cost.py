import csv
import io
import json
import re

import pytest
import torch
from conftest import ROOT, run_cli, run_process, sentence
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from emanet.analysis import cost as profile
from emanet.analysis.published import FIGURES, TABLE1
from emanet.config import ModelConfig
from emanet.data.datasets import SPECS, resolve
from emanet.experiments import experiment_names, load_experiment, override

DOCS = (ROOT / "docs" / "profile.md").read_text()
pytestmark = pytest.mark.xdist_group("cost")  # one table for all


@pytest.fixture(scope="module", autouse=True)
def no_random_weights():
    """Counts do not depend on weights: leave them as they come."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "trunc_normal_", "normal_", "uniform_"):
            patch.setattr(nn.init, name, lambda tensor, *arguments, **options: tensor)
        yield


@pytest.fixture(scope="module")
def table1():
    return {row["name"]: row for row in profile.paper_rows()}


def small(changes=()):
    config = override(load_experiment("drawn"), dict(changes)).model
    return profile.build(config, SPECS["drawn"])


def test_convolutions_by_hand():
    stack = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=4),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 4, 1, stride=2, bias=True),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    )
    counts = profile.multiply_adds(stack, (2, 8, 17, 19))
    assert counts["0"].total() == 2 * 17 * 19 * 16 * (8 // 4) * 9
    assert counts["3"].total() == 2 * 9 * 10 * 4 * 16
    assert counts["1"].total() == counts["2"].total() == counts["4"].total() == 0
    assert counts[""].total() == counts["0"].total() + counts["3"].total()


@pytest.mark.parametrize(("steps", "bases"), [(1, 32), (3, 8)])
def test_the_unit_by_formula(steps, bases):
    model = small({"model.head.channels": 16, "model.head.num_bases": bases, "model.head.em_steps": steps})
    unit = profile.multiply_adds(model, (2, 3, 65, 65))["head.emau"]
    c, n = 16, 9 * 9
    assert unit["aten.bmm"] == 2 * (2 * steps + 1) * c * n * bases
    assert unit.total() == unit["aten.bmm"] + 2 * 2 * c * c * n  # and its two 1x1 convolutions


def test_parts_add_up_and_the_auxiliary_head_does_not_work_in_inference():
    model = small({"model.aux_head": True, "model.backbone.frozen": True})
    counts = profile.multiply_adds(model, (1, 3, 65, 65))
    assert counts[""].total() == counts["backbone"].total() + counts["head"].total() > 0
    assert "aux_head" not in counts and profile.parameters(model.aux_head) > 0
    assert profile.parameters(model.backbone, trainable=True) == 0 < profile.parameters(model.backbone)


@pytest.mark.parametrize("name", ["ResNet-101", "DeepLabV3", "EMANet(256)", "EMANet(512)"])
def test_table_1_within_a_percent(table1, name):
    row = table1[name]
    for key in ("multiply_adds", "parameters"):
        assert row[key] == pytest.approx(row["published"][key], rel=0.01)


def test_psanet_as_the_paper_seems_to_have_counted_it(table1):
    giga, mega = map(float, re.search(r"\+([\d.]+) G and \+([\d.]+) M", table1["PSANet"]["note"]).groups())
    assert (giga, mega) == (56.3, 18.5)


def test_the_rows_of_table_1(table1):
    assert list(table1) == list(TABLE1)
    for row in table1.values():
        assert list(row) == ["name", "multiply_adds", "parameters", "published", "note"]
        assert type(row["multiply_adds"]) is type(row["parameters"]) is int and row["note"]
        assert list(row["published"]) == ["mIoU", "mIoU_ms_flip", "multiply_adds", "memory", "parameters"]
        assert all(isinstance(value, int | float | None) for value in row["published"].values())


def test_table_1_is_counted_in_the_run(table1, monkeypatch):
    small_one = override(profile.PAPER_BACKBONE, {"name": "test_resnet", "multi_grid": ()})
    monkeypatch.setattr(profile, "PAPER_BACKBONE", small_one)
    head = profile.PAPER_HEADS["EMANet(512)"]
    halved = override(head, {"num_bases": 32})
    monkeypatch.setattr(profile, "PAPER_HEADS", {"EMANet(512)": head, "EMANet(256)": halved})
    backbone, whole, half = profile.paper_rows()
    for key in ("multiply_adds", "parameters"):
        assert backbone[key] < 0.02 * table1["ResNet-101"][key] and whole[key] < table1["EMANet(512)"][key]
    assert whole["multiply_adds"] - half["multiply_adds"] == 7 * 512 * 65 * 65 * 32
    assert whole["published"] == table1["EMANet(512)"]["published"]


def test_what_the_papers_tool_counts_beyond_convolutions():
    """docs/profile.md: torchstat's rules give the paper's 190.6 G and, in MiB of float32, its 2.603 G of memory."""
    model = profile.build(ModelConfig(backbone=profile.PAPER_BACKBONE), SPECS["voc"])
    net, more, memory = model.backbone.net, [], []

    def hook(module, inputs, output):
        memory.append(output.numel())
        if isinstance(module, nn.BatchNorm2d):
            more.append(2 * output.numel())
        elif not isinstance(module, nn.Conv2d):
            more.append(inputs[0].numel())

    for name, module in net.named_modules():
        # A block of the original has one ReLU module, called three times, of which the last call is kept.
        again = name.endswith((".act1", ".act2"))
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d | nn.ReLU) and not again:
            module.register_forward_hook(hook)
    counts = profile.multiply_adds(model, profile.PAPER_SHAPE)
    assert (counts["backbone"].total() + sum(more)) / 1e9 == pytest.approx(190.6, abs=0.05)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        memory.clear()
        model.backbone(torch.empty(profile.PAPER_SHAPE))
    assert 4 * sum(memory) / 2**20 == pytest.approx(2603, abs=0.5)


def test_every_experiment():
    names = {}  # one of each network: many experiments differ in their data and schedule alone
    for name in experiment_names():
        config = load_experiment(name)
        assert resolve(config.data).spec
        names.setdefault(repr(override(config.model, {"backbone.pretrained": False})), name)
    done = run_cli("profile", *names.values(), "--size", 65, 65, "--json")
    records = json.loads(done.stdout)
    assert [record["name"] for record in records] == list(names.values()) and len(records) >= 5
    for record in records:
        assert record["multiply_adds"] > 0 and record["parameters"] >= record["trainable_parameters"] > 0
        for key in ("parameters", "trainable_parameters", "multiply_adds"):
            assert record[key] == sum(part[key] for part in record["parts"])


def test_model_files(model):
    (record,) = json.loads(run_cli("profile", model, "--size", 33, 49, "--batch", 2, "--json").stdout)
    assert (record["height"], record["width"], record["batch"], record["classes"]) == (33, 49, 2, 8)


def test_memory_of_what_is_known_by_hand():
    x = torch.zeros(1_000_000)

    def run():
        a = x + 1  # 4 MB
        b = a * 2  # 8 MB
        del a
        return b.exp_().sum()

    with torch.no_grad():
        assert profile.peak_memory(run, torch.device("cpu")) == pytest.approx(8_000_000, abs=1_000)
        assert profile.peak_memory(lambda: None, torch.device("cpu")) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_memory_of_what_is_known_by_hand_on_cuda():
    device = torch.device("cuda")
    x = torch.zeros(1_000_000, device=device)
    assert profile.peak_memory(lambda: (x + 1) * 2, device) == pytest.approx(8_000_000, rel=0.1)


def test_memory_of_a_model():
    model = small()
    found = profile.measure(model, (65, 65), 1, torch.device("cpu"), training=True)
    steps = sum(buffer.dtype == torch.int64 for buffer in model.buffers())
    buffers = sum(buffer.numel() for buffer in model.buffers())
    assert found["weights"] == 4 * (profile.parameters(model) + buffers + steps)
    # An inference holds at least the logits at the image's size, a training step the gradients too.
    assert found["inference"] >= 4 * 8 * 65 * 65
    assert found["training"] > found["inference"] + 4 * profile.parameters(model, trainable=True)
    larger = profile.measure(model, (65, 65), 2, torch.device("cpu"))
    assert 1.5 < larger["inference"] / found["inference"] < 2.1  # the kernels' copies of the weights do not double
    assert "training" not in larger
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_process_says_nothing_but_the_result():
    done = run_process("profile", "drawn", "--size", 65, 65, "--training", "--device", "cpu", "--json")
    (record,) = json.loads(done.stdout)
    assert list(record["memory"]) == ["device", "weights", "inference", "training"]
    assert done.stderr == "" and done.returncode == 0


def test_the_terminal_has_80_columns(table1, monkeypatch):
    monkeypatch.setattr(profile, "paper_rows", lambda *_, **__: list(table1.values()))
    shown = [
        run_cli("profile", "camvid_mobilenetv2", "drawn", "--size", 33, 33, "--training", "--by-module").stdout,
        run_cli("profile", "--paper").stdout,
        run_cli("profile", "--published").stdout,
    ]
    for text in shown:
        assert text and max(map(len, text.splitlines())) <= 80
    assert "layer4" in shown[0] and "training, MB" in shown[0]
    assert "+43.10" in shown[1] and "ResNet-101: " in shown[1] and "53.10" in shown[2]


def test_csv(tmp_path):
    done = run_cli("profile", "drawn", "--size", 33, 33, "--memory", "--by-module", "--csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["part"] for row in rows[:2]] == ["all", "backbone"] and rows[-1]["part"].startswith("head.")
    assert float(rows[0]["memory.inference"]) > 0 and rows[1]["memory.inference"] == ""
    assert run_cli("profile", "--published", "--csv", tmp_path / "a" / "b.csv", "--json").returncode == 0
    assert len(list(csv.DictReader(open(tmp_path / "a" / "b.csv")))) == len(FIGURES)


def test_paper_as_json_and_csv(table1, monkeypatch, tmp_path):
    monkeypatch.setattr(profile, "paper_rows", lambda *_, **__: list(table1.values()))
    for flags in (["--paper", "--json"], ["--json", "--paper"], ["--paper", "--json", "-"]):
        assert json.loads(run_cli("profile", *flags).stdout) == list(table1.values())
    assert run_cli("profile", "--paper", "--json", tmp_path / "t.json", "--csv", tmp_path / "t.csv").returncode == 0
    assert json.loads((tmp_path / "t.json").read_text()) == list(table1.values())
    rows = list(csv.DictReader(open(tmp_path / "t.csv")))
    assert [int(row["published.memory"]) for row in rows] == [row.memory for row in TABLE1.values()]


@pytest.mark.parametrize("command", ["--paper", "--published"])
def test_the_documents_tables_are_the_commands(command, table1, monkeypatch):
    monkeypatch.setattr(profile, "paper_rows", lambda *_, **__: list(table1.values()))
    written = re.search(rf"<!-- profile {command} -->\n(.*?)<!-- end -->", DOCS, re.S).group(1)
    assert written == run_cli("profile", command, "--markdown", "-").stdout


def test_memory_beside_the_papers(monkeypatch):
    monkeypatch.setattr(profile, "measure", lambda model, *_, backbone_alone=False, **__: {
        "weights": 1_000_000, "inference": 2_000_000 + (not backbone_alone) * 5_000_000
    })  # fmt: skip
    monkeypatch.setattr(profile, "PAPER_HEADS", {"EMANet(256)": profile.PAPER_HEADS["EMANet(256)"]})
    text = run_cli("profile", "--paper", "--memory", "--device", "cpu", "--markdown", "-").stdout
    assert "| ResNet-101 | 1.00 | 2.00 | 2603.00 |" in text and "| EMANet(256) | +0.00 | +5.00 | +12.30 |" in text


@pytest.mark.parametrize(("arguments", "said"), [
    (["drawm"], "did you mean 'drawn'?"),
    ([], "EXPERIMENT"),
    (["drawn", "--paper"], "either"),
    (["drawn", "--size", "0", "65"], "--size is 0 65"),
    (["drawn", "--batch", "0"], "--batch 0"),
    (["drawn", "--size", "65"], "--size"),
    (["--paper", "--size", "65", "65"], "for experiments"),
    (["--published", "--memory"], "not for --published"),
    (["drawn", "--json", "--csv"], "only one can go to the terminal"),
    (["drawn", "--memory", "--device", "tpu"], "no device 'tpu'"),
])  # fmt: skip
def test_one_sentence_for_what_is_wrong(arguments, said):
    assert said in sentence(run_cli("profile", *arguments))


def test_a_size_that_the_network_refuses(monkeypatch):
    def refuse(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore")

    monkeypatch.setattr(profile, "multiply_adds", refuse)
    said = sentence(run_cli("profile", "drawn", "--size", 65, 33))
    assert said == "error: drawn cannot take 1 x 65x33 pixels: DefaultCPUAllocator: can't allocate memory"
