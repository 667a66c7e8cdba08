import platform

import pytest
import torch

from emanet import processor
from emanet.errors import InputError
from emanet.experiments import load_experiment, override
from emanet.ops.em_attention_cpu import fits_buffer
from emanet.train import train

CPU = torch.device("cpu")


@pytest.fixture(params=["AVX512", "AVX2"])
def capability(request, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return request.param


def test_what_is_fast_only_with_avx512_is_chosen_only_there(capability):
    wide = capability == "AVX512"
    assert fits_buffer(torch.ones(1, 2, 3), torch.ones(1, 2, 2), "detached") == wide


def test_a_precision_that_is_emulated_needs_force(capability):
    for precision in ("fp32", "fp16", "int8"):
        processor.require_fast(precision, CPU, force=False)
    processor.require_fast("bf16", torch.device("cuda"), force=False)
    processor.require_fast("bf16", CPU, force=True)
    if capability == "AVX512":
        processor.require_fast("bf16", CPU, force=False)
    else:
        with pytest.raises(InputError, match="8 times slower .* use --precision fp32, or --force"):
            processor.require_fast("bf16", CPU, force=False)


def test_other_kinds_of_processor_are_not_judged(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    processor.require_fast("bf16", CPU, force=False)


def test_training_is_refused_too(monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "emulates_bf16", lambda: True)
    config = override(load_experiment("drawn"), {"precision": "bf16", "device": "cpu"})
    with pytest.raises(InputError, match="bf16 is about 8 times slower"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
