"""Export a trained model to ONNX and OpenVINO, in float and int8, with classes, calibration and accuracy inside.

python export.py runs/deit_base_patch16_224-processed/best.pt --data data/processed
python identify.py frame.jpg --model export
python export.py model.pt --arch deit_base_patch16_224 --classes classes.txt     # the original project's own weights
"""

import argparse
import base64
import contextlib
import copy
import io
import json
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from identify import (
    ORIGINAL_RULE,
    PREPROCESSING,
    SCORES,
    UserError,
    atomic_write,
    confidences,
    decide,
    expand,
    known_score,
    l2_normalise,
    load_onnxruntime,
    load_openvino,
    one_line_errors,
    pack_rule,
    reference_frames,
    relative_error,
    softmax,
    unpack_rule,
)
from models import load_original, load_run
from train import choose_rows, frames_key, known_unknown, load_frames, measure, normalise, read_manifest, really_worse

STAGES = 7
FILES = {"model.onnx", "model.int8.onnx", "openvino", "model.json", "report.md", "calibration.png"}
LEFT_BY_HOSTS = {"host.json", ".cache"}  # identify.py keeps there what it measured and compiled
TARGETS = {"movie": 0.95, "shortlist": 0.95}  # named films right, shortlists that hold the film
ALPHAS = (-1, 0.15, 0.5, 0.95)  # SmoothQuant; -1 is off. The best one differs from model to model, so val chooses
CALIBRATION_FRAMES = 300
OPSET = 18
MAX_DROP = 0.5  # points of balanced accuracy
DATA, ORIGINAL_ARCH = Path("data/processed"), "deit_base_patch16_224"


class Exported(nn.Module):
    """The contract: image uint8 [N, S, S, 3] RGB -> logits float32 [N, C], embedding float32 [N, D]."""

    def __init__(self, model: nn.Module, spec: dict):
        super().__init__()
        self.model, self.spec = model, spec

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, embedding = self.model(normalise(image, self.spec))
        return logits.float(), embedding.float()


class SplitAttention(nn.Module):
    """timm's Attention with matrices of their own for queries, keys and values; the last `padding` tokens are no keys.

    OpenVINO then takes the transposes into its attention kernel. queries: how many tokens ask, from the first one on;
    None for all.
    """

    def __init__(self, attention: nn.Module, padding: int, queries: int | None = None):
        super().__init__()
        self.inner, self.padding, self.queries = attention, padding, queries
        self.split = nn.ModuleList()
        qkv = attention.qkv
        for i, weight in enumerate(qkv.weight.chunk(3)):
            part = nn.Linear(weight.shape[1], weight.shape[0], bias=qkv.bias is not None)
            part.weight.copy_(weight)
            if qkv.bias is not None:
                part.bias.copy_(qkv.bias.chunk(3)[i])
            self.split.append(part)

    def forward(self, x: torch.Tensor, attn_mask: None = None, is_causal: bool = False) -> torch.Tensor:
        inner = self.inner
        sources = x[:, : self.queries], x, x
        q, k, v = (
            part(source).unflatten(2, (inner.num_heads, -1)).transpose(1, 2)
            for part, source in zip(self.split, sources, strict=True)
        )
        q, k = inner.q_norm(q), inner.k_norm(k)
        if self.padding:
            k, v = k[:, :, : -self.padding], v[:, :, : -self.padding]
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return inner.proj(inner.norm(x))


class LastBlock(nn.Module):
    """timm's Block where nobody asks for more than the first token, the class token: [N, L, D] -> [N, 1, D]."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.inner = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        block = self.inner
        x = x[:, :1] + block.ls1(block.attn(block.norm1(x)))
        return x + block.ls2(block.mlp(block.norm2(x)))


class PadToken(nn.Module):
    """Tokens [N, L, D] -> [N, L + 1, D]: the last one twice, so that int8 meets no new values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x[:, -1:]], 1)


class CutToken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :-1]


@torch.no_grad()
def restructure(model: nn.Module, size: int) -> nn.Module:
    """A copy of model that computes the same, but faster, as a graph; any model but timm's plain ViTs as it is.

    An odd number of tokens, the 197 of DeiT say, gets one more: matrix products over a prime number of rows take 8%
    longer in oneDNN. Where the class token alone is read, the last block computes no other. size: of the input, pixels.
    """
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block, VisionTransformer

    backbone = getattr(model, "backbone", None)
    if type(backbone) is not VisionTransformer:
        return model
    blocks = ((type(block), type(block.attn), getattr(block.attn, "gate", None)) for block in backbone.blocks)
    if any(kind != (Block, Attention, None) for kind in blocks):
        return model
    model = copy.deepcopy(model)
    backbone, last = model.backbone, len(model.backbone.blocks) - 1
    tokens = backbone._pos_embed(backbone.patch_embed(torch.zeros(1, 3, size, size))).shape[1]
    model.padding = padding = tokens % 2
    one = backbone.global_pool == "token" and backbone.attn_pool is None and f"blocks.{last}" not in model.levels
    for i, block in enumerate(backbone.blocks):
        block.attn = SplitAttention(block.attn, padding, 1 if one and i == last else None)
    if one:
        backbone.blocks[last] = LastBlock(backbone.blocks[last])
    if padding:
        backbone.norm_pre = nn.Sequential(backbone.norm_pre, PadToken())
        backbone.norm = backbone.norm if one else nn.Sequential(backbone.norm, CutToken())
    return model


