"""Predict a TIFF and get the signal twice on the way; print what is in OUT's folder when it comes.

python raster_with_a_signal.py IMAGE OUT SIGTERM
"""

import os
import signal
import sys
from pathlib import Path

from test_evaluate import tiny_model
from test_raster import CONFIG

from emanet import inference
from emanet.predict.raster import predict_raster

path, out, number = Path(sys.argv[1]), Path(sys.argv[2]), getattr(signal, sys.argv[3])
probabilities = inference.probabilities


def interrupt(*arguments):
    print(*os.listdir(out.parent), flush=True)
    try:
        os.kill(os.getpid(), number)
    finally:
        os.kill(os.getpid(), number)  # once more while it cleans up
    return probabilities(*arguments)


signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and children inherit that
inference.probabilities = interrupt
predict_raster(tiny_model(), path, out, CONFIG)
