"""python -m pytest tests/test_index.py"""

import base64
import fcntl
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_frame
from PIL import Image

import identify
import index
from answering import calibration, editing, embedding, projection, store
from answering.collection import Index
from answering.console import UserError
from answering.contract import Contract
from answering.model import Identifier
from answering.pictures import PREPROCESSING
from answering.state import Film

ROOT = Path(__file__).parent.parent


def write_model(folder: Path, cells: int) -> Path:
    """An embedder of cells x cells mean colours: near pictures have near embeddings, and it needs no training."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    kind = onnx.TensorProto
    side = PREPROCESSING["size"] // cells
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=kind.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["means"], kernel_shape=[side] * 2, strides=[side] * 2),
        helper.make_node("Flatten", ["means"], ["embedding"]),
    ]
    size = PREPROCESSING["size"]
    image = helper.make_tensor_value_info("image", kind.UINT8, ["batch", size, size, 3])
    embedding = helper.make_tensor_value_info("embedding", kind.FLOAT, ["batch", 3 * cells**2])
    graph = helper.make_graph(nodes, "means", [image], [embedding])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    about = {"output": "embedding", "values": [], "relative_error": 0.0}
    Contract("means", "test", [], PREPROCESSING, {}, {}, about).save(folder / "model.onnx")
    return folder


def write_film(folder: Path, film: int, shots: range, frames: int = 6) -> Path:
    """A film as scrape.py leaves it: a frame every second, shots of so many frames."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for shot in shots:
        for frame in range(frames):
            name = f"{shot:02}_{frame}.jpg"
            draw_frame(film, shot, frame).save(folder / name, quality=92)
            about = {"file": name, "shot": shot, "shot_time_ms": (shot * frames + frame) * 1000, "imdb": f"tt{film:07}"}
            lines.append(json.dumps(about))
    (folder / "frames.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "export", 8)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Five films of eight shots."""
    root = tmp_path_factory.mktemp("raw")
    for film in range(5):
        write_film(root / f"Film {film} ({1990 + film})", film, range(8))
    return root


@pytest.fixture(scope="module")
def made(raw, model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "index"
    assert index.main(["add", str(raw), "--model", str(model), "--index", str(path)]) == 0
    return path


@pytest.fixture
def copied(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "index"))


def ask(model: Path, path: Path, *images: Image.Image) -> list:
    identifier = Identifier(model)
    identifier.index = Index(path, identifier)
    return [identifier.identify(image) for image in images]


def titles(path: Path) -> list[str]:
    return sorted(store.read_state(store.open_engine(path)).films)


def test_a_frame_between_known_frames_is_named_with_its_proof(made, model):
    for film, shot in ((0, 3), (2, 5), (4, 0)):
        (answer,) = ask(model, made, draw_frame(film, shot, 99))
        best = answer.candidates[0]
        assert (answer.kind, best.title) == ("movie", f"Film {film} ({1990 + film})")
        proof = best.evidence
        assert proof.file.startswith(f"{shot:02}_") and proof.similarity > 0.9
        assert shot * 6000 <= proof.from_ms <= proof.time_ms <= proof.to_ms < (shot + 1) * 6000
        assert max(Image.open(io.BytesIO(proof.thumbnail)).size) == embedding.THUMBNAIL


def test_frames_of_other_films_are_refused(made, model):
    strangers = ask(model, made, *(draw_frame(film, shot, 0) for film in (20, 21, 22) for shot in range(40, 44)))
    assert sum(answer.kind == "movie" for answer in strangers) <= 1


def test_a_film_added_meanwhile_is_named_by_who_reads_already(copied, model, tmp_path):
    identifier = Identifier(model)
    reader = Index(copied, identifier)
    frame = identifier.run(identifier.load(draw_frame(7, 60, 9))[None])["embedding"]
    assert reader.answers(frame)[0].candidates[0].title != "New (2001)"
    folder = write_film(tmp_path / "stills", 7, range(60, 64))
    command = ["add", str(folder), "--title", "New (2001)", "--model", str(model), "--index", str(copied)]
    assert index.main(command) == 0
    answer = reader.answers(frame)[0]
    assert (answer.kind, answer.candidates[0].title) == ("movie", "New (2001)")
    assert index.main(["remove", "New (2001)", "--index", str(copied)]) == 0
    assert reader.answers(frame)[0].candidates[0].title != "New (2001)"


def test_adding_again_updates_and_the_unchanged_is_not_looked_at(copied, model, tmp_path, capsys):
    folder = write_film(tmp_path / "Grows (2000)", 8, range(3))
    command = ["add", str(folder), "--model", str(model), "--index", str(copied)]
    assert index.main(command) == 0 == index.main(command)
    assert "unchanged" in capsys.readouterr().out
    write_film(folder, 8, range(5))
    assert index.main(command) == 0
    film = store.read_state(store.open_engine(copied)).films["Grows (2000)"]
    assert (film.stills, film.year, film.imdb) == (30, 2000, "tt0000008")
    assert len(list((copied / "films").iterdir())) == 2 * len(titles(copied))  # nothing old is left


def test_near_duplicates_are_stored_once(copied, model, tmp_path):
    folder = tmp_path / "Twice (2002)"
    folder.mkdir()
    for shot in range(6):
        draw_frame(9, shot, 0).save(folder / f"{shot}.png")
        draw_frame(9, shot, 0).save(folder / f"{shot}b.jpg", quality=90)
    assert index.main(["add", str(folder), "--model", str(model), "--index", str(copied)]) == 0
    film = store.read_state(store.open_engine(copied)).films["Twice (2002)"]
    assert (film.stills, film.stored) == (12, 6)


def test_every_nth_takes_a_part(model, raw, tmp_path):
    path = tmp_path / "index"
    folder = raw / "Film 1 (1991)"
    assert index.main(["add", str(folder), "--every-nth", "4", "--model", str(model), "--index", str(path)]) == 0
    assert store.read_state(store.open_engine(path)).films["Film 1 (1991)"].stills == 12


def test_stopped_at_any_write_the_index_is_the_old_one_or_the_new_one(made, model, tmp_path, monkeypatch):
    folder = write_film(tmp_path / "Late (2003)", 6, range(70, 73))
    replace, stopped = os.replace, True
    for last in range(20):
        path = Path(shutil.copytree(made, tmp_path / f"index{last}"))
        left = [last]

        def stop(*args, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            replace(*args)

        monkeypatch.setattr("answering.console.os.replace", stop)
        stopped = index.main(["add", str(folder), "--model", str(model), "--index", str(path)]) == 130
        monkeypatch.setattr("answering.console.os.replace", replace)
        assert set(titles(made)) <= set(titles(path)) <= {*titles(made), "Late (2003)"}
        assert index.main(["check", "--index", str(path)]) == 0
        ask(model, path, draw_frame(1, 1, 1))
        assert index.main(["add", str(folder), "--model", str(model), "--index", str(path)]) == 0
        assert "Late (2003)" in titles(path)
        if not stopped:
            break
    assert not stopped and last > 1


def test_killed_at_random_moments_nothing_is_lost(copied, model, tmp_path):
    late = "Late (2003)"
    folder = write_film(tmp_path / late, 6, range(70, 76))
    rng = random.Random(13)
    code = "import sys, index\nprint('ready', flush=True)\nsys.stdin.readline()\nsys.exit(index.main(sys.argv[1:]))"
    commands = {False: ["add", str(folder), "--model", str(model)], True: ["remove", late]}
    there, seconds = False, dict.fromkeys(commands, 0.0)
    for kill in range(12):
        command = [sys.executable, "-c", code, *commands[there], "--index", str(copied)]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            start = time.monotonic()
            process.stdin.write(b"\n")
            process.stdin.flush()
            if kill >= len(commands):  # the first of each ends, which tells how long it takes
                time.sleep(rng.uniform(0, seconds[there]))  # whatever it has done by now, the index must be sound
                process.kill()
            process.stdout.read()
        if kill < len(commands):
            assert process.returncode == 0
            seconds[there] = time.monotonic() - start
        assert index.main(["check", "--index", str(copied)]) == 0
        there = late in titles(copied)
        assert {*titles(copied)} - {late} == {f"Film {film} ({1990 + film})" for film in range(5)}
        best = ask(model, copied, draw_frame(6, 71, 99))[0].candidates[0].title
        assert (best == late) == there
    assert index.main(["rebuild", "--index", str(copied)]) == 0
    assert len(list((copied / "films").iterdir())) == 2 * len(titles(copied))  # nothing half-written is left


@pytest.mark.parametrize("size", [100, 1000, 10_000, 30_000])
def test_on_a_full_disk_the_index_stays_as_it_was(copied, model, tmp_path, size, capsys):
    folder = write_film(tmp_path / "Late (2003)", 6, range(70, 76))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # no file may grow beyond, as if the disk were full
    try:
        assert index.main(["add", str(folder), "--model", str(model), "--index", str(copied)]) == 1
        assert index.main(["rebuild", "--index", str(copied)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("File too large" in line for line in lines)
    assert "Late (2003)" not in titles(copied) and index.main(["check", "--index", str(copied)]) == 0
    assert not list(copied.rglob("*.part"))
    assert ask(model, copied, draw_frame(2, 5, 99))[0].candidates[0].title == "Film 2 (1992)"


def test_a_truncated_faiss_file_is_named_in_one_line(copied, model, monkeypatch, capsys):
    pytest.importorskip("faiss", reason="needs faiss-cpu")
    monkeypatch.setattr(store, "EXACT", 20)
    assert index.main(["rebuild", "--index", str(copied)]) == 0
    (file,) = copied.glob("pack-*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged"):
        ask(model, copied, draw_frame(0, 0, 0))
    assert index.main(["check", "--index", str(copied)]) == 1
    assert index.main(["rebuild", "--index", str(copied)]) == 0
    assert ask(model, copied, draw_frame(0, 0, 0))[0].candidates[0].title == "Film 0 (1990)"


def test_check_shows_how_thresholds_drift(copied, capsys):
    assert index.main(["check", "--drift", "--index", str(copied)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head, row = lines[-2].split("  "), lines[-1].split()
    assert "AUROC" in head[-1] and row[0] == "5" and all(0 <= float(value) <= 1.001 for value in row[1:])
    state = store.read_state(store.open_engine(copied))
    assert float(row[1]) == pytest.approx(state.rule.movie, abs=2e-3)  # all its films, so its own threshold


def test_the_rarer_unknown_films_are_the_sooner_a_film_is_named(copied, capsys):
    thresholds = []
    for share in ("0.05", "0.6"):
        assert index.main(["rebuild", "--unknown-share", share, "--index", str(copied)]) == 0
        thresholds.append(store.read_state(store.open_engine(copied)).rule.movie)
    assert thresholds[0] < thresholds[1]
    assert index.main(["rebuild", "--index", str(copied)]) == 0  # keeps what was asked for
    assert store.read_state(store.open_engine(copied)).rule.movie == pytest.approx(thresholds[1], abs=1e-6)
    assert "where 10%" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        index.main(["rebuild", "--unknown-share", "1", "--index", str(copied)])
    assert stopped.value.code == 2 and "--unknown-share" in capsys.readouterr().err


def test_two_writers_are_refused_in_one_line(copied, raw, model, capsys):
    with open(copied / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert index.main(["remove", "Film 1 (1991)", "--index", str(copied)]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "another index.py" in text
    assert "Film 1 (1991)" in titles(copied)


def test_index_json_carries_how_scores_are_made_and_one_of_before_is_read(copied, model, capsys):
    file = copied / "index.json"
    state = json.loads(file.read_text())
    scoring = state.pop("scoring")
    assert scoring == {"middle_weight": 0.75, "runner_up_penalty": 0.3, "min_films": 4}
    (answer,) = ask(model, copied, draw_frame(2, 5, 99))
    file.write_text(json.dumps(state))
    (before,) = ask(model, copied, draw_frame(2, 5, 99))
    assert before.candidates == answer.candidates
    assert index.main(["remove", "Film 0 (1990)", "--index", str(copied)]) == 0
    del state["films"]["Film 0 (1990)"]
    assert json.loads(file.read_text()) == state | {"scoring": scoring}


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("model", "fingerprint"), None),
        (("model", "fingerprint"), "not base64"),
        (("basis",), None),
        (("rule",), None),
        (("rule",), {}),
        (("rule", "slope"), "12"),
        (("scoring", "middle_weight"), None),
        (("scoring",), {"middle_weight": 0.75, "more": 1}),
        (("settled",), []),
        (("films",), []),
        (("films", "Film 0 (1990)", "middle"), None),
        (("films", "Film 0 (1990)", "middle"), "not base64"),
        (("films", "Film 0 (1990)", "vectors"), 3),
        (("films", "Film 0 (1990)", "frames"), None),
        (("films", "Film 0 (1990)", "stored"), "many"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(copied, model, capsys, keys, value):
    state = json.loads((copied / "index.json").read_text())
    place = state
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (copied / "index.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        ask(model, copied, draw_frame(0, 0, 0))
    assert index.main(["list", "--index", str(copied)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_another_model_or_version_is_refused(copied, model, raw, tmp_path, capsys):
    other = write_model(tmp_path / "other", 4)
    turned = write_model(tmp_path / "turned", 8)
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(turned / "model.onnx")
    graph.graph.node[1].attribute[0].ints[:] = [0, 3, 2, 1]  # the same shape, another meaning
    onnx.save(graph, turned / "model.onnx")
    for wrong in (other, turned):
        assert index.main(["add", str(raw), "--model", str(wrong), "--index", str(copied)]) == 2
        assert "another model" in capsys.readouterr().err
        with pytest.raises(UserError, match="another model"):
            ask(wrong, copied, draw_frame(0, 0, 0))
    state = json.loads((copied / "index.json").read_text())
    (copied / "index.json").write_text(json.dumps(state | {"format": "movie-by-frame index 99"}))
    assert index.main(["list", "--index", str(copied)]) == 1
    assert "index 99" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["index.json", "basis-*", "films/*.npy", "films/*.npz"])
def test_a_truncated_file_is_named_in_one_line(copied, model, kind, capsys):
    file = next(copied.glob(kind))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    frame = copied.parent / "frame.png"
    for film in range(5):  # some answer needs the file
        draw_frame(film, 0, 0).save(copied.parent / f"frame{film}.png")
    draw_frame(0, 0, 0).save(frame)
    codes = [index.main(["check", "--index", str(copied)])]
    codes += [index.main(["search", str(frame), "--model", str(model), "--index", str(copied)])]
    lines = capsys.readouterr().err.splitlines()
    assert codes == [1, 1] and all("damaged" in line for line in lines) and len(lines) == 2


def test_hostile_titles_and_images(model, tmp_path, capsys):
    path, root = tmp_path / "index", tmp_path / "raw"
    names = ["..hidden", "Amélie 🎬 (2001)", "a" * 200, "con:*?\"<>|'", "%s{0}\n(1999)"]
    for film, name in enumerate(names):
        write_film(root / name, film, range(2))
    (root / names[1] / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (root / names[1] / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "Empty (2005)").mkdir()
    (root / "Bad (2006)").mkdir()
    (root / "Bad (2006)" / "x.png").write_bytes(b"")
    assert index.main(["add", str(root), "--model", str(model), "--index", str(path)]) == 1
    text = capsys.readouterr().err
    assert (
        "Empty (2005)" in text
        and "Bad (2006)" in text
        and "broken.jpg" in text
        and "gone.jpg" in text
        and "Traceback" not in text
    )
    assert titles(path) == sorted(" ".join(name.split()) for name in names)
    assert all(file.parent in (path, path / "films") for file in path.rglob("*") if file.is_file())
    assert index.main(["remove", names[0], "--index", str(path)]) == 0 == index.main(["check", "--index", str(path)])


def test_a_film_is_added_although_no_degraded_copy_of_it_can_be_made(copied, model, tmp_path, capsys):
    folder = write_film(tmp_path / "Holes (2007)", 9, range(10))
    names = [f"{shot:02}_{frame}.jpg" for shot in range(10) for frame in range(6)]
    for place in np.linspace(0, len(names) - 1, embedding.DEGRADED_COPIES).astype(int):  # those that copies are made of
        (folder / names[place]).write_bytes(b"")
    assert index.main(["add", str(folder), "--model", str(model), "--index", str(copied)]) == 0
    assert capsys.readouterr().err.count("skipped") == embedding.DEGRADED_COPIES
    assert index.main(["rebuild", "--index", str(copied)]) == 0
    assert ask(model, copied, draw_frame(9, 4, 77))[0].candidates[0].title == "Holes (2007)"


@pytest.mark.parametrize(
    "command, code, text",
    [
        (["list"], 2, "no index there"),
        (["remove", "x"], 2, "no index there"),
        (["add", "nowhere"], 2, "nowhere: No such file"),
        (["check"], 2, "no index there"),
    ],
)
def test_what_is_missing_is_said_in_one_line(command, code, text, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert index.main(command) == code
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_the_command_line_answers_with_evidence(made, model, tmp_path, capsys):
    frame = tmp_path / "frame.png"
    draw_frame(3, 2, 50).save(frame)
    shutil.copytree(model, tmp_path / "export")
    with pytest.raises(SystemExit):
        identify.main([str(frame), "--model", str(tmp_path / "export"), "--evidence", str(tmp_path / "s.png")])
    assert identify.main([str(frame), "--model", str(tmp_path / "export")]) == 1  # an embedder alone knows no films
    assert "--index" in capsys.readouterr().err
    shutil.copytree(made, tmp_path / "index")  # beside the model: found without being named
    sheet = tmp_path / "sheet.png"
    command = [str(frame), "--model", str(tmp_path / "export"), "--json", "--evidence", str(sheet)]
    assert identify.main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    proof = answer["candidates"][0]["evidence"]
    assert answer["kind"] == "movie" and proof["title"] == "Film 3 (1993)" and proof["file"].startswith("02_")
    assert base64.b64decode(proof["thumbnail"]).startswith(b"\xff\xd8")
    assert Image.open(sheet).width == 4 * 240


def test_search_shows_the_nearest(made, model, tmp_path, capsys):
    draw_frame(1, 6, 3).save(tmp_path / "frame.png")
    command = ["search", str(tmp_path / "frame.png"), "--model", str(model), "--index", str(made), "--top", "2"]
    assert index.main([*command, "--sheet", str(tmp_path / "sheet.jpg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Film 1 (1991)" in lines[0] and "06_" in lines[0] and len(lines) == 3
    assert Image.open(tmp_path / "sheet.jpg").format == "JPEG"


@pytest.mark.parametrize("memory", ["plenty", "small"])
def test_faiss_answers_as_plain_numpy_does(copied, model, tmp_path, memory, monkeypatch, capsys):
    pytest.importorskip("faiss", reason="needs faiss-cpu")
    frames = [draw_frame(film, shot, 77) for film in range(5) for shot in (0, 3, 7)]
    plain = ask(model, copied, *frames)
    monkeypatch.setattr(store, "EXACT", 20)
    assert index.main(["rebuild", "--memory", memory, "--index", str(copied)]) == 0
    assert "faiss" in capsys.readouterr().out
    found = ask(model, copied, *frames)
    assert [a.candidates[0].title for a in found] == [a.candidates[0].title for a in plain]
    assert [a.candidates[0].evidence.file for a in found] == [a.candidates[0].evidence.file for a in plain]
    folder = write_film(tmp_path / "Behind (2004)", 6, range(80, 82))  # is searched beside what faiss holds
    assert index.main(["add", str(folder), "--model", str(model), "--index", str(copied)]) == 0
    assert ask(model, copied, draw_frame(6, 81, 5))[0].candidates[0].title == "Behind (2004)"
    assert index.main(["remove", "Film 0 (1990)", "--index", str(copied)]) == 0
    assert ask(model, copied, draw_frame(0, 1, 5))[0].candidates[0].title != "Film 0 (1990)"


def test_without_faiss_the_error_names_it(copied, monkeypatch, capsys):
    monkeypatch.setattr(store, "EXACT", 20)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert index.main(["rebuild", "--index", str(copied)]) == 2
    assert "pip install faiss-cpu" in capsys.readouterr().err


def test_it_imports_no_torch():
    code = "import sys, index; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ------------------------------------------------------------------------------------ in Milvus, by Milvus Lite


@pytest.fixture
def milvus(raw, model, tmp_path) -> Path:
    """The five films in a file of Milvus Lite."""
    pytest.importorskip("pymilvus", reason="needs pymilvus")
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    path = tmp_path / "index.db"
    assert index.main(["add", str(raw), "--model", str(model), "--index", str(path)]) == 0
    return path


def test_milvus_answers_as_a_folder_does(milvus, made, model, tmp_path, capsys):
    frames = [draw_frame(film, shot, 99) for film in (0, 2, 4, 20) for shot in (0, 3)]
    for own, other in zip(ask(model, milvus, *frames), ask(model, made, *frames), strict=True):
        assert own.kind == other.kind and own.candidates[0].title == other.candidates[0].title
        mine, theirs = asdict(own.candidates[0].evidence), asdict(other.candidates[0].evidence)
        assert mine.pop("similarity") == pytest.approx(theirs.pop("similarity"), abs=1e-3) and mine == theirs
    capsys.readouterr()
    for command in (["check"], ["list"]):
        lines = []
        for place in (milvus, made):
            assert index.main([*command, "--index", str(place)]) == 0
            lines.append(capsys.readouterr().out)
        assert lines[0] == lines[1]
    draw_frame(1, 6, 3).save(tmp_path / "frame.png")
    assert identify.main([str(tmp_path / "frame.png"), "--model", str(model), "--index", str(milvus)]) == 0
    assert "Film 1 (1991)" in capsys.readouterr().out
    assert index.main(["list", "--index", str(tmp_path / "other.db")]) == 2
    assert "no index there" in capsys.readouterr().err
    with pytest.raises(UserError, match="another model"):
        ask(write_model(tmp_path / "small", 4), milvus, frames[0])


def test_in_milvus_films_come_and_go_and_nothing_is_left(milvus, model, tmp_path):
    identifier, engine = Identifier(model), store.open_engine(milvus)
    reader = Index(milvus, identifier)
    frame = identifier.run(identifier.load(draw_frame(7, 60, 9))[None])["embedding"]
    add = ["add", str(write_film(tmp_path / "New (2001)", 7, range(60, 64))), "--model", str(model)]
    counts = [count_rows(engine)]
    for command in (add, ["remove", "New (2001)"], add, add, ["rebuild"], ["remove", "New (2001)"]):
        assert index.main([*command, "--index", str(milvus)]) == 0
        known = command[0] != "remove"
        assert (reader.answers(frame)[0].candidates[0].title == "New (2001)") == known
        counts.append(count_rows(engine))
    assert counts[0] == counts[2] == counts[6] and counts[1] == counts[3] == counts[4] == counts[5] > counts[0]


def count_rows(engine) -> dict[str, int]:
    names = engine.client.list_collections()
    return sum(engine.client.query(name, filter="", output_fields=["count(*)"])[0]["count(*)"] for name in names)


def test_stopped_at_any_write_milvus_has_the_film_whole_or_not(milvus, model, tmp_path, monkeypatch):
    engine, late = store.open_engine(milvus), draw_frame(6, 71, 99)
    folder = write_film(tmp_path / "Late (2003)", 6, range(70, 73))
    add = ["add", str(folder), "--model", str(model), "--index", str(milvus)]
    clean = count_rows(engine)
    stopped = True
    last = 0
    while stopped:
        left = [last]

        def stop_before(method, left=left):
            def run(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return method(*args, **kwargs)

            return run

        for name in ("insert", "upsert", "delete"):
            monkeypatch.setattr(type(engine.client), name, stop_before(getattr(type(engine.client), name)))
        stopped = index.main(add) == 130
        monkeypatch.undo()
        titles = {*store.read_state(engine).films} - {f"Film {film} ({1990 + film})" for film in range(5)}
        assert titles <= {"Late (2003)"} and index.main(["check", "--index", str(milvus)]) == 0
        best = ask(model, milvus, late)[0].candidates[0]
        assert (best.title == "Late (2003)") == bool(titles)
        if titles:
            assert index.main(["remove", "Late (2003)", "--index", str(milvus)]) == 0
        last += 1
    assert last > 3
    assert index.main(["rebuild", "--index", str(milvus)]) == 0
    assert count_rows(engine) == clean


def test_of_two_writers_in_milvus_the_later_one_fails(milvus, model, tmp_path, capsys):
    engine = store.open_engine(milvus)
    with engine.writing():
        state = store.read_state(engine)
        del state.films["Film 0 (1990)"]
        assert index.main(["remove", "Film 1 (1991)", "--index", str(milvus)]) == 0
        with pytest.raises(UserError, match="wrote to it meanwhile"):
            engine.commit(state)
    assert [title[:6] for title in store.read_state(engine).films] == ["Film 0", "Film 2", "Film 3", "Film 4"]


def test_memory_is_refused_where_it_would_do_nothing(capsys):
    assert index.main(["rebuild", "--index", "http://127.0.0.1:1", "--memory", "small"]) == 2
    assert "--memory is for an index in a folder" in capsys.readouterr().err


def test_where_no_milvus_is_the_error_is_one_line(capsys):
    pytest.importorskip("pymilvus", reason="needs pymilvus")
    assert index.main(["list", "--index", "http://me:secret@localhost:1"]) == 1
    error = capsys.readouterr().err
    assert "--index localhost:1: Milvus says" in error and error.count("\n") == 1 and "secret" not in error


def test_without_pymilvus_the_error_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    assert index.main(["list", "--index", "http://localhost:19530"]) == 2
    assert "pip install pymilvus" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ numbers, by other means


def clouds(films: int, seed: int, frames: int = 40, dims: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Frames [N, D] of films that differ in the first half of the dimensions and vary most in the second."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(films), frames)
    centre = rng.normal(0, 1, (films, dims)) * (np.arange(dims) < dims // 2)
    scale = np.where(np.arange(dims) < dims // 2, 0.3, 8)
    return (centre[owner] + rng.normal(0, 1, (len(owner), dims)) * scale).astype(np.float32), owner


def test_the_projection_whitens_what_varies_within_films(monkeypatch):
    for name, value in (("SHRINKAGE", 0.0), ("VARIANCE_POWER", 0.0), ("WEAR_WEIGHT", 0.0)):
        monkeypatch.setattr(projection, name, value)
    x, owner = clouds(12, 1)
    project, offset = projection.fit_projection(x, owner, np.zeros((0, x.shape[1]), np.float32))
    vectors = x @ project - offset
    within = np.mean([np.cov(vectors[owner == f].T, bias=True) for f in range(12)], axis=0)
    np.testing.assert_allclose(within, np.eye(len(within)), atol=0.02)


def test_what_degrading_changes_counts_less():
    x, owner = clouds(12, 2)
    change = np.zeros((30, x.shape[1]), np.float32)
    change[:, 3] = np.linspace(-9, 9, 30)
    lengths = []
    for some in (change[:0], change):
        project, _ = projection.fit_projection(x, owner, some)
        moved = projection.project_all(x + change[-1], project, 0 * project[0])
        lengths.append(np.linalg.norm(moved - projection.project_all(x, project, 0 * project[0]), axis=1).mean())
    assert lengths[1] < 0.8 * lengths[0]


def test_thresholds_hold_on_films_that_were_never_seen():
    x, owner = clouds(60, 4)
    known = owner < 30
    unchanged = np.zeros((0, x.shape[1]), np.float32)
    films = [calibration.FilmSample(x[owner == f], np.full(40, -1), unchanged) for f in range(30)]
    rule = calibration.fit_rule(calibration.leave_one_out_scores(films, 40), np.full(30, 40))
    project, offset = projection.fit_projection(x[known], owner[known], unchanged)
    vectors = projection.project_all(x, project, offset)
    rng = np.random.default_rng(5)
    fresh = x + rng.normal(0, 0.1, x.shape).astype(np.float32) * (np.arange(x.shape[1]) < 12)
    asked = projection.project_all(fresh, project, offset)
    alike = asked @ vectors[known].T
    alike[known] -= 2 * np.eye(len(x), dtype=np.float32)[known][:, known]  # not by itself
    scores = projection.film_scores(projection.nearest_by_film(alike, owner[known], 30))
    named, right = scores.max(1) >= rule.movie, scores.argmax(1) == owner
    taken, lost = (named & right & known).sum() / known.sum(), (named & ~known).sum() / (~known).sum()
    assert taken > 0.3
    assert 0.7 * taken / (0.7 * named[known].mean() + 0.3 * lost) > 0.9


def test_packed_vectors_keep_their_direction():
    vectors = np.random.default_rng(6).normal(0, 1, (50, 128))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    packed = projection.quantise(vectors).astype(np.float64)
    cosine = (packed * vectors).sum(1) / np.linalg.norm(packed, axis=1)
    assert cosine.min() > 0.999


def test_of_long_films_a_part_is_taken_and_none_is_left_out(tmp_path, monkeypatch):
    """A shelf of real films, thousands of stills each: the thresholds must rest on all of them."""
    monkeypatch.setattr(editing, "FIT_FRAMES", 600)
    engine = store.Folder(tmp_path)
    films = {}
    rng = np.random.default_rng(9)
    for number, count in enumerate([700, 500, 400, 900, 30, 300]):
        rows = {"embedding": rng.normal(0, 1, (count, 6)).astype(np.float16), "time": 2000 * np.arange(count)}
        rows |= {"worn": rows["embedding"][:3], "of": rows["embedding"][3:6]}
        name = engine.write_arrays(f"Film {number}", rows)
        films[f"Film {number}"] = Film(rows_file=name, stored=count)
    samples = editing.sample_films(engine, films)
    counts = [len(sample.time_ms) for sample in samples]
    assert len(counts) == len(films) and 500 <= sum(counts) <= 600 and min(counts) == 30
    assert all((np.diff(sample.time_ms) == 2000).all() for sample in samples)  # as dense as the film


def test_films_with_one_still_have_finite_numbers(model, tmp_path):
    for count in (1, 2):
        for film in range(count):
            folder = tmp_path / f"raw{count}" / f"Lone {film} (2000)"
            folder.mkdir(parents=True)
            draw_frame(film, 0, 0).save(folder / "a.jpg")
        place = tmp_path / f"index{count}"
        assert index.main(["add", str(tmp_path / f"raw{count}"), "--model", str(model), "--index", str(place)]) == 0
        (answer,) = ask(model, place, draw_frame(0, 0, 0))
        assert all(np.isfinite(candidate.confidence) for candidate in answer.candidates)


def test_how_like_a_frame_is_to_the_rest_of_its_film():
    vectors = np.random.default_rng(8).normal(0, 1, (30, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for when in (np.full(30, -1), 2000 * np.arange(30)):
        apart = calibration.leave_out_groups(when)
        for k, got in zip((4, 17), calibration.ask_within(vectors, when, np.array([4, 17])), strict=True):
            rest = vectors[apart != apart[k]]
            middle = rest.sum(0) / np.linalg.norm(rest.sum(0))
            wanted = ((rest @ vectors[k]).max() + projection.MIDDLE_WEIGHT * middle @ vectors[k]) / (
                1 + projection.MIDDLE_WEIGHT
            )
            assert got == pytest.approx(wanted, abs=1e-5)


def test_film_scores_against_a_loop():
    best = np.random.default_rng(7).normal(0, 1, (20, 6)).astype(np.float32)
    scores = projection.film_scores(best)
    for row, got in zip(best, scores, strict=True):
        wanted = [row[f] - projection.RUNNER_UP_PENALTY * max(row[g] for g in range(6) if g != f) for f in range(6)]
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
