"""python -m pytest tests/test_bench_index.py"""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_frame
from PIL import Image
from test_index import write_film, write_model

import bench
from answering.stills import Still
from benchmarks import collection, growth


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "export", 8)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Five films of eight shots, a still a second, and two films of two."""
    root = tmp_path_factory.mktemp("raw")
    for film in range(7):
        write_film(root / f"Film {film} ({1990 + film})", film, range(8 if film < 5 else 2))
    return root


def table(text: str) -> dict[str, list[str]]:
    """{row: cells} of a printed markdown table."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("line", ["index", "moments a b --model export", "clip a b --model export"])
def test_command_line_gives_each_function_its_arguments(line):
    args = vars(bench.get_parser().parse_args(line.split()))
    run = args.pop("run")
    assert run.__name__ == f"bench_{line.split()[0]}"
    inspect.signature(run).bind(**args)  # raises for an argument too many or too few


@pytest.mark.parametrize("frames", ["3000", "20000"])
def test_a_collection_that_grows_finds_what_is_nearest(tmp_path, capsys, monkeypatch, frames):
    monkeypatch.setattr(growth, "READ_SECONDS", 0.2)
    assert bench.main(["index", "--frames", frames, "--films", "10,20", "--folder", str(tmp_path)]) == 0
    rows = table(capsys.readouterr().out)
    found = dict(zip(("search", "recall"), rows[f"index.py, {int(frames):,} stills"], strict=False))
    assert float(found["search"]) > 0 and float(found["recall"]) == 1 and not list(tmp_path.iterdir())
    assert float(rows["20 films"][0].split()[0]) > 0


def test_moments_are_found_beside_known_frames(raw, model, capsys):
    assert bench.main(["moments", str(raw), "--model", str(model), "--count", "6"]) == 0
    out = capsys.readouterr().out
    rows = table(out)
    assert re.search(r"of 7 films, every 4 s, are in the index; \d+ between are asked", out)
    for name in ("ColorLayout, 33 numbers", "pHash, 64 bits", "index.py"):
        title, moment = map(float, rows[name][rows[""].index("as it is")].split(" / "))
        assert title >= moment > 0.7  # the shots are 6 s long and look alike


def test_clips_of_more_frames_are_right_more_often(raw, model, capsys):
    assert bench.main(["clip", str(raw), "--model", str(model), "--frames", "1,4", "--count", "8"]) == 0
    out = capsys.readouterr().out
    assert "7 films, 5 of them asked, a still every 4 s in the index." in out
    rows = table(out)
    right, there = (rows[""].index(name) for name in ("film right", "film and moment right"))
    one, four = ([float(rows[f"{frames} frames"][column]) for column in (right, there)] for frames in (1, 4))
    assert four[0] >= max(one[0], 0.9) and four[0] >= four[1] >= 0.7
    with pytest.raises(SystemExit):
        bench.main(["clip"])


def test_moments_lie_between_what_is_indexed():
    times = [2000 * k for k in range(10)] + [60_000, 64_000]
    stills = [Still(f"{number}.jpg", Path(f"{number}.jpg"), time_ms=time_ms) for number, time_ms in enumerate(times)]
    kept, asked = collection.choose_moments(stills, 4000)
    assert [still.milliseconds for still in kept] == [0, 4000, 8000, 12_000, 16_000, 60_000, 64_000]
    assert [still.milliseconds for still in asked] == [2000, 6000, 10_000, 14_000]


def test_color_layout_of_known_pictures():
    grey = collection.color_layout(Image.new("RGB", (64, 48), (128, 128, 128)))
    signs, roots = np.full(33, 16.0), np.sqrt([3, 3, 3] + [1] * 18 + [2, 2, 2, 1, 1, 1] + [4, 2, 2, 1, 1, 1])
    signs[[0, 21, 27]] = (32 + 125 - 96) // 2, 32, 32  # luma 125.9 of 16 to 235, by the standard's table
    np.testing.assert_allclose(grey / roots, signs, atol=1e-5)
    picture = draw_frame(1, 2, 3)
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    one, other = (collection.color_layout(image) / roots for image in (picture, mirrored))
    assert one[0] == other[0] and abs(one[2] - other[2]) <= 1  # means, and what changes from top to bottom, stay
    assert abs(one[1] + other[1] - 31) <= 1.01  # what changes from left to right turns round
