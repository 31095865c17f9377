"""Frames out of video files and into them: numbers, times, sizes, and files that are no videos."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from hpml.data import labelling, video
from hpml.env import HpmlError

av = pytest.importorskip("av")


def ramp(number, width=64, height=36):
    """A frame whose brightness says its number; red at the left, blue at the right."""
    frame = np.full((height, width, 3), 20 * number + 20, np.uint8)
    frame[:, : width // 4], frame[:, -width // 4 :] = (200, 0, 0), (0, 0, 200)
    return frame


def written(path, n=8, fps=25.0, times=None, **size):
    with video.writer(path, fps=fps) as add:
        for i in range(n):
            add(ramp(i, **size), *([times[i]] if times else []))
    return path


def test_frames_come_back_in_order_with_their_numbers_and_times(tmp_path):
    path = written(tmp_path / "a.mp4")
    facts = video.facts(path)
    assert (facts.width, facts.height, facts.frames) == (64, 36, 8) and facts.fps == pytest.approx(25)
    found = list(video.frames(path))
    assert [number for number, _, _ in found] == list(range(8))
    assert [time for _, time, _ in found] == pytest.approx([i / 25 for i in range(8)], abs=1e-3)
    for number, _, frame in found:
        assert frame.shape == (36, 64, 3) and frame.dtype == np.uint8 and frame.flags["C_CONTIGUOUS"]
        assert np.abs(frame[10:26, 24:40].astype(int) - ramp(number)[10:26, 24:40]).mean() < 6
    assert found[0][2][18, 4, 0] > 150 > 60 > found[0][2][18, 4, 2], "red stays red"


def test_a_width_scales_and_keeps_the_shape(tmp_path):
    _, _, frame = next(video.frames(written(tmp_path / "a.mp4", n=1), width=32))
    assert frame.shape == (18, 32, 3)


def test_uneven_times_are_kept(tmp_path):
    times = [0.0, 0.04, 0.20, 0.21, 0.5]
    path = written(tmp_path / "a.mp4", n=5, times=times)
    assert [time for _, time, _ in video.frames(path)] == pytest.approx(times, abs=2e-3)


def test_odd_sizes_are_written_with_one_more_row_and_column(tmp_path):
    _, _, frame = next(video.frames(written(tmp_path / "a.mp4", n=2, width=61, height=35)))
    assert frame.shape == (36, 62, 3)


def test_a_video_filmed_upright_stands_upright(tmp_path):
    source = written(tmp_path / "a.mp4", n=2)
    turned = tmp_path / "turned.mp4"
    data = source.read_bytes()
    matrix = b"".join(v.to_bytes(4, "big", signed=True) for v in (65536, 0, 0, 0, 65536, 0, 0, 0, 0x40000000))
    quarter = b"".join(v.to_bytes(4, "big", signed=True) for v in (0, 65536, 0, -65536, 0, 0, 0, 0, 0x40000000))
    at = data.find(b"tkhd")  # the track's matrix, not the film's
    place = data.find(matrix, at)
    assert at > 0 and place > at
    turned.write_bytes(data[:place] + quarter + data[place + 36 :])
    assert (video.facts(turned).width, video.facts(turned).height) == (36, 64)
    _, _, frame = next(video.frames(turned))
    assert frame.shape == (64, 36, 3) and frame[4, 18, 0] > 150, "the left edge is shown at the top"
    assert next(video.frames(turned, width=18))[2].shape == (32, 18, 3)


@pytest.mark.parametrize("name, content", [
    ("empty.mp4", b""), ("noise.mp4", bytes(range(256)) * 20), ("text.txt", b"a line\n" * 40),
    ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n")])
def test_what_is_no_video_is_said_in_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (video.facts, lambda path: next(video.frames(path))):
        with pytest.raises(HpmlError, match=name) as told:
            read(path)
        assert "\n" not in str(told.value)
    with pytest.raises(HpmlError, match="no such file"):
        video.facts(tmp_path / "absent.mp4")


def test_a_truncated_file_says_how_far_it_came(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.mp4"
    with video.writer(path, fps=25) as add:
        for _ in range(30):
            add(rng.integers(0, 256, (72, 128, 3)).astype(np.uint8))
    data = path.read_bytes()
    end = tmp_path / "end.mp4"  # the index stands in front: the frames end early
    end.write_bytes(data[: len(data) * 2 // 3])
    assert video.facts(end).frames == 30, "the file's own count is wrong now"
    seen = []
    with pytest.raises(video.Cut, match=r"end\.mp4: (damaged|ends) after frame ") as told:
        for number, _, _ in video.frames(end):
            seen.append(number)
    assert f"after frame {seen[-1]}" in str(told.value) and 5 < len(seen) < 30
    front = tmp_path / "front.mp4"
    front.write_bytes(data[:60])
    with pytest.raises(HpmlError, match="front.mp4"):
        video.facts(front)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(HpmlError, match="no video is in it"):
        video.facts(path)


def test_nothing_is_overwritten_and_nothing_half_stays(tmp_path):
    path = written(tmp_path / "a.mp4", n=1)
    before = path.read_bytes()
    with pytest.raises(HpmlError, match="exists"), video.writer(path, fps=25):
        raise AssertionError("never entered")
    assert path.read_bytes() == before
    with pytest.raises(HpmlError, match=r"frame 1 is uint8 \[20, 20, 3\]"), video.writer(tmp_path / "b.mp4", fps=25) as add:
        add(ramp(0))
        add(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(HpmlError, match="without frames"), video.writer(tmp_path / "c.mp4", fps=25):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4"]


def test_a_build_without_h264_takes_the_next_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "ENCODERS", ("none_such", "mpeg4"))
    path = written(tmp_path / "a.mp4", n=3)
    assert len(list(video.frames(path))) == 3


def test_without_pyav_one_line_says_what_to_install(tmp_path):
    code = f"""
