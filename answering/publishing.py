"""A collection, its model and the page as one folder, for any host of files: no program runs there, no range is asked.

FOLDER/              the page of web/, with ONNX Runtime in vendor/
FOLDER/model/        model.json, model.web.onnx
FOLDER/index/        index.json names all other files of this folder, which have a hash of what they hold in their names
FOLDER/index/stills/ packs of stills: a table in JSON, before it its length as uint32, then the pictures
"""

import base64
import filecmp
import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from answering.collection import check_model
from answering.console import UserError, atomic_write
from answering.sql import NoCollection
from answering.state import About, Film
from answering.store import USER_STILL_PREFIX, Collection

FORMAT = "movie-by-frame site 1"  # of index.json
WEB = Path(__file__).parent.parent / "web"
PAGE = ("index.html", "style.css", "app.js", "worker.js", "index.js", "sw.js")
ENGINE = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm.gz")
MODEL = ("model.json", "model.web.onnx")
MAX_STILLS = 100_000  # what the page searches with a plain loop
PACK_BYTES = 200_000  # of a pack of stills: one is fetched for an answer
TABLE_ROW_BYTES = 24  # at most, of a still in the table of a pack beside its file name, and a share of what begins it
VECTORS_BYTES = 2_000_000  # of a file of vectors, about: a film that is added changes the last one
OWN = re.compile(r"(projection|vectors|times|stills)-[0-9a-f]{16}\.bin")  # names of files that may be removed


@dataclass
class Published:
    """What publish wrote."""

    films: int = 0
    stills: int = 0
    hidden: int = 0  # stills of users, whose pictures were left out
    new_files: int = 0
    model_bytes: int = 0
    vector_bytes: int = 0
    first_bytes: int = 0  # what else is fetched before the first answer
    pack_bytes: int = 0  # of the largest pack


@dataclass
class Site:
    """A folder that is being written."""

    folder: Path
    show_users_stills: bool
    published: Published = field(default_factory=Published)
    named: set[str] = field(default_factory=set)  # files below index/ that index.json names

    def put(self, kind: str, data: bytes) -> dict:
        """Write a file whose name tells what it holds, unless it is there; returns what index.json says of it."""
        name = f"{kind}-{hashlib.sha256(data).hexdigest()[:16]}.bin"
        if kind == "stills":
            name = f"stills/{name}"
        self.named.add(name)
        path = self.folder / "index" / name
        if not path.exists():
            with atomic_write(path) as file:
                file.write(data)
            self.published.new_files += 1
        return {"file": name, "bytes": len(data)}

    def copy(self, source: Path, name: str) -> int:
        """Copy a file, unless it is there as it is; returns its bytes."""
        path = self.folder / name
        if not path.exists() or not filecmp.cmp(source, path, shallow=False):
            with atomic_write(path) as out, open(source, "rb") as file:
                shutil.copyfileobj(file, out)
            self.published.new_files += 1
        return source.stat().st_size

    def remove_others(self) -> None:
        """Remove what earlier calls left below index/ and this one did not name."""
        for path in (self.folder / "index").rglob("*.bin"):
            name = path.relative_to(self.folder / "index").as_posix()
            if OWN.fullmatch(path.name) and name not in self.named:
                path.unlink()


def publish(place: str | Path, folder: Path, model: str | Path, show_users_stills: bool = False) -> Published:
    """Write the page, a model and a collection into a folder; what is there and did not change stays.

    place: of the collection; where there is none, or one without films, a classifier answers alone. model: the folder
    that export.py --web wrote. show_users_stills: with the pictures that users of the bot sent. index.json is written
    last, so who reads meanwhile sees the one state or the other. Raises UserError, with nothing written.
    """
    check_folder(folder)
    contract = read_model(Path(model))
    collection = Collection(place)
    site = Site(folder, show_users_stills)
    try:
        with collection.snapshot():
            about = check_collection(collection, contract)
            copy_page(site, Path(model))
            write_index(collection, about, site)
    except NoCollection:
        if not contract["classes"]:
            raise
        copy_page(site, Path(model))
        (folder / "index" / "index.json").unlink(missing_ok=True)
    site.remove_others()
    return site.published


