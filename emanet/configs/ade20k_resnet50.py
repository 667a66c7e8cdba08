"""ade20k_resnet101 with ResNet-50.

    torchrun --nproc-per-node 4 -m emanet train ade20k_resnet50 --data.root ADE20K

Expected: 41.77 mIoU on val, single scale (sssegmentation). Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(load_experiment("ade20k_resnet101"), {"model.backbone.name": "resnet50s"})
