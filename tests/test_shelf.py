"""python -m pytest tests/test_shelf.py"""

import os
import struct
from pathlib import Path

import pytest
from PIL import Image

from answering import shelf as shelf_module
from answering.console import UserError
from answering.discs import read_playlist
from answering.shelf import find_shelf

CASES = Path(__file__).parent.parent.parent / "shared/cases"


@pytest.fixture
def lay(tmp_path, monkeypatch):
    """A function that writes files {path: "seconds bytes"}; seconds of a broken file are "?", bytes 10."""

    def read_duration(path: Path) -> float | None:
        seconds = Path(path).read_text().split()[0]
        return None if seconds == "?" else float(seconds)

    monkeypatch.setattr(shelf_module, "read_duration", read_duration)

    def write(files: dict[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / "lib" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".jpg", ".png"):
                Image.new("RGB", (32, 24)).save(path)
                continue
            seconds, _, size = content.partition(" ")
            path.write_text(seconds.ljust(int(size or 10)))
        return tmp_path / "lib"

    return write


def titles_of(shelf) -> dict[str, list[str]]:
    """{title: names of its parts}."""
    return {film.title: [part.name for part in film.parts] for film in shelf.films}


def only(*names: str, seconds: str = "6000") -> dict[str, str]:
    return dict.fromkeys(names, seconds)


# ------------------------------------------------------------------------------------------- copies


def test_two_encodings_of_a_film_are_one_and_the_larger_is_first(lay):
    lib = lay({"Cafe.2020.720p.mp4": "6000 20", "Cafe (2020) 1080p.mkv": "6050 50", "Cafe.2020.avi": "5990 9"})
    (film,) = find_shelf([lib]).films
    assert film.title == "Cafe (2020)"
    assert film.parts == (lib / "Cafe (2020) 1080p.mkv",)
    assert film.copies == ((lib / "Cafe.2020.720p.mp4",), (lib / "Cafe.2020.avi",))


def test_a_broken_larger_copy_stands_behind_the_whole_one(lay):
    lib = lay({"Cafe.2020.720p.WEB.mp4": "6000 20", "Cafe.2020.2160p.UHD.mkv": "? 900"})
    (film,) = find_shelf([lib]).films
    assert film.parts == (lib / "Cafe.2020.720p.WEB.mp4",)
    assert film.copies == ((lib / "Cafe.2020.2160p.UHD.mkv",),)


def test_films_of_one_title_and_other_length_are_told_apart(lay):
    lib = lay(
        {
            "a/Blade.Runner.1982.mkv": "7000",
            "b/Blade Runner (1982) Final Cut.mkv": "7300",
            "c/Blade Runner (1982).avi": "3600",
        }
    )
    shelf = find_shelf([lib])
    assert titles_of(shelf) == {
        "Blade Runner (1982)": ["Blade.Runner.1982.mkv"],
        "Blade Runner, Final Cut (1982)": ["Blade Runner (1982) Final Cut.mkv"],
        "Blade Runner, 60 min (1982)": ["Blade Runner (1982).avi"],
    }
    (note,) = shelf.notes
    assert note.startswith("3 films bear one title and differ in length, so all are kept")


def test_a_title_stays_when_a_longer_film_of_that_title_comes(lay):
    lib = lay({"Solaris.mkv": "5940"})
    (first,) = find_shelf([lib]).films
    assert first.title == "Solaris"
    lay({"new/Solaris.avi": "10000"})
    assert titles_of(find_shelf([lib]))["Solaris"] == ["Solaris.avi"]  # who knows of no run before takes the longest
    shelf = find_shelf([lib], known={os.path.abspath(first.parts[0]): "Solaris"})
    assert titles_of(shelf) == {"Solaris": ["Solaris.mkv"], "Solaris, 167 min": ["Solaris.avi"]}


def test_titles_of_a_disc_in_one_folder_are_no_copies(lay):
    lib = lay(
        {"Show (2001)/title_t00.mkv": "2500", "Show (2001)/title_t01.mkv": "2501", "Show (2001)/title_t02.mkv": "2499"}
    )
    assert list(titles_of(find_shelf([lib]))) == [
        "Show (2001)",
        "Show, title_t00 (2001)",
        "Show, title_t02 (2001)",
    ]


def test_generic_names_take_their_folders(lay):
    lib = lay(
        only(
            "Film Alpha (2001)/movie.mp4",
            "Film Beta (2002)/movie.mp4",
            "The Heist (1969)/The Heist.mp4",
            "The Heist (2003)/The Heist.mp4",
        )
    )
    assert list(titles_of(find_shelf([lib]))) == [
        "Film Alpha (2001)",
        "Film Beta (2002)",
        "The Heist (1969)",
        "The Heist (2003)",
    ]
    assert list(titles_of(find_shelf([lib / "Film Beta (2002)"]))) == ["Film Beta (2002)"]
    assert list(titles_of(find_shelf([lib / "Film Beta (2002)" / "movie.mp4"]))) == ["Film Beta (2002)"]


# ------------------------------------------------------------------------------------- pieces and discs


def test_discs_of_a_film_go_on_and_parts_of_a_title_do_not(lay):
    lib = lay(
        only(
            "Two (1999) CD2.mp4",
            "Two (1999) CD1.mp4",
            "Gone (1939)/Disc 1/movie.avi",
            "Gone (1939)/Disc 2/movie.avi",
            "Dune.Part.One.2021.mkv",
            "Dune Part Two (2024).mkv",
            "Kill.Bill.Vol.1.2003.mkv",
            "Kill.Bill.Vol.2.2004.mkv",
        )
    )
    films = titles_of(find_shelf([lib]))
    assert films["Two (1999)"] == ["Two (1999) CD1.mp4", "Two (1999) CD2.mp4"]
    assert films["Gone (1939)"] == ["movie.avi", "movie.avi"]
    assert len(films) == 6


def test_a_copy_in_pieces_of_a_whole_film(lay):
    lib = lay({"Two (1999)-cd1.avi": "3000 9", "Two (1999)-cd2.avi": "3010 9", "Two.1999.1080p.mkv": "6000 99"})
    (film,) = find_shelf([lib]).films
    assert film.parts == (lib / "Two.1999.1080p.mkv",)
    assert film.copies == ((lib / "Two (1999)-cd1.avi", lib / "Two (1999)-cd2.avi"),)


def test_a_missing_piece_is_said(lay):
    lib = lay(only("Two (1999) CD2.mp4", "Other (2000).mkv"))
    shelf = find_shelf([lib])
    assert titles_of(shelf)["Two (1999)"] == ["Two (1999) CD2.mp4"]
    assert shelf.notes == ["Two (1999): of its pieces only 2 are there; times count from the first"]


def test_a_dvd_is_one_film_without_its_menus(lay):
    disc = "Coffee (2020)/VIDEO_TS/"
    lib = lay(
        {
            disc + "VIDEO_TS.VOB": "9 90",
            disc + "VTS_01_0.VOB": "9 999",
            disc + "VTS_01_1.VOB": "9 50",
            disc + "VTS_02_2.VOB": "9 70",
            disc + "VTS_02_1.VOB": "9 80",
        }
    )
    shelf = find_shelf([lib])
    assert titles_of(shelf) == {"Coffee (2020)": ["VTS_02_1.VOB", "VTS_02_2.VOB"]}
    assert shelf.passed_over["shorter titles of discs"] == 1
    for source in (lib / "Coffee (2020)", lib / "Coffee (2020)" / "VIDEO_TS"):
        assert list(titles_of(find_shelf([source]))) == ["Coffee (2020)"]


def playlist(*clips: tuple[str, int]) -> bytes:
    """A *.mpls of (name, seconds)."""
    items = b""
    for name, seconds in clips:
        item = name.encode() + b"M2TS" + bytes(3) + struct.pack(">II", 45_000, 45_000 * (seconds + 1)) + bytes(12)
        items += struct.pack(">H", len(item)) + item
    body = struct.pack(">HHH", 0, len(clips), 0) + items
    return b"MPLS0200" + struct.pack(">I", 20) + bytes(8) + struct.pack(">I", len(body)) + body


def test_a_bluray_is_its_longest_playlist(lay):
    lib = lay(only(*(f"Steel (2012)/BDMV/STREAM/0000{k}.m2ts" for k in range(5))))
    lay({"Steel (2012)/BDMV/STREAM/00009.m2ts": "9 999"})
    lists = lib / "Steel (2012)/BDMV/PLAYLIST"
    lists.mkdir()
    (lists / "00000.mpls").write_bytes(playlist(("00009", 300)))
    (lists / "00001.mpls").write_bytes(playlist(("00002", 3000), ("00001", 2500)))
    (lists / "00002.mpls").write_bytes(playlist(*[("00003", 900)] * 50))  # one clip again and again is no long film
    (lists / "00003.mpls").write_bytes(playlist(("00007", 9000)))  # of a clip that is not there
    shelf = find_shelf([lib])
    assert titles_of(shelf) == {"Steel (2012)": ["00002.m2ts", "00001.m2ts"]}
    assert shelf.notes == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MPLS",
        b"MPLS0200" + b"\xff" * 100,
        playlist(("00001", 9))[:-30],
        playlist(*[("00001", 9)] * 9)[:90],
        b"GIF89a" * 99,
        playlist(("\x00\x00\x00\x00\x00", 9)).replace(b"\0\0\0\0\0M2TS", b"\xff\xfe\xff\xfe\xffM2TS"),
    ],
)
def test_a_hostile_playlist_is_one_line(lay, data):
    lib = lay({"Steel (2012)/BDMV/STREAM/00000.m2ts": "9 9", "Steel (2012)/BDMV/STREAM/00001.m2ts": "9 50"})
    path = lib / "Steel (2012)/BDMV/PLAYLIST/00000.mpls"
    path.parent.mkdir()
    path.write_bytes(data)
    shelf = find_shelf([lib])
    assert titles_of(shelf) == {"Steel (2012)": ["00001.m2ts"]}
    (note,) = shelf.notes
    assert note.startswith(f"{path}: passed over, not a playlist that can be read (")