import sys
sys.modules["av"] = None
from pathlib import Path
from hpml.data import labelling, video
from hpml.env import Unavailable
try:
    video.facts(Path({str(tmp_path)!r}) / "a.mp4")
except Unavailable as told:
    print(told)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install -e '.[video]'" in done.stdout


def encoded(path, n=40, *, codec="libx264", gap=0, options=None):
    """Noise at 30 frames a second, so that bytes are spread evenly; `gap`: frames shown before the first one that an edit list keeps."""
    if codec not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg has no {codec}")
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 128, 72, "yuv420p"
        packets = []
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (72, 128, 3), dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 30)
            packets += stream.encode(frame)
        for packet in [*packets, *stream.encode()]:
            packet.pts -= int(Fraction(gap, 30) / packet.time_base)
            packet.dts -= int(Fraction(gap, 30) / packet.time_base)
            container.mux(packet)
    return path


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4"),
                                             ("a.flv", "libx264")])
def test_a_file_whose_end_is_missing_is_not_taken_as_complete(tmp_path, name, codec):
    whole = encoded(tmp_path / name, codec=codec, options={"movflags": "faststart"} if name.endswith("mp4") else None)
    assert len(list(video.frames(whole))) == 40, "a whole one says nothing"
    content, cut = whole.read_bytes(), tmp_path / f"cut-{name}"
    cut.write_bytes(content[: len(content) // 2])
    seen = []
    with pytest.raises(video.Cut, match=rf"cut-{name}: .* after frame \d+") as told:
        for number, _, _ in video.frames(cut):
            seen.append(number)
    assert 5 < len(seen) < 35 and f"after frame {seen[-1]} " in str(told.value)
    next(video.frames(cut))  # who asks for no more is not bothered


def test_a_silent_end_says_of_how_many_frames(tmp_path):
    whole = encoded(tmp_path / "a.mp4", options={"movflags": "faststart"})
    with av.open(str(whole)) as container:  # cut between two frames: the decoder has nothing to object to
        places = sorted((packet.pos, packet.size) for packet in container.demux(video=0) if packet.size)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: sum(places[19])])
    with pytest.raises(video.Cut, match=r"cut\.mp4: ends after frame \d+ of 40: cut or damaged$"):
        list(video.frames(cut))
    cut.write_bytes(whole.read_bytes()[: sum(places[40 - 1 - video.SLACK])])
    assert 40 - video.SLACK <= len(list(video.frames(cut))) < 40, "a few frames fewer than a file's count are no fault"
    assert labelling.label(cut, tmp_path / "labels") < 40
    cut.write_bytes(whole.read_bytes()[: sum(places[19])])
    with pytest.raises(HpmlError, match=r"of 40: cut or damaged"):
        labelling.label(cut, tmp_path / "others")
    assert not (tmp_path / "others/tasks_cut.json").exists()


def test_frames_that_an_edit_list_hides_are_not_missed(tmp_path):
    path = encoded(tmp_path / "a.mp4", gap=20, options={"avoid_negative_ts": "disabled"})
    assert video.facts(path).frames == 40 and len(list(video.frames(path))) == 20
