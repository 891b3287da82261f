"""python -m pytest tests/test_index.py"""

import base64
import contextlib
import io
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_frame, read_pair
from PIL import Image
from postgres import Postgres

import identify
import index
from answering import calibration, editing, embedding, packing, projection, search, sql
from answering.collection import Index, fingerprint
from answering.console import UserError
from answering.contract import Contract
from answering.model import Identifier
from answering.pictures import PREPROCESSING
from answering.state import Film, IndexedModel
from answering.stills import list_stills
from answering.store import Collection

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
    path = tmp_path_factory.mktemp("made") / "index.sqlite"
    assert index.main(["add", str(raw), "--model", str(model), "--index", str(path)]) == 0
    return path


@pytest.fixture
def copied(made, tmp_path) -> Path:
    return Path(shutil.copy(made, tmp_path / "index.sqlite"))


def ask(model: Path, path: Path, *images: Image.Image) -> list:
    identifier = Identifier(model)
    identifier.index = Index(path, identifier)
    return [identifier.identify(image) for image in images]


def titles(path: Path) -> list[str]:
    return sorted(film.title for film in Collection(path).films())


def test_a_frame_between_known_frames_is_named_with_its_proof(made, model):
    for film, shot in ((0, 3), (2, 5), (4, 0)):
        (answer,) = ask(model, made, draw_frame(film, shot, 99))
        best = answer.candidates[0]
        assert (answer.kind, best.title) == ("movie", f"Film {film} ({1990 + film})")
        proof = best.evidence
        assert proof.file.startswith(f"{shot:02}_") and proof.similarity > 0.9
        assert shot * 6000 <= proof.from_ms <= proof.time_ms <= proof.to_ms < (shot + 1) * 6000
        assert max(Image.open(io.BytesIO(proof.thumbnail)).size) == packing.THUMBNAIL


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
    film = Collection(copied).film("Grows (2000)")
    assert (film.stills, film.year, film.imdb) == (30, 2000, "tt0000008")


def test_near_duplicates_are_stored_once(copied, model, tmp_path):
    folder = tmp_path / "Twice (2002)"
    folder.mkdir()
    for shot in range(6):
        draw_frame(9, shot, 0).save(folder / f"{shot}.png")
        draw_frame(9, shot, 0).save(folder / f"{shot}b.jpg", quality=90)
    assert index.main(["add", str(folder), "--model", str(model), "--index", str(copied)]) == 0
    film = Collection(copied).film("Twice (2002)")
    assert (film.stills, film.stored) == (12, 6)


def test_every_nth_takes_a_part(model, raw, tmp_path):
    path = tmp_path / "index.sqlite"
    folder = raw / "Film 1 (1991)"
    assert index.main(["add", str(folder), "--every-nth", "4", "--model", str(model), "--index", str(path)]) == 0
    assert Collection(path).film("Film 1 (1991)").stills == 12


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


