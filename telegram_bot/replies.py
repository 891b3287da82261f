"""What the bot replies, and how that is sent: as a message, in place of one of its messages, or as a guest."""

import contextlib
import io
from dataclasses import dataclass

from aiogram import exceptions, types
from aiogram.types import InlineKeyboardMarkup, Message
from PIL import Image

MAX_CAPTION = 1024  # letters below a photo
MAX_NOTE = 190  # letters of the note that a pressed button shows
# the message is gone or unchanged, the bot was blocked, or the group is another one now, with other messages
UNDELIVERABLE = (exceptions.TelegramBadRequest, exceptions.TelegramForbiddenError, exceptions.TelegramMigrateToChat)


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
    to = types.ReplyParameters(message_id=message.message_id, allow_sending_without_reply=True)
    topic = message.direct_messages_topic  # of a channel
    where = {"reply_parameters": to, "direct_messages_topic_id": topic.topic_id if topic else None}
    if reply.still:
        photo = types.BufferedInputFile(reply.still, "still.jpg")
        caption = reply.text[:MAX_CAPTION]
        with contextlib.suppress(exceptions.TelegramBadRequest):  # no photos in this group, or no picture any more
            await message.answer_photo(photo, caption=caption, has_spoiler=spoiler, reply_markup=reply.buttons, **where)
            return
    await message.answer(reply.text, reply_markup=reply.buttons, **where)


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


def blank_still() -> bytes:
    """A grey JPEG, where a still is missing or not to be shown."""
    packed = io.BytesIO()
    Image.new("RGB", (200, 112), "#808080").save(packed, "JPEG")
    return packed.getvalue()


async def append_line(message: Message, line: str, buttons: InlineKeyboardMarkup | None) -> None:
    """Put a line below the words of a message of ours, and these buttons in place of its own."""
    with contextlib.suppress(*UNDELIVERABLE):
        if message.caption:
            await message.edit_caption(caption=f"{message.caption}\n\n{line}"[:MAX_CAPTION], reply_markup=buttons)
        elif message.text:
            await message.edit_text(f"{message.text}\n\n{line}", reply_markup=buttons)
