"""COCO-Stuff 164k, 171 classes, ResNet-101 at output stride 8: 118,287 images to train, 5,000 to validate.

    torchrun --nproc-per-node 4 -m emanet train cocostuff164k_resnet101 --data.root COCO

As cocostuff_resnet101, for 100,000 steps, a choice: 13 passes over the images.

Expected: no published figure. Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(
    load_experiment("cocostuff_resnet101"),
    {"data.dataset": "cocostuff164k", "steps": 100_000, "val_every": 20_000},
)
