"""The six architectures, and any timm name, as one kind of torch module, and the checkpoint that keeps one.

python models.py                              # parameters and multiply-adds of the six
python models.py vit_small_patch14_dinov2     # of any timm model
"""

import argparse
import math
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from image import PREPROCESSING, UserError, atomic_write, one_line_errors

TORCHVISION = {
    "resnet50": ("resnet50", "fc"),
    "mobilenetv2": ("mobilenet_v2", "classifier"),
    "densenet121": ("densenet121", "classifier"),
}
CLIP = "clip_vit_base_patch32"
ARCHITECTURES = (*TORCHVISION, "vit_base_patch16_224", "deit_base_patch16_224", CLIP)
CLIP_NAME = "openai/clip-vit-base-patch32"
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PROMPTS = ("a frame from the movie {}", "a still of the film {}", "a scene of the movie {}", "{}")
OFFLINE = "give a local file with --init FILE, or start from random weights with --no-pretrained"
CHECKPOINT_FORMAT = "movie-by-frame checkpoint 2"


class Classifier(nn.Module):
    """A backbone and a linear head. forward: float32 [N, 3, S, S], normalised -> logits [N, C], embedding [N, D].

    dim: of the backbone's output. intermediate: names of blocks whose mean over the picture (and class token) join the
    embedding. Early blocks see palette, grain and line, by which a film is known as much as by what its frames show;
    style as the statistics of feature maps is Gatys 2016. Each part is brought to the same scale. Blocks that give more
    than one tensor, or that are called one by one from elsewhere, can't be read: then intermediate is empty. With 0
    classes it is an embedder, whose logits are None.
    """

    def __init__(self, backbone: nn.Module, dim: int, classes: int, intermediate: list[str] = ()):
        super().__init__()
        self.backbone, self.intermediate, self.seen = backbone, list(intermediate), []
        hooks = [backbone.get_submodule(name).register_forward_hook(self._see) for name in self.intermediate]
        dims = [dim]
        if self.intermediate:
            with torch.no_grad():
                backbone.eval()(torch.zeros(1, 3, PREPROCESSING["size"], PREPROCESSING["size"]))
            backbone.train()
            if len(self.seen) != len(self.intermediate):
                self.intermediate, self.seen = [], []
                for hook in hooks:
                    hook.remove()
        if self.intermediate:
            dims += [part.shape[1] for part in self.seen]
            self.seen = []
            self.norm = nn.BatchNorm1d(sum(dims), affine=False)
            self.register_buffer("scale", torch.cat([torch.full((d,), d**-0.5) for d in dims]), persistent=False)
        self.head = nn.Linear(sum(dims), classes) if classes else None
        if classes:
            nn.init.trunc_normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    def _see(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        """Keep what a block says of the picture: [N, C, H, W], [N, H, W, C] or tokens [N, L, C] -> [N, C or 2C]."""
        if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4):
            return
        if output.ndim == 4:
            self.seen.append(output.mean((1, 2) if getattr(self.backbone, "output_fmt", "") == "NHWC" else (2, 3)))
            return
        prefix = getattr(self.backbone, "num_prefix_tokens", 0)
        self.seen.append(torch.cat([output[:, : min(prefix, 1)].flatten(1), output[:, prefix:].mean(1)], 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        embedding = self.backbone(images)
        if self.intermediate:
            embedding = self.norm(torch.cat([embedding, *self.seen], 1).float()) * self.scale
            self.seen = []
        return self.head(embedding) if self.head else None, embedding

    @torch.no_grad()
    def set_norm(self, embedding: torch.Tensor) -> torch.Tensor:
        """Take the statistics of embeddings [N, D], made before the norm had any, as its own; returns them normed."""
        raw = (embedding.to(self.scale) / self.scale).float()
        self.norm.running_mean.copy_(raw.mean(0))
        self.norm.running_var.copy_(raw.var(0))
        return (self.norm.eval()(raw) * self.scale).cpu()


def find_intermediate(backbone: nn.Module) -> list[str]:
    """Names of the blocks at a sixth, a third and two thirds of the depth; empty where the model has no such list."""
    names = [name for name, _ in backbone.named_children()]
    blocks = [name for name in names if re.fullmatch(r"layer\d", name)]
    for container in ("blocks", "stages", "features", "layers"):
        if not blocks and container in names:
            blocks = [f"{container}.{name}" for name, _ in backbone.get_submodule(container).named_children()]
            blocks = [name for name in blocks if "denseblock" in name] or blocks
    return [blocks[math.ceil(share * len(blocks)) - 1] for share in (1 / 6, 1 / 3, 2 / 3)] if len(blocks) > 3 else []


class ClipClassifier(nn.Module):
    """CLIP's image tower against one text embedding a class (Radford 2021): the zero-shot head, which then learns.

    forward: float32 [N, 3, 224, 224] -> logits [N, C] (scaled cosines), embedding [N, 512] of length 1.
    """

    intermediate = ()

    def __init__(self, vision: nn.Module, head: torch.Tensor, scale: float):
        super().__init__()
        self.backbone = vision  # CLIPVisionModelWithProjection
        self.head = nn.Parameter(F.normalize(head.float(), dim=-1))
        # logarithmic, as in CLIP; a little under the clamp, where its gradient would be zero
        self.scale = nn.Parameter(torch.tensor(min(float(scale), math.log(100) - 0.01)))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = F.normalize(self.backbone(pixel_values=images).image_embeds, dim=-1)
        return self.scale.exp().clamp(max=100) * embedding @ F.normalize(self.head, dim=-1).T, embedding


def is_transformer(model: nn.Module) -> bool:
    """Whether it normalises layers as transformers do: then it is fine-tuned gently, and int8 takes another way."""
    return any(isinstance(module, nn.LayerNorm) for module in model.modules())


def preprocessing_for(arch: str) -> dict:
    """The preprocessing that this architecture's pretrained weights expect."""
    if arch == CLIP:
        return PREPROCESSING | {"mean": CLIP_MEAN, "std": CLIP_STD}
    config = None if arch in TORCHVISION else _timm().get_pretrained_cfg(arch)
    return PREPROCESSING | ({"mean": list(config.mean), "std": list(config.std)} if config else {})


def build_model(
    arch: str, classes: list[str], *, pretrained: bool = True, init: str | Path | None = None, intermediate=False
) -> nn.Module:
    """Module for one of ARCHITECTURES or a timm name, with a new head for these classes; an embedder without any.

    intermediate: let early blocks speak too (see Classifier); not for CLIP, whose head starts from texts. pretrained:
    weights from the official hub, unless init names a local file (torchvision, timm or our checkpoint; for CLIP a
    folder in the layout of save_pretrained). Raises UserError for an unknown name, weights that do not fit, or a hub
    that can't be reached.
    """
    if init is not None and not Path(init).exists():
        raise UserError(f"--init {init}: no such file or folder", 2)
    if arch == CLIP:
        return _build_clip(classes, pretrained=pretrained, init=init)
    hub = pretrained and init is None
    try:
        if arch in TORCHVISION:
            import torchvision

            name, head = TORCHVISION[arch]
            backbone = getattr(torchvision.models, name)(weights="DEFAULT" if hub else None)
            last = getattr(backbone, head)
            dim = (last[-1] if isinstance(last, nn.Sequential) else last).in_features
            setattr(backbone, head, nn.Dropout(0.2) if isinstance(last, nn.Sequential) else nn.Identity())
        else:
            backbone = _timm_backbone(arch, hub)
            dim = getattr(backbone, "head_hidden_size", backbone.num_features)
    except UserError:
        raise
    except Exception as error:
        if not hub:
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise UserError(f"the weights of {arch} can't be had ({reason}); {OFFLINE}") from None
    try:
        model = Classifier(backbone, dim, len(classes), find_intermediate(backbone) if intermediate else [])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(wrong_size(arch, error), 2) from None
    if init is not None:
        load_weights(model, init, classes)
    return model


def wrong_size(arch: str, error: Exception) -> str:
    """What to say of a timm model that takes no pictures of our size."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    return f"--arch {arch}: can't take pictures of {PREPROCESSING['size']} pixels ({reason})"


def _timm():
    try:
        import timm
    except ImportError:
        raise UserError("timm is needed for this architecture: pip install timm", 2) from None
    return timm.models


def _timm_backbone(arch: str, pretrained: bool) -> nn.Module:
    registry = _timm()
    if not registry.is_model(arch):
        near = registry.list_models(f"*{arch.split('_')[0]}*")[:3]
        hint = f"; timm has for example {', '.join(near)}" if near else ""
        raise UserError(f"--arch {arch}: neither one of {', '.join(ARCHITECTURES)} nor a timm name{hint}", 2)
    config = registry.get_pretrained_cfg(arch)
    options = {"pretrained": pretrained and bool(config and config.has_weights), "num_classes": 0}
    # models tied to one input size (most ViTs) are told ours; the others take any
    options |= {"img_size": PREPROCESSING["size"]} if config and config.fixed_input_size else {}
    try:  # transformers that can take smaller training crops too
        return registry.create_model(arch, **options, dynamic_img_size=True)
    except TypeError:
        return registry.create_model(arch, **options)


# ------------------------------------------------------------------------------------- weights and checkpoints


@dataclass
class Checkpoint:
    """What best.pt and last.pt hold: everything that export.py needs, in plain tensors and numbers."""

    arch: str
    classes: list[str]
    preprocessing: dict  # the keys of image.PREPROCESSING
    args: dict  # of train.py
    model: dict  # state dict of build_model(arch, classes, intermediate=args["intermediate"])
    figures: dict  # on val
    commit: str = "unknown"
    held_out: dict | None = None  # of a head that was fitted on val too, see train.refit_head
    training: dict | None = None  # last.pt alone: what train.py resumes from
    format: str = CHECKPOINT_FORMAT

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        with atomic_write(path) as file:
            torch.save({item.name: getattr(self, item.name) for item in fields(self)}, file)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read and check what train.py wrote. Raises UserError with the mend."""
        state = read_state(path)
        if state.get("format") != CHECKPOINT_FORMAT or not {item.name for item in fields(cls)} <= set(state):
            found = f"has the format {str(state.get('format'))[:40]!r}, not {CHECKPOINT_FORMAT!r}"
            mend = "train again: python train.py DATA; weights of the original project need --classes"
            raise UserError(f"{path}: {found}; {mend}", 2)
        return cls(**{item.name: state[item.name] for item in fields(cls)})

    def build(self) -> nn.Module:
        """The module with these weights, in eval mode. Raises UserError where they don't fit."""
        kwargs = {"pretrained": False, "intermediate": bool(self.args.get("intermediate"))}
        model = build_model(self.arch, self.classes, **kwargs)
        try:
            model.load_state_dict(self.model)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"the weights don't fit {self.arch} as it is built here ({reason}); train again") from None
        return model.eval()


def read_state(path: str | Path) -> dict:
    """Checkpoint as torch.save or safetensors wrote it; pickled code is refused (weights_only). Raises UserError."""
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"{path}: not a checkpoint of plain tensors, or damaged ({reason})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, not weights")
    return state


