"""Embeddings of a dataset's frames, changed in the ways of ways.py, kept in a folder so that each is computed once."""

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from answering.collection import fingerprint
from answering.console import atomic_write
from answering.embedding import read_ahead
from answering.model import Identifier, look_inside
from answering.pictures import preprocess, read_image
from answering.wear import COPIES, wear
from benchmarks.ways import WAYS
from training.dataset import ManifestRow

SEED = 2027  # of the changes; nothing is fitted with it
COPY = "a copy to learn from"  # beside the names of WAYS: what index and head learn from
MAX_SIDE = 1280  # pixels, as Telegram sends photos
READERS = 2  # threads
SAVED_EVERY = 500  # frames


@dataclass(frozen=True)
class Looks:
    """What a model makes of N frames: of the whole of each, and of the still inside where one is a screenshot.

    Rows are nan for frames with too little in them, and where there is no still inside.
    """

    whole: np.ndarray  # float32 [N, D]
    still: np.ndarray  # float32 [N, D]


def spread_rows(rows: list[ManifestRow], frames: int) -> list[ManifestRow]:
    """At most so many of the rows of each film, evenly spread over it."""
    films = {}
    for row in rows:
        films.setdefault(row.movie, []).append(row)
    spread = []
    for own in films.values():
        places = np.linspace(0, len(own) - 1, min(frames, len(own))).astype(int)
        spread += [own[place] for place in places]
    return spread


def change_random(row: ManifestRow, name: str) -> np.random.Generator:
    """What draws how this frame is changed in this way."""
    return np.random.default_rng([SEED, list(WAYS).index(name), row.place])


def change(row: ManifestRow, name: str) -> np.ndarray:
    """The frame of this row, RGB uint8 [H, W, 3], changed in the way of this name; COPY: as a head learns from it."""
    image = Image.fromarray(read_image(row.file))
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    if name == COPY:
        seed = zlib.crc32(row.path.encode())
        return np.asarray(wear(image, seed % len(COPIES), np.random.default_rng(seed)))
    return np.asarray(WAYS[name](image, change_random(row, name)).convert("RGB"))


class Embedded:
    """Embeddings of changed frames by one model, kept in a folder: a file a way, named after the model and the way."""

    def __init__(self, identifier: Identifier, folder: Path):
        self.identifier = identifier
        self.folder = folder
        size = identifier.preprocessing["size"]
        seen = fingerprint(identifier).tobytes() + f"{size} {identifier.format}".encode()
        self.model = hashlib.sha256(seen).hexdigest()[:8]
        self.known: dict[str, dict[str, np.ndarray]] = {}  # {way: {path: [2, D]}}

    def looks(self, rows: list[ManifestRow], name: str) -> Looks:
        """What the model makes of the frames of these rows, changed in this way."""
        found = self.read(name)
        missing = [row for row in rows if row.path not in found]
        if missing:
            self.embed(missing, name, found)
        both = np.stack([found[row.path] for row in rows]).astype(np.float32)
        return Looks(both[:, 0], both[:, 1])

    def file(self, name: str) -> Path:
        """Where the embeddings of a way lie."""
        words = "-".join("".join(letter if letter.isalnum() else " " for letter in name).split())
        return self.folder / f"{self.model}-{words}.npz"

    def read(self, name: str) -> dict[str, np.ndarray]:
        """{path: whole and still float16 [2, D]} of what was computed before."""
        if name not in self.known:
            self.known[name] = {}
            if self.file(name).exists():
                with np.load(self.file(name)) as file:
                    self.known[name] = dict(zip(file["path"].tolist(), file["looks"], strict=True))
        return self.known[name]

    def embed(self, rows: list[ManifestRow], name: str, found: dict[str, np.ndarray]) -> None:
        """Compute rows' embeddings into found, and save it."""
        from tqdm import tqdm

        pictures = read_ahead(lambda row: change(row, name), rows, READERS)
        bar = tqdm(pictures, total=len(rows), desc=name, unit="frame", disable=None, leave=False)
        for count, (row, rgb) in enumerate(zip(rows, bar, strict=True), 1):
            found[row.path] = self.embed_picture(rgb)
            if count % SAVED_EVERY == 0 or count == len(rows):
                self.save(name, found)

    def embed_picture(self, rgb: np.ndarray) -> np.ndarray:
        """Whole and still of a picture, float16 [2, D], as Identifier.identify looks at them."""
        looks = look_inside(rgb)
        nothing = np.full(self.width, np.nan, np.float16)
        return np.stack([nothing if picture is None else self.run(picture) for picture in looks])

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        if not hasattr(self, "measured_width"):
            size = self.identifier.preprocessing["size"]
            self.measured_width = self.run(np.zeros((size, size, 3), np.uint8)).size
        return self.measured_width

    def run(self, rgb: np.ndarray) -> np.ndarray:
        """The embedding float16 [D] of a picture."""
        batch = preprocess(rgb, self.identifier.preprocessing)[None]
        return self.identifier.run(batch)["embedding"][0].astype(np.float16)

    def save(self, name: str, found: dict[str, np.ndarray]) -> None:
        """Write what was computed of a way."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.file(name)) as out:
            np.savez(out, path=np.array(list(found)), looks=np.stack(list(found.values())))
