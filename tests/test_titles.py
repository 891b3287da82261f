"""python -m pytest tests/test_titles.py"""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from answering.titles import VideoName, folder_name, name_video, normalise_title, read_name, split_title

CASES = Path(__file__).parent.parent.parent / "shared/cases/05-names/names.tsv"
# path below the folder that was given -> the title that a person would say, by kinds of names
NAMES = """
numbers and years in titles
2001.A.Space.Odyssey.1968.1080p.mkv -> 2001 A Space Odyssey (1968)
2012.2009.720p.BluRay.mkv -> 2012 (2009)
1984.mkv -> 1984
300 2001 (2006).mkv -> 300 2001 (2006)
[Subs] Blues 1993 (1993) [VHS].mkv -> Blues 1993 (1993)
Blade Runner 2049.mkv -> Blade Runner 2049
Wonder.Woman.1984.2020.2160p.mkv -> Wonder Woman 1984 (2020)
Die.Klasse.von.1999.1990.German.720p.HDTV-GRP.mkv -> Die Klasse von 1999 (1990)
2.Fast.2.Furious.2003.720p.BrRip.x264.mp4 -> 2 Fast 2 Furious (2003)
4.Months.3.Weeks.and.2.Days.2007.mkv -> 4 Months 3 Weeks and 2 Days (2007)
K-19.The.Widowmaker.2002.mkv -> K-19 The Widowmaker (2002)
20,000 Leagues Under the Sea (1954).mkv -> 20,000 Leagues Under the Sea (1954)
$9.99 (2008).mkv -> $9.99 (2008)
8.2019.GERMAN.720p.BluRay.x264-GRP.mkv -> 8 (2019)
M.1931.Criterion.1080p.BluRay.mkv -> M (1931)
10x10 (2018).mkv -> 10x10 (2018)
10x10.2018.1080p.mkv -> 10x10 (2018)
007 - Goldfinger.mkv -> 007 - Goldfinger
where the year stands
Akira {1988}.mkv -> Akira (1988)
Akira_(1988).mkv -> Akira (1988)
Akira - 1988.mkv -> Akira (1988)
(1995) Heat.mkv -> Heat (1995)
(1914) 1914.mp4 -> 1914 (1914)
1979 - Alien.mkv -> Alien (1979)
1997___Contact.mp4 -> Contact (1997)
Super movie 480p 2001.mp4 -> Super movie (2001)
Soldat.James.German.Bluray.why.not.at.the.front.1998.mkv -> Soldat James (1998)
My Movie (1997) - GreatestReleaseGroup 2019.mp4 -> My Movie (1997)
Metropolis.1927.Restored.2010.1080p.mkv -> Metropolis (1927)
Mise à Sac (Alain Cavalier, 1967) [Vhs.Rip.Vff].avi -> Mise à Sac (1967)
Звери _ Animals (Барт Лэйтон) [2018, США, драма, BDRip].mkv -> Звери Animals (2018)
Миссия невыполнима 3 2006г. BDRip 1080p.mkv -> Миссия невыполнима 3 (2006)
parts, volumes, chapters, subtitles stay
Rocky.II.1979.1080p.mkv -> Rocky II (1979)
Kill Bill - Vol. 2.mkv -> Kill Bill - Vol. 2
Nymphomaniac.Volume.II.2013.DC.1080p.mkv -> Nymphomaniac Volume II (2013)
It.Chapter.Two.2019.mkv -> It Chapter Two (2019)
Mission.Impossible.Dead.Reckoning.Part.One.2023.2160p.WEB-DL.mkv -> Mission Impossible Dead Reckoning Part One (2023)
The.Hunger.Games.Mockingjay.Part.2.1080p.BluRay.mkv -> The Hunger Games Mockingjay Part 2
Star.Wars.Episode.4.A.New.Hope.1977.1080p.mkv -> Star Wars Episode 4 A New Hope (1977)
John Wick - Chapter 3 - Parabellum.mkv -> John Wick - Chapter 3 - Parabellum
Birdman or (The Unexpected Virtue of Ignorance) (2014).mkv -> Birdman or (The Unexpected Virtue of Ignorance) (2014)
Mon cousin a.k.a. My Cousin 2020 1080p Blu-ray DD 5.1 x264.mkv -> Mon cousin a.k.a. My Cousin (2020)
Akahige.AKA.Red.Beard.1965.CD1.CRiTERiON.DVDRip-GRP.avi -> Akahige AKA Red Beard (1965)
Run lola run (lola rennt) (2009).mp4 -> Run lola run (lola rennt) (2009)
The Falls - Peter Greenaway.mkv -> The Falls - Peter Greenaway
editions do not
Das.Boot.1981.Directors.Cut.1080p.mkv -> Das Boot (1981)
Das Boot - Director's Cut (1981).mkv -> Das Boot (1981)
Blade.Runner.The.Final.Cut.1982.2160p.mkv -> Blade Runner (1982)
Brazil_Criterion_Edition_(1985).CD2.avi -> Brazil (1985)
World.War.Z.EXTENDED.2013.German.DL.1080p.BluRay-GRP.mkv -> World War Z (2013)
Pacific.Rim.3D.2013.COMPLETE.BLURAY.mkv -> Pacific Rim (2013)
Alien DC (1979) [1080p].mkv -> Alien (1979)
The Thing (1982) {edition-Director's Cut} {tmdb-1091}.mkv -> The Thing (1982)
Sin City 2005 [Recut, Extended, Unrated] 1080p.mkv -> Sin City (2005)
Der.Hobbit.Eine.Reise.Extended.German.720p.BluRay.mkv -> Der Hobbit Eine Reise
unless they are the title
The.Final.Cut.2004.DVDRip.mkv -> The Final Cut (2004)
The.Darjeeling.Limited.2007.1080p.mkv -> The Darjeeling Limited (2007)
South.Park.Bigger.Longer.And.Uncut.1999.mkv -> South Park Bigger Longer And Uncut (1999)
Apocalypse Now Redux (1979).mkv -> Apocalypse Now Redux (1979)
The.Collector.2009.720p.BluRay.mkv -> The Collector (2009)
Step Up 3D (2010).mkv -> Step Up 3D (2010)
Resident.Evil.The.Final.Chapter.2016.1080p.mkv -> Resident Evil The Final Chapter (2016)
languages are the title's, unless quality follows
The.Good.German.2006.720p.BluRay-GRP.mkv -> The Good German (2006)
English.Vinglish.2012.mkv -> English Vinglish (2012)
Das.Leben.der.Anderen.German.DVDRip.XviD.avi -> Das Leben der Anderen
Le.Labyrinthe.TRUEFRENCH.VOSTFR.BRRip.mkv -> Le Labyrinthe
The.Hunger.Games.ITA.ENG.AC3.BDRip.1080p.X265-GRP.mkv -> The Hunger Games
Underworld VO+VFF+VFQ 1080p HDlight.x264.mkv -> Underworld
Ирония судьбы, или С лёгким паром! (1975).mkv -> Ирония судьбы, или С лёгким паром! (1975)
Бриллиантовая.рука.1968.BDRip-AVC.mkv -> Бриллиантовая рука (1968)
让子弹飞.Let.The.Bullets.Fly.2010.BluRay.1080p.mkv -> 让子弹飞 Let The Bullets Fly (2010)
[OCN] 애타는 로맨스 720p-NEXT.mkv -> 애타는 로맨스
dots, brackets and what stands before a title
S.W.A.T.2003.1080p.mkv -> S.W.A.T. (2003)
The.Man.from.U.N.C.L.E.2015.1080p.mkv -> The Man from U.N.C.L.E. (2015)
To.Live.and.Die.in.L.A.1985.1080p.BluRay.mkv -> To Live and Die in L.A. (1985)
...And Justice for All (1979).mkv -> ...And Justice for All (1979)
tick, tick...BOOM! (2021).mkv -> tick, tick...BOOM! (2021)
Matrix, The (1999).mkv -> Matrix, The (1999)
(500)_Days_of_Summer_[2009].mkv -> (500) Days of Summer (2009)
[REC] 3 Génesis (2012).mkv -> [REC] 3 Génesis (2012)
[1080p] Heat (1995).mkv -> Heat (1995)
[Group] 5 Centimeters per Second (BDRip 1920x1080 Hi10 FLAC) [FD8B6FF2].mkv -> 5 Centimeters per Second
[Group] Goblin's Crown v2 [BD 1080p FLAC] [CD298D48].mkv -> Goblin's Crown
www.example.org    -    Before Sunset 1080p.mkv -> Before Sunset
Before Sunset - www.example.org.mkv -> Before Sunset
www.4Rulz.be - Ginny (2020) 1080p Hindi Proper HDRip x264.mkv -> Ginny (2020)
01_Star.Trek.The.Motion.Picture.1979.mkv -> Star Trek The Motion Picture (1979)
1. Детские игры. 1988. 1080p. HEVC. 10bit..mkv -> Детские игры (1988)
Heat (1995) (1).mkv -> Heat (1995)
Inception - Copy.mkv -> Inception
Crouching.Tiger.Hidden.Dragon.BDrip-HDC.mkv -> Crouching Tiger Hidden Dragon
episodes
1883.s01e05.1080p.web.h264-grp.mkv -> 1883 S01E05
NOS4A2.S01E01.The.Shorter.Way.REPACK.720p.mkv -> NOS4A2 S01E01
doctor_who_2005.8x12.death_in_heaven.720p_hdtv.mkv -> doctor who (2005) S08E12
Doctor Who (2005)/Season 02/Doctor.Who.S02E03.mkv -> Doctor Who (2005) S02E03
The Office (US)/Season 01/The.Office.S01E02.mkv -> The Office (US) S01E02
Daniel's Neighborhood/S02E06 - Playtime Is Different.mp4 -> Daniel's Neighborhood S02E06
Show/Season 2/03 - The Name.mkv -> Show S02E03
Сериал/2 сезон/03 серия.mkv -> Сериал S02E03
Show.Name.S01E02E03.720p.mkv -> Show Name S01E02-E03
The.Daily.Show.2015.07.01.Guest.720p.mkv -> The Daily Show 2015-07-01
[Group] Made in Abyss - 13 [720p].mkv -> Made in Abyss S01E13
[Group] Kingdom 3rd Season - 02 [1080p].mkv -> Kingdom S03E02
[Subs]_Princess_Lover!_(2009)_-_01v2_-_A_Name_[2048A39A].mkv -> Princess Lover! (2009) S01E01
[Group] One Piece - 1015 [1080p].mkv -> One Piece S01E1015
names that say nothing
Alien (1979)/movie.mkv -> Alien (1979)
Alien (1979)/title_t00.mkv -> Alien (1979)
Alien (1979)/00000.m2ts -> Alien (1979)
Alien (1979)/VIDEO_TS/VTS_01_1.VOB -> Alien (1979)
Alien (1979)/tt0078748.mkv -> Alien (1979)
Alien (1979)/BluRay/1080p.mkv -> Alien (1979)
Alien (1979) CD1/movie.avi -> Alien (1979)
Alien.1979.1080p.BluRay.x264-GRP/grp-aln.mkv -> Alien (1979)
Terminator 2 - Judgment Day (1991)/Terminator 2.mkv -> Terminator 2 - Judgment Day (1991)
Alien Collection/Aliens.1986.mkv -> Aliens (1986)
"""
TABLE = [line.split(" -> ") for line in NAMES.splitlines() if " -> " in line]


