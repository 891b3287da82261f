"""What the bot answers to messages and inline queries; buttons.py has what their buttons do."""

import contextlib
import re

from aiogram import Dispatcher, F, types
from aiogram.filters import Command, CommandObject
from aiogram.types import InlineQuery, Message

from telegram_bot.app import REFRESH_SECONDS, App
from telegram_bot.buttons import find_asked_pictures, may_judge, register_buttons
from telegram_bot.database import (
    StoredAnswer,
    find_answer,
    find_awaited,
    forget_user,
    stop_awaiting,
    was_answered,
)
from telegram_bot.figures import read_figures
from telegram_bot.keyboards import (
    ANSWER_BUTTONS,
    Language,
    Skip,
    ask_title,
    button,
    film_links,
    find_answer_id,
    keyboard,
)
from telegram_bot.naming import Question, answer_question, find_refusal
from telegram_bot.replies import UNDELIVERABLE, Reply, is_spoiler, send_reply
from telegram_bot.updates import (
    COMMANDS,
    EDITED_MESSAGES,
    MESSAGES,
    Albums,
    Journal,
    can_read_clips,
    find_clip,
    find_pictures,
    is_locked,
    is_ours,
    report,
)
from telegram_bot.wording import films_page, format_days

MAX_TITLE = 100  # letters of a title that users tell
INLINE_FILMS = 20  # films that an inline query gets at a time
# what gets a hint where it holds no picture; not a pin, not a join
CONTENT_TYPES = {"text", "audio", "document", "voice", "contact", "location", "venue", "poll", "dice", "sticker"}
CONTENT_TYPES |= {"video", "video_note", "story", "paid_media", "game", "checklist", "rich_message"}


# ----------------------------------------------------------------------------------------------- messages


async def on_message(message: Message, app: App, texts: dict, album: list[Message], is_edit: bool = False) -> None:
    """Frames, albums, questions about a picture that is replied to, titles; anything else gets a hint.

    An edited message is answered where it asks something that was not answered.
    """
    pictures = [picture for part in album for picture in find_pictures(part)]
    clip = find_clip(message) if len(album) == 1 and can_read_clips() else None  # of an album, the covers are asked
    earlier = find_earlier(app, message) if pictures and not clip else None
    if not pictures and not clip:
        if (answer := find_told(message)) and not is_edit:
            return await on_title(message, app, texts, answer)
        pictures, clip = find_replied(message)
    is_asked = bool(pictures or clip)
    if not is_asked and (is_edit or not expects_hint(message)):
        return
    look = find_look(app, album)
    mark = hash_question(app, message, [*pictures, *([clip] if clip else [])], look) if is_asked else None
    if is_edit and (mark in app.asked or was_answered(app.base, mark)):
        return
    user = (message.sender_chat or message.from_user or message.chat).id  # channels and hidden admins share one user
    refusal = find_refusal(app, texts, user)
    if refusal == "":
        return
    if refusal is not None or not is_asked:
        return await send_reply(message, Reply(refusal or texts["paid" if is_locked(message) else "hint"]))
    if earlier:
        pictures = find_asked_pictures(earlier) + pictures
        stop_awaiting(app.base, app.hash_place(message.chat, message.from_user))
    question = Question(
        pictures=pictures,
        chat=message.chat.id,
        user=user,
        asker=None if message.sender_chat else message.from_user,
        look=look,
        clip=clip,
        business=message.business_connection_id,
        mark=mark,
        small=bool(earlier and earlier.small),
        is_guest=bool(message.guest_query_id),
    )
    app.asked.add(mark)
    try:
        reply = await answer_question(message.bot, app, texts, question)
    finally:
        app.asked.discard(mark)
    await send_reply(message, reply, spoiler=any(map(is_spoiler, album)))


def hash_question(app: App, message: Message, media: list, look: str | None) -> str:
    """What a message asks: an edit that changes none of it is no new question."""
    names = [one.file_unique_id for one in media]
    return app.hash_text(" ".join(map(str, [message.chat.id, message.message_id, look, *names])))


def find_earlier(app: App, message: Message) -> StoredAnswer | None:
    """The answer of which a message brings one more frame: it replies to it, or was awaited after its button."""
    asked = message.reply_to_message
    number = None
    if is_ours(asked, message.bot.id):
        number = find_answer_id(asked, ANSWER_BUTTONS)
    elif message.from_user:
        number = find_awaited(app.base, app.hash_place(message.chat, message.from_user))
    answer = find_answer(app.base, number) if number else None
    if answer is None or answer.kind == "movie" or not may_judge(app, answer, message.from_user):
        return None
    return answer


def find_replied(message: Message) -> tuple[list, object | None]:
    """The pictures and the clip that a text replies to."""
    if not (message.text or "").strip() or not message.reply_to_message:
        return [], None
    clip = find_clip(message.reply_to_message) if can_read_clips() else None
    return find_pictures(message.reply_to_message), clip


def expects_hint(message: Message) -> bool:
    """Whether somebody speaks to us, though without a picture."""
    if message.content_type not in CONTENT_TYPES:
        return False
    if (message.chat.type == "private" and not message.business_connection_id) or message.guest_query_id:
        return True
    return (message.text or "").split("@")[0].strip() == "/film"


