"""`train`, with a signal after step 7.  python train_with_a_signal.py SIGNAL ARGUMENTS

Under torchrun only rank 1 gets it, and only before the first restart. With WHOLE in the environment, the same run is
made in that folder first, and without a signal.
"""

import os
import signal
import sys

from emanet import cli
from emanet import train as training
from emanet.experiments import load_experiment

advance = training.RunLog.advance
wanted = {"RANK": "1", "TORCHELASTIC_RESTART_COUNT": "0"}


def signalled(self, step, *facts):
    if step == 7 and all(os.environ.get(name, value) == value for name, value in wanted.items()):
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    advance(self, step, *facts)


if "WHOLE" in os.environ and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    training.train(load_experiment(sys.argv[2]), os.environ["WHOLE"])
training.RunLog.advance = signalled
cli.main(["train", *sys.argv[2:]])
