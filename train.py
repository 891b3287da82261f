"""Train a network to name the film of a frame, and measure it on shots it has never seen.

python train.py data/processed --arch deit_base_patch16_224         # the best of the original's six
python train.py data/processed --arch all --fold all                # all six, compared in runs/results.md and .png
python train.py --compare                                           # write that table and picture anew
python train.py data/processed --arch mobilenetv2 --limit 200 --epochs 2     # a quick look, on a laptop
torchrun --nproc-per-node 4 train.py data/processed                 # on four GPUs, which share one --batch-size
"""

import argparse
import json
import math
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset
from tqdm import tqdm

from answering.console import UserError, atomic_write, one_line_errors
from models import ARCHITECTURES, CLIP, Checkpoint
from training.comparison import RESULTS_TABLE, write_comparison
from training.dataset import write_csv
from training.device import (
    is_first_process,
    peak_flops,
    peak_memory,
    process_group,
    process_rank,
    synchronised_clock,
    world_size,
)
from training.frames import augment, take_batch, to_device
from training.leak_check import leak_check_of_dataset
from training.metrics import Figures, measure, significantly_worse, softmax
from training.predict import predict
from training.probe import refit_probe
from training.recipes import PROTOCOLS, add_recipe_arguments, chosen_values
from training.report import draw_confusion, draw_curves, draw_mistakes
from training.run import EpochRow, Options, Run, State, TrainFigures
from training.setup import set_up

TIMED_FRAMES = 10
MIN_MINUTES = 0.001  # of a run, where its network has used up its share of --minutes: it trains a step
WITH_RANDOM_HELP = "a run on a random split too, for the table's column that shows what such a split flatters"


def train_model(data: Path, *, recipe: dict | None = None, **options) -> Path:
    """Train one architecture and leave a run folder; returns its path. The test split is looked at once, at the end.

    recipe: overrides of the recipe's values; options: fields of Options. Inside process_group() the processes share the
    training, and the first one measures and writes. Raises UserError.
    """
    options = Options(**options)
    run, state = set_up(data, recipe or {}, options)
    counts = ", ".join(f"{name} {len(split.rows)}" for name, split in run.splits.items())
    machine = f"{run.args['precision']} on {world_size()} x {run.device.type}"
    print(f"{run.folder}: {len(run.classes)} films, {counts}; {machine}")
    try:
        if is_first_process() and not state.history and (run.recipe["probe"] or run.recipe["zero_shot"]):
            measure_start(run, state)
        train_epochs(run, state, epochs_to_train(run, state), options.compiled)
        if is_first_process():
            finish(run, state)
    except KeyboardInterrupt:
        raise UserError(f"stopped; what is done is in {run.folder}, continue with --resume", 130) from None
    except RuntimeError as error:
        if not options.compiled or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--compile: it can't be done here ({reason}); run without it") from None
    return run.folder


# ------------------------------------------------------------------------------------------------ the epochs


def measure_start(run: Run, state: State) -> None:
    """Measure the head before any training, a probe or CLIP's texts, as epoch 0."""
    row = keep_epoch(run, state, TrainFigures())
    kind = "the probe alone" if run.recipe["probe"] else "zero-shot"
    print(f"{kind}: val top-1 {row.val.top1:.4f}  balanced {row.val.balanced:.4f}", flush=True)


def epochs_to_train(run: Run, state: State) -> int:
    """The recipe's, or 0 where the probe is wrong too seldom to be beaten beyond chance. The first process decides."""
    epochs = run.recipe["epochs"]
    if state.probe_right and epochs and run.args["protocol"] != "finetune":
        right = np.array(state.probe_right)
        all_right = np.ones(len(right), bool)
        if not significantly_worse(all_right, right):
            epochs = 0
            wrong = int((~right).sum())
            text = "training could not beat that beyond chance (--probe 0 trains)"
            print(f"the probe is wrong on {wrong} val frames: {text}")
    if dist.is_initialized():
        decided = [epochs]
        dist.broadcast_object_list(decided, 0)
        epochs = decided[0]
    return epochs


