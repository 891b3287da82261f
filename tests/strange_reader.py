"""What a ReadingPool may call in its process, for tests: files that hang it, or crash it, by their names."""

import os
import time
from pathlib import Path

from answering.clip import Question, read_question
from answering.stills import Still
from filter import examine


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
