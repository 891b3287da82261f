"""Read files that others wrote in processes of their own: one that hangs there, or crashes it, costs itself alone.

Decoders are C. What hangs in one can't be stopped in a thread, and a thread that hangs keeps its process from ending.
"""

import atexit
import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as TookTooLong

from answering.console import UserError

MAX_SECONDS = 60.0  # for one file
AHEAD = 8  # files that are read before they are asked for


class ReadingPool:
    """Calls a function of a module in processes, which live as long as the pool or this process."""

    def __init__(self, function: Callable, processes: int = 1):
        """Starts the first process. Raises UserError without pebble."""
        try:
            from pebble import ProcessPool
        except ImportError:
            raise UserError("pebble is needed to read files: pip install pebble", 2) from None
        self.function = function
        # a fork would copy locks of our threads; what an initializer takes does not count as time for a file
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPool(processes, initializer=start_process, initargs=(function,), context=spawn)
        self.pool.schedule(start_process, [function])  # else it would start with the first file

    def __enter__(self) -> "ReadingPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, whatever they do."""
        self.pool.stop()
        self.pool.join()

    def read(self, *arguments):
        """function(*arguments). Raises UserError for what can't be read, or not in time."""
        return result_of(self.schedule(arguments))

    def read_all(self, items: Iterable, *others, ahead: int = AHEAD) -> Iterator:
        """For each of the items, in order, function(item, *others) or the UserError that it ended with."""
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(self.schedule((item, *others)))
            if len(waiting) > ahead:
                yield result_or_error(waiting.popleft())
        while waiting:
            yield result_or_error(waiting.popleft())

    def schedule(self, arguments: tuple) -> Future:
        try:
            return self.pool.schedule(self.function, arguments, timeout=MAX_SECONDS)
        except RuntimeError:  # pebble's
            raise UserError("was not read, for the run was stopped") from None


@functools.cache
def keep_pool(function: Callable, processes: int) -> ReadingPool:
    """One that lives as long as this process, for what is called film by film: to start it takes a second."""
    pool = ReadingPool(function, processes)
    atexit.register(pool.close)
    return pool


def result_of(future: Future):
    """What was read. Raises UserError."""
    try:
        return future.result()
    except TookTooLong:
        raise UserError(f"took over {MAX_SECONDS:g} seconds to read") from None
    except MemoryError:
        raise UserError("takes more memory to read than there is") from None
    except CancelledError:
        raise UserError("was not read, for the run was stopped") from None
    except (OSError, RuntimeError) as error:  # pebble's for a process that ended
        raise UserError(f"can't be read ({type(error).__name__})") from None


def result_or_error(future: Future):
    """What was read, or the UserError of that."""
    try:
        return result_of(future)
    except UserError as error:
        return error


def start_process(function: Callable) -> None:
    """In a process, before any file: to name the function imports all that it needs. Ctrl-C is for the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not any(thread.name == "parent" for thread in threading.enumerate()):
        threading.Thread(target=end_with_parent, name="parent", daemon=True).start()


def end_with_parent() -> None:
    """End this process when its parent was killed, and could not end it."""
    multiprocessing.parent_process().join()
    os._exit(1)
