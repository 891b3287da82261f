"""Collect stills of films: from FLIM, from your own video files, and the list of titles to ask for.

python scrape.py flim movies.txt --out data/raw              # a line a film, "Title (Year)"; run again to continue
python scrape.py video ~/films --out data/raw                # frames of every shot of your own video files
python scrape.py titles --basics title.basics.tsv.gz --ratings title.ratings.tsv.gz --top 800 > movies.txt
echo "Sintel (2010)" > few.txt; python scrape.py flim few.txt --max-frames 20      # a small try
"""

import argparse
import contextlib
import csv
import gzip
import hashlib
import heapq
import io
import json
import os
import queue
import re
import shutil
import signal
import sys
import threading
import time
import unicodedata
import zlib
from difflib import SequenceMatcher
from pathlib import Path
from urllib.parse import urlsplit

from PIL.Image import open as open_image
from tqdm import tqdm

from identify import MAX_BYTES, UserError, atomic_write, one_line_errors, read_image

API = "https://api.flim.ai"
AGENT = "movie-by-frame/1.0 (collects stills to train a film classifier; python-requests)"
PER_PAGE = 100
TIMEOUT = (10, 30)  # seconds to connect and between two reads
SLOWEST = 180  # seconds for one image or reply
MAX_REPLY = 50_000_000  # bytes of one answer of the API
GONE = (401, 403, 404, 410, 451)  # the image can't be had; asking again would not help
VIDEO_SUFFIXES = {".mp4", ".mkv", ".avi", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv"}
SUFFIX = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "AVIF": ".avif",
}
ROMAN = "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii xix xx"
NUMBER = {roman: str(i) for i, roman in enumerate(re.split(" ", ROMAN), 1)}
ARTICLES = {"the", "a", "an"}


# ---------------------------------------------------------------------------------------------- titles


def split_title(line: str) -> tuple[str, int | None]:
    """ "Title (Year)" -> (title, year or None)."""
    match = re.fullmatch(r"(.*?)\s*\((\d{4})\)", line.strip())
    return (match[1], int(match[2])) if match and match[1] else (line.strip(), None)


def normalise_title(title: str) -> str:
    """A key in which spellings of one title meet: case, accents, punctuation, article, & and numerals do not count."""
    text = unicodedata.normalize("NFKD", title.replace("&", " and ")).casefold()
    text = "".join(c for c in text if not unicodedata.combining(c))
    words = re.sub(r"[^\w]|_", " ", re.sub(r"['’`]", "", text)).split()
    if len(words) > 1 and words[-1] in ARTICLES and re.search(r",\s*\w+\s*$", title):  # "Matrix, The"
        words.pop()
    if len(words) > 1 and words[0] in ARTICLES:
        words = words[1:]
    return " ".join(NUMBER.get(word, word) for word in words) or title.strip().casefold()


def match_title(wanted: str, suggestions: list[dict]) -> dict | None:
    """The suggestion that is this film: ENTITY_MOVIE, the same normalised title, the year within one; or None."""
    title, year = split_title(wanted)
    key, found = normalise_title(title), []
    for place, item in enumerate(suggestions):
        name, its_year = split_title(item["name"])
        if item.get("entity", "ENTITY_MOVIE") != "ENTITY_MOVIE" or normalise_title(name) != key:
            continue
        if year is not None and (its_year is None or abs(its_year - year) > 1):
            continue
        found.append(((item["name"] != wanted, 0 if year is None else abs(its_year - year), place), its_year, item))
    if year is None and len({its_year for _, its_year, _ in found}) > 1:
        return None  # a remake: without a year nobody knows which
    return min(found, key=lambda entry: entry[0])[2] if found else None


def nearest(wanted: str, suggestions: list[dict]) -> list[str]:
    """The three suggested films whose titles are most like the wanted one."""
    key = normalise_title(split_title(wanted)[0])

    def likeness(name: str) -> float:
        return SequenceMatcher(None, key, normalise_title(split_title(name)[0])).ratio()

    names = dict.fromkeys(i["name"] for i in suggestions if i.get("entity", "ENTITY_MOVIE") == "ENTITY_MOVIE")
    return sorted(names, key=likeness, reverse=True)[:3]


def folder_name(title: str) -> str:
    """A title as the name of a folder on any system; characters that can't be there become their full-width twins."""
    text = "".join(c for c in unicodedata.normalize("NFC", title) if unicodedata.category(c)[0] != "C")
    text = re.sub(r'[<>:"/\\|?*]', lambda m: chr(ord(m[0]) + 0xFEE0), re.sub(r"\s+", " ", text)).strip(" ")
    text = re.sub(r"[. ]+$", "", text)
    reserved = re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$| )", text)
    text = f"_{text}" if reserved or text.startswith(".") else text  # a leading dot would hide the folder
    if not text:
        return f"untitled {short_hash(title)}"
    if len(text.encode()) > 150:
        text = f"{text.encode()[:139].decode(errors='ignore').strip()} {short_hash(title)}"
    return text


def file_stem(identity: str) -> str:
    """A file name from an id that came from outside; ids that differ only in case stay apart on any disk."""
    plain = re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", identity) and not re.fullmatch(
        r"(con|prn|aux|nul|(com|lpt)\d)", identity
    )
    return (
        identity if plain else f"{re.sub(r'[^a-z0-9]+', '-', identity.lower())[:40].strip('-')}-{short_hash(identity)}"
    )


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:10]


def read_lines(path: Path) -> list[dict]:
    """Objects of a .jsonl file; a line that a kill cut off is left out."""
    found = []
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                item = json.loads(line)
                found += [item] if isinstance(item, dict) else []
    return found


