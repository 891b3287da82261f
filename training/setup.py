"""What train.py does before the first step: choose frames, model and recipe, decode, fit the probe, resume."""

import json
import math
import time
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import Subset

from answering.console import UserError, atomic_write
from models import is_transformer, multiply_adds, preprocessing_for, read_state
from training.dataset import ManifestRow, choose_rows, label_rows, read_manifest, split_fingerprint
from training.device import choose_device, forget_peak_memory, has_bf16, is_first_process, world_size
from training.frames import FrameStore, Split, default_cache
from training.probe import start_probe
from training.recipes import choose_recipe, crop_size
from training.run import Options, Run, State
from training.tracking import git_commit, start_wandb

# width, height in pixels of the decoded training frames: larger than the crops, so that these stay sharp
CROP_SOURCE = (384, 256)
ORIGINAL_CROP_SOURCE = (600, 256)


def set_up(data: Path, overrides: dict, options: Options) -> tuple[Run, State]:
    """A run and its state before the first step. overrides: of the recipe's values. Raises UserError."""
    folder = options.run_folder(data)
    device = choose_device(options.device)
    forget_peak_memory(device)
    torch.manual_seed(options.seed)
    rows = read_manifest(data)
    chosen, classes = choose_frames(data, rows, options)
    check_init(options.init, classes, options.split, options.fold)
    model, recipe = choose_recipe(
        options.arch,
        classes,
        overrides,
        options.recipe_name,
        options.init,
        options.pretrained,
        options.protocol,
    )
    check_size(model, options)
    spec = preprocessing_for(options.arch) | {"size": options.size, "crop_bars": not recipe["keep_bars"]}
    size, operations = crop_size(model, recipe["train_size"], spec["size"])
    bf16 = use_bf16(options, device)
    args = saved_options(options, data, device, bf16, chosen) | recipe | {"train_size": size}
    batch = batch_size(recipe["batch_size"], len(chosen["train"]))
    splits, crops = open_frames(rows, chosen, classes, spec, recipe, options.cache or default_cache(data))
    run = Run(
        folder=folder,
        classes=classes,
        splits=splits,
        crops=crops,
        spec=spec,
        recipe=recipe,
        args=args,
        device=device,
        bf16=bf16,
        batch=batch,
        crop_size=size,
        operations=operations,
        frozen=bool(recipe["probe"]),
        seconds=math.inf if options.minutes is None else 60 * options.minutes,
    )
    resume = options.resume and (folder / "last.pt").exists()
    state = start_state(model, run, resume)
    if resume:
        state.restore(run)
        if state.epoch:  # it was trained before it was stopped
            run.thaw()
    if is_first_process():
        prepare_folder(run, resume)
        if options.wandb:
            run.logger = start_wandb(options.wandb, folder, run.args, resume)
    return run, state


# ------------------------------------------------------------------------------------------ what is chosen


def choose_frames(data: Path, rows: list[ManifestRow], options: Options) -> tuple[dict[str, list[ManifestRow]], list]:
    """({split: rows}, classes) with frames to validate and to test on. Raises UserError without."""
    chosen, classes = choose_rows(
        rows, split=options.split, fold=options.fold, subset=options.subset, limit=options.limit
    )
    for part in ("val", "test"):
        if not chosen[part]:
            raise UserError(f"{data}: no {part} frames; each film needs shots enough for three splits")
    return chosen, classes


def check_init(init: str | None, classes: list[str], split: str, fold: int | None) -> None:
    """Raise UserError where the weights init may have seen test frames of this split, as far as they tell."""
    if not init or not Path(init).is_file():
        return
    state = read_state(init)
    args = state.get("args")
    if not isinstance(args, dict) or not set(state.get("classes", [])) & set(classes):
        return
    if (args.get("split"), args.get("fold")) != (split, fold):
        raise UserError(f"--init {init}: was trained on another --split or --fold; it may have seen test frames", 2)


def check_size(model: nn.Module, options: Options) -> None:
    """Raise UserError where the model can't take pictures of the size that was asked for."""
    try:
        multiply_adds(model, options.size)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"--size {options.size}: {options.arch} can't take such pictures ({reason})", 2) from None


def weights_origin(arch: str, init: str | None, pretrained: bool) -> str:
    """ "pretrained" or "random": what a run starts from, as far as its files tell."""
    if init and Path(init).is_file():
        args = read_state(init).get("args")
        if isinstance(args, dict):  # a run of ours, which began somewhere itself
            began = "pretrained" if args.get("pretrained") or args.get("init") else "random"
            return args.get("weights", began)
    if init:
        return "pretrained"
    config = timm.get_pretrained_cfg(arch)
    nothing_published = timm.is_model(arch) and not (config and config.has_weights)
    return "pretrained" if pretrained and not nothing_published else "random"


def use_bf16(options: Options, device: torch.device) -> bool:
    """Whether the run computes in bfloat16: as it was told, else where the hardware does, but never as the original."""
    if options.precision == "auto":
        return options.recipe_name != "original" and has_bf16(device)
    return options.precision == "bf16"


