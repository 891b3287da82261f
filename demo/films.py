"""Render made-up films to try and measure the whole pipeline on: any number, offline, always the same.

python demo/films.py --films 5 --frames 120 --out data/raw      # some seconds on a laptop
python demo/films.py --films 257 --frames 330 --out data/raw    # the size of the original's collection
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the scripts of the top level

from answering.console import one_line_errors
from answering.cores import count_cores
from demo.design import Film, film_design
from demo.shot import MARGIN, Shot

HEIGHT = 256  # px, of a frame
GRAIN_ROOM = 64  # px by which the grain is larger than a picture, so that it moves


def frame_size(film: Film) -> tuple[int, int, int, int]:
    """Frame width, frame height, picture width, picture height in px; 2.35 is the original's 600x256."""
    frame_width = 600 if film.container == 2.35 else 2 * round(HEIGHT * film.container / 2)
    width = 2 * round(HEIGHT * film.aspect / 2)
    height = 2 * round(frame_width / film.aspect / 2)
    return frame_width, HEIGHT, min(width, frame_width), min(height, HEIGHT)


class Stock:
    """What all pictures of a film, of this size, are printed on: vignette and scan lines, grain, tones."""

    def __init__(self, film: Film, width: int, height: int) -> None:
        self.film = film
        look = film.look
        rng = np.random.default_rng([film.seed, film.index, 5])
        x = np.arange(width)[None]
        y = np.arange(height)[:, None]
        distance = ((2 * x / width - 1) ** 2 + (2 * y / height - 1) ** 2) / 2  # from the middle, squared
        shade = 1 - look.vignette * distance ** (look.vignette_power / 2)
        shade *= 1 - look.scan * (y % 3 == 0)
        self.shade = np.uint8(255 * shade[..., None] * np.ones(3))
        size = (width + GRAIN_ROOM, height + GRAIN_ROOM)
        coarse = rng.normal(0, look.grain, np.int32([size[1] / look.grain_size, size[0] / look.grain_size]))
        self.grain_mean = int(3 * look.grain)
        grain = np.clip(cv2.resize(coarse, size) + self.grain_mean, 0, 255)
        self.grain = np.uint8(grain[..., None] * np.ones(3))

    def tones(self, exposure: float) -> np.ndarray:
        """What each of 256 values becomes in the red, green and blue, uint8 [256, 1, 3]."""
        look = self.film.look
        curve = np.linspace(0, 1, 256)[:, None] * exposure
        curve = curve + look.contrast * (curve * curve * (3 - 2 * curve) - curve)
        return np.uint8(np.clip(curve * 255 * look.gain + look.lift, 0, 255))[:, None]

    def print(self, image: np.ndarray, tones: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An exposed picture, RGB uint8 [H, W, 3], as it looks on this stock; rng draws where the grain lies."""
        if self.film.look.mono:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = cv2.LUT(cv2.multiply(image, self.shade, scale=1 / 255), tones)
        height, width = image.shape[:2]
        x, y = rng.integers(0, GRAIN_ROOM, 2)
        return cv2.subtract(cv2.add(image, self.grain[y : y + height, x : x + width]), (self.grain_mean,) * 4)


def render_film(film: Film, frames: int, shots: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields (frame uint8 RGB [H, W, 3], shot, shot_time_ms): `frames` of them, spread evenly over `shots`."""
    frame_width, frame_height, width, height = frame_size(film)
    left = (frame_width - width) // 2
    top = (frame_height - height) // 2
    bars = (top, frame_height - height - top, left, frame_width - width - left)
    stock = Stock(film, width, height)
    clock = 0  # ms
    number = -1  # of the shot
    for k in range(frames):
        if number != k * shots // frames:
            number = k * shots // frames
            step = 0
            shot = Shot(film, number, width + 2 * MARGIN, height + 2 * MARGIN)
            clock += int(shot.rng.integers(4_000, 90_000))
            tones = stock.tones(shot.exposure)
        image = stock.print(shot.expose(step, width, height), tones, shot.rng)
        yield cv2.copyMakeBorder(image, *bars, cv2.BORDER_CONSTANT), number, clock
        step += 1
        clock += int(shot.rng.integers(200, 500))


def is_complete(folder: Path, shots: list[int]) -> bool:
    """Whether a film's folder has a frame of each of these shots, as they follow each other."""
    sidecar = folder / "frames.jsonl"
    if not sidecar.exists():
        return False
    rows = [json.loads(line) for line in sidecar.read_text(encoding="utf-8").splitlines()]
    return [row["shot"] for row in rows if (folder / row["file"]).exists()] == shots


def write_film(index: int, *, out: Path, frames: int, seed: int, per_shot: int) -> str:
    """Writes one film's folder, whole or not at all; a film that is complete stays as it is. Returns its title."""
    cv2.setNumThreads(1)
    film = film_design(index, seed)
    shots = -(-frames // per_shot)
    folder = out / film.title
    part = out / f".{film.title}.part"
    if is_complete(folder, [k * shots // frames for k in range(frames)]):
        return film.title
    for stale in (folder, part):  # of other settings, or of a run that was stopped
        shutil.rmtree(stale, ignore_errors=True)
    part.mkdir(parents=True)
    with open(part / "frames.jsonl", "w", encoding="utf-8") as sidecar:
        for k, (image, shot, milliseconds) in enumerate(render_film(film, frames, shots)):
            name = f"{index:04d}{k:05d}"
            jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
            (part / f"{name}.jpg").write_bytes(jpeg.tobytes())
            row = {
                "file": f"{name}.jpg",
                "id": name,
                "url": None,
                "shot_time_ms": milliseconds,
                "shot": shot,
                "width": image.shape[1],
                "height": image.shape[0],
                "source": "rendered",
            }
            sidecar.write(json.dumps(row) + "\n")
    part.rename(folder)
    return film.title


def render_films(
    out: Path, indices: Iterable[int], frames: int, seed: int = 13, workers: int | None = None, per_shot: int = 6
) -> list[str]:
    """Renders films to out/<Title (Year)>/<id>.jpg and frames.jsonl; returns their titles in the order of indices."""
    indices = list(indices)
    write = partial(write_film, out=Path(out), frames=frames, seed=seed, per_shot=per_shot)
    with ProcessPoolExecutor(workers or count_cores(), mp_context=get_context("spawn")) as pool:
        titles = pool.map(write, indices)
        return list(tqdm(titles, total=len(indices), desc="render", unit="film", disable=None))


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Render made-up films.")
    parser.add_argument("--films", type=int, default=5, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=120, help="frames a film (default: %(default)s)")
    parser.add_argument("--per-shot", type=int, default=3, help="frames a shot (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=13, help="of every design (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/raw"), help="folder (default: %(default)s)")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if min(args.films, args.frames, args.per_shot) < 1 or args.first < 0:
        parser.error("--films, --frames and --per-shot must be 1 or more, --first 0 or more")
    indices = range(args.first, args.first + args.films)
    titles = render_films(args.out, indices, args.frames, args.seed, per_shot=args.per_shot)
    print(f"{len(titles)} films in {args.out}\nnext: python filter.py {args.out} --detector none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
