"""voc_resnet101 with ResNet-50: for one GPU.

    python -m emanet train voc_resnet50 --data.root VOC2012

Expected: no published figure of the paper's recipe. Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(load_experiment("voc_resnet101"), {"model.backbone.name": "resnet50s"})
