"""Measure every speed that the README states, each against the original project's way, in one run on this machine.

python bench.py render                                           # rendered films, frames a second on one core
python bench.py scrape                                           # downloads from a slow server: many at once or one
python bench.py filter RAW --detector yolov8n.pt                 # persons seen: batches against one image a call
python bench.py train data/demo/processed --arch mobilenetv2     # our loop against ImageFolder, DataLoader, fp32
python bench.py colour data/demo/processed                       # what colour alone gives away
python bench.py infer runs/RUN/best.pt --model export --frames FOLDER    # JPEG to answer: torch against the export
python bench.py bot --model export --frames FOLDER --checkpoint runs/RUN/best.pt    # bot.py under load, on loopback
"""

import argparse
import contextlib
import csv
import itertools
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import numpy as np

from image import UserError, expand, one_line_errors

HERE = Path(__file__).parent
ISAS = ("AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI", "AVX512_CORE_AMX")  # what oneDNN may use


def machine() -> str:
    """One line: CPU, cores, memory, GPU, date."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), name)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, {date.today()}"


def show(title: str, rows: list[tuple[str, float, str]]) -> list[dict]:
    """Print rows (name, value, unit; more is better unless the unit is a time or MB), the first as the reference."""
    print(f"\n{title}\n{machine()}")
    reference = rows[0][1]
    for name, value, unit in rows:
        above, below = (reference, value) if unit in ("ms", "s", "MB") else (value, reference)
        ratio = above / below if below else float("nan")
        print(f"  {name:44} {value:10.1f} {unit:9} {ratio:6.2f}x")
    return [{"bench": title, "name": name, "value": value, "unit": unit} for name, value, unit in rows]


def bench_render(frames: int = 240) -> list[dict]:
    """Frames a second of the renderer on one core, JPEG included, at 600x256."""
    import cv2

    from demo.films import film_design, frame_size, render_film

    cv2.setNumThreads(1)
    wide = next(film for film in map(film_design, range(300)) if frame_size(film)[0] >= 600)
    rows = []
    for per_shot in (3, 6):
        list(render_film(wide, 4, 2))
        start = time.perf_counter()
        for frame, _, _ in render_film(wide, frames, frames // per_shot):
            cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 90])
        width, height = frame.shape[1::-1]
        rows.append((f"{width}x{height}, {per_shot} frames a shot", frames / (time.perf_counter() - start), "frames/s"))
    return show("rendered films, one core", rows)


def serve_stills(pipe, images: int, latency: float, per_page: int) -> None:
    """A process that plays FLIM's API, each picture latency seconds late; sends its address, then times of calls."""
    import io
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    from PIL import Image

    rng, calls, pictures = np.random.default_rng(0), [], []
    for _ in range(images):
        rough = Image.fromarray(rng.integers(0, 255, (18, 32, 3), dtype=np.uint8)).resize((960, 540), Image.BICUBIC)
        file = io.BytesIO()
        rough.save(file, format="JPEG", quality=90)
        pictures.append(file.getvalue())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_):
            pass

        def reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            time.sleep(latency)
            self.reply(pictures[int(self.path[1:])])

        def do_POST(self):
            calls.append(time.perf_counter())
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "suggest" in body:
                answer = {"suggestions": [{"id": "1", "name": "Bench (2026)", "entity": "ENTITY_MOVIE"}]}
            else:
                numbers = range(images)[body["page"] * per_page : (body["page"] + 1) * per_page]
                found = [{"id": f"i{n}", "medium_resolution_url": f"{url}/{n}", "shot_time": n} for n in numbers]
                answer = {"query_response": {"total_number_of_results": images, "images": found}}
            self.reply(json.dumps(answer).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(url)
    while pipe.recv() == "calls":
        pipe.send(calls[:])
        calls.clear()


def bench_scrape(images: int = 300, latency: float = 0.05) -> list[dict]:
    """Images a second from a loopback server that waits before each image: one at a time on new connections, and ours.

    Both ask the API as often as its pages want; scrape.py keeps to its 2 calls a second meanwhile.
    """
    import multiprocessing

    import requests

    from scrape import PER_PAGE, scrape_flim

    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve_stills, args=(there, images, latency, PER_PAGE), daemon=True)
    process.start()
    url = here.recv()
    with tempfile.TemporaryDirectory() as folder:

        def ask(path: str, body: dict) -> dict:
            return requests.post(f"{url}/2.0.0/{path}", json=body, timeout=10).json()

        start, page = time.perf_counter(), 0
        ask("suggest-entities", {"suggest": "Bench (2026)"})
        while found := ask("search", {"page": page})["query_response"]["images"]:
            for image in found:
                data = requests.get(image["medium_resolution_url"], timeout=10).content
                Path(folder, f"{image['id']}.jpg").write_bytes(data)
            page += 1
        old = images / (time.perf_counter() - start)
        here.send("calls")
        here.recv()
        start = time.perf_counter()
        result = scrape_flim(["Bench (2026)"], Path(folder) / "raw", api=url)
        new = images / (time.perf_counter() - start)
    here.send("calls")
    calls = here.recv()
    here.send("end")
    if result["films"]["Bench (2026)"]["new"] != images:
        raise UserError(f"only {result['films']} arrived")
    rows = show(
        f"scrape, {images} images, {latency * 1000:.0f} ms each",
        [("original's way", old, "images/s"), ("scrape.py", new, "images/s")],
    )
    print(f"  API calls {len(calls)}, the closest two {min(np.diff(calls)):.2f} s apart (limit 2 a second)")
    return rows


