"""python -m pytest tests/test_portability.py

A machine without what only Linux has, played here: our files can't import those modules, and /proc is not there.
"""

import errno
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

import scrape

ROOT = Path(__file__).parent.parent
SCRIPTS = ["scrape", "filter", "train", "export", "models", "identify", "index", "learn", "bot", "bench"]
PLAY = """
import builtins, ctypes, io, os, sys
from pathlib import Path

HIDDEN = {"fcntl", "resource", "termios", "pwd", "grp", "posix"}
ROOT = ROOT_OF_THE_PROJECT
real_import, real_open, real_library = builtins.__import__, io.open, ctypes.CDLL

def ours(depth):
    file = sys._getframe(depth).f_code.co_filename
    return file.startswith(ROOT + os.sep) and not file.startswith(os.path.join(ROOT, ".venv"))

def import_(name, *args, **kwargs):
    if name.split(".")[0] in HIDDEN and ours(2):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real_import(name, *args, **kwargs)

def open_(file, *args, **kwargs):
    if str(file).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return real_open(file, *args, **kwargs)

def library(name, *args, **kwargs):
    if name is None and ours(2):
        raise TypeError("LoadLibrary() argument 1 must be str, not None")  # what Windows says
    return real_library(name, *args, **kwargs)

builtins.__import__, builtins.open, io.open, ctypes.CDLL = import_, open_, open_, library
for name in ("pwrite", "pread", "sched_getaffinity", "setsid", "killpg", "process_cpu_count"):
    if hasattr(os, name):
        delattr(os, name)
"""


def play(code: str, cwd: Path) -> str:
    """What code prints on the machine that is played."""
    head = PLAY.replace("ROOT_OF_THE_PROJECT", repr(str(ROOT))) + f"sys.path.insert(0, {str(ROOT)!r})\n"
    script = cwd / "play.py"
    script.write_text(head + code, encoding="utf-8")
    ran = subprocess.run([sys.executable, str(script)], cwd=cwd, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_the_machine_that_is_played_lacks_them(tmp_path):
    ours = tmp_path / "mine.py"
    code = f"""
from pathlib import Path
import fcntl  # this file is none of the project's
source = compile("import fcntl", {str(ROOT / "mine.py")!r}, "exec")
try:
    exec(source)
except ModuleNotFoundError:
    print("hidden")
try:
    Path("/proc/cpuinfo").read_text()
except FileNotFoundError:
    print("no proc")
"""
    assert play(code, tmp_path).split("\n")[:2] == ["hidden", "no proc"] and not ours.exists()


def test_every_script_and_wing_is_imported(tmp_path):
    wings = ("answering", "training", "telegram_bot", "benchmarks")
    names = SCRIPTS + [f"{wing}.{file.stem}" for wing in wings for file in sorted((ROOT / wing).glob("*.py"))]
    code = "import importlib\nfor name in " + repr(names) + ":\n    importlib.import_module(name)\nprint('all')\n"
    assert play(code, tmp_path) == "all\n"


def test_frames_are_answered_indexed_and_decoded(exported, raw, dataset, tmp_path):
    """What the modules are used for has another way: cores, memory, frames on the disk."""
    frame = next(raw.rglob("*.jpg"))
    code = f"""
import identify, index
from answering.cores import count_cores
from answering.pictures import PREPROCESSING
from benchmarks.harness import machine
from benchmarks.shelf import family_megabytes
from telegram_bot import worker
from training.dataset import read_manifest
from training.device import choose_device
from training.frames import FrameStore

if __name__ == "__main__":
    for runtime in ("onnxruntime", "openvino"):
        assert identify.main([{str(frame)!r}, "--model", {str(exported)!r}, "--runtime", runtime]) == 0
    assert index.main(["add", {str(raw)!r}, "--model", {str(exported)!r}, "--index", "films.sqlite"]) == 0
    rows = read_manifest(Path({str(dataset)!r}))[:9]
    store = FrameStore(rows, PREPROCESSING, Path("frames"), (96, 64))
    store.decode(rows)
    assert store.take(rows)[:].float().mean() > 10
    choose_device("cpu")
    assert count_cores() >= 1 and machine() and family_megabytes(1) == 0 and worker.resident() == 0
    print("done")
"""
    assert play(code, tmp_path).endswith("done\n") and (tmp_path / "films.sqlite").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows locks in another way")
@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_share_without_locks_is_locked_by_a_file(tmp_path, monkeypatch, number):
    import fcntl

    def refuse(*_):
        raise OSError(number, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with scrape.lock(tmp_path):
        with pytest.raises(scrape.UserError, match=r"another scrape\.py is at work there"), scrape.lock(tmp_path):
            raise AssertionError("two have the lock")
        assert list(tmp_path.glob(".lock*"))
    with scrape.lock(tmp_path):  # it is free again
        pass
    assert issubclass(filelock.Timeout, OSError)  # which the lock must not take for a share without locks
