"""Frames of a film in one or more video files, as a person sees them, with their times. Read by PyAV."""

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from answering.colour import UPRIGHT, display_matrix, shown_size, to_rgb, turns_sideways
from answering.console import UserError
from answering.decoding import MAX_PACKETS_TO_FIRST, Reader, open_video, read_header_duration

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".mk3d", ".webm", ".avi", ".divx", ".xvid"}
    | {".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".mpv", ".vob", ".vro", ".ts", ".tp", ".trp", ".m2ts", ".mts", ".m2t"}
    | {".wmv", ".asf", ".flv", ".ogv", ".ogm", ".rm", ".rmvb", ".mxf", ".gxf", ".wtv", ".dv", ".dif", ".nut", ".y4m"}
    | {".264", ".h264", ".265", ".h265", ".hevc", ".vc1", ".ivf", ".obu"}
)
MAX_GAP = 10.5  # seconds; x264's 250 frames at 23.976 a second are 10.43
MIN_GAP = 1.0  # seconds; some files have nothing but keyframes
STEPS_BACK = (0.0, 2.0, 15.0, 60.0)  # seconds before a place to begin, where seeking is not exact
SHORT_BY = 2.0  # seconds, and 2%: a film that ends so much before its header's time is cut off


@dataclass(frozen=True)
class Frame:
    rgb: np.ndarray  # uint8 [H, W, 3], as a person sees it
    time_ms: int  # since the film's start


@dataclass(frozen=True)
class Sampling:
    """Which frames of a film: its keyframes and some between, or an even grid."""

    every: float | None = None  # seconds; a frame so often instead of keyframes
    max_gap: float = MAX_GAP  # seconds; keyframes further apart get as many frames between as halve the gap
    min_gap: float = MIN_GAP  # seconds; keyframes that follow sooner are passed over
    skip_start: float = 0.0  # seconds
    skip_end: float = 0.0  # seconds


def is_video(name: str | Path) -> bool:
    """Whether a file is a video by its name."""
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


class Video:
    """Frames of one film, in one file or in parts that follow each other: `with Video(path) as video: ...`.

    codec: of the first part. width, height: pixels, as shown. duration: seconds, 0.0 where unknown.
    damage: what could not be read, in words; set when frames(), all_frames() or frames_at() has come to an end.
    """

    def __init__(self, *parts: Path, longest_side: int | None = None, threads: int = 1):
        """Opens each part and decodes its first frame. longest_side: reduce frames to so many pixels.

        threads: of the decoder; keyframes alone are not faster with more. Raises UserError for a file without frames.
        """
        self.damage: str | None = None
        self._longest_side = longest_side
        self._parts = [_Part(Path(part), threads) for part in parts]
        self.codec = self._parts[0].codec
        self.width, self.height = self._parts[0].shown
        known = all(part.duration for part in self._parts)
        self.duration = sum(part.duration for part in self._parts) if known else 0.0

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def frames(self, sampling: Sampling | None = None) -> Iterator[Frame]:
        """The frames that a sampling takes, flat ones included, in time order."""
        sampling = sampling or Sampling()
        end = math.inf
        if sampling.skip_end:
            end = sum(part.length for part in self._parts) - sampling.skip_end
        for part, offset in self._with_offsets():
            if sampling.every:
                found = part.on_grid(sampling.every, offset)
            else:
                found = part.keyframes_and_between(sampling.max_gap, sampling.min_gap)
            for decoded, time in found:
                if offset + time > end:
                    break
                if offset + time >= sampling.skip_start:
                    yield self._finish(decoded, part, offset + time)

    def all_frames(self) -> Iterator[Frame]:
        """Every frame."""
        for part, offset in self._with_offsets():
            for decoded, time in part.read():
                yield self._finish(decoded, part, offset + time)

    def frames_at(self, seconds: Iterable[float]) -> Iterator[Frame]:
        """The first frame at or after each of these times, in time order; one frame once."""
        wanted = sorted(max(0.0, second) for second in seconds)
        for part, offset in self._with_offsets():
            is_last = part is self._parts[-1]
            here = [second for second in wanted if is_last or second < offset + part.length]
            wanted = wanted[len(here) :]
            for decoded, time in part.at([second - offset for second in here]):
                yield self._finish(decoded, part, offset + time)

    def keyframes_at(self, seconds: Iterable[float]) -> Iterator[Frame]:
        """A keyframe near each of these times, decoded alone: quick anywhere in a long film."""
        for second in seconds:
            for part, offset in self._with_offsets():
                if part is self._parts[-1] or second < offset + part.length:
                    for decoded, time in part.keyframe_at(second - offset):
                        yield self._finish(decoded, part, offset + time)
                    break

    def _with_offsets(self) -> Iterator[tuple["_Part", float]]:
        """Each part with the time of its first frame in the film; notes its damage when it has been read."""
        offset = 0.0
        for part in self._parts:
            yield part, offset
            self._note_damage(part, offset)
            if part is not self._parts[-1]:
                offset += part.length

    def _finish(self, decoded, part: "_Part", time: float) -> Frame:
        return Frame(part.to_rgb(decoded, self._longest_side), round(time * 1000))

    def _note_damage(self, part: "_Part", offset: float) -> None:
        if self.damage:
            return
        whole = f" of {to_clock(self.duration)}" if self.duration else ""
        if part.is_cut_off:
            self.damage = f"read up to {to_clock(offset + part.reached)}{whole}; the rest is damaged"
        elif part.lost >= 1:
            self.damage = f"{part.lost:.0f} s from {to_clock(offset + part.lost_from)}{whole} on are damaged"


