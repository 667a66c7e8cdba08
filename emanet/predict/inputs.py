"""Which model and images a command's arguments mean (files, folders, globs), names of results, how images are read."""

import fnmatch
import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from ..data.bands import Channels
from ..data.files import by_extension, files_below, leads_nowhere, located
from ..data.images import IMAGE_SUFFIXES
from ..errors import InputError, some, suggest
from ..experiments import IMAGE_STARTS, experiment_names, holds_run
from ..show.terminal import note
from ..weights import hub, zoo

VIDEO_SUFFIXES = frozenset(".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .webm .wmv".split())
Source = TypeVar("Source")


def means_model(argument: str) -> bool:
    """Whether a command's first argument names its model, and not an image, or a folder or a glob of images.

    A run folder means its model even before it holds one, and so does a file that is not an image: the error is then
    about the model. Raises InputError if nothing of that name is there.
    """
    if hub.is_name(argument):
        return True
    if is_stream(argument):
        return False
    path = located(Path(), argument)
    if path.is_dir():
        if argument in zoo.names() and not holds_run(path):
            note(f"{argument!r} is the model that comes with emanet; for images in the folder here write ./{argument}")
        return argument in zoo.names() or holds_run(path)
    if path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES or leads_nowhere(path):
        return False
    if path.is_file():
        with open(path, "rb") as file:
            return not file.read(16).startswith(IMAGE_STARTS)
    if argument in zoo.names() or argument in experiment_names():
        return True
    if not glob.has_magic(argument):
        text = f"{argument} is neither a model nor an image: no model file, run folder or image is there"
        raise InputError(text + suggest(argument, zoo.names(), listed=False))
    return False


def find_images(inputs: Sequence[str]) -> list[tuple[Path, Path]]:
    """Files, folders (with their subfolders) and globs -> (file, name), sorted by file, each file once.

    A name is the path below the folder, or below the part of a glob before its first wildcard, without the extension.
    Files of one name keep their extension in it (a.jpg, a.png -> a_jpg, a_png), and if that does not help get a
    number (a_jpg, a_jpg_2). Folders and globs give files with IMAGE_SUFFIXES that are not hidden; a file that is named
    is taken whatever its extension. Links to folders are followed; a link to a file is a file with a name of its own.
    Raises InputError for an input without any image.
    """
    unique: dict[Path, tuple[Path, Path]] = {}  # real folder and name -> path, path below its input
    for source in inputs:
        root, images, others = _files_of(source)
        if not images:
            raise InputError(_no_image(source, others))
        for path in images:
            unique.setdefault(path.parent.resolve() / path.name, (path, path.relative_to(root)))
    return _named(sorted(unique.values()))


def _named(pairs: Sequence[tuple[Source, Path]]) -> list[tuple[Source, Path]]:
    """The paths below an input as distinct names, without extensions where they differ without them."""
    count = Counter(relative.with_suffix("") for _, relative in pairs)
    taken = {stem for stem, times in count.items() if times == 1}
    named = []
    for path, relative in pairs:
        stem = name = relative.with_suffix("")
        if count[stem] > 1:
            name = base = Path(f"{stem}_{relative.suffix[1:]}")
            number = 1
            while name in taken:
                number += 1
                name = Path(f"{base}_{number}")
            taken.add(name)
        named.append((path, name))
    return named


def find_videos(inputs: Sequence[str]) -> tuple[list[tuple[str, Path]], list[str]]:
    """The videos and cameras among files, folders, globs and addresses, as (source, name), and the inputs of images.

    Videos are recognised by VIDEO_SUFFIXES, also in folders and globs; names are as in find_images. An address is named
    after its last part: `rtsp://host/street?x=1` becomes street. Raises InputError for the address of an image.
    """
    unique: dict[str, tuple[str, Path]] = {}
    images = []
    for source in inputs:
        if is_stream(source):
            last = re.sub(r"[^\w.-]", "_", re.split("[?#]", source)[0].rstrip("/").split("/")[-1])
            if Path(last).suffix.lower() in IMAGE_SUFFIXES:
                raise InputError(f"{shown(source)} is the address of an image: download it first, and name the file")
            unique.setdefault(source, (source, Path(last)))
            continue
        root, files, others = _files_of(source)
        both = [path for path in (*files, *others) if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()]
        for path in both:
            unique.setdefault(str(path.parent.resolve() / path.name), (str(path), path.relative_to(root)))
        if not both or {*files} - {*both}:
            images.append(source)
    return _named(sorted(unique.values())), images


