"""python -m pytest tests/test_install.py

The three sizes of install: what a script imports must be in its file of requirements, or come with it. A process of a
test can import nothing else of what is installed here.
"""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import draw_frame, write_video

ROOT = Path(__file__).parent.parent
GUARD = """
import sys

HIDDEN = set(NAMES)

class Guard:
    '''A finder that finds nothing of what is hidden.'''

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Guard, sys.meta_path)
"""


def read_names(file: str) -> set[str]:
    """The packages that a file of requirements lists, with those of the files that it names."""
    names = set()
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            names |= read_names(line[3:].strip())
        elif line and not line.startswith("#"):
            names.add(re.match(r"[\w.-]+", line)[0])
    return {tidy(name) for name in names}


def tidy(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_what_they_need(names: set[str]) -> set[str]:
    """These packages and those that they need, as far as they are installed; extras are left out."""
    found = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another system
            continue
        needed = [line for line in needed if "extra ==" not in line]
        waiting |= {tidy(re.match(r"[\w.-]+", line)[0]) for line in needed} - found
    return found


def hidden_modules(file: str) -> list[str]:
    """Modules of all that is installed here but would not be by this file of requirements."""
    kept = with_what_they_need(read_names(file))
    owners = importlib.metadata.packages_distributions()
    return sorted(module for module, names in owners.items() if not {tidy(name) for name in names} & kept)


@pytest.fixture
def python(tmp_path, monkeypatch):
    """Function that runs python, and all that it starts, with the packages of a file of requirements alone."""
    monkeypatch.delenv("COVERAGE_PROCESS_START", raising=False)

    def run(file: str, *arguments) -> subprocess.CompletedProcess:
        hidden = hidden_modules(file)
        assert {"torch", "timm", "openvino", "cv2", "pytest"} <= set(hidden)
        (tmp_path / "sitecustomize.py").write_text(GUARD.replace("NAMES", repr(hidden)), encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return run


def test_only_what_is_listed_can_be_imported(python):
    assert "No module named 'torch'" in python("requirements-shelf.txt", "-c", "import torch").stderr
    assert "No module named 'av'" in python("requirements-bot.txt", "-c", "import av").stderr
    assert python("requirements-shelf.txt", "-c", "import av, scipy, guessit, onnxruntime, aiogram").returncode == 0


def test_a_shelf_is_added_and_asked_without_torch(python, exported, tmp_path):
    """Video files and folders of stills, an answer about a still and about a clip."""
    pictures = [draw_frame(0, shot, 0) for shot in range(8)]
    film = write_video(tmp_path / "films" / "Film One (2001).mkv", list(map(as_array, pictures)), rate=1, gop=1)
    for shot in range(4):
        place = tmp_path / "films" / "Film Two (2002)" / f"{shot}.png"
        place.parent.mkdir(exist_ok=True)
        draw_frame(1, shot, 0).save(place)
    place = ["--model", exported, "--index", tmp_path / "films.sqlite"]
    added = python("requirements-shelf.txt", ROOT / "index.py", "add", tmp_path / "films", *place)
    assert added.returncode == 0 and "2 films" in added.stdout, added.stderr
    asked = python("requirements-shelf.txt", ROOT / "identify.py", film, *place, "--verbose", "--guess")
    assert asked.returncode == 0 and "onnxruntime" in asked.stderr and "Film One" in asked.stdout, asked.stderr


def as_array(picture):
    import numpy as np

    return np.asarray(picture)


def test_the_smallest_install_answers(python, exported, raw, tmp_path):
    ran = python("requirements-bot.txt", ROOT / "identify.py", next(raw.rglob("*.jpg")), "--model", exported, "--json")
    assert ran.returncode == 0 and '"kind"' in ran.stdout, ran.stderr
    for script in ("bot", "learn", "index", "identify"):
        ran = python("requirements-bot.txt", ROOT / f"{script}.py", "--help")
        assert ran.returncode == 0, ran.stderr


def test_a_video_with_the_smallest_install_is_one_line_with_the_mend(python, exported, tmp_path):
    film = write_video(tmp_path / "films" / "Film.mkv", [as_array(draw_frame(0, shot, 0)) for shot in range(3)])
    ran = python("requirements-bot.txt", ROOT / "index.py", "add", film, "--model", exported)
    last = ran.stderr.strip().splitlines()[-1]
    assert ran.returncode and "pip install" in last and "Traceback" not in ran.stderr


def test_a_shelf_without_a_model_is_told_both_ways_to_one(tmp_path, capsys):
    from index import EMBEDDER, main

    (tmp_path / "films" / "Film (2000)").mkdir(parents=True)
    draw_frame(0, 0, 0).save(tmp_path / "films" / "Film (2000)" / "a.png")
    assert main(["add", str(tmp_path / "films"), "--model", str(tmp_path / "export")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert EMBEDDER in line and "releases" in line and "python export.py --arch vit_small_patch14_dinov2" in line


def test_each_size_holds_the_smaller_one():
    bot, shelf, train = (read_names(f"requirements{size}.txt") for size in ("-bot", "-shelf", ""))
    assert bot < shelf < train and "openvino" in train - shelf and "torch" in train - shelf


def test_the_readme_shows_a_line_for_each_size():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for file in ("requirements-bot.txt", "requirements-shelf.txt", "requirements.txt"):
        assert f"pip install -r {file}" in text
