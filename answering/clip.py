"""A clip as a question: frames of a video or an animation that are not flat, which vote for one film and one moment."""

import contextlib
import io
import math
import os
import random
import stat
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL.Image import open as open_image

from answering import formats
from answering.console import UserError, format_clock
from answering.flat import is_flat
from answering.model import TOO_LITTLE, Answer, Identifier, milliseconds_since
from answering.pictures import IMAGE_SUFFIXES, read_image
from answering.screenshots import cut_still

MAX_FRAMES = 24  # that are asked of a clip
SHORT_SECONDS = 30.0  # a clip so short is decoded from start to end; of a longer one keyframes are sought
LONGEST_SIDE = 896  # pixels of a frame as it is asked: four times what most models take, for bars and screenshots
READ_SECONDS = 20.0  # then the frames that were read until then are asked
ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")  # other formats of several pictures hold pages, or one picture twice
FRAME_MS = 100  # of an animation that does not say how long a frame is shown, as browsers have it


@dataclass(frozen=True)
class Clip:
    """Frames of a clip in order of time, none of them flat."""

    pictures: list[np.ndarray]  # RGB uint8 [H, W, 3]
    time_ms: list[int]  # of each, since the clip's start
    length_ms: int
    damage: str | None = None  # what could not be read, in words

    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> "Clip":
        """The clip with each picture changed, such as cut or mirrored; those that are flat then are left out."""
        pictures = [change(rgb) for rgb in self.pictures]
        shown = [place for place, rgb in enumerate(pictures) if not is_flat(rgb)]
        return replace(
            self, pictures=[pictures[place] for place in shown], time_ms=[self.time_ms[place] for place in shown]
        )

    def picture_at(self, time_ms: int) -> np.ndarray:
        """The picture nearest to a time."""
        nearest = min(range(len(self.time_ms)), key=lambda place: abs(self.time_ms[place] - time_ms))
        return self.pictures[nearest]


@dataclass(frozen=True)
class Question:
    """What a file turned out to be: a picture, or a clip."""

    picture: np.ndarray | None  # RGB uint8 [H, W, 3]
    clip: Clip | None
    ms: float  # time for reading

    def shown(self, answer: Answer) -> np.ndarray | None:
        """The picture to show beside the proof of an answer: of a clip, the one at that moment; None if it has none."""
        if self.clip is None or not self.clip.pictures:
            return self.picture
        proof = answer.candidates[0].evidence if answer.candidates else None
        if proof is None or proof.time_ms is None:
            return self.clip.picture_at(self.clip.length_ms // 2)
        return self.clip.picture_at(proof.time_ms - proof.from_ms)


# ------------------------------------------------------------------------------------------------ reading


def read_question(
    source: str | bytes, draft: int | None = None, *, most: int = MAX_FRAMES, seconds: float = READ_SECONDS
) -> Question:
    """A picture, an animation or a video, by what the file holds; source: its path or bytes.

    draft: as read_image takes it; most: frames of a clip; seconds: see read_video. Raises UserError.
    """
    start = time.perf_counter()
    picture = clip = None
    if is_named_video(source):
        clip = read_video(Path(source), most=most, seconds=seconds)
    else:
        clip = read_animation(source, most=most, seconds=seconds)
    if clip is None:
        try:
            picture = read_image(source, draft)
        except UserError as error:
            clip = read_nameless(source, error, most=most, seconds=seconds)
    return Question(picture, clip, milliseconds_since(start))


def is_named_video(source: str | bytes) -> bool:
    """Whether a path ends as that of a video."""
    from answering.video import is_video

    return not isinstance(source, bytes) and is_video(source)


def read_nameless(source: str | bytes, trouble: UserError, *, most: int, seconds: float) -> Clip:
    """A video in bytes, or in a file that is not named like one; for what is none, raises trouble."""
    if not isinstance(source, bytes) and Path(source).suffix.lower() in IMAGE_SUFFIXES:
        raise trouble
    if isinstance(source, bytes) and not 0 < len(source) <= formats.MAX_BYTES:
        raise trouble
    try:
        if not isinstance(source, bytes):
            return read_video(Path(source), most=most, seconds=seconds)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "clip")
            path.write_bytes(source)
            return read_video(path, most=most, seconds=seconds)
    except UserError:
        raise trouble from None


def read_video(path: Path, *, most: int = MAX_FRAMES, seconds: float = READ_SECONDS) -> Clip:
    """Up to so many frames of a video file that are not flat, spread over the whole of it.

    seconds: when so many have passed, it is what was read until then. Raises UserError for what is no video.
    """
    from answering.video import Video

    deadline = time.monotonic() + seconds
    with Video(path, longest_side=LONGEST_SIDE) as video:
        if video.duration > SHORT_SECONDS:
            frames = seek_frames(video.keyframes_at, video.duration, most, deadline)
            if len(frames) < most / 2:  # few keyframes: what lies between costs the decoding of all before it
                frames += seek_frames(video.frames_at, video.duration, most - len(frames), deadline)
                frames.sort(key=lambda frame: frame.time_ms)
        else:
            frames = read_through(video, most, deadline)
        length = max([video.duration, *(frame.time_ms / 1000 for frame in frames)])
        chosen = spread(frames, most)
        pictures = [frame.rgb for frame in chosen]
        return Clip(pictures, [frame.time_ms for frame in chosen], round(1000 * length), video.damage)


