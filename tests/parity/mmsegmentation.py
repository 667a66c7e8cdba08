"""Expected outputs of mmsegmentation's EMANet.

    python tests/parity/mmsegmentation.py

Needs torch, mmsegmentation 1.2, mmengine and mmcv (or mmcv-lite: no compiled operator is used).
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import cases  # noqa: E402


class _Absent(types.ModuleType):
    """mmcv.ops without its compiled part: names that other models import and EMANet does not use."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})


try:
    import mmcv.ops  # noqa: F401
except ImportError:
    sys.modules["mmcv.ops"] = _Absent("mmcv.ops")
    sys.modules["mmcv.ops.point_sample"] = _Absent("mmcv.ops.point_sample")

from mmengine.config import Config  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402


def logits(config: str, size: tuple[int, int]) -> None:
    """A configuration of its model zoo, as it stands but for BatchNorm on one device and no download."""
    import mmseg

    settings = Config.fromfile(Path(mmseg.__file__).parent / ".mim" / "configs" / "emanet" / f"{config}.py").model
    settings.pretrained = None
    for part in (settings.backbone, settings.decode_head, settings.auxiliary_head):
        part.norm_cfg.type = "BN"
    model = MODELS.build(settings).eval()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    layers = settings.backbone.depth
    model.load_state_dict({key: torch.from_numpy(value) for key, value in cases.fill(shapes, layers).items()})

    pre = settings.data_preprocessor
    pixels = torch.from_numpy(cases.image(*size)).float().permute(0, 3, 1, 2)  # RGB: bgr_to_rgb has been done
    pixels = (pixels - torch.tensor(pre.mean).view(1, 3, 1, 1)) / torch.tensor(pre.std).view(1, 3, 1, 1)
    with torch.no_grad():
        found = model.encode_decode(pixels, [{"img_shape": size}])[0].numpy()
    align = settings.decode_head.align_corners
    about = {"layout": "mmseg", "layers": layers, "stride": 8, "size": size, "align_corners": align}
    name = f"mmseg_resnet{layers}_{'align' if align else 'noalign'}"
    cases.save(name, about, shapes, logits=found[:, :: cases.EVERY, :: cases.EVERY].astype(np.float32))


if __name__ == "__main__":
    register_all_modules()
    logits("emanet_r50-d8_4xb2-80k_cityscapes-512x1024", (64, 96))
    logits("emanet_r101-d8_4xb2-80k_cityscapes-512x1024", (64, 96))
    logits("emanet_r50-d8_4xb2-80k_cityscapes-769x769", (65, 97))
