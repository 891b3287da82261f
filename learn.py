"""What users of bot.py taught it: labels for training, films that they missed, and pictures for the index.

python index.py learn --db bot.sqlite                       # fetch what they confirmed: look at learn.png and learn.txt
python index.py learn --db bot.sqlite --accept learn.txt    # add those whose lines you left in the file, or: all
python index.py remove --source telegram                    # take them all out again
"""

import argparse
import asyncio
import csv
import hashlib
import io
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from identify import Identifier
from image import UserError, atomic_write
from vectors import SAME, THUMB, embed_film, list_stills, pack_vectors, project_all

SOURCE = "telegram:"  # before the file names of such stills in an index
ALIGNED, SHEET = ("embedding", "name", "time", "until", "shot"), 200  # arrays of a row a still; pictures at a time


def open_existing(base: Path):
    from bot_updates import open_base

    if not base.exists():
        raise UserError(f"--db {base}: there is no such file; the bot makes it when it runs", 2)
    return open_base(base)


def write_feedback(base: Path, path: Path) -> None:
    """Verdicts as a CSV of labels for training."""
    query = (
        "SELECT strftime('%Y-%m-%dT%H:%M:%SZ', time, 'unixepoch'), file_id, kind,"
        " json_extract(candidates, '$[0].title'), json_extract(candidates, '$[0].confidence'), verdict, film"
        " FROM answers WHERE verdict IS NOT NULL ORDER BY time"
    )
    rows = open_existing(base).execute(query).fetchall()
    with atomic_write(path, "w", newline="", encoding="utf-8") as file:
        head = ["time", "file_id", "kind", "answer", "confidence", "verdict", "film"]
        csv.writer(file, lineterminator="\n").writerows([head, *rows])
    print(f"{len(rows)} verdicts in {path}")


def print_wishes(base: Path) -> None:
    """Films that users named and the collection lacked, by how many users wished for them."""
    wishes, names = defaultdict(set), {}
    for film, who, answer in open_existing(base).execute("SELECT film, who, id FROM answers WHERE verdict = 'wish'"):
        wishes[film.casefold()].add(who or answer)
        names.setdefault(film.casefold(), film)
    for wish in sorted(wishes, key=lambda wish: (-len(wishes[wish]), wish)):
        print(f"{len(wishes[wish]):6}  {names[wish]}")


# --------------------------------------------------------------------------- stills of users in an index


def short(text) -> str:
    """What titles, users and answers are called on the disk, whatever signs they have."""
    return hashlib.sha256(str(text).encode(errors="replace")).hexdigest()[:12]


def take(rows: dict, keep: np.ndarray) -> dict:
    """Some rows of a film's arrays, see vectors.embed_film."""
    thumbs = [np.split(rows["thumbs"], rows["ends"][:-1])[k] for k in keep.tolist()]
    ends = np.cumsum([len(thumb) for thumb in thumbs], dtype=np.int64)
    thumbs = np.concatenate([np.zeros(0, np.uint8), *thumbs])
    return rows | {name: rows[name][keep] for name in ALIGNED} | {"thumbs": thumbs, "ends": ends}


def with_learned(path: Path, title: str, rows: dict, identifier: Identifier) -> dict:
    """A film's arrays with the stills that the owner accepted and that are new; path: of the index."""
    have, stills = set(rows["name"].tolist()), []
    for still in list_stills(path / "telegram" / short(title), 1):
        stills += [still | {"file": SOURCE + still["file"]}] if SOURCE + still["file"] not in have else []
    if not stills:
        return rows
    new, mean = embed_film(stills, identifier), rows["embedding"].mean(0, dtype=np.float32)
    known, asked = (it["embedding"].astype(np.float32) - mean for it in (rows, new))
    known, asked = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6) for x in (known, asked))
    new = take(new, np.flatnonzero((asked @ known.T).max(1) <= SAME))
    ends = np.concatenate([rows["ends"], new["ends"] + len(rows["thumbs"])])
    return rows | {name: np.concatenate([rows[name], new[name]]) for name in (*ALIGNED, "thumbs")} | {"ends": ends}


