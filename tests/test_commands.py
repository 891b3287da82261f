"""python -m pytest tests/test_commands.py

Every command that a text of the project shows, run as a process by a shell, as a reader would paste it, and what it
leaves. A command that a text shows and that stands neither in a home.run(...) here nor in NOT_RUN fails a test.
RESULTS.md is left out: its commands are those of the commit that a figure was measured at.
"""

import ast
import contextlib
import csv
import io
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_frame, read_pair
from PIL import Image
from telegram_server import TelegramServer, photo_update
from test_scrape import Flim, clip, imdb, picture

from answering.publishing import ENGINE

ROOT = Path(__file__).parent.parent
TOKEN = "123456:AAF-never_to_be-seen"
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = [*sorted(ROOT.glob("*.py")), ROOT / "demo/demo.py", ROOT / "demo/films.py", ROOT / "docs/draw_chat.py"]
SCRIPTS += [ROOT / "docs/draw_web.py"]
DOCSTRINGS = [*SCRIPTS, *sorted((ROOT / "benchmarks").glob("*.py"))]  # where commands are shown
KNOWN, OTHER = "Film 0 (1990)", "Film 1 (1991)"  # titles of data/raw
SECONDS = 240  # for one command, on a busy machine

NOT_RUN = {  # command as a text shows it: why it is not run here
    "git clone REPOSITORY movie-by-frame && cd movie-by-frame": "needs a network",
    "make .venv": "makes an environment of 7 GB",
    "make .venv PYTHON=python3.11": "the same",
    "make demo": "three to eight minutes; tests/test_demo.py runs its parts",
    "make test": "runs this file",
    "make lint": "asks for style alone",
    "make web": "serves until it is stopped; tests/test_web.py drives the page",
    "make web/vendor": "downloads from npm",
    "python3 -m venv .venv": "makes an environment of 6 GB",
    ".venv/bin/pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu": "downloads",
    ". .venv/bin/activate": "every command here runs in it",
    ".venv/bin/python -m pip install playwright": "downloads",
    ".venv/bin/python -m pytest tests/test_filter.py": "runs tests",
    "REUSE_IN_NODE=1 make test": "downloads from npm",
    ".ci/run": "runs this file",
    "apt install -y git python3-venv && git clone REPOSITORY /opt/movie-bot && cd /opt/movie-bot": "changes a server",
    "python3 -m venv .venv && .venv/bin/pip install -r requirements-bot.txt": "downloads packages",
    ".venv/bin/pip install openvino": "downloads",
    "OLD_RUNTIMES=1 .venv/bin/python -m pytest tests/test_runtimes.py": "downloads packages",
    "sha256sum -c dinov2-small.zip.sha256 && python -m zipfile -e dinov2-small.zip export": "needs a release",
    "docker buildx build --platform linux/amd64,linux/arm64 .": "needs Docker",
    "docker build --build-arg REQUIREMENTS=requirements-shelf.txt --build-arg EXTRA=openvino --tag movie-shelf .": (
        "needs Docker"
    ),
    "docker run --rm --entrypoint python --volume ~/films:/films:ro --volume ./export:/app/export:ro "
    "--volume ./collection:/collection movie-shelf index.py add /films --index /collection/index.sqlite": "the same",
    "scp -r export root@your-server:/opt/movie-bot/": "needs another host",
    "scp -r export you@your-server:movie-bot/": "needs another host",
    "install -m 600 /dev/null /etc/movie-bot.env && echo TELEGRAM_BOT_TOKEN=123456:ABC... > /etc/movie-bot.env": "root",
    "set -a; . /etc/movie-bot.env; .venv/bin/python bot.py --check; set +a": "root; --check is run below",
    "systemctl enable --now /opt/movie-bot/deploy/movie-bot.service && journalctl -fu movie-bot": "needs systemd",
    "git clone REPOSITORY movie-bot && cd movie-bot": "needs a network",
    "python index.py backup new.sqlite && rsync new.sqlite root@your-server:/opt/movie-bot/collection/2/index.sqlite"
    " --mkpath": "needs another host; test_bot.py switches such a link",
    "cd /opt/movie-bot/collection && ln -sfn 2 next && mv -T next current": "the same",
    "install -m 600 /dev/null .env && echo TELEGRAM_BOT_TOKEN=123456:ABC... > .env": "test_bot.py reads such a file",
    "docker compose run --rm --build bot --check": "needs Docker",
    "docker compose up --build --detach && docker compose logs --follow": "needs Docker",
    "docker compose cp bot:/data/. answers": "needs Docker",
    "docker compose restart": "needs Docker",
    "docker compose up --build --detach": "needs Docker",
    "python docs/draw_web.py STILL... --site web-site --out docs/web.png": "tests/test_web.py runs it in a browser",
    "python identify.py unknown.mkv": "tests/test_clip.py runs it on a video that it makes",
    "python bench.py clip data/raw --model export": "tests/test_bench_index.py runs it on more films",
    "python identify.py FRAME --model {}/export": "printed at the end of the demo, which takes minutes",
    "python export.py --arch vit_small_patch14_dinov2 --init hub": "README's embedder is exported below",
    "python train.py data/processed --arch deit_base_patch16_224": "README's run below, with another network",
    "torchrun --nproc-per-node 4 filter.py data/raw": "four GPUs; tests/test_filter.py shares films out",
    "torchrun --nproc-per-node 4 train.py data/processed": "four GPUs; tests/test_train.py runs two processes",
    "python train.py data/processed --arch all --fold all": "six networks, hours; each is tested in test_models.py",
    "python train.py data/processed --arch all --fold all --protocol both --with-random --minutes 60": "an hour; "
    "tests/test_train.py runs it with one small network",
    "python export.py runs --best --max-ms 30": "tests/test_export.py chooses among two runs",
    "hf auth login": "needs an account",
    "hf download timm/vit_small_patch16_dinov3.lvd1689m model.safetensors --local-dir dinov3": "downloads",
    "python export.py --arch vit_small_patch16_dinov3.lvd1689m --init hub --frames ~/films": "a licence first",
    "python export.py --arch vit_small_patch16_dinov3.lvd1689m --init dinov3/model.safetensors --frames ~/films": "the "
    "same; README's embedder is exported below from a local file",
    "python demo/demo.py": "three to eight minutes; tests/test_demo.py runs its parts",
    "python demo/demo.py --films 50 --arch resnet50": "needs a GPU",
    "python demo/films.py --films 257 --frames 330 --out data/raw": "an hour; it is run with fewer films below",
    "python export.py runs/vit_small_patch14_dinov2-processed/best.pt --out trained/export": "the same run, with --web",
    "python export.py runs/deit_base_patch16_224-processed/best.pt --data data/processed": "the same, --data by name",
    "python export.py --arch vit_small_patch14_dinov2 --init hub --web": "both are exported below, one by one",
    "python bench.py infer runs/RUN/best.pt --model export --frames FOLDER": "fifteen processes; isa starts the same",
    "python bench.py cuda --out data/cuda --minutes 9": "needs a GPU; tests/test_bench_cuda.py does it on a CPU",
    "python bench.py cuda --out data/cuda --again compiled": "the same",
    "pip install 'psycopg[binary]'": "downloads",
    ".venv/bin/python -m pip install 'psycopg[binary]'": "downloads",
    "python index.py import index.sqlite --index postgresql://user:password@host:5432/films": "needs a server; "
    "tests/test_index.py starts one",
    "python index.py import index": "tests/test_index.py takes a folder of the version before over",
    "python bot.py --index postgresql://user:password@host:5432/films": "the same",
    "python index.py add ~/films && litestream replicate -once index.sqlite s3://BUCKET/index": "needs a bucket",
    "litestream restore -f -o index.sqlite s3://BUCKET/index": "the same",
    "python bot.py --index index.sqlite": "is run below, with the index that lies there",
    "python export.py --size 336": "tests/test_models.py resizes a model; the rest is an export as below",
    "python -m http.server 8000 --bind 127.0.0.1 --directory {}": "serves until it is stopped",
    "python bench.py shelf film.mkv --model export": "tests/test_bench_shelf.py runs it on a film that it encodes",
    "python bench.py shelf film.mkv --ask --gaps 3,5 --beside data/raw": "the same",
    "TELEGRAM_BOT_TOKEN=... python bot.py --model export --check": "is run below, with another token that is none",
}

