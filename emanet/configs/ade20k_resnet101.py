"""ADE20K, 150 classes, ResNet-101 at output stride 8, with an auxiliary head.

    torchrun --nproc-per-node 4 -m emanet train ade20k_resnet101 --data.root ADE20K

The length (130 passes), decay and auxiliary head are sssegmentation's.

Expected: 44.39 mIoU on val, single scale (sssegmentation). Measured: not yet.
"""

from emanet.config import LossConfig
from emanet.experiments import load_experiment, override

config = override(
    load_experiment("voc_resnet101"),
    {
        "model.aux_head": True,
        "data.dataset": "ade20k",
        "data.train_split": "train",
        "loss": LossConfig(average="valid", aux_weight=0.4),
        "optim.lr": 1e-2,
        "optim.weight_decay": 5e-4,
        "steps": 164_000,
        "val_every": 16_000,
    },
)
