"""The files of an export and what runs them on a CPU: which one to take here, and how to load it."""

import contextlib
import functools
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from answering.console import UserError
from answering.cores import runtime_threads
from answering.telemetry import turn_off_telemetry

# what is fastest first, as `bench.py isa` measured it (RESULTS.md), by what the CPU has for products of 8 bits
WITH_VNNI = (("openvino", "int8"), ("onnxruntime", "int8"), ("openvino", "fp32"), ("onnxruntime", "fp32"))
WITHOUT_VNNI = (("openvino", "fp32"), ("onnxruntime", "fp32"), ("openvino", "int8"), ("onnxruntime", "int8"))
# OpenVINO's int8 is still twice as fast, and its 7-bit weights don't saturate
AVX512_WITHOUT_VNNI = (("openvino", "int8"), ("openvino", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"))
# not measured, but chosen by what the runtimes say: ONNX Runtime has kernels for 8 bits on ARM (release notes of 1.11),
# and of 8 bits OpenVINO speaks on x86-64 alone, while it computes in float16 on ARM ("CPU Device" in its documentation)
ARM_WITH_DOT = (("onnxruntime", "int8"), ("openvino", "fp32"), ("onnxruntime", "fp32"), ("openvino", "int8"))
ARM_WITHOUT_DOT = (("openvino", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "int8"))
FILES = {
    ("openvino", "int8"): "openvino/model.xml",
    ("onnxruntime", "int8"): "model.int8.onnx",
    ("openvino", "fp32"): "model.onnx",
    ("onnxruntime", "fp32"): "model.onnx",
}
MADV_DONTNEED = 4  # of Linux's madvise: pages may go, and are read from the file again when they are needed


class ModelFile(NamedTuple):
    """A file of an export, and what runs it."""

    path: Path
    runtime: str  # "openvino" or "onnxruntime"
    format: str  # "int8" or "fp32"
    reason: str = ""  # why it was chosen, in words


@dataclass(frozen=True)
class LoadedModel:
    """A model in a runtime."""

    metadata: dict[str, str]  # what Contract.load reads
    input: list  # name, type and sides of one image of its input: ["image", "tensor(uint8)", 224, 224, 3]
    run: Callable[[np.ndarray], dict[str, np.ndarray]]  # uint8 [N, S, S, 3] -> the outputs by name


# ------------------------------------------------------------------------------------------------ choosing a file


def cpu_flags() -> set[str]:
    """What Linux says that this CPU can do ("avx2", "avx512_vnni", "asimd", ...); on other systems little is known."""
    try:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    except OSError:
        # every Mac with an ARM CPU, and nearly every such Windows, multiplies 8 bits by its dot product
        return {"asimd", "asimddp"} if platform.machine().lower() in ("arm64", "aarch64") else set()
    return set(found[1].split()) if found else set()


def choose_file(path: Path, runtime: str | None, format: str | None, flags: set[str]) -> ModelFile:
    """The best file for a CPU with these flags, of a folder that export.py wrote or of one of its files.

    runtime, format: what the user asked for, None where the choice is free. Raises UserError with the remedy where
    nothing fits.
    """
    check_place(path)
    if path.is_dir():
        candidates, reason = list_exported(path, flags)
    else:
        candidates, reason = list_named(path), "the file that was named"
    found = [file for file in candidates if file.path.exists() and find_spec(file.runtime)]
    wanted = [file for file in found if runtime in (None, file.runtime) and format in (None, file.format)]
    if not wanted:
        have = ", ".join(f"{file.runtime} {file.format}" for file in found)
        have = have or "no file for a runtime that is installed"
        raise UserError(
            f"--model {path}: has {have}; change --runtime or --format, pip install it, or run export.py", 2
        )
    best = wanted[0]
    return best._replace(reason=f"{best.runtime} {best.format}: {reason}")


def check_place(path: Path) -> None:
    """Raise UserError unless path is a folder, or a file of a kind that export.py writes."""
    if path.is_dir() or (path.exists() and path.suffix in (".xml", ".onnx")):
        return
    problem = "expected a folder, .onnx or .xml file" if path.exists() else "there is no such file"
    checkpoint = path if path.suffix in (".pt", ".pth", ".ckpt") else "runs/RUN/best.pt"
    raise UserError(f"--model {path}: {problem}; make one with: python export.py {checkpoint}", 2)


def list_exported(folder: Path, flags: set[str]) -> tuple[list[ModelFile], str]:
    """(what an export may hold, the fastest on a CPU with these flags first; why this order, in words)"""
    if "asimd" in flags:
        order = ARM_WITH_DOT if "asimddp" in flags else ARM_WITHOUT_DOT
        reason = "thought to be the fastest on ARM, which was not measured; --self-test times them all"
    elif "avx2" not in flags or flags & {"avx512_vnni", "avx_vnni"}:
        order = WITH_VNNI
        reason = "the fastest here"
    else:
        order = AVX512_WITHOUT_VNNI if "avx512f" in flags else WITHOUT_VNNI
        reason = "this CPU has no VNNI, for products of 8 bits"
    return [ModelFile(folder / FILES[pair], *pair) for pair in order], reason


def list_named(path: Path) -> list[ModelFile]:
    """The ways to run a file that was named itself."""
    if path.suffix == ".xml":
        return [ModelFile(path, "openvino", "int8")]
    format = "int8" if path.name.endswith(".int8.onnx") else "fp32"
    # OpenVINO reads .onnx as well, so a host that has it alone can still answer
    return [ModelFile(path, "onnxruntime", format), ModelFile(path, "openvino", format)]


# ------------------------------------------------------------------------------------------------ loading it


def load_file(file: ModelFile, threads: int, precision: str | None) -> LoadedModel:
    """Load a file into its runtime. threads: 0 for all cores; precision: see load_openvino. Raises UserError."""
    try:
        if file.runtime == "openvino":
            return load_openvino(file.path, threads, precision)
        return load_onnxruntime(file.path, threads)
    except Exception as error:  # the runtimes raise classes of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
        raise UserError(f"--model {file.path}: {file.runtime} can't load it, export it again ({reason})") from None


def load_onnxruntime(path: Path, threads: int) -> LoadedModel:
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # of its builds for Windows
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = runtime_threads(threads)
    options.log_severity_level = 3  # errors alone
    options.enable_mem_pattern = False  # 18 MB less for DeiT-B, no slower
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    image = session.get_inputs()[0]

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"image": np.ascontiguousarray(batch)}), strict=True))

    metadata = session.get_modelmeta().custom_metadata_map
    return LoadedModel(metadata, [image.name, image.type, *image.shape[1:]], run)


