"""The two ends of labelling a video: frames and audio out of a file or a camera, and labelled frames into an MP4.

PyAV (the extra `video`) is imported late.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..atomic import replacing
from ..data.images import write_mask
from ..errors import InputError, some
from ..show import colours
from .inputs import is_stream, shown

View = Literal["overlay", "side", "colours"]
ENCODERS = {"libx264": {"preset": "veryfast", "crf": "20", "bf": "0"}, "libopenh264": {}, "libvpx-vp9": {"crf": "30"}}
KEYFRAME_EVERY = 2  # seconds; what is lost or done again after a kill
# A fragment is written at every keyframe, and closing the file makes a plain MP4 of it. The first fragments' times must
# be known for the edit list (delay_moov), without which audio that starts before 0 would move the frames' timestamps.
CONTAINER = {"movflags": "hybrid_fragmented+delay_moov", "use_editlist": "1", "flush_packets": "1"}
FRAME_DURATION = 1 << 8  # AV_CODEC_FLAG_FRAME_DURATION: the last frame is shown as long as in the input
LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")  # FFmpeg's of 1, 2, ... channels
BT709, LIMITED = 1, 1  # AVCOL_SPC_BT709 and AVCOL_RANGE_MPEG: what players take untagged HD video for


@dataclass(eq=False)
class Frame:
    index: int
    size: tuple[int, int]
    """(h, w) of the upright frame."""
    rgb: Any
    """(h, w, 3) uint8; None: neither labelled nor drawn, as it was encoded before."""
    pts: int
    """Its time, in ticks of the video's time base from the start of the file."""
    duration: int
    wanted: bool
    """Whether the network labels it."""
    labels: Any = None
    """(h, w) uint8, once they are known."""


def library() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError("videos need PyAV, which is not installed: pip install 'emanet[video]'") from error
    return av


@contextmanager
def reporting(doing: str) -> Iterator[None]:
    av = library()
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        late = isinstance(error, av.error.ExitError)  # the timeout of Source
        raise InputError(f"cannot {doing}: {'it does not answer' if late else error.strerror or error}") from error


