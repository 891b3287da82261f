"""python -m pytest tests/test_strangers.py"""

import io
import json

import numpy as np
import pytest

import index
from answering import calibration, editing, projection, strangers
from answering.calibration import FilmSample
from answering.collection import describe_no_promise
from answering.console import UserError
from answering.model import Identifier
from answering.store import Collection
from answering.strangers import Strangers


def draw_films(count: int, seed: int, frames: int = 30, dims: int = 24) -> list[FilmSample]:
    """Films as clouds of points, which differ most where their frames do not."""
    rng = np.random.default_rng(seed)
    noise = np.linspace(0.2, 3, dims)
    films = []
    for _ in range(count):
        centre = rng.normal(0, 1, dims)
        embedding = (centre + rng.normal(0, 1, (frames, dims)) * noise).astype(np.float32)
        films.append(FilmSample(embedding, np.full(frames, -1), np.zeros((0, dims), np.float32)))
    return films


def make_bank(count: int = 4, seed: int = 1) -> Strangers:
    print_of_model = np.arange(48, dtype=np.float32).reshape(2, 24)
    return Strangers([f"Stranger {k} (2000)" for k in range(count)], draw_films(count, seed), print_of_model)


def test_a_bank_comes_back_as_it_was_written(tmp_path):
    bank = make_bank()
    path = strangers.write_strangers(bank, tmp_path)
    back = Strangers.from_bytes(path.read_bytes(), path)
    assert back.titles == bank.titles
    np.testing.assert_array_equal(back.fingerprint, bank.fingerprint)
    for film, wanted in zip(back.samples, bank.samples, strict=True):
        np.testing.assert_allclose(film.embedding, wanted.embedding, atol=5e-3)


