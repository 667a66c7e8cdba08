"""Learn the drawn scenes from nothing, on a laptop's processor: the demo, and the quickest check that all is well.

    python -m emanet train drawn

Expected: mIoU 0.80 or more.
"""

from emanet.config import BackboneConfig, DataConfig, Experiment, HeadConfig, LossConfig, ModelConfig, OptimConfig

config = Experiment(
    model=ModelConfig(
        backbone=BackboneConfig(name="test_resnet", pretrained=False, output_stride=8),
        head=HeadConfig(channels=128, num_bases=32, fc1_channels=0),
    ),
    data=DataConfig(dataset="drawn", crop=(129, 129), scales=(1.0,), workers=2),
    loss=LossConfig(average="valid"),
    optim=OptimConfig(name="adamw", lr=3e-3, weight_decay=1e-2, bias_lr_scale=1.0, lr_every=1, warmup_steps=20),
    steps=800,
    batch_size=16,
    val_every=200,
)