def read_through(video, most: int, deadline: float) -> list:
    """Frames of a short clip that are not flat; twice as many as are wanted, where all are shown."""
    from answering.video import Sampling

    every = (video.duration or SHORT_SECONDS) / (2 * most)
    found = []
    for frame in video.frames(Sampling(every=every)):
        if not is_flat(frame.rgb):
            found.append(frame)
        if time.monotonic() > deadline:
            break
    return found


def seek_frames(seek: Callable, duration: float, most: int, deadline: float) -> list:
    """Frames of a long film that are not flat, from all of it, in order of time.

    seek: from a list of seconds to the frames there, as keyframes_at and frames_at of a Video.
    """
    found = {}
    for place in spread_places(most):
        if len(found) == most or time.monotonic() > deadline:
            break
        for frame in seek([place * duration]):
            if not is_flat(frame.rgb):
                found[frame.time_ms] = frame
    return [found[moment] for moment in sorted(found)]


def spread_places(count: int) -> list[float]:
    """Places between 0 and 1: so many, evenly spread, then those between them.

    They come in random order, so that whoever stops early has seen something of the whole.
    """
    first = [(place + 0.5) / count for place in range(count)]
    between = [place / count for place in range(1, count)]
    order = random.Random(13)
    return order.sample(first, len(first)) + order.sample(between, len(between))


def spread(frames: list, most: int) -> list:
    """At most so many of a list, evenly."""
    if len(frames) <= most:
        return frames
    return [frames[math.floor((place + 0.5) * len(frames) / most)] for place in range(most)]


def read_animation(source: str | bytes, *, most: int = MAX_FRAMES, seconds: float = READ_SECONDS) -> Clip | None:
    """Up to so many frames of a GIF, WebP, APNG or AVIF that are not flat; None for what is no animation.

    A frame that can't be read ends it. seconds: as read_video takes it.
    """
    if not isinstance(source, bytes) and not 0 < file_size(source) <= formats.MAX_BYTES:
        return None  # read_image says why
    deadline = time.monotonic() + seconds
    frames = []
    now = 0
    with contextlib.suppress(Exception), warnings.catch_warnings():  # Pillow's plugins raise anything on hostile bytes
        warnings.simplefilter("ignore")
        with open_image(io.BytesIO(source) if isinstance(source, bytes) else source, formats=ANIMATIONS) as image:
            if not getattr(image, "is_animated", False):
                return None
            every = max(1, image.n_frames // (2 * most))
            for number in range(image.n_frames):
                image.seek(number)
                rgb = read_image(image.copy(), LONGEST_SIDE // 2) if number % every == 0 else None
                if rgb is not None and not is_flat(rgb):
                    frames.append((rgb, now))
                now += round(image.info.get("duration") or FRAME_MS)
                if time.monotonic() > deadline:
                    break
    if not now:
        return None
    chosen = spread(frames, most)
    return Clip([rgb for rgb, _ in chosen], [time_ms for _, time_ms in chosen], now)


def file_size(path: str | Path) -> int:
    """Bytes of a file, 0 for what is none: reading a pipe could wait forever."""
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0


# ----------------------------------------------------------------------------------------------- answering


def identify_clip(identifier: Identifier, clip: Clip, top: int = 3) -> Answer:
    """One answer for all frames of a clip, with from and to of the whole clip where they agree on a moment.

    As Identifier.identify does for a picture, it looks at the stills inside screenshots where the whole is unknown.
    """
    start = time.perf_counter()
    answer = look_at_clip(identifier, clip, top)
    if answer.kind == "unknown" and clip.pictures:
        stills = clip.changed(cut_still)
        if sum(rgb.size for rgb in stills.pictures) < sum(rgb.size for rgb in clip.pictures) and stills.pictures:
            answer = replace(look_at_clip(identifier, stills, top), look="still")
    return replace(answer, ms=milliseconds_since(start))


def look_at_clip(identifier: Identifier, clip: Clip, top: int = 3) -> Answer:
    """One answer for the frames of a clip as they are; unknown, with a reason, where there are none."""
    start = time.perf_counter()
    if not clip.pictures:
        return Answer("unknown", [], milliseconds_since(start), reason=TOO_LITTLE, frames=0)
    outputs = identifier.run_each(clip.pictures)
    answer = identifier.answer_together(outputs, top, time_ms=np.array(clip.time_ms), length_ms=clip.length_ms)
    return replace(answer, ms=milliseconds_since(start))


def describe_clip(answer: Answer) -> str:
    """What an answer says beyond the film: "; from 12 frames, seen 0:41:10 to 0:41:20"; "" for a single picture."""
    if answer.frames is None:
        return ""
    text = f"; from {answer.frames} frame{'s' * (answer.frames != 1)}"
    proof = answer.candidates[0].evidence if answer.kind == "movie" else None
    if proof and proof.from_ms is not None:
        text += f", seen {format_clock(proof.from_ms / 1000)} to {format_clock(proof.to_ms / 1000)}"
    return text
