"""Collect stills of films: from FLIM, from your own video files, and make the list of films to ask for.

python scrape.py flim movies.txt --out data/raw              # one film per line, "Title (Year)"; run again to continue
python scrape.py video ~/films --out data/raw                # a frame of every shot of your own video files
python scrape.py video ~/films --every 2                     # or one every two seconds
python scrape.py video ~/films --keyframes                   # or its keyframes, which is several times as fast
python scrape.py titles --basics title.basics.tsv.gz --ratings title.ratings.tsv.gz --top 800 > movies.txt
echo "Sintel (2010)" > few.txt; python scrape.py flim few.txt --max-frames 20      # a small try
"""

import argparse
import bisect
import contextlib
import csv
import errno
import functools
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from difflib import get_close_matches
from operator import attrgetter, itemgetter
from pathlib import Path

import numpy as np
import requests
from filelock import FileLock, SoftFileLock, Timeout
from PIL import Image
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3 import Retry
from urllib3.exceptions import HTTPError, InvalidHeader

from answering.console import UserError, atomic_write, format_clock, one_line_errors
from answering.cores import count_cores
from answering.film_flags import (
    add_gap_flag,
    add_shelf_flags,
    add_skip_flags,
    check_sampling,
    print_titles,
    read_sampling,
    say_passed_over,
)
from answering.flat import is_flat
from answering.pictures import IMAGE_SUFFIXES, MAX_BYTES, read_image
from answering.reading import ReadingPool
from answering.shelf import ShelfFilm, find_shelf
from answering.side_by_side import FilmBar, Job, count_bytes, run_side_by_side
from answering.titles import folder_name, normalise_title, short_hash, split_title
from answering.video import Sampling, Video

API = "https://api.flim.ai"
PER_PAGE = 100
WORKERS = 16  # downloads at a time
ATTEMPTS = 8  # further tries of what failed
BACKOFF = 0.5  # seconds to wait before the first further tries; the waits double up to a minute
NO_LOCKS = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS}  # what some network shares answer to flock
SLOWEST = 180  # seconds for one image or reply
FAILURES = (requests.RequestException, HTTPError, ValueError)  # what fetch raises
EMPTY_PAGES = 3  # in a row without a new frame, after which a film's search ends
SHOT_WIDTH = 256  # pixels of the frames that shots are found in, as PySceneDetect has them
SHORTER = 0.9  # a file whose last frame comes so much sooner than that of its frames of before is cut off


def match_title(wanted: str, films: list[dict]) -> dict | None:
    """The one of FLIM's films {"id", "name"} with the same normalised title, the year within one; or None."""
    title, year = split_title(wanted)
    same = []
    for film in films:
        its_title, its_year = split_title(film["name"])
        if normalise_title(its_title) == normalise_title(title):
            same.append((film, its_year))
    if not same:
        return None
    if year is None:  # it may be the original or a remake
        return same[0][0] if len({its_year for _, its_year in same}) == 1 else None
    # the nearest year wins, and of one year the film that is spelled as wanted
    distances = [(abs(year - (its_year or 0)), film["name"] != wanted) for film, its_year in same]
    nearest = min(distances)
    return same[distances.index(nearest)][0] if nearest[0] <= 1 else None


def file_stem(identity: str) -> str:
    """A file name from an id that came from outside; ids that differ only in case stay apart on any disk."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", identity):
        return identity
    readable = re.sub(r"[^a-z0-9]+", "-", identity.lower())[:40].strip("-")
    return f"{readable}-{short_hash(identity)}"


@contextlib.contextmanager
def lock(out: Path) -> Iterator[None]:
    """Keep a second run out of a folder as long as this one runs. Raises UserError."""
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        kept = out / ".lock"
        try:
            try:
                stack.enter_context(FileLock(kept, timeout=0))
            except OSError as error:
                if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
                    raise
                kept = out / ".lock-exists"  # on such a disk the lock is that a file exists
                stack.enter_context(SoftFileLock(kept, timeout=0))
        except Timeout:
            text = f"another scrape.py is at work there; wait for it or stop it; if none runs, delete {kept}"
            raise UserError(f"--out {out}: {text}") from None
        yield


def read_lines(path: Path) -> list[dict]:
    """Objects of a .jsonl file; a line that was cut off is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def write_lines(path: Path, items: Iterable[dict]) -> None:
    """Write a .jsonl file."""
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)


def frame_line(
    file: str, *, identity: str, url: str | None, ms: float | None, shot: str | None, size: tuple[int, int], source: str
) -> dict:
    """A line of frames.jsonl. file: an image in the same folder; ms: into the film; size: width, height in pixels."""
    width, height = size
    return {
        "file": file,
        "id": identity,
        "url": url,
        "shot_time_ms": ms,
        "shot": shot,
        "width": width,
        "height": height,
        "source": source,
    }


# -------------------------------------------------------------------------------------------------- http


