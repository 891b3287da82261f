"""python -m pytest tests/test_comparison.py"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from training.comparison import build_tables, draw_table, read_runs, write_comparison, write_export
from training.dataset import write_csv
from training.formats import FormatFigures
from training.recipes import RECIPES

FILMS = 6
EACH = 20  # test frames a film


def save_run(
    out: Path, arch: str, wrong: int, *, fold: int | None = 0, kept: bool = True, epochs: int = 0, **more
) -> Path:
    """A run's folder without weights; of its 120 test frames the first of these are wrong. more: of args."""
    args = {"arch": arch, "recipe": "best", "split": "group", "fold": fold, "data": "data/films", "limit": None}
    args |= RECIPES["best"] | {"probe": 0.3, "epochs": epochs, "weights": "pretrained", "protocol": None} | more
    folder = out / f"{arch}-{len(list(out.glob('*')))}"
    folder.mkdir(parents=True)
    right = np.arange(FILMS * EACH) >= wrong
    films = np.repeat([f"Film {k} (200{k})" for k in range(FILMS)], EACH)
    shares = right.reshape(FILMS, EACH).mean(1)
    figures = {"top1": float(right.mean()), "balanced": float(shares.mean()), "auroc": 0.9}
    report = {"run": folder.name, "args": args, "classes": FILMS, "best_epoch": epochs, "images_per_s": 0.0}
    report |= {"test": figures, "val": figures, "frames": {"train": 300, "val": 60, "test": 120}, "commit": "abc"}
    if kept:
        report |= {"seconds": 12.0, "memory_gb": 1.5, "parameters": 2_000_000, "ms_float": 8.0, "epochs": epochs}
        said = np.where(right, films, "another")
        rows = [{"frame": f"{k}.jpg", "movie": films[k], "said": said[k], "confidence": 1} for k in range(len(films))]
        write_csv(folder / "predictions.csv", ["frame", "movie", "said", "confidence"], rows)
    (folder / "test.json").write_text(json.dumps(report))
    return folder


def only_table(out: Path) -> list:
    (rows,) = build_tables(read_runs(out)).values()
    return rows


def test_folds_are_averaged_and_a_random_split_is_not(tmp_path):
    for fold, wrong in enumerate((0, 6, 12, 18, 24)):
        save_run(tmp_path, "mobilenetv2", wrong, fold=fold)
    save_run(tmp_path, "mobilenetv2", 0, fold=None, split="random")
    assert write_comparison(tmp_path) == 6
    (row,) = only_table(tmp_path)
    assert row.top1.mean == pytest.approx(0.9) and row.top1.low < 0.9 < row.top1.high
    assert row.cells()["RANDOM split: top-1"] == "1.000" and row.folds == "0 1 2 3 4" and row.protocol == "probe"
    with open(tmp_path / "results.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert [item["fold"] for item in listed] == ["0", "1", "2", "3", "4", ""]
    assert listed[1]["test_top1"] == "0.95" and listed[1]["frames_a_film"] == "80.0" and listed[1]["seconds"] == "12.0"
    with Image.open(tmp_path / "results.png") as picture:
        assert np.asarray(picture.convert("L"), float).std() > 5


def test_the_interval_is_over_films(tmp_path):
    """20 wrong frames that are one whole film say less than 20 that lie everywhere."""
    save_run(tmp_path, "mobilenetv2", EACH)
    (row,) = only_table(tmp_path)
    assert row.balanced.low <= 0.5 and row.balanced.high == 1 and str(row.balanced) == "0.833 (0.50 to 1.00)"


def test_what_chance_cannot_tell_apart_is_bracketed(tmp_path):
    for arch, wrong in (("resnet50", 10), ("densenet121", 12), ("mobilenetv2", 17), ("vit_base_patch16_224", 60)):
        save_run(tmp_path, arch, wrong)
    rows = only_table(tmp_path)
    # 2 and 5 flips mean nothing, 7 to 0 do (p 0.016), and the last is like none
    assert [row.alike for row in rows] == ["a", "ab", "b", ""]


def test_random_weights_have_a_table_of_their_own(tmp_path):
    save_run(tmp_path, "resnet50", 10)
    save_run(tmp_path, "mobilenetv2", 20, weights="random")
    write_comparison(tmp_path)
    text = (tmp_path / "results.md").read_text()
    first, second = text.split("## ")[1:]
    assert "random weights" not in first.split("Means")[0] and "| mobilenetv2, random weights |" in second
    assert "resnet50" not in second


def test_rows_say_how_they_were_trained(tmp_path):
    save_run(tmp_path, "resnet50", 0)
    save_run(tmp_path, "resnet50", 1, epochs=6)
    save_run(tmp_path, "resnet50", 2, epochs=6, protocol="finetune")
    save_run(tmp_path, "resnet50", 3, epochs=6, protocol="finetune", lr=0.5)
    save_run(tmp_path, "resnet50", 4, epochs=10, recipe="original", probe=0.0)
    save_run(tmp_path, "clip_vit_base_patch32", 5, probe=0.0, zero_shot=True)
    assert [row.protocol for row in only_table(tmp_path)] == [
        "probe",
        "probe, or fine-tuned if better, 6 epochs",
        "fine-tuned, 6 epochs (lr 0.001)",
        "fine-tuned, 6 epochs (lr 0.5)",
        "original's recipe, 10 epochs",
        "zero-shot",
    ]


def test_folders_of_older_versions_are_read_as_far_as_they_tell(tmp_path):
    folder = save_run(tmp_path, "resnet50", 10, kept=False, epochs=3)
    report = json.loads((folder / "test.json").read_text())
    for key in ("weights", "protocol"):
        del report["args"][key]
    report["args"] |= {"pretrained": True, "init": None, "teacher": None}  # the last is gone since
    (folder / "test.json").write_text(json.dumps(report))
    (folder / "metrics.csv").write_text("epoch,loss\n0.0,1\n1.0,1\n2.0,1\n")  # it was stopped
    save_run(tmp_path, "mobilenetv2", 11)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "test.json").write_text('{"somebody": "else"}')
    assert write_comparison(tmp_path) == 2
    old, new = only_table(tmp_path)
    assert old.protocol == "probe, or fine-tuned if better, 2 epochs" and str(old.balanced) == "0.917"
    assert old.cells()["s to train"] is None and old.alike == new.alike == ""
    with open(tmp_path / "results.csv", newline="") as file:
        listed = {item["arch"]: item for item in csv.DictReader(file)}
    assert listed["resnet50"]["seconds"] == "" and listed["resnet50"]["weights"] == "pretrained"


