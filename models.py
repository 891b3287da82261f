"""The original's six architectures, and any timm name, as one kind of torch module; and checkpoints."""

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from answering.console import UserError, atomic_write, one_line
from answering.pictures import PREPROCESSING

# our name: torchvision's name of the model, and of its last layer
TORCHVISION = {
    "resnet50": ("resnet50", "fc"),
    "mobilenetv2": ("mobilenet_v2", "classifier.1"),
    "densenet121": ("densenet121", "classifier"),
}
CLIP = "clip_vit_base_patch32"
CLIP_NAME = "openai/clip-vit-base-patch32"  # on the Hugging Face Hub
CLIP_IN_TIMM = "vit_base_patch32_clip_224.openai"
ARCHITECTURES = (*TORCHVISION, "vit_base_patch16_224", "deit_base_patch16_224", CLIP)
PROMPTS = ("a frame from the movie {}", "a still of the film {}", "a scene of the movie {}", "{}")
CHECKPOINT_FORMAT = "movie-by-frame checkpoint 2"


class Classifier(nn.Module):
    """A backbone and a linear head. forward: float32 [N, 3, S, S], normalised -> logits [N, C], embedding [N, D].

    intermediate: names of blocks whose mean over the picture (and class token) join the embedding. Early blocks see
    palette, grain and line, by which a film is known as much as by what its frames show; style as the statistics of
    feature maps is Gatys 2016. Each part is brought to the same scale. Blocks that give more than one tensor, or that
    are called one by one from elsewhere, can't be read: then intermediate is empty. With 0 classes it is an embedder,
    whose logits are None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        intermediate: list[str] = (),
        size: int = PREPROCESSING["size"],
    ):
        super().__init__()
        self.backbone = backbone
        self.intermediate = list(intermediate)
        self.seen: list[torch.Tensor] = []  # what the blocks gave in the pass that runs, in their order
        dims = self._read_blocks(size)
        if self.intermediate:
            self.norm = nn.BatchNorm1d(sum(dims), affine=False)
            scale = torch.cat([torch.full((dim,), dim**-0.5) for dim in dims])
            self.register_buffer("scale", scale, persistent=False)
        self.head = nn.Linear(sum(dims), classes) if classes else None
        if classes:
            nn.init.trunc_normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    def _read_blocks(self, size: int) -> list[int]:
        """Hook the intermediate blocks, or none where one can't be read; returns the dimensions of each part.

        size: of the pictures, in pixels.
        """
        blocks = [self.backbone.get_submodule(name) for name in self.intermediate]
        hooks = [block.register_forward_hook(self._keep_mean) for block in blocks]
        with torch.no_grad():
            last = self.backbone.eval()(torch.zeros(1, 3, size, size))
        self.backbone.train()
        dims = [part.shape[1] for part in (last, *self.seen)]
        self.seen = []
        if len(dims) == 1 + len(hooks):
            return dims
        for hook in hooks:
            hook.remove()
        self.intermediate = []
        return dims[:1]

    def _keep_mean(self, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        """Keep a block's output, as its mean over the picture: [N, C].

        output: maps [N, C, H, W] or [N, H, W, C], or tokens [N, L, C]; a class token is put before their mean: [N, 2C].
        """
        if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4):
            return
        if output.ndim == 4:
            channels_last = getattr(self.backbone, "output_fmt", "") == "NHWC"
            self.seen.append(output.mean((1, 2) if channels_last else (2, 3)))
            return
        prefix = getattr(self.backbone, "num_prefix_tokens", 0)
        class_token = output[:, : min(prefix, 1)].flatten(1)
        self.seen.append(torch.cat([class_token, output[:, prefix:].mean(1)], 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        embedding = self.backbone(images)
        if self.intermediate:
            embedding = self.norm(torch.cat([embedding, *self.seen], 1).float()) * self.scale
            self.seen = []
        return self.head(embedding) if self.head else None, embedding

    @torch.no_grad()
    def set_norm(self, embedding: torch.Tensor) -> torch.Tensor:
        """Give the norm the statistics of embeddings [N, D], made before it had any; returns them normalised."""
        raw = (embedding.to(self.scale) / self.scale).float()
        self.norm.running_mean.copy_(raw.mean(0))
        self.norm.running_var.copy_(raw.var(0))
        return (self.norm.eval()(raw) * self.scale).cpu()


def find_intermediate(backbone: nn.Module) -> list[str]:
    """Names of the blocks at a sixth, a third and two thirds of the depth; empty where the model has no such list."""
    blocks = _list_blocks(backbone)
    if len(blocks) <= 3:
        return []
    return [blocks[math.ceil(share * len(blocks)) - 1] for share in (1 / 6, 1 / 3, 2 / 3)]


def _list_blocks(backbone: nn.Module) -> list[str]:
    """Names of the blocks that follow one another, as torchvision and timm name them."""
    names = [name for name, _ in backbone.named_children()]
    layers = [name for name in names if re.fullmatch(r"layer\d", name)]
    if layers:
        return layers
    for container in ("blocks", "stages", "features", "layers"):
        if container not in names:
            continue
        blocks = [f"{container}.{name}" for name, _ in backbone.get_submodule(container).named_children()]
        dense = [name for name in blocks if "denseblock" in name]  # of DenseNet, whose features hold other things too
        if blocks:
            return dense or blocks
    return []


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
    """Whether it has layer norms, as transformers do: then it is fine-tuned gently and quantised in another way."""
    return any(isinstance(module, nn.LayerNorm) for module in model.modules())


def preprocessing_for(arch: str) -> dict:
    """The preprocessing that this architecture's pretrained weights expect."""
    if arch in TORCHVISION:
        return dict(PREPROCESSING)
    config = timm.get_pretrained_cfg(CLIP_IN_TIMM if arch == CLIP else arch)
    if not config:
        return dict(PREPROCESSING)
    return PREPROCESSING | {"mean": list(config.mean), "std": list(config.std)}


