"""Video files: frames out of one as arrays with their numbers and times, what the file says of itself, and a file written from frames.

Decoding and encoding are FFmpeg's, through PyAV (`pip install -e '.[video]'`). A file's own count of frames may be absent or wrong, and
its frames need not come at equal distances: numbers are counted while decoding, times come from the frames. Pictures stand as a player
shows them, also those of a phone held upright. Only containers of files are opened: no play list, which could name addresses.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from hpml.env import HpmlError, Unavailable

if TYPE_CHECKING:
    import numpy as np

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"
ENDINGS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".ogv", ".wmv")
ENCODERS = ("libx264", "libopenh264", "mpeg4")  # the first that this build of FFmpeg has; the first two make H.264
CRF = 20  # x264's constant quality: 18 looks lossless, 23 is its default
# A count may be off by the frames that lead an open first group, or by empty packets at the end: a handful, however long the video is.
SLACK = 5  # frames fewer than the file says that still pass for all of it
TICK = Fraction(1, 60_000)  # seconds, the clock of written times: every usual rate divides it, and MPEG-4 takes no finer one than 1/65,535


class Cut(HpmlError):
    """A video that ends before the file says it does: the frames so far are good."""


@dataclass(frozen=True)
class Facts:
    """What a file says of itself; width and height in pixels as shown, fps the mean rate, frames None where the file does not say."""

    width: int
    height: int
    fps: float
    frames: int | None


def facts(path: Path) -> Facts:
    """The facts of a video, whose first frame is decoded for them. Raises HpmlError, one line with the file, where that fails."""
    with _opened(path) as (container, stream):
        first = next(_decoded(path, container, stream), None)
        if first is None:
            raise HpmlError(f"{path}: no frame of it can be decoded")
        width, height = _shown(first)
        rate = stream.average_rate or stream.guessed_rate or stream.base_rate
        return Facts(width, height, float(rate) if rate else 0.0, stream.frames or None)


def frames(path: Path, *, width: int | None = None, threads: int = 0) -> Iterator[tuple[int, float, np.ndarray]]:
    """(number from 0, time in seconds from the first frame, uint8 RGB [height, width, 3]) of each frame in the order of showing.

    `width` scales while the colours are converted, keeping the shape; every frame has the first one's size. `threads` decode, 0 lets
    FFmpeg choose. Raises HpmlError, one line with the file: no such file, no video, damaged from the start; and, after the last good
    frame, Cut where that is more than SLACK frames before the end that the file states (not every file states one).
    """
    import numpy as np

    with _opened(path, threads) as (container, stream):
        size, start, number, end_s = None, 0.0, -1, None
        for number, frame in enumerate(_decoded(path, container, stream)):
            if size is None:
                shown = _shown(frame)
                size = (width, max(1, round(shown[1] * width / shown[0]))) if width else shown
                start = frame.time or 0.0
            end_s = None if frame.time is None else frame.time + float((frame.duration or 0) * frame.time_base)
            turns = frame.rotation // 90 % 4
            wide, high = size[::-1] if turns % 2 else size
            pixels = frame.reformat(width=wide, height=high, format="rgb24").to_ndarray()
            time = number / float(stream.average_rate or 25) if frame.time is None else frame.time - start
            yield number, time, np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
        if number < 0:
            raise HpmlError(f"{path}: no frame of it can be decoded")
        if (lacking := _lacking(container, stream, number + 1, end_s)) > SLACK:
            whole = stream.frames or f"about {number + 1 + lacking}"
            raise Cut(f"{path}: ends after frame {number} of {whole}: cut or damaged")


@contextlib.contextmanager
def writer(path: Path, *, fps: float, crf: int = CRF) -> Iterator[Callable[..., None]]:
    """A function that appends an RGB frame uint8 [height, width, 3] to a new video file, `add(frame)` or `add(frame, time_s)`.

    The file has its name when the block ends well, and does not exist otherwise. Odd sizes get one more row or column, as H.264 asks for.
    Raises HpmlError (one line) for a frame of another size or kind, and where the file cannot be written or would overwrite one.
    """
    import numpy as np

    av, path = _av(), Path(path)
    if path.exists():
        raise HpmlError(f"{path} exists; it is not overwritten")
    codec = next((name for name in ENCODERS if name in av.codecs_available), None)
    if codec is None:
        raise Unavailable(f"{path}: this build of PyAV has none of the encoders {', '.join(ENCODERS)}")
    if not fps > 0:
        raise HpmlError(f"{path}: {fps} frames a second; give a rate above 0")
    part, size, count, stream, last = path.with_name(f"{path.stem}.part{path.suffix or '.mp4'}"), None, 0, None, -1

    @contextlib.contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            raise HpmlError(f"{path}: cannot be written ({_reason(error)})") from None

    def add(frame: np.ndarray, time_s: float | None = None) -> None:
        nonlocal size, count, stream, last
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or (size and frame.shape != size):
            raise HpmlError(f"{path}: frame {count} is {frame.dtype} {list(frame.shape)}, uint8 {list(size or ('height', 'width', 3))} "
                            "is expected")
        size, odd = frame.shape, (frame.shape[0] % 2, frame.shape[1] % 2)
        if any(odd):
            frame = np.pad(frame, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
        with told():
            if stream is None:
                stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001),
                                              options={"crf": str(crf)} if codec == "libx264" else {})
                stream.width, stream.height, stream.pix_fmt = frame.shape[1], frame.shape[0], "yuv420p"
                stream.codec_context.time_base = TICK
                if codec != "libx264":  # no constant quality there: half a bit for each pixel
                    stream.bit_rate = int(0.5 * frame.shape[0] * frame.shape[1] * fps)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            last = max(last + 1, round((count / fps if time_s is None else time_s) / TICK))  # an encoder wants rising times
            picture.pts, picture.time_base = last, TICK
            container.mux(stream.encode(picture))
        count += 1

    with told():
        path.parent.mkdir(parents=True, exist_ok=True)
        container = av.open(str(part), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {})
    try:
        yield add
        if stream is None:
            raise HpmlError(f"{path}: a video without frames is not written")
        with told():
            container.mux(stream.encode())
            container.close()
            os.replace(part, path)
    finally:
        with contextlib.suppress(av.error.FFmpegError, OSError):
            container.close()
        part.unlink(missing_ok=True)


def _av():
    try:
        import av
    except ImportError:
        raise Unavailable("reading and writing video files needs PyAV: pip install -e '.[video]'") from None
    return av


@contextlib.contextmanager
def _opened(path: Path, threads: int = 0) -> Iterator[tuple]:
    """(container, its first video stream)."""
    av = _av()
    if not Path(path).is_file():
        raise HpmlError(f"{path}: no such file")
    try:
        container = av.open(str(path), options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError) as error:
        why = "empty" if not Path(path).stat().st_size else f"truncated or of another kind: {_reason(error)}"
        raise HpmlError(f"{path}: not a video file that can be opened ({why})") from None
    with container:
        if not container.streams.video:
            raise HpmlError(f"{path}: no video is in it")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise HpmlError(f"{path}: truncated, or of a codec that this build of FFmpeg has not")
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        yield container, stream


def _decoded(path: Path, container, stream) -> Iterator:
    """The frames; a decoder's error as one line."""
    count = 0
    try:
        for frame in container.decode(stream):
            yield frame
            count += 1
    except (_av().error.FFmpegError, OSError) as error:
        if count:
            whole = f" of {stream.frames}" if stream.frames else ""
            raise Cut(f"{path}: damaged after frame {count - 1}{whole} ({_reason(error)})") from None
        raise HpmlError(f"{path}: damaged from its first frame on ({_reason(error)})") from None