def train_epochs(run: Run, state: State, epochs: int, compiled: bool) -> None:
    """Train until this many epochs are done; the first process measures, keeps and prints each."""
    if state.epoch >= epochs:
        return
    run.thaw()
    images = to_device(run.crops, run.device)  # before the gradients take their memory
    net = state.model
    if dist.is_initialized():  # this gives all processes the first one's weights, too
        net = nn.parallel.DistributedDataParallel(net, [run.device.index] if run.device.type == "cuda" else None)
    if compiled:
        net = torch.compile(net)
    peak = 0.0  # operations a second; the best of all epochs, since something else may run beside
    while state.epoch < epochs:
        if state.epoch and state.seconds > run.seconds:
            print(f"the time is up (--minutes) after {state.epoch} of {epochs} epochs")
            break
        start = time.perf_counter()
        loss, speed = train_epoch(run, state, net, images)
        state.epoch += 1
        if not is_first_process():
            continue
        peak = max(peak, peak_flops(run.device, run.bf16) * world_size())
        trained = TrainFigures(
            lr=max(group["lr"] for group in state.optimiser.param_groups),
            train_loss=loss,
            images_per_s=speed,
            mfu=speed * run.operations * 6 / peak,  # two operations forward, four backward
        )
        row = keep_epoch(run, state, trained)
        seconds_left = (epochs - state.epoch) * (time.perf_counter() - start)
        seconds_left = max(0.0, min(seconds_left, run.seconds - state.seconds))
        print_epoch(row, epochs, seconds_left)


def print_epoch(row: EpochRow, epochs: int, seconds_left: float) -> None:
    """One line of fixed width."""
    train, val = row.train, row.val
    print(
        f"epoch {row.epoch:3}/{epochs}  train loss {train.train_loss:7.4f}  val loss {val.loss:7.4f}  "
        f"top-1 {val.top1:.4f}  balanced {val.balanced:.4f}  {train.images_per_s:7.1f} images/s  "
        f"MFU {train.mfu:4.0%}  ETA {seconds_left:5.0f} s",
        flush=True,
    )


# ------------------------------------------------------------------------------------------------- an epoch


def train_epoch(run: Run, state: State, net: nn.Module, images: Subset | torch.Tensor) -> tuple[float, float]:
    """One pass over the training frames: (mean loss, images a second).

    net: state.model, or what wraps it for several processes or compiles it. images: uint8 [N, H, W, 3], larger than the
    crops. Raises UserError for a loss that is not finite.
    """
    rank = process_rank()
    seed = run.args["seed"] + 1000 * state.epoch  # a resumed run draws what an unbroken one draws
    torch.manual_seed(seed)
    labels = run.splits["train"].labels
    order = draw_order(labels, run.recipe["balance"])
    torch.manual_seed(seed + 1_000_000 * (rank + 1))  # augmentation and dropout
    targets = torch.from_numpy(labels)[order].to(run.device)  # all at once: a copy a step would wait for the GPU
    if isinstance(images, torch.Tensor):
        order = order.to(images.device)
    state.model.train()
    if run.recipe["intermediate"] and run.recipe["probe"]:  # the head was fitted to these statistics
        state.model.norm.eval()
    losses = []
    start = time.perf_counter()
    hidden = True if rank else None  # None: without a terminal
    for step in tqdm(range(run.steps), unit="step", desc=f"epoch {state.epoch + 1}", disable=hidden, leave=False):
        if step == 1:  # the first step warms up
            losses[0].item()  # waits for the GPU
            start = time.perf_counter()
        share = slice(step * run.batch + rank, (step + 1) * run.batch, world_size())  # this process's, of the batch
        inputs = augment(take_batch(images, order[share], run.device), run.spec, run.recipe, run.crop_size)
        losses.append(train_step(run, state, net, inputs, targets[share], step_of_schedule(run, state, step)))
        if state.seconds > run.seconds:
            break
    loss = mean_loss(torch.stack(losses))
    return loss, max(1, len(losses) - 1) * run.batch / (time.perf_counter() - start)


