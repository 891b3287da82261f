"""What users told the bot: pictures for the index, labels for training, and films that they missed.

python learn.py --db bot.sqlite                       # fetch what they confirmed: look at learn.png and learn.txt
python learn.py --db bot.sqlite --accept learn.txt    # add those whose lines you left in the file, or: --accept all
python learn.py --db bot.sqlite --wishes              # films that they missed, by how many users wished for each
python learn.py --db bot.sqlite --labels labels.csv   # their verdicts, to train on
python learn.py --db bot.sqlite --confusions          # which film was taken for which, how often; draws confusions.png
"""

import argparse
import asyncio
import io
import itertools
import os
import sqlite3
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from answering.collection import INDEX, Index, check_model, fingerprint
from answering.console import UserError, atomic_write, one_line_errors
from answering.editing import add_user_stills, store_film
from answering.embedding import embed_film
from answering.model import Identifier
from answering.offers import Offer, Offers
from answering.packing import THUMBNAIL
from answering.projection import project_all
from answering.search import gather
from answering.state import State, hashed_name
from answering.stills import Still
from answering.store import USER_STILL_PREFIX, Collection
from telegram_bot.database import find_confusions, open_existing, print_wishes, write_feedback

SHEET = 200  # pictures at a time
COLUMNS = 4  # of the sheet


# ---------------------------------------------------------------------------------------- what they confirmed


@dataclass(frozen=True)
class WantedPicture:
    """A confirmed picture that is to be fetched."""

    name: str  # that it gets
    film: str  # a title
    file_id: str  # of Telegram


def choose_pictures(base: Path, films: dict, offers: Offers, *, per_user: int, place: str) -> list[WantedPicture]:
    """Each confirmed picture that is new; says which films the index lacks.

    base: the bot's database; films: of the index; per_user: pictures of a film that count from one user, at most;
    place: of the index.
    """
    known = offers.names()
    done = {name for name, _ in known}
    given = Counter((film, name[:12]) for name, film in known)  # by film and user
    wanted, not_in_index = [], Counter()
    query = "SELECT id, film, who, file_id FROM answers WHERE verdict IN ('right', 'wrong') AND film IS NOT NULL"
    for answer, film, user, file_id in open_existing(base).execute(f"{query} ORDER BY time"):
        if film not in films:
            not_in_index[film] += 1
            continue
        name = f"{hashed_name(user)}-{hashed_name(answer)}.jpg"
        giver = (film, hashed_name(user))
        if name not in done and given[giver] < per_user and len(wanted) < SHEET:
            given[giver] += 1
            wanted.append(WantedPicture(name, film, file_id))
    for film, count in not_in_index.most_common():
        print(f"{film}: {count} pictures, but it is not in {place}", file=sys.stderr)
    return wanted


async def fetch_pictures(wanted: list[WantedPicture], offers: Offers, api_base: str | None) -> int:
    """Download by file ids; how many could not be had. The token is nowhere in what this says."""
    if not wanted:
        return 0
    from aiogram import Bot, exceptions, types
    from aiogram.client.session.aiohttp import AiohttpSession
    from aiogram.client.telegram import PRODUCTION, TelegramAPIServer

    from telegram_bot.connection import download, read_token

    failed = 0
    api = TelegramAPIServer.from_base(api_base) if api_base else PRODUCTION
    async with Bot(read_token(dict(os.environ)), session=AiohttpSession(api=api)) as bot:
        for one in wanted:
            try:
                found = await download(bot, [types.File(file_id=one.file_id, file_unique_id="")])
                (picture,) = found.contents
                data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
            except (UserError, RuntimeError, OSError, exceptions.AiogramError) as error:
                failed += 1
                print(f"learn.py: skipped a picture that can't be had ({type(error).__name__})", file=sys.stderr)
                continue
            offers.put(one.name, one.film, "pending", data)
    return failed


def forget_users(base: sqlite3.Connection, collection: Collection, state: State, offers: Offers) -> None:
    """Take out the pictures of users who told the bot to forget them, those that wait and those that were added."""
    for (who,) in base.execute("SELECT who FROM forgotten").fetchall():
        giver = hashed_name(who)
        waiting = offers.forget(giver)
        added = remove_stills_of(collection, state, giver)
        base.execute("DELETE FROM forgotten WHERE who = ?", (who,))
        if waiting or added:
            print(f"a user wants to be forgotten: {waiting} pictures removed, {added} stills of them from the index")


