"""Predict a TIFF while files may only grow to a share of what it needs, and print how each attempt fails.

python raster_on_a_full_disk.py IMAGE OUT
"""

import resource
import sys
from pathlib import Path

from test_evaluate import tiny_model

from emanet.config import EvalConfig
from emanet.errors import InputError
from emanet.predict.raster import predict_raster

path, out = map(Path, sys.argv[1:])
model, config = tiny_model(), EvalConfig(window=(305, 305), overlap=0)
predict_raster(model, path, out, config)
size = out.stat().st_size
out.unlink()
for share in (0, 0.5, 0.95, 0.999):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size * share), resource.RLIM_INFINITY))
    try:
        predict_raster(model, path, out, config)
    except InputError as error:
        print(error)