def append_line(path: Path, item: dict) -> None:
    """Add an object to a .jsonl file, on a line of its own even behind one that was cut off."""
    with open(path, "a+b") as file:
        file.seek(0, os.SEEK_END)
        cut = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            cut = file.read(1) != b"\n"
        file.write(b"\n" * cut + json.dumps(item, ensure_ascii=False).encode(errors="replace") + b"\n")


def write_sidecar(folder: Path, lines: list[dict]) -> None:
    """A film's frames.jsonl, an object a frame, whole or not at all."""
    with atomic_write(folder / "frames.jsonl", "w", encoding="utf-8", errors="replace") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


# ------------------------------------------------------------------------------------------------ http


class Stopped(Exception):
    """Ctrl-C: leave what you are doing."""


class Refused(Exception):
    """This can't be had, now or later."""


class Broken(Exception):
    """What came is not what was asked for; it may come right another time."""

    def __init__(self, text: str, response=None):
        super().__init__(text)
        self.response = response  # its Retry-After counts


class Limiter:
    """At most rate calls a second, over all threads."""

    def __init__(self, rate: float, stop: threading.Event):
        self.gap, self.stop, self.next, self.lock = 1 / rate, stop, 0.0, threading.Lock()

    def wait(self) -> None:
        with self.lock:
            now = time.monotonic()
            start = max(now, self.next)
            self.next = start + self.gap
        if self.stop.wait(start - now):
            raise Stopped


def make_retry(stop: threading.Event, attempts: int, limiter: Limiter | None = None):
    """urllib3's Retry: growing back-off, Retry-After obeyed, and every further try goes through the limiter too."""
    from urllib3 import Retry
    from urllib3.exceptions import InvalidHeader

    class Polite(Retry):
        def sleep(self, response=None) -> None:
            try:
                asked = self.get_retry_after(response) if response is not None else None
            except (InvalidHeader, ValueError, OverflowError):
                asked = None
            if stop.wait(asked or self.get_backoff_time()):
                raise Stopped
            if limiter:
                limiter.wait()

    return Polite(total=attempts, backoff_factor=0.5, backoff_max=60, backoff_jitter=0.5, retry_after_max=3600)


def make_session(workers: int = 1, token: str | None = None):
    import requests
    from requests.adapters import HTTPAdapter

    session = requests.Session()
    session.headers["User-Agent"] = AGENT
    session.auth = lambda request: request  # or requests would send what ~/.netrc holds for the host
    session.max_redirects = 5
    if token:
        session.headers["Authorization"] = f"Bearer {token}"
    for scheme in (
        "http://",
        "https://",
    ):  # tries are counted in persist, where a bad body counts as well as a bad status
        session.mount(scheme, HTTPAdapter(max_retries=0, pool_connections=16, pool_maxsize=workers))
    return session


def persist(call, retry):
    """call() until it returns: Broken and failed connections are tried again as long as retry has patience."""
    import requests
    from urllib3.exceptions import HTTPError, MaxRetryError

    while True:
        try:
            return call()
        except (Broken, requests.RequestException, HTTPError) as error:
            failure = error if isinstance(error, Broken) else Broken(_plain(error))
            try:
                retry = retry.increment("GET", "", error=error)
            except MaxRetryError:
                raise failure from None
        retry.sleep(failure.response)


def read_body(reply, limit: int, stop: threading.Event) -> bytes:
    """The body of a streamed reply; a server that drips is not waited for. Raises Refused over limit bytes, Broken."""
    parts, size, start = [], 0, time.monotonic()
    while part := reply.raw.read1(1 << 16, decode_content=True):  # urllib3 raises when fewer bytes come than announced
        parts.append(part)
        size += len(part)
        if stop.is_set():
            raise Stopped
        if size > limit:
            raise Refused(f"more than {limit // 1_000_000} MB")
        if time.monotonic() - start > SLOWEST:
            raise Broken(f"took more than {SLOWEST} s")
    return b"".join(parts)


def _plain(error: Exception) -> str:
    """A connection's failure in a few words, without addresses of objects."""
    root = error.args[0] if error.args else error
    root = getattr(root, "reason", None) or root
    return f"{type(error).__name__}: {re.sub(r'^.*?<[^<>]*>:? ?', '', str(root))}"[:160]


