"""Collect stills of films: from FLIM, from your own video files, and make the list of films to ask for.

python scrape.py flim movies.txt --out data/raw              # one film per line, "Title (Year)"; run again to continue
python scrape.py video ~/films --out data/raw                # a frame of every shot of your own video files
python scrape.py video ~/films --every 2                     # or one every two seconds
python scrape.py titles --basics title.basics.tsv.gz --ratings title.ratings.tsv.gz --top 800 > movies.txt
echo "Sintel (2010)" > few.txt; python scrape.py flim few.txt --max-frames 20      # a small try
"""

import argparse
import contextlib
import csv
import fcntl
import gzip
import io
import itertools
import json
import os
import re
import signal
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from difflib import get_close_matches
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3 import Retry
from urllib3.exceptions import HTTPError, InvalidHeader

from answering.console import UserError, atomic_write, one_line_errors
from answering.pictures import IMAGE_SUFFIXES, MAX_BYTES, read_image
from answering.titles import folder_name, name_video, normalise_title, short_hash, split_title

API = "https://api.flim.ai"
PER_PAGE = 100
WORKERS = 16  # downloads at a time
ATTEMPTS = 8  # further tries of what failed
BACKOFF = 0.5  # seconds to wait before the first further tries; the waits double up to a minute
SLOWEST = 180  # seconds for one image or reply
FAILURES = (requests.RequestException, HTTPError, ValueError)  # what fetch raises
EMPTY_PAGES = 3  # in a row without a new frame, after which a film's search ends
VIDEO_SUFFIXES = {".mp4", ".mkv", ".avi", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv"}


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


def lock(out: Path) -> io.IOBase:
    """An open file that keeps a second run out of a folder as long as this one runs. Raises UserError."""
    out.mkdir(parents=True, exist_ok=True)
    file = open(out / ".lock", "a")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--out {out}: another scrape.py is at work there; wait for it or stop it") from None
    return file


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

    def order(self, frames: list[FlimFrame], pool: ThreadPoolExecutor, session: requests.Session) -> None:
        """Have the frames downloaded that are not there."""
        for frame in frames:
            self.frames.append(frame)
            if file_stem(frame.identity) not in self.had:
                self.jobs.append(pool.submit(self.download, session, frame))
        self.counts["listed"] = len(self.frames)
        self.counts["had"] = len(self.frames) - len(self.jobs)

    def download(self, session: requests.Session, frame: FlimFrame) -> str:
        """Store a frame; returns "new", "gone" or "failed"."""
        try:
            data, suffix = fetch(session, "GET", frame.url, check_image)
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
            run.pool.shutdown(wait=False, cancel_futures=True)
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
        for fresh, film.complete in self.flim.pages(entry["id"]):
            film.order(fresh[: self.most - len(film.frames)], self.pool, self.session)
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


def video_mark(path: Path) -> str:
    """A short name for a video, wherever it lies and whatever film it is said to be."""
    return short_hash(f"{path.name} {path.stat().st_size}")


def remove_video(out: Path, mark: str) -> None:
    """Remove the frames of a video, whatever film they were taken for."""
    for folder in {image.parent for image in out.glob(f"*/{mark}_*")}:
        for image in folder.glob(f"{mark}_*"):
            image.unlink()
        sidecar = folder / "frames.jsonl"
        lines = [line for line in read_lines(sidecar) if mark not in str(line.get("file"))]
        if lines:
            write_lines(sidecar, lines)
        else:
            sidecar.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


class Moment(NamedTuple):
    """Where in a video a frame is to be taken."""

    seconds: float
    end: float  # seconds; a frame from there on is too late
    shot: str | None


def scrape_video(path: Path, folder: Path, *, per_shot: int, every: float | None, blur: float, width: int) -> int:
    """Write frames of every shot, or one every so many seconds, to folder; returns how many.

    Frames of a sharpness under blur are left out, those wider than width pixels shrink. A video that is finished is not
    done again: frames.jsonl says how it was made.
    """
    mark = video_mark(path)
    made = [per_shot, every, blur, width]
    sidecar = folder / "frames.jsonl"
    before = [line for line in read_lines(sidecar) if mark in str(line.get("file"))]
    if before and all(line.get("made") == made and (folder / line["file"]).exists() for line in before):
        return len(before)
    moments = every_so_often(every) if every else moments_of_shots(path, mark, per_shot)
    video = open_video(path)
    remove_video(folder.parent, mark)  # last: if a package is missing, the frames of an earlier run stay
    lines = []
    for moment, ms, bgr in read_moments(video, moments):
        if ms < moment.end * 1000 and sharpness(bgr) >= blur:
            line = save_video_frame(bgr, folder, f"{mark}_{round(ms):08}", width, round(ms), moment.shot)
            lines.append({**line, "made": made})
    if not lines:
        raise UserError("not a video that can be read, or no frame of it is bright and sharp enough (see --blur)")
    write_lines(sidecar, read_lines(sidecar) + lines)
    return len(lines)


def every_so_often(seconds: float) -> Iterator[Moment]:
    """Moments from the start on, without an end."""
    return (Moment(k * seconds, sys.maxsize, None) for k in itertools.count())


def moments_of_shots(path: Path, mark: str, per_shot: int) -> list[Moment]:
    """per_shot moments of each shot of a video, at equal distances; mark: how its shots' names begin."""
    from scenedetect import AdaptiveDetector, detect

    scenes = detect(str(path), AdaptiveDetector(), show_progress=sys.stderr.isatty(), start_in_scene=True)
    moments = []
    for number, (first, last) in enumerate(scenes):
        start = first.seconds
        end = last.seconds
        for k in range(1, per_shot + 1):
            moments.append(Moment(start + (end - start) * (k / (per_shot + 1)), end, f"{mark}-{number}"))
    return moments


def open_video(path: Path):
    """OpenCV's reader of a video."""
    import cv2

    return cv2.VideoCapture(str(path))


def read_moments(video, moments: Iterable[Moment]) -> Iterator[tuple[Moment, float, np.ndarray]]:
    """Yield (moment, milliseconds, BGR uint8 [H, W, 3]) of the first frame from each moment on, to the video's end.

    video: an open cv2.VideoCapture.
    """
    import cv2

    clock = (video.get(cv2.CAP_PROP_POS_MSEC) for _ in iter(video.grab, False))  # frame rates vary
    for moment in moments:
        ms = next((ms for ms in clock if ms >= moment.seconds * 1000 - 1), None)
        if ms is None:
            return
        yield moment, ms, video.retrieve()[1]


def sharpness(bgr: np.ndarray) -> float:
    """Variance of the Laplacian at 480 pixels of width (Pech-Pacheco et al. 2000). bgr: uint8 [H, W, 3]."""
    import cv2

    height = max(1, round(bgr.shape[0] * 480 / bgr.shape[1]))
    small = cv2.resize(bgr, (480, height), interpolation=cv2.INTER_AREA)
    return cv2.Laplacian(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), cv2.CV_64F).var()