def remove_stills_of(collection: Collection, state: State, giver: str) -> int:
    """Take a user's stills out of the films of a collection; how many there were. giver: the start of their names."""
    start = f"{USER_STILL_PREFIX}{giver}-"
    query = (
        "SELECT DISTINCT film.title FROM film JOIN still ON still.film = film.id"
        " WHERE still.source = 'telegram' AND still.file LIKE ?"
    )
    count = 0
    for (title,) in collection.home.execute(query, [f"{start}%"]):
        film = state.films[title]
        rows = collection.read_rows(film)
        keep = np.flatnonzero(~np.char.startswith(rows.name, start))
        count += film.stored - len(keep)
        store_film(collection, state, film, rows.select(keep))
    return count


# --------------------------------------------------------------------------------------- what the owner sees


@dataclass
class PendingPicture:
    """A user's picture beside the nearest still of its film."""

    name: str
    title: str
    similarity: float
    thumbnail: bytes  # theirs
    still: bytes  # ours

    def line(self, number: int) -> str:
        """Its line of learn.txt."""
        return f"{number}\t{self.name}\t{self.similarity:.2f}\t{self.title}"


def find_pending(offers: Offers, index: Index, identifier: Identifier) -> list[PendingPicture]:
    """What may be accepted; near-duplicates and what can't be read are refused."""
    pending = []
    for title, pictures in itertools.groupby(offers.pending(), lambda offer: offer.film):
        if title in index.films:  # else removed meanwhile
            pending += compare_pending(offers, title, list(pictures), index, identifier)
    return pending


def compare_pending(
    offers: Offers, title: str, pictures: list[Offer], index: Index, identifier: Identifier
) -> list[PendingPicture]:
    """The pending pictures of one film."""
    try:
        rows = embed_film([Still(file=offer.name, picture=offer.picture) for offer in pictures], identifier)
    except UserError:  # none of them can be read
        rows = None
    for name in {offer.name for offer in pictures} - set([] if rows is None else rows.name.tolist()):
        offers.refuse(name)
    if rows is None:
        return []
    found = []
    vectors = project_all(rows.embedding, *index.basis)
    for name, thumbnail, vector in zip(rows.name.tolist(), rows.list_thumbnails(), vectors, strict=True):
        proof = index.evidence(index.films[title], vector)
        found.append(PendingPicture(name, title, proof.similarity, thumbnail.tobytes(), proof.thumbnail))
    return found


def show_pending(path: Path, pending: list[PendingPicture]) -> None:
    """Draw each picture beside the nearest still of its film, and write the list to choose from."""
    if not pending:
        print("nothing new that users confirmed")
        return
    lines = [picture.line(number) for number, picture in enumerate(pending, 1)]
    listed = path.with_suffix(".txt")
    with atomic_write(path) as file:
        draw_pending(pending).save(file, "PNG")
    with atomic_write(listed, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"look at {path} (theirs, then ours), delete lines from {listed}, then: --accept {listed}")


def draw_pending(pending: list[PendingPicture]) -> Image.Image:
    """A sheet of pairs, theirs and ours, numbered as in the list."""
    pairs = [(picture.thumbnail, picture.still) for picture in pending]
    words = [f"{place}: {picture.title[:38]}, {picture.similarity:.2f}" for place, picture in enumerate(pending, 1)]
    return draw_pairs(pairs, words)