def build_model(
    arch: str,
    classes: list[str],
    *,
    pretrained: bool = True,
    init: str | Path | None = None,
    intermediate: bool = False,
    size: int = PREPROCESSING["size"],
) -> nn.Module:
    """Module for one of ARCHITECTURES or a timm name, with a new head for these classes; an embedder without any.

    intermediate: read early blocks too (see Classifier); not for CLIP, whose head starts from texts. pretrained:
    weights from the official hub, unless init names a local file (torchvision, timm or our checkpoint; for CLIP a
    folder in the layout of save_pretrained). size: of the pictures in pixels; the position embeddings of weights that
    were learnt at another are resampled. Raises UserError for an unknown name, a size that it can't take, weights that
    do not fit, or a hub that can't be reached.
    """
    if init is not None and not Path(init).exists():
        raise UserError(f"--init {init}: no such file or folder", 2)
    _check_name(arch)
    if arch == CLIP and size != PREPROCESSING["size"]:
        raise UserError(f"--size {size}: {CLIP} takes pictures of {PREPROCESSING['size']} pixels alone", 2)
    hub = pretrained and init is None
    try:
        if arch == CLIP:
            return _build_clip(classes, hub, init)
        backbone = _build_backbone(arch, hub, size)
    except Exception as error:
        if isinstance(error, UserError) or not (hub or arch == CLIP):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        mend = "name a local file (CLIP: folder) with --init, or start from random weights with --no-pretrained"
        raise UserError(f"the weights of {arch} can't be had ({reason}); {mend}") from None
    try:
        model = Classifier(backbone, len(classes), find_intermediate(backbone) if intermediate else [], size)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"--arch {arch}: can't take pictures of {size} pixels ({reason})", 2) from None
    if init is not None:
        load_weights(model, init, classes)
    return model


def _check_name(arch: str) -> None:
    """Raise UserError for an architecture that nobody knows."""
    if arch in ARCHITECTURES or timm.is_model(arch):
        return
    near = timm.list_models(f"*{arch.split('_')[0]}*")[:3]
    hint = f"; timm has for example {', '.join(near)}" if near else ""
    raise UserError(f"--arch {arch}: neither one of {', '.join(ARCHITECTURES)} nor a timm name{hint}", 2)


