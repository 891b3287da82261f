"""What bench.py cuda measures: each part in a process of its own, with a limit of its own.

python bench.py cuda --out data/cuda --minutes 9          # run it again to go on: parts that are done stay
python bench.py cuda --out data/cuda --again compiled     # measure anew what begins so

No network is needed. Beside torch, torchvision, transformers, scikit-learn, onnxscript, onnxruntime and OpenCV:
pip download -d wheels --no-deps --only-binary=:all: --python-version 3.12 timm ultralytics ImageHash
pip install --no-index --no-deps wheels/*.whl             # on the machine with the GPU
"""

import contextlib
import csv
import json
import math
import os
import re
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

import train
from answering.console import UserError
from answering.pictures import read_image
from answering.stills import expand
from benchmarks.parts import run_parts, torchrun
from benchmarks.pipeline import original_loop
from models import ARCHITECTURES, CLIP, Checkpoint
from training.dataset import choose_rows, read_manifest
from training.device import choose_device, has_bf16, peak_flops
from training.probe import predict
from training.tracking import git_commit

GPU = torch.cuda.is_available()


def measure_machine(it) -> dict:
    """The first part: what run_all was asked for -> {figure: value}, as all of them."""
    device, figures = choose_device(None), {"cores": os.cpu_count(), "torch": torch.__version__, "commit": git_commit()}
    figures |= {"GPU": torch.cuda.get_device_name(), "GB": torch.cuda.mem_get_info()[1] / 1e9} if GPU else {}
    kinds = {"bf16": True, "fp32, TF32 on a GPU": False} if has_bf16(device) else {"fp32": False}
    return figures | {f"{name}, TFLOP/s": peak_flops(device, bf16) / 1e12 for name, bf16 in kinds.items()}