def make_session(*, pause: Callable = lambda: None, token: str = "") -> requests.Session:
    """A session that tries again what failed, after growing waits or what Retry-After asks for, then pause()."""

    class PoliteRetry(Retry):
        def sleep(self, response=None) -> None:
            try:
                super().sleep(response)
            except (InvalidHeader, ValueError):  # a Retry-After that is neither seconds nor a date
                super().sleep()
            pause()

    retry = PoliteRetry(
        ATTEMPTS,
        allowed_methods=None,  # all of them
        status_forcelist=[408, 425, 429, *range(500, 600)],
        raise_on_status=False,
        respect_retry_after_header=True,
        backoff_factor=BACKOFF,
        backoff_jitter=BACKOFF,
        backoff_max=60,
        retry_after_max=3600,
    )
    adapter = HTTPAdapter(WORKERS, WORKERS, retry)
    session = requests.Session()
    session.headers["User-Agent"] = "movie-by-frame/1.0 (collects stills to train a film classifier; requests)"
    session.headers["Authorization"] = f"Bearer {token}" if token else None  # None: not sent
    session.auth = lambda request: request  # or requests would send what ~/.netrc holds for the host
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def fetch(session: requests.Session, method: str, url: str, read: Callable, **options):
    """read(body) of a reply of at most MAX_BYTES. Raises one of FAILURES, ValueError where there is no hope.

    The session tries again after bad statuses and lost connections; this, after bodies that read refuses (HTTPError).
    """
    retry = session.get_adapter("https://").max_retries
    while True:
        try:
            with session.request(method, url, stream=True, timeout=(10, 30), **options) as reply:
                reply.raise_for_status()
                return read(read_body(reply, url))
        except ValueError:  # among them those of requests and urllib3 for addresses that are none
            raise
        except HTTPError as error:
            retry = retry.increment(method, url, error=error)
        retry.sleep()


def read_body(reply: requests.Response, url: str) -> bytes:
    """The bytes of a reply. Raises ValueError for too many, HTTPError for fewer than announced or where it is slow."""
    body = bytearray()
    start = time.monotonic()
    while part := reply.raw.read1(1 << 16, decode_content=True):  # raises when fewer come than announced
        body += part
        if len(body) > MAX_BYTES:
            raise ValueError(f"{url}: more than {MAX_BYTES // 1_000_000} MB")
        if time.monotonic() - start > SLOWEST:
            raise HTTPError(f"took more than {SLOWEST} s")
    return bytes(body)


def check_image(data: bytes) -> tuple[bytes, str]:
    """(bytes, suffix) of an image that decodes to the end. Raises HTTPError."""
    try:
        read_image(data, draft=32)  # a JPEG is read to its end at an eighth of its size, which is enough
    except UserError as error:
        raise HTTPError(str(error)) from None
    kind = Image.open(io.BytesIO(data)).format
    return data, {"JPEG": ".jpg", "MPO": ".jpg"}.get(kind, f".{kind.lower()}")


def check_in_process(reader: ReadingPool, data: bytes) -> tuple[bytes, str]:
    """As check_image. Raises ValueError for a picture that hangs its decoder, or crashes it: it would do so again."""
    try:
        return reader.read(data)
    except UserError as error:
        raise ValueError(str(error)) from None


# -------------------------------------------------------------------------------------------------- flim


def as_id(value: object) -> str | None:
    """An id of FLIM's as text; None for what is none."""
    return str(value) if type(value) in (int, str) and value != "" else None


@dataclass(frozen=True)
class FlimFrame:
    """A frame that FLIM offers."""

    identity: str
    url: str  # empty where there is none
    ms: float | None  # into the film


class Flim:
    """FLIM's API: at most rate calls a second, further tries among them. Raises UserError or one of FAILURES."""

    def __init__(self, base: str, token: str, rate: float):
        self.base = base.rstrip("/")
        self.gap = 1 / rate  # seconds from one call to the next
        self.next = 0.0  # when the next call may be made, by time.monotonic()
        self.session = make_session(pause=self.pause, token=token)
        self.thread = ThreadPoolExecutor(1)

    def pause(self) -> None:
        """Wait until a call may be made."""
        time.sleep(max(0.0, self.next - time.monotonic()))
        self.next = time.monotonic() + self.gap

    def post(self, path: str, **body) -> tuple[list[dict], int]:
        """(suggestions or images, how many of them there are) in the answer to body."""

        def read(data: bytes) -> tuple[list[dict], int]:
            try:
                return read_answer(data)
            except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
                raise HTTPError(f"{path} answered something else than asked for") from None

        self.pause()
        url = self.base + path
        try:  # in a thread, so that Ctrl-C never waits for a name server
            call = self.thread.submit(fetch, self.session, "POST", url, read, json=body, allow_redirects=False)
            return call.result()
        except (requests.ConnectionError, requests.HTTPError) as error:
            if error.response is None or error.response.status_code in (401, 403):
                raise UserError(f"--api {self.base}: {str(error)[-160:]}; try later or another FLIM_TOKEN") from None
            raise

    def find(self, wanted: str) -> tuple[dict | None, list[str]]:
        """({"id", "name"}, []) or, of a film that FLIM does not have, (None, the three nearest names)."""
        title, _ = split_title(wanted)
        without_article = re.sub(r"^(the|an?)\s+", "", title, flags=re.IGNORECASE)
        films = []
        for text in dict.fromkeys((title, wanted, without_article)):
            items, _ = self.post("/2.0.0/suggest-entities", media_type="", suggest=text)
            films += [{"id": as_id(item["id"]), "name": item["name"]} for item in items if is_film(item)]
            if found := match_title(wanted, films):
                return found, []
        names = {" ".join(film["name"].split()) for film in films}
        return None, get_close_matches(wanted, names, 3, cutoff=0)

    def pages(self, movie: str) -> Iterator[tuple[list[FlimFrame], bool]]:
        """Yield (new frames of a page, whether all is there that was promised), over empty pages and repeated ones."""
        request = search_request(movie)
        seen: set[str] = set()  # ids of the frames so far
        page = 0
        idle = 0  # pages in a row without a new frame
        promised = 0  # frames that there are
        while idle < EMPTY_PAGES and not (seen and len(seen) >= promised):
            images, total = self.post("/2.0.0/search", **request, page=page)
            promised = max(promised, total)
            if images:  # an empty page is asked for again
                page += 1
            fresh = []
            for image in images:
                frame = read_frame(image, movie)
                if frame and frame.identity not in seen:
                    seen.add(frame.identity)
                    fresh.append(frame)
            idle = 0 if fresh else idle + 1
            yield fresh, len(seen) >= promised


