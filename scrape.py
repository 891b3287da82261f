"""Collect stills of films: from FLIM, from your own video files, and the list of titles to ask for.

python scrape.py flim movies.txt --out data/raw              # a line a film, "Title (Year)"; run again to continue
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
import json
import os
import re
import signal
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from difflib import get_close_matches
from operator import itemgetter
from pathlib import Path

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
BACKOFF = 0.5  # seconds of the first waits before a further try; they double up to a minute
SLOWEST = 180  # seconds for one image or reply
FAILURES = (requests.RequestException, HTTPError, ValueError)  # what fetch raises
VIDEO_SUFFIXES = {".mp4", ".mkv", ".avi", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv"}


def match_title(wanted: str, films: list[dict]) -> dict | None:
    """The one of FLIM's films {"id", "name"} with the same normalised title, the year within one; or None."""
    title, year = split_title(wanted)
    same = [film for film in films if normalise_title(split_title(film["name"])[0]) == normalise_title(title)]
    years = [split_title(film["name"])[1] for film in same]
    if year is None:  # of a remake nobody knows then which
        return same[0] if len(set(years)) == 1 else None
    apart = [(abs(year - (its_year or 0)), film["name"] != wanted) for its_year, film in zip(years, same, strict=True)]
    return same[apart.index(min(apart))] if apart and min(apart)[0] <= 1 else None


def file_stem(identity: str) -> str:
    """A file name from an id that came from outside; ids that differ only in case stay apart on any disk."""
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", identity):
        return identity
    return f"{re.sub(r'[^a-z0-9]+', '-', identity.lower())[:40].strip('-')}-{short_hash(identity)}"


def lock(out: Path) -> io.IOBase:
    """An open file that holds out against a second run; a kill frees it too. Raises UserError."""
    out.mkdir(parents=True, exist_ok=True)
    file = open(out / ".lock", "a")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--out {out}: another scrape.py is at work there; wait for it or stop it") from None
    return file