class Source:
    """An opened video or camera: its frames, upright, and its audio's packets, in the order of the file."""

    def __init__(self, source: str, max_pixels: int | None):
        av, self.name = library(), shown(source)
        options: dict[str, Any] = {"timeout": (20, 10)} if "://" in source else {}  # seconds to open, to read
        options |= {"format": "v4l2"} if source.startswith("/dev/video") else {}
        with reporting(f"read {self.name} as a video"):
            # Absolute, as FFmpeg takes what is before a colon for a protocol: 12:30.mp4.
            self.container = av.open(source if is_stream(source) else os.path.abspath(source), **options)
        self.video = self.container.streams.best("video")
        problem = "it holds no video" if self.video is None else ""
        if self.video is not None and max_pixels and self.video.width * self.video.height > max_pixels:
            size = f"{self.video.width} x {self.video.height}"
            problem = f"its {size} pixels are more than max_pixels, {max_pixels}"
        if problem:
            self.container.close()
            raise InputError(f"cannot read {self.name} as a video: {problem}")
        self.video.thread_type = "AUTO"
        self.audio = list(self.container.streams.audio)
        self.rate = self.video.average_rate or self.video.guessed_rate or Fraction(25)
        self.is_file = os.path.isfile(source)
        # A server that cannot seek hides how long a file lasts, but not how many bytes it has.
        self.live = self.container.duration is None and not self.is_file and self.container.size <= 0
        stated = self.video.frames  # 0 in files that do not say; in MP4, those that an edit hides too
        # FFmpeg's duration of an AVI is an estimate from the size that is left.
        avi, seconds = self.container.format.name == "avi", (self.container.duration or 0) / av.time_base
        self.lasts = float(stated / self.rate) if avi else seconds  # by the file's own account; 0 if it gives none
        others = [each for each in self.container.streams if each.index != self.video.index and each.type != "audio"]
        self.others = {stream.type for stream in others}
        self.total = stated or round(seconds * float(self.rate))
        self.damaged = self.late = 0
        self.end, self.seconds = "", 0.0  # why reading ended early; where the frames and the sound that were read end

    def items(self, every: int, kept: int) -> Iterator[Any]:
        """Frames, and packets of audio. kept: so many frames are encoded already."""
        av, index, last = library(), 0, -1
        start: Fraction | None = None  # a camera's clock, or that of a broadcast, does not start at 0
        for packet in self._packets():
            if start is None and packet.pts is not None:
                first = self.container.start_time
                time = packet.pts * packet.time_base if first is None else Fraction(first, av.time_base)
                start = max(0, round(time / self.video.time_base)) * self.video.time_base
            shift = round((start or 0) / packet.time_base)
            if packet.stream is not self.video:
                if packet.dts is not None:
                    packet.pts = (packet.dts if packet.pts is None else packet.pts) - shift
                    packet.dts -= shift
                    self._has_read(packet.pts + (packet.duration or 0), packet.time_base)
                    yield packet
                continue
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                self.damaged += 1
                continue
            for frame in decoded:
                duration = frame.duration or max(1, round(1 / self.rate / self.video.time_base))
                last = max(last + 1, (last + duration if index else 0) if frame.pts is None else frame.pts - shift)
                self._has_read(last + duration, self.video.time_base)
                turns = round(frame.rotation / 90)
                size = (frame.height, frame.width)[:: -1 if turns % 2 else 1]
                wanted, rgb = index % every == 0 and index + every > kept, None
                if wanted or index >= kept:
                    rgb = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                yield Frame(index, size, rgb, last, duration, wanted)
                index += 1

    def _packets(self) -> Iterator[Any]:
        try:
            with reporting(f"read on in {self.name}"):
                yield from self.container.demux(self.video, *self.audio)
        except InputError as error:
            if not self.live:
                raise
            self.end = str(error)

    def _has_read(self, end: int, base: Fraction) -> None:
        self.seconds = max(self.seconds, float(end * base))

    def remarks(self) -> list[str]:
        """What there is to say about the input, in words."""
        texts = [self.end] if self.end else []
        texts += [f"left out: {self.late} frames that came faster than they are labelled"] if self.late else []
        texts += [f"left out: {self.damaged} packets that cannot be decoded"] if self.damaged else []
        if self.lasts - self.seconds > max(2 / self.rate, min(1, self.lasts / 10)):
            text = f"it ends after {self.seconds:.1f} s, but says that it lasts {self.lasts:.1f} s"
            texts.append(f"cut off or damaged: {text}")
        return texts + ([f"left out: other streams, of the kind {some(sorted(self.others))}"] if self.others else [])

    def close(self) -> None:
        self.container.close()