class Flim:
    """FLIM's API, as far as it is used here. Every call waits for the limiter; raises Broken or UserError."""

    def __init__(self, base: str, token: str | None, rate: float, attempts: int, stop: threading.Event):
        self.base, self.limiter, self.stop = base.rstrip("/"), Limiter(rate, stop), stop
        self.retry = make_retry(stop, attempts, self.limiter)
        self.session = make_session(token=token)
        self.answered = False

    def post(self, path: str, body: dict, key: str) -> dict | list:
        """The value of key in the reply to body."""
        self.limiter.wait()

        def call():
            request = {"json": body, "timeout": TIMEOUT, "stream": True, "allow_redirects": False}
            with self.session.post(f"{self.base}{path}", **request) as reply:
                if reply.status_code != 200:
                    # what worked a moment ago is not a wrong token or address but a whim
                    if reply.status_code in (401, 403) and not self.answered:
                        text = (
                            f"{self.base} refuses the token (HTTP {reply.status_code}); set FLIM_TOKEN to a valid one"
                        )
                        raise UserError(text)
                    if reply.status_code in (301, 302, 307, 308, 404) and not self.answered:
                        raise UserError(f"--api {self.base}: there is no {path} there (HTTP {reply.status_code})")
                    raise Broken(f"HTTP {reply.status_code} from {path}", reply.raw)
                data = read_body(reply, MAX_REPLY, self.stop)
            try:
                answer = json.loads(data)[key]
            except (ValueError, RecursionError, KeyError, TypeError):
                raise Broken(f"{path} answered something without {key}") from None
            if not isinstance(answer, list if key == "suggestions" else dict):
                raise Broken(f"{path} answered a {type(answer).__name__} for {key}")
            if key == "query_response" and not isinstance(answer.get("images"), list):
                raise Broken(f"{path} answered without a list of images")
            self.answered = True
            return answer

        try:
            return persist(call, self.retry)
        except Refused as error:
            raise Broken(f"{path}: {error}") from None

    def suggest(self, text: str) -> list[dict]:
        found = self.post("/2.0.0/suggest-entities", {"media_type": "", "suggest": text}, "suggestions")
        found = [item for item in found if isinstance(item, dict)]
        return [item for item in found if isinstance(item.get("name"), str) and _identity(item.get("id"))]

    def pages(self, movie: str, exclude: list[str]):
        """Yield (new frames of a page, whether all that was promised is there).

        The end is an empty page, asked for twice when more was promised; a page that repeats is passed over.
        """
        names = "full_text similar_picture_id dop director brand agency production_company actor creator artist"
        search = {"saved_images": False, "movie_id": movie} | dict.fromkeys(names.split(), "")
        search |= {"collection_id": "", "board_id": ""}
        negative = "aspect_ratio genres movie_types colors shot_types number_of_persons years safety_content"
        kinds = f"{negative} has_video_cuts camera_motions"
        search["filters"] = {kind: [] for kind in kinds.split()}
        search["negative_filters"] = {kind: [] for kind in negative.split()} | {"safety_content": exclude}
        seen, page, idle, promised, asked_twice = set(), 0, 0, 0, False
        while idle < 3 and page < 10_000:
            body = {"search": search, "page": page, "sort_by": "", "order_by": "", "number_per_pages": PER_PAGE}
            answer = self.post("/2.0.0/search", body, "query_response")
            images, total = answer["images"], answer.get("total_number_of_results")
            promised = max(promised, total if isinstance(total, int) else 0)
            if not images:
                if asked_twice or (seen and len(seen) >= promised):
                    return
                asked_twice = True  # nothing at all, or less than promised: once an empty page may be a slip
                continue
            asked_twice = False
            fresh = []
            for image in images:
                identity = _identity(image.get("id")) if isinstance(image, dict) else None
                strange = identity and _identity(image.get("movie_id")) not in (None, movie)
                if identity and not strange and identity not in seen:
                    seen.add(identity)
                    fresh.append(listed_frame(identity, image))
            page, idle = page + 1, 0 if fresh else idle + 1
            yield fresh, len(seen) >= promised


def _identity(value) -> str | None:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value) else None


def listed_frame(identity: str, image: dict) -> dict:
    """What is kept of an image in a search reply; optional and odd fields become None."""
    time_ms = image.get("shot_time")
    number = isinstance(time_ms, (int, float)) and not isinstance(time_ms, bool) and 0 <= time_ms < 1e9
    urls = {size: image.get(f"{size}_resolution_url") for size in ("medium", "full")}
    urls = {size: url if isinstance(url, str) else None for size, url in urls.items()}
    return {"id": identity, "shot_time_ms": time_ms if number else None, **urls}


def fetch_image(session, url: str, retry, stop: threading.Event) -> tuple[bytes, str, tuple[int, int]]:
    """(bytes, suffix, (width, height)) of an image that arrived whole and decodes. Raises Refused or Broken."""

    def call():
        try:
            with session.get(url, stream=True, timeout=TIMEOUT) as reply:
                if reply.status_code in GONE:
                    raise Refused(f"HTTP {reply.status_code}")
                if reply.status_code != 200:
                    raise Broken(f"HTTP {reply.status_code}", reply.raw)
                return check_image(read_body(reply, MAX_BYTES, stop))
        except ValueError as error:  # of requests, urllib3 and idna, for addresses and redirects that are none
            raise Refused(f"not an address that can be asked ({type(error).__name__})") from None

    try:
        allowed = urlsplit(url).scheme in ("http", "https")
    except ValueError:
        allowed = False
    if not allowed:
        raise Refused("not an http(s) address")
    return persist(call, retry)


def check_image(data: bytes) -> tuple[bytes, str, tuple[int, int]]:
    """(bytes, suffix, (width, height)) if the bytes decode to the end. Raises Broken."""
    try:
        read_image(data, draft=32)  # a JPEG is read to its end at an eighth of its size, which is enough
    except UserError as error:
        page = b"<html" in data[:1000].lower() or b"<!doctype" in data[:1000].lower()
        raise Broken("an HTML page, not an image" if page else str(error)) from None
    with open_image(io.BytesIO(data)) as image:
        return data, SUFFIX[image.format], image.size


# ------------------------------------------------------------------------------------------------ flim


COUNTS = ("listed", "had", "new", "double", "gone", "failed", "left")


