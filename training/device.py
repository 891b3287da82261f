"""The machine that torch runs on: which device, how precise, how fast at most, and which of several processes."""

import contextlib
import datetime
import math
import os
import time

import torch
import torch.distributed as dist

from answering.console import UserError
from answering.runtimes import cpu_flags

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86-64 and, the last, of ARM, in /proc/cpuinfo


def keep_memory() -> None:
    """Let glibc keep the memory it has freed, in this process; elsewhere nothing happens.

    It would give each large block back at once, and the system would clear it page by page when it is asked for again:
    forward passes on the CPU take more than twice as long (RESULTS.md).
    """
    with contextlib.suppress(ImportError, OSError, AttributeError, TypeError):
        import ctypes

        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            ctypes.CDLL(None).mallopt(option, value)


def choose_device(device: str | None) -> torch.device:
    """The device that --device names, else this process's GPU, else the CPU; made ready. Raises UserError."""
    try:
        local = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if dist.is_initialized() else "cuda"
        asked = None if device == "cuda" else device  # each process takes its own GPU
        where = torch.device(asked or (local if torch.cuda.is_available() or device else "cpu"))
        where = torch.zeros(1, device=where).device  # with its index, as tensors have it
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"--device {device}: can't be used here ({reason}); try --device cpu", 2) from None
    if where.type == "cpu":
        keep_memory()
    else:
        torch.cuda.set_device(where)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    return where


def has_bf16(device: torch.device) -> bool:
    """Whether this hardware computes in bfloat16, rather than emulating it.

    oneDNN alone does not tell: with AVX-512 and no bf16 it emulates, and a training step takes up to four times as long
    as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    # private names, which a later torch may drop; the flags are Linux's word for the same
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe() for probe in probes if probe) or bool(cpu_flags() & BF16_FLAGS)


def peak_flops(device: torch.device, bf16: bool) -> float:
    """Operations a second of square matrix products here, the best of ten; what MFU is measured against."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
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


@contextlib.contextmanager
def process_group():
    """Join the processes that torchrun started, if it did: nccl between GPUs, gloo between CPUs. The first talks.

    Whoever runs out of GPU memory in here is told what helps.
    """
    if several := {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ):
        patience = datetime.timedelta(hours=12)  # the first one decodes all frames while the others wait
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=patience)
    try:
        with contextlib.redirect_stdout(None) if process_rank() else contextlib.nullcontext():
            yield
    except torch.cuda.OutOfMemoryError:
        raise UserError("out of GPU memory; lower --batch-size") from None
    if several:  # not behind an error: it would wait for the others, and torchrun ends them
        dist.destroy_process_group()


def process_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
