"""What the bot replies, and how that is sent: as a message, in place of one of its messages, or as a guest."""

import contextlib
from dataclasses import dataclass

from aiogram import exceptions, types
from aiogram.types import InlineKeyboardMarkup, Message

MAX_CAPTION = 1024  # letters below a photo
MAX_NOTE = 190  # letters of the note that a pressed button shows
# the message is gone or unchanged, or the bot was blocked
UNDELIVERABLE = (exceptions.TelegramBadRequest, exceptions.TelegramForbiddenError)


@dataclass
class Reply:
    text: str | None  # plain; None, for an edit alone: the words stay and the buttons change
    buttons: InlineKeyboardMarkup | None = None
    still: bytes | None = None  # a JPEG


def is_spoiler(message: Message) -> bool:
    """Whether the picture of a message, or of the one that it asks about, lies under a spoiler."""
    parts = (message, message.reply_to_message, message.external_reply)
    return any(getattr(part, "has_media_spoiler", None) for part in parts)


async def send_reply(message: Message, reply: Reply, spoiler: bool = False) -> None:
    """Answer as plain text: nothing of what users write or films are called is ever read as HTML."""
    if message.guest_query_id:
        return await answer_guest(message, reply)
    to = message.as_reply_parameters(allow_sending_without_reply=True)
    if reply.still:
        photo = types.BufferedInputFile(reply.still, "still.jpg")
        caption = reply.text[:MAX_CAPTION]
        with contextlib.suppress(exceptions.TelegramBadRequest):  # no photos in this group, or no picture any more
            await message.answer_photo(
                photo, caption=caption, has_spoiler=spoiler, reply_parameters=to, reply_markup=reply.buttons
            )
            return
    await message.answer(reply.text, reply_parameters=to, reply_markup=reply.buttons)


async def answer_guest(message: Message, reply: Reply) -> None:
    """Answer in a chat that the bot is no member of: of the buttons, links alone work there."""
    rows = reply.buttons.inline_keyboard if reply.buttons else []
    links = [[button for button in row if button.url] for row in rows]
    article = types.InlineQueryResultArticle(
        id="1",
        title=reply.text[:60],
        input_message_content=types.InputTextMessageContent(message_text=reply.text),
        reply_markup=InlineKeyboardMarkup(inline_keyboard=links) if any(links) else None,
    )
    await message.answer_guest_query(article)


async def edit_message(message: Message, reply: Reply) -> None:
    """Make a message of ours say something else, with a picture if there is one."""
    with contextlib.suppress(*UNDELIVERABLE):
        if reply.still:
            photo = types.BufferedInputFile(reply.still, "still.jpg")
            caption = reply.text[:MAX_CAPTION]
            media = types.InputMediaPhoto(media=photo, caption=caption, has_spoiler=is_spoiler(message))
            with contextlib.suppress(exceptions.TelegramBadRequest):  # no photos in this group
                await message.edit_media(media, reply_markup=reply.buttons)
                return
        if reply.text:
            await message.edit_text(reply.text, reply_markup=reply.buttons)
        else:
            await message.edit_reply_markup(reply_markup=reply.buttons)
