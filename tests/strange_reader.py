"""What a Reader of identify.py may call in its process, for tests: files that hang it, or crash it, by their names."""

import os
import time

from answering.clip import Question, read_question


def hang_or_crash(source: str, draft: int | None) -> Question:
    if "hang" in source:
        time.sleep(600)
    if "crash" in source:
        os._exit(11)
    return read_question(source, draft)
