"""A sheet: the frame that was asked beside the still that proves the answer, and the other films that came near."""

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from answering.console import atomic_write, format_clock
from answering.fonts import draw_line, missing_letters, wrap
from answering.model import Answer, Candidate, Evidence
from answering.pictures import read_image

# pixels
MARGIN = 28
GAP = 20  # between pictures
PAIR = 400  # width of the frame, and of the proof beside it
OTHER = 260  # width of the others' stills, three a row
TALLEST = 400  # a picture is shown no higher
TITLE = 28  # sizes of letters
TEXT = 16
SMALL = 14
LEADING = 1.4  # height of a line, in sizes of its letters
# colours
PAPER = "#faf8f4"
INK = "#1c1b22"
SOFT = "#5d5a66"
LINE = "#d8d3c9"

SURE = ((0.95, "almost certain"), (0.8, "very likely"), (0.6, "likely"), (0.3, "possible"), (0.0, "unlikely"))
ALIKE = ((0.9, "nearly the same picture"), (0.7, "very alike"), (0.45, "alike"), (-1.0, "a little alike"))


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str
    size: int = TEXT
    colour: str = INK
    bold: bool = False


def in_words(table: tuple[tuple[float, str], ...], value: float) -> str:
    """What a table says of a confidence or a similarity; web/app.js has the same tables."""
    return next((words for least, words in table if value >= least), table[-1][1])


def format_span(proof: Evidence) -> str:
    """0:41:10 to 0:41:20, or one time; "" where it is not known."""
    if proof.time_ms is None:
        return ""
    times = [proof.time_ms if ms is None else ms for ms in (proof.from_ms, proof.to_ms)]
    start, end = (format_clock(ms / 1000) for ms in times)
    return start if start == end else f"{start} to {end}"


def head_words(answer: Answer) -> list[Words]:
    """What the answer is, and how sure or why not."""
    if answer.kind == "movie":
        best = answer.candidates[0]
        sure = f"{in_words(SURE, best.confidence).capitalize()}, {best.confidence:.0%}"
        return [Words(best.title, TITLE, bold=True), Words(sure + look_words(answer))]
    if answer.kind == "shortlist":
        return [Words("Perhaps one of these", TITLE, bold=True), Words("They are alike to me" + look_words(answer))]
    why = answer.reason or "nothing in the index is like enough"
    return [Words("I don't know this film", TITLE, bold=True), Words(why.capitalize() + look_words(answer))]


def look_words(answer: Answer) -> str:
    return "; by the still inside this screenshot" if answer.look else ""


def proof_words(candidate: Candidate, *, with_confidence: bool) -> list[Words]:
    """What stands below a still."""
    proof = candidate.evidence
    lines = [Words(candidate.title, bold=True)]
    if span := format_span(proof):
        lines.append(Words(span))
    alike = f"{in_words(ALIKE, proof.similarity)} ({proof.similarity:.2f})"
    if with_confidence:
        alike = f"{in_words(SURE, candidate.confidence)}, {candidate.confidence:.0%}; {alike}"
    return [*lines, Words(alike, SMALL, SOFT), Words(proof.file, SMALL, SOFT)]


def draw_words(paragraphs: list[Words], width: int) -> Image.Image:
    """Paragraphs one below the other, as high as they are."""
    lines = []
    for words in paragraphs:
        for text in wrap(words.text, width, words.size, words.bold):
            lines.append((words, text))
    height = sum(round(words.size * LEADING) for words, _ in lines)
    drawn = Image.new("RGB", (width, max(1, height)), PAPER)
    draw = ImageDraw.Draw(drawn)
    top = 0
    for words, text in lines:
        place = (0, top + round(words.size * 1.05))
        draw_line(draw, place, text, words.size, words.colour, words.bold)
        top += round(words.size * LEADING)
    return drawn


def draw_card(picture: Image.Image, paragraphs: list[Words], width: int) -> Image.Image:
    """A picture of this width, or narrower where it is tall, and right below it what it is."""
    fitted = ImageOps.contain(picture.convert("RGB"), (width, TALLEST), Image.Resampling.LANCZOS)
    words = draw_words(paragraphs, width)
    card = Image.new("RGB", (width, fitted.height + 10 + words.height), PAPER)
    card.paste(fitted, (0, 0))
    card.paste(words, (0, fitted.height + 10))
    return card


def draw_proof(candidate: Candidate, width: int, **how: bool) -> Image.Image:
    """The card of a candidate's still."""
    still = Image.open(io.BytesIO(candidate.evidence.thumbnail))
    return draw_card(still, proof_words(candidate, **how), width)


def place_rows(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of cards, each as high as its highest card, with a line between rows."""
    width = 2 * MARGIN + 2 * PAIR + GAP
    heights = [max(card.height for card in row) for row in rows]
    sheet = Image.new("RGB", (width, 2 * MARGIN + sum(heights) + GAP * (len(rows) - 1)), PAPER)
    top = MARGIN
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        if number > 1:
            ImageDraw.Draw(sheet).line((MARGIN, top - GAP // 2, width - MARGIN, top - GAP // 2), LINE)
        left = MARGIN
        for card in row:
            sheet.paste(card, (left, top))
            left += card.width + GAP
        top += height + GAP
    return sheet


def draw_evidence(frame: np.ndarray | Path, answer: Answer, path: Path, shape: tuple[int, int] | None = None) -> str:
    """Write a sheet of an answer; returns the letters of its titles that no font of this machine has.

    frame: RGB uint8 [H, W, 3], or a file; shape: width and height that it had before it was squashed, if it was.
    """
    picture = Image.fromarray(read_image(frame))
    if shape:
        picture = picture.resize((max(1, round(picture.height * shape[0] / shape[1])), picture.height))
    proven = [candidate for candidate in answer.candidates if candidate.evidence]
    rows = [[draw_words(head_words(answer), 2 * PAIR + GAP)]]
    pair = [draw_card(picture, [Words("The frame that was asked", bold=True)], PAIR)]
    pair += [draw_proof(candidate, PAIR, with_confidence=answer.kind != "movie") for candidate in proven[:1]]
    rows.append(pair)
    others = [draw_proof(candidate, OTHER, with_confidence=True) for candidate in proven[1:]]
    rows += [others[start : start + 3] for start in range(0, len(others), 3)]
    with atomic_write(path) as file:
        place_rows(rows).save(file, Image.registered_extensions().get(path.suffix.lower(), "PNG"))
    return missing_letters("".join(candidate.title for candidate in answer.candidates))


def say_missing(script: str, path: Path, letters: str) -> None:
    """Say on stderr which letters a sheet lacks, so that nobody takes the name of a script for the title."""
    if letters:
        text = f"no font here has the letters {letters}; it names their script instead; install fonts-noto or another"
        print(f"{script}: {path}: {text}", file=sys.stderr)
