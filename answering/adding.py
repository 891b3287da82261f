"""Put a shelf of films into an index: what is new or changed is embedded, videos side by side, one commit a film."""

import functools
import hashlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from answering.console import UserError
from answering.editing import accepted_stills, hash_contents, merge_stills, rename_film, store_film
from answering.embedding import FilmEmbedder, FilmRows, Picture, read_ahead, read_stills
from answering.model import Identifier
from answering.shelf import ShelfFilm
from answering.side_by_side import FilmBar, Job, format_clock, run_side_by_side
from answering.state import Failure, Film, State
from answering.stills import Still, list_stills
from answering.store import Folder, Milvus
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
def load_identifier(model: str, threads: int) -> Identifier:
    """The model, loaded once a process."""
    return Identifier(model, threads=threads)


def embed_video(job: VideoJob, report: Callable[[float, float], None]) -> EmbeddedVideo:
    """Decode and embed a film. report(seconds, duration) is told how far it is. Raises UserError."""
    identifier = load_identifier(job.model, max(1, job.threads - 1))
    film = FilmEmbedder(identifier)
    reached = 0.0
    longest_side = LONGEST_SIDE * identifier.preprocessing["size"]
    with Video(*job.parts, longest_side=longest_side, threads=job.threads) as video:
        report(0.0, video.duration)
        for picture in read_video(video, job):
            film.add(picture)
            reached = picture.still.milliseconds / 1000
            report(reached, video.duration)
        whole = not video.damage and video.duration
        seconds = video.duration if whole else reached
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

    @property
    def path(self) -> str:
        """What the state calls it."""
        return str(self.parts[0].absolute())

    def count_bytes(self) -> int:
        return sum(part.stat().st_size for part in self.parts)


@dataclass
class AddSettings:
    """How films are added."""

    model: str
    sampling: Sampling
    every_nth: int = 1  # still, of films of stills
    retry: bool = False  # also files that failed before
    processes: int = 1
    cores: int = 1
    titles_given: bool = False  # titles come from the user, not from file names


