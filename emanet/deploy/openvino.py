"""The openvino engine: one conversion for all sizes, in float32, bfloat16 or int8.

int8 is post-training quantisation by NNCF: convolutions multiply int8 by int8, with ranges measured on images of yours.
EM attention and the attention of the other heads stay in float32 (`in_float32`). In bf16 they do not: OpenVINO applies
that type to the whole network.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .artefact import held, requests, require
from .network import Network, quiet


class OpenVINO:
    """Normalised images (B, C, H, W) of any size to low-resolution logits, float32 in and out, on the CPU.

    It uses as many threads as torch does when it is made. The images of a batch go through one by one: on a CPU a batch
    gains nothing, and the conversion is for one image. Calls from several threads take turns, unless `get_ready` has
    made room for more. Images not wider than the backbone's stride go through `network` itself, in float32: where a map
    is smaller than its pooling window, OpenVINO returns nothing or the previous image's result, without an error.
    """

    def __init__(self, network: Network, sample: Tensor, precision: str, calibration: Sequence[Tensor] = ()):
        self.network = network
        model = convert(network, sample)
        if precision == "int8":
            model = quantise(model, calibration)
        self.threads = torch.get_num_threads()
        self.settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",  # its own default varies with the CPU
            "INFERENCE_NUM_THREADS": self.threads,
        }
        self.model = model
        self.get_ready(1)

    def get_ready(self, at_once: int) -> None:
        """For so many calls at a time from now on, each with its part of the threads."""
        self.ready = requests(self.model, self.settings, at_once)

    def __call__(self, x: Tensor) -> Tensor:
        if not len(x) or min(x.shape[2:]) <= self.network.backbone.stride:
            return self.network(x)
        with held(self.ready) as request:
            outputs = [request.infer([image[None].contiguous().numpy()], share_inputs=True)[0] for image in x]
        return torch.cat([torch.from_numpy(output) for output in outputs])


def convert(network: nn.Module, sample: Tensor) -> Any:
    """The OpenVINO model of a network in eval mode, for images (1, C, H, W) of any size."""
    openvino = require("openvino")
    from openvino.frontend.pytorch import ConversionExtension

    def transposed(context: Any) -> Any:  # OpenVINO has no rule for aten::mT
        x = context.get_input(0)
        rank = x.get_partial_shape().rank.get_length()
        order = [*range(rank - 2), rank - 1, rank - 2]
        return openvino.opset13.transpose(x, openvino.opset13.constant(order)).outputs()

    extension = [ConversionExtension("aten::mT", transposed)]
    with quiet(), torch.no_grad():
        return openvino.convert_model(network, example_input=sample, extension=extension)


def quantise(model: Any, calibration: Sequence[Tensor]) -> Any:
    """The int8 model, with ranges measured on normalised images (1, C, H, W)."""
    nncf = require("nncf")
    kept = [op.get_friendly_name() for op in in_float32(model)]
    with quiet():
        return nncf.quantize(
            model,
            nncf.Dataset([image.numpy() for image in calibration]),
            preset=nncf.QuantizationPreset.MIXED,  # activations other than ReLU's have both signs
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
        )


def in_float32(model: Any) -> list[Any]:
    """The operations of EM attention, and the matrix products and softmaxes of any head, but no convolutions."""
    left_out = ("Constant", "ShapeOf", "Convolution", "GroupConvolution")
    ops = [op for op in model.get_ordered_ops() if op.get_type_name() not in left_out]
    return [
        op
        for op in ops
        if re.match(r"__module\.head\.emau/", op.get_friendly_name())
        or (op.get_friendly_name().startswith("__module.head") and op.get_type_name() in ("MatMul", "Softmax"))
    ]