class Stage:
    """Prints [k/n] what was done, its time and the size of what it left."""

    def __init__(self, stages: int):
        self.k, self.stages, self.clock = 0, stages, time.perf_counter()

    def done(self, text: str, path: Path | None = None) -> None:
        self.k += 1
        files = [path, path.with_suffix(".bin")] if path else []
        size = sum(f.stat().st_size for f in files if f.exists()) / 1e6
        now = time.perf_counter()
        print(
            f"[{self.k}/{self.stages}] {text}  {now - self.clock:.1f} s" + (f", {size:.1f} MB" if path else ""),
            flush=True,
        )
        self.clock = now


# ------------------------------------------------------------------------------------------- calibration


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Temperature that minimises the negative log-likelihood (Guo 2017), in 0.05..20."""
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        chosen = softmax(logits / np.exp(log_t))[np.arange(len(labels)), labels]
        return float(-np.log(chosen.clip(1e-12)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def whitening(features: np.ndarray, shrink: float = 0.1) -> np.ndarray:
    """[k, k] matrix W with W W' = inverse covariance of centred features [N, k], shrunk towards its mean variance."""
    covariance = features.T @ features / max(1, len(features))
    scale = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    values, vectors = np.linalg.eigh((1 - shrink) * covariance + shrink * scale * np.eye(len(covariance)))
    return vectors / np.sqrt(values.clip(1e-12))


