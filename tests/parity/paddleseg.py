"""Expected outputs of PaddleSeg's EMANet.

    python tests/parity/paddleseg.py CHECKOUT

CHECKOUT is a clone of github.com/PaddlePaddle/PaddleSeg; nothing of it is copied. Needs paddlepaddle (the processor's
build will do) and what its package imports (scikit-image, opencv, visualdl and others).
"""

import pickle
import sys
import tempfile
from pathlib import Path

import paddle

sys.path[:0] = [str(Path(__file__).parent), sys.argv[1]]
sys.modules.pop("paddleseg", None)  # this very file's name is the package's
import cases  # noqa: E402

sys.path[:] = [sys.argv[1], *(folder for folder in sys.path if Path(folder) != Path(__file__).parent)]
from paddleseg.models.backbones import resnet_vd  # noqa: E402
from paddleseg.models.emanet import EMANet  # noqa: E402


def logits(layers: int, size: tuple[int, int], classes: int, align: bool, stride: int = 8) -> None:
    backbone = getattr(resnet_vd, f"ResNet{layers}_vd")(output_stride=stride)
    net = EMANet(classes, backbone, align_corners=align)  # the rest are its defaults and its configurations' values
    with tempfile.TemporaryDirectory() as folder:  # its own file, so that the keys are those that a user has
        paddle.save(net.state_dict(), f"{folder}/model.pdparams")
        saved = pickle.loads(Path(folder, "model.pdparams").read_bytes())
    shapes = {key: tuple(value.shape) for key, value in saved.items() if hasattr(value, "shape")}
    net.set_state_dict({key: paddle.to_tensor(value) for key, value in cases.fill(shapes, layers).items()})
    net.eval()
    pixels = paddle.to_tensor((cases.image(*size).astype("float32") / 255 - 0.5) / 0.5).transpose([0, 3, 1, 2])
    with paddle.no_grad():
        found = net(pixels)[0][0].numpy()
    about = {"layout": "paddleseg", "layers": layers, "stride": stride, "size": size, "align_corners": align}
    about["others"] = sorted(key for key, value in saved.items() if not hasattr(value, "shape"))
    name = f"paddleseg_resnet{layers}_stride{stride}_{'align' if align else 'noalign'}"
    cases.save(name, about, shapes, logits=found[:, :: cases.EVERY, :: cases.EVERY])


if __name__ == "__main__":
    logits(50, (64, 96), 19, False)
    logits(50, (65, 97), 21, True)
    logits(50, (64, 96), 19, False, stride=16)
    logits(101, (64, 96), 19, False)
