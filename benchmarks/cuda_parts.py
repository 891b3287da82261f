"""What bench.py cuda measures, a function a part: each runs in a process of its own, see benchmarks/parts.py."""

import contextlib
import csv
import json
import math
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

import train
from answering.console import UserError
from answering.contract import Contract
from answering.cores import count_cores
from answering.model import Identifier, relative_error
from answering.pictures import read_image
from answering.stills import expand
from benchmarks.parts import torchrun
from benchmarks.training import original_loop
from models import ARCHITECTURES, CLIP, Checkpoint
from training.dataset import choose_rows, read_manifest
from training.device import choose_device, has_bf16, peak_flops
from training.predict import predict
from training.rule import ORIGINAL_RULE
from training.tracking import git_commit

GPU = torch.cuda.is_available()
SMALL_FILMS = 40  # at most, of the films that all parts but the table use
FIRST_UNKNOWN = 800  # number of the first film that is to be refused


@dataclass(frozen=True)
class Settings:
    """What bench_cuda was asked for."""

    out: Path
    films: int
    per_film: int  # frames
    epochs: int  # of the table
    detector: str  # weights for filter.py
    arch: str  # for the parts that take one network

    @property
    def small(self) -> Path:
        """The dataset of a few films."""
        return self.out / "small"

    @property
    def large(self) -> Path:
        """The dataset of all films."""
        return self.out / ("large" if self.films > SMALL_FILMS else "small")


def measure_machine(settings: Settings) -> dict:
    """The GPU, its memory, and the rate of its matrix products."""
    device = choose_device(None)
    figures = {"cores": count_cores(), "torch": torch.__version__, "commit": git_commit()}
    if GPU:
        figures["GPU"] = torch.cuda.get_device_name()
        figures["GB"] = torch.cuda.mem_get_info()[1] / 1e9
    kinds = {"bf16": True, "fp32, TF32 on a GPU": False} if has_bf16(device) else {"fp32": False}
    for name, bf16 in kinds.items():
        figures[f"{name}, TFLOP/s"] = peak_flops(device, bf16) / 1e12
    return figures


