"""Draw a chat with the bot: real stills go through the real handlers and a real model, and what they reply is drawn.

python docs/draw_chat.py STILL... --model export --index index.sqlite --out docs/chat.png

A column a still; STILL+STILL is a chat in which the second one is sent in reply to the answer to the first.
"""

import argparse
import asyncio
import io
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from aiogram import Bot, methods
from aiogram.client.session.base import BaseSession
from aiogram.types import Chat, File, Message, Update, User
from PIL import Image, ImageDraw, ImageFont, ImageOps

sys.path.insert(0, str(Path(__file__).parent.parent))
from telegram_bot.app import App
from telegram_bot.database import open_base
from telegram_bot.handlers import make_dispatcher
from telegram_bot.wording import load_texts
from telegram_bot.worker import Worker

FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
TOKEN = "1:drawn"  # of no bot
# pixels
WIDTH = 440  # of a chat
PICTURE = 300  # the longer side of a picture
LINE = 19  # height of a line of words
ROW = 32  # height of a row of buttons


@dataclass(frozen=True)
class Colours:
    """Of a client."""

    background: str
    question: str
    answer: str
    button: str
    label: str  # of a button
    words: str


LIGHT = Colours("#cfdccc", "#e7fbd4", "#ffffff", "#5f7a60", "#ffffff", "#202020")
DARK = Colours("#0f1a21", "#2b5278", "#182533", "#33475a", "#f2f6f9", "#f2f6f9")


@dataclass
class Bubble:
    """A message of the chat."""

    words: str
    picture: bytes | None  # as a file of an image format
    buttons: list[list[str]]  # the words on them, by rows


class Recorder(BaseSession):
    """Telegram, as far as a chat needs it: gives files by their ids, keeps what the bot says."""

    def __init__(self, files: dict[str, bytes]):
        super().__init__()
        self.files = files
        self.said: list[Bubble] = []
        self.last: Message | None = None  # that the bot sent

    async def make_request(self, bot, method, timeout=None):
        if isinstance(method, methods.GetMe):
            return User(id=1, is_bot=True, first_name="Film bot", username="film_bot")
        if isinstance(method, methods.GetFile):
            return File(file_id=method.file_id, file_unique_id="-", file_path=method.file_id)
        if isinstance(method, (methods.SendMessage, methods.SendPhoto)):
            self.said.append(read_bubble(method))
            me = User(id=1, is_bot=True, first_name="Film bot")
            chat = Chat(id=7, type="private")
            self.last = Message(
                message_id=1, date=0, chat=chat, from_user=me, text="?", reply_markup=method.reply_markup
            )
            return self.last
        return True

    async def stream_content(self, url, **_):
        yield self.files[url.rsplit("/", 1)[1]]

    async def close(self):
        pass


def read_bubble(method: methods.SendMessage | methods.SendPhoto) -> Bubble:
    rows = method.reply_markup.inline_keyboard if method.reply_markup else []
    buttons = [[button.text for button in row] for row in rows]
    if isinstance(method, methods.SendPhoto):
        return Bubble(method.caption, method.photo.data, buttons)
    return Bubble(method.text, None, buttons)


def photo_update(number: int, language: str, asked: Message | None = None) -> dict:
    """A user's photo, whose file has this number; asked: the bot's message that it replies to."""
    photo = {"file_id": str(number), "file_unique_id": str(number), "width": 1, "height": 1}
    message = {
        "message_id": number + 1,
        "date": int(time.time()),
        "chat": {"id": 7, "type": "private"},
        "from": {"id": 7, "is_bot": False, "first_name": "Ann", "language_code": language},
        "photo": [photo],
    }
    if asked:
        message["reply_to_message"] = asked.model_dump(exclude_none=True)
    return {"update_id": number + 1, "message": message}


async def talk(chats: list[list[Path]], model: str, index: str, language: str) -> list[list[Bubble]]:
    """What the bot says to each still of each chat."""
    files = {}
    said = []
    session = Recorder(files)
    telegram = Bot(TOKEN, session=session)
    worker = Worker(model, index=index)
    try:
        with tempfile.TemporaryDirectory() as folder:
            texts = load_texts(Path("titles.csv"))
            app = App(open_base(Path(folder, "bot.sqlite")), TOKEN, worker, texts, queue=10)
            app.set_description(await worker.start())
            dispatcher = make_dispatcher(app)
            for stills in chats:
                session.said = []
                session.last = None
                for still in stills:
                    number = len(files)
                    files[str(number)] = still.read_bytes()
                    raw = photo_update(number, language, session.last)
                    await dispatcher.feed_update(telegram, Update.model_validate(raw, context={"bot": telegram}))
                said.append(session.said)
    finally:
        await worker.stop()
    return said


