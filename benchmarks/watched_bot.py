"""bot.py with a watcher on its event loop: at the end the log says for how long the loop was ever blocked.

benchmarks/telegram.py starts it in place of bot.py, with the same arguments: python -P benchmarks/watched_bot.py ...
Without -P the modules of this folder could be taken for packages of the same names.
"""

import asyncio
import contextlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import bot
from telegram_bot.updates import log

PAUSE = 0.005  # seconds between two looks


async def watch_loop() -> None:
    """Until it is cancelled; then it logs the longest block."""
    longest = 0.0
    try:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(PAUSE)
            longest = max(longest, time.perf_counter() - start - PAUSE)
    finally:
        log.warning("longest block of the event loop: %.1f ms", 1000 * longest)


def watched(serve):
    """bot.serve, watched from its start to its end."""

    async def serve_watched(*args) -> None:
        watcher = asyncio.create_task(watch_loop())
        try:
            await serve(*args)
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    return serve_watched


if __name__ == "__main__":
    sys.modules["__main__"].__file__ = None  # as in bot.py: else the worker's process loads this script, too
    bot.serve = watched(bot.serve)
    sys.exit(bot.main())