class Film:
    """A film's folder and what is in it; frames.jsonl is its memory, a line a frame, written behind the image."""

    def __init__(self, folder: Path, line: str, identity: str):
        self.line, self.identity, self.listed_before = line, identity, False
        self.folder, self.sidecar, self.lock = folder, folder / "frames.jsonl", threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob(".*.part"):  # of a run that was killed
            part.unlink()
        self.hashes, self.have = {}, set()
        self.lines = [line for line in read_lines(self.sidecar) if isinstance(line.get("file", ""), str)]
        self.pending, self.counts, self.on_disk = 0, dict.fromkeys(COUNTS, 0), list(self.lines)
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
        for line in self.lines:
            if line.get("source") == "flim" and sizes.get(line.get("file")) == line.get("bytes", -1):
                self.have.add(line.get("id"))
                self.hashes[line.get("sha256")] = line["file"]
        for line in self.lines:  # the same bytes under another id
            if line.get("same_as") in self.hashes.values():
                self.have.add(line.get("id"))
        self.files = {Path(name).stem: name for name in sizes}

    def keep(self, frame: dict, data: bytes, suffix: str, size: tuple[int, int], on_disk: bool = False) -> str:
        """Store an image and its line; returns "new", "double" or "had"."""
        name, digest = f"{file_stem(frame['id'])}{suffix}", hashlib.sha256(data).hexdigest()
        with self.lock:
            twin = self.hashes.setdefault(digest, name)
        line = {"id": frame["id"], "url": frame["url"], "shot_time_ms": frame["shot_time_ms"]}
        if twin != name:
            line = {**line, "same_as": twin, "source": "flim"}
            if on_disk:
                (self.folder / name).unlink()
        else:
            if not on_disk:
                with atomic_write(self.folder / name) as file:
                    file.write(data)
            line = {"file": name, **line, "shot": None, "width": size[0], "height": size[1], "source": "flim"}
            line |= {"bytes": len(data), "sha256": digest}
        with self.lock:
            append_line(self.sidecar, line)
            self.lines.append(line)
        return "double" if twin != name else "had" if on_disk else "new"

    def finish(self) -> None:
        """Put the sidecar in film order, one line a frame; an empty folder goes away."""
        latest = {line.get("file") or ("same", line.get("id")): line for line in self.lines}

        def place(line: dict) -> tuple:
            time_ms = line.get("shot_time_ms")
            time_ms = time_ms if isinstance(time_ms, (int, float)) else None
            return "file" not in line, time_ms is None, time_ms or 0, str(line.get("file") or line.get("id"))

        order = sorted(latest.values(), key=place)
        if order != self.on_disk:
            write_sidecar(self.folder, order)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def read_wanted(path: Path) -> list[str]:
    """Titles of a text file, a line each; empty lines and lines that start with "# " do not count."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save it as UTF-8, a title a line", 2) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a text file with a line a film, Title (Year)", 2) from None
    lines = [line.strip() for line in text.splitlines()]
    wanted = list(dict.fromkeys(line for line in lines if line and line != "#" and not line.startswith("# ")))
    if not wanted:
        raise UserError(f"{path}: no titles in it; a line a film, Title (Year)", 2)
    return wanted


def resolve(flim: Flim, wanted: str) -> tuple[dict | None, list[str]]:
    """(suggestion of the film or None, the three nearest names)."""
    title, asked = split_title(wanted)[0], []
    for text in dict.fromkeys((title, wanted, re.sub(r"^(the|an?)\s+", "", title, flags=re.IGNORECASE))):
        asked += flim.suggest(text)
        if found := match_title(wanted, asked):
            return found, []
    return None, nearest(wanted, asked)


class Register:
    """Which film a wanted line is and where it lies; ids.jsonl remembers it, and no id is asked for twice."""

    def __init__(self, path: Path):
        self.path = path
        lines = [item for item in read_lines(path) if {"wanted", "id", "folder"} <= set(item)]
        self.known = {item["wanted"]: item for item in lines}
        self.owner = {item["folder"].casefold(): item["id"] for item in lines}

    def find(self, flim: Flim, wanted: str) -> tuple[dict | None, list[str]]:
        """({"wanted", "id", "name", "folder"}, []) or, of a film that FLIM does not have, (None, nearest names)."""
        if wanted in self.known:
            return self.known[wanted], []
        found, near = resolve(flim, wanted)
        if found is None:
            return None, near
        identity = _identity(found["id"])
        twin = next((item for item in self.known.values() if item["id"] == identity), None)
        folder = twin["folder"] if twin else folder_name(found["name"])
        if self.owner.get(folder.casefold(), identity) != identity:  # another film of the same name
            folder = f"{folder} {short_hash(identity)}"
        entry = {"wanted": wanted, "id": identity, "name": found["name"], "folder": folder}
        append_line(self.path, entry)
        self.known[wanted], self.owner[folder.casefold()] = entry, identity
        return entry, []


class Downloads:
    """Threads that fetch frames and store them in their films; daemons, so that a dead server holds nobody up."""

    def __init__(self, workers: int, size: str, attempts: int, stop: threading.Event):
        self.size, self.stop, self.bytes, self.fatal = size, stop, 0, []
        self.retry, self.session = make_retry(stop, attempts), make_session(workers)  # no token for whoever has images
        self.jobs: queue.Queue = queue.Queue(maxsize=4 * workers)
        self.lock, self.threads = threading.Lock(), []
        for _ in range(workers):
            self.start(self._work)

    def start(self, target) -> threading.Thread:
        self.threads.append(threading.Thread(target=target, daemon=True))
        self.threads[-1].start()
        return self.threads[-1]

    def put(self, film: Film, frame: dict) -> None:
        """Give a frame to the threads unless it is there already."""
        film.counts["listed"] += 1
        if frame["id"] in film.have:
            film.counts["had"] += 1
            return
        frame = frame | {"url": frame.get(self.size) or frame.get("medium") or frame.get("full") or ""}
        with film.lock:
            film.pending += 1
        while not self.stop.is_set():
            with contextlib.suppress(queue.Full):
                return self.jobs.put((film, frame), timeout=0.2)
        raise Stopped

    def end(self) -> None:
        """Stop the threads; those that hang on a connection are left behind after a second."""
        self.stop.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self.jobs.get_nowait()
        for _ in self.threads:
            self.jobs.put(None)
        limit = time.monotonic() + 1.2
        for thread in self.threads:
            thread.join(max(0.0, limit - time.monotonic()))

    def _work(self) -> None:
        while (job := self.jobs.get()) is not None:
            film, frame = job
            outcome = "left"
            try:
                if not self.stop.is_set():
                    outcome = self._store(film, frame)
            except Stopped:
                pass
            except (Refused, Broken) as error:
                outcome = "gone" if isinstance(error, Refused) else "failed"
                say(f"{film.folder.name}: {frame['id'][:60]!r} {outcome}: {error}")
            except Exception as error:  # a full disk; or a defect, which must not hang the run
                self.fatal.append(error)
                self.stop.set()
            finally:
                with film.lock:
                    film.counts[outcome] += 1
                    film.pending -= outcome != "left"

    def _store(self, film: Film, frame: dict) -> str:
        orphan = film.files.get(file_stem(frame["id"]))
        if orphan and orphan.endswith(tuple(SUFFIX.values())):  # killed between the image and its line
            with contextlib.suppress(Broken, OSError):
                return film.keep(frame, *check_image((film.folder / orphan).read_bytes()), on_disk=True)
        data, suffix, shape = fetch_image(self.session, frame["url"], self.retry, self.stop)
        with self.lock:
            self.bytes += len(data)
        return film.keep(frame, data, suffix, shape)


def say(text: str) -> None:
    """A line on stderr above the progress bar; a closed or full stderr is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        tqdm.write(" ".join(text.split()), file=sys.stderr)


