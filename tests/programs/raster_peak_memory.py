"""Predict a TIFF and print the most resident memory in MiB: python raster_peak_memory.py IMAGE OUT."""

import resource
import sys

import torch
from test_evaluate import tiny_model

from emanet.predict.raster import predict_raster

torch.set_num_threads(1)
predict_raster(tiny_model(), sys.argv[1], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
