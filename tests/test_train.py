"""python -m pytest tests/test_train.py"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_small_clip

import train
from data import choose_rows, read_manifest
from frames import FrameStore
from image import UserError
from metrics import measure, softmax
from models import Checkpoint, build_model, load_weights
from probe import predict
from recipes import RECIPES
from train import train_model

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
    assert {"format", "model", "arch", "classes", "preprocessing", "args", "figures", "commit"} <= set(state)
    test = json.loads((run / "test.json").read_text())
    assert test["test"]["top1"] >= 0.8  # textures are easy; a third would be chance
    assert 0 <= test["test"]["auroc"] <= 1
    with open(run / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 14
    assert "test_resnet" in (run.parent / "results.md").read_text()


def train_process(dataset: Path, out: Path, *argv: str, before: str = "", **environment: str):
    """train.py in a process of its own, on one thread: sums of several threads differ in their last bits."""
    code = f"import os, signal, sys, train\n{before}\nsys.exit(train.main(sys.argv[1:]))\n"
    recipe = ["--epochs", "3", "--batch-size", "16", "--lr", "2e-3", "--train-size", "64", "--precision", "fp32"]
    command = [str(dataset), "--arch", "test_resnet", "--no-pretrained", *recipe, "--out", str(out), *argv]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"} | environment
    return subprocess.run(
        [sys.executable, "-c", code, *command], cwd=ROOT, env=settings, capture_output=True, text=True
    )


AT_A_STEP = """
real, n = train.augment, [0]
def augment(*a):
    n[0] += 1
    if n[0] == 5: {act}
    return real(*a)
train.augment = augment
"""
AT_AN_EPOCH = """
real = train.Checkpoint.save
def save(checkpoint, path):
    real(checkpoint, path)
    if path.name == "last.pt" and len(checkpoint.training["history"]) == 2: os.kill(os.getpid(), 9)