def _build_backbone(arch: str, hub: bool, size: int) -> nn.Module:
    """The network without its last layer, with weights from the hub if it has any."""
    if arch in TORCHVISION:
        name, head = TORCHVISION[arch]
        backbone = torchvision.models.get_model(name, weights="DEFAULT" if hub else None)
        backbone.set_submodule(head, nn.Identity())
        return backbone
    config = timm.get_pretrained_cfg(arch)
    options = {"pretrained": hub and bool(config and config.has_weights), "num_classes": 0}
    if config and config.fixed_input_size:  # as most ViTs; the others take any size
        options["img_size"] = size
    try:  # transformers that can take smaller training crops too
        return timm.create_model(arch, **options, dynamic_img_size=True)
    except TypeError:
        return timm.create_model(arch, **options)


# ------------------------------------------------------------------------------------- weights and checkpoints


@dataclass
class Checkpoint:
    """What best.pt and last.pt hold: everything that export.py needs, in plain tensors and numbers."""

    arch: str
    classes: list[str]
    preprocessing: dict  # the keys of answering.pictures.PREPROCESSING
    args: dict  # of the run, as args.json has them
    model: dict  # state dict of build_model(arch, classes, intermediate=args["intermediate"])
    figures: dict  # of the best epoch, a row of metrics.csv
    commit: str = "unknown"
    held_out: dict | None = None  # of a head that was fitted on val too, see training.probe.refit_probe
    training: dict | None = None  # last.pt alone: what train.py resumes from
    format: str = CHECKPOINT_FORMAT

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        with atomic_write(path) as file:
            torch.save(vars(self), file)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read and check what train.py wrote. Raises UserError with the mend."""
        state = read_state(path)
        if state.get("format") != CHECKPOINT_FORMAT or set(state) != {item.name for item in fields(cls)}:
            found = f"has the format {str(state.get('format'))[:40]!r}, not {CHECKPOINT_FORMAT!r}"
            mend = "train again: python train.py DATA; weights of the original project need --classes"
            raise UserError(f"{path}: {found}; {mend}", 2)
        return cls(**state)

    def build(self) -> nn.Module:
        """The module with these weights, in eval mode. Raises UserError where they don't fit."""
        model = build_model(
            self.arch,
            self.classes,
            pretrained=False,
            intermediate=bool(self.args.get("intermediate")),
            size=self.preprocessing["size"],
        )
        weights = dict(self.model)
        _resample_positions(weights, model.state_dict())  # where they were learnt at another size
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            what = f"the weights don't fit {self.arch} as it is built here ({one_line(error)[:160]})"
            raise UserError(f"{what}; change --arch or train again") from None
        return model.eval()


def read_state(path: str | Path) -> dict:
    """Checkpoint as torch.save or safetensors wrote it; pickled code is refused (weights_only). Raises UserError."""
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"{path}: not a checkpoint of plain tensors, or damaged ({reason})") from None


