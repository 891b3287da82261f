"""Films from one collection to another, and from a folder of before into tables.

What is taken over or moved arrives whole or not at all.
"""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from answering.calibration import Rule
from answering.console import UserError
from answering.embedding import FilmRows
from answering.offers import Offers
from answering.projection import Scoring, project_all
from answering.search import gather
from answering.state import About, Failure, Film, IndexedModel, hashed_name
from answering.store import Collection, copy_films

FOLDER_FORMAT = "movie-by-frame index 3"

# -------------------------------------------------------------------------------------- a folder of before


def take_over(folder: Path, collection: Collection) -> int:
    """Put all films of a folder of before into a new collection, in one transaction; returns how many.

    The folder stays as it is. Raises UserError for a damaged folder, and where the collection has films already.
    """
    values = read_folder_state(folder)
    try:
        model = IndexedModel(values["model"]["architecture"], values["model"]["fingerprint"])
        rule = None if values["rule"] is None else Rule.from_json(values["rule"])
        about = About(
            model=model,
            rule=rule,
            scoring=Scoring(**values.get("scoring", {})),
            unknown_share=values["unknown_share"],
            films_at_fit=values["settled"],
        )
        with collection.home.writing():
            if collection.home.has_tables():
                raise UserError(f"--index {collection}: is there already; {folder} needs a new one", 2)
            with collection.home.transaction():
                collection.make_tables(model)
                fill_from_folder(folder, values, collection, about)
                gather(collection, about)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}/index.json is damaged ({str(error)[:60]}); make the index anew") from None
    return len(values["films"])


def read_folder_state(folder: Path) -> dict:
    """index.json of a folder of before. Raises UserError."""
    try:
        values = json.loads((folder / "index.json").read_text("utf-8"))
        found = values["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{folder}/index.json is damaged; make the index anew") from None
    if found != FOLDER_FORMAT:
        raise UserError(f"{folder}: its format is {str(found)[:40]!r}, not {FOLDER_FORMAT!r}; make the index anew")
    return values


def fill_from_folder(folder: Path, values: dict, collection: Collection, about: About) -> None:
    """Write films, projection and users' pictures of a folder; in a transaction."""
    if values["basis"] is not None:
        arrays = read_arrays(folder / f"{values['basis']}", "project", "offset")
        collection.put_projection(tuple(arrays))
        about.fit = 1
    for title, film in values["films"].items():
        names = FilmRows.ARRAY_NAMES
        arrays = read_arrays(folder / film["frames"], *names.values())
        packed = None
        if values["basis"] is not None:
            if film["vectors"] is None:
                raise ValueError(f"{title} has no vectors")
            (vectors,) = read_arrays(folder / film["vectors"])
            packed = vectors.tobytes(), base64.b64decode(film["middle"])
        record = Film(
            id=0,
            title=title,
            year=film.get("year"),
            imdb=film.get("imdb"),
            content_key=film.get("mark", ""),
            stills=film.get("stills", 0),
            seconds=film.get("seconds"),
            partial=film.get("partial"),
            file=film.get("file"),
        )
        collection.put_film(about, record, FilmRows(**dict(zip(names, arrays, strict=True))), packed)
    for file, failure in values.get("failed", {}).items():
        collection.put_failure(file, Failure(failure["content_key"], failure["reason"]))
    renamed = list(values.get("renamed", {}).items())
    collection.home.execute_many("INSERT INTO renamed (meant, title) VALUES (?, ?)", renamed)
    collection.write_about(about)
    take_over_pictures(folder / "telegram", list(values["films"]), Offers(collection))


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of an .npz, or the one of an .npy. Raises UserError for a damaged or missing file."""
    try:
        loaded = np.load(path, allow_pickle=False)
        return [loaded[name] for name in names] if names else [loaded]
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files
        raise UserError(f"{path} is damaged ({str(error)[:60]}); remove its film, or make the index anew") from None


def take_over_pictures(folder: Path, titles: list[str], offers: Offers) -> None:
    """Write what users sent: FOLDER/FILM/, FOLDER/pending/FILM/ and FOLDER/refused/, FILM a hashed_name."""
    by_name = {hashed_name(title): title for title in titles}
    for file in sorted(folder.rglob("*.jpg")):
        film = by_name.get(file.parent.name, "")
        if file.parent.name == "refused" or not film:
            offers.put(file.name, film, "refused", None)
        else:
            state = "pending" if file.parent.parent.name == "pending" else "accepted"
            offers.put(file.name, film, state, file.read_bytes())


# ---------------------------------------------------------------------------------- between two collections


def export_films(collection: Collection, titles: list[str], path: Path) -> int:
    """Write films into a new file, a small collection without a projection; returns how many."""
    if path.exists():
        raise UserError(f"{path}: is there already; name another file", 2)
    part = path.with_name(f".{path.name}.{os.getpid()}.films")
    target = Collection(part)
    try:
        with target.writing(collection.about().model):
            count = sum(1 for _ in copy_films(collection, target, titles))
            copy_strangers(collection, target)
        target.home.backup(path)
        target.close()
    finally:
        for left in path.parent.glob(f"{part.name}*"):
            left.unlink(missing_ok=True)
    return count


def import_films(source: Collection, target: Collection) -> Iterator[Film]:
    """Put all films of a file of export_films, or of another collection, into target; inside target.writing().

    Whether both are of one model, the caller has seen to. Yields each film; those of the same title are replaced.
    """
    basis = target.read_projection()
    project = None if basis is None else lambda embedding: project_all(embedding, *basis)
    yield from copy_films(source, target, [film.title for film in source.films()], project)
    if target.read_strangers() is None:
        copy_strangers(source, target)


def copy_strangers(source: Collection, target: Collection) -> None:
    """Give target the films that came with the model of source; inside target.writing()."""
    packed = source.read_strangers()
    if packed is not None:
        with target.home.transaction():
            target.put_strangers(packed)