def read_answer(data: bytes) -> tuple[list[dict], int]:
    """(Suggestions or images, how many of them there are). Raises ValueError, KeyError and more on strange answers."""
    answer = json.loads(data)
    answer = answer.get("query_response", answer)
    items = answer["images"] if "images" in answer else answer["suggestions"]
    total = int(answer.get("total_number_of_results") or 0)
    return [item for item in items if isinstance(item, dict)], total


def is_film(item: dict) -> bool:
    """Whether a suggestion is a film with an id and a name."""
    is_movie = item.get("entity", "ENTITY_MOVIE") == "ENTITY_MOVIE"
    return bool(is_movie and as_id(item.get("id")) and isinstance(item.get("name"), str))


def search_request(movie: str) -> dict:
    """The body that asks for all frames of a film, without the page; FLIM wants every field, nothing is excluded."""
    texts = "full_text similar_picture_id dop director brand agency production_company actor creator artist"
    lists = "aspect_ratio genres movie_types colors shot_types number_of_persons years safety_content"
    search = dict.fromkeys(f"{texts} collection_id board_id".split(), "")
    search["movie_id"] = movie
    search["filters"] = {name: [] for name in f"{lists} has_video_cuts camera_motions".split()}
    search["saved_images"] = False
    search["negative_filters"] = {name: [] for name in lists.split()}
    return {"search": search, "sort_by": "", "order_by": "", "number_per_pages": PER_PAGE}


def read_frame(image: dict, movie: str) -> FlimFrame | None:
    """A frame of a search's answer; None where it has no id or is another film's."""
    identity = as_id(image.get("id"))
    if identity is None or as_id(image.get("movie_id")) not in (None, movie):
        return None
    url = image.get("medium_resolution_url") or image.get("full_resolution_url")
    ms = image.get("shot_time")
    is_time = type(ms) in (int, float) and 0 <= ms < 1e9
    return FlimFrame(identity=identity, url=url if isinstance(url, str) else "", ms=ms if is_time else None)


class Film:
    """A film's folder. An image that is there is whole; frames.jsonl tells of them when the film is done with."""

    def __init__(self, folder: Path, entry: dict):
        for part in folder.glob(".*.part"):  # of a run that was killed
            part.unlink()
        self.folder = folder
        self.entry = entry  # its line of ids.jsonl: wanted, id, name, folder; frames and complete when it is finished
        self.frames: list[FlimFrame] = []  # that FLIM has
        self.jobs: list[Future] = []  # downloads
        self.complete = False  # all frames are listed that FLIM promised
        self.counts = Counter()  # listed, had, and what came of the downloads: new, gone, failed, left
        self.had = set(self.images())  # stems of files

    def images(self) -> dict[str, Path]:
        """{stem: path} of the images in the folder."""
        return {path.stem: path for path in self.folder.glob("*") if path.suffix in IMAGE_SUFFIXES}

    def order(
        self, frames: list[FlimFrame], pool: ThreadPoolExecutor, session: requests.Session, check: Callable
    ) -> None:
        """Have the frames downloaded that are not there. check: as check_image."""
        for frame in frames:
            self.frames.append(frame)
            if file_stem(frame.identity) not in self.had:
                self.jobs.append(pool.submit(self.download, session, frame, check))
        self.counts["listed"] = len(self.frames)
        self.counts["had"] = len(self.frames) - len(self.jobs)

    def download(self, session: requests.Session, frame: FlimFrame, check: Callable) -> str:
        """Store a frame; returns "new", "gone" or "failed"."""
        try:
            data, suffix = fetch(session, "GET", frame.url, check)
        except FAILURES as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            hopeless = status in (401, 403, 404, 410, 451) or isinstance(error, ValueError)
            outcome = "gone" if hopeless else "failed"
            tqdm.write(f"{self.folder.name}: {frame.identity[:60]!r} {outcome}: {str(error)[-160:]!r}", file=sys.stderr)
            return outcome
        with atomic_write(self.folder / f"{file_stem(frame.identity)}{suffix}") as file:
            file.write(data)
        return "new"

    def finish(self, timeout: float | None = None) -> None:
        """Wait for the frames, count what came, write frames.jsonl. Raises what a thread met, as a full disk."""
        wait(self.jobs, timeout)
        for job in self.jobs:
            self.counts[job.result() if job.done() and not job.cancelled() else "left"] += 1
        path = self.folder / "frames.jsonl"
        images = self.images()
        lines = {line["file"]: line for line in read_lines(path) if Path(line.get("file", "")).stem in images}
        for frame in self.frames:
            if image := images.get(file_stem(frame.identity)):
                lines[image.name] = self.describe(frame, image)
        if lines:
            write_lines(path, sorted(lines.values(), key=lambda line: line.get("shot_time_ms") or 0))

    def describe(self, frame: FlimFrame, image: Path) -> dict:
        """The line of frames.jsonl of a frame that was stored as image."""
        with Image.open(image) as picture:
            size = picture.size
        return frame_line(
            image.name, identity=frame.identity, url=frame.url, ms=frame.ms, shot=None, size=size, source="flim"
        )


