"""Training samples per second: decoding alone, the original's order of work, ours, and ours through loader processes.

    python benchmarks/data.py                        # drawn scenes, 480 x 360, written as JPEG and PNG for this run
    python benchmarks/data.py data/camvid/train --csv data.csv

A folder holds images/ and masks/ of the same stems. One thread; only the loaders' workers are processes of their own,
and their start is part of their time. Samples are those of the default training: crops of 513 x 513, scales 0.5 to 2,
and every way gives the same images the same scales.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from bench import compare, machine, print_machine, print_table, write_csv
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from emanet.config import IGNORE, DatasetSpec, Experiment  # noqa: E402
from emanet.data.datasets import Dataset, open_folders  # noqa: E402
from emanet.data.images import write_mask  # noqa: E402
from emanet.data.loader import training_loader  # noqa: E402
from emanet.data.pack import pack  # noqa: E402
from emanet.data.shards import packed_pairs  # noqa: E402
from emanet.data.synthetic import DrawnScenes  # noqa: E402
from emanet.data.transforms import SAMPLE, TrainingSamples  # noqa: E402
from emanet.experiments import override  # noqa: E402

ANY = DatasetSpec(classes=tuple(map(str, range(IGNORE))))  # whatever a mask's values mean, reading them is the same
BATCH = 8
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def decode(dataset: Dataset, index: int) -> None:
    """Both files to uint8 arrays, and nothing else."""
    for path in dataset.pairs[index]:
        with Image.open(path) as image:
            np.asarray(image)


def whole_image_first(dataset: Dataset, index: int, rng: np.random.Generator, config) -> tuple[torch.Tensor, ...]:
    """The original's order of work: everything in float32, the whole image scaled, then padded, cropped, mirrored."""
    image, mask = dataset.pairs[index]
    pixels = np.asarray(Image.open(image).convert("RGB")).astype(np.float32) / 255
    x = torch.from_numpy((pixels - MEAN) / STD).permute(2, 0, 1)[None]
    y = torch.from_numpy(np.asarray(Image.open(mask)).astype(np.float32))[None, None]
    scale = rng.choice(config.scales)
    size = [max(1, round(side * scale)) for side in y.shape[2:]]
    x = F.interpolate(x, size, mode="bilinear", align_corners=True)
    y = F.interpolate(y, size, mode="nearest")
    missing = [max(0, crop - side) for crop, side in zip(config.crop, size, strict=True)]
    x, y = F.pad(x, (0, missing[1], 0, missing[0])), F.pad(y, (0, missing[1], 0, missing[0]), value=IGNORE)
    (top, left), (h, w) = (rng.integers(a - b + 1) for a, b in zip(x.shape[2:], config.crop, strict=True)), config.crop
    x, y = x[0, :, top : top + h, left : left + w], y[0, 0, top : top + h, left : left + w]
    if rng.random() < config.flip:
        x, y = x.flip(2), y.flip(1)
    return x.contiguous(), y.long().contiguous()


def write_scenes(folder: Path, count: int) -> None:
    scenes = DrawnScenes("train", count=count, size=(360, 480))
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(count):
        image, labels = scenes.read(i)
        Image.fromarray(image).save(folder / "images" / f"{i:04d}.jpg", quality=92)
        write_mask(folder / "masks" / f"{i:04d}.png", labels, ANY.colours)


def measure(dataset: Dataset, packed: Dataset, images: int, longer: int, repeats: int) -> list[dict]:
    """A row for each way of work: images a second, and the ratio to the original's."""
    experiment = override(Experiment(), {"batch_size": BATCH, "steps": longer * images // BATCH})
    config = experiment.data
    samples, from_tar = (TrainingSamples(files, config, (124, 116, 104)) for files in (dataset, packed))
    order = [samples.index(position) for position in range(images)]

    def load(workers: int) -> None:
        for _ in training_loader(samples, override(experiment, {"data.workers": workers}), 0, 0, 1):
            pass

    def original(position: int) -> None:
        rng = np.random.default_rng([samples.seed, SAMPLE, position])  # whose first draw is the scale, as in ours
        whole_image_first(dataset, order[position], rng, config)

    def each(work: Callable[[int], object]) -> Callable[[], None]:
        def run() -> None:
            for position in range(images):
                work(position)  # which is let go at once: a loader copies it into its batch

        return run

    ways = {
        "original's way": (each(original), 1),
        "decoding alone": (each(lambda position: decode(dataset, order[position])), 1),
        "ours": (each(samples.__getitem__), 1),
        "ours, packed": (each(from_tar.__getitem__), 1),
        "ours, 1 worker": (lambda: load(1), longer),
        "ours, 2 workers": (lambda: load(2), longer),
    }
    rows = compare({name: way for name, (way, _) in ways.items()}, repeats, warmup=1)
    for row, (_, times) in zip(rows, ways.values(), strict=True):
        for key in ("ratio", "ratio_min", "ratio_max"):
            row[key] *= times
        taken = [row.pop(key) for key in ("ms", "ms_max", "ms_min")]
        row |= dict(zip(("images/s", "min", "max"), (1e3 * times * images / ms for ms in taken), strict=True))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="holds images/ and masks/; default: drawn scenes")
    parser.add_argument("--images", type=int, default=64, help=f"per timing, a multiple of {BATCH}")
    parser.add_argument("--longer", type=int, default=8, help="times as many for the loaders, whose workers must start")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--csv", type=Path, help="write the table there too")
    given = parser.parse_args()
    if given.images < BATCH or given.images % BATCH:
        parser.error(f"--images must be a multiple of {BATCH}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        if not given.folder:
            write_scenes(folder, given.images)
        dataset = open_folders(folder / "images", folder / "masks", ANY)
        pack(dataset.pairs, ANY, "train", Path(scratch) / "packed")
        packed = Dataset(packed_pairs(Path(scratch) / "packed", "train"), ANY)
        rows = measure(dataset, packed, given.images, given.longer, given.repeats)
    print_machine()
    print_table(rows, f"{len(dataset)} images of {folder if given.folder else 'drawn scenes'}; ratio to the first line")
    if given.csv:
        write_csv(given.csv, rows, machine())


if __name__ == "__main__":
    main()
