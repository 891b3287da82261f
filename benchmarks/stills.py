"""`python bench.py render` and `scrape`: how fast frames are drawn, and how fast stills come from a server."""

import asyncio
import contextlib
import io
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from PIL import Image

from answering.console import UserError
from benchmarks.harness import show

FILM = "Bench (2026)"


def bench_render(*, frames: int = 240) -> None:
    """Frames per second of the renderer on one core, JPEG included."""
    import cv2

    from demo.design import film_design
    from demo.films import render_film

    cv2.setNumThreads(1)
    film = film_design(2)  # a wide one
    row = {}
    for per_shot in (3, 6):
        list(render_film(film, 4, 2))  # warms up
        start = time.perf_counter()
        for frame, _, _ in render_film(film, frames, -(-frames // per_shot)):
            cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 90])
        row[f"{per_shot} a shot, frames/s"] = frames / (time.perf_counter() - start)
    show(f"Rendered film, {frames} frames on one core", {f"{frame.shape[1]}x{frame.shape[0]}": row})


@contextlib.asynccontextmanager
async def flim_server(images: int, latency: int) -> AsyncIterator[str]:
    """A FLIM API on loopback with one film of so many images, each of them latency ms late; gives its address."""
    from aiohttp import test_utils, web

    from scrape import PER_PAGE

    picture = io.BytesIO()
    Image.effect_noise((960, 540), 20).save(picture, format="JPEG", quality=90)
    suggestions = {"suggestions": [{"id": "1", "name": FILM, "entity": "ENTITY_MOVIE"}]}

    async def handle(request: web.Request) -> web.Response:
        if request.method == "GET":
            await asyncio.sleep(latency / 1000)
            return web.Response(body=picture.getvalue())
        body = await request.json()
        if "suggest" in body:
            return web.json_response(suggestions)
        numbers = range(images)[body.get("page", 0) * PER_PAGE :][:PER_PAGE]
        found = [{"id": f"i{n}", "medium_resolution_url": f"{url}/{n}", "shot_time": n} for n in numbers]
        return web.json_response({"query_response": {"total_number_of_results": images, "images": found}})

    async with test_utils.RawTestServer(handle) as server:
        url = str(server.make_url(""))
        yield url


def scrape_one_by_one(url: str, images: int, folder: Path) -> None:
    """The original's way: page after page, image after image."""
    import requests

    from scrape import PER_PAGE

    for page in range(-(-images // PER_PAGE) + 1):  # the last one is empty
        answer = requests.post(f"{url}/2.0.0/search", json={"page": page}, timeout=10).json()
        for image in answer["query_response"]["images"]:
            data = requests.get(image["medium_resolution_url"], timeout=10).content
            (folder / f"{image['id']}.jpg").write_bytes(data)


async def bench_scrape(*, images: int = 300, latency: int = 50) -> None:
    """Images per second from a server with that latency: one at a time, and scrape.py at 2 API calls/s."""
    from scrape import scrape_flim

    with tempfile.TemporaryDirectory() as folder:
        async with flim_server(images, latency) as url:
            start = time.perf_counter()
            await asyncio.to_thread(scrape_one_by_one, url, images, Path(folder))
            middle = time.perf_counter()
            result = await asyncio.to_thread(scrape_flim, [FILM], Path(folder, "raw"), api=url)
            end = time.perf_counter()
    if result["films"].get(FILM, {}).get("new") != images:
        raise UserError(f"not all of the {images} images arrived: {result}")
    rows = {
        "original's way": {"images/s": images / (middle - start)},
        "scrape.py": {"images/s": images / (end - middle)},
    }
    show(f"Scrape, {images} images, {latency} ms each", rows)
