"""The figures of the index, for bench.py, which runs them: growth, and moments.

python bench.py index                                                   # search among 10,000 and a million frames
python bench.py moments data/raw --model export                         # beside ColorLayout and pHash
"""

import base64
import contextlib
import itertools
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

import index
from answering.calibration import UNKNOWN_SHARE
from answering.collection import FORMAT, Index, store_vectors
from answering.console import UserError
from answering.model import Identifier
from answering.pictures import read_image
from answering.stills import Still, find_films, list_stills
from answering.store import EXACT, open_engine
from benchmarks.harness import in_process, show
from benchmarks.ways import WAYS as ALL_WAYS

WAYS = {name: ALL_WAYS[name] for name in ("as it is", "crop, 60% of the sides", "photo of a screen", "mirrored")}


def draw_film(number: int, each: int) -> np.ndarray:
    """A film's vectors float32 [each, 128] with the spread of real ones; not of unit length.

    Measured on 20 films, DINOv2-S whitened within films to 128 dimensions: films lie apart in 19 of them, with
    variances of 8 down to 0.5; 0.25 stands for what more films add in the others. Within films each dimension has 1;
    shots are of 4 frames, which differ by 0.35.
    """
    rng, apart = np.random.default_rng(number), np.sqrt(np.r_[np.linspace(8, 0.5, 19), np.full(109, 0.25)])
    shots = rng.normal(0, apart).astype(np.float32) + rng.standard_normal((-(-each // 4), 128), np.float32)
    return np.repeat(shots, 4, axis=0)[:each] + 0.35 * rng.standard_normal((each, 128), np.float32)


def fake_model():
    """What Index wants of an Identifier."""
    seen = {"embedding": np.arange(256, dtype=np.float32).reshape(2, 128)}  # for the fingerprint
    return SimpleNamespace(classes=[], preprocessing={"size": 16}, run=lambda batch: seen)


def write_drawn(folder: Path, frames: int, count: int = 200) -> list[tuple]:
    """Keep drawn films as index.py does; returns (question [128], nearest film, its similarity) of count questions.

    A question is a frame and 0.5 more: cosine 0.89 (real frames 2 s beside an indexed one have 0.95, photos of a
    screen 0.72). The films share what only the proof reads of them.
    """
    engine, films, rng = open_engine(folder), max(5, min(10_000, frames // 100)), np.random.default_rng(13)
    each, rule = frames // films, {"movie": 0.5, "shortlist": 0.4, "slope": 10.0, "shift": -5.0}
    asked = [draw_film(rng.integers(films), each)[rng.integers(each)] for _ in range(count)]
    asked = np.stack(asked) + 0.5 * rng.standard_normal((count, 128), np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    proof = {"name": np.char.mod("%05d.jpg", np.arange(each)), "time": np.arange(each) * 1000}
    proof |= {"until": proof["time"], "thumbs": np.zeros(4000 * each, np.uint8), "ends": np.arange(1, each + 1) * 4000}
    shared, print_of = engine.put("", proof), base64.b64encode(fake_model().run(None)["embedding"]).decode()
    basis = engine.put(None, {"project": np.eye(128, dtype=np.float32), "offset": np.zeros(128, np.float32)})
    model = {"architecture": "drawn", "fingerprint": print_of}
    state = {"format": FORMAT, "model": model, "basis": basis, "rule": rule, "settled": films, "films": {}}
    state["unknown_share"] = UNKNOWN_SHARE
    best, nearest = np.full(count, -1.0), np.zeros(count, int)
    for number in range(films):
        film = store_vectors(engine, str(number), draw_film(number, each))
        state["films"][f"Film {number}"] = film | {"frames": shared, "stored": each}
        alike = (engine.get_vectors(film["vectors"]) @ asked.T).max(0)
        nearest[alike > best] = number
        best = np.maximum(best, alike)
    engine.commit(state)
    return list(zip(asked, nearest.tolist(), best.tolist(), strict=True))


def pack_drawn(folder: Path, memory: str) -> dict[str, float]:
    """Seconds to make what is searched, and the disk that it takes beside the vectors."""
    engine, start = open_engine(folder), time.perf_counter()
    state = engine.load() | {"memory": memory}
    with contextlib.redirect_stdout(sys.stderr):
        engine.pack(state)
    seconds = time.perf_counter() - start
    engine.commit(state)
    disk = sum(file.stat().st_size for pattern in ("films/*.npy", "pack-*") for file in folder.glob(pattern))
    return {"build, s": seconds, "disk, MB": disk / 1e6}


def search_drawn(folder: Path, asked: list[tuple]) -> dict[str, float]:
    """Figures of searches in this process, by one thread; the first tenth warms up."""
    start = time.perf_counter()
    found, times, right = Index(folder, fake_model()), [], []
    opened = time.perf_counter() - start
    for vector, film, alike in asked:
        start = time.perf_counter()
        best = found.best_by_film(vector)
        middle = time.perf_counter()
        found.answers(vector[None])
        times.append((middle - start, time.perf_counter() - middle))
        right.append(int(best.argmax()) == film and abs(best.max() - alike) < 1e-4)
    search, whole = 1000 * np.median(times[len(times) // 10 :], axis=0)
    memory = dict(re.findall(r"(VmRSS|RssFile):\s*(\d+)", Path("/proc/self/status").read_text()))
    row = {"search p50, ms": search, "whole answer p50, ms": whole, "recall@1": float(np.mean(right))}
    row |= {"memory, MB": int(memory["VmRSS"]) / 1000, "of it mapped files, MB": int(memory["RssFile"]) / 1000}
    return row | {"open, s": opened}


def bench_index(*, frames: str = "10000,1000000", memory: str = "plenty,small", folder: Path = Path(".")) -> None:
    """Search among so many drawn frames, on one thread: times, recall@1 of exact, memory, time to build, disk.

    frames and memory: several, with commas; folder: where the index of the moment lies.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    rows = {}
    for count in map(int, frames.split(",")):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            asked = in_process(write_drawn, Path(place), count)
            for mode in memory.split(",") if count > EXACT else ["plenty"]:
                built = in_process(pack_drawn, Path(place), mode)
                row = in_process(search_drawn, Path(place), asked) | built
                rows[f"{count:,} frames, {mode}"] = {key: f"{value:,.3g}" for key, value in row.items()}  # no ratios
    show("Growth of the index, drawn vectors of 128 dimensions, one thread", rows)


def color_layout(image: Image.Image) -> np.ndarray:
    """ColorLayout of MPEG-7 (ISO/IEC 15938-3), float32 [33]: 21 numbers of Y, 6 of Cb, 6 of Cr, which trace.moe uses.

    An 8 x 8 grid of mean colours, its cosine transform in zigzag order, quantised in steps that grow. Each number is
    multiplied by the root of its weight, so that Euclid's distances a channel, added up, are the standard's distance.
    """
    from scipy.fft import dctn

    grid = np.asarray(image.convert("YCbCr").resize((8, 8), Image.Resampling.BOX), np.float32)
    grid = (grid - [0, 128, 128]) * [219 / 255, 224 / 255, 224 / 255] + [16, 128, 128]
    zigzag = sorted(itertools.product(range(8), repeat=2), key=lambda at: (sum(at), at[sum(at) % 2 == 0]))
    waves, parts = dctn(grid, axes=(0, 1), norm="ortho"), []
    for channel, (count, weights) in enumerate(((21, [3, 3, 3]), (6, [2, 2, 2]), (6, [4, 2, 2]))):
        wave = np.array([waves[y, x, channel] for y, x in zigzag[:count]])
        small = np.sign(wave / 2) * np.interp(abs(wave / 2), [0, 64, 128, 256], [0, 64, 96, 127])
        wave[1:] = (small[1:] + 128) // 8
        luma = np.interp(wave[0] / 8, [0, 64, 96, 160, 192, 256], [0, 16, 32, 96, 112, 127]) // 2
        chroma = np.interp(wave[0] / 8, [64, 96, 112, 144, 160, 191], [0, 8, 16, 48, 56, 63]) // 1
        wave[0] = chroma if channel else luma
        parts.append(wave * np.sqrt(weights + [1] * (count - 3)))
    return np.concatenate(parts).astype(np.float32)


def choose_moments(stills: list[Still], apart: int) -> tuple[list[Still], list[Still]]:
    """(stills for the index, so many ms apart, and questions: the stills between, nearest to the middle)."""
    kept, asked = [], []
    for still in stills:
        if not kept or still.milliseconds >= kept[-1].milliseconds + apart:
            kept.append(still)
    for still, after in itertools.pairwise(kept):
        middle = (still.milliseconds + after.milliseconds) / 2
        best = min(stills, key=lambda it, middle=middle: abs(it.milliseconds - middle))
        if after.milliseconds - still.milliseconds <= 2 * apart and best is not still and best is not after:
            asked.append(best)
    return kept, asked


def split_moments(episodes: list[Path], folder: Path, seconds: int, count: int) -> tuple[list, list]:
    """([(title, still)] for the index, [(title, still)] to ask for); the former lie in folder then, as raw stills."""
    kept, asked = [], []
    for title, place in find_films(episodes).items():
        few, between = choose_moments([it for it in list_stills(place) if it.milliseconds >= 0], 1000 * seconds)
        if not between:
            raise UserError(f"{place}: no stills between those every {seconds} s, or without times; scrape it anew")
        raw = folder / title
        raw.mkdir(parents=True)
        for number, still in enumerate(few):
            (raw / f"{number}.jpg").symlink_to(still.path.absolute())
        lines = [json.dumps({"file": f"{n}.jpg", "shot_time_ms": still.milliseconds}) for n, still in enumerate(few)]
        (raw / "frames.jsonl").write_text("\n".join(lines))
        kept += [(title, still) for still in few]
        asked += [(title, still) for still in between[:: -(-len(between) // count)]]
    return kept, asked


def bench_moments(episodes: list[Path], *, model: Path = Path("export"), seconds: int = 4, count: int = 200) -> None:
    """Title, and title and moment within 5 s, of frames between indexed ones: ours, ColorLayout of MPEG-7, pHash.

    episodes: folders of stills with their times, as scrape.py video --every leaves them; an index with a still every so
    many seconds is made, and at most count stills of a film between them are asked for, worn in four ways.
    """
    from imagehash import phash

    def look(still: Still, way: str = "as it is", number: int = 0) -> tuple:
        picture = WAYS[way](Image.fromarray(read_image(still.path)), np.random.default_rng([17, number]))
        return picture, color_layout(picture), phash(picture).hash.ravel()

    identifier, names = Identifier(model), ("ColorLayout, 33 numbers", "pHash, 64 bits", "index.py")
    rows = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as folder:
        kept, asked = split_moments(episodes, Path(folder, "raw"), seconds, count)
        place = Path(folder, "index")
        with contextlib.redirect_stdout(sys.stderr):
            index.main(["add", str(Path(folder, "raw")), f"--model={model}", f"--index={place}"])
        ours, seen = Index(place, identifier), [look(still)[1:] for _, still in kept]
        layouts, hashes = (np.stack(part) for part in zip(*seen, strict=True))
        for way in WAYS:
            found, clock = [], np.array([still.milliseconds for _, still in kept])
            for number, (title, still) in enumerate(asked):
                picture, layout, bits = look(still, way, number)
                parts = np.split((layouts - layout) ** 2, [21, 27], axis=1)
                near = [sum(np.sqrt(part.sum(1)) for part in parts).argmin(), (hashes ^ bits).sum(1).argmin()]
                frame = identifier.run(identifier.load(np.asarray(picture))[None])["embedding"]
                best = ours.answers(frame, top=1)[0].candidates[0]
                answers = [(kept[k][0], clock[k]) for k in near] + [(best.title, best.evidence.time_ms)]
                found.append([(name == title, abs(when - still.milliseconds) <= 5000) for name, when in answers])
            for name, right in zip(names, np.array(found).transpose(1, 0, 2), strict=True):
                rows[name][way] = f"{right[:, 0].mean():.3f} / {right.all(1).mean():.3f}"
    films = len({title for title, _ in kept})
    text = f"{len(kept)} stills of {films} films, every {seconds} s, are in the index; {len(asked)} between are asked."
    show("Title right / title and moment within 5 s", rows, text)