def _lacking(container, stream, count: int, end_s: float | None) -> int:
    """How many frames the file states beyond the `count` decoded ones, which end at `end_s`.

    By its count and by its length where it states both: an edit list hides frames that are counted, and a frame may stand for many.
    """
    stated_s, lacking = _stated_s(container, stream), []
    if stream.frames:
        lacking.append(stream.frames - count)
    if stated_s is not None and end_s is not None:
        lacking.append(round((stated_s - end_s) * float(stream.average_rate)))
    return min(lacking, default=0)


def _stated_s(container, stream) -> float | None:
    """Where the file states that its pictures end, in seconds. What FFmpeg computes from the bytes that are there states nothing."""
    kind, rate = container.format.name, stream.average_rate
    if not rate:
        return None
    if kind.startswith("mov"):
        return float(stream.duration * stream.time_base) if stream.frames and stream.duration else None
    if stream.frames:
        return float(stream.frames / rate)
    if kind in ("matroska,webm", "flv"):
        if said := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):
            return 3600 * int(said[1]) + 60 * int(said[2]) + float(said[3])
        if len(container.streams) == 1 and container.duration:  # with sound, it may be the sound's
            return container.duration / 1e6
    return None


def _shown(frame) -> tuple[int, int]:
    return (frame.height, frame.width) if frame.rotation // 90 % 2 else (frame.width, frame.height)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]
