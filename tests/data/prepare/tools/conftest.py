"""Exports as each tool writes them, and masks of them that are drawn by other means than the package's."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emanet.config import DataConfig
from emanet.data.datasets import open_dataset, resolve
from emanet.data.prepare.annotations import import_annotations

H, W = 24, 36
ROWS, COLUMNS = np.mgrid[:H, :W]


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """(H, W) bool; right and bottom are outside."""
    return (left <= COLUMNS) & (right > COLUMNS) & (top <= ROWS) & (bottom > ROWS)


def triangle() -> np.ndarray:
    """Of (4, 2), (30, 2), (4, 22): the pixels whose centres are inside."""
    x, y = COLUMNS + 0.5, ROWS + 0.5
    return (x >= 4) & (y >= 2) & ((x - 4) / 26 + (y - 2) / 20 < 1)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    return (COLUMNS + 0.5 - x) ** 2 + (ROWS + 0.5 - y) ** 2 < radius**2


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8)).save(path)
    return path


class Imported:
    """A folder data set that has been imported."""

    def __init__(self, folder: Path, said: str):
        self.folder, self.said = folder, said
        config = resolve(DataConfig(dataset=str(folder)))
        assert config.spec
        self.config, self.classes, self.palette = config, config.spec.classes, config.spec.palette

    def names(self, split: str) -> list[str]:
        folder = self.folder / split / "images"
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))

    def labels(self, name: str) -> np.ndarray:
        """Labels of the image whose name has this stem, in any split."""
        for split in ("train", "val", "test"):
            if (self.folder / split).is_dir():
                dataset = open_dataset(self.config, split)
                for i in range(len(dataset)):
                    if Path(dataset.name(i)).stem == name:
                        return dataset.read(i)[1]
        raise AssertionError(f"{name} was not imported")

    def drawn(self, *regions: tuple[str | None, np.ndarray]) -> np.ndarray:
        """Labels with these masks one over the other, on background."""
        start = self.classes.index("background") if "background" in self.classes else 255
        labels = np.full((H, W), start, np.uint8)
        for name, mask in regions:
            labels[mask] = 255 if name is None else self.classes.index(name)
        return labels


@pytest.fixture
def imported(tmp_path, capsys):
    """imported(tool, **options): what import_annotations makes of tmp_path / "export"."""

    def run(tool: str, source: Path = tmp_path / "export", **options) -> Imported:
        import_annotations(tool, source, tmp_path / "out", **options)
        captured = capsys.readouterr()
        return Imported(tmp_path / "out", captured.out + captured.err)

    return run