def draw_pairs(pairs: list[tuple[bytes | None, bytes | None]], words: list[str]) -> Image.Image:
    """A sheet of pairs of pictures, with words below each pair; where one is None its place stays empty."""
    width, height = 2 * THUMBNAIL + 12, THUMBNAIL + 20
    columns = min(COLUMNS, len(pairs))
    sheet = Image.new("RGB", (columns * width, -(-len(pairs) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for place, (pair, text) in enumerate(zip(pairs, words, strict=True)):
        x, y = place % columns * width, place // columns * height
        for left, picture in zip((x, x + THUMBNAIL + 4), pair, strict=True):
            if picture:
                still = ImageOps.contain(Image.open(io.BytesIO(picture)).convert("RGB"), (THUMBNAIL, THUMBNAIL))
                sheet.paste(still, (left, y))
        draw.text((x, y + THUMBNAIL), text[:60], fill="black", font=font)
    return sheet


def sort_pending(offers: Offers, accept: str) -> None:
    """Accept pending pictures, and refuse the others; accept: "all", or a list as show_pending writes it."""
    text = "" if accept == "all" else Path(accept).read_text("utf-8")
    wanted = {line.split("\t")[1] for line in text.splitlines() if line.count("\t") == 3}
    for offer in offers.pending():
        if accept == "all" or offer.name in wanted:
            offers.accept(offer.name)
        else:
            offers.refuse(offer.name)


# ---------------------------------------------------------------------------- which film was taken for which


def show_confusions(base: Path, place: str, sheet: Path) -> None:
    """Print which film was taken for which, and draw the stills of both, where the index at this place has them."""
    confusions = find_confusions(open_existing(base))
    if not confusions:
        print("no user has told which film it was, when an answer was wrong")
        return
    for number, one in enumerate(confusions, 1):
        print(f"{number}\t{one.times}\t{one.asked}\twas taken for\t{one.named}")
    collection = Collection(place)
    if not collection.is_there():
        print(f"learn.py: no index at {place}, so no stills are drawn", file=sys.stderr)
        return
    pairs = [
        (find_thumbnail(collection, one.asked, one.asked_still), find_thumbnail(collection, one.named, one.named_still))
        for one in confusions[:SHEET]
    ]
    words = [f"{number}: {one.times} x {one.asked}" for number, one in enumerate(confusions[:SHEET], 1)]
    with atomic_write(sheet) as file:
        draw_pairs(pairs, words).save(file, "PNG")
    print(f"look at {sheet}: the film that was asked, then the one that was named")


def find_thumbnail(collection: Collection, title: str, file: str | None) -> bytes | None:
    """That of a film's still, or of its middle one where no still is named or it is gone; None for a film not there."""
    query = "SELECT still.thumbnail FROM still JOIN film ON film.id = still.film WHERE film.title = ?"
    rows = collection.home.execute(f"{query} AND still.file = ? LIMIT 1", [title, file])
    if not rows:
        rows = collection.home.execute(f"{query} AND still.number = film.stored / 2", [title])
    return bytes(rows[0][0]) if rows else None


# --------------------------------------------------------------------------------------- the command line


def run_pictures(args: argparse.Namespace) -> int:
    """Show what users confirmed of films of the index, or add it. Only what was shown is ever added."""
    collection = Collection(args.index)
    identifier = Identifier(args.model)
    offers = Offers(collection)
    with collection.writing():
        state = collection.state()
        check_model(collection, state.about, fingerprint(identifier))
        forget_users(open_existing(args.db), collection, state, offers)
        sheet = args.sheet or Path("learn.png")
        if not args.accept:
            wanted = choose_pictures(args.db, state.films, offers, per_user=args.per_user, place=args.index)
            failed = asyncio.run(fetch_pictures(wanted, offers, args.api_base))
            show_pending(sheet, find_pending(offers, Index(args.index, identifier), identifier))
            return 1 if failed else 0
        with collection.home.transaction():
            sort_pending(offers, args.accept)
            added = list(add_user_stills(collection, state, identifier))
        gather(collection, state.about)
    for title, count in added:
        print(f"{title}: {count} stills added")
    return 0


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Use what users of the bot confirmed, wished for and judged.")
    add = parser.add_argument
    add("--db", type=Path, default=Path("bot.sqlite"), help="database of bot.py (default: %(default)s)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--accept", metavar="all|FILE", help="add what was shown: all, or the lines left in learn.txt")
    group.add_argument("--wishes", action="store_true", help="print the films that users missed, and exit")
    text = "print which film was taken for which, by the word of users, draw their stills, and exit"
    group.add_argument("--confusions", action="store_true", help=text)
    group.add_argument("--labels", type=Path, metavar="CSV", help="write the users' verdicts there, and exit")
    add = parser.add_argument_group("pictures for the index").add_argument
    add("--index", default=INDEX, help="a file or postgresql://... of index.py (default: %(default)s)")
    add("--model", default="export", help="folder from export.py (default: %(default)s)")
    text = "most pictures of a film that count from one user (default: %(default)s)"
    add("--per-user", type=int, default=5, help=text)
    text = "where to draw the pictures for you to look at; the list is written beside it (default: learn.png, and "
    add("--sheet", type=Path, help=text + "confusions.png with --confusions)")
    add("--api-base", metavar="URL", help="a Bot API server of your own (default: api.telegram.org)")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if args.wishes:
        print_wishes(args.db)
        return 0
    if args.labels:
        write_feedback(args.db, args.labels)
        return 0
    if args.confusions:
        show_confusions(args.db, args.index, args.sheet or Path("confusions.png"))
        return 0
    return run_pictures(args)


if __name__ == "__main__":
    sys.exit(main())
