"""The paper's model on PASCAL VOC 2012: ResNet-101 at output stride 8, 512 channels, 30,000 steps of 16 crops.

    torchrun --nproc-per-node 4 -m emanet train voc_resnet101 --data.root VOC2012

VOC2012 holds JPEGImages, SegmentationClass and ImageSets/Segmentation; the published figure is for the 10,582 images of
`trainaug`, most of whose masks come from SBD: `python -m emanet data prepare voc --root VOC2012` makes both.

Expected: 80.05 mIoU on val, single scale (paper, Table 1). Measured: not yet.
"""

from emanet.config import BackboneConfig, DataConfig, Experiment, HeadConfig, ModelConfig

config = Experiment(
    model=ModelConfig(
        backbone=BackboneConfig(name="resnet101s", output_stride=8, multi_grid=(1, 2, 4)),
        head=HeadConfig(channels=512),
        bn_momentum=3e-4,
    ),
    data=DataConfig(dataset="voc", train_split="trainaug", val_split="val"),
    val_every=5_000,
    save_every=1_000,
)