def embedding_statistics(embedding: np.ndarray, labels: np.ndarray, classes: int) -> dict:
    """What the rmd and knn scores need, from training frames: embedding [N, D], labels [N]."""
    from sklearn.decomposition import PCA

    x = l2_normalise(embedding).astype(np.float32)
    axes = PCA(int(min(128, x.shape[1], max(2, len(x) // 4))), random_state=13).fit(x)
    reduced, project = axes.transform(x), axes.components_.T
    means = np.stack([reduced[labels == c].mean(axis=0) for c in range(classes)])
    statistics = {"project": project, "offset": axes.mean_ @ project, "means": means}
    statistics |= {"within": whitening(reduced - means[labels]), "total": whitening(reduced)}
    # a bank of at most 4,000 frames, the same number of each film, keeps the file small
    rng, most = np.random.default_rng(13), max(1, 4000 // classes)
    bank = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:most] for c in range(classes)])
    return statistics | {"bank": x[np.sort(bank)].astype(np.float16), "k": 5}  # as it ships


def area_under_risk_coverage(score: np.ndarray, right: np.ndarray) -> float:
    """AURC: mean error of the frames answered, over all coverages, most certain first (Geifman 2017)."""
    ordered = ~right[np.argsort(-score, kind="stable")]
    return float((np.cumsum(ordered) / np.arange(1, len(ordered) + 1)).mean()) if len(ordered) else 0.0


def lowest_threshold(score: np.ndarray, right: np.ndarray, target: float) -> float:
    """Least threshold at which a share `target` of the frames at or above it is right; infinity where there is none."""
    order = np.argsort(-score, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last = np.r_[score[order][1:] < score[order][:-1], True]  # equal scores stand or fall together
    good = np.flatnonzero((share >= target) & last)
    return float(score[order][good[-1]]) if len(good) else float("inf")


def right_and_listed(logits: np.ndarray, labels: np.ndarray, unknown: int) -> tuple[np.ndarray, np.ndarray]:
    """(best guess is right, the film is among the best three), bool [N + unknown]; unknown films are always wrong."""
    hits = np.argsort(-logits, axis=1)[:, :3] == labels[:, None]
    return tuple(np.r_[hit, np.zeros(unknown, bool)] for hit in (hits[:, 0], hits.any(1)))


def fit_rule(parts: list[tuple], unknown: tuple, statistics: dict) -> tuple[dict, list[dict]]:
    """The calibrated rule and the comparison of scores it was chosen from.

    parts: (logits [N, C], embedding [N, D], labels [N], statistics), frames that neither the logits' head nor those
    statistics had seen. unknown: (logits, embedding) of other films; statistics: those that ship. The score with the
    best AUROC of known against unknown films wins, AURC (unknown films count as wrong) breaks ties and decides where
    there are no unknown films.
    """
    logits, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 2))
    temperature = fit_temperature(logits, labels)
    right, listed = right_and_listed(logits, labels, len(unknown[0]))
    table, rules = [], {}
    for name in SCORES:
        base = {"rule": "calibrated", "score": name, "temperature": temperature}
        keys = {"rmd": ("project", "offset", "means", "within", "total"), "knn": ("bank", "k")}.get(name, ())
        # as they will be read back, so that the thresholds belong to what ships
        every = (statistics, *(part[3] for part in parts))
        rule, *held = (unpack_rule(pack_rule(base | {key: s[key] for key in keys})) for s in every)
        known = np.concatenate([known_score(z, e, r) for (z, e, *_), r in zip(parts, held, strict=True)])
        rest = known_score(*unknown, rule)
        score = np.r_[known, rest]
        rule["movie"] = lowest_threshold(score, right, TARGETS["movie"])
        below = score < rule["movie"]  # a shortlist is given only where no film is named
        rule["shortlist"] = min(rule["movie"], lowest_threshold(score[below], listed[below], TARGETS["shortlist"]))
        rule["movie"], rule["shortlist"] = (min(float(rule[k]), 1e30) for k in ("movie", "shortlist"))  # JSON: no inf
        rules[name] = rule | {"targets": TARGETS}
        table.append({"score": name, **known_unknown(known, rest), "aurc": area_under_risk_coverage(score, right)})
    best = max(table, key=lambda row: (round(row["auroc"] or 0, 3), -row["aurc"]))
    return rules[best["score"]], table


def calibration_parts(held_out: dict | None, outputs: dict, labels: dict, classes: int) -> tuple[list, tuple, dict]:
    """(parts, unknown, statistics) for fit_rule, from (logits, embedding) and labels a split.

    held_out: of a model that was fitted on val too, what train.refit_head left. The parts are its stretches then, and
    else val alone. How many of the named films are right depends on how often unknown ones come: beside more known
    frames the unknown ones count as often as they did beside val.
    """
    if not held_out:
        statistics = embedding_statistics(outputs["train"][1], labels["train"], classes)
        return [(*outputs["val"], labels["val"], statistics)], outputs["unknown_val"], statistics
    embedding = np.concatenate([outputs[split][1] for split in ("train", "val")])
    truth = np.concatenate([labels[split] for split in ("train", "val")])
    stretch, logits = held_out["stretch"].numpy(), held_out["logits"].numpy()
    parts = []
    for k in np.unique(stretch[stretch >= 0]):
        out = stretch == k
        others = embedding_statistics(embedding[~out], truth[~out], classes)
        parts.append((logits[out], embedding[out], truth[out], others))
    times = max(1, round((stretch >= 0).sum() / len(labels["val"])))
    unknown = tuple(np.repeat(column, times, axis=0) for column in outputs["unknown_val"])
    return parts, unknown, embedding_statistics(embedding, truth, classes)


def verify_rule(rule: dict, logits, embedding, labels, unknown_logits, unknown_embedding) -> dict:
    """How the rule answers frames it was not fitted on: shares of answers, and of them how many are right."""
    kinds = np.array(decide(np.concatenate([logits, unknown_logits]), np.r_[embedding, unknown_embedding], rule))
    known = np.r_[np.ones(len(logits), bool), np.zeros(len(unknown_logits), bool)]
    right, listed = right_and_listed(logits, labels, len(unknown_logits))
    score = [known_score(*pair, rule) for pair in ((logits, embedding), (unknown_logits, unknown_embedding))]

    def share(of, where):
        return float(of[where].mean()) if where.any() else None

    return {
        "named_right": share(right, kinds == "movie"),
        "shortlist_right": share(listed, kinds == "shortlist"),
        "known_named": share(kinds == "movie", known),
        "known_shortlist": share(kinds == "shortlist", known),
        "known_refused": share(kinds == "unknown", known),
        "unknown_refused": share(kinds == "unknown", ~known),
        **known_unknown(*score),
        "aurc": area_under_risk_coverage(np.concatenate(score), right),
    }


# ----------------------------------------------------------------------------------------------- formats


def export_onnx(model: nn.Module, spec: dict, path: Path) -> None:
    """Write ONNX fp32 with a dynamic batch."""
    import logging

    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    example = torch.zeros(2, spec["size"], spec["size"], 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Exported(restructure(model, spec["size"]), spec).eval(),
            (example,),
            None,
            input_names=["image"],
            output_names=["logits", "embedding"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=4096)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    graph = program.model.graph  # an nn.Embedding (CLIP has one) names its own value or constant "embedding" too
    for value in [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]:
        if value.name in ("logits", "embedding") and not value.is_graph_output():
            value.name += "_inner"
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path))


def quantise_onnx(
    source: Path, target: Path, frames: np.ndarray, *, transformer: bool, overflow_fix: bool = False
) -> str:
    """int8 for ONNX Runtime: dynamic for transformers (matrix products), QDQ with calibration frames for CNNs.

    Relu and Clip join the product before them, whose range is theirs then. overflow_fix: 7-bit weights, see
    quantise_openvino.
    """
    import logging

    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)  # it logs through the root logger

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rows = iter(frames)

        def get_next(self):
            row = next(self.rows, None)
            return None if row is None else {"image": row[None]}

    prepared = source.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    # convolutions beside LayerNorm stay fp32; and NNCF's 7-bit weights are others than ONNX Runtime's
    if not transformer and not overflow_fix and is_depthwise(source):
        correct_biases(prepared, frames)
    if transformer:
        quantize_dynamic(
            str(prepared), str(target), weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True, reduce_range=overflow_fix,
        )  # fmt: skip
    else:
        quantize_static(
            str(prepared), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=overflow_fix,
            op_types_to_quantize=["Conv", "Gemm", "Add", "Clip", "Relu"],
        )  # fmt: skip
    prepared.unlink()
    return "dynamic" if transformer else "QDQ"


