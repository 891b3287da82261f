"""Films into an index: the two commands of before, over JPEGs on the disk, beside index.py add. For bench.py.

python bench.py shelf film.mkv --model export                           # x real time, seconds by part
python bench.py shelf film.mkv --ask --gaps 3,5 --beside data/raw       # and what frames at random moments find
"""

import contextlib
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import answering.video
from answering.adding import LONGEST_SIDE
from answering.collection import INDEX, Index, fingerprint
from answering.console import UserError
from answering.editing import finish, open_to_add, store_film
from answering.embedding import FilmEmbedder, Picture
from answering.flat import is_flat
from answering.model import Identifier
from answering.pictures import read_image
from answering.state import Film
from answering.stills import Still
from answering.store import Collection
from answering.video import MAX_GAP, Frame, Sampling, Video
from benchmarks.harness import Figures, show

OLD_EVERY = 2.0  # seconds between frames, as README told people
OLD_WIDTH = 960  # pixels of a JPEG
NEAR_MS = 5500  # a moment so near is right
SPARE_MS = 2000  # beside from..to
OLD_WAY = f"88ade32: scrape.py video --every {OLD_EVERY:g}, then index.py add"
Seconds = dict[str, float]  # {part: seconds}

# ------------------------------------------------------------------------------------------------- the ways


@contextlib.contextmanager
def clock(seconds: Seconds, part: str) -> Iterator[None]:
    """Add the time that the block takes to a part."""
    start = time.perf_counter()
    yield
    seconds[part] += time.perf_counter() - start


@contextlib.contextmanager
def clock_tone(seconds: Seconds) -> Iterator[None]:
    """Add what answering.video spends on fields, scaling and colours, frame by frame."""
    to_rgb = answering.video.to_rgb

    def timed(*args, **kwargs):
        with clock(seconds, "tone"):
            return to_rgb(*args, **kwargs)

    answering.video.to_rgb = timed
    try:
        yield
    finally:
        answering.video.to_rgb = to_rgb


def add_as_before(video: Path, place: Path, identifier: Identifier) -> tuple[Seconds, int]:
    """As 88ade32 did: OpenCV decodes every frame, some become JPEGs, and these are read and embedded.

    place: the index, beside which the JPEGs lie for a while. Returns ({part: seconds}, frames).
    """
    folder = place.with_name("jpegs")
    seconds: Seconds = defaultdict(float)
    times = write_jpegs(video, folder, seconds)
    film = FilmEmbedder(identifier)
    for number, milliseconds in enumerate(times):
        path = folder / f"{milliseconds:08}.jpg"
        still = Still(file=path.name, path=path, time_ms=milliseconds, source="video")
        with clock(seconds, "JPEG"):
            rgb = read_image(path, draft=2 * identifier.preprocessing["size"])
        with clock(seconds, "embed"):
            film.add(Picture(still, rgb, number / len(times)))
    with clock(seconds, "store"):
        store(film, identifier, place, video)
    shutil.rmtree(folder)
    return seconds, len(times)


def write_jpegs(video: Path, folder: Path, seconds: Seconds) -> list[int]:
    """A JPEG every OLD_EVERY seconds, named by its milliseconds; returns these. Raises UserError where none is."""
    import cv2

    folder.mkdir()
    times = []
    reader = cv2.VideoCapture(str(video))
    due = 0.0
    while True:
        with clock(seconds, "decode"):
            if not reader.grab():
                break
            milliseconds = round(reader.get(cv2.CAP_PROP_POS_MSEC))
            if milliseconds < due - 1:
                continue
            bgr = reader.retrieve()[1]
        due += 1000 * OLD_EVERY
        with clock(seconds, "JPEG"):
            small = cv2.resize(bgr, (480, round(480 * bgr.shape[0] / bgr.shape[1])), interpolation=cv2.INTER_AREA)
            cv2.Laplacian(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), cv2.CV_64F).var()  # for --blur
            image = Image.fromarray(bgr[..., ::-1])
            image.thumbnail((OLD_WIDTH, sys.maxsize), Image.Resampling.LANCZOS)
            image.save(folder / f"{milliseconds:08}.jpg", quality=92)
        times.append(milliseconds)
    if not times:
        raise UserError(f"{video}: OpenCV can't read it")
    return times