def plain_weights(checkpoint: dict) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint of ours, torchvision, timm or Lightning, without the wrappers' prefixes."""
    state = next((checkpoint[k] for k in ("model", "state_dict") if isinstance(checkpoint.get(k), dict)), checkpoint)
    state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    for prefix in ("module.", "model."):
        if state and all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def load_weights(model: nn.Module, path: str | Path, classes: list[str]) -> None:
    """Load a torchvision, timm, Lightning or own checkpoint into model, printing what matched.

    The head is taken over only from our own checkpoint with the same classes, if val was kept from it. Raises UserError
    when under half of the backbone matches.
    """
    checkpoint = read_state(path)
    state, target = plain_weights(checkpoint), model.state_dict()
    own = any(k.startswith("backbone.") for k in state)
    state = state if own else {f"backbone.{k}": v for k, v in state.items()}
    key = "backbone.pos_embed"
    if key in state and key in target and state[key].shape != target[key].shape:  # other input size
        from timm.layers import resample_abs_pos_embed

        side = int(target[key].shape[1] ** 0.5)
        state[key] = resample_abs_pos_embed(state[key], [side] * 2, num_prefix_tokens=target[key].shape[1] - side**2)
    # a head that has seen val must not be examined on it
    same_classes = own and checkpoint.get("classes") == classes and checkpoint.get("held_out") is None
    matched = {k: v for k, v in state.items() if k in target and target[k].shape == v.shape}
    matched = {k: v for k, v in matched.items() if same_classes or k.startswith("backbone.")}
    wanted = [k for k in target if k.startswith("backbone.")]
    missing = [k.removeprefix("backbone.") for k in wanted if k not in matched]
    got = len(wanted) - len(missing)
    if got < len(wanted) / 2:
        raise UserError(f"--init {path}: only {got} of {len(wanted)} tensors fit; name the --arch it was made for")
    model.load_state_dict(matched, strict=False)
    left = sorted(k.removeprefix("backbone.") for k in state if k not in matched)
    text = (
        f"init {path}: {got} of {len(wanted)} backbone tensors matched, head {'taken over' if same_classes else 'new'}"
    )
    text += f"; missing {', '.join(missing[:3])}" if missing else ""
    print(text + (f"; not used {', '.join(left[:3])}{' ...' if len(left) > 3 else ''}" if left else ""))


