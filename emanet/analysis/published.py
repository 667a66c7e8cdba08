"""Published figures: what papers, repositories and their authors report for EMANet and the models beside it.

None of them was measured here. mIoU is in percent, as printed.
"""

from dataclasses import dataclass

PAPER = "https://arxiv.org/abs/1907.13426"  # Li et al., ICCV 2019


@dataclass(frozen=True, kw_only=True)
class Figure:
    """mIoU (percent) of one model on one split."""

    name: str
    dataset: str
    miou: float
    source: str
    miou_ms_flip: float | None = None
    """The same, averaged over several scales and flipped images."""
    backbone: str = ""
    """Empty: unknown, or part of the name."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A row of the paper's Table 1: PASCAL VOC val, images of 513x513, output stride 8.

    Heads are increments over ResNet-101. `memory` has the table's G and M as powers of ten; docs/profile.md has what
    they may mean.
    """

    miou: float | None
    miou_ms_flip: float | None
    multiply_adds: int
    """"FLOPs" in the paper."""
    memory: int
    parameters: int


TABLE1 = {
    "ResNet-101": Cost(
        miou=None, miou_ms_flip=None, multiply_adds=190_600_000_000, memory=2_603_000_000, parameters=42_600_000
    ),
    "DeepLabV3": Cost(
        miou=78.51, miou_ms_flip=79.77, multiply_adds=63_400_000_000, memory=66_000_000, parameters=15_500_000
    ),
    "DeepLabV3+": Cost(
        miou=79.35, miou_ms_flip=80.57, multiply_adds=84_100_000_000, memory=99_300_000, parameters=16_300_000
    ),
    "PSANet": Cost(
        miou=78.51, miou_ms_flip=79.77, multiply_adds=56_300_000_000, memory=59_400_000, parameters=18_500_000
    ),
    "EMANet(256)": Cost(
        miou=79.73, miou_ms_flip=80.94, multiply_adds=21_100_000_000, memory=12_300_000, parameters=4_870_000
    ),
    "EMANet(512)": Cost(
        miou=80.05, miou_ms_flip=81.32, multiply_adds=43_100_000_000, memory=22_100_000, parameters=10_000_000
    ),
}

_VOC_TEST = {
    "GCN": 83.6,
    "RefineNet": 84.2,
    "Wide ResNet": 84.9,
    "PSPNet": 85.4,
    "DeepLabV3": 85.7,
    "PSANet": 85.7,
    "EncNet": 85.9,
    "DFN": 86.2,
    "ExFuse": 86.2,
    "IDW-CNN": 86.3,
    "SDN": 86.6,
    "DIS": 86.8,
    "EMANet101": 87.7,
    "DeepLabV3+ (Xception-65)": 87.8,
    "ExFuse (ResNeXt-131)": 87.9,
    "MSCI (ResNet-152)": 88.0,
    "EMANet152": 88.2,
}


def _of(source: str, dataset: str, *rows: tuple[str, str, float]) -> tuple[Figure, ...]:
    return tuple(
        Figure(name=name, backbone=backbone, dataset=dataset, miou=miou, source=source) for name, backbone, miou in rows
    )


FIGURES: tuple[Figure, ...] = (
    *(
        Figure(
            name=name,
            backbone="ResNet-101",
            dataset="PASCAL VOC val",
            miou=row.miou,
            miou_ms_flip=row.miou_ms_flip,
            source="paper, Table 1",
        )
        for name, row in TABLE1.items()
        if row.miou is not None
    ),
    *_of(
        "its author",
        "PASCAL VOC val",
        ("EMANet(512) as released", "ResNet-101", 80.50),
        ("EMANet(512), later run", "ResNet-101", 80.99),
    ),
    *_of("PaddleSeg", "PASCAL VOC val", ("EMANet", "ResNet-50", 78.60), ("EMANet", "ResNet-101", 79.47)),
    *_of("sssegmentation", "PASCAL VOC val", ("EMANet", "ResNet-50", 75.29), ("EMANet", "ResNet-101", 76.43)),
    *_of("paper, Table 2", "PASCAL VOC test", *((name, "", miou) for name, miou in _VOC_TEST.items())),
    *_of("paper", "PASCAL Context", ("EMANet", "ResNet-101", 53.1)),
    *_of("paper", "COCO-Stuff 10k", ("EMANet", "ResNet-101", 39.9)),
    *_of(
        "mmsegmentation",
        "Cityscapes val",
        ("EMANet, crops of 512x1024", "ResNet-50", 77.59),
        ("EMANet, crops of 512x1024", "ResNet-101", 79.10),
        ("EMANet, crops of 769x769", "ResNet-50", 79.33),
        ("EMANet, crops of 769x769", "ResNet-101", 79.62),
    ),
    *_of("PaddleSeg", "Cityscapes val", ("EMANet", "ResNet-50", 79.05), ("EMANet", "ResNet-101", 80.00)),
    *_of("its author", "Cityscapes val", ("EMANet, OHEM", "", 81.14)),
    *_of("sssegmentation", "ADE20K", ("EMANet", "ResNet-50", 41.77), ("EMANet", "ResNet-101", 44.39)),
)
