"""export [MODEL] --to KIND: the trained model as a file for another runtime, or as a web page."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from .flags import Folder, ModelOrNone, Whole, parse, shown_as


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model for another runtime: raw pixels in, label maps out.

    The result is compared with PyTorch, and not left there if it differs.
    """

    model: ModelOrNone = ""
    """A model file, a run folder or hf:owner/name; default `street`, which labels photos of streets."""
    to: Literal["onnx", "openvino", "torch", "web"]
    """onnx: one .onnx file; openvino: .xml and .bin; torch: .pt2; web: a folder for any static host."""
    out: Annotated[str, shown_as("PATH")] = ""
    """What to write; default the model's name with the ending of its kind, here."""
    outputs: Annotated[
        tuple[Literal["labels", "probabilities", "responsibilities"], ...], tyro.conf.arg(metavar="NAME ...")
    ] = ("labels",)
    """labels, probabilities of all classes, responsibilities of the EM attention's bases in every iteration."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """fp16, int8: for openvino. int8 measures its ranges on --images and says what it costs in mIoU."""
    images: Folder = ""
    """Images like those to come: compared on them, and for int8 measured."""
    masks: Folder = ""
    """Their masks: int8's mIoU is then of these instead of the labels that PyTorch gives."""
    runtime: Annotated[str, shown_as("PATH")] = ""
    """For web: the .tgz of onnxruntime-web's npm package or a folder with its files; default: npm downloads it."""
    max_pixels: Whole = None
    """Refuse larger images by their headers; default 179 million."""

    def run(self) -> None:
        from ..analysis.export import export_model

        export_model(**vars(self))


def main(arguments: list[str]) -> None:
    parse(Export, arguments, "export").run()