def read_rows(path: Path, film: dict) -> dict:
    from index import read_arrays

    names = (*ALIGNED, "worn", "of", "thumbs", "ends")
    return dict(zip(names, read_arrays(path, film["frames"], *names), strict=True))


def store(path: Path, state: dict, title: str, rows: dict) -> None:
    """Make rows those of a film; its own threshold stays that of its own stills."""
    from index import new_name, read_arrays, write_arrays

    film, vectors = (
        state["films"][title],
        project_all(rows["embedding"], *read_arrays(path, state["basis"], "project", "offset")),
    )
    film["frames"] = write_arrays(path, new_name(title, ".npz"), rows)
    film["vectors"] = write_arrays(path, new_name(title, ".npy"), pack_vectors(vectors))
    film["stored"] = len(vectors)


def forget(path: Path) -> int:
    """Take all stills of users out; they are not offered again."""
    from index import commit, read_state, writing

    with writing(path):
        state, count = read_state(path), 0
        for title, film in state["films"].items():
            rows = read_rows(path, film)
            keep = np.flatnonzero(~np.char.startswith(rows["name"], SOURCE))
            if len(keep) < film["stored"]:
                count += film["stored"] - len(keep)
                store(path, state, title, take(rows, keep))
        commit(path, state)
        for file in path.glob("telegram/*/*.jpg"):
            put_away(file, path)
    print(f"{count} stills of users removed")
    return 0


def put_away(file: Path, path: Path) -> None:
    """A picture that the index shall not have; here it is not offered again."""
    (path / "telegram" / "refused").mkdir(exist_ok=True)
    os.replace(file, path / "telegram" / "refused" / file.name)


# ------------------------------------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--db", type=Path, default=Path("bot.sqlite"), help="database of bot.py (default: %(default)s)")
    add("--accept", metavar="all|FILE", help="add what was shown: all of it, or the lines left in learn.txt")
    add("--per-user", type=int, default=5, help="pictures of a film that one user may give (default: %(default)s)")
    add("--sheet", type=Path, default=Path("learn.png"), help="picture for you, its list beside (default: %(default)s)")
    add("--api-base", metavar="URL", help="a Bot API server of your own (default: api.telegram.org)")


def run_learn(args: argparse.Namespace) -> int:
    """Show what users confirmed of films of the index, or add it. Only what was shown is ever added."""
    from index import Index, check_model, commit, fingerprint, pack_films, read_state, writing

    identifier = Identifier(args.model)
    with writing(args.index):
        state = read_state(args.index)
        check_model(args.index, state, fingerprint(identifier))
        pending = args.index / "telegram" / "pending"
        if not args.accept:
            failed = asyncio.run(fetch_pictures(choose(args, state, pending), args.api_base))
            show_pending(args, pending, Index(args.index, identifier))
            return 1 if failed else 0
        text = "" if args.accept == "all" else Path(args.accept).read_text("utf-8")
        wanted = {line.split("\t")[1] for line in text.splitlines() if line.count("\t") == 3}
        for file in sorted(pending.glob("*/*.jpg")):
            if args.accept == "all" or f"{file.parent.name}/{file.name}" in wanted:
                home = args.index / "telegram" / file.parent.name
                home.mkdir(exist_ok=True)
                os.replace(file, home / file.name)
            else:
                put_away(file, args.index)
        for title, film in state["films"].items():
            if (args.index / "telegram" / short(title)).exists():
                rows, before = with_learned(args.index, title, read_rows(args.index, film), identifier), film["stored"]
                if len(rows["name"]) > before:
                    store(args.index, state, title, rows)
                    print(f"{title}: {film['stored'] - before} stills added")
        pack_films(args.index, state)
        commit(args.index, state)
    return 0