def read_wanted(path: Path) -> list[str]:
    """Titles of a text file, a line each; empty lines and lines that start with "# " do not count."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}; give a UTF-8 text with a line a film, Title (Year)", 2) from None
    wanted = list(dict.fromkeys(line for line in lines if line and not f"{line} ".startswith("# ")))
    if not wanted:
        raise UserError(f"{path}: no titles in it; a line a film, Title (Year)", 2)
    return wanted


def scrape_flim(
    wanted: list[str], out: Path, *, api: str = API, token: str = "", rate: float = 2.0, max_frames: int | None = None
) -> dict:
    """Download the stills of the wanted films to out/<Title (Year)>/; a run that was stopped continues.

    rate: API calls per second. max_frames: per film, None for all. Returns {"films": {title: counts}, "unmatched":
    {title: near names}, "errors": {title: reason}, "stopped": bool}. Raises UserError or OSError where nothing can go
    on.
    """
    flim = Flim(api, token, rate)
    with lock(out), tqdm(wanted, unit="film", disable=None) as titles:
        run = FlimRun(out, flim, max_frames or sys.maxsize)
        stopped = False
        try:
            for title in titles:
                run.start(title)
                if len(run.under_way) > 1:  # not further ahead: addresses may run out
                    run.finish(run.under_way[0])
            for film in list(run.under_way):
                run.finish(film)
            run.write_unmatched()
        except KeyboardInterrupt:
            stopped = True
        finally:
            run.close()
        for film in list(run.under_way):
            run.finish(film, timeout=0)
    return {"films": run.counts, "unmatched": run.unmatched, "errors": run.errors, "stopped": stopped}


class FlimRun:
    """A run of scrape_flim: the films that are known, those under way, and what came of them."""

    def __init__(self, out: Path, flim: Flim, most: int):
        self.out = out
        self.flim = flim
        self.most = most  # frames a film
        self.session = make_session()  # for images; they don't get the token
        self.pool = ThreadPoolExecutor(WORKERS)
        self.memory = out / ".flim" / "ids.jsonl"
        self.known = {entry["wanted"]: entry for entry in read_lines(self.memory)}  # also of earlier runs
        self.under_way: list[Film] = []
        self.counts: dict[str, Counter] = {}  # by folder
        self.unmatched: dict[str, list[str]] = {}  # wanted title: near names
        self.errors: dict[str, str] = {}  # wanted title: reason

    @functools.cached_property
    def reader(self) -> ReadingPool:
        """Where pictures are checked; its process starts with the first film that lacks some."""
        return ReadingPool(check_image)

    def close(self) -> None:
        """Stop downloading; nothing that is under way is waited for."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        if "reader" in vars(self):
            self.reader.close()

    def start(self, title: str) -> None:
        """Find a film, list its frames and have them downloaded; what fails is noted."""
        try:
            if entry := self.known.get(title) or self.find(title):
                self.list_frames(entry)
        except FAILURES as error:
            self.errors[title] = str(error)[-160:]
            tqdm.write(f"{title}: {str(error)[-160:]}", file=sys.stderr)

    def find(self, title: str) -> dict | None:
        """Ask FLIM for a film and remember it; None where FLIM does not have it."""
        found, near = self.flim.find(title)
        if found is None:
            self.unmatched[title] = near
            return None
        folder = folder_name(found["name"])
        others = [entry["folder"].casefold() for entry in self.known.values() if entry["id"] != found["id"]]
        if folder.casefold() in others:  # another film of the same name
            folder += f" {short_hash(found['id'])}"
        self.known[title] = {"wanted": title, **found, "folder": folder}
        write_lines(self.memory, self.known.values())
        return self.known[title]

    def list_frames(self, entry: dict) -> None:
        """Have a known film's frames downloaded as FLIM lists them, unless all that is wanted of it is there."""
        if entry["folder"] in self.counts:  # two lines of the list are one film
            return
        film = Film(self.out / entry["folder"], entry)
        self.counts[entry["folder"]] = film.counts
        if entry.get("complete") or entry.get("frames", -1) >= self.most:
            film.counts["listed"] = film.counts["had"] = min(entry["frames"], self.most)
            return
        self.under_way.append(film)
        check = functools.partial(check_in_process, self.reader)
        for fresh, film.complete in self.flim.pages(entry["id"]):
            film.order(fresh[: self.most - len(film.frames)], self.pool, self.session, check)
            if len(film.frames) >= self.most:
                break

    def finish(self, film: Film, timeout: float | None = None) -> None:
        """Wait for a film's downloads, and remember whether they are all there."""
        film.finish(timeout)
        if film.counts["failed"]:
            self.errors.setdefault(film.entry["wanted"], "frames failed")
        if film.counts["had"] + film.counts["new"] == len(film.frames):
            film.entry["frames"] = len(film.frames)
            film.entry["complete"] = film.complete and len(film.frames) < self.most
        write_lines(self.memory, self.known.values())
        self.under_way.remove(film)

    def write_unmatched(self) -> None:
        """Write unmatched.txt: titles that were not found, with near names, to be corrected and given again.

        Those that failed stand there too, so that a title that was corrected stays until its film is whole.
        """
        entries = ["\n# ".join([title, *near]) for title, near in self.unmatched.items()]
        entries += self.errors
        path = self.out / "unmatched.txt"
        path.unlink(missing_ok=True)
        if entries:
            path.write_text("\n".join(entries) + "\n", encoding="utf-8", errors="replace")


# ------------------------------------------------------------------------------------------------- video


