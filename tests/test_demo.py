"""python -m pytest tests/test_demo.py"""

import json

import numpy as np
import pytest
from PIL import Image

import demo
import films
from identify import Identifier, find_bars


def test_films_are_the_same_every_time_and_differ():
    one, again = (list(films.render_film(films.film_design(3), 4, 2)) for _ in range(2))
    assert all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(one, again, strict=True))
    assert [shot for _, shot, _ in one] == [0, 0, 1, 1]
    frame = one[0][0]
    assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[0] == 256
    near = np.abs(one[0][0].astype(int) - one[1][0]).mean()
    far = np.abs(one[0][0].astype(int) - one[2][0]).mean()
    assert near < far  # frames of a shot are near-duplicates
    assert len({films.film_design(i).title for i in range(300)}) == 300


def test_some_films_carry_bars():
    barred = 0
    for index in range(12):
        frame = next(films.render_film(films.film_design(index), 1, 1))[0]
        barred += find_bars(frame) != (0, 0, frame.shape[1], frame.shape[0])
    assert 1 <= barred <= 9


def test_rendered_folder_is_a_raw_dataset(tmp_path):
    titles = films.render_films(tmp_path, range(2), 4, workers=1, per_shot=2)
    for title in titles:
        rows = [json.loads(line) for line in (tmp_path / title / "frames.jsonl").read_text().splitlines()]
        assert [row["shot"] for row in rows] == [0, 0, 1, 1]
        assert all((tmp_path / title / row["file"]).exists() for row in rows)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jpg")}
    films.render_films(tmp_path, range(2), 4, workers=1, per_shot=2)  # whole films stay as they are
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.jpg")}


def test_answers_are_counted_and_drawn(exported, dataset, tmp_path, capsys):
    figures = demo.answer_all(Identifier(exported), dataset, tmp_path / "answers.png")
    assert figures["known_frames"] > 0 and figures["unknown_frames"] > 0
    assert all(0 <= figures[key] <= 1 for key in ("top1", "known_named", "unknown_refused"))
    with Image.open(tmp_path / "answers.png") as image:
        assert image.width > 1000
    assert "films never in the collection" in capsys.readouterr().out


def test_usage():
    with pytest.raises(SystemExit) as caught:
        demo.main(["--films", "1"])
    assert caught.value.code == 2
