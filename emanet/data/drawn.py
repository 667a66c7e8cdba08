"""Drawn scenes as files: what a folder data set looks like."""

from pathlib import Path

from PIL import Image

from ..atomic import write_json
from ..errors import InputError
from ..experiments import to_dict
from .datasets import DRAWN_SIZE
from .images import write_mask
from .specs import SPECS
from .synthetic import DrawnScenes


def write_drawn(folder: Path, counts: dict[str, int]) -> None:
    """Write SPLIT/images/*.jpg, SPLIT/masks/*.png and dataset.json into a folder that is new or empty."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty")
    if min(counts.values()) < 1:
        raise InputError(f"every split needs at least one scene, not {counts}")
    spec = SPECS["drawn"]
    for split, count in counts.items():
        scenes = DrawnScenes(split, count=count, size=DRAWN_SIZE)
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            image, labels = scenes.read(i)
            Image.fromarray(image).save(folder / split / "images" / f"{i:04d}.jpg", quality=92)
            write_mask(folder / split / "masks" / f"{i:04d}.png", labels, spec.colours)
    write_json(folder / "dataset.json", {name: to_dict(spec)[name] for name in ("classes", "palette")})
