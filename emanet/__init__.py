"""EMANet: Expectation-Maximization Attention Networks for semantic segmentation (arXiv 1907.13426), in PyTorch.

    model = emanet.load("model.safetensors")        # or a run folder
    labels = emanet.Predictor(model)("photo.jpg")   # (H, W) uint8 class indices

Names load when they are first used: `import emanet` imports nothing heavy, torch least of all.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "EMANet": "model",
    "EMAU": "emau",
    "Experiment": "config",
    "DatasetSpec": "config",
    "ModelConfig": "config",
    "InputError": "errors",
    "Predictor": "predict.predictor",
    "build_model": "model",
    "em_attention": "ops.em_attention",
    "load": "loading",
    "load_experiment": "experiments",
    "override": "experiments",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'emanet' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
