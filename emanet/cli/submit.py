"""submit MODEL: predictions as the evaluation servers take them."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ..config import EngineConfig, EvalConfig
from .flags import Device, File, Model, Whole, parse_for_model


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Predict test images and pack the result for an evaluation server."""

    model: Model
    """A model file, a run folder, hf:owner/name on the hub, or `street`, which comes with the package."""
    images: Annotated[str, tyro.conf.arg(metavar="DIR|FILE")]
    """Folder of images, or a text file that lists one a line, relative to its own folder."""
    out: File
    """The archive: .tar.gz for VOC, .zip for Cityscapes and ADE20K."""
    format: Literal["auto", "voc", "cityscapes", "ade20k"] = "auto"
    """Which server; auto: by the model's classes."""
    competition: Literal["comp5", "comp6"] = "comp6"
    """Of VOC. comp5: trained on VOC alone; comp6: on other data too."""
    max_pixels: Whole = None
    """Refuse larger images by their headers; default 179 million."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    how: Annotated[EngineConfig, tyro.conf.arg(name="")] = EngineConfig()
    settings: Annotated[EvalConfig, tyro.conf.arg(name="")] = EvalConfig()

    def run(self) -> None:
        from ..atomic import require_writable
        from ..predict.predictor import Predictor
        from ..predict.submit import submit

        require_writable(self.out)  # before the model is read, and perhaps compiled or quantised
        how = vars(self.how) | {"device": self.device, "max_pixels": self.max_pixels, "config": self.settings}
        predictor = Predictor(self.model, **how)
        submit(predictor, self.images, self.out, format=self.format, competition=self.competition)


def main(arguments: list[str]) -> None:
    parse_for_model(Submit, arguments, "submit").run()