@pytest.mark.parametrize(("path", "title"), TABLE)
def test_the_title_that_a_name_means(path, title):
    assert name_video(path, alone="/" in path).full == title


@pytest.mark.skipif(not CASES.exists(), reason="../shared/cases is not here")
def test_names_of_public_bug_reports():
    rows = [line.split("\t") for line in CASES.read_text(encoding="utf-8").splitlines()]
    assert [(name, name_video(name).full) for name, _ in rows] == [(name, wanted) for name, wanted in rows]


@pytest.mark.parametrize(
    ("name", "piece", "edition", "quality"),
    [
        ("Two Discs (1999) CD1", 1, "", ""),
        ("Two.Discs.1999.cd2.1080p", 2, "", "1080p"),
        ("Big Buck Bunny (2008)-disc 3", 3, "", ""),
        ("Gone with the Wind (1939) - part2", 2, "", ""),
        ("Battle.Royale.(2000).(Special.Edition).CD1of2.DVDRiP", 1, "Special Edition", ""),
        ("Dune.Part.Two.2024.2160p", None, "", "2160p"),
        ("Blade Runner (1982) The Final Cut [4K]", None, "The Final Cut", "4k"),
        ("Служебный роман (1977) - 2 серия", 2, "", ""),
        ("Captain Crypt (2000)", None, "", ""),
    ],
)
def test_pieces_editions_and_quality(name, piece, edition, quality):
    found = read_name(name)
    assert (found.piece, found.edition, found.quality) == (piece, edition, quality)


