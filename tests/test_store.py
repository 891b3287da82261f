"""python -m pytest tests/test_store.py"""

import base64
import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from postgres import Postgres

from answering import search, state, store
from answering.calibration import Rule
from answering.console import UserError
from answering.embedding import FilmRows
from answering.moving import export_films, import_films, take_over
from answering.offers import Offers
from answering.packing import pack_embedding, unpack_embedding
from answering.projection import Scoring, blend_similarity, project_all, quantise, unit_length
from answering.search import Search, gather
from answering.sql import NoCollection
from answering.state import Failure, Film, IndexedModel, hashed_name
from answering.store import Collection, pack_vectors

ROOT = Path(__file__).parent.parent
MODEL = IndexedModel("drawn", base64.b64encode(np.arange(8, dtype=np.float32).tobytes()).decode())
SIDE = 24  # numbers of an embedding
DIMS = 20
BASIS = (np.random.default_rng(1).normal(0, 1, (SIDE, DIMS)).astype(np.float32), np.zeros(DIMS, np.float32))
RULE = Rule(movie=0.5, shortlist=0.4, slope=10.0, shift=-5.0)
HOMES = ["sqlite", "postgres"]


@pytest.fixture(scope="session")
def server():
    postgres = Postgres()
    yield postgres
    postgres.close()


@pytest.fixture(params=HOMES)
def place(request, tmp_path):
    return (
        str(tmp_path / "index.sqlite") if request.param == "sqlite" else request.getfixturevalue("server").new_place()
    )


@pytest.fixture
def file(tmp_path) -> Path:
    """A file with five films."""
    path = tmp_path / "index.sqlite"
    fill(Collection(path), range(5))
    return path


