"""python -m pytest tests/test_adding.py"""

import os
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_frame, write_video
from test_index import ask, titles, write_film, write_model

import index
from answering import side_by_side
from answering.console import UserError
from answering.offers import Offers
from answering.side_by_side import Job, SideBySide
from answering.store import Collection

ROOT = Path(__file__).parent.parent
SIZE = (160, 90)


def write_clip(path: Path, film: int, shots: range = range(4), rate: int = 1) -> Path:
    """A video of one frame a second, each a shot of its own."""
    return write_video(path, [np.asarray(draw_frame(film, shot, 0, SIZE)) for shot in shots], rate=rate)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "export", 8)


@pytest.fixture
def add(model, tmp_path, capsys):
    """Runs index.py add and returns (exit code, what it printed, its errors)."""

    def run(*sources: Path, flags: tuple = ()) -> tuple[int, str, str]:
        command = ["add", *map(str, sources), "--model", str(model), "--index", str(tmp_path / "index.sqlite")]
        code = index.main([*command, *map(str, flags)])
        text = capsys.readouterr()
        return code, text.out, text.err

    return run


def films_of(tmp_path: Path) -> dict:
    return Collection(tmp_path / "index.sqlite").state().films


def test_a_shelf_of_videos_and_stills_and_what_is_left_alone(add, model, tmp_path):
    shelf = tmp_path / "films"
    write_clip(shelf / "Alien.1979.1080p.mkv", 0, range(8))
    write_clip(shelf / "Heat (1995)" / "movie.mkv", 1, range(8))
    black = np.zeros((90, 160, 3), np.uint8)
    last = np.asarray(draw_frame(2, 5, 0, SIZE))
    write_video(shelf / "Dark (2017).mkv", [black, black, last, last], rate=1)
    write_film(shelf / "Stills (2001)", 3, range(3))
    (shelf / "Broken (2002).mkv").write_bytes(b"no video" * 1000)
    code, out, err = add(shelf)
    assert code == 1 and err.count("error") == 1 and "Broken (2002)" in err and "Traceback" not in err
    films = films_of(tmp_path)
    assert sorted(films) == ["Alien (1979)", "Dark (2017)", "Heat (1995)", "Stills (2001)"]
    assert (films["Alien (1979)"].stills, films["Alien (1979)"].seconds) == (8, 8.0)
    assert (films["Dark (2017)"].stills, films["Dark (2017)"].stored) == (4, 2)  # the black ones are left out
    (answer,) = ask(model, tmp_path / "index.sqlite", draw_frame(1, 6, 0, SIZE))
    proof = answer.candidates[0].evidence
    assert (proof.title, proof.file, proof.time_ms) == ("Heat (1995)", "movie.mkv", 6000)
    state = Collection(tmp_path / "index.sqlite").state()
    assert list(state.failed) == [str(shelf / "Broken (2002).mkv")]

    code, out, err = add(shelf)  # nothing is opened again
    assert code == 0 and "4 films unchanged" in out and "--retry" in err and err.count("\n") == 1
    code, out, err = add(shelf, flags=("--retry",))
    assert code == 1 and "Broken (2002)" in err
    write_clip(shelf / "Broken (2002).mkv", 4)
    code, out, err = add(shelf)
    assert code == 0 and "[1/1] Broken (2002): 4 of 4" in out and not err
    assert not Collection(tmp_path / "index.sqlite").state().failed


