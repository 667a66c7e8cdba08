"""The models that come with the package: a model file each, taken by its name wherever a model is.

docs/models has a card for each. tools/package_model.py makes the files.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
DEFAULT = "street"
"""The model of commands that name none."""


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def path_of(name: str) -> Path:
    """The model file of one of `names`."""
    return FOLDER / f"{name}.safetensors"
