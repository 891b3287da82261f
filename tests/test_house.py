"""python -m pytest tests/test_house.py

What may import what, read from the source with ast, imports inside functions included. Each rule is a function from
{path: source} to a list of faults, so that the tests at the end can show it breaking.
"""

import ast
import importlib.machinery
import os
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = {
    "scrape.py",
    "filter.py",
    "train.py",
    "export.py",
    "models.py",
    "identify.py",
    "index.py",
    "learn.py",
    "bot.py",
    "bench.py",
}
FOLDERS = {"answering", "training", "telegram_bot", "benchmarks", "demo", "docs", "tests"}
BOT_HOST = {"bot.py", "learn.py", "index.py", "identify.py"}  # and answering/ and telegram_bot/
BOT_PACKAGES = {
    "numpy",
    "PIL",
    "aiogram",
    "aiohttp",
    "pebble",
}  # requirements-bot.txt; a runtime is imported where used
OPTIONAL_PACKAGES = {"faiss", "playwright", "psutil", "psycopg", "wandb"}  # requirements.txt does without these
NEVER_ANSWERING = {"torch", "torchvision", "timm", "cv2", "aiogram", "sklearn", "transformers"}
EVERYTHING = {
    "answering",
    "training",
    "telegram_bot",
    "benchmarks",
    "demo",
    "docs",
    "tests",
    "models",
    "script",
    "bench",
}
MAY_IMPORT = {  # by kinds, see kind_of
    "answering": {"answering"},
    "training": {"answering", "training", "models"},
    "telegram_bot": {"answering", "telegram_bot"},
    "models": {"answering"},
    "script": {"answering", "training", "telegram_bot", "models"},
    "bench": EVERYTHING - {"bench", "docs", "tests"},
    "benchmarks": EVERYTHING - {"bench", "docs", "tests"},
    "demo": EVERYTHING - {"bench", "docs", "tests"},
    "docs": EVERYTHING,
    "tests": EVERYTHING,
}
MAX_LINES = 60  # a function has fewer, with its line `def`
MAX_DENSE = 5  # lines that assign three values or more, in all
PURE_CALLS = {"Path", "re.compile", "frozenset", "set", "dict", "tuple", "list", "sorted", "range", "len", "min", "max"}
PURE_CALLS |= {"field"}  # of a dataclass
PURE_DECORATORS = ("dataclass", "dataclasses.", "functools.", "contextlib.", "pytest.", "torch.no_grad")


@dataclass(frozen=True)
class Import:
    path: str  # of the file that imports
    line: int
    module: str  # as written, such as answering.store
    name: str  # what is taken from it; empty for `import module`
    inside: bool  # in a function

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"


