"""python -m pytest tests/test_web.py"""

import base64
import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import onnx
import pytest
from conftest import draw_credits, draw_frame, shared
from PIL import Image
from test_index import write_film, write_model

import export
import index
from answering import collection, packing
from answering.calibration import Rule
from answering.contract import Contract
from answering.embedding import FilmRows
from answering.flat import is_flat
from answering.model import Identifier, is_flat_inside, relative_error
from answering.pictures import IMAGE_SUFFIXES, PREPROCESSING, read_image
from answering.projection import Scoring, project_all
from answering.publishing import ENGINE, PAGE
from answering.screenshots import cut_still
from answering.state import Film, IndexedModel
from answering.store import Collection, pack_vectors
from benchmarks.ways import screenshot
from docs import draw_web
from training.quantise import write_web

WEB = Path(__file__).parent.parent / "web"
READY = "#answer[aria-busy=false]"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files, as `python -m http.server` gives them; asked: all that was asked for."""

    asked: ClassVar[list[str]] = []

    def log_message(self, *args):
        self.asked.append(self.path)

    def log_request(self, code="-", size="-"):
        self.asked.append(self.path)
        self.server.answered.append((self.path, int(code)))


def serve(folder: Path) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    server.answered = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser's driver: pip install playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("needs a browser: apt-get install chromium")
    if not (WEB / "vendor" / ENGINE[-1]).exists():
        pytest.skip("needs web/vendor: make web/vendor")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def frames(raw, tmp_path_factory) -> list[Path]:
    """Frames of known and unknown films, and pictures of all kinds that people send."""
    folder = tmp_path_factory.mktemp("frames")
    plain = draw_frame(1, 3, 0, (640, 360))
    for name, size, box in (("wide.png", (640, 480), (0, 60)), ("tall.jpg", (800, 360), (80, 0))):
        barred = Image.new("RGB", size)
        barred.paste(plain, box)
        barred.save(folder / name)
    text = Image.new("RGB", (640, 480))
    text.paste(plain, (0, 60))
    text.paste((200, 200, 200), (200, 440, 440, 450))  # a subtitle in the lower bar
    text.save(folder / "subtitle.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    plain.save(folder / "turned.jpg", exif=turned)
    plain.convert("L").save(folder / "grey.jpg")
    plain.quantize(64).save(folder / "palette.gif")
    faded = plain.convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(plain.size))
    faded.save(folder / "faded.png")
    plain.save(folder / "near.webp", lossless=True)
    for name in ("large.jpg", "large.png"):
        draw_frame(2, 5, 1, (2200, 1240)).save(folder / name)
    return [*sorted(raw.glob("Film [0-5]*/0[02]_0.jpg")), *sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def site(exported, frames, tmp_path_factory) -> Path:
    """A host's folder: web/, and export/ with thresholds in the widest gaps, so that all kinds of answer occur."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(WEB, root / "web")
    for name in ("export", "lens"):
        (root / name).mkdir()
    file = root / "export" / "model.web.onnx"
    write_web(exported / "model.onnx", file, False)
    contract = Contract(**json.loads((exported / "model.json").read_text()))
    set_thresholds(file, contract, frames)
    write_lens(root / "lens" / "model.web.onnx")
    lens = replace(contract, classes=["A", "B", "C", "D"], preprocessing=PREPROCESSING)
    set_thresholds(root / "lens" / "model.web.onnx", lens, frames)
    return root


def set_thresholds(file: Path, contract: Contract, frames: list[Path]) -> None:
    """Give a model its contract, with thresholds in the widest gaps between frames."""
    contract.save(file)
    identifier = Identifier(file, runtime="onnxruntime")
    known = np.sort([identifier.run(identifier.load(frame)[None])["known"][0] for frame in frames])
    low, high = np.sort(np.argsort(np.diff(known))[-2:])
    thresholds = {"shortlist": float(known[low : low + 2].mean()), "movie": float(known[high : high + 2].mean())}
    contract = replace(contract, decision=contract.decision | thresholds)
    contract.save(file)
    contract.save(file.with_name("model.json"))


def write_lens(path: Path) -> None:
    """A model that sees every pixel: three sums over 8 x 8 cells weighed by 1 or -1, and how neighbours differ."""
    size, make = PREPROCESSING["size"], onnx.helper.make_node
    cells = np.random.default_rng(13).choice([-1, 1], (8, 8, 3, 3))
    weight = cells.repeat(size // 8, 0).repeat(size // 8, 1).reshape(-1, 3) * (0.1 / size**2 / 3)
    constants = {"w": weight.astype(np.float32), "flat": np.array([-1, size * size * 3]), "gain": np.float32([0.3])}
    constants |= {name: np.array([value]) for name, value in (("0", 0), ("1", 1), ("2", 2), ("-1", -1), ("end", size))}
    nodes = [
        make("Cast", ["image"], ["x"], to=1),
        make("Reshape", ["x", "flat"], ["row"]),
        make("MatMul", ["row", "w"], ["sums"]),
        make("Slice", ["x", "1", "end", "2"], ["right"]),
        make("Slice", ["x", "0", "-1", "2"], ["left"]),
        make("Sub", ["right", "left"], ["step"]),
        make("Abs", ["step"], ["size"]),
        make("ReduceMean", ["size"], ["mean"], axes=[1, 2], keepdims=0),
        make("ReduceMean", ["mean"], ["sharp"], axes=[1], keepdims=1),
        make("Mul", ["sharp", "gain"], ["edges"]),
        make("Concat", ["sums", "edges"], ["logits"], axis=1),
        make("Sigmoid", ["logits"], ["probabilities"]),
        make("ReduceMax", ["probabilities"], ["known"], axes=[1], keepdims=0),
        make("Identity", ["logits"], ["embedding"]),
    ]
    shapes = {"logits": ["N", 4], "probabilities": ["N", 4], "known": ["N"], "embedding": ["N", 4]}
    graph = onnx.helper.make_graph(
        nodes,
        "lens",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["N", size, size, 3])],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture(scope="module")
