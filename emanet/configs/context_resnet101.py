"""PASCAL Context, 59 classes and background, ResNet-101 at output stride 8.

    torchrun --nproc-per-node 4 -m emanet train context_resnet101 --data.root VOC2010
    torchrun --nproc-per-node 4 -m emanet train context_resnet101 --data.root VOC2010 --data.dataset context59

Papers count 59 classes or 60; the scores differ by some points. Steps and learning rate are VOC's, which the author
used for COCO-Stuff too.

Expected: 53.1 mIoU, several scales and flips (paper). Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(
    load_experiment("voc_resnet101"),
    {"data.dataset": "context60", "data.train_split": "train"},
)
