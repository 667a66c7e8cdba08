"""demo [MODEL]: a page in the browser around a model."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from ..config import EngineConfig
from .flags import Device, ModelOrNone, parse, shown_as


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Serve a page that labels images and shows what the EM attention does.

    Only this machine can open it, unless --host says otherwise. No image is kept.
    """

    model: ModelOrNone = ""
    """A model file or a run folder; default `street`, which comes with the package and labels street photos."""
    host: Annotated[str, shown_as("ADDRESS")] = "127.0.0.1"
    """Where to serve; 0.0.0.0 lets in the whole network."""
    port: int = 7860
    """Where to serve."""
    examples: Annotated[tuple[str, ...], shown_as("PATH ...")] = ()
    """Files, folders and quoted globs of images to offer on the page."""
    max_megabytes: float = 20
    """Refuse larger image files."""
    max_pixels: int = 25_000_000
    """Refuse larger images by their headers."""
    queue: int = 16
    """Images that may wait their turn; more are turned away."""
    seconds: float = 60
    """Give up on an image after this time."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    how: Annotated[EngineConfig, tyro.conf.arg(name="")] = EngineConfig()

    def run(self) -> None:
        from ..web.page import Limits, serve

        limits = Limits(megabytes=self.max_megabytes, pixels=self.max_pixels, waiting=self.queue, seconds=self.seconds)
        serve(self.model, self.host, self.port, self.examples, self.device, self.how, limits)


def main(arguments: list[str]) -> None:
    parse(Demo, arguments, "demo").run()
