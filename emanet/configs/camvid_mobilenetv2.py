"""CamVid road scenes (11 classes, 480x360) with MobileNetV2: real photographs on a processor in ten minutes.

    python -m emanet train camvid_mobilenetv2 --data.root CAMVID

CAMVID holds train/images/*.jpg, train/masks/*.png and the same under val. With hub access the ImageNet weights come
by themselves; else --model.backbone.pretrained FILE.

align_corners is off: crops of 320 are no 16k + 1, and on them the grid of the original's choice is off by up to 15
pixels. Off, crops and whole images (padded to 16k) are on the same grid.

Expected: mIoU 0.55 or more. Measured: 0.589; with --steps 1600: 0.664 (docs/LOG.md).
"""

from emanet.config import BackboneConfig, DataConfig, Experiment, HeadConfig, LossConfig, ModelConfig, OptimConfig

config = Experiment(
    model=ModelConfig(
        backbone=BackboneConfig(name="mobilenetv2_100", output_stride=16),
        head=HeadConfig(channels=256, dropout=0.0),
        align_corners=False,
    ),
    data=DataConfig(
        dataset="camvid", crop=(320, 320), scales=(0.75, 2.0), continuous_scale=True, colour=0.2, workers=2
    ),
    # sqrt(median frequency / frequency) over the training masks: poles and people are 1 % of the pixels.
    loss=LossConfig(average="valid", class_weights=(0.5, 0.4, 2.1, 0.4, 1.0, 0.7, 2.0, 2.0, 0.9, 2.6, 3.9)),
    optim=OptimConfig(name="adamw", lr=2e-3, weight_decay=1e-2, bias_lr_scale=1.0, lr_every=1, warmup_steps=40),
    steps=400,
    batch_size=8,
)