def test_check_shows_how_thresholds_drift(copied, capsys):
    assert index.main(["check", "--drift", "--index", str(copied)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head, row = lines[-2].split("  "), lines[-1].split()
    assert (
        "AUROC" in head[-1] and row[0] == "5" and all(value == "-" or 0 <= float(value) <= 1.001 for value in row[1:])
    )
    about = Collection(copied).about()
    assert float(row[1]) == pytest.approx(about.rule.movie, abs=2e-3)  # all its films, so its own threshold


def test_the_rarer_unknown_films_are_the_sooner_a_film_is_named():
    x, owner = clouds(30, 4)
    unchanged = np.zeros((0, x.shape[1]), np.float32)
    films = [calibration.FilmSample(x[owner == f], np.full(40, -1), unchanged) for f in range(30)]
    asked = calibration.leave_one_out_scores(films, 40)
    rare, frequent = (calibration.fit_rule(asked, np.full(30, 40), share).movie for share in (0.05, 0.6))
    assert rare < frequent


def test_rebuild_keeps_how_rare_unknown_films_are(copied, capsys):
    for command in (["rebuild", "--unknown-share", "0.6"], ["rebuild"]):
        assert index.main([*command, "--index", str(copied)]) == 0
        assert Collection(copied).about().unknown_share == 0.6
    assert "fitted for 60%" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        index.main(["rebuild", "--unknown-share", "1", "--index", str(copied)])
    assert stopped.value.code == 2 and "--unknown-share" in capsys.readouterr().err


def test_two_writers_are_refused_in_one_line(copied, raw, model, capsys):
    with Collection(copied).writing():
        assert index.main(["remove", "Film 1 (1991)", "--index", str(copied)]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and "another index.py" in text
    assert "Film 1 (1991)" in titles(copied)


def test_stopped_at_any_statement_the_film_is_there_whole_or_not(made, model, tmp_path, monkeypatch):
    folder = write_film(tmp_path / "Late (2003)", 6, range(70, 73))
    seen = set()
    last, stopped = 0, True
    while stopped:
        path = Path(shutil.copy(made, tmp_path / f"index{last}.sqlite"))
        left = [last]

        def stop_before(method, left=left):
            def run(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return method(*args, **kwargs)

            return run

        for name in ("execute", "execute_many"):
            monkeypatch.setattr(sql.SqliteHome, name, stop_before(getattr(sql.SqliteHome, name)))
        stopped = index.main(["add", str(folder), "--model", str(model), "--index", str(path)]) == 130
        monkeypatch.undo()
        assert set(titles(made)) <= set(titles(path)) <= {*titles(made), "Late (2003)"}
        assert Collection(path).check() == []
        seen.add(len(titles(path)))
        last += 5
    assert seen == {5, 6} and last > 20


def test_on_a_full_disk_the_index_stays_as_it_was(copied, model, tmp_path, capsys):
    folder = write_film(tmp_path / "Late (2003)", 6, range(70, 76))
    resource = pytest.importorskip("resource", reason="Windows caps no file")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # no file may grow beyond, as if the disk were full
    try:
        assert index.main(["add", str(folder), "--model", str(model), "--index", str(copied)]) == 1
        assert index.main(["rebuild", "--index", str(copied)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("disk" in line for line in lines)
    assert "Late (2003)" not in titles(copied) and index.main(["check", "--index", str(copied)]) == 0
    assert ask(model, copied, draw_frame(2, 5, 99))[0].candidates[0].title == "Film 2 (1992)"


def test_cells_answer_as_memory_does(copied, model, tmp_path, monkeypatch):
    frames = [draw_frame(film, shot, 77) for film in range(5) for shot in (0, 3, 7)]
    plain = ask(model, copied, *frames)
    monkeypatch.setattr(search, "EXACT", 20)
    assert index.main(["rebuild", "--index", str(copied)]) == 0
    assert Collection(copied).about().stills_at_cells > 20
    found = ask(model, copied, *frames)
    assert [a.candidates[0].title for a in found] == [a.candidates[0].title for a in plain]
    assert [a.candidates[0].evidence.file for a in found] == [a.candidates[0].evidence.file for a in plain]
    folder = write_film(tmp_path / "Behind (2004)", 6, range(80, 82))  # is searched beside the cells
    assert index.main(["add", str(folder), "--model", str(model), "--index", str(copied)]) == 0
    assert ask(model, copied, draw_frame(6, 81, 5))[0].candidates[0].title == "Behind (2004)"
    assert index.main(["remove", "Film 0 (1990)", "--index", str(copied)]) == 0
    assert ask(model, copied, draw_frame(0, 1, 5))[0].candidates[0].title != "Film 0 (1990)"


def test_copies_and_moves(copied, model, tmp_path, capsys):
    def run(*command: str, code: int = 0) -> str:
        assert index.main([*command, "--index", str(copied)]) == code
        out, err = capsys.readouterr()
        assert code == 0 or err.count("\n") == 1
        return out + err

    copy, films = tmp_path / "copy.sqlite", tmp_path / "films.sqlite"
    assert "5 films" in run("backup", str(copy)) and titles(copy) == titles(copied)
    assert "is there already" in run("backup", str(copy), code=2)
    assert "2 films" in run("export", str(films), "Film 1 (1991)", "Film 2 (1992)")
    run("remove", "Film 1 (1991)")
    assert "2 films" in run("import", str(films)) and titles(copied) == titles(copy)
    assert "did you mean Film 3" in run("export", str(tmp_path / "x.sqlite"), "film 3", code=2)
    assert "no index there" in run("import", str(tmp_path / "none.sqlite"), code=2)
    other = write_model(tmp_path / "other", 4)
    foreign = tmp_path / "foreign.sqlite"
    folder = write_film(tmp_path / "Other (2001)", 7, range(2))
    assert index.main(["add", str(folder), "--model", str(other), "--index", str(foreign)]) == 0
    capsys.readouterr()
    assert "another model" in run("import", str(foreign), code=2)
    (tmp_path / "site/index").mkdir(parents=True)
    (tmp_path / "site/index/index.json").write_text('{"published": true}')  # of publish, which is no index
    with pytest.raises(UserError, match="is a folder, not a file"):
        Index(tmp_path / "site/index", Identifier(model))
    write_folder(tmp_path / "index", model)
    with pytest.raises(UserError, match=r"is a folder of the version before; python index\.py import"):
        Index(tmp_path / "index", Identifier(model))


def test_a_folder_of_the_version_before_is_taken_over_by_the_next_add(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "index", model)
    with contextlib.closing(sqlite3.connect("index.sqlite")) as stopped:  # by kill -9, before anything was in it
        stopped.execute("PRAGMA journal_mode = WAL")
    folder = write_film(tmp_path / "New (2004)", 6, range(80, 84))
    assert index.main(["add", str(folder), "--model", str(model)]) == 0
    assert "2 films taken over from index" in capsys.readouterr().out
    assert titles(tmp_path / "index.sqlite") == ["Film 0 (1990)", "Film 1 (1991)", "New (2004)"]
    assert ask(model, tmp_path / "index.sqlite", draw_frame(1, 3, 99))[0].candidates[0].title == "Film 1 (1991)"
    assert index.main(["import", "index", "--index", "again.sqlite"]) == 0
    assert titles(tmp_path / "again.sqlite") == ["Film 0 (1990)", "Film 1 (1991)"]
    assert index.main(["import", "index", "--index", "again.sqlite"]) == 2
    assert "is there already" in capsys.readouterr().err


def write_folder(folder: Path, model: Path) -> None:
    """An index of two films as the version before left it, when adding was stopped before its end."""
    identifier = Identifier(model)
    seen = base64.b64encode(fingerprint(identifier)).decode()
    (folder / "films").mkdir(parents=True)
    films = {}
    for film in range(2):
        stills = list_stills(write_film(folder.parent / f"raw{film}", film, range(6)))
        rows = embedding.embed_film(stills, identifier)
        np.savez(folder / f"films/{film}.npz", **rows.arrays())
        about = {"frames": f"films/{film}.npz", "vectors": None, "mark": "", "stills": 36, "stored": len(rows)}
        films[f"Film {film} ({1990 + film})"] = about | {"year": 1990 + film, "imdb": None}
    state = {"format": "movie-by-frame index 3", "model": {"architecture": "means", "fingerprint": seen}}
    state |= {"basis": None, "rule": None, "settled": 0, "films": films, "unknown_share": 0.3}
    (folder / "index.json").write_text(json.dumps(state))


def test_in_postgresql_all_is_as_in_a_file(raw, model, made, tmp_path, capsys):
    server = Postgres()
    try:
        place = server.new_place()
        assert index.main(["add", str(raw), "--model", str(model), "--index", place]) == 0
        frames = [draw_frame(film, shot, 99) for film in (0, 2, 4, 20) for shot in (0, 3)]
        for own, other in zip(ask(model, place, *frames), ask(model, made, *frames), strict=True):
            assert own.kind == other.kind and own.candidates == other.candidates
        capsys.readouterr()
        for command in (["check"], ["list"]):
            lines = []
            for where in (place, str(made)):
                assert index.main([*command, "--index", where]) == 0
                lines.append(capsys.readouterr().out)
            assert lines[0] == lines[1]
        assert index.main(["backup", str(tmp_path / "copy.sqlite"), "--index", place]) == 2
        assert "pg_dump" in capsys.readouterr().err
        assert index.main(["import", place, "--index", str(tmp_path / "moved.sqlite")]) == 0
        assert titles(tmp_path / "moved.sqlite") == titles(made)
    finally:
        server.close()


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


def test_hostile_titles_and_images(model, tmp_path, capsys):
    path, root = tmp_path / "index.sqlite", tmp_path / "raw"
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
    assert titles(path) == sorted(names)
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
    shutil.copy(made, tmp_path / "index.sqlite")  # beside the model: found without being named
    sheet = tmp_path / "sheet.png"
    command = [str(frame), "--model", str(tmp_path / "export"), "--json", "--evidence", str(sheet)]
    assert identify.main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    proof = answer["candidates"][0]["evidence"]
    assert answer["kind"] == "movie" and proof["title"] == "Film 3 (1993)" and proof["file"].startswith("02_")
    assert base64.b64decode(proof["thumbnail"]).startswith(b"RIFF")
    frame, proof = read_pair(sheet)
    assert frame.std() > 10 and np.abs(frame - proof).mean() < 15


def test_search_shows_the_nearest(made, model, tmp_path, capsys):
    draw_frame(1, 6, 3).save(tmp_path / "frame.png")
    command = ["search", str(tmp_path / "frame.png"), "--model", str(model), "--index", str(made), "--top", "2"]
    assert index.main([*command, "--sheet", str(tmp_path / "sheet.jpg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Film 1 (1991)" in lines[0] and "06_" in lines[0] and len(lines) == 3
    assert Image.open(tmp_path / "sheet.jpg").format == "JPEG"


def test_it_imports_no_torch():
    code = "import sys, index; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


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


def test_a_wide_embedding_is_projected_alike_in_the_directions_that_its_stills_span(monkeypatch):
    x, owner = clouds(10, 3, frames=15, dims=400)
    change = x[:20] - x[20:40]
    fast = projection.project_all(x, *projection.fit_projection(x, owner, change))
    monkeypatch.setattr(projection, "span_rows", lambda x, change: (x, change, np.eye(x.shape[1], dtype=np.float32)))
    whole = projection.project_all(x, *projection.fit_projection(x, owner, change))
    np.testing.assert_allclose(fast @ fast.T, whole @ whole.T, atol=2e-3)


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
    nearest = projection.nearest_by_film(alike, owner[known], 30)
    middles = projection.unit_length(np.stack([vectors[owner == f].sum(0) for f in range(30)]))
    scores = projection.film_scores(projection.blend_similarity(nearest, asked @ middles.T))
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
    collection = Collection(tmp_path / "index.sqlite")
    rng = np.random.default_rng(9)
    with collection.writing(IndexedModel("drawn", "")):
        about = collection.about()
        for number, count in enumerate([700, 500, 400, 900, 30, 300]):
            drawn = rng.normal(0, 1, (count, 6)).astype(np.float16)
            rows = embedding.FilmRows(
                embedding=drawn,
                degraded_embedding=drawn[:3],
                clean_embedding=drawn[3:6],
                name=np.char.mod("%d.jpg", np.arange(count)),
                time_ms=2000 * np.arange(count),
                until_ms=2000 * np.arange(count),
                shot=np.full(count, ""),
                thumbnails=np.zeros(count, np.uint8),
                thumbnail_ends=np.arange(1, count + 1),
            )
            collection.put_film(about, Film(0, f"Film {number}"), rows, None)
    films = collection.state().films
    samples = editing.sample_films(collection, films)
    counts = [len(sample.time_ms) for sample in samples]
    assert len(counts) == len(films) and 500 <= sum(counts) <= 600 and min(counts) == 30
    assert all((np.diff(sample.time_ms) == 2000).all() for sample in samples)  # as dense as the film


def test_films_with_one_still_have_finite_numbers(model, tmp_path):
    for count in (1, 2):
        for film in range(count):
            folder = tmp_path / f"raw{count}" / f"Lone {film} (2000)"
            folder.mkdir(parents=True)
            draw_frame(film, 0, 0).save(folder / "a.jpg")
        place = tmp_path / f"index{count}.sqlite"
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