def test_of_two_runs_on_one_fold_the_later_counts(tmp_path):
    save_run(tmp_path, "resnet50", 10, fold=1)
    save_run(tmp_path, "resnet50", 30, fold=1)
    save_run(tmp_path, "resnet50", 0, fold=None)  # the manifest's split is not one of the folds
    (row,) = only_table(tmp_path)
    assert row.top1.mean == 0.75 and row.folds == "1"


def test_an_export_gives_milliseconds(tmp_path):
    folder = save_run(tmp_path, "resnet50", 10)
    rows = {"onnxruntime fp32": (9.0, 94.0), "onnxruntime int8": (4.0, 24.0), "openvino int8": (3.0, 25.0)}
    known = {"top1": 0.9, "balanced": 0.9, "agreement": 1.0, "relative_error": 0.01}
    rest = {name: 1 for name in FormatFigures.__dataclass_fields__ if name not in (*known, "ms", "mb")}
    write_export(folder, {name: FormatFigures(**known, **rest, ms=ms, mb=mb) for name, (ms, mb) in rows.items()})
    (row,) = only_table(tmp_path)
    assert (row.cells()["ms, int8"], row.cells()["MB, int8"], row.ms) == ("3.0", "25.0", 3.0)
    (folder / "export.json").write_text("{}")
    (row,) = only_table(tmp_path)
    assert row.cells()["ms, int8"] is None and row.ms == 8.0


def test_the_original_s_points_are_hollow_and_say_why(tmp_path):
    save_run(tmp_path, "deit_base_patch16_224", 10)
    save_run(tmp_path, "test_resnet", 10)
    ((table, rows),) = build_tables(read_runs(tmp_path)).items()
    axes = Figure().subplots()
    draw_table(axes, table, rows)
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert [float(line.get_ydata()[0]) for line in hollow] == [0.9565]  # six films are nearest to its five
    assert any("Not comparable" in text.get_text() for text in axes.texts)
    save_run(tmp_path / "other", "test_resnet", 10)
    ((table, rows),) = build_tables(read_runs(tmp_path / "other")).items()
    axes = Figure().subplots()
    draw_table(axes, table, rows)
    assert not axes.texts