def list_film(flim: Flim, film: Film, path: Path, *, exclude: list[str], max_frames: int | None, refresh: bool):
    """Yield the frames of a film, from the list in path where one is there, else from FLIM, and write it then."""
    listing = None if refresh else next(iter(read_lines(path)), None)
    same = listing and listing.get("exclude") == exclude
    if same and (listing["complete"] or (max_frames and len(listing["frames"]) >= max_frames)):
        film.listed_before = True
        yield from listing["frames"][:max_frames]
        return
    frames, complete = [], False
    for fresh, everything in flim.pages(film.identity, exclude):
        complete = everything
        yield from fresh[: None if max_frames is None else max_frames - len(frames)]
        frames += fresh
        if max_frames is not None and len(frames) >= max_frames:
            break
    with atomic_write(path, "w", encoding="utf-8") as file:
        json.dump({"id": film.identity, "exclude": exclude, "complete": complete, "frames": frames}, file)


def scrape_flim(
    wanted: list[str],
    out: Path,
    *,
    api: str = API,
    token: str | None = None,
    rate: float = 2.0,
    workers: int = 16,
    size: str = "medium",
    exclude: list[str] | None = None,
    max_frames: int | None = None,
    refresh: bool = False,
    attempts: int = 8,
) -> dict:
    """Download the stills of the wanted films to out/<Title (Year)>/; a run that was stopped continues.

    rate: API calls a second. size: "medium" or "full". max_frames a film, None for all. refresh: list again what was
    listed before. Returns {"films": {title: counts}, "unmatched": {title: suggestions}, "errors": [(title, reason)],
    "unfinished": titles of which frames failed, "stopped": bool}. Raises UserError or OSError where nothing can go on
    (no such API, a refused token, a full disk), with that dictionary as its attribute "result".
    """
    stop, state = threading.Event(), out / ".flim"
    state.mkdir(parents=True, exist_ok=True)
    for part in [*state.glob(".*.part"), *out.glob(".*.part")]:
        part.unlink()
    flim, register = Flim(api, token, rate, attempts, stop), Register(state / "ids.jsonl")
    downloads = Downloads(workers, size, attempts, stop)
    result = {"films": {}, "unmatched": {}, "errors": [], "unfinished": [], "stopped": False}
    films: list[Film] = []  # those with frames under way
    bar, clock = tqdm(total=len(wanted), unit="film", disable=None), time.monotonic()

    def one_film(line: str, again: bool = False) -> None:
        entry, near = register.find(flim, line)
        if entry is None:
            result["unmatched"][line] = near
            return
        if entry["folder"] in result["films"] and not again:  # two lines of the list are one film
            return
        films.append(film := Film(out / entry["folder"], line, entry["id"]))
        result["films"][entry["folder"]] = film.counts
        path, settings = state / f"{short_hash(entry['id'])}.json", {"exclude": exclude or [], "max_frames": max_frames}
        for frame in list_film(flim, film, path, refresh=refresh or again, **settings):
            downloads.put(film, frame)

    def finish() -> None:
        for film in [film for film in films if not film.pending]:
            film.finish()
            films.remove(film)
            if film.counts["failed"]:
                result["unfinished"].append(film.line)
            if film.counts["gone"] and film.listed_before:  # old addresses: list the film anew, once
                with contextlib.suppress(Broken):
                    one_film(film.line, again=True)
        frames = sum(counts["new"] for counts in result["films"].values())
        speed = downloads.bytes / 1e6 / max(time.monotonic() - clock, 1e-9)
        with contextlib.suppress(OSError, ValueError):
            bar.set_postfix_str(f"{frames} new frames, {speed:.1f} MB/s")

    def feed() -> None:
        """Go through the list; in a thread of its own, so that Ctrl-C never waits for a name server."""
        in_a_row = 0
        try:
            for line in wanted:
                try:
                    one_film(line)
                    in_a_row = 0
                except Broken as error:
                    result["errors"].append((line, str(error)))
                    say(f"{line}: {error}")
                    in_a_row += 1
                    if in_a_row == 5:
                        raise UserError(f"--api {api}: five films in a row failed, the last with: {error}") from None
                bar.update()
                finish()
            while films and not stop.wait(0.05):
                finish()
        except Stopped:
            pass
        except Exception as error:
            downloads.fatal.append(error)
            stop.set()

    feeder = downloads.start(feed)
    try:
        while feeder.is_alive():
            feeder.join(0.2)
    except KeyboardInterrupt:
        result["stopped"] = True
    finally:
        downloads.end()
        bar.close()
        for film in films:
            film.counts["left"] = film.pending
    if downloads.fatal:
        downloads.fatal[0].result = result
        raise downloads.fatal[0]
    if not result["stopped"]:
        write_unmatched(out / "unmatched.txt", wanted, result)
    return result


