"""python -m pytest tests/test_learn.py"""

import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_frame
from PIL import Image
from telegram_server import TelegramServer
from test_index import write_film, write_model

import index
import learn
from answering.collection import Index
from answering.embedding import FilmRows
from answering.model import Identifier
from answering.store import USER_STILL_PREFIX, Collection
from telegram_bot import database

SECRET = "AAF-never_to_be-seen"
TOKEN = f"123456:{SECRET}"
TITLES = [f"Film {film} ({1990 + film})" for film in range(4)]


def encoded(image: Image.Image, quality: int = 85) -> bytes:
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=quality)
    return packed.getvalue()


class Home:
    """An index of four films, a bot's database, and the Telegram that has the users' pictures."""

    def __init__(self, folder: Path, server: TelegramServer):
        self.folder = folder
        self.server = server
        self.model = folder / "export"
        self.index = folder / "index.sqlite"
        self.base = database.open_base(folder / "bot.sqlite")

    def run(self, command: str, *arguments: str) -> int:
        return index.main([command, *arguments, "--index", str(self.index)])

    def learn(self, *arguments: str) -> int:
        where = ["--db", str(self.folder / "bot.sqlite"), "--sheet", str(self.folder / "learn.png")]
        where += ["--model", str(self.model), "--index", str(self.index), "--api-base", self.server.base]
        return learn.main([*where, *arguments])

    def confirm(self, name: str, film: str, picture: bytes | None, who: str | None = "ann", verdict="right") -> None:
        """A picture that a user sent, and what he said of it."""
        if picture is not None:
            self.server.files[name] = picture
        row = (f"id-{name}", time.time(), name, "movie", "[]", verdict, film, who)
        columns = "id, time, file_id, kind, candidates, verdict, film, who"
        self.base.execute(f"INSERT INTO answers ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def listed(self) -> list[list[str]]:
        path = self.folder / "learn.txt"
        return [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []

    def rows(self, title: str = TITLES[0]) -> FilmRows:
        collection = Collection(self.index)
        return collection.read_rows(collection.film(title))

    def names(self, title: str = TITLES[0]) -> list[str]:
        return self.rows(title).name.tolist()

    def theirs(self, title: str = TITLES[0]) -> int:
        return sum(name.startswith(USER_STILL_PREFIX) for name in self.names(title))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    write_model(folder / "export", 8)
    for film, title in enumerate(TITLES):
        write_film(folder / "raw" / title, film, range(6))
    command = ["add", str(folder / "raw"), "--model", str(folder / "export"), "--index", str(folder / "index.sqlite")]
    assert index.main(command) == 0
    return folder


@pytest.fixture
def home(built, tmp_path, monkeypatch):
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", TOKEN)
    with TelegramServer(TOKEN, {}) as server:
        home = Home(Path(shutil.copytree(built, tmp_path / "home")), server)
        yield home
        home.base.close()


def shot(number: int, film: int = 0) -> bytes:
    """A scene of a film that the index does not hold."""
    return encoded(draw_frame(film, 40 + number, 0, (480, 272)))


def test_the_owner_sees_and_accepts_what_users_confirmed(home, capsys):
    home.confirm("a", TITLES[0], shot(0))
    home.confirm("b", TITLES[0], shot(1), verdict="wrong")  # the answer was, and this film was picked
    home.confirm("c", TITLES[1], shot(2, film=1), who=None)
    home.confirm("wish", "Stalker", shot(3), verdict="wish")
    home.confirm("unheard", "Solaris (1972)", shot(4))
    before = home.names()
    assert home.learn() == 0
    out, err = capsys.readouterr()
    assert [line[3] for line in sorted(home.listed(), key=lambda line: line[3])] == [TITLES[0], TITLES[0], TITLES[1]]
    assert Image.open(home.folder / "learn.png").size[0] > 1000 and "Solaris (1972): 1 pictures" in err
    assert SECRET not in out + err and home.names() == before  # nothing is added without the owner
    kept = ["\t".join(line) for line in home.listed() if line[3] == TITLES[0]]
    (home.folder / "learn.txt").write_text("\n".join([*kept, "1\t../../x/y.jpg\t0\tx", "nonsense"]))
    assert home.learn("--accept", str(home.folder / "learn.txt")) == 0
    assert f"{TITLES[0]}: 2 stills added" in capsys.readouterr().out
    assert (home.theirs(), home.theirs(TITLES[1])) == (2, 0) and home.run("check") == 0
    assert home.learn() == 0 and "nothing new" in capsys.readouterr().out  # neither the taken nor the refused
    identifier = Identifier(home.model)
    identifier.index = Index(home.index, identifier)
    best = identifier.identify(shot(1)).candidates[0]
    assert best.title == TITLES[0] and best.evidence.file.startswith(USER_STILL_PREFIX)
    assert best.evidence.time_ms is None and best.evidence.similarity > 0.99


def test_only_what_was_shown_is_added(home):
    home.confirm("a", TITLES[0], shot(0))
    assert home.learn() == 0
    home.confirm("late", TITLES[0], shot(1))
    assert home.learn("--accept", "all") == 0 and home.theirs() == 1
    assert home.learn() == 0 and len(home.listed()) == 1
    assert home.learn("--accept", "all") == 0 and home.theirs() == 2


def test_one_user_gives_a_few_pictures_and_each_once(home):
    for k in range(8):
        home.confirm(f"eager{k}", TITLES[0], shot(k), who="eager")
    home.confirm("same", TITLES[0], encoded(draw_frame(0, 40, 0, (480, 272)), 70), who="other")
    home.confirm("known", TITLES[0], encoded(draw_frame(0, 3, 0), 92), who="other")  # the index has it
    assert home.learn("--per-user", "3") == 0
    assert len(home.listed()) == 4  # three of eager's, and the known
    assert home.learn("--accept", "all") == 0 and home.theirs() == 3
    assert home.learn("--per-user", "3") == 0 and home.theirs() == 3  # accepted ones count


def test_adding_the_film_again_keeps_what_was_learned(home):
    home.confirm("a", TITLES[0], shot(0))
    assert home.learn() == home.learn("--accept", "all") == 0
    write_film(home.folder / "raw" / TITLES[0], 0, range(8))
    assert home.run("add", str(home.folder / "raw"), "--model", str(home.model)) == 0
    assert home.theirs() == 1 and any(name.startswith("07_") for name in home.names())


def test_all_of_it_is_taken_out_again(home, capsys):
    before = home.rows()
    for k in range(3):
        home.confirm(f"f{k}", TITLES[0], shot(k))
    assert home.learn() == home.learn("--accept", "all") == 0 and home.theirs() == 3
    assert home.run("remove", "--source", "telegram") == 0 and "3 stills" in capsys.readouterr().out
    after = home.rows()
    for name in ("time_ms", "until_ms", "name", "thumbnails", "thumbnail_ends"):
        assert np.array_equal(getattr(before, name), getattr(after, name))
    for name in ("embedding", "degraded_embedding", "clean_embedding"):
        np.testing.assert_allclose(getattr(before, name), getattr(after, name), atol=0.5)  # of 255
    collection = Collection(home.index)
    with collection.snapshot():
        assert set(collection.home.execute("SELECT state, picture FROM offered")) == {("refused", None)}
    assert home.run("check") == 0
    assert home.learn() == 0 and not home.listed()[3:] and "nothing new" in capsys.readouterr().out
    assert home.run("remove", "--source", "telegram") == 0  # nothing is left to remove


def test_pictures_that_cant_be_had_are_skipped(home, capsys):
    home.confirm("gone", TITLES[0], None)
    home.confirm("broken", TITLES[0], b"no picture at all")
    home.confirm("good", TITLES[0], shot(0))
    assert home.learn() == 1
    err = capsys.readouterr().err
    assert err.count("can't be had") == 1 and SECRET not in err
    assert [line[3] for line in home.listed()] == [TITLES[0]]


def test_what_is_wrong_is_told_in_a_line(home, capsys, monkeypatch, tmp_path):
    home.confirm("a", TITLES[0], shot(0))
    monkeypatch.chdir(tmp_path)  # no .env
    for token, words in (("", "TELEGRAM_BOT_TOKEN"), ("1:other", "can't be had")):
        monkeypatch.setenv("TELEGRAM_BOT_TOKEN", token)
        assert home.learn() > 0
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1 and "other" not in err
    assert home.learn("--db", str(tmp_path / "none.sqlite")) == 2
    assert "--db" in capsys.readouterr().err
    assert home.learn("--accept", str(tmp_path / "none.txt")) == 1 and "none.txt" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        home.run("remove")


def test_titles_never_become_paths(home, tmp_path):
    title = "../../Escape/../(2001)"
    film = write_film(tmp_path / "stills", 5, range(3))
    assert home.run("add", str(film), "--title", title, "--model", str(home.model)) == 0
    home.confirm("up", title, shot(1, film=5), who="../up")
    home.base.execute("UPDATE answers SET id = '../../up'")

    def outside() -> set[str]:
        return {str(path) for path in tmp_path.parent.rglob("*") if not path.name.startswith(home.index.name)}

    before = outside()
    assert home.learn() == home.learn("--accept", "all") == 0 and home.theirs(title) == 1
    assert {Path(path).name for path in outside() - before} == {"learn.png", "learn.txt"}


def test_a_file_of_a_local_server_is_read_by_its_path(home, tmp_path):
    home.server.local = tmp_path
    home.confirm("a", TITLES[0], shot(0))
    assert home.learn() == 0 and len(home.listed()) == 1 and not home.server.named("file")


def test_wishes_and_labels(home, tmp_path, capsys):
    home.confirm("a", TITLES[0], None)
    for who in ("ann", "bob"):
        home.confirm(f"wish-{who}", "Stalker", None, who=who, verdict="wish")
    assert home.learn("--wishes") == 0 and capsys.readouterr().out.split() == ["2", "Stalker"]
    assert home.learn("--labels", str(tmp_path / "labels.csv")) == 0 and "3 verdicts" in capsys.readouterr().out
    head, *rows = (tmp_path / "labels.csv").read_text().splitlines()
    assert head == "time,file_id,kind,answer,confidence,verdict,film" and len(rows) == 3


def test_index_says_where_learn_went(capsys):
    for arguments in ([], ["--db", "bot.sqlite", "--accept", "all"]):
        assert index.main(["learn", *arguments]) == 2
        error = capsys.readouterr().err
        assert "python learn.py" in error and error.startswith("index.py: error: ") and error.count("\n") == 1


def test_who_wants_to_be_forgotten_is_taken_out_of_what_waits_and_of_the_index(home, capsys):
    home.confirm("a", TITLES[0], shot(0))
    home.confirm("b", TITLES[1], shot(1, film=1), who="bob")
    assert home.learn() == 0 and home.learn("--accept", "all") == 0
    home.confirm("c", TITLES[2], shot(2, film=2))
    home.confirm("d", TITLES[2], shot(3, film=2), who="bob")
    assert home.learn() == 0 and len(home.listed()) == 2
    assert database.forget_user(home.base, "ann") == 2
    capsys.readouterr()
    assert home.learn("--accept", "all") == 0  # although it was shown
    assert "a user wants to be forgotten: 2 pictures removed, 1 stills of them" in capsys.readouterr().out
    assert [home.theirs(title) for title in TITLES[:3]] == [0, 1, 1] and home.run("check") == 0
    collection = Collection(home.index)
    with collection.snapshot():
        assert len(collection.home.execute("SELECT name FROM offered")) == 2
    assert not home.base.execute("SELECT * FROM forgotten").fetchall()
    assert home.learn() == 0 and "forgotten" not in capsys.readouterr().out


def confuse(home: Home, name: str, asked: str, listed: list[tuple[str, str]], times: int = 1) -> None:
    """Wrong answers that listed (title, still), of a film that was another by the word of users."""
    candidates = [{"title": title, "confidence": 0.9, "evidence": {"file": file}} for title, file in listed]
    for number in range(times):
        home.confirm(f"{name}{number}", asked, None, verdict="wrong")
    home.base.execute(f"UPDATE answers SET candidates = ? WHERE id LIKE 'id-{name}%'", [json.dumps(candidates)])


def test_confusions_are_counted_and_both_stills_are_drawn(home, capsys):
    assert home.learn("--confusions") == 0 and "no user has told" in capsys.readouterr().out
    known, other = home.names(TITLES[0])[0], home.names(TITLES[1])[2]
    confuse(home, "x", TITLES[0], [(TITLES[1], other), (TITLES[0], known)], times=2)
    confuse(home, "y", "Stalker (1979)", [(TITLES[1], "gone.jpg")])
    confuse(home, "z", TITLES[0], [(TITLES[0], known)])  # it was named, but said to be wrong at first
    home.base.execute("INSERT INTO verdicts VALUES ('wrong', ?, ?, 3)", [TITLES[1], TITLES[0]])  # rows that expired
    assert home.learn("--confusions", "--sheet", str(home.folder / "c.png")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"1\t5\t{TITLES[0]}\twas taken for\t{TITLES[1]}",
        f"2\t1\tStalker (1979)\twas taken for\t{TITLES[1]}",
    ]
    sheet = np.asarray(Image.open(home.folder / "c.png").convert("L"), np.int16)
    drawn = [sheet[:100, left : left + 200].std() > 5 for left in (0, 204, 412, 616)]
    assert drawn == [True, True, False, True]  # the film that is not in the index has no still
    home.index.unlink()
    assert home.learn("--confusions") == 0 and "no index" in capsys.readouterr().err