def video_mark(parts: tuple[Path, ...]) -> str:
    """A short name for a film's video files, wherever they lie and whatever film they are said to be.

    By what stands in their middles: all first parts of DVDs have one name and one size.
    """
    about = []
    for part in parts:
        with open(part, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size // 2)
            middle = hashlib.sha256(file.read(1 << 16)).hexdigest()
            about.append(f"{part.name} {size} {middle}")
    return short_hash(" ".join(about))


def mark_of_before(part: Path) -> str:
    """How the frames of a file were named up to 2026-11."""
    return short_hash(f"{part.name} {part.stat().st_size}")


def remove_video(folders: Iterable[Path], mark: str, keep: set[Path]) -> None:
    """Remove the frames of a video from folders of films, but those to keep."""
    for folder in folders:
        for image in folder.glob(f"{mark}_*"):
            if image not in keep:
                image.unlink()
        sidecar = folder / "frames.jsonl"
        before = read_lines(sidecar)
        lines = [line for line in before if mark not in str(line.get("file")) or folder / line["file"] in keep]
        if lines and lines != before:
            write_lines(sidecar, lines)
        elif not lines:
            sidecar.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


@dataclass(frozen=True)
class VideoSettings:
    """Which frames of a video are written, and how."""

    per_shot: int | None  # frames a shot; None where sampling says which
    sampling: Sampling
    blur: float  # the least sharpness; 0 for all frames, also black ones
    width: int  # pixels, at most

    def describe(self) -> list:
        """What frames.jsonl says of how a film's frames were made."""
        made = [self.per_shot or 1, self.sampling.every, self.blur, self.width]
        if self.per_shot is None and self.sampling.every is None:
            made.append(f"keyframes {self.sampling.max_gap:g}")
        if self.sampling.skip_start or self.sampling.skip_end:
            made.append(f"skip {self.sampling.skip_start:g} {self.sampling.skip_end:g}")
        return made


@dataclass(frozen=True)
class VideoJob:
    """A film for a process to take frames from."""

    parts: tuple[Path, ...]
    mark: str
    folder: Path  # where the frames go for now
    settings: VideoSettings
    threads: int


@dataclass
class ScrapedVideo:
    """What a process gives back."""

    lines: list[dict]  # of frames.jsonl
    seconds: float  # of the last frame that was read
    damage: str | None  # see Video


def scrape_video(job: VideoJob, report: Callable[[float, float], None]) -> ScrapedVideo:
    """Write the frames of a film that are sharp enough to job.folder. report(seconds, duration): how far it is.

    Raises UserError where there is none.
    """
    shutil.rmtree(job.folder, ignore_errors=True)  # of a run that was killed
    job.folder.mkdir(parents=True)
    with Video(*job.parts) as video:
        longer = max(1.0, video.height / video.width)
        report(0.0, video.duration)
    settings = job.settings
    shots = detect_shots(job, longer, report) if settings.per_shot else None
    lines = []
    seconds = 0.0
    with Video(*job.parts, longest_side=round(settings.width * max(1.0, longer)), threads=job.threads) as video:
        frames = video.frames_at(shots.moments(settings)) if shots else video.frames(settings.sampling)
        for frame in frames:
            seconds = frame.time_ms / 1000
            report(seconds, video.duration)
            if is_good(frame.rgb, settings.blur):
                shot = shots.name(job.mark, seconds) if shots else None
                name = f"{job.mark}_{frame.time_ms:08}"
                lines.append(save_video_frame(frame.rgb, job.folder, name, settings.width, frame.time_ms, shot))
        damage = shots.damage if shots else video.damage
    if not lines:
        raise UserError(damage or "no frame of it is bright and sharp enough (see --blur)")
    return ScrapedVideo(lines, seconds, damage)


@dataclass
class Shots:
    """The shots of a film."""

    starts: list[float]  # seconds
    end: float  # seconds, of the last one
    damage: str | None  # see Video

    def moments(self, settings: VideoSettings) -> list[float]:
        """Seconds of the frames to take: per_shot of each shot, at equal distances."""
        sampling = settings.sampling
        moments = []
        for start, end in itertools.pairwise([*self.starts, self.end]):
            for k in range(1, settings.per_shot + 1):
                moments.append(start + (end - start) * (k / (settings.per_shot + 1)))
        return [moment for moment in moments if sampling.skip_start <= moment <= self.end - sampling.skip_end]

    def name(self, mark: str, seconds: float) -> str:
        """What frames.jsonl calls the shot at this time."""
        return f"{mark}-{bisect.bisect_right(self.starts, seconds + 1e-3) - 1}"


def detect_shots(job: VideoJob, longer: float, report: Callable[[float, float], None]) -> Shots:
    """The shots of a film, by PySceneDetect. longer: height / width, or 1."""
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    detector = AdaptiveDetector()
    times = []
    starts = []
    with Video(*job.parts, longest_side=round(SHOT_WIDTH * longer), threads=job.threads) as video:
        for number, frame in enumerate(video.all_frames()):
            times.append(frame.time_ms / 1000)
            bgr = np.ascontiguousarray(frame.rgb[..., ::-1])
            # it only counts frames, so any rate will do; how long they last is known from the video
            starts += [times[cut.frame_num] for cut in detector.process_frame(FrameTimecode(number, 25.0), bgr)]
            report(times[-1], video.duration)
        damage = video.damage
    if not times:
        raise UserError(damage or "no frame in it")
    return Shots([times[0], *starts], times[-1], damage)


def is_good(rgb: np.ndarray, blur: float) -> bool:
    """Whether a frame is not black, a fade or a title, and as sharp as blur asks; blur 0 takes all."""
    return not blur or (not is_flat(rgb) and sharpness(rgb) >= blur)


def sharpness(rgb: np.ndarray) -> float:
    """Variance of the Laplacian at 480 pixels of width (Pech-Pacheco et al. 2000). rgb: uint8 [H, W, 3]."""
    height = max(2, round(rgb.shape[0] * 480 / rgb.shape[1]))
    grey = np.asarray(Image.fromarray(rgb).convert("L"), np.float64)
    grey = mean_by_area(mean_by_area(grey, height).T, 480).T.round()
    around = np.pad(grey, 1, mode="reflect")
    neighbours = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]
    return float((neighbours - 4 * grey).var())