def test_a_playlist_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.mpls")
    with pytest.raises(ValueError, match="not a file"):
        read_playlist(tmp_path / "a.mpls")


def test_an_image_of_a_disc_is_told_how_to_mend(lay):
    lib = lay(only("Film (2000).iso", "Other (2001).mkv"))
    shelf = find_shelf([lib])
    assert shelf.passed_over["images of discs"] == 1
    assert shelf.notes == [
        f"{lib / 'Film (2000).iso'}: an image of a disc can't be read; "
        "mount or unpack it and give the folder that is in it"
    ]
    with pytest.raises(UserError, match="mount or unpack"):
        find_shelf([lib / "Film (2000).iso"])


# -------------------------------------------------------------------------------------------- series


def test_episodes_of_series_of_one_name_stay_apart(lay):
    lib = lay(
        only(
            "Bureau UK/The.Bureau.UK.S02E03.mp4",
            "Bureau US/The.Bureau.US.S02E03.mp4",
            "Late Talk/Late.Talk.2019.05.03.mp4",
            "Late Talk/Late.Talk.2019.05.04.mp4",
            "Doctor Who (1963)/Season 01/Doctor Who S01E01.mkv",
            "Doctor Who (2005)/Season 01/Doctor Who S01E01.mkv",
            "Show/Season 2/Episode 3.mkv",
            "Show/Season 2/04 - The Fourth.mkv",
            "Show/1x05.mkv",
        )
    )
    assert set(titles_of(find_shelf([lib]))) == {
        "The Bureau UK S02E03",
        "The Bureau US S02E03",
        "Late Talk 2019-05-03",
        "Late Talk 2019-05-04",
        "Doctor Who (1963) S01E01",
        "Doctor Who (2005) S01E01",
        "Show S02E03",
        "Show S02E04",
        "Show S01E05",
    }
    assert list(titles_of(find_shelf([lib / "Show/Season 2"]))) == ["Show S02E03", "Show S02E04"]


