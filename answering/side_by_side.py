"""Work on many files side by side, each in a process of its own: one that crashes or hangs costs that file alone.

Decoders are C that reads what others wrote. The parent decodes nothing; it hears how far each process is, kills one
that stands still, and alone writes what is kept.
"""

import errno
import functools
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from answering.console import UserError, format_clock, one_line

STALLED = 300.0  # seconds without progress, after which a process is killed
TICK = 0.2  # seconds between two looks at the processes
DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
}  # these end the whole run: the next file would meet them too


@dataclass
class Job:
    """What a process is to do, and how far it is."""

    argument: object  # for the function that does it; can be pickled
    about: object = None  # what the parent knows of it
    size: int = 0  # bytes, for the share that is done
    seconds: float = 0.0  # of film, done
    duration: float = 0.0  # seconds of film, 0.0 where it is not known
    started: float = 0.0  # time.monotonic() when its process began with it, as far as was heard
    heard: float = -1.0  # what its process last said of the seconds, -1 before it began
    changed: float = 0.0  # when it said something else than before
    slot: int = 0  # where its process writes how far it is


# ------------------------------------------------------------------------------------------------ in a process

shared = None  # double [2 x processes]: seconds done and duration, by slot


def start_process(numbers) -> None:
    """Ctrl-C is for the parent, who stops the processes."""
    global shared
    shared = numbers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def report(slot: int, seconds: float, duration: float) -> None:
    """Tell the parent how far the film of this slot is; ends the process if the parent was killed."""
    if not multiprocessing.parent_process().is_alive():
        os._exit(1)
    shared[2 * slot] = seconds
    shared[2 * slot + 1] = duration


def do_job(work: Callable, argument: object, slot: int):
    """work(argument, report). What it raises becomes a UserError, but for a full disk."""
    report(slot, 0.0, 0.0)
    try:
        return work(argument, functools.partial(report, slot))
    except UserError:
        raise
    except MemoryError:
        raise UserError("not enough memory for it") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise UserError(f"{type(error).__name__}: {str(error)[:200]}") from None


# ------------------------------------------------------------------------------------------------ in the parent


class SideBySide:
    """Runs work(argument, report) for jobs, in so many processes; report(seconds, duration) tells how far it is."""

    def __init__(self, work: Callable, processes: int):
        self.work = work
        self.processes = processes
        self.waiting: deque[Job] = deque()  # may grow while results are taken
        self.running: dict = {}  # future: its job

    def results(self, watch: Callable[[list[Job]], None]) -> Iterator[tuple[Job, object]]:
        """(Job, what work gave or the UserError that it raised), as they end. watch: is called with those under way.

        Raises OSError where a disk is full.
        """
        context = multiprocessing.get_context("spawn")  # a fork would copy locks of our threads
        numbers = context.RawArray("d", 2 * self.processes)  # no lock that a crash could keep
        pool = ProcessPool(self.processes, initializer=start_process, initargs=(numbers,), context=context)
        try:
            while self.waiting or self.running:
                self.start_jobs(pool, numbers)
                done, _ = wait(self.running, timeout=TICK, return_when=FIRST_COMPLETED)
                self.look(numbers)
                watch(list(self.running.values()))
                for future in done:
                    yield self.running.pop(future), self.result_of(future)
        finally:
            pool.stop()  # kills what still runs
            pool.join()

    def start_jobs(self, pool: ProcessPool, numbers) -> None:
        """Give a job to each process that has none."""
        while self.waiting and len(self.running) < self.processes:
            job = self.waiting.popleft()
            job.slot = min(set(range(self.processes)) - {other.slot for other in self.running.values()})
            job.started = job.changed = time.monotonic()
            numbers[2 * job.slot] = -1.0
            numbers[2 * job.slot + 1] = 0.0
            self.running[pool.schedule(do_job, (self.work, job.argument, job.slot))] = job

    def look(self, numbers) -> None:
        """How far each job is; one that stands still is killed."""
        for future, job in self.running.items():
            heard = numbers[2 * job.slot]
            now = time.monotonic()
            if heard != job.heard:
                if job.heard < 0:
                    job.started = now
                job.heard = heard
                job.seconds = max(0.0, heard)
                job.duration = numbers[2 * job.slot + 1]
                job.changed = now
            elif job.heard >= 0 and now - job.changed > STALLED:
                future.cancel()

    def result_of(self, future):
        """What a job gave, or the UserError that says why it did not."""
        try:
            return future.result()
        except CancelledError:
            return UserError(f"its decoder stood still for {STALLED:.0f} s and was stopped")
        except ProcessExpired as error:
            return UserError(f"its decoder crashed ({describe_exit(error.exitcode)})")
        except UserError as error:
            return error


def describe_exit(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        return signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    return f"exit code {code}"


def count_bytes(parts: tuple[Path, ...]) -> int:
    """Size of files; 0 where they are gone."""
    try:
        return sum(part.stat().st_size for part in parts)
    except OSError:
        return 0


# ------------------------------------------------------------------------------------------------ what is shown


class FilmBar:
    """A progress bar by films and seconds of film, on a terminal; elsewhere only the lines that say() prints."""

    def __init__(self, films: int, size: int):
        """size: bytes of all files; how long they play is known only when they are opened."""
        self.films = films
        self.films_done = 0
        self.bytes_done = 0
        self.seconds_done = 0.0
        self.start = time.perf_counter()
        self.bar = open_bar(max(1, size))

    def __enter__(self) -> "FilmBar":
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def watch(self, running: list[Job]) -> None:
        """Show how far all are, with those under way."""
        if self.bar is None:
            return
        size = self.bytes_done
        seconds = self.seconds_done
        for job in running:
            seconds += job.seconds
            if job.duration:
                size += job.size * min(1.0, job.seconds / job.duration)
        rate = seconds / max(1e-9, time.perf_counter() - self.start)
        self.bar.n = min(size, self.bar.total)
        films = f"{self.films_done}/{self.films} films"
        self.bar.set_description_str(f"{films}, {format_clock(seconds)} of film, {rate:.0f}x real time")

    def count(self, job: Job, *, film_done: bool) -> None:
        """Note a job that has ended."""
        self.bytes_done += job.size
        self.seconds_done += job.seconds
        self.films_done += film_done

    def say(self, text: str, *, error: bool = False) -> None:
        """A line above the bar."""
        text = one_line(text)
        stream = sys.stderr if error else sys.stdout
        if self.bar is None:
            print(text, file=stream, flush=True)
        else:
            self.bar.write(text, file=stream)


def open_bar(size: int):
    """A tqdm bar; None where stderr is no terminal, or tqdm is not installed."""
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    layout = "{desc} {percentage:3.0f}%|{bar}| {remaining} left"
    return tqdm(total=size, bar_format=layout, smoothing=0, leave=False)


def run_side_by_side(work: Callable, jobs: list[Job], processes: int, bar: FilmBar, take: Callable) -> None:
    """Do all jobs, and take(job, result, waiting) each result as it comes; waiting may get a further job."""
    pool = SideBySide(work, processes)
    pool.waiting.extend(jobs)
    with closing(pool.results(bar.watch)) as results:
        for job, result in results:
            take(job, result, pool.waiting)
