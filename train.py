"""Train a network to name the film of a frame, and measure it on shots it has never seen.

python train.py data/processed --arch deit_base_patch16_224         # the best of the original's six
python train.py data/processed --arch all                           # all six, compared in runs/results.md
python train.py data/processed --arch mobilenetv2 --limit 200 --epochs 2     # a quick look, on a laptop
torchrun --nproc-per-node 4 train.py data/processed                 # on four GPUs; --batch-size stays that of all
"""

import argparse
import json
import math
import signal
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from tqdm import tqdm

from answering.console import UserError, atomic_write, one_line_errors
from models import ARCHITECTURES, Checkpoint, build_model, is_transformer, preprocessing_for, read_state
from training.dataset import ManifestRow, choose_rows, label_rows, read_manifest, split_fingerprint, write_csv
from training.device import choose_device, has_bf16, peak_flops, process_group, process_rank, world_size
from training.frames import FrameStore, augment, take_batch, to_device
from training.metrics import measure, significantly_worse
from training.probe import leak_check, predict, refit_probe, start_probe
from training.recipes import add_recipe_arguments, choose_recipe, chosen_values, crop_size
from training.report import draw_confusion, draw_curves, draw_mistakes, write_results
from training.run import Options, Run, State
from training.tracking import git_commit, start_wandb

STORED, ORIGINAL_STORED = (384, 256), (600, 256)  # width, height in pixels of training frames, so that crops stay sharp


# ------------------------------------------------------------------------------------------------ set up


def check_init(init: str | None, classes: list[str], split: str, fold: int | None) -> None:
    """Raise UserError where the weights init may have seen test frames of this split, as far as they tell."""
    state = read_state(init) if init and Path(init).is_file() else {}
    args = state.get("args")
    same_films = isinstance(args, dict) and set(state.get("classes", [])) & set(classes)
    if same_films and (args.get("split"), args.get("fold")) != (split, fold):
        raise UserError(f"--init {init}: was trained on another --split or --fold; it may have seen test frames", 2)


def decode_frames(run: Run, data: Path, rows: list[ManifestRow], cache: Path | None) -> None:
    """Decode what this run reads, and no more; the first process does it while the others wait."""
    cache = cache or (data if data.is_dir() else data.parent) / ".frames"
    plain = FrameStore(rows, run.spec, cache)
    probed = run.recipe["probe"] or run.recipe["intermediate"]
    parts = [(plain, split, split) for split in run.chosen if split != "train" or probed]
    if run.recipe["epochs"]:
        size = ORIGINAL_STORED if run.recipe["aspect"] else STORED
        parts.append((FrameStore(rows, run.spec, cache, size), "train", "crops"))
    for store, split, _ in parts if process_rank() == 0 else ():
        store.decode(run.chosen[split])
    if dist.is_initialized():
        dist.barrier()
    run.frames = {key: store.take(run.chosen[split]) for store, split, key in parts}


def make_optimiser(model: nn.Module, recipe: dict, steps_an_epoch: int) -> tuple:
    """(AdamW, timm's schedule counted in steps): rates fall from the head to the first layers, vectors don't decay."""
    model.pretrained_cfg = {"classifier": ("head", "scale")}  # by which timm tells the head from the layers
    decay = {"weight_decay": recipe["weight_decay"], "weight_decay_exclude_1d": not recipe["decay_all"]}
    groups = param_groups_layer_decay(model, **decay, layer_decay=recipe["layer_decay"])
    optimiser = torch.optim.AdamW(groups, lr=recipe["lr"], fused=next(model.parameters()).is_cuda)
    if recipe["schedule"] == "step":
        return optimiser, StepLRScheduler(optimiser, 5 * steps_an_epoch, decay_rate=0.5, t_in_epochs=False)
    steps = max(2, steps_an_epoch * recipe["epochs"])
    warm = max(1, int(recipe["warmup"] * steps))
    warmup = {"warmup_t": warm, "warmup_lr_init": recipe["lr"] / warm, "warmup_prefix": True}
    return optimiser, CosineLRScheduler(optimiser, max(1, steps - warm), t_in_epochs=False, **warmup)


