"""`python bench.py web`: the page of web/ in a browser, from a picture that is dropped on it to its answer."""

import contextlib
import functools
import http.server
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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


class Page:
    """The page in a browser of its own, with one .onnx of the export."""

    def __init__(self, browser, address: str, name: str):
        self.tab = browser.new_page()
        self.tab.add_init_script(WATCH)
        self.address = f"{address}/web/?model=/export/{name}"

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
        pages[name] = Page(launch(), address, name)
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
