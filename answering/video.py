"""Frames of a video file, as a person sees them, with their times. Decoded by PyAV (FFmpeg's libraries)."""

import contextlib
import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from answering.colour import display_matrix, shown_size, to_rgb
from answering.console import UserError

VIDEO_SUFFIXES = frozenset(
    ".mp4 .mkv .avi .mov .m4v .webm .mpg .mpeg .ts .m2ts .mts .m2t .vob .wmv .asf .flv .f4v .ogv .ogm .divx .3gp .3g2"
    " .rm .rmvb .mxf .wtv .dv .m1v .m2v .mpv .qt .tp .trp .264 .h264 .265 .hevc .ivf .obu .nut .vro .xvid .mk3d .gxf".split()
)
FORMATS = (  # demuxers that read one file and nothing else: no playlists, no devices, no lists of files
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,live_flv,ogg,mxf,wtv,rm,nut,dv,gxf,ivf,"
    "h264,hevc,m4v,vc1,vvc,obu,av1,cavsvideo,dirac,mjpeg,yuv4mpegpipe,nsv,nuv,dhav,lxf,ty,pva"
)
MAX_GAP = 10.5  # seconds; x264's 250 frames at 23.976 a second are 10.43
MAX_PIXELS = 70_000_000  # of a frame; 8192 x 8192 fits
MAX_HOURS = 100  # a longer duration in a header is not believed
MAX_ERRORS = 100  # in a row, without a packet between them


@dataclass(frozen=True)
class Frame:
    rgb: np.ndarray  # uint8 [H, W, 3], as a person sees it
    time_ms: int  # since the film's start


@dataclass(frozen=True)
class Sampling:
    """Which frames of a film: its keyframes and some between, or an even grid."""

    every: float | None = None  # seconds; a frame so often instead of keyframes
    max_gap: float = MAX_GAP  # seconds; keyframes further apart get as many frames between as halve the gap
    skip_start: float = 0.0  # seconds
    skip_end: float = 0.0  # seconds


