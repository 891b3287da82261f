"""Put a shelf of films into an index: what is new or changed is embedded, videos side by side, one commit a film."""

import contextlib
import functools
import hashlib
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from answering.collection import fingerprint
from answering.console import UserError, count_of, format_clock, one_line
from answering.editing import accepted_stills, hash_contents, merge_stills, rename_film, store_film
from answering.embedding import FilmEmbedder, FilmRows, Picture, read_ahead, read_stills
from answering.model import Identifier
from answering.runtimes import choose_file, cpu_flags, trim_heap
from answering.search import gather
from answering.shelf import ShelfFilm
from answering.side_by_side import FilmBar, Job, SideBySide, count_bytes, run_side_by_side
from answering.state import Failure, Film, State
from answering.stills import Still, list_stills
from answering.store import Collection
from answering.video import Sampling, Video

LONGEST_SIDE = 3  # of a decoded frame, in sides of the model's input: a film of 2.39:1 still has its height
USUAL_SECONDS = 6000  # of a film whose file does not tell
SHORTER = 0.98  # a file that plays for a smaller share of what the index has is not the whole film

# ------------------------------------------------------------------------------------------------ in a process


@dataclass(frozen=True)
class VideoJob:
    """A film for a process to embed."""

    parts: tuple[Path, ...]
    sampling: Sampling
    model: str  # folder from export.py
    threads: int
    accepted: list[Still]  # users' stills of it


@dataclass
class EmbeddedVideo:
    """What a process gives back."""

    rows: FilmRows
    seen: int  # frames
    seconds: float  # of film: how long it plays, or as far as it could be read
    damage: str | None  # see Video


@functools.cache
def load_identifier(model: str, cores: int) -> tuple[Identifier, int]:
    """(the model, loaded once a process, pictures that it embeds at a time) for so many cores.

    In fp32 it is run by ONNX Runtime, which loads it in a fraction of OpenVINO's memory, and where pictures side by
    side are faster than cores that share one.
    """
    with contextlib.suppress(UserError):  # ONNX Runtime is not installed, or there is no such file
        if choose_file(Path(model), None, None, cpu_flags()).format == "fp32":
            identifier = Identifier(model, runtime="onnxruntime", format="fp32", threads=1)
            trim_heap()
            return identifier, cores
    identifier = Identifier(model, threads=cores)
    trim_heap()
    return identifier, 1


@dataclass(frozen=True)
class ModelSeen:
    """What an index must know of a model."""

    architecture: str
    fingerprint: np.ndarray  # see collection.fingerprint


def see_model(model: str, report: Callable[[float, float], None] | None = None) -> ModelSeen:
    """Load a model and look at it. Raises UserError."""
    identifier, _ = load_identifier(model, 1)
    return ModelSeen(identifier.contract.architecture, fingerprint(identifier))


def see_model_in_a_process(model: str) -> ModelSeen:
    """As see_model, in a process that ends with it, so that its memory is free again. Raises UserError."""
    seen = []
    pool = SideBySide(see_model, 1)
    pool.waiting.append(Job(model))
    for _, result in pool.results(lambda running: None):
        if isinstance(result, UserError):
            raise result
        seen.append(result)
    return seen[0]


def embed_video(job: VideoJob, report: Callable[[float, float], None]) -> EmbeddedVideo:
    """Decode and embed a film. report(seconds, duration) is told how far it is. Raises UserError."""
    identifier, streams = load_identifier(job.model, job.threads)
    film = FilmEmbedder(identifier, streams)
    reached = 0.0
    longest_side = LONGEST_SIDE * identifier.preprocessing["size"]
    with Video(*job.parts, longest_side=longest_side, threads=job.threads) as video:
        report(0.0, video.duration)
        for picture in read_video(video, job):
            film.add(picture)
            reached = picture.still.milliseconds / 1000
            report(reached, video.duration)
        if not film.seen:
            raise UserError(video.damage or "no frame of it is left (see --skip-start and --skip-end)")
        # the time of a recording, or of a disc's file, is an estimate that its clock may have misled
        seconds = reached if video.damage else max(reached, video.duration)
        rows = merge_stills(film.rows(), job.accepted, identifier)
        return EmbeddedVideo(rows, film.seen, seconds, video.damage)


