"""What of a folder is done already, for predict's --resume: a record of what made the results, and their times.

An image is done if all its results are there and newer than the image and the record. Results appear under their names
only when they are whole (atomic.py). A run without --resume writes the record anew, so that all before it is older. The
record also says which image each name stands for, as another folder may have images of the same names.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import replacing, write_json
from ..errors import InputError, short
from ..experiments import read_json, to_dict
from .outputs import KINDS
from .predictor import Predictor

RECORD = ".predict.json"  # hidden, so that no image's result can have its name


def made_by(predictor: Predictor, **options: Any) -> dict[str, Any]:
    """What decides the labels of an image, as JSON has it: the model file's SHA-256 and how it predicts."""
    model: dict[str, Any] = {"model": None, "SHA-256": None}  # one that was made in Python
    if predictor.source:
        with open(predictor.source, "rb") as file:
            model = {"model": predictor.source.name, "SHA-256": hashlib.file_digest(file, "sha256").hexdigest()}
    return model | predictor.how | to_dict(predictor.config) | options


def begin(
    out: Path,
    made: dict[str, Any],
    images: Sequence[tuple[Path, Path]],
    results: Mapping[Path, Collection[Path]],
    kept: Collection[Path],
    resume: bool,
) -> set[Path]:
    """The images of which everything in a folder is done by `made`; writes the record of a run.

    images: as find_images. results: the files of each image. kept: those that are there and stay, however old they are.
    Raises InputError where a run is to be resumed that was made otherwise, or of other images.
    """
    path = out / RECORD
    sources = {name.as_posix(): str(image.parent.resolve() / image.name) for image, name in images}
    if resume and made["SHA-256"] is None:
        raise InputError("resume needs a model that was read from a file, to know it again")
    if not resume or not path.is_file():
        write_json(path, made | {"images": sources})
        return set()
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
    since, known = path.stat().st_mtime_ns, earlier.get("images", {})
    for image, name in images:
        source = known.get(name.as_posix())
        if source in (None, sources[name.as_posix()]):
            continue
        if there := [result for result in results[image] if is_done(image, [result], since)]:
            raise InputError(
                f"{there[0]} was made of {source}, not of {image}; name another --out, or leave --resume out to "
                "predict every image anew"
            )
    if known | sources != known:
        with replacing(path) as partial:
            partial.write_text(json.dumps(earlier | {"images": known | sources}, indent=2) + "\n", "utf-8")
            os.utime(partial, ns=(since, since))
    return {image for image, _ in images if is_done(image, {*results[image]} - {*kept}, since)}


def without_results(images: Sequence[tuple[Path, Path]], out: Path) -> Sequence[tuple[Path, Path]]:
    """The images but what runs before have written, as OUT may lie in a folder of the inputs; all if that is all.

    images: as find_images.
    """
    try:
        names = read_json(out / RECORD)["images"]
    except (InputError, KeyError, TypeError):  # begin says what is wrong with a record
        return images
    endings = {ending for kind in KINDS.values() for ending in (kind.ending, kind.in_windows) if ending}
    place = f"{out.resolve().as_posix()}/"

    def is_result(path: Path) -> bool:
        file = (path.parent.resolve() / path.name).as_posix().removeprefix(place)
        return any(file.endswith(ending) and file[: -len(ending)] in names for ending in endings)

    return [each for each in images if not is_result(each[0])] or images


def is_done(image: Path, results: Iterable[Path], since: int) -> bool:
    """Whether all results of an image are there and newer than it and than `since`."""
    try:
        # A file or a link that replaces another may be older than it; when it was put there is in ctime.
        changed = max(image.stat().st_mtime_ns, image.stat().st_ctime_ns, image.lstat().st_ctime_ns, since)
        return all(result.stat().st_mtime_ns >= changed for result in results)
    except OSError:
        return False
