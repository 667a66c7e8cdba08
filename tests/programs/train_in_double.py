"""Runs of two ranks in float64: one whole, one that dies, one resumed from one rank.  torchrun ... CONFIG FOLDER"""

import sys

import torch

from emanet import distributed
from emanet import train as training
from emanet.experiments import load_experiment

build_model, advance, died = training.build_model, training.RunLog.advance, 5


def dies(self, step, *facts):
    if step == died:
        raise ZeroDivisionError
    advance(self, step, *facts)


torch.set_num_threads(1)
training.build_model = lambda *arguments: build_model(*arguments).double()
config, folder = load_experiment(sys.argv[1]), sys.argv[2]
training.train(config, f"{folder}/whole2")
training.RunLog.advance = dies
try:
    training.train(config, f"{folder}/cut2")
except ZeroDivisionError:
    training.RunLog.advance = advance
training.train(config, f"{folder}/cut1", resume=True)
distributed.shutdown()