def save_video_frame(bgr: np.ndarray, folder: Path, name: str, width: int, ms: int, shot: str | None) -> dict:
    """Write a frame, at most width pixels wide, as a JPEG of this name; returns its line of frames.jsonl."""
    image = Image.fromarray(bgr[..., ::-1])
    image.thumbnail((width, sys.maxsize), Image.Resampling.LANCZOS)
    folder.mkdir(exist_ok=True)
    image.save(folder / f"{name}.jpg", quality=92)
    return frame_line(f"{name}.jpg", identity=name, url=None, ms=ms, shot=shot, size=image.size, source="video")


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
    add("--title", help="Title (Year), if there is a single film (default: from the file's name)")
    which = parser.add_mutually_exclusive_group()
    text = "frames per shot, from its middle (default: %(default)s)"
    which.add_argument("--per-shot", type=int, default=1, help=text)
    text = "instead of a frame per shot: one every so many seconds"
    which.add_argument("--every", type=float, metavar="SECONDS", help=text)
    text = "drop frames that are less sharp than this; 0 keeps all (default: %(default)s)"
    add("--blur", type=float, default=10.0, help=text)
    add("--width", type=int, default=960, help="pixels; wider frames are scaled down (default: %(default)s)")


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
    videos = find_videos(args.films)
    if args.title and len(videos) > 1:
        raise UserError(f"--title names one film, and these are {len(videos)}", 2)
    films = group_encodings(videos, args.title)
    settings = {"per_shot": args.per_shot, "every": args.every, "blur": args.blur, "width": args.width}
    failed = 0
    with lock(args.out):
        for encodings in tqdm(films, unit="film", disable=None):
            *others, best = sorted(encodings, key=lambda path: path.exists() and path.stat().st_size)
            try:
                for path in others:
                    remove_video(args.out, video_mark(path))
                name = folder_name(args.title or name_video(best)[0])
                frames = scrape_video(best, args.out / name, **settings)
            except Exception as error:  # OpenCV and PySceneDetect raise many kinds on damaged files
                failed += 1
                tqdm.write(f"scrape.py: error: {best}: {' '.join(str(error).split())[:160]}", file=sys.stderr)
            else:
                left_out = "".join(f"; left out, a smaller encoding of it: {path.name}" for path in others)
                tqdm.write(f"{best.name} -> {name}: {frames} frames{left_out}")
    print(f"{len(films) - failed} of {len(films)} videos; next: python filter.py {args.out}")
    return 1 if failed else 0


def find_videos(sources: list[Path]) -> list[Path]:
    """Video files as they are, folders as the video files in them, each once. Raises UserError where there are none."""
    videos: dict[Path, None] = {}  # in order
    for source in sources:
        found = sorted(path for path in source.rglob("[!.]*") if path.suffix.lower() in VIDEO_SUFFIXES)
        if not found and not source.is_file():
            raise UserError(f"{source}: no video file, nor a folder of them ({', '.join(sorted(VIDEO_SUFFIXES))})", 2)
        videos.update(dict.fromkeys(path.resolve() for path in found or [source]))
    return list(videos)


def group_encodings(videos: list[Path], title: str | None) -> list[list[Path]]:
    """Videos of one film (and of one part of it, where it has several) together. title: of the only film, if given."""
    if title:
        return [videos]
    films: dict[tuple[str, str], list[Path]] = {}
    for path in videos:
        its_title, part = name_video(path)
        films.setdefault((normalise_title(its_title), part), []).append(path)
    return list(films.values())


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
    for flag in ("rate", "max_frames", "per_shot", "every", "width", "top"):
        value = getattr(args, flag, None)
        if value is not None and not value > 0:
            parser.error(f"--{flag.replace('_', '-')} must be more than 0")
    if args.command == "flim" and not re.match(r"https?://[^/]", args.api):
        parser.error(f"--api {args.api}: expected a URL that starts with http:// or https://")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service's stop is our Ctrl-C
    return {"flim": run_flim, "video": run_video, "titles": run_titles}[args.command](args)


if __name__ == "__main__":
    os._exit(main())  # threads that hang on a dead server are not waited for
