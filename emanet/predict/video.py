"""Label videos and camera streams: OUT/clip.mp4 with every frame's labels in colour, its timestamps and its audio.

A thread reads and decodes, the caller's thread runs the network, and another one draws, encodes and writes.
docs/video.md has what users see. PyAV (the extra `video`) is imported late.
"""

import hashlib
import os
import queue
import threading
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from ..atomic import require_writable_folder, sync_folder
from ..errors import InputError, Interrupted
from ..interrupt import Interruption
from ..show.terminal import bar, note
from ..stages import ordered, side_by_side
from ..windows import enough_memory
from .inputs import folders_of, is_stream, shown
from .predictor import Predictor
from .resume import made_by
from .video_file import Frame, Source, View, Writer, library, reporting

AHEAD = 4  # frames that wait between two of the threads


def predict_videos(
    predictor: Predictor, videos: Sequence[tuple[str, Path]], out: str | Path, **options: Any
) -> list[str]:
    """predict_video for each of (source, name), into OUT/name.mp4.

    One that cannot be read or written is reported on stderr and left out; these reports are returned. Raises
    InputError, before anything is written, if OUT is a folder of the videos.
    """
    folders = folders_of([(Path(source), name) for source, name in videos if not is_stream(source)])
    for _, name in videos:
        video = folders.get((Path(out) / name).resolve().parent)
        if video:
            raise InputError(f"the output folder {(Path(out) / name).parent} holds the video {video}; name another one")
    require_writable_folder(out)
    failures = []
    for source, name in videos:
        try:
            predict_video(predictor, source, Path(out) / name, **options)
        except InputError as error:
            failures.append(str(error))
            note(f"skipped: {error}")
    return failures


def predict_video(
    predictor: Predictor,
    source: str,
    target: Path,
    *,
    view: View = "overlay",
    every: int = 1,
    batch: int = 1,
    frames: bool = False,
    carry_bases: bool = False,
    resume: bool = False,
) -> None:
    """Write TARGET.mp4, the labelled video of a file, a camera (/dev/video0) or an address (rtsp://..., https://...).

    view: the labels' colours over the frame, beside it, or alone. every: of so many frames one is labelled, and its
    labels are shown until the next one. batch: labelled frames that go through the model at once. frames: also write
    TARGET/000000.png, ..., the label map of every labelled frame. carry_bases: see carried.carried_bases.

    Until it is whole, the video is TARGET.partial.mp4, which plays up to where the work ended, also after a kill.
    resume: go on from there, if it was made from this file by this model and with these options, and do nothing where
    TARGET.mp4 was. Addresses start again, and so does work with carried bases, which are not kept.

    SIGINT and SIGTERM end the work; of a camera, the video is whole then, else Interrupted is raised. Raises InputError
    for what cannot be read or written, options that do not fit and without PyAV.
    """
    check(predictor, view, every, batch, carry_bases)
    done, partial = (target.with_name(target.name + end) for end in (".mp4", ".partial.mp4"))
    before = target.with_name(f".{target.name}.before.mp4")
    with ExitStack() as stack:
        video = stack.enter_context(closing(Source(source, predictor.max_pixels)))
        if carry_bases:
            from .carried import carried_bases  # here: an exported model is used without torch

            stack.enter_context(carried_bases(predictor.model))
        mark, kept = _mark(predictor, source, view, every, frames, carry_bases), 0
        if resume and video.is_file:
            if _mark_of(done) == mark:
                note(f"done before: {done}")
                return
            kept = 0 if carry_bases else _continued(partial, before, mark)
        target.parent.mkdir(parents=True, exist_ok=True)
        writer = Writer(partial, video, predictor.palette, view, mark, target if frames else None, before, kept)
        stack.enter_context(_pointing_at(writer))
        stack.callback(writer.close)
        interruption = stack.enter_context(Interruption(tell=False))
        advance = stack.enter_context(bar(f"predict {Path(source).name}", video.total))
        items = stack.enter_context(closing(_ahead(video, every, kept)))
        many = video.total if every == 1 and video.is_file and not carry_bases else 1
        at_once = stack.enter_context(predictor.network.side_by_side(many))
        due = takewhile(lambda _: not interruption, items)
        labelled = stack.enter_context(closing(_labelled(predictor, source, due, batch, at_once)))
        for number in stack.enter_context(closing(ordered(writer.write, labelled, ahead=AHEAD))):
            advance(number)
    if interruption and not video.live:
        of = f" of about {video.total}" if video.total else ""
        text = f"stopped by {interruption.by} after {writer.frames}{of} frames of {shown(source)}"
        hint = "; the same command with --resume goes on" if video.is_file and not carry_bases else ""
        raise Interrupted(f"{text}; {partial} plays up to there{hint}")
    if not writer.frames:
        partial.unlink(missing_ok=True)
        raise InputError(f"cannot read {shown(source)} as a video: none of its frames can be decoded")
    with reporting(f"write {done}"):
        with library().open(os.path.abspath(partial)) as file:
            written = file.streams.video[0].frames
        if written != writer.frames:  # FFmpeg before 8.1
            text = f"{partial} came out with {written} of {writer.frames} frames"
            raise InputError(f"{text}; install a newer PyAV: pip install -U 'emanet[video]'")
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        partial.replace(done)
        sync_folder(done.parent)
        before.unlink(missing_ok=True)
    texts = [f"{shown(source)}: {writer.frames} frames in {done}", *video.remarks(), *writer.remarks]
    if frames:
        numbers = [int(path.stem) for path in target.glob("*.png") if path.stem.isdecimal()]
        old = sum(number % every > 0 or number >= writer.frames for number in numbers)
        texts += [f"{target} also has {old} label maps of an earlier run"] if old else []
    note("; ".join(texts))


