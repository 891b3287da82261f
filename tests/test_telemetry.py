"""python -m pytest tests/test_telemetry.py

Every process that a test starts here counts the connections and look-ups of its Python, and of those that it starts.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import shared

from answering.telemetry import SETTINGS

ROOT = Path(__file__).parent.parent
GUARD = """
import os, sys

def note(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        address = args[1] if event in ("socket.connect", "socket.sendto") else args[0]
        if isinstance(address, (str, bytes)) and event in ("socket.connect", "socket.sendto"):
            return  # a socket of this machine's files, by which processes talk
        with open(os.environ["GUARD_LOG"], "a", encoding="utf-8") as log:
            log.write(f"{event} {address} in {sys.argv[:2]}\\n")

sys.addaudithook(note)
"""
WORKER = """
import asyncio, sys
from telegram_bot.worker import Worker, name_film

async def main():
    worker = Worker(sys.argv[1])
    await worker.start()
    print(await worker.call(name_film, [sys.argv[2]]))
    await worker.stop()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture
def watched(tmp_path):
    """Function that runs python with arguments; returns the connections and look-ups, a line each."""
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    log = tmp_path / "log"
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in {*SETTINGS, "HF_HUB_OFFLINE"}}
    environment |= {
        "PYTHONPATH": os.pathsep.join((str(guard), str(ROOT))),
        "GUARD_LOG": str(log),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "YOLO_CONFIG_DIR": str(home),
    }

    def run(*arguments) -> list[str]:
        command = [sys.executable, *map(str, arguments)]
        ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr[-2000:]
        assert not (home / "intel").exists()  # where OpenVINO's telemetry keeps its id
        return log.read_text().splitlines() if log.exists() else []

    return run


def test_the_guard_sees_a_look_up_and_a_connection(watched):
    code = """
import contextlib, socket, subprocess, sys
look_up = 'import socket; socket.getaddrinfo("localhost", 80)'
subprocess.run([sys.executable, "-c", look_up], check=True)
with contextlib.suppress(OSError):
    socket.create_connection(("127.0.0.1", 9), timeout=1)
"""
    lines = watched("-c", code)
    assert any(line.startswith("socket.getaddrinfo localhost") for line in lines)
    assert any(line.startswith("socket.connect ('127.0.0.1', 9)") for line in lines)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_identify_sends_nothing(watched, exported, raw, runtime):
    frame = next(raw.rglob("*.jpg"))
    assert watched(ROOT / "identify.py", frame, "--model", exported, "--runtime", runtime) == []


def test_export_sends_nothing(watched, run, dataset, tmp_path):
    command = (ROOT / "export.py", run / "best.pt", "--data", dataset, "--out", tmp_path / "export", "--max-drop", "20")
    assert watched(*command) == []


def test_filter_sends_nothing(watched, raw, tmp_path):
    command = (ROOT / "filter.py", raw, "--out", tmp_path / "out", "--min-frames", "12")
    assert watched(*command, "--detector", "none") == []


def test_the_detector_sends_nothing(watched, raw, tmp_path):
    """With ultralytics, which looks hosts up where it is let."""
    folder = next(raw.iterdir())
    weights = shared("weights", "yolov8n.pt")
    command = (ROOT / "filter.py", folder.parent, "--out", tmp_path / "out", "--min-frames", "12")
    assert watched(*command, "--detector", weights) == []


def test_the_worker_of_the_bot_sends_nothing(watched, exported, raw, tmp_path):
    script = tmp_path / "work.py"
    script.write_text(WORKER)
    assert watched(script, exported, next(raw.rglob("*.jpg"))) == []


def test_settings_of_the_user_stay(watched):
    code = """
import os
os.environ["YOLO_OFFLINE"] = "false"
from answering.telemetry import turn_off_telemetry
turn_off_telemetry()
import huggingface_hub.constants as hub
assert os.environ["YOLO_OFFLINE"] == "false" and hub.HF_HUB_DISABLE_TELEMETRY
hub.HF_HUB_DISABLE_TELEMETRY = False  # as if it had been imported before
turn_off_telemetry()
assert hub.HF_HUB_DISABLE_TELEMETRY
"""
    assert watched("-c", code) == []


def test_every_setting_is_documented():
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert all(f"`{name}={value}`" in text for name, value in SETTINGS.items())
    assert "`ULTRALYTICS_SAFE_LOAD=true`" in text and "`YOLO_VERBOSE=false`" in text