def read_lines(path: Path) -> list[dict]:
    """Objects of a .jsonl file; a line that was cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def write_lines(path: Path, items: Iterable[dict]) -> None:
    with atomic_write(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)


def make_session(*, pause: Callable = lambda: None, token: str = "") -> requests.Session:
    """A session that tries again what failed, after growing waits or what Retry-After asks for, then pause()."""

    class PoliteRetry(Retry):
        def sleep(self, response=None) -> None:
            try:
                super().sleep(response)
            except (InvalidHeader, ValueError):  # a Retry-After that is neither seconds nor a date
                super().sleep()
            pause()

    again = {"allowed_methods": None, "status_forcelist": [408, 425, 429, *range(500, 600)], "raise_on_status": False}
    waits = {"backoff_factor": BACKOFF, "backoff_jitter": BACKOFF, "backoff_max": 60, "retry_after_max": 3600}
    adapter = HTTPAdapter(WORKERS, WORKERS, PoliteRetry(ATTEMPTS, respect_retry_after_header=True, **again, **waits))
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
                body, start = bytearray(), time.monotonic()
                while part := reply.raw.read1(1 << 16, decode_content=True):  # raises when fewer come than announced
                    body += part
                    if len(body) > MAX_BYTES:
                        raise ValueError(f"{url}: more than {MAX_BYTES // 1_000_000} MB")
                    if time.monotonic() - start > SLOWEST:
                        raise HTTPError(f"took more than {SLOWEST} s")
                return read(bytes(body))
        except ValueError:  # among them those of requests and urllib3 for addresses that are none
            raise
        except HTTPError as error:
            retry = retry.increment(method, url, error=error)
        retry.sleep()


def check_image(data: bytes) -> tuple[bytes, str]:
    """(bytes, suffix) of an image that decodes to the end. Raises HTTPError."""
    try:
        read_image(data, draft=32)  # a JPEG is read to its end at an eighth of its size, which is enough
    except UserError as error:
        raise HTTPError(str(error)) from None
    kind = Image.open(io.BytesIO(data)).format
    return data, {"JPEG": ".jpg", "MPO": ".jpg"}.get(kind, f".{kind.lower()}")


def as_id(value: object) -> str | None:
    return str(value) if type(value) in (int, str) and value != "" else None


class Flim:
    """FLIM's API: at most rate calls a second, further tries among them. Raises UserError or one of FAILURES."""

    def __init__(self, base: str, token: str, rate: float):
        self.base, self.gap, self.next = base.rstrip("/"), 1 / rate, 0.0
        self.session, self.thread = make_session(pause=self.pause, token=token), ThreadPoolExecutor(1)

    def pause(self) -> None:
        time.sleep(max(0.0, self.next - time.monotonic()))
        self.next = time.monotonic() + self.gap

    def post(self, path: str, **body) -> tuple[list[dict], int]:
        """(suggestions or images, how many of them there are) in the answer to body."""

        def read(data: bytes) -> tuple[list[dict], int]:
            try:
                answer = json.loads(data)
                answer = answer.get("query_response", answer)
                items = answer["images"] if "images" in answer else answer["suggestions"]
                return [item for item in items if isinstance(item, dict)], int(
                    answer.get("total_number_of_results") or 0
                )
            except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
                raise HTTPError(f"{path} answered something else than asked for") from None

        self.pause()
        ask = (self.session, "POST", self.base + path, read)
        try:  # in a thread, so that Ctrl-C never waits for a name server
            return self.thread.submit(fetch, *ask, json=body, allow_redirects=False).result()
        except (requests.ConnectionError, requests.HTTPError) as error:
            if error.response is None or error.response.status_code in (401, 403):
                raise UserError(f"--api {self.base}: {str(error)[-160:]}; try later or another FLIM_TOKEN") from None
            raise

    def find(self, wanted: str) -> tuple[dict | None, list[str]]:
        """({"id", "name"}, []) or, of a film that FLIM does not have, (None, the three nearest names)."""
        title, films = split_title(wanted)[0], []
        for text in dict.fromkeys((title, wanted, re.sub(r"^(the|an?)\s+", "", title, flags=re.IGNORECASE))):
            for item in self.post("/2.0.0/suggest-entities", media_type="", suggest=text)[0]:
                film = {"id": as_id(item.get("id")), "name": item.get("name")}
                movie = item.get("entity", "ENTITY_MOVIE") == "ENTITY_MOVIE"
                films += [film] if movie and film["id"] and isinstance(film["name"], str) else []
            if found := match_title(wanted, films):
                return found, []
        return None, get_close_matches(wanted, {" ".join(film["name"].split()) for film in films}, 3, cutoff=0)

    def pages(self, movie: str) -> Iterator[tuple[list[dict], bool]]:
        """Yield (new frames of a page, whether all is there that was promised), over empty pages and repeated ones."""
        names = "full_text similar_picture_id dop director brand agency production_company actor creator artist"
        search = dict.fromkeys(f"{names} collection_id board_id".split(), "") | {"movie_id": movie}
        kinds = "aspect_ratio genres movie_types colors shot_types number_of_persons years safety_content"
        search["filters"] = {kind: [] for kind in f"{kinds} has_video_cuts camera_motions".split()}
        search |= {"saved_images": False, "negative_filters": {kind: [] for kind in kinds.split(" ")}}
        request = {"search": search, "sort_by": "", "order_by": "", "number_per_pages": PER_PAGE}
        seen, page, idle, promised = set(), 0, 0, 0
        while idle < 3 and not (seen and len(seen) >= promised):
            images, total = self.post("/2.0.0/search", **request, page=page)
            promised, page, fresh = max(promised, total), page + bool(images), []
            for image in images:
                identity, ms = as_id(image.get("id")), image.get("shot_time")
                if identity and identity not in seen and as_id(image.get("movie_id")) in (None, movie):
                    seen.add(identity)
                    ms = ms if type(ms) in (int, float) and 0 <= ms < 1e9 else None
                    url = image.get("medium_resolution_url") or image.get("full_resolution_url")
                    fresh.append({"id": identity, "url": url if isinstance(url, str) else "", "shot_time_ms": ms})
            idle = 0 if fresh else idle + 1
            yield fresh, len(seen) >= promised


