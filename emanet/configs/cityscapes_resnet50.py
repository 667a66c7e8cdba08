"""cityscapes_resnet101 with ResNet-50.

    torchrun --nproc-per-node 4 -m emanet train cityscapes_resnet50 --data.root CITYSCAPES

Expected: 79.33 mIoU on val, single scale (mmsegmentation, without mining, with an auxiliary head). Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(load_experiment("cityscapes_resnet101"), {"model.backbone.name": "resnet50s"})
