"""How a collection grows, for bench.py, which runs it: search, memory and adding, beside faiss.

python bench.py index                                                   # among 100,000 and a million stills
"""

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from answering.calibration import Rule
from answering.console import UserError
from answering.embedding import FilmRows
from answering.projection import Scoring, blend_similarity, unit_length
from answering.search import Search, cosines, gather
from answering.state import Film, IndexedModel
from answering.store import Collection, pack_vectors
from benchmarks.harness import in_process, resident_megabytes, show

DIMENSIONS = 128  # of a drawn vector
EMBEDDING = 384  # numbers of an embedding, as DINOv2-S has them
THUMBNAIL_BYTES = 3000  # of a drawn still that is added
FILM_STILLS = 100
QUESTIONS = 100
BEST_FILMS = 8  # that should be found
FAISS_PROBES = 24
FAISS_NEAR = 64  # stills that faiss is asked for
ADDED_STILLS = 200  # of a film that is added
ADDED_FILMS = 9
READERS = 3
READ_SECONDS = 5.0


def draw_film(number: int, frames: int) -> np.ndarray:
    """A film's vectors float32 [frames, 128] with the spread of real ones; not of unit length.

    Measured on 20 films, DINOv2-S whitened within films to 128 dimensions: films lie apart in 19 of them, the last,
    with variances of 0.5 up to 8; 0.25 stands for what more films add in the others. Within films each dimension has 1;
    shots are of 4 frames, which differ by 0.35.
    """
    rng = np.random.default_rng(number)
    apart = np.sqrt(np.r_[np.full(DIMENSIONS - 19, 0.25), np.linspace(0.5, 8, 19)])
    centre = rng.normal(0, apart).astype(np.float32)
    shots = centre + rng.standard_normal((-(-frames // 4), DIMENSIONS), np.float32)
    return np.repeat(shots, 4, axis=0)[:frames] + 0.35 * rng.standard_normal((frames, DIMENSIONS), np.float32)


def draw_questions(films: int, frames: int, count: int) -> np.ndarray:
    """Vectors [count, 128]: each a frame of a film and 0.5 more.

    That is a cosine of 0.89 (real frames 2 s beside an indexed one have 0.95, photos of a screen 0.72).
    """
    rng = np.random.default_rng(13)
    asked = [draw_film(rng.integers(films), frames)[rng.integers(frames)] for _ in range(count)]
    return unit_length(np.stack(asked) + 0.5 * rng.standard_normal((count, DIMENSIONS), np.float32))


def draw_rows(number: int, stills: int) -> FilmRows:
    """Rows of a film that is added, with embeddings and thumbnails of the size that real ones have."""
    rng = np.random.default_rng(number)
    embedding = rng.standard_normal((stills, EMBEDDING), np.float32).astype(np.float16)
    return FilmRows(
        embedding=embedding,
        degraded_embedding=embedding[:24],
        clean_embedding=embedding[:24],
        name=np.char.mod("%05d.jpg", np.arange(stills)),
        time_ms=np.arange(stills) * 1000,
        until_ms=np.arange(stills) * 1000,
        shot=np.char.mod("%d", np.arange(stills) // 4),
        thumbnails=np.frombuffer(rng.bytes(THUMBNAIL_BYTES * stills), np.uint8),
        thumbnail_ends=np.arange(1, stills + 1) * THUMBNAIL_BYTES,
    )


def write_drawn(place: str, films: int, stills: int) -> dict[str, float]:
    """A collection of drawn films, their vectors alone; returns the seconds that its cells took."""
    collection = Collection(place)
    with collection.writing(IndexedModel("drawn", "")):
        about = collection.about()
        about.rule = Rule(movie=0.5, shortlist=0.4, slope=10.0, shift=-5.0)
        basis = np.zeros((EMBEDDING, DIMENSIONS), np.float32), np.zeros(DIMENSIONS, np.float32)
        collection.put_fit(about, basis, project=None)
        with collection.home.transaction():
            for number in range(films):
                write_vectors(collection, number, draw_film(number, stills))
            about.last_film = films
            collection.write_about(about)
        start = time.perf_counter()
        gather(collection, collection.about())
        return {"cells, s": time.perf_counter() - start}


def write_vectors(collection: Collection, number: int, drawn: np.ndarray) -> None:
    """What search reads of a film, as put_film writes it."""
    vectors, middle = pack_vectors(unit_length(drawn))
    times = np.zeros((len(drawn), 2), "<i8").tobytes()
    query = "INSERT INTO film (id, title, content_key, stills, stored, added) VALUES (?, ?, '', ?, ?, 0)"
    collection.home.execute(query, [number + 1, f"Film {number}", len(drawn), len(drawn)])
    query = "INSERT INTO vector (film, middle, times, vectors) VALUES (?, ?, ?, ?)"
    collection.home.execute(query, [number + 1, middle, times, vectors])


def read_blocks(place: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(number of the first film, middles [f, d], vectors [f, n, d]) of a collection of drawn films, in parts."""
    collection = Collection(place)
    after = 0
    with collection.snapshot():
        while rows := collection.read_vectors(after=after):
            middles = np.frombuffer(b"".join(bytes(row[1]) for row in rows), np.int8).reshape(len(rows), -1)
            vectors = np.frombuffer(b"".join(bytes(row[2]) for row in rows), np.int8).reshape(-1, DIMENSIONS)
            yield after, unit_length(middles), unit_length(vectors).reshape(len(rows), -1, DIMENSIONS)
            after = rows[-1][0]


def find_truth(place: str, asked: np.ndarray) -> np.ndarray:
    """Numbers of the films that are most like each question, the best first, [Q, BEST_FILMS], by plain numpy."""
    found = []
    for _, middles, vectors in read_blocks(place):
        films, stills, _ = vectors.shape
        nearest = (asked @ vectors.reshape(films * stills, -1).T).reshape(len(asked), films, stills).max(2)
        found.append(blend_similarity(nearest, asked @ middles.T))
    return np.argsort(-np.concatenate(found, axis=1), axis=1)[:, :BEST_FILMS]


# ------------------------------------------------------------------------------------------------ who is asked


def open_ours(place: str) -> Callable[[np.ndarray], np.ndarray]:
    """Function from a vector to the similarity of each film, as an answer has it: with a look for what is new."""
    found = Search(Collection(place))

    def ask(vector: np.ndarray) -> np.ndarray:
        with found.collection.snapshot() as version:
            found.refresh(version)
            return found.similarity(vector, Scoring())

    return ask


def open_faiss(place: str, kind: str, saved: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The same by faiss; kind: "Flat", or "IVF" with lists of 8 bits a number, as the version before had it.

    saved: where it lies once it is built, else it is built and put there.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    if not saved.exists():
        faiss.write_index(build_faiss(place, kind), str(saved))
    index = faiss.read_index(str(saved))
    middles = np.concatenate([middles for _, middles, _ in read_blocks(place)])
    stills = index.ntotal // len(middles)

    def ask(vector: np.ndarray) -> np.ndarray:
        similarity, rows = index.search(vector[None], FAISS_NEAR)
        found = rows[0] >= 0
        best = np.full(len(middles), similarity[0][found].min(), np.float32)
        np.maximum.at(best, rows[0][found] // stills, similarity[0][found])
        return blend_similarity(best, middles @ vector)

    return ask


def build_faiss(place: str, kind: str):
    """A faiss index of all vectors of a collection of drawn films."""
    import faiss

    count = sum(vectors.shape[0] * vectors.shape[1] for _, _, vectors in read_blocks(place))
    lists = int(min(4096, 2 * count**0.5))
    index = faiss.index_factory(DIMENSIONS, f"IVF{lists},SQ8" if kind == "IVF" else "Flat", faiss.METRIC_INNER_PRODUCT)
    if kind == "IVF":
        faiss.extract_index_ivf(index).cp.niter = 8
        step = max(1, count // (40 * lists))
        parts = [vectors.reshape(-1, DIMENSIONS)[::step] for _, _, vectors in read_blocks(place)]
        index.train(np.concatenate(parts))
        index.nprobe = FAISS_PROBES
    for _, _, vectors in read_blocks(place):
        index.add(vectors.reshape(-1, DIMENSIONS))
    return index


def openers(place: str, stills: int, folder: Path) -> dict[str, Callable]:
    """{row of the table: function that opens it}; faiss where it is installed, flat up to a million stills."""
    found = {"index.py": lambda: open_ours(place)}
    with contextlib.suppress(ImportError):
        import faiss  # noqa: F401

        found["faiss IVF, SQ8"] = lambda: open_faiss(place, "IVF", folder / "ivf.faiss")
        if stills <= 1_000_000:
            found["faiss flat"] = lambda: open_faiss(place, "Flat", folder / "flat.faiss")
    return found


def ask_in_turn(
    place: str, stills: int, folder: Path, asked: np.ndarray, truth: np.ndarray
) -> dict[str, dict[str, float]]:
    """Milliseconds and recall of each, asked the same in turn in this process."""
    asks = {name: opener() for name, opener in openers(place, stills, folder).items()}
    rows = {}
    times = {name: [] for name in asks}
    right = {name: [] for name in asks}
    for vector, wanted in zip(asked, truth, strict=True):
        for name, ask in asks.items():
            start = time.perf_counter()
            similarity = ask(vector)
            times[name].append(1000 * (time.perf_counter() - start))
            best = np.argsort(-similarity)[: len(wanted)]
            right[name].append((best[0] == wanted[0], np.isin(wanted, best).mean()))
    for name in asks:
        first, films = np.mean(right[name], axis=0)
        p50 = float(np.median(times[name][len(asked) // 10 :]))
        rows[name] = {"search p50, ms": p50, "recall@1": first, f"of {BEST_FILMS} best films": films}
    return rows


def measure_memory(place: str, stills: int, folder: Path, name: str, asked: np.ndarray) -> dict[str, float]:
    """Megabytes that this process, which does nothing else, holds after questions, and seconds to open."""
    start = time.perf_counter()
    ask = openers(place, stills, folder)[name]()
    ask(asked[0])
    opened = time.perf_counter() - start
    for vector in asked:
        ask(vector)
    return {"memory, MB": resident_megabytes(), "open, s": opened}


def measure_adding(place: str) -> dict[str, float]:
    """Milliseconds to add a film, until an open reader has it, and to prove an answer."""
    writer = Collection(place)
    found = Search(Collection(place))
    with found.collection.snapshot() as version:
        found.refresh(version)
    added, seen, proved = [], [], []
    with writer.writing():
        for number in range(ADDED_FILMS):
            rows = draw_rows(number, ADDED_STILLS)
            packed = pack_vectors(unit_length(draw_film(number, ADDED_STILLS)))
            start = time.perf_counter()
            film = writer.put_film(writer.about(), Film(0, f"Added {number}"), rows, packed)
            added.append(time.perf_counter() - start)
            start = time.perf_counter()
            with found.collection.snapshot() as version:
                found.refresh(version)
                seen.append(time.perf_counter() - start)
                vector = draw_questions(1, 1, 1)[0]
                start = time.perf_counter()
                still = int(cosines(found.read_film(len(found.titles) - 1)[0], vector).argmax())
                found.collection.proof(film.id, still)
                proved.append(time.perf_counter() - start)
    names = (f"add {ADDED_STILLS} stills, ms", "seen after, ms", "proof, ms")
    return {name: 1000 * float(np.median(times)) for name, times in zip(names, (added, seen, proved), strict=True)}


def ask_for(place: str, asked: np.ndarray, seconds: float) -> list[float]:
    """Milliseconds of each question that this process could ask in so many seconds."""
    ask = open_ours(place)
    ask(asked[0])
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        ask(asked[len(times) % len(asked)])
        times.append(1000 * (time.perf_counter() - start))
    return times


def measure_readers(place: str, asked: np.ndarray, *, with_writer: bool) -> dict[str, float]:
    """Milliseconds of READERS processes that ask at once, alone or while one writer adds film after film."""
    writer = Collection(place)
    added = 0
    with ProcessPoolExecutor(READERS, multiprocessing.get_context("spawn")) as pool:
        asking = [pool.submit(ask_for, place, asked, READ_SECONDS) for _ in range(READERS)]
        with writer.writing() if with_writer else contextlib.nullcontext():
            while with_writer and not all(reader.done() for reader in asking):
                packed = pack_vectors(unit_length(draw_film(added, ADDED_STILLS)))
                rows = draw_rows(added, ADDED_STILLS)
                writer.put_film(writer.about(), Film(0, f"Beside {added}"), rows, packed)
                added += 1
        times = np.concatenate([reader.result() for reader in asking])
    p50, p99 = np.percentile(times, [50, 99])
    return {"asked": len(times), "p50, ms": p50, "p99, ms": p99, "films added": added}


@contextlib.contextmanager
def new_place(folder: Path, place: str) -> Iterator[tuple[str, Path]]:
    """(where a collection of the moment lies, a folder of the moment): a file in it, or an empty PostgreSQL."""
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        if not place:
            yield str(Path(inside) / "index.sqlite"), Path(inside)
            return
        home = Collection(place).home
        with home.writing():
            if home.has_tables():
                raise UserError(f"--place {home}: holds a collection; name another database", 2)
        yield place, Path(inside)
        with home.writing():
            home.execute("DROP SCHEMA movie_by_frame CASCADE")


def bench_index(
    *, frames: str = "100000,1000000", films: str = "100,10000", folder: Path = Path("."), place: str = ""
) -> None:
    """Search among drawn vectors on one thread, beside faiss: time, recall, memory; and adding a film to ever more.

    frames: stills, several with commas; films: of 20 stills each, that one more is added to; folder: where the
    collection of the moment lies; place: an empty PostgreSQL instead, postgresql://...
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    rows = {}
    readers = {}
    for stills in map(int, frames.split(",")):
        count = max(5, stills // FILM_STILLS)
        with new_place(folder, place) as (where, inside):
            built = in_process(write_drawn, where, count, stills // count)
            asked = draw_questions(count, stills // count, QUESTIONS)
            truth = in_process(find_truth, where, asked)
            measured = in_process(ask_in_turn, where, stills, inside, asked, truth)
            for name, row in measured.items():
                row |= in_process(measure_memory, where, stills, inside, name, asked)
            measured["index.py"] |= built | in_process(measure_adding, where)
            for name, row in measured.items():
                rows[f"{name}, {stills:,} stills"] = {key: f"{value:,.3g}" for key, value in row.items()}
            for words, with_writer in (("alone", False), ("beside a writer", True)):
                row = measure_readers(where, asked, with_writer=with_writer)
                readers[f"{words}, {stills:,} stills"] = {key: f"{value:,.3g}" for key, value in row.items()}
    show(f"Drawn vectors of {DIMENSIONS} dimensions, films of {FILM_STILLS} stills, one thread, asked in turn", rows)
    show(f"{READERS} processes that ask at once", readers)
    rows = {}
    for count in map(int, films.split(",")):
        with new_place(folder, place) as (where, _):
            in_process(write_drawn, where, count, 20)
            rows[f"{count:,} films"] = in_process(measure_adding, where)
    show("Adding a film", rows)
