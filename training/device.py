"""The machine that torch runs on: device, precision, peak speed, and which of several processes this is."""

import contextlib
import datetime
import gc
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from answering.console import UserError
from answering.cores import count_cores
from answering.runtimes import cpu_flags

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86-64 and, the last, of ARM, in /proc/cpuinfo

# ------------------------------------------------------------------------------------------------- devices


def choose_device(device: str | None) -> torch.device:
    """The device that --device names, else this process's GPU, else the CPU; made ready. Raises UserError."""
    try:
        # with its index, as tensors have it
        chosen = torch.zeros(1, device=_device_name(device)).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"--device {device}: can't be used here ({reason}); try --device cpu", 2) from None
    if chosen.type == "cpu":
        keep_memory()
        limit_threads()
    else:
        torch.cuda.set_device(chosen)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return chosen


def _device_name(device: str | None) -> torch.device:
    if device and device != "cuda":
        return torch.device(device)
    if not device and not torch.cuda.is_available():
        return torch.device("cpu")
    if dist.is_initialized():  # each process takes its own GPU
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    return torch.device("cuda")


def limit_threads() -> None:
    """Let torch compute in no more threads than this process has cores; it sees no quota of a container."""
    torch.set_num_threads(min(torch.get_num_threads(), count_cores()))


def keep_memory() -> None:
    """Let glibc keep the memory that this process has freed; without glibc nothing happens.

    By default it returns each large block to the system at once, and the system clears it page by page when it is asked
    for again: forward passes on the CPU take more than twice as long (RESULTS.md).
    """
    # of malloc.h: allocate no block by mmap, never trim the heap, grow it by 64 MB
    options = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**26)}
    with contextlib.suppress(ImportError, OSError, AttributeError, TypeError):
        import ctypes

        for number, value in options.values():
            ctypes.CDLL(None).mallopt(number, value)


def forget_peak_memory(device: torch.device) -> None:
    """Give back what an earlier model has left, and begin to look for the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)  # keep_memory keeps it
        Path("/proc/self/clear_refs").write_text("5")  # the peak of before is forgotten


def peak_memory(device: torch.device) -> float | None:
    """GB of GPU memory since forget_peak_memory, or, on a CPU, resident in this process; None where no one counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:  # not Linux
        return None
    return int(found[1]) * 1024 / 1e9 if found else None


def has_bf16(device: torch.device) -> bool:
    """Whether this hardware computes in bfloat16, rather than emulating it.

    oneDNN alone does not tell: with AVX-512 and no bf16 it emulates, and a training step takes up to four times as long
    as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    # private names, which a later torch may drop; Linux lists the same as flags
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(torch.cpu, name, None)
        if supported and supported():
            return True
    return bool(cpu_flags() & BF16_FLAGS)


def peak_flops(device: torch.device, bf16: bool) -> float:
    """Operations a second of square matrix products here, the best of ten; what MFU is measured against."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if bf16 else torch.float32
    a = torch.randn(side, side, device=device, dtype=dtype)
    b = torch.randn(side, side, device=device, dtype=dtype)
    best = math.inf
    for _ in range(11):  # the first one warms up and is never the best
        start = synchronised_clock(device)
        a @ b
        best = min(best, synchronised_clock(device) - start)
    return 2 * side**3 / best


def synchronised_clock(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# ----------------------------------------------------------------------------------------------- processes


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, if it did: nccl between GPUs, gloo between CPUs.

    Only the first process prints. A lack of GPU memory in here becomes a UserError that says what helps.
    """
    started_by_torchrun = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ)
    if started_by_torchrun:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        # the first process decodes all frames while the others wait
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=12))
    try:
        with contextlib.redirect_stdout(None) if process_rank() else contextlib.nullcontext():
            yield
    except torch.cuda.OutOfMemoryError:
        raise UserError("out of GPU memory; lower --batch-size") from None
    if started_by_torchrun:  # not after an error: it would wait for the others, and torchrun ends them
        dist.destroy_process_group()


def process_rank() -> int:
    """Number of this process, 0 for the first, which measures, prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first_process() -> bool:
    return process_rank() == 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1
