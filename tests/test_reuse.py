"""python -m pytest tests/test_reuse.py"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from answering.model import Identifier
from answering.pictures import read_image
from answering.screenshots import find_bars

PACKAGES = ("onnxruntime-node@1.30.0", "sharp@0.35.5")  # 114 and 9 MB to download; from npm's own cache next time
MINUTES = 5

REUSE = Path(__file__).parent.parent / "docs" / "reuse.md"


def block(language: str) -> str:
    """The program of docs/reuse.md in this language, as its readers copy it."""
    found = re.findall(rf"```{language}\n(.*?)```", REUSE.read_text(encoding="utf-8"), re.S)
    return next(text for text in found if "known" in text)


@pytest.fixture(scope="module")
def wanted(exported, raw, tmp_path_factory) -> dict[Path, str]:
    """{folder with a frame.jpg without black bars: what identify.py answers, in the words of docs/reuse.md}.

    The thresholds lie in the widest gaps between the frames, so that all three kinds of answer occur, and a decoder
    that rounds otherwise changes none.
    """
    export = tmp_path_factory.mktemp("export")
    for name in ("model.int8.onnx", "model.json"):
        shutil.copy(exported / name, export / name)
    identifier = Identifier(export / "model.int8.onnx", runtime="onnxruntime")
    folders = {}
    for number, file in enumerate(sorted([*raw.glob("Film [012] */0[01]_0.jpg"), *raw.glob("Film [345] */00_0.jpg")])):
        height, width, _ = read_image(file).shape
        assert find_bars(read_image(file)) == (0, 0, width, height)
        folder = tmp_path_factory.mktemp(f"frame{number}")
        Image.fromarray(identifier.load(file)).save(folder / "frame.jpg", quality=100)  # of the model's own size
        (folder / "export").symlink_to(export)
        folders[folder] = float(identifier.run(identifier.load(folder / "frame.jpg")[None])["known"][0])
    known = np.sort(list(folders.values()))
    shortlist, movie = np.sort(np.argsort(np.diff(known))[-2:])
    thresholds = {
        "shortlist": float(known[shortlist : shortlist + 2].mean()),
        "movie": float(known[movie : movie + 2].mean()),
    }
    decision = identifier.contract.decision | thresholds
    for name in ("model.int8.onnx", "model.json"):
        replace(identifier.contract, decision=decision).save(export / name)
    identifier = Identifier(export / "model.int8.onnx", runtime="onnxruntime")
    answers = {}
    for folder in folders:
        answer = identifier.identify(folder / "frame.jpg")
        titles = " | ".join(c.title for c in answer.candidates)
        words = {"movie": f"movie: {answer.candidates[0].title}", "shortlist": f"shortlist: {titles}"}
        answers[folder] = words.get(answer.kind, "unknown")
    assert {answer.split(":")[0] for answer in answers.values()} == {"movie", "shortlist", "unknown"}
    return answers


@pytest.fixture(scope="module")
def npm(tmp_path_factory):
    """A folder with PACKAGES, away from the repository; removed afterwards, as it takes 310 MB."""
    if "REUSE_IN_NODE" not in os.environ:
        pytest.skip("downloads 122 MB from npm: set REUSE_IN_NODE=1 for it")
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("npm")
    # no scripts: onnxruntime-node's would download CUDA. no retries: without a network we want to know at once
    options = ["--ignore-scripts", "--prefer-offline", "--fetch-retries=0", "--no-audit", "--no-fund"]
    install = [shutil.which("npm"), "install", "--prefix", str(folder), *options, *PACKAGES]
    load = [shutil.which("node"), "-e", "require('onnxruntime-node'), require('sharp')"]
    try:
        for command in (install, load):  # what is installed does not load in an old Node or on a rare platform
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60 * MINUTES)
        yield folder
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {' and '.join(PACKAGES)} in {MINUTES} minutes")
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "rror" in line] or [f"exit code {error.returncode}"]
        pytest.skip(f"needs {' and '.join(PACKAGES)} from npm: {lines[0].strip()}")
    finally:
        shutil.rmtree(folder)


def test_bare_python(wanted):
    after = "\nimport sys\nassert not {'identify', 'answering', 'models', 'torch'} & set(sys.modules)"
    for folder, answer in wanted.items():
        command = [sys.executable, "-I", "-c", block("python") + after]
        assert subprocess.check_output(command, cwd=folder, text=True).strip() == answer


def test_node(npm, wanted):
    (npm / "name.mjs").write_text(block("js"))
    for folder, answer in wanted.items():
        for name in ("frame.jpg", "export"):
            (npm / name).unlink(missing_ok=True)
            (npm / name).symlink_to(folder / name)
        command = [shutil.which("node"), "name.mjs"]
        assert subprocess.check_output(command, cwd=npm, text=True).strip() == answer
