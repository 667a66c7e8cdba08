"""The model `street` that comes with the package: CamVid road scenes with MobileNetV2 and a fusion of three stages.

    python -m emanet train street --data.root CAMVID --model.backbone.pretrained FILE

CAMVID is as for camvid_mobilenetv2. FILE holds ImageNet weights of MobileNetV2 as TensorFlow trained them; for those of
timm's hub add --model.backbone.options --model.mean 0.485 0.456 0.406 --model.std 0.229 0.224 0.225.

Measured: mIoU 0.733 (docs/models/street.md).
"""

from emanet import load_experiment, override

config = override(
    load_experiment("camvid_mobilenetv2"),
    {
        "model.backbone.output_stride": 32,
        "model.backbone.options": {"pad_type": "same", "bn_eps": 1e-3},  # as TensorFlow pads and normalises
        "model.mean": (0.5, 0.5, 0.5),
        "model.std": (0.5, 0.5, 0.5),
        "model.head.name": "ema_fusion",
        "model.head.channels": 128,
        "model.head.fc1_channels": 64,
        # As for camvid_mobilenetv2, but more for poles and signs, which are thin.
        "loss.class_weights": (0.5, 0.4, 6.0, 0.4, 1.0, 0.7, 3.0, 2.0, 0.9, 2.6, 3.9),
        "eval.longest_side": 640,
        "steps": 1600,
        "val_every": 400,
    },
)
