"""Public data sets, made ready to train on: downloaded, unpacked, converted, listed and counted.

python -m emanet data prepare voc        # into data/voc; says which files need a login, and where to put them
Every step skips what is done already: the same command continues after an interruption, and needs no network where the
archives, or the files in them, are there.
"""

import importlib.util
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...atomic import write_text
from ...config import DataConfig
from ...errors import InputError, some, suggest
from ...experiments import read_json
from ...show.terminal import note, say
from ..datasets import open_dataset
from ..specs import COCO_OF_VOC
from . import masks as annotations
from .archives import Archive, obtain, present, unpack

OXFORD = ("https://thor.robots.ox.ac.uk/pascal/VOC", "http://host.robots.ox.ac.uk/pascal/VOC")
CALVIN = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
COCO = "http://images.cocodataset.org"
LEAST_PIXELS = 1000  # DeepLabV3, arXiv 1706.05587, section 4.3.4: COCO images with more labelled pixels are trained on

# Checksums: torchvision and gluon-cv publish those of VOC, SBD, ADE20K and Cityscapes, TensorFlow Datasets COCO's.
# Context and COCO-Stuff have none: there the archive's own checksums and the sizes of the splits are compared.
VOC_2012 = Archive(
    name="VOCtrainval_11-May-2012.tar",
    urls=tuple(f"{server}/voc2012/VOCtrainval_11-May-2012.tar" for server in OXFORD),
    digests=("md5:6cd6e144f989b92b3379bac3b3de84fd",),
    takes={
        f"VOCdevkit/VOC2012/{folder}/": f"{folder}/"
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
    },
    gives=("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt"),
)
VOC_2012_TEST = Archive(
    name="VOC2012test.tar",
    page="http://host.robots.ox.ac.uk:8080/ (log in, then Downloads)",
    digests=("md5:9065beb292b6c291fad82b2725749fda",),
    takes={f"VOCdevkit/VOC2012/{folder}/": f"{folder}/" for folder in ("JPEGImages", "ImageSets/Segmentation")},
    gives=("ImageSets/Segmentation/test.txt",),
    optional=True,
)
SBD = Archive(
    name="benchmark.tgz",
    urls=(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
    digests=("md5:82b4d87ceb2ed10f6038a1cba92111cb",),
    takes={f"benchmark_RELEASE/dataset/{part}": f"sbd/{part}" for part in ("cls/", "train.txt", "val.txt")},
    gives=("sbd/cls", "sbd/train.txt", "sbd/val.txt"),
)
VOC_2010 = Archive(
    name="VOCtrainval_03-May-2010.tar",
    urls=tuple(f"{server}/voc2010/VOCtrainval_03-May-2010.tar" for server in OXFORD),
    digests=("md5:da459979d0c395079b5c75ee67908abb",),
    takes={f"VOCdevkit/VOC2010/{folder}/": f"{folder}/" for folder in ("JPEGImages", "ImageSets/Main")},
    gives=("JPEGImages", "ImageSets/Main/train.txt", "ImageSets/Main/val.txt"),
)
CONTEXT = Archive(
    name="trainval.tar.gz",
    urls=(
        "https://cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz",
        "https://roozbehm.info/pascal-context/trainval.tar.gz",
    ),
    takes={"trainval/": "trainval/"},
    gives=("trainval",),
)
COCO_IMAGES = tuple(
    Archive(
        name=f"{split}2017.zip",
        urls=(f"{COCO}/zips/{split}2017.zip",),
        digests=(f"sha256:{digest}",),
        takes={f"{split}2017/": f"images/{split}2017/"},
        gives=(f"images/{split}2017",),
    )
    for split, digest in (
        ("train", "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929"),
        ("val", "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05"),
    )
)
COCO_INSTANCES = Archive(
    name="annotations_trainval2017.zip",
    urls=(f"{COCO}/annotations/annotations_trainval2017.zip",),
    digests=("sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",),
    takes={"annotations/instances_": "annotations/instances_"},
    gives=("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
)
COCOSTUFF_10K = Archive(
    name="cocostuff-10k-v1.1.zip",
    urls=(f"{CALVIN}/cocostuff-10k-v1.1.zip",),
    takes={folder: folder for folder in ("images/", "annotations/", "imageLists/")},
    gives=("images", "annotations", "imageLists/train.txt", "imageLists/test.txt"),
)
COCOSTUFF_164K = Archive(
    name="stuffthingmaps_trainval2017.zip",
    urls=(f"{CALVIN}/stuffthingmaps_trainval2017.zip",),
    takes={f"{split}2017/": f"annotations/{split}2017/" for split in ("train", "val")},
    gives=("annotations/train2017", "annotations/val2017"),
)
CITYSCAPES = tuple(
    Archive(
        name=f"{kind}_trainvaltest.zip",
        page="https://www.cityscapes-dataset.com/downloads/",
        digests=(f"sha1:{digest}",),
        takes={f"{kind}/": f"{kind}/"},
        gives=(f"{kind}/train", f"{kind}/val"),
    )
    for kind, digest in (
        ("leftImg8bit", "2c0b77ce9933cc635adda307fbba5566f5d9d404"),
        ("gtFine", "99f532cb1af174f5fcc4c5bc8feea8c66246ddbc"),
    )
)
ADE20K = Archive(
    name="ADEChallengeData2016.zip",
    urls=("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",),
    digests=("sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",),
    takes={f"ADEChallengeData2016/{folder}/": f"{folder}/" for folder in ("images", "annotations")},
    gives=("images/training", "images/validation", "annotations/training", "annotations/validation"),
)
ADE20K_TEST = Archive(
    name="release_test.zip",
    urls=("http://data.csail.mit.edu/places/ADEchallenge/release_test.zip",),
    digests=("sha1:e05747892219d10e9243933371a497e905a4860c",),
    takes={"release_test/": "release_test/"},
    gives=("release_test",),
    optional=True,
)


def prepare(name: str, root: str = "", archives: str = "") -> None:
    """Make the data set of that name ready in `root` (default data/NAME), from `archives` (default ROOT/archives).

    Raises InputError where something is missing, wrong or cannot be downloaded.
    """
    if name not in RECIPES:
        raise InputError(f"no data set {name!r} to prepare{suggest(name, RECIPES)}")
    recipe = RECIPES[name]
    place = Path(root or f"data/{name}")
    folder = Path(archives) if archives else place / "archives"
    for path in (place, folder):
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file, but must be a folder")
    nested = place / recipe.nested
    if recipe.nested and nested.is_dir():
        raise InputError(f"{place} holds {recipe.nested}: name {nested} itself with --root")
    for module in recipe.needs:
        if importlib.util.find_spec(module) is None:
            raise InputError(f"preparing {name} needs {module}, which is not installed: pip install 'emanet[data]'")
    absent = [archive for archive in recipe.archives if not present(archive, place)]
    by_hand = [a for a in absent if not (a.urls or a.optional or (folder / a.name).is_file())]
    if by_hand:
        files = " and ".join(archive.name for archive in by_hand)
        raise InputError(
            f"{name} needs {files}, which can only be downloaded by hand: log in at {by_hand[0].page}, put "
            f"{'them' if len(by_hand) > 1 else 'it'} into {folder}, and run the command again"
        )
    remarks = []
    for number, archive in enumerate(absent, 1):
        if archive.urls and not (folder / archive.name).is_file():
            note(f"{archive.name}: downloading into {folder}")
        try:
            path = obtain(archive, folder)
        except InputError as error:
            if not archive.optional:
                later = [a for a in absent[number:] if not (a.optional or (folder / a.name).is_file())]
                also = ", ".join(f"{a.name} from {a.urls[0]}" for a in later)
                raise InputError(f"{error}{f'; {name} needs {also} too' if later else ''}") from error
            remarks.append(f"no test images: {error}")
            continue
        note(f"{path.name}: {unpack(archive, path, place):,} files unpacked")
    recipe.finish(place)
    say(f"{name} is ready in {place}:", *_summary(name, recipe, place), *(f"  {remark}" for remark in remarks))
    say("", "Train on it with", f"  python -m emanet train {recipe.train} --data.root {shlex.quote(str(place))}")
    if folder.is_dir() and any(folder.iterdir()):
        say("", f"The archives in {folder} are no longer needed.")


def _summary(name: str, recipe: "Recipe", root: Path) -> Iterator[str]:
    """A line per split: its number of images, and the published number where that differs."""
    for split, published in recipe.counts.items():
        count = len(open_dataset(DataConfig(dataset=name, root=str(root)), split))
        yield f"  {split:10} {count:7,} images{_compared(count, published)}"
    for split, (pattern, published) in recipe.unlabelled.items():
        count = sum(1 for _ in root.glob(pattern)) if "*" in pattern else len(_lines(root / pattern))
        if count:
            where = root / (pattern.partition("/*")[0])
            unlike = _compared(count, published)
            yield f"  {split:10} {count:7,} images without masks, for submit --images {where}{unlike}"


def _compared(count: int, published: int | None) -> str:
    return "" if published in (count, None) else f", but {published:,} are published"


def _voc(root: Path) -> None:
    """trainaug: VOC's train, and SBD's train and val without VOC's val; VOC's own mask where there is one."""
    lists = root / "ImageSets" / "Segmentation"
    train, val = (_lines(lists / f"{split}.txt") for split in ("train", "val"))
    extra = sorted({*_lines(root / "sbd" / "train.txt"), *_lines(root / "sbd" / "val.txt")} - {*train, *val})
    cls, aug = root / "sbd" / "cls", root / "SegmentationClassAug"
    _convert(annotations.sbd, [(cls / f"{stem}.mat", aug / f"{stem}.png") for stem in extra])
    masks = {stem: "SegmentationClassAug" for stem in extra} | {stem: "SegmentationClass" for stem in train}
    _list(lists / "trainaug.txt", [f"/JPEGImages/{s}.jpg /{masks[s]}/{s}.png" for s in sorted(masks)])
    if not (lists / "trainval.txt").exists():
        _list(lists / "trainval.txt", sorted({*train, *val}))
    if (lists / "test.txt").exists():
        _list(root / "test.txt", [f"JPEGImages/{stem}.jpg" for stem in _lines(lists / "test.txt")])


def _context(root: Path) -> None:
    """The splits are those of VOC 2010's main task, all of whose images have a LabelMap."""
    masks = root / "SegmentationClassContext"
    for split in ("train", "val"):
        stems = _lines(root / "ImageSets" / "Main" / f"{split}.txt")
        _convert(annotations.context, [(root / "trainval" / f"{s}.mat", masks / f"{s}.png") for s in stems])
        _list(root / "ImageSets" / "SegmentationContext" / f"{split}.txt", stems)


def _cocostuff10k(root: Path) -> None:
    stems = [stem for split in ("train", "test") for stem in _lines(root / "imageLists" / f"{split}.txt")]
    jobs = [(root / "annotations" / f"{stem}.mat", root / "masks" / f"{stem}.png") for stem in stems]
    _convert(annotations.cocostuff, jobs)


def _coco_voc(root: Path) -> None:
    """Masks with VOC's classes; train lists images with more than LEAST_PIXELS labelled ones, val lists every image."""
    label_of = {category: label for label, category in enumerate(COCO_OF_VOC, 1)}
    for split, least in (("train", LEAST_PIXELS), ("val", -1)):
        path = root / "annotations" / f"instances_{split}2017.json"
        content = read_json(path)
        regions: dict[int, list] = {}
        try:
            for item in content["annotations"]:
                if item["category_id"] in label_of and item["segmentation"]:
                    region = (label_of[item["category_id"]], bool(item["iscrowd"]), item["segmentation"])
                    regions.setdefault(item["image_id"], []).append(region)
            images = [(Path(image["file_name"]).stem, image) for image in content["images"]]
            sizes = {stem: (regions.pop(image["id"], []), (image["height"], image["width"])) for stem, image in images}
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is not a file of COCO instances: {error}") from error
        del content
        target = {stem: root / "masks_voc" / f"{split}2017" / f"{stem}.png" for stem in sizes}
        listed = {stem for stem in sizes if target[stem].exists()}
        todo = [stem for stem, (drawn, _) in sizes.items() if stem not in listed and (drawn or least < 0)]
        jobs = [(*sizes[stem], target[stem], least) for stem in todo]
        kept = annotations.run(annotations.coco, jobs, f"draw {split} masks")
        listed.update(stem for stem, is_kept in zip(todo, kept, strict=True) if is_kept)
        _list(root / "lists_voc" / f"{split}.txt", sorted(listed))


def _nothing(root: Path) -> None:
    """The masks are read as they are published."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to make the data set of the same name in SPECS."""

    train: str
    """The experiment that trains on it, and the flags it needs."""
    archives: tuple[Archive, ...]
    counts: dict[str, int | None]
    """Split -> images, as published."""
    finish: Callable[[Path], None] = _nothing
    needs: tuple[str, ...] = ()
    """Optional modules that `finish` imports."""
    nested: str = ""
    """The folder inside the archives that corresponds to the root."""
    unlabelled: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Split without masks -> a list or a pattern of its images, and their published number."""


_CONTEXT = Recipe(
    train="context_resnet101",
    archives=(VOC_2010, CONTEXT),
    counts={"train": 4998, "val": 5105},
    finish=_context,
    needs=("scipy",),
    nested="VOCdevkit/VOC2010",
)
RECIPES = {
    "voc": Recipe(
        train="voc_resnet101",
        archives=(VOC_2012, SBD, VOC_2012_TEST),
        counts={"train": 1464, "trainaug": 10582, "val": 1449, "trainval": 2913},
        finish=_voc,
        needs=("scipy",),
        nested="VOCdevkit/VOC2012",
        unlabelled={"test": ("test.txt", 1456)},
    ),
    "coco_voc": Recipe(
        train="coco_resnet101",
        archives=(COCO_INSTANCES, *COCO_IMAGES),
        counts={"train": None, "val": 5000},
        finish=_coco_voc,
        needs=("pycocotools",),
    ),
    "context59": replace(_CONTEXT, train="context_resnet101 --data.dataset context59"),
    "context60": _CONTEXT,
    "cocostuff10k": Recipe(
        train="cocostuff_resnet101",
        archives=(COCOSTUFF_10K,),
        counts={"train": 9000, "test": 1000},
        finish=_cocostuff10k,
        needs=("scipy",),
    ),
    "cocostuff164k": Recipe(
        train="cocostuff164k_resnet101",
        archives=(COCOSTUFF_164K, *COCO_IMAGES),
        counts={"train": 118287, "val": 5000},
    ),
    "cityscapes": Recipe(
        train="cityscapes_resnet101",
        archives=CITYSCAPES,
        counts={"train": 2975, "val": 500},
        unlabelled={"test": ("leftImg8bit/test/*/*_leftImg8bit.png", 1525)},
    ),
    "ade20k": Recipe(
        train="ade20k_resnet101",
        archives=(ADE20K, ADE20K_TEST),
        counts={"train": 20210, "val": 2000},
        nested="ADEChallengeData2016",
        unlabelled={"test": ("release_test/testing/*.jpg", 3352)},
    ),
}


def _convert(function: Callable[[Path, Path], None], jobs: list[tuple[Path, Path]]) -> None:
    """Run the conversions whose result does not exist yet."""
    todo = [(source, target) for source, target in jobs if not target.exists()]
    missing = [source for source, _ in todo if not source.exists()]
    if missing:
        raise InputError(f"{len(missing)} of {len(jobs)} annotations are missing: {some(missing, 3)}")
    annotations.run(function, todo, f"convert {function.__name__} masks")


def _lines(path: Path) -> list[str]:
    """The first word of every line; an empty list where there is no such file."""
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    return [line.split()[0] for line in text.splitlines() if line.strip()]


def _list(path: Path, lines: list[str]) -> None:
    """Write a split's list; a different list of that name is kept as NAME.old."""
    text = "".join(f"{line}\n" for line in lines)
    if path.is_file():
        if path.read_text("utf-8", "replace") == text:
            return
        path.replace(path.with_name(f"{path.name}.old"))
    write_text(path, text)
