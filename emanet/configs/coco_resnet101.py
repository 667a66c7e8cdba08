"""For VOC's test server, 1 of 3: COCO 2017 with VOC's 20 classes.

    torchrun --nproc-per-node 4 -m emanet train coco_resnet101 --data.root COCO

Steps and learning rate are a choice: the source names this stage without them. Then voctest_trainaug_resnet101.

Expected: no published figure of this stage. Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(
    load_experiment("voc_resnet101"),
    {"data.dataset": "coco_voc", "data.train_split": "train", "steps": 150_000, "val_every": 25_000},
)
