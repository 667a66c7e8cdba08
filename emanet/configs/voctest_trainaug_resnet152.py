"""For VOC's test server, 2 of 3, with ResNet-152: from runs/coco_resnet152, 30,000 steps on trainaug.

    torchrun --nproc-per-node 4 -m emanet train voctest_trainaug_resnet152 --data.root VOC2012

Expected: no published figure of this stage. Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(
    load_experiment("voctest_trainaug_resnet101"),
    {"model.backbone.name": "resnet152s", "init_from": "runs/coco_resnet152"},
)
