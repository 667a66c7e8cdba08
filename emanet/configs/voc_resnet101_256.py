"""voc_resnet101 with the EM attention in 256 channels.

    torchrun --nproc-per-node 4 -m emanet train voc_resnet101_256 --data.root VOC2012

Expected: 79.73 mIoU on val, single scale (paper, Table 1). Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(load_experiment("voc_resnet101"), {"model.head.channels": 256})