def host(site) -> str:
    server = serve(site)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def context(browser):
    with browser.new_context(locale="en-GB", viewport={"width": 1000, "height": 800}) as context:
        yield context


@pytest.fixture
def page(context, host):
    return visit(context, host)


def visit(context, host: str, model: str = "/export/"):
    return open_page(context, f"{host}/web/?model={model}")


def open_page(context, address: str):
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector(READY, state="attached")
    return page


def answers(page, files: list[Path]) -> list[dict]:
    """Hand files to the page's file input -> data-* of their answers, in order."""
    page.set_input_files("input[type=file]", files)
    return collect(page, len(files))


def collect(page, count: int) -> list[dict]:
    """data-* of the last count answers, in the order of their pictures; the newest stands on top."""
    page.wait_for_selector(READY, state="attached")
    found = page.evaluate("[...document.querySelectorAll('article')].map((card) => ({...card.dataset}))")
    shown = page.evaluate("({...document.querySelector('#answer').dataset})")
    assert shown == found[0]
    return found[:count][::-1]


def compare(page, model: Path, files: list[Path], points: float) -> set[str]:
    """The kinds of answer, after checking that each is identify.py's, three candidates to so many points."""
    identifier, kinds = Identifier(model / "model.web.onnx", runtime="onnxruntime"), set()
    found = answers(page, files)
    shown = page.evaluate(
        """[...document.querySelectorAll("article")].map((card) =>
          [...card.querySelectorAll("meter")].map((meter) => [meter.ariaLabel, meter.value]))"""
    )[::-1]
    if (model.parent / "index.sqlite").exists():
        identifier.index = collection.Index(model.parent / "index.sqlite", identifier)
    for file, row, listed in zip(files, found, shown, strict=True):
        wanted = identifier.identify(file, 9)
        assert (row["file"], row["kind"], bool(row["reason"])) == (file.name, wanted.kind, bool(wanted.reason)), file
        kinds.add(wanted.kind)
        if wanted.reason:
            assert row["title"] == "" and listed == []
            continue
        assert row["title"] == wanted.candidates[0].title
        assert row["look"] == (wanted.look or ""), file
        times = [row["at"], row["from"], row["to"]]
        if proof := wanted.candidates[0].evidence:
            known = [proof.time_ms, proof.from_ms, proof.to_ms]
            assert (row["still"], times) == (proof.file, [str(-1 if time is None else time) for time in known]), file
            assert abs(float(row["alike"]) - proof.similarity) < 0.01, file
        else:
            assert (row["still"], times) == ("", ["", "", ""]), file
        assert abs(float(row["confidence"]) - listed[0][1]) < 1e-4
        confidences = {candidate.title: candidate.confidence for candidate in wanted.candidates}
        assert len(listed) == min(3, len(confidences))
        for title, confidence in listed:  # those after the first may be as good as equal, and change places
            assert abs(confidence - confidences[title]) < points / 100, file
    return kinds


def test_answers_are_those_of_identify(page, site, frames):
    assert compare(page, site / "export", frames, 2) == {"movie", "shortlist", "unknown"}


def test_pictures_are_prepared_as_identify_prepares_them(context, host, site, frames):
    assert compare(visit(context, host, "/lens/"), site / "lens", frames, 0.12) == {"movie", "shortlist", "unknown"}


@pytest.fixture(scope="module")
def flat_pictures(tmp_path_factory) -> list[Path]:
    """Pictures with too little in them: black, a fade, a card, credits, and these in bars and in a screenshot."""
    folder = tmp_path_factory.mktemp("flat")
    pictures = {"black": Image.new("RGB", (320, 180)), "white": Image.new("RGB", (320, 180), "white")}
    pictures["card"] = draw_credits(1, size=(640, 360))
    pictures["credits"] = draw_credits(14, size=(960, 400))
    pictures["yellow"] = draw_credits(9, size=(1280, 720), colours=("#101060", "#ffe040"))
    pictures["paper"] = draw_credits(9, size=(854, 480), colours=("#f0ece0", "#202020"))
    pictures["barred"] = Image.new("RGB", (960, 540))
    pictures["barred"].paste(draw_credits(9, size=(960, 400), colours=("#600c10", "white")), (0, 70))
    pictures["screen"] = screenshot(
        draw_credits(9, size=(720, 400), colours=("#202830", "white")), np.random.default_rng(3)
    )
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    return sorted(folder.iterdir())


def test_pictures_with_too_little_in_them_are_unknown_and_the_page_says_why(browser, host, site, flat_pictures, frames):
    words = {"en-US": "too little in the picture", "ru-RU": "слишком мало"}
    for locale, part in words.items():
        with browser.new_context(locale=locale) as context:
            page = visit(context, host)
            assert compare(page, site / "export", flat_pictures, 2) == {"unknown"}
            assert all(row["reason"] for row in answers(page, flat_pictures))
            assert all(part in text for text in page.locator("article h2").all_text_contents())
            assert not any(row["reason"] for row in answers(page, frames))


def test_real_frames_are_flat_for_the_page_where_they_are_for_identify(context, host, site):
    files = sorted(shared("frames", "known", "Sintel (2010)").glob("*.jpg"))
    pictures = [read_image(file, draft=2 * PREPROCESSING["size"]) for file in files]
    flat = [is_flat(rgb) or is_flat_inside(rgb, cut_still(rgb)) for rgb in pictures]
    assert 10 < sum(flat) < len(files) - 10
    found = answers(visit(context, host, "/lens/"), files)
    assert [bool(row["reason"]) for row in found] == flat


def test_real_frames_are_prepared_as_identify_prepares_them(context, host, site):
    files = sorted(file for file in shared("frames").rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)[::20]
    assert compare(visit(context, host, "/lens/"), site / "lens", files, 0.12)


