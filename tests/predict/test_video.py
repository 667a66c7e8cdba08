"""predict_video with a tiny random model and tiny clips: labels, times, audio, and what is left by an interruption."""

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run_cli, sentence
from PIL import Image
from test_predictor import TINY, tiny, write

from emanet.config import DataConfig, DatasetSpec, EvalConfig, Experiment
from emanet.deploy import artefact
from emanet.deploy.artefact import Artefact
from emanet.errors import InputError, Interrupted
from emanet.model import build_model
from emanet.predict import video, video_file
from emanet.predict.carried import carried_bases
from emanet.predict.inputs import find_videos, means_model, shown
from emanet.predict.predictor import Predictor
from emanet.predict.video import predict_video, predict_videos
from emanet.show import colours
from emanet.weights.model_file import save_model

av = pytest.importorskip("av")
SIZE = (48, 64)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return tiny()


@pytest.fixture
def saved(tmp_path) -> Path:
    """A model file: only with one can work be continued by another process."""
    spec = DatasetSpec(classes=("a", "b", "c"))
    torch.manual_seed(0)
    model = build_model(TINY, spec).eval()
    save_model(tmp_path / "m.safetensors", model, Experiment(model=TINY, data=DataConfig(spec=spec)))
    return tmp_path / "m.safetensors"


