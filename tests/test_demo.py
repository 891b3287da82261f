"""python -m pytest tests/test_demo.py"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from answering.model import Identifier
from answering.pictures import find_bars
from demo import demo, design, drawing, films

FOLDER = Path(films.__file__).parent


def test_films_are_the_same_every_time_and_differ():
    one, again = (list(films.render_film(films.film_design(3), 4, 2)) for _ in range(2))
    assert all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(one, again, strict=True))
    assert [shot for _, shot, _ in one] == [0, 0, 1, 1]
    frame = one[0][0]
    assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[0] == 256
    near = np.abs(one[0][0].astype(int) - one[1][0]).mean()
    far = np.abs(one[0][0].astype(int) - one[2][0]).mean()
    assert near < far  # frames of a shot are near-duplicates
    other = next(films.render_film(films.film_design(3, seed=14), 1, 1))[0]
    assert other.shape != frame.shape or not np.array_equal(other, frame)
    assert len({films.film_design(i).title for i in range(300)}) == 300


def test_every_word_of_a_world_is_drawn():
    for line in design.WORLDS:
        world = design.read_world(line)
        drawn = {*world.ridges, *world.things, *world.bodies, *world.hats}
        assert drawn - {"house"} <= drawing.shapes().keys(), line
        assert {*world.floors} <= drawing.PATTERNS.keys(), line


def test_some_films_carry_bars():
    barred = 0
    for index in range(12):
        frame = next(films.render_film(films.film_design(index), 1, 1))[0]
        barred += find_bars(frame) != (0, 0, frame.shape[1], frame.shape[0])
    assert 1 <= barred <= 9


def test_rendered_folder_is_a_raw_dataset_and_goes_on(tmp_path):
    titles = films.render_films(tmp_path, range(2), 4, workers=1, per_shot=2)
    for title in titles:
        rows = [json.loads(line) for line in (tmp_path / title / "frames.jsonl").read_text().splitlines()]
        assert [row["shot"] for row in rows] == [0, 0, 1, 1]
        assert all((tmp_path / title / row["file"]).exists() for row in rows)
    pictures = sorted(tmp_path.rglob("*.jpg"))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in pictures}
    # one film lost a picture, the next run was stopped while it wrote: only that film is rendered again, to the same
    pictures[0].unlink()
    (tmp_path / f".{titles[1]}.part").mkdir()
    films.render_films(tmp_path, range(2), 4, workers=1, per_shot=2)
    assert sorted(tmp_path.rglob("*.jpg")) == pictures
    assert all(path.read_bytes() == data for path, (_, data) in before.items())
    same = [path.parent.name for path, (time, _) in before.items() if path.stat().st_mtime_ns == time]
    assert len(set(same)) == 1 and pictures[0].parent.name not in same
    films.render_films(tmp_path, range(1), 6, workers=1, per_shot=2)  # other settings
    assert len(list((tmp_path / titles[0]).glob("*.jpg"))) == 6


@pytest.mark.parametrize("script", ["films.py", "demo.py"])
def test_scripts_run_from_anywhere(script, tmp_path):
    small = ["--films", "1", "--frames", "2", "--out", "raw"] if script == "films.py" else ["--help"]
    ran = subprocess.run([sys.executable, FOLDER / script, *small], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert script == "demo.py" or len(list((tmp_path / "raw").glob("*/*.jpg"))) == 2


def test_answers_are_counted_and_drawn(exported, dataset, tmp_path, capsys):
    figures = demo.answer_all(Identifier(exported), dataset, tmp_path / "answers.png")
    assert figures.known_frames > 0 and figures.unknown_frames > 0
    assert all(0 <= share <= 1 for share in (figures.top1, figures.known_named, figures.unknown_refused))
    with Image.open(tmp_path / "answers.png") as image:
        assert image.width > 1000
    assert "Film 0 (1990)" in capsys.readouterr().out


def test_usage():
    with pytest.raises(SystemExit) as caught:
        demo.main(["--films", "1"])
    assert caught.value.code == 2
