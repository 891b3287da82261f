"""python -m pytest tests/test_together.py"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_frame
from test_index import write_film, write_model

import identify
import index
from answering import calibration
from answering.calibration import FilmSample, Rule, ShotRule, leave_one_out_scores
from answering.collection import Index
from answering.model import Answer, Candidate, Evidence, Identifier, join_answers
from answering.projection import unit_length
from answering.state import About, IndexedModel
from answering.together import SHOTS, fit_together, label_shots, mean_of_shots, pool_questions, pool_runs

ROOT = Path(identify.__file__).parent


def draw_samples(films: int, rng: np.random.Generator, dims: int = 16) -> list[FilmSample]:
    """Films whose frames lie about a centre of their own."""
    samples = []
    for _ in range(films):
        embedding = rng.normal(0, 1, dims) + rng.normal(0, 1.2, (40, dims))
        samples.append(FilmSample(embedding, np.full(40, -1), rng.normal(0, 0.1, (4, dims))))
    return samples


# ------------------------------------------------------------------------------------------- shots and rules


def test_frames_that_are_alike_or_linked_are_one_shot():
    angles = np.radians([0, 40, 80, 180, 181])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)  # neighbours are alike, the first and the third are not
    assert label_shots(vectors).tolist() == [0, 0, 0, 1, 1]
    assert label_shots(vectors[:1]).tolist() == [0]
    values = np.array([[3.0], [3.0], [3.0], [0.0], [2.0]])
    assert mean_of_shots(values, label_shots(vectors)) == pytest.approx([2.0])  # of 3 and 1, not of five frames


def test_runs_are_means_of_neighbours():
    similarity = np.arange(12.0).reshape(6, 2)
    assert pool_runs(similarity, 2).tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    assert pool_runs(similarity, 8).tolist() == [[5, 6]]  # of a film with fewer, all of them


def test_more_shots_tell_known_films_from_unknown_ones_better_and_have_thresholds_of_their_own():
    rng = np.random.default_rng(3)
    asked = leave_one_out_scores(draw_samples(30, rng), 40)
    sizes = np.full(30, 40)
    alone = calibration.fit_rule(asked, sizes)
    assert (pool_questions(asked, 1).known.mean(), len(pool_questions(asked, 1).known)) == (
        pytest.approx(asked.known.mean()),
        len(asked.known),
    )
    together = fit_together(asked, sizes, 0.3)
    assert [part.shots for part in together] == list(SHOTS)
    for part in together:
        pooled = pool_questions(asked, part.shots)
        named = pooled.known >= part.movie
        assert named.mean() > alone.figures.named and (pooled.unknown >= part.movie).mean() < 0.2
        assert (pooled.best == pooled.film)[named].mean() > 0.95
        assert part.shortlist <= part.movie
    assert together[0].movie != alone.movie


def test_films_without_unknown_ones_have_no_thresholds_for_several_shots():
    asked = leave_one_out_scores(draw_samples(2, np.random.default_rng(1)), 40)
    assert fit_together(replace(asked, unknown=np.zeros(0)), np.full(2, 40), 0.3) == []


def test_the_rule_for_so_many_shots_goes_with_the_collection():
    rule = Rule(0.5, 0.4, 10.0, -5.0, together=[ShotRule(2, 0.45, 0.4, 11.0, -5.0), ShotRule(8, 0.35, 0.3, 12.0, -5.0)])
    about = About(IndexedModel("a", "AAAAAAAAAAA="), rule=rule)
    again = About.from_rows(about.to_rows()).rule
    assert again == rule
    assert [again.for_shots(count).movie for count in (1, 2, 7, 8, 24)] == [0.5, 0.45, 0.45, 0.35, 0.35]
    old = json.loads(json.dumps(rule.to_json()))
    del old["together"]  # as collections of before have it
    assert Rule.from_json(old).for_shots(8).movie == 0.5
    rows = dict(about.to_rows())
    values = json.loads(rows["rule"])
    values["together"][0]["movie"] = "much"
    rows["rule"] = json.dumps(values)
    with pytest.raises(TypeError, match="movie"):
        About.from_rows(list(rows.items()))


# --------------------------------------------------------------------------------------------- index, command


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """An embedder, and an index of six films."""
    root = tmp_path_factory.mktemp("together")
    model = write_model(root / "export", 8)
    for film in range(6):
        write_film(root / "raw" / f"Film {film} ({1990 + film})", film, range(6))
    place = root / "index.sqlite"
    assert index.main(["add", str(root / "raw"), "--model", str(model), "--index", str(place)]) == 0
    return model, place


def write_frames(folder: Path, film: int, shots: list[int]) -> list[str]:
    """Frames of these shots of a film."""
    files = []
    for shot in shots:
        files.append(str(folder / f"{film}_{shot}.jpg"))
        draw_frame(film, shot, 3).save(files[-1])
    return files


def test_an_album_is_asked_with_the_thresholds_for_its_shots(made, tmp_path):
    model, place = made
    identifier = Identifier(model)
    identifier.index = found = Index(place, identifier)
    assert [part.shots for part in found.rule.together] == list(SHOTS)
    files = write_frames(tmp_path, 2, [0, 2, 4])
    answer = identifier.identify(files)
    assert answer.candidates[0].title == "Film 2 (1992)" and answer.frames == 3
    vectors = unit_length(
        identifier.run(np.stack([identifier.load(file) for file in files]))["embedding"] @ found.basis[0]
        - found.basis[1]
    )
    shots = label_shots(vectors)
    limit = found.rule.for_shots(int(shots.max()) + 1)
    found.rule = replace(found.rule, together=[replace(part, movie=9.0) for part in found.rule.together])
    if shots.max():
        assert limit is not found.rule and identifier.identify(files).kind != "movie"
    alone = identifier.identify(files[0])
    assert alone.frames is None and "frames" not in alone.as_dict()


def test_together_prints_one_answer_and_refuses_clips(made, tmp_path, capsys):
    model, place = made
    files = write_frames(tmp_path, 3, [1, 3])
    command = ["--model", str(model), "--index", str(place), "--together"]
    done = subprocess.run(
        [sys.executable, "identify.py", *files, *command, "--json"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["candidates"][0]["title"] == "Film 3 (1993)" and row["frames"] == 2
    assert row["file"] == ", ".join(files)


# ------------------------------------------------------------------------------- index and classifier together

PROOF = Evidence("A", "a.jpg", 0.9, None, None, None, b"-")


def answer(kind: str, *titles: str, proof: bool = False) -> Answer:
    return Answer(kind, [Candidate(title, 0.5, PROOF if proof else None) for title in titles], 0.0)


@pytest.mark.parametrize(
    ("indexed", "classified", "kind", "titles"),
    [
        ("movie A B C", "unknown B A D", "movie", "ABC"),
        ("movie A B C", "movie A B D", "movie", "ABC"),
        ("shortlist A B C", "movie A B D", "shortlist", "ABC"),  # they agree, and the index refuses better
        ("unknown A B C", "movie A B D", "unknown", "ABC"),
        ("movie A B C", "movie B A D", "shortlist", "ABC"),  # both are sure, of different films
        ("movie A B C", "movie C A D", "shortlist", "ACB"),
        ("unknown A B C", "movie B A D", "unknown", "ABC"),
        ("unknown A B C", "movie X A D", "movie", "XAD"),  # a film that only the classifier knows
        ("shortlist A B C", "movie X A D", "movie", "XAD"),
        ("movie A B C", "movie X A D", "movie", "ABC"),
        ("unknown A B C", "shortlist X A D", "unknown", "ABC"),
    ],
)
def test_index_and_classifier_give_one_answer(indexed, classified, kind, titles):
    kinds, films = zip(*(text.split(" ", 1) for text in (indexed, classified)), strict=True)
    known = dict.fromkeys("ABC")
    (joined,) = join_answers(
        [answer(kinds[0], *films[0].split(), proof=True)], [answer(kinds[1], *films[1].split())], known
    )
    assert joined.kind == kind and "".join(c.title for c in joined.candidates) == titles
    if titles[0] in known:
        assert joined.candidates[0].evidence == PROOF
    assert join_answers([answer("unknown", "A")], [], known) == [answer("unknown", "A")]
