"""`python bench.py infer` and `isa`: JPEG to answer, torch against the export, and its files as on older CPUs."""

import io
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from answering.console import UserError
from answering.model import Identifier, SelfTest, self_test
from answering.runtimes import choose_file, cpu_flags
from benchmarks.harness import Figures, in_process, resident_megabytes, sample, show

CPU_KINDS = {  # what oneDNN may use (ONEDNN_MAX_CPU_ISA), and the flags of a CPU that has no more
    "SSE41": "sse4_1",
    "AVX": "avx",
    "AVX2": "avx avx2",
    "AVX2_VNNI": "avx avx2 avx_vnni",
    "AVX512_CORE": "avx avx2 avx512f",
    "AVX512_CORE_VNNI": "avx avx2 avx512f avx512_vnni",
}


# ------------------------------------------------------------------------------------------------ bench.py infer


def original_way(checkpoint: Path) -> Callable[[bytes], str]:
    """Function from bytes to the likeliest film as in the original's bot: torch fp32, eager, torchvision."""
    import torch
    from torchvision import transforms

    from models import Checkpoint

    saved = Checkpoint.load(checkpoint)
    network = saved.build()
    spec = saved.preprocessing
    prepare = transforms.Compose(
        [
            transforms.Resize((spec["size"], spec["size"])),
            transforms.ToTensor(),
            transforms.Normalize(spec["mean"], spec["std"]),
        ]
    )

    @torch.no_grad()
    def answer(raw: bytes) -> str:
        logits, _ = network(prepare(Image.open(io.BytesIO(raw)).convert("RGB"))[None])
        return saved.classes[int(logits[0].argmax())]

    return answer


def time_answers(path: Path, runtime: str, format: str, files: list[str], begin: float) -> dict[str, float]:
    """Figures of one way to answer, in this process, which was asked for at time.time() begin.

    runtime: of the exported model at path, or "torch", for a checkpoint at path.
    """
    pictures = [Path(file).read_bytes() for file in files]
    answer = original_way(path) if runtime == "torch" else Identifier(path, runtime=runtime, format=format).identify
    answer(pictures[0])
    first = time.time() - begin
    times = []
    for picture in pictures:
        start = time.perf_counter()
        answer(picture)
        times.append(1000 * (time.perf_counter() - start))
    memory = resident_megabytes()
    return {"latency, ms": np.median(times), "memory, MB": memory, "process start to first answer, s": first}


def bench_infer(checkpoint: Path, *, frames: Path, model: Path = Path("export"), count: int = 60) -> None:
    """JPEG bytes to answer: median latency, resident memory, and time from process start to the first answer."""
    files = sample(frames, count)
    cases = {"original's way": (checkpoint, "torch", "fp32")}
    for runtime, format in itertools.product(("onnxruntime", "openvino"), ("fp32", "int8")):
        cases[f"{runtime} {format}"] = (model, runtime, format)
    rows = {}
    for name, case in cases.items():
        runs = [in_process(time_answers, *case, files, time.time()) for _ in range(3)][1:]  # the first fills caches
        rows[name] = {figure: min(run[figure] for run in runs) for figure in runs[0]}
    show(f"Inference, {model}, {len(files)} frames", rows, "OpenVINO computes fp32 in bf16 where the CPU has it.")


# -------------------------------------------------------------------------------------------------- bench.py isa


def time_file(model: Path, runtime: str, format: str, threads: int, isa: str | None) -> SelfTest:
    """The best of five self-tests in this process, which plays a CPU that has no more than isa, so no bf16."""
    if isa:
        os.environ["ONEDNN_MAX_CPU_ISA"] = isa
    identifier = Identifier(model, runtime=runtime, format=format, threads=threads, precision="f32" if isa else None)
    return min((self_test(identifier) for _ in range(5)), key=lambda result: result.ms)


def time_files(model: Path, threads: int, isa: str | None) -> tuple[Figures, dict[tuple[str, str], float]]:
    """(a row of the table, ms a frame by (runtime, format) of the files that compute right), as a CPU with isa."""
    row = {}
    milliseconds = {}
    for way in itertools.product(["openvino"] if isa else ["openvino", "onnxruntime"], ("int8", "fp32")):
        name = " ".join(way)
        try:
            result = in_process(time_file, model, *way, threads, isa)
        except UserError:  # some kernels look at the real CPU, and stop where oneDNN plays a lesser one
            row[name] = "fails"
            continue
        row[name] = f"{result.ms:.1f}, off by {result.relative_error:.1%}"
        if result.agrees:
            milliseconds[way] = result.ms
    return row, milliseconds


def bench_isa(*, model: Path = Path("export")) -> None:
    """Milliseconds per frame as on older CPUs, and what identify.py's choice of file loses on them.

    OpenVINO alone can be told to be such a CPU; the rule is compared with what was measured in its row.
    """
    here = cpu_flags()
    cases = [("this CPU, all cores", None, here, 0), ("this CPU, one thread", None, here, 1)]
    cases += [(f"as {isa}", isa, set(flags.split()), 0) for isa, flags in CPU_KINDS.items()]
    rows = {}
    worst = 0.0
    for name, isa, flags, threads in cases:
        if not flags <= here:
            continue
        rows[name], milliseconds = time_files(model, threads, isa)
        if not milliseconds:
            continue
        _, runtime, format, _ = choose_file(model, None, None, flags)
        best = min(milliseconds, key=milliseconds.get)
        loss = milliseconds.get((runtime, format), np.inf) / milliseconds[best] - 1
        rows[name]["the rule picks"] = f"{runtime} {format}"
        if loss:
            rows[name]["the rule picks"] += f", loses {loss:.0%} to {' '.join(best)}"
        worst = max(worst, loss)
    title = f"Formats as on older CPUs, {model}: ms a frame, and logits against those of torch"
    show(title, rows, f"The rule loses at most {worst:.0%} to the best file that computes right (limit 15%).")
