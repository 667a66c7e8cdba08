"""convert SRC DST: another program's checkpoint as a model file of ours."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from ..errors import InputError
from .flags import Name, Switch, Whole, Wholes, parse, shown_as

Numbers = Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="FLOAT ...", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Turn another program's checkpoint into a model file, or a backbone's into one.

    Weights do not say everything about a model: each decision is printed.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """A .pth, .pdparams or .safetensors file, or hf:owner/name; no code in it is run."""
    destination: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """The .safetensors file to write."""
    layout: Annotated[Name, tyro.conf.arg(name="from")] = ""
    """original, mmseg, ssseg, paddleseg; for backbones torchvision, encoding, v1c, timm; default: by the keys."""
    entry: Name = ""
    """Which of the file's tables holds the weights, e.g. model_ema."""
    prefix: Annotated[str, shown_as("TEXT")] = ""
    """Take only the keys that begin with it, such as `encoder.`"""
    dataset: Name = ""
    """Names and colours of the classes: a data set or a dataset.json."""
    backbone: Name = ""
    """timm's name of the backbone; default: told by the shapes."""
    output_stride: Whole = None
    """8, 16 or 32; default 8, or what the file says."""
    multi_grid: Annotated[Wholes | None, tyro.conf.arg(metavar="INT ...", help_behavior_hint="")] = None
    """Factors on layer4's dilations; default 1 2 4 for the original, else 1 1 1."""
    dilation: Annotated[Literal["contract", "uniform"] | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Dilation of a stage's first block; default uniform for PaddleSeg, else contract."""
    align_corners: Switch = False
    """Upsample logits with align_corners; default for the original."""
    no_align_corners: Switch = False
    """Upsample logits without it; default for other implementations."""
    eps: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")] = None
    """Of the M-step; default 1e-6 for the original, else 1e-12."""
    em_steps: Whole = None
    """EM iterations; default 3, or what the file says."""
    mean: Numbers = None
    """Mean of the pixels in [0, 1], one value per channel."""
    std: Numbers = None
    """Their standard deviation."""
    force: Switch = False
    """Overwrite DST."""

    def run(self) -> None:
        if self.align_corners and self.no_align_corners:
            raise InputError("--align-corners and --no-align-corners exclude each other")
        from ..convert.convert import convert
        from ..show.terminal import say

        options = vars(self) | {"align_corners": self.align_corners or (False if self.no_align_corners else None)}
        del options["no_align_corners"]
        convert(**options, tell=say)
        say(f"wrote {self.destination}")


def main(arguments: list[str]) -> None:
    parse(Convert, arguments, "convert").run()
