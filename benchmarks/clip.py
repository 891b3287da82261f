"""How often clips of so many frames get the right film and moment, for bench.py, which runs it.

python bench.py clip data/raw --model export    # films with times are asked, the others only lie in the index
"""

import contextlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from answering.collection import Index
from answering.console import UserError
from answering.flat import is_flat
from answering.model import Answer, Identifier
from answering.stills import Still, find_films, list_stills
from benchmarks.collection import choose_moments, write_raw
from benchmarks.harness import show

MOMENT_MS = 5500  # a clip found so near its place is right


@dataclass
class AskedFilm:
    """Frames of a film that lie between those in the index, in order of time."""

    title: str
    embedding: np.ndarray  # [n, D]
    time_ms: np.ndarray  # [n]


def prepare_film(title: str, folder: Path, raw: Path, identifier: Identifier, apart_ms: int) -> AskedFilm | None:
    """Put a film's stills into raw/; of one with times only those so far apart, and the others are returned."""
    stills = list_stills(folder)
    timed = [still for still in stills if still.milliseconds >= 0]
    kept, between = choose_moments(timed, apart_ms) if timed else (stills, [])
    write_raw(raw / title, kept)
    return embed_stills(title, between, identifier) if between else None


def embed_stills(title: str, stills: list[Still], identifier: Identifier) -> AskedFilm:
    """What is asked of a film; flat stills are left out, as of a clip."""
    rows = []
    time_ms = []
    for still in stills:
        rgb = identifier.read(still.path)
        if not is_flat(rgb):
            rows.append(identifier.run(identifier.load(rgb)[None])["embedding"][0])
            time_ms.append(still.milliseconds)
    return AskedFilm(title, np.stack(rows), np.array(time_ms))


def ask_runs(index: Index, film: AskedFilm, frames: int, count: int) -> np.ndarray:
    """Runs of so many frames of a film: whether the film is right, named, and named with its moment; bool [n, 3]."""
    rng = np.random.default_rng([frames, count])
    found = []
    for first in rng.integers(0, len(film.time_ms) - frames + 1, count):
        run = slice(first, first + frames)
        start = film.time_ms[first]
        time_ms = film.time_ms[run] - start
        answer = index.answer_together(film.embedding[run], 1, time_ms=time_ms, length_ms=int(time_ms[-1]))
        right = answer.candidates[0].title == film.title
        found.append((right, answer.kind == "movie", right and is_there(answer, start, start + time_ms[-1])))
    return np.array(found)


def is_there(answer: Answer, start: int, end: int) -> bool:
    """Whether the proof of an answer is where the clip is, from start to end in milliseconds."""
    proof = answer.candidates[0].evidence
    return abs(proof.from_ms - start) <= MOMENT_MS and abs(proof.to_ms - end) <= MOMENT_MS


def call_index(*argv: object) -> None:
    """index.py with its output on stderr."""
    import index

    with contextlib.redirect_stdout(sys.stderr):
        index.main([str(part) for part in argv])


def bench_clip(
    raw: list[Path], *, model: Path = Path("export"), seconds: int = 4, frames: str = "1,4,12,24", count: int = 100
) -> None:
    """How often clips of 1, 4, 12 and 24 frames get the right film and moment, and how often an unknown film is named.

    raw: folders of films' stills; of those with times, a still every so many seconds goes into an index, and runs of
    the stills between are asked, count of each film and length. Then each of these films is left out of the index.
    """
    identifier = Identifier(model)
    lengths = [int(length) for length in frames.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "index.sqlite")
        films = []
        for title, stills in find_films(raw).items():
            films.append(prepare_film(title, stills, Path(folder, "raw"), identifier, 1000 * seconds))
        asked = [film for film in films if film and len(film.time_ms) >= max(lengths)]
        if not asked:
            raise UserError(f"{raw[0]}: no film with times and stills closer than {seconds} s; scrape one with --every")
        call_index("add", Path(folder, "raw"), f"--model={model}", f"--index={place}")
        index = Index(place, identifier)
        known = {length: [ask_runs(index, film, length, count) for film in asked] for length in lengths}
        unknown = {length: [] for length in lengths}
        for film in asked:
            without = Path(folder, "without.sqlite")
            shutil.copy(place, without)
            call_index("remove", film.title, f"--index={without}")
            call_index("rebuild", f"--index={without}")
            index = Index(without, identifier)
            for length in lengths:
                unknown[length].append(ask_runs(index, film, length, count))
    rows = {}
    for length in lengths:
        right, named, there = np.concatenate(known[length]).mean(0)
        strangers = np.concatenate(unknown[length])[:, 1].mean()
        figures = {"film right": right, "named": named, "film and moment right": there, "unknown named": strangers}
        rows[f"{length} frames"] = {name: f"{value:.3f}" for name, value in figures.items()}
    about = f"{len(films)} films, {len(asked)} of them asked, a still every {seconds} s in the index."
    show("Clips: runs of frames between indexed ones", rows, about)
