"""How well an index finds the moment of a film, for bench.py, which runs it.

python bench.py moments data/raw --model export                         # beside ColorLayout and pHash
"""

import contextlib
import itertools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from answering.collection import Index
from answering.console import UserError
from answering.model import Identifier
from answering.pictures import read_image
from answering.stills import Still, find_films, list_stills
from benchmarks.harness import show
from benchmarks.ways import WAYS as ALL_WAYS

MOMENT_MS = 5000  # a moment so near is right
WAYS = {name: ALL_WAYS[name] for name in ("as it is", "crop, 60% of the sides", "photo of a screen", "mirrored")}


# ------------------------------------------------------------------------------- moments, beside MPEG-7 and pHash


def color_layout(image: Image.Image) -> np.ndarray:
    """ColorLayout of MPEG-7 (ISO/IEC 15938-3), float32 [33]: 21 numbers of Y, 6 of Cb, 6 of Cr, which trace.moe uses.

    An 8 x 8 grid of mean colours, its cosine transform in zigzag order, quantised in steps that grow. Each number is
    multiplied by the root of its weight, so that Euclid's distances a channel, added up, are the standard's distance.
    """
    from scipy.fft import dctn

    grid = np.asarray(image.convert("YCbCr").resize((8, 8), Image.Resampling.BOX), np.float32)
    grid = (grid - [0, 128, 128]) * [219 / 255, 224 / 255, 224 / 255] + [16, 128, 128]
    zigzag = sorted(itertools.product(range(8), repeat=2), key=lambda at: (sum(at), at[sum(at) % 2 == 0]))
    waves = dctn(grid, axes=(0, 1), norm="ortho")
    parts = []
    for channel, (count, weights) in enumerate(((21, [3, 3, 3]), (6, [2, 2, 2]), (6, [4, 2, 2]))):
        wave = quantise_channel(np.array([waves[y, x, channel] for y, x in zigzag[:count]]), is_luma=channel == 0)
        parts.append(wave * np.sqrt(weights + [1] * (count - 3)))
    return np.concatenate(parts).astype(np.float32)


def quantise_channel(wave: np.ndarray, *, is_luma: bool) -> np.ndarray:
    """A channel's coefficients [n], the mean first, in the steps of the standard."""
    small = np.sign(wave / 2) * np.interp(abs(wave / 2), [0, 64, 128, 256], [0, 64, 96, 127])
    wave[1:] = (small[1:] + 128) // 8
    if is_luma:
        wave[0] = np.interp(wave[0] / 8, [0, 64, 96, 160, 192, 256], [0, 16, 32, 96, 112, 127]) // 2
    else:
        wave[0] = np.interp(wave[0] / 8, [64, 96, 112, 144, 160, 191], [0, 8, 16, 48, 56, 63]) // 1
    return wave


def choose_moments(stills: list[Still], apart_ms: int) -> tuple[list[Still], list[Still]]:
    """(stills for the index, so far apart, and questions: the stills between, nearest to the middle)."""
    kept, asked = [], []
    for still in stills:
        if not kept or still.milliseconds >= kept[-1].milliseconds + apart_ms:
            kept.append(still)
    for before, after in itertools.pairwise(kept):
        middle = (before.milliseconds + after.milliseconds) / 2
        best = min(stills, key=lambda still, middle=middle: abs(still.milliseconds - middle))
        if after.milliseconds - before.milliseconds <= 2 * apart_ms and best is not before and best is not after:
            asked.append(best)
    return kept, asked