@contextmanager
def _pointing_at(writer: Writer) -> Iterator[None]:
    """What ends a video says where its frames up to there are."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; {writer.path} plays up to there") if writer.frames else error from error


def check(predictor: Predictor, view: str, every: int, batch: int, carry_bases: bool) -> None:
    """InputError for options that do not fit each other or the model."""
    if view not in get_args(View):
        raise InputError(f"view is {view!r}, but must be one of {', '.join(get_args(View))}")
    if every < 1 or batch < 1:
        raise InputError(f"every is {every} and batch is {batch}, but both must be at least 1")
    config = predictor.config
    if carry_bases and (batch > 1 or config.mode != "whole" or config.scales != (1.0,) or config.flip):
        raise InputError(
            "bases are carried from one whole frame to the next: leave out --batch, --mode slide, --scales and --flip"
        )


def _ahead(video: Source, every: int, kept: int) -> Generator[Any, None, None]:
    """video.items from a thread that is up to AHEAD items ahead; a camera's frames that find no place are left out."""
    waiting: queue.Queue[Any] = queue.Queue(AHEAD)
    over = threading.Event()

    def read() -> None:
        end = None
        try:
            for item in video.items(every, kept):
                if over.is_set():
                    return
                if video.live and waiting.full() and isinstance(item, Frame):
                    video.late += 1
                else:
                    waiting.put(item)
        except BaseException as error:  # raised where the items are taken
            end = error
        waiting.put(end)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        over.set()
        while thread.is_alive():
            while not waiting.empty():
                waiting.get()
            thread.join(0.01)


def _labelled(
    predictor: Predictor, source: str, items: Iterable[Any], batch: int, at_once: int
) -> Generator[Any, None, None]:
    """The items in their order, each frame with its labels: its own, or those of the last frame that was labelled."""

    def label(group: list[Any]) -> list[Any]:
        wanted = [each for each in group if isinstance(each, Frame) and each.wanted]
        if wanted:
            with enough_memory(Path(source), wanted[0].size, predictor.config):
                found = predictor.many([Image.fromarray(each.rgb) for each in wanted])
            for each, labels in zip(wanted, found, strict=True):
                each.labels = labels
        return group

    last: np.ndarray | None = None
    with closing(side_by_side(label, _groups(items, batch, at_once > 1), at_once)) as groups:
        for each in chain.from_iterable(groups):
            if isinstance(each, Frame):
                each.labels = last = each.labels if each.wanted else last
            yield each


def _groups(items: Iterable[Any], batch: int, gather: bool) -> Iterator[list[Any]]:
    """The items up to every `batch` frames that are to be labelled; gather: with the sound that comes before these."""
    group, frames, wanted = list[Any](), 0, 0
    for item in items:
        group.append(item)
        if isinstance(item, Frame):
            frames, wanted = frames + 1, wanted + item.wanted
        if wanted == batch or frames == 4 * batch or not (wanted or gather):
            yield group
            group, frames, wanted = [], 0, 0
    if group:
        yield group


def _mark(predictor: Predictor, source: str, *options: object) -> str:
    """What a video's frames depend on, as a digest that is stored in it: nothing is continued with another.

    A model that was made in Python is never the same again.
    """
    made = made_by(predictor, input=repr(predictor.input))
    made |= {"model": "", "SHA-256": made["SHA-256"] or uuid.uuid4().hex}  # its name does not matter
    video = (os.path.getsize(source), os.stat(source).st_mtime_ns) if os.path.isfile(source) else ()
    facts = (sorted(made.items()), video, library().__version__, *options)
    return "labelled by emanet " + hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _mark_of(path: Path) -> str:
    av = library()
    try:
        with av.open(os.path.abspath(path)) as container:
            return container.metadata.get("comment", "")
    except (av.error.FFmpegError, OSError):
        return ""


def _certain(path: Path, mark: str) -> int:
    """How many of a video's frames were encoded whole: those before the last keyframe; 0 with another mark."""
    av, count, certain = library(), 0, 0
    if _mark_of(path) == mark:
        try:
            with av.open(os.path.abspath(path)) as container:
                for packet in container.demux(video=0):
                    certain = count if packet.is_keyframe else certain
                    count += packet.dts is not None
        except av.error.FFmpegError:  # a kill cut it off here
            pass
    return certain


def _continued(partial: Path, before: Path, mark: str) -> int:
    """How many frames of an interrupted work there are, at the start of the file `before`."""
    was, own = _certain(before, mark), _certain(partial, mark)
    if own > was:
        partial.replace(before)
    elif partial.exists() and not was and _mark_of(partial) not in ("", mark):
        note(f"starting again: {partial} was made from another file, by another model or with other options")
    return max(was, own)