def make_films(settings: Settings, name: str, films: int) -> dict:
    """Films in out/raw-NAME and the dataset out/NAME of them, with some that are to be refused."""
    from demo.films import render_films

    raw = settings.out / f"raw-{name}"
    start = time.perf_counter()
    render_films(raw, range(films), settings.per_film, per_shot=3)
    unknown = range(FIRST_UNKNOWN, FIRST_UNKNOWN + 2 + films // 8)
    render_films(raw, unknown, settings.per_film // 8, per_shot=3)
    middle = time.perf_counter()
    count = len(expand([str(raw)]))
    argv = [raw, "--out", settings.out / name, "--detector", "none", "--min-frames", settings.per_film // 4]
    torchrun(max(1, count_cores() // 2), "filter.py", *argv)
    end = time.perf_counter()
    return {
        "frames": count,
        "render, frames/s": count / (middle - start),
        "filter, frames/s": count / (end - middle),
    }


# -------------------------------------------------------------------------------------------------- training


def fast_recipe(arch: str, count: int) -> dict:
    """224 pixels, large batches. count: training frames."""
    batch = min(512 if arch in ("mobilenetv2", CLIP) else 256, count // 4)
    return {"epochs": 3, "batch_size": batch, "train_size": 224, "lr": 3e-4}


def time_training(settings: Settings, arch: str, compiled: bool) -> dict:
    """Images/s of the original's loop, unless compiled, and of ours, from random weights."""
    chosen, classes = choose_rows(read_manifest(settings.small))
    count = len(chosen["train"])
    figures = {}
    if not compiled:  # first, since choose_device allows TF32, which the original did not
        device = torch.device("cuda" if GPU else "cpu")
        original = original_loop(settings.small, arch, classes, min(64, count // 4), 24, device)
        figures["original's images/s"] = original
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory(dir=settings.out) as out:
        options = {"arch": arch, "pretrained": False, "compiled": compiled, "out": Path(out)}
        run = train.train_model(settings.small, recipe=fast_recipe(arch, count), **options)
        epochs = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    best = max(epochs, key=lambda row: float(row["images_per_s"]))
    figures["images/s"] = float(best["images_per_s"])
    figures["MFU"] = float(best["mfu"])
    if not compiled:
        figures["times the original's"] = figures["images/s"] / original
    for row in (epochs[0], epochs[-1]):
        figures[f"loss in epoch {row['epoch']}"] = float(row["train_loss"])
    figures["GPU memory, GB"] = torch.cuda.max_memory_allocated() / 1e9 if GPU else 0.0
    return figures


def check_resuming(settings: Settings) -> dict:
    """A run in one piece and one that is stopped after an epoch and resumed: their figures are to be alike."""
    count = len(choose_rows(read_manifest(settings.small))[0]["train"])
    keep = train.keep_epoch
    out = settings.out / "resume"
    options = {
        "arch": settings.arch,
        "pretrained": False,
        "recipe": fast_recipe(settings.arch, count),
        "out": out,
    }

    def keep_and_stop(*args) -> None:
        keep(*args)
        raise KeyboardInterrupt

    whole = train.train_model(settings.small, **options, name="whole", overwrite=True)
    with mock.patch.object(train, "keep_epoch", keep_and_stop), contextlib.suppress(UserError):
        train.train_model(settings.small, **options, name="broken", overwrite=True)
    done = Checkpoint.load(out / "broken" / "last.pt").training["epoch"]
    resumed = train.train_model(settings.small, **options, name="broken", resume=True)
    wanted = Checkpoint.load(whole / "last.pt").model
    found = Checkpoint.load(resumed / "last.pt").model
    apart = max(float((wanted[name].double() - found[name].double()).abs().max()) for name in wanted)
    losses = [json.loads((run / "test.json").read_text())["test"]["loss"] for run in (whole, resumed)]
    alike = all(map(math.isfinite, losses)) and abs(losses[0] - losses[1]) <= 0.05 * losses[0]
    if done != 1 or not alike:
        raise RuntimeError(f"resumed after {done} epochs, test losses {losses}, weights {apart:.2g} apart")
    return {"test loss": losses[0], "test loss, resumed": losses[1], "weights apart by at most": apart}


def check_torchrun(settings: Settings) -> dict:
    """train.py as the one process of a group: nccl on a GPU, else gloo."""
    out = settings.out / "torchrun"
    argv = ["--arch", settings.arch, "--no-pretrained", "--epochs", 1, "--batch-size", 128, "--out", out, "--overwrite"]
    text = torchrun(1, "train.py", settings.small, *argv, NCCL_DEBUG="VERSION", GLOO_SOCKET_IFNAME="lo")
    nccl = re.search("NCCL version.*", text)
    if GPU and not nccl:
        raise RuntimeError("nccl was not used")
    (test,) = out.glob("*/test.json")
    return {"backend": nccl[0] if nccl else "gloo", "test top-1": json.loads(test.read_text())["test"]["top1"]}


def train_table(settings: Settings, arch: str, numbers: list[int]) -> dict:
    """Rows of the original's table, a run for each number of films; on all films also a head in closed form."""
    figures = {}
    for films in numbers:
        recipe = {
            "epochs": settings.epochs,
            "batch_size": 256 if films > 50 else 64,
            "lr": 1e-3 if arch in ARCHITECTURES[:3] else 3e-4,
        }
        subset = films if films < settings.films else None
        figures |= train_row(settings, f"{arch}-{films}", arch, recipe, subset=subset)
    if settings.films in numbers and arch != CLIP:
        name = f"{arch}-{settings.films}"
        init = settings.out / "runs" / name / "best.pt"
        figures |= train_row(settings, f"{name}-head", arch, {"epochs": 0}, init=init)
    return figures


def train_row(settings: Settings, name: str, arch: str, recipe: dict, **options) -> dict:
    """A run of the table, and the seconds it takes; nothing where it was done before this part was cut off."""
    if (settings.out / "runs" / name / "test.json").exists():
        return {}
    start = time.perf_counter()
    out = settings.out / "runs"
    run = train.train_model(
        settings.large, recipe=recipe, arch=arch, out=out, name=name, resume=True, pretrained=False, **options
    )
    (run / "last.pt").unlink()  # a gigabyte
    return {f"{name}, s": time.perf_counter() - start}


# ------------------------------------------------------------------------------------- filter.py and export.py


def time_filter(settings: Settings) -> dict:
    """Frames/s of filter.py's detector alone, and of several filter.py on one GPU once they run."""
    from training.detector import person_detector

    if not Path(settings.detector).exists():
        return {"skipped": f"no weights {settings.detector}; name them with --detector"}
    detect = person_detector(settings.detector, confidence=0.25, device=None, batch=32, size="600x256")
    raw = settings.out / "raw-small"
    files = expand([str(raw)])
    processes = max(1, min(count_cores() // 2, settings.films // 4))
    pictures = [read_image(file) for file in files[:512]]
    persons = sum(seen > 0 for seen in detect(pictures))  # warms up
    start = time.perf_counter()
    detect(pictures)
    speed = len(pictures) / (time.perf_counter() - start)
    with tempfile.TemporaryDirectory(dir=settings.out) as out:
        argv = [raw, "--out", out, "--detector", settings.detector, "--min-frames", 2]
        torchrun(processes, "filter.py", *argv)
        done = sorted(path.stat().st_mtime for path in Path(out, ".filter").glob("*.json"))  # when each film was
    frames = len(files) * (1 - processes / len(done))  # without each process's first film, when it loads the detector
    return {
        "detector, frames/s": speed,
        "frames with persons": persons,
        f"{processes} filter.py, frames/s": frames / (done[-1] - done[processes - 1]),
    }


def check_export(settings: Settings) -> dict:
    """The ONNX file of the run of check_resuming against the model on the GPU."""
    from export import Exported, open_dataset, run_batches, write_onnx

    saved = Checkpoint.load(settings.out / "resume/whole/best.pt")
    path = settings.out / "model.onnx"
    device = choose_device(None)
    model = saved.build()
    spec = saved.preprocessing
    frames, _ = open_dataset(settings.small, saved)
    test = frames["test"][:256]
    write_onnx(Exported(model, spec, ORIGINAL_RULE), path)
    Contract(saved.arch, saved.commit, saved.classes, spec, {"movie": 0.9, "shortlist": 0.83}, {}, {}).save(path)
    exported = run_batches(Identifier(path, runtime="onnxruntime").run, test)["logits"]
    model.to(device)
    fp32, _ = predict(model, test, spec, device=device, bf16=False)
    bf16, _ = predict(model, test, spec, device=device, bf16=True)
    apart = relative_error(fp32, exported)
    alike = float((fp32.argmax(1) == exported.argmax(1)).mean())
    if apart > 0.02:
        raise RuntimeError(f"the exported file computes something else: logits are {apart:.1%} apart")
    return {"logits apart by": apart, "in bf16": relative_error(bf16, exported), "same film": alike}
