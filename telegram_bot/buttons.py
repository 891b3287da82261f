"""What a pressed button does, a handler an action: verdicts, guesses, further stills, second looks, pages, languages.

The data is whatever somebody sends: unknown or expired buttons get an error note.
"""

import contextlib

from aiogram import Dispatcher
from aiogram.types import CallbackQuery, File, Message, User

from telegram_bot.app import App
from telegram_bot.database import StoredAnswer, await_frame, find_answer, has_confirmed
from telegram_bot.keyboards import (
    CutStill,
    Guess,
    Language,
    Mirror,
    More,
    NoneOfThese,
    Page,
    Pick,
    Right,
    Skip,
    Step,
    Wrong,
    ask_title,
    film_links,
    keyboard,
)
from telegram_bot.naming import Question, answer_question, fetch_still, find_refusal
from telegram_bot.replies import MAX_NOTE, UNDELIVERABLE, Reply, append_line, blank_still, edit_message, send_reply
from telegram_bot.wording import compose, films_page, format_days, other_buttons


async def respond(query: CallbackQuery, note: str, reply: Reply | None = None) -> None:
    """Show a note at the button, then change its message where that is still there."""
    with contextlib.suppress(*UNDELIVERABLE):
        await query.answer(note[:MAX_NOTE])
    if reply and isinstance(query.message, Message):
        await edit_message(query.message, reply)


def may_judge(app: App, answer: StoredAnswer, user: User | None) -> bool:
    """Only who asked may, where we know who that was."""
    return answer.asker is None or (user is not None and answer.asker == app.hash(user))


async def find_judged(query: CallbackQuery, app: App, texts: dict, number: str, place: int = 0) -> StoredAnswer | None:
    """The answer with this id and a candidate at this place; None where the user may not judge it and was told so."""
    answer = find_answer(app.base, number)
    if answer is None or place >= len(answer.candidates):
        await respond(query, texts["gone"])
        return None
    if not may_judge(app, answer, query.from_user):
        await respond(query, texts["theirs"])
        return None
    return answer


# ------------------------------------------------------------------------------------------------ verdicts


async def on_right(query: CallbackQuery, callback_data: Right, app: App, texts: dict) -> None:
    if answer := await find_judged(query, app, texts, callback_data.answer):
        await judge_film(query, app, texts, answer, "right", place=0)


async def on_pick(query: CallbackQuery, callback_data: Pick, app: App, texts: dict) -> None:
    place = callback_data.place
    if answer := await find_judged(query, app, texts, callback_data.answer, place):
        verdict = "right" if answer.kind == "shortlist" else "wrong"  # another film was named first
        await judge_film(query, app, texts, answer, verdict, place)


async def judge_film(
    query: CallbackQuery, app: App, texts: dict, answer: StoredAnswer, verdict: str, place: int
) -> None:
    """Keep the verdict and the film, whose page the message goes on linking.

    Who says for the first time which film it is, is told what may become of his picture.
    """
    film = answer.candidates[place]["title"]
    is_first = answer.asker is not None and not has_confirmed(app.base, answer.asker)
    app.judge(answer.id, verdict, film)
    links = keyboard(film_links(app, texts, film))
    if is_first and isinstance(query.message, Message):
        await respond(query, texts["thanks"])
        return await append_line(query.message, texts["kept"].format(days=format_days(app.keep_days)), links)
    await respond(query, texts["thanks"], Reply(None, links))


async def on_wrong(query: CallbackQuery, callback_data: Wrong, app: App, texts: dict) -> None:
    if answer := await find_judged(query, app, texts, callback_data.answer):
        app.judge(answer.id, "wrong", None)
        await respond(query, texts["which"], Reply(None, other_buttons(texts, answer)))


async def on_none_of_these(query: CallbackQuery, callback_data: NoneOfThese, app: App, texts: dict) -> None:
    if answer := await find_judged(query, app, texts, callback_data.answer):
        await respond(query, texts["thanks"], Reply(None))
        if isinstance(query.message, Message):
            await send_reply(query.message, Reply(texts["tell"], ask_title(texts, answer.id)))


async def on_skip(query: CallbackQuery, callback_data: Skip, app: App, texts: dict) -> None:
    if await find_judged(query, app, texts, callback_data.answer):
        await respond(query, texts["thanks"], Reply(texts["thanks"]))


# ------------------------------------------------------------------------------- guesses and further films


