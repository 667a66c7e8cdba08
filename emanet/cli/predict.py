"""predict [MODEL] IMAGE ...: label maps and overlays into a folder."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ..config import EngineConfig, EvalConfig
from ..errors import InputError
from .flags import Device, Folder, Images, ModelOrNone, Numbers, Whole, Wholes, parse_for_model


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Write a label map (PNG of class indices) and an overlay for every image.

    TIFFs with a georeference or at least 32 megapixels are read in blended windows.

    Their label maps are tiled TIFFs with the same CRS and transform.
    """

    model: ModelOrNone = ""
    """A model file, a run folder or hf:owner/name; default `street`, which labels photos of streets."""
    images: Images
    """Files, folders and quoted globs."""
    out: Folder
    """Folder for the results."""
    overlay: bool = True
    """Also write the image with the classes' colours over it (not for TIFFs read in windows)."""
    batch: int = 1
    """Images of one size, or windows of a TIFF, that go through the network at once; for GPUs."""
    rasters: Literal["auto", "always", "never"] = "auto"
    """Which TIFFs are read in windows (--window, --overlap), in bounded memory; auto: see above."""
    bands: Wholes = ()
    """Bands of a TIFF that are the model's channels, counted from 1; default as in training: all but alpha."""
    range: Numbers = ()
    """Values of an image that become 0 and 255, for data of more than 8 bits; default as in training."""
    max_pixels: Whole = None
    """Refuse larger images by their headers; default 179 million. A pixel needs 10 bytes of memory."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    how: Annotated[EngineConfig, tyro.conf.arg(name="")] = EngineConfig()
    settings: Annotated[EvalConfig, tyro.conf.arg(name="")] = EvalConfig()

    def run(self) -> None:
        if not self.images:
            raise InputError("predict needs at least one image, folder or glob, after MODEL if one is named")
        from ..atomic import require_writable_folder
        from ..predict.files import predict_files
        from ..predict.predictor import Predictor

        require_writable_folder(self.out)  # before the model is read, and perhaps compiled or quantised
        how = vars(self.how) | {"device": self.device, "max_pixels": self.max_pixels, "config": self.settings}
        options = {name: getattr(self, name) for name in ("overlay", "batch", "rasters", "bands", "range")}
        failures = predict_files(Predictor(self.model or None, **how), self.images, self.out, **options)
        if failures:
            raise InputError(f"images that could not be predicted: {len(failures)}, named above")


def main(arguments: list[str]) -> None:
    parse_for_model(Predict, arguments, "predict", images=True).run()