def require_apart(videos: Sequence[tuple[str, Path]], images: Sequence[str]) -> None:
    """InputError if the label maps of a video's frames, OUT/clip/000000.png, would be among those of images."""
    folders = {name.parent: path for path, name in find_images(images)} if images else {}
    for source, name in videos:
        if name in folders:
            text = f"the label maps of {shown(source)} and of {folders[name]} would be in one folder, {name}"
            raise InputError(f"{text}; predict the images without the video, or leave out --frames")


def is_stream(source: str) -> bool:
    """Whether an input is a camera (/dev/video0) or an address (rtsp://..., https://...), not a file."""
    return source.startswith("/dev/video") or bool(re.match(r"[a-z][a-z0-9+.-]*://", source))


def shown(source: str) -> str:
    """A source as it is printed: without the name and password that an address may hold."""
    return re.sub(r"(?<=://)[^/@]*@", "", source)


def left_out(inputs: Sequence[str], read: Collection[str] = ()) -> list[str]:
    """Which files and folders in the inputs are not read, in words. read: extensions of files that are, elsewhere."""
    refused: list[OSError] = []
    others = [path for source in inputs for path in _files_of(source, refused.append)[2]]
    broken = [path for path in others if leads_nowhere(path)]
    other = [
        path for path in others if os.path.isfile(path) and path.suffix.lower() not in read
    ]  # no folders of a glob
    texts = [f"left out, as they are no images: {by_extension(other)}"] if other else []
    texts += [f"left out, as they lead nowhere: links {some(broken, 3)}"] if broken else []
    return texts + [f"left out, as it cannot be read: folder {error.filename} ({error.strerror})" for error in refused]


def folders_of(images: Sequence[tuple[Path, Path]]) -> dict[Path, Path]:
    """The real folders of the images, and those of the files that they are links to -> an image."""
    return {folder: path for path, _ in images for folder in (path.resolve().parent, path.parent.resolve())}


def _no_image(source: str, others: Sequence[Path]) -> str:
    if leads_nowhere(Path(source)):
        return f"{source} is a link to {os.readlink(source)}, which does not exist or cannot be reached"
    other = by_extension(path for path in others if os.path.isfile(path))
    what = f"folder {source} holds no image" if Path(source).is_dir() else f"no image {source}"
    return f"{what}, only files that are not read as images: {other}" if other else what


def _files_of(source: str, on_error: Callable[[OSError], object] | None = None) -> tuple[Path, list[Path], list[Path]]:
    """The fixed part of an input, the images that it means, and what else it means: other files, links, folders."""
    path = located(Path(), source)
    if path.is_file():
        return path.parent, [path], []
    root, rest = path, path.parts[:0]
    if not path.is_dir():
        fixed = next((k for k, part in enumerate(path.parts) if glob.has_magic(part)), len(path.parts))
        root, rest = Path(*path.parts[:fixed]), path.parts[fixed:]
    if rest and "**" not in rest:
        files = [Path(name) for name in glob.glob(str(path))]
    else:
        pattern = rest or ("**",)
        files = [file for file in files_below(root, on_error) if _matches(file.relative_to(root).parts, pattern)]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    return root, images, sorted({*files} - {*images})


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a glob, of which ** stands for any number of folders."""
    if not pattern or not parts:
        return not parts and set(pattern) <= {"**"}
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


class Reads(Protocol):
    """What says how files become its images: a model, or an exported one."""

    @property
    def in_channels(self) -> int: ...

    bands: tuple[int, ...]
    range: tuple[float, ...]


def channels_of(
    model: Reads, bands: Sequence[int] = (), range: Sequence[float] = (), *, flags: bool = False
) -> Channels:
    """How files become a model's images: as in its training, or by other bands or another range."""
    return Channels(model.in_channels, tuple(bands) or model.bands, tuple(range) or model.range, flags)
