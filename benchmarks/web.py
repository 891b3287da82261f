"""web"""

import tempfile
import time
from pathlib import Path

import numpy as np

from answering.console import UserError
from benchmarks.harness import sample, show


def bench_web(*, frames: Path, model: Path = Path("export"), count: int = 30) -> None:
    """The page of web/ in Chromium, headless, one thread: every .onnx of an export, from drop to answer.

    Cold is a new browser's first visit, to its first answer. The longest block is of the page's main thread, from 50 ms
    on (Long Tasks). count: frames, each alone, after as many that warm up. Needs playwright and a browser.
    """
    import functools
    import http.server
    import shutil
    import threading

    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("bench.py web drives a browser: pip install playwright", 2) from None
    program = shutil.which("chromium") or shutil.which("google-chrome")
    web, rows = Path(__file__).parent.with_name("web"), {}
    if not program or not (web / "vendor").exists():
        raise UserError("bench.py web needs a browser and web/vendor: apt-get install chromium; make web/vendor", 2)
    watch = """window.blocks = [0]; const note = (list) => list.getEntries().forEach((it) => blocks.push(it.duration));
        new PerformanceObserver(note).observe({ type: "longtask", buffered: true });"""
    pictures, names = sample(frames, count), ["model.onnx", "model.int8.onnx", "model.web.onnx"]

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    if not any((model / name).exists() for name in names):
        raise UserError(f"--model {model}: holds none of {', '.join(names)}; make them with export.py --web", 2)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        Path(folder, "web").symlink_to(web.resolve())
        Path(folder, "export").symlink_to(model.resolve())
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pages, times = {}, {}

        def answer(name: str, picture: str) -> float:
            pages[name].set_input_files("input[type=file]", picture)
            pages[name].wait_for_selector("article[data-kind]:first-child")
            return float(pages[name].get_attribute("#answer", "data-ms"))

        for name in (name for name in names if (model / name).exists()):
            pages[name], times[name] = driver.chromium.launch(executable_path=program).new_page(), []
            pages[name].add_init_script(watch)
            start = time.perf_counter()
            pages[name].goto(f"http://127.0.0.1:{server.server_port}/web/?model=/export/{name}")
            answer(name, pictures[0])
            rows[name] = {"cold, ms": 1000 * (time.perf_counter() - start), "MB": (model / name).stat().st_size / 1e6}
        for picture in 2 * pictures:
            for name in pages:
                times[name].append(answer(name, picture))
        for name, page in pages.items():
            warm = times[name][len(pictures) :]
            rows[name] |= {"ms": np.median(warm), "fastest, ms": min(warm)}
            rows[name]["longest block, ms"] = f"{page.evaluate('Math.max(...blocks)'):.0f}"
        server.shutdown()
    page = sum(file.stat().st_size for file in web.iterdir() if file.suffix in (".html", ".js", ".css")) / 1e3
    show(
        f"Page, {model}, {len(pictures)} frames",
        rows,
        f"The page itself: {page:.0f} KB, beside ONNX Runtime and model.",
    )
