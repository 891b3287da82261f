"""`python bench.py web`: the page of web/ in a browser, from a picture that is dropped on it to its answer."""

import contextlib
import functools
import http.server
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from answering.console import UserError
from answering.publishing import ENGINE
from benchmarks.harness import Figures, sample, show

NAMES = ["model.onnx", "model.int8.onnx", "model.web.onnx"]
WEB = Path(__file__).parent.with_name("web")
# runs in the page before its own scripts: notes how long its main thread was busy
WATCH = """window.blocks = [0];
    const note = (list) => list.getEntries().forEach((entry) => blocks.push(entry.duration));
    new PerformanceObserver(note).observe({ type: "longtask", buffered: true });"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@contextlib.contextmanager
def serve(model: Path) -> Iterator[str]:
    """A server on loopback with the page at /web/ and the export at /export/; gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "web").symlink_to(WEB.resolve())
        Path(folder, "export").symlink_to(model.resolve())
        handler = functools.partial(QuietHandler, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class CountingHandler(QuietHandler):
    """Keeps what it sent: (path, bytes)."""

    sent: ClassVar[list[tuple[str, int]]] = []

    def copyfile(self, source, outputfile) -> None:
        self.sent.append((self.path, os.fstat(source.fileno()).st_size))
        super().copyfile(source, outputfile)


@contextlib.contextmanager
def serve_site(site: Path) -> Iterator[str]:
    """A server on loopback with a site of index.py publish; gives its address."""
    CountingHandler.sent.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(CountingHandler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


class Page:
    """The page in a browser of its own."""

    def __init__(self, browser, address: str):
        self.tab = browser.new_page()
        self.tab.add_init_script(WATCH)
        self.address = address

    def open(self, picture: str) -> float:
        """Milliseconds of the first visit, to its first answer."""
        start = time.perf_counter()
        self.tab.goto(self.address)
        self.answer(picture)
        return 1000 * (time.perf_counter() - start)

    def answer(self, picture: str) -> float:
        """Milliseconds that the page says it took."""
        self.tab.set_input_files("input[type=file]", picture)
        self.tab.wait_for_selector("article[data-kind]:first-child")
        return float(self.tab.get_attribute("#answer", "data-ms"))

    def longest_block(self) -> float:
        """Milliseconds for which the main thread was busy without a break; 0 for less than 50 (Long Tasks)."""
        return self.tab.evaluate("Math.max(...blocks)")


def find_browser() -> tuple[Callable, str]:
    """(playwright's entry, path of the browser). Raises UserError where something is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("bench.py web drives a browser: pip install playwright", 2) from None
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program or not (WEB / "vendor" / ENGINE[-1]).exists():
        raise UserError("bench.py web needs a browser and web/vendor: apt-get install chromium; make web/vendor", 2)
    return sync_playwright, program


def time_pages(
    launch: Callable, address: str, model: Path, names: list[str], pictures: list[str]
) -> dict[str, Figures]:
    """A row of the table for each of these files of an export. launch: gives a new browser."""
    rows = {}
    pages = {}
    for name in names:
        pages[name] = Page(launch(), f"{address}/web/?model=/export/{name}")
        cold = pages[name].open(pictures[0])
        rows[name] = {"cold, ms": cold, "MB": (model / name).stat().st_size / 1e6}
    times = {name: [] for name in names}
    for picture in 2 * pictures:
        for name, page in pages.items():
            times[name].append(page.answer(picture))
    for name, page in pages.items():
        warm = times[name][len(pictures) :]
        rows[name]["ms"] = np.median(warm)
        rows[name]["fastest, ms"] = min(warm)
        rows[name]["longest block, ms"] = f"{page.longest_block():.0f}"
    return rows


def bench_web(*, frames: Path, model: Path = Path("export"), count: int = 30) -> None:
    """The page of web/ in headless Chromium on one thread: time from drop to answer, for every .onnx of an export.

    Cold is a new browser's first visit, to its first answer. The longest block is of the page's main thread, from 50 ms
    on (Long Tasks). count: frames, each alone, after as many that warm up. Needs playwright and a browser.
    """
    sync_playwright, program = find_browser()
    pictures = sample(frames, count)
    names = [name for name in NAMES if (model / name).exists()]
    if not names:
        raise UserError(f"--model {model}: holds none of {', '.join(NAMES)}; make them with export.py --web", 2)
    with serve(model) as address, sync_playwright() as driver:
        launch = functools.partial(driver.chromium.launch, executable_path=program)
        rows = time_pages(launch, address, model, names, pictures)
    page = sum(file.stat().st_size for file in WEB.iterdir() if file.suffix in (".html", ".js", ".css")) / 1e3
    note = f"The page itself: {page:.0f} KB, beside ONNX Runtime and model."
    show(f"Page, {model}, {len(pictures)} frames", rows, note)


def bench_site(site: Path, *, frames: Path, count: int = 30) -> None:
    """A site of index.py publish in headless Chromium: what is fetched until the first answer, and for each other one.

    Cold is a new browser's first visit, to its first answer. count: frames, each alone. Needs playwright and a browser.
    """
    sync_playwright, program = find_browser()
    pictures = sample(frames, count)
    if not (site / "index.html").exists():
        raise UserError(f"{site}: no page there; python index.py publish {site} writes one", 2)
    sent = CountingHandler.sent
    with serve_site(site) as address, sync_playwright() as driver:
        page = Page(driver.chromium.launch(executable_path=program), address)
        row: Figures = {"cold, ms": page.open(pictures[0])}
        first = [(path, size) for path, size in sent if "/stills/" not in path]
        large = [size for path, size in first if path.startswith("/model/") or "/vectors-" in path]
        row["model and vectors, MB"] = sum(large) / 1e6
        row["beside, MB"] = (sum(size for _, size in first) - sum(large)) / 1e6
        row["requests"] = str(len(first))
        times = []
        answers = []  # what each fetches: [bytes]
        for picture in pictures[1:]:
            sent.clear()
            times.append(page.answer(picture))
            answers.append([size for _, size in sent])
        row["longest block, ms"] = f"{page.longest_block():.0f}"
    row["an answer, ms"] = np.median(times)
    row["an answer, KB at most"] = max(sum(sizes) for sizes in answers) / 1e3
    row["requests of one at most"] = str(max(len(sizes) for sizes in answers))
    show(f"Site, {site}, {len(pictures)} frames", {site.name: row})
