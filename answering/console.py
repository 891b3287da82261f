"""What all scripts do alike on the console and on disk: fail in one line, and write files whole or not at all."""

import contextlib
import functools
import os
import sys
from pathlib import Path

from answering.telemetry import turn_off_telemetry


class UserError(Exception):
    """Something the user can mend: shown on one line, without a traceback. code: 2 usage, 1 work that failed."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


def one_line_errors(main):
    """Make main(argv) report UserError, OSError and Ctrl-C on one line of stderr and return an exit code."""
    script = Path(main.__globals__["__file__"]).name

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> int:
        _print_utf_8()
        turn_off_telemetry()
        try:
            code = main(argv) or 0
            sys.stdout.flush()  # a full disk or a closed pipe shows here, not after our last word
            return code
        except BrokenPipeError:  # the reader of our pipe went away, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except UserError as error:
            text = f"error: {one_line(error)}"
            code = error.code
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            text = f"error: {place}{error.strerror or error}"
            code = 1
        except KeyboardInterrupt:
            text = "stopped"
            code = 130
        print(f"{script}: {text}", file=sys.stderr)
        return code

    return wrapper


def _print_utf_8() -> None:
    """Names and titles of any alphabet can be printed, whatever the terminal's encoding."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def count_of(number: int, noun: str) -> str:
    """1 film, 2,000 films."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(text: object) -> str:
    """A text whose line feeds, which names of files may hold, are spaces."""
    return " ".join(str(text).split())


def format_clock(seconds: float) -> str:
    """1:02:03."""
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb", **kwargs):
    """Open a temporary neighbour of path for writing and rename it at the end, so that path is whole or not there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
