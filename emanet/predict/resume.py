"""What of a folder is done already, for predict's --resume: a record of what made the results, and their times.

An image is done if all its results are there and newer than the image and the record. Results appear under their names
only when they are whole (atomic.py). A run without --resume writes the record anew, so that all before it is older.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..atomic import write_json
from ..errors import InputError, short
from ..experiments import read_json, to_dict
from .predictor import Predictor

RECORD = ".predict.json"  # hidden, so that no image's result can have its name


def made_by(predictor: Predictor, **options: Any) -> dict[str, Any]:
    """What decides the labels of an image, as JSON has it: the model file's SHA-256 and how it predicts."""
    model: dict[str, Any] = {"model": None, "SHA-256": None}  # one that was made in Python
    if predictor.source:
        with open(predictor.source, "rb") as file:
            model = {"model": predictor.source.name, "SHA-256": hashlib.file_digest(file, "sha256").hexdigest()}
    return model | predictor.how | to_dict(predictor.config) | options


def begin(out: Path, made: dict[str, Any], resume: bool) -> int:
    """The time, in nanoseconds, from which on results in a folder are by `made`; writes the record of a new run.

    Raises InputError where a run is to be resumed that was made otherwise.
    """
    path = out / RECORD
    if resume and made["SHA-256"] is None:
        raise InputError("resume needs a model that was read from a file, to know it again")
    if resume and path.is_file():
        earlier = read_json(path)
        if not isinstance(earlier, dict):
            raise InputError(f"{path} is not a record of predict; leave --resume out to predict every image anew")
        differ = [key for key in made if key not in earlier or earlier[key] != made[key]]
        if "SHA-256" not in differ:
            differ = [key for key in differ if key != "model"]  # the same file under another name
        if differ:
            text = "; ".join(f"{key} {short(earlier.get(key))} then, {short(made[key])} now" for key in differ)
            raise InputError(
                f"the results in {out} were made otherwise ({text}); predict as before, name another --out, or leave "
                "--resume out to predict every image anew"
            )
    else:
        write_json(path, made)
    return path.stat().st_mtime_ns


def is_done(image: Path, results: Iterable[Path], since: int) -> bool:
    """Whether all results of an image are there and newer than it and than `since`."""
    try:
        # A file or a link that replaces another may be older than it; when it was put there is in ctime.
        changed = max(image.stat().st_mtime_ns, image.stat().st_ctime_ns, image.lstat().st_ctime_ns, since)
        return all(result.stat().st_mtime_ns >= changed for result in results)
    except OSError:
        return False