def wake_nncf(frames: np.ndarray, overflow_fix: bool, transformer: bool) -> tuple:
    """(the module nncf, told to be quiet; the options of nncf.quantize that all our uses of it share).

    Activations of a CNN keep their whole range: NNCF's mean over frames clips, and puts ResNet-50's logits off by 19%
    where the whole range puts them off by 3%.
    """
    import logging

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # nncf wakes it, and it looks for CUDA
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE if overflow_fix else None)
    if not transformer:
        advanced.activations_range_estimator_params = RangeEstimatorParametersSet.MINMAX
    return nncf, {
        "preset": nncf.QuantizationPreset.MIXED,
        "subset_size": len(frames),
        "advanced_parameters": advanced,
    }


def is_depthwise(source: Path) -> bool:
    """Whether an .onnx convolves channels by themselves: so few weights drift in int8, and their biases make up for it.

    MobileNetV2's logits are off by a third without the slow correction of biases, by a tenth with it; others don't
    need it, and with more layers it takes long.
    """
    import onnx

    nodes = onnx.load(source, load_external_data=False).graph.node
    return any(a.name == "group" and a.i > 1 for node in nodes if node.op_type == "Conv" for a in node.attribute)


def correct_biases(path: Path, frames: np.ndarray) -> None:
    """Give the .onnx at path the biases that NNCF finds for int8 layers, one after the other (Nagel 2019).

    ONNX Runtime's own quantisation knows no such correction. The file stays as it is where NNCF fails.
    """
    import onnx

    nncf, options = wake_nncf(frames, overflow_fix=False, transformer=False)
    model = onnx.load(path)
    data = nncf.Dataset([{"image": frame[None]} for frame in frames])
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            corrected = nncf.quantize(onnx.load(path), data, **options, fast_bias_correction=False)
    except Exception:  # NNCF can't cut every graph, for example not where two products meet in a sum
        return
    found = {tensor.name: tensor for tensor in corrected.graph.initializer}
    ours = {tensor.name: tensor for tensor in model.graph.initializer}
    biases = {node.name: node.input[2] for node in corrected.graph.node if node.op_type == "Conv" and node.input[2:]}
    for node in model.graph.node:
        old, new = ours.get("".join(node.input[2:3])), found.get(biases.get(node.name))
        if node.op_type == "Conv" and old and new and old.dims == new.dims:
            old.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(new), old.name))
    onnx.save(model, path)


def quantise_openvino(
    source: Path, target: Path, frames: np.ndarray, *, alpha: float | None, overflow_fix: bool = False
) -> None:
    """int8 for OpenVINO with NNCF. alpha: SmoothQuant's for a transformer, None for a CNN.

    overflow_fix: 7-bit weights everywhere, since CPUs without VNNI add pairs of products in 16 bits, which saturate.
    """
    import openvino

    nncf, options = wake_nncf(frames, overflow_fix, transformer=alpha is not None)
    if alpha is not None:
        smooth = nncf.AdvancedSmoothQuantParameters(matmul=alpha, convolution=-1)
        options["advanced_parameters"].smooth_quant_alphas = smooth
    model = nncf.quantize(
        openvino.convert_model(str(source)),
        nncf.Dataset(list(frames[:, None])),
        **options,
        model_type=nncf.ModelType.TRANSFORMER if alpha is not None else None,
        fast_bias_correction=alpha is not None or not is_depthwise(source),
    )
    target.parent.mkdir(exist_ok=True)
    openvino.save_model(model, str(target), compress_to_fp16=False)


def write_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Put metadata into an .onnx (metadata_props) or an OpenVINO .xml (rt_info, under movie_by_frame)."""
    if path.suffix == ".onnx":
        import onnx

        model = onnx.load(path)
        del model.metadata_props[:]
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=value)
        model.producer_name = "movie-by-frame"
        onnx.save(model, path)
        return
    import openvino

    model = openvino.Core().read_model(str(path))
    for key, value in metadata.items():
        model.set_rt_info(value, ["movie_by_frame", key])
    fresh = path.with_name("fresh.xml")  # the weights of the open model are mapped from the old .bin
    openvino.save_model(model, str(fresh), compress_to_fp16=False)
    del model
    fresh.replace(path)
    fresh.with_suffix(".bin").replace(path.with_suffix(".bin"))


def runner(path: Path, precision: str | None = None):
    """Function from uint8 [N, S, S, 3] to (logits, embedding). precision: "f32" or None, which OpenVINO alone heeds."""
    return load_openvino(path, precision=precision)[2] if path.suffix == ".xml" else load_onnxruntime(path)[2]


def run_all(path: Path, frames: np.ndarray, precision: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(logits, embedding) of uint8 frames [N, S, S, 3] by an exported file; precision as in runner."""
    run = runner(path, precision)
    parts = [run(np.ascontiguousarray(frames[i : i + 16])) for i in range(0, max(1, len(frames)), 16) if len(frames)]
    if not parts:  # no frames: the shapes still count
        logits, embedding = run(np.zeros((1, *frames.shape[1:]), np.uint8))
        return logits[:0], embedding[:0]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def latency(path: Path, frame: np.ndarray, precision: str | None = None, repeats: int = 20) -> float:
    """Median milliseconds from one preprocessed frame to logits, after a warm-up, on this machine."""
    run, times = runner(path, precision), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run(frame[None])
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]) * 1000)


