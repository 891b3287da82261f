"""The six architectures, and any timm name, as one kind of torch module: images -> (logits, embedding).

python models.py                              # parameters and multiply-adds of the six
python models.py vit_small_patch14_dinov2     # of any timm model
"""

import argparse
import math
import re
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from identify import PREPROCESSING, UserError, one_line_errors

ARCHITECTURES = (
    "resnet50",
    "mobilenetv2",
    "densenet121",
    "vit_base_patch16_224",
    "deit_base_patch16_224",
    "clip_vit_base_patch32",
)
TORCHVISION = {
    "resnet50": ("resnet50", "fc"),
    "mobilenetv2": ("mobilenet_v2", "classifier"),
    "densenet121": ("densenet121", "classifier"),
}
CLIP_NAME = "openai/clip-vit-base-patch32"
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PROMPTS = ("a frame from the movie {}", "a still of the film {}", "a scene of the movie {}", "{}")
OFFLINE = "give a local file with --init FILE, or start from random weights with --no-pretrained"


class Classifier(nn.Module):
    """A backbone and a linear head. forward: float32 [N, 3, S, S], normalised -> logits [N, C], embedding [N, D].

    dim: of the backbone's output. levels: names of blocks whose mean over the picture (and class token) join the
    embedding. Early blocks see palette, grain and line, by which a film is known as much as by what its frames show;
    style as the statistics of feature maps is Gatys 2016. Each level is brought to the same scale. Blocks that give
    more than one tensor, or that are called one by one from elsewhere, can't be read: then levels is empty.
    """

    def __init__(self, backbone: nn.Module, dim: int, classes: int, levels: list[str] = ()):
        super().__init__()
        self.backbone, self.levels, self.seen = backbone, list(levels), []
        self.padding = 0  # tokens at the end that are no part of the picture, see export.restructure
        hooks = [backbone.get_submodule(name).register_forward_hook(self._see) for name in self.levels]
        self.dims = [dim]
        if self.levels:
            with torch.no_grad():
                size = PREPROCESSING["size"]
                backbone.eval()(torch.zeros(1, 3, size, size))
            backbone.train()
            if len(self.seen) != len(self.levels):
                self.levels, self.seen = [], []
                for hook in hooks:
                    hook.remove()
        if self.levels:
            self.dims += [part.shape[1] for part in self.seen]
            self.seen = []
            self.norm = nn.BatchNorm1d(sum(self.dims), affine=False)
            scale = torch.cat([torch.full((d,), d**-0.5) for d in self.dims])
            self.register_buffer("scale", scale, persistent=False)
        self.head = nn.Linear(sum(self.dims), classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def _see(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        """Keep what a level says of the picture: [N, C, H, W], [N, H, W, C] or tokens [N, L, C] -> [N, C or 2C]."""
        if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4):
            return
        if output.ndim == 4:
            self.seen.append(output.mean((1, 2) if getattr(self.backbone, "output_fmt", "") == "NHWC" else (2, 3)))
            return
        prefix = getattr(self.backbone, "num_prefix_tokens", 0)
        picture = output[:, prefix : output.shape[1] - self.padding]
        self.seen.append(torch.cat([output[:, : min(prefix, 1)].flatten(1), picture.mean(1)], 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.backbone(images)
        if self.levels:
            embedding = self.norm(torch.cat([embedding, *self.seen], 1).float()) * self.scale
            self.seen = []
        return self.head(embedding), embedding

    @torch.no_grad()
    def set_norm(self, embedding: torch.Tensor) -> None:
        """Take the statistics of embeddings [N, D], made before the norm had any, as the norm's own."""
        raw = (embedding.to(self.scale) / self.scale).float()
        self.norm.running_mean.copy_(raw.mean(0))
        self.norm.running_var.copy_(raw.var(0))

    def level_logits(self, embedding: torch.Tensor) -> list[torch.Tensor]:
        """Logits [N, C] of each level by itself; their mean is what forward returns."""
        parts = zip(embedding.split(self.dims, 1), self.head.weight.split(self.dims, 1), strict=True)
        return [F.linear(part, weight * len(self.dims), self.head.bias) for part, weight in parts]


def find_levels(backbone: nn.Module) -> list[str]:
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

    def __init__(self, vision: nn.Module, head: torch.Tensor, scale: float):
        super().__init__()
        self.backbone = vision  # CLIPVisionModelWithProjection
        self.head = nn.Parameter(F.normalize(head.float(), dim=-1))
        # logarithmic, as in CLIP; a little under the clamp, where its gradient would be zero
        self.scale = nn.Parameter(torch.tensor(min(float(scale), math.log(100) - 0.01)))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = F.normalize(self.backbone(pixel_values=images).image_embeds, dim=-1)
        return self.scale.exp().clamp(max=100) * embedding @ F.normalize(self.head, dim=-1).T, embedding


def is_transformer(arch: str) -> bool:
    """Whether an architecture of build_model normalises layers as transformers do; builds it without memory."""
    if arch == "clip_vit_base_patch32":
        return True
    with torch.device("meta"):
        return any(isinstance(m, nn.LayerNorm) for m in build_model(arch, ["", ""], pretrained=False).modules())


def preprocessing_for(arch: str) -> dict:
    """The preprocessing that this architecture's pretrained weights expect."""
    if arch == "clip_vit_base_patch32":
        return PREPROCESSING | {"mean": CLIP_MEAN, "std": CLIP_STD}
    if arch in TORCHVISION:
        return dict(PREPROCESSING)
    config = _timm().get_pretrained_cfg(arch)
    return PREPROCESSING | ({"mean": list(config.mean), "std": list(config.std)} if config else {})


def build_model(
    arch: str,
    classes: list[str],
    *,
    pretrained: bool = True,
    init: str | Path | None = None,
    levels: bool = False,
) -> nn.Module:
    """Module for one of ARCHITECTURES or a timm name, with a new head for these classes.

    levels: let early blocks speak too (see Classifier); not for CLIP, whose head starts from texts. pretrained: weights
    from the official hub, unless init names a local file (torchvision, timm or our checkpoint; for CLIP a folder in the
    layout of save_pretrained). Raises UserError for an unknown name, weights that do not fit, or a hub that can't be
    reached.
    """
    if init is not None and not Path(init).exists():
        raise UserError(f"--init {init}: no such file or folder", 2)
    if arch == "clip_vit_base_patch32":
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
            dim = backbone.num_features if not hasattr(backbone, "head_hidden_size") else backbone.head_hidden_size
    except UserError:
        raise
    except Exception as error:
        if not hub:
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise UserError(f"the weights of {arch} can't be had ({reason}); {OFFLINE}") from None
    try:
        model = Classifier(backbone, dim, len(classes), find_levels(backbone) if levels else [])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(unfit(arch, error), 2) from None
    if init is not None:
        load_weights(model, init, classes)
    return model


def unfit(arch: str, error: Exception) -> str:
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
    pretrained = pretrained and bool(config and config.has_weights)
    # models tied to one input size (most ViTs) are told ours; the others take any
    fixed = {"img_size": PREPROCESSING["size"]} if config and config.fixed_input_size else {}
    try:  # transformers that can take smaller training crops too
        return registry.create_model(arch, pretrained=pretrained, num_classes=0, **fixed, dynamic_img_size=True)
    except TypeError:
        return registry.create_model(arch, pretrained=pretrained, num_classes=0, **fixed)


def read_state(path: str | Path) -> dict:
    """Checkpoint as torch.save or safetensors wrote it; pickled code is refused (weights_only). Raises UserError."""
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a checkpoint of plain tensors, or damaged ({reason})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, not weights")
    return state


def load_run(path: str | Path) -> tuple[nn.Module, dict]:
    """(model in eval mode, checkpoint) of a best.pt or last.pt that train.py wrote. Raises UserError."""
    state = read_state(path)
    if not {"model", "arch", "classes", "preprocessing", "args"} <= set(state):
        raise UserError(f"{path}: not written by train.py", 2)
    levels = bool(state["args"].get("levels"))
    model = build_model(state["arch"], state["classes"], pretrained=False, levels=levels)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: its weights don't fit {state['arch']} as it is built here ({reason})") from None
    return model.eval(), state


def load_weights(model: nn.Module, path: str | Path, classes: list[str]) -> None:
    """Load a torchvision, timm, Lightning or own checkpoint into model, printing what matched.

    The head is taken over only from our own checkpoint with the same classes, if val was kept from it. Raises UserError
    when under half of the backbone matches.
    """
    checkpoint = read_state(path)
    state = next((checkpoint[k] for k in ("model", "state_dict") if isinstance(checkpoint.get(k), dict)), checkpoint)
    state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    for prefix in ("module.", "model."):
        if state and all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    own = any(k.startswith("backbone.") for k in state)
    if not own:
        state = {f"backbone.{k}": v for k, v in state.items()}
    target = model.state_dict()
    key = "backbone.pos_embed"
    if key in state and key in target and state[key].shape != target[key].shape:  # other input size
        from timm.layers import resample_abs_pos_embed

        side = int(target[key].shape[1] ** 0.5)
        prefix = target[key].shape[1] - side**2
        state[key] = resample_abs_pos_embed(state[key], [side, side], num_prefix_tokens=prefix)
    # a head that has seen val must not be examined on it
    same_classes = own and checkpoint.get("classes") == classes and "held_out" not in checkpoint
    matched = {
        k: v
        for k, v in state.items()
        if k in target and target[k].shape == v.shape and (same_classes or k.startswith("backbone."))
    }
    wanted = [k for k in target if k.startswith("backbone.")]
    got = sum(k in matched for k in wanted)
    if got < len(wanted) / 2:
        raise UserError(
            f"--init {path}: only {got} of {len(wanted)} tensors fit this --arch; name the one it was made for"
        )
    model.load_state_dict(matched, strict=False)
    left = sorted(k.removeprefix("backbone.") for k in state if k not in matched)
    missing = [k.removeprefix("backbone.") for k in wanted if k not in matched]
    head = "head taken over" if same_classes else "new head"
    print(f"init {path}: {got} of {len(wanted)} backbone tensors matched, {head}", end="")
    print(f"; missing {', '.join(missing[:3])}" if missing else "", end="")
    print(f"; not used {', '.join(left[:3])}{' ...' if len(left) > 3 else ''}" if left else "")


def load_original(arch: str, path: str | Path, classes: list[str]) -> nn.Module:
    """A model with the weights that the original project published: a state dict whose keys begin with "model.".

    Backbone and head must fit whole. Raises UserError for another architecture or another number of films.
    """
    if arch == "clip_vit_base_patch32":
        raise UserError("--arch clip_vit_base_patch32: the original published no such weights", 2)
    if not Path(path).exists():
        raise UserError(f"{path}: no such file", 2)
    model = build_model(arch, classes, pretrained=False).eval()
    checkpoint = read_state(path)
    state = checkpoint["state_dict"] if isinstance(checkpoint.get("state_dict"), dict) else checkpoint
    state = {k.removeprefix("model."): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    heads = {"mobilenetv2": "classifier.1"}
    head = heads.get(arch) or (
        TORCHVISION[arch][1] if arch in TORCHVISION else _timm().get_pretrained_cfg(arch).classifier
    )
    renamed = {}
    for key, value in state.items():
        stem, _, last = key.rpartition(".")
        renamed[f"head.{last}" if stem == head else f"backbone.{key}"] = value
    target = model.state_dict()
    weight = renamed.get("head.weight")
    if weight is not None and len(weight) != len(classes):
        raise UserError(f"{path}: has {len(weight)} outputs, but --classes names {len(classes)} films")
    missing = [k for k in target if k not in renamed or renamed[k].shape != target[k].shape]
    if missing:
        name = missing[0].removeprefix("backbone.")
        raise UserError(
            f"{path}: {len(missing)} of {len(target)} tensors don't fit {arch}, the first is {name}; change --arch"
        )
    model.load_state_dict({k: renamed[k] for k in target})
    return model


def _build_clip(classes: list[str], *, pretrained: bool, init: str | Path | None) -> ClipClassifier:
    try:
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection
    except ImportError:
        raise UserError("CLIP needs transformers: pip install transformers", 2) from None
    if init is not None and not Path(init).is_dir():  # our own checkpoint carries the learnt head itself
        config = CLIPConfig()
        model = ClipClassifier(
            CLIPVisionModelWithProjection(config.vision_config), torch.randn(len(classes), 512), 2.66
        )
        load_weights(model, init, classes)
        return model
    if pretrained or init is not None:
        source = str(init or CLIP_NAME)
        try:
            clip = CLIPModel.from_pretrained(source)
            tokenizer = CLIPTokenizer.from_pretrained(source)
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
    vocab |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    return CLIPTokenizer(vocab=vocab, merges=[])


@torch.no_grad()
def class_texts(clip, tokenizer, classes: list[str]) -> torch.Tensor:
    """Mean text embedding over PROMPTS, float32 [C, 512] of length 1. Years are left out: CLIP saw few."""
    clip.eval()
    texts = []
    for title in classes:
        name = title.rsplit(" (", 1)[0]
        tokens = tokenizer(
            [p.format(name) for p in PROMPTS], padding=True, truncation=True, max_length=77, return_tensors="pt"
        )
        encoded = clip.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        texts.append(F.normalize(F.normalize(clip.text_projection(encoded.pooler_output), dim=-1).mean(0), dim=0))
    return torch.stack(texts)


def multiply_adds(model: nn.Module, size: int) -> int:
    """Multiply-adds of one forward pass on one image (matrix products and convolutions, counted by torch)."""
    from torch.utils.flop_counter import FlopCounterMode

    weight = next(model.parameters())
    training = model.training
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
