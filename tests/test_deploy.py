"""python -m pytest tests/test_deploy.py"""

import shutil
import subprocess
from pathlib import Path

import pytest

SERVICE = Path(__file__).parent.parent / "deploy" / "movie-bot.service"


def test_service_is_what_systemd_takes(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze")
    unit = tmp_path / SERVICE.name
    true = shutil.which("true")  # systemd looks for the program, which only a host of the bot has
    unit.write_text(SERVICE.read_text().replace("/opt/movie-bot/.venv/bin/python", true))
    result = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert result.returncode == 0 and "movie-bot" not in result.stderr, result.stderr


def test_service_shuts_the_bot_in():
    text = SERVICE.read_text()
    for line in ("DynamicUser=yes", "ProtectSystem=strict", "Restart=always", "EnvironmentFile=", "MemoryMax="):
        assert f"\n{line}" in text
    assert "TOKEN=" not in text.split("[Unit]")[1]
