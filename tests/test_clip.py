"""python -m pytest tests/test_clip.py"""

import copy
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import draw_frame, read_pair
from PIL import Image
from strange_reader import hang_or_crash
from test_index import write_film, write_model

import identify
import index
from answering import clip, reading
from answering.alignment import align, find_tolerance
from answering.clip import Clip, describe_clip, identify_clip, read_animation, read_question, read_video, spread_places
from answering.collection import Index
from answering.console import UserError
from answering.model import Answer, Identifier
from telegram_bot import worker

av = pytest.importorskip("av", reason="videos are read by PyAV: pip install av")
ROOT = Path(identify.__file__).parent
FILM = "Film 2 (1992)"
SHOT_SECONDS = 6  # of write_film


def write_clip(path: Path, pictures: list[Image.Image], *, rate: int = 4, gop: int = 12) -> Path:
    """A video of pictures, so many a second, with a keyframe at least every gop frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": str(gop), "crf": "18", "preset": "ultrafast"}
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            frame.pts = number
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut_film(film: int, start: int, seconds: int, rate: int = 4) -> list[Image.Image]:
    """Pictures of a film of write_film, so many a second."""
    pictures = []
    for number in range(seconds * rate):
        second = start + number // rate
        pictures.append(draw_frame(film, second // SHOT_SECONDS, second % SHOT_SECONDS))
    return pictures


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "export", 8)


@pytest.fixture(scope="module")
def made(model, tmp_path_factory) -> Path:
    """An index of five films of 48 seconds, a still a second."""
    root = tmp_path_factory.mktemp("raw")
    for film in range(5):
        write_film(root / f"Film {film} ({1990 + film})", film, range(8))
    path = tmp_path_factory.mktemp("made") / "index.sqlite"
    assert index.main(["add", str(root), "--model", str(model), "--index", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def identifier(made, model) -> Identifier:
    identifier = Identifier(model)
    identifier.index = Index(made, identifier)
    return identifier


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """Seconds 13 to 31 of film 2."""
    return write_clip(tmp_path_factory.mktemp("scene") / "unknown.mkv", cut_film(2, 13, 18))


# ------------------------------------------------------------------------------------------------ reading


def test_frames_are_spread_over_a_clip_and_none_is_flat(tmp_path):
    black = Image.new("RGB", (240, 136))
    path = write_clip(tmp_path / "a.mp4", [black] * 12 + cut_film(0, 0, 12) + [black] * 12)
    found = read_video(path, most=6)
    assert len(found.pictures) == len(found.time_ms) == 6 and found.length_ms == pytest.approx(18_000, abs=300)
    assert found.time_ms == sorted(found.time_ms) and min(found.time_ms) >= 3000 and max(found.time_ms) < 15_000
    assert np.ptp(found.time_ms) > 8000
    nothing = read_video(write_clip(tmp_path / "b.mp4", [black] * 12))
    assert nothing.pictures == [] and nothing.length_ms >= 2000


def test_a_long_film_is_sought_and_not_decoded_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "SHORT_SECONDS", 10.0)
    path = write_clip(tmp_path / "a.mkv", cut_film(1, 0, 48), gop=4)
    monkeypatch.setattr(clip, "read_through", lambda *_: pytest.fail("it was read through"))
    found = read_video(path, most=8)
    assert len(found.pictures) == 8 and found.time_ms == sorted(set(found.time_ms))
    gaps = np.diff([0, *found.time_ms, found.length_ms])
    assert max(gaps) <= 7500  # beginning, middle and end


def test_a_long_film_of_one_keyframe_gives_frames_too(tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "SHORT_SECONDS", 10.0)
    path = write_clip(tmp_path / "a.mkv", cut_film(1, 0, 24), gop=1000)
    assert len(read_video(path, most=6).pictures) >= 5


def test_reading_stops_in_time_with_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "SHORT_SECONDS", 10.0)
    path = write_clip(tmp_path / "a.mkv", cut_film(1, 0, 48), gop=4)
    assert len(read_video(path, most=8, seconds=-1).pictures) <= 1


@pytest.mark.parametrize("count", [1, 2, 6, 24])
def test_places_cover_a_film_evenly(count):
    places = spread_places(count)
    assert sorted(places[:count]) == pytest.approx([(place + 0.5) / count for place in range(count)])
    assert len(set(places)) == 2 * count - 1 and all(0 < place < 1 for place in places)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_animations_are_clips_with_their_times(tmp_path, form):
    black = Image.new("RGB", (240, 136))
    pictures = [black, black, *(draw_frame(3, shot, 0) for shot in range(4)), black]
    path = tmp_path / f"a.{form.lower()}"
    pictures[0].save(path, form, save_all=True, append_images=pictures[1:], duration=500, loop=0)
    question = read_question(str(path))
    assert question.picture is None
    assert question.clip.time_ms == [1000, 1500, 2000, 2500] and question.clip.length_ms == 3500
    for seen, meant in zip(question.clip.pictures, pictures[2:], strict=False):
        assert np.abs(seen.astype(int) - np.asarray(meant)).mean() < 15
    assert read_animation(path.read_bytes()).time_ms == question.clip.time_ms


def test_pictures_are_no_clips_and_files_that_are_neither_say_so(tmp_path, scene):
    draw_frame(0, 0, 0).save(tmp_path / "a.png")
    draw_frame(0, 0, 0).save(tmp_path / "a.tiff", save_all=True, append_images=[draw_frame(0, 1, 0)])  # two pages
    for name in ("a.png", "a.tiff"):
        question = read_question(str(tmp_path / name))
        assert question.clip is None and question.picture.shape == (136, 240, 3)
    for name in ("a.jpg", "a.txt", "a.gif"):
        (tmp_path / name).write_bytes(b"GIF89a no image")
        with pytest.raises(UserError, match="not an image"):
            read_question(str(tmp_path / name))
    (tmp_path / "a.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(UserError, match=r"a\.mp4"):
        read_question(str(tmp_path / "a.mp4"))
    os.mkfifo(tmp_path / "pipe.gif")
    with pytest.raises(UserError, match="not a file"):
        read_question(str(tmp_path / "pipe.gif"))
    # a video without its suffix, and one from stdin
    nameless = tmp_path / "download"
    nameless.write_bytes(scene.read_bytes())
    assert read_question(str(nameless)).clip.length_ms == read_question(scene.read_bytes()).clip.length_ms > 17_000


# ---------------------------------------------------------------------------------------------- the moment


def drawn_similarity(offset: int, time_ms: np.ndarray, stills_ms: np.ndarray) -> np.ndarray:
    """Similarities [N, n] of a clip from that offset: the nearer in time, the more alike."""
    apart = np.abs(offset + time_ms[:, None] - stills_ms)
    return np.exp(-apart / 4000.0)


@pytest.mark.parametrize("speed", [1.0, 25 / 24, 24 / 25])
def test_frames_agree_on_one_offset_though_some_see_other_scenes(speed):
    rng = np.random.default_rng(1)
    stills_ms = np.cumsum(rng.integers(2000, 10_000, 400))
    time_ms = np.sort(rng.integers(0, 600_000, 24))
    offset = 700_000
    similarity = drawn_similarity(offset, time_ms * speed, stills_ms)
    similarity[:, rng.integers(0, 400, 40)] += 0.2
    similarity[::4] = rng.random((6, 400))  # these see anything
    found = align(similarity, time_ms, stills_ms, stills_ms)
    assert abs(found.offset_ms - offset) < 10_000 and found.speed == speed
    assert found.is_agreed and found.agreeing >= 14 and found.stills >= 12
    assert abs(found.place(300_000) - (offset + speed * 300_000)) < 10_000


def test_a_clip_of_another_film_agrees_on_nothing():
    rng = np.random.default_rng(2)
    stills_ms = np.arange(0, 7_000_000, 5000)
    time_ms = np.arange(0, 240_000, 10_000)
    found = align(rng.random((24, len(stills_ms))), time_ms, stills_ms, stills_ms)
    assert not found.is_agreed
    assert align(rng.random((24, 9)), time_ms, np.full(9, -1), np.full(9, -1)) is None  # no times


def test_the_tolerance_is_how_far_apart_the_stills_lie():
    for gap, wanted in ((500, 2000), (4000, 4000), (60_000, 15_000)):
        moments = np.arange(10) * (gap + 1000)
        assert find_tolerance(moments, moments + 1000) == wanted
    assert find_tolerance(np.zeros(1), np.zeros(1)) == 2000


def test_a_clip_is_named_with_from_and_to(identifier, scene):
    answer = identify_clip(identifier, read_video(scene))
    best = answer.candidates[0]
    assert answer.kind == "movie" and best.title == FILM and answer.frames == 24
    assert best.evidence.from_ms == pytest.approx(13_000, abs=1500)
    assert best.evidence.to_ms == pytest.approx(31_000, abs=1500)
    assert 12_000 <= best.evidence.time_ms <= 31_000 and best.evidence.similarity > 0.9
    assert describe_clip(answer).startswith("; from 24 frames, seen 0:00:1") and " to 0:00:3" in describe_clip(answer)
    assert answer.as_dict()["frames"] == 24


def test_a_clip_of_one_frame_is_asked_as_a_picture_is(identifier, scene):
    found = read_video(scene, most=1)
    alone = identifier.identify(found.pictures[0])
    answer = identify_clip(identifier, found)
    assert [c.title for c in answer.candidates] == [c.title for c in alone.candidates]
    assert answer.candidates[0].evidence == alone.candidates[0].evidence and answer.frames == 1


def test_nothing_but_flat_frames_belongs_to_no_film(identifier):
    answer = identify_clip(identifier, Clip([], [], 4000))
    assert answer.kind == "unknown" and answer.reason == "too little in the picture" and answer.frames == 0
    assert answer.as_dict() | {"ms": 0} == {
        "kind": "unknown",
        "candidates": [],
        "ms": 0,
        "reason": "too little in the picture",
        "frames": 0,
    }
    assert describe_clip(answer) == "; from 0 frames"


def test_a_clip_that_mixes_films_is_not_named(identifier, tmp_path):
    mixed = write_clip(tmp_path / "best_of.mp4", cut_film(0, 3, 9) + cut_film(3, 20, 6) + cut_film(4, 3, 6))
    answer = identify_clip(identifier, read_video(mixed))
    assert answer.kind != "movie"


def test_a_classifier_answers_for_a_clip_by_the_mean(identifier):
    frames = iter(np.eye(3)[[0, 0, 1]] * 0.9)
    decision = {"movie": 0.6, "shortlist": 0.5}

    def run(batch):
        row = next(frames)[None]
        return {"probabilities": row, "known": row.max(1), "logits": row, "embedding": row}

    classifier = copy.copy(identifier)
    classifier.index = None
    classifier.classes = ["A", "B", "C"]
    classifier.contract = SimpleNamespace(decision=decision)
    classifier.run = run
    pictures = [np.asarray(draw_frame(0, shot, 0)) for shot in range(3)]
    answer = identify_clip(classifier, Clip(pictures, [0, 1000, 2000], 3000))
    assert answer.kind == "movie" and answer.frames == 3
    assert [(c.title, round(c.confidence, 5), c.evidence) for c in answer.candidates] == [
        ("A", 0.6, None),
        ("B", 0.3, None),
        ("C", 0.0, None),
    ]


def test_the_bot_s_worker_answers_for_a_clip(identifier, scene, monkeypatch):
    monkeypatch.setattr(worker, "model", identifier, raising=False)
    answer = worker.name_film([str(scene)])
    assert answer["kind"] == "movie" and answer["frames"] == worker.CLIP_FRAMES
    assert answer["candidates"][0]["title"] == FILM
    mirrored = worker.name_film([str(scene)], "mirror")
    assert mirrored["frames"] == worker.CLIP_FRAMES
    assert mirrored["candidates"][0]["evidence"] != answer["candidates"][0]["evidence"]


# ----------------------------------------------------------------------------------------- the command line


def run_script(*argv, **more) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "identify.py", *map(str, argv)], cwd=ROOT, capture_output=True, **more)


def test_a_video_gets_one_answer_on_the_command_line(made, model, scene, tmp_path):
    sheet = tmp_path / "proof.png"
    where = ["--model", model, "--index", made]
    done = run_script(scene, *where, "--json", "--evidence", sheet, text=True)
    assert done.returncode == 0 and done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["kind"] == "movie" and answer["frames"] == 24 and answer["candidates"][0]["title"] == FILM
    frame, proof = read_pair(sheet)
    assert frame.std() > 10 and np.abs(frame - proof).mean() < 25  # a frame of the clip, and the still of that moment
    done = run_script("-", *where, input=scene.read_bytes())
    assert f"{FILM}  (" in done.stdout.decode() and "; from 24 frames, seen 0:00:1" in done.stdout.decode()


def test_without_pyav_one_line_says_what_to_install(model, made, scene, monkeypatch, capsys):
    monkeypatch.setattr(identify, "ReadingPool", SimpleReader)
    monkeypatch.setitem(sys.modules, "av", None)
    assert identify.main([str(scene), "--model", str(model), "--index", str(made)]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "pip install av" in error


class SimpleReader:
    """A ReadingPool in this process."""

    def __init__(self, function):
        self.read = function

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_a_file_that_hangs_or_crashes_its_reader_costs_no_other(identifier, tmp_path, monkeypatch):
    files = []
    for name in ("a.png", "hang.png", "crash.png", "b.png"):
        draw_frame(2, 3, 0).save(tmp_path / name)
        files.append(str(tmp_path / name))
    with reading.ReadingPool(hang_or_crash) as reader:
        results = identify.identify_files(identifier, reader, files)
        first = next(results)
        monkeypatch.setattr(reading, "MAX_SECONDS", 1.0)
        hung = next(results)
        monkeypatch.setattr(reading, "MAX_SECONDS", 60.0)
        crashed, last = results
    assert isinstance(first.answer, Answer) and isinstance(last.answer, Answer)
    assert "hang.png: took over 1 seconds" in str(hung.answer) and "crash.png" in str(crashed.answer)
