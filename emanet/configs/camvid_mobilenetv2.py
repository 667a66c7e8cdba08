"""CamVid road scenes (11 classes, 480x360) with MobileNetV2: real photographs on a processor in ten minutes.

    python -m emanet train camvid_mobilenetv2 --data.root CAMVID

CAMVID holds train/images/*.jpg, train/masks/*.png and the same under val. With hub access the ImageNet weights come
by themselves; else --model.backbone.pretrained FILE.
"""

from emanet.config import BackboneConfig, DataConfig, Experiment, HeadConfig, LossConfig, ModelConfig, OptimConfig

config = Experiment(
    model=ModelConfig(
        backbone=BackboneConfig(name="mobilenetv2_100", output_stride=16),
        head=HeadConfig(channels=256),
    ),
    data=DataConfig(dataset="camvid", crop=(320, 320), scales=(0.5, 2.0), continuous_scale=True, workers=2),
    loss=LossConfig(average="valid"),
    optim=OptimConfig(lr=2e-2, head_lr_scale=1.0, lr_every=1, warmup_steps=20),
    steps=400,
    batch_size=8,
    val_every=400,
)