def is_video(name: str | Path) -> bool:
    """Whether a file is a video by its name."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


class Video:
    """Frames of one film, in one file or in parts that follow each other: `with Video(path) as video: ...`."""

    def __init__(self, *parts: Path, longest_side: int | None = None, threads: int = 1):
        """Opens the first part. longest_side: reduce frames to so many pixels. Raises UserError."""
        self.damage: str | None = None
        self._longest_side = longest_side
        self._parts = [_Part(Path(part), threads) for part in parts]
        first = self._parts[0]
        self.codec = first.codec
        self.width, self.height = first.shown
        self.duration = sum(part.duration for part in self._parts)
        if not all(part.duration for part in self._parts):
            self.duration = 0.0

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def frames(self, sampling: Sampling | None = None) -> Iterator[Frame]:
        """The frames that a sampling takes, in time order."""
        sampling = sampling or Sampling()
        end = self.duration - sampling.skip_end if self.duration else math.inf
        for decoded, part, time in self._sampled(sampling):
            if sampling.skip_start <= time <= end:
                yield self._finish(decoded, part, time)

    def all_frames(self) -> Iterator[Frame]:
        """Every frame."""
        offset = 0.0
        for part in self._parts:
            for decoded, time in part.read(0.0):
                yield self._finish(decoded, part, offset + time)
            offset += part.length
            self._note_damage(part, offset - part.length)

    def frames_at(self, seconds: Iterable[float]) -> Iterator[Frame]:
        """The first frame at or after each of these times, in time order."""
        wanted = sorted(seconds)
        offset = 0.0
        for part in self._parts:
            times = [second - offset for second in wanted]
            last = part is self._parts[-1]
            times = [time for time in times if time >= 0 and (last or time < part.length)]
            for decoded, time in part.at(times):
                yield self._finish(decoded, part, offset + time)
            wanted = wanted[len(times) :]
            offset += part.length

    def keyframes_at(self, seconds: Iterable[float]) -> Iterator[Frame]:
        """The keyframe before each of these times, or else after it: decoded alone, so quick anywhere in a film."""
        for wanted in seconds:
            offset = 0.0
            for part in self._parts[:-1]:
                if wanted < offset + part.length:
                    break
                offset += part.length
            else:
                part = self._parts[-1]
            with contextlib.closing(part.read(wanted - offset, keys_only=True)) as found:
                for decoded, time in found:
                    yield self._finish(decoded, part, offset + time)
                    break

    def _sampled(self, sampling: Sampling) -> Iterator[tuple]:
        offset = 0.0
        for part in self._parts:
            found = part.grid(sampling.every) if sampling.every else part.keyframes_and_between(sampling.max_gap)
            for decoded, time in found:
                yield decoded, part, offset + time
            self._note_damage(part, offset)
            offset += part.length

    def _finish(self, decoded, part: "_Part", time: float) -> Frame:
        return Frame(to_rgb(decoded, part.aspect, self._longest_side), round(time * 1000))

    def _note_damage(self, part: "_Part", offset: float) -> None:
        if part.is_cut_off() and not self.damage:
            until = _clock(offset + part.reached)
            whole = f" of {_clock(self.duration)}" if self.duration else ""
            self.damage = f"read up to {until}{whole}; the rest is damaged"


class _Part:
    """One file of a film. Times are seconds since its first shown frame."""

    def __init__(self, path: Path, threads: int):
        self.path = path
        self.threads = threads
        self.reached = 0.0  # time of the last packet that was read
        self.broken = False  # the last thing that happened was an error
        self._cursor: _Reader | None = None  # for frames between keyframes
        self._reader = _Reader(path, threads)
        first = next(self._reader.decode(), None)
        if first is None:
            raise UserError(f"{path}: {self._reader.why_nothing()}")
        self.start = first[1]
        self.codec = self._reader.codec
        self.aspect = self._reader.aspect
        a, b, c, d = display_matrix(first[0])
        self.shown = shown_size(first[0].width, first[0].height, self.aspect, None)
        if abs(a) + abs(d) < abs(b) + abs(c):
            self.shown = self.shown[::-1]
        self.duration = self._reader.duration
        self._reader.close()

    @property
    def length(self) -> float:
        return max(self.duration, self.reached)

    def is_cut_off(self) -> bool:
        short = self.duration and self.reached < 0.98 * self.duration - 2
        return self.broken or bool(short)

    def close(self) -> None:
        self._reader.close()
        if self._cursor:
            self._cursor.close()

    def read(self, start: float, keys_only: bool = False) -> Iterator[tuple]:
        """(Decoded frame, time) from a time on, at the latest."""
        with contextlib.closing(_Reader(self.path, self.threads)) as reader:
            if start > 0:
                reader.seek(self.start + start)
            for decoded, time in reader.decode(keys_only):
                self.reached = max(self.reached, time - self.start)
                yield decoded, time - self.start
            self.reached = max(self.reached, reader.reached - self.start)
            self.broken = reader.broken

    def grid(self, every: float) -> Iterator[tuple]:
        due = 0.0
        for decoded, time in self.read(0.0):
            if time >= due - 1e-6:
                yield decoded, time
                due = (math.floor(time / every + 1e-6) + 1) * every

    def keyframes_and_between(self, max_gap: float) -> Iterator[tuple]:
        before = None
        for decoded, time in self.read(0.0, keys_only=True):
            if before is not None:
                yield from self._between(before, time, max_gap)
            yield decoded, time
            before = time
        if before is None:
            before = 0.0
        yield from self._between(before, self.length, max_gap)

    def _between(self, start: float, end: float, max_gap: float) -> Iterator[tuple]:
        pieces = 1
        while (end - start) / pieces > max_gap:
            pieces *= 2
        times = [start + (end - start) * piece / pieces for piece in range(1, pieces)]
        for decoded, time in self.at(times):
            if start < time < end:
                yield decoded, time

    def at(self, times: list[float]) -> Iterator[tuple]:
        """The first frame at or after each time, which are in order."""
        if not times:
            return
        times = list(times)
        latest = None
        for decoded, time in self.read(times[0]):
            while times and time >= times[0] - 1e-6:
                if latest != time:
                    yield decoded, time
                    latest = time
                times.pop(0)
            if not times:
                return


class _Reader:
    """One pass over a file. Times are seconds of the stream's own clock."""

    def __init__(self, path: Path, threads: int):
        self.path = path
        self.broken = False
        self.reached = -math.inf
        self._error: Exception | None = None
        self.container, self.stream = _open(path)
        context = self.stream.codec_context
        context.thread_count = threads
        self.codec = context.name
        self.aspect = float(self.stream.sample_aspect_ratio or context.sample_aspect_ratio or 1) or 1.0
        self.duration = _duration(self.container, self.stream)

    def close(self) -> None:
        self.container.close()

    def seek(self, seconds: float) -> None:
        """To the keyframe before a time, or to the start of the file where that fails."""
        import av

        try:
            self.container.seek(math.floor(seconds / self.stream.time_base), stream=self.stream)
        except av.FFmpegError:
            self.container.close()
            self.container, self.stream = _open(self.path)

    def decode(self, keys_only: bool = False) -> Iterator[tuple]:
        import av

        self.stream.codec_context.skip_frame = "NONKEY" if keys_only else "DEFAULT"
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                self._error = error
                self.broken = True
                continue
            for frame in frames:
                time = _time(frame, self.stream)
                if frame.is_corrupt or time is None or (keys_only and not frame.key_frame):
                    continue
                self.broken = False
                self.reached = max(self.reached, time)
                yield frame, time

    def _packets(self) -> Iterator:
        import av

        packets = self.container.demux(self.stream)
        errors = 0
        while errors < MAX_ERRORS:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                errors += 1
                self._error = error
                self.broken = True
                packets = self.container.demux(self.stream)
                continue
            errors = 0
            if packet.dts is not None:
                self.reached = max(self.reached, float(packet.dts * self.stream.time_base))
            yield packet

    def why_nothing(self) -> str:
        """Why not a single frame came."""
        reason = getattr(self._error, "strerror", None) or "the file ends before the first frame"
        return f"no frame of its {self.codec} video can be decoded ({reason})"


