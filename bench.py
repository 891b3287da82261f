"""Measure the figures of RESULTS.md, each against the original project's way, in one run; prints markdown.

python bench.py render                                                  # a quick look: frames a second on one core
python bench.py infer runs/RUN/best.pt --model export --frames FOLDER   # JPEG to answer: torch against the export
python bench.py bot --model export --frames FOLDER                      # bot.py under load, on loopback
python bench.py --help                                                  # and scrape, filter, train, index, web ...
"""

import argparse
import asyncio
import base64
import contextlib
import csv
import inspect
import io
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from identify import Identifier, choose_file, cpu_flags, self_test
from image import PREPROCESSING, UserError, expand, one_line_errors, read_image

FLAGS = ["avx", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"]  # that make a difference
CPU_KINDS = {  # what oneDNN may use (ONEDNN_MAX_CPU_ISA), and the flags of a CPU that has no more
    "SSE41": "sse4_1",
    "AVX": "avx",
    "AVX2": "avx avx2",
    "AVX2_VNNI": "avx avx2 avx_vnni",
    "AVX512_CORE": "avx avx2 avx512f",
    "AVX512_CORE_VNNI": "avx avx2 avx512f avx512_vnni",
}


def machine() -> str:
    """One line: CPU, cores, the flags that matter here, versions, date."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    cpu = " ".join([found[1] if found else os.uname().machine, *(flag for flag in FLAGS if flag in cpu_flags())])
    packages = [package for package in ("torch", "onnxruntime", "openvino") if find_spec(package)]
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{cpu}, {os.cpu_count()} cores; Python {sys.version.split()[0]}, {versions}; {time.strftime('%Y-%m-%d')}"


def show(title: str, rows: dict[str, dict[str, float | str]], *notes: str) -> None:
    """Print {row: {column: value}} as a markdown table; numbers with their ratio to the first row's, better if over 1.

    Less is better, as of times and sizes, but in columns whose name ends in "/s".
    """
    columns, reference = list(dict.fromkeys(itertools.chain(*rows.values()))), next(iter(rows.values()))
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, row in rows.items():
        cells = []
        for key in columns:
            value, first = row.get(key, ""), reference.get(key)
            cells.append(value if isinstance(value, str) else f"{value:,.{0 if value >= 100 else 2}f}")
            if row is not reference and first and not isinstance(value, str):
                cells[-1] += f" ({value / first if key.endswith('/s') else first / value:.2f}x)"
        print(f"| {name} | {' | '.join(cells)} |")
    print(*["", *notes], sep="\n")


def in_process(function, *args):
    """function(*args) in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def sample(frames: Path, count: int) -> list[str]:
    """At most count images of a folder, spread over it."""
    files = expand([str(frames)])
    return files[:: max(1, len(files) // count)][:count]


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

    from filter import filter_films, import_yolo, person_detector

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

    from device import synchronised_clock
    from models import build_model

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
    from data import choose_rows, read_manifest
    from device import choose_device
    from train import train_model

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

    from device import choose_device, synchronised_clock
    from probe import cross_fit, fit_head

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


def original_way(checkpoint: Path):
    """Function from bytes to the likeliest film as in the original's bot: torch fp32, eager, torchvision."""
    import torch
    from torchvision import transforms

    from models import Checkpoint

    saved = Checkpoint.load(checkpoint)
    net, spec = saved.build(), saved.preprocessing
    steps = [transforms.Resize((spec["size"], spec["size"])), transforms.ToTensor()]
    prepare = transforms.Compose([*steps, transforms.Normalize(spec["mean"], spec["std"])])

    @torch.no_grad()
    def answer(raw: bytes) -> str:
        return saved.classes[int(net(prepare(Image.open(io.BytesIO(raw)).convert("RGB"))[None])[0].argmax())]

    return answer


def time_answers(path: Path, runtime: str, format: str, files: list[str], begin: float) -> dict[str, float]:
    """Figures of one way to answer, in this process, which was asked for at time.time() begin. runtime: or torch."""
    pictures, times = [Path(file).read_bytes() for file in files], []
    answer = original_way(path) if runtime == "torch" else Identifier(path, runtime=runtime, format=format).identify
    answer(pictures[0])
    first = time.time() - begin
    for picture in pictures:
        start = time.perf_counter()
        answer(picture)
        times.append(1000 * (time.perf_counter() - start))
    memory = int(re.search(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1000
    return {"latency, ms": np.median(times), "memory, MB": memory, "process start to first answer, s": first}


def bench_infer(checkpoint: Path, *, frames: Path, model: Path = Path("export"), count: int = 60) -> None:
    """JPEG bytes to answer: median latency, resident memory, and time from process start to the first answer."""
    files, rows, cases = sample(frames, count), {}, {"original's way": (checkpoint, "torch", "fp32")}
    for runtime, format in itertools.product(("onnxruntime", "openvino"), ("fp32", "int8")):
        cases[f"{runtime} {format}"] = (model, runtime, format)
    for name, case in cases.items():
        runs = [in_process(time_answers, *case, files, time.time()) for _ in range(3)][1:]  # the first fills caches
        rows[name] = {key: min(run[key] for run in runs) for key in runs[0]}
    show(f"Inference, {model}, {len(files)} frames", rows, "OpenVINO computes fp32 in bf16 where the CPU has it.")


def time_file(model: Path, runtime: str, format: str, threads: int, isa: str | None) -> dict:
    """The best of five self-tests in this process, which plays a CPU that has no more than isa, so no bf16."""
    os.environ |= {"ONEDNN_MAX_CPU_ISA": isa} if isa else {}
    identifier = Identifier(model, runtime=runtime, format=format, threads=threads, precision="f32" if isa else None)
    return min((self_test(identifier) for _ in range(5)), key=lambda row: row["ms"])


def bench_isa(*, model: Path = Path("export")) -> None:
    """Ms a frame, tensor to answer, as on lesser CPUs, and what identify.py's rule for such a CPU loses.

    OpenVINO alone can be told to be such a CPU; the rule is held against what was measured in its row.
    """
    here, rows, worst = cpu_flags(), {}, 0.0
    cases = [("this CPU, all cores", None, here, 0), ("this CPU, one thread", None, here, 1)]
    cases += [(f"as {isa}", isa, set(flags.split()), 0) for isa, flags in CPU_KINDS.items()]
    for name, isa, flags, threads in [case for case in cases if case[2] <= here]:
        found, rows[name] = {}, {}
        for way in itertools.product(["openvino"] if isa else ["openvino", "onnxruntime"], ("int8", "fp32")):
            try:
                row = in_process(time_file, model, *way, threads, isa)
            except UserError:  # some kernels look at the real CPU, and stop where oneDNN plays a lesser one
                rows[name][" ".join(way)] = "fails"
                continue
            rows[name][" ".join(way)] = f"{row['ms']:.1f}, off by {row['relative_error']:.1%}"
            if row["agrees"]:
                found[way] = row["ms"]
        if not found:
            continue
        pick, best = choose_file(model, None, None, flags)[1:3], min(found, key=found.get)
        loss = found.get(pick, np.inf) / found[best] - 1
        rows[name]["the rule picks"] = " ".join(pick) + (f", loses {loss:.0%} to {' '.join(best)}" if loss else "")
        worst = max(worst, loss)
    title = f"Formats as on lesser CPUs, {model}: ms a frame, and logits against those of torch"
    show(title, rows, f"The rule loses at most {worst:.0%} to the best file that computes right (limit 15%).")


class BotApi:
    """A Telegram Bot API for one bot: gives it photos of these pictures, notes when it replies."""

    def __init__(self, pictures: list[bytes]):
        self.pictures, self.updates, self.news, self.polled = pictures, [], asyncio.Event(), False
        self.sent: dict[int, float] = {}  # message: perf_counter
        self.replies: dict[int, list] = {}  # message: [(perf_counter, whether it has buttons)]

    def push(self, picture: int, user: int) -> int:
        """A photo from a user -> the number of its message."""
        number, file = len(self.sent) + 1, {"file_id": str(picture), "file_unique_id": str(picture)}
        who = {"id": user, "type": "private", "first_name": "Ann", "is_bot": False}
        message = {"message_id": number, "date": int(time.time()), "chat": who, "from": who}
        message["photo"] = [file | {"width": 1280, "height": 546}]
        self.updates.append({"update_id": number, "message": message})
        self.sent[number] = time.perf_counter()
        self.news.set()
        return number

    async def handle(self, request):
        """Any request; methods that change nothing here are answered with true."""
        from aiohttp import web

        place, form, result = request.path.split("/"), await request.post(), True
        if place[1] == "file":
            return web.Response(body=self.pictures[int(place[-1])])
        if place[-1] == "getUpdates":
            self.polled = True
            if not self.updates:
                self.news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.news.wait(), float(form.get("timeout", 0)))
            result, self.updates = self.updates[:20], self.updates[20:]  # as many as bot.py takes
        elif place[-1] == "getMe":
            result = {"id": 1, "is_bot": True, "first_name": "Bench", "username": "bench_bot"}
        elif place[-1] == "getFile":
            result = dict.fromkeys(("file_id", "file_unique_id", "file_path"), form["file_id"])
        elif place[-1] in ("sendMessage", "sendPhoto"):
            number = json.loads(form["reply_parameters"])["message_id"]
            self.replies.setdefault(number, []).append((time.perf_counter(), "reply_markup" in form))
            chat = {"id": int(form["chat_id"]), "type": "private"}
            result = {"message_id": 10**6 + number, "date": int(time.time()), "chat": chat}
        return web.json_response({"ok": True, "result": result})


def draw_index(folder: Path, identifier: Identifier) -> None:
    """An index of 100,000 drawn stills for this model, which names every frame and shows its proof."""
    from bench_index import write_drawn
    from engines import open_engine
    from index import fingerprint

    write_drawn(folder, 100_000, 1)
    engine, seen = open_engine(folder), fingerprint(identifier)
    state, project = engine.load(), np.random.default_rng(13).standard_normal((seen.shape[1], 128), np.float32)
    state["model"]["fingerprint"] = base64.b64encode(seen).decode()
    state["basis"] = engine.put(None, {"project": project, "offset": np.zeros(128, np.float32)})
    state["rule"] |= {"movie": -1.0, "shortlist": -1.0}
    engine.commit(state)


async def bench_bot(
    *, frames: Path, model: Path = Path("export"), users: int = 50, each: int = 10, index: str = ""
) -> None:
    """bot.py as a process against a Bot API on loopback: 30 frames alone, then all users' at once (each 20 at most).

    index: a folder; one of 100,000 stills is drawn where there is none.
    """
    import psutil
    from aiohttp.test_utils import RawTestServer

    pictures = [Path(file).read_bytes() for file in sample(frames, 30)]
    identifier, api, own, sizes = Identifier(model), BotApi(pictures), [], []
    command = [sys.executable, Path(__file__).with_name("bot.py"), f"--model={model.resolve()}"]
    if index:
        from index import Index

        if not Path(index).exists():
            draw_index(Path(index), identifier)
        identifier.index = Index(index, identifier)
        command += [f"--index={Path(index).resolve()}"]
    environment, end = os.environ | {"TELEGRAM_BOT_TOKEN": "1:bench", "MOVIE_BOT_LAG": "1"}, time.monotonic() + 1200
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "w") as log:
        async with RawTestServer(api.handle) as server:
            command += [f"--queue={users * each}", f"--api-base={server.make_url('')}"]
            bot = subprocess.Popen(command, cwd=folder, env=environment, stderr=log)
            family = psutil.Process(bot.pid)

            async def wait_for(done) -> None:
                while not done():
                    await asyncio.sleep(0.1)
                    if bot.poll() is not None or time.monotonic() > end:
                        raise UserError(f"bot.py ended or lost frames: {Path(log.name).read_text()[-300:]}")
                    with contextlib.suppress(psutil.Error):  # a child ended meanwhile
                        sizes.append(sum(it.memory_info().rss for it in (family, *family.children(recursive=True))))

            try:
                await wait_for(lambda: api.polled)
                for k, picture in enumerate(pictures):
                    number = api.push(k, 1000 + k)
                    await wait_for(lambda number=number: number in api.replies)
                    own.append(identifier.identify(picture).ms)
                asked = [api.push(n % len(pictures), n % users + 1) for n in range(users * each)]
                await wait_for(lambda: len(api.replies) == len(api.sent))
            finally:
                bot.terminate()
                code = await asyncio.to_thread(bot.wait, 60)
        (block,) = re.findall(r"longest block of the event loop: ([\d.]+) ms", Path(log.name).read_text())
    times = [1000 * (api.replies[number][0][0] - api.sent[number]) for number in range(1, asked[0])]
    replies = [api.replies[number] for number in asked]
    speed = len(asked) / (max(reply[0][0] for reply in replies) - api.sent[asked[0]])
    rows = {"identify.py": {"a frame alone, ms": np.median(own)}, "bot.py": {"a frame alone, ms": np.median(times)}}
    rows["bot.py"] |= {"frames/s": speed, "memory, MB": max(sizes) / 1e6, "longest block of its loop, ms": float(block)}
    once, right = sum(len(reply) == 1 for reply in replies), sum(reply[0][1] for reply in replies)
    note = f"{once} of {len(asked)} frames got one reply, {right} an answer with buttons; exit code {code}."
    show(f"Bot, {model}, {identifier.runtime} {identifier.format}, {users} users x {each} frames at once", rows, note)


def bench_robust(
    data: Path, model: Path, *, index: str = "", frames: int = 40, fold: int = -1, sheet: Path = Path("robust.png")
) -> None:
    """Answers to test frames as they are and changed as people change them, at most so many a film; draws each way.

    --index answers with an index of the frames for training, which is made in that new folder; an embedder takes --fold
    (-1: the manifest's split), and SHEET-frontier.png shows how many frames could be named at which risk.
    """
    from bench_robust import measure_ways

    figures, asked = measure_ways(data, model, index, frames, fold if fold >= 0 else None, sheet)
    title = f"Changed frames, {model}{f' with {index}' if index else ''}, {asked}"
    show(title, figures, f"{sheet} shows the ways.")


def bench_cuda(
    *, out: Path, minutes: int = 9, films: int = 257, per_film: int = 230, epochs: int = 10,
    archs: str = "all", detector: str = "yolo11n.pt", again: str = "",
) -> None:  # fmt: skip
    """All that a GPU is for, on rendered films, each part in a process of its own: OUT/cuda.md and cuda.json.

    What is left undone is done when it is called again; parts whose names begin with AGAIN are done anew.
    """
    options = dict(locals())
    from bench_cuda import run_all

    run_all(**options)


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
    web, rows = Path(__file__).with_name("web"), {}
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


def get_parser() -> argparse.ArgumentParser:
    """A command a function, whose parameters are its arguments; those after * are flags."""
    from bench_index import bench_index, bench_moments

    parser = argparse.ArgumentParser(description="Measure the figures of RESULTS.md.")
    commands = parser.add_subparsers(required=True)
    runs = (bench_render, bench_scrape, bench_filter, bench_train, bench_probe, bench_infer, bench_isa, bench_bot)
    for run in (*runs, bench_web, bench_robust, bench_cuda, bench_index, bench_moments):
        about = run.__doc__.split("\n")[0]
        sub = commands.add_parser(run.__name__.removeprefix("bench_"), help=about, description=run.__doc__)
        sub.set_defaults(run=run)
        for name, it in inspect.signature(run).parameters.items():
            flag, required = it.kind is it.KEYWORD_ONLY, it.default is it.empty
            how = {"required": True} if required else {"default": it.default, "help": "default: %(default)s"}
            how = how if flag else {"nargs": "+"} if it.annotation == list[Path] else {}
            kind = Path if it.annotation == list[Path] else it.annotation
            sub.add_argument(f"--{name.replace('_', '-')}" if flag else name, type=kind, **how)
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = vars(parser.parse_args(argv))
    if any(isinstance(value, int) and value < 1 and name != "fold" for name, value in args.items()):
        parser.error("every number must be 1 or more")
    run = args.pop("run")
    print(machine())
    done = run(**args)
    if inspect.iscoroutine(done):
        asyncio.run(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