def add_directly(video: Path, identifier: Identifier, place: Path, sampling: Sampling) -> tuple[Seconds, int]:
    """As index.py add does, one step after another so that each can be timed."""
    seconds: Seconds = defaultdict(float)
    film = FilmEmbedder(identifier)
    still = Still(file=video.name, path=video, source="video")
    start = time.perf_counter()
    longest_side = LONGEST_SIDE * identifier.preprocessing["size"]
    with clock_tone(seconds), Video(video, longest_side=longest_side) as opened:
        for frame in opened.frames(sampling):
            share = min(0.999, frame.time_ms / 1000 / (opened.duration or 6000))
            with clock(seconds, "embed"):
                film.add(Picture(replace(still, time_ms=frame.time_ms), frame.rgb, share))
    seconds["decode"] = time.perf_counter() - start - seconds["tone"] - seconds["embed"]
    with clock(seconds, "store"):
        store(film, identifier, place, video)
    return seconds, film.seen


def store(film: FilmEmbedder, identifier: Identifier, place: Path, video: Path) -> None:
    """Put a film into an index, and fit what is due, as index.py add ends."""
    collection = Collection(place)
    with open_to_add(collection, identifier.contract.architecture, fingerprint(identifier)) as state:
        store_film(collection, state, Film(0, video.stem, stills=film.seen, file=str(video)), film.rows())
        finish(collection, state, unknown_share=None)


def run_add(videos: list[Path], model: Path, place: Path) -> float:
    """Seconds of the command itself, with as many processes as it likes."""
    import index

    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        code = index.main(["add", *map(str, videos), f"--model={model}", f"--index={place}"])
    if code:
        raise UserError("index.py add failed; see above")
    return time.perf_counter() - start