train.Checkpoint.save = save
"""


@pytest.fixture(scope="module")
def unbroken(dataset, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    assert train_process(dataset, out, "--name", "whole").returncode == 0
    return out / "whole"


@pytest.mark.parametrize(
    ("before", "code"),
    [
        (AT_AN_EPOCH, -9),
        (AT_A_STEP.format(act="os.kill(os.getpid(), signal.SIGTERM)"), 130),
        (AT_A_STEP.format(act="os.kill(os.getpid(), signal.SIGINT)"), 130),
    ],
    ids=["kill", "SIGTERM", "Ctrl-C"],
)
def test_resume_equals_an_unbroken_run_bit_for_bit(dataset, unbroken, tmp_path, before, code):
    result = train_process(dataset, tmp_path, "--name", "broken", before=before)
    assert result.returncode == code
    if code == 130:
        assert "--resume" in result.stderr and "Traceback" not in result.stderr
    assert "--resume" in train_process(dataset, tmp_path, "--name", "broken").stderr  # refused: there is a run
    result = train_process(dataset, tmp_path, "--name", "broken", "--resume")
    assert result.returncode == 0 and "after epoch" in result.stdout
    a, b = (torch.load(r / "last.pt", weights_only=True) for r in (unbroken, tmp_path / "broken"))
    for one, two in ((a["model"], b["model"]), (a["training"]["model"], b["training"]["model"])):
        assert all(torch.equal(one[k], two[k]) for k in one)
    histories = []
    for state in (a, b):
        rows = state["training"]["history"]
        histories.append([{k: v for k, v in row.items() if k not in ("images_per_s", "mfu")} for row in rows])
    assert histories[0] == histories[1] and len(histories[0]) == 3
    one, two = (json.loads((r / "test.json").read_text()) for r in (unbroken, tmp_path / "broken"))
    assert one["test"] == two["test"]


def test_a_run_of_other_options_is_not_continued(dataset, unbroken, tmp_path):
    import shutil

    shutil.copytree(unbroken, tmp_path / "whole")
    for argv in (["--lr", "0.5"], ["--seed", "1"], ["--fold", "2"]):
        result = train_process(dataset, tmp_path, "--name", "whole", "--resume", *argv)
        assert result.returncode == 2 and argv[0].strip("-") in result.stderr and "--overwrite" in result.stderr


def test_two_processes_train_what_one_trains(dataset, tmp_path):
    """The same batches, augmentation and dropout off: the weights agree, so the figures do."""
    recipe = ["--epochs", "2", "--batch-size", "16", "--lr", "1e-3", "--crop", "1", "--flip", "0", "--colour", "0"]
    recipe += ["--corrupt", "0", "--precision", "fp32", "--no-intermediate", "--no-pretrained"]
    command = [str(ROOT / "train.py"), str(dataset), "--arch", "test_vit3", *recipe, "--cache", str(tmp_path / "c")]
    shared_out = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, launcher in (("one", []), ("two", shared_out), ("probe-one", []), ("probe-two", shared_out)):
        argv = [sys.executable, *launcher, *command, "--out", str(tmp_path), "--name", name]
        argv += ["--epochs", "0", "--probe", "0.3", "--intermediate", "--refit"] if name.startswith("probe") else []
        result = subprocess.run(argv, env=settings, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("next: python export.py") == 1
    one, two = (torch.load(tmp_path / n / "last.pt", weights_only=True) for n in ("one", "two"))
    for k in one["model"]:
        torch.testing.assert_close(one["model"][k], two["model"][k], rtol=1e-3, atol=1e-4)
    for pair, splits in (("{}", ("val", "test")), ("probe-{}", ("val", "test", "held_out"))):
        one, two = (json.loads((tmp_path / pair.format(n) / "test.json").read_text()) for n in ("one", "two"))
        for split in splits:
            assert one[split] == pytest.approx(two[split], abs=2e-3)


def test_wandb_logs_offline_and_is_off_by_default(dataset, unbroken, tmp_path):
    assert not (unbroken / "wandb").exists()
    pytest.importorskip("wandb", reason="pip install wandb")
    result = train_process(dataset, tmp_path, "--name", "logged", "--wandb")
    assert result.returncode == 0, result.stderr
    (log,) = (tmp_path / "logged" / "wandb").glob("offline-run-*/*.wandb")
    assert b"balanced" in log.read_bytes()
    blocked = train_process(dataset, tmp_path, "--name", "x", "--wandb", before="sys.modules['wandb'] = None")
    assert blocked.returncode == 2 and "pip install wandb" in blocked.stderr


def test_zero_shot_is_clips_first_figure(dataset, tmp_path, capsys):
    save_small_clip(tmp_path / "clip", 512)
    options = {"arch": "clip_vit_base_patch32", "init": str(tmp_path / "clip"), "pretrained": True}
    run = quick(dataset, tmp_path, recipe={"epochs": 1, "train_size": 224, "probe": 0.0}, **options)
    text = capsys.readouterr().out
    assert text.index("zero-shot: val top-1") < text.index("epoch   1/1")
    with open(run / "metrics.csv", newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]


def test_in_batch_accuracy_has_a_ceiling_that_ours_has_not():
    """The original asked each of 64 frames for its own text among the batch's: hopeless where all are of one film."""
    classes = 10
    texts = torch.nn.functional.normalize(torch.randn(classes, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    one_film = np.full(64, 3)  # an unshuffled loader gives such batches
    perfect = texts[one_film]  # each frame embedded exactly where its film's text is
    in_batch = (perfect @ texts[one_film].T).argmax(1)
    assert (in_batch == torch.arange(64)).float().mean() <= 1 / 64
    assert measure((100 * perfect @ texts.T).numpy(), one_film)["top1"] == 1.0


def test_all_folds_give_a_mean(dataset, tmp_path, capsys):
    argv = [str(dataset), "--arch", "test_vit3", "--no-pretrained", "--probe", "0.3", "--epochs", "0", "--fold", "all"]
    assert train.main([*argv, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out.splitlines()[-1]
    tests = [json.loads(p.read_text())["test"]["balanced"] for p in sorted(tmp_path.glob("*fold?/test.json"))]
    assert len(tests) == 5 and f"balanced {np.mean(tests):.4f} +- {np.std(tests):.4f}" in text


def test_layer_decay_rises_towards_the_head():
    for arch in ("mobilenetv2", "test_vit", "resnet10t"):
        model = build_model(arch, ["a", "b"], pretrained=False)
        recipe = RECIPES["best"] | {"lr": 1.0, "layer_decay": 0.5, "weight_decay": 0.1}
        optimiser, schedule = train.make_optimiser(model, recipe, 10)
        schedule.step_update(16)  # of 160 steps, where the warm-up ends
        groups = optimiser.param_groups
        rate = {id(p): g["lr"] for g in groups for p in g["params"]}
        assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
        rates = [rate[id(p)] for p in model.parameters()]
        assert rates == sorted(rates) and rates[0] < 0.3 * rates[-1]
        assert rate[id(model.head.weight)] == max(rates) == pytest.approx(1.0, rel=0.05)
        assert all(g["weight_decay"] == 0 for g in groups for p in g["params"] if p.ndim == 1)


def test_nan_stops_with_the_step_and_a_hint(dataset, tmp_path):
    with pytest.raises(UserError, match=r"from step [2-9] of \d+; lower --lr"):
        quick(dataset, tmp_path, recipe={"lr": 1e30, "warmup": 0.0})


def test_errors_are_one_line(dataset, tmp_path, capsys, monkeypatch):
    def no_compiler(net):
        def call(*_):
            raise torch._dynamo.exc.BackendCompilerFailed("inductor", OSError("no compiler"), None)

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
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
        ([str(dataset), "--arch", "test_resnet", "--epochs", "1", "--compile"], "--compile"),
        ([str(dataset), "--arch", "test_resnet", "--epochs", "0"], "--epochs 0 leaves the head as it began"),
        ([str(dataset), "--arch", "crossvit_tiny_240"], "--arch crossvit_tiny_240: can't take pictures of 224 pixels"),
        ([str(dataset), "--arch", "twins_svt_small", "--intermediate"], "no early blocks"),
        ([str(dataset), "--arch", "test_resnet", "--refit"], "--refit"),
    ]
    for argv, words in cases:
        assert train.main([*argv, "--no-pretrained", "--out", str(tmp_path / "runs")]) in (1, 2)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("train.py: error:") and words in error


def test_original_recipe_is_the_original(dataset, tmp_path):
    recipe = RECIPES["original"]
    optimiser, schedule = train.make_optimiser(torch.nn.Linear(2, 2), recipe, 1)
    rates = []
    for epoch in range(10):
        schedule.step_update(epoch)
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates == [1e-4] * 5 + [0.5e-4] * 5
    out = quick(dataset, tmp_path, recipe_name="original", recipe={}, split="random", limit=30)
    args = json.loads((out / "args.json").read_text())
    assert args["weight_decay"] == 1e-4 and args["keep_bars"] is True and args["schedule"] == "step"
    assert out.name == "test_resnet-small-original-limit30-randomsplit"
    assert "RANDOM" in (tmp_path / "results.md").read_text()


def test_a_fine_tuned_run_keeps_the_norm_of_its_probe(dataset, tmp_path):
    recipe = {"probe": 0.3, "intermediate": True, "epochs": 1, "lr": 1e-4, "train_size": 224}
    run = quick(dataset, tmp_path, arch="test_vit3", recipe=recipe)
    checkpoint = Checkpoint.load(run / "best.pt")
    model = checkpoint.build()
    assert checkpoint.args["intermediate"] is True
    assert not torch.equal(model.norm.running_var, torch.ones_like(model.norm.running_var))
    assert int(model.norm.num_batches_tracked) == 0


def test_refit_takes_val_in_and_leaves_answers_that_had_not_seen_their_fold(dataset, tmp_path):
    settings = {"probe": 0.3, "epochs": 0}
    plain = quick(dataset, tmp_path / "plain", arch="test_vit3", recipe=settings)
    run = quick(dataset, tmp_path / "refit", arch="test_vit3", recipe=settings | {"refit": True})
    before, after = (json.loads((r / "test.json").read_text()) for r in (plain, run))
    assert after["val"] == before["val"]  # never measured by a head that has learnt them
    checkpoint, rows = Checkpoint.load(run / "best.pt"), read_manifest(dataset)
    chosen, classes = choose_rows(rows)
    seen = chosen["train"] + chosen["val"]
    labels = np.array([classes.index(row["movie"]) for row in seen])
    store = FrameStore(rows, checkpoint.preprocessing, dataset / ".frames")
    options = {"device": torch.device("cpu"), "bf16": False}
    logits, embedding = predict(checkpoint.build(), store.take(seen), checkpoint.preprocessing, **options)
    held_out = {key: value.numpy() for key, value in checkpoint.held_out.items()}
    assert (held_out["labels"] == labels).all() and set(held_out["folds"]) > {0, 1, 2}
    x = embedding.astype(float)

    def reference(fit):  # the linear discriminant, written down once more
        means = np.stack([x[fit & (labels == c)].mean(0) for c in range(3)])
        within = np.mean([np.cov(x[fit & (labels == c)].T, bias=True) for c in range(3)], axis=0)
        shrunk = 0.7 * within + 0.3 * np.trace(within) / len(within) * np.eye(len(within))
        weight = np.linalg.solve(shrunk, means.T).T
        return x @ weight.T - 0.5 * (weight * means).sum(1)

    def centred(z):
        return z - z.mean(1, keepdims=True)

    def agree(ours, theirs):  # up to the temperature, one number
        ours, theirs = centred(ours), centred(theirs)
        np.testing.assert_allclose(ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs), atol=2e-4)

    agree(logits, reference(np.ones(len(x), bool)))
    out, wanted = held_out["folds"] >= 0, np.zeros((len(x), 3))
    for k in set(held_out["folds"]) - {-1}:
        wanted[held_out["folds"] == k] = reference(held_out["folds"] != k)[held_out["folds"] == k]
    agree(held_out["logits"][out], wanted[out])
    assert softmax(held_out["logits"][out])[np.arange(out.sum()), labels[out]].mean() > 0.4
    quick(dataset, tmp_path / "refit", arch="test_vit3", recipe=settings | {"refit": True}, resume=True)
    assert json.loads((run / "test.json").read_text()) == after
    with pytest.raises(UserError, match="--refit"):
        quick(dataset, tmp_path / "none", recipe={"refit": True})


def test_a_refit_head_is_not_taken_over(dataset, tmp_path, capsys):
    """It has learnt val frames, by which the run that starts from it would choose its epoch."""
    for refit, words in ((False, "head taken over"), (True, "head new")):
        settings = {"probe": 0.3, "epochs": 0, "refit": refit}
        run = quick(dataset, tmp_path / str(refit), arch="test_vit3", recipe=settings)
        classes = Checkpoint.load(run / "best.pt").classes
        load_weights(build_model("test_vit3", classes, pretrained=False), run / "best.pt", classes)
        assert words in capsys.readouterr().out


@pytest.mark.parametrize("beyond_chance", [False, True])
def test_a_probe_is_left_only_for_what_beats_it_beyond_chance(dataset, tmp_path, monkeypatch, beyond_chance):
    monkeypatch.setattr(train, "significantly_worse", lambda reference, other: beyond_chance or reference.all())
    run = quick(dataset, tmp_path, recipe={"probe": 1.0})
    with open(run / "metrics.csv", newline="") as file:
        probe, *epochs = (float(row["balanced"]) for row in csv.DictReader(file))
    assert max(epochs) > probe
    assert (json.loads((run / "test.json").read_text())["best_epoch"] > 0) == beyond_chance


def test_nothing_is_trained_that_could_not_win(dataset, tmp_path, capsys):
    run = quick(dataset, tmp_path, arch="test_vit3", recipe={"probe": 0.3, "epochs": 2, "train_size": 224}, limit=12)
    told = "training could not beat that" in capsys.readouterr().out
    errors = round((1 - json.loads((run / "test.json").read_text())["val"]["top1"]) * 12)
    with open(run / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == (1 if told else 3)
    assert told == (errors < 5)


def test_weights_that_may_have_seen_test_frames_are_refused(dataset, tmp_path):
    run = quick(dataset, tmp_path, recipe={"epochs": 1}, fold=0)
    for settings in ({"fold": 1}, {"split": "random"}, {}):
        with pytest.raises(UserError, match="may have seen test frames"):
            quick(dataset, tmp_path / "b", init=run / "best.pt", **settings)
    assert quick(dataset, tmp_path / "b", recipe={"epochs": 1}, init=run / "best.pt", fold=0).exists()


def test_leak_check_refuses_what_it_would_ignore(dataset, capsys):
    argv = [str(dataset), "--leak-check", "--no-pretrained"]
    for more in (["--arch", "all"], ["--fold", "1"], ["--split", "random"], ["--epochs", "3"], ["--name", "x"]):
        with pytest.raises(SystemExit) as stop:
            train.main([*argv, *more])
        assert stop.value.code == 2 and f"{more[0]} " in capsys.readouterr().err
    argv += ["--arch", "test_resnet"]
    for more, words in ((["--device", "abacus"], "--device abacus"), (["--limit", "4"], "five frames of each film")):
        assert train.main([*argv, *more]) in (1, 2)
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


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
    assert train.main([str(tmp_path / "data"), "--arch", "test_resnet", "--no-pretrained", "--leak-check"]) == 0
    lines = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    random, grouped = (float(lines[name].split()[2]) for name in ("random", "grouped"))
    assert random > grouped + 0.2 and not (tmp_path / "runs").exists()


def test_no_unknown_films_is_no_error(dataset, tmp_path):
    """A collection in which every film has frames enough."""
    rows = read_manifest(dataset)
    lines = (dataset / "manifest.csv").read_text().splitlines()
    data = tmp_path / "known"
    data.mkdir()
    (data / "movies").symlink_to(dataset / "movies")
    known = [line for line, row in zip(lines[1:], rows, strict=True) if not row["split"].startswith("unknown")]
    (data / "manifest.csv").write_text("\n".join([lines[0], *known]) + "\n")
    run = quick(data, tmp_path, arch="test_vit3", recipe={"probe": 0.3, "intermediate": True, "epochs": 0})
    figures = json.loads((run / "test.json").read_text())["test"]
    assert figures["auroc"] is None and figures["top1"] > 0
