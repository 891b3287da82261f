"""console"""

import contextlib
import functools
import os
import sys
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: shown on one line, without a traceback. code: 2 usage, 1 work that failed."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


def one_line_errors(main):
    """Make main(argv) report UserError, OSError and Ctrl-C on one line and return an exit code."""
    script = Path(main.__globals__["__file__"]).name

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):  # names and titles of any alphabet, whatever the terminal's
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        try:
            code = main(argv) or 0
            sys.stdout.flush()  # a full disk or a closed pipe shows here, not after our last word
            return code
        except BrokenPipeError:  # the reader of our pipe went away, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except UserError as error:
            text, code = f"error: {' '.join(str(error).split())}", error.code
        except OSError as error:
            text, code = f"error: {error.filename or ''}: {error.strerror or error}".replace(": : ", ": "), 1
        except KeyboardInterrupt:
            text, code = "stopped", 130
        print(f"{script}: {text}", file=sys.stderr)
        return code

    return wrapper


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
