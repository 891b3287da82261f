"""What the bot answers to messages and inline queries; buttons.py has what their buttons do."""

import contextlib
import re

from aiogram import Dispatcher, F, types
from aiogram.filters import Command, CommandObject
from aiogram.types import InlineQuery, Message

from telegram_bot.app import REFRESH_SECONDS, App
from telegram_bot.buttons import may_judge, register_buttons
from telegram_bot.database import find_answer
from telegram_bot.figures import read_figures
from telegram_bot.keyboards import Language, Skip, ask_title, button, film_links, keyboard
from telegram_bot.naming import Question, answer_question, find_refusal
from telegram_bot.replies import UNDELIVERABLE, Reply, is_spoiler, send_reply
from telegram_bot.updates import COMMANDS, Albums, Journal, can_read_clips, find_clip, find_picture, report
from telegram_bot.wording import films_page

MAX_TITLE = 100  # letters of a title that users tell
INLINE_FILMS = 20  # films that an inline query gets at a time
# what gets a hint where it holds no picture; not a pin, not a join
CONTENT_TYPES = {"text", "audio", "document", "voice", "contact", "location", "venue", "poll", "dice", "sticker"}
CONTENT_TYPES |= {"video", "video_note", "story"}


# ----------------------------------------------------------------------------------------------- messages


async def on_message(message: Message, app: App, texts: dict, album: list[Message]) -> None:
    """Frames, albums, questions about a picture that is replied to, titles; anything else gets a hint."""
    pictures = [picture for part in album if (picture := find_picture(part))]
    clip = find_clip(message) if len(album) == 1 and can_read_clips() else None  # of an album, the covers are asked
    if not pictures and not clip:
        if answer := find_asked(message):
            return await on_title(message, app, texts, answer)
        pictures, clip = find_replied(message)
    if not pictures and not clip and not expects_hint(message):
        return
    user = (message.sender_chat or message.from_user or message.chat).id  # channels and hidden admins share one user
    refusal = find_refusal(app, texts, user)
    if refusal == "":
        return
    if refusal is not None or not (pictures or clip):
        return await send_reply(message, Reply(refusal or texts["hint"]))
    asker = None if message.sender_chat else message.from_user
    question = Question(pictures, message.chat.id, user, asker, find_look(app, album), clip)
    reply = await answer_question(message.bot, app, texts, question)
    await send_reply(message, reply, spoiler=any(map(is_spoiler, album)))


def find_replied(message: Message) -> tuple[list, object | None]:
    """The picture and the clip that a text replies to."""
    if not (message.text or "").strip():
        return [], None
    picture = find_picture(message.reply_to_message)
    clip = find_clip(message.reply_to_message) if can_read_clips() else None
    return [picture] if picture else [], clip


def expects_hint(message: Message) -> bool:
    """Whether somebody speaks to us, though without a picture."""
    if message.content_type not in CONTENT_TYPES:
        return False
    if message.chat.type == "private" or message.guest_query_id:
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


def find_asked(message: Message) -> str | None:
    """The answer whose film a text names: it replies to our question, in whose button the answer stands."""
    asked = message.reply_to_message
    if not message.text or not asked or not asked.from_user or not asked.reply_markup:
        return None
    if asked.from_user.id != message.bot.id:
        return None
    for row in asked.reply_markup.inline_keyboard:
        for pressable in row:
            with contextlib.suppress(TypeError, ValueError):  # another button's
                return Skip.unpack(pressable.callback_data or "").answer
    return None


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
    values = vars(contract) | {"accuracy": accuracy, "films": len(app.films)}
    return texts[name].format(**values)


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
    for kind in (dispatcher.message, dispatcher.guest_message):
        kind.outer_middleware(albums)
    dispatcher.message.register(on_command, Command(*COMMANDS))
    dispatcher.message.register(on_stats, Command("stats"), F.from_user.id == app.owner, F.chat.type == "private")
    dispatcher.message.register(on_message)
    dispatcher.guest_message.register(on_message)
    dispatcher.inline_query.register(on_inline)
    register_buttons(dispatcher)
    dispatcher.errors.register(lambda event: report(event.exception) or True)  # of SQLite's: a full disk
    return dispatcher