def count_megabytes(folder: Path) -> float:
    """What an index takes on the disk."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


# -------------------------------------------------------------------------------------------------- questions


def pick_questions(videos: list[Path], count: int) -> list[tuple[str, Frame]]:
    """[(title, frame)] at random moments of the films, as many of each, none of them flat."""
    rng = np.random.default_rng(13)
    each = max(1, count // len(videos))
    picked = []
    for video in videos:
        with Video(video, longest_side=960) as opened:
            moments = rng.uniform(0, opened.duration, 2 * each)
            frames = [frame for frame in opened.frames_at(moments) if not is_flat(frame.rgb)]
        if not frames:
            raise UserError(f"{video}: nothing in it to ask for")
        chosen = rng.permutation(len(frames))[:each]
        picked += [(video.stem, frames[number]) for number in sorted(chosen)]
    return picked


def ask(place: Path, identifier: Identifier, questions: list[tuple[str, Frame]]) -> Figures:
    """Shares of the questions whose film is found, is named, and whose moment is found."""
    index = Index(place, identifier)
    found = []
    for title, frame in questions:
        embedding = identifier.run(identifier.load(frame.rgb)[None])["embedding"]
        answer = index.answers(embedding, top=1)[0]
        best = answer.candidates[0]
        proof = best.evidence
        is_film = best.title == title
        is_near = is_film and abs(proof.time_ms - frame.time_ms) <= NEAR_MS
        is_inside = is_film and proof.from_ms - SPARE_MS <= frame.time_ms <= proof.to_ms + SPARE_MS
        found.append((is_film, is_film and answer.kind == "movie", is_near, is_inside))
    film, named, near, inside = np.mean(found, axis=0)
    return {
        "film": f"{film:.2f}",
        "named": f"{named:.2f}",
        f"moment within {NEAR_MS / 1000:g} s": f"{near:.2f}",
        f"in from..to, {SPARE_MS / 1000:g} s to spare": f"{inside:.2f}",
    }


# ---------------------------------------------------------------------------------------------------- the tables


def figures(seconds: Seconds, frames: int, length: float) -> Figures:
    """A row: how many seconds of film a second, and the parts."""
    total = sum(seconds.values())
    row: Figures = {"x real time, s/s": length / total, "total, s": total}
    for part in ("decode", "tone", "JPEG", "embed", "store"):
        row[f"{part}, s"] = f"{seconds[part]:.1f}" if part in seconds else "-"
    row["frames"] = str(frames)
    return row


def bench_shelf(
    videos: list[Path],
    *,
    model: Path = Path("export"),
    gaps: str = "",
    ask: bool = False,
    beside: Path = Path("data/raw"),
    count: int = 60,
) -> None:
    """Films into an index: the two commands of 88ade32 beside index.py add, one after the other on the same files.

    gaps: further limits between keyframes to try, seconds, with commas. ask: how many of so many (count) frames at
    random moments find their film and their moment; beside: a folder of stills of other films, which lie in the index.
    """
    limits = [MAX_GAP, *(float(gap) for gap in gaps.split(",") if gap)]
    identifier = Identifier(model)
    identifier.run(identifier.load(np.zeros((64, 64, 3), np.uint8))[None])  # warms up
    length = measure(videos)
    questions = pick_questions(videos, count) if ask else []
    rows: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        base.mkdir()
        if ask:
            run_add([beside], model, base / INDEX)
        bench = Bench(videos, identifier, base, length, questions)
        rows[OLD_WAY] = bench.run("old", lambda *to: add_as_before(*to, identifier))
        for limit in limits:
            sampling = Sampling(max_gap=limit)

            def add(video: Path, place: Path, sampling: Sampling = sampling) -> tuple[Seconds, int]:
                return add_directly(video, identifier, place, sampling)

            rows[f"index.py add --max-gap {limit:g}, step by step"] = bench.run(f"new-{limit:g}", add)
        took = run_add(videos, model, Path(folder, "command", INDEX))
        memory = largest_child()
        rows["index.py add, the command"] = {
            "x real time, s/s": length / took,
            "total, s": took,
            "index, MB a film": f"{count_megabytes(Path(folder, 'command')) / len(videos):.1f}",
            "largest process, MB": memory,
        }
    text = f"{len(videos)} films, {length:.0f} s."
    if ask:
        text += f" {len(questions)} frames at random moments are asked for, beside the films of {beside.name}."
    show("A shelf of films into an index", rows, text)


def largest_child() -> str:
    """Megabytes of the largest process that this one has started and that has ended; "-" where nobody counts them."""
    try:
        import resource
    except ImportError:  # Windows
        return "-"
    unit = 1e6 if sys.platform == "darwin" else 1024  # macOS counts in bytes, Linux in KiB
    return f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit:.0f}"


def measure(videos: list[Path]) -> float:
    """How long all films play, seconds. Raises UserError for a file that can't be read."""
    length = 0.0
    for video in videos:
        with Video(video) as opened:
            if not opened.duration:
                raise UserError(f"{video}: its header does not say how long it plays")
            length += opened.duration
    return length


class Bench:
    """Runs a way over all films, into an index of its own, and asks it."""

    def __init__(self, videos: list[Path], identifier: Identifier, base: Path, length: float, questions: list):
        self.videos = videos
        self.identifier = identifier
        self.base = base  # a folder with an index of other films, or an empty one
        self.length = length  # seconds of film
        self.questions = questions

    def run(self, name: str, add) -> Figures:
        """add(video, index) gives ({part: seconds}, frames)."""
        folder = self.base.with_name(re.sub(r"\W", "-", name))
        shutil.copytree(self.base, folder)
        seconds: Seconds = defaultdict(float)
        frames = 0
        before = count_megabytes(folder)
        for video in self.videos:
            parts, taken = add(video, folder / INDEX)
            frames += taken
            for part, took in parts.items():
                seconds[part] += took
        row = figures(seconds, frames, self.length)
        row["index, MB a film"] = f"{(count_megabytes(folder) - before) / len(self.videos):.1f}"
        if self.questions:
            row |= ask(folder / INDEX, self.identifier, self.questions)
        return row
