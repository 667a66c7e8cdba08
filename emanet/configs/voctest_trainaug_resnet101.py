"""For VOC's test server, 2 of 3: from runs/coco_resnet101, 30,000 steps on trainaug.

    torchrun --nproc-per-node 4 -m emanet train voctest_trainaug_resnet101 --data.root VOC2012

The learning rate is a choice: the source names this stage without it. Then voctest_trainval_resnet101.

Expected: no published figure of this stage. Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(load_experiment("voc_resnet101"), {"init_from": "runs/coco_resnet101", "optim.lr": 1e-3})
