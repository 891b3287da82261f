"""python -m pytest tests/test_deploy.py"""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICE = ROOT / "deploy" / "movie-bot.service"
REQUIREMENTS = ("requirements-bot.txt", "requirements-shelf.txt")
SCRIPTS = ("bot.py", "learn.py", "index.py", "identify.py")  # that people run in the container


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


# ------------------------------------------------------------------------------------------------ the image


def is_let_in(path: str) -> bool:
    """Whether .dockerignore lets a file into the image, by Docker's rules.

    The last pattern that fits the file or a folder above it decides; * and ? stop at a slash, ** does not.
    """
    let_in = True
    above = [path, *(str(folder) for folder in Path(path).parents if folder != Path("."))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        expression = re.escape(pattern.removeprefix("!").strip("/"))
        expression = expression.replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
        if any(re.fullmatch(expression, one) for one in above):
            let_in = pattern.startswith("!")
    return let_in


def imported_files(file: str) -> set[str]:
    """The project's files that a file imports, also those that its functions import."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = {f"{name.replace('.', '/')}.py" for name in names}
    return {file for file in files if (ROOT / file).exists()}


def test_the_image_holds_all_that_its_scripts_import():
    needed, found = set(), set(SCRIPTS)
    while found:
        needed |= found
        found = {other for file in found for other in imported_files(file)} - needed
    assert {"telegram_bot/worker.py", "answering/model.py"} <= needed
    for file in (*needed, "telegram_bot/texts.toml", *REQUIREMENTS):
        assert (ROOT / file).exists() and is_let_in(file), file


def test_the_image_holds_nothing_else():
    places = (ROOT, *(folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith(".")))
    files = {str(file.relative_to(ROOT)) for place in places for file in place.iterdir() if file.is_file()}
    files |= {".env", "bot.sqlite", ".git/config", "data/raw/a.jpg", "export/model.onnx", "runs/a/best.pt"}
    files |= {"answering/__pycache__/model.pyc", "telegram_bot/__pycache__/app.pyc", "__pycache__/bot.pyc"}
    let_in = {file for file in files if is_let_in(file)}
    wings = {file for file in let_in if re.fullmatch(r"(answering|telegram_bot)/\w+\.(py|toml)", file)}
    assert let_in - wings == {*SCRIPTS, *REQUIREMENTS}


def test_the_image_is_made_of_what_is_let_in():
    text = (ROOT / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (.+) \./$", text, re.MULTILINE)
    assert copied == [" ".join(REQUIREMENTS), "."] and '"python", "bot.py"' in text
