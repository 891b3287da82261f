"""python -m pytest tests/test_video.py

Films that the tests encode themselves with PyAV: of every kind, and damaged.
"""

import os
import random
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from answering.colour import combed_share, tone_map, turn
from answering.console import UserError
from answering.decoding import Reader
from answering.video import Frame, Sampling, Video, is_video, read_duration

av = pytest.importorskip("av")


def picture(number: int, width: int = 192, height: int = 108) -> np.ndarray:
    """A coloured scene that moves to the right with the number; its upper left quarter is bright, uint8 [H, W, 3]."""
    rows, columns = np.mgrid[0:height, 0:width].astype(float)
    red = 128 + 80 * np.sin((columns - 3 * number) / 9)
    green = 60 + 100 * rows / height
    blue = 128 + 60 * np.sin((columns + rows - 2 * number) / 17)
    rgb = np.stack([red, green, blue], axis=2)
    rgb[: height // 4, : width // 4] = 230
    return rgb.clip(0, 255).astype(np.uint8)


def write_video(path: Path, pictures, *, codec="libx264", rate=10, pixel_format="yuv420p", options=None, **settings):
    """Encode RGB pictures. options: of the encoder; settings: stamps, aspect, prepare(stream), context attributes."""
    stamps = settings.pop("stamps", None)
    prepare = settings.pop("prepare", None)
    to_frame = settings.pop("to_frame", None)
    with av.open(str(path), "w", options=settings.pop("container", {})) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.pix_fmt = pixel_format
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for number, rgb in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
            if to_frame:
                frame = to_frame(frame)
            if number == 0:
                stream.width, stream.height = frame.width, frame.height
                if prepare:
                    prepare(stream)
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-9))


def frames_of(path: Path, sampling: Sampling | None = None, **settings) -> list[Frame]:
    with Video(path, **settings) as video:
        return list(video.frames(sampling))


def times_of(path: Path, sampling: Sampling | None = None) -> list[int]:
    return [frame.time_ms for frame in frames_of(path, sampling)]


def film(seconds: float, rate: int = 10, **size) -> list[np.ndarray]:
    return [picture(number, **size) for number in range(round(seconds * rate))]


GOP_20 = {"g": "20", "keyint_min": "20", "sc_threshold": "0", "preset": "veryfast"}

# ---------------------------------------------------------------------------------------------- which frames


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Six seconds, a keyframe every two."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mkv", film(6), options=GOP_20)