def write_unmatched(path: Path, wanted: list[str], result: dict) -> None:
    """Titles not found, each followed by the three nearest as comments: move a "# " and run scrape.py on this file.

    Entries of other lists stay; so does a corrected one until its film is whole.
    """
    entries, title = {}, None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        if not line.startswith("# ") and line.strip():
            title = line.strip()
            entries[title] = []
        elif title is not None and line.strip():
            entries[title].append(line.removeprefix("# "))
    failed = {line for line, _ in result["errors"]} | set(result["unfinished"])
    entries = {title: near for title, near in entries.items() if title not in wanted or title in failed}
    entries |= {title: [" ".join(name.split()) for name in near] for title, near in result["unmatched"].items()}
    if not entries:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path, "w", encoding="utf-8", errors="replace") as file:
        for title, near in entries.items():
            file.write("".join(f"{text}\n" for text in [title, *(f"# {name}" for name in near)]))


# ----------------------------------------------------------------------------------------------- video


def video_title(path: Path) -> str:
    """ "The.Matrix.1999.1080p.BluRay.mkv" -> "The Matrix (1999)", by guessit; episodes keep their number."""
    try:
        from guessit import guessit
    except ImportError:
        raise UserError("scrape.py video needs guessit: pip install guessit", 2) from None
    found = guessit(path.name)
    title = str(found.get("title") or path.stem)
    if found.get("type") == "episode" and isinstance(found.get("episode"), int):
        title += f" S{int(found.get('season') or 1):02}E{found['episode']:02}"
    return f"{title} ({found['year']})" if found.get("year") else title


def find_videos(sources: list[Path]) -> list[Path]:
    """Video files, and those in folders, at any depth. Raises UserError where there are none."""
    videos: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = [Path(root) / name for root, _, names in os.walk(source) for name in names]
            found = sorted(path for path in inside if path.suffix.lower() in VIDEO_SUFFIXES)
            found = [path for path in found if not path.name.startswith("._")]  # what macOS leaves on other disks
            if not found:
                raise UserError(f"{source}: no video files in it ({', '.join(sorted(VIDEO_SUFFIXES))})", 2)
            videos += found
        elif source.is_file():
            videos.append(source)
        else:
            raise UserError(f"{source}: no such file or folder", 2)
    return list(dict.fromkeys(path.resolve() for path in videos))