def tracked_files() -> list[Path]:
    """Python files that git knows, so that a file of the user's own is no fault; none where this is no checkout."""
    if not (ROOT / ".git").exists():
        return []
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as a hook sets them
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "*.py"]
    try:
        ran = subprocess.run(command, env=clean, capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return []
    return [ROOT / path for path in ran.stdout.split("\0") if path and (ROOT / path).is_file()]


@cache
def read_house() -> dict[str, str]:
    """{path from the root: source} of every Python file of the project."""
    files = tracked_files()
    if not files:
        files = [*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in sorted(files)}


def kind_of(path: str) -> str:
    """The folder of a file; for one on top: models, bench or script."""
    folder, _, rest = path.partition("/")
    if rest:
        return folder
    return folder.removesuffix(".py") if folder in ("models.py", "bench.py") else "script"


def find_imports(path: str, source: str) -> Iterator[Import]:
    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(path, child.lineno, alias.name, "", inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                module = child.module or ""
                if child.level:  # relative: of this file's folder
                    module = ".".join(part for part in (*path.split("/")[: -child.level], module) if part)
                yield from (Import(path, child.lineno, module, alias.name, inside) for alias in child.names)
            deeper = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from walk(child, inside or deeper)

    return walk(ast.parse(source), False)


def target_of(found: Import, files: dict[str, str]) -> str | None:
    """The file of the project that an import reaches, or None for a package of others."""
    name = found.module.replace(".", "/")
    places = [f"{name}/{found.name}", name]
    if kind_of(found.path) == "tests":  # they import each other by their bare names
        places.append(f"tests/{name}")
    for place in places:
        if f"{place}.py" in files:
            return f"{place}.py"
    return None


def links(files: dict[str, str]) -> list[tuple[Import, str]]:
    """Each import that reaches a file of the project, with that file."""
    every = [found for path, source in files.items() for found in find_imports(path, source)]
    reached = [(found, target_of(found, files)) for found in every]
    return [(found, target) for found, target in reached if target]


# ------------------------------------------------------------------------------------------- the rules


def layout_faults(files: dict[str, str]) -> list[str]:
    top = {path for path in files if "/" not in path}
    faults = [f"{path}: a new file on top; put it into the wing that may use it" for path in sorted(top - SCRIPTS)]
    faults += [f"{path}: is missing on top" for path in sorted(SCRIPTS - top)]
    # files of the wings lie flat, so that `ls` shows them all
    return faults + [f"{path}: put it one folder up" for path in sorted(files) if path.count("/") > 1]


def arrow_faults(files: dict[str, str]) -> list[str]:
    faults = []
    for found, target in links(files):
        here, there = kind_of(found.path), kind_of(target)
        if there not in MAY_IMPORT[here]:
            allowed = ", ".join(sorted(MAY_IMPORT[here]))
            faults.append(f"{found}: {here} may import {allowed} alone; move what it needs there")
    return faults


@cache
def is_installed(package: str) -> bool:
    """Whether pip installed it: sys.path has more, ours and what packages add while other tests run."""
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return importlib.machinery.PathFinder.find_spec(package, places) is not None


def missing_faults(files: dict[str, str]) -> list[str]:
    """An import of a file that is not there, even where it would only fail in use; it may have moved into a wing."""
    faults = []
    for found in (found for path, source in files.items() for found in find_imports(path, source)):
        if target_of(found, files):
            continue
        package = found.package
        if package in FOLDERS:
            faults.append(f"{found}: there is no such file; did it move?")
        elif package not in sys.stdlib_module_names | OPTIONAL_PACKAGES and not is_installed(package):
            faults.append(f"{found}: there is no such file on top, nor such a package; did it move?")
    return faults


def circle_faults(files: dict[str, str]) -> list[str]:
    """A file that is reached from itself, each circle once."""
    arrows: dict[str, set[str]] = {path: set() for path in files}
    for found, target in links(files):
        arrows[found.path].add(target)
    faults, done = [], set()

    def visit(path: str, trail: list[str]) -> None:
        if path in trail:
            circle = [*trail[trail.index(path) :], path]
            faults.append(f"{' -> '.join(circle)}: a circle; move what both need into a file below them")
        elif path not in done:
            for target in sorted(arrows[path]):
                visit(target, [*trail, path])
            done.add(path)

    for path in sorted(files):
        visit(path, [])
    return faults


def package_faults(files: dict[str, str]) -> list[str]:
    """Where torch, aiogram and the others may be imported."""
    faults = []
    for path, source in files.items():
        kind, host = kind_of(path), path in BOT_HOST
        for found in find_imports(path, source):
            package = found.package
            ours = target_of(found, files) or package in FOLDERS
            if kind == "answering" and package in NEVER_ANSWERING:
                faults.append(f"{found}: answering/ must do without; take it to training/ or to a script")
            if kind == "answering" and package == "scipy" and not found.inside:
                faults.append(f"{found}: move it into the function that needs it")
            aiogram_here = kind in ("telegram_bot", "docs", "tests") or path == "bot.py"
            if package == "aiogram" and not aiogram_here and not (path == "learn.py" and found.inside):
                faults.append(f"{found}: only telegram_bot/, bot.py and functions of learn.py may; move it there")
            there = ours or package in BOT_PACKAGES | sys.stdlib_module_names
            if (host or kind in ("answering", "telegram_bot")) and not found.inside and not there:
                faults.append(f"{found}: requirements-bot.txt lacks it; import it in the function that needs it")
    return faults


def bot_host_faults(files: dict[str, str]) -> list[str]:
    """What the bot's host has is answering/, telegram_bot/ and four scripts (.dockerignore); they must do alone."""
    wings = ("answering", "telegram_bot")
    faults = []
    for found, target in links(files):
        here, there = (path in BOT_HOST or kind_of(path) in wings for path in (found.path, target))
        if here and not there:
            faults.append(f"{found}: {target} is not on the bot's host; move what is needed to answering/")
    return faults


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def decorators_work(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether a decorator calls what is not known to do nothing but decorate."""
    calls = [part for decorator in node.decorator_list for part in ast.walk(decorator) if isinstance(part, ast.Call)]
    names = [ast.unparse(call.func) for call in calls]
    return not all(name in PURE_CALLS or name.startswith(PURE_DECORATORS) for name in names)


def works_at_import(node: ast.stmt) -> bool:
    """Whether a statement on top of a file, or of a class, is more than an import, definition, constant or guard."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)):
        return False
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return decorators_work(node)
    if isinstance(node, ast.ClassDef):
        return decorators_work(node) or any(works_at_import(inner) for inner in node.body)
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = all(isinstance(target, (ast.Name, ast.Tuple)) for target in targets)
        calls = [ast.unparse(part.func) for part in ast.walk(node) if isinstance(part, ast.Call)]
        return not (names and set(calls) <= PURE_CALLS)
    constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)  # a docstring, or `...`
    return not constant and not is_main_guard(node)


def script_faults(files: dict[str, str]) -> list[str]:
    """Each script: nothing at import, get_parser(), main(argv=None), a main guard. models.py is a module."""
    faults = []
    for path in sorted(SCRIPTS & set(files)):
        body = ast.parse(files[path]).body
        work = [node for node in body if works_at_import(node)]
        faults += [f"{path}:{node.lineno}: works at import; move it into a function" for node in work]
        functions = {node.name: node for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
        guards = [node for node in body if is_main_guard(node)]
        if path == "models.py":
            if guards or "main" in functions:
                faults.append(f"{path}:1: is imported, never run; take main and its guard away")
            continue
        if "get_parser" not in functions:
            faults.append(f"{path}:1: has no get_parser(); build the argparse parser there")
        main = functions.get("main")
        if main is None:
            faults.append(f"{path}:1: has no main(argv=None)")
        elif [arg.arg for arg in main.args.args] != ["argv"] or [ast.unparse(d) for d in main.args.defaults] != [
            "None"
        ]:
            faults.append(f"{path}:{main.lineno}: write it main(argv=None), so that a test can call it")
        if len(guards) != 1:
            faults.append(f'{path}:1: needs one `if __name__ == "__main__":`')
    return faults


def length_faults(files: dict[str, str]) -> list[str]:
    faults = []
    for path, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines >= MAX_LINES:
                    faults.append(
                        f"{path}:{node.lineno}: {node.name} has {lines} lines; split it, {MAX_LINES - 1} at most"
                    )
    return faults


def dense_lines(files: dict[str, str]) -> list[str]:
    """Assignments of three values or more at once: a, b, c = 1, 2, 3. Tests and docs are not counted."""
    found = []
    for path, source in files.items():
        if kind_of(path) in ("tests", "docs"):
            continue
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple) or len(node.value.elts) < 3:
                continue
            if any(isinstance(target, ast.Tuple) and len(target.elts) >= 3 for target in node.targets):
                found.append(f"{path}:{node.lineno}: assigns {len(node.value.elts)} values; write a line each")
    return found


def dense_faults(files: dict[str, str]) -> list[str]:
    found = dense_lines(files)
    return found if len(found) > MAX_DENSE else []


RULES = [
    layout_faults,
    arrow_faults,
    missing_faults,
    circle_faults,
    package_faults,
    bot_host_faults,
    script_faults,
    length_faults,
    dense_faults,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule):
    faults = rule(read_house())
    assert not faults, "\n" + "\n".join(faults)


def test_every_file_is_read():
    files = read_house()
    assert set(files) >= SCRIPTS | {"answering/console.py", "tests/test_house.py", "demo/demo.py", "docs/draw_chat.py"}
    folders = {path.split("/")[0] for path in files if "/" in path}
    assert folders <= FOLDERS, f"a new folder with Python files: say in FOLDERS what it is: {folders - FOLDERS}"


def test_a_file_that_git_does_not_know_is_no_fault(tmp_path, monkeypatch):
    """A user's own script on top; where git knows nothing, every file is read."""
    (tmp_path / "ours.py").touch()
    (tmp_path / "foo.py").touch()
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert set(read_house.__wrapped__()) == {"ours.py", "foo.py"}
    try:
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    subprocess.run(["git", "-C", tmp_path, "add", "ours.py"], check=True)
    assert set(read_house.__wrapped__()) == {"ours.py"}


def test_every_kind_of_file_has_its_arrows():
    assert {kind_of(path) for path in read_house()} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("script", "heavy"),
    [
        ("identify", ["torch", "torchvision", "timm", "cv2", "av", "aiogram", "scipy"]),
        # processes that the bench starts import it again: these would be in the memory and the start that it publishes
        ("bench", ["torch", "matplotlib", "scipy", "cv2", "timm", "aiogram"]),
    ],
)
def test_a_script_loads_what_it_needs_alone(script, heavy):
    code = f"import sys, {script}; print(sorted(set({heavy}) & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", f"import {script} loads {ran.stdout}{ran.stderr}; import it where it is used"


def test_the_container_gets_what_its_scripts_import():
    listed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert listed >= BOT_HOST and {line.split("/")[0] for line in listed} >= {"answering", "telegram_bot"}


def names_not_listed(text: str, files: dict[str, str]) -> list[str]:
    """Names of files that the table `What is where` of CONTRIBUTING.md mentions less often than there are such files.

    It tells what a file is for in its second column; a name in the first one is a mention.
    """
    table = text.split("## What is where")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    mentioned = Counter(name for cell in cells for name in re.findall(r"`(\w+\.py)`", cell))
    listed = [path for path in files if kind_of(path) not in ("demo", "docs", "tests")]
    there = Counter(path.split("/")[-1] for path in listed)
    return [path for path in listed if mentioned[path.split("/")[-1]] < there[path.split("/")[-1]]]


def test_contributing_names_every_file():
    missing = names_not_listed((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), read_house())
    assert not missing, f"say in CONTRIBUTING.md, What is where, what these are for, each one: {missing}"


def test_a_name_in_two_wings_is_to_be_named_twice():
    two = {"answering/stills.py": "", "benchmarks/stills.py": "", "bot.py": ""}
    text = "`bot.py`\n\n## What is where\n\n| `stills.py`, `bot.py` | what |\n"
    assert names_not_listed(text, two) == ["answering/stills.py", "benchmarks/stills.py"]
    assert names_not_listed(f"{text}| `stills.py` | what |\n", two) == []
    assert names_not_listed(text.replace(", `bot.py` | what", " | `bot.py`"), two)[-1] == "bot.py"


# ------------------------------------------------------------------------- the rules can fail, each in its ways


SCRIPT = "def get_parser(): ...\ndef main(argv=None): ...\nif __name__ == '__main__':\n    main()\n"
HOUSE = dict.fromkeys(SCRIPTS, SCRIPT) | {"models.py": "", "answering/a.py": "", "answering/b.py": ""}
HOUSE |= {
    "training/t.py": "",
    "telegram_bot/h.py": "",
    "benchmarks/p.py": "",
    "demo/demo.py": "",
    "tests/test_a.py": "",
}
LONG = "def long():\n" + "    x = 1\n" * 59  # 60 lines


def test_the_small_house_is_without_faults():
    assert [fault for rule in RULES for fault in rule(HOUSE)] == []


@pytest.mark.parametrize(
    ("rule", "path", "source", "said"),
    [
        (layout_faults, "helpers.py", "", "helpers.py: a new file on top"),
        (layout_faults, "answering/deep/c.py", "", "one folder up"),
        (arrow_faults, "answering/a.py", "import models", "answering/a.py:1 imports models"),
        (arrow_faults, "answering/a.py", "def f():\n    from training import t", "answering/a.py:2 imports training"),
        (arrow_faults, "answering/a.py", "class A:\n    def f(self):\n        import identify", "answering/a.py:3"),
        (
            arrow_faults,
            "answering/a.py",
            "try:\n    import training.t\nexcept ImportError:\n    pass",
            "answering/a.py:2",
        ),
        (arrow_faults, "training/t.py", "import train", "training/t.py:1 imports train"),
        (arrow_faults, "training/t.py", "from telegram_bot.h import x", "training/t.py:1"),
        (arrow_faults, "telegram_bot/h.py", "import bot", "telegram_bot/h.py:1"),
        (arrow_faults, "telegram_bot/h.py", "from training import t", "telegram_bot/h.py:1"),
        (arrow_faults, "index.py", SCRIPT + "import learn", "index.py:5 imports learn"),
        (arrow_faults, "train.py", SCRIPT + "from benchmarks.p import x", "train.py:5"),
        (arrow_faults, "benchmarks/p.py", "import bench", "benchmarks/p.py:1"),
        (arrow_faults, "demo/demo.py", "import bench", "demo/demo.py:1"),
        (missing_faults, "demo/demo.py", "def f():\n    from answering.gone import x", "demo/demo.py:2"),
        (missing_faults, "train.py", SCRIPT + "def f():\n    from probe import x", "train.py:6 imports probe: there"),
        (missing_faults, "benchmarks/p.py", "import metrics", "benchmarks/p.py:1"),
        (missing_faults, "benchmarks/p.py", "import t", "benchmarks/p.py:1"),
        (missing_faults, "training/t.py", "def f():\n    from image import x", "training/t.py:2"),
        (missing_faults, "tests/test_a.py", "from test_gone import x", "tests/test_a.py:1"),
        (circle_faults, "answering/a.py", "from answering.a import x", "answering/a.py -> answering/a.py"),
        (bot_host_faults, "bot.py", SCRIPT + "from models import x", "bot.py:5"),
        (bot_host_faults, "learn.py", SCRIPT + "def f():\n    from training.t import x", "learn.py:6"),
        (package_faults, "answering/a.py", "def f():\n    import torch.nn", "answering/a.py:2 imports torch.nn"),
        (package_faults, "answering/a.py", "def f():\n    from sklearn.metrics import x", "answering/a.py:2"),
        (package_faults, "answering/a.py", "from scipy.fft import dct", "answering/a.py:1 imports scipy.fft"),
        (package_faults, "answering/a.py", "import guessit", "requirements-bot.txt lacks it"),
        (package_faults, "identify.py", SCRIPT + "import tqdm", "identify.py:5"),
        (package_faults, "index.py", SCRIPT + "def f():\n    import aiogram", "index.py:6"),
        (package_faults, "learn.py", SCRIPT + "from aiogram import Bot", "learn.py:5"),
        (package_faults, "benchmarks/p.py", "import aiogram", "benchmarks/p.py:1"),
        (script_faults, "train.py", SCRIPT + "print('hello')", "train.py:5: works at import"),
        (script_faults, "train.py", SCRIPT + "SEED = draw()", "train.py:5: works at import"),
        (script_faults, "train.py", SCRIPT + "torch.backends.x = True", "train.py:5: works at import"),
        (script_faults, "train.py", SCRIPT + "for x in y:\n    pass", "train.py:5: works at import"),
        (script_faults, "train.py", SCRIPT + "class A:\n    x = work()", "train.py:5: works at import"),
        (script_faults, "train.py", SCRIPT + "class A:\n    class B:\n        x.y = 1", "train.py:5: works at import"),
        (script_faults, "train.py", SCRIPT + "@register(work())\ndef f(): ...", "train.py:6: works at import"),
        (script_faults, "train.py", SCRIPT + "@dataclass(frozen=work())\nclass A: ...", "train.py:6: works at import"),
        (script_faults, "models.py", "class A:\n    @work()\n    def f(self): ...", "models.py:1: works at import"),
        (script_faults, "train.py", SCRIPT.replace("get_parser", "parse"), "no get_parser()"),
        (script_faults, "train.py", SCRIPT.replace("def main", "def run"), "no main(argv=None)"),
        (script_faults, "train.py", SCRIPT.replace("argv=None", ""), "train.py:2: write it main(argv=None)"),
        (script_faults, "train.py", SCRIPT.replace("argv=None", "argv"), "train.py:2: write it main(argv=None)"),
        (script_faults, "train.py", SCRIPT.replace("if __name__", "if 1 and __name__"), "needs one"),
        (script_faults, "models.py", SCRIPT, "models.py:1: is imported, never run"),
        (length_faults, "tests/test_a.py", LONG, "tests/test_a.py:1: long has 60 lines"),
        (length_faults, "training/t.py", "class A:\n" + "".join(f"  {line}\n" for line in LONG.splitlines()), "t.py:2"),
        (length_faults, "training/t.py", f"async {LONG}", "training/t.py:1"),
        (dense_faults, "training/t.py", "a, b, c = 1, 2, 3\n" * 6, "training/t.py:6: assigns 3 values"),
        (dense_faults, "train.py", SCRIPT + "def f():\n" + "    x.a, x.b, x.c, d = 1, 2, 3, 4\n" * 6, "train.py:11"),
    ],
)
def test_a_rule_can_fail(rule, path, source, said):
    faults = rule(HOUSE | {path: source})
    assert any(said in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("training/t.py", "import models\nfrom answering import a\nimport torch"),
        (
            "answering/a.py",
            "from answering import b\ndef f():\n    from scipy.linalg import eigh\n    import onnxruntime",
        ),
        ("train.py", SCRIPT + "from training.t import x\nfrom models import y\nA, B = 1, re.compile('x')\nC: int = 3"),
        ("benchmarks/p.py", "import train, models\nfrom demo.demo import x"),
        ("learn.py", SCRIPT + "from telegram_bot.h import x\ndef f():\n    import aiogram"),
        ("tests/test_a.py", "import bench, train\n" + "a, b, c = 1, 2, 3\n" * 20),
        ("training/t.py", "a, b, c = 1, 2, 3\n" * 5 + "d, e, f = call()\n" * 20 + "x, y = 1, 2\n" * 20),
        ("training/t.py", "import sys.path, wandb\ndef f():\n    import numpy.linalg"),
        ("models.py", "@dataclass(frozen=True)\nclass A:\n    'Text.'\n    x: list = field(default_factory=list)"),
        ("models.py", "class A:\n    @torch.no_grad()\n    @property\n    def f(self): ...\n@wrap\ndef f(): ..."),
        ("training/t.py", LONG.removesuffix("    x = 1\n")),
    ],
)
def test_what_is_allowed_is_no_fault(path, source):
    assert [fault for rule in RULES for fault in rule(HOUSE | {path: source})] == []


def test_a_circle_of_three_is_found_through_a_function():
    three = {"answering/a.py": "from answering import b", "answering/b.py": "def f():\n    from answering.c import x"}
    (fault,) = circle_faults(HOUSE | three | {"answering/c.py": "import answering.a"})
    assert fault.startswith("answering/a.py -> answering/b.py -> answering/c.py -> answering/a.py: a circle")


def test_a_missing_script_is_found():
    assert layout_faults({path: "" for path in HOUSE if path != "bench.py"}) == ["bench.py: is missing on top"]
