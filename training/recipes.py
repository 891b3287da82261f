"""How to train: the original project's recipe, ours, and what suits pretrained weights; flags of train.py."""

import argparse
import contextlib
from pathlib import Path

from torch import nn

from answering.console import UserError
from models import ClipClassifier, build_model, is_transformer, multiply_adds

RECIPES = {
    "original": {
        "epochs": 10, "batch_size": 64, "lr": 1e-4, "weight_decay": 1e-4, "schedule": "step", "warmup": 0.0,
        "layer_decay": 1.0, "probe": 0.0, "ema": 0.0, "smoothing": 0.0, "balance": 0.0, "crop": 0.08,
        "train_size": 224, "flip": 0.0, "colour": 0.0, "corrupt": 0.0, "keep_bars": True, "select": "top1",
        "intermediate": False, "refit": False, "aspect": True, "decay_all": True, "copies": 0.0,
    },
    "best": {
        "epochs": 16, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.05, "schedule": "cosine", "warmup": 0.1,
        "layer_decay": 1.0, "probe": 0.0, "ema": 0.98, "smoothing": 0.1, "balance": 1.0, "crop": 0.2,
        "train_size": 192, "flip": 0.5, "colour": 0.1, "corrupt": 0.1, "keep_bars": False, "select": "balanced",
        "intermediate": False, "refit": False, "aspect": False, "decay_all": False, "copies": 0.0,
    },
}  # fmt: skip
# pretrained networks start from a linear probe, which is seldom beaten on a few hundred frames
LINEAR_PROBE = {"probe": 0.3, "copies": 0.03, "intermediate": True, "refit": True}
# pretrained transformers forget easily: they are fine-tuned with small steps, the smallest in the first layers
VIT_FINE_TUNING = LINEAR_PROBE | {"epochs": 6, "lr": 5e-5, "layer_decay": 0.84, "crop": 0.5, "smoothing": 0.05}
# how a network is tested, so that a comparison is of networks and not of recipes; the recipe original is a third
PROTOCOLS = {
    "probe": "the linear head alone, or CLIP's texts",
    "finetune": "all layers; the best epoch stands even if the head alone did better",
}
# values between 0 and 1
SHARES = (
    "warmup", "layer_decay", "ema", "smoothing", "balance", "crop", "flip", "colour", "corrupt", "probe", "copies",
)  # fmt: skip
CHOICES = {"schedule": ["cosine", "step"], "select": ["top1", "balanced"]}
# what the values mean; choose_recipe adds zero_shot: whether CLIP's texts are the head before training
RECIPE_HELP = {
    "epochs": "passes over the training frames; 0 for the probe alone",
    "batch_size": "frames per step",
    "lr": "peak learning rate of AdamW (of the head)",
    "weight_decay": "of AdamW, on matrices; 0 for none",
    "schedule": "cosine, or step (halved every 5 epochs)",
    "warmup": "share of all steps over which the rate rises; 0 for none",
    "layer_decay": "learning rate of a layer, as a share of the next layer's (timm's layer decay); 1 for none",
    "ema": "decay of the averaged weights at each step; 0 for none",
    "smoothing": "label smoothing; 0 for none",
    "balance": "0 draws frames evenly, 1 draws films evenly",
    "train_size": "pixels of training crops; a little under the model's, since crops enlarge (FixRes, Touvron 2019)",
    "crop": "smallest share of the picture that a random crop keeps; 1 for no crop",
    "flip": "chance of a mirror image",
    "colour": "strength of brightness, contrast and saturation changes; 0 for none",
    "corrupt": "chance of blur, noise or a subtitle bar; 0 for none",
    "probe": "shrinkage of the linear discriminant that the head starts from; 0 for none",
    "copies": "weight of a degraded copy of each frame when the probe is fitted; 0 for none",
    "intermediate": "read early blocks too, which see palette and grain; not for CLIP",
    "refit": "if no epoch beats the probe, fit it again on train and val frames together",
    "aspect": "crop with torchvision's aspect ratios, in pixels of the frame; otherwise with shares of each side",
    "decay_all": "weight decay on biases and norms too",
    "keep_bars": "do not cut off black bars",
    "select": "val figure that picks best.pt; a probe is replaced only by what beats it beyond chance",
}


