"""Expected outputs of sssegmentation's EMANet.

    python tests/parity/sssegmentation.py CHECKOUT

CHECKOUT is a clone of github.com/SegmentationBLWX/sssegmentation; nothing of it is copied. Needs torch and what its
package imports (dill, tqdm, pandas, opencv, pycocotools).
"""

import copy
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), sys.argv[1]]
import cases  # noqa: E402
from ssseg.configs._base_ import REGISTERED_SEGMENTOR_CONFIGS  # noqa: E402
from ssseg.modules.models.segmentors.emanet.emanet import EMANet  # noqa: E402
from ssseg.modules.utils import SSSegInputStructure  # noqa: E402

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of its data set configurations


def logits(layers: int, stride: int, size: tuple[int, int]) -> None:
    settings = copy.deepcopy(REGISTERED_SEGMENTOR_CONFIGS["EMANET_SEGMENTOR_CFG"])
    settings["num_classes"] = 21
    settings["norm_cfg"] = {"type": "BatchNorm2d"}  # on one device
    settings["backbone"] |= {
        "depth": layers,
        "structure_type": f"resnet{layers}conv3x3stem",
        "outstride": stride,
        "pretrained": False,
    }
    net = EMANet(settings, mode="TEST").eval()
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict({key: torch.from_numpy(value) for key, value in cases.fill(shapes, layers).items()})
    pixels = (torch.from_numpy(cases.image(*size)).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    pixels = pixels.permute(0, 3, 1, 2)
    with torch.no_grad():
        low = net(SSSegInputStructure(images=pixels, mode="TEST")).seg_logits
    align = settings["align_corners"]
    found = torch.nn.functional.interpolate(low, size, mode="bilinear", align_corners=align)[0].numpy()  # as it does
    about = {"layout": "ssseg", "layers": layers, "stride": stride, "size": size, "align_corners": align}
    cases.save(f"ssseg_resnet{layers}_stride{stride}", about, shapes, logits=found[:, :: cases.EVERY, :: cases.EVERY])


if __name__ == "__main__":
    logits(50, 8, (64, 96))
    logits(50, 16, (64, 96))
    logits(101, 8, (64, 96))
