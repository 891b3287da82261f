"""A run of train.py: its options, what stays as it is while it trains, and what training changes."""

import math
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import Subset

from answering.console import UserError
from answering.pictures import PREPROCESSING
from models import Checkpoint
from training.frames import Split
from training.metrics import Figures
from training.predict import embed_split, logits_of, predict
from training.probe import Features


@dataclass
class Options:
    """How to train, beside the recipe; the flags of the same names say more."""

    arch: str = "deit_base_patch16_224"
    protocol: str | None = None  # of training.recipes.PROTOCOLS; None for what the recipe finds best
    recipe_name: str = "best"  # of RECIPES; of pretrained networks "best" has LINEAR_PROBE or VIT_FINE_TUNING in it
    out: Path = Path("runs")
    name: str | None = None
    init: str | None = None  # local weights
    pretrained: bool = True
    size: int = PREPROCESSING["size"]  # pixels of the square pictures that the model takes
    split: str = "group"
    fold: int | None = None
    subset: int | None = None
    limit: int | None = None
    seed: int = 13
    device: str | None = None
    precision: str = "auto"  # "bf16", "fp32", or bf16 where the hardware has it (fp32 for the recipe original)
    compiled: bool = False
    minutes: float | None = None  # to stop after; None for no limit
    cache: Path | None = None  # folder for decoded frames
    wandb: str | None = None  # project
    resume: bool = False
    overwrite: bool = False

    def run_folder(self, data: Path) -> Path:
        """Where the run goes. Raises UserError where one is in the way."""
        folder = self.out / (self.name or self._default_name(data))
        if (folder / "last.pt").exists() and not (self.resume or self.overwrite):
            raise UserError(f"{folder}: holds a run; continue it with --resume, replace it with --overwrite", 2)
        return folder

    def _default_name(self, data: Path) -> str:
        """The architecture, the dataset, and whatever is not the default."""
        parts = [self.arch, data.resolve().name]
        if self.subset:
            parts.append(f"subset{self.subset}")
        if self.recipe_name != "best":
            parts.append(self.recipe_name)
        if self.size != PREPROCESSING["size"]:
            parts.append(f"size{self.size}")
        if self.protocol:
            parts.append(self.protocol)
        if self.limit:
            parts.append(f"limit{self.limit}")
        if self.split != "group":
            parts.append(f"{self.split}split")
        if self.fold is not None:
            parts.append(f"fold{self.fold}")
        return "-".join(part for part in parts if part)


@dataclass
class Run:
    """What stays as it is while a run trains, but for what a frozen network saw."""

    folder: Path
    classes: list[str]
    splits: dict[str, Split]  # by the names of training.dataset.SPLITS
    crops: Subset | None  # the training frames, larger than the model takes them, to crop from; None without epochs
    spec: dict  # preprocessing, the keys of answering.pictures.PREPROCESSING
    recipe: dict  # the keys of training.recipes.RECIPE_HELP, and zero_shot
    args: dict  # as args.json has them
    device: torch.device
    bf16: bool
    batch: int  # frames a step, of all processes together
    crop_size: int  # pixels
    operations: int  # multiply-adds of one crop
    frozen: bool = False  # the network stays as it began, but for its linear head: what it sees is computed once
    seconds: float = math.inf  # after which training stops
    logger: object = None  # of Weights & Biases

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return len(self.splits["train"].rows) // self.batch

    def predict(self, model: nn.Module, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(logits [N, C], embedding [N, D]) of the frames of a split."""
        part = self.splits[split]
        if not self.frozen:
            return predict(model, part.frames, self.spec, device=self.device, bf16=self.bf16)
        embedding = embed_split(model, part, self.spec, bf16=self.bf16)
        return logits_of(model, embedding), embedding

    def thaw(self) -> None:
        """Forget what the network saw, for it is to be trained."""
        self.frozen = False
        for part in self.splits.values():
            part.embedding = None


@dataclass(frozen=True)
class TrainFigures:
    """How an epoch's training went; the defaults are of a model that has not trained yet."""

    lr: float = 0.0  # the highest learning rate of a layer, at the end of the epoch
    train_loss: float = math.nan  # mean over the steps
    images_per_s: float = 0.0
    mfu: float = 0.0  # model FLOPs utilisation: share of the rate of square matrix products


@dataclass(frozen=True)
class EpochRow:
    """An epoch, as a row of metrics.csv and in checkpoints."""

    epoch: int  # from 1; 0 is the head before training: a probe, or CLIP's texts
    train: TrainFigures
    val: Figures

    def to_dict(self) -> dict:
        """One level of plain numbers: the columns of metrics.csv, in their order."""
        return {"epoch": self.epoch} | asdict(self.train) | asdict(self.val)

    @classmethod
    def from_dict(cls, row: dict) -> "EpochRow":
        """The row that to_dict made."""
        train = TrainFigures(**{item.name: row[item.name] for item in fields(TrainFigures)})
        val = Figures(**{item.name: row[item.name] for item in fields(Figures)})
        return cls(row["epoch"], train, val)


@dataclass
class State:
    """What training changes; last.pt keeps it, but for the schedule and the features."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: Scheduler  # counts in steps; not saved, since the number of the step tells the rate
    ema: ModelEmaV3 | None = None  # averaged weights
    epoch: int = 0  # epochs done
    history: list[EpochRow] = field(default_factory=list)
    best: EpochRow | None = None  # the row behind best.pt
    probe_right: list[bool] | None = None  # which val frames the probe named right
    train_features: Features | None = None  # what the probe was fitted on, where it will be refit; not in last.pt
    seconds_before: float = 0.0  # of this run in earlier processes
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """How long the run has taken, from its model on; decoding, which runs share, is not counted."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def answering(self) -> nn.Module:
        """The module that is validated and saved."""
        return self.ema.module if self.ema else self.model

    def pack(self) -> dict:
        """Plain tensors, numbers, lists and dicts, for last.pt."""
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "epoch": self.epoch,
            "history": [row.to_dict() for row in self.history],
            "best": self.best.to_dict(),
            "probe_right": self.probe_right,
            "seconds": self.seconds,
        }

    def restore(self, run: Run) -> None:
        """Continue from last.pt. Raises UserError where it is of other films or options."""
        path = run.folder / "last.pt"
        saved = Checkpoint.load(path)
        changed = changed_options(saved, run)
        if changed:
            raise UserError(f"{path}: made with another {', '.join(changed)}; use the same, --overwrite or --name", 2)
        self.answering.load_state_dict(saved.model)
        self.model.load_state_dict(saved.training["model"])
        self.optimiser.load_state_dict(saved.training["optimiser"])
        self.epoch = saved.training["epoch"]
        self.history = [EpochRow.from_dict(row) for row in saved.training["history"]]
        self.best = EpochRow.from_dict(saved.training["best"])
        self.probe_right = saved.training["probe_right"]
        self.seconds_before = saved.training.get("seconds", 0.0)  # older files lack it
        print(f"resumed {path.parent} after epoch {self.epoch}")


def changed_options(saved: Checkpoint, run: Run) -> list[str]:
    """What makes the checkpoint one of another run."""
    may_change = {"data", "init", "pretrained", "weights", "device", "precision", "commit", "minutes"}
    changed = [key for key in run.args if key not in may_change and saved.args.get(key) != run.args[key]]
    if saved.preprocessing != run.spec and not changed:
        changed.append("size")
    if saved.classes != run.classes:
        changed.append("films")
    if saved.args["device"].split(":")[0] != run.args["device"].split(":")[0]:  # another GPU will do, a CPU will not
        changed.append("device")
    return changed