# -------------------------------------------------------------------------------------- what is no film


def test_extras_are_passed_over_and_counted(lay):
    film = "Alien (1979)/"
    extras = [
        film + "Alien (1979)-trailer.mkv",
        film + "sample.mkv",
        film + "Extras/making.mkv",
        film + "Deleted Scenes/Kane.mkv",
        film + "Behind The Scenes/deep/b.mkv",
        film + "Other/x.mkv",
        film + "Trailers/teaser.mkv",
        film + "Alien-interview.mkv",
    ]
    lib = lay(only(film + "Alien.1979.mkv", *extras))
    shelf = find_shelf([lib])
    assert titles_of(shelf) == {"Alien (1979)": ["Alien.1979.mkv"]}
    assert shelf.passed_over == {"extras": 8}
    everything = titles_of(find_shelf([lib], with_extras=True))
    assert len(everything) == 9 and everything["Alien, Kane (1979)"] == ["Kane.mkv"]
    with pytest.raises(UserError, match="8 extras; --with-extras takes them") as error:
        os.remove(lib / film / "Alien.1979.mkv")
        find_shelf([lib])
    assert error.value.code == 2


def test_films_that_are_called_like_extras_are_films(lay):
    names = ["Trailer Park Boys The Movie (2006).mkv", "Sample (2019).mkv", "The_Interview.mkv", "The.Big.Short.mkv"]
    names += [
        "The Others.mkv",
        "Scene.mkv",
        "Shorts/Paperman (2012).mkv",
        "Other/Her (2013).mkv",
        "Sample.2020.1080p.mkv",
    ]
    shelf = find_shelf([lay(only(*names))])
    assert len(shelf.films) == len(names) and not shelf.passed_over