def step_of_schedule(run: Run, state: State, step: int) -> int:
    """Where in its schedule a run is at this step of the epoch: by steps or, if that is further, by the time it has.

    So the learning rate has fallen when the time is up (Li, Yumer and Ramanan 2020, Budgeted Training).
    """
    last = run.recipe["epochs"] * run.steps - 1
    by_time = int(state.seconds / run.seconds * last)
    return max(state.epoch * run.steps + step, min(by_time, last))


def draw_order(labels: np.ndarray, balance: float) -> torch.Tensor:
    """Which frame comes when in an epoch, int [N]. labels: class index a frame, int [N].

    balance 0: each frame once; 1: films are drawn equally often, so that frames of short films come again.
    """
    weights = torch.from_numpy(np.bincount(labels).astype(float) ** -balance)[labels]
    return torch.multinomial(weights, len(labels), replacement=balance > 0)


def train_step(
    run: Run, state: State, net: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, step: int
) -> torch.Tensor:
    """Take one step; returns its loss, on the device. inputs: float32 [N, 3, S, S]; targets: [N]; step: of the run."""
    state.schedule.step_update(step)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=run.bf16):
        logits, _ = net(inputs.contiguous(memory_format=torch.channels_last))
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=run.recipe["smoothing"])
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    state.optimiser.step()
    if state.ema:
        state.ema.update(state.model, step=step + 2)
    return loss.detach()


def mean_loss(losses: torch.Tensor) -> float:
    """Mean over the steps and all processes of this one's losses [steps]. Raises UserError where one is not finite."""
    if dist.is_initialized():
        dist.all_reduce(losses)
    broken = ~losses.isfinite()
    if broken.any():
        first = int(broken.nonzero()[0]) + 1
        raise UserError(
            f"the loss is not finite from step {first} of {len(losses)}; lower --lr or use --precision fp32"
        )
    return float(losses.mean()) / world_size()


# ------------------------------------------------------------------------------------- measure, compare, save


def keep_epoch(run: Run, state: State, trained: TrainFigures) -> EpochRow:
    """Validate, and write best.pt if nothing was better, metrics.csv and last.pt; returns the epoch's row."""
    val = run.splits["val"]
    logits, _ = run.predict(state.answering, "val")
    unknown, _ = run.predict(state.answering, "unknown_val")
    right = logits.argmax(1) == val.labels
    row = EpochRow(state.epoch, trained, measure(logits, val.labels, unknown))
    better = beats_best(row, right, state, run.recipe["select"])
    if run.args["protocol"] == "finetune" and row.epoch == 1:
        better = True  # epoch 0, the head alone, is another protocol's
    if row.epoch == 0 and run.recipe["probe"]:
        state.probe_right = right.tolist()
    state.history.append(row)
    if better:
        state.best = row
    save_epoch(run, state, better)
    if run.logger:
        run.logger.log(row.to_dict(), step=row.epoch)
    return row


def beats_best(row: EpochRow, right: np.ndarray, state: State, select: str) -> bool:
    """Whether this epoch takes the place of the best one so far.

    right: which val frames it names right, bool [N]. select: the figure that decides; the loss does among equals.
    """
    best = state.best
    if best is None:
        return True
    better = (getattr(row.val, select), -row.val.loss) >= (getattr(best.val, select), -best.val.loss)
    if state.probe_right and best.epoch == 0:
        # of many epochs on few val frames one looks better than the probe by chance, and on test it is not
        return better and significantly_worse(right, np.array(state.probe_right))
    return better


def save_epoch(run: Run, state: State, better: bool) -> None:
    """Write best.pt if the epoch is the best one, metrics.csv, and last.pt at the end: a resumed run goes by it."""
    checkpoint = Checkpoint(
        arch=run.args["arch"],
        classes=run.classes,
        preprocessing=run.spec,
        args=run.args,
        model=state.answering.state_dict(),
        figures=state.best.to_dict(),
        commit=run.args["commit"],
    )
    if better:
        checkpoint.save(run.folder / "best.pt")
    rows = [row.to_dict() for row in state.history]
    write_csv(run.folder / "metrics.csv", list(rows[-1]), rows)
    checkpoint.training = state.pack()
    checkpoint.save(run.folder / "last.pt")


