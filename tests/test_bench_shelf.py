"""python -m pytest tests/test_bench_shelf.py"""

import inspect

import pytest
from test_bench_index import table
from test_index import write_film, write_model
from test_video import GOP_20, film, write_video

import bench


@pytest.mark.parametrize("line", ["shelf a.mkv b.mkv", "shelf a.mkv --ask --gaps 3,5 --beside raw --count 9"])
def test_command_line_gives_its_arguments(line):
    args = vars(bench.get_parser().parse_args(line.split()))
    run = args.pop("run")
    inspect.signature(run).bind(**args)  # raises for an argument too many or too few
    assert args["ask"] is ("--ask" in line)


def test_both_ways_and_questions(tmp_path, capsys):
    pytest.importorskip("cv2", reason="the old way decodes by OpenCV")
    model = write_model(tmp_path / "export", 8)
    raw = tmp_path / "raw"
    for number in range(5):
        write_film(raw / f"Film {number} ({1990 + number})", number, range(8))
    clip = write_video(tmp_path / "Waves (2001).mkv", film(8), options=GOP_20)
    line = f"--model {model} --ask --gaps 1 --beside {raw} --count 6"
    assert bench.main(["shelf", str(clip), *line.split()]) == 0
    out = capsys.readouterr().out
    assert "6 frames at random moments are asked for, beside the films of raw." in out
    rows = table(out)
    names = [name for name in rows if "88ade32" in name or "index.py add" in name]
    assert len(names) == 4
    columns = rows[""]
    old, new, dense, command = (dict(zip(columns, rows[name], strict=True)) for name in names)
    assert [row["frames"] for row in (old, new, dense)] == ["4", "4", "8"]
    assert float(dense["film"]) >= 0.5
    assert float(command["total, s"].split()[0]) > 0
