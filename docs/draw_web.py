"""Draw the page: real stills go through the real page in Chromium, wide and narrow, light and dark, in two languages.

python docs/draw_web.py STILL... --site web-site --out docs/web.png
"""

import argparse
import functools
import http.server
import io
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from answering.console import UserError, atomic_write, one_line_errors

READY = "#answer[aria-busy=false]"
HEIGHT = 1240  # of the drawn sheet, pixels
# (left, width, language, colours) of each visit
VISITS = ((0, 1280, "en-GB", "light"), (1290, 360, "ru-RU", "dark"))
BACKGROUND = "#8a8a90"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@contextmanager
def serve(site: Path) -> Iterator[str]:
    """The site on loopback; gives its address."""
    handler = functools.partial(QuietHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def picture_of(browser, address: str, stills: list[str], *, width: int, language: str, colours: str) -> Image.Image:
    """What a visitor sees after these stills were dropped, one after the other; of several joined by + as one film."""
    view = {"width": width, "height": HEIGHT}
    with browser.new_context(viewport=view, locale=language, color_scheme=colours) as context:
        page = context.new_page()
        page.goto(address)
        for still in stills:
            page.wait_for_selector(READY, state="attached")
            page.set_input_files("input[type=file]", still.split("+"))
            page.wait_for_selector(READY, state="attached")
            if "+" in still:
                page.click(".group button")
                page.wait_for_selector(READY, state="attached")
        if not stills:
            page.wait_for_selector(READY, state="attached")
        page.mouse.move(0, 0)
        page.wait_for_timeout(500)  # the last picture is drawn
        return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def draw_web(stills: list[str], site: Path, out: Path) -> None:
    """Write the sheet of all visits."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("the page is drawn by a browser: pip install playwright", 2) from None
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        raise UserError("the page is drawn by a browser: apt-get install chromium", 2)
    sheet = Image.new("RGB", (VISITS[-1][0] + VISITS[-1][1], HEIGHT), BACKGROUND)
    with serve(site) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program)
        for left, width, language, colours in VISITS:
            seen = picture_of(browser, address, stills, width=width, language=language, colours=colours)
            sheet.paste(seen, (left, 0))
        browser.close()
    with atomic_write(out) as file:
        sheet.quantize(256, kmeans=1, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    text = "pictures, the last one is shown on top; several joined by + are asked together"
    parser.add_argument("stills", nargs="*", metavar="STILL", help=text)
    parser.add_argument("--site", type=Path, default=Path("web-site"), help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/web.png"), help="default: %(default)s")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if not (args.site / "index.html").exists():
        raise UserError(f"--site {args.site}: no page there; python index.py publish {args.site} writes one", 2)
    draw_web(args.stills, args.site, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