class Writer:
    """The labelled video, encoded. It plays while it is written, and is a plain MP4 once it is closed."""

    def __init__(
        self,
        path: Path,
        video: Source,
        palette: colours.Palette,
        view: View,
        mark: str,
        folder: Path | None,
        before: Path,
        kept: int,
    ):
        self.path, self.video, self.palette, self.view, self.mark = path, video, palette, view, mark
        self.folder, self.before, self.kept = folder, before, kept
        self.frames, self.size, self.early = 0, (0, 0), list[Any]()
        self.remarks: list[str] = []
        self.files = ExitStack()
        self.container: Any = None

    def write(self, item: Any) -> int:
        """Write a frame, or a packet of audio; how many frames there are then."""
        with reporting(f"write {self.path}"):
            if not isinstance(item, Frame):
                self._copy(item)
                return self.frames
            if self.container is None:
                self._open(item.size)
            if item.size != self.size:
                (h, w), (new_h, new_w) = self.size, item.size
                text = f"its frames change from {w} x {h} to {new_w} x {new_h} pixels"
                raise InputError(f"cannot go on in {self.video.name}: {text}; cut it there")
            if self.folder and item.wanted:
                with replacing(self.folder / f"{item.index:06}.png", durable=False) as temporary:
                    write_mask(temporary, item.labels, self.palette)
            if item.index < self.kept:
                self._keep(item)
            else:
                self.container.mux(self._encoded(item))
            self.frames += 1
            return self.frames

    def _open(self, size: tuple[int, int]) -> None:
        av, self.size = library(), size
        encoder = next((name for name in ENCODERS if name in av.codecs_available), None)
        if encoder is None:
            raise InputError(f"this PyAV has none of the encoders {', '.join(ENCODERS)}; install it from PyPI")
        h, w = size[0], size[1] * (1 + (self.view == "side"))
        if h % 2 or w % 2:
            self.remarks.append(f"one row or column more than {w} x {h}, as encoders need even numbers")
        ticks = self.video.video.time_base.denominator
        options = CONTAINER | {"movie_timescale": str(ticks * max(1, 90000 // ticks))}  # of offsets between streams
        self.container = self.files.enter_context(closing(av.open(os.path.abspath(self.path), "w", options=options)))
        self.container.metadata["comment"] = self.mark
        self.stream = self.container.add_stream(encoder, rate=self.video.rate, options=ENCODERS[encoder])
        self.stream.width, self.stream.height, self.stream.pix_fmt = w + w % 2, h + h % 2, "yuv420p"
        context = self.stream.codec_context
        context.time_base = self.video.video.time_base
        context.flags |= FRAME_DURATION
        context.gop_size = max(1, min(250, round(KEYFRAME_EVERY * self.video.rate)))
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        aspect = self.video.video.sample_aspect_ratio
        if aspect:
            turned = size != (self.video.video.height, self.video.video.width)
            context.sample_aspect_ratio = 1 / aspect if turned else aspect
        self.copies: dict[int, tuple[Any, Any]] = {}  # an audio stream's index -> its copy, and a filter of packets
        for audio in self.video.audio:
            try:
                # Broadcasts repeat AAC's settings in every packet; MP4 has them once.
                form = "null" if audio.codec_context.name != "aac" or audio.codec_context.extradata else "aac_adtstoasc"
                form = av.bitstream.BitStreamFilterContext(form, audio)
                layout = audio.layout.name
                if layout.endswith("channels"):  # MP4 must name them, and PCM of AVI and MKV has their number alone
                    layout = LAYOUTS[audio.layout.nb_channels - 1]
                copy = self.container.add_stream_from_template(audio, layout=layout)
                copy.metadata.update({key: value for key, value in audio.metadata.items() if key == "language"})
                self.copies[audio.index] = copy, form
            except (ValueError, IndexError):
                self.remarks.append(f"left out: audio of the kind {audio.codec_context.name}, which MP4 does not take")
        if self.kept:
            file = self.files.enter_context(av.open(os.path.abspath(self.before)))
            self.packets, stream = file.demux(video=0), file.streams.video[0]
            # The muxer takes packets as an encoder gives them, and MP4 stores those of H.264 in another form.
            form = "h264_mp4toannexb" if stream.codec_context.name == "h264" else "null"
            self.as_encoded = av.bitstream.BitStreamFilterContext(form, stream)
        early, self.early = self.early, []
        for packet in early:
            self._copy(packet)

    def _copy(self, packet: Any) -> None:
        if self.container is None:
            self.early.append(packet)
        elif packet.stream.index in self.copies:
            stream, form = self.copies[packet.stream.index]
            self._mux(packet, form, stream)

    def _mux(self, packet: Any, form: Any, stream: Any) -> None:
        """Write a packet of another file into a stream, in the form that the muxer takes."""
        base = packet.time_base
        for each in form.filter(packet):
            each.time_base, each.stream = base, stream
            self.container.mux(each)

    def _keep(self, frame: Frame) -> None:
        packet = next(self.packets)
        if packet.pts * packet.time_base != frame.pts * self.video.video.time_base:
            raise InputError(f"{self.before} does not belong to {self.video.name}; start again without --resume")
        self._mux(packet, self.as_encoded, self.stream)

    def _encoded(self, frame: Frame) -> Any:
        if self.view == "overlay":
            canvas = colours.overlay(frame.rgb, frame.labels, self.palette)
        else:
            canvas = colours.colourise(frame.labels, self.palette)
        if self.view == "side":
            canvas = np.hstack([frame.rgb, canvas])
        h, w = canvas.shape[:2]
        canvas = np.pad(canvas, ((0, h % 2), (0, w % 2), (0, 0)), "edge")
        picture = library().VideoFrame.from_ndarray(canvas, format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        picture.pts, picture.time_base, picture.duration = frame.pts, self.video.video.time_base, frame.duration
        return self.stream.encode(picture)

    def close(self) -> None:
        if self.container is not None:
            with reporting(f"write {self.path}"), self.files:
                self.container.mux(self.stream.encode())