def test_junk_is_never_a_film(lay):
    lib = lay(
        only(
            "Film (2000).mkv",
            "._Film (2000).mkv",
            ".hidden/a.mkv",
            "__MACOSX/b.mkv",
            "@eaDir/c.mkv",
            "#recycle/d.mkv",
            "$RECYCLE.BIN/e.mkv",
            "lost+found/f.mkv",
            ".Trash-1000/g.mkv",
            ".DS_Store",
            "...And Justice for All (1979).mkv",
        )
    )
    assert list(titles_of(find_shelf([lib]))) == ["...And Justice for All (1979)", "Film (2000)"]


def test_what_is_passed_over_is_counted(lay):
    lib = lay(only("Film (2000).mkv", "Film (2000).srt", "b.mkv.part", "c.mp4.crdownload", "d.mkv.!qB", "poster.jpg"))
    (lib / "empty.mkv").touch()
    (lib / "gone.mkv").symlink_to(lib / "nowhere")
    (lib / "loop.mkv").symlink_to(lib / "loop.mkv")
    os.mkfifo(lib / "pipe.mkv")
    shelf = find_shelf([lib], with_stills=True)
    assert shelf.passed_over == {
        "other files": 1,
        "incomplete downloads": 3,
        "pictures beside videos": 1,
        "empty files": 1,
        "broken links": 2,
        "pipes, sockets and devices": 1,
    }


@pytest.mark.parametrize("name", ["nowhere", "nul\0byte", "."])
def test_nothing_to_take_is_one_line(tmp_path, name):
    with pytest.raises(UserError) as error:
        find_shelf([tmp_path / name])
    assert error.value.code == 2


def test_a_pipe_is_no_source(tmp_path):
    os.mkfifo(tmp_path / "pipe.mkv")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        find_shelf([tmp_path / "pipe.mkv"])


# -------------------------------------------------------------------------------------------- links