def make_films(it, name: str, films: int) -> dict:
    """Films in out/raw-NAME and the dataset out/NAME of them, with some that are to be refused."""
    from demo.films import render_films

    raw, start = it.out / f"raw-{name}", time.perf_counter()
    render_films(raw, range(films), it.per_film, per_shot=3)
    render_films(raw, range(800, 802 + films // 8), it.per_film // 8, per_shot=3)
    middle, count = time.perf_counter(), len(expand([str(raw)]))
    argv = (raw, "--out", it.out / name, "--detector", "none", "--min-frames", it.per_film // 4)
    torchrun(max(1, os.cpu_count() // 2), "filter.py", *argv)
    seconds = {"render": middle - start, "filter": time.perf_counter() - middle}
    return {"frames": count} | {f"{key}, frames/s": count / value for key, value in seconds.items()}


def fast_recipe(arch: str, count: int) -> dict:
    """224 pixels, large batches. count: training frames."""
    batch = min(512 if arch in ("mobilenetv2", CLIP) else 256, count // 4)
    return {"epochs": 3, "batch_size": batch, "train_size": 224, "lr": 3e-4}


def time_training(it, arch: str, compiled: bool) -> dict:
    """Images/s of the original's loop, unless compiled, and of ours, from random weights."""
    chosen, classes = choose_rows(read_manifest(it.small))
    count, figures = len(chosen["train"]), {}
    if not compiled:  # first, since choose_device allows TF32, which the original did not
        device = torch.device("cuda" if GPU else "cpu")
        figures["original's images/s"] = original_loop(it.small, arch, classes, min(64, count // 4), 24, device)
    torch.cuda.reset_peak_memory_stats() if GPU else None
    with tempfile.TemporaryDirectory(dir=it.out) as out:
        how = {"arch": arch, "pretrained": False, "compiled": compiled, "out": Path(out)}
        run = train.train_model(it.small, recipe=fast_recipe(arch, count), **how)
        epochs = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    best = max(epochs, key=lambda row: float(row["images_per_s"]))
    figures |= {"images/s": float(best["images_per_s"]), "MFU": float(best["mfu"])}
    figures |= {} if compiled else {"times the original's": figures["images/s"] / figures["original's images/s"]}
    figures |= {f"loss in epoch {row['epoch']}": float(row["train_loss"]) for row in (epochs[0], epochs[-1])}
    return figures | {"GPU memory, GB": torch.cuda.max_memory_allocated() / 1e9 if GPU else 0.0}


def check_resuming(it) -> dict:
    """A run in one piece and one that is stopped after an epoch and resumed: their figures are to be alike."""
    count, keep = len(choose_rows(read_manifest(it.small))[0]["train"]), train.keep_epoch
    how = {"arch": it.one, "pretrained": False, "recipe": fast_recipe(it.one, count), "out": it.out / "resume"}

    def stop(*args) -> None:
        keep(*args)
        raise KeyboardInterrupt

    runs = [train.train_model(it.small, **how, name="whole", overwrite=True)]
    with mock.patch.object(train, "keep_epoch", stop), contextlib.suppress(UserError):
        train.train_model(it.small, **how, name="broken", overwrite=True)
    done = Checkpoint.load(it.out / "resume" / "broken" / "last.pt").training["epoch"]
    runs.append(train.train_model(it.small, **how, name="broken", resume=True))
    one, two = (Checkpoint.load(run / "last.pt").model for run in runs)
    apart = max(float((one[key].double() - two[key].double()).abs().max()) for key in one)
    losses = [json.loads((run / "test.json").read_text())["test"]["loss"] for run in runs]
    if done != 1 or not all(map(math.isfinite, losses)) or abs(losses[0] - losses[1]) > 0.05 * losses[0]:
        raise RuntimeError(f"resumed after {done} epochs, test losses {losses}, weights {apart:.2g} apart")
    return {"test loss": losses[0], "test loss, resumed": losses[1], "weights apart by at most": apart}


def check_torchrun(it) -> dict:
    """train.py as the one process of a group: nccl on a GPU, else gloo."""
    argv = [
        "--arch",
        it.one,
        "--no-pretrained",
        "--epochs",
        1,
        "--batch-size",
        128,
        "--out",
        it.out / "torchrun",
        "--overwrite",
    ]
    text = torchrun(1, "train.py", it.small, *argv, NCCL_DEBUG="VERSION", GLOO_SOCKET_IFNAME="lo")
    nccl = re.search("NCCL version.*", text)
    if GPU and not nccl:
        raise RuntimeError("nccl was not used")
    (test,) = (it.out / "torchrun").glob("*/test.json")
    return {"backend": nccl[0] if nccl else "gloo", "test top-1": json.loads(test.read_text())["test"]["top1"]}


def time_filter(it) -> dict:
    """Frames/s of filter.py's detector alone, and of several filter.py on one GPU once they run."""
    os.environ["YOLO_OFFLINE"] = "true"  # else ultralytics waits for an answer from the network
    from filter import person_detector

    if not Path(it.detector).exists():
        return {"skipped": f"no weights {it.detector}; name them with --detector"}
    detect = person_detector(it.detector, confidence=0.25, device=None, batch=32, size="600x256")
    files, processes = expand([str(it.out / "raw-small")]), max(1, min(os.cpu_count() // 2, it.films // 4))
    pictures = [read_image(file) for file in files[:512]]
    persons = sum(seen > 0 for seen in detect(pictures))  # warms up
    start = time.perf_counter()
    detect(pictures)
    figures = {"detector, frames/s": len(pictures) / (time.perf_counter() - start), "frames with persons": persons}
    with tempfile.TemporaryDirectory(dir=it.out) as out:
        argv = (it.out / "raw-small", "--out", out, "--detector", it.detector, "--min-frames", 2)
        torchrun(processes, "filter.py", *argv)
        done = sorted(path.stat().st_mtime for path in Path(out, ".filter").glob("*.json"))  # when each film was
    frames = len(files) * (1 - processes / len(done))  # without each process's first film, when it loads the detector
    return figures | {f"{processes} filter.py, frames/s": frames / (done[-1] - done[processes - 1])}


def check_export(it) -> dict:
    """The ONNX file of the run of check_resuming against the model on the GPU."""
    from answering.contract import Contract
    from answering.model import Identifier, relative_error
    from export import Exported, open_dataset, run_batches, write_onnx
    from training.rule import ORIGINAL_RULE

    saved, path, device = Checkpoint.load(it.out / "resume/whole/best.pt"), it.out / "model.onnx", choose_device(None)
    model, spec, frames = saved.build(), saved.preprocessing, open_dataset(it.small, saved)[0]["test"][:256]
    write_onnx(Exported(model, spec, ORIGINAL_RULE), path)
    Contract(saved.arch, saved.commit, saved.classes, spec, {"movie": 0.9, "shortlist": 0.83}, {}, {}).save(path)
    exported = run_batches(Identifier(path, runtime="onnxruntime").run, frames)["logits"]
    logits = [predict(model.to(device), frames, spec, device=device, bf16=bf16)[0] for bf16 in (False, True)]
    apart, alike = relative_error(logits[0], exported), float((logits[0].argmax(1) == exported.argmax(1)).mean())
    if apart > 0.02:
        raise RuntimeError(f"the exported file computes something else: logits are {apart:.1%} apart")
    return {"logits apart by": apart, "in bf16": relative_error(logits[1], exported), "same film": alike}


def train_table(it, arch: str, numbers: list[int]) -> dict:
    """Rows of the original's table, a run for each number of films; on all films also a head in closed form."""
    runs, figures = {f"{arch}-{films}": ({}, films) for films in numbers}, {}
    if it.films in numbers and arch != CLIP:
        runs[f"{arch}-{it.films}-head"] = {"init": it.out / "runs" / f"{arch}-{it.films}" / "best.pt"}, it.films
    for name, (more, films) in runs.items():
        start, recipe = time.perf_counter(), {"epochs": it.epochs, "batch_size": 256 if films > 50 else 64}
        recipe = {"epochs": 0} if more else recipe | {"lr": 1e-3 if arch in ARCHITECTURES[:3] else 3e-4}
        how = {"arch": arch, "out": it.out / "runs", "name": name, "resume": True}
        how |= {"pretrained": False, "subset": films if films < it.films else None}
        if not (it.out / "runs" / name / "test.json").exists():  # else it was done before this part was cut off
            run = train.train_model(it.large, recipe=recipe, **how, **more)
            (run / "last.pt").unlink()  # a gigabyte
            figures[f"{name}, s"] = time.perf_counter() - start
    return figures


def run_all(*, out: Path, minutes: float, archs: str, again: str, **more) -> None:
    """Do and report the parts, in the order of their worth. Raises UserError where one of them fails or overruns."""
    names, few, deit = ARCHITECTURES if archs == "all" else archs.split(","), 40, "deit_base_patch16_224"
    it = SimpleNamespace(out=out.resolve(), one=deit if deit in names else names[0], **more)
    it.small, it.large = it.out / "small", it.out / ("large" if it.films > few else "small")
    parts = {"machine": (measure_machine, (), 90), "films": (make_films, ("small", min(few, it.films)), 120)}
    parts |= {f"train {arch}": (time_training, (arch, False), 100) for arch in names}
    parts |= {"resume": (check_resuming, (), 120), "export": (check_export, (), 90)}
    parts |= {"torchrun": (check_torchrun, (), 90), "filter": (time_filter, (), 120)}
    parts |= {f"compiled {arch}": (time_training, (arch, True), 240) for arch in names}
    parts |= {"films of the table": (make_films, ("large", it.films), 300)} if it.films > few else {}
    parts |= {f"table {arch}": (train_table, (arch, [it.films]), 600) for arch in names}
    fewer = [films for films in (50, 5) if films < it.films]
    parts |= {f"fewer films {arch}": (train_table, (arch, fewer), 300) for arch in names if fewer}
    slow = 1 if GPU else 5
    run_parts({name: (*part, slow * limit) for name, (*part, limit) in parts.items()}, it, minutes, again)
