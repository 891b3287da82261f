"""harness"""

import itertools
import multiprocessing
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from answering.runtimes import cpu_flags
from answering.stills import expand

FLAGS = ["avx", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"]  # that make a difference


def machine() -> str:
    """One line: CPU, cores, the flags that matter here, versions, date."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    cpu = " ".join([found[1] if found else os.uname().machine, *(flag for flag in FLAGS if flag in cpu_flags())])
    packages = [package for package in ("torch", "onnxruntime", "openvino") if find_spec(package)]
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{cpu}, {os.cpu_count()} cores; Python {sys.version.split()[0]}, {versions}; {time.strftime('%Y-%m-%d')}"


def show(title: str, rows: dict[str, dict[str, float | str]], *notes: str) -> None:
    """Print {row: {column: value}} as a markdown table; numbers with their ratio to the first row's, better if over 1.

    Less is better, as of times and sizes, but in columns whose name ends in "/s".
    """
    columns, reference = list(dict.fromkeys(itertools.chain(*rows.values()))), next(iter(rows.values()))
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, row in rows.items():
        cells = []
        for key in columns:
            value, first = row.get(key, ""), reference.get(key)
            cells.append(value if isinstance(value, str) else f"{value:,.{0 if value >= 100 else 2}f}")
            if row is not reference and first and not isinstance(value, str):
                cells[-1] += f" ({value / first if key.endswith('/s') else first / value:.2f}x)"
        print(f"| {name} | {' | '.join(cells)} |")
    print(*["", *notes], sep="\n")


def in_process(function, *args):
    """function(*args) in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def sample(frames: Path, count: int) -> list[str]:
    """At most count images of a folder, spread over it."""
    files = expand([str(frames)])
    return files[:: max(1, len(files) // count)][:count]