def test_a_copy_in_part_or_shorter_never_takes_the_place_of_a_whole_one(add, tmp_path):
    shelf = tmp_path / "films"
    file = write_clip(shelf / "Film (2001).mkv", 0, range(20))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    code, out, _ = add(shelf)
    partial = films_of(tmp_path)["Film (2001)"]
    assert code == 0 and "in part: read up to 0:00:" in out and partial.partial and 5 < partial.stored < 15
    assert "the rest is damaged" in films_of(tmp_path)["Film (2001)"].partial
    file.write_bytes(whole)
    code, _, err = add(shelf, flags=("--skip-start", 100))
    assert code == 1 and "no frame of it is left (see --skip-start and --skip-end)" in err
    code, out, _ = add(shelf)
    assert code == 0 and "20 of 20 frames stored, updated" in out
    whole_film = films_of(tmp_path)["Film (2001)"]
    assert whole_film.partial is None
    file.write_bytes(whole[: len(whole) // 2])
    code, _, err = add(shelf)
    assert code == 1 and "0:00:20 that the index has stay" in err and films_of(tmp_path)["Film (2001)"] == whole_film
    write_clip(file, 0, range(9))
    code, _, err = add(shelf)
    assert code == 1 and "plays only 0:00:09" in err and films_of(tmp_path)["Film (2001)"] == whole_film


def test_of_several_encodings_a_broken_one_gives_way(add, tmp_path):
    shelf = tmp_path / "films"
    write_clip(shelf / "Film (2001).avi", 0, range(6))
    large = write_clip(shelf / "Film.2001.2160p.mkv", 0, range(6))
    with open(large, "r+b") as file:  # whole by its header
        file.seek(2000)
        file.write(os.urandom(large.stat().st_size - 2000))
        file.write(os.urandom(200_000))
    code, _, _ = add(shelf)
    film = films_of(tmp_path)["Film (2001)"]
    assert code == 0 and (film.stored, film.partial) == (6, None) and film.file.endswith(".avi")
    assert "1 film unchanged" in add(shelf)[1]


def test_titles_are_corrected_and_kept(add, model, tmp_path, capsys):
    shelf = tmp_path / "films"
    write_clip(shelf / "wrong name.mkv", 0)
    assert add(shelf)[0] == 0 and titles(tmp_path / "index.sqlite") == ["wrong name"]
    (tmp_path / "titles.csv").write_text("file,title\nwrong name.mkv,Right (2001)\n")
    code, out, _ = add(shelf, flags=("--titles", tmp_path / "titles.csv"))
    assert code == 0 and "wrong name: is Right (2001) now" in out and "1 film unchanged" in out
    assert titles(tmp_path / "index.sqlite") == ["Right (2001)"]
    code, out, _ = add(shelf)  # without the list, the title stays
    assert code == 0 and "1 film unchanged" in out and titles(tmp_path / "index.sqlite") == ["Right (2001)"]

    stills = write_film(tmp_path / "Old (1990)", 1, range(2))
    assert add(stills)[0] == 0
    place = ["--index", str(tmp_path / "index.sqlite")]
    collection = Collection(tmp_path / "index.sqlite")
    with collection.writing():
        Offers(collection).put("a.jpg", "Old (1990)", "pending", b"theirs")
    decomposed = unicodedata.normalize("NFD", "Amélie (2001)")
    assert index.main(["rename", "Old (1990)", decomposed, *place]) == 0
    assert "Amélie (2001)" in titles(tmp_path / "index.sqlite") and films_of(tmp_path)["Amélie (2001)"].year == 2001
    with collection.snapshot():
        assert Offers(collection).names() == [("a.jpg", "Amélie (2001)")]
    assert add(stills)[0] == 0 and "Old (1990)" not in titles(tmp_path / "index.sqlite")  # it goes by its new title
    assert index.main(["rename", "Right (2001)", "Amélie (2001)", *place]) == 2
    assert index.main(["rename", "Nobody", "Amélie (2001)", *place]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert index.main(["remove", decomposed, *place]) == 0
    assert titles(tmp_path / "index.sqlite") == ["Right (2001)"]


def test_a_film_keeps_its_title_when_a_longer_one_of_that_title_comes(add, tmp_path):
    shelf = tmp_path / "films"
    write_clip(shelf / "a" / "Film (2001).mkv", 0, range(6))
    add(shelf)
    first = films_of(tmp_path)["Film (2001)"]
    write_clip(shelf / "b" / "Film (2001).mkv", 1, range(9))
    code, out, _ = add(shelf)
    assert code == 0 and "Film, 9 s (2001): 9 of 9" in out and "1 film unchanged" in out
    assert films_of(tmp_path)["Film (2001)"].id == first.id  # it was not read again


def test_dry_run_opens_nothing(tmp_path, capsys):
    (tmp_path / "Alien (1979)").mkdir()
    (tmp_path / "Alien (1979)" / "movie.mkv").write_bytes(b"never looked at")
    assert index.main(["add", str(tmp_path), "--dry-run", "--model", "nowhere"]) == 0
    assert "movie.mkv  ->  Alien (1979)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--every", "2"], "--every-nth"),
        (["--every", "0"], "--every 0"),
        (["--max-gap", "-1"], "--max-gap -1"),
        (["--skip-end", "-3"], "--skip-end -3"),
        (["--model", "nowhere"], "export.py"),
    ],
)
def test_flags_that_cannot_be_heeded_are_one_line(add, tmp_path, flags, text):
    stills = write_film(tmp_path / "Film (1990)", 1, range(1), 2)
    code, _, err = add(stills, flags=flags)
    assert code == 2 and text in err and err.count("\n") == 1