def test_a_link_names_by_itself_and_linked_folders_are_followed_once(lay):
    lib = lay(only("store/8f3a.mp4", "store/dir/x.mp4", seconds="60"))
    links = lib.parent / "links"
    links.mkdir()
    (links / "Linked Film (2004).mp4").symlink_to(lib / "store/8f3a.mp4")
    (links / "Linked Folder (2005)").symlink_to(lib / "store/dir")
    (links / "again").symlink_to(lib / "store/dir")
    (links / "circle").symlink_to(links)
    shelf = find_shelf([links])
    assert titles_of(shelf) == {"Linked Film (2004)": ["Linked Film (2004).mp4"], "Linked Folder (2005)": ["x.mp4"]}
    assert titles_of(find_shelf([lib, links])) == titles_of(shelf)  # the name that says most, and each file once


def test_links_that_lead_everywhere_end(lay):
    lib = lay(only(*(f"{k}/Film {k} (2000).mkv" for k in range(12))))
    for k in range(12):
        for other in range(12):
            (lib / str(k) / f"to{other}").symlink_to(lib / str(other))
    assert len(find_shelf([lib]).films) == 12


# ------------------------------------------------------------------------------------- titles given


def test_one_title_for_all_pieces_and_no_more(lay):
    lib = lay(only("a CD1.avi", "a CD2.avi"))
    (film,) = find_shelf([lib], title="Das Boot (1981)").films
    assert film.title == "Das Boot (1981)" and len(film.parts) == 2
    lay({"another.avi": "999"})
    with pytest.raises(UserError, match="--title names one film, and these are 2"):
        find_shelf([lib], title="Das Boot (1981)")


def test_a_list_of_titles_overrules_names(lay, tmp_path):
    lib = lay(only("a.mkv", "sub/b.mkv", "sub/c.mkv", "Steel/BDMV/STREAM/00000.m2ts", "trailer.mkv"))
    table = tmp_path / "titles.csv"
    table.write_text(
        f'\ufefffile,title\n{lib / "a.mkv"},"Il buono, il brutto (1966)"\nlib/sub/b.mkv,Amélie (2001)\n'
        "c.mkv,M (1931)\nSteel,Real Steel (2011)\ntrailer.mkv,Trailer (2020)\nnot there.mkv,X (1999)\n",
        encoding="utf-8",
    )
    shelf = find_shelf([lib], titles=table)
    assert titles_of(shelf) == {
        "Amélie (2001)": ["b.mkv"],
        "Il buono, il brutto (1966)": ["a.mkv"],
        "M (1931)": ["c.mkv"],
        "Real Steel (2011)": ["00000.m2ts"],
        "Trailer (2020)": ["trailer.mkv"],
    }
    assert shelf.notes == ["--titles: not among the files given: not there.mkv"]


@pytest.mark.parametrize("text", [b"a.mkv\n", b"a.mkv,\n", b"a.mkv,b,c\n", b"\xff\xfe\x00", b"a.mkv,\x01\n", b'"a'])
def test_a_list_that_is_none_is_one_line(lay, tmp_path, text):
    lib = lay(only("a.mkv"))
    (tmp_path / "titles.csv").write_bytes(text)
    with pytest.raises(UserError, match=r"--titles .*expected a csv file") as error:
        find_shelf([lib], titles=tmp_path / "titles.csv")
    assert error.value.code == 2


def test_a_list_of_a_spreadsheet_may_have_semicolons(lay, tmp_path):
    lib = lay(only("a.mkv"))
    (tmp_path / "titles.csv").write_text("File;Title\r\na.mkv;Good, Bad (1966)\r\n")
    assert list(titles_of(find_shelf([lib], titles=tmp_path / "titles.csv"))) == ["Good, Bad (1966)"]


# ------------------------------------------------------------------------------------------- stills