def convert_original(arch: str, path: str | Path, classes: list[str]) -> Checkpoint:
    """A checkpoint from the weights that the original project published: a state dict whose keys begin with "model.".

    Backbone and head must fit whole. Raises UserError for another architecture or another number of films.
    """
    if arch == CLIP:
        raise UserError(f"--arch {CLIP}: the original published no such weights", 2)
    if not Path(path).exists():
        raise UserError(f"{path}: no such file", 2)
    name = {"mobilenetv2": "classifier.1"} | {
        key: head for key, (_, head) in TORCHVISION.items() if key != "mobilenetv2"
    }
    head = name.get(arch) or _timm().get_pretrained_cfg(arch).classifier
    state = {}
    for key, value in plain_weights(read_state(path)).items():
        stem, _, last = key.rpartition(".")
        state[f"head.{last}" if stem == head else f"backbone.{key}"] = value
    if "head.weight" in state and len(state["head.weight"]) != len(classes):
        raise UserError(f"{path}: has {len(state['head.weight'])} outputs, but --classes names {len(classes)} films")
    target = build_model(arch, classes, pretrained=False).state_dict()
    missing = [k for k in target if k not in state or state[k].shape != target[k].shape]
    if missing:
        first = f"{len(missing)} of {len(target)} tensors don't fit {arch}, the first is {missing[0]}"
        raise UserError(f"{path}: {first.replace('backbone.', '')}; change --arch")
    spec = PREPROCESSING | {"crop_bars": False, "draft": False}  # as its bot prepared a picture
    return Checkpoint(arch, classes, spec, {"rule": "original"}, {k: state[k] for k in target}, {})


