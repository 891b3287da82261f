"""Name the film that a frame comes from, with an exported model: numpy, Pillow and one runtime, no torch.

python identify.py frame.jpg                                  # one frame, with the model in export/
python identify.py frames/ more.png --model export/model.int8.onnx
python identify.py frames/ --json > answers.jsonl             # an object a line
cat frame.jpg | python identify.py - --model export/openvino/model.xml
python identify.py --self-test                                # which formats this CPU computes right, and how fast
"""

import argparse
import base64
import contextlib
import functools
import hashlib
import importlib
import io
import json
import os
import platform
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageOps
from PIL.Image import open as open_image  # ultralytics replaces Image.open in the whole process

MAX_BYTES = 20_000_000  # of one image file
MAX_PIXELS = 50_000_000  # of one decoded image
MAX_SECONDS = 10.0  # for one image, where the system can interrupt us
WORKER_ROOM = 300_000_000  # bytes that a picture may take in a worker
MIN_SIDE = 16  # pixels; less than this is an icon, not a frame
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
IMAGE_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # by content; the name is not believed
PLUGINS = {"WEBP": "WebP"}  # Pillow's modules that are not named like the others

# what a model must know about an image; carried by the checkpoint and by every exported file
PREPROCESSING = {
    "size": 224,  # pixels, square
    "resize": "squash",  # the whole picture to size x size, aspect ratio not kept
    "interpolation": "bilinear",  # antialiased, as Pillow and torchvision do it
    "crop_bars": True,  # black bars are cut off before the resize
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
ORIGINAL_RULE = {"rule": "original", "score": "standardised", "sharpness": 2.5, "movie": 0.9, "shortlist": 0.83}


class UserError(Exception):
    """Something the user can mend: shown on one line, without a traceback. code: 2 usage, 1 work that failed."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


def one_line_errors(main):
    """Make main(argv) report UserError, OSError and Ctrl-C on one line and return an exit code."""

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> int:
        name = Path(main.__globals__["__file__"]).name
        for stream in (sys.stdout, sys.stderr):  # names and titles of any alphabet, whatever the terminal's
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        try:
            code = main(argv) or 0
            sys.stdout.flush()  # a full disk or a closed pipe shows here, not after our last word
            return code
        except UserError as error:
            print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
            return error.code
        except BrokenPipeError:  # the reader of our pipe went away, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            print(f"{name}: error: {where}{error.strerror or error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print(f"{name}: stopped", file=sys.stderr)
            return 130

    return wrapper


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb", **kwargs):
    """Open a temporary neighbour of path for writing and rename it at the end, so that path is whole or not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def natural_key(path: str | Path) -> list:
    """Sort key that puts 2.jpg before 10.jpg, the order in which stills are numbered."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", str(path))] + [str(path)]


# ---------------------------------------------------------------------------------------------- the image


def read_image(source, draft: int | None = None) -> np.ndarray:
    """Decode an image to RGB uint8 [H, W, 3], upright (EXIF), first frame of an animation.

    source: path, bytes, PIL image or RGB uint8 array [H, W, 3]. draft: a JPEG may be decoded at 1/2, 1/4 or 1/8 as long
    as its shorter side keeps this many pixels. Raises UserError for what is no image, too large, or cut off.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or min(source.shape[:2]) < MIN_SIDE:
            what = f"{source.dtype} {list(source.shape)}"
            raise UserError(f"an array must be RGB uint8 [H, W, 3] of {MIN_SIDE} pixels or more, not {what}")
        return source
    name = "image" if isinstance(source, (bytes, bytearray, Image.Image)) else str(source)
    if isinstance(source, Image.Image):
        image = source
    else:
        if not isinstance(source, (bytes, bytearray)):
            try:
                if not stat.S_ISREG(os.stat(source).st_mode):  # a pipe would let us wait for ever
                    raise UserError(f"{name}: not a file")
                with open(source, "rb") as file:
                    source = file.read(MAX_BYTES + 1)
            except OSError as error:
                raise UserError(f"{name}: {error.strerror or error}") from None
        if not source:
            raise UserError(f"{name}: the file is empty")
        if len(source) > MAX_BYTES:
            raise UserError(f"{name}: larger than {MAX_BYTES // 1_000_000} MB")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own bomb warning comes before our cap
                image = open_image(io.BytesIO(source), formats=_known_formats())
        except Image.DecompressionBombError:
            raise UserError(f"{name}: more than {MAX_PIXELS // 1_000_000} megapixels") from None
        except Exception:  # Pillow's plugins raise anything on hostile bytes
            raise UserError(f"{name}: not an image that can be read (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF)") from None
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{name}: {image.width}x{image.height} is more than {MAX_PIXELS // 1_000_000} megapixels")
    if min(image.size) < MIN_SIDE:
        raise UserError(f"{name}: {image.width}x{image.height} is too small to be a frame")
    try:
        if draft and image.format in ("JPEG", "MPO") and isinstance(source, bytes):  # never a caller's own image
            scale = draft / min(image.size)
            image.draft("RGB", (max(1, int(image.width * scale)), max(1, int(image.height * scale))))
        elif draft and image.mode in ("L", "RGB", "RGBA") and min(image.size) >= 2 * draft:
            image = image.reduce(min(image.size) // draft)  # a huge PNG costs little from here on
        elif draft and min(image.size) >= 4 * draft:  # palettes and 16 bits can't be averaged as they are
            step = min(image.size) // (2 * draft)
            image = image.resize((image.width // step, image.height // step), Image.Resampling.NEAREST)
        return np.asarray(_to_rgb(_upright(image)))
    except Exception as error:
        raise UserError(f"{name}: damaged or cut off ({str(error) or type(error).__name__})") from None


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image  # Pillow's would copy the picture
    except Exception:
        return image  # damaged EXIF alone is no reason to refuse


def _known_formats() -> list[str]:
    """Of IMAGE_FORMATS those that this Pillow was built with; loads no other decoder, for there are forty."""
    for name in IMAGE_FORMATS:
        with contextlib.suppress(ImportError):  # Pillow before 11.3 knows no AVIF
            importlib.import_module(f"PIL.{PLUGINS.get(name, name.capitalize())}ImagePlugin")
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 bits and more: Pillow would clip instead of scale
        values = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        full = 65535.0 if image.mode.startswith("I") and values.max() <= 65535 else max(float(values.max()), 1.0)
        return Image.fromarray((values.clip(0, full) * (255.0 / full)).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def find_bars(rgb: np.ndarray) -> tuple[int, int, int, int]:
    """Box (left, top, right, bottom) in pixels of the picture inside black bars; the whole frame where there are none.

    rgb: uint8 [H, W, 3]. Bars come in pairs of nearly the same height (or width), so a night sky alone is not cut; up
    to a fifth of a bar may be lit, as subtitles do. A frame that would lose more than 60% of a side is left as it is.
    """
    height, width = rgb.shape[:2]
    if not rgb.size:
        return 0, 0, width, height
    red, green, blue = Image.fromarray(rgb).split()  # Pillow and bits: ten times as fast as rgb.max(axis=2) and means
    dark = np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue)) <= 24
    top, bottom = _bar_pair(_row_shares(dark))
    left, right = _bar_pair(_row_shares(np.ascontiguousarray(dark[top : height - bottom].T)))
    return left, top, width - right, height - bottom


def _row_shares(dark: np.ndarray) -> np.ndarray:
    """Share of True in each row of bool [H, W]."""
    return np.bitwise_count(np.packbits(dark, axis=1)).sum(axis=1, dtype=np.int64) / dark.shape[1]


def _bar_pair(rows: np.ndarray) -> tuple[int, int]:
    """Heights in rows of the upper and lower bar. rows: share of dark pixels a row."""
    total, limit = len(rows), int(len(rows) * 0.3)
    solid = rows >= 0.985
    first = int(np.argmin(solid)) if not solid.all() else total
    last = int(np.argmin(solid[::-1])) if not solid.all() else total
    if first >= total:  # a black frame has no bars
        return 0, 0
    # a bar with text in it ends early or is not seen at all: take the other one's height if the strip is mostly dark
    for a, b, strip in ((first, last, rows[::-1]), (last, first, rows)):
        if a > b and a <= limit and strip[:a].mean() >= 0.8 and (strip[:a] >= 0.985).mean() >= 0.4:
            first = last = a
            break
    pair = min(first, last)
    if pair < max(2, total * 0.015) or max(first, last) > limit or abs(first - last) > max(3, 0.35 * max(first, last)):
        return 0, 0
    edge = -(-total // 250)  # the blurred rows between bar and picture
    return first + edge, last + edge


def preprocess(rgb: np.ndarray, spec: dict = PREPROCESSING, size: tuple[int, int] | None = None) -> np.ndarray:
    """RGB uint8 [H, W, 3] -> what the model takes, RGB uint8 [S, S, 3]; size (width, height) overrules the spec's."""
    if spec["crop_bars"]:
        left, top, right, bottom = find_bars(rgb)
        rgb = rgb[top:bottom, left:right]  # cut first: Pillow's resize(box=...) would mix the bars into the edges
    return np.asarray(Image.fromarray(rgb).resize(size or (spec["size"],) * 2, Image.Resampling.BILINEAR))


# ------------------------------------------------------------------------------------- scores and the rule


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, float64."""
    exp = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def standardise(logits: np.ndarray) -> np.ndarray:
    """Logits [N, C] with mean 0 and unbiased standard deviation 1 in each row (0 where a row is flat)."""
    logits = logits.astype(np.float64)
    spread = logits.std(axis=1, ddof=1, keepdims=True) if logits.shape[1] > 1 else np.zeros((len(logits), 1))
    return (logits - logits.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, np.inf)


def l2_normalise(embedding: np.ndarray) -> np.ndarray:
    """Rows of [N, D] scaled to length 1, float64."""
    embedding = embedding.astype(np.float64)
    return embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), 1e-12)


def score_msp(logits, embedding, rule):
    """Maximum softmax probability with temperature (Hendrycks 2017, Guo 2017)."""
    return softmax(logits / rule["temperature"]).max(axis=1)


def score_standardised(logits, embedding, rule):
    """Largest standardised logit, the original project's; at most (C - 1) / sqrt(C)."""
    return standardise(logits).max(axis=1)


def score_pnorm(logits, embedding, rule):
    """Largest centred logit over their p-norm, p = 5 (MaxLogit-pNorm, arXiv 2305.15508)."""
    centred = logits.astype(np.float64) - logits.mean(axis=1, keepdims=True)
    return centred.max(axis=1) / np.maximum((np.abs(centred) ** 5).sum(axis=1) ** 0.2, 1e-12)


def score_gen(logits, embedding, rule):
    """Generalised entropy of the 100 largest probabilities, gamma = 0.1 (GEN, Liu 2023), negated."""
    top = np.sort(softmax(logits), axis=1)[:, -100:]
    return -((top * (1 - top)).clip(min=0) ** 0.1).sum(axis=1)


def score_knn(logits, embedding, rule):
    """Cosine similarity to the k-th nearest training frame (Sun 2022). rule["bank"]: [M, D], rows of length 1."""
    similar = l2_normalise(embedding) @ rule["bank"].astype(np.float64).T
    return np.sort(similar, axis=1)[:, -min(rule["k"], similar.shape[1])]


def score_rmd(logits, embedding, rule):
    """Relative Mahalanobis distance to the nearest class on features of length 1, negated (RMDS, Ren 2021; ++ 2025).

    rule: "project" [D, k], "offset" [k], "means" [C, k], "within" [k, k] and "total" [k, k] (whitening matrices).
    """
    x = l2_normalise(embedding) @ rule["project"].astype(np.float64) - rule["offset"]
    class_white = x @ rule["within"].astype(np.float64)
    mean_white = rule["means"].astype(np.float64) @ rule["within"].astype(np.float64)
    squared = (class_white**2).sum(1)[:, None] - 2 * class_white @ mean_white.T + (mean_white**2).sum(1)
    return ((x @ rule["total"].astype(np.float64)) ** 2).sum(axis=1) - squared.min(axis=1)


SCORES = {
    "msp": score_msp,
    "standardised": score_standardised,
    "pnorm": score_pnorm,
    "gen": score_gen,
    "knn": score_knn,
    "rmd": score_rmd,
}


def known_score(logits: np.ndarray, embedding: np.ndarray, rule: dict) -> np.ndarray:
    """Float [N], higher = more surely a film of the collection, by the rule's score."""
    if rule["rule"] == "original":
        return 1 / (1 + np.exp(-score_standardised(logits, embedding, rule) / rule["sharpness"]))
    return SCORES[rule["score"]](logits, embedding, rule)


def confidences(logits: np.ndarray, rule: dict) -> np.ndarray:
    """Float [N, C]: a confidence a class; probabilities (calibrated) or the original's independent sigmoids."""
    if rule["rule"] == "original":
        return 1 / (1 + np.exp(-standardise(logits) / rule["sharpness"]))
    return softmax(logits / rule["temperature"])


def decide(logits: np.ndarray, embedding: np.ndarray, rule: dict) -> list[str]:
    """ "movie", "shortlist" or "unknown" a row of logits [N, C] and embedding [N, D]."""
    score = known_score(logits, embedding, rule)
    return ["movie" if s >= rule["movie"] else "shortlist" if s >= rule["shortlist"] else "unknown" for s in score]


def pack_rule(rule: dict) -> str:
    """Rule as JSON, arrays as little-endian float32 (the bank as float16) in base64; unpack_rule is its inverse."""

    def pack(key, value):
        if isinstance(value, np.ndarray):
            kind = "float16" if key == "bank" else "float32"  # whitening matrices would overflow float16
            data = np.ascontiguousarray(value, dtype=kind).tobytes()
            return {kind: base64.b64encode(data).decode(), "shape": list(value.shape)}
        return value

    return json.dumps({key: pack(key, value) for key, value in rule.items()})


def unpack_rule(text: str) -> dict:
    """The rule that pack_rule wrote, arrays as float32."""

    def unpack(value):
        for kind in ("float16", "float32") if isinstance(value, dict) else ():
            if kind in value:
                data = np.frombuffer(base64.b64decode(value[kind]), dtype=kind)
                return data.reshape(value["shape"]).astype(np.float32)
        return value

    return {key: unpack(value) for key, value in json.loads(text).items()}


# ------------------------------------------------------------------------------------------------ the model


@dataclass(frozen=True)
class Candidate:
    title: str
    confidence: float  # 0..1


@dataclass(frozen=True)
class Answer:
    kind: str  # "movie", "shortlist" or "unknown"
    candidates: list[Candidate]  # best first, whatever the kind
    ms: float  # time for this frame, milliseconds

    def as_dict(self) -> dict:
        candidates = [{"title": c.title, "confidence": round(c.confidence, 4)} for c in self.candidates]
        return {"kind": self.kind, "candidates": candidates, "ms": round(self.ms, 2)}


@dataclass(frozen=True)
class Variant:
    """One way to run an exported model: which file, in which runtime ("openvino", "onnxruntime"), how precisely."""

    file: Path
    runtime: str
    format: str  # "int8" or "fp32"
    precision: str | None = None  # "f32", "bf16" or None for what the CPU does best; OpenVINO alone heeds it

    def __str__(self) -> str:
        return f"{self.runtime} {self.format}" + (f" in {self.precision}" if self.precision else "")


VARIANTS = (
    ("openvino/model.xml", "openvino", "int8"),
    ("model.xml", "openvino", "int8"),
    ("model.int8.onnx", "onnxruntime", "int8"),
    ("model.onnx", "onnxruntime", "fp32"),
    ("model.onnx", "openvino", "fp32"),
)


def find_variants(
    path: str | Path, runtime: str | None = None, format: str | None = None, precision: str | None = None
) -> list[Variant]:
    """The ways to run the folder that export.py wrote, or one of its files, with the runtimes that are installed.

    precision leaves OpenVINO's. Raises UserError with the mend where there is none.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"--model {path}: there is no such file; make one with: python export.py runs/RUN/best.pt", 2)
    if path.suffix in (".pt", ".pth", ".ckpt"):
        raise UserError(f"--model {path} is a training checkpoint; export it first: python export.py {path}", 2)
    if path.is_dir():
        found = [Variant(path / name, by, kind) for name, by, kind in VARIANTS if (path / name).exists()]
    else:
        if path.suffix not in (".xml", ".onnx"):
            raise UserError(f"--model {path}: expected a folder, a .onnx or an OpenVINO .xml file", 2)
        kind = "int8" if path.suffix == ".xml" or path.name.endswith(".int8.onnx") else "fp32"
        # OpenVINO reads .onnx as well, so a host with it alone can still answer
        runtimes = ["openvino"] if path.suffix == ".xml" else ["onnxruntime", "openvino"]
        found = [Variant(path, by, kind) for by in runtimes]
    if not found:
        raise UserError(f"--model {path}: no model.onnx or openvino/model.xml in it; run export.py", 2)
    if precision:
        found = [replace(item, precision=precision) for item in found if item.runtime == "openvino"]
    wanted = [item for item in found if runtime in (None, item.runtime) and format in (None, item.format)]
    if not wanted:
        have = ", ".join(dict.fromkeys(map(str, found))) or "ONNX Runtime's files, which heed no --precision"
        raise UserError(f"--model {path}: has only {have}; change --runtime, --format or --precision", 2)
    usable = [item for item in wanted if _installed(item.runtime)]
    if not usable:
        needed = " or ".join(dict.fromkeys(item.runtime for item in wanted))
        raise UserError(f"{wanted[0].file} runs with {needed}; pip install it, or change --runtime", 2)
    return usable if path.is_dir() else usable[:1]


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def load_onnxruntime(path: Path, threads: int = 0):
    """(metadata, input shape, run) with ONNX Runtime; run: uint8 [N, S, S, 3] -> (logits, embedding)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # 18 MB less for DeiT-B, no slower
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    inputs = session.get_inputs()
    names = {output.name for output in session.get_outputs()}

    def run(batch):
        return session.run(["logits", "embedding"], {"image": batch})

    return metadata, (inputs[0].name, inputs[0].type, inputs[0].shape, names), run


def load_openvino(path: Path, threads: int = 0, precision: str | None = None):
    """As load_onnxruntime, with OpenVINO. precision: "f32", "bf16" or None for what the CPU does best.

    The batch is fixed to one, which runs faster than an open one, frame by frame. What OpenVINO compiled is kept in
    .cache beside the model, or in the user's cache where that can't be written, for a faster start.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    # OpenVINO keeps the metadata_props of an .onnx under "framework"
    key = "framework" if path.suffix == ".onnx" else "movie_by_frame"
    metadata = {}
    if model.has_rt_info([key]):
        metadata = {k: v.astype(str) for k, v in model.get_rt_info([key]).astype(dict).items()}
    config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    beside = os.access(path.parent, os.W_OK)
    config["CACHE_DIR"] = str(path.parent / ".cache" if beside else user_cache() / "openvino")
    image = model.inputs[0]
    shape = [d.get_length() if d.is_static else None for d in image.partial_shape]
    if len(shape) == 4 and shape[0] is None:
        model.reshape([1, *shape[1:]])
    try:
        compiled = core.compile_model(model, "CPU", config)
    except RuntimeError:
        if not config.pop("CACHE_DIR", None):
            raise
        compiled = core.compile_model(model, "CPU", config)  # a full disk, or a damaged cache
    names = {name for output in model.outputs for name in output.get_names()}
    element = f"tensor({'uint8' if image.element_type == openvino.Type.u8 else image.element_type.to_string()})"
    request = compiled.create_infer_request()

    def run(batch):
        logits, embedding = [], []
        for row in batch:
            request.infer([row[None]])
            logits.append(request.get_tensor("logits").data.copy())
            embedding.append(request.get_tensor("embedding").data.copy())
        return np.concatenate(logits), np.concatenate(embedding)

    return metadata, (image.get_any_name(), element, shape, names), run


def release_files(folder: Path) -> None:
    """Hand back the memory of OpenVINO's files in folder that are mapped into this process; Linux only.

    It maps weights, packs them for this CPU and keeps both: of DeiT-B in int8 85 MB that are not read again.
    """
    with contextlib.suppress(ImportError, OSError, AttributeError, ValueError):
        lines = os.fsdecode(Path("/proc/self/maps").read_bytes()).splitlines()
        import ctypes

        advise, inside = ctypes.CDLL(None).madvise, f" {folder.resolve()}/"
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for line in lines:
            span, rights = line.split(maxsplit=2)[:2]
            # plain data that nobody wrote to: libraries have pages that the file alone does not bring back
            if rights.startswith("r--") and inside in line and line.endswith((".bin", ".blob")):
                start, end = (int(number, 16) for number in span.split("-"))
                advise(start, end - start, 4)  # MADV_DONTNEED: if they are read again, they come from the file


# ------------------------------------------------------------------------------------- what this host does best


def reference_frames(size: int = 224, count: int = 6) -> np.ndarray:
    """uint8 [count, size, size, 3] drawn from numbers alone, the same on every machine: for the self-test."""
    random = np.random.RandomState(13)  # its stream is frozen, unlike default_rng's
    frames = np.zeros((count, size, size, 3), np.int32)
    for cells, strength in ((2, 90), (7, 60), (28, 40), (112, 20)):
        coarse = random.randint(-strength, strength + 1, (count, cells, cells, 3))
        place = np.arange(size) * cells // size
        frames += coarse[:, place][:, :, place]
    return (128 + frames).clip(0, 255).astype(np.uint8)


def relative_error(logits: np.ndarray, wanted: np.ndarray) -> float:
    """Distance of logits [N, C] from the wanted ones, both centred by rows, as a share of the wanted ones' length."""
    z, w = (x.astype(np.float64) - x.mean(axis=1, keepdims=True) for x in (logits, wanted))
    return float(np.linalg.norm(z - w) / max(np.linalg.norm(w), 1e-12))


def user_cache() -> Path:
    """Where this user's measurements and compiled models go when the model's own folder can't be written."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "movie-by-frame"


def cpu_name() -> str:
    """What the processor calls itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware", "cpu part")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def host_key(variants: list[Variant], threads: int) -> str:
    """Fingerprint of the processor, the runtimes and the files: a measurement holds while it stays the same."""
    from importlib.metadata import version

    flags = []
    with contextlib.suppress(OSError):  # Linux alone has it
        flags = re.findall(r"^(?:flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.M)[:1]
    stats = [os.stat(item.file) for item in variants]
    listed = [[str(item), stat.st_size, stat.st_mtime_ns] for item, stat in zip(variants, stats, strict=True)]
    runtimes = [[name, version(name)] for name in dict.fromkeys(item.runtime for item in variants)]
    capped = {k: v for k, v in os.environ.items() if k in ("ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")}
    parts = [cpu_name(), flags, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()]
    text = json.dumps([*parts, threads, runtimes, listed, capped], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def measure_variant(variant: Variant, threads: int = 0) -> dict:
    """{"variant", "ms", "deviation", "agrees"} of one variant, or {"variant", "error"}, from a process of its own.

    Of its own, because memory stays where a runtime has taken it, and a runtime may crash on a strange CPU.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--self-test", "--json", "--model", str(variant.file)]
    command += ["--runtime", variant.runtime, "--threads", str(threads)]
    command += ["--precision", variant.precision] if variant.precision else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        told = done.stdout.splitlines() or [json.dumps({"error": [*done.stderr.splitlines(), "it crashed"][0]})]
        result = json.loads(told[-1])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        result = {"error": "it crashed, or took over two minutes"}
    return {"variant": str(variant)} | {k: result[k] for k in ("ms", "deviation", "agrees", "error") if k in result}


def measure_variants(variants: list[Variant], threads: int = 0) -> list[dict]:
    """measure_variant of each; OpenVINO is asked for float32 where its own choice of precision fails."""
    results = []
    for variant in variants:
        results.append(measure_variant(variant, threads))
        if variant.runtime == "openvino" and not variant.precision and not results[-1].get("agrees"):
            exact = Variant(variant.file, variant.runtime, variant.format, "f32")
            results.append(measure_variant(exact, threads))
    return results


def choose_variant(path: Path, variants: list[Variant], threads: int = 0) -> tuple[Variant, str]:
    """(the fastest variant whose answers are right on this CPU, why), measured once and kept in host.json.

    It lies beside the model, else in the user's cache. Raises UserError where no variant computes what it should.
    """
    key = host_key(variants, threads)
    folder = path if path.is_dir() else path.parent
    places = [folder / "host.json", user_cache() / f"host-{key}.json"]
    results = None
    for place in places:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            known = json.loads(place.read_text())
            if known["key"] == key and all(isinstance(row["variant"], str) for row in known["measured"]):
                results = known["measured"]
                break
    if results is None:
        print(f"identify.py: first start of {path} on this CPU, measuring {len(variants)} formats", file=sys.stderr)
        results = measure_variants(variants, threads)
        for place in places:
            with contextlib.suppress(OSError), atomic_write(place, "w") as file:
                json.dump({"key": key, "cpu": cpu_name(), "threads": threads, "measured": results}, file, indent=1)
                break
    exact = [Variant(v.file, v.runtime, v.format, "f32") for v in variants if v.runtime == "openvino"]
    named = {str(variant): variant for variant in [*variants, *exact]}
    good = [row for row in results if row.get("agrees") and row["variant"] in named]
    if not good:
        words = (row.get("error") or f"off by {row['deviation']:.0%}" for row in results)
        why = "; ".join(f"{row['variant']}: {word}" for row, word in zip(results, words, strict=True))
        raise UserError(f"--model {path}: no format computes here what it should ({why}); try --runtime and --format")
    good.sort(key=lambda row: row["ms"])
    bad = [row["variant"] for row in results if row not in good]
    why = f"{good[0]['variant']}, {good[0]['ms']:.1f} ms a frame here"
    others = ", ".join(f"{row['variant']} {row['ms']:.1f}" for row in good[1:])
    why += f" ({others})" if others else ""
    return named[good[0]["variant"]], why + (f"; not usable here: {', '.join(bad)}" if bad else "")


class Identifier:
    """An exported model, loaded once.

    path: the folder that export.py wrote, or one of its .onnx or .xml files. runtime: "openvino" or "onnxruntime";
    format: "int8" or "fp32"; where they leave a choice, the fastest that is right on this CPU is found by a measurement
    at the first start (why tells). threads: 0 for all cores. precision: "f32" or "bf16", for OpenVINO. rule: "original"
    to use the original project's constants. Raises UserError for a model that is missing, broken, or not one of ours.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        runtime: str | None = None,
        format: str | None = None,
        threads: int = 0,
        precision: str | None = None,
        rule: str | None = None,
    ):
        variants = find_variants(path, runtime, format, precision)
        if len(variants) > 1:
            variant, self.why = choose_variant(Path(path), variants, threads)
        else:
            variant, self.why = variants[0], "the only one asked for"
        self.path, self.runtime, self.format = variant.file, variant.runtime, variant.format
        try:
            if self.runtime == "openvino":
                loaded = load_openvino(self.path, threads, variant.precision)
            else:
                loaded = load_onnxruntime(self.path, threads)
        except Exception as error:
            reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__
            raise UserError(f"--model {self.path}: {self.runtime} can't load it, export it again ({reason})") from None
        self.metadata, (name, element, shape, outputs), self._run = loaded
        if not {"classes", "preprocessing", "decision"} <= set(self.metadata):
            raise UserError(f"--model {self.path}: carries no classes or rule, so export.py did not write it")
        try:
            self.classes: list[str] = json.loads(self.metadata["classes"])
            self.preprocessing: dict = json.loads(self.metadata["preprocessing"])
            self.rule = ORIGINAL_RULE if rule == "original" else unpack_rule(self.metadata["decision"])
            size = self.preprocessing["size"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"--model {self.path}: its metadata is damaged, export it again") from None
        if (name, element, list(shape[1:])) != ("image", "tensor(uint8)", [size, size, 3]):
            raise UserError(f"--model {self.path}: its input is {name} {element} {shape}, not image uint8 [N, S, S, 3]")
        if not {"logits", "embedding"} <= outputs:
            raise UserError(f"--model {self.path}: its outputs are {sorted(outputs)}, not logits and embedding")
        black = np.zeros((size, size, 3), np.uint8)
        logits, embedding = self._run(black[None])  # warm-up, and the class count
        release_files(self.path.parent)
        if logits.shape[1] != len(self.classes):
            raise UserError(f"--model {self.path}: {logits.shape[1]} outputs but {len(self.classes)} classes")
        try:  # hostile or damaged metadata shows now, not at the first frame
            preprocess(black, self.preprocessing)
            (answer,) = self.make_answers(logits, embedding, 3, time.perf_counter())
            whole = all(isinstance(title, str) for title in self.classes) and np.isfinite(
                answer.candidates[0].confidence
            )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            whole = False
        if not whole:
            raise UserError(f"--model {self.path}: its metadata is damaged, export it again")

    @property
    def reason(self) -> str:
        return self.why

    @property
    def contract(self):
        from types import SimpleNamespace

        accuracy = json.loads(self.metadata.get("accuracy") or "{}")
        about = {key: self.metadata.get(key) for key in ("architecture", "commit")}
        return SimpleNamespace(classes=self.classes, accuracy=accuracy, **about)

    def answer_together(self, batch: np.ndarray, top: int = 3) -> Answer:
        start = time.perf_counter()
        parts = [self.logits(row[None]) for row in batch]
        means = (np.mean(column, axis=0) for column in zip(*parts, strict=True))
        return self.make_answers(*means, top, start)[0]

    def load(self, image) -> np.ndarray:
        """Path, bytes, PIL image or RGB uint8 array -> model input uint8 [S, S, 3]."""
        # twice the model's size, so that the final resize and the bars still see real detail; the original read whole
        draft = 2 * self.preprocessing["size"] if self.preprocessing.get("draft", True) else None
        return preprocess(read_image(image, draft=draft), self.preprocessing)

    def self_test(self, repeats: int = 7) -> dict:
        """{"ms", "deviation", "agrees"}: time a frame, and whether the logits here are those of the exporting host.

        deviation is from torch's float32 logits. It agrees up to a quarter more than this format had at export: where
        8-bit products saturate, for want of VNNI, it is half as much again and more.
        """
        try:
            known = json.loads(self.metadata["self_test"])
            wanted = np.frombuffer(base64.b64decode(known["logits"]), np.float32).reshape(-1, len(self.classes))
            limit = max(0.03, 1.25 * float(known["deviation"]) + 0.005)
        except (KeyError, ValueError, TypeError, AttributeError):
            raise UserError(f"--model {self.path}: carries no self-test, export it again") from None
        frames = reference_frames(self.preprocessing["size"], len(wanted))
        found = relative_error(self.logits(frames)[0], wanted)
        times = []
        for k in range(repeats):
            start = time.perf_counter()
            self.logits(frames[k % len(frames)][None])
            times.append(time.perf_counter() - start)
        ms = float(np.median(times) * 1000)
        return {"ms": round(ms, 2), "deviation": round(found, 4), "limit": round(limit, 4), "agrees": found <= limit}

    def logits(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [N, S, S, 3] -> logits float32 [N, C], embedding float32 [N, D]."""
        logits, embedding = self._run(np.ascontiguousarray(batch))
        return logits, embedding

    def identify(self, image, top: int = 3) -> Answer:
        """Answer for one frame: path, bytes, PIL image or RGB uint8 array [H, W, 3]. Raises UserError if unreadable."""
        start = time.perf_counter()
        answer = self.answers(self.load(image)[None], top)[0]
        return Answer(answer.kind, answer.candidates, (time.perf_counter() - start) * 1000)

    def answers(self, batch: np.ndarray, top: int = 3) -> list[Answer]:
        """Answers for preprocessed frames uint8 [N, S, S, 3]; ms is the share of the batch."""
        if not len(batch):
            return []
        start = time.perf_counter()
        logits, embedding = self.logits(batch)
        return self.make_answers(logits, embedding, top, start)

    def make_answers(self, logits: np.ndarray, embedding: np.ndarray, top: int, start: float) -> list[Answer]:
        """Answers for logits [N, C] and embedding [N, D]; ms is the share of the time since start (perf_counter)."""
        kinds = decide(logits, embedding, self.rule)
        sure = confidences(logits, self.rule)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        ms = (time.perf_counter() - start) * 1000 / len(logits)
        return [
            Answer(kind, [Candidate(self.classes[c], float(row[c])) for c in order], ms)
            for kind, row, order in zip(kinds, sure, best, strict=True)
        ]


def expand(paths: list[str]) -> list[str]:
    """Files as they are, folders as the images in them (natural order, links to folders not followed), "-" as stdin."""
    files = []
    for path in paths:
        if path == "-" or not os.path.isdir(path):
            files.append(path)
            continue
        inside = [os.path.join(root, name) for root, _, names in os.walk(path) for name in names]
        inside = sorted((f for f in inside if Path(f).suffix.lower() in IMAGE_SUFFIXES), key=natural_key)
        if not inside:
            raise UserError(f"{path}: no images in this folder", 2)
        files += inside
    return files


@contextlib.contextmanager
def time_limit(seconds: float):
    """Raise UserError when the work inside takes longer; only where alarms exist, and in the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    class Late(BaseException):  # no Exception: decoders catch those
        pass

    def late(*_):
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Late:
        raise UserError(f"took over {seconds:g} seconds to read") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def identify_files(identifier: Identifier, paths: list[str], *, top: int = 3, batch: int = 8):
    """Yield (file, Answer or UserError) in order, batch frames a run of the model; an Answer's ms includes decoding."""
    files = expand(paths)
    for start in range(0, len(files), batch):
        chunk, images, results = files[start : start + batch], [], {}
        for index, file in enumerate(chunk):
            clock = time.perf_counter()
            try:
                data = sys.stdin.buffer.read(MAX_BYTES + 1) if file == "-" else file
                with time_limit(MAX_SECONDS):
                    image = identifier.load(data)
                images.append((index, image, (time.perf_counter() - clock) * 1000))
            except UserError as error:
                text = str(error)
                results[index] = error if file in text or file == "-" else UserError(f"{file}: {text}")
        if images:
            answers = identifier.answers(np.stack([image for _, image, _ in images]), top)
            for (index, _, ms), answer in zip(images, answers, strict=True):
                results[index] = Answer(answer.kind, answer.candidates, answer.ms + ms)
        yield from ((file, results[index]) for index, file in enumerate(chunk))


def limit_memory(room: int) -> None:
    """Let this process take at most so many bytes more (Linux): a picture that unpacks to gigabytes is refused here."""
    with contextlib.suppress(ImportError, OSError, AttributeError, ValueError, IndexError):
        import ctypes
        import resource

        ctypes.CDLL(None).malloc_trim(0)  # loading leaves up to a file's size behind
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + room,) * 2)
        Path("/proc/self/oom_score_adj").write_text("800")  # should the host run out, better us than who asked


def work(identifier: Identifier, reader, writer, top: int = 5) -> None:
    """Answer requests from another program until reader ends: the bot's worker, with which it shares no memory.

    A request is a byte, the number of pictures of one film, then for each 4 bytes little-endian, its length, and the
    file's bytes. A reply is a line of JSON: an answer (of several pictures: by their mean) or {"error"}. The first line
    tells about the model.
    """

    def reply(item: dict) -> None:
        writer.write(json.dumps(item).encode() + b"\n")
        writer.flush()

    about = {key: identifier.metadata.get(key) for key in ("architecture", "commit")}
    try:
        about["accuracy"] = json.loads(identifier.metadata["accuracy"])
    except (KeyError, ValueError):
        about["accuracy"] = {}
    reply(about | {"classes": identifier.classes, "why": identifier.why})
    while head := reader.read(1):
        pictures = [reader.read(int.from_bytes(reader.read(4), "little")) for _ in range(head[0])]
        start = time.perf_counter()
        try:
            with time_limit(MAX_SECONDS):
                batch = np.stack([identifier.load(data) for data in pictures])
            parts = [identifier.logits(row[None]) for row in batch]  # one by one: memory stays as it is
            means = (np.mean(column, axis=0) for column in zip(*parts, strict=True))
            reply(identifier.make_answers(*means, top, start)[0].as_dict())
        except UserError as error:
            reply({"error": str(error)})


def format_answer(answer: Answer, guess: bool = False) -> str:
    """One line for people."""
    if answer.kind == "movie":
        return f"{answer.candidates[0].title}  ({answer.candidates[0].confidence:.0%})"
    listed = " | ".join(f"{c.title} ({c.confidence:.0%})" for c in answer.candidates)
    if answer.kind == "shortlist":
        return f"one of: {listed}"
    return "I don't know this film" + (f"; best guess: {listed}" if guess else "")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Name the film that each frame comes from.")
    parser.add_argument("frames", nargs="*", metavar="FRAME", help="image files, folders of images, or - for stdin")
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="export", help="folder from export.py, .onnx or .xml (default: %(default)s)")
    picked = "(default: the fastest on this CPU, measured once)"
    group.add_argument("--runtime", choices=["openvino", "onnxruntime"], help=picked)
    group.add_argument("--format", choices=["int8", "fp32"], help=picked)
    group.add_argument("--precision", choices=["f32", "bf16"], help="for OpenVINO (default: what the CPU does best)")
    group.add_argument(
        "--self-test", action="store_true", help="only say which formats this CPU computes right, and how fast"
    )
    group.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all cores (default: %(default)s)")
    group.add_argument("--batch", type=int, default=8, help="frames decoded at a time (default: %(default)s)")
    group.add_argument(
        "--rule", choices=["original"], help="the original project's constants (default: the model's own rule)"
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object a frame")
    group.add_argument("--worker", action="store_true", help="answer another program on stdin and stdout, see work()")
    group.add_argument("--top", type=int, default=3, help="candidates a frame (default: %(default)s)")
    group.add_argument("--verbose", action="store_true", help="say which runtime and format were picked, and why")
    group.add_argument("--guess", action="store_true", help="show the best guess for an unknown film too")
    return parser


def print_self_test(args: argparse.Namespace) -> int:
    """A line a format: time, deviation from the exporting host, verdict. 1 when none of them agrees."""
    variants = find_variants(args.model, args.runtime, args.format, args.precision)
    if len(variants) == 1:
        only = variants[0]
        how = {"runtime": only.runtime, "threads": args.threads, "precision": args.precision}
        results = [{"variant": str(only), **Identifier(only.file, **how).self_test()}]
    else:
        results = measure_variants(variants, args.threads)
    for row in results:
        if args.json:
            print(json.dumps(row))
        elif "error" in row:
            print(f"{row['variant']:20}  {row['error']}")
        else:
            verdict = "agrees" if row["agrees"] else "DISAGREES: this CPU computes it wrong, don't use it here"
            print(f"{row['variant']:20}  {row['ms']:7.1f} ms  off by {row['deviation']:6.2%}  {verdict}")
    return 0 if any(row.get("agrees") for row in results) else 1


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    for flag in ("batch", "top"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag} must be 1 or more")
    if args.threads < 0:
        parser.error("--threads must be 0 or more")
    if args.self_test:
        return print_self_test(args)
    if not (args.frames or args.worker):
        parser.error("name image files or folders, or - for stdin")
    how = {"runtime": args.runtime, "format": args.format, "precision": args.precision}
    identifier = Identifier(args.model, **how, threads=args.threads, rule=args.rule)
    if args.verbose:
        print(f"identify.py: {identifier.why}", file=sys.stderr)
    if args.worker:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it goes to all processes of a service; our end is that of stdin
        limit_memory(WORKER_ROOM)
        work(identifier, sys.stdin.buffer, sys.stdout.buffer, args.top)
        return 0
    failed = 0
    width = min(48, max(len(path) for path in args.frames) + 12)
    for file, answer in identify_files(identifier, args.frames, top=args.top, batch=args.batch):
        failed += isinstance(answer, UserError)
        if args.json:
            result = {"error": str(answer)} if isinstance(answer, UserError) else answer.as_dict()
            print(json.dumps({"file": file, **result}, ensure_ascii=False), flush=True)
        elif isinstance(answer, UserError):
            print(f"identify.py: error: {' '.join(str(answer).split())}", file=sys.stderr)
        else:
            print(f"{file:{width}}  {answer.ms:6.1f} ms  {format_answer(answer, args.guess)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