def sharpness(rgb) -> float:
    """Variance of the Laplacian of the grey picture at 480 pixels of width (Pech-Pacheco 2000)."""
    import cv2

    height, width = rgb.shape[:2]
    small = cv2.resize(rgb, (480, max(1, round(height * 480 / width))), interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def pick_frames(video, start, end, *, per_shot: int, blur: float):
    """Yield (rgb uint8 [H, W, 3], milliseconds) for per_shot frames from the middle of a shot.

    video: an open PySceneDetect stream; start, end: its timecodes. Around each place the sharpest of three frames that
    are not dark or flat is taken; a place without one over blur (see sharpness) gives none.
    """
    from filter import is_flat

    first, length = start.frame_num, end.frame_num - start.frame_num
    taken = set()
    for k in range(per_shot):
        centre = first + length * (k + 1) / (per_shot + 1)
        step = max(1, int(length / (per_shot + 1) / 4))
        best = None
        for number in dict.fromkeys(int(min(max(centre + d * step, first), first + length - 1)) for d in (0, -1, 1)):
            if number in taken:
                continue
            taken.add(number)
            video.seek(number)
            bgr = video.read()
            ms = video.position_ms
            if bgr is False or bgr is None or not start.seconds * 1000 - 1 <= ms < end.seconds * 1000:
                continue  # with a variable frame rate a seek may land in another shot
            rgb, score = bgr[..., ::-1], sharpness(bgr)
            if score >= blur and not is_flat(rgb) and (best is None or score > best[0]):
                best = (score, rgb.copy(), round(ms))
        if best:
            yield best[1:]


def video_mark(path: Path) -> str:
    """A short name for a video from its size and its ends, whatever the file is called and wherever it lies."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(str(size).encode())
        for place in (0, max(0, size - (1 << 20))):
            file.seek(place)
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:10]


def forget_video(mark: str, folder: Path) -> list[dict]:
    """Remove the frames of a video from a film's folder; returns the other lines of its sidecar."""
    for image in folder.glob(f"{mark}_*"):
        image.unlink()
    return [line for line in read_lines(folder / "frames.jsonl") if not str(line.get("file")).startswith(f"{mark}_")]


def scrape_video(
    path: Path, out: Path, *, title: str | None, per_shot: int, blur: float, width: int
) -> tuple[str, int]:
    """Write frames of every shot of one video to out/<Title (Year)>/; returns (folder, frames). Raises UserError.

    A film that is finished, by the record in out/.video, is not done again; under a new title its frames move.
    """
    from PIL import Image
    from scenedetect import AdaptiveDetector, SceneManager, open_video

    try:
        mark, folder = video_mark(path), folder_name(title or video_title(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    record, target, work = out / ".video" / f"{mark}.json", out / folder, out / ".video" / mark
    key = [per_shot, blur, width, folder]
    before = next(iter(read_lines(record)), {})
    if before.get("key") == key and all((target / name).exists() for name in before["files"]):
        return folder, len(before["files"])
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    lines = []
    try:
        video = open_video(str(path))
        manager = SceneManager()
        manager.add_detector(AdaptiveDetector())
        manager.detect_scenes(video, show_progress=sys.stderr.isatty())
        scenes = manager.get_scene_list(start_in_scene=True)
        video = open_video(str(path))
        for shot, (start, end) in enumerate(scenes):
            for k, (rgb, ms) in enumerate(pick_frames(video, start, end, per_shot=per_shot, blur=blur)):
                image = Image.fromarray(rgb)
                if image.width > width:
                    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
                name = f"{mark}_shot_{shot:04}_img_{k}.jpg"
                image.save(work / name, quality=92)
                lines.append({"file": name, "id": f"{mark}-{shot}-{k}", "url": None, "shot_time_ms": ms})
                lines[-1] |= {"shot": f"{mark}-{shot}", "width": image.width, "height": image.height, "source": "video"}
        if lines:
            if before.get("folder", folder) != folder:  # it was named wrongly
                left = forget_video(mark, out / before["folder"])
                write_sidecar(out / before["folder"], left)
                if not left:
                    shutil.rmtree(out / before["folder"])
            target.mkdir(parents=True, exist_ok=True)
            others = forget_video(mark, target)
            for line in lines:
                os.replace(work / line["file"], target / line["file"])
            write_sidecar(target, others + lines)
            with atomic_write(record, "w") as file:
                json.dump({"key": key, "folder": folder, "files": [line["file"] for line in lines]}, file)
    except Exception as error:  # OpenCV and PySceneDetect raise many kinds on damaged files
        if isinstance(error, OSError) and error.errno is not None:  # a full disk is not the video's fault
            raise
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a video that can be read ({reason})") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not lines:
        raise UserError(f"{path}: no frame of it is bright and sharp enough; lower --blur")
    return folder, len(lines)


# ---------------------------------------------------------------------------------------------- titles


def read_tsv(path: Path, columns: tuple[str, ...]):
    """Yield rows of an IMDb .tsv.gz (or .tsv) as tuples of these columns, "" for null. Raises UserError."""
    read = gzip.open if path.suffix == ".gz" else open
    try:
        with read(path, "rt", encoding="utf-8", newline="\n") as lines:
            header = next(lines, "").rstrip("\r\n").split("\t")
            missing = [name for name in columns if name not in header]
            if missing:
                raise UserError(f"{path}: has no column {missing[0]}; give IMDb's file of that name", 2)
            places = [header.index(name) for name in columns]
            last = max(places) + 1
            for line in lines:  # no quoting in these files: a " is a letter
                cells = line.rstrip("\r\n").split("\t", last)
                if len(cells) >= last:
                    yield tuple("" if cells[place] == "\\N" else cells[place] for place in places)
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged or not complete ({error}); download it again") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", 2) from None


def top_titles(
    basics: Path,
    ratings: Path,
    *,
    top: int = 800,
    min_votes: int = 25_000,
    by: str = "rating",
    akas: Path | None = None,
) -> list[dict]:
    """The best films of the IMDb datasets: [{"title": "Title (Year)", "tconst", "rating", "votes", "ru"}, ...].

    by: "rating" or "votes". Adult films and all that is no film are left out; of two films with one title and year the
    one with more votes stays. The files are streamed.
    """
    scores = {}
    for tconst, rating, votes in read_tsv(ratings, ("tconst", "averageRating", "numVotes")):
        if votes.isdecimal() and int(votes) >= min_votes:
            with contextlib.suppress(ValueError):
                scores[tconst] = (float(rating), int(votes))
    films: dict[str, dict] = {}
    columns = ("tconst", "titleType", "primaryTitle", "isAdult", "startYear")
    for tconst, kind, name, adult, year in read_tsv(basics, columns):
        if kind != "movie" or adult == "1" or tconst not in scores or not name or not year.isdecimal():
            continue
        rating, votes = scores[tconst]
        film = {"title": f"{name} ({year})", "tconst": tconst, "rating": rating, "votes": votes, "ru": ""}
        if film["title"] not in films or votes > films[film["title"]]["votes"]:
            films[film["title"]] = film
    order = ("rating", "votes") if by == "rating" else ("votes", "rating")
    chosen = heapq.nlargest(top, films.values(), key=lambda film: tuple(film[key] for key in order))
    if akas is not None:
        wanted, rank = {film["tconst"]: film for film in chosen}, {}
        for tconst, name, region, language, types in read_tsv(
            akas, ("titleId", "title", "region", "language", "types")
        ):
            if tconst in wanted and "ru" in (region.lower(), language) and re.search("[а-яё]", name.lower()):
                place = (types != "imdbDisplay", bool(types) and types != "imdbDisplay")
                if tconst not in rank or place < rank[tconst]:
                    rank[tconst], wanted[tconst]["ru"] = place, name
    return chosen


# ------------------------------------------------------------------------------------------------ shell


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Collect stills of films, and the list of titles.")
    commands = parser.add_subparsers(dest="command", required=True)
    flim = commands.add_parser("flim", help="stills from FLIM", description="Download stills of a list of films.")
    flim.add_argument("titles", type=Path, help="text file, a line a film: Title (Year)")
    flim.add_argument("--out", type=Path, default=Path("data/raw"), help="default: %(default)s")
    group = flim.add_argument_group("what to fetch")
    group.add_argument("--max-frames", type=int, help="at most this many a film (default: all)")
    group.add_argument("--size", choices=["medium", "full"], default="medium", help="default: %(default)s")
    group.add_argument("--exclude", nargs="+", default=[], metavar="KIND", help="nudity, violence (default: nothing)")
    group.add_argument("--refresh", action="store_true", help="ask again for the lists of frames of finished films")
    group = flim.add_argument_group("the service")
    group.add_argument("--token", help="better in the environment, where no process list shows it: FLIM_TOKEN")
    group.add_argument("--api", default=API, help="base URL (default: %(default)s)")
    group.add_argument("--rate", type=float, default=2.0, help="API calls a second (default: %(default)s)")
    group.add_argument("--workers", type=int, default=16, help="downloads at a time (default: %(default)s)")
    group.add_argument("--retries", type=int, default=8, help="further tries of what failed (default: %(default)s)")
    video = commands.add_parser("video", help="frames of video files", description="Take frames of every shot.")
    video.add_argument("films", nargs="+", type=Path, help="video files or folders of them")
    video.add_argument("--out", type=Path, default=Path("data/raw"), help="default: %(default)s")
    video.add_argument("--title", help="Title (Year), for a single film (default: from the file's name)")
    video.add_argument("--per-shot", type=int, default=1, help="frames a shot, from its middle (default: %(default)s)")
    video.add_argument(
        "--blur", type=float, default=10.0, help="least variance of the Laplacian; 0 keeps all (default: %(default)s)"
    )
    video.add_argument("--width", type=int, default=960, help="pixels; wider frames shrink (default: %(default)s)")
    titles = commands.add_parser("titles", help="the list of titles", description="The best films of IMDb's datasets.")
    titles.add_argument("--basics", type=Path, required=True, help="title.basics.tsv.gz of datasets.imdbws.com")
    titles.add_argument("--ratings", type=Path, required=True, help="title.ratings.tsv.gz")
    titles.add_argument("--akas", type=Path, help="title.akas.tsv.gz, for the Russian titles")
    titles.add_argument(
        "--titles-csv", type=Path, default=Path("titles.csv"), help="with --akas (default: %(default)s)"
    )
    titles.add_argument("--top", type=int, default=800, help="films (default: %(default)s)")
    titles.add_argument("--min-votes", type=int, default=25_000, help="fewer do not count (default: %(default)s)")
    titles.add_argument("--by", choices=["rating", "votes"], default="rating", help="order (default: %(default)s)")
    return parser


def print_counts(films: dict[str, dict]) -> dict:
    """A table of what came of each film (of many only those with trouble); returns the totals."""
    total = {name: sum(counts[name] for counts in films.values()) for name in COUNTS}
    print(f"{'':44}" + "".join(f"{name:>8}" for name in COUNTS))
    for title, counts in films.items():
        if len(films) <= 30 or counts["failed"] or counts["gone"]:
            print(f"{title[:44]:44}" + "".join(f"{counts[name]:8}" for name in COUNTS))
    print(f"{f'{len(films)} films':44}" + "".join(f"{total[name]:8}" for name in COUNTS), flush=True)
    return total


def run_flim(args) -> int:
    wanted = read_wanted(args.titles)
    token = (args.token or os.environ.get("FLIM_TOKEN") or "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise UserError("the token (FLIM_TOKEN) holds a character that no token has; copy it again", 2)
    try:
        result = scrape_flim(
            wanted,
            args.out,
            api=args.api,
            token=token or None,
            rate=args.rate,
            workers=args.workers,
            size=args.size,
            exclude=args.exclude,
            max_frames=args.max_frames,
            refresh=args.refresh,
            attempts=args.retries,
        )
    except (UserError, OSError) as error:
        print_counts(getattr(error, "result", {"films": {}})["films"])
        raise
    total = print_counts(result["films"])
    if result["stopped"]:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    if result["unmatched"]:
        where = args.out / "unmatched.txt"
        print(
            f"{len(result['unmatched'])} titles were not found: correct them in {where} and run: scrape.py flim {where}"
        )
    if total["failed"] or result["errors"]:
        what = f"{total['failed']} frames and {len(result['errors'])} films failed"
        print(f"scrape.py: {what}; run the same command again to try them again", file=sys.stderr)
        return 1
    print(f"next: python filter.py {args.out}")
    return 0


def run_video(args) -> int:
    try:
        import scenedetect  # noqa: F401
    except ImportError:
        raise UserError("scrape.py video needs PySceneDetect: pip install scenedetect", 2) from None
    videos = find_videos(args.films)
    if args.title and len(videos) > 1:
        raise UserError(f"--title names one film, and these are {len(videos)}", 2)
    failed = 0
    for path in tqdm(videos, unit="film", disable=None):
        try:
            settings = {"title": args.title, "per_shot": args.per_shot, "blur": args.blur, "width": args.width}
            folder, frames = scrape_video(path, args.out, **settings)
            tqdm.write(f"{path.name} -> {folder}: {frames} frames")
        except UserError as error:
            failed += 1
            tqdm.write(f"scrape.py: error: {error}", file=sys.stderr)
    print(f"{len(videos) - failed} of {len(videos)} videos; next: python filter.py {args.out}")
    return 1 if failed else 0


def run_titles(args) -> int:
    films = top_titles(args.basics, args.ratings, top=args.top, min_votes=args.min_votes, by=args.by, akas=args.akas)
    if not films:
        raise UserError(f"no film has {args.min_votes} votes; lower --min-votes")
    if args.akas:
        with atomic_write(args.titles_csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["title", "tconst", "ru"], extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(films)
        print(f"{sum(bool(film['ru']) for film in films)} Russian titles in {args.titles_csv}", file=sys.stderr)
    for film in films:
        print(film["title"])
    print(f"{len(films)} films; next: python scrape.py flim movies.txt", file=sys.stderr)
    return 0


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    for flag in ("rate", "workers", "max_frames", "per_shot", "width", "top"):
        if getattr(args, flag, None) is not None and not getattr(args, flag) > 0:
            parser.error(f"--{flag.replace('_', '-')} must be more than 0")
    for flag in ("retries", "blur", "min_votes"):
        if getattr(args, flag, 0) < 0:
            parser.error(f"--{flag.replace('_', '-')} must not be negative")
    if args.command == "flim" and not re.match(r"https?://[^/]", args.api):
        parser.error(f"--api {args.api}: expected a URL that starts with http:// or https://")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service's stop is our Ctrl-C
    return {"flim": run_flim, "video": run_video, "titles": run_titles}[args.command](args)


if __name__ == "__main__":
    sys.exit(main())