# -------------------------------------------------------------------------------------------------- CLIP


def _build_clip(classes: list[str], *, pretrained: bool, init: str | Path | None) -> ClipClassifier:
    try:
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection
    except ImportError:
        raise UserError("CLIP needs transformers: pip install transformers", 2) from None
    if init is not None and not Path(init).is_dir():  # our own checkpoint carries the learnt head itself
        vision = CLIPVisionModelWithProjection(CLIPConfig().vision_config)
        model = ClipClassifier(vision, torch.randn(len(classes), 512), 2.66)
        load_weights(model, init, classes)
        return model
    if pretrained or init is not None:
        source = str(init or CLIP_NAME)
        try:
            clip, tokenizer = CLIPModel.from_pretrained(source), CLIPTokenizer.from_pretrained(source)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            mend = OFFLINE.replace("FILE", "DIR")
            raise UserError(f"CLIP's weights can't be had from {source} ({reason}); {mend}") from None
        patch = clip.config.vision_config.patch_size
        if patch != 32:  # a checkpoint names only the architecture
            raise UserError(f"--init {source}: a CLIP with patches of {patch} pixels, and {CLIP_NAME} has 32", 2)
    else:
        clip, tokenizer = CLIPModel(CLIPConfig()), byte_tokenizer()
    vision = CLIPVisionModelWithProjection(clip.config.vision_config)
    vision.vision_model, vision.visual_projection = clip.vision_model, clip.visual_projection
    return ClipClassifier(vision, class_texts(clip, tokenizer, classes), clip.logit_scale.item())


def byte_tokenizer():
    """CLIP's byte-level tokenizer without merges: a token a byte, so that the whole path runs without a download."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [f"{letter}</w>" for letter in letters]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}, merges=[])


@torch.no_grad()
def class_texts(clip, tokenizer, classes: list[str]) -> torch.Tensor:
    """Mean text embedding over PROMPTS, float32 [C, 512] of length 1. Years are left out: CLIP saw few."""
    clip.eval()
    texts = []
    for title in classes:
        prompts = [prompt.format(title.rsplit(" (", 1)[0]) for prompt in PROMPTS]
        tokens = tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        encoded = clip.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        texts.append(F.normalize(F.normalize(clip.text_projection(encoded.pooler_output), dim=-1).mean(0), dim=0))
    return torch.stack(texts)


def multiply_adds(model: nn.Module, size: int) -> int:
    """Multiply-adds of one forward pass on one image (matrix products and convolutions, counted by torch)."""
    from torch.utils.flop_counter import FlopCounterMode

    weight, training = next(model.parameters()), model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:  # not under no_grad, which its hooks do not stand
        model(torch.zeros(1, 3, size, size, device=weight.device))
    model.train(training)
    return counter.get_total_flops() // 2


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Parameters and multiply-adds of the architectures.")
    parser.add_argument("arch", nargs="*", default=ARCHITECTURES, help="default: the six")
    for arch in parser.parse_args(argv).arch:
        model = build_model(arch, ["A (1999)", "B (2000)"], pretrained=False)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        print(f"{arch:28} {parameters:6.1f} M parameters  {multiply_adds(model, 224) / 1e9:6.2f} G multiply-adds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