def pictures(count: int, size: Sequence[int] = SIZE) -> list[np.ndarray]:
    """Coarse noise that moves by two pixels a frame."""
    h, w = size
    coarse = np.random.default_rng(0).integers(0, 256, (h // 8 + 2, w // 8 + 2, 3), dtype=np.uint8)
    whole = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    return [np.roll(whole, 2 * i, 1)[:h, :w].copy() for i in range(count)]


def clip(
    path: Path,
    count: int = 10,
    size: Sequence[int] = SIZE,
    times: Sequence[int] | None = None,
    base: Fraction = Fraction(1, 25),
    codec: str = "libx264",
    sound: str = "",
    rotation: int = 0,
    language: str = "und",
) -> Path:
    """A clip whose frame i is at times[i] ticks of `base`, or at i; with a second of noise in the codec `sound`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25, options={"crf": "5", "g": "10"} if codec == "libx264" else {})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p" if codec != "libx264" or size[0] % 2 + size[1] % 2 == 0 else "yuv444p"
        stream.codec_context.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        if sound:
            audio = file.add_stream(sound, rate=48000)
            audio.metadata["language"] = language
        for i, pixels in enumerate(pictures(count, size)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = times[i] if times else i, base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound:
            noise = np.random.default_rng(1).normal(0, 0.1, (1, 48000)).astype(np.float32)
            for start in range(0, 47 * 1024 - 1024, 1024):
                planar = np.repeat(noise[:, start : start + 1024], 2, 0)
                part = av.AudioFrame.from_ndarray(planar, format="fltp", layout="stereo")
                part.sample_rate, part.pts, part.time_base = 48000, start, Fraction(1, 48000)
                file.mux(audio.encode(part))
            file.mux(audio.encode())
    return path


def decoded(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    """The frames as RGB and their times in seconds."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.pts * frame.time_base for frame in frames]


def packets(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as file:
        return [(p.pts * p.time_base, bytes(p)) for p in file.demux(**{kind: 0}) if p.dts is not None]


def label_maps(folder: Path) -> dict[int, np.ndarray]:
    """The visible ones: a kill may leave the hidden file of a map that was being written."""
    return {int(path.stem): np.asarray(Image.open(path)) for path in sorted(folder.glob("[!.]*"))}


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 12) -> None:
    """Pictures that are equal but for the encoder's loss."""
    assert a.shape == b.shape
    assert np.abs(a.astype(float) - b).mean() < tolerance


class TestFrames:
    def test_every_frame_has_the_labels_that_it_has_alone(self, predictor, tmp_path, capsys):
        source = clip(tmp_path / "a.mp4")
        predict_video(predictor, str(source), tmp_path / "out" / "a", frames=True)
        rgb, times = decoded(source)
        expected = [predictor(each) for each in rgb]
        assert len({each.tobytes() for each in expected}) > 5  # else the comparison would prove little
        found = label_maps(tmp_path / "out" / "a")
        assert [*found] == [*range(10)]
        for i, labels in enumerate(expected):
            np.testing.assert_array_equal(found[i], labels)
        drawn, new_times = decoded(tmp_path / "out" / "a.mp4")
        assert new_times == times
        for pixels, labels, result in zip(rgb, expected, drawn, strict=True):
            close(result, colours.overlay(pixels, labels, predictor.palette))
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "a.mp4"}
        assert "a.mp4: 10 frames in " in capsys.readouterr().err

    def test_batches_give_the_same(self, predictor, tmp_path):
        source = clip(tmp_path / "a.mp4")
        for batch in (1, 4):
            predict_video(predictor, str(source), tmp_path / f"{batch}", frames=True, batch=batch)
        for one, several in zip(label_maps(tmp_path / "1").values(), label_maps(tmp_path / "4").values(), strict=True):
            np.testing.assert_array_equal(one, several)

    def test_views(self, predictor, tmp_path):
        source = clip(tmp_path / "a.mp4", 3)
        rgb = decoded(source)[0]
        for view in ("colours", "side"):
            predict_video(predictor, str(source), tmp_path / view, view=view)
        for pixels, alone, beside in zip(
            rgb, decoded(tmp_path / "colours.mp4")[0], decoded(tmp_path / "side.mp4")[0], strict=True
        ):
            labels = colours.colourise(predictor(pixels), predictor.palette)
            close(alone, labels)
            close(beside, np.hstack([pixels, labels]))

    def test_colours_come_out_as_they_are(self, predictor, tmp_path, monkeypatch):
        """Nothing is lost between the colour spaces of HD and others."""
        monkeypatch.setattr(predictor, "palette", ((200, 30, 60), (30, 60, 200), (60, 200, 30)))
        monkeypatch.setattr(predictor, "many", lambda images: [np.zeros(SIZE, np.uint8) for _ in images])
        predict_video(predictor, str(clip(tmp_path / "a.mp4", 2)), tmp_path / "b", view="colours")
        np.testing.assert_allclose(decoded(tmp_path / "b.mp4")[0][0].mean((0, 1)), (200, 30, 60), atol=2)

    def test_every(self, predictor, tmp_path):
        source = clip(tmp_path / "a.mp4")
        predict_video(predictor, str(source), tmp_path / "b", every=4, frames=True, view="colours")
        assert [*label_maps(tmp_path / "b")] == [0, 4, 8]
        rgb, drawn = decoded(source)[0], decoded(tmp_path / "b.mp4")[0]
        for i, result in enumerate(drawn):
            close(result, colours.colourise(predictor(rgb[i - i % 4]), predictor.palette))

    def test_label_maps_of_an_earlier_run_are_told_of(self, predictor, tmp_path, capsys):
        source = clip(tmp_path / "a.mp4", 10)
        for every, said in ((1, ""), (4, "; {} also has 7 label maps of an earlier run")):
            predict_video(predictor, str(source), tmp_path / "b", frames=True, every=every)
            assert capsys.readouterr().err.endswith(f"b.mp4{said.format(tmp_path / 'b')}\n")

    @pytest.mark.parametrize("view, size", [("overlay", (48, 34)), ("side", (48, 66))])
    def test_odd_sizes_get_a_row_or_column_more_and_it_is_said(self, predictor, tmp_path, capsys, view, size):
        source = clip(tmp_path / "a.mkv", 2, (47, 33))
        predict_video(predictor, str(source), tmp_path / "b", view=view)
        result = decoded(tmp_path / "b.mp4")[0][0]
        assert result.shape == (*size, 3)
        assert "one row or column more than" in capsys.readouterr().err
        close(result[47], result[46], 5)

    def test_rotated_videos_come_out_upright(self, predictor, tmp_path):
        source = clip(tmp_path / "a.mp4", 3, rotation=90)
        predict_video(predictor, str(source), tmp_path / "b", frames=True)
        upright = [np.rot90(pixels) for pixels in decoded(source)[0]]
        for pixels, labels, result in zip(
            upright, label_maps(tmp_path / "b").values(), decoded(tmp_path / "b.mp4")[0], strict=True
        ):
            np.testing.assert_array_equal(labels, predictor(pixels))
            close(result, colours.overlay(pixels, labels, predictor.palette))

    def test_models_of_one_channel_see_grey(self, tmp_path):
        grey = tiny(1)
        source = clip(tmp_path / "a.mp4", 2)
        predict_video(grey, str(source), tmp_path / "b", frames=True)
        for pixels, labels in zip(decoded(source)[0], label_maps(tmp_path / "b").values(), strict=True):
            np.testing.assert_array_equal(labels, grey(Image.fromarray(pixels)))

    def test_carried_bases_change_labels_of_all_but_the_first_frame(self, tmp_path):
        torch.manual_seed(0)
        model = build_model(replace(TINY, head=replace(TINY.head, em_steps=1)), ["a", "b", "c"])  # depends on the start
        predictor = Predictor(model, device="cpu")
        source = clip(tmp_path / "a.mp4", 6)
        predict_video(predictor, str(source), tmp_path / "b", frames=True, carry_bases=True)
        alone = [predictor(pixels) for pixels in decoded(source)[0]]
        carried = label_maps(tmp_path / "b")
        differ = [(carried[i] != labels).any() for i, labels in enumerate(alone)]
        assert not differ[0] and any(differ)
        with carried_bases(predictor.model):
            for i, pixels in enumerate(decoded(source)[0]):
                np.testing.assert_array_equal(carried[i], predictor(pixels))


class TestTimesAndSound:
    @pytest.mark.parametrize(
        "name, base, times",
        [
            ("a.mp4", Fraction(1, 90000), [0, 3000, 7001, 7900, 20000, 90000]),
            ("a.mkv", Fraction(1, 1000), [0, 33, 67, 100, 500, 533]),
            ("a.mp4", Fraction(1001, 30000), [0, 1, 2, 3, 4, 5]),
            ("a.avi", Fraction(1, 25), [0, 1, 2, 3, 4, 5]),
        ],
    )
    def test_every_frame_keeps_its_time(self, predictor, tmp_path, name, base, times):
        source = clip(tmp_path / name, 6, times=times, base=base, codec="mpeg4" if name == "a.avi" else "libx264")
        predict_video(predictor, str(source), tmp_path / "b")
        assert decoded(tmp_path / "b.mp4")[1] == [t * base for t in times]

    def test_a_clock_that_starts_elsewhere_starts_at_0(self, predictor, tmp_path):
        source = clip(tmp_path / "a.mts", 6, times=range(900, 906), sound="aac")
        assert decoded(source)[1][0] > 1
        predict_video(predictor, str(source), tmp_path / "b")
        times = decoded(tmp_path / "b.mp4")[1]
        assert np.allclose(np.diff([float(t) for t in times]), 1 / 25)
        before = decoded(source)[1][0] - packets(source, "audio")[0][0]
        after = times[0] - packets(tmp_path / "b.mp4", "audio")[0][0]
        assert abs(before - after) < Fraction(1, 10000)  # sound and frames are as far apart as they were

    def test_sound_is_copied(self, predictor, tmp_path):
        source = clip(tmp_path / "a.mp4", sound="aac")
        predict_video(predictor, str(source), tmp_path / "b")
        assert len(packets(source, "audio")) > 40
        assert packets(tmp_path / "b.mp4", "audio") == packets(source, "audio")
        assert decoded(tmp_path / "b.mp4")[1] == decoded(source)[1]

    @pytest.mark.parametrize("name", ["a.avi", "a.mkv"])
    def test_sound_without_names_of_its_channels_is_copied(self, predictor, tmp_path, name):
        source = clip(tmp_path / name, 4, codec="mpeg4", sound="pcm_s16le")
        predict_video(predictor, str(source), tmp_path / "b")
        sounds = [b"".join(content for _, content in packets(path, "audio")) for path in (source, tmp_path / "b.mp4")]
        assert sounds[0] == sounds[1] != b""
        with av.open(str(tmp_path / "b.mp4")) as file:
            assert file.streams.audio[0].layout.name == "stereo"

    def test_sound_keeps_its_language(self, predictor, tmp_path):
        source = clip(tmp_path / "a.mkv", 4, sound="aac", language="fra")
        predict_video(predictor, str(source), tmp_path / "b")
        with av.open(str(tmp_path / "b.mp4")) as file:
            assert file.streams.audio[0].metadata["language"] == "fra"

    def test_sound_that_mp4_does_not_take_is_left_out_and_it_is_said(self, predictor, tmp_path, capsys):
        source = clip(tmp_path / "a.avi", codec="mpeg4", sound="adpcm_ima_wav")
        predict_video(predictor, str(source), tmp_path / "b")
        with av.open(str(tmp_path / "b.mp4")) as file:
            assert [stream.type for stream in file.streams] == ["video"]
        assert "left out: audio of the kind adpcm_ima_wav, which MP4 does not take" in capsys.readouterr().err

    def test_other_streams_are_left_out_and_it_is_said(self, predictor, tmp_path, capsys):
        source = tmp_path / "a.mkv"
        with av.open(str(source), "w") as file:
            streams = [file.add_stream("mpeg4", rate=25) for _ in range(2)]
            for stream in streams:
                stream.height, stream.width = SIZE
            for pixels in pictures(2):
                file.mux([packet for s in streams for packet in s.encode(av.VideoFrame.from_ndarray(pixels))])
            file.mux([packet for s in streams for packet in s.encode()])
        predict_video(predictor, str(source), tmp_path / "b")
        assert "left out: other streams, of the kind video" in capsys.readouterr().err

    def test_streams_without_times_have_those_of_their_rate(self, predictor, tmp_path):
        source = clip(tmp_path / "a.h264", 6)
        predict_video(predictor, str(source), tmp_path / "b")
        assert decoded(tmp_path / "b.mp4")[1] == [Fraction(i, 25) for i in range(6)]


class TestFaults:
    def test_a_file_without_its_index_is_named_and_the_others_are_predicted(self, predictor, tmp_path, capsys):
        clip(tmp_path / "in" / "a.mp4", 3)
        whole = clip(tmp_path / "in" / "b.mp4", 3).read_bytes()
        (tmp_path / "in" / "b.mp4").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "in" / "c.mp4").write_bytes(b"")
        videos, images = find_videos([str(tmp_path / "in")])
        failures = predict_videos(predictor, videos, tmp_path / "out")
        assert not images and len(failures) == 2
        assert f"cannot read {tmp_path / 'in' / 'b.mp4'} as a video: Invalid data" in failures[0]
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.mp4"}

    def test_a_file_that_is_cut_off_gives_what_there_is(self, predictor, tmp_path, capsys):
        """The index of frames stands before them."""
        source = tmp_path / "a.mp4"
        with av.open(str(source), "w", options={"movflags": "faststart"}) as file:
            stream = file.add_stream("mpeg4", rate=25)
            stream.height, stream.width = SIZE
            stream.bit_rate = 2_000_000
            for pixels in pictures(20):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
            file.mux(stream.encode())
        whole = source.read_bytes()
        source.write_bytes(whole[: len(whole) * 3 // 4])
        predict_video(predictor, str(source), tmp_path / "b")
        assert 1 <= len(decoded(tmp_path / "b.mp4")[0]) < 20
        assert re.search(
            "cut off or damaged: it ends after 0.[1-7] s, but says that it lasts 0.8 s", capsys.readouterr().err
        )

    @pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.flv"])
    def test_so_does_one_that_does_not_count_its_frames(self, predictor, tmp_path, capsys, name):
        source = clip(tmp_path / name, 100, codec="flv" if name == "a.flv" else "mpeg4")
        predict_video(predictor, str(source), tmp_path / "whole", every=100)
        assert "cut off" not in capsys.readouterr().err
        whole = source.read_bytes()
        source.write_bytes(whole[: len(whole) // 2])
        predict_video(predictor, str(source), tmp_path / "b", every=100)
        assert re.search(r"cut off or damaged: it ends after [0-3]\.\d s, but says .* 4.0 s", capsys.readouterr().err)

    def test_frames_that_an_edit_hides_are_not_missing(self, predictor, tmp_path, capsys):
        """As of a clip that was cut without encoding it again: its first frames are there to decode the others."""
        with av.open(str(clip(tmp_path / "a.mp4", 20))) as file, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
            stream = cut.add_stream_from_template(file.streams.video[0])
            for packet in file.demux(video=0):
                if packet.dts is not None:
                    packet.pts, packet.dts = (
                        int(t - Fraction(5, 25) / packet.time_base) for t in (packet.pts, packet.dts)
                    )
                    packet.stream = stream
                    cut.mux(packet)
        with av.open(str(tmp_path / "cut.mp4")) as file:
            assert file.streams.video[0].frames == 20
        predict_video(predictor, str(tmp_path / "cut.mp4"), tmp_path / "b")
        assert len(decoded(tmp_path / "b.mp4")[0]) == 15 and "cut off" not in capsys.readouterr().err

    def test_sound_beside_an_avi_does_not_make_it_look_cut_off(self, predictor, tmp_path, capsys):
        predict_video(predictor, str(clip(tmp_path / "a.avi", codec="mpeg4", sound="aac")), tmp_path / "b")
        assert "cut off" not in capsys.readouterr().err

    def test_packets_that_cannot_be_decoded_are_left_out_and_counted(self, predictor, tmp_path, capsys):
        source = clip(tmp_path / "a.avi", 10, codec="mpeg4")
        whole = source.read_bytes()
        third = packets(source, "video")[3][1]
        source.write_bytes(whole.replace(third, bytes(len(third))))
        predict_video(predictor, str(source), tmp_path / "b")
        assert decoded(tmp_path / "b.mp4")[1] == [Fraction(i, 25) for i in range(10) if i != 3]
        assert "left out: 1 packets that cannot be decoded" in capsys.readouterr().err

    def test_no_video(self, predictor, tmp_path):
        with av.open(str(tmp_path / "a.mp4"), "w") as file:
            audio = file.add_stream("aac", rate=48000)
            part = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            part.sample_rate = 48000
            file.mux([*audio.encode(part), *audio.encode()])
        with pytest.raises(InputError, match="a.mp4 as a video: it holds no video"):
            predict_video(predictor, str(tmp_path / "a.mp4"), tmp_path / "b")
        with pytest.raises(InputError, match="cannot read .*none.mp4 as a video: No such file"):
            predict_video(predictor, str(tmp_path / "none.mp4"), tmp_path / "b")

    def test_frames_that_change_their_size(self, predictor, tmp_path):
        parts = [clip(tmp_path / f"{i}.h264", 3, size).read_bytes() for i, size in enumerate([(48, 64), (64, 96)])]
        (tmp_path / "a.h264").write_bytes(b"".join(parts))
        with pytest.raises(InputError, match="its frames change from .* 96 x 64 .*; cut it there; .*partial.mp4 plays"):
            predict_video(predictor, str(tmp_path / "a.h264"), tmp_path / "b")
        assert len(decoded(tmp_path / "b.partial.mp4")[0]) == 3

    def test_too_many_pixels(self, predictor, tmp_path, monkeypatch):
        monkeypatch.setattr(predictor, "max_pixels", 3000)
        with pytest.raises(InputError, match="its 64 x 48 pixels are more than max_pixels, 3000"):
            predict_video(predictor, str(clip(tmp_path / "a.mp4", 1)), tmp_path / "b")

    def test_without_the_library(self, predictor, tmp_path, monkeypatch):
        source = clip(tmp_path / "a.mp4", 1)
        monkeypatch.setitem(sys.modules, "av", None)
        failures = predict_videos(predictor, [(str(source), Path("a"))], tmp_path / "out")
        assert failures == ["videos need PyAV, which is not installed: pip install 'emanet[video]'"]

    @pytest.mark.parametrize(
        "options, words",
        [
            ({"view": "beside"}, "view is 'beside'"),
            ({"every": 0}, "must be at least 1"),
            ({"carry_bases": True, "batch": 2}, "leave out --batch"),
        ],
    )
    def test_options_that_do_not_fit(self, predictor, tmp_path, options: dict[str, Any], words):
        with pytest.raises(InputError, match=words):
            predict_video(predictor, "a.mp4", tmp_path / "b", **options)

    def test_a_file_that_came_out_short_is_not_called_done(self, predictor, tmp_path, monkeypatch):
        """FFmpeg before 8.1 writes none of the frames into the index."""
        monkeypatch.setattr(video_file, "CONTAINER", {"movflags": "frag_keyframe+empty_moov"})
        with pytest.raises(InputError, match="came out with 0 of 3 frames; install a newer PyAV"):
            predict_video(predictor, str(clip(tmp_path / "a.mp4", 3)), tmp_path / "b")
        assert not (tmp_path / "b.mp4").exists()

    def test_bases_are_only_carried_by_the_network_itself(self, predictor, tmp_path, monkeypatch):
        source = str(clip(tmp_path / "a.mp4", 1))
        with pytest.raises(InputError, match="with --engine plain"):
            eager = Predictor(predictor.model, device="cpu", engine="eager")
            predict_video(eager, source, tmp_path / "b", carry_bases=True)
        exported = Artefact.__new__(Artefact)
        exported.path = Path("x.onnx")
        monkeypatch.setattr(predictor, "function", exported)
        with pytest.raises(InputError, match="x.onnx is an exported model; this needs the one"):
            predict_video(predictor, source, tmp_path / "b", carry_bases=True)

    def test_a_folder_of_the_videos_is_no_output_folder(self, predictor, tmp_path):
        source = clip(tmp_path / "a.mp4", 1)
        before = source.read_bytes()
        with pytest.raises(InputError, match="holds the video .*a.mp4; name another one"):
            predict_videos(predictor, [(str(source), Path("a"))], tmp_path)
        assert source.read_bytes() == before

    def test_a_full_disk_is_one_sentence(self, predictor, tmp_path):
        if not os.path.exists("/dev/full"):
            pytest.skip("there is no /dev/full")
        (tmp_path / "b.partial.mp4").symlink_to("/dev/full")
        with pytest.raises(InputError, match="cannot write .*b.partial.mp4: No space left"):
            predict_video(predictor, str(clip(tmp_path / "a.mp4")), tmp_path / "b")


def test_frames_side_by_side_stay_in_order(tmp_path, monkeypatch):
    """Of a long clip, two frames at a time in threads of their own; of a short one, or with carried bases, one."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(artefact, "MANY", 12)
    predictor, threads = tiny(), []
    for count, options, expected in ((12, {}, 2), (11, {}, 1), (12, {"every": 3}, 1), (12, {"carry_bases": True}, 1)):
        threads.clear()
        together, every = threading.Barrier(expected, timeout=20), options.get("every", 1)

        def watch(module, inputs, together=together):
            threads.append(threading.get_ident())
            together.wait()

        handle = predictor.model.backbone.register_forward_pre_hook(watch)
        source, target = clip(tmp_path / "a.mp4", count, sound="aac"), tmp_path / f"b{count}{[*options]}"
        predict_video(predictor, str(source), target, frames=True, **options)
        handle.remove()
        assert len(set(threads)) == expected and len(threads) == len(range(0, count, every))
        rgb, drawn, maps = decoded(source)[0], decoded(Path(f"{target}.mp4"))[0], label_maps(target)
        assert [*maps] == [*range(0, count, every)] and len(drawn) == count
        for i, picture in enumerate(drawn):
            close(picture, colours.overlay(rgb[i], maps[i - i % every], predictor.palette))
            if "carry_bases" not in options and i in maps:
                np.testing.assert_array_equal(maps[i], predictor(rgb[i]))


class TestInterrupted:
    @pytest.fixture(autouse=True)
    def _many_keyframes(self, monkeypatch):
        """One in five frames, so that short clips can be cut in the middle."""
        monkeypatch.setattr(video_file, "KEYFRAME_EVERY", 0.2)

    def interrupted(self, predictor, monkeypatch, after: int, source: Path, target: Path, **options) -> str:
        """A run that gets SIGINT while frame `after` is labelled; what it says."""
        left, many = iter(range(after)), predictor.many

        def interrupting(images):
            if next(left, None) is None:
                signal.raise_signal(signal.SIGINT)
            return many(images)

        with monkeypatch.context() as patched:
            patched.setattr(predictor, "many", interrupting)
            with pytest.raises(Interrupted) as end:
                predict_video(predictor, str(source), target, **options)
        return str(end.value)

    def test_a_signal_leaves_a_playable_file_and_resume_goes_on(self, predictor, saved, tmp_path, monkeypatch, capsys):
        predictor = Predictor(saved, device="cpu")
        source, target = clip(tmp_path / "a.mp4", 30, sound="aac"), tmp_path / "b"
        said = self.interrupted(predictor, monkeypatch, 17, source, target, frames=True)
        assert (
            re.search("stopped by SIGINT after (18|19|2.) of about 30 frames", said)
            and "the same command with --resume goes on" in said
        )
        partial = tmp_path / "b.partial.mp4"
        there = len(decoded(partial)[0])
        assert 18 <= there < 30 and not target.with_suffix(".mp4").exists()
        with av.open(str(partial)) as file:
            kept = [i for i, packet in enumerate(file.demux(video=0)) if packet.is_keyframe][-1]
        assert kept >= 10
        first = decoded(partial)[0][:kept]

        labelled = []
        many = predictor.many
        monkeypatch.setattr(predictor, "many", lambda images: labelled.append(len(images)) or many(images))
        predict_video(predictor, str(source), target, frames=True, resume=True)
        assert sum(labelled) == 30 - kept  # what stands before the last keyframe was not labelled again
        np.testing.assert_array_equal(decoded(tmp_path / "b.mp4")[0][:kept], first)
        assert packets(tmp_path / "b.mp4", "audio") == packets(source, "audio")
        rgb, times = decoded(source)
        drawn, new_times = decoded(tmp_path / "b.mp4")
        assert new_times == times
        for i, labels in label_maps(target).items():
            np.testing.assert_array_equal(labels, predictor(rgb[i]))
            close(drawn[i], colours.overlay(rgb[i], labels, predictor.palette))
        assert {path.name for path in tmp_path.iterdir()} >= {"b", "b.mp4"}
        assert not partial.exists() and not (tmp_path / ".b.before.mp4").exists()

        labelled.clear()
        predict_video(predictor, str(source), target, frames=True, resume=True)
        assert not labelled and "done before: " in capsys.readouterr().err
        predict_video(predictor, str(source), target, frames=True)
        assert sum(labelled) == 30  # without resume all is done again

    def test_labels_of_a_frame_before_the_cut_are_shown_after_it(self, saved, tmp_path, monkeypatch):
        predictor = Predictor(saved, device="cpu")
        source = clip(tmp_path / "a.mp4", 20)
        options = {"every": 7, "view": "colours"}
        self.interrupted(predictor, monkeypatch, 2, source, tmp_path / "b", **options)
        predict_video(predictor, str(source), tmp_path / "b", resume=True, **options)
        rgb, drawn = decoded(source)[0], decoded(tmp_path / "b.mp4")[0]
        for i, result in enumerate(drawn):
            close(result, colours.colourise(predictor(rgb[i - i % 7]), predictor.palette))

    @pytest.mark.parametrize("other", ["options", "source", "model"])
    def test_nothing_is_continued_that_was_made_in_another_way(self, saved, tmp_path, monkeypatch, capsys, other):
        predictor = Predictor(saved, device="cpu")
        source, options = clip(tmp_path / "a.mp4", 20), {}
        self.interrupted(predictor, monkeypatch, 15, source, tmp_path / "b")
        if other == "options":
            options = {"view": "side"}
        elif other == "source":
            os.utime(source, (0, 0))
        else:
            predictor = Predictor(saved, device="cpu", config=EvalConfig(flip=True))
        labelled, many = [], predictor.many
        monkeypatch.setattr(predictor, "many", lambda images: labelled.append(len(images)) or many(images))
        predict_video(predictor, str(source), tmp_path / "b", resume=True, **options)
        assert sum(labelled) == 20 and "starting again: " in capsys.readouterr().err

    def test_carried_bases_start_again(self, saved, tmp_path, monkeypatch):
        predictor = Predictor(saved, device="cpu")
        source = clip(tmp_path / "a.mp4", 20)
        said = self.interrupted(predictor, monkeypatch, 15, source, tmp_path / "b", carry_bases=True)
        assert "--resume" not in said
        predict_video(predictor, str(source), tmp_path / "b", carry_bases=True, frames=True, resume=True)
        predict_video(predictor, str(source), tmp_path / "c", carry_bases=True, frames=True)
        for one, other in zip(label_maps(tmp_path / "b").values(), label_maps(tmp_path / "c").values(), strict=True):
            np.testing.assert_array_equal(one, other)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    # 80: on a busy machine the file is up to 18 frames behind, 5 that wait to be written and 13 in the encoder.
    @pytest.mark.parametrize("count, seconds", [(80, 0.2), pytest.param(300, 2, marks=pytest.mark.slow)])
    def test_killed_in_the_middle(self, saved, tmp_path, monkeypatch, count, seconds):
        """SIGKILL while half the frames are labelled: what was written plays, and the rest is added to it."""
        monkeypatch.setattr(video_file, "KEYFRAME_EVERY", seconds)
        predictor = Predictor(saved, device="cpu")
        source, target = clip(tmp_path / "a.mp4", count), tmp_path / "out" / "a"
        child = os.fork()
        if not child:
            left, many = iter(range(count // 2)), predictor.many

            def killing(images):
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return many(images)

            predictor.many = killing
            try:
                predict_video(predictor, str(source), target, frames=True)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        rgb, times = decoded(source)
        expected = [predictor(pixels) for pixels in rgb]
        playable = decoded(tmp_path / "out" / "a.partial.mp4")[0]
        assert count // 10 <= len(playable) <= count // 2
        for i, result in enumerate(playable):
            close(result, colours.overlay(rgb[i], expected[i], predictor.palette))

        labelled, many = [], predictor.many
        predictor.many = lambda images: labelled.append(len(images)) or many(images)
        predict_video(predictor, str(source), target, frames=True, resume=True)
        assert count // 2 <= sum(labelled) <= count - count // 10
        found = label_maps(target)
        assert [*found] == [*range(count)]
        drawn, new_times = decoded(tmp_path / "out" / "a.mp4")
        assert new_times == times
        for i, labels in enumerate(expected):
            np.testing.assert_array_equal(found[i], labels)
            close(drawn[i], colours.overlay(rgb[i], labels, predictor.palette))
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "a.mp4"}


class TestCamera:
    def test_a_stream_without_end_is_whole_after_a_signal(self, predictor, tmp_path, monkeypatch, capsys):
        content = clip(tmp_path / "a.mts", 100).read_bytes()
        gone = threading.Event()

        class Camera(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                try:
                    for start in range(0, len(content), 2000):
                        self.wfile.write(content[start : start + 2000])
                        gone.wait(0.01)
                    gone.wait(60)
                except OSError:
                    pass

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        left, many = iter(range(20)), predictor.many

        def interrupting(images):
            if next(left, None) is None:
                signal.raise_signal(signal.SIGTERM)
                gone.set()  # the next read would wait for the camera
            return many(images)

        monkeypatch.setattr(predictor, "many", interrupting)
        monkeypatch.setattr(video, "AHEAD", 1000)
        try:
            ((source, name),) = find_videos([f"http://me:secret@127.0.0.1:{server.server_port}/street.ts?x=1"])[0]
            predict_video(predictor, source, tmp_path / name)
        finally:
            gone.set()
            server.shutdown()
            server.server_close()
        frames, times = decoded(tmp_path / "street.mp4")
        assert 20 <= len(frames) < 100 and times[0] == 0
        err = capsys.readouterr().err
        assert f"frames in {tmp_path / 'street.mp4'}" in err and "secret" not in err

    def test_frames_that_come_too_fast_are_left_out(self):
        class Fast:
            live, late = True, 0

            def items(self, every, kept):
                yield from (video.Frame(i, SIZE, None, i, 1, True) for i in range(100))

        source = Fast()
        items = video._ahead(source, 1, 0)
        first = next(items)
        while not source.late:  # the thread goes on reading
            pass
        rest = [each.index for each in items]
        assert first.index == 0 and rest == sorted(rest)
        assert 1 + len(rest) + source.late == 100 and len(rest) >= video.AHEAD - 1

    @contextmanager
    def served(self, content: bytes, sent: int) -> Iterator[str]:
        """The address of a file whose server cannot seek, and falls silent after so many bytes."""
        over = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:sent])
                if sent < len(content):
                    over.wait(60)

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/a"
        finally:
            over.set()
            server.shutdown()
            server.server_close()

    def test_one_that_falls_silent(self, predictor, tmp_path, monkeypatch):
        content, open_ = clip(tmp_path / "a.mkv", 100).read_bytes(), av.open

        def impatient(*arguments, **options):
            return open_(*arguments, **options | ({"timeout": (20, 0.3)} if "timeout" in options else {}))

        monkeypatch.setattr(av, "open", impatient)
        said = "read on in .*: it does not answer; .*b.partial.mp4 plays up to there"
        with self.served(content, len(content) // 2) as address, pytest.raises(InputError, match=said):
            predict_video(predictor, address, tmp_path / "b", every=100)
        assert 1 < len(decoded(tmp_path / "b.partial.mp4")[0]) < 100

    def test_a_file_of_a_server_is_no_camera(self, predictor, tmp_path, capsys):
        """It waits, so no frame is left out; although nobody says how long it lasts."""
        content = clip(tmp_path / "a.mts", 100).read_bytes()
        with self.served(content, len(content)) as address:
            predict_video(predictor, address, tmp_path / "b")
        assert len(decoded(tmp_path / "b.mp4")[0]) == 100 and "left out" not in capsys.readouterr().err

    def test_a_camera_that_is_not_there(self, predictor, tmp_path):
        with pytest.raises(InputError, match="cannot read /dev/video97 as a video: No such file"):
            predict_video(predictor, "/dev/video97", tmp_path / "b")


class TestInputs:
    def test_a_colon_in_a_name_is_no_protocol(self, predictor, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        clip(Path("12:30.mp4").resolve(), 3)
        assert not predict_videos(predictor, find_videos(["12:30.mp4"])[0], "out:1")
        assert len(decoded(tmp_path / "out:1" / "12:30.mp4")[0]) == 3

    def test_label_maps_of_frames_replace_none_of_images(self, tmp_path):
        clip(tmp_path / "in" / "a.mp4", 1)
        (tmp_path / "in" / "a").mkdir()
        Image.fromarray(pictures(1)[0]).save(tmp_path / "in" / "a" / "000000.png")
        done = run_cli("predict", "street", tmp_path / "in", "--out", tmp_path / "out", "--frames")
        assert "would be in one folder, a; predict the images without" in sentence(done)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "flags", [["--outputs", "shares"], ["--no-overlay"], ["--bands", "1"], ["--range", "0", "1"]]
    )
    def test_options_of_images_are_not_ignored(self, tmp_path, flags):
        clip(tmp_path / "a.mp4", 1)
        done = run_cli("predict", "street", tmp_path / "a.mp4", "--out", tmp_path / "out", *flags)
        assert sentence(done) == f"error: {flags[0]} is for images, and there are only videos among the inputs"

    def test_videos_among_files_folders_and_addresses(self, tmp_path):
        for name in ("in/a.mp4", "in/a.mov", "in/sub/b.MKV", "in/x.jpg", "only/c.mp4", "in/notes.txt", "d.avi"):
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).touch()
        inputs = [str(tmp_path / name) for name in ("in", "only", "d.avi", "d.avi", "in/x.jpg")]
        videos, images = find_videos([*inputs, "rtsp://me:pw@camera:554/live/street?x=1", "/dev/video2"])
        assert images == [inputs[0], inputs[4]]
        assert {(Path(source).name, str(name)) for source, name in videos} == {
            *{("a.mp4", "a_mp4"), ("a.mov", "a_mov"), ("b.MKV", "sub/b"), ("c.mp4", "c"), ("d.avi", "d")},
            *{("street?x=1", "street"), ("video2", "video2")},
        }
        assert shown("rtsp://me:pw@camera:554/x@y") == "rtsp://camera:554/x@y"
        assert not any(map(means_model, [*inputs, "rtsp://camera/x", "/dev/video2"]))
        with pytest.raises(InputError, match="^https://host/a.JPG[?]x=1 is the address of an image: download it first"):
            find_videos(["https://me:pw@host/a.JPG?x=1"])
        assert find_videos([str(tmp_path / "none.mp4")]) == ([], [str(tmp_path / "none.mp4")])

    def test_on_the_command_line(self, model, tmp_path):
        write(tmp_path / "in" / "x.png")
        clip(tmp_path / "in" / "a.mp4", 3)
        done = run_cli("predict", model, tmp_path / "in", "--out", tmp_path / "out", "--view", "side", "--frames")
        assert done.returncode == 0, done.stderr
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"x.png", "x_overlay.jpg", "a.mp4", "a"}
        assert "1 image" in done.stderr and "a.mp4: 3 frames" in done.stderr and "no images" not in done.stderr
        assert decoded(tmp_path / "out" / "a.mp4")[0][0].shape == (48, 128, 3)
        (tmp_path / "in" / "a.mp4").write_bytes(b"damaged")
        done = run_cli("predict", model, tmp_path / "in" / "a.mp4", "--out", tmp_path / "out")
        assert "could not be predicted: 1" in sentence(done) and "skipped: cannot read" in done.stderr
        done = run_cli("predict", model, tmp_path / "in" / "x.png", "--out", tmp_path / "out", "--every", "2")
        assert "--every is for videos, and there is none among the inputs" in sentence(done)
        done = run_cli("predict", model, tmp_path / "no.mp4", "--out", tmp_path / "out")
        assert "no image" in sentence(done) and "no.mp4" in done.stderr
