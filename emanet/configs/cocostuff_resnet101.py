"""COCO-Stuff 10k, 171 classes, ResNet-101 at output stride 8: 9,000 images to train, 1,000 to test.

    torchrun --nproc-per-node 4 -m emanet train cocostuff_resnet101 --data.root COCOSTUFF10K

Crop, steps and learning rate are those that the author gives for it.

Expected: 39.9 mIoU, several scales and flips (paper). Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(
    load_experiment("voc_resnet101"),
    {"data.dataset": "cocostuff10k", "data.train_split": "train"},
)
