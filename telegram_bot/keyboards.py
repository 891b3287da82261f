"""Buttons below the bot's messages, and what their data means. Old ones in people's chats must go on working."""

import contextlib
import itertools
import re
from typing import ClassVar

from aiogram.filters.callback_data import CallbackData
from aiogram.types import InlineKeyboardButton, InlineKeyboardMarkup, Message

from telegram_bot.app import App

MAX_QUERY = 48  # bytes of words to search for; 64 bytes is all that a button holds
MAX_LABEL = 60  # letters on a button

# ------------------------------------------------------------------------------------------------ their data


class Right(CallbackData, prefix="r"):
    """The film that was named, or guessed at, is right."""

    answer: str  # id of the StoredAnswer, here and below


class Wrong(CallbackData, prefix="w"):
    """The answer is wrong."""

    answer: str


class NoneOfThese(CallbackData, prefix="n"):
    """It is none of the other films that we offered: ask for its title."""

    answer: str


class Skip(CallbackData, prefix="k"):
    """The user does not know the title. It stands below our question, so that a reply to that is known by it."""

    answer: str


class Guess(CallbackData, prefix="g"):
    """Show the best guess at an unknown film."""

    answer: str


class More(CallbackData, prefix="a"):
    """The user's next picture shows the same film."""

    answer: str


class CutStill(CallbackData, prefix="x"):
    """Look at the still inside the screenshot."""

    answer: str


class Mirror(CallbackData, prefix="m"):
    """Look at the picture mirrored."""

    answer: str


class Language(CallbackData, prefix="l"):
    """Speak this language from now on."""

    code: str


class ParsedData(CallbackData, prefix="-"):
    """Data that is not just parts between colons: FORM makes it and PATTERN reads it."""

    FORM: ClassVar[str]
    PATTERN: ClassVar[str]

    def pack(self) -> str:
        return self.FORM.format(**self.model_dump())

    @classmethod
    def unpack(cls, value: str) -> "ParsedData":
        """Raises ValueError, as CallbackData wants it, for data of another kind."""
        found = re.fullmatch(cls.PATTERN, value, re.DOTALL)
        if not found:
            raise ValueError("data of another kind")
        return cls(**found.groupdict())


class Pick(ParsedData, prefix="c"):
    """The candidate at this place is the right one."""

    FORM = "c{place}:{answer}"
    PATTERN = "c(?P<place>[0-9]):(?P<answer>.*)"
    place: int  # of the candidate, from 0
    answer: str


class Step(ParsedData, prefix="s"):
    """Show the candidate at this place, with its still."""

    FORM = "s{place}:{answer}"
    PATTERN = "s(?P<place>[0-9]):(?P<answer>.*)"
    place: int
    answer: str


class Page(ParsedData, prefix="f"):
    """Show a page of the films that hold every word of the query."""

    FORM = "f:{page}:{query}"
    PATTERN = "f:(?P<page>[0-9]{1,5}):(?P<query>.*)"
    page: int  # from 0
    query: str  # of at most MAX_QUERY bytes


# that stand below an answer
ANSWER_BUTTONS = (Right, Wrong, NoneOfThese, Guess, More, CutStill, Mirror, Pick, Step)


def find_answer_id(message: Message, kinds: tuple[type[CallbackData], ...]) -> str | None:
    """The answer that a message of ours is about, by the first of its buttons of one of these kinds."""
    rows = message.reply_markup.inline_keyboard if message.reply_markup else []
    for pressable in itertools.chain.from_iterable(rows):
        for kind in kinds:
            with contextlib.suppress(TypeError, ValueError):  # another button's
                return kind.unpack(pressable.callback_data or "").answer
    return None


# ------------------------------------------------------------------------------------------------ keyboards


def keyboard(*rows: list[InlineKeyboardButton]) -> InlineKeyboardMarkup | None:
    """Rows of buttons without the empty rows; None where nothing is left."""
    filled = [row for row in rows if row]
    return InlineKeyboardMarkup(inline_keyboard=filled) if filled else None


def button(text: str, data: CallbackData) -> InlineKeyboardButton:
    return InlineKeyboardButton(text=text[:MAX_LABEL], callback_data=data.pack())


def film_links(app: App, texts: dict, title: str) -> list[InlineKeyboardButton]:
    """The button that opens a film's page, where its id is known."""
    imdb = texts["imdb"].get(title) or app.films.get(title) or ""
    if not re.fullmatch("tt[0-9]{5,12}", imdb):
        return []
    return [InlineKeyboardButton(text="IMDb", url=f"https://www.imdb.com/title/{imdb}/")]


def ask_title(texts: dict, answer: str) -> InlineKeyboardMarkup:
    """The button below the question for a title."""
    return keyboard([button(texts["skip"], Skip(answer=answer))])
