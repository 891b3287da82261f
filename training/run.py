"""run"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from answering.console import UserError
from models import Checkpoint
from training.dataset import ManifestRow
from training.probe import predict


@dataclass
class Options:
    """How to train, beside the recipe; the flags of the same names say more."""

    arch: str = "deit_base_patch16_224"
    recipe_name: str = "best"  # of RECIPES; of pretrained networks "best" has LINEAR_PROBE or VIT_FINE_TUNING in it
    out: Path = Path("runs")
    name: str | None = None
    init: str | None = None  # local weights
    pretrained: bool = True
    split: str = "group"
    fold: int | None = None
    subset: int | None = None
    limit: int | None = None
    seed: int = 13
    device: str | None = None
    precision: str = "auto"  # "bf16", "fp32", or bf16 where the hardware has it (fp32 for the recipe original)
    compiled: bool = False
    cache: Path | None = None  # folder for decoded frames
    wandb: str | None = None  # project
    resume: bool = False
    overwrite: bool = False

    def run_folder(self, data: Path) -> Path:
        """Where the run goes. Raises UserError where one is in the way."""
        parts = [self.arch, data.resolve().name, f"subset{self.subset}" if self.subset else ""]
        parts += ["" if self.recipe_name == "best" else self.recipe_name, f"limit{self.limit}" if self.limit else ""]
        parts += ["" if self.split == "group" else f"{self.split}split", f"fold{self.fold}" * (self.fold is not None)]
        folder = self.out / (self.name or "-".join(part for part in parts if part))
        if (folder / "last.pt").exists() and not (self.resume or self.overwrite):
            raise UserError(f"{folder}: holds a run; continue it with --resume, replace it with --overwrite", 2)
        return folder


@dataclass
class Run:
    """What stays as it is while a run trains."""

    folder: Path
    classes: list[str]
    chosen: dict[str, list[ManifestRow]]  # rows of the manifest by split
    labels: dict[str, np.ndarray]  # class index a frame, int [N], by split
    spec: dict  # preprocessing
    recipe: dict
    args: dict  # as args.json has them
    device: torch.device
    bf16: bool
    batch: int  # frames a step, of all processes together
    size: int  # pixels of training crops
    operations: int  # multiply-adds of one crop
    frames: dict[str, Subset] = field(default_factory=dict)  # as the model takes them; "crops": larger, to crop from
    features: tuple | None = None  # what the probe was fitted on, see probe.with_copies
    logger: object = None  # of Weights & Biases

    def predict(self, model: nn.Module, split: str) -> tuple[np.ndarray, np.ndarray]:
        """(logits [N, C], embedding [N, D]) of the frames of a split."""
        return predict(model, self.frames[split], self.spec, device=self.device, bf16=self.bf16)


@dataclass
class State:
    """What training changes, and last.pt keeps."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    ema: nn.Module | None = None  # timm's ModelEmaV3
    epoch: int = 0  # epochs done
    history: list[dict] = field(default_factory=list)  # a row an epoch, as in metrics.csv
    best: dict = field(default_factory=dict)  # the row behind best.pt
    probe_right: list[bool] | None = None  # which val frames the probe named right

    @property
    def answering(self) -> nn.Module:
        """The module that is validated and saved."""
        return self.ema.module if self.ema else self.model

    def pack(self) -> dict:
        tensors = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        return tensors | {key: getattr(self, key) for key in ("epoch", "history", "best", "probe_right")}

    def restore(self, run: Run) -> None:
        """Continue from last.pt. Raises UserError where it is of other films or options."""
        path, args = run.folder / "last.pt", run.args
        saved = Checkpoint.load(path)
        free = {"data", "init", "pretrained", "device", "precision", "commit"}
        changed = [key for key in args if key not in free and saved.args.get(key) != args[key]]
        changed += ["films"] if saved.classes != run.classes else []
        changed += ["device"] if saved.args["device"].split(":")[0] != args["device"].split(":")[0] else []
        if changed:
            raise UserError(f"{path}: made with another {', '.join(changed)}; use the same, --overwrite or --name", 2)
        self.answering.load_state_dict(saved.model)
        self.model.load_state_dict(saved.training["model"])
        self.optimiser.load_state_dict(saved.training["optimiser"])
        for key in ("epoch", "history", "best", "probe_right"):
            setattr(self, key, saved.training[key])
        print(f"resumed {path.parent} after epoch {self.epoch}")
