"""Name the film that a frame comes from, with an exported model: numpy, Pillow and one runtime, no torch.

python identify.py frame.jpg                                  # one frame, with the model in export/
python identify.py frames/ more.png --json > answers.jsonl    # an object a line
cat frame.jpg | python identify.py - --model export/openvino/model.xml
python identify.py --self-test                                # which files this CPU computes right, and how fast
"""

import base64
import contextlib
import functools
import json
import re
import time
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from answering.console import UserError, atomic_write
from answering.pictures import cut_still, preprocess, read_image

FORMAT = "movie-by-frame 2"  # of an exported file


# ------------------------------------------------------------------------------- the contract and the runtimes


@dataclass
class Contract:
    """What an exported file says of itself: in metadata_props of an .onnx, rt_info of an .xml, and model.json.

    The graph takes image uint8 [N, S, S, 3] and gives logits [N, C], probabilities [N, C], known [N] and embedding
    [N, D]: known >= decision["movie"] names the first film, known >= decision["shortlist"] offers three, else unknown.
    An embedder, a network that was taught no films, has no classes and gives embedding alone.
    """

    architecture: str
    commit: str
    classes: list[str]
    preprocessing: dict  # the keys of PREPROCESSING
    decision: dict  # "movie" and "shortlist", thresholds of known; their "targets", the "score" behind known
    accuracy: dict  # figures, on the split that it names
    self_test: dict  # "output", its "values" on reference_frames, their "relative_error"; an index's "fingerprint"
    format: str = FORMAT

    def save(self, path: Path) -> None:
        """Put it into an .onnx or .xml file that export.py wrote, or into a .json file for people."""
        if path.suffix == ".json":
            with atomic_write(path, "w", encoding="utf-8") as file:
                json.dump(asdict(self), file, indent=1, ensure_ascii=False)
            return
        items = {key: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for key, v in asdict(self).items()}
        if path.suffix == ".onnx":
            import onnx

            model = onnx.load(path)
            onnx.helper.set_model_props(model, items)
            onnx.save(model, path)
        else:
            import openvino

            model = openvino.Core().read_model(path, config={"ENABLE_MMAP": False})  # we write what we read
            for key, value in items.items():
                model.set_rt_info(value, ["movie_by_frame", key])
            openvino.save_model(model, path, compress_to_fp16=False)

    @classmethod
    def load(cls, metadata: dict[str, str], path: Path) -> "Contract":
        """The contract in the metadata of the file path, every field checked. Raises UserError with the mend."""
        mend = "export it again: python export.py runs/RUN/best.pt"
        if "format" not in metadata:
            raise UserError(f"--model {path}: carries no classes and no rule, so export.py did not write it; {mend}")
        if metadata["format"] != FORMAT:
            raise UserError(f"--model {path}: is in the format {metadata['format'][:40]!r}, not {FORMAT!r}; {mend}")
        try:
            plain = ("architecture", "commit", "format")
            it = cls(**{k: metadata[k] if k in plain else json.loads(metadata[k]) for k in cls.__dataclass_fields__})
            spec, rule = it.preprocessing, it.decision
            sound = all(isinstance(title, str) for title in it.classes) and len(it.classes) == len(set(it.classes)) != 1
            sound &= 16 <= spec["size"] <= 2048 and spec["resize"] == "squash" and len(spec["mean"] + spec["std"]) == 6
            sound &= spec["crop_bars"] in (True, False) and spec["draft"] in (True, False)
            sound &= spec["interpolation"].upper() in Image.Resampling.__members__
            sound &= not it.classes or 0 <= rule["shortlist"] <= rule["movie"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise UserError(f"--model {path}: its metadata is damaged; {mend}")
        return it


def cpu_flags() -> set[str]:
    """What Linux says that this CPU can do ("avx2", "avx512_vnni", ...); empty on other systems."""
    with contextlib.suppress(OSError, TypeError):
        return set(re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    return set()


def choose_file(path: Path, runtime: str | None, format: str | None, flags: set[str]) -> tuple[Path, str, str, str]:
    """(file, runtime, format, reason) for a folder that export.py wrote or one of its files, on a CPU with these flags.

    The order is what `bench.py isa` measured (RESULTS.md). Raises UserError with the mend where nothing fits.
    """
    if not path.exists() or not (path.is_dir() or path.suffix in (".xml", ".onnx")):
        made = path if path.suffix in (".pt", ".pth", ".ckpt") else "runs/RUN/best.pt"
        what = "expected a folder, .onnx or .xml file" if path.exists() else "there is no such file"
        raise UserError(f"--model {path}: {what}; make one with: python export.py {made}", 2)
    order, reason = ["openvino int8", "onnxruntime int8", "openvino fp32", "onnxruntime fp32"], "the fastest here"
    if "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni"}:
        order, reason = [*order[2:], *order[:2]], "this CPU has no VNNI, for products of 8 bits"
        if "avx512f" in flags:  # still twice as fast, and 7-bit weights don't saturate
            order.insert(0, "openvino int8")
    places = {"openvino int8": "openvino/model.xml", "onnxruntime int8": "model.int8.onnx"}
    found = [(path / places.get(way, "model.onnx"), *way.split()) for way in order]
    if not path.is_dir():  # OpenVINO reads .onnx as well, so a host with it alone can still answer
        kind, reason = "int8" if path.name.endswith((".xml", ".int8.onnx")) else "fp32", "the file that was named"
        found = [(path, by, kind) for by in ("onnxruntime", "openvino")][path.suffix == ".xml" :]
    found = [item for item in found if item[0].exists() and find_spec(item[1])]
    wanted = [item for item in found if runtime in (None, item[1]) and format in (None, item[2])]
    if not wanted:
        have = ", ".join(f"{by} {kind}" for _, by, kind in found) or "no file for a runtime that is installed"
        raise UserError(
            f"--model {path}: has {have}; change --runtime or --format, pip install it, or run export.py", 2
        )
    return *wanted[0], f"{wanted[0][1]} {wanted[0][2]}: {reason}"


def load_onnxruntime(path: Path, threads: int, precision: None):
    """(metadata, name, type and shape of the input, run) with ONNX Runtime; run: uint8 [N, S, S, 3] -> outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.enable_mem_pattern = False  # 18 MB less for DeiT-B, no slower
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names, image = [output.name for output in session.get_outputs()], session.get_inputs()[0]
    metadata = session.get_modelmeta().custom_metadata_map

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"image": np.ascontiguousarray(batch)}), strict=True))

    return metadata, [image.name, image.type, *image.shape[1:]], run


@functools.cache
def openvino_core():
    """The one of this process. It stays: with the last of them goes a stack on which Linux would handle signals."""
    import openvino

    return openvino.Core()


def load_openvino(path: Path, threads: int, precision: str | None):
    """As load_onnxruntime, with OpenVINO. precision: "f32", "bf16" or None for what the CPU does best."""
    import openvino

    core = openvino_core()
    model = core.read_model(path)
    key = "framework" if path.suffix == ".onnx" else "movie_by_frame"  # so it calls the metadata_props of an .onnx
    metadata = (
        {k: v.astype(str) for k, v in model.get_rt_info(key).astype(dict).items()} if model.has_rt_info(key) else {}
    )
    image = model.inputs[0]
    kind = "tensor(uint8)" if image.element_type == openvino.Type.u8 else image.element_type.to_string()
    shape = [side.get_length() if side.is_static else None for side in image.partial_shape][1:]
    model.reshape([1, *image.partial_shape[1:]])  # frame by frame it runs faster than with an open batch
    config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": threads}
    config |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    request = core.compile_model(model, "CPU", config).create_infer_request()
    names = [output.get_any_name() for output in model.outputs]

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        rows = []
        for row in batch:
            request.infer([row[None]])
            rows.append([request.get_tensor(name).data.copy() for name in names])
        return {name: np.concatenate(parts) for name, parts in zip(names, zip(*rows, strict=True), strict=True)}

    return metadata, [image.get_any_name(), kind, *shape], run


def release_weights(path: Path) -> None:
    """Give back the mapped pages of an OpenVINO .bin, which it holds packed too: a third of DeiT-B's memory; Linux."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        import ctypes

        advise, inside = ctypes.CDLL(None).madvise, str(path.with_suffix(".bin").resolve())
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            if line.endswith(inside) and " r--" in line:  # plain data that nobody wrote to
                start, end = (int(number, 16) for number in line.split()[0].split("-"))
                advise(start, end - start, 4)  # MADV_DONTNEED: if they are read again, they come from the file


# ------------------------------------------------------------------------------------------------ answers


@dataclass(frozen=True)
class Evidence:
    """The still of an index that is nearest to the frame, and the stretch of its film that looks alike."""

    title: str
    file: str  # the still's file name
    similarity: float  # cosine, -1..1
    time_ms: int | None  # milliseconds into the film; None where the still has no time
    from_ms: int | None
    to_ms: int | None
    thumbnail: bytes  # a JPEG

    def as_dict(self) -> dict:
        """For JSON: the thumbnail in base64."""
        return asdict(self) | {"thumbnail": base64.b64encode(self.thumbnail).decode()}


@dataclass(frozen=True)
class Candidate:
    title: str
    confidence: float  # 0..1
    evidence: Evidence | None = None  # with an index


@dataclass(frozen=True)
class Answer:
    kind: str  # "movie", "shortlist" or "unknown"
    candidates: list[Candidate]  # best first, whatever the kind
    ms: float  # time for this frame, milliseconds
    look: str | None = None  # "still": it is about the picture inside a screenshot

    def as_dict(self) -> dict:
        candidates = [{"title": c.title, "confidence": round(c.confidence, 4)} for c in self.candidates]
        for item, candidate in zip(candidates, self.candidates, strict=True):
            if candidate.evidence:
                item["evidence"] = candidate.evidence.as_dict()
        found = {"kind": self.kind, "candidates": candidates, "ms": round(self.ms, 2)}
        return found | ({"look": self.look} if self.look else {})


class Identifier:
    """An exported model, loaded once.

    path: the folder that export.py wrote, or one of its .onnx or .xml files. runtime: "openvino" or "onnxruntime";
    format: "int8" or "fp32"; where they leave a choice, choose_file makes it (reason tells). threads: 0 for all cores.
    precision: "f32" or "bf16", for OpenVINO. Raises UserError for a model that is missing, broken, or not one of ours.
    """

    def __init__(self, path, *, runtime=None, format=None, threads: int = 0, precision: str | None = None):
        runtime = runtime or ("openvino" if precision else None)  # which alone heeds it
        self.path, self.runtime, self.format, self.reason = choose_file(Path(path), runtime, format, cpu_flags())
        try:
            load = load_openvino if self.runtime == "openvino" else load_onnxruntime
            metadata, image, self.run = load(self.path, threads, precision)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
            raise UserError(f"--model {self.path}: {self.runtime} can't load it, export it again ({reason})") from None
        self.contract, self.index = Contract.load(metadata, self.path), None
        self.classes, self.preprocessing = self.contract.classes, self.contract.preprocessing
        size, count = self.preprocessing["size"], len(self.classes)
        if image != ["image", "tensor(uint8)", size, size, 3]:
            raise UserError(f"--model {self.path}: its input is {image}, not image uint8 [N, S, S, 3]; export it again")
        shapes = {k: list(v.shape[1:]) for k, v in self.run(np.zeros((1, size, size, 3), np.uint8)).items()}  # warms up
        release_weights(self.path)
        wanted = {"logits": [count], "probabilities": [count], "known": []} if count else {}
        if shapes != wanted | {"embedding": shapes.get("embedding")}:
            raise UserError(f"--model {self.path}: its outputs {shapes} don't fit its {count} classes; export it again")

    def read(self, image) -> np.ndarray:
        """Path, bytes, PIL image or RGB uint8 array -> RGB uint8 [H, W, 3]. Raises UserError if unreadable."""
        # twice the model's size, so that the final resize and the bars still see real detail
        return read_image(image, draft=2 * self.preprocessing["size"] if self.preprocessing["draft"] else None)

    def load(self, image) -> np.ndarray:
        """Path, bytes, PIL image or RGB uint8 array -> model input uint8 [S, S, 3]. Raises UserError if unreadable."""
        return preprocess(self.read(image), self.preprocessing)

    def identify(self, image, top: int = 3) -> Answer:
        """Answer for a frame: path, bytes, PIL image or RGB uint8 [H, W, 3]; or one for a list of frames of a film.

        If they are unknown and screenshots, the pictures inside are looked at. Raises UserError if one is unreadable.
        """
        start = time.perf_counter()
        pictures = [self.read(one) for one in (image if isinstance(image, list) else [image])]
        answer = self.look(pictures, top)
        if answer.kind == "unknown":
            stills = [cut_still(rgb) for rgb in pictures]
            if any(still.size < rgb.size for still, rgb in zip(stills, pictures, strict=True)):
                answer = replace(self.look(stills, top), look="still")
        return replace(answer, ms=(time.perf_counter() - start) * 1000)

    def look(self, pictures: list[np.ndarray], top: int = 3) -> Answer:
        """One answer for pictures uint8 [H, W, 3] of one film: by the mean of what the model says."""
        start = time.perf_counter()
        # in turn, so that memory stays as it is
        rows = [self.run(preprocess(rgb, self.preprocessing)[None]) for rgb in pictures]
        outputs = {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}
        return self.make_answers(outputs, top, start)[0]

    def answers(self, batch: np.ndarray, top: int = 3) -> list[Answer]:
        """Answers for preprocessed frames uint8 [N, S, S, 3]; ms is the share of the batch."""
        start = time.perf_counter()
        return self.make_answers(self.run(batch), top, start) if len(batch) else []

    def make_answers(self, outputs: dict[str, np.ndarray], top: int, start: float) -> list[Answer]:
        """Answers for outputs of run; ms is the share of the time since start (perf_counter)."""
        if not self.classes and not self.index:
            raise UserError(
                f"--model {self.path}: an embedder knows no films; name an --index, or export a trained run"
            )
        answers = self.name_classes(outputs, top) if self.classes else []
        if self.index:
            answers = join_answers(self.index.answers(outputs["embedding"], top), answers, self.index.films)
        ms = (time.perf_counter() - start) * 1000 / len(answers)
        return [replace(answer, ms=ms) for answer in answers]

    def name_classes(self, outputs: dict[str, np.ndarray], top: int) -> list[Answer]:
        """What the classifier alone answers, by its probabilities and thresholds."""
        movie, shortlist, answers = self.contract.decision["movie"], self.contract.decision["shortlist"], []
        for row, known in zip(outputs["probabilities"], outputs["known"], strict=True):
            kind = "movie" if known >= movie else "shortlist" if known >= shortlist else "unknown"
            best = np.argsort(-row, kind="stable")[:top]
            answers.append(Answer(kind, [Candidate(self.classes[c], float(row[c])) for c in best], 0.0))
        return answers


def format_answer(answer: Answer, guess: bool = False) -> str:
    """One line for people."""
    listed = " | ".join(f"{c.title} ({c.confidence:.0%})" for c in answer.candidates)
    inside = ", by the still inside it" if answer.look else ""
    if answer.kind == "movie":
        return f"{answer.candidates[0].title}  ({answer.candidates[0].confidence:.0%}{inside})"
    if answer.kind == "shortlist":
        return f"one of: {listed}{inside}"
    return "I don't know this film" + (f"; best guess: {listed}" if guess else "")


# ------------------------------------------------------------------------------------ the self-test, the shell


def reference_frames(size: int = 224, count: int = 6) -> np.ndarray:
    """uint8 [count, size, size, 3] drawn from numbers alone, the same on every machine."""
    random = np.random.RandomState(13)  # its stream is frozen, unlike default_rng's
    frames = np.zeros((count, size, size, 3), np.int32)
    for cells, strength in ((2, 90), (7, 60), (28, 40), (112, 20)):
        coarse = random.randint(-strength, strength + 1, (count, cells, cells, 3))
        place = np.arange(size) * cells // size
        frames += coarse[:, place][:, :, place]
    return (128 + frames).clip(0, 255).astype(np.uint8)


def relative_error(values: np.ndarray, wanted: np.ndarray) -> float:
    """Distance of values [N, C] from the wanted ones, both centred by rows, as a share of the wanted ones' length."""
    z, w = (x.astype(np.float64) - x.mean(axis=1, keepdims=True) for x in (values, wanted))
    return float(np.linalg.norm(z - w) / max(np.linalg.norm(w), 1e-12))


def self_test(model: Identifier) -> dict:
    """{"variant", "ms", "relative_error", "agrees"}: time a frame, and whether this CPU computes what torch did.

    It agrees up to a quarter more than the error that this file had at export: where 8-bit sums saturate, for want of
    VNNI, it is half as much again and more.
    """
    known = model.contract.self_test
    frames, wanted = reference_frames(model.preprocessing["size"]), np.array(known["values"], np.float32)
    error, times = relative_error(model.run(frames)[known["output"]], wanted), []
    for frame in frames:
        start = time.perf_counter()
        model.run(frame[None])
        times.append((time.perf_counter() - start) * 1000)
    agrees = error <= max(0.03, 1.25 * known["relative_error"] + 0.005)
    row = {"variant": f"{model.runtime} {model.format}", "ms": round(float(np.median(times)), 2)}
    return row | {"relative_error": round(error, 4), "agrees": agrees}


def join_answers(found: list[Answer], named: list[Answer], films: dict) -> list[Answer]:
    """What an index of these films found; where it knows nothing, what a classifier named that only it knows."""
    answers = list(found)
    for place, answer in enumerate(named):
        if found[place].kind == "unknown" and answer.kind == "movie" and answer.candidates[0].title not in films:
            answers[place] = answer
    return answers