def set_up(data: Path, wanted: dict, opt: Options) -> tuple[Run, State, object]:
    """(run, state before the first step, schedule). wanted: overrides of the recipe. Raises UserError."""
    folder, device, world = opt.run_folder(data), choose_device(opt.device), world_size()
    bf16 = opt.precision == "bf16" or (opt.precision == "auto" and opt.recipe_name != "original" and has_bf16(device))
    torch.manual_seed(opt.seed)
    rows = read_manifest(data)
    chosen, classes = choose_rows(rows, split=opt.split, fold=opt.fold, subset=opt.subset, limit=opt.limit)
    for part in ("val", "test"):
        if not chosen[part]:
            raise UserError(f"{data}: no {part} frames; each film needs shots enough for three splits")
    check_init(opt.init, classes, opt.split, opt.fold)
    model, recipe = choose_recipe(opt.arch, classes, wanted, opt.recipe_name, opt.init, opt.pretrained)
    spec = preprocessing_for(opt.arch) | {"crop_bars": not recipe["keep_bars"]}
    size, operations = crop_size(model, recipe["train_size"], spec["size"])
    args = {k: getattr(opt, k) for k in ("arch", "init", "pretrained", "split", "fold", "subset", "limit", "seed")}
    args |= {"init": opt.init and str(opt.init), "data": str(data), "recipe": opt.recipe_name, "commit": git_commit()}
    args |= {"device": str(device), "precision": "bf16" if bf16 else "fp32", "frames": split_fingerprint(chosen)}
    args |= recipe | {"train_size": size}
    batch = min(recipe["batch_size"], len(chosen["train"])) // world * world
    if not batch:
        raise UserError(f"--batch-size {recipe['batch_size']}: must be {world} or more, one a process", 2)
    about = (folder, classes, chosen, label_rows(chosen, classes), spec, recipe, args)
    run = Run(*about, device, bf16, batch, size, operations)
    decode_frames(run, data, rows, opt.cache)
    layout = torch.preserve_format if is_transformer(model) else torch.channels_last  # convolutions run faster so
    model = model.to(device, memory_format=layout)
    if not (resume := opt.resume and (folder / "last.pt").exists()) and process_rank() == 0:
        start_probe(model, run)
    optimiser, schedule = make_optimiser(model, recipe, len(chosen["train"]) // batch)
    state = State(model, optimiser, ModelEmaV3(model, recipe["ema"], use_warmup=True) if recipe["ema"] else None)
    if process_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        for old in () if resume else ("best.pt", "last.pt", "test.json", "metrics.csv"):  # two runs must not mix
            (folder / old).unlink(missing_ok=True)
        with atomic_write(folder / "args.json", "w") as file:
            json.dump(args, file, indent=1)
        run.logger = start_wandb(opt.wandb, folder, args, resume) if opt.wandb else None
    if resume:
        state.restore(run)
    return run, state, schedule


# ------------------------------------------------------------------------------------------------ the loop


def train_epoch(run: Run, state: State, net: nn.Module, schedule, images) -> tuple[float, float]:
    """One pass over the training frames: (mean loss, images a second).

    images: uint8 [N, H, W, 3], larger than the crops. Raises UserError for a loss that is not finite.
    """
    device, batch, recipe, rank, world = run.device, run.batch, run.recipe, process_rank(), world_size()
    seed = run.args["seed"] + 1000 * state.epoch  # a resumed run draws what an unbroken one draws
    torch.manual_seed(seed)
    labels, steps = run.labels["train"], len(images) // batch
    weights = torch.from_numpy(np.bincount(labels).astype(float) ** -recipe["balance"])[labels]
    order = torch.multinomial(weights, len(labels), replacement=recipe["balance"] > 0)  # at 0 a permutation
    torch.manual_seed(seed + 1_000_000 * (rank + 1))  # augmentation and dropout
    targets = torch.from_numpy(labels)[order].to(device)  # all at once: a copy a step would wait for the GPU
    order = order.to(images.device) if isinstance(images, torch.Tensor) else order
    state.model.train()
    if recipe["intermediate"] and recipe["probe"]:  # the head was fitted to these statistics
        state.model.norm.eval()
    losses, start = [], time.perf_counter()
    bar = tqdm(range(steps), unit="step", desc=f"epoch {state.epoch + 1}", disable=True if rank else None, leave=False)
    for k in bar:
        if k == 1:  # the first step warms up
            losses[0].item()  # waits for the GPU
            start = time.perf_counter()
        schedule.step_update(state.epoch * steps + k)
        mine = slice(k * batch + rank, (k + 1) * batch, world)
        inputs = augment(take_batch(images, order[mine], device), run.spec, recipe, run.size)
        with torch.autocast(device.type, torch.bfloat16, enabled=run.bf16):
            logits, _ = net(inputs.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), targets[mine], label_smoothing=recipe["smoothing"])
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        state.optimiser.step()
        if state.ema:
            state.ema.update(state.model, step=state.epoch * steps + k + 2)
        losses.append(loss.detach())
    losses = torch.stack(losses)
    if dist.is_initialized():
        dist.all_reduce(losses)
    if not losses.isfinite().all():
        at = int((~losses.isfinite()).nonzero()[0]) + 1
        raise UserError(f"the loss is not finite from step {at} of {steps}; lower --lr or use --precision fp32")
    return float(losses.mean()) / world, max(1, steps - 1) * batch / (time.perf_counter() - start)


