"""voc_resnet50 at output stride 16: the lightest of the paper's family.

    python -m emanet train voc_resnet50_os16 --data.root VOC2012

Expected: no published figure of the paper's recipe. Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(load_experiment("voc_resnet50"), {"model.backbone.output_stride": 16})
