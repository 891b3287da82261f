"""python -m pytest tests/test_bench.py"""

import inspect

import numpy as np
import pytest

import bench
from answering.model import Answer, Candidate
from answering.store import Collection
from benchmarks import harness
from benchmarks.embedded import Embedded
from benchmarks.robust import Answers, measure_answers
from benchmarks.ways import WAYS
from training.dataset import read_manifest

COMMANDS = {
    "render": "",
    "scrape": "",
    "filter": "raw --detector yolo.pt",
    "persons": "raw --detector yolo.pt --other ssdlite --weights ssdlite.pth",
    "train": "data",
    "probe": "",
    "infer": "best.pt --frames frames",
    "isa": "",
    "bot": "--frames frames",
    "robust": "data export --index index",
    "cuda": "--out cuda",
    "web": "--frames frames",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_line_gives_each_function_its_arguments(command):
    args = vars(bench.get_parser().parse_args([command, *COMMANDS[command].split()]))
    run = args.pop("run")
    assert run is getattr(bench, f"bench_{command}")
    inspect.signature(run).bind(**args)  # raises for an argument too many or too few


def test_missing_and_senseless_arguments_are_usage_errors(capsys):
    for line in ("", "filter raw", "infer best.pt", "render --frames 0", "scrape --images many"):
        with pytest.raises(SystemExit) as error:
            bench.main(line.split())
        assert error.value.code == 2
    assert "must be 1 or more" in capsys.readouterr().err


def test_render_prints_a_table_of_speeds(capsys):
    assert bench.main(["render", "--frames", "6"]) == 0
    out = capsys.readouterr().out
    head, rule, row = (line for line in out.splitlines() if line.startswith("|"))
    assert head.count("|") == rule.count("|") == row.count("|") and "frames/s" in head
    assert all(float(cell.replace(",", "")) > 0 for cell in row.split("|")[2:-1])


def test_two_detectors_are_compared_frame_by_frame(raw, monkeypatch, capsys):
    detectors = {
        "a.pt": lambda images: [1] * len(images),
        "ssdlite": lambda images: [n % 2 for n in range(len(images))],
    }
    monkeypatch.setattr("training.detector.person_detector", lambda name, **options: detectors[name])
    assert bench.main(["persons", str(raw), "--detector", "a.pt", "--other", "ssdlite", "--frames", "10"]) == 0
    out = capsys.readouterr().out
    assert "Of 10 frames, 5 are judged alike: 50.0%" in out and "| ssdlite |" in out


def test_scrape_and_its_server_work(capsys):
    assert bench.main(["scrape", "--images", "3", "--latency", "1"]) == 0
    assert "| scrape.py | " in capsys.readouterr().out


def test_ratio_is_over_one_where_a_row_is_better(capsys):
    first = {"ms": np.float64(30.0), "images/s": 10.0, "film": "A"}
    harness.show("Title", {"old": first, "new": {"ms": 10.0, "images/s": 15.0}, "half": {"film": "B"}}, "A note.")
    lines = capsys.readouterr().out.splitlines()
    assert "| old | 30.00 | 10.00 | A |" in lines
    assert "| new | 10.00 (3.00x) | 15.00 (1.50x) |  |" in lines
    assert "| half |  |  | B |" in lines and lines[-1] == "A note."


def test_robust_asks_in_every_way_and_counts_as_a_person_would(exported, dataset, tmp_path, capsys):
    sheet, place = tmp_path / "ways.png", tmp_path / "index.sqlite"
    line = ["robust", str(dataset), str(exported), "--frames", "3", "--sheet", str(sheet)]
    assert bench.main(line) == 0
    rows = [row.split("|")[1].strip() for row in capsys.readouterr().out.splitlines() if row.startswith("| ")]
    assert rows[2:] == list(WAYS) and sheet.stat().st_size > 10_000
    assert bench.main([*line, "--index", str(place)]) == 0
    assert (tmp_path / "ways-frontier.png").stat().st_size > 10_000
    known = {film.title: film.stills for film in Collection(place).films()}
    rows = read_manifest(dataset)
    assert known == {
        title: sum(row.movie == title and row.split in ("train", "val") for row in rows) for title in known
    }  # no test frame is in it, and no unknown film


def test_robust_over_folds_computes_each_embedding_once(dataset, tmp_path, capsys, monkeypatch):
    from test_index import write_model

    model, cache = write_model(tmp_path / "export", 8), tmp_path / "cache"
    line = ["robust", str(dataset), str(model), "--frames", "2", "--cache", str(cache)]
    assert bench.main(line) == 0
    first = [row for row in capsys.readouterr().out.splitlines() if row.startswith("|")]
    names = [row.split("|")[1].strip() for row in first]
    assert names.count("index, as it is") == 2 and "both, grey" in names and "classifier, 4 frames together" in names
    assert all("nan" not in row for row in first)
    monkeypatch.setattr(Embedded, "embed_picture", lambda *_: pytest.fail("it was computed again"))
    assert bench.main(line) == 0
    assert [row for row in capsys.readouterr().out.splitlines() if row.startswith("|")] == first
    assert bench.main([*line, "--fold", "2"]) == 2
    assert "leave out --index and --fold" in capsys.readouterr().err


def test_figures_of_answers():
    films = np.array(["A", "A", "B", "B"])
    known = [Answer("movie", [Candidate("A", 0.9)], 1.0), Answer("movie", [Candidate("B", 0.9)], 1.0)]
    known += [Answer("shortlist", [Candidate("A", 0.5), Candidate("B", 0.4)], 1.0)]
    known += [Answer("unknown", [Candidate("B", 0.1)], 3.0)]
    unknown = [Answer("movie", [Candidate("A", 0.9)], 1.0), Answer("unknown", [Candidate("A", 0.2)], 1.0)]
    row = measure_answers(Answers(known, films, unknown))
    assert row["top-1"] == "0.500" and row["balanced (95%, by films)"].startswith("0.500 (0.50 to 0.50)")
    assert row["known named"] == "0.500" and row["helpful"] == "0.500"
    assert row["named, by films (95%)"].startswith("0.500 (0.00 to 1.00)")
    for share in (0.1, 0.3, 0.6):
        right = (1 - share) * 0.25 / ((1 - share) * 0.5 + share * 0.5)
        assert row[f"right of named, {share:.0%} unknown"] == f"{right:.3f}"
    assert row["unknown not named"] == "0.500"
