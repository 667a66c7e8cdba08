"""Train, and save each rank's final weights, trained and averaged: torchrun ... train_and_keep_weights.py CONFIG RUN"""

import sys

import torch

from emanet import distributed
from emanet import train as training
from emanet.experiments import load_experiment

runs = []
prepare = training.prepare
training.prepare = lambda *arguments: runs.append(prepare(*arguments)) or runs[-1]
training.train(load_experiment(sys.argv[1]), sys.argv[2])
averaged = {f"averaged.{name}": tensor for name, tensor in runs[0].model.state_dict().items()}
torch.save(runs[0].net.state_dict() | averaged, f"{sys.argv[2]}/rank{distributed.rank()}.pt")
distributed.shutdown()
