"""python -m pytest tests/test_sheet.py"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_frame
from PIL import Image

from answering import fonts
from answering.model import Answer, Candidate, Evidence
from answering.packing import make_thumbnail
from answering.sheet import ALIKE, MARGIN, PAIR, SURE, draw_evidence, format_span, in_words, say_missing
from answering.stills import read_shapes, shape_before

NOWHERE = "\U000f1234"  # of a private area: no font of a system has it


def make_answer(title: str = "Film (1990)", kind: str = "movie", size: tuple[int, int] = (235, 100)) -> Answer:
    """An answer of three films, with wide stills."""
    candidates = []
    for film, name in enumerate((title, "Other (1991)", "Third (1992)")):
        thumbnail = make_thumbnail(draw_frame(film, 1, 1, size))
        proof = Evidence(name, "01.jpg", 0.93, 2_470_000, 2_470_000, 2_480_500, thumbnail)
        candidates.append(Candidate(name, 0.9 / (film + 1), proof))
    return Answer(kind, candidates, 1.0)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), np.int16)


def test_a_card_ends_where_its_words_end(tmp_path):
    """Wide stills stood above a hundred pixels of white once, far from their captions."""
    frame = np.asarray(draw_frame(0, 1, 1, (470, 200)))
    assert draw_evidence(frame, make_answer(), tmp_path / "wide.png") == ""
    drawn = pixels(tmp_path / "wide.png")
    lines = (np.abs(drawn - drawn[0, 0]).max(2) > 20).any(1)  # rows on which something is drawn
    rows = np.flatnonzero(lines)
    gaps = np.diff(rows)
    assert gaps.max() <= 2 * MARGIN and len(drawn) - rows[-1] <= 2 * MARGIN
    draw_evidence(np.asarray(draw_frame(0, 1, 1, (400, 300))), make_answer(size=(400, 300)), tmp_path / "square.png")
    assert len(pixels(tmp_path / "square.png")) > len(drawn) + 100


@pytest.mark.parametrize("kind", ["movie", "shortlist", "unknown"])
def test_every_kind_of_answer_is_drawn(kind, tmp_path):
    frame = np.asarray(draw_frame(0, 1, 1, (470, 200)))
    long = (
        "Donaudampfschifffahrtsgesellschaftskapitänswitwenrente und ihre Folgen für den deutschen Film " * 2 + "(1962)"
    )
    draw_evidence(frame, make_answer(long, kind), tmp_path / f"{kind}.jpg")
    with Image.open(tmp_path / f"{kind}.jpg") as sheet:
        assert sheet.format == "JPEG" and sheet.width == 2 * (MARGIN + PAIR) + 20
    none = Answer("unknown", [], 1.0, reason="too little in the picture")
    draw_evidence(frame, none, tmp_path / "none.png")
    assert pixels(tmp_path / "none.png").std() > 10


def test_letters_come_from_a_font_that_has_them_or_are_told(tmp_path, capsys):
    base = fonts.base_font(16, False)
    assert fonts.split_runs("Сталкер (1979)", 16) == [("Сталкер (1979)", base)] and fonts.has_letter(base, "Ф")
    assert not fonts.has_letter(base, NOWHERE) and fonts.find_font(NOWHERE, 16, False) is None
    assert fonts.split_runs(f"A {NOWHERE}{NOWHERE} (1979)", 16)[1][0] == "[Unknown letters] "
    letters = draw_evidence(np.asarray(draw_frame(0, 1, 1)), make_answer(f"{NOWHERE} (1979)"), tmp_path / "s.png")
    assert letters == NOWHERE
    say_missing("identify.py", tmp_path / "s.png", letters)
    say_missing("identify.py", tmp_path / "s.png", "")
    error = capsys.readouterr().err
    assert "no font here has the letters" in error and error.count("\n") == 1


def test_a_font_of_the_system_draws_what_the_first_one_lacks(tmp_path, monkeypatch):
    """DejaVu Sans stands for a font of another script, and Pillow's own for the first one."""
    matplotlib = pytest.importorskip("matplotlib")
    own = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    shutil.copy(own, tmp_path / "other.ttf")
    for cached in (fonts.base_font, fonts.find_font, fonts.ask_fontconfig):
        cached.cache_clear()
    latin = fonts.ImageFont.load_default(16)
    monkeypatch.setattr(fonts, "base_font", lambda size, bold: latin)
    monkeypatch.setattr(fonts, "ask_fontconfig", lambda character: str(tmp_path / "other.ttf"))
    runs = fonts.split_runs("Stalker Сталкер (1979)", 16)
    fonts.find_font.cache_clear()
    assert [text for text, _ in runs] == ["Stalker ", "Сталкер ", "(1979)"]
    assert runs[1][1].getname()[0] == "DejaVu Sans" != runs[0][1].getname()[0]


def test_words_fit_their_lines():
    text = "eins zwei Donaudampfschifffahrtsgesellschaft drei"
    lines = fonts.wrap(text, 120, 16)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "") and len(lines) > 3
    assert all(fonts.measure(line, 16) <= 120 for line in lines)


def test_how_sure_how_alike_and_when():
    assert [in_words(SURE, value) for value in (1.0, 0.9, 0.0)] == ["almost certain", "very likely", "unlikely"]
    assert [in_words(ALIKE, value) for value in (0.95, 0.5, -2.0)] == [
        "nearly the same picture",
        "alike",
        "a little alike",
    ]
    proof = make_answer().candidates[0].evidence
    assert format_span(proof) == "0:41:10 to 0:41:20"
    assert format_span(Evidence("A", "a", 0.5, None, None, None, b"")) == ""
    assert format_span(Evidence("A", "a", 0.5, 1000, 1000, 1400, b"")) == "0:00:01"


def test_frames_that_were_squashed_are_shown_as_they_were(dataset, tmp_path):
    frame = sorted((dataset / "movies").rglob("*.jpg"))[0]
    assert Image.open(frame).size == (600, 256) and shape_before(frame) == (240, 136)
    assert shape_before(tmp_path / "a" / "b" / "c.jpg") is None and shape_before("c.jpg") is None
    (tmp_path / "manifest.csv").write_text("path,width\nmovies/A/1.jpg,many\n\0")
    assert read_shapes(tmp_path / "manifest.csv") == {}
    draw_evidence(frame, make_answer(size=(240, 136)), tmp_path / "as-it-was.png", shape_before(frame))
    draw_evidence(frame, make_answer(size=(240, 136)), tmp_path / "squashed.png")
    assert len(pixels(tmp_path / "as-it-was.png")) == len(pixels(tmp_path / "squashed.png"))  # the proof is as high
    rows = [pixels(tmp_path / name)[330, MARGIN : MARGIN + PAIR] for name in ("as-it-was.png", "squashed.png")]
    same, squashed = rows
    assert same.std() > 5 > squashed.std()  # where the squashed frame has ended
    with Image.open(frame) as picture:
        thumbnail = make_thumbnail(picture, shape_before(frame))
    (tmp_path / "small.webp").write_bytes(thumbnail)
    assert Image.open(tmp_path / "small.webp").size == (200, 113)