# ---------------------------------------------------------------------------------------------- the whole


def load_checkpoint(checkpoint: Path, data: Path) -> tuple[nn.Module, dict, dict, dict]:
    """(model, checkpoint, {split: uint8 frames [N, S, S, 3]}, {split: labels}) with the splits of its training."""
    if not checkpoint.exists():
        raise UserError(f"{checkpoint}: no such file; train one with: python train.py {data}", 2)
    model, state = load_run(checkpoint)
    keys = ("split", "fold", "subset", "limit")
    chosen, found = choose_rows(read_manifest(data), **{key: state["args"][key] for key in keys})
    if found != state["classes"]:
        raise UserError(f"--data {data}: its films are not those of {checkpoint}; name the data it was trained on", 2)
    if state["args"].get("frames") not in (None, frames_key(chosen)):
        raise UserError(f"--data {data}: its splits are not those that {checkpoint} was trained with; train again", 2)
    frames = {name: load_frames(rows, state["preprocessing"]).numpy() for name, rows in chosen.items()}
    index = {title: i for i, title in enumerate(found)}
    labels = {name: np.array([index.get(row["movie"], -1) for row in rows], int) for name, rows in chosen.items()}
    if not len(labels["val"]) or not len(labels["test"]):
        raise UserError(f"--data {data}: no val or no test frames to calibrate and check on; add frames")
    return model, state, frames, labels


