r"""For VOC's test server, 3 of 3: from runs/voctest_trainaug_resnet101, 30,000 steps on trainval.

    torchrun --nproc-per-node 4 -m emanet train voctest_trainval_resnet101 --data.root VOC2012
    python -m emanet submit runs/voctest_trainval_resnet101 --images VOC2012/test.txt --out results.tgz \
        --scales 0.5 0.75 1 1.25 1.5 1.75 2 --flip

It trains on val too, so that its validation score says nothing. The learning rate is a choice: the source names this
stage without it.

Expected: 87.7 mIoU on test, several scales and flips (paper, Table 2). Measured: not yet.
"""

from emanet.experiments import load_experiment, override

config = override(
    load_experiment("voctest_trainaug_resnet101"),
    {"init_from": "runs/voctest_trainaug_resnet101", "data.train_split": "trainval", "val_every": 0},
)
