"""Draw a chat with the bot: real stills go through the real handlers and a real model, and what they reply is drawn.

python docs/draw_chat.py STILL... --model export --index index --out docs/chat.png
"""

import argparse
import asyncio
import io
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import matplotlib
from aiogram import Bot, methods
from aiogram.client.session.base import BaseSession
from aiogram.types import Chat, File, Message, Update, User
from PIL import Image, ImageDraw, ImageFont, ImageOps

sys.path.insert(0, str(Path(__file__).parent.parent))
from telegram_bot import handlers
from telegram_bot.database import open_base
from telegram_bot.worker import Worker

FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
WIDTH, PICTURE, LINE = 440, 300, 19  # pixels
BACK, MINE, THEIRS, BUTTON = "#cfdccc", "#e7fbd4", "#ffffff", "#9fb3a0"


class Recorder(BaseSession):
    """Telegram, as far as a chat needs it. said: the bot's messages, as (words, JPEG or None, rows of buttons)."""

    def __init__(self, files: dict[str, bytes]):
        super().__init__()
        self.files, self.said = files, []

    async def make_request(self, bot, method, timeout=None):
        if isinstance(method, methods.GetMe):
            return User(id=1, is_bot=True, first_name="Film bot", username="film_bot")
        if isinstance(method, methods.GetFile):
            return File(file_id=method.file_id, file_unique_id="-", file_path=method.file_id)
        if isinstance(method, (methods.SendMessage, methods.SendPhoto)):
            photo = method.photo.data if isinstance(method, methods.SendPhoto) else None
            rows = method.reply_markup.inline_keyboard if method.reply_markup else []
            words = method.caption if photo else method.text
            self.said.append((words, photo, [[button.text for button in row] for row in rows]))
            return Message(message_id=1, date=0, chat=Chat(id=7, type="private"))
        return True

    async def stream_content(self, url, **_):
        yield self.files[url.rsplit("/", 1)[1]]

    async def close(self):
        pass


async def talk(stills: list[Path], model: str, index: str, language: str) -> list[tuple]:
    """What the bot says to each still."""
    session, worker = Recorder({str(k): path.read_bytes() for k, path in enumerate(stills)}), Worker(model, index=index)
    telegram, texts = Bot("1:drawn", session=session), handlers.load_texts(Path("titles.csv"))
    try:
        with tempfile.TemporaryDirectory() as folder:
            app = handlers.App(open_base(Path(folder, "bot.sqlite")), "1:drawn", worker, texts, 10)
            app.set_description(*await worker.start())
            dispatcher = handlers.make_dispatcher(app)
            for k in range(len(stills)):
                user = {"id": 7, "is_bot": False, "first_name": "Ann", "language_code": language}
                message = {"message_id": k + 1, "date": int(time.time()), "chat": {"id": 7, "type": "private"}}
                photo = [{"file_id": str(k), "file_unique_id": "-", "width": 1, "height": 1}]
                update = {"update_id": k + 1, "message": message | {"from": user, "photo": photo}}
                await dispatcher.feed_update(telegram, Update.model_validate(update, context={"bot": telegram}))
    finally:
        await worker.stop()
    return session.said


def bubble(words: str, picture: bytes | None, rows: list[list[str]], colour: str) -> Image.Image:
    """A message as clients show it."""
    font, lines = ImageFont.truetype(FONT, 13), [line for part in words.split("\n") for line in textwrap.wrap(part, 44)]
    image = ImageOps.contain(Image.open(io.BytesIO(picture)).convert("RGB"), (PICTURE, PICTURE)) if picture else None
    top = 8 + (image.height + 6 if image else 0)
    body = top + LINE * len(lines) + (6 if lines else 2)
    drawn = Image.new("RGB", (PICTURE + 16, body + 32 * len(rows)), BACK)
    draw = ImageDraw.Draw(drawn)
    draw.rounded_rectangle((0, 0, drawn.width - 1, body - 1), 10, colour)
    if image:
        drawn.paste(image, ((drawn.width - image.width) // 2, 8))
    draw.multiline_text((10, top), "\n".join(lines), "#202020", font, spacing=LINE - 15)
    for k, row in enumerate(rows):
        wide = drawn.width / len(row)
        for place, text in enumerate(row):
            box = (place * wide + 1, body + 32 * k + 3, (place + 1) * wide - 2, body + 32 * k + 30)
            draw.rounded_rectangle(box, 6, BUTTON)
            draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), text, "white", font, anchor="mm")
    return drawn


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stills", nargs="+", type=Path, metavar="STILL")
    parser.add_argument("--model", default="export")
    parser.add_argument("--index", default="index")
    parser.add_argument("--language", default="en")
    parser.add_argument("--out", type=Path, default=Path("docs/chat.png"))
    args = parser.parse_args(argv)
    said = asyncio.run(talk(args.stills, args.model, args.index, args.language))
    columns = []
    for still, answer in zip(args.stills, said, strict=True):
        mine, theirs = bubble("", still.read_bytes(), [], MINE), bubble(*answer, THEIRS)
        column = Image.new("RGB", (WIDTH, mine.height + theirs.height + 36), BACK)
        column.paste(mine, (WIDTH - mine.width - 12, 12))
        column.paste(theirs, (12, mine.height + 24))
        columns.append(column)
    sheet = Image.new("RGB", (WIDTH * len(columns), max(column.height for column in columns)), BACK)
    for place, column in enumerate(columns):
        sheet.paste(column, (place * WIDTH, 0))
    sheet.quantize(200, dither=Image.Dither.NONE).save(args.out, optimize=True)


if __name__ == "__main__":
    sys.modules["__main__"].__file__ = None  # else the model's process loads this script
    main()