# ---------------------------------------------------------------------------------------------- at the end


def finish(run: Run, state: State) -> None:
    """Refit a probe that stayed the best, look at test once, and write test.json, the pictures and the table."""
    saved = Checkpoint.load(run.folder / "best.pt")
    model = state.answering
    model.load_state_dict(saved.model)
    refit = run.recipe["refit"] and state.best.epoch == 0
    if refit and saved.held_out is None:
        refit_best(run, state, saved)
    logits = {name: run.predict(model, name)[0] for name in ("test", "unknown_test", "unknown_val")}
    labels = run.splits["test"].labels
    test = measure(logits["test"], labels, logits["unknown_test"])
    held_out = None
    if refit and saved.held_out:
        held_out = measure_held_out(saved.held_out, logits["unknown_val"])
        figures = f"top1 {held_out.top1:.4f}  balanced {held_out.balanced:.4f}"
        print(f"the probe stays, refit on train and val. On folds of films that a probe had not seen: {figures}")
    write_predictions(run, logits["test"])
    write_test_json(run, state, test, held_out, saved.commit)
    draw_curves([row.to_dict() for row in state.history], run.folder / "curves.png")
    draw_confusion(logits["test"], labels, run.classes, run.folder / "confusion.png")
    draw_mistakes(logits["test"], labels, run.splits["test"].rows, run.classes, run.folder / "mistakes.png")
    write_comparison(run.folder.parent)
    if run.logger:
        run.logger.summary.update({f"test/{key}": value for key, value in asdict(test).items()})
        run.logger.finish()


def refit_best(run: Run, state: State, saved: Checkpoint) -> None:
    """Fit the probe on train and val, and keep it in best.pt, with its answers on folds that it had not seen."""
    model = state.answering
    saved.held_out = refit_probe(
        model,
        run.splits["train"],
        run.splits["val"],
        run.spec,
        shrinkage=run.recipe["probe"],
        copy_weight=run.recipe["copies"],
        bf16=run.bf16,
        train_features=state.train_features,
    )
    state.train_features = None  # a gigabyte, with many frames
    saved.model = model.state_dict()
    saved.save(run.folder / "best.pt")


def measure_held_out(held_out: dict[str, torch.Tensor], unknown: np.ndarray) -> Figures:
    """Figures on the frames of train and val that lie in a fold. held_out: of refit_probe; unknown: logits [M, C]."""
    folds, logits, labels = (held_out[key].numpy() for key in ("folds", "logits", "labels"))
    return measure(logits[folds >= 0], labels[folds >= 0], unknown)


def time_frame(model: nn.Module, run: Run) -> float:
    """Median milliseconds that the network takes for a frame, as torch runs it on the run's device."""
    frame = run.splits["test"].frames[:1]
    times = []
    for _ in range(1 + TIMED_FRAMES):  # the first one warms up
        start = synchronised_clock(run.device)
        predict(model, frame, run.spec, device=run.device, bf16=run.bf16)
        times.append(1000 * (synchronised_clock(run.device) - start))
    return float(np.median(times[1:]))


def write_predictions(run: Run, logits: np.ndarray) -> None:
    """predictions.csv, a row a test frame: runs are compared by it, frame by frame. logits: [N, C] of test."""
    split = run.splits["test"]
    confidence = softmax(logits).max(1)
    rows = []
    for k, row in enumerate(split.rows):
        said = run.classes[logits[k].argmax()]
        rows.append({"frame": row.path, "movie": row.movie, "said": said, "confidence": f"{confidence[k]:.4f}"})
    write_csv(run.folder / "predictions.csv", ["frame", "movie", "said", "confidence"], rows)