def choose_recipe(
    arch: str,
    classes: list[str],
    overrides: dict,
    name: str,
    init: str | None,
    pretrained: bool,
    protocol: str | None = None,
) -> tuple[nn.Module, dict]:
    """(model, recipe): RECIPES[name], what suits pretrained weights, and the overrides. Raises UserError.

    name: of RECIPES. init, pretrained: where the weights come from, as build_model has them. protocol: of PROTOCOLS.
    """
    recipe = RECIPES[name]
    suits_pretrained = name == "best" and (pretrained or init)
    if suits_pretrained or protocol == "probe":
        recipe = recipe | LINEAR_PROBE
    intermediate = (recipe | overrides)["intermediate"]
    model = build_model(arch, classes, pretrained=pretrained, init=init, intermediate=intermediate)
    if suits_pretrained and is_transformer(model):
        recipe = recipe | VIT_FINE_TUNING
    if protocol == "probe":
        recipe = recipe | {"epochs": 0}
    recipe = recipe | overrides
    _check_overrides(arch, model, recipe, overrides)
    recipe["intermediate"] = bool(model.intermediate)
    is_clip = isinstance(model, ClipClassifier)
    if is_clip:
        recipe["probe"] = 0.0
    if not recipe["probe"]:
        recipe["copies"] = 0.0
        recipe["refit"] = False
    recipe["zero_shot"] = is_clip and (Path(init).is_dir() if init else pretrained)
    if not (recipe["epochs"] or recipe["probe"] or recipe["zero_shot"]):
        raise UserError("--epochs 0 leaves the head as it began; it needs --probe and a linear head", 2)
    return model, recipe


def _check_overrides(arch: str, model: nn.Module, recipe: dict, overrides: dict) -> None:
    """Raise UserError for a value that was asked for and that this model can't have."""
    is_clip = isinstance(model, ClipClassifier)
    if is_clip and overrides.get("probe"):
        raise UserError("--probe: CLIP's head starts from texts", 2)
    if overrides.get("intermediate") and not model.intermediate:
        raise UserError(f"--intermediate: {arch} has no early blocks that can be read", 2)
    has_probe = recipe["probe"] and not is_clip
    for flag in ("refit", "copies"):
        if overrides.get(flag) and not has_probe:
            raise UserError(f"--{flag} is of a probe; it needs --probe and a linear head", 2)


def crop_size(model: nn.Module, wanted: int, size: int) -> tuple[int, int]:
    """(pixels of training crops, multiply-adds of one): as wanted if the model can take such crops, else size.

    wanted is rounded up to whole patches of 14 pixels for a model that needs that.
    """
    for pixels in (wanted, -(-wanted // 14) * 14):
        with contextlib.suppress(RuntimeError, AssertionError, ValueError):
            return pixels, multiply_adds(model, pixels)
    return size, multiply_adds(model, size)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each value, with its help and every recipe's default."""
    group = parser.add_argument_group("optimisation (defaults: the recipe's)")
    group.add_argument("--recipe", choices=list(RECIPES), default="best", help="default: %(default)s")
    for key, text in RECIPE_HELP.items():
        flag = f"--{key.replace('_', '-')}"
        help_text = f"{text} ({_defaults_of(key)})"
        kind = type(RECIPES["best"][key])
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=help_text)
        else:
            group.add_argument(flag, type=kind, choices=CHOICES.get(key), metavar="X", help=help_text)


def _defaults_of(key: str) -> str:
    """The value in each recipe, for the help."""
    values = {"original": RECIPES["original"][key], "best": RECIPES["best"][key]}
    if key in LINEAR_PROBE:
        values["pretrained"] = LINEAR_PROBE[key]
    elif key in VIT_FINE_TUNING:
        values["pretrained transformers"] = VIT_FINE_TUNING[key]
    return ", ".join(f"{name} {value}" for name, value in values.items())


def chosen_values(args: argparse.Namespace, parser: argparse.ArgumentParser) -> dict:
    """The recipe's values that the command line overrides; a value out of range ends the program through parser."""
    values = {key: getattr(args, key) for key in RECIPE_HELP if getattr(args, key) is not None}
    for key, value in values.items():
        flag = f"--{key.replace('_', '-')}"
        if key in ("batch_size", "lr", "train_size", "crop") and value <= 0:
            parser.error(f"{flag} must be more than 0")
        if key in SHARES and not 0 <= value <= 1:
            parser.error(f"{flag} must be between 0 and 1")
        if not isinstance(value, str) and value < 0:
            parser.error(f"{flag} must not be negative")
    if "warmup" in values and values.get("schedule", RECIPES[args.recipe]["schedule"]) == "step":
        parser.error("--warmup goes with --schedule cosine")
    return values