@functools.cache
def openvino_core():
    """The one core of this process. It is never released: Linux would then run signal handlers on freed memory."""
    turn_off_telemetry()
    import openvino

    return openvino.Core()


def load_openvino(path: Path, threads: int, precision: str | None) -> LoadedModel:
    """precision: "f32", "bf16", or None for what the CPU does best."""
    core = openvino_core()
    model = core.read_model(path)
    metadata = read_rt_info(model, path)
    described = describe_input(model)
    model.reshape([1, *model.inputs[0].partial_shape[1:]])  # frame by frame it runs faster than with an open batch
    config = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": runtime_threads(threads)}
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    request = core.compile_model(model, "CPU", config).create_infer_request()
    names = [output.get_any_name() for output in model.outputs]

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        rows = []
        for image in batch:
            request.infer([image[None]])
            rows.append([request.get_tensor(name).data.copy() for name in names])
        return {name: np.concatenate(parts) for name, parts in zip(names, zip(*rows, strict=True), strict=True)}

    return LoadedModel(metadata, described, run)


def read_rt_info(model, path: Path) -> dict[str, str]:
    """The metadata of a model that OpenVINO read from path."""
    key = "framework" if path.suffix == ".onnx" else "movie_by_frame"  # its name for the metadata_props of an .onnx
    if not model.has_rt_info(key):
        return {}
    return {name: value.astype(str) for name, value in model.get_rt_info(key).astype(dict).items()}


def describe_input(model) -> list:
    """Name, type and sides of one image, in ONNX Runtime's words; None for a side that is open."""
    import openvino

    image = model.inputs[0]
    kind = "tensor(uint8)" if image.element_type == openvino.Type.u8 else image.element_type.to_string()
    sides = [side.get_length() if side.is_static else None for side in image.partial_shape]
    return [image.get_any_name(), kind, *sides[1:]]


def trim_heap() -> None:
    """Give memory that is free back to the system: loading a model leaves a third of its size behind."""
    with contextlib.suppress(ImportError, OSError, AttributeError, TypeError):  # glibc alone has it
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)


def release_weights(path: Path) -> None:
    """Give back the memory of a mapped OpenVINO .bin, on Linux: a third of DeiT-B's, since OpenVINO copied it."""
    with contextlib.suppress(ImportError, OSError, AttributeError, TypeError, ValueError):
        import ctypes

        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        weights = str(path.with_suffix(".bin").resolve())
        for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.endswith(weights) and " r--" in line:  # mapped for reading alone
                start, end = (int(number, 16) for number in line.split()[0].split("-"))
                madvise(start, end - start, MADV_DONTNEED)