def draw_bubble(bubble: Bubble, colour: str, colours: Colours) -> Image.Image:
    """A message as clients show it."""
    font = ImageFont.truetype(FONT, 13)
    lines = [line for part in bubble.words.split("\n") for line in wrap(part, font, PICTURE - 4)]
    image = None
    top = 8  # of the words
    if bubble.picture:
        image = Image.open(io.BytesIO(bubble.picture)).convert("RGB")
        image = ImageOps.contain(image, (PICTURE, PICTURE))
        top += image.height + 6
    body = top + LINE * len(lines) + (6 if lines else 2)
    drawn = Image.new("RGB", (PICTURE + 16, body + ROW * len(bubble.buttons)), colours.background)
    draw = ImageDraw.Draw(drawn)
    draw.rounded_rectangle((0, 0, drawn.width - 1, body - 1), 10, colour)
    if image:
        drawn.paste(image, ((drawn.width - image.width) // 2, 8))
    draw.multiline_text((10, top), "\n".join(lines), colours.words, font, spacing=LINE - 15)
    for place, row in enumerate(bubble.buttons):
        draw_buttons(draw, row, body + ROW * place, drawn.width, font, colours)
    return drawn


def wrap(text: str, font, width: int) -> list[str]:
    """Lines of at most so many pixels."""
    lines = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def draw_buttons(draw: ImageDraw.ImageDraw, row: list[str], top: int, width: int, font, colours: Colours) -> None:
    """A row of buttons, all of one width."""
    each = width / len(row)
    for place, text in enumerate(row):
        left, right = place * each + 1, (place + 1) * each - 2
        draw.rounded_rectangle((left, top + 3, right, top + 30), 6, colours.button)
        draw.text(((left + right) / 2, top + 16.5), text, colours.label, font, anchor="mm")


def draw_chats(chats: list[list[Path]], said: list[list[Bubble]], colours: Colours) -> Image.Image:
    """A column a chat: its stills, and what the bot says to each."""
    columns = [draw_column(stills, answers, colours) for stills, answers in zip(chats, said, strict=True)]
    sheet = Image.new("RGB", (WIDTH * len(columns), max(column.height for column in columns)), colours.background)
    for place, column in enumerate(columns):
        sheet.paste(column, (place * WIDTH, 0))
    return sheet


def draw_column(stills: list[Path], answers: list[Bubble], colours: Colours) -> Image.Image:
    """A chat: the user's stills to the right, the bot's answers to the left."""
    bubbles = []
    for still, answer in zip(stills, answers, strict=True):
        question = draw_bubble(Bubble("", still.read_bytes(), []), colours.question, colours)
        bubbles.append((WIDTH - question.width - 12, question))
        bubbles.append((12, draw_bubble(answer, colours.answer, colours)))
    column = Image.new("RGB", (WIDTH, sum(bubble.height + 12 for _, bubble in bubbles) + 12), colours.background)
    top = 12
    for left, bubble in bubbles:
        column.paste(bubble, (left, top))
        top += bubble.height + 12
    return column


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chats", nargs="+", metavar="STILL", help="a still, or several with + between")
    parser.add_argument("--dark", action="store_true", help="as clients look at night")
    parser.add_argument("--model", default="export")
    parser.add_argument("--index", default="index")
    parser.add_argument("--language", default="en")
    parser.add_argument("--out", type=Path, default=Path("docs/chat.png"))
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    chats = [[Path(still) for still in chat.split("+")] for chat in args.chats]
    said = asyncio.run(talk(chats, args.model, args.index, args.language))
    sheet = draw_chats(chats, said, DARK if args.dark else LIGHT)
    sheet.quantize(200, dither=Image.Dither.NONE).save(args.out, optimize=True)


if __name__ == "__main__":
    sys.modules["__main__"].__file__ = None  # else the model's process loads this script
    main()