def split_moments(episodes: list[Path], folder: Path, seconds: int, count: int) -> tuple[list, list]:
    """([(title, still)] for the index, [(title, still)] to ask for); the former lie in folder then, as raw stills."""
    kept, asked = [], []
    for title, place in find_films(episodes).items():
        timed = [still for still in list_stills(place) if still.milliseconds >= 0]
        few, between = choose_moments(timed, 1000 * seconds)
        if not between:
            raise UserError(f"{place}: no stills between those every {seconds} s, or without times; scrape it anew")
        write_raw(folder / title, few)
        kept += [(title, still) for still in few]
        asked += [(title, still) for still in between[:: -(-len(between) // count)]]
    return kept, asked


def write_raw(folder: Path, stills: list[Still]) -> None:
    """Link a film's stills into a new folder, with their times beside them."""
    folder.mkdir(parents=True)
    lines = []
    for number, still in enumerate(stills):
        name = f"{number}.jpg"
        (folder / name).symlink_to(still.path.absolute())
        lines.append(json.dumps({"file": name, "shot_time_ms": still.milliseconds}))
    (folder / "frames.jsonl").write_text("\n".join(lines))


class Fingerprints:
    """Other ways to find a moment: ColorLayout of MPEG-7, and pHash."""

    def __init__(self, stills: list[Still]):
        layouts, hashes = [], []
        for still in stills:
            picture = Image.fromarray(read_image(still.path))
            layouts.append(color_layout(picture))
            hashes.append(self.hash(picture))
        self.layouts = np.stack(layouts)
        self.hashes = np.stack(hashes)

    @staticmethod
    def hash(picture: Image.Image) -> np.ndarray:
        """pHash, bool [64]."""
        from imagehash import phash

        return phash(picture).hash.ravel()

    def nearest(self, picture: Image.Image) -> list[int]:
        """Numbers of the nearest still by ColorLayout and by pHash."""
        channels = np.split((self.layouts - color_layout(picture)) ** 2, [21, 27], axis=1)
        by_layout = sum(np.sqrt(channel.sum(1)) for channel in channels).argmin()
        return [by_layout, (self.hashes ^ self.hash(picture)).sum(1).argmin()]


def ask_moments(way: str, kept: list, asked: list, others: Fingerprints, ours: Index, identifier: Identifier):
    """Whether title and moment are right, bool [questions, 3, 2], by ColorLayout, pHash and ours.

    way: of WAYS; kept, asked: [(title, still)] in the index and to ask for.
    """
    found = []
    for number, (title, still) in enumerate(asked):
        picture = WAYS[way](Image.fromarray(read_image(still.path)), np.random.default_rng([17, number]))
        answers = [(kept[place][0], kept[place][1].milliseconds) for place in others.nearest(picture)]
        embedding = identifier.run(identifier.load(np.asarray(picture))[None])["embedding"]
        best = ours.answers(embedding, top=1)[0].candidates[0]
        answers.append((best.title, best.evidence.time_ms))
        found.append([(name == title, abs(when - still.milliseconds) <= MOMENT_MS) for name, when in answers])
    return np.array(found)


def bench_moments(episodes: list[Path], *, model: Path = Path("export"), seconds: int = 4, count: int = 200) -> None:
    """How often title and moment (within 5 s) are right between indexed frames: ours, MPEG-7's ColorLayout, pHash.

    episodes: folders of stills with their times, as scrape.py video --every leaves them; an index with a still every so
    many seconds is made, and at most count stills of a film between them are asked for, degraded in four ways.
    """
    import index

    identifier = Identifier(model)
    names = ("ColorLayout, 33 numbers", "pHash, 64 bits", "index.py")
    rows = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as folder:
        kept, asked = split_moments(episodes, Path(folder, "raw"), seconds, count)
        place = Path(folder, "index.sqlite")
        with contextlib.redirect_stdout(sys.stderr):
            index.main(["add", str(Path(folder, "raw")), f"--model={model}", f"--index={place}"])
        ours = Index(place, identifier)
        others = Fingerprints([still for _, still in kept])
        for way in WAYS:
            found = ask_moments(way, kept, asked, others, ours, identifier)
            for name, right in zip(names, found.transpose(1, 0, 2), strict=True):
                rows[name][way] = f"{right[:, 0].mean():.3f} / {right.all(1).mean():.3f}"
    films = len({title for title, _ in kept})
    text = f"{len(kept)} stills of {films} films, every {seconds} s, are in the index; {len(asked)} between are asked."
    show("Title right / title and moment within 5 s", rows, text)