# ------------------------------------------------------------------------------- the commands that texts show


def tidy(command: str) -> str:
    """One line without its comment."""
    return " ".join(re.sub(r"\s+# .*", "", command).split())


def commands_of_markdown(text: str) -> set[str]:
    """Lines of shell blocks, and inline code that calls a script with arguments."""
    fenced = r"^```(\w*)\n(.*?)^```$"
    blocks = re.findall(fenced, text, re.S | re.M)
    found = {tidy(line) for language, block in blocks if not language for line in block.splitlines()}
    prose = re.sub(fenced, "", text, flags=re.S | re.M)
    for code in re.findall(r"`([^`]+)`", prose):
        words = code.split()
        if not words:
            continue
        if re.fullmatch(r"\w+\.py", words[0]) and len(words) > 1:  # `export.py --web` in prose
            words.insert(0, "python")
        if words[0] in ("python", "python3", "torchrun", "make", ".venv/bin/python", "docker") and len(words) > 1:
            found.add(" ".join(words))
    return found - {""}


def commands_of_script(source: str) -> set[str]:
    """Those of the docstring on top, and of the lines "next: python ..." that it prints, with {} for what varies."""
    tree = ast.parse(source)
    lines = (ast.get_docstring(tree) or "").splitlines()
    found = {tidy(line) for line in lines if re.match(r"(python|torchrun|cat|echo|[A-Z_]+=\S+ python) ?", line)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            found |= set(re.findall(r"next: (python .+)", "".join(parts)))
    return found


def shown_commands() -> dict[str, str]:
    """{command: the file that shows it}, with `{}` where a script prints what varies."""
    shown = {}
    for path in [*TEXTS, *DOCSTRINGS]:
        text = path.read_text(encoding="utf-8")
        for command in commands_of_markdown(text) if path.suffix == ".md" else commands_of_script(text):
            shown.setdefault(command, path.name)
    return shown


def run_commands(source: str) -> set[str]:
    """What the calls of .run, .follow and .start in a test file run: read there, so that no table can lie."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and node.args]
    names = ("run", "follow", "start")
    ours = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in names]
    return {call.args[0].value for call in ours if isinstance(call.args[0], ast.Constant)}


def test_every_command_shown_is_run_or_says_why_not():
    here = run_commands(Path(__file__).read_text(encoding="utf-8"))
    strange = {command: name for command, name in shown_commands().items() if command not in here | set(NOT_RUN)}
    lines = [f"{name}: {command}" for command, name in strange.items()]
    assert not lines, "run these with home.run(...), or say in NOT_RUN why not:\n" + "\n".join(lines)


def test_no_reason_is_left_for_a_command_that_is_gone():
    gone = set(NOT_RUN) - set(shown_commands())
    assert not gone, f"no text shows these any more, take them out of NOT_RUN: {sorted(gone)}"


def test_commands_are_found_where_readers_see_them():
    assert shown_commands()["python bench.py index"] == "growth.py"
    text = "Say `a.py --b` or `python c.py\n  d`, not `e.py` nor `make`.\n\n"
    text += "```\npython f.py   # g\n\nmake h\n```\n```py\ni\n```\n"
    assert commands_of_markdown(text) == {"python a.py --b", "python c.py d", "python f.py", "make h"}
    source = '"""X.\n\npython a.py  # b\nNot this.\nT=1 python c.py\n"""\nprint(f"done; next: python d.py {x} --e")'
    assert commands_of_script(source) == {"python a.py", "T=1 python c.py", "python d.py {} --e"}
    assert run_commands("home.run('a', {'b': 'c'}); x.run(y); home.follow('d')") == {"a", "d"}


# --------------------------------------------------------------------------------------- a user's own folder


class Home:
    """A folder laid out as a user's clone, in which a shell runs what the texts show."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in [path.name for path in ROOT.glob("*.py")] + ["answering", "training", "telegram_bot", "benchmarks"]:
            (folder / name).symlink_to(ROOT / name)
        for name in ("demo", "docs", "tests"):
            (folder / name).symlink_to(ROOT / name)

    def run(self, shown: str, change: dict[str, str] | None = None, *, more: str = "", code: int = 0) -> "Ran":
        """Run a command as it is shown, but for words that need a network or hours, which change and more replace."""
        return self.shell(changed(shown, change, more), code)

    def start(self, shown: str, change: dict[str, str] | None = None, *, more: str = "") -> subprocess.Popen:
        """The same for a command that goes on until it is stopped."""
        return subprocess.Popen(**self.bash(changed(shown, change, more)))

    def follow(self, template: str, ran: "Ran") -> None:
        """The line "next: ..." of a command is this template, with paths that are there."""
        pattern = re.escape(template).replace(r"\{\}", "(.+?)")
        (line,) = re.findall(r"next: (python .+)", ran.out)
        found = re.fullmatch(pattern, line)
        assert found, f"{line} is not {template}"
        missing = [path for path in found.groups() if not (self.folder / path).exists()]
        assert not missing, f"{line}: not there: {missing}"

    def bash(self, command: str) -> dict:
        """What starts a command in bash, with the Python of these tests first on the path and this folder as home.

        It leads a session of its own, so that kill_group ends what bash started as well.
        """
        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        settings = {"PATH": tools, "HOME": str(self.folder), "MPLCONFIGDIR": str(self.folder / ".matplotlib")}
        clean = {name: value for name, value in os.environ.items() if name not in ("TELEGRAM_BOT_TOKEN", "FLIM_TOKEN")}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
        return {"args": ["bash", "-o", "pipefail", "-c", command], "cwd": self.folder, "env": clean | settings} | pipes

    def shell(self, command: str, code: int = 0) -> "Ran":
        process = subprocess.Popen(**self.bash(command))
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            kill_group(process)
            out, err = process.communicate()
            pytest.fail(f"{command}\nruns for over {SECONDS} s\n{out.decode()}{err.decode()}")
        finally:
            kill_group(process)
        ran = Ran(out.decode(), err.decode())
        assert process.returncode == code, f"{command}\nexit code {process.returncode}\n{ran.out}{ran.err}"
        assert "Traceback" not in ran.err, ran.err
        return ran

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


class Ran:
    """What a command printed."""

    def __init__(self, out: str, err: str):
        self.out = out
        self.err = err

    @property
    def last(self) -> str:
        return self.out.splitlines()[-1]


def kill_group(process: subprocess.Popen) -> None:
    """End what a command left behind: bash, and the Pythons that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def changed(command: str, change: dict[str, str] | None, more: str) -> str:
    for old, new in (change or {}).items():
        assert old in command, f"{old} is not in: {command}"
        command = command.replace(old, new)
    return f"{command} {more}".strip()


def is_drawn(path: Path, width: int = 100) -> bool:
    """Whether a picture opens, is wide enough, and shows something."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"), np.float32)
    return pixels.shape[1] >= width and pixels.std() > 5


def stills(folder: Path) -> int:
    return len([file for file in folder.iterdir() if file.suffix in (".jpg", ".png", ".webp")])


@pytest.fixture(scope="session")
def home(tmp_path_factory, raw) -> Home:
    """Videos, stills, a frame, a screenshot and weights: what a user has before the first command."""
    import timm
    import torch

    home = Home(tmp_path_factory.mktemp("home"))
    clip(home.path("films", "The.Matrix.1999.avi"), [picture(0, shot) for shot in range(4)], 48)
    shutil.copytree(raw, home / "my_screenshots")
    draw_frame(0, 3, 99, (480, 272)).save(home / "frame.jpg", quality=92)
    shutil.copytree(raw / KNOWN, home.path("shots", "Alien"))
    shutil.copytree(raw / OTHER, home.path("more", "Title (Year)"))
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), home / "weights.pth")
    old = timm.create_model("test_vit", num_classes=40, img_size=224)
    torch.save({f"model.{name}": value for name, value in old.state_dict().items()}, home / "model.pt")
    lines = [f"Film: part {number} ({1950 + number}): {number}" for number in range(40)]
    (home / "classes.txt").write_text("\n".join(lines))
    return home


HUB = {"vit_small_patch14_dinov2": "test_resnet", "hub": "weights.pth"}  # a small network, and weights from a file


@pytest.fixture(scope="session")
def scraped(home) -> Path:
    """data/raw: two films from video, and those of my_screenshots."""
    ran = home.run("python scrape.py video ~/films --every 2")
    home.follow("python filter.py {}", ran)
    shutil.copytree(home / "my_screenshots", home.path("data", "raw"), dirs_exist_ok=True)
    return home.path("data", "raw")


@pytest.fixture(scope="session")
def embedder(home, scraped) -> Path:
    """export/: a network that was taught no films."""
    ran = home.run("python export.py --arch vit_small_patch14_dinov2 --init hub --frames ~/films", HUB)
    home.follow("python identify.py FRAME --model {}", ran)
    return home / "export"


@pytest.fixture(scope="session")
def indexed(home, embedder) -> Path:
    ran = home.run("python index.py add data/raw")
    home.follow("python identify.py FRAME --model {} --index {}", ran)
    return home / "index.sqlite"


@pytest.fixture(scope="session")
def filtered(home, scraped) -> Path:
    """data/processed, without the detector, whose weights come from a network."""
    few = "--detector none --min-frames 20"
    ran = home.run("python filter.py data/raw", more=few)
    home.follow("python train.py {}", ran)
    return home.path("data", "processed")


@pytest.fixture(scope="session")
def trained(home, filtered) -> Path:
    change = {"vit_small_patch14_dinov2": "test_resnet --init weights.pth"}
    ran = home.run("python train.py data/processed --arch vit_small_patch14_dinov2 --epochs 0", change)
    home.follow("python export.py {}/best.pt --data {}", ran)
    return home.path("runs", "test_resnet-processed")


@pytest.fixture(scope="session")
def classifier(home, trained) -> Path:
    """A model that knows the films, with the file for the browser."""
    change = {"RUN": "test_resnet-processed"}
    home.run("python export.py runs/RUN/best.pt --web", change, more="--out classifier --max-drop 100")
    return home / "classifier"


@pytest.fixture
def telegram(home):
    """A Bot API on loopback. Commands get its address by --api-base, and the token from the environment."""
    with TelegramServer(TOKEN, {"frame": (home / "frame.jpg").read_bytes()}) as server:
        yield server


# ------------------------------------------------------------------------------------------------- scrape.py


def test_scrape_video(home, scraped):
    folder = scraped / "The Matrix (1999)"
    assert stills(folder) == 4 and all(is_drawn(file) for file in folder.glob("*.jpg"))
    rows = [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]
    assert [round(row["shot_time_ms"], -2) for row in rows] == [0, 2000, 4000, 6000]
    ran = home.run("python scrape.py video ~/films --out data/raw", {"data/raw": "data/shots"})
    assert stills(home.path("data", "shots", "The Matrix (1999)")) == 4 and "1 of 1 films" in ran.last
    home.run("python scrape.py video ~/films --keyframes", more="--out data/keyframes")
    assert stills(home.path("data", "keyframes", "The Matrix (1999)"))


def test_scrape_titles_then_their_stills(home):
    rows = [["tt1", "movie", "Sintel", "x", "0", "2010", "\\N", "Drama"]]
    rows += [["tt2", "movie", "Heat", "x", "0", "1995", "\\N", "Drama"]]
    imdb(
        home / "title.basics.tsv.gz",
        [["tconst", "titleType", "primaryTitle", "originalTitle", "isAdult", "startYear", "endYear", "genres"], *rows],
    )
    imdb(
        home / "title.ratings.tsv.gz",
        [["tconst", "averageRating", "numVotes"], *[[row[0], "8", "90000"] for row in rows]],
    )
    head = ["titleId", "ordering", "title", "region", "language", "types", "attributes", "isOriginalTitle"]
    imdb(home / "title.akas.tsv.gz", [head, ["tt2", "1", "Схватка", "RU", "\\N", "imdbDisplay", "\\N", "0"]])
    ran = home.run(
        "python scrape.py titles --basics title.basics.tsv.gz --ratings title.ratings.tsv.gz --top 800 > movies.txt"
    )
    assert sorted((home / "movies.txt").read_text().splitlines()) == ["Heat (1995)", "Sintel (2010)"]
    home.follow("python scrape.py flim movies.txt", Ran(ran.err, ""))  # stdout is the list
    home.run(
        "python scrape.py titles --basics title.basics.tsv.gz --ratings title.ratings.tsv.gz"
        " --akas title.akas.tsv.gz > movies.txt"
    )
    with open(home / "titles.csv", newline="", encoding="utf-8") as file:
        assert {row["title"]: row["ru"] for row in csv.DictReader(file)}["Heat (1995)"] == "Схватка"
    flim = Flim()
    try:
        flim.add("1", "Heat (1995)", 4)
        flim.add("2", "Sintel (2010)", 3)
        api = f"--api {flim.url} --rate 100"
        ran = home.run("python scrape.py flim movies.txt --out data/raw", {"data/raw": "data/flim"}, more=api)
        home.follow("python filter.py {}", ran)
        home.run(
            'echo "Sintel (2010)" > few.txt; python scrape.py flim few.txt --max-frames 20',
            more=f"{api} --out data/few",
        )
    finally:
        flim.shutdown()
        flim.server_close()
    assert [stills(home.path("data", "flim", name)) for name in ("Heat (1995)", "Sintel (2010)")] == [4, 3]
    assert stills(home.path("data", "few", "Sintel (2010)")) == 3


# ------------------------------------------------------------------------------------- filter.py and train.py


def test_filter(home, filtered):
    with open(filtered / "manifest.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"train", "val", "test", "unknown_val", "unknown_test"}
    assert all((filtered / row["path"]).exists() for row in rows) and is_drawn(filtered / "report.png")
    home.run("python filter.py my_screenshots --detector none --min-frames 20", more="--out data/mine")
    assert len(list(home.path("data", "mine", "movies").iterdir())) == 3
    change = {"yolo11n.onnx": "none", "5 50": "2"}
    out = "--out data/archives --min-frames 20"
    home.run("python filter.py data/raw --detector yolo11n.onnx --subsets 5 50", change, more=out)
    assert home.path("data", "archives", "movies_2_processed.zip").stat().st_size > 10_000
    home.run(
        "python filter.py data/raw --out data/processed",
        {"data/processed": "data/again"},
        more="--detector none --min-frames 20",
    )
    assert home.path("data", "again", "manifest.csv").exists()


def test_train_leaves_a_run(home, trained):
    for name in ("args.json", "metrics.csv", "best.pt", "test.json"):
        assert (trained / name).stat().st_size > 0
    assert is_drawn(trained / "confusion.png") and is_drawn(trained / "mistakes.png")
    assert "test_resnet-processed" in home.path("runs", "results.csv").read_text()
    home.path("runs", "results.png").unlink()
    ran = home.run("python train.py --compare")
    assert "| test_resnet | probe" in ran.out and is_drawn(home.path("runs", "results.png"), 400)


def test_train_in_other_ways(home, filtered):
    small = "--no-pretrained --train-size 64 --limit 12 --precision fp32"
    change = {"mobilenetv2 --limit 200 --epochs 2": f"test_resnet --epochs 1 {small}"}
    home.run("python train.py data/processed --arch mobilenetv2 --limit 200 --epochs 2", change, more="--name quick")
    quick = json.loads(home.path("runs", "quick", "test.json").read_text())
    assert quick["args"]["limit"] == 12 and quick["args"]["epochs"] == 1 and quick["args"]["split"] == "group"
    assert quick["classes"] == 3 and quick["frames"]["train"] == 12
    assert home.path("runs", "quick", "best.pt").exists() and is_drawn(home.path("runs", "quick", "curves.png"))
    change = {"train.py": f"train.py data/processed --arch test_resnet --epochs 1 {small}"}
    home.run("python train.py --recipe original --split random", change, more="--name as-it-was")
    original = json.loads(home.path("runs", "as-it-was", "test.json").read_text())
    assert original["args"]["split"] == "random" and original["args"]["recipe"] == "original"
    assert original["args"]["crop"] == 0.08 and original["args"]["probe"] == 0  # of that recipe
    assert original["args"]["frames"] != quick["args"]["frames"]  # other frames in the splits


# -------------------------------------------------------------------------------------------------- export.py


def test_export_of_a_run(classifier):
    for name in ("model.onnx", "model.int8.onnx", "model.web.onnx", "model.json", "report.md", "README.md"):
        assert (classifier / name).stat().st_size > 0
    assert (classifier / "openvino" / "model.xml").exists() and is_drawn(classifier / "calibration.png")
    assert len(json.loads((classifier / "model.json").read_text())["classes"]) == 3


def test_export_of_the_original_s_weights(home):
    change = {"deit_base_patch16_224": "test_vit"}
    home.run(
        "python export.py model.pt --arch deit_base_patch16_224 --classes classes.txt", change, more="--out original"
    )
    about = json.loads(home.path("original", "model.json").read_text())
    assert len(about["classes"]) == 40 and about["decision"]["movie"] == 0.9


def test_export_of_an_embedder(embedder):
    assert (embedder / "model.onnx").exists() and json.loads((embedder / "model.json").read_text())["classes"] == []


# ------------------------------------------------------------------------------------------------ identify.py


def test_identify_draws_the_proof(home, indexed):
    """It drew nothing once, and exited 0: the script and a module of it held two classes of one name."""
    ran = home.run("python identify.py frame.jpg --evidence proof.png", more="--guess")
    # a network that was taught nothing may refuse, but its best guess is the film
    assert re.fullmatch(r"frame\.jpg +[\d.]+ ms  (.*: )?Film 0 \(1990\) +\(\d+%.*\n", ran.out), ran.out
    assert all(part.std() > 20 for part in read_pair(home / "proof.png")), "the frame or its proof is blank"
    (home / "proof.png").unlink()
    home.run("python identify.py frame.jpg --evidence proof.png", more=f"--index {indexed} --json")
    assert is_drawn(home / "proof.png", 300)


def test_identify_finds_the_nearest_still(home, indexed):
    (line,) = home.run("python identify.py frame.jpg --json").out.splitlines()
    answer = json.loads(line)
    assert answer["file"] == "frame.jpg" and answer["kind"] in ("movie", "shortlist", "unknown")
    best = answer["candidates"][0]
    assert best["title"] == KNOWN and best["evidence"]["file"].endswith(".jpg")


def test_identify_asks_frames_together(home, indexed):
    pictures = sorted((home / "my_screenshots" / KNOWN).glob("*.jpg"))
    for name, still in zip("abc", pictures[::7], strict=False):
        shutil.copy(still, home / f"{name}.jpg")
    (line,) = home.run("python identify.py --together a.jpg b.jpg", more="--json").out.splitlines()
    assert json.loads(line)["candidates"][0]["title"] == KNOWN
    ran = home.run("python identify.py --together a.jpg b.jpg c.jpg", more="--guess")
    assert len(ran.out.splitlines()) == 1 and KNOWN in ran.out


def test_identify_with_a_classifier(home, classifier):
    home.run("python identify.py frame.jpg --model export", {"export": "classifier"})
    home.run("python identify.py frame.jpg --model trained/export", {"trained/export": "classifier"})
    shutil.copytree(home.path("my_screenshots", KNOWN), home / "frames", dirs_exist_ok=True)
    shutil.copy(home / "frame.jpg", home / "more.png")
    home.run("python identify.py frames/ more.png --json > answers.jsonl", {"--json": "--json --model classifier"})
    rows = [json.loads(line) for line in (home / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 49 and all(len(row["candidates"]) == 3 for row in rows)
    home.run(
        "python identify.py frame.jpg folder/ --json", {"folder/": "frames/", "--json": "--json --model classifier"}
    )
    change = {"export/": "classifier/"}
    ran = home.run("cat frame.jpg | python identify.py - --model export/openvino/model.xml", change)
    assert ran.out.startswith("- ")
    ran = home.run("python identify.py --self-test", more="--model classifier")
    assert len(ran.out.splitlines()) == 4 and "agrees" in ran.out
    (home / "torn.jpg").write_bytes(b"no picture")
    ran = home.run("python identify.py frame.jpg", more="torn.jpg --model classifier", code=1)
    assert "torn.jpg" in ran.err and "frame.jpg" in ran.out


# --------------------------------------------------------------------------------------------------- index.py


def test_index_add_search_check(home, indexed):
    home.run("python index.py search frame.jpg --sheet nearest.png")
    assert is_drawn(home / "nearest.png", 300)
    home.run("python index.py add data/raw --model export")  # again: nothing is lost
    home.run('python index.py add "more/Title (Year)"')
    home.run('python index.py add ~/shots/Alien --title "Alien (1979)" --every-nth 2')
    ran = home.run(
        'python index.py list; python index.py check; python index.py remove "Alien (1979)"; python index.py rebuild'
    )
    assert re.search(r"of +24 stills .*Alien \(1979\)", ran.out) and "Alien (1979): removed" in ran.out
    assert "named from" in ran.out and "Title (Year)" in ran.out
    home.run("python index.py rebuild")
    ran = home.shell("python index.py list")
    assert "Alien" not in ran.out and len(ran.out.splitlines()) == 11
    ran = home.run(
        'python index.py rename "movie" "Heat (1995)"; python index.py backup copy.sqlite', {"movie": "Title (Year)"}
    )
    assert "copy.sqlite: 11 films, " in ran.out
    (home / "copy.sqlite").unlink()
    home.shell('python index.py remove "Heat (1995)" && python index.py check --drift')
    ran = home.run("python index.py add ~/films --dry-run")
    assert "->  The Matrix (1999)" in ran.out
    ran = home.run("python index.py add ~/films --model export")
    assert "The Matrix (1999): " in ran.out and "real time" in ran.out
    assert "1 film unchanged" in home.run("python index.py add ~/films").out
    assert home.run("python index.py remove --source telegram").out == "0 stills of users removed\n"


def test_index_is_copied_and_published(home, indexed):
    home.run("python index.py check")
    assert "films, " in home.run("python index.py backup copy.sqlite").out
    ran = home.shell("python index.py import copy.sqlite --index other.sqlite")
    assert "films put into other.sqlite" in ran.out
    (home / "copy.sqlite").unlink()


def test_index_is_published(home, indexed):
    if not (ROOT / "web" / "vendor" / ENGINE[-1]).exists():
        pytest.skip("needs web/vendor: make web/vendor")
    shutil.copy(home / "export" / "model.onnx", home / "export" / "model.web.onnx")  # as --web leaves one
    ran = home.run("python index.py publish web-site")
    assert "next: python -m http.server 8000 --bind 127.0.0.1 --directory web-site" in ran.out
    assert json.loads(home.path("web-site", "index", "index.json").read_text())["published"] is True
    (home / "export" / "model.web.onnx").unlink()
    shutil.rmtree(home / "web-site")


def test_index_learn_says_where_it_went(home):
    ran = home.run("python index.py learn", more="--db bot.sqlite", code=2)
    assert "learn.py" in ran.err and ran.err.count("\n") == 1


# ------------------------------------------------------------------------------------- bot.py and learn.py


def test_bot_check(home, embedder, indexed, telegram):
    change = {"123456:ABC...": TOKEN, "--check": f"--check --api-base {telegram.base}"}
    ran = home.run("TELEGRAM_BOT_TOKEN=123456:ABC... python bot.py --model export --check", change)
    assert ran.out.startswith("all is well: @film_bot, ") and TOKEN not in ran.out + ran.err


def answer_and_stop(bot: subprocess.Popen, telegram: TelegramServer) -> None:
    said = ("sendMessage", "sendPhoto")
    try:
        replied = telegram.wait_for(lambda calls: any(call["method"] in said for call in calls), SECONDS / 4)
        bot.send_signal(signal.SIGTERM)  # bash gave its place to the one command
        error = bot.communicate(timeout=SECONDS)[1].decode()
    finally:
        kill_group(bot)
    assert replied, f"no reply; the bot says:\n{error}"
    assert bot.returncode == 0 and "Traceback" not in error and TOKEN not in error, error


def test_bot_answers_until_it_is_stopped(home, indexed, telegram):
    more = f"--db asked.sqlite --api-base {telegram.base}"
    telegram.push(photo_update("frame", user=7))
    shown = {"123456:ABC...": TOKEN}
    answer_and_stop(
        home.start("TELEGRAM_BOT_TOKEN=123456:ABC... python bot.py --model export", shown, more=more), telegram
    )
    telegram.calls.clear()
    telegram.push(photo_update("frame", user=7))
    (home / ".env").write_text(f"TELEGRAM_BOT_TOKEN={TOKEN}")
    answer_and_stop(home.start("python bot.py --model export", more=more), telegram)
    (home / ".env").unlink()


@pytest.fixture(scope="session")
def asked(home, indexed) -> Path:
    """bot.sqlite, in which a user confirmed a picture of a film, and another missed one."""
    from telegram_bot.database import open_base

    base = open_base(home / "bot.sqlite")
    rows = [("one", time.time(), "confirmed", "movie", "[]", "right", KNOWN, "ann")]
    rows += [("two", time.time(), "missed", "unknown", "[]", "wish", "Stalker", "bob")]
    columns = "id, time, file_id, kind, candidates, verdict, film, who"
    base.executemany(f"INSERT INTO answers ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    base.close()
    return home / "bot.sqlite"


def test_learn_shows_then_adds(home, asked, telegram):
    packed = io.BytesIO()
    draw_frame(0, 77, 0, (480, 272)).save(packed, "JPEG")
    telegram.files["confirmed"] = packed.getvalue()
    change = {"python": f"TELEGRAM_BOT_TOKEN={TOKEN} python"}
    ran = home.run("python learn.py --db bot.sqlite", change, more=f"--api-base {telegram.base}")
    assert is_drawn(home / "learn.png", 300) and KNOWN in (home / "learn.txt").read_text()
    assert "--accept learn.txt" in ran.last and TOKEN not in ran.out + ran.err
    ran = home.run("python learn.py --db bot.sqlite --accept learn.txt")
    assert f"{KNOWN}: 1 stills added" in ran.out
    assert home.run("python index.py remove --source telegram").out == "1 stills of users removed\n"
    assert "telegram:" not in home.shell("python index.py search frame.jpg").out


def test_learn_gives_labels_and_wishes(home, asked):
    ran = home.run("python learn.py --db bot.sqlite --wishes")
    assert ran.out.split() == ["1", "Stalker"]
    assert home.run("python learn.py --db bot.sqlite --confusions").out.startswith("no user has told which film it was")
    home.run("python learn.py --db bot.sqlite --labels labels.csv")
    with open(home / "labels.csv", newline="", encoding="utf-8") as file:
        assert {row["film"] for row in csv.DictReader(file)} == {KNOWN, "Stalker"}


# --------------------------------------------------------------------------------------- bench, demo and docs


def test_bench(home, classifier):
    assert "frames/s" in home.run("python bench.py render", more="--frames 6").out
    assert "robust" in home.run("python bench.py --help").out
    assert "the rule picks" in home.shell("python bench.py isa --model classifier").out


def cells_of(text: str, row: str) -> list[str]:
    """Of the row of a printed markdown table that begins so."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row}")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_bench_of_the_index(home, embedder):
    ran = home.run("python bench.py index", more="--frames 1000 --films 5,10")
    assert float(cells_of(ran.out, "index.py, 1,000 stills")[0]) > 0
    assert not [path for path in home.folder.iterdir() if path.suffix == ".faiss"]
    change = {"data/raw": "my_screenshots"}
    ran = home.run("python bench.py moments data/raw --model export", change, more="--seconds 9 --count 1")
    assert "54 stills of 9 films, every 9 s, are in the index; 9 between are asked." in ran.out
    assert cells_of(ran.out, "index.py")[0] == "1.000 / 1.000"  # frames as they are


