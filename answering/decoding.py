"""One pass over one video file: opened with care, decoded by PyAV, only whole pictures, with times. For video.py."""

import contextlib
import itertools
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from answering.colour import read_side_data
from answering.console import UserError

FORMATS = (  # FFmpeg's demuxers that read one file and nothing else: no playlists, no devices, no lists of files
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,live_flv,ogg,mxf,wtv,rm,nut,dv,gxf,ivf,"
    "h264,hevc,m4v,vc1,vvc,obu,av1,cavsvideo,dirac,yuv4mpegpipe,nsv,nuv,dhav,lxf,ty,pva"
)
CLOCKS_JUMP = ("mpeg", "mpegts")  # formats whose clock may start anew, and whose duration is only an estimate
MAX_PIXELS = 70_000_000  # of a frame; 8192 x 8192 fits
MAX_HOURS = 100  # a longer duration in a header is not believed
MAX_ERRORS = 100  # of the demuxer, in a row
MAX_PACKETS_TO_FIRST = 3000  # without a frame; two minutes of film
READ_TIMEOUT = 60  # seconds that one read of the file may take
JUMP_BACK = 1.0  # seconds; a clock that goes back further has started anew
JUMP_AHEAD = 20.0  # seconds between two packets, likewise
DOLBY_TAGS = ("dvh1", "dvhe", "dav1", "dva1", "dvav")
STILL_CODECS = ("mjpeg", "png", "bmp", "gif", "webp")  # beside another stream these are pictures of chapters
DECODERS = {"libdav1d": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9", "libaom-av1": "av1"}  # names of their codecs


class Reader:
    """Decoded frames of the first real video stream. Times are seconds of the stream's own clock."""

    def __init__(self, path: Path, threads: int = 1, strict: bool = True):
        """strict: a picture with any error in its data is not shown. Raises UserError for what holds no video."""
        self.path = path
        self.container, self.stream = open_video(path)
        self._tick = float(self.stream.time_base)  # seconds; fractions are slow
        context = self.stream.codec_context
        context.thread_count = threads
        context.options = {"max_pixels": str(MAX_PIXELS)}
        if strict:
            context.options = {"max_pixels": str(MAX_PIXELS), "err_detect": "explode"}
        self.codec = DECODERS.get(context.name, context.name)
        self.aspect = _pixel_aspect(self.stream)
        self.duration = read_header_duration(self.container, self.stream)
        self.is_estimate = self.container.format.name in CLOCKS_JUMP or not self.duration
        self.clock_jumped = False
        self.reached = -math.inf  # time of the last packet that was in order
        self.lost = 0.0  # seconds of film whose pictures were dropped
        self.lost_from: float | None = None  # where that began first
        self.error: Exception | None = None
        self._size = os.path.getsize(path)
        self._latest = -math.inf  # time of the last packet
        self._broken_since: float | None = None

    def close(self) -> None:
        self.container.close()

    def seek(self, seconds: float) -> bool:
        """To a place before a time, at a keyframe where the format knows them; False where that fails."""
        import av

        try:
            self.container.seek(math.floor(seconds / self._tick), stream=self.stream)
        except av.FFmpegError:
            return False
        return True

    def first(self, most: int) -> tuple | None:
        """(av.VideoFrame, time) of the first frame; None where so many packets hold none."""
        gate = _Gate(self.stream, keys_only=False)
        times = _FrameTimes(self.stream)
        for packet in itertools.islice(self._packets(), most):
            for found in self._decode_packet(packet, gate, times):
                return found
        return None

    def read_end(self) -> float:
        """Time where the last frame ends, read without decoding."""
        end = -math.inf
        for packet in self._packets():
            start = self._seconds(packet)
            if start is not None:
                end = max(end, start + (packet.duration or 0) * self._tick)
        return end

    def check_colours(self, frame) -> None:
        """Raises UserError for colours that no free decoder knows: Dolby Vision without a layer for other players."""
        tag = self.stream.codec_context.codec_tag
        if frame.color_trc not in (0, 2) or frame.colorspace not in (0, 2):
            return
        side_data = read_side_data(frame)
        if tag in DOLBY_TAGS or "DOVI_METADATA" in side_data or "DOVI_RPU_BUFFER" in side_data:
            raise UserError(
                f"{self.path}: its {self.codec} is Dolby Vision profile 5, whose colours only Dolby decodes"
            )

    def decode(self, keys_only: bool = False, min_gap: float = 0.0) -> Iterator[tuple]:
        """(av.VideoFrame, time) in the order in which they are shown, only whole ones.

        keys_only: only keyframes; min_gap: at least so many seconds apart. Frames that hang on one which is missing or
        damaged are left out: all from an error, or from the place that was sought, to the next keyframe.
        """
        gate = _Gate(self.stream, keys_only)
        packets = self._packets()
        first = next(packets, None)
        if first is None:
            return
        has_times = first.pts is not None or first.dts is not None
        # without times frames are counted, so all must be seen
        self.stream.codec_context.skip_frame = "NONKEY" if keys_only and has_times else "DEFAULT"
        times = _FrameTimes(self.stream)
        skips = keys_only and self.stream.codec_context.codec.intra_only
        latest = -math.inf
        for packet in itertools.chain([first], packets):
            start = self._seconds(packet)
            if skips and packet.size and start is not None and start < latest + min_gap:
                continue  # each picture stands alone, so those between need not be decoded
            for frame, time in self._decode_packet(packet, gate, times):
                if time >= latest + min_gap:
                    latest = time
                    yield frame, time

    def _decode_packet(self, packet, gate: "_Gate", times: "_FrameTimes") -> Iterator[tuple]:
        import av

        if packet.is_keyframe:
            gate.key_stamps.add(packet.pts)
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            self._note_error(error, packet, gate)
            return
        if packet.is_corrupt:
            self._note_error(None, packet, gate)
        for frame in frames:
            time = times.next(frame)
            if gate.lets(frame, time):
                self._note_good(time)
                yield frame, time

    def _note_error(self, error: Exception | None, packet, gate: "_Gate") -> None:
        self.error = error or self.error
        if gate.keys_only and not packet.is_keyframe:
            return
        gate.shut(packet)
        start = self._seconds(packet)
        if self._broken_since is None and gate.opened and start is not None:
            self._broken_since = start
            if self.lost_from is None:
                self.lost_from = start

    def _note_good(self, time: float) -> None:
        self.reached = max(self.reached, time)
        if self._broken_since is not None:
            self.lost += max(0.0, time - self._broken_since)
            self._broken_since = None

    def _seconds(self, packet) -> float | None:
        """When a packet's frame is shown."""
        stamp = packet.pts if packet.pts is not None else packet.dts
        return None if stamp is None else stamp * self._tick

    @property
    def lost_at_end(self) -> float:
        """Seconds from the last whole picture to the last packet, where an error lies between."""
        return 0.0 if self._broken_since is None else self._latest - self._broken_since

    def _packets(self) -> Iterator:
        """The stream's packets with a clock that only goes on, and a last empty one, which makes the decoder finish."""
        import av

        packets = self.container.demux(self.stream)
        clock = _Clock(self.stream, self.container.format.name)
        errors = 0
        bytes_left = 4 * self._size + 2**26  # a file that makes its packets share their bytes ends here
        while errors < MAX_ERRORS and bytes_left > 0:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                errors += 1
                self.error = error
                packets = self.container.demux(self.stream)
                continue
            except IndexError:  # of a stream that began later, as recordings have them; PyAV does not know it
                bytes_left -= 188
                packets = self.container.demux(self.stream)
                continue
            errors = 0
            bytes_left -= max(packet.size, 16)
            if packet.pos is not None and packet.pos > self._size:  # the file grows while it is read
                return
            clock.set(packet)
            self.clock_jumped = self.clock_jumped or clock.jumped
            start = self._seconds(packet)
            if start is not None:
                self._latest = max(self._latest, start)
            if start is not None and not packet.is_corrupt and self._broken_since is None:
                self.reached = max(self.reached, start)
            yield packet

    def why_nothing(self) -> str:
        """Why not a single frame came."""
        tag = self.stream.codec_context.codec_tag
        if tag in ("encv", "drmi"):
            return "encrypted; nothing but its shop's player can open it"
        reason = "there is no whole picture in it"
        if self.error is not None and getattr(self.error, "strerror", None):
            reason = self.error.strerror[:1].lower() + self.error.strerror[1:]
        return f"not one frame of its {self.codec} video can be decoded ({reason})"


class _Gate:
    """Keeps back frames that cannot be whole: before the first keyframe, and from an error to the next keyframe."""

    def __init__(self, stream, keys_only: bool):
        self.keys_only = keys_only
        self.opened = False  # a frame came through
        # FFmpeg's H.264 knows itself from where on frames are whole, also where there are no keyframes but refreshes
        self._waiting = stream.codec_context.name != "h264"
        self._from = -math.inf  # time of the keyframe; frames shown before it hang on what came earlier
        self.key_stamps: set[int | None] = set()  # of packets that the file calls keyframes
        self._bad: set[int | None] = set()

    def shut(self, packet) -> None:
        self._bad.add(packet.pts)
        if self.opened:
            self._waiting = True

    def lets(self, frame, time: float) -> bool:
        if frame.is_corrupt or (frame.pts is not None and frame.pts in self._bad):
            return False
        is_key = self._is_key(frame)
        if self.keys_only and not is_key:
            return False
        if self._waiting:
            if not is_key:
                return False
            self._waiting = False
            self._from = time
        elif not self.opened and is_key:
            self._from = time
        if time < self._from:
            return False
        self.opened = True
        return True

    def _is_key(self, frame) -> bool:
        """Whether a frame needs no other. A refresh spread over frames is flagged too, but its type is not I."""
        from av.video.frame import PictureType

        if frame.pict_type in (PictureType.P, PictureType.B):
            return False
        return frame.key_frame or (frame.pts is not None and frame.pts in self.key_stamps)


class _FrameTimes:
    """When each frame is shown, seconds: by its own stamp, its packet's order, or by counting."""

    def __init__(self, stream):
        self._tick = float(stream.time_base)
        self._step = _frame_seconds(stream)
        self._count = 0
        self._latest_pts = -math.inf
        self._latest_dts = -math.inf
        self._faulty_pts = 0
        self._faulty_dts = 0

    def next(self, frame) -> float:
        """AVI has no times of showing; FFmpeg makes them up, out of order where frames are. Then the other is taken.

        After libavcodec's guess_correct_pts.
        """
        self._count += 1
        pts, dts = frame.pts, frame.dts
        if dts is not None:
            self._faulty_dts += dts <= self._latest_dts
            self._latest_dts = dts
        if pts is not None:
            self._faulty_pts += pts <= self._latest_pts
            self._latest_pts = pts
        stamp = pts
        if pts is None or (dts is not None and self._faulty_pts > self._faulty_dts):
            stamp = dts
        if stamp is None:
            return (self._count - 1) * self._step
        return stamp * self._tick


class _Clock:
    """Shifts the times of packets where a recording's or a disc's clock starts anew, so that it only goes on."""

    def __init__(self, stream, format_name: str):
        self.jumped = False
        self._jumps = format_name in CLOCKS_JUMP
        self._tick = float(stream.time_base)
        self._step = _frame_seconds(stream)
        self._latest: float | None = None  # seconds, as shifted
        self._shift = 0  # ticks

    def set(self, packet) -> None:
        if not packet.size or not self._jumps or packet.dts is None:
            return
        seconds = (packet.dts + self._shift) * self._tick
        if self._latest is not None and not -JUMP_BACK < seconds - self._latest < JUMP_AHEAD:
            self._shift += round((self._latest + self._step - seconds) / self._tick)
            self.jumped = True
        packet.dts += self._shift
        if packet.pts is not None:
            packet.pts += self._shift
        self._latest = packet.dts * self._tick


def open_video(path: Path):
    """(PyAV container, its first real video stream). Raises UserError."""
    av = _import_av()
    _check_file(path)
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": FORMATS,
        "max_pixels": str(MAX_PIXELS),
    }
    try:
        container = av.open(f"file:{path}", options=options, timeout=READ_TIMEOUT, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: not a video that can be read ({_explain(path, reason)})") from None
    try:
        return container, _find_stream(container, path)
    except UserError:
        container.close()
        raise


def _import_av():
    try:
        import av
    except ImportError:
        raise UserError("videos are read by PyAV, which is not installed: pip install av") from None
    return av


def _check_file(path: Path) -> None:
    """Raises UserError for what is no file with something in it: reading a pipe could wait forever."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a file")
    if not status.st_size:
        raise UserError(f"{path}: the file is empty")


def _explain(path: Path, reason: str) -> str:
    """What FFmpeg's words mean for this file."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \r\n")
        if start[4:8] in (b"ftyp", b"mdat", b"wide", b"free") and "nvalid data" in reason:
            return "an MP4 without its table of contents, cut off or not yet whole"
        if start.startswith((b"#EXTM3U", b"ffconcat", b"v=0", b"<?xml", b"[playlist]")):
            return "a playlist; give the files that it names"
        if not start.strip(b"\0"):
            return "it holds zeros where a video begins"
    if "nvalid" in reason:
        return "its content is no kind of video that is known here"
    return reason


def _find_stream(container, path: Path):
    """The first video stream that is not cover art. Raises UserError."""
    from av.stream import Disposition

    art = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & art]
    streams.sort(key=lambda stream: stream.codec_context is not None and stream.codec_context.name in STILL_CODECS)
    if not streams:
        raise UserError(f"{path}: no video in it")
    for stream in streams:
        context = stream.codec_context
        if context is not None and context.codec is not None:
            break
    else:
        raise UserError(f"{path}: nothing here decodes its video codec ({_codec_tag(streams[0])})")
    if context.width * context.height > MAX_PIXELS:
        size = f"{context.width}x{context.height}"
        raise UserError(f"{path}: {size} is more than {MAX_PIXELS // 1_000_000} megapixels")
    return stream


def _codec_tag(stream) -> str:
    tag = getattr(stream, "codec_tag", None)
    return str(tag) if tag else "unknown"


def _pixel_aspect(stream) -> float:
    """Width / height of one pixel; 1.0 where the file says nothing that can be."""
    aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    return aspect if 0.2 <= aspect <= 5 else 1.0


def read_header_duration(container, stream) -> float:
    """Seconds from first to last frame as the header says, 0.0 where it does not."""
    seconds = 0.0
    tagged = _parse_clock(stream.metadata.get("DURATION", ""))
    if stream.duration:
        seconds = float(stream.duration * stream.time_base)
    elif tagged or container.duration:
        seconds = tagged or container.duration / 1_000_000
        if "matroska" in container.format.name and (container.start_time or 0) > 0:
            seconds -= container.start_time / 1_000_000  # its header counts from 0, not from the first frame
    return seconds if 0 < seconds < MAX_HOURS * 3600 else 0.0


def _parse_clock(text: str) -> float:
    """Seconds of 01:02:03.456, as Matroska's tags have it; 0.0 for anything else."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return 0.0


def _frame_seconds(stream) -> float:
    """How long a frame is shown, by the stream's rate."""
    return 1 / float(stream.average_rate or stream.guessed_rate or 25)