def export_model(
    checkpoint: Path,
    data: Path,
    out: Path = Path("export"),
    *,
    max_drop: float = MAX_DROP,
    alphas: tuple[float, ...] | None = None,
    overflow_fix: bool = False,
) -> dict:
    """Export everything and return the report, the content of model.json. out appears whole, or stays as it was.

    overflow_fix: as in quantise_openvino. max_drop: points of balanced accuracy that an int8 format may lose against
    fp32 on val and test together; a larger loss fails when a sign test says that it is no chance. Raises UserError
    for a format that fails.
    """
    stage = Stage(STAGES)
    model, state, frames, labels = load_checkpoint(checkpoint, data)
    arch, classes, spec = state["arch"], state["classes"], state["preprocessing"]
    stage.done(f"read {checkpoint} ({arch}, {len(classes)} films) and {sum(map(len, frames.values()))} frames")
    with fresh_folder(out) as work:
        fp32, int8, vino = work / "model.onnx", work / "model.int8.onnx", work / "openvino" / "model.xml"
        stage.done(f"ONNX fp32, within {export_float(model, spec, fp32, frames['val'][:8]):.1e} of torch", fp32)

        transformer = any(isinstance(m, nn.LayerNorm) for m in model.modules())
        pick = np.random.default_rng(13).permutation(len(frames["train"]))[:CALIBRATION_FRAMES]
        sample = frames["train"][np.sort(pick)]
        way = quantise_onnx(fp32, int8, sample, transformer=transformer, overflow_fix=overflow_fix)
        stage.done(f"ONNX int8 ({way}, {len(sample)} frames)", int8)

        alpha = best_openvino(fp32, vino, sample, frames["val"], alphas, overflow_fix, transformer)
        how = [] if alpha is None else [f"SmoothQuant alpha {alpha} by val"]
        how += ["7-bit weights"] if overflow_fix else []
        stage.done("OpenVINO int8" + (f" ({', '.join(how)})" if how else ""), vino)

        outputs = {name: run_all(fp32, part) for name, part in frames.items()}
        held_out = state.get("held_out")
        gate = ("test",) if held_out else ("val", "test")  # frames that the model has not learnt
        truth, accuracy = np.concatenate([labels[split] for split in gate]), {}
        for name, path, precision in (
            ("fp32 ONNX", fp32, None),
            ("int8 ONNX", int8, None),
            ("int8 OpenVINO", vino, None),
            ("int8 OpenVINO f32", vino, "f32"),
        ):
            logits = [(outputs[s] if path == fp32 else run_all(path, frames[s], precision))[0] for s in gate]
            figures, both = measure(logits[-1], labels["test"]), np.concatenate(logits)
            accuracy[name] = {key: figures[key] for key in ("top1", "balanced")}
            balanced, right = measure(both, truth)["balanced"], both.argmax(1) == truth
            if path == fp32:
                reference, wanted, exact = right, balanced, both
                continue
            drop = wanted - balanced
            if drop > max_drop / 100 and really_worse(reference, right):
                raise UserError(f"{name} loses {100 * drop:.2f} points of balanced accuracy, --max-drop is {max_drop}")
            lost, won = int((reference & ~right).sum()), int((right & ~reference).sum())
            off = f"logits off by {relative_error(both, exact):.1%}"
            print(f"      {name}: {off}, {lost} right answers lost and {won} won on {len(right)} frames", flush=True)
        stage.done("accuracy of every format on test")

        rule, scores = fit_rule(*calibration_parts(held_out, outputs, labels, len(classes)))
        small = {name: run_all(vino, frames[name]) for name in ("test", "unknown_test")}
        checks = {
            name: verify_rule(r, *found["test"], labels["test"], *found["unknown_test"])
            for name, r, found in (
                ("calibrated", rule, outputs),
                ("original", ORIGINAL_RULE, outputs),
                ("calibrated, int8 OpenVINO", rule, small),
            )
        }
        draw_calibration(rule, outputs, labels["test"], work / "calibration.png")
        stage.done(f"calibration: score {rule['score']}, temperature {rule['temperature']:.2f}")

        figures = accuracy["fp32 ONNX"] | {k: checks["calibrated"][k] for k in ("auroc", "aurc", "named_right")}
        figures |= {"split": state["args"]["split"], "frames": {name: len(part) for name, part in frames.items()}}
        metadata = {
            "format": "movie-by-frame 1",
            "architecture": arch,
            "classes": json.dumps(classes, ensure_ascii=False),
            "preprocessing": json.dumps(spec),
            "decision": pack_rule(rule),
            "accuracy": json.dumps(figures),
            "commit": state["commit"],
        }
        for path in (fp32, int8, vino):
            write_metadata(path, metadata | {"self_test": self_test(model, spec, path)})
        for name, path in (("fp32 ONNX", fp32), ("int8 ONNX", int8), ("int8 OpenVINO", vino)):
            accuracy[name]["ms"] = latency(path, frames["test"][0])
            accuracy[name]["mb"] = sum(f.stat().st_size for f in path.parent.glob(f"{path.stem}.*")) / 1e6
        accuracy["int8 OpenVINO f32"] |= {"ms": latency(vino, frames["test"][0], "f32"), "mb": accuracy[name]["mb"]}
        accuracy["int8 ONNX"]["mb"], accuracy["fp32 ONNX"]["mb"] = (p.stat().st_size / 1e6 for p in (int8, fp32))
        report = {key: metadata[key] for key in ("format", "architecture", "commit")}
        report |= {"classes": classes, "preprocessing": spec, "accuracy": figures, "formats": accuracy}
        report["decision"] = {k: v for k, v in rule.items() if not isinstance(v, np.ndarray)}
        report |= {"scores": scores, "checks": checks, "refit": bool(held_out)}
        with atomic_write(work / "model.json", "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1, ensure_ascii=False)
        with atomic_write(work / "report.md", "w", encoding="utf-8") as file:
            file.write(describe(report))
    stage.done(f"wrote {out}")
    return report


@contextlib.contextmanager
def fresh_folder(out: Path):
    """A new folder to write an export to; at the end it takes the place of out, unless something was raised.

    Raises UserError where out holds other things than an export.
    """
    out = out.resolve()
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= FILES | LEFT_BY_HOSTS):
        raise UserError(f"--out {out}: holds other things than an export; name a new folder", 2)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield work
        for place in (work, work / "openvino"):  # what our own runs of the new files left
            shutil.rmtree(place / ".cache", ignore_errors=True)
        old = out.with_name(f".{out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.replace(old)
        work.chmod(0o755)
        work.replace(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def export_float(model: nn.Module, spec: dict, path: Path, frames: np.ndarray) -> float:
    """Write ONNX fp32 and return the largest difference from torch in a logit. Raises UserError where it is large."""
    export_onnx(model, spec, path)
    with torch.no_grad():
        wanted = Exported(model, spec)(torch.from_numpy(frames))[0].numpy()
    gap = float(np.abs(run_all(path, frames)[0] - wanted).max())
    if not gap < 1e-3 * max(1.0, float(np.abs(wanted).max())):
        raise UserError(f"ONNX fp32 differs from torch by {gap:.2g} in a logit; nothing was exported")
    return gap


def self_test(model: nn.Module, spec: dict, path: Path) -> str:
    """What identify.py --self-test compares with: torch's float32 logits, and how far this format is from them here."""
    frames = reference_frames(spec["size"])
    with torch.no_grad():
        wanted = Exported(model, spec)(torch.from_numpy(frames))[0].numpy()
    here = relative_error(run_all(path, frames, "f32")[0], wanted)
    packed = base64.b64encode(np.ascontiguousarray(wanted, np.float32).tobytes()).decode()
    return json.dumps({"logits": packed, "deviation": here})


def read_classes(path: Path) -> list[str]:
    """Titles by index from the original's classes.txt, lines `Title (Year): index`. Raises UserError with the line."""
    found: dict[int, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {path}: can't be read as text ({error})", 2) from None
    for number, line in enumerate(lines, 1):
        title, _, index = line.rpartition(":")
        if not line.strip():
            continue
        if not title.strip() or not index.strip().isdecimal() or int(index) in found:
            raise UserError(f"--classes {path}, line {number}: expected `Title (Year): index`, each index once", 2)
        found[int(index)] = title.strip()
    if sorted(found) != list(range(len(found))) or len(found) < 2:
        raise UserError(f"--classes {path}: the indices must run from 0 without a gap, two at least", 2)
    return [found[i] for i in range(len(found))]


def export_original(
    checkpoint: Path,
    arch: str,
    classes_file: Path,
    out: Path = Path("export"),
    *,
    frames: Path | None = None,
    alphas: tuple[float, ...] | None = None,
    overflow_fix: bool = False,
) -> dict:
    """Export weights as the original project left them, to answer as its bot did; returns the content of model.json.

    The rule is `original`; frames are squashed whole, bars and all. frames: a folder of any frames to calibrate int8
    with; without it there is no OpenVINO int8, and no int8 at all for a CNN. alphas, overflow_fix: as in export_model.
    Raises UserError.
    """
    classes = read_classes(classes_file)
    spec = PREPROCESSING | {"crop_bars": False, "draft": False}
    sample = None
    if frames is not None:
        from train import load_frames

        files = expand([str(frames)])
        pick = np.random.default_rng(13).permutation(len(files))[:CALIBRATION_FRAMES]
        sample = load_frames([{"file": files[i]} for i in sorted(pick)], spec).numpy()
    stage = Stage(2 if sample is None else 3)
    model = load_original(arch, checkpoint, classes)
    transformer = any(isinstance(m, nn.LayerNorm) for m in model.modules())
    with fresh_folder(out) as work:
        fp32, int8, vino = work / "model.onnx", work / "model.int8.onnx", work / "openvino" / "model.xml"
        some = reference_frames(spec["size"])
        stage.done(f"{arch}, {len(classes)} films; fp32 within {export_float(model, spec, fp32, some):.1e}", fp32)
        if transformer or sample is not None:
            quantise_onnx(fp32, int8, sample, transformer=transformer, overflow_fix=overflow_fix)
        how = f"calibrated on {0 if sample is None else len(sample)} frames"
        if sample is not None:
            alpha = best_openvino(fp32, vino, sample, sample[::3], alphas, overflow_fix, transformer)
            how += "" if alpha is None else f", SmoothQuant alpha {alpha}"
        metadata = {"format": "movie-by-frame 1", "architecture": arch, "commit": "unknown"}
        metadata |= {"classes": json.dumps(classes, ensure_ascii=False), "preprocessing": json.dumps(spec)}
        metadata |= {"decision": pack_rule(ORIGINAL_RULE), "accuracy": json.dumps({"split": "unknown"})}
        report = {"format": metadata["format"], "architecture": arch, "classes": classes, "preprocessing": spec}
        report |= {"decision": ORIGINAL_RULE, "formats": {}}
        reference = None if sample is None else run_all(fp32, sample[::3])[0].argmax(1)
        for path in (path for path in (fp32, int8, vino) if path.exists()):
            write_metadata(path, metadata | {"self_test": self_test(model, spec, path)})
            row = {"ms": latency(path, some[0])}
            if sample is not None:
                row["same_film_as_fp32"] = float((run_all(path, sample[::3])[0].argmax(1) == reference).mean())
            report["formats"][str(path.relative_to(work))] = row
        if sample is not None:
            stage.done(f"int8, {how}", vino)
        with atomic_write(work / "model.json", "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1, ensure_ascii=False)
    stage.done(f"wrote {out}")
    return report


def best_openvino(source: Path, target: Path, sample, frames, alphas, overflow_fix: bool, transformer: bool):
    """OpenVINO int8; of a transformer with the SmoothQuant alpha whose logits of frames are nearest to those of fp32.

    Returns that alpha, None for a CNN. Not the one most accurate: on a hundred val frames they hardly differ, and a
    refit model has learnt those. Raises UserError for alphas and a CNN.
    """
    if not transformer:
        if alphas:
            raise UserError("--alphas: SmoothQuant is for transformers, and this is none", 2)
        quantise_openvino(source, target, sample, alpha=None, overflow_fix=overflow_fix)
        return None
    wanted, best, alphas = run_all(source, frames)[0], None, alphas or ALPHAS
    for alpha in alphas:
        quantise_openvino(source, target, sample, alpha=alpha, overflow_fix=overflow_fix)
        off = relative_error(run_all(target, frames)[0], wanted)
        print(f"      alpha {alpha:5}: logits off by {off:.2%}", flush=True)
        if best is None or not off >= best[0]:  # nan too
            best = (off, alpha)
    if best[1] != alphas[-1]:
        quantise_openvino(source, target, sample, alpha=best[1], overflow_fix=overflow_fix)
    return best[1]


def describe(report: dict) -> str:
    """report.md."""

    def cell(value) -> str:
        return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)

    def table(header: list[str], rows: list[list]) -> list[str]:
        return [f"| {' | '.join(map(cell, row))} |" for row in (header, ["---"] * len(header), *rows)] + [""]

    split = "shots never seen in training" if report["accuracy"]["split"] == "group" else "a RANDOM split"
    lines = [f"# {report['architecture']}, {len(report['classes'])} films", ""]
    lines += [f"Trained at commit {report['commit']}. Accuracy is on {split}.", "", "## Formats", ""]
    rows = [[n, f["top1"], f["balanced"], f"{f['ms']:.1f}", f"{f['mb']:.1f}"] for n, f in report["formats"].items()]
    lines += table(["format", "test top-1", "balanced", "ms a frame", "MB"], rows)
    on = "stretches of train and val, each by a head fitted without it," if report["refit"] else "val"
    lines += [f"## Known or unknown: scores compared on {on} and unknown_val", ""]
    lines += table(["score", "AUROC", "FPR@95", "AURC"], [list(row.values()) for row in report["scores"]])
    lines += [f"Chosen: {report['decision']['score']}. Checked on test and unknown_test, with the original's rule:", ""]
    checks = report["checks"]
    rows = [[key, *(check[key] for check in checks.values())] for key in checks["calibrated"]]
    return "\n".join(lines + table(["", *checks], rows))


def draw_calibration(rule: dict, outputs: dict, labels: np.ndarray, path: Path) -> None:
    """Reliability, risk-coverage and the scores of known and unknown films, on test and unknown_test."""
    from matplotlib.figure import Figure

    logits, embedding = outputs["test"]
    right = logits.argmax(1) == labels
    known, unknown = known_score(logits, embedding, rule), known_score(*outputs["unknown_test"], rule)
    figure = Figure(figsize=(13, 4), layout="constrained")
    one, two, three = figure.subplots(1, 3)
    top = confidences(logits, rule).max(1)
    edges = np.linspace(0, 1, 11)
    index = np.clip(np.digitize(top, edges) - 1, 0, 9)
    filled = sorted(set(index))
    one.plot([0, 1], [0, 1], color="grey", lw=1)
    bars = [(top[index == b].mean(), right[index == b].mean(), (index == b).sum()) for b in filled]
    one.plot([x for x, _, _ in bars], [y for _, y, _ in bars], "o-")
    for x, y, count in bars:  # a point of two frames says little
        one.annotate(str(count), (x, y), xytext=(4, -11), textcoords="offset points", fontsize="small")
    one.set(xlabel="confidence", ylabel="accuracy", title="reliability (known films; numbers of frames)")
    score, ok = np.r_[known, unknown], np.r_[right, np.zeros(len(unknown), bool)]
    ordered = ~ok[np.argsort(-score, kind="stable")]
    two.plot(np.arange(1, len(ordered) + 1) / len(ordered), np.cumsum(ordered) / np.arange(1, len(ordered) + 1))
    two.set(xlabel="coverage", ylabel="risk", title="risk and coverage (known and unknown)")
    bins = np.linspace(score.min(), score.max() + 1e-9, 30)
    three.hist(known, bins, alpha=0.6, label="known films")
    three.hist(unknown, bins, alpha=0.6, label="unknown films")
    for key, colour in (("movie", "green"), ("shortlist", "orange")):
        never = key == "shortlist" and rule[key] == rule["movie"]
        if bins[0] <= rule[key] <= bins[-1] and not never:
            three.axvline(rule[key], color=colour, label=f"{key} from {rule[key]:.3g}")
    three.set(xlabel=f"score {rule['score']}", title="known or unknown", ylim=(0, three.get_ylim()[1] * 1.35))
    three.legend(ncols=2)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Export a trained model to ONNX and OpenVINO.")
    parser.add_argument("checkpoint", type=Path, help="best.pt of a run")
    parser.add_argument("--data", type=Path, help=f"what it was trained on (default: {DATA})")
    parser.add_argument("--out", type=Path, default=Path("export"), help="default: %(default)s")
    text = f"points of balanced accuracy that int8 may lose, beyond chance (default: {MAX_DROP})"
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help=text)
    parser.add_argument(
        "--overflow-fix", action="store_true", help="for hosts without VNNI: 7-bit weights, which can't saturate there"
    )
    text = f"SmoothQuant alphas to try on a transformer; -1 is off (default: {' '.join(map(str, ALPHAS))})"
    parser.add_argument("--alphas", type=float, nargs="+", metavar="A", help=text)
    group = parser.add_argument_group("weights of the original project")
    group.add_argument("--classes", type=Path, help="its classes.txt, lines `Title (Year): index`")
    group.add_argument("--arch", help=f"default: {ORIGINAL_ARCH}")
    group.add_argument("--frames", type=Path, help="any frames, to calibrate OpenVINO int8 with (default: none)")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    for flag in ("data", "max_drop") if args.classes else ("arch", "frames"):
        if getattr(args, flag) is not None:
            word = "does not go" if args.classes else "goes only"
            parser.error(f"--{flag.replace('_', '-')} {word} with --classes, the weights of the original project")
    options = {"alphas": args.alphas and tuple(args.alphas), "overflow_fix": args.overflow_fix}
    if args.classes and not args.frames and (args.alphas or args.overflow_fix):
        parser.error("--alphas and --overflow-fix go with --frames, on which int8 is calibrated")
    if args.classes:
        arch = args.arch or ORIGINAL_ARCH
        report = export_original(args.checkpoint, arch, args.classes, args.out, frames=args.frames, **options)
        for name, row in report["formats"].items():
            same = f", the film of fp32 on {row['same_film_as_fp32']:.1%} of the frames" if len(row) > 1 else ""
            print(f"{name:22} {row['ms']:6.1f} ms a frame{same}")
    else:
        options["max_drop"] = MAX_DROP if args.max_drop is None else args.max_drop
        report = export_model(args.checkpoint, args.data or DATA, args.out, **options)
        print("\n" + describe(report))
    print(f"next: python identify.py FRAME --model {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