def mean_by_area(values: np.ndarray, count: int) -> np.ndarray:
    """Float [n, m] resized to [count, m]: each row is the mean over a stretch of rows, which may begin within one."""
    sums = np.pad(values.cumsum(axis=0), ((1, 0), (0, 0)))
    edges = np.linspace(0, len(values), count + 1)
    below = np.minimum(edges.astype(int), len(values) - 1)
    at_edges = sums[below] + (edges - below)[:, None] * values[below]
    return np.diff(at_edges, axis=0) * (count / len(values))


def save_video_frame(rgb: np.ndarray, folder: Path, name: str, width: int, ms: int, shot: str | None) -> dict:
    """Write a frame, at most width pixels wide, as a JPEG of this name; returns its line of frames.jsonl."""
    image = Image.fromarray(rgb)
    image.thumbnail((width, sys.maxsize), Image.Resampling.LANCZOS)
    packed = io.BytesIO()  # Pillow would not say that the disk is full
    image.save(packed, "JPEG", quality=92)
    (folder / f"{name}.jpg").write_bytes(packed.getvalue())
    return frame_line(f"{name}.jpg", identity=name, url=None, ms=ms, shot=shot, size=image.size, source="video")


@dataclass(frozen=True)
class Encoding:
    """Files of a film that frames are to be taken from; if they are broken, others follow."""

    name: str  # of the film's folder
    parts: tuple[Path, ...]
    others: tuple[tuple[Path, ...], ...]  # further encodings, the best first
    marks: frozenset[str]  # of every encoding of the film, and of each of their files
    marks_of_before: frozenset[str]  # of these files, by which frames in the film's folder may be named yet

    def follow(self) -> "Encoding":
        """The next one."""
        parts, *others = self.others
        return replace(self, parts=parts, others=tuple(others))