async def on_more(query: CallbackQuery, callback_data: More, app: App, texts: dict) -> None:
    """Take the user's next picture in this chat for one more frame of the film."""
    if answer := await find_judged(query, app, texts, callback_data.answer):
        if query.message:
            await_frame(app.base, app.hash_place(query.message.chat, query.from_user), answer.id)
        await respond(query, texts["send"])


async def on_guess(query: CallbackQuery, callback_data: Guess, app: App, texts: dict) -> None:
    answer = find_answer(app.base, callback_data.answer)
    if answer is None:
        return await respond(query, texts["gone"])
    await show_candidate(query, app, texts, answer, 0)


async def on_step(query: CallbackQuery, callback_data: Step, app: App, texts: dict) -> None:
    answer = find_answer(app.base, callback_data.answer)
    proven = answer.candidates[callback_data.place : callback_data.place + 1] if answer else []
    if not any(candidate.get("evidence") for candidate in proven):
        return await respond(query, texts["gone"])
    await show_candidate(query, app, texts, answer, callback_data.place)


async def show_candidate(query: CallbackQuery, app: App, texts: dict, answer: StoredAnswer, place: int) -> None:
    """Show the film at this place in the message, with its still."""
    if place:
        kind = "next"
    elif answer.kind == "unknown":
        kind = "guess"
    else:
        kind = answer.kind
    still = await fetch_still(app, answer.candidates[place])
    reply = compose(app, texts, answer, kind, place, still=still)
    message = query.message
    if isinstance(message, Message) and message.photo and not still:
        reply.still = blank_still()  # another film's must not stay above these words
    await respond(query, "", reply)


# -------------------------------------------------------------------------------------------- second looks


async def on_cut_still(query: CallbackQuery, callback_data: CutStill, app: App, texts: dict) -> None:
    await look_again(query, app, texts, callback_data.answer, "still")


async def on_mirror(query: CallbackQuery, callback_data: Mirror, app: App, texts: dict) -> None:
    await look_again(query, app, texts, callback_data.answer, "mirror")


def find_asked_pictures(answer: StoredAnswer) -> list[File]:
    """The pictures that an answer is about, as they can be fetched anew."""
    files = answer.files or ([] if answer.file_id == answer.clip_id else [answer.file_id])
    return [File(file_id=file, file_unique_id="") for file in files]


async def look_again(query: CallbackQuery, app: App, texts: dict, number: str, look: str) -> None:
    """Fetch the picture of an answer anew and answer in its place. look: as name_film takes it."""
    answer = await find_judged(query, app, texts, number)
    if answer is None:
        return
    message, user = query.message, query.from_user
    if not isinstance(message, Message):
        return await respond(query, texts["gone"])
    refusal = find_refusal(app, texts, user.id)
    if refusal is not None:
        return await respond(query, refusal)
    await respond(query, texts["looking"])
    question = Question(
        pictures=find_asked_pictures(answer),
        chat=message.chat.id,
        user=user.id,
        asker=user,
        look=look,
        clip=File(file_id=answer.clip_id, file_unique_id="") if answer.clip_id else None,
        business=message.business_connection_id,
        small=answer.small,
    )
    await edit_message(message, await answer_question(query.bot, app, texts, question))


# ------------------------------------------------------------------------------------- pages and languages


async def on_page(query: CallbackQuery, callback_data: Page, app: App, texts: dict) -> None:
    await respond(query, "", films_page(app, texts, callback_data.page, callback_data.query))


async def on_language(query: CallbackQuery, callback_data: Language, app: App, texts: dict) -> None:
    code = callback_data.code
    if code not in app.texts:
        return await respond(query, texts["gone"])
    app.set_language(query.from_user, code)
    words = app.texts[code]["set"]
    await respond(query, words, Reply(words))


async def on_unknown_button(query: CallbackQuery, texts: dict) -> None:
    await respond(query, texts["gone"])


HANDLERS = {
    Right: on_right,
    Pick: on_pick,
    Wrong: on_wrong,
    NoneOfThese: on_none_of_these,
    Skip: on_skip,
    More: on_more,
    Guess: on_guess,
    Step: on_step,
    CutStill: on_cut_still,
    Mirror: on_mirror,
    Page: on_page,
    Language: on_language,
}


def register_buttons(dispatcher: Dispatcher) -> None:
    for data, handler in HANDLERS.items():
        dispatcher.callback_query.register(handler, data.filter())
    dispatcher.callback_query.register(on_unknown_button)
