"""Train, and save every rank's final weights.  torchrun ... train_and_keep_weights.py CONFIG RUN"""

import sys

import torch

from emanet import distributed
from emanet import train as training
from emanet.experiments import load_experiment

nets = []
build = training.build_model
training.build_model = lambda *arguments: nets.append(build(*arguments)) or nets[-1]
training.train(load_experiment(sys.argv[1]), sys.argv[2])
torch.save(nets[0].state_dict(), f"{sys.argv[2]}/rank{distributed.rank()}.pt")
distributed.shutdown()