def write_test_json(run: Run, state: State, test: Figures, held_out: Figures | None, commit: str) -> None:
    """The figures on test and on val, and what they are of; held_out: where a probe was refit."""
    report = {"test": asdict(test), "val": asdict(state.best.val)}
    if held_out:
        report["held_out"] = asdict(held_out)
    report["run"] = run.folder.name
    report["args"] = run.args
    report["classes"] = len(run.classes)
    report["commit"] = commit
    report["best_epoch"] = state.best.epoch
    report["epochs"] = state.epoch
    report["images_per_s"] = state.history[-1].train.images_per_s
    report["seconds"] = state.seconds
    report["memory_gb"] = peak_memory(run.device)
    report["parameters"] = sum(parameter.numel() for parameter in state.model.parameters())
    report["ms_float"] = time_frame(state.answering, run)
    report["frames"] = {name: len(split.rows) for name, split in run.splits.items()}
    with atomic_write(run.folder / "test.json", "w") as file:
        json.dump(report, file, indent=1)


# ----------------------------------------------------------------------------------------------- the shell


def run_leak_check(args: argparse.Namespace, subset: int | None) -> None:
    """Print how much a random split overstates accuracy; nothing is trained but probes."""
    results = leak_check_of_dataset(
        args.data,
        arch=args.arch,
        pretrained=not args.no_pretrained,
        init=args.init,
        device=args.device,
        subset=subset,
        limit=args.limit,
    )
    for name, row in results.items():
        print(f"{name:8} split  top-1 {row.top1:.4f}  balanced {row.balanced:.4f} +- {row.spread:.4f}")
    print("the difference is what neighbouring frames give away; train.py splits by groups unless told otherwise")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train and measure a film classifier.")
    group = parser.add_argument_group("data")
    group.add_argument("data", type=Path, nargs="?", help="folder that filter.py wrote")
    group.add_argument("--subset", default="all", help="films drawn with seed 13: 5, 50 ... (default: %(default)s)")
    text = "group: no shot in two splits; random: frames at random, as the original did (default: %(default)s)"
    group.add_argument("--split", choices=["group", "random"], default="group", help=text)
    text = "which fifth of the groups is the test set; all: five runs and their mean (default: the manifest's split)"
    group.add_argument("--fold", choices=[*"01234", "all"], help=text)
    group.add_argument("--with-random", action="store_true", help=WITH_RANDOM_HELP)
    text = "only show how much a random split overstates accuracy, with a probe"
    group.add_argument("--leak-check", action="store_true", help=text)
    group.add_argument("--limit", type=int, help="at most this many frames per split (default: all)")
    group = parser.add_argument_group("model")
    text = "one of the six, all of them, or a timm name (default: %(default)s)"
    group.add_argument("--arch", default=Options.arch, help=text)
    text = "local weights: torchvision, timm, our .pt, or a folder for CLIP (default: the hub)"
    group.add_argument("--init", help=text)
    group.add_argument("--no-pretrained", action="store_true", help="start from random weights")
    text = "pixels of the square pictures that it takes (default: %(default)s)"
    group.add_argument("--size", type=int, default=Options.size, help=text)
    text = "; ".join(f"{name}: {what}" for name, what in PROTOCOLS.items())
    text = f"{text}; both: a run of each (default: the head, then all layers where that is better beyond chance)"
    group.add_argument("--protocol", choices=[*PROTOCOLS, "both"], help=text)
    add_recipe_arguments(parser)
    group = parser.add_argument_group("machine")
    group.add_argument("--seed", type=int, default=Options.seed, help="of splits and training (default: %(default)s)")
    group.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    text = "auto: bf16 where the hardware has it, fp32 for the recipe original (default: %(default)s)"
    group.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto", help=text)
    text = "compile the network: costs minutes at first, then epochs are faster"
    group.add_argument("--compile", dest="compiled", action="store_true", help=text)
    text = "time for all runs together, shared evenly by the networks; training stops in time (default: no limit)"
    group.add_argument("--minutes", type=float, metavar="M", help=text)
    text = "folder for decoded frames, which datasets may share (default: .frames in the data)"
    group.add_argument("--cache", type=Path, help=text)
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, default=Options.out, help="folder of the runs (default: %(default)s)")
    group.add_argument("--name", help="name of the run folder (default: from arch, data and split)")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="continue the run from last.pt")
    either.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    text = "only write results.csv, .md and .png of the runs in --out anew, those of older versions too"
    group.add_argument("--compare", action="store_true", help=text)
    text = "log to Weights & Biases (default: off)"
    group.add_argument("--wandb", nargs="?", const="movie-by-frame", metavar="PROJECT", help=text)
    return parser