@pytest.fixture(scope="module")
def screenshots(frames, tmp_path_factory) -> list[Path]:
    """Phones' screens with a frame in them, and pictures that only look like that."""
    folder, files = tmp_path_factory.mktemp("screenshots"), []
    for seed in range(12):
        size = ((640, 360), (360, 360), (720, 300))[seed % 3]
        screen = screenshot(draw_frame(seed % 5, seed, 0, size), np.random.default_rng(seed))
        screen = screen.resize([(540, 1170), (738, 1600), (1200, 2600)][seed // 2 % 3], Image.Resampling.BICUBIC)
        files.append(folder / f"{seed:02}.{('png', 'jpg')[seed % 2]}")
        screen.save(files[-1])
    screen.crop((0, 0, 300, 2600)).save(folder / "narrow.png")
    return [*files, folder / "narrow.png"]


def test_the_still_inside_a_screenshot_is_the_one_that_identify_finds(context, host, site, frames, screenshots):
    (site / "strict").mkdir()
    shutil.copy(site / "lens" / "model.web.onnx", site / "strict")
    contract = Contract(**json.loads((site / "lens" / "model.json").read_text()))
    contract = replace(contract, decision=contract.decision | {"shortlist": 2.0, "movie": 2.0})
    for name in ("model.web.onnx", "model.json"):
        contract.save(site / "strict" / name)
    page, files = visit(context, host, "/strict/"), [*screenshots, *frames]
    assert compare(page, site / "strict", files, 0.12) == {"unknown"}
    looks = [row["look"] for row in answers(page, files)]
    assert looks.count("still") >= 8 and looks.count("") >= 9
    place = len(files) - looks.index("still")
    assert "by the still inside" in page.inner_text(f"article:nth-of-type({place}) .about")


def add_and_publish(films: list[Path], place: Path, model: Path) -> None:
    """Make index.sqlite in a folder, and site/ beside it, with the model in export/."""
    assert index.main(["add", *map(str, films), "--model", str(model), "--index", str(place / "index.sqlite")]) == 0
    publish(place)


def publish(place: Path, *more: str) -> None:
    index_file = str(place / "index.sqlite")
    command = ["publish", str(place / "site"), "--model", str(place / "export"), "--index", index_file, *more]
    assert index.main(command) == 0


@pytest.fixture(scope="module")
def collections(site, exported, raw, tmp_path_factory):
    """A host's folder with two sites: of an embedder, and of a classifier that knows half as many films."""
    root = tmp_path_factory.mktemp("collections")
    (root / "embedder").mkdir()
    write_embedder(root / "embedder")
    shutil.copytree(site / "export", root / "classifier" / "export")
    for film in range(6):
        write_film(root / "films" / f"Film {film} <b>&amp; \u0424 ({1990 + film})", film, range(8))
    (root / "films" / "Film 5 <b>&amp; \u0424 (1995)" / "frames.jsonl").unlink()  # no times
    for name in ("embedder", "classifier"):
        place = root / name
        model = Identifier(place / "export" / "model.web.onnx", runtime="onnxruntime")
        seen = base64.b64encode(collection.fingerprint(model)).decode()
        contract = replace(model.contract, self_test=model.contract.self_test | {"fingerprint": seen})
        contract.save(place / "export" / "model.json")
        films = [root / "films"] if name == "embedder" else sorted((root / "films").iterdir())[2:]
        add_and_publish(films, place, model.path)
    server = serve(root)
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()


@pytest.mark.parametrize("name", ["embedder", "classifier"])
def test_answers_of_an_index_are_those_of_identify(context, collections, frames, screenshots, name):
    host, root = collections
    page = open_page(context, f"{host}/{name}/site/")
    known = sorted((root / "films").rglob("0[0-7]_[13].jpg"))[::3]
    assert compare(page, root / name / "export", [*known, *frames, *screenshots], 2) >= {"movie", "unknown"}
    shown = page.evaluate("""[...document.querySelectorAll(".proof:not([hidden])")].map((figure) =>
      [figure.querySelector("img").naturalWidth, figure.innerText])""")
    assert len(shown) >= len(known) and all(width == 200 for width, _ in shown)
    assert any(re.search(r"\n0:00:\d\d( to 0:0[01]:\d\d)?\n", text) for _, text in shown)
    assert any("<b>&amp; \u0424" in text for text in page.locator("h2").all_text_contents())
    assert page.locator("b").count() == 0


def test_an_index_of_one_film_names_it(context, collections):
    host, root = collections
    film = sorted((root / "films").iterdir())[0]
    shutil.copytree(root / "embedder" / "export", root / "alone" / "export")
    add_and_publish([film], root / "alone", root / "alone" / "export" / "model.web.onnx")
    page = open_page(context, f"{host}/alone/site/")
    assert compare(page, root / "alone" / "export", sorted(film.glob("0[1-3]_1.jpg")), 2) >= {"movie"}


def test_the_page_scores_as_the_index_says(context, collections, frames):
    host, root = collections
    shutil.copytree(root / "embedder", root / "scored")
    changed = Collection(root / "scored" / "index.sqlite")
    with changed.writing():
        about = changed.about()
        about.scoring = Scoring(middle_weight=0.2, runner_up_penalty=0.6, min_films=3)
        changed.write_about(about)
    publish(root / "scored")
    before = [row["confidence"] for row in answers(open_page(context, f"{host}/embedder/site/"), frames)]
    page = open_page(context, f"{host}/scored/site/")
    assert compare(page, root / "scored" / "export", frames, 2)
    assert [row["confidence"] for row in answers(page, frames)] != before


def test_an_index_answers_offline_at_the_second_visit(context, collections):
    host, root = collections
    server = serve(root)
    host = f"http://127.0.0.1:{server.server_port}"
    files = sorted((root / "films").rglob("01_0.jpg"))
    page = open_page(context, f"{host}/embedder/site/")
    wanted = answers(page, files)
    page.close()
    server.shutdown()
    server.server_close()
    page = open_page(context, f"{host}/embedder/site/")
    assert [row | {"ms": 0} for row in answers(page, files)] == [row | {"ms": 0} for row in wanted]
    assert all(row["still"] for row in wanted) and page.locator(".proof:not([hidden])").count() == len(files)


def test_an_index_that_cannot_be_used_is_a_sentence(context, collections, frames):
    host, root = collections
    place = "site/index/index.json"
    state = json.loads((root / "embedder" / place).read_text())
    other = base64.b64encode(np.random.default_rng(1).random((2, 192), np.float32)).decode()
    gone = [{**state["vectors"][0], "file": "vectors-gone.bin"}]
    more = [{**state["films"][0], "stills": 100_000}]
    cases = {
        "format": (state | {"format": "movie-by-frame index 3"}, "movie-by-frame index 3: index.py publish"),
        "model": (state | {"model": state["model"] | {"fingerprint": other}}, "means"),
        "vectors": (state | {"vectors": gone}, "vectors-gone.bin"),
        "short": (state | {"films": more}, "damaged"),
        "page": (None, "damaged"),
        "empty": (state | {"films": []}, "holds no films yet"),
    }
    for name, (changed, words) in cases.items():
        shutil.copytree(root / "embedder", root / name)
        (root / name / place).write_text(json.dumps(changed) if changed else "<!doctype html>")
        page = open_page(context, f"{host}/{name}/site/")
        assert words in page.inner_text("#status.error"), name
        assert answers(page, [frames[0]])[0]["kind"] == "error"
    shutil.copytree(root / "classifier", root / "alone-it-answers")
    shutil.copy(root / "vectors" / place, root / "alone-it-answers" / place)
    page = open_page(context, f"{host}/alone-it-answers/site/")  # which knows films without an index
    text, (answer,) = page.inner_text("#status"), answers(page, [frames[0]])
    assert text.startswith("Ready") and "index here" in text and answer["kind"] != "error"


# ------------------------------------------------------------------------------------------ a site of publish


def write_embedder(place: Path) -> None:
    """export/ with an embedder for the page, which needs no training."""
    write_model(place / "export", 8)
    (place / "export" / "model.onnx").rename(place / "export" / "model.web.onnx")
    model = Identifier(place / "export" / "model.web.onnx", runtime="onnxruntime")
    seen = base64.b64encode(collection.fingerprint(model)).decode()
    contract = replace(model.contract, self_test=model.contract.self_test | {"fingerprint": seen})
    contract.save(place / "export" / "model.json")


@pytest.fixture(scope="module")
def made_site(tmp_path_factory) -> Path:
    """films/, five drawn ones, and place/ with an embedder, their index, and site/."""
    root = tmp_path_factory.mktemp("published")
    (root / "place").mkdir()
    write_embedder(root / "place")
    for film in range(5):
        write_film(root / "films" / f"Film {film} ({1990 + film})", film, range(8))
    add_and_publish([root / "films"], root / "place", root / "place" / "export" / "model.web.onnx")
    return root


@pytest.fixture
def published(made_site, tmp_path) -> Path:
    """A copy of place/, beside a copy of films/."""
    for name in ("films", "place"):
        shutil.copytree(made_site / name, tmp_path / name)
    return tmp_path / "place"


@pytest.fixture
def shown(published):
    """(address of the site, server); its answered has each request with its status."""
    server = serve(published / "site")
    yield f"http://127.0.0.1:{server.server_port}/", server
    server.shutdown()


def known_frames(published: Path, film: int) -> list[Path]:
    return sorted((published.parent / "films" / f"Film {film} ({1990 + film})").glob("*_1.jpg"))


def test_a_site_has_what_the_page_needs_and_nothing_else(published, capsys):
    site = published / "site"
    names = {path.name for path in site.iterdir()}
    assert names == {*PAGE, "vendor", "model", "index"}
    assert {path.name for path in (site / "vendor").iterdir()} == set(ENGINE)
    assert {path.name for path in (site / "model").iterdir()} == {"model.json", "model.web.onnx"}
    assert collection.find_index(site / "model") is None  # what lies beside it is for the page alone
    capsys.readouterr()
    publish(published)
    assert " 0 new files" in capsys.readouterr().out
    (site / "index" / "notes.txt").write_text("of the user")
    assert index.main(["remove", "Film 4 (1994)", "--index", str(published / "index.sqlite")]) == 0
    before = {path.name for path in (site / "index").rglob("*.bin")}
    publish(published)
    state = json.loads((site / "index" / "index.json").read_text())
    after = {path.name for path in (site / "index").rglob("*.bin")}
    assert len(state["films"]) == 4 and before - after and (site / "index" / "notes.txt").exists()
    named = [state[part] for part in ("projection", "times")] + state["vectors"]
    assert after == {Path(name).name for name in [file["file"] for file in named] + state["films"][0]["packs"]} | {
        Path(pack).name for film in state["films"] for pack in film["packs"]
    }


def test_answers_of_a_site_are_those_of_identify(context, published, shown):
    files = [frame for film in range(5) for frame in known_frames(published, film)[::2]]
    page = open_page(context, shown[0])
    assert compare(page, published / "export", files, 0.5) >= {"movie"}
    spans = page.evaluate("[...document.querySelectorAll('article')].map(({dataset}) => dataset.to - dataset.from)")
    assert max(spans) > 0


def test_publish_refuses_what_would_show_more_or_not_work(published, tmp_path, capsys):
    made = ["--index", str(published / "index.sqlite"), "--model", str(published / "export")]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".env").write_text("TELEGRAM_BOT_TOKEN=1:secret")
    write_model(tmp_path / "other", 4)
    (tmp_path / "other" / "model.onnx").rename(tmp_path / "other" / "model.web.onnx")
    contract = json.loads((published / "export" / "model.json").read_text())
    fingerprint = base64.b64encode(np.ones((2, 48), np.float32).tobytes()).decode()
    contract["self_test"]["fingerprint"] = fingerprint
    (tmp_path / "other" / "model.json").write_text(json.dumps(contract))
    cases = [
        ([str(tmp_path / "home"), *made], "holds other files"),
        ([str(WEB), *made], "holds other files"),
        ([str(tmp_path / "home" / ".env"), *made], "is a file"),
        ([str(tmp_path / "new"), *made[:2], "--model", str(tmp_path / "home")], "export.py ... --out"),
        ([str(tmp_path / "new"), *made[:2], "--model", str(tmp_path / "other")], "another model"),
        ([str(tmp_path / "new"), "--index", str(tmp_path / "none.sqlite"), *made[2:]], "no index there"),
    ]
    for argv, words in cases:
        assert index.main(["publish", *argv]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, argv
    assert not (tmp_path / "new").exists() and len(list((tmp_path / "home").iterdir())) == 1


def test_make_web_serves_the_site_and_nothing_else():
    makefile = (WEB.parent / "Makefile").read_text()
    (served,) = re.findall(r"http\.server .*", makefile)
    assert served.endswith("--directory web-site") and "publish web-site" in makefile
    assert "/web-site/" in (WEB.parent / ".gitignore").read_text().splitlines()


def test_stills_of_users_answer_but_are_shown_only_if_the_owner_says_so(context, published, shown):
    base = sqlite3.connect(published / "index.sqlite")
    base.execute("UPDATE still SET file = 'telegram:' || file")
    base.commit()
    base.close()
    publish(published)
    packs = b"".join(path.read_bytes() for path in (published / "site/index/stills").iterdir())
    assert b"RIFF" not in packs
    page = open_page(context, shown[0])
    (row,) = answers(page, known_frames(published, 2)[:1])
    assert row["title"] == "Film 2 (1992)" and row["still"].startswith("telegram:")
    assert (
        "sent by a user and is not shown" in page.inner_text(".proof")
        and page.locator(".proof img:visible").count() == 0
    )
    publish(published, "--show-users-stills")
    packs = b"".join(path.read_bytes() for path in (published / "site/index/stills").iterdir())
    assert packs.count(b"RIFF") == 5 * 8  # near-duplicates are stored once


def test_a_rebuild_is_noticed_while_the_page_is_open(context, published, shown):
    page = open_page(context, shown[0])
    frame = known_frames(published, 2)[0]
    assert answers(page, [frame])[0]["title"] == "Film 2 (1992)"
    made = ["--index", str(published / "index.sqlite")]
    assert index.main(["rename", "Film 2 (1992)", "Renamed (1992)", *made]) == 0
    assert index.main(["remove", "Film 4 (1994)", *made]) == 0
    publish(published)
    old = published / "site/index/index.json"
    os.utime(old, (old.stat().st_atime, old.stat().st_mtime + 2))  # the server tells dates by the second
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_selector("#status:has-text('Films known: 4')")
    assert "were updated" in page.inner_text("#status")
    assert answers(page, [frame])[0]["title"] == "Renamed (1992)"


def test_stills_that_a_rebuild_removed_make_the_page_ask_again(context, published, shown):
    page = open_page(context, shown[0])
    frame = known_frames(published, 3)[2]
    made = ["--index", str(published / "index.sqlite")]
    assert index.main(["remove", "Film 3 (1993)", *made]) == 0
    film = published.parent / "films" / "Film 3 (1993)"
    film.rename(film.with_name("New (2000)"))
    write_film(film.with_name("New (2000)"), 3, range(9))
    model = str(published / "export" / "model.web.onnx")
    assert index.main(["add", str(published.parent / "films"), "--model", model, *made]) == 0
    publish(published)
    old = published / "site/index/index.json"
    os.utime(old, (old.stat().st_atime, old.stat().st_mtime + 2))
    (row,) = answers(page, [film.with_name("New (2000)") / frame.name])
    assert (row["title"], row["still"], row["missing"]) == ("New (2000)", "02_0.jpg", "")


def test_a_crash_of_the_worker_says_what_happened_and_the_next_picture_is_answered(context, published, shown):
    page = open_page(context, shown[0])
    slow = "self.onmessage = () => setTimeout(() => { throw new Error('the roof fell in') })"
    page.workers[0].evaluate(slow)
    frame = known_frames(published, 1)[0]
    (row,) = answers(page, [frame])
    text = page.inner_text("article h2")
    assert row["kind"] == "error" and "the roof fell in" in text and "vendor" not in text
    assert answers(page, [frame])[0]["title"] == "Film 1 (1991)"
    full = "() => { throw new RangeError('Array buffer allocation failed') }"
    page.workers[-1].evaluate(f"() => {{ globalThis.createImageBitmap = {full} }}")
    answers(page, [frame])
    assert "not enough memory" in page.inner_text("article h2")
    assert answers(page, [frame])[0]["title"] == "Film 1 (1991)"


def test_a_page_whose_program_is_missing_says_which_file(context, published, shown):
    (published / "site" / "index.js").unlink()
    page = open_page(context, shown[0])
    assert "index.js: 404" in page.inner_text("#status.error")


def test_addresses_of_pictures_are_given_back(context, published, shown):
    context.add_init_script("""globalThis.open = new Set();
      const [make, end] = [URL.createObjectURL, URL.revokeObjectURL];
      URL.createObjectURL = (blob) => { const url = make.call(URL, blob); open.add(url); return url; };
      URL.revokeObjectURL = (url) => { open.delete(url); end.call(URL, url); };""")
    page = open_page(context, shown[0])
    answers(page, known_frames(published, 1) + known_frames(published, 2))
    page.wait_for_selector("article:first-of-type .proof img:visible")
    for _ in range(100):
        if not page.evaluate("open.size"):
            break
        page.wait_for_timeout(100)
    assert page.evaluate("[...open]") == []
    assert page.locator(".frames img").count() == 16
    assert page.evaluate(
        "[...document.querySelectorAll('.frames img, .proof img')].every((image) => image.naturalWidth)"
    )


def test_pictures_of_one_film_are_asked_together(context, published, shown):
    page = open_page(context, shown[0])
    frames = known_frames(published, 3)[:3]
    answers(page, frames)
    page.click(".group button")
    (row,) = collect(page, 1)
    identifier = Identifier(published / "export" / "model.web.onnx", runtime="onnxruntime")
    identifier.index = collection.Index(published / "index.sqlite", identifier)
    wanted = identifier.identify([str(frame) for frame in frames])
    assert (row["kind"], row["title"], row["frames"]) == (wanted.kind, wanted.candidates[0].title, "3")
    assert abs(float(row["confidence"]) - wanted.candidates[0].confidence) < 0.01
    assert page.locator("article").count() == 1 and page.locator(".frames img").count() == 3
    assert page.locator(".group").count() == 0 and "from 3 frames together" in page.inner_text(".about")


def test_one_more_frame_joins_the_question(context, published, shown, tmp_path):
    strange = tmp_path / "strange.png"
    draw_frame(17, 90, 0, (640, 360)).transpose(Image.Transpose.ROTATE_180).save(strange)
    page = open_page(context, shown[0])
    for file in [strange, *known_frames(published, 2)]:
        if answers(page, [file])[0]["kind"] != "movie":
            break
    else:
        pytest.fail("every frame was named")
    with page.expect_file_chooser() as chooser:
        page.click("article:first-of-type .more")
    chooser.value.set_files(known_frames(published, 4)[0])
    page.wait_for_selector("article:first-of-type[data-frames='2']")
    assert page.locator("article:first-of-type .frames img").count() == 2


def test_the_page_is_drawn_for_its_documentation(browser, published, tmp_path, monkeypatch):
    driver = browser.browser_type
    monkeypatch.setattr(
        "playwright.sync_api.sync_playwright", lambda: contextlib.nullcontext(SimpleNamespace(chromium=driver))
    )
    frames = known_frames(published, 2)
    stills = [str(frames[0]), f"{frames[1]}+{frames[2]}"]
    assert draw_web.main([*stills, "--site", str(published / "site"), "--out", str(tmp_path / "web.png")]) == 0
    with Image.open(tmp_path / "web.png") as sheet:
        assert sheet.size == (1650, 1240)
        for part in ((200, 0, 1000, 900), (1290, 0, 1650, 900)):
            assert np.asarray(sheet.convert("L").crop(part), float).std() > 10
    assert draw_web.main(["--site", str(tmp_path)]) == 2


def test_a_click_on_another_candidate_shows_its_still(context, published, shown):
    address, server = shown
    page = open_page(context, address)
    answers(page, known_frames(published, 2)[:1])
    asked = len(server.answered)
    page.click("article details summary")
    second = page.locator("article li button").nth(1)
    title = second.inner_text()
    second.click()
    page.wait_for_selector(f".proof figcaption:has-text('{title[:6]}')")
    assert second.get_attribute("aria-pressed") == "true"
    assert page.locator("[aria-pressed=true]").count() == 1 and len(server.answered) == asked + 1


def test_what_phones_and_desktops_send_gets_one_plain_word(context, published, shown, tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    draw_frame(1, 1, 1, (320, 240)).save(tmp_path / "a.heic")
    (tmp_path / "b.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500))
    page = open_page(context, shown[0])
    found = answers(page, [tmp_path / "a.heic", tmp_path / "b.mp4"])
    assert [row["kind"] for row in found] == ["error", "error"]
    texts = page.locator("article h2").all_text_contents()[::-1]
    assert "can't read HEIC" in texts[0] and "This is a video" in texts[1]


def fill_large(place: Path, films: int, stills: int) -> None:
    """An index of so many drawn stills, without embedding them."""
    model = Identifier(place / "export" / "model.web.onnx", runtime="onnxruntime")
    rng = np.random.default_rng(1)
    basis = (np.eye(192, 128, dtype=np.float32), np.zeros(128, np.float32))
    picture = packing.make_thumbnail(draw_frame(1, 1, 1, (200, 112)))
    large = Collection(place / "index.sqlite")
    made = IndexedModel("means", base64.b64encode(collection.fingerprint(model)).decode())
    with large.writing(made):
        about = large.about()
        about.rule = Rule(movie=0.5, shortlist=0.4, slope=10.0, shift=-5.0)
        large.put_fit(about, basis, lambda embedding: embedding)
        for film in range(films):
            names = np.array([f"{still}.jpg" for still in range(stills)])
            times = np.cumsum(rng.integers(200, 9000, stills))
            embedding = rng.normal(0, 1, (stills, 192)).astype(np.float16)
            rows = FilmRows(
                embedding=embedding,
                degraded_embedding=embedding[:1],
                clean_embedding=embedding[:1],
                name=names,
                time_ms=times,
                until_ms=times + rng.integers(0, 200, stills),
                shot=names,
                thumbnails=np.frombuffer(picture * stills, np.uint8),
                thumbnail_ends=np.arange(1, stills + 1) * len(picture),
            )
            record = Film(0, f"Film {film} ({1900 + film})", stills=stills)
            large.put_film(large.about(), record, rows, pack_vectors(project_all(embedding, *basis)))


def test_100_000_stills_cost_5_mb_before_the_first_answer_and_one_small_request_after(context, tmp_path, frames_drawn):
    write_embedder(tmp_path)
    fill_large(tmp_path, 100, 1000)
    publish(tmp_path)
    server = serve(tmp_path / "site")
    page = open_page(context, f"http://127.0.0.1:{server.server_port}/")
    paths = [path.split("?")[0] for path, code in server.answered if code == 200]
    paths = [path + "index.html" if path.endswith("/") else path for path in paths]
    beside = [path for path in paths if not path.startswith("/model/") and "/vectors-" not in path]
    assert sum((tmp_path / "site" / path[1:]).stat().st_size for path in beside) < 5_000_000
    assert sum("/vectors-" in path for path in paths) < 10 and "Films known: 100." in page.inner_text("#status")
    for frame in frames_drawn:
        server.answered.clear()
        (row,) = answers(page, [frame])
        requests = [path for path, _ in server.answered]
        assert row["still"] and len(requests) <= 1 and all("/stills/" in path for path in requests)
        assert all((tmp_path / "site" / path[1:]).stat().st_size <= 200_000 for path in requests)
    server.shutdown()


@pytest.fixture
def frames_drawn(tmp_path) -> list[Path]:
    for number in range(3):
        draw_frame(number, 7, 0, (640, 360)).save(tmp_path / f"{number}.png")
    return sorted(tmp_path.glob("*.png"))


def test_a_classifier_without_an_index_makes_a_site(context, site, frames, tmp_path, capsys):
    argv = ["publish", str(tmp_path / "site"), "--model", str(site / "export"), "--index", str(tmp_path / "none")]
    assert index.main(argv) == 0
    assert "the classifier answers alone" in capsys.readouterr().err
    server = serve(tmp_path / "site")
    page = open_page(context, f"http://127.0.0.1:{server.server_port}/")
    assert answers(page, frames[:1])[0]["title"]
    server.shutdown()


def drop(page, event: str, files: list[Path]) -> None:
    """Dispatch a drop or paste event that carries files."""
    packed = [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files]
    page.evaluate(
        """([kind, files]) => {
          const data = new DataTransfer();
          for (const [name, text] of files)
            data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name));
          const how = { bubbles: true, cancelable: true };
          document.body.dispatchEvent(kind === "drop"
            ? new DragEvent(kind, { ...how, dataTransfer: data })
            : new ClipboardEvent(kind, { ...how, clipboardData: data }));
        }""",
        [event, packed],
    )


def test_drop_and_paste_answer_as_the_picker_does(page, frames):
    some = frames[:3]
    wanted = [row | {"ms": 0} for row in answers(page, some)]
    for event in ("drop", "paste"):
        drop(page, event, some)
        assert [row | {"ms": 0} for row in collect(page, 3)] == wanted
    assert page.locator("article").count() == 9
    assert page.locator(".frames img").count() == 9


def test_a_picture_dropped_while_the_model_loads_is_answered(context, host, frames):
    page = context.new_page()
    page.goto(f"{host}/web/?model=/export/", wait_until="commit")
    page.set_input_files("input[type=file]", frames[0])
    page.wait_for_selector("article[data-kind]")
    assert page.get_attribute("#answer", "data-kind") in ("movie", "shortlist", "unknown")


def test_hostile_files_are_sentences_and_the_next_picture_is_answered(page, frames, tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("<script>document.title = 'taken'</script>")
    vector = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="90" height="90"><script>top.document.title=1</script></svg>'
    )
    (tmp_path / "vector.svg").write_text(vector)
    (tmp_path / "bytes.jpg").write_bytes(frames[0].read_bytes() + bytes(20_000_000))
    for suffix in ("png", "jpg", "gif"):
        Image.new("L", (9000, 6000)).save(tmp_path / f"pixels.{suffix}")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    (tmp_path / "<img src=x onerror=alert(1)>.jpg").write_bytes(b"no")
    words = {"bytes": "20 MB", "pixels": "50 megapixels", "small": "too small"}
    files = sorted(tmp_path.iterdir())
    found = answers(page, [*files, frames[0]])
    for row in found[:-1]:
        assert row["kind"] == "error" and row["title"] == row["confidence"] == "", row
    texts = page.locator("article h2").all_text_contents()[1:][::-1]
    assert all(words.get(file.stem, "not a picture") in text for file, text in zip(files, texts, strict=True))
    assert found[-1]["kind"] != "error" and page.title() == "What film is this?"
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(frames[0].read_bytes()[:-900])
    assert [row["file"] for row in answers(page, [cut, frames[0]])] == ["cut.jpg", frames[0].name]


def test_unknown_films_are_owned_up_to_in_english_and_russian(browser, host, site, frames):
    identifier = Identifier(site / "export" / "model.web.onnx", runtime="onnxruntime")
    kinds = [answer.kind for answer in identifier.answers(np.stack([identifier.load(frame) for frame in frames]))]
    frame = frames[kinds.index("unknown")]
    for locale, title, sentence in (
        ("en-US", "What film is this?", "I am not sure yet: show me one more frame of it."),
        ("ru-RU", "Что это за фильм?", "Пока не уверен: покажи ещё один кадр оттуда."),
        ("fr-FR", "What film is this?", "I am not sure yet: show me one more frame of it."),
    ):
        with browser.new_context(locale=locale) as context:
            page = visit(context, host)
            answers(page, [frame])
            assert page.title() == page.inner_text("h1") == title
            assert page.get_attribute("html", "lang") == ("ru" if locale == "ru-RU" else "en")
            assert page.inner_text("h2") == sentence and page.locator("li meter").count() == 3
            why = page.inner_text(".why")
            assert why and page.text_content("[role=status]") == f"{frame.name}: {sentence} {why}"  # read aloud


def test_a_second_visit_answers_offline(context, site, frames):
    server = serve(site)
    host = f"http://127.0.0.1:{server.server_port}"
    page = visit(context, host)
    wanted = answers(page, frames[:2])
    page.close()
    server.shutdown()
    server.server_close()
    page = visit(context, host)
    assert [row | {"ms": 0} for row in answers(page, frames[:2])] == [row | {"ms": 0} for row in wanted]


def test_a_new_export_is_taken_at_the_next_visit_and_an_old_one_not_fetched_again(context, site, frames, tmp_path):
    shutil.copytree(site, tmp_path / "site")
    server = serve(tmp_path / "site")
    host = f"http://127.0.0.1:{server.server_port}"
    (before,) = answers(visit(context, host), frames[:1])
    page, sizes = context.new_page(), []
    page.on("response", lambda response: sizes.append((response.url, response.from_service_worker)))
    page.goto(f"{host}/web/?model=/export/")
    page.wait_for_selector(READY, state="attached")
    assert any(url.endswith("model.web.onnx") and kept for url, kept in sizes)
    file = tmp_path / "site" / "export" / "model.json"
    renamed = [f"New {title}" for title in json.loads(file.read_text())["classes"]]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"classes": renamed}))
    assert answers(visit(context, host), frames[:1])[0]["title"] == f"New {before['title']}"
    server.shutdown()


def test_models_that_cannot_be_used_are_sentences(context, host, site, frames):
    contract = json.loads((site / "export" / "model.json").read_text())
    bicubic = contract["preprocessing"] | {"interpolation": "spline"}
    cases = {
        "old": ({"format": "movie-by-frame 1"}, "movie-by-frame 1"),
        "kernel": ({"preprocessing": bicubic}, "spline"),
        "embedder": ({"classes": []}, "taught no films"),
        "broken": ({}, "no model here that runs"),
        "alone": ({}, "/alone/model.web.onnx"),
    }
    for name, (change, _) in cases.items():
        (site / name).mkdir(exist_ok=True)
        (site / name / "model.json").write_text(json.dumps(contract | change))
    (site / "broken" / "model.web.onnx").write_bytes(b"\x08\x08 no model")
    (site / "page").mkdir(exist_ok=True)
    (site / "page" / "model.json").write_text("<!doctype html>")
    words = {name: word for name, (_, word) in cases.items()}
    for name, word in (words | {"page": "no model here", "nowhere": "/nowhere/model.json"}).items():
        page = visit(context, host, f"/{name}/")
        assert word in page.inner_text("#status.error"), name
        assert answers(page, [frames[0]])[0]["kind"] == "error"


def test_a_browser_without_webassembly_and_a_host_without_vendor_are_sentences(browser, host, site, tmp_path):
    with browser.new_context() as context:
        context.add_init_script("delete globalThis.WebAssembly")
        assert "WebAssembly" in visit(context, host).inner_text("#status.error")
    shutil.copytree(site, tmp_path / "site", ignore=shutil.ignore_patterns("vendor"))
    server = serve(tmp_path / "site")
    with browser.new_context() as context:
        page = visit(context, f"http://127.0.0.1:{server.server_port}")
        assert "make web" in page.inner_text("#status.error")
    server.shutdown()


def choose(page, act):
    """The file chooser that act opens; on a busy machine the first act may come before the browser listens."""
    found = []
    page.on("filechooser", lambda chooser: found.append(chooser))
    for _ in range(30):
        act()
        page.wait_for_timeout(500)
        if found:
            return found[0]
    pytest.fail("no file chooser opens")


def test_keyboard_alone_is_enough(page, frames):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "file"
    assert page.evaluate("getComputedStyle(document.querySelector('#drop')).outlineStyle") == "solid"
    chooser = choose(page, lambda: page.keyboard.press("Enter"))
    assert chooser.is_multiple()
    chooser.set_files(frames[:2])
    assert len(collect(page, 2)) == 2


def test_pages_fit_phones_and_follow_the_colour_scheme(browser, host, site, frames):
    colours = {}
    for scheme in ("light", "dark"):
        phone = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
        with browser.new_context(**phone, color_scheme=scheme, locale="ru-RU") as context:
            page = visit(context, host)
            answers(page, frames[:2])
            page.evaluate("document.querySelector('article h2').textContent = 'X'.repeat(90)")
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert choose(page, lambda page=page: page.tap("#drop")).is_multiple()
    assert colours["light"] != colours["dark"]


def test_pictures_cannot_leave_the_page(context, host, frames):
    page, other = visit(context, host), Handler.asked
    urls = []
    context.on("request", lambda request: urls.append(request.url))
    answers(page, frames[:1])
    assert not [url for url in urls if not url.startswith("blob:")]
    server = serve(WEB)
    reach = f"fetch('http://127.0.0.1:{server.server_port}/leak').then(() => 'sent', () => 'blocked')"
    for place in (page, *page.workers):
        assert place.evaluate(reach) == "blocked"
    assert page.workers and not any("leak" in path for path in other)
    kept = page.evaluate(
        "caches.keys().then(async ([name]) => (await (await caches.open(name)).keys()).map((r) => r.url))"
    )
    assert any(url.endswith("model.web.onnx") for url in kept) and not any("blob:" in url for url in kept)
    server.shutdown()


def test_the_page_is_small():
    files = [WEB / name for name in ("index.html", "app.js", "worker.js", "index.js", "sw.js", "style.css")]
    assert sum(file.stat().st_size for file in files) <= 70_000


def test_the_model_for_the_web_is_small_and_near_float(exported, raw, tmp_path):
    write_web(exported / "model.onnx", tmp_path / "w.onnx", False)
    exact, small = (Identifier(path, runtime="onnxruntime") for path in (exported / "model.onnx", tmp_path / "w.onnx"))
    batch = np.stack([exact.load(file) for file in sorted(raw.glob("*/00_0.jpg"))])
    assert relative_error(small.run(batch)["logits"], exact.run(batch)["logits"]) < 0.05
    model = onnx.load(tmp_path / "w.onnx")
    wide = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert not any(node.input[1] in wide for node in model.graph.node if node.op_type == "Conv")


@pytest.mark.parametrize(("arch", "dynamic"), [("test_vit", True), ("test_resnet", False)])
def test_export_web_chooses_by_architecture(arch, dynamic, tmp_path):
    import timm
    import torch

    torch.save(timm.create_model(arch, num_classes=2).state_dict(), tmp_path / "weights.pt")
    argv = ["--arch", arch, "--init", str(tmp_path / "weights.pt"), "--out", str(tmp_path / "e")]
    assert export.main([*argv, "--web"]) == 0
    assert "model.web.onnx" in {path.name for path in (tmp_path / "e").iterdir()}
    kinds = {node.op_type for node in onnx.load(tmp_path / "e" / "model.web.onnx").graph.node}
    assert kinds.isdisjoint({"Erf", "DequantizeLinear"} if dynamic else {"DynamicQuantizeLinear"})
    assert kinds > ({"DynamicQuantizeLinear", "FastGelu", "ReduceMax"} if dynamic else {"DequantizeLinear"})
    assert Identifier(tmp_path / "e" / "model.web.onnx").contract.self_test["relative_error"] < 0.1
    assert export.main(argv) == 0 and not (tmp_path / "e" / "model.web.onnx").exists()