def find_look(app: App, album: list[Message]) -> str | None:
    """The way to look at the pictures that their words ask for, in any language; None for the usual one."""
    text = " ".join(part.caption or part.text or "" for part in album)
    said = set(re.findall(r"\w+", text.casefold()))
    for texts in app.texts.values():
        for look, names in texts["looks"].items():
            if said.intersection(names):
                return look
    return None


# ------------------------------------------------------------------------------------ a title that users tell


def find_told(message: Message) -> str | None:
    """The answer whose film a text names: it replies to our question, in whose button the answer stands."""
    asked = message.reply_to_message
    if not message.text or not is_ours(asked, message.bot.id):
        return None
    return find_answer_id(asked, (Skip,))


async def on_title(message: Message, app: App, texts: dict, number: str) -> None:
    """A film in the words of a user: one that we know, or a wish. number: of the answer that it is about."""
    answer = find_answer(app.base, number)
    if answer is None:
        return await send_reply(message, Reply(texts["gone"]))
    if not may_judge(app, answer, message.from_user):
        return await send_reply(message, Reply(texts["theirs"]))
    title = " ".join(message.text.split())
    if len(title) > MAX_TITLE:
        return await send_reply(message, Reply(texts["tell"], ask_title(texts, number)))
    if film := find_film(app, title):
        app.judge(number, "wrong", film)
    else:
        app.judge(number, "wish", title)
    await send_reply(message, Reply(texts["thanks"]))


def find_film(app: App, title: str) -> str | None:
    """The film of the collection with this title, in any language, with its year or without."""
    wanted = title.casefold()
    for texts in app.texts.values():
        for film in app.films:
            for name in (film, texts["titles"].get(film)):
                if name and wanted in (name.casefold(), name[: -len(" (1979)")].casefold()):
                    return film
    return None


# ----------------------------------------------------------------------------------------------- commands


async def on_command(message: Message, app: App, texts: dict, command: CommandObject) -> None:
    if command.command == "films":
        reply = films_page(app, texts, 0, command.args or "")
    elif command.command == "forget":
        reply = forget(message, app, texts)
    else:
        buttons = language_buttons(app) if command.command == "lang" else None
        reply = Reply(fill_text(app, texts, command.command), buttons)
    await send_reply(message, reply)


def fill_text(app: App, texts: dict, name: str) -> str:
    """The text of that name, with what it says of the model filled in."""
    contract = app.model.contract
    figures = contract.accuracy or {}
    accuracy = ""
    if isinstance(figures.get("top1"), float):
        accuracy = texts["accuracy" if figures.get("split") == "group" else "random"].format(**figures)
    values = vars(contract) | {"accuracy": accuracy, "films": len(app.films), "days": format_days(app.keep_days)}
    return texts[name].format(**values)


def forget(message: Message, app: App, texts: dict) -> Reply:
    """Delete what is kept of who sent it."""
    user = message.from_user
    if user is None or message.sender_chat:
        return Reply(texts["nobody"])  # of whom we don't know who he is, nothing is kept
    return Reply(texts["forgotten"].format(count=forget_user(app.base, app.hash(user))))


def language_buttons(app: App) -> types.InlineKeyboardMarkup:
    return keyboard([button(texts["name"], Language(code=code)) for code, texts in app.texts.items()])


async def on_stats(message: Message, app: App, texts: dict) -> None:
    text = texts["stats"].format(**read_figures(app), **vars(app.model.contract))
    await send_reply(message, Reply(text))


# ------------------------------------------------------------------------------------------ inline queries


async def on_inline(query: InlineQuery, app: App, texts: dict) -> None:
    """Films of the collection by words, in any chat."""
    start = int(query.offset) if re.fullmatch("[0-9]{1,5}", query.offset) else 0
    end = start + INLINE_FILMS
    found = app.find_titles(texts, query.query)
    articles = []
    for place, (shown, title) in enumerate(found[start:end], start):
        article = types.InlineQueryResultArticle(
            id=str(place),
            title=shown,
            input_message_content=types.InputTextMessageContent(message_text=shown),
            reply_markup=keyboard(film_links(app, texts, title)),
        )
        articles.append(article)
    further = str(end) if end < len(found) else ""
    with contextlib.suppress(*UNDELIVERABLE):  # it is too old
        await query.answer(articles, cache_time=int(REFRESH_SECONDS), is_personal=True, next_offset=further)


# ------------------------------------------------------------------------------------------ all of it


def make_dispatcher(app: App) -> Dispatcher:
    dispatcher = Dispatcher(app=app, disable_fsm=True)  # its memory would grow with every user
    dispatcher.update.outer_middleware(Journal())
    albums = Albums()
    dispatcher.message.register(on_stats, Command("stats"), F.from_user.id == app.owner, F.chat.type == "private")
    for name in (*MESSAGES, *EDITED_MESSAGES):
        kind = dispatcher.observers[name]
        kind.outer_middleware(albums)
        if name in ("message", "channel_post", "business_message"):
            kind.register(on_command, Command(*COMMANDS))
        kind.register(on_message)
    dispatcher.inline_query.register(on_inline)
    register_buttons(dispatcher)
    dispatcher.errors.register(lambda event: report(event.exception) or True)  # of SQLite's: a full disk
    return dispatcher
