"""python -m pytest tests/test_bench.py"""

import inspect

import numpy as np
import pytest

import bench

COMMANDS = {
    "render": "",
    "scrape": "",
    "filter": "raw --detector yolo.pt",
    "train": "data",
    "probe": "",
    "infer": "best.pt --frames frames",
    "isa": "",
    "bot": "--frames frames",
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


def test_scrape_and_its_server_work(capsys):
    assert bench.main(["scrape", "--images", "3", "--latency", "1"]) == 0
    assert "| scrape.py | " in capsys.readouterr().out


def test_ratio_is_over_one_where_a_row_is_better(capsys):
    first = {"ms": np.float64(30.0), "images/s": 10.0, "film": "A"}
    bench.show("Title", {"old": first, "new": {"ms": 10.0, "images/s": 15.0}, "half": {"film": "B"}}, "A note.")
    lines = capsys.readouterr().out.splitlines()
    assert "| old | 30.00 | 10.00 | A |" in lines
    assert "| new | 10.00 (3.00x) | 15.00 (1.50x) |  |" in lines
    assert "| half |  |  | B |" in lines and lines[-1] == "A note."
