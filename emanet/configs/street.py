"""The model `street` that comes with the package: CamVid road scenes, EfficientNet-Lite0 and a fusion of three stages.

    python -m emanet train street --data.root CAMVID --model.backbone.pretrained FILE

CAMVID is as for camvid_mobilenetv2. FILE holds ImageNet weights of EfficientNet-Lite0 as TensorFlow trained them, under
timm's names; with hub access they come by themselves.

Measured: mIoU 0.749, seed 1 alone. Without dice and layer_decay: 0.737, 0.741 and 0.745 with the seeds 0, 1 and 2
(docs/models/street.md).
"""

from emanet import load_experiment, override

config = override(
    load_experiment("camvid_mobilenetv2"),
    {
        "model.backbone.name": "tf_efficientnet_lite0",
        "model.backbone.output_stride": 32,
        "model.mean": (0.5, 0.5, 0.5),
        "model.std": (0.5, 0.5, 0.5),
        "model.head.name": "ema_fusion",
        "model.head.channels": 128,
        "model.head.fc1_channels": 64,
        # As for camvid_mobilenetv2, but more for poles and signs, which are thin.
        "loss.class_weights": (0.5, 0.4, 6.0, 0.4, 1.0, 0.7, 3.0, 2.0, 0.9, 2.6, 3.9),
        # Cross entropy counts pixels, dice the overlap of each class, which is nearer to IoU.
        "loss.terms": (("cross_entropy", 1.0), ("dice", 0.5)),
        # Other lights than Cambridge's: no gain on its own photographs, and no loss (docs/LOG.md).
        "data.hue": 15.0,
        "data.gamma": 0.3,
        # ImageNet's early layers fit 367 photographs already: the earlier a layer, the smaller its learning rate.
        "optim.layer_decay": 0.8,
        "optim.average": 0.996,
        "eval.longest_side": 640,
        "steps": 2000,
        "val_every": 500,
    },
)