def test_a_folder_names_its_only_film_and_no_other():
    assert name_video("Heat (1995)/thewrongname.mkv", alone=True).full == "Heat (1995)"
    assert name_video("Heat (1995)/thewrongname.mkv").full == "thewrongname"
    assert name_video("The Boss (1972)/The Boss Part II.mkv").full == "The Boss Part II"


def test_folders_above_the_source_name_what_says_nothing():
    assert name_video("movie.mkv", ["BDMV", "Alien (1979)", "films"]).full == "Alien (1979)"
    assert name_video("E03.mkv", ["Season 2", "Show"]).full == "Show S02E03"
    assert name_video("movie.mkv", ["Movies"]).full == "movie"


def test_composed_and_decomposed_names_are_one_title():
    composed, decomposed = "Am\u00e9lie (2001).mkv", "Ame\u0301lie (2001).mkv"
    assert name_video(decomposed) == name_video(composed) == VideoName("Am\u00e9lie", 2001)
    assert normalise_title("Ame\u0301lie") == normalise_title("Am\u00e9lie")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="/\0"), min_size=1, max_size=120))
def test_any_name_has_a_title(name):
    title = name_video(f"folder/{name}.mkv").full
    title.encode()
    assert title.strip() and title.isprintable() and folder_name(title)
    assert normalise_title(split_title(title)[0])


@pytest.mark.parametrize(
    "name", ["(" * 250, "[" * 250, "1999 " * 50, "a.b" * 80, "S01E01" * 40, "(1999)" * 40, "-" * 250]
)
def test_hostile_names_end(name):
    assert re.search(r"\S", name_video(f"{name}.mkv").full)


def test_a_missing_guessit_is_told(monkeypatch):
    import sys

    from answering.console import UserError

    monkeypatch.setitem(sys.modules, "guessit", None)
    with pytest.raises(UserError, match="pip install guessit"):
        read_name("Some.Film.1080p.BluRay.without.guessit")