def check_folder(folder: Path) -> None:
    """Raise UserError for a folder that holds other things than a site, and where the page's own files are missing."""
    missing = [name for name in PAGE if not (WEB / name).exists()]
    if missing:
        raise UserError(f"{WEB / missing[0]}: the page is not here; publish from a checkout of the project", 2)
    missing = [name for name in ENGINE if not (WEB / "vendor" / name).exists()]
    if missing:
        raise UserError(f"{WEB / 'vendor' / missing[0]}: is missing; make web/vendor fetches it", 2)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder", 2)
    if folder.resolve() == WEB.resolve() or (folder.exists() and any(folder.iterdir()) and not is_site(folder)):
        raise UserError(f"{folder}: holds other files, which a host would show to all; name a new folder", 2)


def is_site(folder: Path) -> bool:
    """Whether publish wrote a folder."""
    return (folder / "sw.js").exists() and (folder / "model" / "model.json").exists()


def read_model(model: Path) -> dict:
    """model.json of a folder that has what the page needs. Raises UserError."""
    for name in MODEL:
        if not (model / name).is_file():
            raise UserError(f"--model {model}: holds no {name}; python export.py ... --out {model} --web writes it", 2)
    try:
        contract = json.loads((model / "model.json").read_text("utf-8"))
        base64.b64decode(contract["self_test"]["fingerprint"], validate=True)
        contract["classes"][:0]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"--model {model}: model.json is damaged, or has no fingerprint; export it again") from None
    return contract


def check_collection(collection: Collection, contract: dict) -> About:
    """What a collection says of itself. Raises UserError unless the page can use it; NoCollection where it is empty."""
    about = collection.about()
    if not about.fit:
        raise NoCollection(collection.home)
    fingerprint = base64.b64decode(contract["self_test"]["fingerprint"])
    check_model(collection, about, np.frombuffer(fingerprint, np.float32).reshape(2, -1))
    _, stills = collection.count()
    if stills > MAX_STILLS:
        text = f"has {stills:,} stills, and the page searches {MAX_STILLS:,}; python index.py export takes some films"
        raise UserError(f"--index {collection}: {text}", 2)
    return about


def copy_page(site: Site, model: Path) -> None:
    """Copy page, engine and model."""
    for name in PAGE:
        site.published.first_bytes += site.copy(WEB / name, name)
    for name in ENGINE:
        site.published.first_bytes += site.copy(WEB / "vendor" / name, f"vendor/{name}")
    for name in MODEL:
        site.published.model_bytes += site.copy(model / name, f"model/{name}")


def write_index(collection: Collection, about: About, site: Site) -> None:
    """Write all below index/; in a snapshot."""
    project, offset = collection.read_projection()
    films = collection.films()
    projection = site.put("projection", pack_projection(project, offset))
    vectors = write_vectors(collection, films, site)
    packed_times = site.put("times", pack_times(np.concatenate([collection.read_times(film) for film in films])))
    values = {
        "published": True,  # first, see is_folder_of_before
        "format": FORMAT,
        "model": {"architecture": about.model.architecture, "fingerprint": about.model.fingerprint},
        "rule": about.rule.to_json(),
        "scoring": vars(about.scoring),
        "dims": len(offset),
        "projection": projection,
        "vectors": vectors,
        "times": packed_times,
        "films": [write_film(collection, film, site) for film in films],
    }
    data = json.dumps(values, ensure_ascii=False, separators=(",", ": ")).encode()
    with atomic_write(site.folder / "index" / "index.json") as file:
        file.write(data)
    published = site.published
    published.films = len(films)
    published.stills = sum(film.stored for film in films)
    published.vector_bytes = sum(part["bytes"] for part in vectors)
    published.first_bytes += len(data) + projection["bytes"] + packed_times["bytes"]