def draw_rows(film: int, stills: int = 30) -> FilmRows:
    """Rows of a film as embed_film makes them: embeddings about a middle of the film's own, scenes of three stills."""
    rng = np.random.default_rng(film)
    middle = rng.normal(0, 1, SIDE)
    scenes = np.repeat(rng.normal(0, 1, (-(-stills // 3), SIDE)), 3, axis=0)[:stills]
    embedding = (middle + 0.6 * scenes + 0.1 * rng.normal(0, 1, (stills, SIDE))).astype(np.float16)
    pictures = [b"RIFF" + rng.bytes(50 + film) for _ in range(stills)]
    return FilmRows(
        embedding=embedding,
        degraded_embedding=embedding[:4] + np.float16(0.1),
        clean_embedding=embedding[:4],
        name=np.array([f"{number:03}.jpg" for number in range(stills)]),
        time_ms=np.arange(stills) * 1000,
        until_ms=np.arange(stills) * 1000 + 500,
        shot=np.array([str(number // 3) for number in range(stills)]),
        thumbnails=np.frombuffer(b"".join(pictures), np.uint8),
        thumbnail_ends=np.cumsum([len(picture) for picture in pictures]),
    )


def project(embedding: np.ndarray) -> np.ndarray:
    return project_all(embedding, *BASIS)


def add(collection: Collection, film: int, title: str | None = None, stills: int = 30) -> Film:
    """Add a drawn film; inside writing()."""
    rows = draw_rows(film, stills)
    record = Film(0, title or f"Film {film} ({1990 + film})", year=1990 + film, content_key=str(film), stills=40)
    about = collection.about()
    return collection.put_film(about, record, rows, pack_vectors(project(rows.embedding)) if about.fit else None)


def fit(collection: Collection) -> None:
    about = collection.about()
    about.rule = RULE
    collection.put_fit(about, BASIS, project)


def fill(collection: Collection, films: range, stills: int = 30) -> None:
    with collection.writing(MODEL):
        fit(collection)
        for film in films:
            add(collection, film, stills=stills)


def titles(collection: Collection) -> list[str]:
    return [film.title for film in collection.films()]


def ask(found: Search, film: int, still: int) -> tuple[str, str, bytes]:
    """(title, file, thumbnail) of what is nearest to a still of a drawn film."""
    with found.collection.snapshot() as version:
        found.refresh(version)
        vector = project(draw_rows(film).embedding[still : still + 1].astype(np.float32))[0]
        number = int(found.similarity(vector, Scoring()).argmax())
        still = int(search.cosines(found.read_film(number)[0], vector).argmax())
        return found.titles[number], *found.collection.proof(int(found.ids[number]), still)


# ---------------------------------------------------------------------------------------------- films and stills


def test_what_is_put_in_comes_out(place):
    fill(Collection(place), range(3))
    reader = Collection(place)
    assert titles(reader) == [f"Film {film} ({1990 + film})" for film in range(3)] and reader.count() == (3, 90)
    film = reader.film("Film 1 (1991)")
    assert (film.year, film.stills, film.stored, film.content_key) == (1991, 40, 30, "1") and film.added > 0
    rows, wanted = reader.read_rows(film), draw_rows(1)
    for name in ("name", "time_ms", "until_ms", "shot", "thumbnails", "thumbnail_ends"):
        assert np.array_equal(getattr(rows, name), getattr(wanted, name))
    for name in ("embedding", "degraded_embedding", "clean_embedding"):
        np.testing.assert_allclose(getattr(rows, name), getattr(wanted, name), atol=0.02)
    assert np.array_equal(np.stack([rows.time_ms, rows.until_ms], 1), reader.read_times(film))
    assert reader.check() == []


def test_films_are_replaced_renamed_and_removed_while_others_read(place):
    fill(Collection(place), range(6))
    found = Search(Collection(place))
    assert ask(found, 2, 7) == ("Film 2 (1992)", "007.jpg", draw_rows(2).list_thumbnails()[7].tobytes())
    writer = Collection(place)
    with writer.writing():
        add(writer, 7)
        assert ask(found, 7, 4)[:2] == ("Film 7 (1997)", "004.jpg")
        add(writer, 8, title="Film 2 (1992)")  # other stills under a title that is there
        assert ask(found, 8, 4)[:2] == ("Film 2 (1992)", "004.jpg") and len(found.titles) == 7
        about = writer.about()
        writer.rename_film(about, writer.film("Film 3 (1993)"), "Renamed (2003)", 2003)
        assert ask(found, 3, 1)[:2] == ("Renamed (2003)", "001.jpg")
        assert writer.renames() == {"Film 3 (1993)": "Renamed (2003)"}
        with pytest.raises(UserError, match="of this title already"):
            writer.rename_film(about, writer.film("Renamed (2003)"), "Film 7 (1997)", None)
        writer.remove_film(about, writer.film("Film 7 (1997)"))
        assert ask(found, 7, 4)[0] != "Film 7 (1997)"
        assert sorted(found.titles) == sorted(titles(writer))
        fresh = Search(Collection(place))
        assert ask(fresh, 3, 1) == ask(found, 3, 1) and fresh.titles == found.titles
        fit(writer)
        assert ask(found, 5, 2)[:2] == ("Film 5 (1995)", "002.jpg")
    assert Collection(place).check() == []


def test_a_reader_reads_what_is_new_and_no_more(place, monkeypatch):
    fill(Collection(place), range(6))
    found = Search(Collection(place))
    ask(found, 0, 0)
    read = []
    execute = type(found.collection.home).execute

    def count(self, sql, parameters=()):
        rows = execute(self, sql, parameters)
        read.append(len(rows))
        return rows

    writer = Collection(place)
    with writer.writing():
        add(writer, 7)
        monkeypatch.setattr(type(found.collection.home), "execute", count)
        with found.collection.snapshot() as version:
            assert found.refresh(version)
        assert len(found.titles) == 7 and sum(read) < 40  # rows of about, one film, one block of vectors
        read.clear()
        with found.collection.snapshot() as version:
            assert not found.refresh(version)
        assert sum(read) <= 2


def test_before_the_first_fit_nothing_is_searched(place):
    writer = Collection(place)
    with writer.writing(MODEL):
        add(writer, 1)
    found = Search(Collection(place))
    with found.collection.snapshot() as version, pytest.raises(UserError, match="holds no films yet"):
        found.refresh(version)
    with writer.writing():
        fit(writer)
    assert ask(found, 1, 3)[:2] == ("Film 1 (1991)", "003.jpg") and Collection(place).check() == []


def test_files_that_failed_are_kept_until_they_are_read(place):
    writer = Collection(place)
    with writer.writing(MODEL):
        for reason in ("gone", "cut off"):
            writer.put_failure("/films/a.mkv", Failure("k1", reason))
        writer.put_failure("/films/b.mkv", Failure("k2", "gone"))
        assert writer.failures() == {
            "/films/a.mkv": Failure("k1", "cut off"),
            "/films/b.mkv": Failure("k2", "gone"),
        }
        record = Film(0, "A (2001)", seconds=61.5, partial="read up to 0:01", file="/films/a.mkv")
        writer.put_film(writer.about(), record, draw_rows(1), None)
    reader = Collection(place)
    film = reader.film("A (2001)")
    assert (film.seconds, film.partial, film.file) == (61.5, "read up to 0:01", "/films/a.mkv")
    assert list(reader.failures()) == ["/films/b.mkv"]


def test_a_title_given_twice_leads_from_the_first(place):
    writer = Collection(place)
    offers = Offers(writer)
    with writer.writing(MODEL):
        film = add(writer, 1, title="movie")
        offers.put("u1-a.jpg", "movie", "accepted", b"theirs")
        film = writer.rename_film(writer.about(), film, "Heat", None)
        film = writer.rename_film(writer.about(), film, "Heat (1995)", 1995)
        assert writer.renames() == {"movie": "Heat (1995)", "Heat": "Heat (1995)"}
        assert [offer.name for offer in offers.accepted("Heat (1995)")] == ["u1-a.jpg"]
        writer.rename_film(writer.about(), film, "movie", None)
        assert writer.renames() == {"Heat": "movie", "Heat (1995)": "movie"} and titles(writer) == ["movie"]


def test_titles_of_any_kind(place):
    names = ["Amélie 🎬 (2001)", "a" * 300, "con:*?\"<>|'; DROP TABLE film", "%s{0}\n(1999)", "?", "%"]
    writer = Collection(place)
    with writer.writing(MODEL):
        for number, name in enumerate(names):
            add(writer, number, title=name, stills=3)
    assert titles(Collection(place)) == names
    assert Collection(place).film(names[2]).title == names[2]


def test_pictures_of_users(place):
    writer = Collection(place)
    offers = Offers(writer)
    with writer.writing(MODEL):
        for name, film in (("a.jpg", "One"), ("b.jpg", "One"), ("c.jpg", "Two")):
            offers.put(name, film, "pending", name.encode())
        offers.accept("a.jpg")
        offers.refuse("b.jpg")
        assert [offer.name for offer in offers.pending()] == ["c.jpg"]
        assert [offer.picture for offer in offers.accepted("One")] == [b"a.jpg"]
        offers.refuse_accepted()
        assert not offers.accepted("One") and sorted(offers.names())[0] == ("a.jpg", "One")


# ------------------------------------------------------------------------------------------------------- search


def exact_similarity(collection: Collection, vector: np.ndarray) -> np.ndarray:
    """How like a vector is to each film, with plain numpy."""
    found = []
    for _, middle, vectors in collection.read_vectors(most=10**6):
        nearest = (unit_length(np.frombuffer(vectors, np.int8).reshape(-1, DIMS)) @ vector).max()
        found.append(blend_similarity(nearest, unit_length(np.frombuffer(middle, np.int8)[None])[0] @ vector))
    return np.array(found)


@pytest.mark.parametrize("small", [10**6, 10])
@pytest.mark.parametrize("cells", [False, True])
def test_the_films_that_come_out_best_are_compared_exactly(tmp_path, monkeypatch, small, cells):
    monkeypatch.setattr(search, "SMALL", small)
    monkeypatch.setattr(search, "EXACT", 1000 if cells else 10**6)
    monkeypatch.setattr(search, "LOOSE", 200)
    monkeypatch.setattr(search, "EXAMINED_FILMS", 30)
    collection = Collection(tmp_path / "index.sqlite")
    fill(collection, range(60))
    with collection.writing():
        assert gather(collection, collection.about()) == cells
        for film in range(60, 64):  # loose beside cells
            add(collection, film)
    found = Search(Collection(tmp_path / "index.sqlite"))
    for film in range(0, 64, 3):
        vector = project(draw_rows(film).embedding[5:6].astype(np.float32) + 0.3)[0]
        with found.collection.snapshot() as version:
            found.refresh(version)
            got = found.similarity(vector, Scoring())
            wanted = exact_similarity(found.collection, vector)
        best = np.argsort(-wanted)[:2]
        assert np.argmax(got) == best[0]
        np.testing.assert_allclose(got[best], wanted[best], atol=1e-5)
    assert (found.first_loose == 60) == cells


@pytest.mark.parametrize("home", HOMES)
def test_cells_follow_what_comes_and_goes(home, request, tmp_path, monkeypatch):
    place = request.getfixturevalue("server").new_place() if home == "postgres" else str(tmp_path / "index.sqlite")
    monkeypatch.setattr(search, "EXACT", 300)
    monkeypatch.setattr(search, "LOOSE", 100)
    writer = Collection(place)
    fill(writer, range(12))
    found = Search(Collection(place))
    assert ask(found, 3, 3)[0] == "Film 3 (1993)" and found.centres is None
    with writer.writing():
        assert gather(writer, writer.about())
        assert ask(found, 3, 3)[:2] == ("Film 3 (1993)", "003.jpg")
        assert found.first_loose == 12 and found.loose.vectors.used == 0
        about = writer.about()
        writer.remove_film(about, writer.film("Film 3 (1993)"))
        assert ask(found, 3, 3)[0] != "Film 3 (1993)" and ask(found, 4, 3)[0] == "Film 4 (1994)"
        for film in range(20, 25):
            add(writer, film)
            assert ask(found, film, 9)[:2] == (f"Film {film} ({1990 + film})", "009.jpg")
        assert gather(writer, writer.about()) and not gather(writer, writer.about())
        assert found.first_loose == 11 and ask(found, 22, 9)[0] == "Film 22 (2012)" and found.first_loose == 16
        before = writer.about().cells_fit
        for film in range(4, 10):
            writer.remove_film(about := writer.about(), writer.film(f"Film {film} ({1990 + film})"))
        assert (
            gather(writer, writer.about()) and writer.about().cells_fit == before + 1
        )  # too many of films that are gone
        about = writer.about()
        assert about.stills_gathered == 300 == writer.count()[1]
        ((parts,),) = writer.home.execute("SELECT sum(stills) FROM cell")
        assert int(parts) == 300
        assert ask(found, 22, 9)[:2] == ("Film 22 (2012)", "009.jpg")
        assert found.titles == titles(writer)
    assert Collection(place).check() == []


@pytest.mark.parametrize(("rows", "steps", "size"), [(80, 255, 1), (40, 65_535, 2)])
def test_embeddings_in_few_bits(rows, steps, size):
    embedding = np.random.default_rng(3).normal(5, 3, (rows, 16)) * np.logspace(-3, 2, 16)
    packed = pack_embedding(embedding)
    assert len(packed) == 4 + 16 * (8 + size * rows)
    back = unpack_embedding(packed, 16)
    assert np.abs(back - embedding).max(0) == pytest.approx(np.ptp(embedding, axis=0) / 2 / steps, rel=0.2)
    assert len(unpack_embedding(pack_embedding(np.zeros((0, 16))), 16)) == 0
    for damaged in (b"123", b"\7\0\0\0", packed[:-1]):
        with pytest.raises(ValueError):
            unpack_embedding(damaged, 16)


# ---------------------------------------------------------------------------------------------- nothing is lost

WRITER = """
import sys
sys.path[:0] = ["tests"]
import test_store as t
from answering import search
search.EXACT, search.LOOSE = 300, 60
collection = t.Collection(sys.argv[1])
done = int(sys.argv[2])
with collection.writing():
    while True:
        t.step(collection, done)
        done += 1
        print(done, flush=True)
"""


def step(collection: Collection, number: int) -> None:
    """One of a row of changes: films come, are renamed, replaced and removed, and are gathered."""
    kind, film = number % 5, number // 5
    about = collection.about()
    if kind == 0:
        add(collection, 100 + film % 50, title=f"New {film}")
    elif kind == 1:
        collection.rename_film(about, collection.film(f"New {film}"), f"Old {film}", None)
    elif kind == 2 and film >= 3:
        collection.remove_film(about, collection.film(f"Old {film - 3}"))
    elif kind == 3:
        gather(collection, collection.about())
    elif kind == 4:
        add(collection, 100 + film % 50, title=f"Old {film}", stills=20)


def after_steps(count: int) -> dict[str, int]:
    """{title: stills} after so many steps."""
    films = {}
    for number in range(count):
        kind, film = number % 5, number // 5
        if kind == 0:
            films[f"New {film}"] = 30
        elif kind == 1:
            films[f"Old {film}"] = films.pop(f"New {film}")
        elif kind == 2:
            films.pop(f"Old {film - 3}", None)
        elif kind == 4:
            films[f"Old {film}"] = 20
    return films


def test_ten_kills_lose_nothing(place):
    writer = Collection(place)
    fill(writer, range(12))
    before = dict.fromkeys(titles(Collection(place)), 30)
    rng = random.Random(13)
    done = 0
    for _ in range(10):
        command = [sys.executable, "-c", WRITER, place, str(done)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            least = done + rng.randrange(1, 20)
            while done < least:
                line = process.stdout.readline()
                assert line, "the writer ended by itself"
                done = int(line)
            time.sleep(rng.uniform(0, 0.02))  # whatever it does by now
            process.kill()
            for line in process.stdout:
                done = int(line)
        reader = Collection(place) if place.endswith(".sqlite") else wait_for_writer(place)
        assert reader.check() == []
        now = {film.title: film.stored for film in reader.films()}
        assert now in (before | after_steps(done), before | after_steps(done + 1))
        done += now != before | after_steps(done)
        found = Search(reader)
        assert ask(found, 11, 6)[:2] == ("Film 11 (2001)", "006.jpg") and found.titles == titles(reader)


def wait_for_writer(place: str) -> Collection:
    """The collection, when a killed writer's lock is gone: a server takes a moment to see that its client is."""
    for _ in range(100):
        with contextlib.suppress(UserError), Collection(place).writing():
            return Collection(place)
        time.sleep(0.1)
    raise AssertionError("the lock stays")


TAKER = """
import sys
sys.path[:0] = ["tests"]
import test_store as t
from pathlib import Path
print("ready", flush=True)
sys.stdin.readline()
t.take_over(Path(sys.argv[1]), t.Collection(sys.argv[2]))
"""


def write_folder(folder: Path, films: int = 5) -> Path:
    """A collection as the version before kept it, in a folder."""
    (folder / "films").mkdir(parents=True)
    np.savez(folder / "basis-0.npz", project=BASIS[0], offset=BASIS[1])
    state = {"format": "movie-by-frame index 3", "model": vars(MODEL), "basis": "basis-0.npz", "rule": RULE.to_json()}
    state |= {"scoring": vars(Scoring()), "settled": 5, "unknown_share": 0.2, "films": {}}
    for film in range(films):
        rows = draw_rows(film)
        title = f"Film {film} ({1990 + film})"
        np.savez(folder / f"films/{film}.npz", **rows.arrays())
        vectors = project(rows.embedding)
        np.save(folder / f"films/{film}.npy", quantise(vectors))
        middle = base64.b64encode(quantise(vectors.sum(0, keepdims=True))).decode()
        about = {"frames": f"films/{film}.npz", "vectors": f"films/{film}.npy", "mark": str(film), "stills": 40}
        state["films"][title] = about | {"stored": 30, "year": 1990 + film, "imdb": None, "middle": middle}
    for state_of, film in (("", 0), ("pending", 1)):
        place = folder / "telegram" / state_of / hashed_name(f"Film {film} ({1990 + film})")
        place.mkdir(parents=True)
        (place / f"u{film}-a.jpg").write_bytes(b"\xff\xd8 theirs")
    (folder / "telegram/refused").mkdir()
    (folder / "telegram/refused/u2-b.jpg").write_bytes(b"\xff\xd8 refused")
    (folder / "index.json").write_text(json.dumps(state))
    return folder


def test_a_folder_of_before_is_taken_over(place, tmp_path):
    folder = write_folder(tmp_path / "index")
    assert take_over(folder, Collection(place)) == 5
    fill(Collection(tmp_path / "other.sqlite"), range(5))
    own, other = Search(Collection(place)), Search(Collection(tmp_path / "other.sqlite"))
    for film in range(5):
        assert ask(own, film, 8) == ask(other, film, 8)
    about = own.collection.about()
    assert (about.unknown_share, about.films_at_fit, about.rule, about.model) == (0.2, 5, RULE, MODEL)
    offers = Offers(own.collection)
    assert [offer.name for offer in offers.accepted("Film 0 (1990)")] == ["u0-a.jpg"]
    assert [offer.film for offer in offers.pending()] == ["Film 1 (1991)"] and len(offers.names()) == 3
    assert own.collection.check() == [] and own.collection.film("Film 2 (1992)").year == 1992
    with pytest.raises(UserError, match="is there already"):
        take_over(folder, Collection(place))


def test_a_folder_is_taken_over_whole_or_not_at_all(place, tmp_path):
    folder = write_folder(tmp_path / "index", films=40)
    rng = random.Random(5)
    seconds = None
    for kill in range(6):
        command = [sys.executable, "-c", TAKER, str(folder), place]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            start = time.monotonic()
            process.stdin.write("\n")
            process.stdin.flush()
            if kill:
                time.sleep(rng.uniform(0, seconds))
                process.kill()
            process.stdout.read()
            process.wait()
        seconds = seconds or time.monotonic() - start
        collection = Collection(place)
        try:
            assert len(titles(collection)) == 40 and collection.check() == []
        except UserError as error:
            assert "no index there" in str(error) and kill
        drop(collection)
    damaged = folder / "films/39.npz"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"39\.npz is damaged"):
        take_over(folder, Collection(place))
    with pytest.raises(UserError, match="no index there"):
        Collection(place).about()


def drop(collection: Collection) -> None:
    """Take the collection away, for the next try."""
    if hasattr(collection.home, "path"):
        collection.close()
        for file in collection.home.path.parent.glob(f"{collection.home.path.name}*"):
            file.unlink()
        return
    for _ in range(100):  # a killed one's connection may be there for a moment
        with contextlib.suppress(UserError), collection.home.writing():
            collection.home.execute("DROP SCHEMA movie_by_frame CASCADE")
            return
        time.sleep(0.1)


# --------------------------------------------------------------------------------------- what goes wrong, in a line


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and "secret" not in text and text.startswith("--index ")
    return text


def test_two_writers_are_refused(place):
    fill(Collection(place), range(2))
    with Collection(place).writing(), pytest.raises(UserError) as error, Collection(place).writing():
        pass
    assert "another index.py is writing" in one_line(error)
    with Collection(place).writing():  # when the first is done, the next one may
        pass


def test_where_nothing_is(place):
    for read in (Collection(place).about, Collection(place).films, Collection(place).check):
        with pytest.raises(NoCollection) as error:
            read()
        assert "no index there" in one_line(error)
    with pytest.raises(NoCollection), Collection(place).writing():
        pass
    if not place.startswith("postgresql"):
        assert not list(Path(place).parent.iterdir())


def test_a_newer_format_and_an_older_one(place, monkeypatch):
    fill(Collection(place), range(2))
    with monkeypatch.context() as patch:
        patch.setattr(store, "FORMAT", state.FORMAT + 1)
        with pytest.raises(UserError) as error:
            Collection(place).about()
        assert "make it anew" in one_line(error)  # nothing is known that brings it there
        patch.setattr(store, "MIGRATIONS", {state.FORMAT: "CREATE TABLE more (key TEXT, value {bytes})"})
        with pytest.raises(UserError, match=r"index\.py rebuild"):
            Collection(place).about()
        with Collection(place).writing():
            pass
        collection = Collection(place)
        assert len(titles(collection)) == 2 and collection.home.execute("SELECT * FROM more") == []
    with pytest.raises(UserError) as error:
        Collection(place).about()
    assert "of a newer version" in one_line(error)
    with pytest.raises(UserError, match="of a newer version"), Collection(place).writing():
        pass


@pytest.mark.parametrize("size", [20_000, 100_000, 400_000])
def test_on_a_full_disk_what_was_added_stays(file, size):
    writer = Collection(file)
    resource = pytest.importorskip("resource", reason="Windows caps no file")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(UserError) as error, writer.writing():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # no file may grow beyond, as if the disk were full
        try:
            for film in range(5, 300):
                add(writer, film)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "disk" in one_line(error)
    reader = Collection(file)
    assert reader.check() == [] and titles(reader)[:5] == [f"Film {film} ({1990 + film})" for film in range(5)]


@contextlib.contextmanager
def another_user():
    """Be a user who may write nowhere here."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root, to be another user")
def test_a_folder_that_may_not_be_written(file, tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    for left in tmp_path.glob("index.sqlite-*"):
        left.unlink()
    with another_user():
        found = Search(Collection(file))
        assert ask(found, 3, 3)[0] == "Film 3 (1993)" and found.collection.home.immutable
        with pytest.raises(UserError) as error, Collection(file).writing():
            pass
    assert "may this user write in its folder?" in one_line(error)
    assert {path.name for path in tmp_path.iterdir()} == {"index.sqlite"}
    writer = Collection(file)
    with writer.writing():
        add(writer, 8)
    with another_user():
        assert ask(found, 8, 3)[0] == "Film 8 (1998)"  # its date has changed


def test_a_file_of_another_program(tmp_path):
    path = tmp_path / "bot.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE film (title)")
    text = tmp_path / "notes.txt"
    text.write_text("nothing of ours, and more than a hundred bytes of it. " * 20)
    for place, words in ((path, "of another program"), (text, "is no file of index.py"), (tmp_path, "is a folder")):
        with pytest.raises(UserError) as error:
            Collection(place).about()
        assert words in one_line(error)
        with pytest.raises(UserError) as error, Collection(place).writing(MODEL):
            pass
        assert words in one_line(error)
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("film",)]


def test_damaged_pages_are_found(file):
    sound = file.read_bytes()
    found = 0
    for page in range(1, len(sound) // 16_384):
        start = page * 16_384
        file.write_bytes(sound[:start] + b"\xff" * 16_384 + sound[start + 16_384 :])
        try:
            found += bool(Collection(file).check())
        except UserError as error:
            assert "\n" not in str(error) and "damaged" in str(error)
            found += 1
    assert found == len(sound) // 16_384 - 1
    file.write_bytes(sound[: len(sound) // 2])
    with pytest.raises(UserError, match="damaged"):
        Collection(file).check()
        raise UserError("damaged, and found without an error")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DELETE FROM still WHERE film = 2 AND number = 3", "29 stills of 30"),
        ("UPDATE still SET thumbnail = 'x' WHERE film = 2 AND number = 3", "thumbnails are no pictures"),
        ("UPDATE vector SET vectors = substr(vectors, 1, 100) WHERE film = 2", "vectors are damaged"),
        ("UPDATE vector SET times = substr(times, 1, 100) WHERE film = 2", "times are damaged"),
        ("UPDATE embedding SET stills = substr(stills, 1, 100) WHERE film = 2", "embeddings are damaged"),
        ("UPDATE embedding SET dims = 12 WHERE film = 2", "Film 1 (1991): its embeddings"),
        ("DELETE FROM film WHERE id = 2", "30 rows of still belong to no film"),
        ("DELETE FROM projection", "projection and rule"),
    ],
)
def test_what_does_not_belong_together_is_found(file, change, words):
    with contextlib.closing(sqlite3.connect(file)) as base:
        base.execute(change)
        base.commit()
    assert any(words in line for line in Collection(file).check())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "null"),
        ("format", "{"),
        ("rule", '{"movie": "x"}'),
        ("rule", "3"),
        ("scoring", "[]"),
        ("model", "null"),
        ("fit", '"many"'),
        ("unknown_share", "null"),
        ("last_film", "{}"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(file, key, value):
    with contextlib.closing(sqlite3.connect(file)) as base:
        base.execute("UPDATE about SET value = ? WHERE key = ?", (value, key))
        base.commit()
    with pytest.raises(UserError) as error:
        Collection(file).about()
    assert "is damaged" in one_line(error)


def test_where_no_server_is(tmp_path):
    pytest.importorskip("psycopg")
    for read in (Collection(f"postgresql://me:secret@/db?host={tmp_path}").about,):
        with pytest.raises(UserError) as error:
            read()
        assert "PostgreSQL says" in one_line(error)


def test_without_psycopg_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match="pip install 'psycopg"):
        Collection("postgresql://me:secret@localhost/db")


def test_a_server_that_is_killed_and_started_again(server):
    place = server.new_place()
    writer = Collection(place)
    fill(writer, range(4))
    found = Search(Collection(place))
    assert ask(found, 2, 2)[0] == "Film 2 (1992)"
    with pytest.raises(UserError) as error, writer.writing():
        add(writer, 9)
        server.stop()  # as a power cut
        try:
            add(writer, 10)
        finally:
            with pytest.raises(UserError, match="PostgreSQL says"):
                ask(found, 2, 2)
            server.start()
    assert "PostgreSQL says" in one_line(error)
    assert ask(found, 9, 2)[0] == "Film 9 (1999)"  # over a new connection
    assert found.collection.check() == [] and len(titles(found.collection)) == 5


# --------------------------------------------------------------------------------------- copies, and other places


def test_a_backup_is_whole_while_films_come(file, tmp_path):
    writer = Collection(file)
    with writer.writing():
        add(writer, 7)
        Collection(file).home.backup(tmp_path / "copy.sqlite")
        add(writer, 8)
    copy = Collection(tmp_path / "copy.sqlite")
    assert len(titles(copy)) == 6 and copy.check() == [] and ask(Search(copy), 7, 2)[0] == "Film 7 (1997)"
    assert sorted(path.name for path in tmp_path.glob("copy*")) == ["copy.sqlite"]


def test_a_file_that_was_put_in_place_of_another_is_read(file, tmp_path):
    found = Search(Collection(file))
    ask(found, 1, 1)
    other = tmp_path / "other.sqlite"
    fill(Collection(other), range(10, 13))
    os.replace(other, file)
    assert ask(found, 11, 1)[0] == "Film 11 (2001)" and len(found.titles) == 3


def test_a_replica_is_read_anew_when_its_transaction_is_another(file, tmp_path):
    replica = tmp_path / "replica.sqlite"
    shutil.copy(file, replica)
    (tmp_path / "replica.sqlite-txid").write_text("1")
    found = Search(Collection(replica))
    assert ask(found, 1, 1)[0] == "Film 1 (1991)" and found.collection.home.immutable
    writer = Collection(file)
    with writer.writing():
        add(writer, 7)
    replica.write_bytes(file.read_bytes())  # in place, as Litestream does
    (tmp_path / "replica.sqlite-txid").write_text("2")
    assert ask(found, 7, 1)[0] == "Film 7 (1997)"
    assert not list(tmp_path.glob("replica.sqlite-[ws]*"))


def test_films_go_from_one_collection_to_another(place, tmp_path):
    fill(Collection(place), range(6))
    out = tmp_path / "two.sqlite"
    assert export_films(Collection(place), ["Film 2 (1992)", "Film 4 (1994)"], out) == 2
    assert sorted(path.name for path in tmp_path.glob("*two*")) == ["two.sqlite"]
    with pytest.raises(UserError, match="is there already"):
        export_films(Collection(place), ["Film 2 (1992)"], out)
    with pytest.raises(UserError, match="not in"):
        export_films(Collection(place), ["Nothing"], tmp_path / "none.sqlite")
    target = Collection(tmp_path / "target.sqlite")
    fill(target, range(10, 14))
    with target.writing():
        assert [film.title for film in import_films(Collection(out), target)] == ["Film 2 (1992)", "Film 4 (1994)"]
    assert ask(Search(target), 4, 5) == ask(Search(Collection(place)), 4, 5) and target.check() == []
    assert target.film("Film 2 (1992)").year == 1992
