"""`train`, but sample 23 cannot be read, or never arrives.  python train_with_a_bad_sample.py raises|waits ARGUMENTS"""

import sys
import time

from emanet import cli
from emanet.data.transforms import TrainingSamples
from emanet.errors import InputError

read = TrainingSamples.__getitem__


def spoiled(self, position):
    if position == 23 and sys.argv[1] == "raises":
        raise InputError("/x/y.jpg is torn")
    if position == 23:
        time.sleep(300)  # as on a network disk that does not answer
    return read(self, position)


TrainingSamples.__getitem__ = spoiled
cli.main(["train", *sys.argv[2:]])
