"""What a Reader of identify.py may call in its process, for tests: files that hang it, or crash it, by their names."""

import os
import time
from pathlib import Path

from answering.clip import Question, read_question


def hang_or_crash(source: str, draft: int | None) -> Question:
    name = Path(source).name
    if name.startswith("hang"):
        time.sleep(600)
    if name.startswith("crash"):
        os._exit(11)
    return read_question(source, draft)