def plain_weights(checkpoint: dict) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint of ours, torchvision, timm or Lightning, without the wrappers' prefixes."""
    state = checkpoint
    for key in ("model", "state_dict"):
        if isinstance(checkpoint.get(key), dict):
            state = checkpoint[key]
            break
    state = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    for prefix in ("module.", "model."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_weights(model: nn.Module, path: str | Path, classes: list[str]) -> None:
    """Load a torchvision, timm, Lightning or own checkpoint into model, printing what matched.

    The head is taken over only from our own checkpoint with the same classes, if val was kept from it. Raises UserError
    when under half of the backbone matches.
    """
    checkpoint = read_state(path)
    target = model.state_dict()
    state = plain_weights(checkpoint)
    is_ours = any(key.startswith("backbone.") for key in state)
    if not is_ours:
        state = {f"backbone.{key}": value for key, value in state.items()}
    _resample_positions(state, target)
    # a head that has seen val must not be measured on it
    take_head = is_ours and checkpoint.get("classes") == classes and checkpoint.get("held_out") is None
    matched = {}
    for key, value in state.items():
        fits = key in target and target[key].shape == value.shape
        if fits and (take_head or key.startswith("backbone.")):
            matched[key] = value
    wanted = [key for key in target if key.startswith("backbone.")]
    missing = [key.removeprefix("backbone.") for key in wanted if key not in matched]
    share = f"{len(wanted) - len(missing)} of {len(wanted)} backbone tensors"
    if len(missing) > len(wanted) / 2:
        raise UserError(f"--init {path}: only {share} fit; name the --arch it was made for")
    model.load_state_dict(matched, strict=False)
    text = f"init {path}: {share} matched, head {'taken over' if take_head else 'new'}"
    if missing:
        text += f"; missing {', '.join(missing[:3])}"
    print(text)


def _resample_positions(state: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
    """Fit the position embedding of state, in place, to target's, which may be of another input size."""
    key = "backbone.pos_embed"
    if key not in state or key not in target or state[key].shape == target[key].shape:
        return
    tokens = target[key].shape[1]
    side = int(tokens**0.5)
    state[key] = resample_abs_pos_embed(state[key], [side, side], num_prefix_tokens=tokens - side**2)


def convert_original(arch: str, path: str | Path, classes: list[str]) -> Checkpoint:
    """A checkpoint from the weights that the original project published: a state dict whose keys begin with "model.".

    Whether they fit this architecture is found out when it is built. Raises UserError for another number of films.
    """
    if arch in TORCHVISION:
        _, head = TORCHVISION[arch]
    else:
        head = getattr(timm.get_pretrained_cfg(arch), "classifier", None)
    state = {}
    for key, value in plain_weights(read_state(path)).items():
        stem, _, last = key.rpartition(".")
        state[f"head.{last}" if stem == head else f"backbone.{key}"] = value
    outputs = len(state.get("head.weight", classes))
    if outputs != len(classes):
        raise UserError(f"{path}: has {outputs} outputs, but --classes names {len(classes)} films")
    spec = PREPROCESSING | {"crop_bars": False, "draft": False}  # as its bot prepared a picture
    return Checkpoint(arch, classes, spec, args={"rule": "original"}, model=state, figures={})


# -------------------------------------------------------------------------------------------------- CLIP


def _build_clip(classes: list[str], hub: bool, init: str | Path | None) -> ClipClassifier:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

    if not hub and not (init and Path(init).is_dir()):  # our own checkpoint carries the learnt head itself
        vision = CLIPVisionModelWithProjection(CLIPConfig().vision_config)
        model = ClipClassifier(vision, torch.randn(len(classes), 512), CLIPConfig().logit_scale_init_value)
        if init:
            load_weights(model, init, classes)
        return model
    source = str(init or CLIP_NAME)
    clip = CLIPModel.from_pretrained(source)
    tokenizer = CLIPTokenizer.from_pretrained(source)
    patch = clip.config.vision_config.patch_size
    if patch != 32:  # a checkpoint names only the architecture
        raise UserError(f"--init {source}: a CLIP with patches of {patch} pixels, and {CLIP_NAME} has 32", 2)
    vision = CLIPVisionModelWithProjection.from_pretrained(source)
    return ClipClassifier(vision, class_texts(clip, tokenizer, classes), clip.logit_scale.item())


@torch.no_grad()
def class_texts(clip, tokenizer, classes: list[str]) -> torch.Tensor:
    """Mean text embedding over PROMPTS, float32 [C, 512] of length 1. Years are left out: CLIP saw few."""
    clip.eval()
    texts = []
    for title in classes:
        prompts = [prompt.format(title.rsplit(" (", 1)[0]) for prompt in PROMPTS]
        tokens = tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        embeddings = F.normalize(clip.get_text_features(**tokens).pooler_output, dim=-1)
        texts.append(F.normalize(embeddings.mean(0), dim=0))
    return torch.stack(texts)


def multiply_adds(model: nn.Module, size: int) -> int:
    """Multiply-adds of one forward pass on one image, as torch counts them; leaves the model in eval mode."""
    images = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter:  # with gradients: its hooks fail under no_grad
        model.eval()(images)
    return counter.get_total_flops() // 2
