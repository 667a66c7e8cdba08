"""predict [MODEL] IMAGE ...: label maps and overlays into a folder."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ..config import EngineConfig, EvalConfig
from ..errors import InputError
from .flags import Device, Folder, Images, ModelOrNone, Numbers, Switch, Whole, Wholes, parse_for_model, shown_as

Kind = Literal[
    "index", "overlay", "colour", "probabilities", "uncertainty", "shares", "coco", "geojson", "labelme"
]  # those of predict/outputs.py, which is imported late
Outputs = Annotated[tuple[Kind, ...], shown_as("NAME ...")]
FOR_IMAGES = {"outputs": "--outputs", "overlay": "--no-overlay"} | {n: f"--{n}" for n in ("rasters", "bands", "range")}


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Write a label map (PNG) and an overlay for every image, an MP4 for a video.

    TIFFs with a georeference or at least 32 megapixels are read in blended windows.

    Their label maps are tiled TIFFs with the same CRS and transform.
    """

    model: ModelOrNone = ""
    """A model file, a run folder or hf:owner/name; default `street`, which labels photos of streets."""
    images: Images
    """Files, folders and quoted globs of images and videos; cameras as /dev/video0 or an address (rtsp://host/path)."""
    out: Folder
    """Folder for the results."""
    outputs: Outputs = ()
    """Some of index, overlay, colour, probabilities, uncertainty, shares, coco, geojson, labelme: see docs/outputs.md.
    Default: index and overlay; index alone for TIFFs read in windows."""
    overlay: bool = True
    """--no-overlay: index alone by default."""
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
    view: Literal["overlay", "side", "colours"] = "overlay"
    """Of videos: the labels' colours over the frame, beside it, or alone."""
    every: int = 1
    """Of videos: one of so many frames is labelled, and its labels are shown until the next one."""
    frames: Switch = False
    """Of videos: also write the label map of every labelled frame into a folder beside the video."""
    carry_bases: Switch = False
    """Of videos: EM starts from the last frame's bases, not from the trained ones; see docs/video.md first."""
    resume: Switch = False
    """Leave out what is done already by the same model and options and newer than its input; go on with a cut video."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    how: Annotated[EngineConfig, tyro.conf.arg(name="")] = EngineConfig()
    settings: Annotated[EvalConfig, tyro.conf.arg(name="")] = EvalConfig()

    def run(self) -> None:
        if not self.images:
            raise InputError("predict needs at least one image, folder or glob, after MODEL if one is named")
        from ..atomic import require_writable_folder
        from ..predict.files import predict_files
        from ..predict.inputs import find_videos, require_apart
        from ..predict.predictor import Predictor

        videos, images = find_videos(self.images)
        for_videos = {name: getattr(self, name) for name in ("view", "every", "frames", "carry_bases")}
        for name, value in for_videos.items():
            if not videos and value != getattr(Predict, name):
                raise InputError(f"--{name.replace('_', '-')} is for videos, and there is none among the inputs")
        for name, flag in FOR_IMAGES.items():
            if not images and getattr(self, name) != getattr(Predict, name):
                raise InputError(f"{flag} is for images, and there are only videos among the inputs")
        if self.frames:
            require_apart(videos, images)
        require_writable_folder(self.out)  # before the model is read, and perhaps compiled or quantised
        how = vars(self.how) | {"device": self.device, "max_pixels": self.max_pixels, "config": self.settings}
        options = {name: getattr(self, name) for name in ("outputs", "overlay", "batch", "rasters", "bands", "range")}
        predictor = Predictor(self.model or None, **how)
        failures = predict_files(predictor, images, self.out, resume=self.resume, **options) if images else []
        if videos:
            from ..predict.video import predict_videos

            for_videos |= {"batch": self.batch, "resume": self.resume}
            failures += predict_videos(predictor, videos, self.out, **for_videos)
        if failures:
            kind = "images and videos" if videos else "images"
            raise InputError(f"{kind} that could not be predicted: {len(failures)}, named above")


def main(arguments: list[str]) -> None:
    parse_for_model(Predict, arguments, "predict", images=True).run()