def keep_epoch(run: Run, state: State, row: dict) -> None:
    """Validate, adding the figures to row, and write best.pt if they are the best, metrics.csv and last.pt."""
    logits, _ = run.predict(state.answering, "val")
    right, best, key = logits.argmax(1) == run.labels["val"], state.best, run.recipe["select"]
    row |= asdict(measure(logits, run.labels["val"], run.predict(state.answering, "unknown_val")[0]))
    better = not best or (row[key], -row["loss"]) >= (best[key], -best["loss"])
    if state.probe_right and best["epoch"] == 0:
        # of many epochs on few val frames one looks better than the probe by chance, and on test it is not
        better &= significantly_worse(right, np.array(state.probe_right))
    if row["epoch"] == 0 and run.recipe["probe"]:
        state.probe_right = right.tolist()
    state.history.append(row)
    state.best = row if better else state.best
    about = (run.args["arch"], run.classes, run.spec, run.args, state.answering.state_dict(), state.best)
    if better:
        Checkpoint(*about, run.args["commit"]).save(run.folder / "best.pt")
    write_csv(run.folder / "metrics.csv", list(row), state.history)
    Checkpoint(*about, run.args["commit"], training=state.pack()).save(run.folder / "last.pt")  # last: it counts
    if run.logger:
        run.logger.log(row, step=row["epoch"])


def epochs_to_train(run: Run, state: State) -> int:
    """The recipe's, but none where the probe errs too seldom to be beaten beyond chance: the first process decides."""
    epochs, right = [run.recipe["epochs"]], np.array(state.probe_right or [])
    if len(right) and epochs[0] and not significantly_worse(np.ones(len(right), bool), right):
        epochs, wrong = [0], int((~right).sum())
        print(f"it is wrong on {wrong} val frames: training could not beat that beyond chance (--probe 0 trains)")
    if dist.is_initialized():
        dist.broadcast_object_list(epochs, 0)
    return epochs[0]


def train_model(data: Path, *, recipe: dict | None = None, **options) -> Path:
    """Train one architecture and leave a run folder; returns its path. The test split is looked at once, at the end.

    recipe: overrides of the recipe's values; options: fields of Options. Inside process_group() the processes share the
    training, and the first one measures and writes. Raises UserError.
    """
    opt = Options(**options)
    run, state, schedule = set_up(data, recipe or {}, opt)
    first, world = process_rank() == 0, world_size()
    counts = ", ".join(f"{part} {len(rows)}" for part, rows in run.chosen.items())
    print(f"{run.folder}: {len(run.classes)} films, {counts}; {run.args['precision']} on {world} x {run.device.type}")
    try:
        if first and not state.history and (run.recipe["probe"] or run.recipe["zero_shot"]):
            blank = {"epoch": 0, "lr": 0.0, "train_loss": math.nan, "images_per_s": 0.0, "mfu": 0.0}
            keep_epoch(run, state, blank)
            print("the probe alone: " if run.recipe["probe"] else "zero-shot: ", end="")
            print(f"val top-1 {blank['top1']:.4f}  balanced {blank['balanced']:.4f}", flush=True)
        epochs = epochs_to_train(run, state)
        net, images = state.model, to_device(run.frames["crops"], run.device) if state.epoch < epochs else None
        if dist.is_initialized():  # it gives all processes the first one's weights, too
            net = nn.parallel.DistributedDataParallel(net, [run.device.index] if run.device.type == "cuda" else None)
        net = torch.compile(net) if opt.compiled else net
        peak = 0.0  # operations a second; the best of all epochs, since something else may run beside
        while state.epoch < epochs:
            start = time.perf_counter()
            loss, speed = train_epoch(run, state, net, schedule, images)
            state.epoch += 1
            if not first:
                continue
            peak = max(peak, peak_flops(run.device, run.bf16) * world)
            row = {"epoch": state.epoch, "lr": max(group["lr"] for group in state.optimiser.param_groups)}
            row |= {"train_loss": loss, "images_per_s": speed, "mfu": speed * run.operations * 6 / peak}
            keep_epoch(run, state, row)
            left = (epochs - state.epoch) * (time.perf_counter() - start)
            print(
                f"epoch {state.epoch:3}/{epochs}  train loss {loss:7.4f}  val loss {row['loss']:7.4f}  "
                f"top-1 {row['top1']:.4f}  balanced {row['balanced']:.4f}  {speed:7.1f} images/s  "
                f"MFU {row['mfu']:4.0%}  ETA {left:5.0f} s",
                flush=True,
            )
        if first:
            finish(run, state)
    except KeyboardInterrupt:
        raise UserError(f"stopped; what is done is in {run.folder}, continue with --resume", 130) from None
    except RuntimeError as error:
        if not opt.compiled or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--compile: it can't be done here ({reason}); run without it") from None
    return run.folder


