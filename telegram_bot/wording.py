"""What the bot says: its texts by language, the words and buttons of an answer, pages of films."""

import csv
import tomllib
from pathlib import Path

from aiogram.types import InlineKeyboardMarkup

from answering.console import format_clock
from answering.store import USER_STILL_PREFIX
from telegram_bot.app import App, local_title
from telegram_bot.database import LISTED, StoredAnswer
from telegram_bot.keyboards import (
    MAX_QUERY,
    CutStill,
    Guess,
    Mirror,
    More,
    NoneOfThese,
    Page,
    Pick,
    Right,
    Step,
    Wrong,
    button,
    film_links,
    keyboard,
)
from telegram_bot.replies import Reply

TEXTS = Path(__file__).with_name("texts.toml")
FILMS_A_PAGE = 20
MAX_TEXT = 4000  # letters; Telegram takes 4096
SURE_STEPS = (0.95, 0.75)  # confidence, for words
# similarity, for words; a film's other copy has 0.73 to 0.99, other films under 0.62 (DINOv2-S)
SIMILARITY_STEPS = (0.8, 0.6, 0.4)


def load_texts(titles: Path) -> dict[str, dict]:
    """{language: its table in texts.toml, with "titles" and "imdb" of the films by the titles.csv of scrape.py}."""
    texts = tomllib.loads(TEXTS.read_text(encoding="utf-8"))
    rows = []
    if titles.exists():
        rows = list(csv.DictReader(titles.read_text(encoding="utf-8").splitlines()))
    for code, words in texts.items():
        words["titles"] = {row["title"]: row[code] for row in rows if row.get(code)}
        words["imdb"] = {row["title"]: row["tconst"] for row in rows if row.get("tconst")}
    return texts


def format_days(days: float) -> str:
    return f"{days:g}"


# ------------------------------------------------------------------------------------------------ an answer


def compose(
    app: App,
    texts: dict,
    answer: StoredAnswer,
    kind: str,
    place: int = 0,
    *,
    still: bytes | None = None,
    is_last: bool = False,
) -> Reply:
    """Words and buttons of an answer, with this still.

    kind: as the answer has it, "guess" for the best guess at an unknown film, "next" for the film at a place further
    down. is_last: no more frames are asked for.
    """
    shown = answer.candidates[place]
    text = describe_films(texts, answer.candidates, "stumped" if kind == "unknown" and is_last else kind, place)
    if answer.frames and (answer.clip_id or answer.frames > 1):
        text += "\n" + texts["clip" if answer.clip_id else "frames"].format(count=answer.frames)
    more = [] if is_last else [button(texts["more"], More(answer=answer.id))]
    if kind == "unknown":
        return Reply(text, unknown_buttons(texts, answer, more))
    if proof := shown.get("evidence"):
        listed = kind in ("shortlist", "guess")
        text += "\n" + describe_proof(texts, proof, of=shown["title"] if listed else None)
        if not still and proof["file"].startswith(USER_STILL_PREFIX):
            text += " " + texts["theirs_hidden"]
    further = []
    if len(answer.candidates) > 1 and any(candidate.get("evidence") for candidate in answer.candidates):
        step = Step(place=(place + 1) % len(answer.candidates), answer=answer.id)
        further.append(button(texts["another"], step))
    if kind == "shortlist":
        rows = shortlist_buttons(texts, answer)
        rows[-1] += more
    else:
        rows = [judge_buttons(texts, answer, place)]
        further += film_links(app, texts, shown["title"])
    return Reply(text, keyboard(*rows, further), still)


def describe_films(texts: dict, candidates: list[dict], kind: str, place: int) -> str:
    """In words, which film it is or may be. kind, place: as compose takes them."""
    titles = [local_title(candidate["title"], texts) for candidate in candidates[:LISTED]]
    confidence = candidates[0]["confidence"]
    return texts[kind].format(
        title=local_title(candidates[place]["title"], texts),
        list="\n".join(f"- {title}" for title in titles),
        sure=texts["sure"][sum(confidence < limit for limit in SURE_STEPS)],
    )


def describe_proof(texts: dict, proof: dict, of: str | None) -> str:
    """In words, how much alike the nearest known still is, and from where to where in its film it is seen.

    proof: as Evidence.as_dict() gives it; of: the film's title, where several are listed.
    """
    alike = texts["alike"][sum(proof["similarity"] < limit for limit in SIMILARITY_STEPS)]
    film = texts["of"].format(title=local_title(of, texts)) if of else ""
    at = ""
    if proof["time_ms"] is not None:
        at = texts["at"].format(time=format_clock(proof["time_ms"] / 1000))
    if proof["from_ms"] is not None:
        start, end = (format_clock(proof[name] / 1000) for name in ("from_ms", "to_ms"))
        if start != end:
            at = texts["span"].format(start=start, end=end)
    return texts["proof"].format(of=film, alike=alike, at=at)


def unknown_buttons(texts: dict, answer: StoredAnswer, more: list) -> InlineKeyboardMarkup:
    """One more frame; show the best guess; look at the picture in another way. more: the row of the first."""
    looks = [
        button(texts["still"], CutStill(answer=answer.id)),
        button(texts["mirror"], Mirror(answer=answer.id)),
    ]
    return keyboard(more, [button(texts["show"], Guess(answer=answer.id))], looks)


def judge_buttons(texts: dict, answer: StoredAnswer, place: int) -> list:
    """Right and wrong, for the film at a place."""
    right = Pick(place=place, answer=answer.id) if place else Right(answer=answer.id)
    return [button(texts["right"], right), button(texts["wrong"], Wrong(answer=answer.id))]


def shortlist_buttons(texts: dict, answer: StoredAnswer) -> list[list]:
    """A row a film, then "none of these"."""
    none = button(texts["none"], Wrong(answer=answer.id))
    return [*pick_buttons(texts, answer, range(len(answer.candidates[:LISTED]))), [none]]


def other_buttons(texts: dict, answer: StoredAnswer) -> InlineKeyboardMarkup:
    """After "wrong": which film is it, then? The first was shown alone, unless there was a shortlist."""
    first = 0 if answer.kind == "shortlist" else 1
    none = button(texts["none"], NoneOfThese(answer=answer.id))
    return keyboard(*pick_buttons(texts, answer, range(first, len(answer.candidates))), [none])


def pick_buttons(texts: dict, answer: StoredAnswer, places: range) -> list[list]:
    """A row for the candidate at each of these places."""
    rows = []
    for place in places:
        title = local_title(answer.candidates[place]["title"], texts)
        rows.append([button(title, Pick(place=place, answer=answer.id))])
    return rows


# ------------------------------------------------------------------------------------------- a page of films


def films_page(app: App, texts: dict, page: int, query: str) -> Reply:
    """Words and buttons of a page of the films that hold every word of the query; past the end, of the last one."""
    query = query.encode()[:MAX_QUERY].decode(errors="ignore")
    found = [shown for shown, _ in app.find_titles(texts, query)]
    if not found:
        return Reply(texts["nothing"])
    last = (len(found) - 1) // FILMS_A_PAGE
    page = min(page, last)
    lines = [texts["films"].format(count=len(found)), ""]
    lines += found[page * FILMS_A_PAGE : (page + 1) * FILMS_A_PAGE]
    around = []
    if page > 0:
        around.append(button("<", Page(page=page - 1, query=query)))
    if page < last:
        around.append(button(">", Page(page=page + 1, query=query)))
    return Reply("\n".join(lines)[:MAX_TEXT], keyboard(around))
