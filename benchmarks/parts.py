"""A long measurement in parts, each in a process of its own, so that a crash, a hang or a bug costs that part alone."""

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

from answering.console import UserError, atomic_write
from training.report import markdown_table


def torchrun(processes: int, script: str, *args, **environment: str) -> str:
    """For parts: what a script of ours prints under torchrun. Raises RuntimeError where it fails."""
    # without a network there may be nobody to ask for the address of this host
    launcher = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={processes}"]
    command = [sys.executable, "-m", *launcher, Path(__file__).parent.with_name(script), *args]
    how = {"env": os.environ | environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([str(word) for word in command], **how) as process:
        lines = [print(line, end="", flush=True) or line for line in process.stdout]
    if process.returncode:
        raise RuntimeError(f"{script} ended with {process.returncode}")
    return "".join(lines)


def work(function, it, args: tuple, log: Path) -> None:
    """A part, in its process: what it says goes to log, what it finds beside it."""
    os.setsid()  # whoever ends this group of processes ends those that the part started, too
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.register(signal.SIGTERM, chain=True)  # tells where it hangs
    figures = function(it, *args)
    with atomic_write(log.with_suffix(".json"), "w") as file:
        json.dump(figures, file)


def run_part(name: str, it, function, args: tuple, limit: float) -> dict:
    """A row of cuda.json: {"state", "s", and "figures" or "why"}. limit: seconds, then all its processes are ended."""
    log = it.out / "logs" / f"{name.replace(' ', '-')}.log"
    answer = log.with_suffix(".json")
    log.parent.mkdir(parents=True, exist_ok=True)
    answer.unlink(missing_ok=True)
    process, start = get_context("spawn").Process(target=work, args=(function, it, args, log)), time.monotonic()
    process.start()
    try:
        process.join(limit)
    finally:
        late = process.is_alive()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
                time.sleep(5 if late or process.exitcode else 0)  # torchrun ends its processes meanwhile
        process.kill()
    row = {"state": "overran" if late else "failed", "s": round(time.monotonic() - start, 1)}
    if not late and answer.exists():
        figures = json.loads(answer.read_text())
        return row | {"state": "skipped" if "skipped" in figures else "done", "figures": figures}
    said = log.read_text(errors="replace")[-4000:] if log.exists() else ""
    return row | {"why": f"exit code {process.exitcode}, limit {limit:.0f} s\n{said.strip()}"}


def write_report(report: dict[str, dict], out: Path) -> str:
    """cuda.json and cuda.md; returns the latter."""
    parts, rows = [f"# Measured on {time.strftime('%Y-%m-%d')} by bench.py cuda\n"], []
    for name, row in report.items():
        cells = [f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.get("figures", {}).items()]
        rows.append([name, row["state"], f"{row.get('s', 0):.0f}", "; ".join(cells)])
    parts.append(markdown_table(["part", "", "s", ""], rows))
    for table in out.glob("runs/results.md"):
        parts.append(f"## Rendered films, from random weights\n\n{table.read_text()}")
    parts += [f"## {name}\n\n```\n{row['why']}\n```\n" for name, row in report.items() if "why" in row]
    for name, text in (("cuda.json", json.dumps(report, indent=1)), ("cuda.md", "\n".join(parts))):
        with atomic_write(out / name, "w") as file:
            file.write(text)
    return text


def run_parts(parts: dict[str, tuple], it, minutes: float, again: str = "") -> None:
    """Do the parts that it.out/cuda.json does not call done, and those whose names begin with again, if it is given.

    parts: {name: (function, arguments, seconds it may take)}; function(it, *arguments) returns {figure: value}, or
    {"skipped": reason}. What is found is on disk after each part. Raises UserError where one fails or overruns.
    """
    end, report = time.monotonic() + 60 * minutes, {}
    with contextlib.suppress(FileNotFoundError):
        report = json.loads((it.out / "cuda.json").read_text())
    for name, (function, args, limit) in parts.items():
        if report.get(name, {}).get("state") == "done" and not (again and name.startswith(again)):
            continue
        left = end - time.monotonic()
        report[name] = {"state": "begun" if left > 5 else "no time left"}
        write_report(report, it.out)
        if left > 5:
            report[name] = run_part(name, it, function, args, min(limit, left))
            print(f"{name}: {report[name]['state']}, {report[name]['s']:.0f} s", flush=True)
    print(write_report(report, it.out))
    if bad := [name for name, row in report.items() if row["state"] in ("failed", "overran")]:
        raise UserError(f"{', '.join(bad)} failed or overran; see {it.out}/cuda.md")