def test_a_damaged_bank_is_one_line_that_names_it():
    pickled = io.BytesIO()
    np.savez(pickled, title=np.array([{"a": 1}], dtype=object))
    whole = make_bank().to_bytes()
    for packed in (b"", b"no zip", whole[: len(whole) // 2], pickled.getvalue()):
        with pytest.raises(UserError, match=r"strangers\.npz: is damaged .* export the model again"):
            Strangers.from_bytes(packed, "strangers.npz")


def test_a_film_that_the_person_has_is_no_stranger():
    bank = make_bank()
    own = draw_films(3, seed=8)
    assert len(bank.apart_from(["Another Film (1999)"], own)) == 4
    assert len(bank.apart_from(["STRANGER 2"], own)) == 3  # by its title, however it is written
    rng = np.random.default_rng(0)
    first = bank.samples[0]
    near = first.embedding + rng.normal(0, 0.05, first.embedding.shape).astype(np.float32)
    copy = FilmSample(near, first.time_ms, first.change)
    left = bank.apart_from(["Under another name (1999)"], [*own, copy])  # by its frames
    assert len(left) == 3 and all(sample is not first for sample in left)


def test_the_start_fades_as_own_films_grow():
    start = projection.measure_spread(*as_rows(draw_films(4, seed=1)))
    shares = [
        projection.weigh_start(projection.measure_spread(*as_rows(draw_films(k, 2))), start) for k in (1, 3, 30, 100)
    ]
    assert shares[0] == projection.START_SHARE_OF_ONE
    assert shares[1] > shares[2] > shares[3]
    assert shares[3] < 0.1


def as_rows(films: list[FilmSample]) -> tuple[np.ndarray, np.ndarray]:
    joined = calibration.join_samples(films)
    return joined.embedding, joined.film


def test_a_start_tells_films_of_a_small_collection_from_others():
    """Two films say little of how frames of one film differ; nine others, drawn alike, say it."""
    gains = []
    for seed in range(4):
        own, others, start = draw_films(2, seed), draw_films(20, 50 + seed), draw_films(9, 90 + seed)
        separations = []
        for bank in ([], start):
            basis = calibration.fit_on_samples(
                [FilmSample(f.embedding[:20], f.time_ms[:20], f.change) for f in own], bank
            )
            space = calibration.FilmVectors(calibration.join_samples(own), 2, basis)
            centres = space.middles
            known = projection.project_all(np.concatenate([f.embedding[20:] for f in own]), *basis) @ centres.T
            unknown = projection.project_all(np.concatenate([f.embedding for f in others]), *basis) @ centres.T
            separations.append((known.max(1)[:, None] > unknown.max(1)).mean())
        gains.append(separations[1] - separations[0])
    assert np.mean(gains) > 0.03


def test_strangers_are_asked_as_unknown_films():
    films = draw_films(5, seed=3)
    alone = calibration.leave_one_out_scores(films, 10)
    joined = calibration.leave_one_out_scores(films, 10, draw_films(4, seed=4))
    assert set(alone.unknown_film) == set(range(5))
    assert set(joined.unknown_film) == set(range(9))
    one = calibration.leave_one_out_scores(films[:1], 10, draw_films(4, seed=4))
    assert set(one.unknown_film) == {1, 2, 3, 4}  # no film is left to compare the only one with
    assert calibration.fit_rule(one, np.array([30])).figures is not None


def test_where_nothing_is_unknown_nothing_is_promised():
    rule = calibration.fit_rule(calibration.leave_one_out_scores(draw_films(3, seed=3), 10), np.full(3, 30))
    assert rule.figures is None and rule.shortlist < rule.movie


def test_an_export_carries_them_and_an_index_of_one_film_works(exported, tmp_path, capsys):
    """With them an index of one film learns to refuse; a title of theirs is left out; without them it says so."""
    bank = Strangers.from_bytes((exported / strangers.FILE).read_bytes(), exported)
    assert bank.titles == [folder.name for folder in strangers.list_strangers()] and len(bank.titles) == 4
    shelf = tmp_path / "raw" / "Sintel"
    shelf.mkdir(parents=True)
    for number, still in enumerate(sorted(strangers.list_strangers()[1].iterdir())[:12]):
        (shelf / f"{number}.jpg").write_bytes(still.read_bytes())
    place = tmp_path / "index.sqlite"
    command = ["add", str(tmp_path / "raw"), f"--model={exported}", f"--index={place}"]
    assert index.main(command) == 0
    collection = Collection(place)
    assert collection.read_strangers() is not None
    state = collection.state()
    assert len(editing.strangers_to(collection, state, [])) == 3
    assert state.about.rule.figures is None  # three unknown films are too few
    assert "nothing is promised" in capsys.readouterr().err
    identifier = Identifier(exported / "model.onnx")
    identifier.index = index.Index(place, identifier)
    assert "promised" in describe_no_promise(identifier)


def test_a_bank_of_another_model_is_refused(exported, tmp_path):
    other = make_bank()
    strangers.write_strangers(other, tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="of another model"):
        strangers.find_strangers(tmp_path, np.ones((2, 24), np.float32) * [[1], [-1]] * np.arange(24) ** 2)
    assert strangers.find_strangers(exported / "openvino" / "model.xml", Strangers.from_bytes(
        (exported / strangers.FILE).read_bytes(), exported).fingerprint) is not None  # fmt: skip


def test_the_stills_are_few_and_credited():
    root = strangers.STILLS
    files = [path for path in root.rglob("*") if path.is_file()]
    assert files and sum(path.stat().st_size for path in files) <= 2_000_000
    credits = (root.parent / "docs" / "works.md").read_text(encoding="utf-8")
    for folder in strangers.list_strangers():
        assert folder.name in credits


def test_the_contract_says_that_nothing_is_promised(exported):
    contract = json.loads((exported / "model.json").read_text())
    assert contract["decision"]["unknown_films"] >= calibration.MIN_UNKNOWN_FILMS
    identifier = Identifier(exported / "model.onnx")
    assert describe_no_promise(identifier) is None
    identifier.contract.decision["targets"] = None
    assert "nothing is promised" in describe_no_promise(identifier)
