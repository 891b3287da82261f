"""python -m pytest tests/test_train.py"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from identify import UserError
from models import build_model
from train import choose_rows, measure, read_manifest, train_model

ROOT = Path(train.__file__).parent
QUICK = {"epochs": 3, "batch_size": 16, "lr": 2e-3, "train_size": 64}


def quick(dataset, out, **kwargs):
    recipe = QUICK | kwargs.pop("recipe", {})
    kwargs = {"arch": "test_resnet", "pretrained": False, "precision": "fp32"} | kwargs
    return train_model(dataset, recipe=recipe, out=out, **kwargs)


def test_run_folder_is_whole(run):
    assert {p.name for p in run.iterdir()} == {
        "args.json", "metrics.csv", "best.pt", "last.pt", "curves.png", "confusion.png", "mistakes.png", "test.json",
    }  # fmt: skip
    state = torch.load(run / "best.pt", weights_only=True)
    assert {"model", "arch", "classes", "preprocessing", "args", "figures", "commit"} <= set(state)
    test = json.loads((run / "test.json").read_text())
    assert test["test"]["top1"] >= 0.8  # textures are easy; a third would be chance
    assert 0 <= test["test"]["auroc"] <= 1
    with open(run / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 14
    assert "test_resnet" in (run.parent / "results.md").read_text()


def test_measures_agree_with_sklearn_and_by_hand():
    from sklearn import metrics

    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 7)), rng.integers(0, 7, 200)
    logits[np.arange(200), labels] += 1
    unknown = rng.normal(size=(50, 7))
    figures = measure(logits, labels, unknown)
    top = torch.softmax(torch.tensor(logits), 1).numpy()
    assert figures["top1"] == pytest.approx(metrics.accuracy_score(labels, logits.argmax(1)))
    assert figures["top5"] == pytest.approx(metrics.top_k_accuracy_score(labels, top, k=5))
    assert figures["balanced"] == pytest.approx(metrics.balanced_accuracy_score(labels, logits.argmax(1)))
    assert figures["loss"] == pytest.approx(metrics.log_loss(labels, top))
    rest = torch.softmax(torch.tensor(unknown), 1).numpy().max(1)
    pairs = np.mean([(a > b) + 0.5 * (a == b) for a in top.max(1) for b in rest])
    assert figures["auroc"] == pytest.approx(pairs)
    assert train.expected_calibration_error(np.eye(2)[[0, 1]], np.array([0, 1])) == 0
    assert train.expected_calibration_error(np.eye(2)[[0, 1]], np.array([1, 0])) == 1


def test_resume_equals_an_unbroken_run(dataset, tmp_path):
    whole = quick(dataset, tmp_path, name="whole")
    code = (
        "import os, sys, pathlib, train\n"
        "real = train._write_metrics\n"
        "def write(path, history):\n"
        "    real(path, history)\n"
        "    if len(history) == 2: os.kill(os.getpid(), 9)\n"
        "train._write_metrics = write\n"
        f"train.train_model(pathlib.Path(sys.argv[1]), arch='test_resnet', pretrained=False, recipe={QUICK!r},\n"
        "    out=pathlib.Path(sys.argv[2]), name='broken', precision='fp32')\n"
    )
    command = [sys.executable, "-c", code, str(dataset), str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -9
    with pytest.raises(UserError, match="--resume"):
        quick(dataset, tmp_path, name="broken")
    broken = quick(dataset, tmp_path, name="broken", resume=True)
    a, b = (torch.load(r / "last.pt", weights_only=True) for r in (whole, broken))
    # equal bit for bit but for the order in which threads add up; a lost state would differ by whole steps of 2e-3
    for key in ("model", "training"):
        for k in a[key]:
            torch.testing.assert_close(a[key][k], b[key][k], rtol=1e-4, atol=1e-4)
    assert [r["loss"] for r in a["history"]] == pytest.approx([r["loss"] for r in b["history"]], abs=1e-3)


def test_splits_that_are_asked_for(dataset):
    rows = read_manifest(dataset)
    chosen, classes = choose_rows(rows)
    assert len(classes) == 3 and len(chosen["train"]) > len(chosen["val"]) > 0
    tests = [choose_rows(rows, fold=k)[0] for k in range(5)]
    assert sorted(r["path"] for t in tests for r in t["test"]) == sorted(
        r["path"] for s in ("train", "val", "test") for r in chosen[s]
    )
    for fold in tests:
        groups = [{r["group"] for r in fold[s]} for s in ("train", "val", "test")]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    random, _ = choose_rows(rows, split="random")
    assert {r["group"] for r in random["train"]} & {r["group"] for r in random["test"]}  # that is what it is for
    small, _ = choose_rows(rows, limit=6)
    assert all(len(part) <= 6 for part in small.values())
    assert len(choose_rows(rows, subset=2)[1]) == 2
    with pytest.raises(UserError, match="only 3 films"):
        choose_rows(rows, subset=4)


def test_augment_keeps_shape_and_is_repeatable():
    frames = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    from identify import PREPROCESSING

    spec, recipe = PREPROCESSING, train.RECIPES["best"]
    one, two = (train.augment(frames, spec, recipe, 48, torch.Generator().manual_seed(1)) for _ in range(2))
    assert one.shape == (5, 3, 48, 48) and torch.equal(one, two) and torch.isfinite(one).all()
    plain = recipe | {"crop": 1.0, "flip": 0, "colour": 0, "degrade": 0}
    same = train.augment(frames, spec, plain, 64, torch.Generator())
    torch.testing.assert_close(same, train.normalise(frames, spec), atol=1e-3, rtol=1e-3)
    mirrored = train.augment(frames, spec, plain | {"flip": 1.0}, 64, torch.Generator())
    torch.testing.assert_close(mirrored, same.flip(3), atol=1e-3, rtol=1e-3)


def test_layer_decay_rises_towards_the_head():
    for arch in ("mobilenetv2", "test_vit", "resnet10t"):
        model = build_model(arch, ["a", "b"], pretrained=False)
        groups = train.parameter_groups(model, lr=1.0, weight_decay=0.1, first_layer=0.01)
        rate = {id(p): g["lr"] for g in groups for p in g["params"]}
        assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
        parameters = list(model.parameters())
        assert rate[id(parameters[0])] == pytest.approx(0.01) and rate[id(model.head.weight)] == pytest.approx(1.0)
        weights = [rate[id(p)] for p in parameters if p.ndim > 1]
        assert weights == sorted(weights)
        assert all(g["weight_decay"] == 0 for g in groups for p in g["params"] if p.ndim == 1)


def test_nan_stops_with_a_hint(dataset, tmp_path):
    with pytest.raises(UserError, match="--lr"):
        quick(dataset, tmp_path, recipe={"lr": 1e30, "warmup": 0.0})


def test_errors_are_one_line(dataset, tmp_path, capsys):
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "manifest.csv").write_text("path,movie,split,group\nmovies/x.jpg,X,train,X#0\n")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.csv").write_text("a,b\n1,2\n")
    cases = [
        ([str(tmp_path)], "filter.py"),
        ([str(lost)], "movies/x.jpg"),
        ([str(tmp_path / "bad")], "columns"),
        ([str(dataset), "--arch", "nothing_at_all"], "--arch"),
        ([str(dataset), "--subset", "40"], "--subset"),
    ]
    for argv, words in cases:
        assert train.main([*argv, "--no-pretrained", "--out", str(tmp_path / "runs")]) in (1, 2)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("train.py: error:") and words in error


def test_original_recipe_is_the_original(dataset, tmp_path):
    recipe = train.RECIPES["original"]
    assert [train.rate_at(e, steps=10, per_epoch=1, recipe=recipe) for e in range(10)] == [1] * 5 + [0.5] * 5
    out = quick(dataset, tmp_path, recipe_name="original", recipe={}, split="random", limit=30)
    args = json.loads((out / "args.json").read_text())
    assert args["weight_decay"] == 1e-4 and args["keep_bars"] is True and args["schedule"] == "step"
    assert out.name == "test_resnet-small-original-limit30-randomsplit"
    assert "RANDOM" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_probe_is_the_mean_of_one_regression_a_level(levels, classes):
    from sklearn.linear_model import LogisticRegression

    model = build_model("test_vit3", list("abc"[:classes]), pretrained=False, levels=levels).eval()
    generator = torch.Generator().manual_seed(0)
    labels = np.arange(24) % classes
    images = torch.randn(24, 3, 224, 224, generator=generator)
    images += torch.from_numpy(labels).view(-1, 1, 1, 1)
    with torch.no_grad():
        if levels:
            model.set_norm(model(images)[1])
        embedding = model(images)[1]
        train.start_head(model, embedding.numpy(), labels, 30.0)
        logits = model(images)[0].numpy()
    expected = []
    for part in embedding.double().split(model.dims, 1):
        part = (part - part.mean(0)) / (part - part.mean(0)).norm(dim=1).mean()
        probe = LogisticRegression(C=30.0, max_iter=1000, class_weight="balanced").fit(part, labels)
        z = probe.decision_function(part)
        expected.append(np.stack([-z, z], 1) / 2 if classes == 2 else z)
    centred = logits - logits.mean(1, keepdims=True)
    expected = np.mean(expected, 0)
    np.testing.assert_allclose(centred, expected - expected.mean(1, keepdims=True), atol=2e-3)
    assert (logits.argmax(1) == labels).mean() > 0.9


def test_gentle_run_keeps_the_norm_of_its_probe(dataset, tmp_path):
    run = quick(dataset, tmp_path, arch="test_vit3", recipe={"probe": 30.0, "levels": True, "epochs": 1, "lr": 1e-4})
    state = torch.load(run / "best.pt", weights_only=True)
    assert state["args"]["levels"] is True
    model = build_model("test_vit3", state["classes"], pretrained=False, levels=True).eval()
    fresh = model.norm.running_var.clone()
    model.load_state_dict(state["model"])
    assert not torch.equal(model.norm.running_var, fresh) and int(model.norm.num_batches_tracked) == 0


def test_leak_check_shows_what_neighbours_give_away(tmp_path, capsys):
    """Films that differ by nothing but their shots: at random a probe knows the shots, by groups it knows nothing."""
    from conftest import draw_frame

    from filter import filter_films

    for film in range(3):
        folder = tmp_path / "raw" / f"Film {film}"
        folder.mkdir(parents=True)
        for shot in range(10):
            for frame in range(4):
                draw_frame(7, 100 * film + shot, frame).save(folder / f"shot_{shot:04}_img_{frame}.jpg")
    filter_films([tmp_path / "raw"], tmp_path / "data", detector="none", min_frames=12)
    results = train.leak_check(tmp_path / "data", arch="test_resnet", pretrained=False)
    assert results["random"]["top1"] > results["grouped"]["top1"] + 0.2
    assert train.main([str(tmp_path / "data"), "--arch", "test_resnet", "--no-pretrained", "--leak-check"]) == 0
    assert "random" in capsys.readouterr().out and not (tmp_path / "runs").exists()


def test_no_unknown_films_is_no_error(dataset, tmp_path):
    """A collection in which every film has frames enough."""
    rows = read_manifest(dataset)
    lines = (dataset / "manifest.csv").read_text().splitlines()
    data = tmp_path / "known"
    data.mkdir()
    (data / "movies").symlink_to(dataset / "movies")
    known = [line for line, row in zip(lines[1:], rows, strict=True) if not row["split"].startswith("unknown")]
    (data / "manifest.csv").write_text("\n".join([lines[0], *known]) + "\n")
    run = quick(data, tmp_path, arch="test_vit3", recipe={"probe": 30.0, "levels": True, "epochs": 0})
    figures = json.loads((run / "test.json").read_text())["test"]
    assert figures["auroc"] is None and figures["top1"] > 0
