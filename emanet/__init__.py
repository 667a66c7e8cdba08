"""EMANet: Expectation-Maximization Attention Networks for semantic segmentation (arXiv 1907.13426), in PyTorch.

Label an image with a trained model:

    import emanet

    predictor = emanet.Predictor("runs/demo")    # a run folder or a model file
    labels = predictor("photo.jpg")              # (H, W) uint8, indices of predictor.classes
    seen = emanet.explain("runs/demo", "photo.jpg")  # which pixels each base of the attention takes

Build the network, or use the attention alone:

    model = emanet.load("runs/demo")             # an EMANet, a torch.nn.Module in eval mode
    y, bases = emanet.em_attention(x, bases)     # x, y (B, C, N); bases (1, C, K) in, (B, C, K) out

Start from an experiment and change it:

    config = emanet.override(emanet.load_experiment("voc_resnet101"), {"model.head.channels": 256})

Training, evaluation and data are commands: `python -m emanet --help`. Names are imported when they are first used, so
`import emanet` loads neither torch nor numpy.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "EMANet": "model",
    "EMAU": "emau",
    "Experiment": "config",
    "DatasetSpec": "config",
    "ModelConfig": "config",
    "InputError": "errors",
    "Predictor": "predict.predictor",
    "build_model": "model",
    "em_attention": "ops.em_attention",
    "explain": "analysis.explain",
    "load": "loading",
    "load_experiment": "experiments",
    "override": "experiments",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'emanet' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