def finish(run: Run, state: State) -> None:
    """Refit a probe that stayed the best, look at test once, and write test.json, the pictures and the table."""
    saved, model, labels = Checkpoint.load(run.folder / "best.pt"), state.answering, run.labels
    model.load_state_dict(saved.model)
    refit = run.recipe["refit"] and run.recipe["probe"] and state.best["epoch"] == 0
    if refit and saved.held_out is None:
        saved.held_out, saved.model = refit_probe(model, run), model.state_dict()
        saved.save(run.folder / "best.pt")
    found = {split: run.predict(model, split)[0] for split in ("test", "unknown_test", "unknown_val")}
    test = {"test": asdict(measure(found["test"], labels["test"], found["unknown_test"]))}
    test["val"] = {key: state.best[key] for key in test["test"]}  # before the model saw val, should it have
    if refit and saved.held_out:
        folds, logits, truth = (saved.held_out[key].numpy() for key in ("folds", "logits", "labels"))
        out = measure(logits[folds >= 0], truth[folds >= 0], found["unknown_val"])
        test["held_out"] = asdict(out)
        figures = f"top1 {out.top1:.4f}  balanced {out.balanced:.4f}"
        print(f"the probe it is, refit on train and val. Folds of films that a probe had not seen: {figures}")
    test |= {"run": run.folder.name, "args": run.args, "classes": len(run.classes), "commit": saved.commit}
    test |= {"best_epoch": state.best["epoch"], "images_per_s": state.history[-1]["images_per_s"]}
    test["frames"] = {split: len(rows) for split, rows in run.chosen.items()}
    with atomic_write(run.folder / "test.json", "w") as file:
        json.dump(test, file, indent=1)
    draw_curves(state.history, run.folder / "curves.png")
    draw_confusion(found["test"], labels["test"], run.classes, run.folder / "confusion.png")
    draw_mistakes(found["test"], labels["test"], run.chosen["test"], run.classes, run.folder / "mistakes.png")
    write_results(run.folder.parent)
    if run.logger:
        run.logger.summary.update({f"test/{key}": value for key, value in test["test"].items()})
        run.logger.finish()


# ----------------------------------------------------------------------------------------------- the shell