def test_what_is_skipped_and_an_even_grid(add, tmp_path):
    write_clip(tmp_path / "films" / "Film (2001).mkv", 0, range(12))
    flags = ("--every", "2", "--skip-start", "3", "--skip-end", "3")
    assert add(tmp_path / "films", flags=flags)[0] == 0
    collection = Collection(tmp_path / "index.sqlite")
    with collection.snapshot():
        time_ms = collection.read_times(collection.film("Film (2001)"))[:, 0]
    assert time_ms.tolist() == [4000, 6000, 8000]


# ------------------------------------------------------------------------------------ processes and kills


def behave(how: str, report) -> str:
    """What a decoder may do."""
    report(1.0, 10.0)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        signal.pause()
    if how == "mend":
        raise UserError("mend it")
    if how == "bug":
        raise KeyError("bug")
    return how


def test_what_crashes_or_hangs_costs_itself_alone(monkeypatch):
    monkeypatch.setattr(side_by_side, "STALLED", 3.0)
    pool = SideBySide(behave, 2)
    pool.waiting.extend(Job(how) for how in ("crash", "fine", "hang", "mend", "bug", "good"))
    results = {}
    for job, result in pool.results(lambda running: None):
        results[job.argument] = result if isinstance(result, str) else str(result)
    assert results == {
        "fine": "fine",
        "good": "good",
        "crash": "its decoder crashed (SIGSEGV)",
        "hang": "its decoder stood still for 3 s and was stopped",
        "mend": "mend it",
        "bug": "KeyError: 'bug'",
    }


def start_add(shelf: Path, model: Path, place: Path) -> subprocess.Popen:
    """index.py add in a process of its own, with pipes."""
    command = [sys.executable, "index.py", "add", str(shelf), "--model", str(model), "--index", str(place)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--processes", "1"], cwd=ROOT, **pipes)


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{process}").exists() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_stopped_it_goes_on_at_the_film_in_hand(add, model, tmp_path, sign):
    shelf = tmp_path / "films"
    for film in range(3):
        write_clip(shelf / f"Film {film} (200{film}).mkv", film, range(3 if film == 0 else 300))
    process = start_add(shelf, model, tmp_path / "index.sqlite")
    assert process.stdout.readline().startswith("[1/3] Film 0 (2000)")
    workers = children_of(process.pid)
    process.send_signal(sign)
    _, err = process.communicate()
    if sign == signal.SIGINT:
        assert (process.returncode, err) == (130, "index.py: stopped\n")
    wait_until_gone(workers)
    assert titles(tmp_path / "index.sqlite")[0] == "Film 0 (2000)"
    code, out, _ = add(shelf)
    assert code == 0 and "unchanged" in out and len(titles(tmp_path / "index.sqlite")) == 3
    assert index.main(["check", "--index", str(tmp_path / "index.sqlite")]) == 0
