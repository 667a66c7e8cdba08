"""voc_resnet101_os16 with the EM attention in 256 channels.

    torchrun --nproc-per-node 2 -m emanet train voc_resnet101_256_os16 --data.root VOC2012

Expected: no published figure at stride 16. Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(load_experiment("voc_resnet101_os16"), {"model.head.channels": 256})
