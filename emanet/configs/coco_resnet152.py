"""For VOC's test server, 1 of 3, with ResNet-152: COCO 2017 with VOC's 20 classes.

    torchrun --nproc-per-node 4 -m emanet train coco_resnet152 --data.root COCO

Expected: no published figure of this stage. Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(load_experiment("coco_resnet101"), {"model.backbone.name": "resnet152s"})