def saved_options(
    options: Options, data: Path, device: torch.device, bf16: bool, chosen: dict[str, list[ManifestRow]]
) -> dict:
    """What args.json keeps beside the recipe's values."""
    return {
        "arch": options.arch,
        "init": options.init and str(options.init),
        "pretrained": options.pretrained,
        "weights": weights_origin(options.arch, options.init, options.pretrained),
        "protocol": options.protocol,
        "minutes": options.minutes,
        "split": options.split,
        "fold": options.fold,
        "subset": options.subset,
        "limit": options.limit,
        "seed": options.seed,
        "data": str(data),
        "recipe": options.recipe_name,
        "commit": git_commit(),
        "device": str(device),
        "precision": "bf16" if bf16 else "fp32",
        "frames": split_fingerprint(chosen),
    }


def batch_size(wanted: int, frames: int) -> int:
    """Frames a step, of all processes together: as wanted, but no more than there are, and as many for each process."""
    processes = world_size()
    batch = min(wanted, frames) // processes * processes
    if not batch:
        raise UserError(f"--batch-size {wanted}: must be {processes} or more, one a process", 2)
    return batch


# ------------------------------------------------------------------------------------------------- frames


def open_frames(
    rows: list[ManifestRow],
    chosen: dict[str, list[ManifestRow]],
    classes: list[str],
    spec: dict,
    recipe: dict,
    cache: Path,
) -> tuple[dict[str, Split], Subset | None]:
    """({split: its frames}, training frames to crop from): decoded what this run reads, and no more.

    The first process decodes while the others wait. Without epochs there is nothing to crop from: None. cache: folder.
    """
    store = FrameStore(rows, spec, cache)
    needs_embedding = recipe["probe"] or recipe["intermediate"]
    read = [split for split in chosen if split != "train" or needs_embedding]
    crop_store = None
    if recipe["epochs"]:
        crop_store = FrameStore(rows, spec, cache, ORIGINAL_CROP_SOURCE if recipe["aspect"] else CROP_SOURCE)
    if is_first_process():
        for split in read:
            store.decode(chosen[split])
        if crop_store:
            crop_store.decode(chosen["train"])
    if dist.is_initialized():
        dist.barrier()
    labels = label_rows(chosen, classes)
    splits = {}
    for name, part in chosen.items():
        splits[name] = Split(part, labels[name], store.take(part) if name in read else None)
    crops = crop_store.take(chosen["train"]) if crop_store else None
    return splits, crops


# ---------------------------------------------------------------------------------- model, optimiser, folder


def start_state(model: nn.Module, run: Run, resume: bool) -> State:
    """The model on its device, with its probe unless the run is resumed, its optimiser and its averaged weights."""
    started = time.perf_counter()
    # convolutions run faster with channels last
    layout = torch.preserve_format if is_transformer(model) else torch.channels_last
    model = model.to(run.device, memory_format=layout)
    recipe = run.recipe
    features = None
    if not resume and is_first_process() and (recipe["probe"] or recipe["intermediate"]):
        features = start_probe(
            model,
            run.splits["train"],
            run.splits["val"],
            run.spec,
            shrinkage=recipe["probe"],
            copy_weight=recipe["copies"],
            bf16=run.bf16,
        )
    optimiser, schedule = make_optimiser(model, recipe, run.steps)
    ema = ModelEmaV3(model, recipe["ema"], use_warmup=True) if recipe["ema"] else None
    refit_soon = recipe["refit"] and not recipe["epochs"]
    return State(model, optimiser, schedule, ema, train_features=features if refit_soon else None, started=started)


def make_optimiser(model: nn.Module, recipe: dict, steps_an_epoch: int) -> tuple[torch.optim.Optimizer, Scheduler]:
    """AdamW and timm's schedule counted in steps: rates fall from the head to the first layers, vectors don't decay."""
    model.pretrained_cfg = {"classifier": ("head", "scale")}  # by which timm tells the head from the layers
    groups = param_groups_layer_decay(
        model,
        weight_decay=recipe["weight_decay"],
        weight_decay_exclude_1d=not recipe["decay_all"],
        layer_decay=recipe["layer_decay"],
    )
    optimiser = torch.optim.AdamW(groups, lr=recipe["lr"], fused=next(model.parameters()).is_cuda)
    if recipe["schedule"] == "step":
        return optimiser, StepLRScheduler(optimiser, 5 * steps_an_epoch, decay_rate=0.5, t_in_epochs=False)
    steps = max(2, steps_an_epoch * recipe["epochs"])
    warmup_steps = max(1, int(recipe["warmup"] * steps))
    schedule = CosineLRScheduler(
        optimiser,
        max(1, steps - warmup_steps),
        t_in_epochs=False,
        warmup_t=warmup_steps,
        warmup_lr_init=recipe["lr"] / warmup_steps,
        warmup_prefix=True,
    )
    return optimiser, schedule


def prepare_folder(run: Run, resume: bool) -> None:
    """Write args.json, after deleting what another run has left, unless this one goes on with it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in ("best.pt", "last.pt", "test.json", "metrics.csv", "predictions.csv", "export.json"):
            (run.folder / name).unlink(missing_ok=True)
    with atomic_write(run.folder / "args.json", "w") as file:
        json.dump(run.args, file, indent=1)