def read_duration(path: Path) -> float | None:
    """Seconds, from the container's header, without decoding; None for what is no video."""
    try:
        container, stream = _open(Path(path))
    except UserError:
        return None
    with contextlib.closing(container):
        return _duration(container, stream) or None


def _open(path: Path):
    """(PyAV container, its first real video stream). Raises UserError."""
    av = _import_av()
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a file")
    if not status.st_size:
        raise UserError(f"{path}: the file is empty")
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(MAX_PIXELS)}
    try:
        container = av.open(f"file:{path}", options=options, timeout=60, metadata_errors="replace")
    except av.FFmpegError as error:
        raise UserError(f"{path}: not a video that can be read ({error.strerror})") from None
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            break
    else:
        container.close()
        raise UserError(f"{path}: no video in it")
    if stream.codec_context is None:
        container.close()
        raise UserError(f"{path}: nothing here decodes its video codec")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        container.close()
        raise UserError(f"{path}: {width}x{height} is more than {MAX_PIXELS // 1_000_000} megapixels")
    return container, stream


def _import_av():
    try:
        import av
    except ImportError:
        raise UserError("reading videos needs PyAV: pip install av") from None
    return av


def _duration(container, stream) -> float:
    """Seconds, 0.0 where the header does not say."""
    seconds = 0.0
    if stream.duration:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration:
        seconds = container.duration / 1_000_000
    return seconds if 0 < seconds < MAX_HOURS * 3600 else 0.0


def _time(frame, stream) -> float | None:
    stamp = frame.pts if frame.pts is not None else frame.dts
    if stamp is None:
        return None
    return float(stamp * (frame.time_base or stream.time_base))


def _clock(seconds: float) -> str:
    """1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