class VideoRun:
    """A run of scrape.py video: films to take frames from, and what came of them."""

    def __init__(self, out: Path, settings: VideoSettings, processes: int, cores: int):
        self.out = out
        self.settings = settings
        self.processes = processes
        self.cores = cores
        self.threads = 1
        self.failed = 0
        self.names: set[str] = set()  # folders of the films
        self.bar: FilmBar | None = None

    def scrape(self, films: list[ShelfFilm]) -> None:
        """Take the frames of all films; one that fails is a line. Raises OSError where the disk is full."""
        self.processes = min(self.processes, len(films))
        self.threads = max(1, self.cores // self.processes)
        self.names = {folder_name(film.title) for film in films}
        with FilmBar(len(films), sum(count_bytes(film.parts) for film in films)) as self.bar:
            jobs = []
            for film in films:
                first = Encoding(folder_name(film.title), film.parts, film.copies, *all_marks(film))
                if encoding := self.next_to_do(first):
                    jobs.append(self.start(encoding))
                else:
                    self.bar.count(Job(None, size=count_bytes(film.parts)), film_done=True)
            run_side_by_side(scrape_video, jobs, self.processes, self.bar, self.take)
        shutil.rmtree(self.out / ".video", ignore_errors=True)

    def next_to_do(self, encoding: Encoding | None) -> Encoding | None:
        """The best encoding, from this one on, that is to be read; None where all that is wanted is there."""
        while encoding:
            lines = self.finished(encoding)
            if not lines:
                return encoding
            if not (lines[0].get("partial") and encoding.others):
                self.remove_others(encoding, {self.out / encoding.name / line["file"] for line in lines})
                self.tell(encoding, f"{len(lines)} frames, as before", lines[0].get("partial"))
                return None
            encoding = encoding.follow()
        return None

    def finished(self, encoding: Encoding) -> list[dict]:
        """The lines of frames.jsonl of an encoding whose frames are there as they are wanted; else none."""
        mark = mark_or_none(encoding.parts)
        lines = [line for line in self.lines(encoding) if mark and line["file"].startswith(mark)]
        made = self.settings.describe()
        folder = self.out / encoding.name
        is_there = all(line.get("made") == made and (folder / line["file"]).exists() for line in lines)
        return lines if is_there else []

    def lines(self, encoding: Encoding) -> list[dict]:
        """Lines of frames.jsonl of a film that are of videos."""
        lines = read_lines(self.out / encoding.name / "frames.jsonl")
        return [line for line in lines if line.get("source") == "video" and isinstance(line.get("file"), str)]

    def start(self, encoding: Encoding) -> Job:
        """The job of an encoding."""
        mark = mark_or_none(encoding.parts) or "gone"
        folder = self.out / ".video" / f"{mark}-{short_hash(encoding.name)}"
        job = VideoJob(encoding.parts, mark, folder, self.settings, self.threads)
        return Job(job, about=encoding, size=count_bytes(encoding.parts))

    def take(self, job: Job, result: ScrapedVideo | UserError, waiting: deque[Job]) -> None:
        """Put the frames of a film into its folder, or have its next encoding tried."""
        encoding: Encoding = job.about
        reason = self.refuse(encoding, result)
        whole = not reason and not result.damage
        if not reason:
            self.put(encoding, job.argument, result)
        shutil.rmtree(job.argument.folder, ignore_errors=True)
        if reason:
            self.bar.say(f"scrape.py: error: {encoding.parts[0]}: {reason}", error=True)
        else:
            self.tell(encoding, f"{len(result.lines)} frames", result.damage)
        following = None if whole or not encoding.others else self.next_to_do(encoding.follow())
        self.bar.count(job, film_done=not following)
        if following:
            waiting.appendleft(self.start(following))
        elif reason:
            self.failed += not self.has_one_of(encoding)

    def has_one_of(self, encoding: Encoding) -> bool:
        """Whether frames of one of a film's encodings are there."""
        files = [line["file"] for line in self.lines(encoding)]
        return any(file.startswith(mark) for file in files for mark in encoding.marks | encoding.marks_of_before)

    def refuse(self, encoding: Encoding, result: ScrapedVideo | UserError) -> str | None:
        """Why the frames that are there stay; None where those of the result take their place."""
        if isinstance(result, UserError):
            return str(result).removeprefix(f"{encoding.parts[0]}: ")[:200]
        before = [line for line in self.lines(encoding) if isinstance(line.get("shot_time_ms"), (int, float))]
        reached = max((line["shot_time_ms"] for line in before), default=0) / 1000
        was_whole = bool(before) and not any(line.get("partial") for line in before)
        if result.damage and before and (was_whole or result.seconds <= reached):
            return f"{result.damage}; the {len(before)} frames that are there stay"
        if not result.damage and was_whole and result.seconds < SHORTER * reached and self.changed(encoding, before):
            end = format_clock(result.seconds)
            return f"ends at {end}; the {len(before)} frames that are there, up to {format_clock(reached)}, stay"
        return None

    def changed(self, encoding: Encoding, before: list[dict]) -> bool:
        """Whether these frames were made as they are now, so that only the file can be why there are fewer."""
        return any(line.get("made") == self.settings.describe() for line in before)

    def put(self, encoding: Encoding, job: VideoJob, result: ScrapedVideo) -> None:
        """Move frames into the film's folder, then remove those of its other encodings and of other settings."""
        folder = self.out / encoding.name
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for line in result.lines:
            os.replace(job.folder / line["file"], folder / line["file"])
            lines.append({**line, "made": self.settings.describe()})
            if result.damage:
                lines[-1]["partial"] = result.damage
        sidecar = folder / "frames.jsonl"
        others = [line for line in read_lines(sidecar) if job.mark not in str(line.get("file"))]
        write_lines(sidecar, others + lines)
        self.remove_others(encoding, {folder / line["file"] for line in lines})

    def remove_others(self, encoding: Encoding, keep: set[Path]) -> None:
        """Remove the frames of all encodings of a film but those to keep, also from folders of titles of before."""
        own = self.out / encoding.name
        others = [folder for folder in self.out.glob("[!.]*/") if folder.name not in self.names]
        for mark in encoding.marks:
            remove_video([own, *others], mark, keep)
        for mark in encoding.marks_of_before:
            remove_video([own], mark, keep)

    def tell(self, encoding: Encoding, what: str, partial: str | None) -> None:
        """Say what was taken of a film, and which encodings were left out. partial: see Video.damage."""
        what += f", in part: {partial}" if partial else ""
        others = "".join(f"; left out, another encoding of it: {parts[0].name}" for parts in encoding.others)
        self.bar.say(f"{encoding.parts[0].name} -> {encoding.name}: {what}{others}")


def mark_or_none(parts: tuple[Path, ...]) -> str | None:
    """video_mark, None where a file is gone."""
    try:
        return video_mark(parts)
    except OSError:
        return None


def all_marks(film: ShelfFilm) -> tuple[frozenset[str], frozenset[str]]:
    """(Marks of a film's encodings and of each of their files, which a run may have taken alone; marks of before)."""
    encodings = [film.parts, *film.copies]
    files = [part for parts in encodings for part in parts]
    marks = map(mark_or_none, [*encodings, *((file,) for file in files)])
    return frozenset(mark for mark in marks if mark), frozenset(mark_of_before(file) for file in files if file.exists())


# ------------------------------------------------------------------------------------------------ titles


def read_tsv(path: Path, columns: str) -> Iterator[tuple[str, ...]]:
    """Yield these columns of the rows of an IMDb .tsv.gz (or .tsv). Raises UserError."""
    open_text = gzip.open if path.suffix == ".gz" else open
    names = columns.split()
    try:
        with open_text(path, "rt", encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)  # a " is a letter
            header = next(rows, [])
            if missing := [name for name in names if name not in header]:
                raise UserError(f"{path}: has no column {missing[0]}; give IMDb's file of that name", 2)
            pick = itemgetter(*map(header.index, names))
            yield from (pick(row) for row in rows if len(row) == len(header))
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error}; download it", 2) from None
    except (EOFError, OSError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {error}; download it again") from None


@dataclass
class RankedFilm:
    """A film of IMDb's datasets."""

    title: str  # Title (Year)
    tconst: str  # IMDb's id
    rating: float
    votes: int
    ru: str = ""  # the Russian title


def top_titles(basics: Path, ratings: Path, akas: Path | None = None, *, top: int, min_votes: int) -> list[RankedFilm]:
    """The best films of the IMDb datasets, no adult ones, with Russian titles where akas is given."""
    scores = {}
    for tconst, rating, votes in read_tsv(ratings, "tconst averageRating numVotes"):
        if int(votes) >= min_votes:
            scores[tconst] = float(rating), int(votes)
    films: dict[str, RankedFilm] = {}
    for tconst, kind, name, adult, year in read_tsv(basics, "tconst titleType primaryTitle isAdult startYear"):
        if kind == "movie" and adult != "1" and tconst in scores and year.isdecimal():
            film = RankedFilm(f"{name} ({year})", tconst, *scores[tconst])
            other = films.get(film.title)
            if other is None or film.votes >= other.votes:  # of two of a name, the one that is better known
                films[film.title] = film
    best = sorted(films.values(), key=attrgetter("rating", "votes"), reverse=True)[:top]
    if akas:
        add_russian_titles(best, akas)
    return best


def add_russian_titles(films: list[RankedFilm], akas: Path) -> None:
    """Set the films' Russian titles: rather the one that IMDb displays than a working title."""
    chosen = {film.tconst: film for film in films}
    for tconst, name, region, language, kind in read_tsv(akas, "titleId title region language types"):
        if tconst not in chosen or "ru" not in (region.lower(), language) or not re.search("[а-яё]", name.lower()):
            continue
        film = chosen[tconst]
        if kind == "imdbDisplay" or not film.ru:
            film.ru = name


# ------------------------------------------------------------------------------------------ command line


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Collect stills of films, or make the list of films to collect.")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "Download stills of a list of films."
    flim = commands.add_parser("flim", help="download stills from FLIM", description=text)
    add_flim_arguments(flim)
    text = "Take frames from video files."
    video = commands.add_parser("video", help="take frames from video files", description=text)
    add_video_arguments(video)
    text = "List the best-rated films of IMDb's datasets."
    titles = commands.add_parser("titles", help="make the list of films, from IMDb's datasets", description=text)
    add_titles_arguments(titles)
    return parser


def add_flim_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("titles", type=Path, help="text file, one film per line: Title (Year)")
    add("--out", type=Path, default=Path("data/raw"), help="default: %(default)s")
    add("--max-frames", type=int, help="at most this many per film (default: all)")
    add("--api", default=API, help="base URL (default: %(default)s); FLIM_TOKEN holds the token, if any")
    add("--rate", type=float, default=2.0, help="API calls per second (default: %(default)s)")


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("films", nargs="+", type=Path, help="video files or folders of them")
    add("--out", type=Path, default=Path("data/raw"), help="default: %(default)s")
    which = parser.add_mutually_exclusive_group()
    text = "frames per shot, from its middle (default: %(default)s)"
    which.add_argument("--per-shot", type=int, default=1, help=text)
    text = "instead of a frame per shot: one every so many seconds"
    which.add_argument("--every", type=float, metavar="SECONDS", help=text)
    text = "instead of a frame per shot: keyframes, as index.py add takes them, which is several times as fast"
    which.add_argument("--keyframes", action="store_true", help=text)
    add_gap_flag(parser)
    add_skip_flags(parser)
    text = "drop frames that are less sharp than this, and black ones; 0 keeps all (default: %(default)s)"
    add("--blur", type=float, default=10.0, help=text)
    add("--width", type=int, default=960, help="pixels; wider frames are scaled down (default: %(default)s)")
    text = "videos that are read at the same time (default: as many as there are cores)"
    add("--processes", type=int, metavar="N", help=text)
    add_shelf_flags(parser)


def add_titles_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--basics", type=Path, required=True, help="title.basics.tsv.gz of datasets.imdbws.com")
    add("--ratings", type=Path, required=True, help="title.ratings.tsv.gz")
    add("--akas", type=Path, help="title.akas.tsv.gz, for the Russian titles")
    text = "where to write Russian titles and IMDb ids, with --akas (default: %(default)s)"
    add("--titles-csv", default="titles.csv", help=text)
    add("--top", type=int, default=800, help="how many films (default: %(default)s)")
    add("--min-votes", type=int, default=25_000, help="leave out films with fewer votes (default: %(default)s)")


def run_flim(args: argparse.Namespace) -> int:
    wanted = read_wanted(args.titles)
    token = os.environ.get("FLIM_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise UserError("the token (FLIM_TOKEN) holds a character that no token has; copy it again", 2)
    result = scrape_flim(wanted, args.out, api=args.api, token=token, rate=args.rate, max_frames=args.max_frames)
    for title, counts in result["films"].items():
        print(f"{title}: {', '.join(f'{count} {name}' for name, count in counts.items() if count)}", flush=True)
    if result["stopped"]:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    if result["unmatched"]:
        path = args.out / "unmatched.txt"
        print(f"{len(result['unmatched'])} titles were not found: correct them in {path}, run: scrape.py flim {path}")
    if result["errors"]:
        raise UserError(f"{len(result['errors'])} films failed or lack frames; run the same command again")
    print(f"next: python filter.py {args.out}")
    return 0


def run_video(args: argparse.Namespace) -> int:
    check_sampling(args)
    shelf = find_shelf(args.films, title=args.title, titles=args.titles, with_extras=args.with_extras)
    say_passed_over(shelf)
    if args.dry_run:
        print_titles(shelf)
        return 0
    per_shot = None if args.every or args.keyframes else args.per_shot
    settings = VideoSettings(per_shot, read_sampling(args), args.blur, args.width)
    cores = count_cores()
    with lock(args.out):
        run = VideoRun(args.out, settings, args.processes or cores, cores)
        run.scrape(shelf.films)
    count = len(shelf.films)
    done = count - run.failed
    print(f"{done} of {count} films" + f"; next: python filter.py {args.out}" * bool(done))
    return 1 if run.failed else 0


def run_titles(args: argparse.Namespace) -> int:
    films = top_titles(args.basics, args.ratings, args.akas, top=args.top, min_votes=args.min_votes)
    if not films:
        raise UserError(f"no film has {args.min_votes} votes; lower --min-votes")
    if args.akas:
        with atomic_write(args.titles_csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("title", "tconst", "ru"))
            writer.writerows((film.title, film.tconst, film.ru) for film in films)
    print("\n".join(film.title for film in films))
    print(f"{len(films)} films; next: python scrape.py flim movies.txt", file=sys.stderr)
    return 0


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    for flag in ("rate", "max_frames", "per_shot", "width", "top", "processes"):
        value = getattr(args, flag, None)
        if value is not None and not value > 0:
            parser.error(f"--{flag.replace('_', '-')} must be more than 0")
    if args.command == "flim" and not re.match(r"https?://[^/]", args.api):
        parser.error(f"--api {args.api}: expected a URL that starts with http:// or https://")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service's stop is our Ctrl-C
    return {"flim": run_flim, "video": run_video, "titles": run_titles}[args.command](args)


if __name__ == "__main__":
    os._exit(main())  # threads that hang on a dead server are not waited for