class Film:
    """A film's folder. An image that is there is whole; frames.jsonl tells of them when the film is done with."""

    def __init__(self, folder: Path, entry: dict):
        for part in folder.glob(".*.part"):  # of a run that was killed
            part.unlink()
        self.folder, self.entry, self.frames, self.jobs, self.complete = folder, entry, [], [], False
        self.counts, self.had = Counter(), set(self.images())

    def images(self) -> dict[str, Path]:
        return {path.stem: path for path in self.folder.glob("*") if path.suffix in IMAGE_SUFFIXES}

    def download(self, session: requests.Session, frame: dict) -> str:
        """Store a frame; returns "new", "gone" or "failed"."""
        try:
            data, suffix = fetch(session, "GET", frame["url"], check_image)
        except FAILURES as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            outcome = "gone" if status in (401, 403, 404, 410, 451) or isinstance(error, ValueError) else "failed"
            tqdm.write(f"{self.folder.name}: {frame['id'][:60]!r} {outcome}: {str(error)[-160:]!r}", file=sys.stderr)
            return outcome
        with atomic_write(self.folder / f"{file_stem(frame['id'])}{suffix}") as file:
            file.write(data)
        return "new"

    def finish(self, timeout: float | None = None) -> None:
        """Wait for the frames, count what came, write frames.jsonl. Raises what a thread met, as a full disk."""
        wait(self.jobs, timeout)
        self.counts.update(job.result() if job.done() and not job.cancelled() else "left" for job in self.jobs)
        path, images = self.folder / "frames.jsonl", self.images()
        lines = {line["file"]: line for line in read_lines(path) if Path(line.get("file", "")).stem in images}
        for frame in self.frames:
            if image := images.get(file_stem(frame["id"])):
                with Image.open(image) as picture:
                    size = {"width": picture.width, "height": picture.height}
                lines[image.name] = {"file": image.name, **frame, "shot": None, **size, "source": "flim"}
        if lines:
            write_lines(path, sorted(lines.values(), key=lambda line: line.get("shot_time_ms") or 0))


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

    rate: API calls a second. max_frames: a film, None for all. Returns {"films": {title: counts}, "unmatched": {title:
    near names}, "errors": {title: reason}, "stopped": bool}. Raises UserError or OSError where nothing can go on.
    """
    result = {"films": {}, "unmatched": {}, "errors": {}, "stopped": False}
    flim, session, pool = Flim(api, token, rate), make_session(), ThreadPoolExecutor(WORKERS)  # images: no token
    most, under_way, memory = max_frames or sys.maxsize, [], out / ".flim" / "ids.jsonl"

    def start(title: str) -> None:
        if title not in known:
            found, near = flim.find(title)
            if found is None:
                result["unmatched"][title] = near
                return
            folder = folder_name(found["name"])
            others = [entry["folder"].casefold() for entry in known.values() if entry["id"] != found["id"]]
            folder += f" {short_hash(found['id'])}" * (folder.casefold() in others)  # another film of the same name
            known[title] = {"wanted": title, **found, "folder": folder}
            write_lines(memory, known.values())
        entry = known[title]
        if entry["folder"] in result["films"]:  # two lines of the list are one film
            return
        film = Film(out / entry["folder"], entry)
        counts = result["films"][entry["folder"]] = film.counts
        if entry.get("complete") or entry.get("frames", -1) >= most:
            counts["listed"] = counts["had"] = min(entry["frames"], most)
            return
        under_way.append(film)
        for fresh, film.complete in flim.pages(entry["id"]):
            for frame in fresh[: most - len(film.frames)]:
                film.frames.append(frame)
                if file_stem(frame["id"]) not in film.had:
                    film.jobs.append(pool.submit(film.download, session, frame))
            counts["listed"], counts["had"] = len(film.frames), len(film.frames) - len(film.jobs)
            if len(film.frames) >= most:
                break

    def finish(film: Film, timeout: float | None = None) -> None:
        film.finish(timeout)
        if film.counts["failed"]:
            result["errors"].setdefault(film.entry["wanted"], "frames failed")
        if film.counts["had"] + film.counts["new"] == len(film.frames):
            film.entry |= {"frames": len(film.frames), "complete": film.complete and len(film.frames) < most}
        write_lines(memory, known.values())
        under_way.remove(film)

    with lock(out), tqdm(wanted, unit="film", disable=None) as bar:
        known = {entry["wanted"]: entry for entry in read_lines(memory)}
        try:
            for title in bar:
                try:
                    start(title)
                except FAILURES as error:
                    result["errors"][title] = str(error)[-160:]
                    tqdm.write(f"{title}: {str(error)[-160:]}", file=sys.stderr)
                if len(under_way) > 1:  # not further ahead: addresses may run out
                    finish(under_way[0])
            for film in list(under_way):
                finish(film)
            # what failed stands there too, so that a title that was corrected stays until its film is whole
            entries = ["\n# ".join([title, *near]) for title, near in result["unmatched"].items()] + [*result["errors"]]
            (out / "unmatched.txt").unlink(missing_ok=True)
            if entries:
                (out / "unmatched.txt").write_text("\n".join(entries) + "\n", encoding="utf-8", errors="replace")
        except KeyboardInterrupt:
            result["stopped"] = True
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for film in list(under_way):
            finish(film, 0)
    return result


def video_mark(path: Path) -> str:
    """A short name for a video, wherever it lies and whatever film it is said to be."""
    return short_hash(f"{path.name} {path.stat().st_size}")


def remove_video(out: Path, mark: str) -> None:
    """Remove the frames of a video, whatever film they were taken for."""
    for folder in {image.parent for image in out.glob(f"*/{mark}_*")}:
        for image in folder.glob(f"{mark}_*"):
            image.unlink()
        lines = [line for line in read_lines(folder / "frames.jsonl") if mark not in str(line.get("file"))]
        write_lines(folder / "frames.jsonl", lines)
        if not lines:
            (folder / "frames.jsonl").unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()


def scrape_video(path: Path, folder: Path, *, per_shot: int, every: float | None, blur: float, width: int) -> int:
    """Write frames of every shot, or one every so many seconds, to folder; returns how many.

    Frames whose variance of the Laplacian at 480 pixels of width (Pech-Pacheco 2000) is less than blur are left out,
    those wider than width pixels shrink. A video that is finished is not done again: frames.jsonl says how it was made.
    """
    import cv2

    mark, made, lines = video_mark(path), [per_shot, every, blur, width], []
    before = [line for line in read_lines(folder / "frames.jsonl") if mark in str(line.get("file"))]
    if before and all(line.get("made") == made and (folder / line["file"]).exists() for line in before):
        return len(before)
    remove_video(folder.parent, mark)
    if every:
        places = ((k * every, sys.maxsize, None) for k in range(sys.maxsize))
    else:
        from scenedetect import AdaptiveDetector, detect

        scenes = detect(str(path), AdaptiveDetector(), show_progress=sys.stderr.isatty(), start_in_scene=True)
        shots = [(start.seconds, end.seconds, f"{mark}-{number}") for number, (start, end) in enumerate(scenes)]
        parts = [k / (per_shot + 1) for k in range(1, per_shot + 1)]
        places = ((start + (end - start) * part, end, shot) for start, end, shot in shots for part in parts)
    video = cv2.VideoCapture(str(path))
    clock = (video.get(cv2.CAP_PROP_POS_MSEC) for _ in iter(video.grab, False))  # frame rates vary
    for seconds, end, shot in places:
        ms = next((ms for ms in clock if ms >= seconds * 1000 - 1), None)
        if ms is None:
            break
        bgr = video.retrieve()[1]
        small = cv2.resize(bgr, (480, max(1, round(bgr.shape[0] * 480 / bgr.shape[1]))), interpolation=cv2.INTER_AREA)
        if ms < end * 1000 and cv2.Laplacian(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), cv2.CV_64F).var() >= blur:
            image, name = Image.fromarray(bgr[..., ::-1]), f"{mark}_{round(ms):08}"
            image.thumbnail((width, sys.maxsize), Image.Resampling.LANCZOS)
            folder.mkdir(exist_ok=True)
            image.save(folder / f"{name}.jpg", quality=92)
            line = {"file": f"{name}.jpg", "id": name, "url": None, "shot_time_ms": round(ms), "shot": shot}
            lines.append(line | {"width": image.width, "height": image.height, "source": "video", "made": made})
    if not lines:
        raise UserError("not a video that can be read, or no frame of it is bright and sharp enough (see --blur)")
    write_lines(folder / "frames.jsonl", read_lines(folder / "frames.jsonl") + lines)
    return len(lines)


def read_tsv(path: Path, columns: str) -> Iterator[tuple[str, ...]]:
    """Yield these columns of the rows of an IMDb .tsv.gz (or .tsv). Raises UserError."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)  # a " is a letter
            header = next(rows, [])
            if missing := [name for name in columns.split() if name not in header]:
                raise UserError(f"{path}: has no column {missing[0]}; give IMDb's file of that name", 2)
            pick = itemgetter(*map(header.index, columns.split()))
            yield from (pick(row) for row in rows if len(row) == len(header))
    except (EOFError, OSError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        missing = isinstance(error, FileNotFoundError)
        raise UserError(f"{path}: {error}; download it{'' if missing else ' again'}", 2 if missing else 1) from None


def top_titles(basics: Path, ratings: Path, akas: Path | None = None, *, top: int, min_votes: int) -> list[dict]:
    """The best films of the IMDb datasets, no adult ones: [{"title", "tconst", "rating", "votes", "ru"}, ...]."""
    scores, films = {}, {}
    for tconst, rating, votes in read_tsv(ratings, "tconst averageRating numVotes"):
        if int(votes) >= min_votes:
            scores[tconst] = {"rating": float(rating), "votes": int(votes)}
    for tconst, kind, name, adult, year in read_tsv(basics, "tconst titleType primaryTitle isAdult startYear"):
        if kind == "movie" and adult != "1" and tconst in scores and year.isdecimal():
            film = {"title": f"{name} ({year})", "tconst": tconst, "ru": "", **scores[tconst]}
            films[film["title"]] = max(film, films.get(film["title"], film), key=itemgetter("votes"))  # two of a name
    best = sorted(films.values(), key=itemgetter("rating", "votes"), reverse=True)[:top]
    chosen = {film["tconst"]: film for film in best}
    for tconst, name, region, language, kind in read_tsv(akas, "titleId title region language types") if akas else ():
        if tconst in chosen and "ru" in (region.lower(), language) and re.search("[а-яё]", name.lower()):
            film = chosen[tconst]
            film["ru"] = name if kind == "imdbDisplay" else film["ru"] or name  # rather that than a working title
    return best


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Collect stills of films, and the list of titles.")
    commands = parser.add_subparsers(dest="command", required=True)
    flim = commands.add_parser("flim", help="stills from FLIM", description="Download stills of a list of films.")
    flim.add_argument("titles", type=Path, help="text file, a line a film: Title (Year)")
    flim.add_argument("--out", type=Path, default=Path("data/raw"), help="default: %(default)s")
    flim.add_argument("--max-frames", type=int, help="at most this many a film (default: all)")
    flim.add_argument("--api", default=API, help="base URL (default: %(default)s); FLIM_TOKEN holds the token, if any")
    flim.add_argument("--rate", type=float, default=2.0, help="API calls a second (default: %(default)s)")
    video = commands.add_parser("video", help="frames of video files", description="Take frames of video files.")
    video.add_argument("films", nargs="+", type=Path, help="video files or folders of them")
    video.add_argument("--out", type=Path, default=Path("data/raw"), help="default: %(default)s")
    video.add_argument("--title", help="Title (Year), for a single film (default: from the file's name)")
    which = video.add_mutually_exclusive_group()
    which.add_argument("--per-shot", type=int, default=1, help="frames a shot, from its middle (default: %(default)s)")
    which.add_argument("--every", type=float, metavar="SECONDS", help="instead: a frame every so many seconds")
    video.add_argument("--blur", type=float, default=10.0, help="least sharpness; 0 keeps all (default: %(default)s)")
    video.add_argument("--width", type=int, default=960, help="pixels; wider frames shrink (default: %(default)s)")
    titles = commands.add_parser("titles", help="the list of titles", description="The best films of IMDb's datasets.")
    titles.add_argument("--basics", type=Path, required=True, help="title.basics.tsv.gz of datasets.imdbws.com")
    titles.add_argument("--ratings", type=Path, required=True, help="title.ratings.tsv.gz")
    titles.add_argument("--akas", type=Path, help="title.akas.tsv.gz, for the Russian titles")
    titles.add_argument("--titles-csv", default="titles.csv", help="with --akas (default: %(default)s)")
    titles.add_argument("--top", type=int, default=800, help="films (default: %(default)s)")
    titles.add_argument("--min-votes", type=int, default=25_000, help="fewer do not count (default: %(default)s)")
    return parser


def run_flim(args: argparse.Namespace) -> int:
    wanted, token = read_wanted(args.titles), os.environ.get("FLIM_TOKEN", "").strip()
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
    videos: dict[Path, None] = {}
    for source in args.films:
        found = sorted(path for path in source.rglob("[!.]*") if path.suffix.lower() in VIDEO_SUFFIXES)
        if not found and not source.is_file():
            raise UserError(f"{source}: no video file, nor a folder of them ({', '.join(sorted(VIDEO_SUFFIXES))})", 2)
        videos |= dict.fromkeys(path.resolve() for path in found or [source])
    if args.title and len(videos) > 1:
        raise UserError(f"--title names one film, and these are {len(videos)}", 2)
    films: dict[tuple, list[Path]] = {}
    for path in videos:
        title, part = (args.title, "") if args.title else name_video(path)
        films.setdefault((normalise_title(title), part), []).append(path)
    failed, settings = 0, {name: getattr(args, name) for name in ("per_shot", "every", "blur", "width")}
    with lock(args.out):
        for paths in tqdm(films.values(), unit="film", disable=None):
            *others, best = sorted(paths, key=lambda path: path.exists() and path.stat().st_size)
            try:
                for path in others:  # other encodings of this film
                    remove_video(args.out, video_mark(path))
                name = folder_name(args.title or name_video(best)[0])
                frames = scrape_video(best, args.out / name, **settings)
                also = "".join(f"; left out, a smaller encoding of it: {path.name}" for path in others)
                tqdm.write(f"{best.name} -> {name}: {frames} frames{also}")
            except Exception as error:  # OpenCV and PySceneDetect raise many kinds on damaged files
                failed += 1
                tqdm.write(f"scrape.py: error: {best}: {' '.join(str(error).split())[:160]}", file=sys.stderr)
    print(f"{len(films) - failed} of {len(films)} videos; next: python filter.py {args.out}")
    return 1 if failed else 0


def run_titles(args: argparse.Namespace) -> int:
    films = top_titles(args.basics, args.ratings, args.akas, top=args.top, min_votes=args.min_votes)
    if not films:
        raise UserError(f"no film has {args.min_votes} votes; lower --min-votes")
    if args.akas:
        with atomic_write(args.titles_csv, "w", newline="", encoding="utf-8") as file:
            rows = [("title", "tconst", "ru"), *(itemgetter("title", "tconst", "ru")(film) for film in films)]
            csv.writer(file, lineterminator="\n").writerows(rows)
    print("\n".join(film["title"] for film in films))
    print(f"{len(films)} films; next: python scrape.py flim movies.txt", file=sys.stderr)
    return 0


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    for flag in ("rate", "max_frames", "per_shot", "every", "width", "top"):
        if getattr(args, flag, None) is not None and not getattr(args, flag) > 0:
            parser.error(f"--{flag.replace('_', '-')} must be more than 0")
    if args.command == "flim" and not re.match(r"https?://[^/]", args.api):
        parser.error(f"--api {args.api}: expected a URL that starts with http:// or https://")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service's stop is our Ctrl-C
    return {"flim": run_flim, "video": run_video, "titles": run_titles}[args.command](args)


if __name__ == "__main__":
    os._exit(main())  # threads that hang on a dead server are not waited for
