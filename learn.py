"""What users of bot.py taught it: labels for training, films that they missed, and pictures for the index.

python index.py learn --db bot.sqlite                       # fetch what they confirmed: look at learn.png and learn.txt
python index.py learn --db bot.sqlite --accept learn.txt    # add those whose lines you left in the file, or: all
python index.py remove --source telegram                    # take them all out again
"""

import argparse
import asyncio
import io
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from answering.collection import read_rows, replace_film, with_learned
from answering.console import UserError, atomic_write
from answering.embedding import THUMB, embed_film
from answering.model import Identifier
from answering.projection import project_all
from answering.stills import list_stills
from answering.store import folder_of, open_engine, put_away, short
from telegram_bot.database import open_existing

SHEET = 200  # arrays of a row a still; pictures at a time


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
    from answering.collection import Index, check_model, fingerprint, read_state

    engine, identifier = open_engine(args.index), Identifier(args.model)
    home = folder_of(engine)
    with engine.writing():
        state = read_state(engine)
        check_model(engine, state, fingerprint(identifier))
        if not args.accept:
            failed = asyncio.run(fetch_pictures(choose(args, state, home), args.api_base))
            show_pending(args.sheet, home, Index(args.index, identifier), identifier)
            return 1 if failed else 0
        text = "" if args.accept == "all" else Path(args.accept).read_text("utf-8")
        wanted = {line.split("\t")[1] for line in text.splitlines() if line.count("\t") == 3}
        for file in sorted(home.glob("pending/*/*.jpg")):
            if args.accept == "all" or f"{file.parent.name}/{file.name}" in wanted:
                (home / file.parent.name).mkdir(exist_ok=True)
                os.replace(file, home / file.parent.name / file.name)
            else:
                put_away(file, home)
        for title, film in state["films"].items():
            if (home / short(title)).exists():
                rows, before = with_learned(engine, title, read_rows(engine, film), identifier), film["stored"]
                if len(rows["name"]) > before:
                    replace_film(engine, state, title, rows)
                    print(f"{title}: {film['stored'] - before} stills added")
        engine.pack(state)
        engine.commit(state)
    return 0


def choose(args: argparse.Namespace, state: dict, home: Path) -> list[tuple[Path, str]]:
    """(where to put it, file id) of each confirmed picture that is new, at most so many a user and film."""
    files = list(home.rglob("*.jpg"))  # a folder a film: accepted, pending, or all that were refused
    done, had = {file.name for file in files}, Counter((file.parent.name, file.name[:12]) for file in files)
    wanted, strange = [], Counter()
    query = "SELECT id, film, who, file_id FROM answers WHERE verdict IN ('right', 'wrong') AND film IS NOT NULL"
    for answer, film, who, file_id in open_existing(args.db).execute(f"{query} ORDER BY time"):
        key, name = short(film), f"{short(who)}-{short(answer)}.jpg"
        if film not in state["films"]:
            strange[film] += 1
        elif name not in done and had[key, short(who)] < args.per_user and len(wanted) < SHEET:
            had[key, short(who)] += 1
            wanted.append((home / "pending" / key / name, file_id))
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

    from telegram_bot.connection import download, read_token

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


def show_pending(path: Path, home: Path, index, identifier: Identifier) -> None:
    """Draw each picture beside the nearest still of its film, and write the list to choose from."""
    cells, lines, titles = [], [], {short(title): title for title in index.titles}
    for folder in sorted(home.glob("pending/*")):
        files, title = {file.name for file in folder.glob("*.jpg")}, titles.get(folder.name)
        if title is None:  # removed meanwhile
            continue
        try:
            rows = embed_film(list_stills(folder), identifier)
        except UserError:  # none of them can be read
            rows = {"name": np.array([], str), "embedding": []}
        for name in files - set(rows["name"].tolist()):  # near-duplicates, and what can't be read
            put_away(folder / name, home)
        if not len(rows["name"]):
            continue
        thumbs = np.split(rows["thumbs"], rows["ends"][:-1])
        for name, thumb, vector in zip(rows["name"], thumbs, project_all(rows["embedding"], *index.basis), strict=True):
            proof = index.evidence(index.titles.index(title), vector)
            cells.append((thumb.tobytes(), proof.thumbnail))
            lines.append(f"{len(cells)}\t{folder.name}/{name}\t{proof.similarity:.2f}\t{title}")
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
    listed = path.with_suffix(".txt")
    with atomic_write(path) as file:
        sheet.save(file, "PNG")
    with atomic_write(listed, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"look at {path} (theirs, then ours), delete lines from {listed}, then: --accept {listed}")