def test_folders_of_stills_beside_videos(lay):
    lib = lay(
        only(
            "Heat (1995).mkv",
            "Alien (1979)/movie.mkv",
            "Alien (1979)/poster.jpg",
            "Alien (1979)/fanart/1.jpg",
            "folder.jpg",
            "Posters/1.jpg",
            "Up (2009)/1.jpg",
            "Up (2009)/2.jpg",
            "Heat (1995)/1.jpg",
        )
    )
    shelf = find_shelf([lib], with_stills=True)
    assert titles_of(shelf) == {
        "Alien (1979)": ["movie.mkv"],
        "Heat (1995)": ["Heat (1995).mkv"],
        "Up (2009)": [],
    }
    assert shelf.films[2].stills == lib / "Up (2009)"
    assert shelf.passed_over["pictures beside videos"] == 4
    assert shelf.notes == [f"{lib / 'Heat (1995)'}: passed over, for {lib / 'Heat (1995).mkv'} is 'Heat (1995)' too"]
    assert "Up (2009)" not in titles_of(find_shelf([lib]))


def test_a_source_of_stills_alone(lay):
    lib = lay(only("Up (2009)/1.jpg", "M (1931)/1.jpg"))
    assert [film.stills.name for film in find_shelf([lib], with_stills=True).films] == ["M (1931)", "Up (2009)"]
    with pytest.raises(UserError, match="no video file"):
        find_shelf([lib])


def test_one_name_composed_and_decomposed_is_one_film_of_stills(lay):
    lib = lay(only("Film (2000).mkv", "Am\u00e9lie (2001)/1.jpg", "Ame\u0301lie (2001)/2.jpg"))
    assert list(titles_of(find_shelf([lib], with_stills=True))) == ["Am\u00e9lie (2001)", "Film (2000)"]


def test_two_folders_of_stills_may_not_claim_one_title(lay):
    lib = lay(only("a/Up (2009)/1.jpg", "b/Up (2009)/1.jpg"))
    with pytest.raises(UserError, match="rename one of them"):
        find_shelf([lib / "a", lib / "b"], with_stills=True)


# ------------------------------------------------------------------------------------------- hostile


def test_names_that_are_no_text_or_very_long(lay):
    lib = lay(only("a/" + "x" * 251 + ".mkv", "b/" + "Я" * 125 + ".mkv", "c/line\nbreak (2000).mkv"))
    raw = os.fsencode(lib) + b"/caf\xe9\xff (2001).mkv"
    with open(raw, "wb") as file:
        file.write(b"9")
    titles = list(titles_of(find_shelf([lib])))
    assert len(titles) == 4
    for title in titles:
        title.encode()
        assert title.isprintable()
    assert "line break (2000)" in titles


def test_a_note_is_one_line_whatever_names_hold(lay):
    lib = lay(only("a\nb\x1b[2J/Heat.mkv", "c/Heat.avi"))
    lay({"c/Heat.avi": "999"})
    (note,) = find_shelf([lib]).notes
    assert note.isprintable() and "a b [2J/Heat.mkv" in note


def test_a_folder_that_cannot_be_read_is_one_line(lay, monkeypatch):
    lib = lay(only("Film (2000).mkv", "locked/Other (2001).mkv"))
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    shelf = find_shelf([lib])
    assert list(titles_of(shelf)) == ["Film (2000)"]
    assert shelf.notes == [f"{lib / 'locked'}: passed over: Permission denied"]


def test_deep_folders_and_many_files(lay):
    lib = lay(only("/".join(["d"] * 400) + "/Film (2000).mkv"))
    many = lib / "many"
    many.mkdir()
    for k in range(3000):
        (many / f"{k:05}.txt").touch()
    shelf = find_shelf([lib])
    assert list(titles_of(shelf)) == ["Film (2000)"] and shelf.passed_over == {"other files": 3000}


# ---------------------------------------------------------------------------------- the shared cases


@pytest.mark.skipif(not CASES.exists(), reason="../shared/cases is not here")
@pytest.mark.parametrize(
    ("case", "titles"),
    [
        ("03-folder-has-the-title", ["Film Alpha (2001)", "Film Beta (2002)", "The Heist (1969)", "The Heist (2003)"]),
        ("07-discs", ["Coffee (2020)", "Steel (2012)"]),
        ("09-broken-larger-copy/2", ["Cafe (2020)"]),
        ("19-two-discs", ["Two Discs (1999)"]),
    ],
)
def test_shared_cases(case, titles):
    assert [film.title for film in find_shelf([CASES / case]).films] == titles
