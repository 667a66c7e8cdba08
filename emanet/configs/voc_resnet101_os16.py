"""voc_resnet101 at output stride 16: a quarter of the head's pixels, about a third of the training's work.

    torchrun --nproc-per-node 2 -m emanet train voc_resnet101_os16 --data.root VOC2012

Expected: no published figure at 16; a point or so below stride 8 is usual. Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(load_experiment("voc_resnet101"), {"model.backbone.output_stride": 16})