def run_leak_check(args: argparse.Namespace, parser: argparse.ArgumentParser, subset: int | None) -> int:
    """Print what a random split flatters; nothing is trained but probes."""
    kept = {"data", "arch", "init", "no_pretrained", "device", "subset", "limit", "leak_check"}
    ignored = [key for key, value in vars(args).items() if key not in kept and value != parser.get_default(key)]
    if ignored or args.arch == "all":
        flag = f"--{ignored[0].replace('_', '-')}" if ignored else "--arch all"
        parser.error(f"{flag} does not go with --leak-check, which trains nothing but two probes")
    rows, device = read_manifest(args.data), choose_device(args.device)
    chosen, classes = choose_rows(rows, fold=0, subset=subset, limit=args.limit)
    model = build_model(args.arch, classes, pretrained=not args.no_pretrained, init=args.init).to(device)
    spec = preprocessing_for(args.arch)
    store = FrameStore(rows, spec, (args.data if args.data.is_dir() else args.data.parent) / ".frames")
    known = [row for name in ("train", "val", "test") for row in chosen[name]]
    store.decode(known)
    _, embedding = predict(model, store.take(known), spec, device=device, bf16=has_bf16(device))
    for name, row in leak_check(rows, known, classes, embedding).items():
        print(f"{name:8} split  top-1 {row['top1']:.4f}  balanced {row['balanced']:.4f} +- {row['spread']:.4f}")
    print("the difference is what neighbouring frames give away; train.py splits by groups unless told otherwise")
    return 0


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train and measure a film classifier.")
    group = parser.add_argument_group("data")
    group.add_argument("data", type=Path, help="folder that filter.py wrote")
    group.add_argument("--subset", default="all", help="films drawn with seed 13: 5, 50 ... (default: %(default)s)")
    group.add_argument("--split", choices=["group", "random"], default="group", help="default: %(default)s")
    text = "which fifth of the groups is test, all: five runs and their mean (default: the manifest's split)"
    group.add_argument("--fold", choices=[*"01234", "all"], help=text)
    group.add_argument("--leak-check", action="store_true", help="only show what a random split flatters, by a probe")
    group.add_argument("--limit", type=int, help="at most this many frames a split (default: all)")
    group = parser.add_argument_group("model")
    group.add_argument("--arch", default=Options.arch, help="one of six, all, or a timm name (default: %(default)s)")
    text = "local weights: torchvision, timm, our .pt, or a folder for CLIP (default: the hub)"
    group.add_argument("--init", help=text)
    group.add_argument("--no-pretrained", action="store_true", help="start from random weights")
    add_recipe_arguments(parser)
    group = parser.add_argument_group("machine")
    group.add_argument("--seed", type=int, default=13, help="default: %(default)s")
    group.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU where there is one)")
    text = "auto: bf16 where the hardware has it, fp32 for the recipe original (default: %(default)s)"
    group.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto", help=text)
    group.add_argument("--compile", dest="compiled", action="store_true", help="minutes first, then faster epochs")
    group.add_argument("--cache", type=Path, help="folder for decoded frames (default: .frames in the data)")
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, default=Options.out, help="default: %(default)s")
    group.add_argument("--name", help="name of the run folder (default: from arch, data and split)")
    either = group.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="continue the run from last.pt")
    either.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    group.add_argument("--wandb", nargs="?", const="movie-by-frame", metavar="PROJECT", help="log there (default: off)")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    recipe = chosen_values(args, parser)
    if args.subset != "all" and not (args.subset.isdecimal() and int(args.subset)):
        parser.error(f"--subset {args.subset}: expected a number or all")
    if args.fold is not None and args.split == "random":
        parser.error("--fold takes another fifth of the groups and does not go with --split random")
    if "all" in (args.arch, args.fold) and args.name:
        parser.error("--name is for one run and does not go with --arch all or --fold all")
    if args.seed < 0 or (args.limit is not None and args.limit < 2):
        parser.error("--seed must not be negative" if args.seed < 0 else "--limit must be 2 or more")
    subset = None if args.subset == "all" else int(args.subset)
    if args.leak_check:
        return run_leak_check(args, parser, subset)
    options = {item.name: getattr(args, item.name) for item in fields(Options) if hasattr(args, item.name)}
    options |= {"recipe_name": args.recipe, "pretrained": not args.no_pretrained, "subset": subset}
    folds = [None] if args.fold is None else range(5) if args.fold == "all" else [int(args.fold)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both lose at most the epoch in hand
    with process_group():
        for arch in ARCHITECTURES if args.arch == "all" else [args.arch]:
            rows = []
            for fold in folds:
                run = train_model(args.data, recipe=recipe, **options | {"arch": arch, "fold": fold})
                if process_rank() == 0:
                    figures = json.loads((run / "test.json").read_text())["test"]
                    rows.append({key: value for key, value in figures.items() if value is not None})
                    print("test " + "  ".join(f"{key} {value:.4f}" for key, value in rows[-1].items()))
                    print(f"next: python export.py {run}/best.pt --data {args.data}")
            if len(rows) > 1:
                columns = {key: [row[key] for row in rows] for key in rows[0]}
                text = "  ".join(f"{key} {np.mean(v):.4f} +- {np.std(v):.4f}" for key, v in columns.items())
                print(f"{arch}, test over {len(rows)} folds, mean and standard deviation: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