def read_video(video: Video, job: VideoJob) -> Iterator[Picture]:
    """The frames of a video, decoded while others are embedded."""
    still = Still(file=job.parts[0].name, path=job.parts[0], source="video")
    frames = video.frames(job.sampling)
    for frame in read_ahead(lambda _: next(frames, None), itertools.count(), 1):
        if frame is None:
            return
        place = frame.time_ms / 1000 / (video.duration or USUAL_SECONDS)
        yield Picture(replace(still, time_ms=frame.time_ms), frame.rgb, min(place, 0.999))


# ------------------------------------------------------------------------------------------------ what is to do


def hash_video(parts: tuple[Path, ...], sampling: Sampling) -> str:
    """What changes when a file is written anew, or other frames of it are wanted; not with its name. Opens nothing."""
    stats = [part.stat() for part in parts]
    about = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
    return hashlib.sha256(repr((about, sampling)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Attempt:
    """Files of a film that are to be read; of several encodings, others follow if these are broken."""

    title: str
    parts: tuple[Path, ...]
    content_key: str
    others: "tuple[Attempt, ...]" = ()
    stands: bool = False  # the index has the film already, from another of the files that lie there

    @property
    def path(self) -> str:
        """What the state calls it."""
        return str(self.parts[0].absolute())

    def follow(self) -> "Attempt":
        """The next one."""
        first, *others = self.others
        return replace(first, others=tuple(others))


@dataclass
class AddSettings:
    """How films are added."""

    model: str  # folder from export.py
    sampling: Sampling  # of videos
    every_nth: int = 1  # still, of films of stills
    retry: bool = False  # also files that failed before
    processes: int = 1
    cores: int = 1
    titles_given: bool = False  # titles come from the user, not from the files' names


class Adder:
    """Adds the films of a shelf to an index, each with a commit when it is done."""

    def __init__(self, collection: Collection, state: State, settings: AddSettings):
        self.collection = collection
        self.state = state
        self.settings = settings
        self.bar: FilmBar | None = None  # while videos are added
        self.films = 0  # that there are to do
        self.done = 0  # of them
        self.failed = 0  # films that the index lacks, or has only as they were before
        self.unchanged = 0
        self.stored: set[str] = set()  # titles
        self.left_alone: list[str] = []  # files that failed before and did not change
        self.other_titles: list[tuple[str, str]] = []  # (title that a file means, title that the index has it under)

    def add(self, films: list[ShelfFilm]) -> None:
        """Add what is new or changed; a film that fails is a line.

        Films of stills are embedded here, videos in processes of their own. Raises UserError or OSError where nothing
        can go on.
        """
        folders, attempts = self.plan(films)
        self.films = len(folders) + len(attempts)
        if folders:
            for title, folder in folders.items():
                self.add_stills(title, folder)
            load_identifier.cache_clear()
        if attempts:
            self.add_videos(attempts)
        self.sum_up()

    def plan(self, films: list[ShelfFilm]) -> tuple[dict[str, Path], list[Attempt]]:
        """({title: folder} of films of stills, first attempts at films of videos) that are to do."""
        claimed = {film.title for film in films}
        folders: dict[str, Path] = {}
        attempts: list[Attempt] = []
        seen: set[str] = set()
        for film in films:
            title = self.choose_title(film, claimed)
            if title in seen:
                self.failed += 1
                self.say(f"error: {title}: two films have this title; rename one of them", error=True)
                continue
            seen.add(title)
            if film.parts:
                attempts += self.plan_video(replace(film, title=title))
            elif self.is_known(title, self.list_stills(film.stills)):
                self.unchanged += 1
            else:
                folders[title] = film.stills
        return folders, attempts

    def choose_title(self, film: ShelfFilm, claimed: set[str]) -> str:
        """The title that a film has in the index: one that rename gave it, or that an unchanged file of it has there.

        claimed: titles of the films of this shelf.
        """
        title = film.title
        if title not in self.state.films:
            title = self.state.renamed.get(title, title)
        if title in self.state.films or not film.parts:
            return title
        before = self.find_file(film)
        if before is None or before in claimed:
            return title
        if not self.settings.titles_given:
            if before not in self.state.renamed.values():  # else the user gave it that title
                self.other_titles.append((title, before))
            return before
        rename_film(self.collection, self.state, before, title)
        self.say(f"{before}: is {title} now")
        return title

    def find_file(self, film: ShelfFilm) -> str | None:
        """The title that the index has a file of a film under, if that file did not change, or has only moved."""
        for parts in (film.parts, *film.copies):
            path = str(parts[0].absolute())
            content_key = self.hash(parts)
            for title, its in self.state.films.items():
                if its.file is None or its.content_key != content_key:
                    continue
                if its.file == path or not Path(its.file).exists():
                    return title
        return None

    def hash(self, parts: tuple[Path, ...]) -> str:
        """The content key of a video's files; empty where they can't be seen."""
        try:
            return hash_video(parts, self.settings.sampling)
        except OSError:
            return ""

    def plan_video(self, film: ShelfFilm) -> list[Attempt]:
        """The first attempt at a film, with those that follow it if it fails; none where nothing is to do."""
        before = self.state.films.get(film.title)
        attempts: list[Attempt] = []
        failed_before = False
        stands = False
        for parts in (film.parts, *film.copies):
            attempt = Attempt(film.title, parts, self.hash(parts))
            if before and before.content_key == attempt.content_key:
                stands = True
                if not before.partial:  # those after it are smaller
                    break
                if not self.settings.retry:
                    continue
            failure = self.state.failed.get(attempt.path)
            if failure and failure.content_key == attempt.content_key and not self.settings.retry:
                failed_before = True
                self.left_alone.append(f"{parts[0].name} ({failure.reason})")
                continue
            attempts.append(attempt)
        if not attempts:
            self.unchanged += stands or not failed_before
            return []
        attempts = [replace(attempt, stands=stands) for attempt in attempts]
        return [replace(attempts[0], others=tuple(attempts[1:]))]

    # ------------------------------------------------------------------------------------------ stills

    def list_stills(self, folder: Path) -> list[Still]:
        """The stills of a folder that are to be taken."""
        return list_stills(folder)[:: self.settings.every_nth]

    def is_known(self, title: str, stills: list[Still]) -> bool:
        """Whether the index has a film as its stills are now."""
        before = self.state.films.get(title)
        return before is not None and before.content_key == hash_contents(stills)

    def add_stills(self, title: str, folder: Path) -> None:
        """Add a film of stills."""
        identifier, streams = load_identifier(self.settings.model, self.settings.cores)
        stills = self.list_stills(folder)
        content_key = hash_contents(stills)  # before they are read: they may change meanwhile
        updated = ", updated" if title in self.state.films else ""
        embedder = FilmEmbedder(identifier, streams)
        try:
            for picture in read_stills(stills, identifier):
                embedder.add(picture)
            rows = merge_stills(embedder.rows(), accepted_stills(self.collection, title), identifier)
        except UserError as error:
            self.end_film(f"{title}: error: {error}", failed=True)
            return
        imdb = next((str(still.imdb) for still in stills if still.imdb), None)
        film = Film(0, title, imdb=imdb, content_key=content_key, stills=len(stills))
        stored = store_film(self.collection, self.state, film, rows)
        self.end_film(f"{title}: {stored.stored} of {len(stills)} stills stored{updated}")

    # ------------------------------------------------------------------------------------------ videos

    def add_videos(self, attempts: list[Attempt]) -> None:
        """Add films from their video files, side by side."""
        processes = min(self.settings.processes, len(attempts))
        self.threads = max(1, self.settings.cores // processes)
        jobs = [self.start(attempt) for attempt in attempts]
        with FilmBar(len(jobs), sum(job.size for job in jobs)) as self.bar:
            run_side_by_side(embed_video, jobs, processes, self.bar, self.take)
        self.bar = None

    def start(self, attempt: Attempt) -> Job:
        """The job of an attempt."""
        accepted = accepted_stills(self.collection, attempt.title)
        video = VideoJob(attempt.parts, self.settings.sampling, self.settings.model, self.threads, accepted)
        return Job(video, about=attempt, size=count_bytes(attempt.parts))

    def take(self, job: Job, result: EmbeddedVideo | UserError, waiting: deque[Job]) -> None:
        """Store what a process made of a film, or have the film's next encoding tried."""
        attempt: Attempt = job.about
        reason = self.refuse(attempt, result)
        if reason:
            self.keep_failure(attempt, reason)
            line = f"{attempt.title}: error: {attempt.parts[0]}: {reason}"
        else:
            line = self.store(attempt, result, time.monotonic() - job.started)
        is_last = not attempt.others or not (reason or result.damage)
        self.bar.count(job, film_done=is_last)
        if is_last:
            failed = bool(reason) and attempt.title not in self.stored and not attempt.stands
            self.end_film(line, failed=failed, error=bool(reason))
        else:
            self.say(f"{line}; its next encoding is tried", error=True)
            waiting.appendleft(self.start(attempt.follow()))

    def keep_failure(self, attempt: Attempt, reason: str) -> None:
        """Keep why a file is not to be tried again until it changes."""
        self.state.failed[attempt.path] = Failure(attempt.content_key, reason)
        self.collection.put_failure(attempt.path, self.state.failed[attempt.path])

    def refuse(self, attempt: Attempt, result: EmbeddedVideo | UserError) -> str | None:
        """Why the index keeps what it has of a film; None where the result is to be stored."""
        if isinstance(result, UserError):
            return one_line(str(result).removeprefix(f"{attempt.parts[0]}: "))
        before = self.state.films.get(attempt.title)
        if before is None or before.seconds is None:
            return None
        has = f"the {format_clock(before.seconds)} that the index has stay"
        if result.damage and (not before.partial or result.seconds <= before.seconds):
            return f"{result.damage}; {has}"
        if not result.damage and result.seconds < SHORTER * before.seconds:
            return (
                f"plays only {format_clock(result.seconds)}; {has}; to take it, python index.py remove the film first"
            )
        return None

    def store(self, attempt: Attempt, result: EmbeddedVideo, took: float) -> str:
        """Put a film into the index; returns what was done, in words. took: seconds."""
        updated = ", updated" if attempt.title in self.state.films else ""
        self.stored.add(attempt.title)
        film = Film(
            id=0,
            title=attempt.title,
            content_key=attempt.content_key,
            stills=result.seen,
            seconds=round(result.seconds, 3),
            partial=result.damage,
            file=attempt.path,
        )
        film = store_film(self.collection, self.state, film, result.rows)
        if result.damage:
            self.keep_failure(attempt, result.damage)
        gather(self.collection, self.state.about)
        rate = result.seconds / max(1e-9, took)
        pace = f"{format_clock(result.seconds)} of film in {took:.0f} s ({rate:.0f}x real time)"
        partial = f"; in part: {result.damage}" if result.damage else ""
        return f"{attempt.title}: {film.stored} of {result.seen} frames stored{updated}, {pace}{partial}"

    # ------------------------------------------------------------------------------------------- lines

    def end_film(self, line: str, *, failed: bool = False, error: bool = False) -> None:
        """Count a film that is done and say what came of it."""
        self.done += 1
        self.failed += failed
        self.say(f"[{self.done}/{self.films}] {line}", error=failed or error)

    def say(self, text: str, *, error: bool = False) -> None:
        """A line for the user."""
        if self.bar:
            self.bar.say(text, error=error)
        else:
            print(one_line(text), file=sys.stderr if error else sys.stdout, flush=True)

    def sum_up(self) -> None:
        """Lines on the films that nothing was done for."""
        if self.unchanged:
            self.say(f"{count_of(self.unchanged, 'film')} unchanged")
        if self.left_alone:
            listed = list_some(self.left_alone)
            text = "failed before, not tried again without a change (--retry)"
            self.say(f"{count_of(len(self.left_alone), 'file')} {text}: {listed}", error=True)
        if self.other_titles:
            listed = list_some([f"{before} (by its file: {title})" for title, before in self.other_titles])
            self.say(f"titles of the index that its files do not bear, see index.py rename and --titles: {listed}")


def list_some(texts: list[str], most: int = 3) -> str:
    """The first of them, in a line."""
    more = f"; and {len(texts) - most} more" if len(texts) > most else ""
    return "; ".join(texts[:most]) + more