def check_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End the program through parser for flags that mean nothing, alone or together."""
    if args.compare:
        check_alone("compare", {"out"}, args, parser)
        return
    if args.data is None:
        parser.error("name the folder that filter.py wrote, or --compare for the runs that are there")
    if args.subset != "all" and not (args.subset.isdecimal() and int(args.subset)):
        parser.error(f"--subset {args.subset}: expected a number or all")
    if args.fold is not None and args.split == "random":
        parser.error("--fold takes another fifth of the groups and does not go with --split random")
    if "all" in (args.arch, args.fold) and args.name:
        parser.error("--name is for one run and does not go with --arch all or --fold all")
    if args.size < 32:
        parser.error("--size must be 32 or more")
    if args.with_random and args.split == "random":
        parser.error("--with-random adds a run to those on grouped splits and does not go with --split random")
    if args.with_random and args.name:
        parser.error("--name is for one run and does not go with --with-random")
    check_protocol_arguments(args, parser)
    if args.seed < 0:
        parser.error("--seed must not be negative")
    if args.limit is not None and args.limit < 2:
        parser.error("--limit must be 2 or more")
    if args.leak_check:
        check_leak_check_arguments(args, parser)


def check_protocol_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End the program for a protocol that other flags contradict, and for a time that is none."""
    if args.minutes is not None and not 0 < args.minutes < math.inf:
        parser.error("--minutes must be more than 0")
    if not args.protocol:
        return
    if args.recipe == "original":
        parser.error("--protocol: the recipe original is a protocol of its own; name one of the two")
    if args.name and args.protocol == "both":
        parser.error("--name is for one run and does not go with --protocol both")
    if args.epochs is not None and args.protocol != "finetune":
        parser.error("--epochs does not go with --protocol probe, which has none, nor with both; the recipe has epochs")
    if args.epochs == 0:
        parser.error("--epochs 0 does not go with --protocol finetune")


def check_leak_check_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End the program for what --leak-check would ignore."""
    heeded = {"data", "arch", "init", "no_pretrained", "device", "subset", "limit"}
    check_alone("leak_check", heeded, args, parser)
    if args.arch == "all":
        parser.error("--arch all does not go with --leak-check, which trains nothing but two probes")


def check_alone(name: str, heeded: set[str], args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End the program for an option that the work of --NAME would ignore. heeded: those that it does not."""
    for key, value in vars(args).items():
        if key not in heeded | {name} and value != parser.get_default(key):
            flag = key if key == "data" else f"--{key.replace('_', '-')}"
            parser.error(f"{flag} does not go with --{name.replace('_', '-')}")


def compare_again(out: Path) -> str:
    """Write the comparison of the runs in this folder; returns its table. Raises UserError where there are none."""
    if not write_comparison(out):
        raise UserError(f"--out {out}: holds no finished run; a run's folder has a test.json", 2)
    return (out / RESULTS_TABLE).read_text(encoding="utf-8")


def train_and_print(data: Path, recipe: dict, **options) -> dict[str, float]:
    """train_model, then print its figures on test and return them; processes other than the first return none."""
    run = train_model(data, recipe=recipe, **options)
    if not is_first_process():
        return {}
    report = json.loads((run / "test.json").read_text())
    figures = {key: value for key, value in report["test"].items() if value is not None}
    print("test " + "  ".join(f"{key} {value:.4f}" for key, value in figures.items()))
    print(f"next: python export.py {run}/best.pt --data {data}")
    return figures


