"""Read broken files in a process of its own: `python read_broken_files.py KIND FOLDER SECONDS MEGABYTES < NAMES`.

For each file, a line of JSON: its name, and what came of each way to read it:
"worked", "sentence: ..." or "fault: ...".
A file that takes longer than SECONDS ends the process by SIGALRM, in whatever library it hangs; memory beyond
MEGABYTES is refused. The last name printed is that of the file it ended at.
"""

import json
import resource
import signal
import sys
import traceback
from pathlib import Path

from emanet.errors import InputError


def images():
    from emanet.config import DatasetSpec
    from emanet.data.images import image_size, read_image, read_mask

    spec = DatasetSpec(classes=tuple(str(i) for i in range(255)))  # any grey image is a mask

    def size(path):
        h, w = image_size(path)
        assert h > 0 and w > 0

    def pixels(channels):
        def read(path):
            array = read_image(path, channels)
            assert array.dtype == "uint8" and array.ndim == 3 and array.shape[2] == channels and array.size
            assert array.shape[:2] == image_size(path)

        return read

    def mask(path):
        labels = read_mask(path, spec)
        assert labels.dtype == "uint8" and labels.ndim == 2 and labels.size

    return {"size": size, "rgb": pixels(3), "grey": pixels(1), "mask": mask}


def checkpoints():
    import torch

    from emanet.convert.convert import convert
    from emanet.experiments import load_experiment
    from emanet.loading import load as load_model
    from emanet.weights import foreign
    from emanet.weights.tensors import read_weights

    def load(path):
        model = load_model(path)
        with torch.no_grad():
            model(torch.zeros(1, model.backbone.in_channels, 33, 33, dtype=torch.uint8))

    def converted(path):
        convert(path, path.with_suffix(".out.safetensors"), backbone="test_resnet", force=True)

    return {
        "experiment": lambda path: load_experiment(str(path)),
        "load": load,
        "foreign": lambda path: foreign.read(path),
        "weights": lambda path: read_weights(str(path)),
        "convert": converted,
    }


def main() -> None:
    kind, folder, seconds, megabytes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    ways = {"images": images, "checkpoints": checkpoints}[kind]()
    if (statm := Path("/proc/self/statm")).exists():  # on Linux; elsewhere only the time is limited
        used = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20),) * 2)
    for name in sys.stdin.read().split("\n"):
        print(json.dumps({"name": name}), flush=True)
        came = {}
        for way, read in ways.items():
            signal.alarm(seconds)
            try:
                read(folder / name)
                came[way] = "worked"
            except InputError as error:
                came[way] = f"sentence: {error}"
            except BaseException:
                came[way] = f"fault: {traceback.format_exc()}"
            signal.alarm(0)
        print(json.dumps({"name": name, "came": came}), flush=True)


main()
