"""What a ReadingPool may call in its process, for tests: files that hang it, or crash it, by their names."""

import io
import os
import time
from pathlib import Path

from PIL import Image

from answering.clip import Question, read_question
from answering.stills import Still
from filter import examine
from scrape import check_image


def be_strange(name: str) -> None:
    """Hang or crash, if a file's name asks for it."""
    if name.startswith("hang"):
        time.sleep(600)
    if name.startswith("crash"):
        os._exit(11)


def hang_or_crash(source: str, draft: int | None) -> Question:
    be_strange(Path(source).name)
    return read_question(source, draft)


def examine_or_hang(still: Still) -> tuple:
    be_strange(still.path.name)
    return examine(still)


def check_or_hang(data: bytes) -> tuple[bytes, str]:
    """As check_image of scrape.py, which a picture of one pixel hangs."""
    if Image.open(io.BytesIO(data)).size == (1, 1):
        time.sleep(600)
    return check_image(data)
