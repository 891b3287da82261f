"""python -m pytest tests/test_train.py"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

import models
import train
from identify import softmax
from image import UserError
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
real = train._write_metrics
def write(path, history):
    real(path, history)
    if len(history) == 2: os.kill(os.getpid(), 9)
train._write_metrics = write
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
    assert "--resume" in train_process(dataset, tmp_path, "--name", "broken").stderr
    result = train_process(dataset, tmp_path, "--name", "broken", "--resume")
    assert result.returncode == 0 and "after epoch" in result.stdout
    assert ("steps" in result.stdout) == (code == 130)  # a signal keeps the steps of an epoch too
    a, b = (torch.load(r / "last.pt", weights_only=True) for r in (unbroken, tmp_path / "broken"))
    for key in ("model", "training"):
        assert all(torch.equal(a[key][k], b[key][k]) for k in a[key])
    speed = {"images_per_s", "mfu"}
    assert [{k: v for k, v in r.items() if k not in speed} for r in a["history"]] == [
        {k: v for k, v in r.items() if k not in speed} for r in b["history"]
    ]
    one, two = (json.loads((r / "test.json").read_text()) for r in (unbroken, tmp_path / "broken"))
    assert one["test"] == two["test"]


def test_two_processes_train_what_one_trains(dataset, tmp_path):
    """The same batches, augmentation and dropout off: the weights agree, so the figures do."""
    recipe = ["--epochs", "2", "--batch-size", "16", "--lr", "1e-3", "--crop", "1", "--flip", "0", "--colour", "0"]
    recipe += ["--degrade", "0", "--precision", "fp32", "--probe", "30", "--levels", "--no-pretrained"]
    command = [str(ROOT / "train.py"), str(dataset), "--arch", "test_vit3", *recipe, "--cache", str(tmp_path / "c")]
    shared_out = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, launcher in (("one", []), ("two", shared_out), ("probe-one", []), ("probe-two", shared_out)):
        argv = [sys.executable, *launcher, *command, "--out", str(tmp_path), "--name", name]
        argv += ["--epochs", "0", "--refit"] if name.startswith("probe") else []
        result = subprocess.run(argv, env=settings, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("next: python export.py") == 1
    one, two = (torch.load(tmp_path / n / "last.pt", weights_only=True) for n in ("one", "two"))
    for key in ("model", "training"):
        for k in one[key]:
            torch.testing.assert_close(one[key][k], two[key][k], rtol=1e-3, atol=1e-4)
    for pair, splits in (("{}", ("val", "test")), ("probe-{}", ("val", "test", "held_out"))):
        one, two = (json.loads((tmp_path / pair.format(n) / "test.json").read_text()) for n in ("one", "two"))
        for split in splits:
            assert one[split] == pytest.approx(two[split], abs=2e-3)
    argv = [sys.executable, *shared_out, *command, "--out", str(tmp_path), "--batch-size", "15"]
    result = subprocess.run(argv, env=settings, capture_output=True, text=True, timeout=300)
    assert result.returncode != 0 and "--batch-size 15: must be a multiple of the 2 processes" in result.stderr


def test_frames_wait_on_disk_when_they_are_many(dataset, tmp_path, monkeypatch, capsys):
    chosen, _ = choose_rows(read_manifest(dataset))
    spec = train.preprocessing_for("test_resnet")
    here = train.gather_frames(chosen, spec, (96, 64), None, True)
    monkeypatch.setattr(train, "CACHE_BYTES", 1)
    there = train.gather_frames(chosen, spec, (96, 64), tmp_path, True)
    assert set(here) == set(there) and len(list(tmp_path.glob("*.npy"))) == 2 and "wait in" in capsys.readouterr().out
    for split, frames in here.items():
        assert torch.equal(there[split][:], frames) and len(there[split]) == len(frames)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.npy")}
    monkeypatch.setattr(train, "load_frames", None)  # nothing is decoded twice, in whatever split it stands
    fold, _ = choose_rows(read_manifest(dataset), fold=2)
    train.gather_frames(fold, spec, (96, 64), tmp_path, True)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.npy")}
    mine = tmp_path / "96x64-mine.npy"
    mine.touch()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"--cache .*No space left"):
        train.gather_frames(chosen, spec, (90, 60), tmp_path, True)
    assert mine.exists() and not list(tmp_path.glob(".*.part"))


def test_a_run_from_the_cache_is_the_run_from_memory(dataset, unbroken, tmp_path):
    result = train_process(dataset, tmp_path, "--name", "c", "--cache", str(tmp_path), before="train.CACHE_BYTES = 1")
    assert result.returncode == 0 and list(tmp_path.glob("*.npy"))
    a, b = (torch.load(r / "last.pt", weights_only=True)["model"] for r in (unbroken, tmp_path / "c"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_wandb_logs_offline_and_is_off_by_default(dataset, unbroken, tmp_path):
    assert not (unbroken / "wandb").exists()
    pytest.importorskip("wandb", reason="pip install wandb")
    result = train_process(dataset, tmp_path, "--name", "logged", "--wandb")
    assert result.returncode == 0, result.stderr
    (log,) = (tmp_path / "logged" / "wandb").glob("offline-run-*/*.wandb")
    assert b"balanced" in log.read_bytes()
    blocked = train_process(dataset, tmp_path, "--name", "x", "--wandb", before="sys.modules['wandb'] = None")
    assert blocked.returncode == 2 and "pip install wandb" in blocked.stderr


def test_crops_of_the_original_are_torchvisions(monkeypatch):
    """Shares of the sides and aspect ratios of 4,000 crops against torchvision's RandomResizedCrop."""
    from torchvision.transforms import RandomResizedCrop

    seen, real = [], train.F.affine_grid
    monkeypatch.setattr(train.F, "affine_grid", lambda theta, *a, **k: seen.append(theta) or real(theta, *a, **k))
    frames = torch.zeros(4000, 15, 38, 3, dtype=torch.uint8)  # near 600 to 256
    spec = train.preprocessing_for("test_resnet")
    train.augment(frames, spec, train.RECIPES["original"], 8, torch.Generator().manual_seed(0))
    theta = seen[0]
    torch.manual_seed(0)
    image = torch.zeros(3, 1500, 3800)  # larger, so that whole pixels do not matter
    theirs = [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    top, left, height, width = np.array(theirs, float).T
    ours = np.stack([theta[:, 0, 0], theta[:, 1, 1], (theta[:, 0, 2] + 1) / 2, (theta[:, 1, 2] + 1) / 2])
    theirs = np.stack([width / 3800, height / 1500, (left + width / 2) / 3800, (top + height / 2) / 1500])
    shares = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(np.quantile(ours, shares, axis=1), np.quantile(theirs, shares, axis=1), atol=0.03)


def test_zero_shot_is_clips_first_figure(dataset, tmp_path, capsys):
    from transformers import CLIPConfig, CLIPModel

    from models import byte_tokenizer

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    parts = {"text_config": small | {"projection_dim": 512}, "vision_config": small | {"projection_dim": 512}}
    CLIPModel(CLIPConfig(**parts, projection_dim=512)).save_pretrained(tmp_path / "clip")
    byte_tokenizer().save_pretrained(tmp_path / "clip")
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


def test_all_folds_give_a_mean(dataset, tmp_path, capsys):
    argv = [str(dataset), "--arch", "test_vit3", "--no-pretrained", "--probe", "30", "--epochs", "0", "--fold", "all"]
    assert train.main([*argv, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out.splitlines()[-1]
    tests = [json.loads(p.read_text())["test"]["balanced"] for p in sorted(tmp_path.glob("*fold?/test.json"))]
    assert len(tests) == 5 and f"balanced {np.mean(tests):.4f} +- {np.std(tests):.4f}" in text


def test_augment_keeps_shape_and_is_repeatable():
    frames = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    from image import PREPROCESSING

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


def test_nan_stops_with_the_step_and_a_hint(dataset, tmp_path):
    with pytest.raises(UserError, match=r"epoch 1, step [2-9] of \d+; lower --lr"):
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
        ([str(dataset), "--arch", "test_resnet", "--epochs", "0", "--teacher", "x"], "does not go with --epochs 0"),
        ([str(dataset), "--arch", "crossvit_tiny_240"], "--arch crossvit_tiny_240: can't take pictures of 224 pixels"),
        ([str(dataset), "--arch", "twins_svt_small", "--levels"], "no early blocks"),
        ([str(dataset), "--arch", "test_resnet", "--refit"], "--refit"),
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


def test_refit_takes_val_in_and_leaves_answers_that_had_not_seen_their_stretch(dataset, tmp_path):
    from sklearn.linear_model import LogisticRegression

    settings = {"probe": 30.0, "epochs": 0}
    plain = quick(dataset, tmp_path / "plain", arch="test_vit3", recipe=settings)
    run = quick(dataset, tmp_path / "refit", arch="test_vit3", recipe=settings | {"refit": True})
    before, after = (json.loads((r / "test.json").read_text()) for r in (plain, run))
    assert after["val"] == before["val"]  # never measured by a head that has learnt them
    state = torch.load(run / "best.pt", weights_only=True)
    chosen, classes = choose_rows(read_manifest(dataset))
    seen = chosen["train"] + chosen["val"]
    labels = np.array([classes.index(row["movie"]) for row in seen])
    model, _ = models.load_run(run / "best.pt")
    spec, how = state["preprocessing"], {"device": torch.device("cpu"), "bf16": False}
    logits, embedding = train.predict(model, train.load_frames(seen, spec), spec, **how)
    embedding = embedding.astype(float)
    stretch = state["held_out"]["stretch"].numpy()
    assert (stretch == train.hold_out_stretches(seen)).all() and set(stretch) > {0, 1, 2}

    def reference(fit):
        centre = embedding[fit].mean(0)
        length = np.linalg.norm(embedding[fit] - centre, axis=1).mean()
        probe = LogisticRegression(C=30.0 * len(fit) / fit.sum(), max_iter=1000, class_weight="balanced")
        return probe.fit((embedding[fit] - centre) / length, labels[fit]).predict_proba((embedding - centre) / length)

    np.testing.assert_allclose(softmax(logits), reference(stretch > -2), atol=2e-3)
    for k in set(stretch) - {-1}:
        found = softmax(state["held_out"]["logits"].numpy()[stretch == k])
        np.testing.assert_allclose(found, reference(stretch != k)[stretch == k], atol=2e-3)
    quick(dataset, tmp_path / "refit", arch="test_vit3", recipe=settings | {"refit": True}, resume=True)
    assert json.loads((run / "test.json").read_text()) == after
    with pytest.raises(UserError, match="--refit"):
        quick(dataset, tmp_path / "none", recipe={"refit": True})


@hypothesis.given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_stretches_cut_no_group_and_leave_every_film_something(groups):
    rows = [{"movie": "A", "group": f"A#{group}", "place": place} for place, group in enumerate(groups)]
    stretch = train.hold_out_stretches(rows)
    assert all(len({s for s, g in zip(stretch, groups, strict=True) if g == group}) == 1 for group in groups)
    assert all((stretch != k).any() for k in range(5))
    small = [groups.count(group) <= 0.4 * len(groups) for group in groups]
    assert all(s >= 0 for s, held in zip(stretch, small, strict=True) if held)
    order = np.random.default_rng(0).permutation(len(rows))  # train and val come one behind the other
    assert (train.hold_out_stretches([rows[i] for i in order]) == stretch[order]).all()


def test_a_refit_head_is_not_taken_over(dataset, tmp_path, capsys):
    """It has learnt val frames, by which the run that starts from it would choose its epoch."""
    for refit, words in ((False, "head taken over"), (True, "new head")):
        settings = {"probe": 30.0, "epochs": 0, "refit": refit}
        run = quick(dataset, tmp_path / str(refit), arch="test_vit3", recipe=settings)
        classes = torch.load(run / "best.pt", weights_only=True)["classes"]
        models.load_weights(build_model("test_vit3", classes, pretrained=False), run / "best.pt", classes)
        assert words in capsys.readouterr().out


@pytest.mark.parametrize("beyond_chance", [False, True])
def test_a_probe_is_left_only_for_what_beats_it_beyond_chance(dataset, tmp_path, monkeypatch, beyond_chance):
    monkeypatch.setattr(train, "really_worse", lambda reference, other: beyond_chance or reference.all())
    run = quick(dataset, tmp_path, recipe={"probe": 1e-6})
    with open(run / "metrics.csv", newline="") as file:
        probe, *epochs = (float(row["balanced"]) for row in csv.DictReader(file))
    assert max(epochs) > probe
    assert (json.loads((run / "test.json").read_text())["best_epoch"] > 0) == beyond_chance


def test_nothing_is_trained_that_could_not_win(dataset, tmp_path, capsys):
    run = quick(dataset, tmp_path, arch="test_vit3", recipe={"probe": 30.0, "epochs": 2}, limit=12)
    told = "training could not beat that" in capsys.readouterr().out
    errors = round((1 - json.loads((run / "test.json").read_text())["val"]["top1"]) * 12)
    with open(run / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == (1 if told else 3)
    assert told == (errors < 5)
    taught = quick(dataset, tmp_path, arch="test_vit3", recipe={"probe": 30.0}, limit=12, teacher=run, name="taught")
    assert "training could not" not in capsys.readouterr().out  # what a teacher says no probe hears
    with open(taught / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == QUICK["epochs"] + 1


def test_weights_that_may_have_seen_test_frames_are_refused(dataset, tmp_path):
    run = quick(dataset, tmp_path, recipe={"epochs": 1}, fold=0)
    for settings in ({"fold": 1}, {"split": "random"}, {}):
        with pytest.raises(UserError, match="may have seen test frames"):
            quick(dataset, tmp_path / "b", init=run / "best.pt", **settings)
    assert quick(dataset, tmp_path / "b", recipe={"epochs": 1}, init=run / "best.pt", fold=0).exists()


def test_broken_features_are_one_line():
    with pytest.raises(UserError, match="not finite"):
        train.fit_head([2], np.array([[0.0, np.nan], [1.0, 1.0]]), np.array([0, 1]), 1.0)


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


def test_really_worse_asks_for_more_than_a_flip():
    right = np.ones(100, bool)
    one, many = right.copy(), right.copy()
    one[:2], many[:9] = False, False
    assert not train.really_worse(right, one) and train.really_worse(right, many)
    assert not train.really_worse(many, right) and not train.really_worse(right, right)


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


def test_student_learns_from_its_teacher(dataset, run, unbroken, tmp_path):
    teacher = train.Teacher(run, *teacher_arguments(run, dataset))
    frames = torch.randint(0, 256, (4, 96, 96, 3), dtype=torch.uint8)
    spec = train.preprocessing_for("test_resnet")
    other = spec | {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}  # the student's own normalisation is undone
    elsewhere = train.Teacher(run, *teacher_arguments(run, dataset)[:2], other, torch.device("cpu"))
    one, two = teacher(train.normalise(frames, spec)), elsewhere(train.normalise(frames, other))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(one.sum(1), torch.ones(4))
    logits = torch.randn(4, 3, requires_grad=True)
    truth = torch.eye(3)[[0, 1, 2, 0]]
    plain, taught = (train.learn_from(logits, truth, wisdom, 0.0) for wisdom in (None, one))
    soft = (one * (one.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(taught, 0.3 * plain + 0.7 * 4 * soft)
    assert train_process(dataset, tmp_path, "--name", "s", "--teacher", str(run)).returncode == 0
    a, b = (torch.load(r / "last.pt", weights_only=True)["model"] for r in (unbroken, tmp_path / "s"))
    assert not torch.equal(a["head.weight"], b["head.weight"])
    refused = train_process(dataset, tmp_path, "--name", "r", "--teacher", str(run), "--fold", "1")
    assert refused.returncode == 2 and "may have seen test frames" in refused.stderr


def teacher_arguments(run, dataset):
    chosen, classes = choose_rows(read_manifest(dataset))
    return classes, train.frames_key(chosen), train.preprocessing_for("test_resnet"), torch.device("cpu")
