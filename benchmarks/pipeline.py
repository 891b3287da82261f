"""Measure the figures of RESULTS.md, each against the original project's way, in one run; prints markdown.

python bench.py render                                                  # a quick look: frames a second on one core
python bench.py infer runs/RUN/best.pt --model export --frames FOLDER   # JPEG to answer: torch against the export
python bench.py bot --model export --frames FOLDER                      # bot.py under load, on loopback
python bench.py --help                                                  # and scrape, filter, train, index, web ...
"""

import asyncio
import contextlib
import csv
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from answering.console import UserError
from answering.pictures import PREPROCESSING, read_image
from benchmarks.harness import sample, show


def bench_render(*, frames: int = 240) -> None:
    """Frames a second of the renderer on one core, JPEG included."""
    import cv2

    from demo.films import film_design, render_film

    cv2.setNumThreads(1)
    film, row = film_design(2), {}  # a wide one
    for per_shot in (3, 6):
        list(render_film(film, 4, 2))  # warms up
        start = time.perf_counter()
        for frame, _, _ in render_film(film, frames, -(-frames // per_shot)):
            cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 90])
        row[f"{per_shot} a shot, frames/s"] = frames / (time.perf_counter() - start)
    show(f"Rendered film, {frames} frames on one core", {f"{frame.shape[1]}x{frame.shape[0]}": row})