def test_bench_of_the_bot(home, indexed):
    pytest.importorskip("psutil", reason="bench.py bot measures memory with psutil")
    change = {"FOLDER": "my_screenshots"}
    few = "--index index.sqlite --users 2 --each 1"
    ran = home.run("python bench.py bot --model export --frames FOLDER", change, more=few)
    assert all(float(cell.split()[0]) > 0 for cell in cells_of(ran.out, "bot.py"))
    assert "2 of 2 frames got one reply, " in ran.out and "exit code 0" in ran.out


def test_demo_films(home):
    change = {"--films 5 --frames 120 --out data/raw": "--films 2 --frames 4 --out data/drawn"}
    ran = home.run("python demo/films.py --films 5 --frames 120 --out data/raw", change)
    home.follow("python filter.py {} --detector none", ran)
    assert all(stills(folder) == 4 for folder in home.path("data", "drawn").iterdir())


def test_docs_draw_chat(home, indexed):
    change = {"STILL...": "frame.jpg more.jpg", "docs/chat.png": "chat.png"}
    draw_frame(1, 3, 99, (480, 272)).save(home / "more.jpg")
    home.run("python docs/draw_chat.py STILL... --model export --index index.sqlite --out docs/chat.png", change)
    assert is_drawn(home / "chat.png", 400)


def helps() -> Iterator[str]:
    parts = {"scrape.py": ("video", "flim", "titles")}
    parts["index.py"] = ("add", "rename", "remove", "list", "check", "search", "rebuild")
    parts["index.py"] += ("backup", "export", "import", "publish")
    for path in SCRIPTS:
        name = path.relative_to(ROOT).as_posix()
        if name != "models.py":
            yield from (f"{name} {part}".strip() for part in ("", *parts.get(name, ())))


@pytest.mark.parametrize("command", helps())
def test_help(command, capsys, monkeypatch):
    """In this process: else nearly all of the time is that of loading torch and aiogram again for each page."""
    script, *part = command.split()
    monkeypatch.setattr(sys, "argv", [script, *part, "--help"])
    monkeypatch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    ran = capsys.readouterr()
    assert not ended.value.code and not ran.err
    assert ran.out.startswith(f"usage: {Path(script).name}")
