"""voc_resnet50_os16 with the EM attention in 256 channels.

    python -m emanet train voc_resnet50_256_os16 --data.root VOC2012

Expected: no published figure of the paper's recipe. Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(load_experiment("voc_resnet50_os16"), {"model.head.channels": 256})
