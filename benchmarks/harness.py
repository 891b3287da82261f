"""What every benchmark needs: the machine in a line, tables in markdown, a fresh process, a sample of frames."""

import contextlib
import multiprocessing
import platform
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from answering.cores import count_cores
from answering.runtimes import cpu_flags
from answering.stills import expand

FLAGS = ["avx", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"]  # that make a difference
PACKAGES = ("torch", "onnxruntime", "openvino")

Figures = dict[str, float | str]  # {column: value}, a row of a table


def machine() -> str:
    """One line: CPU, cores, the flags that matter here, versions, date."""
    found = None
    with contextlib.suppress(OSError):  # Linux alone has it
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    cpu = found[1] if found else platform.processor() or platform.machine()
    flags = [flag for flag in FLAGS if flag in cpu_flags()]
    python = sys.version.split()[0]
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES if find_spec(package))
    date = time.strftime("%Y-%m-%d")
    return f"{' '.join([cpu, *flags])}, {count_cores()} cores; Python {python}, {versions}; {date}"


def format_cell(column: str, value: float | str, first: float | str | None) -> str:
    """A value; a number with its ratio to the first row's, if there is one, better if over 1."""
    if isinstance(value, str):
        return value
    text = f"{value:,.{0 if value >= 100 else 2}f}"
    if not first:
        return text
    ratio = value / first if column.endswith("/s") else first / value
    return f"{text} ({ratio:.2f}x)"


def show(title: str, rows: dict[str, Figures], *notes: str) -> None:
    """Print {row: {column: value}} as a markdown table; numbers with their ratio to the first row's, better if over 1.

    Less is better, as of times and sizes, but in columns whose name ends in "/s".
    """
    columns = []
    for row in rows.values():
        columns += [column for column in row if column not in columns]
    reference = next(iter(rows.values()))
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, row in rows.items():
        cells = []
        for column in columns:
            first = None if row is reference else reference.get(column)
            cells.append(format_cell(column, row.get(column, ""), first))
        print(f"| {name} | {' | '.join(cells)} |")
    print(*["", *notes], sep="\n")


def resident_megabytes() -> float:
    """Memory that this process holds; of a system without /proc it takes psutil to tell, and 0 stands for unknown."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(r"VmRSS:\s*(\d+)", status)[1]) / 1000
    try:
        import psutil
    except ImportError:
        return 0.0
    return psutil.Process().memory_info().rss / 1e6


def in_process(function: Callable, *args):
    """function(*args) in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def sample(frames: Path, count: int) -> list[str]:
    """At most count images of a folder, spread over it."""
    files = expand([str(frames)])
    return files[:: max(1, len(files) // count)][:count]
