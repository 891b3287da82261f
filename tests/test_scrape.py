"""pytest tests/test_scrape.py: a loopback server speaks FLIM's schema and misbehaves on request; clips by OpenCV."""

import contextlib
import csv
import gzip
import io
import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_frame, write_video
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from strange_reader import check_or_hang

import scrape
from answering import reading
from answering.console import UserError
from answering.stills import list_stills
from answering.titles import folder_name, normalise_title, split_title
from scrape import main, match_title, scrape_flim

SCRIPT = Path(scrape.__file__)


def jpeg(film: int, frame: int) -> bytes:
    file = io.BytesIO()
    draw_frame(film, frame, 0).save(file, format="JPEG", quality=85)
    return file.getvalue()


class Flim(ThreadingHTTPServer):
    """films: {id: name}; frames: {film id: [image dict]}; faults: {path: [reply, ...]} are used up before the truth."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.films, self.frames, self.pictures, self.faults = {}, {}, {}, {}
        self.entity, self.delay, self.calls, self.times, self.headers = "ENTITY_MOVIE", 0.0, [], [], []
        self.answer = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        pass  # clients that go away are what some tests are about

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, identity: str, name: str, count: int, **fields) -> None:
        self.films[identity] = name
        self.frames[identity] = []
        for i in range(count):
            path = f"/pictures/{identity}-{i}.jpg"
            self.pictures[path] = jpeg(len(self.films), i)
            image = {"id": f"{identity}-{i}", "movie_id": identity, "medium_resolution_url": f"{self.url}{path}"}
            self.frames[identity].append(image | {"shot_time": 1000 * (count - i), "new_field": [1, {}]} | fields)

    def asked(self, start: str) -> int:
        return sum(path.startswith(start) for path in self.calls)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body: bytes, status: int = 200, kind: str = "application/json", **headers) -> None:
        self.send_response(status)
        length = headers.pop("length", len(body))
        for key, value in {"Content-Type": kind, "Content-Length": str(length), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        if length != len(body):
            self.close_connection = True

    def fault(self) -> bool:
        waiting = self.server.faults.get(self.path) or self.server.faults.get(self.path.split("/")[1])
        if not waiting:
            return False
        what = waiting.pop(0)
        if what is None:
            return False
        if what == "reset":
            self.close_connection = True
        elif what == "cut":
            body = self.server.pictures.get(self.path, b"x" * 500)
            self.reply(body[: len(body) // 2], kind="image/jpeg", length=len(body))
        elif what == "truncated":
            body = self.server.pictures[self.path]
            self.reply(body[: len(body) // 2], kind="image/jpeg")
        elif what == "html":
            self.reply(b"<!DOCTYPE html><html>busy</html>", kind="text/html")
        elif what == "null":
            self.reply(b'{"query_response": null}')
        elif what == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(200):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            self.close_connection = True
        elif what == "empty page":
            self.reply(json.dumps({"query_response": {"images": []}}).encode())
        elif isinstance(what, dict):
            self.reply(b"no", **what)
        return True

    def do_GET(self):
        self.server.calls.append(self.path)
        time.sleep(self.server.delay)
        self.server.headers.append(dict(self.headers))
        if self.fault():
            return
        body = self.server.pictures.get(self.path)
        self.reply(body or b"no", 200 if body else 404, "image/jpeg")

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.calls.append(self.path)
        server.times.append(time.monotonic())
        server.headers.append(dict(self.headers))
        if self.fault():
            return
        if self.path == "/2.0.0/suggest-entities":
            text = normalise_title(split_title(body["suggest"])[0])[:4]
            found = [{"id": i, "name": n, "entity": server.entity} for i, n in server.films.items()]
            self.reply(json.dumps({"suggestions": [f for f in found if text in normalise_title(f["name"])]}).encode())
        else:
            server.answer = body
            images = server.frames.get(body["search"]["movie_id"], [])
            page = images[body["page"] * 5 : body["page"] * 5 + 5]
            answer = {"total_number_of_results": len(images), "number_of_results": len(page), "images": page}
            self.reply(json.dumps({"query_response": answer}).encode())


@pytest.fixture
def flim():
    server = Flim()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(scrape, "BACKOFF", 0.001)
    monkeypatch.setattr(scrape, "ATTEMPTS", 3)


def fetch(flim, out, *titles, **options):
    return scrape_flim(list(titles), out, api=flim.url, **{"rate": 200.0} | options)


def images(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix == ".jpg"}


def read_sidecar(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------- titles


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("The Godfather (1972)", "the godfather (1972)"),
        ("Godfather, The (1972)", "The Godfather (1972)"),
        ("Amélie (2001)", "AMELIE (2001)"),
        ("Fast & Furious (2009)", "Fast and Furious (2009)"),
        ("Rocky II (1979)", "Rocky 2 (1979)"),
        ("Ocean's Eleven (2001)", "Oceans Eleven (2001)"),
        ("WALL·E (2008)", "WALL-E (2008)"),
        ("Léon: The Professional (1994)", "Leon - The Professional (1995)"),
        ("Брат (1997)", "БРАТ (1997)"),
    ],
)
def test_spellings_of_one_title_meet(wanted, name):
    assert match_title(wanted, [{"id": "1", "name": name}])


OTHER = [("Solaris (1972)", "Solaris (2002)"), ("Alien (1979)", "Aliens (1979)"), ("Alien (1979)", "Alien")]


@pytest.mark.parametrize(("wanted", "name"), [*OTHER, ("Rocky II (1979)", "Rocky III (1979)")])
def test_other_films_do_not(wanted, name):
    assert match_title(wanted, [{"id": "1", "name": name}]) is None


def test_the_nearest_year_wins_and_no_year_must_be_plain():
    dune = [{"id": str(year), "name": f"Dune ({year})"} for year in (1984, 2020, 2021)]
    assert match_title("Dune (2021)", dune)["id"] == "2021"
    assert match_title("Dune (1985)", dune)["id"] == "1984"
    assert match_title("Dune", dune) is None
    assert match_title("Dune", dune[:1])["id"] == "1984"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300))
def test_folder_names_are_safe(title):
    name = folder_name(title)
    assert name and Path(name).name == name and name not in (".", "..") and not name.startswith(".")
    assert len(name.encode()) <= 200 and name.isprintable() and not set(name) & set('<>:"/\\|?*')
    assert name == name.rstrip(". ") and name.split(".")[0].strip().lower() not in ("con", "nul", "aux", "prn", "com1")
    assert folder_name(name) == name


# ------------------------------------------------------------------------------------------------ flim


def test_all_pages_with_sidecar(flim, tmp_path):
    flim.add("m1", "The Matrix (1999)", 12)
    result = fetch(flim, tmp_path, "Matrix (1999)", token="secret-token")
    folder = tmp_path / "The Matrix (1999)"
    assert result["films"]["The Matrix (1999)"]["new"] == 12 and len(images(folder)) == 12
    lines = read_sidecar(folder)
    times = [line["shot_time_ms"] for line in lines]
    assert times == sorted(times) and times[0] == 1000
    assert {"file", "id", "url", "shot_time_ms", "shot", "width", "height", "source"} <= set(lines[0])
    assert (lines[0]["width"], lines[0]["height"]) == (240, 136)
    assert [still.time_ms for still in list_stills(folder)] == times  # as filter.py reads it
    sent = [headers.get("Authorization") for headers in flim.headers]
    assert sent.count("Bearer secret-token") == len(flim.times)  # the API gets it, whoever holds the images does not
    assert all("movie-by-frame" in headers["User-Agent"] for headers in flim.headers)
    assert not list(tmp_path.rglob("*.part"))


def test_second_run_asks_for_nothing(flim, tmp_path):
    flim.add("m1", "Heat (1995)", 7)
    fetch(flim, tmp_path, "Heat (1995)")
    before = len(flim.calls)
    result = fetch(flim, tmp_path, "Heat (1995)")
    assert len(flim.calls) == before and result["films"]["Heat (1995)"]["had"] == 7


def test_max_frames(flim, tmp_path):
    flim.add("m1", "Heat (1995)", 12)
    fetch(flim, tmp_path, "Heat (1995)", max_frames=6)
    assert len(images(tmp_path / "Heat (1995)")) == 6
    assert flim.answer["search"]["negative_filters"]["safety_content"] == []  # nothing is excluded
    fetch(flim, tmp_path, "Heat (1995)", max_frames=8)
    assert len(images(tmp_path / "Heat (1995)")) == 8 and flim.asked("/pictures") == 8
    assert flim.asked("/2.0.0/suggest") == 1  # the id is remembered
    before = len(flim.calls)
    counts = fetch(flim, tmp_path, "Heat (1995)", max_frames=7)["films"]["Heat (1995)"]
    assert (counts["listed"], counts["had"]) == (7, 7) and len(flim.calls) == before
    assert fetch(flim, tmp_path, "Heat (1995)")["films"]["Heat (1995)"]["new"] == 4


TOO_MANY, BUSY = {"status": 429, "Retry_After": "0"}, {"status": 503, "Retry_After": "soon"}


@pytest.mark.parametrize("fault", [TOO_MANY, BUSY, {"status": 500}, "reset", "html"])
def test_api_recovers(flim, tmp_path, fault):
    flim.add("m1", "Heat (1995)", 7)
    flim.faults = {"/2.0.0/suggest-entities": [fault], "/2.0.0/search": [fault, fault]}
    result = fetch(flim, tmp_path, "Heat (1995)")
    assert result["films"]["Heat (1995)"]["new"] == 7 and not result["errors"]


def test_retry_after_is_obeyed(flim, tmp_path):
    flim.add("m1", "Heat (1995)", 2)
    flim.faults = {"/2.0.0/search": [{"status": 429, "Retry_After": "1"}]}
    fetch(flim, tmp_path, "Heat (1995)")
    assert flim.times[2] - flim.times[1] >= 1.0


def test_rate_holds_for_further_tries_too(flim, tmp_path):
    flim.add("m1", "Heat (1995)", 7)
    flim.faults = {"/2.0.0/search": [{"status": 500}, {"status": 502}]}
    fetch(flim, tmp_path, "Heat (1995)", rate=20.0)
    assert len(flim.times) == 5 and flim.times[-1] - flim.times[0] > 0.05 * 3  # a slow reply may come late, not early


@pytest.mark.parametrize("fault", ["cut", "truncated", "html", "reset", {"status": 500}, {"status": 429}])
def test_image_recovers_or_fails_alone(flim, tmp_path, fault):
    flim.add("m1", "Heat (1995)", 6)
    flim.faults = {"/pictures/m1-2.jpg": [fault], "/pictures/m1-4.jpg": [fault] * 99}
    result = fetch(flim, tmp_path, "Heat (1995)")
    counts = result["films"]["Heat (1995)"]
    assert (counts["new"], counts["failed"]) == (5, 1)
    assert flim.asked("/pictures/m1-4") == 4  # the first and three more
    names = images(tmp_path / "Heat (1995)")
    assert "m1-2.jpg" in names and "m1-4.jpg" not in names
    for name in names:
        assert (tmp_path / "Heat (1995)" / name).read_bytes() == flim.pictures[f"/pictures/{name}"]
    flim.faults = {}
    counts = fetch(flim, tmp_path, "Heat (1995)")["films"]["Heat (1995)"]
    assert (counts["had"], counts["new"], counts["failed"]) == (5, 1, 0)


def test_a_picture_that_hangs_its_decoder_costs_itself_alone(flim, tmp_path, monkeypatch):
    flim.add("m1", "Heat (1995)", 4)
    packed = io.BytesIO()
    Image.new("RGB", (1, 1)).save(packed, "JPEG")
    flim.pictures["/pictures/m1-2.jpg"] = packed.getvalue()
    monkeypatch.setattr(scrape, "check_image", check_or_hang)
    monkeypatch.setattr(reading, "MAX_SECONDS", 3.0)
    counts = fetch(flim, tmp_path, "Heat (1995)")["films"]["Heat (1995)"]
    assert (counts["new"], counts["gone"], counts["failed"]) == (3, 1, 0) and flim.asked("/pictures/m1-2") == 1


@pytest.mark.parametrize("faults", [["empty page"], [None, "empty page"], ["empty page", None, "empty page"], ["null"]])
def test_pages_that_repeat_and_empty_ones(flim, tmp_path, faults):
    flim.add("m1", "Heat (1995)", 12)
    flim.frames["m1"][5:5] = flim.frames["m1"][:5]  # a page twice
    flim.frames["m1"].append(flim.frames["m1"][0])
    flim.faults = {"/2.0.0/search": list(faults)}
    result = fetch(flim, tmp_path, "Heat (1995)")
    assert len(images(tmp_path / "Heat (1995)")) == 12 and result["films"]["Heat (1995)"]["listed"] == 12


def test_an_endless_api_ends(flim, tmp_path, monkeypatch):
    flim.add("m1", "Heat (1995)", 5)
    flim.frames["m1"] *= 400
    fetch(flim, tmp_path, "Heat (1995)")
    assert flim.asked("/2.0.0/search") <= 5


def test_missing_and_strange_fields(flim, tmp_path):
    flim.add("m1", "Heat (1995)", 3)
    good, odd, foreign = flim.frames["m1"]
    for key in ("shot_time", "movie_id", "new_field"):
        del good[key]
    odd |= {"shot_time": "later", "size": None}
    foreign["movie_id"] = "m2"
    flim.frames["m1"] += [None, 7, {}, {"id": None}, {"id": "no-url"}, {"id": True}]
    counts = fetch(flim, tmp_path, "Heat (1995)")["films"]["Heat (1995)"]
    assert (counts["new"], counts["gone"], counts["failed"]) == (2, 1, 0)
    assert [line["shot_time_ms"] for line in read_sidecar(tmp_path / "Heat (1995)")] == [None, None]


@pytest.mark.parametrize("url", ["file:///etc/hostname", "data:,x", "http://[", "", "http://a..b/x", "http://:80/"])
def test_addresses_that_are_not_http(flim, tmp_path, url):
    flim.add("m1", "Heat (1995)", 2)
    flim.frames["m1"][0]["medium_resolution_url"] = url
    counts = fetch(flim, tmp_path, "Heat (1995)")["films"]["Heat (1995)"]
    assert (counts["new"], counts["gone"]) == (1, 1)


def test_an_image_that_is_too_large(flim, tmp_path, monkeypatch):
    flim.add("m1", "Heat (1995)", 2)
    monkeypatch.setattr(scrape, "MAX_BYTES", max(map(len, flim.pictures.values())))
    flim.pictures["/pictures/m1-0.jpg"] += b"x" * 100_000
    counts = fetch(flim, tmp_path, "Heat (1995)")["films"]["Heat (1995)"]
    assert (counts["new"], counts["gone"]) == (1, 1) and flim.asked("/pictures/m1-0") == 1


def test_hostile_and_colliding_titles(flim, tmp_path):
    names = ["../../escape (1999)", "Face/Off (1997)", "FACE/OFF (1997)", "CON (2000)", "x\u202ey\n (2001)"]
    for i, name in enumerate(names):
        flim.add(f"m/{i}", name, 2)
        for image, identity, frame in zip(flim.frames[f"m/{i}"], (f"../{i}", f"ID{i}"), (0, 1), strict=True):
            image |= {"id": identity, "medium_resolution_url": f"{flim.url}/pictures/m/{i}-{frame}.jpg"}
        flim.frames[f"m/{i}"][1]["id"] = f"Id{i}" if i else "frames"
    result = fetch(flim, tmp_path / "raw", *names)
    assert not result["unmatched"] and sorted(p.name for p in tmp_path.iterdir()) == ["raw"]
    folders = [p for p in (tmp_path / "raw").iterdir() if not p.name.startswith(".")]
    assert len({p.name.casefold() for p in folders}) == 5 and all(len(images(p)) == 2 for p in folders)
    assert fetch(flim, tmp_path / "raw", *names)["films"].keys() == result["films"].keys()


def test_a_television_show_is_no_film(flim, tmp_path):
    flim.add("m1", "Fargo (1996)", 1)
    flim.entity = "ENTITY_TV_SHOW"
    assert fetch(flim, tmp_path, "Fargo (1996)")["unmatched"] == {"Fargo (1996)": []}


def test_unmatched_can_be_mended_and_run_again(flim, tmp_path):
    flim.add("m1", "The Matrix (1999)", 1)
    flim.add("m2", "Matrix Reloaded (2003)", 1)
    movies = tmp_path / "movies.txt"
    movies.write_text("# mine\nMatrix Revolutionz (2003)\n\nMatrix (1999)\n")
    options = ["--out", str(tmp_path / "raw"), "--api", flim.url, "--rate", "200"]
    assert main(["flim", str(movies), *options]) == 0
    path = tmp_path / "raw" / "unmatched.txt"
    assert path.read_text().splitlines()[:2] == ["Matrix Revolutionz (2003)", "# Matrix Reloaded (2003)"]
    path.write_text(path.read_text().replace("# Matrix Re", "Matrix Re").replace("Matrix Revol", "# Matrix Revol"))
    assert main(["flim", str(path), *options]) == 0
    assert images(tmp_path / "raw" / "Matrix Reloaded (2003)") and not path.exists()


def test_exit_codes_and_one_line_errors(flim, tmp_path, capsys, monkeypatch):
    flim.add("m1", "Heat (1995)", 2)
    movies = tmp_path / "movies.txt"
    movies.write_text("Heat (1995)\n")
    options = ["--out", str(tmp_path / "raw"), "--rate", "200"]
    flim.faults = {"pictures": [{"status": 500}] * 8}
    assert main(["flim", str(movies), *options, "--api", flim.url]) == 1
    flim.faults = {"2.0.0": [{"status": 401}]}
    capsys.readouterr()
    monkeypatch.setenv("FLIM_TOKEN", "sesame")
    assert main(["flim", str(movies), *options, "--api", flim.url]) == 1
    error = capsys.readouterr().err
    assert "FLIM_TOKEN" in error and "sesame" not in error and "Traceback" not in error
    assert main(["flim", str(movies), *options, "--api", flim.url]) == 0
    assert main(["flim", str(tmp_path / "none.txt"), *options]) == 2
    for bad in (["--rate", "0"], ["--api", "ftp://x"], ["--max-frames", "0"]):
        with pytest.raises(SystemExit) as caught:
            main(["flim", str(movies), *bad])
        assert caught.value.code == 2


def test_dead_api_ends_the_run(tmp_path):
    with pytest.raises(UserError, match=r"--api .*Connection refused"):
        scrape_flim([f"{n} (2000)" for n in range(99)], tmp_path, api="http://127.0.0.1:9", rate=999)


def test_full_disk_is_one_error(flim, tmp_path, monkeypatch):
    flim.add("m1", "Heat (1995)", 40)
    atomic_write = scrape.atomic_write

    def full(path, *args, **kwargs):
        if path.suffix == ".jpg":
            raise OSError(28, "No space left on device")
        return atomic_write(path, *args, **kwargs)

    monkeypatch.setattr(scrape, "atomic_write", full)
    with pytest.raises(OSError, match="No space"):
        fetch(flim, tmp_path, "Heat (1995)")


def test_a_second_run_is_refused(flim, tmp_path, capsys):
    flim.add("m1", "Heat (1995)", 1)
    (tmp_path / "movies.txt").write_text("Heat (1995)\n")
    path = clip(tmp_path / "Film.2001.avi", [picture(0, 1)])
    flags = ["--out", str(tmp_path / "raw")]
    commands = (["flim", str(tmp_path / "movies.txt"), "--api", flim.url, *flags], ["video", str(path), *flags])
    with scrape.lock(tmp_path / "raw"):
        for argv in commands:
            assert main(argv) == 1
            error = capsys.readouterr().err
            assert "another scrape.py" in error and str(tmp_path / "raw") in error and len(error.splitlines()) == 1
    assert [main(argv) for argv in commands] == [0, 0]


def command(flim, tmp_path) -> list[str]:
    (tmp_path / "movies.txt").write_text("Heat (1995)\nThe Matrix (1999)\n")
    argv = [sys.executable, str(SCRIPT), "flim", str(tmp_path / "movies.txt"), "--out", str(tmp_path / "raw")]
    return [*argv, "--api", flim.url, "--rate", "100"]


def wait_for(what) -> None:
    limit = time.monotonic() + 30
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.mark.parametrize("after", [3, 17])
def test_kill_9_and_resume(flim, tmp_path, after):
    flim.add("m1", "Heat (1995)", 20)
    flim.add("m2", "The Matrix (1999)", 20)
    flim.delay = 0.05
    process = subprocess.Popen(command(flim, tmp_path), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    folder = tmp_path / "raw" / "Heat (1995)"
    wait_for(lambda: folder.is_dir() and len(images(folder)) >= after)
    process.kill()
    process.wait()
    flim.delay = 0
    whole = {f"/pictures/{p.name}" for p in (tmp_path / "raw").rglob("*.jpg")}
    before = len(flim.calls)
    assert subprocess.run(command(flim, tmp_path), check=False, capture_output=True).returncode == 0
    assert not whole & set(flim.calls[before:])  # nothing whole is downloaded twice
    for identity, title in flim.films.items():
        names = images(tmp_path / "raw" / title)
        assert names == {f"{identity}-{i}.jpg" for i in range(20)}
        assert sorted(line["file"] for line in read_sidecar(tmp_path / "raw" / title)) == sorted(names)
    assert not list((tmp_path / "raw").rglob("*.part"))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_a_summary(flim, tmp_path, sign):
    flim.add("m1", "Heat (1995)", 200)
    flim.delay = 0.02
    process = subprocess.Popen(
        command(flim, tmp_path),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    folder = tmp_path / "raw" / "Heat (1995)"
    wait_for(lambda: folder.is_dir() and len(images(folder)) >= 2)
    flim.delay, before = 25, len(flim.calls)  # from here on the server holds every connection
    wait_for(lambda: len(flim.calls) > before)
    process.send_signal(sign)
    out, err = process.communicate(timeout=15)
    assert process.returncode == 130 and "Heat (1995)" in out and "run the same command again" in err
    assert "Traceback" not in err


def test_a_dripping_server_is_not_waited_for(flim, tmp_path, monkeypatch):
    monkeypatch.setattr(scrape, "SLOWEST", 0.3)
    flim.add("m1", "Heat (1995)", 2)
    flim.faults = {"/pictures/m1-0.jpg": ["drip"]}
    assert fetch(flim, tmp_path, "Heat (1995)")["films"]["Heat (1995)"]["new"] == 2


def test_what_a_kill_leaves_is_mended(flim, tmp_path):
    flim.add("m1", "Heat (1995)", 6)
    fetch(flim, tmp_path, "Heat (1995)", max_frames=4)
    folder = tmp_path / "Heat (1995)"
    before = sorted((folder / "frames.jsonl").read_text().splitlines())
    (folder / "frames.jsonl").write_text("\n".join(before[:3]) + '\n{"file": "ha')  # killed in the middle of a line
    (folder / ".m1-9.jpg.123.part").write_bytes(b"half")
    counts = fetch(flim, tmp_path, "Heat (1995)")["films"]["Heat (1995)"]
    assert (counts["had"], counts["new"]) == (4, 2) and flim.asked("/pictures") == 6
    lines = (folder / "frames.jsonl").read_text().splitlines()
    assert len(lines) == 6 and set(before) <= set(lines) and not list(folder.glob(".*"))


def test_addresses_that_ran_out_are_listed_again(flim, tmp_path):
    flim.add("m1", "Heat (1995)", 4)
    pictures, flim.pictures = flim.pictures, {}
    assert fetch(flim, tmp_path, "Heat (1995)")["films"]["Heat (1995)"]["gone"] == 4
    flim.pictures = {f"{path}?new": data for path, data in pictures.items()}
    for image in flim.frames["m1"]:
        image["medium_resolution_url"] += "?new"
    assert fetch(flim, tmp_path, "Heat (1995)")["films"]["Heat (1995)"]["new"] == 4


def test_a_corrected_title_stays_until_its_film_is_whole(flim, tmp_path):
    flim.add("m1", "Heat (1995)", 1)
    fetch(flim, tmp_path, "Nothing like it (1990)", "Nor this (1991)")
    flim.faults = {"pictures": [{"status": 500}] * 4}
    path = tmp_path / "unmatched.txt"
    path.write_text(path.read_text().replace("Nor this (1991)", "Heat (1995)"))
    fetch(flim, tmp_path, *scrape.read_wanted(path))
    assert sorted(scrape.read_wanted(path)) == ["Heat (1995)", "Nothing like it (1990)"]
    fetch(flim, tmp_path, *scrape.read_wanted(path))
    assert scrape.read_wanted(path) == ["Nothing like it (1990)"]


def test_hostile_answers_do_not_stop_the_run(flim, tmp_path):
    flim.add("m1", "Heat (1995)", 3)
    flim.frames["m1"][0]["shot_time"] = 10**400
    flim.faults = {"/2.0.0/search": [{"status": 429, "Retry_After": "9" * 5000}, "null"]}
    assert fetch(flim, tmp_path, "Heat (1995)")["films"]["Heat (1995)"]["new"] == 3


@pytest.mark.parametrize("token", ["\u0442\u043e\u043a\u0435\u043d", "two words", "a\nb"])
def test_token_that_cannot_be_one_is_not_shown(tmp_path, capsys, monkeypatch, token):
    (tmp_path / "movies.txt").write_text("Heat (1995)\n#Alive (2020)\n# a comment\n")
    assert scrape.read_wanted(tmp_path / "movies.txt") == ["Heat (1995)", "#Alive (2020)"]
    monkeypatch.setenv("FLIM_TOKEN", token)
    assert main(["flim", str(tmp_path / "movies.txt"), "--out", str(tmp_path / "raw")]) == 2
    error = capsys.readouterr().err
    assert "FLIM_TOKEN" in error and token not in error and len(error.splitlines()) == 1


# ----------------------------------------------------------------------------------------------- video


def clip(path: Path, shots: list[np.ndarray], frames: int = 24) -> Path:
    """A video of 24 frames a second, so many of each picture, which moves slowly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, [np.roll(shot, k // 8, axis=1) for shot in shots for k in range(frames)])


def picture(film: int, shot: int) -> np.ndarray:
    return np.asarray(draw_frame(film, shot, 0))


def read_rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_video_takes_frames_of_every_shot(tmp_path):
    pytest.importorskip("scenedetect", reason="needs scenedetect")
    black = np.zeros((136, 240, 3), np.uint8)
    blurred = np.asarray(Image.fromarray(picture(1, 7)).filter(ImageFilter.GaussianBlur(25)))
    shots = [picture(0, 1), black, picture(2, 2), blurred, picture(4, 3)]
    path = clip(tmp_path / "The.Big.Film.2001.720p.BluRay.avi", shots)
    argv = ["video", str(path), "--out", str(tmp_path / "raw"), "--processes", "1"]
    assert main(argv) == 0
    folder = tmp_path / "raw" / "The Big Film (2001)"
    lines = read_sidecar(folder)
    assert len(lines) == 3 and {line["file"] for line in lines} == images(folder)
    seconds = [line["shot_time_ms"] / 1000 for line in lines]
    assert seconds == pytest.approx([0.5, 2.5, 4.5], abs=0.35)  # the middles of the first, third and fifth
    assert len({line["shot"] for line in lines}) == 3
    for line, shot in zip(lines, (shots[0], shots[2], shots[4]), strict=True):
        frame = read_rgb(folder / line["file"])
        assert min(abs(np.roll(shot, k, axis=1) - frame).mean() for k in range(4)) < 8  # of that shot, colours right
    stamps = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert main(argv) == 0
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == stamps  # a finished film is not done again
    assert main([*argv, "--per-shot", "3", "--title", "Other (2002)"]) == 0
    assert not folder.exists()  # named anew, it is not left under the old name too
    folder, moved = tmp_path / "raw" / "Other (2002)", tmp_path / "elsewhere.avi"
    path.rename(moved)
    assert main(["video", str(moved), *argv[2:], "--per-shot", "3", "--title", "Other (2002)"]) == 0
    again = read_sidecar(folder)
    assert len(again) == len(images(folder)) > 6 and len({line["file"] for line in again}) == len(again)
    assert not (tmp_path / "raw" / ".video").exists()


def test_video_takes_a_frame_every_so_often(tmp_path):
    path = clip(tmp_path / "Film.2001.avi", [picture(k, k) for k in range(5)])
    argv = ["video", str(path), "--out", str(tmp_path / "raw")]
    assert main([*argv, "--every", "0.5"]) == 0
    folder = tmp_path / "raw" / "Film (2001)"
    lines = read_sidecar(folder)
    assert {line["file"] for line in lines} == images(folder)
    assert [line["shot_time_ms"] for line in lines] == pytest.approx(list(range(0, 5000, 500)), abs=1)
    assert [still.time_ms for still in list_stills(folder)] == [line["shot_time_ms"] for line in lines]
    frame = read_rgb(folder / lines[7]["file"])  # at 3.5 s: the fourth shot, moved by one pixel
    assert abs(np.roll(picture(3, 3), 1, axis=1) - frame).mean() < 8
    assert main([*argv, "--every", "2", "--skip-start", "1"]) == 0
    assert [line["shot_time_ms"] for line in read_sidecar(folder)] == pytest.approx([2000, 4000], abs=1)
    assert len(images(folder)) == 2  # in place of the ten
    with pytest.raises(SystemExit) as caught:
        main([*argv, "--every", "2", "--per-shot", "2"])
    assert caught.value.code == 2


def test_two_encodings_are_one_film_and_two_parts_too(tmp_path, capsys):
    small = clip(tmp_path / "in" / "Film.2001.480p.avi", [picture(0, 1), picture(0, 2)], frames=12)
    argv = ["video", str(tmp_path / "in"), "--out", str(tmp_path / "raw"), "--every", "0.25"]
    assert main(argv) == 0
    noisy = [np.random.default_rng(k).integers(0, 256, (136, 240, 3), dtype=np.uint8) for k in range(2)]
    clip(tmp_path / "in" / "again" / "film (2001) 1080p.avi", noisy, frames=12)
    for part in (1, 2):
        clip(tmp_path / "in" / f"Other.2002.cd{part}.avi", [picture(3, part)])
    capsys.readouterr()
    assert main(argv) == 0
    output = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(output) == 1 and small.name in output[0] and output[0].startswith("film (2001) 1080p.avi")
    found = {path.name.casefold(): path for path in (tmp_path / "raw").iterdir() if path.is_dir()}
    assert set(found) == {"film (2001)", "other (2002)"}
    folder = found["film (2001)"]
    times = [line["shot_time_ms"] for line in read_sidecar(folder)]
    assert times == pytest.approx([0, 250, 500, 750], abs=1)  # of the better one; what was taken of the other went
    assert images(folder) == {line["file"] for line in read_sidecar(folder)}
    times = [line["shot_time_ms"] for line in read_sidecar(found["other (2002)"])]
    assert times == pytest.approx(list(range(0, 2000, 250)), abs=1)  # the second part goes on


def test_one_broken_video_does_not_stop_the_rest(tmp_path, capsys):
    films = tmp_path / "films"
    films.mkdir()
    (films / "a.broken.1999.mkv").write_bytes(b"not a video" * 100)
    (films / "b.empty.2000.mp4").write_bytes(b"")
    (films / "e.two\nlines.2003.mkv").write_bytes(b"not a video" * 100)
    clip(films / "c.good.2001.avi", [picture(0, 1), picture(1, 2)])
    (films / "d.dangling.2002.avi").symlink_to(tmp_path / "nowhere.avi")
    (films / "._c.good.2001.avi").write_bytes(b"of macOS")
    argv = ["video", str(films), "--out", str(tmp_path / "raw"), "--keyframes"]
    assert main(argv) == 1
    lines = capsys.readouterr().err.splitlines()
    for name in ("a.broken.1999.mkv", "e.two lines.2003.mkv"):
        assert len([line for line in lines if "error:" in line and name in line]) == 1
    (passed_over,) = [line for line in lines if "passed over" in line]
    assert "empty files (1)" in passed_over and "broken links (1)" in passed_over
    assert images(tmp_path / "raw" / "c good (2001)")
    assert [path.name for path in (tmp_path / "raw").glob("[!.]*")] == ["c good (2001)"]
    assert main(["video", str(tmp_path / "nothing"), "--out", str(tmp_path / "raw")]) == 2


def test_a_broken_larger_copy_removes_nothing(tmp_path, capsys):
    films = tmp_path / "films"
    out = tmp_path / "raw"
    argv = ["video", str(films), "--out", str(out), "--keyframes"]
    good = clip(films / "Film (2001).avi", [picture(0, 1), picture(0, 2)])
    assert main(argv) == 0
    before = {path.name: path.read_bytes() for path in (out / "Film (2001)").iterdir()}
    (films / "Film.2001.2160p.mkv").write_bytes(np.random.default_rng(1).bytes(4 * good.stat().st_size))
    capsys.readouterr()
    assert main(argv) == 0  # the film is there
    assert {path.name: path.read_bytes() for path in (out / "Film (2001)").iterdir()} == before
    good.unlink()
    assert main(argv) == 1
    assert {path.name: path.read_bytes() for path in (out / "Film (2001)").iterdir()} == before


def test_a_film_in_part_gives_way_to_a_whole_one_and_never_the_other_way(tmp_path, capsys):
    whole = clip(tmp_path / "whole" / "Film (2001).mkv", [picture(k % 3, k) for k in range(12)])
    cut = tmp_path / "cut" / "Film (2001).mkv"
    cut.parent.mkdir()
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    folder = tmp_path / "raw" / "Film (2001)"
    argv = ["--out", str(tmp_path / "raw"), "--every", "1"]
    assert main(["video", str(cut.parent), *argv]) == 0
    assert "in part: read up to 0:00:0" in capsys.readouterr().out
    lines = read_sidecar(folder)
    assert 4 < len(lines) < 9 and all("the rest is damaged" in line["partial"] for line in lines)
    assert main(["video", str(whole.parent), *argv]) == 0
    lines = [line for line in read_sidecar(folder) if "partial" not in line]
    assert len(lines) == 12 and {line["file"] for line in lines} <= images(folder)
    kept = images(folder)
    cut.write_bytes(data[: len(data) // 3])
    capsys.readouterr()
    assert main(["video", str(cut.parent), *argv]) == 1
    assert "frames that are there stay" in capsys.readouterr().err and images(folder) == kept


def test_sharpness_is_what_opencv_computes():
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
    for size in ((960, 544), (1280, 720), (240, 136), (481, 203)):
        rgb = np.asarray(draw_frame(3, 1, 0, size))
        height = round(size[1] * 480 / size[0])
        small = cv2.resize(rgb, (480, height), interpolation=cv2.INTER_AREA)
        wanted = cv2.Laplacian(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()
        assert scrape.sharpness(rgb) == pytest.approx(wanted, rel=0.005)


def test_dry_run_and_titles(tmp_path, capsys):
    clip(tmp_path / "in" / "movie.avi", [picture(0, 1)])
    (tmp_path / "titles.csv").write_text("file,title\nmovie.avi,Heat (1995)\n")
    argv = ["video", str(tmp_path / "in"), "--out", str(tmp_path / "raw"), "--titles", str(tmp_path / "titles.csv")]
    assert main([*argv, "--dry-run"]) == 0
    assert "->  Heat (1995)" in capsys.readouterr().out and not (tmp_path / "raw").exists()
    assert main([*argv, "--keyframes"]) == 0
    assert images(tmp_path / "raw" / "Heat (1995)")


# ---------------------------------------------------------------------------------------------- titles


def imdb(path: Path, rows: list[list[str]]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines("\t".join(row) + "\n" for row in rows)
    return path


@pytest.fixture
def datasets(tmp_path):
    basics = [
        ["tconst", "titleType", "primaryTitle", "originalTitle", "isAdult", "startYear", "endYear", "genres"],
        ["tt1", "movie", 'Quote " in title', "x", "0", "1990", "\\N", "Drama"],
        ["tt2", "movie", "Popular", "x", "0", "2000", "\\N", "Drama"],
        ["tt3", "tvSeries", "Series", "x", "0", "2001", "\\N", "Drama"],
        ["tt4", "movie", "Adult", "x", "1", "2002", "\\N", "Drama"],
        ["tt5", "movie", "No year", "x", "0", "\\N", "\\N", "Drama"],
        ["tt6", "movie", "Few votes", "x", "0", "2003", "\\N", "Drama"],
        ["tt7", "movie", "Popular", "x", "0", "2000", "\\N", "Drama"],
        ["tt8", "movie"],
    ]
    ratings = [["tconst", "averageRating", "numVotes"]]
    ratings += [["tt1", "9.0", "30000"], ["tt2", "7.0", "900000"], ["tt3", "9.9", "99999"], ["tt4", "9.9", "99999"]]
    ratings += [["tt5", "9.9", "99999"], ["tt6", "9.9", "10"], ["tt7", "9.5", "26000"], ["tt8", "9.9", "99999"]]
    akas = [
        ["titleId", "ordering", "title", "region", "language", "types", "attributes", "isOriginalTitle"],
        ["tt2", "1", "Popular", "US", "en", "imdbDisplay", "\\N", "0"],
        ["tt2", "2", "Рабочее", "RU", "\\N", "working", "\\N", "0"],
        ["tt2", "3", "Популярный", "RU", "\\N", "imdbDisplay", "\\N", "0"],
        ["tt1", "1", "Latin only", "RU", "ru", "imdbDisplay", "\\N", "0"],
    ]
    parts = {"basics": basics, "ratings": ratings, "akas": akas}
    return {name: imdb(tmp_path / f"title.{name}.tsv.gz", rows) for name, rows in parts.items()}


def test_top_titles(datasets, tmp_path, capsys):
    flags = ["titles", "--basics", str(datasets["basics"]), "--ratings", str(datasets["ratings"])]
    assert main([*flags, "--akas", str(datasets["akas"]), "--titles-csv", str(tmp_path / "titles.csv")]) == 0
    assert capsys.readouterr().out.splitlines() == ['Quote " in title (1990)', "Popular (2000)"]
    with open(tmp_path / "titles.csv", newline="", encoding="utf-8") as file:
        assert {row["title"]: row["ru"] for row in csv.DictReader(file)} == {
            'Quote " in title (1990)': "", "Popular (2000)": "Популярный",
        }  # fmt: skip
    assert main([*flags, "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == ['Quote " in title (1990)']


def test_damaged_datasets(datasets, tmp_path, capsys):
    cut = tmp_path / "cut.tsv.gz"
    cut.write_bytes(datasets["basics"].read_bytes()[:-20])
    page = tmp_path / "page.tsv.gz"
    page.write_bytes(b"<html>")
    for path, code in ((cut, 1), (page, 1), (datasets["ratings"], 2), (tmp_path / "none.tsv.gz", 2)):
        assert main(["titles", "--basics", str(path), "--ratings", str(datasets["ratings"])]) == code
        error = capsys.readouterr().err
        assert str(path) in error and len(error.splitlines()) == 1