async def bench_scrape(*, images: int = 300, latency: int = 50) -> None:
    """Images a second from a server that gives each latency ms late: one by one, and scrape.py at 2 API calls/s."""
    import requests
    from aiohttp import test_utils, web

    from scrape import PER_PAGE, scrape_flim

    picture, film = io.BytesIO(), {"suggestions": [{"id": "1", "name": "Bench (2026)", "entity": "ENTITY_MOVIE"}]}
    Image.effect_noise((960, 540), 20).save(picture, format="JPEG", quality=90)

    async def handle(request):
        if request.method == "GET":
            await asyncio.sleep(latency / 1000)
            return web.Response(body=picture.getvalue())
        body = await request.json()
        numbers = range(images)[body.get("page", 0) * PER_PAGE :][:PER_PAGE]
        found = [{"id": f"i{n}", "medium_resolution_url": f"{url}/{n}", "shot_time": n} for n in numbers]
        page = {"query_response": {"total_number_of_results": images, "images": found}}
        return web.json_response(film if "suggest" in body else page)

    def one_by_one() -> None:
        for page in range(-(-images // PER_PAGE) + 1):  # the last one is empty
            answer = requests.post(f"{url}/2.0.0/search", json={"page": page}, timeout=10).json()
            for image in answer["query_response"]["images"]:
                data = requests.get(image["medium_resolution_url"], timeout=10).content
                Path(folder, f"{image['id']}.jpg").write_bytes(data)

    with tempfile.TemporaryDirectory() as folder:
        async with test_utils.RawTestServer(handle) as server:
            url, start = str(server.make_url("")), time.perf_counter()
            await asyncio.to_thread(one_by_one)
            middle = time.perf_counter()
            result = await asyncio.to_thread(scrape_flim, ["Bench (2026)"], Path(folder, "raw"), api=url)
            seconds = {"original's way": middle - start, "scrape.py": time.perf_counter() - middle}
    if result["films"].get("Bench (2026)", {}).get("new") != images:
        raise UserError(f"not all of the {images} images arrived: {result}")
    show(f"Scrape, {images} images, {latency} ms each", {k: {"images/s": images / s} for k, s in seconds.items()})


def bench_filter(raw: Path, *, detector: str, frames: int = 200) -> None:
    """File to filtered file, with persons, on the CPU: the original's way, ours, and our detector alone."""
    import cv2

    from filter import filter_films
    from training.detector import import_yolo, person_detector

    files, seconds, seen, YOLO = sample(raw, frames), {}, {}, import_yolo()
    detect = person_detector(detector, confidence=0.25, device="cpu", batch=32, size="600x256")  # exports it, too
    model = YOLO(detector, task="detect")
    model.predict(Image.new("RGB", (600, 256)), device="cpu", verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        copies = Path(folder) / "raw" / "Bench (2026)"
        copies.mkdir(parents=True)
        for i, file in enumerate(files):
            (copies / f"{i:05}{Path(file).suffix}").write_bytes(Path(file).read_bytes())
        start = time.perf_counter()
        for path in sorted(copies.iterdir()):  # imread, detect, resize, write, one at a time
            image = cv2.resize(cv2.imread(str(path)), (600, 256))
            seen[path.name] = len(model.predict(image, classes=[0], device="cpu", verbose=False)[0].boxes) > 0
            if seen[path.name]:
                cv2.imwrite(f"{folder}/{path.stem}.jpg", image)
        seconds["original's way"] = time.perf_counter() - start
        start = time.perf_counter()
        filter_films([copies.parent], Path(folder) / "new", detector=detector, min_frames=1, device="cpu")
        seconds["filter.py"] = time.perf_counter() - start
        with open(Path(folder, "new", "verdicts.csv"), newline="", encoding="utf-8") as file:
            verdicts = {row["file"]: row["verdict"] for row in csv.DictReader(file)}
    pictures, start = [read_image(file, draft=512) for file in files], time.perf_counter()
    for k in range(0, len(pictures), 64):
        detect(pictures[k : k + 64])
    seconds["its detector alone"] = time.perf_counter() - start
    judged = [seen[name] == (verdicts[name] == "kept") for name in seen if verdicts[name] in ("kept", "no_person")]
    text = f"Of {len(judged)} frames, neither dark nor doubled, {sum(judged)} are judged alike by both;"
    text += f" filter.py takes {seconds['filter.py'] / seconds['its detector alone']:.2f} times its detector's time."
    rows = {name: {"frames/s": len(files) / s, "ms a frame": 1000 * s / len(files)} for name, s in seconds.items()}
    show(f"Filter, {len(files)} frames", rows, text)


def original_loop(data: Path, arch: str, classes: list[str], batch: int, steps: int, device) -> float:
    """Images a second of the original's training: ImageFolder, DataLoader, fp32, eager; two steps warm up."""
    import torch
    from torchvision import datasets, transforms

    from models import build_model
    from training.device import synchronised_clock

    crop = [transforms.Resize(256), transforms.RandomResizedCrop(224), transforms.ToTensor()]
    transform = transforms.Compose([*crop, transforms.Normalize(PREPROCESSING["mean"], PREPROCESSING["std"])])
    folder = datasets.ImageFolder(data / "movies", transform)
    loader = torch.utils.data.DataLoader(folder, batch, shuffle=True, num_workers=2, drop_last=True)
    model = build_model(arch, classes, pretrained=False).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for k, (images, labels) in zip(range(steps), loader, strict=False):
        loss = torch.nn.functional.cross_entropy(model(images.to(device))[0], labels.to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if k == 1:
            start = synchronised_clock(device)
    return (k - 1) * batch / (synchronised_clock(device) - start)


def bench_train(data: Path, *, arch: str = "mobilenetv2", steps: int = 12, batch_size: int = 64) -> None:
    """Training images a second at 224 pixels, from random weights: the original's loop and train.py."""
    from train import train_model
    from training.dataset import choose_rows, read_manifest
    from training.device import choose_device

    classes, device, steps = choose_rows(read_manifest(data))[1], choose_device(None), max(3, steps)
    old = original_loop(data, arch, classes, batch_size, steps, device)
    recipe = {"epochs": 1, "batch_size": batch_size, "train_size": 224, "probe": 0.0}
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        how = {"pretrained": False, "out": Path(out), "cache": Path(out), "limit": batch_size * steps}
        run = train_model(data, arch=arch, recipe=recipe, **how)
        (last,) = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    rows = {"original's loop": {"images/s": old}, "train.py": {"images/s": float(last["images_per_s"])}}
    note = f"train.py reaches {float(last['mfu']):.0%} of the rate of matrix products here (MFU)."
    show(f"Training of {arch}, batches of {batch_size}, {device.type}", rows, note)


def bench_probe(*, frames: int = 60_000, films: int = 257, dims: int = 2688) -> None:
    """Seconds of a probe's fits in closed form on drawn features; of one, on a fifth of the frames, L-BFGS's too."""
    import torch
    from sklearn.linear_model import LogisticRegression

    from training.device import choose_device, synchronised_clock
    from training.probe import cross_fit, fit_head

    device, rng, few, some = choose_device(None), np.random.default_rng(13), max(2, frames // 5), min(100, films)

    def draw(count: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
        labels, scale = np.arange(count) % classes, np.arange(1, dims + 1, dtype=np.float32) ** -0.5  # as a network's
        centres = 0.3 * rng.standard_normal((classes, dims), np.float32)
        return (rng.standard_normal((count, dims), np.float32) + centres[labels]) * scale, labels

    def clock(function, *args) -> float:
        start = synchronised_clock(device)
        function(*args)
        return synchronised_clock(device) - start

    def fit(features: np.ndarray, labels: np.ndarray) -> None:
        fit_head(torch.from_numpy(features).to(device), torch.from_numpy(labels).to(device), 0.3)

    features, labels = draw(few, some)
    scaled = features.astype(np.float64) / np.linalg.norm(features, axis=1).mean()  # which C is meant for
    regression, name = LogisticRegression(C=30.0, max_iter=1000), f"one fit, {few:,} frames of {some} films, s"
    rows = {"scikit-learn's L-BFGS": {name: clock(regression.fit, scaled, labels)}}
    fit(features, labels)  # warms up
    rows["probe.py"] = {name: clock(fit, features, labels)}
    features, labels = draw(frames, films)
    seconds = [clock(fit, features, labels), clock(fit, features, labels)]
    parts = features, labels, np.ones(frames, np.float32)
    seconds.append(clock(cross_fit, parts, np.arange(frames) // films % 5, 0.3, device))
    rows["probe.py"][f"fit, refit, five cross-fits, {frames:,} frames of {films} films, s"] = sum(seconds)
    show(f"Probe, {dims:,} features a frame, {device.type}", rows)