def bench_filter(raw: Path, detector: str, limit: int = 200) -> list[dict]:
    """Frames a second from file to filtered file, with persons: the original's way against ours."""
    import shutil

    import cv2
    from PIL import Image

    from filter import filter_films, import_yolo

    YOLO = import_yolo()
    if not Path(detector).exists():
        raise UserError(f"--detector {detector}: no such file", 2)
    files = expand([str(raw)])
    files = files[:: max(1, len(files) // limit)][:limit]
    with tempfile.TemporaryDirectory() as folder:
        copies = Path(folder) / "raw" / "Bench (2026)"
        copies.mkdir(parents=True)
        for i, file in enumerate(files):
            shutil.copy(file, copies / f"{i:05}{Path(file).suffix}")
        (Path(folder) / "old").mkdir()
        model = YOLO(detector, task="detect")
        model.predict(Image.new("RGB", (600, 256)), device="cpu", verbose=False)
        start, seen = time.perf_counter(), {}
        for path in sorted(copies.iterdir()):  # imread, detect, resize, write, one at a time
            image = cv2.resize(cv2.imread(str(path)), (600, 256))
            result = model.predict(image, classes=[0], device="cpu", verbose=False)[0]
            seen[path.name] = len(result.boxes) > 0
            if seen[path.name]:
                cv2.imwrite(f"{folder}/old/{path.stem}.jpg", image)
        old = len(files) / (time.perf_counter() - start)
        filter_films([copies.parent], Path(folder) / "warm", detector=detector, min_frames=1, device="cpu")  # exports
        start = time.perf_counter()
        filter_films([copies.parent], Path(folder) / "new", detector=detector, min_frames=1, device="cpu")
        new = len(files) / (time.perf_counter() - start)
        (state,) = Path(folder, "new", ".filter").glob("*.json")
        rows = [row for row in json.loads(state.read_text())["rows"] if row["persons"] != ""]
    rows = {row["file"]: row["persons"] > 0 for row in rows}
    other = [file for file in rows if rows[file] != seen[file]]
    result = show(f"filter, {len(files)} frames", [("original's way", old, "frames/s"), ("filter.py", new, "frames/s")])
    share = 1 - len(other) / max(1, len(rows))
    print(
        f"  persons: {share:.1%} of {len(rows)} frames agree (the others are dark or doubled); not: {' '.join(other)}"
    )
    return result


def bench_colour(data: Path) -> list[dict]:
    """Top-1 on test frames of the film with the nearest training frame by RGB histogram (8x8x8, Hellinger distance)."""
    from models import PREPROCESSING
    from train import choose_rows, load_frames, read_manifest

    chosen, classes = choose_rows(read_manifest(data))

    def histograms(rows: list[dict]) -> np.ndarray:
        cells = load_frames(rows, PREPROCESSING, (150, 64)).numpy().astype(int) // 32
        flat = cells[..., 0] * 64 + cells[..., 1] * 8 + cells[..., 2]
        return np.sqrt([np.bincount(frame.ravel(), minlength=512) / frame.size for frame in flat])

    films = np.array([row["movie"] for row in chosen["train"]])
    nearest = films[(histograms(chosen["test"]) @ histograms(chosen["train"]).T).argmax(axis=1)]
    right = float((nearest == np.array([row["movie"] for row in chosen["test"]])).mean())
    rows = [("chance", 100 / len(classes), "%"), ("nearest colour histogram", 100 * right, "%")]
    return show(f"colour alone, {len(classes)} films, {len(nearest)} frames of unseen shots", rows)


def bench_train(data: Path, arch: str, steps: int = 12, batch: int = 64, compiled: bool = False) -> list[dict]:
    """Training images a second at 224 pixels: the original's loop (ImageFolder, DataLoader, fp32, eager), train.py."""
    import torch
    import torch.nn.functional as F
    from torchvision import datasets, transforms

    from models import build_model, preprocessing_for
    from train import choose_rows, read_manifest, train_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen, classes = choose_rows(read_manifest(data))
    batch = min(batch, len(chosen["train"]))
    spec = preprocessing_for(arch)
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.RandomResizedCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(spec["mean"], spec["std"]),
        ]
    )
    folder = datasets.ImageFolder(data / "movies", transform)
    loader = torch.utils.data.DataLoader(folder, batch, shuffle=True, num_workers=2, drop_last=True)
    model = build_model(arch, classes, pretrained=False).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches = itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), steps)
    start = end = 0.0
    for k, (images, labels) in enumerate(batches):
        loss = F.cross_entropy(model(images.to(device))[0], labels.to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if k == 1 or k == steps - 1:  # two steps warm up
            if device.type == "cuda":
                torch.cuda.synchronize()
            start, end = end, time.perf_counter()
    old = (steps - 2) * batch / (end - start)
    del model, optimiser, images, loss

    per_epoch = len(chosen["train"]) // batch
    recipe = {"epochs": math.ceil(steps / per_epoch), "batch_size": batch, "train_size": spec["size"], "probe": 0.0}
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        settings = {"pretrained": False, "out": Path(out), "compiled": compiled, "cache": Path(out)}
        run = train_model(data, arch=arch, recipe=recipe, limit=max(batch * min(steps, per_epoch), 2), **settings)
        with open(run / "metrics.csv", newline="") as file:
            row = list(csv.DictReader(file))[-1]
    rows = [("original's loop", old, "images/s"), ("train.py", float(row["images_per_s"]), "images/s")]
    rows = show(f"train {arch}, batch {batch}, {device.type}", rows)
    print(f"  train.py: MFU {float(row['mfu']):.0%} of what matrix products reach here")
    return rows


# the original's way from bytes to an answer: torch fp32, eager, one frame a run
TORCH_WAY = """
def torch_way(model, about):
    import io, torch, torchvision
    from PIL import Image
    state, spec = torch.load(model, map_location="cpu", weights_only=True), about["preprocessing"]
    if "arch" in state:
        from models import build_model
        net = build_model(state["arch"], state["classes"], pretrained=False, levels=bool(state["args"].get("levels")))
        net.load_state_dict(state["model"])
    else:  # the original's own weights, loaded as it did
        import timm
        net = timm.create_model(about["architecture"], num_classes=len(about["classes"]))
        net.load_state_dict({k.removeprefix("model."): v for k, v in state.items()})
    net.eval()
    t = torchvision.transforms
    transform = t.Compose([t.Resize((224, 224)), t.ToTensor(), t.Normalize(spec["mean"], spec["std"])])
    def answer(raw):
        with torch.no_grad():
            z = net(transform(Image.open(io.BytesIO(raw)).convert("RGB"))[None])
        z = z[0].flatten() if isinstance(z, tuple) else z.flatten()
        z = (z - z.mean()) / z.std()
        return about["classes"][int(z.argmax())], torch.sigmoid(z.max() / 2.5).item()
    return answer
"""

# what each process of bench_infer runs; argv: clock, what, model, model.json, then files. Prints start (s), ms and MB
WORKER = f"""{TORCH_WAY}
import time, sys, json, os
begin = float(sys.argv[1])
what, model, about, files = sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:]
data = [open(f, "rb").read() for f in files]
if what == "torch":
    answer = torch_way(model, json.load(open(about)))
else:
    import identify
    identifier = identify.Identifier(model, runtime=what)
    answer = identifier.identify
answer(data[0])
start = time.time() - begin
times = []
for raw in data:
    clock = time.perf_counter(); answer(raw); times.append(time.perf_counter() - clock)
rss = next(int(l.split()[1]) / 1000 for l in open("/proc/self/status") if l.startswith("VmRSS"))
print(json.dumps({{"start": start, "ms": sorted(times)[len(times) // 2] * 1000, "mb": rss}}))
"""

# identify.py's own time beside bot.py's; argv: model. A path a line on stdin, ms a line on stdout
OWN = """
import sys, time, identify
identifier = identify.Identifier(sys.argv[1], runtime=sys.argv[2] or None)
for line in sys.stdin:
    data = open(line.rstrip("\\n"), "rb").read()
    clock = time.perf_counter(); identifier.identify(data)
    print(1000 * (time.perf_counter() - clock), flush=True)
"""

# the original's bot: the network runs in the handler, so in the event loop; argv: api base, checkpoint, model.json
ORIGINAL_BOT = f"""{TORCH_WAY}
import asyncio, collections, json, os, sys, threading, time
from aiogram import Bot, Dispatcher, F
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
base, checkpoint, about = sys.argv[1:]
answer = torch_way(checkpoint, json.load(open(about)))
dispatcher, ticks = Dispatcher(), collections.deque([time.perf_counter()], 1)

@dispatcher.message(F.photo)
async def frame(message, bot):
    file = await bot.download(message.photo[-1])
    title, sure = answer(file.getvalue())
    await message.reply(f"{{title}} ({{sure:.0%}})")

async def tick():
    while True:
        ticks.append(time.perf_counter())
        await asyncio.sleep(0.01)

def watch():  # a thread, since under load the loop may not come back before its end
    longest = 0.0
    while True:
        time.sleep(0.005)
        late = time.perf_counter() - ticks[-1] - 0.01
        if late > longest:
            longest = late
            print(f"longest block of the event loop: {{longest * 1000:.1f}} ms", file=sys.stderr, flush=True)

async def main():
    session = AiohttpSession(api=TelegramAPIServer.from_base(base))
    ticking = asyncio.create_task(tick())
    threading.Thread(target=watch, daemon=True).start()
    await dispatcher.start_polling(Bot(os.environ["TELEGRAM_BOT_TOKEN"], session=session))

asyncio.run(main())
"""


def run_worker(what: str, model: Path, about: Path, files: list[str]) -> dict:
    """WORKER in a process -> {"start", "ms", "mb"}. what: torch or a runtime."""
    command = [sys.executable, "-c", WORKER, str(time.time()), what, str(model.resolve()), str(about.resolve()), *files]
    out = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    if out.returncode:
        raise UserError(f"{model} with {what} failed: {[*out.stderr.strip().splitlines(), 'it crashed'][-1]}")
    return json.loads(out.stdout.splitlines()[-1])


def bench_infer(checkpoint: Path, model: Path, frames: Path, count: int = 60) -> list[dict]:
    """JPEG bytes to answer: median latency, resident memory, and time from process start to the first answer."""
    files = expand([str(frames)])
    files = [os.path.abspath(file) for file in files[:: max(1, len(files) // count)][:count]]
    cases = [("original's way: torch fp32, eager", "torch", checkpoint)]
    cases += [("ONNX Runtime fp32", "onnxruntime", model / "model.onnx")]
    cases += [("ONNX Runtime int8", "onnxruntime", model / "model.int8.onnx")]
    cases += [("OpenVINO fp32 (bf16 where the CPU has it)", "openvino", model / "model.onnx")]
    cases += [("OpenVINO int8", "openvino", model / "openvino" / "model.xml")]
    found, about = {}, model / "model.json"
    for path in (about, checkpoint):
        if not path.exists():
            raise UserError(f"{path}: no such file; run train.py and export.py first", 2)
    for name, what, path in cases:
        if not path.exists():
            continue
        runs = [run_worker(what, path, about, files) for _ in range(3)]
        # the first fills the page cache, the better of the others counts
        found[name] = {key: min(run[key] for run in runs[1:]) for key in runs[0]}
    rows = []
    for key, unit, title in (
        ("ms", "ms", f"latency a frame, median of {len(files)}"),
        ("mb", "MB", "resident memory"),
        ("start", "s", "process start to first answer"),
    ):
        rows += show(title, [(name, result[key], unit) for name, result in found.items()])
        if key == "ms":
            show_limits(json.loads(about.read_text()))
    return rows


def show_limits(about: dict) -> None:
    """What the model's operations would take at the matrix rates of these cores, the floor of any latency."""
    import torch

    from models import build_model, multiply_adds
    from train import has_bf16

    operations = 2 * multiply_adds(build_model(about["architecture"], about["classes"], pretrained=False), 224)
    for kind in ("f32", "bf16", "int8") if has_bf16(torch.device("cpu")) else ("f32", "int8"):
        rate = product_rate(kind)
        ms = 1000 * operations / rate
        print(f"  limit: {operations / 1e9:.1f} G operations at {rate / 1e12:.2f} T/s ({kind} products): {ms:.1f} ms")


def product_rate(kind: str, side: int = 1536, depth: int = 8) -> float:
    """Operations a second of a chain of matrix products in OpenVINO, the best of ten runs. kind: f32, bf16 or int8."""
    import openvino
    from openvino import opset13 as op

    random = np.random.default_rng(0)

    def quantised(node, limit: float):
        if kind != "int8":
            return node
        return op.fake_quantize(node, *(np.float32(v) for v in (-limit, limit, -limit, limit)), 255)

    image = node = op.parameter([side, side], np.float32)
    for _ in range(depth):
        weight = op.constant(random.uniform(-1, 1, (side, side)).astype(np.float32))
        node = op.matmul(quantised(node, 40.0), quantised(weight, 1.0), False, False)
    precision = {"INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32"}
    request = openvino.Core().compile_model(openvino.Model([node], [image]), "CPU", precision).create_infer_request()
    data, best = random.uniform(-40, 40, (side, side)).astype(np.float32), np.inf
    for _ in range(11):
        start = time.perf_counter()
        request.infer([data])
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 * depth / best


def bench_isa(model: Path) -> list[dict]:
    """Milliseconds a frame, tensor to logits, in float32: OpenVINO as on lesser CPUs, ONNX Runtime as it is."""
    places = {"int8": model / "openvino" / "model.xml", "fp32": model / "model.onnx"}
    cases = [(f"OpenVINO {isa}", "openvino", places, 0, isa) for isa in ISAS]
    places = places | {"int8": model / "model.int8.onnx"}
    cases += [(f"ONNX Runtime, {n} thread{'s' * (n > 1)}", "onnxruntime", places, n, None) for n in (1, 2)]
    cases += [("OpenVINO, 1 thread", "openvino", places | {"int8": model / "openvino" / "model.xml"}, 1, None)]
    rows = []
    print(f"\n{machine()}\n{'ms a frame (off by)':30} {'int8':>18} {'fp32':>18}")
    for name, runtime, files, threads, isa in cases:
        cells = []
        for kind, file in files.items():
            command = [sys.executable, str(HERE / "identify.py"), "--self-test", "--json", "--model", str(file)]
            command += ["--runtime", runtime, "--threads", str(threads)]
            command += ["--precision", "f32"] if runtime == "openvino" else []
            environment = os.environ | ({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})
            out = subprocess.run(command, capture_output=True, text=True, env=environment)
            if not out.stdout:
                raise UserError(f"{name}, {kind}: {[*out.stderr.strip().splitlines(), 'it crashed'][0]}")
            result = json.loads(out.stdout)
            cells.append(f"{result['ms']:7.1f} ({result['deviation']:6.2%}){'' if result['agrees'] else '!'}")
            rows.append({"name": f"{name} {kind}", "value": result["ms"], "unit": "ms"} | result)
        print(f"{name:30} {cells[0]:>18} {cells[1]:>18}")
    print("off by: from torch's float32 logits; !: fails the self-test, identify.py does not use it there")
    return rows


@contextlib.contextmanager
def identify_beside(model: Path, runtime: str | None):
    """A function from a file to the ms that identify.py takes for its bytes, in a process with the model loaded."""
    command = [sys.executable, "-c", OWN, str(model.resolve()), runtime or ""]
    process = subprocess.Popen(command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(file: str) -> float:
        print(file, file=process.stdin, flush=True)
        if not (line := process.stdout.readline()):
            raise UserError(f"identify.py failed with {model} and {file}")
        return float(line)

    try:
        yield measure
    finally:
        process.kill()
        process.communicate()


def resident(process: int) -> float:
    """MB of a process and all that it started."""
    parents, sizes = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended
            continue
        parents[int(place.name)], sizes[int(place.name)] = int(fields[1]), int(fields[21])
    family, last = {process}, 0
    while len(family) > last:
        last = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    return sum(sizes.get(member, 0) for member in family) * os.sysconf("SC_PAGE_SIZE") / 1e6


def replies_to(calls: list[dict], asked: dict) -> dict[int, list[dict]]:
    """Message ids of frames -> the bot's sendMessage calls in reply to them, in order."""
    found = {number: [] for number in asked}
    for call in calls:
        number = (call["params"].get("reply_parameters") or {}).get("message_id")
        if number in found:
            found[number].append(call)
    return found


class BotRun:
    """A bot's process against a server on loopback that gives it frames. command: of its address, to what is run."""

    def __init__(self, command, frames: dict[str, bytes], folder: str):
        from telegram_server import TelegramServer

        token = "123456:TEST-of-bench-py-no-secret-in-it"
        self.server, self.frames, self.command = TelegramServer(token, frames), list(frames), command
        self.log = Path(folder) / "stderr"
        self.environment = os.environ | {"TELEGRAM_BOT_TOKEN": token, "MOVIE_BOT_LAG": "1"}

    def __enter__(self):
        self.server.__enter__()
        with open(self.log, "wb") as log:
            command = [sys.executable, *self.command(self.server.base)]
            self.process = subprocess.Popen(command, cwd=HERE, env=self.environment, stderr=log)
        try:
            for _ in range(1200):
                if self.server.wait_for(lambda calls: any(call["method"] == "getUpdates" for call in calls), 0.1):
                    return self
                self.check()
            raise UserError("the bot does not poll after 120 s")
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.server.__exit__()

    def check(self) -> None:
        if self.process.poll() is not None:
            words = self.log.read_text(errors="replace").strip().splitlines()
            raise UserError(f"the bot ended with code {self.process.returncode}: {[*words, 'no word'][-1]}")

    def send(self, photos: list[tuple[str, int]], patience: float = 300.0, longest: float = 600.0) -> dict[int, float]:
        """Push photos (file, user) at once; wait for a reply to each: patience seconds without any, longest in all.

        -> {message id: time of the push}.
        """
        from telegram_server import photo_update

        asked, count, since = {}, 0, time.perf_counter()
        for file, user in photos:
            update = photo_update(file, user=user)
            asked[update["message"]["message_id"]] = time.perf_counter()
            self.server.push(update)
        end = since + longest
        while count < len(asked) and time.perf_counter() < min(since + patience, end):
            time.sleep(0.02)
            self.check()
            before, count = count, sum(map(bool, self.replies(asked).values()))
            since = time.perf_counter() if count > before else since
        return asked

    def replies(self, asked: dict) -> dict[int, list[dict]]:
        return replies_to(self.server.named("sendMessage"), asked)

    def one_by_one(self, count: int, beside) -> tuple[float, float]:
        """Median ms from push to answer, each frame from another user, and of beside(frame), in turn with them."""
        times = []
        for k in range(count + 1):  # the first warms up
            name = self.frames[k % len(self.frames)]
            ((number, pushed),) = (asked := self.send([(name, 1000 + k)])).items()
            replies = self.replies(asked)[number]
            if not replies:
                raise UserError(f"{name} alone got no answer in 300 s")
            times.append((1000 * (replies[0]["time"] - pushed), beside(name)))
        return tuple(np.median(times[1:], axis=0).tolist())

    def load(self, users: int, each: int) -> tuple[dict[int, float], list[float]]:
        """All users' frames at once -> as send, and MB of the bot's processes, five times a second meanwhile."""
        sizes, over = [], threading.Event()

        def sample() -> None:
            sizes.append(resident(self.process.pid))
            while not over.wait(0.2):
                sizes.append(resident(self.process.pid))

        watching = threading.Thread(target=sample)
        watching.start()
        try:
            photos = [
                (self.frames[(k * users + user) % len(self.frames)], user + 1)
                for k in range(each)
                for user in range(users)
            ]
            return self.send(photos), sizes
        finally:
            over.set()
            watching.join()

    def end(self) -> tuple[int, float]:
        """SIGTERM -> exit code (-9: it had to be killed), ms of the event loop's longest block by its own words."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        found = re.findall(r"longest block of the event loop: ([\d.]+) ms", self.log.read_text(errors="replace"))
        return code, float(found[-1]) if found else float("nan")


def measure_bot(command, frames: dict[str, bytes], users: int, each: int, alone: int, *, is_answer, beside) -> dict:
    """One bot, alone and under load. is_answer: of a sendMessage call, whether it names films or refuses."""
    with tempfile.TemporaryDirectory() as folder, BotRun(lambda base: command(base, folder), frames, folder) as bot:
        ms, own = bot.one_by_one(alone, beside)
        asked, sizes = bot.load(users, each)
        code, block = bot.end()
        replies = bot.replies(asked)
    taken = [(number, call) for number, calls in replies.items() for call in calls]
    answers = [(call["time"], call["time"] - asked[number]) for number, call in taken if is_answer(call)]
    words = [re.sub(r"\d+", "N", call["params"]["text"]) for _, call in taken if not is_answer(call)]
    tenth = max(1, len(sizes) // 10)
    return {
        "ms": ms,
        "own": own,
        "rate": len(answers) / (max(answers)[0] - min(asked.values())) if answers else 0.0,
        "answered": len(answers),
        "refused": len(words),
        "words": {word: words.count(word) for word in dict.fromkeys(words)},
        "lost": sum(not calls for calls in replies.values()),
        "twice": sum(len(calls) > 1 for calls in replies.values()),
        "wait": float(np.median([wait for _, wait in answers])) if answers else float("nan"),
        "mb": max(sizes),
        "growth": float(np.mean(sizes[-tenth:]) / np.mean(sizes[:tenth]) - 1),
        "samples": len(sizes),
        "code": code,
        "block": block,
    }


def bench_bot(
    model: Path,
    frames: Path,
    users: int = 50,
    each: int = 10,
    checkpoint: Path | None = None,
    queue: int | None = None,
    runtime: str | None = None,
    alone: int = 30,
) -> list[dict]:
    """bot.py as a process against a Bot API server on loopback: one frame at a time, then all users at once.

    Beside it the original's way, where a checkpoint is given: torch in the handler, so in the event loop.
    """
    sys.path.insert(0, str(HERE / "tests"))
    try:
        import telegram_server  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error}: pip install -r requirements-bot.txt", 2) from None
    files = expand([str(frames)])
    files = [os.path.abspath(file) for file in files[:: max(1, len(files) // alone)][:alone]]
    about = (model if model.is_dir() else model.parent) / "model.json"
    for path in (model, *((about, checkpoint) if checkpoint else ())):
        if not path.exists():
            raise UserError(f"{path}: no such file; run train.py and export.py first", 2)
    data = {f"frame{k}": Path(file).read_bytes() for k, file in enumerate(files)}
    how = {"frames": data, "users": users, "each": each, "alone": alone}

    def ours(base: str, folder: str) -> list[str]:
        command = [HERE / "bot.py", "--model", model.resolve(), "--api-base", base, "--db", f"{folder}/bot.db"]
        command += ["--queue", queue] if queue else []
        return [*map(str, command), *(["--runtime", runtime] if runtime else [])]

    def original(base: str, _: str) -> list[str]:
        return ["-c", ORIGINAL_BOT, base, str(checkpoint.resolve()), str(about.resolve())]

    found, paths = {}, dict(zip(data, files, strict=True))
    with identify_beside(model, runtime) as identify_ms:
        how |= {"beside": lambda name: identify_ms(paths[name])}
        if checkpoint:
            found["original's way: torch in the loop"] = measure_bot(original, is_answer=lambda _: True, **how)
        found["bot.py"] = measure_bot(ours, is_answer=lambda call: "reply_markup" in call["params"], **how)
    return show_bot(found, users * each, alone)


def show_bot(found: dict[str, dict], count: int, alone: int) -> list[dict]:
    """Tables of measure_bot's results, bot.py last, each with what is asked of it."""

    def table(title: str, key: str, unit: str, *more: tuple) -> list[dict]:
        return show(title, [(name, result[key], unit) for name, result in found.items()] + list(more))

    def limit(words: str, kept: bool) -> None:
        print(f"  limit: {words}: {'kept' if kept else 'MISSED'}")

    bot = found["bot.py"]
    own, most = bot["own"], 1.3 * bot["own"] + 20
    rows = table(f"a frame alone, push to answer, median of {alone}", "ms", "ms", ("identify.py, no bot", own, "ms"))
    limit(f"{most:.1f} ms, 1.3 times identify.py's and 20 ms; bot.py {bot['ms'] / own:.2f} times", bot["ms"] <= most)
    rows += table(f"{count} frames at once", "rate", "frames/s")
    for name, result in found.items():
        numbers = ", ".join(f"{result[key]} {key}" for key in ("answered", "refused", "lost", "twice"))
        print(f"  {name}: {numbers}; median wait for an answer {result['wait']:.1f} s; exit code {result['code']}")
    for word, times in bot["words"].items():
        print(f"  {times} x {word}")
    whole = not bot["lost"] and not bot["twice"] and not bot["code"]
    limit("each frame one answer or one refusal, none lost, none twice, exit code 0", whole)
    rows += table("largest memory, processes together", "mb", "MB")
    for name, result in found.items():
        print(f"  {name}: {result['growth']:+.1%} from the first to the last tenth of {result['samples']} samples")
    limit("450 MB, growth under 5%", bot["mb"] < 450 and bot["growth"] < 0.05)
    rows += table("longest block of the event loop", "block", "ms")
    limit("100 ms", bot["block"] < 100)
    return [*rows, *({"bench": "bot", "name": name, **result} for name, result in found.items())]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the speeds that the README states.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too (default: only print)")
    commands = parser.add_subparsers(dest="command", required=True)
    render = commands.add_parser("render", help="rendered films")
    render.add_argument("--frames", type=int, default=240, help="default: %(default)s")
    scraping = commands.add_parser("scrape", help="downloads from a slow server")
    scraping.add_argument("--images", type=int, default=300, help="default: %(default)s")
    scraping.add_argument("--latency", type=float, default=50.0, help="ms an image (default: %(default)s)")
    filtering = commands.add_parser("filter", help="filter.py with a person detector")
    filtering.add_argument("raw", type=Path, help="folder of frames")
    filtering.add_argument("--detector", required=True, help="local YOLO weights")
    filtering.add_argument("--frames", type=int, default=200, help="default: %(default)s")
    colour = commands.add_parser("colour", help="what colour alone gives away")
    colour.add_argument("data", type=Path, help="folder that filter.py wrote")
    training = commands.add_parser("train", help="the training loop")
    training.add_argument("data", type=Path, help="folder that filter.py wrote")
    training.add_argument("--arch", default="mobilenetv2", help="a name of train.py, or all (default: %(default)s)")
    training.add_argument("--steps", type=int, default=12, help="of which the first warm up (default: %(default)s)")
    training.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    training.add_argument("--compile", action="store_true", help="train.py with torch.compile")
    infer = commands.add_parser("infer", help="from JPEG bytes to an answer")
    infer.add_argument("checkpoint", type=Path, help="best.pt, for the original's way")
    infer.add_argument("--model", type=Path, default=Path("export"), help="default: %(default)s")
    infer.add_argument("--frames", type=Path, required=True, help="folder of frames")
    isa = commands.add_parser("isa", help="formats as on lesser CPUs, by ONEDNN_MAX_CPU_ISA")
    isa.add_argument("--model", type=Path, default=Path("export"), help="default: %(default)s")
    bot = commands.add_parser("bot", help="bot.py against a Bot API server on loopback")
    bot.add_argument("--model", type=Path, default=Path("export"), help="default: %(default)s")
    bot.add_argument("--frames", type=Path, required=True, help="folder of frames")
    bot.add_argument("--users", type=int, default=50, help="who send at once (default: %(default)s)")
    bot.add_argument("--each", type=int, default=10, help="frames a user (default: %(default)s)")
    bot.add_argument("--checkpoint", type=Path, help="best.pt, for the original's way (default: without it)")
    bot.add_argument("--queue", type=int, help="frames that may wait (default: bot.py's own)")
    bot.add_argument("--runtime", choices=["openvino", "onnxruntime"], help="of the model (default: the fastest)")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.command == "train" and args.steps < 3:
        parser.error("--steps must be 3 or more, of which 2 warm up")
    if args.command == "bot" and min(args.users, args.each) < 1:
        parser.error("--users and --each must be 1 or more")
    if args.command == "render":
        rows = bench_render(args.frames)
    elif args.command == "scrape":
        rows = bench_scrape(args.images, args.latency / 1000)
    elif args.command == "filter":
        rows = bench_filter(args.raw, args.detector, args.frames)
    elif args.command == "colour":
        rows = bench_colour(args.data)
    elif args.command == "train":
        from models import ARCHITECTURES

        names = ARCHITECTURES if args.arch == "all" else [args.arch]
        how = (args.steps, args.batch_size, args.compile)
        rows = [row for arch in names for row in bench_train(args.data, arch, *how)]
    elif args.command == "isa":
        rows = bench_isa(args.model)
    elif args.command == "bot":
        rows = bench_bot(args.model, args.frames, args.users, args.each, args.checkpoint, args.queue, args.runtime)
    else:
        rows = bench_infer(args.checkpoint, args.model, args.frames)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