def pack_projection(project: np.ndarray, offset: np.ndarray) -> bytes:
    """offset float32 [d], a step of each column float32 [d], then the columns in steps, int16 [D, d].

    A hundred times finer than the 8 bits of the vectors, in half the bytes of float32.
    """
    step = np.maximum(np.abs(project).max(0), 1e-30) / 32767
    return b"".join(
        part.tobytes() for part in (offset.astype("<f4"), step.astype("<f4"), np.round(project / step).astype("<i2"))
    )


def pack_times(times: np.ndarray) -> bytes:
    """Milliseconds [n, 2] of stills and of their last near-duplicates, int32, in gzip: two columns one after the other.

    The first has the step from each still to the next, the second how long after it the last near-duplicate comes:
    small numbers, which need a third of the bytes.
    """
    start, until = times.clip(-1, 2**31 - 1).T
    columns = np.stack([np.diff(start, prepend=0), until - start])
    return gzip.compress(columns.astype("<i4").tobytes(), mtime=0)


def write_vectors(collection: Collection, films: list[Film], site: Site) -> list[dict]:
    """Write the vectors int8 of whole films, of each film first its middle; returns a row a file for index.json."""
    rows = []
    waiting = []
    size = 0
    for place, film in enumerate(films):
        ((middle, packed),) = collection.home.execute("SELECT middle, vectors FROM vector WHERE film = ?", [film.id])
        waiting.append(bytes(middle) + bytes(packed))
        size += len(waiting[-1])
        if size >= VECTORS_BYTES or place == len(films) - 1:
            rows.append({**site.put("vectors", b"".join(waiting)), "films": len(waiting)})
            waiting = []
            size = 0
    return rows


def write_film(collection: Collection, film: Film, site: Site) -> dict:
    """Write the packs of a film's stills; returns what index.json says of it."""
    packs = []
    firsts = []  # the number of the first still of each pack
    number = 0
    for stills in split_packs(read_stills(collection, film, site)):
        packed = site.put("stills", pack_stills(stills))
        packs.append(packed["file"])
        firsts.append(number)
        number += len(stills)
        site.published.pack_bytes = max(site.published.pack_bytes, packed["bytes"])
    return {"title": film.title, "stills": film.stored, "packs": packs, "firsts": firsts}


def read_stills(collection: Collection, film: Film, site: Site) -> Iterator[tuple[str, bytes]]:
    """(file name, picture) of each still of a film; of a user's still no picture, unless they are to be shown."""
    query = "SELECT file, thumbnail FROM still WHERE film = ? ORDER BY number"
    for file, thumbnail in collection.home.execute(query, [film.id]):
        hidden = file.startswith(USER_STILL_PREFIX) and not site.show_users_stills
        site.published.hidden += hidden
        yield file, b"" if hidden else bytes(thumbnail)


def split_packs(stills: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """The stills in lists whose packs have at most PACK_BYTES, or one still."""
    pack: list[tuple[str, bytes]] = []
    size = 0
    for file, picture in stills:
        added = len(picture) + len(json.dumps(file, ensure_ascii=False).encode()) + TABLE_ROW_BYTES
        if pack and size + added > PACK_BYTES:
            yield pack
            pack = []
            size = 0
        pack.append((file, picture))
        size += added
    if pack:
        yield pack


def pack_stills(stills: list[tuple[str, bytes]]) -> bytes:
    """A pack: the length of its table, uint32, the table in JSON, and the pictures. stills: (file name, picture).

    The table is {"files": [file name], "ends": [where its picture ends, after the table]}; a still that is not shown
    has a picture of no bytes.
    """
    ends = np.cumsum([len(picture) for _, picture in stills]).tolist()
    table = json.dumps({"files": [file for file, _ in stills], "ends": ends}, ensure_ascii=False).encode()
    pictures = b"".join(picture for _, picture in stills)
    return np.uint32(len(table)).astype("<u4").tobytes() + table + pictures