class Adder:
    """Adds the films of a shelf to an index, one after another as they are done."""

    def __init__(self, engine: Folder | Milvus, state: State, settings: AddSettings):
        self.engine = engine
        self.state = state
        self.settings = settings
        self.films = 0  # that there are to do
        self.place = 0  # of the film that is done, from 1
        self.failed = 0  # films that the index lacks, or has only as they were before
        self.unchanged = 0
        self.remembered: list[str] = []  # paths of files that failed before and are left alone
        self.other_titles: list[tuple[str, str]] = []  # (title that a file means, title that the index has it under)

    def add(self, films: list[ShelfFilm], identifier: Identifier) -> None:
        """Add what is new or changed; a film that fails is a line. Raises UserError or OSError where nothing can go on.

        identifier: for films of stills; videos have theirs in processes of their own.
        """
        claimed = {film.title for film in films}
        stills = []
        attempts = []
        seen: set[str] = set()
        for film in films:
            title = self.choose_title(film, claimed)
            if title in seen:
                self.fail(f"{title}: another film of this title comes before it; rename one of them")
                continue
            seen.add(title)
            if film.parts:
                attempts += self.plan_video(replace(film, title=title))
            else:
                stills.append((title, film.stills))
        self.films = len(stills) + len(attempts)
        for title, folder in stills:
            self.add_stills(title, folder, identifier)
        del identifier
        if attempts:
            self.add_videos(attempts)
        self.say_rest()

    def choose_title(self, film: ShelfFilm, claimed: set[str]) -> str:
        """The title that a film has in the index: one that rename gave it, or the one that its unchanged file has there.

        claimed: titles of the films of this shelf.
        """
        title = film.title
        if title not in self.state.films:
            title = self.state.renamed.get(title, title)
        if title in self.state.films or not film.parts:
            return title
        known = {its.content_key: name for name, its in self.state.films.items() if its.seconds is not None}
        for parts in (film.parts, *film.copies):
            before = known.get(self.hash(parts))
            if before is None or before in claimed:
                continue
            if not self.settings.titles_given:
                self.other_titles.append((title, before))
                return before
            rename_film(self.engine, self.state, before, title)
            self.engine.commit(self.state)
            print(f"{before}: is {title} now", flush=True)
            break
        return title

    def hash(self, parts: tuple[Path, ...]) -> str:
        """The content key of a video's files; empty where they are gone."""
        try:
            return hash_video(parts, self.settings.sampling)
        except OSError:
            return ""

    def plan_video(self, film: ShelfFilm) -> list[Attempt]:
        """The first attempt at a film, with those that follow it if it fails; none where nothing is to do."""
        before = self.state.films.get(film.title)
        attempts: list[Attempt] = []
        left_alone = False
        for parts in (film.parts, *film.copies):
            attempt = Attempt(film.title, parts, self.hash(parts))
            if before and before.content_key == attempt.content_key:
                if not before.partial:  # those after it are no better
                    break
                if not self.settings.retry:
                    continue
            failure = self.state.failed.get(attempt.path)
            if failure and failure.content_key == attempt.content_key and not self.settings.retry:
                left_alone = True
                self.remembered.append(f"{parts[0].name} ({failure.reason})")
                continue
            attempts.append(attempt)
        if not attempts:
            self.unchanged += not left_alone or before is not None
            return []
        first, *others = attempts
        return [replace(first, others=tuple(others))]

    # -------------------------------------------------------------------------------------------- stills

    def add_stills(self, title: str, folder: Path, identifier: Identifier) -> None:
        """Add a film of stills."""
        stills = list_stills(folder)[:: self.settings.every_nth]
        content_key = hash_contents(stills)
        before = self.state.films.get(title)
        self.place += 1
        if before and before.content_key == content_key:
            self.unchanged += 1
            return
        film = FilmEmbedder(identifier)
        try:
            for picture in read_stills(stills, identifier):
                film.add(picture)
            rows = merge_stills(film.rows(), accepted_stills(self.engine, title), identifier)
        except UserError as error:
            self.fail(f"{title}: {error}")
            return
        imdb = next((str(still.imdb) for still in stills if still.imdb), None)
        counts = {"content_key": content_key, "stills": len(stills), "imdb": imdb}
        stored = store_film(self.engine, self.state, title, rows, **counts)
        updated = ", updated" if before else ""
        self.say(f"{title}: {stored.stored} of {len(stills)} stills stored{updated}")

    # -------------------------------------------------------------------------------------------- videos

    def add_videos(self, attempts: list[Attempt]) -> None:
        """Add films from their video files, side by side."""
        processes = min(self.settings.processes, len(attempts))
        threads = max(1, self.settings.cores // processes)
        size = sum(attempt.count_bytes() for attempt in attempts)
        with FilmBar(len(attempts), size) as self.bar:
            jobs = [self.start(attempt, threads) for attempt in attempts]
            take = functools.partial(self.take, threads=threads)
            run_side_by_side(embed_job, jobs, processes, self.bar, take)
        self.bar = None

    bar: FilmBar | None = None  # while videos are added

    def start(self, attempt: Attempt, threads: int) -> Job:
        """The job of an attempt."""
        accepted = accepted_stills(self.engine, attempt.title)
        video = VideoJob(attempt.parts, self.settings.sampling, self.settings.model, threads, accepted)
        return Job((attempt, video), attempt.count_bytes())

    def take(self, job: Job, result: EmbeddedVideo | UserError, waiting: deque[Job], threads: int) -> None:
        """Store what a process made of a film, or try the film's next encoding."""
        attempt: Attempt = job.argument[0]
        seconds = 0.0 if isinstance(result, UserError) else result.seconds
        before = self.state.films.get(attempt.title)
        reason = self.refuse(before, result)
        if reason:
            self.state.failed[attempt.path] = Failure(attempt.content_key, reason)
            self.engine.commit(self.state)
        else:
            self.store(attempt, result, time.monotonic() - job.started)
        is_whole = not reason and not result.damage
        goes_on = bool(attempt.others) and not is_whole
        if goes_on:
            first, *others = attempt.others
            waiting.appendleft(self.start(replace(first, others=tuple(others)), threads))
        self.bar.count(job, seconds, film_done=not goes_on)
        if reason:
            self.tell_failure(attempt, reason, goes_on=goes_on)

    def refuse(self, before: Film | None, result: EmbeddedVideo | UserError) -> str | None:
        """Why the index keeps what it has; None where the result is to be stored."""
        if isinstance(result, UserError):
            return " ".join(str(result).split())
        if before is None or before.seconds is None:
            return None
        has = format_clock(before.seconds)
        if result.damage and (not before.partial or result.seconds <= before.seconds):
            return f"{result.damage}; the index keeps its {has}"
        if not result.damage and result.seconds < SHORTER * before.seconds:
            gives = format_clock(result.seconds)
            return f"plays {gives}, and the index keeps its {has}; python index.py remove it first if it is right"
        return None

    def store(self, attempt: Attempt, result: EmbeddedVideo, took: float) -> None:
        """Put a film into the index and say so."""
        updated = ", updated" if attempt.title in self.state.films else ""
        self.state.failed.pop(attempt.path, None)
        film = store_film(
            self.engine,
            self.state,
            attempt.title,
            result.rows,
            content_key=attempt.content_key,
            stills=result.seen,
            seconds=round(result.seconds, 3),
            partial=result.damage,
        )
        rate = result.seconds / max(1e-9, took)
        pace = f"{format_clock(result.seconds)} of film in {took:.0f} s ({rate:.0f}x real time)"
        partial = f"; in part: {result.damage}" if result.damage else ""
        self.place += not (result.damage and attempt.others)
        self.say(f"{attempt.title}: {film.stored} of {result.seen} frames stored{updated}, {pace}{partial}")

    def tell_failure(self, attempt: Attempt, reason: str, *, goes_on: bool) -> None:
        """Say what was wrong with a file; the film failed if the index does not have it from another file of today."""
        line = f"{attempt.title}: {reason}"
        if goes_on:
            self.say(f"{line}; another encoding of it is tried", error=True)
        else:
            self.place += 1
            self.fail(line)

    # -------------------------------------------------------------------------------------------- lines

    def say(self, text: str, *, error: bool = False) -> None:
        pass
