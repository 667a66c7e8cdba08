"""Expected outputs of the released EMANet code.

    python tests/parity/original.py CHECKOUT

CHECKOUT is a clone of github.com/XiaLiPKU/EMANet; nothing of it is copied. Needs torch.
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parent), sys.argv[1]]
import cases  # noqa: E402

# What its imports need and this does not: a BatchNorm for old versions of torch, and TensorBoard.
modules = types.ModuleType("bn_lib.nn.modules")
modules.SynchronizedBatchNorm2d = torch.nn.BatchNorm2d  # what it is on one device
modules.patch_replication_callback = lambda net: None
board = types.ModuleType("tensorboardX")
board.SummaryWriter = object
sys.modules |= {"bn_lib": types.ModuleType("bn_lib"), "bn_lib.nn": types.ModuleType("bn_lib.nn")}
sys.modules |= {"bn_lib.nn.modules": modules, "tensorboardX": board}
torch.load = lambda *arguments, **named: {}  # its backbone weights; ours come from cases.fill

import network  # noqa: E402
import settings  # noqa: E402
import train  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STEPS = 3


def build(layers: int, stride: int) -> tuple[torch.nn.Module, dict[str, tuple[int, ...]]]:
    settings.STRIDE = stride
    net = network.EMANet(21, layers)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict({key: torch.from_numpy(value) for key, value in cases.fill(shapes, layers).items()})
    return net, shapes


def pixels(pictures: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As its data set does it, mean and std being float32."""
    images = torch.from_numpy(pictures).to(dtype) / 255
    return ((images - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def logits(layers: int, stride: int, size: tuple[int, int]) -> None:
    net, shapes = build(layers, stride)
    with torch.no_grad():
        found = net.eval()(pixels(cases.image(*size)))[0].numpy()
    about = {"layout": "original", "layers": layers, "stride": stride, "size": size, "align_corners": True}
    cases.save(
        f"original_resnet{layers}_stride{stride}", about, shapes, logits=found[:, :: cases.EVERY, :: cases.EVERY]
    )


def backbone(layers: int, size: tuple[int, int]) -> None:
    """Its ResNet is PyTorch-Encoding's, whose files it loads: the last map, before the head."""
    settings.STRIDE = 8
    net = network.resnet(layers, 8)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict({key: torch.from_numpy(value) for key, value in cases.fill(shapes, layers).items()})
    stages = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    with torch.no_grad():
        found = torch.nn.Sequential(*(getattr(net, stage) for stage in stages)).eval()(pixels(cases.image(*size)))
    about = {"layout": "encoding", "layers": layers, "stride": 8, "size": size}
    cases.save(f"encoding_resnet{layers}", about, shapes, features=found[0, ::16].numpy())


def training(size: int, steps: int) -> None:
    """Steps of its own session with its own optimiser groups, dropout off: losses, first gradients, bases, weights.

    In float64: a network of random weights makes of float32's rounding a tenth of some gradients, in either code.
    """
    net, shapes = build(50, 8)
    net.train().double()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    rates = [("1x", 1, settings.WEIGHT_DECAY), ("1y", 1, 0.0), ("2x", 2, 0.0)]
    groups = [
        {"params": list(train.get_params(net, key=key)), "lr": scale * settings.LR, "weight_decay": decay}
        for key, scale, decay in rates
    ]
    optimizer = torch.optim.SGD(groups, momentum=settings.LR_MOM)
    session = types.SimpleNamespace(net=lambda *batch: net(*batch), opt=optimizer)
    session.net.module = net
    images = pixels(cases.image(size, size, 2), torch.float64)
    targets = torch.from_numpy(cases.labels(size, size, 2)).long()
    losses, gradients = [], None
    for _ in range(steps):
        losses.append(train.Session.train_batch(session, images, targets))
        if gradients is None:
            gradients = np.array([cases.sketch(p.grad.numpy()) for p in net.parameters() if p.grad is not None])
    about = {"layout": "original", "layers": 50, "size": (size, size), "batch": 2, "steps": steps}
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    cases.save(
        "training", about, shapes, losses=np.array(losses), bases=state["emau.mu"][0, ::8],
        gradients=gradients, weights=np.array([cases.sketch(state[key]) for key in shapes]),
    )  # fmt: skip


if __name__ == "__main__":
    for depth in (50, 101, 152):
        logits(depth, 8, (65, 97))
        logits(depth, 16, (81, 129))
    backbone(50, (65, 97))
    training(65, steps=3)