class _Part:
    """One file of a film. Times are seconds since its first shown frame, frames are av.VideoFrame."""

    def __init__(self, path: Path, threads: int):
        self.path = path
        self.threads = threads
        self.strict = True
        self.reached = 0.0  # time of the last packet that was in order
        self.lost = 0.0  # seconds whose pictures are damaged
        self.lost_from = 0.0  # where that begins
        self.is_cut_off = False
        self._measured = False  # reached is the end
        self._clock_jumped = False
        self._cursor: Reader | None = None  # for frames between keyframes
        self._matrix = UPRIGHT
        first = self._read_first()
        self.shown = shown_size(first.width, first.height, self.aspect)
        if turns_sideways(self._matrix):
            self.shown = self.shown[::-1]

    def _read_first(self):
        """The first frame; sets what the file says of itself. Raises UserError where there is none."""
        for strict in (True, False):  # a file with an error in each picture is better read as players do
            self.strict = strict
            with closing(self._open()) as reader:
                self.codec = reader.codec
                self.aspect = reader.aspect
                self.duration = reader.duration
                self.is_estimate = reader.is_estimate
                first = reader.first(MAX_PACKETS_TO_FIRST)
                if first:
                    frame, self.start = first
                    reader.check_colours(frame)
                    self.to_rgb(frame, longest_side=64)  # fails here rather than at each frame
                    self._matrix = display_matrix(frame)
                    return frame
                reason = reader.why_nothing()
        raise UserError(f"{self.path}: {reason}")

    def to_rgb(self, frame, longest_side: int | None) -> np.ndarray:
        """uint8 [H, W, 3]. Raises UserError for pixels that nothing here knows."""
        from av import FFmpegError

        try:
            return to_rgb(frame, self.aspect, self._matrix, longest_side)
        except (FFmpegError, ValueError) as error:
            name = frame.format.name
            raise UserError(f"{self.path}: pictures of {self.codec} in {name} can't be read ({error})") from None

    def _open(self) -> Reader:
        return Reader(self.path, self.threads, self.strict)

    def close(self) -> None:
        if self._cursor:
            self._cursor.close()
            self._cursor = None

    @property
    def length(self) -> float:
        """Seconds from the first frame to the end; read from the file's end where its header does not say."""
        if self.is_estimate and not self._measured:
            self._measure()
        return max(self.reached, 0.0 if self.is_estimate else self.duration)

    def _measure(self) -> None:
        with closing(self._open()) as reader:
            self.reached = max(self.reached, reader.read_end() - self.start)
        self._measured = True

    def read(self, keys_only: bool = False, min_gap: float = 0.0) -> Iterator[tuple]:
        """(Frame, time) from the start."""
        with closing(self._open()) as reader:
            for frame, time in reader.decode(keys_only, min_gap):
                yield frame, time - self.start
            self._learn(reader)

    def _learn(self, reader: Reader) -> None:
        """What a whole pass tells of the file."""
        self.reached = max(self.reached, reader.reached - self.start)
        self._clock_jumped = reader.clock_jumped
        self.lost = reader.lost
        self.lost_from = (reader.lost_from or 0.0) - self.start
        is_short = not self.is_estimate and self.reached < 0.98 * self.duration - SHORT_BY
        self.is_cut_off = is_short or reader.lost_at_end > SHORT_BY
        self._measured = True

    def on_grid(self, every: float, offset: float) -> Iterator[tuple]:
        """The first frame at or after each multiple of `every` seconds of the film, in which this part is at offset."""
        due = math.ceil(offset / every - 1e-6) * every - offset
        for frame, time in self.read():
            if time >= due - 1e-6:
                yield frame, time
                due = (math.floor((offset + time) / every + 1e-6) + 1) * every - offset

    def keyframes_and_between(self, max_gap: float, min_gap: float) -> Iterator[tuple]:
        """The first frame, keyframes, and where two are further apart than max_gap as many between as halve the gap."""
        before = None
        for frame, time in self.read(keys_only=True, min_gap=min_gap):
            if before is None and time > min_gap:  # the first frame needs one that is not shown, or is not flagged
                yield from self.at([0.0])
                before = 0.0
            if before is not None:
                yield from self._between(before, time, max_gap)
            yield frame, time
            before = time
        if before is None:
            yield from self.at([0.0])
            before = 0.0
        yield from self._between(before, self.length, max_gap)

    def _between(self, start: float, end: float, max_gap: float) -> Iterator[tuple]:
        pieces = 1
        while (end - start) / pieces > max_gap:
            pieces *= 2
        times = [start + (end - start) * piece / pieces for piece in range(1, pieces)]
        for frame, time in self.at(times, key=start):
            if start < time < end:
                yield frame, time

    def at(self, times: list[float], key: float | None = None) -> Iterator[tuple]:
        """The first frame at or after each time, which are in order. key: time of a keyframe before, if known."""
        due = list(times)
        if not due:
            return
        for frame, time in self._read_from(due[0] if key is None else key, due[0]):
            if time < due[0] - 1e-6:
                continue
            yield frame, time
            while due and due[0] <= time + 1e-6:
                due.pop(0)
            if not due:
                return

    def keyframe_at(self, second: float) -> Iterator[tuple]:
        """The keyframe before a time, or else the next; none where the file can't be sought."""
        self._cursor = self._cursor or self._open()
        if self._cursor.seek(self.start + second):
            for frame, time in itertools.islice(self._cursor.decode(keys_only=True), 1):
                yield frame, time - self.start

    def _read_from(self, place: float, due: float) -> Iterator[tuple]:
        """(Frame, time) from a frame on that is not later than due; sought near place, else read from the start."""
        for back in STEPS_BACK:
            if place - back <= 0 or self._clock_jumped:
                break
            self._cursor = self._cursor or self._open()
            if not self._cursor.seek(self.start + place - back):
                break
            frames = self._cursor.decode()
            first = next(frames, None)
            if first and first[1] - self.start <= due + 1e-6:
                yield first[0], first[1] - self.start
                yield from ((frame, time - self.start) for frame, time in frames)
                return
        self.close()
        with closing(self._open()) as reader:
            for frame, time in reader.decode():
                yield frame, time - self.start


def read_duration(path: str | Path) -> float | None:
    """Seconds, from the container's header, without decoding; None for what is no video or does not say."""
    try:
        container, stream = open_video(Path(path))
    except UserError:
        return None
    with closing(container):
        return read_header_duration(container, stream) or None


def to_clock(seconds: float) -> str:
    """1:02:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