def print_mean(arch: str, folds: list[dict[str, float]]) -> None:
    """The mean and the standard deviation over the folds of each figure."""
    texts = []
    for key in folds[0]:
        values = [figures[key] for figures in folds]
        texts.append(f"{key} {np.mean(values):.4f} +- {np.std(values):.4f}")
    print(f"{arch}, test over {len(folds)} folds, mean and standard deviation: {'  '.join(texts)}")


def plan_runs(args: argparse.Namespace) -> list[list[dict]]:
    """Options of each run, in a list a network and protocol: its folds, and its random split at the end."""
    archs = ARCHITECTURES if args.arch == "all" else [args.arch]
    protocols = list(PROTOCOLS) if args.protocol == "both" else [args.protocol]
    folds = range(5) if args.fold == "all" else [None if args.fold is None else int(args.fold)]
    splits = [{"split": args.split, "fold": fold} for fold in folds]
    if args.with_random:
        splits.append({"split": "random", "fold": None})
    plan = []
    for arch in archs:
        for protocol in protocols:
            if arch == CLIP and protocol == "probe" and args.no_pretrained and args.arch == "all":
                print(f"{arch}: left out of the probes; without weights its texts mean nothing")
                continue
            plan.append([{"arch": arch, "protocol": protocol} | split for split in splits])
    return plan


def run_plan(args: argparse.Namespace, recipe: dict, options: dict) -> int:
    """Train all runs of the plan, one after the other; returns an exit status.

    Of --minutes each network gets an even share; what a run leaves of it, as a probe does, goes to the later runs of
    its network. Of several networks, one that fails, as for want of its weights, is left out, and the status is 1.
    """
    plan = plan_runs(args)
    groups_left = Counter(group[0]["arch"] for group in plan)
    minutes_left = dict.fromkeys(groups_left, (args.minutes or math.inf) / len(groups_left))
    failed = set()
    for group in plan:
        arch = group[0]["arch"]
        if arch in failed:
            continue
        start = time.perf_counter()
        try:
            run_group(args, recipe, options, group, minutes_left[arch], groups_left[arch])
        except UserError as error:
            if len(groups_left) == 1 or error.code != 1:  # usage, and being stopped, end the program
                raise
            failed.add(arch)
            print(f"train.py: {arch} is left out: {error}", file=sys.stderr, flush=True)
        minutes_left[arch] -= (time.perf_counter() - start) / 60
        groups_left[arch] -= 1
    if len(failed) == len(groups_left):
        raise UserError("no network could be trained; the lines above say why")
    if len(plan) * len(plan[0]) > 1 and is_first_process():
        print(f"\n{(args.out / RESULTS_TABLE).read_text(encoding='utf-8')}")
    return 1 if failed else 0


def run_group(
    args: argparse.Namespace, recipe: dict, options: dict, group: list[dict], minutes: float, groups: int
) -> None:
    """Train a network in one protocol, on each of its splits.

    minutes: that its network has left, inf without a limit; groups: of the network that are to come, this one included.
    """
    folds = []
    for place, run in enumerate(group):
        start = time.perf_counter()
        share = max(MIN_MINUTES, minutes / (groups * len(group) - place))
        limit = share if args.minutes else None
        figures = train_and_print(args.data, recipe, **options | run | {"minutes": limit})
        minutes -= (time.perf_counter() - start) / 60
        if run["fold"] is not None:
            folds.append(figures)
    if len(folds) > 1 and is_first_process():
        print_mean(group[0]["arch"], folds)


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    recipe = chosen_values(args, parser)
    check_arguments(args, parser)
    subset = None if args.subset == "all" else int(args.subset)
    if args.compare:
        print(compare_again(args.out))
        return 0
    if args.leak_check:
        run_leak_check(args, subset)
        return 0
    options = {item.name: getattr(args, item.name) for item in fields(Options) if hasattr(args, item.name)}
    options |= {"recipe_name": args.recipe, "pretrained": not args.no_pretrained, "subset": subset}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, it loses at most the epoch that was begun
    with process_group():
        if args.minutes and world_size() > 1:
            raise UserError("--minutes: processes that train together can't each watch the clock; run one", 2)
        return run_plan(args, recipe, options)


if __name__ == "__main__":
    sys.exit(main())
