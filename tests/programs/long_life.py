"""Requests to one Predictor from several threads: long_life.py MODEL REQUESTS THREADS KEPT ENGINE

Prints JSON: `different`, the requests whose labels are not those of one thread, and `grown`, by how many MB the process
grew from the second to the last quarter. KEPT bytes of every request are not let go, to see that a leak is noticed.
"""

import json
import resource
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from emanet.predict.predictor import Predictor

torch.set_num_threads(1)
model, requests, threads, kept, engine = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
predictor = Predictor(model, device="cpu", engine=engine)
rng = np.random.default_rng(0)
images = [rng.integers(0, 256, (rng.integers(8, 65), rng.integers(8, 65), 3), np.uint8) for _ in range(24)]
wanted = [predictor(image) for image in images]
leak, sizes, page = [], [], resource.getpagesize()


def request(i: int) -> bool:
    labels = predictor(images[i % len(images)])
    predictor.overlay(images[i % len(images)], labels)
    if kept:
        leak.append(bytes(i % 256 for _ in range(1)) * kept)
    with open("/proc/self/statm") as file:
        sizes.append(int(file.read().split()[1]) * page)
    return not np.array_equal(labels, wanted[i % len(images)])


with ThreadPoolExecutor(threads) as pool:
    different = sum(pool.map(request, range(requests)))
quarter = requests // 4
grown = statistics.median(sizes[-quarter:]) - statistics.median(sizes[quarter : 2 * quarter])
print(json.dumps({"different": different, "grown": grown / 2**20, "size": sizes[-1] / 2**20}))