def test_keyframes_with_their_times(clip):
    with Video(clip) as video:
        assert (video.codec, video.width, video.height) == ("h264", 192, 108)
        assert video.duration == pytest.approx(6, abs=0.2)
        frames = list(video.frames())
        assert video.damage is None
    assert [frame.time_ms for frame in frames] == [0, 2000, 4000]
    for frame in frames:
        assert psnr(frame.rgb, picture(frame.time_ms // 100)) > 28


def test_gaps_are_halved_until_none_is_too_long(clip):
    assert times_of(clip, Sampling(max_gap=1.0)) == [0, 1000, 2000, 3000, 4000, 5000]
    assert times_of(clip, Sampling(max_gap=0.9)) == list(range(0, 6000, 500))


def test_x264_default_needs_nothing_between(tmp_path):
    """Its keyframes are 250 frames apart, 10.43 s at 23.976 a second."""
    gap = 250 * 1001 / 24000
    assert gap < Sampling().max_gap < 11


def test_grid_and_ends(clip):
    assert times_of(clip, Sampling(every=1.5)) == [0, 1500, 3000, 4500]
    assert times_of(clip, Sampling(every=1, skip_start=1.5, skip_end=2)) == [2000, 3000, 4000]
    assert times_of(clip, Sampling(skip_start=1)) == [2000, 4000]


def test_every_frame_and_frames_at_times(clip):
    with Video(clip) as video:
        assert [frame.time_ms for frame in video.all_frames()] == list(range(0, 6000, 100))
        found = list(video.frames_at([3.0, 0.55, 3.0, 5.9, 99]))
    assert [frame.time_ms for frame in found] == [600, 3000, 5900]
    assert psnr(found[1].rgb, picture(30)) > 28


@pytest.mark.parametrize("suffix", [".ts", ".mpg", ".avi", ".mp4"])
def test_seeking_is_exact_in_every_container(tmp_path, suffix):
    codec = "mpeg2video" if suffix == ".mpg" else "libx264"
    options = {"g": "25"} if suffix == ".mpg" else {**GOP_20, "g": "25"}
    path = write_video(
        tmp_path / f"film{suffix}", film(4, rate=25), codec=codec, rate=25, options=options, bit_rate=10**6
    )
    with Video(path) as video:
        found = list(video.frames_at([0.48, 2.6]))
        assert len(list(video.all_frames())) in (99, 100)  # FFmpeg makes up times for AVI
    assert [frame.time_ms for frame in found] == pytest.approx([480, 2600], abs=41)
    assert psnr(found[1].rgb, picture(round(found[1].time_ms / 40))) > 26


def test_one_keyframe_in_all(tmp_path):
    path = write_video(tmp_path / "one.mkv", film(30, rate=2), rate=2, options={"g": "999", "sc_threshold": "0"})
    times = times_of(path)
    assert times[0] == 0 and max(np.diff([*times, 30000])) <= 10500


def test_nothing_but_keyframes_is_thinned(tmp_path):
    path = write_video(tmp_path / "all.avi", film(3, rate=25), codec="mjpeg", rate=25, pixel_format="yuvj420p")
    assert times_of(path) == [0, 1000, 2000]


def test_refreshes_instead_of_keyframes(tmp_path):
    options = {"x264-params": "intra-refresh=1:keyint=10:scenecut=0:bframes=0"}
    path = write_video(tmp_path / "refresh.mkv", film(4), options=options)
    frames = frames_of(path, Sampling(max_gap=1.0))
    assert len(frames) >= 4
    assert all(psnr(frame.rgb, picture(frame.time_ms // 100)) > 26 for frame in frames)


def test_a_recording_begins_in_the_middle(tmp_path):
    options = {"x264-params": "open-gop=1:keyint=20:min-keyint=20:scenecut=0:bframes=3"}
    whole = write_video(tmp_path / "whole.ts", film(6), options=options)
    cut = tmp_path / "cut.ts"
    data = whole.read_bytes()
    cut.write_bytes(data[len(data) // 188 // 6 * 188 :])
    with Video(cut) as video:
        frames = list(video.all_frames())
    assert frames[0].time_ms == 0
    first = max(range(60), key=lambda number: psnr(frames[0].rgb, picture(number)))
    assert first % 20 == 0
    assert all(psnr(frame.rgb, picture(first + frame.time_ms // 100)) > 26 for frame in frames)


def test_times_of_parts_go_on(tmp_path):
    one = write_video(tmp_path / "cd1.mp4", film(3), options=GOP_20)
    two = write_video(tmp_path / "cd2.mp4", film(3), options=GOP_20)
    with Video(one, two) as video:
        assert video.duration == pytest.approx(6, abs=0.2)
        assert [frame.time_ms for frame in video.frames()] == [0, 2000, 3000, 5000]
        assert [frame.time_ms for frame in video.frames(Sampling(every=2))] == [0, 2000, 4000]
        assert [frame.time_ms for frame in video.frames_at([1, 4])] == [1000, 4000]


# ------------------------------------------------------------------------------------------------------- times


def test_times_where_frames_last_differently(tmp_path):
    stamps = [0, 1, 5, 6, 20, 21, 40]
    path = write_video(tmp_path / "vfr.mkv", film(0.7), options=GOP_20, stamps=stamps)
    with Video(path) as video:
        assert [frame.time_ms for frame in video.all_frames()] == [100 * stamp for stamp in stamps]


def test_a_clock_that_does_not_begin_at_zero(tmp_path):
    path = write_video(tmp_path / "offset.mkv", film(4), options=GOP_20, stamps=[number + 700 for number in range(40)])
    assert times_of(path) == [0, 2000]
    assert read_duration(path) == pytest.approx(4, abs=0.2)


def test_a_clock_that_starts_anew(tmp_path):
    one = write_video(tmp_path / "one.ts", film(4), options=GOP_20).read_bytes()
    path = tmp_path / "two.ts"
    path.write_bytes(one + one)
    times = times_of(path)
    assert times == sorted(times) and len(times) >= 4
    assert times[-1] == pytest.approx(6000, abs=200)


def test_bare_h264_has_no_times(tmp_path):
    path = write_video(tmp_path / "bare.h264", film(4, rate=25), rate=25, options=GOP_20)
    assert times_of(path) == [0, 1600, 3200] or times_of(path) == [0, 800, 1600, 2400, 3200]


# ------------------------------------------------------------------------------------------- as a person sees it


def test_turned_and_mirrored():
    rgb = picture(0)
    assert (turn(rgb, (1, 0, 0, 1)) == rgb).all()
    assert (turn(rgb, (-1, 0, 0, 1)) == rgb[:, ::-1]).all()
    assert (turn(rgb, (0, 1, -1, 0)) == np.rot90(rgb, -1)).all()
    assert (turn(rgb, (0, 1, 1, 0)) == rgb.swapaxes(0, 1)).all()


@pytest.mark.parametrize(
    ("degrees", "mirror", "quarters"), [(90, False, 1), (180, False, 2), (-90, False, 3), (0, True, 0)]
)
def test_display_matrix(tmp_path, degrees, mirror, quarters):
    def prepare(stream):
        stream.set_display_rotation(degrees, hflip=mirror)

    path = write_video(tmp_path / "turned.mp4", film(1), options=GOP_20, prepare=prepare)
    expected = picture(0)[:, ::-1] if mirror else picture(0)
    shown = frames_of(path)[0].rgb
    turned = np.rot90(expected, quarters)
    assert shown.shape == turned.shape
    with Video(path) as video:
        assert (video.height, video.width) == turned.shape[:2]
    assert psnr(shown, turned) > 28


@pytest.mark.parametrize(("aspect", "shown"), [((64, 45), (256, 144)), ((8, 9), (160, 144))])
def test_pixels_that_are_not_square(tmp_path, aspect, shown):
    pictures = film(1, width=180, height=144)
    path = write_video(tmp_path / "sar.mkv", pictures, options=GOP_20, sample_aspect_ratio=Fraction(*aspect))
    assert frames_of(path)[0].rgb.shape == (shown[1], shown[0], 3)
    assert max(frames_of(path, longest_side=64)[0].rgb.shape) == 64


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [
        ("libsvtav1", "yuv420p"),
        ("libx264", "yuv422p10le"),
        ("libx264", "yuv444p"),
        ("libx264", "gray"),
        ("libx265", "yuv420p12le"),
        ("libvpx-vp9", "yuv420p"),
        ("ffv1", "bgr0"),
        ("qtrle", "argb"),
        ("mpeg4", "yuv420p"),
    ],
)
def test_codecs_and_pixels(tmp_path, codec, pixel_format):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec} to make the input with")
    suffix = ".mov" if codec == "qtrle" else ".mkv"
    options = {"libsvtav1": {"preset": "12", "crf": "20"}, "libx265": {"x265-params": "log-level=none:crf=16"}}
    path = write_video(
        tmp_path / f"film{suffix}",
        film(1, width=256, height=144),
        codec=codec,
        pixel_format=pixel_format,
        options=options.get(codec, {}),
        **({} if codec in options else {"bit_rate": 4_000_000}),
    )
    shown = frames_of(path)[0].rgb
    expected = picture(0, 256, 144)
    if pixel_format == "gray":
        expected = np.repeat((expected @ [0.299, 0.587, 0.114])[..., None], 3, axis=2)
    assert psnr(shown, expected) > 26


@pytest.mark.parametrize("matrix", ["ITU601", "ITU709"])
@pytest.mark.parametrize("full", [False, True])
def test_matrix_and_range_are_read_from_tags(tmp_path, matrix, full):
    from av.video.reformatter import ColorRange, Colorspace

    colour_range = ColorRange.JPEG if full else ColorRange.MPEG

    def to_frame(frame):
        frame = frame.reformat(format="yuv444p", dst_colorspace=Colorspace[matrix], dst_color_range=colour_range)
        frame.colorspace = 1 if matrix == "ITU709" else 6
        frame.color_range = colour_range
        return frame

    path = write_video(
        tmp_path / "tags.mkv",
        film(1),
        options={"crf": "8"},
        pixel_format="yuv444p",
        to_frame=to_frame,
        colorspace=1 if matrix == "ITU709" else 6,
        color_range=int(colour_range),
    )
    assert psnr(frames_of(path)[0].rgb, picture(0)) > 35


def weave(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    woven = one.copy()
    woven[1::2] = other[1::2]
    return woven


@pytest.mark.parametrize("flagged", [True, False])
def test_fields_are_taken_apart(tmp_path, flagged):
    size = {"width": 360, "height": 288}
    pictures = [weave(picture(4 * number, **size), picture(4 * number + 2, **size)) for number in range(25)]
    options = {"flags": "+ilme+ildct", "g": "12"} if flagged else {"g": "12"}
    coding = {"codec": "mpeg2video", "pixel_format": "yuv422p", "bit_rate": 8_000_000}
    path = write_video(tmp_path / "fields.ts", pictures, rate=25, options=options, **coding)
    with closing(Reader(path)) as reader:
        raw = next(reader.decode())[0]
        assert combed_share(raw) > 0.05
    for longest_side in (None, 160):
        frames = frames_of(path, Sampling(every=0.2), longest_side=longest_side)
        assert len(frames) == 5
    for frame in frames_of(path, Sampling(every=0.2)):
        number = 4 * frame.time_ms // 40
        assert max(psnr(frame.rgb, picture(number + field, **size)) for field in (0, 2)) > 26


def test_a_progressive_picture_is_not_combed(clip):
    with closing(Reader(clip)) as reader:
        assert all(combed_share(frame) < 0.001 for frame, _ in reader.decode())


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_becomes_sdr(transfer):
    """A grey ramp keeps its order, black stays black, white of SDR (203 nits) gets bright, and contrast is kept."""
    ramp = np.repeat(np.linspace(0, 65535, 256).astype(np.uint16)[None, :, None], 3, axis=2)
    shown = tone_map(ramp, transfer)[0, :, 0].astype(int)
    assert shown[0] == 0 and shown[-1] >= 250
    assert (np.diff(shown) >= 0).all()
    diffuse_white = shown[round(255 * (0.58 if transfer == 16 else 0.75))]
    assert 170 < diffuse_white < 240


def test_hdr_by_its_tags(tmp_path):
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no libx265 to make the input with")
    tags = {"color_trc": 16, "color_primaries": 9, "colorspace": 9}
    options = {"x265-params": "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"}
    pixels = {"codec": "libx265", "pixel_format": "yuv420p10le"}
    grey = [np.full((96, 96, 3), 148, np.uint8)] * 3  # signal 0.58 in PQ is 203 nits
    hdr = frames_of(write_video(tmp_path / "pq.mkv", grey, options=options, **pixels, **tags))[0].rgb
    sdr = frames_of(write_video(tmp_path / "sdr.mkv", grey, options={"x265-params": "log-level=none"}, **pixels))[0].rgb
    assert abs(float(sdr.mean()) - 148) < 4
    assert 170 < hdr.mean() < 240


def test_memory_stays(tmp_path):
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc to read the memory of this process from")
    path = write_video(
        tmp_path / "many.avi", 40 * film(0.2, width=1280, height=720), codec="mjpeg", pixel_format="yuvj420p"
    )
    sizes = []
    with Video(path, longest_side=64) as video:
        for _ in video.all_frames():
            sizes.append(int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    assert len(sizes) == 80
    assert sizes[-1] - sizes[10] < 30_000_000  # all frames are 110 MB


# ----------------------------------------------------------------------------------------- damaged and hostile


def test_cut_off(tmp_path, clip):
    path = tmp_path / "cut.mkv"
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size * 55 // 100])
    with Video(path) as video:
        frames = list(video.frames())
        assert video.damage.startswith("read up to 0:00:0") and "of 0:00:06" in video.damage
    assert [frame.time_ms for frame in frames] in ([0, 2000], [0, 2000, 4000])


def test_damage_in_the_middle_gives_no_garbage(tmp_path, clip):
    data = bytearray(clip.read_bytes())
    rng = random.Random(1)
    for place in range(len(data) * 4 // 10, len(data) * 5 // 10):
        data[place] = rng.randrange(256)
    path = tmp_path / "rot.mkv"
    path.write_bytes(data)
    with Video(path) as video:
        frames = list(video.all_frames())
        assert "damaged" in video.damage
    assert 10 < len(frames) < 60
    assert frames[-1].time_ms == 5900
    assert all(psnr(frame.rgb, picture(frame.time_ms // 100)) > 26 for frame in frames)


def test_mp4_without_its_table(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", film(2))
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"cut\.mp4.*without its table of contents"):
        Video(path)


def test_sound_with_cover_art_is_no_video(tmp_path):
    path = tmp_path / "sound.mka"
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="no video in it"):
        Video(path)
    assert read_duration(path) is None


HOSTILE = {
    "text.mkv": b"not a film",
    "noise.ts": random.Random(2).randbytes(300_000),
    "self.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nself.m3u8\n",
    "self.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nself.mp4\n",
    "list.mkv": b"ffconcat version 1.0\nfile list.mkv\n",
    "radio.mp4": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "empty.mkv": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_video_is_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    with pytest.raises(UserError, match=name):
        Video(path)
    assert read_duration(path) is None


def test_two_gigabytes_of_zeros(tmp_path):
    path = tmp_path / "zeros.ts"
    with open(path, "wb") as file:
        file.truncate(2**31)
    with pytest.raises(UserError, match="zeros"):
        Video(path)


def test_pipes_folders_and_missing_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.mkv")
    for name, reason in (("pipe.mkv", "not a file"), (".", "not a file"), ("gone.mkv", "No such file")):
        with pytest.raises(UserError, match=reason):
            Video(tmp_path / name)


def test_a_playlist_reads_no_other_file(tmp_path, clip):
    (tmp_path / "film.mkv").write_bytes(clip.read_bytes())
    for name, text in (
        ("a.m3u8", "#EXTM3U\n#EXTINF:6,\nfilm.mkv\n"),
        ("b.mkv", "ffconcat version 1.0\nfile film.mkv\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="playlist"):
            Video(tmp_path / name)


def test_a_huge_picture_is_refused_before_it_is_made(tmp_path):
    """By the file's header, and by that of the picture itself."""
    path = write_video(tmp_path / "header.avi", film(0.2), codec="rawvideo", pixel_format="bgr24")
    data = bytearray(path.read_bytes())
    place = data.index(b"strf") + 12  # BITMAPINFOHEADER's width and height
    data[place : place + 8] = 2 * (100_000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"megapixels|not one frame of its rawvideo"):
        Video(path)

    path = write_video(tmp_path / "picture.avi", film(0.2), codec="mjpeg", pixel_format="yuvj420p")
    size = (108).to_bytes(2, "big") + (192).to_bytes(2, "big")
    path.write_bytes(path.read_bytes().replace(size, 2 * (65_500).to_bytes(2, "big")))
    with pytest.raises(UserError, match="not one frame of its mjpeg"):
        Video(path)


def test_names():
    assert is_video("A Film (2001).MKV") and is_video(Path("VTS_01_1.VOB")) and is_video("00000.m2ts")
    assert not is_video("poster.jpg") and not is_video("film.srt") and not is_video("mkv")
