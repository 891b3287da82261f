"""A long measurement in parts, each in a process of its own, so that a crash, a hang or a bug costs that part alone."""

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

from answering.console import UserError, atomic_write

PATIENCE = 5  # seconds: less than that is no time to begin a part, and so long has torchrun to end its processes


class Settings(Protocol):
    """What a measurement is asked for; its parts know more of it."""

    out: Path  # where its report lies


@dataclass(frozen=True)
class Part:
    function: Callable[..., dict]  # (settings, *arguments) -> {figure: value}, or {"skipped": reason}
    arguments: tuple
    limit: float  # seconds it may take


def torchrun(processes: int, script: str, *args, **environment: str) -> str:
    """For parts: what a script of ours prints under torchrun. Raises RuntimeError where it fails."""
    # without a network there may be nobody to ask for the address of this host
    launcher = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={processes}"]
    command = [sys.executable, "-m", *launcher, Path(__file__).parent.with_name(script), *args]
    lines = []
    with subprocess.Popen(
        [str(word) for word in command],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise RuntimeError(f"{script} ended with {process.returncode}")
    return "".join(lines)


def work(part: Part, settings: Settings, log: Path) -> None:
    """A part, in its process: what it says goes to log, what it finds beside it."""
    os.setsid()  # whoever ends this group of processes ends those that the part started, too
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.register(signal.SIGTERM, chain=True)  # tells where it hangs
    figures = part.function(settings, *part.arguments)
    with atomic_write(log.with_suffix(".json"), "w") as file:
        json.dump(figures, file)


def run_part(name: str, part: Part, settings: Settings, limit: float) -> dict:
    """A row of cuda.json: {"state", "s", and "figures" or "why"}. limit: seconds, then all its processes are ended."""
    log = settings.out / "logs" / f"{name.replace(' ', '-')}.log"
    answer = log.with_suffix(".json")
    log.parent.mkdir(parents=True, exist_ok=True)
    answer.unlink(missing_ok=True)
    process = get_context("spawn").Process(target=work, args=(part, settings, log))
    start = time.monotonic()
    process.start()
    try:
        process.join(limit)
    finally:
        late = process.is_alive()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
                time.sleep(PATIENCE if late or process.exitcode else 0)
        process.kill()
    seconds = round(time.monotonic() - start, 1)
    if not late and answer.exists():
        figures = json.loads(answer.read_text())
        state = "skipped" if "skipped" in figures else "done"
        return {"state": state, "s": seconds, "figures": figures}
    printed = log.read_text(errors="replace")[-4000:].strip() if log.exists() else ""
    reason = f"exit code {process.exitcode}, limit {limit:.0f} s\n{printed}"
    return {"state": "overran" if late else "failed", "s": seconds, "why": reason}


def format_figure(name: str, value: float | str) -> str:
    return f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}"


def format_report(report: dict[str, dict], out: Path) -> str:
    """The text of cuda.md: a table of all parts, the table of runs if there is one, and why parts failed."""
    from training.report import markdown_table  # it loads matplotlib, which inflates what others measure

    rows = []
    for name, row in report.items():
        figures = [format_figure(*figure) for figure in row.get("figures", {}).items()]
        rows.append([name, row["state"], f"{row.get('s', 0):.0f}", "; ".join(figures)])
    chapters = [f"# Measured on {time.strftime('%Y-%m-%d')} by bench.py cuda\n"]
    chapters.append(markdown_table(["part", "", "s", ""], rows))
    for table in out.glob("runs/results.md"):
        chapters.append(f"## Rendered films, from random weights\n\n{table.read_text()}")
    for name, row in report.items():
        if "why" in row:
            chapters.append(f"## {name}\n\n```\n{row['why']}\n```\n")
    return "\n".join(chapters)


def write_report(report: dict[str, dict], out: Path) -> str:
    """cuda.json and cuda.md; returns the latter."""
    text = format_report(report, out)
    for name, content in (("cuda.json", json.dumps(report, indent=1)), ("cuda.md", text)):
        with atomic_write(out / name, "w") as file:
            file.write(content)
    return text


def read_report(out: Path) -> dict[str, dict]:
    """cuda.json of earlier calls; empty where there is none."""
    path = out / "cuda.json"
    return json.loads(path.read_text()) if path.exists() else {}


def run_parts(parts: dict[str, Part], settings: Settings, minutes: float, again: str = "") -> None:
    """Do the parts that OUT/cuda.json does not call done, and those whose names begin with again, if it is given.

    What is found is on disk after each part. Raises UserError where one fails or overruns.
    """
    end = time.monotonic() + 60 * minutes
    report = read_report(settings.out)
    for name, part in parts.items():
        if report.get(name, {}).get("state") == "done" and not (again and name.startswith(again)):
            continue
        left = end - time.monotonic()
        if left <= PATIENCE:
            report[name] = {"state": "no time left"}
            write_report(report, settings.out)
            continue
        report[name] = {"state": "begun"}
        write_report(report, settings.out)
        report[name] = run_part(name, part, settings, min(part.limit, left))
        print(f"{name}: {report[name]['state']}, {report[name]['s']:.0f} s", flush=True)
    print(write_report(report, settings.out))
    bad = [name for name, row in report.items() if row["state"] in ("failed", "overran")]
    if bad:
        raise UserError(f"{', '.join(bad)} failed or overran; see {settings.out}/cuda.md")