def choose(args: argparse.Namespace, state: dict, pending: Path) -> list[tuple[Path, str]]:
    """(where to put it, file id) of each confirmed picture that is new, at most so many a user and film."""
    files = list(pending.parent.rglob("*.jpg"))  # a folder a film: accepted, pending, or all that were refused
    done, had = {file.name for file in files}, Counter((file.parent.name, file.name[:12]) for file in files)
    wanted, strange = [], Counter()
    query = "SELECT id, film, who, file_id FROM answers WHERE verdict IN ('right', 'wrong') AND film IS NOT NULL"
    for answer, film, who, file_id in open_existing(args.db).execute(f"{query} ORDER BY time"):
        home, name = short(film), f"{short(who)}-{short(answer)}.jpg"
        if film not in state["films"]:
            strange[film] += 1
        elif name not in done and had[home, short(who)] < args.per_user and len(wanted) < SHEET:
            had[home, short(who)] += 1
            wanted.append((pending / home / name, file_id))
    for film, count in strange.most_common():
        print(f"{film}: {count} pictures, but it is not in {args.index}", file=sys.stderr)
    return wanted


async def fetch_pictures(wanted: list[tuple[Path, str]], api_base: str | None) -> int:
    """Download by file ids; how many could not be had. The token is nowhere in what this says."""
    if not wanted:
        return 0
    from aiogram import Bot, exceptions, types
    from aiogram.client.session.aiohttp import AiohttpSession
    from aiogram.client.telegram import PRODUCTION, TelegramAPIServer

    from bot import download, read_token

    failed, api = 0, TelegramAPIServer.from_base(api_base) if api_base else PRODUCTION
    async with Bot(read_token(dict(os.environ)), session=AiohttpSession(api=api)) as bot:
        for path, file_id in wanted:
            try:
                (picture,) = await download(bot, [types.File(file_id=file_id, file_unique_id="")])
                with atomic_write(path) as file:
                    file.write(picture if isinstance(picture, bytes) else Path(picture).read_bytes())
            except (UserError, RuntimeError, OSError, exceptions.AiogramError) as error:
                failed += 1
                print(f"learn.py: skipped a picture that can't be had ({type(error).__name__})", file=sys.stderr)
    return failed


def show_pending(args: argparse.Namespace, pending: Path, index) -> None:
    """Draw each picture beside the nearest still of its film, and write the list to choose from."""
    cells, lines, titles = [], [], {short(title): title for title in index.titles}
    for folder in sorted(pending.glob("*")):
        files, title = {file.name for file in folder.glob("*.jpg")}, titles.get(folder.name)
        if title is None:  # removed meanwhile
            continue
        try:
            rows = embed_film(list_stills(folder, 1), index.identifier)
        except UserError:  # none of them can be read
            rows = {"name": np.array([], str), "embedding": []}
        for name in files - set(rows["name"].tolist()):  # near-duplicates, and what can't be read
            put_away(folder / name, args.index)
        if not len(rows["name"]):
            continue
        thumbs = np.split(rows["thumbs"], rows["ends"][:-1])
        for name, thumb, vector in zip(rows["name"], thumbs, project_all(rows["embedding"], *index.basis), strict=True):
            proof = index.evidence(index.titles.index(title), vector)
            cells.append((thumb.tobytes(), proof["thumbnail"]))
            lines.append(f"{len(cells)}\t{folder.name}/{name}\t{proof['similarity']:.2f}\t{title}")
    if not cells:
        return print("nothing new that users confirmed")
    wide, high = 2 * THUMB + 12, THUMB + 20
    sheet = Image.new("RGB", (4 * wide, -(-len(cells) // 4) * high), "white")
    for place, (pair, line) in enumerate(zip(cells, lines, strict=True)):
        x, y = place % 4 * wide, place // 4 * high
        for k, picture in enumerate(pair):
            sheet.paste(Image.open(io.BytesIO(picture)), (x + k * (THUMB + 4), y))
        number, _, alike, title = line.split("\t")
        words = f"{number}: {title[:38]}, {alike}"
        ImageDraw.Draw(sheet).text((x, y + THUMB), words, fill="black", font=ImageFont.load_default(12))
    listed = args.sheet.with_suffix(".txt")
    with atomic_write(args.sheet) as file:
        sheet.save(file, "PNG")
    with atomic_write(listed, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"look at {args.sheet} (theirs, then ours), delete lines from {listed}, then: --accept {listed}")
