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
from conftest import figures_of, quick, save_small_clip

import train
from answering.console import UserError
from models import Checkpoint, build_model
from training import predict, probe
from training import run as run_module
from training.dataset import choose_rows, read_manifest
from training.frames import load_frames
from training.metrics import measure
from training.recipes import RECIPES
from training.setup import make_optimiser

ROOT = Path(train.__file__).parent


def epochs_of(run: Path) -> list[dict]:
    """Rows of metrics.csv."""
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def is_parameter(key: str) -> bool:
    """Whether a key of a state dict is of weights, and not of batch norm's statistics."""
    return not key.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_run_folder_is_whole(run):
    assert {p.name for p in run.iterdir()} - {"export.json"} == {
        "args.json", "metrics.csv", "best.pt", "last.pt", "curves.png", "confusion.png", "mistakes.png", "test.json",
        "predictions.csv",
    }  # fmt: skip
    best, last = Checkpoint.load(run / "best.pt"), Checkpoint.load(run / "last.pt")
    assert best.training is None and set(last.training) >= {"model", "optimiser", "epoch", "history", "best"}
    assert best.args == last.args == json.loads((run / "args.json").read_text())
    test = figures_of(run)
    assert test["test"]["top1"] >= 0.8  # textures are easy; a third would be chance
    assert 0 <= test["test"]["auroc"] <= 1
    with open(run / "predictions.csv", newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == len({row["frame"] for row in answers}) == test["frames"]["test"]
    assert np.mean([row["said"] == row["movie"] for row in answers]) == pytest.approx(test["test"]["top1"])
    assert test["seconds"] > 0 and test["ms_float"] > 0 and test["epochs"] == 14
    assert test["parameters"] == sum(value.numel() for key, value in best.model.items() if is_parameter(key))
    assert len(epochs_of(run)) == 14
    assert "test_resnet" in (run.parent / "results.md").read_text()


# ------------------------------------------------------------------------------------------ stopped and resumed


def train_process(dataset: Path, out: Path, *argv: str, before: str = ""):
    """train.py in a process of its own, on one thread: sums of several threads differ in their last bits."""
    code = f"import os, signal, sys, torch, train\n{before}\nsys.exit(train.main(sys.argv[1:]))\n"
    recipe = ["--epochs", "3", "--batch-size", "16", "--lr", "2e-3", "--train-size", "64", "--precision", "fp32"]
    command = [str(dataset), "--arch", "test_resnet", "--no-pretrained", *recipe, "--out", str(out), *argv]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return subprocess.run(
        [sys.executable, "-c", code, *command], cwd=ROOT, env=settings, capture_output=True, text=True
    )


AT_A_STEP = """
real, n = torch.optim.AdamW.step, [0]
def step(*args, **kwargs):
    n[0] += 1
    if n[0] == {step}: os.kill(os.getpid(), signal.{signal})
    return real(*args, **kwargs)
torch.optim.AdamW.step = step
"""
BEFORE_LAST_PT = """
real = os.replace
def replace(source, target):
    if str(target).endswith("last.pt"): os.kill(os.getpid(), 9)
    real(source, target)
os.replace = replace
"""


@pytest.fixture(scope="module")
def unbroken(dataset, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    result = train_process(dataset, out, "--name", "whole")
    assert result.returncode == 0, result.stderr
    return out / "whole"


def test_resume_equals_an_unbroken_run_bit_for_bit(dataset, unbroken, tmp_path):
    """A run that is stopped three times in its second epoch of four steps or fewer, each time in another way."""
    stops = [
        (AT_A_STEP.format(step=5, signal="SIGTERM"), 130),
        (AT_A_STEP.format(step=2, signal="SIGINT"), 130),  # Ctrl-C
        (BEFORE_LAST_PT, -9),
    ]
    for before, code in stops:
        resume = ["--resume"] if code == -9 or "SIGINT" in before else []
        result = train_process(dataset, tmp_path, "--name", "broken", *resume, before=before)
        assert result.returncode == code, result.stderr
        if code == 130:
            (line,) = [line for line in result.stderr.splitlines() if "train.py: error" in line]
            assert "--resume" in line and "Traceback" not in result.stderr
        assert Checkpoint.load(tmp_path / "broken" / "last.pt").training["epoch"] == 1
    result = train_process(dataset, tmp_path, "--name", "broken", "--resume")
    assert result.returncode == 0 and "after epoch 1" in result.stdout, result.stderr
    whole, broken = (Checkpoint.load(r / "last.pt") for r in (unbroken, tmp_path / "broken"))
    for a, b in ((whole.model, broken.model), (whole.training["model"], broken.training["model"])):
        assert all(torch.equal(a[k], b[k]) for k in a)
    for k, state in whole.training["optimiser"]["state"].items():
        assert all(torch.equal(state[name], broken.training["optimiser"]["state"][k][name]) for name in state)
    speed = {"images_per_s", "mfu"}
    for rows in zip(epochs_of(unbroken), epochs_of(tmp_path / "broken"), strict=True):
        one, two = ({k: v for k, v in row.items() if k not in speed} for row in rows)
        assert one == two
    assert figures_of(unbroken)["test"] == figures_of(tmp_path / "broken")["test"]


def test_what_a_run_must_not_be_mixed_up_with(dataset, tmp_path):
    quick(dataset, tmp_path, recipe={"epochs": 1}, name="one")
    with pytest.raises(UserError, match="continue it with --resume, replace it with --overwrite"):
        quick(dataset, tmp_path, recipe={"epochs": 1}, name="one")
    with pytest.raises(UserError, match=r"made with another .*lr.*; use the same, --overwrite or --name"):
        quick(dataset, tmp_path, recipe={"epochs": 1, "lr": 1e-3}, name="one", resume=True)
    assert json.loads((tmp_path / "one" / "args.json").read_text())["lr"] == 2e-3  # what was refused left no trace
    run = quick(dataset, tmp_path, recipe={"epochs": 2}, name="one", overwrite=True)
    assert len(epochs_of(run)) == 2


def test_a_frozen_network_sees_each_frame_once_and_answers_as_its_checkpoint(dataset, tmp_path, monkeypatch):
    seen = []
    real = predict.predict

    def counting(model, frames, *args, **kwargs):
        seen.append(len(frames))
        return real(model, frames, *args, **kwargs)

    for module in (predict, probe, run_module):
        monkeypatch.setattr(module, "predict", counting)
    recipe = {"epochs": 0, "probe": 0.3, "copies": 0.03, "refit": True, "intermediate": True}
    run = quick(dataset, tmp_path, arch="test_vit3", recipe=recipe)
    frames = figures_of(run)["frames"]
    assert sum(seen) == sum(frames.values()) + frames["train"] + frames["val"]  # of these, a degraded copy too
    checkpoint = Checkpoint.load(run / "best.pt")
    chosen, classes = choose_rows(read_manifest(dataset))
    pictures = torch.from_numpy(load_frames([row.file for row in chosen["test"]], checkpoint.preprocessing))
    model = checkpoint.build()
    logits, _ = real(model, pictures, checkpoint.preprocessing, device=torch.device("cpu"), bf16=False)
    labels = np.array([classes.index(row.movie) for row in chosen["test"]])
    assert figures_of(run)["test"]["loss"] == pytest.approx(measure(logits, labels).loss, abs=1e-3)


def test_pictures_of_another_size(dataset, tmp_path, capsys):
    run = quick(dataset, tmp_path, recipe={"epochs": 1}, size=96, name="small")
    checkpoint = Checkpoint.load(run / "best.pt")
    assert checkpoint.preprocessing["size"] == 96 and checkpoint.build()(torch.zeros(1, 3, 96, 96))[0].shape == (1, 3)
    with pytest.raises(UserError, match="made with another size"):
        quick(dataset, tmp_path, recipe={"epochs": 1}, name="small", resume=True)
    argv = [str(dataset), "--arch", "test_vit3", "--no-pretrained", "--out", str(tmp_path)]
    assert train.main([*argv, "--size", "100"]) == 2
    assert "--size 100: test_vit3 can't take such pictures" in capsys.readouterr().err


def test_two_processes_train_what_one_trains(dataset, tmp_path):
    """The same batches, augmentation off: the weights agree, so the figures do."""
    recipe = ["--epochs", "2", "--batch-size", "16", "--lr", "1e-3", "--crop", "1", "--flip", "0", "--colour", "0"]
    recipe += ["--corrupt", "0", "--precision", "fp32", "--probe", "1", "--intermediate", "--refit", "--no-pretrained"]
    command = [str(dataset), "--arch", "test_vit3", *recipe, "--cache", str(tmp_path / "c"), "--out", str(tmp_path)]
    assert train.main([*command, "--name", "one"]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv = [*launcher, str(ROOT / "train.py"), *command, "--name", "two"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("next: python export.py") == 1
    one, two = (Checkpoint.load(tmp_path / name / "last.pt") for name in ("one", "two"))
    assert one.training["epoch"] == two.training["epoch"] == 2
    for a, b in ((one.model, two.model), (one.training["model"], two.training["model"])):
        for k in a:
            torch.testing.assert_close(a[k], b[k], rtol=1e-3, atol=1e-4)
    one, two = (figures_of(tmp_path / name) for name in ("one", "two"))
    for split in ("val", "test", "held_out"):  # the probe stayed the best and was refit
        assert one[split] == pytest.approx(two[split], abs=2e-3)


# ------------------------------------------------------------------------------------------------ what is decoded


def test_what_a_run_does_not_read_is_not_decoded(dataset, tmp_path):
    def marked(name: str) -> dict[str, int]:
        return {p.name.split("-")[1]: int(np.fromfile(p, np.uint8).sum()) for p in (tmp_path / name).glob("*.done")}

    run = quick(dataset, tmp_path, recipe={"epochs": 1}, cache=tmp_path / "trained", name="trained")
    frames = figures_of(run)["frames"]
    rest = sum(count for split, count in frames.items() if split != "train")
    assert marked("trained") == {"384x256": frames["train"], "224x224": rest}
    settings = {"recipe": {"epochs": 0, "probe": 0.3}, "limit": 9, "name": "probed"}
    run = quick(dataset, tmp_path, cache=tmp_path / "probed", **settings)
    frames = figures_of(run)["frames"]
    assert max(frames.values()) == 9 and marked("probed") == {"224x224": sum(frames.values())}


# ------------------------------------------------------------------------------------------------------ recipes


def test_earlier_layers_learn_slower():
    for arch in ("mobilenetv2", "test_vit", "resnet10t"):
        model = build_model(arch, ["a", "b"], pretrained=False)
        recipe = RECIPES["best"] | {"lr": 1.0, "layer_decay": 0.5, "weight_decay": 0.1}
        optimiser, schedule = make_optimiser(model, recipe, 10)
        schedule.step_update(int(recipe["warmup"] * 10 * recipe["epochs"]))  # at the peak
        rate = {id(p): g["lr"] for g in optimiser.param_groups for p in g["params"]}
        parameters = list(model.parameters())
        assert len(rate) == len(parameters) == sum(len(g["params"]) for g in optimiser.param_groups)
        rates = [rate[id(p)] for p in parameters]
        assert rates == sorted(rates) and rates[0] <= 0.5 * rates[-3] and rates[-1] == pytest.approx(1.0, rel=0.05)
        assert rate[id(model.head.weight)] == rates[-1]
        decays = {g["weight_decay"] for g in optimiser.param_groups for p in g["params"] if p.ndim == 1}
        assert decays == {0} and {g["weight_decay"] for g in optimiser.param_groups} == {0, 0.1}


def rates_of(recipe: dict, steps: int = 4) -> list[float]:
    """Learning rate of the head at each step of a run, as a share of the recipe's."""
    optimiser, schedule = make_optimiser(build_model("test_resnet", ["a", "b"], pretrained=False), recipe, steps)
    rates = []
    for step in range(steps * recipe["epochs"]):
        schedule.step_update(step)
        rates.append(max(g["lr"] for g in optimiser.param_groups) / recipe["lr"])
    return rates


def test_the_learning_rate_rises_and_falls():
    rates = rates_of(RECIPES["best"] | {"warmup": 0.25})
    peak = rates.index(max(rates))
    assert (
        peak == len(rates) // 4 and rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:])[::-1]
    )
    assert 0 < rates[0] < 0.1 and 0 <= rates[-1] < 0.01 and max(rates) == pytest.approx(1)


def test_original_recipe_is_the_original(dataset, tmp_path):
    assert rates_of(RECIPES["original"]) == pytest.approx([1] * 20 + [0.5] * 20)  # halved after 5 of 10 epochs
    recipe = RECIPES["original"]
    assert (recipe["batch_size"], recipe["lr"], recipe["weight_decay"], recipe["train_size"]) == (64, 1e-4, 1e-4, 224)
    out = quick(dataset, tmp_path, recipe_name="original", split="random", limit=30)
    args = json.loads((out / "args.json").read_text())
    assert args["weight_decay"] == 1e-4 and args["keep_bars"] is True and args["schedule"] == "step"
    assert out.name == "test_resnet-small-original-limit30-randomsplit"
    assert "RANDOM" in (tmp_path / "results.md").read_text()
    assert "original's recipe, 3 epochs" in (tmp_path / "results.md").read_text()


def test_all_folds_give_a_mean(dataset, tmp_path, capsys):
    argv = [str(dataset), "--arch", "test_resnet", "--no-pretrained", "--probe", "0.3", "--epochs", "0"]
    argv += ["--fold", "all"]
    assert train.main([*argv, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    tests = [figures_of(p.parent)["test"]["balanced"] for p in sorted(tmp_path.glob("*fold?/test.json"))]
    assert len(tests) == 5 and f"balanced {np.mean(tests):.4f} +- {np.std(tests):.4f}" in text


# ----------------------------------------------------------------------------------------------------- the probe


def test_fine_tuning_keeps_the_norm_of_its_probe(dataset, tmp_path):
    settings = {"probe": 1.0, "intermediate": True, "epochs": 1, "lr": 1e-4}
    run = quick(dataset, tmp_path, arch="test_vit3", recipe=settings)
    last = Checkpoint.load(run / "last.pt")
    assert last.args["intermediate"] is True and last.training["epoch"] == 1
    assert not torch.equal(last.model["norm.running_var"], torch.ones_like(last.model["norm.running_var"]))
    assert int(last.model["norm.num_batches_tracked"]) == 0  # no batch has moved it


def test_a_probe_is_left_only_for_what_beats_it_beyond_chance(dataset, tmp_path):
    """Of 14 val frames five more must be right: McNemar's exact test of 5 to 0 gives 0.03, of 4 to 0 it gives 0.06."""
    seen = set()
    for name, settings in {"short": {"epochs": 3}, "long": {"epochs": 14, "lr": 3e-3, "train_size": 128}}.items():
        run = quick(dataset, tmp_path, recipe=settings | {"probe": 1.0, "crop": 0.7}, name=name)
        probe, *epochs = epochs_of(run)
        assert float(probe["epoch"]) == 0 and len(epochs) == settings["epochs"]
        gains = [round(14 * (float(row["top1"]) - float(probe["top1"]))) for row in epochs]
        left = figures_of(run)["best_epoch"] > 0
        assert left or max(float(row["balanced"]) for row in epochs) > float(probe["balanced"])
        assert max(gains) >= 5 if left else max(gains) < 7
        seen.add(left)
    assert seen == {False, True}


def test_a_probe_that_cannot_be_beaten_is_not_trained_further(dataset, tmp_path, capsys):
    """On val frames of which the probe has four or fewer wrong, no epoch can be better beyond chance."""
    run = quick(dataset, tmp_path, recipe={"probe": 0.3, "epochs": 2}, limit=4)
    assert "training could not beat that beyond chance" in capsys.readouterr().out
    assert len(epochs_of(run)) == 1 and figures_of(run)["best_epoch"] == 0


def test_a_refit_head_is_not_taken_over(dataset, tmp_path, capsys):
    """It has learnt val frames, by which the run that starts from it would choose its epoch."""
    for refit, words in ((False, "head taken over"), (True, "head new")):
        run = quick(dataset, tmp_path / str(refit), recipe={"probe": 0.3, "epochs": 0, "refit": refit})
        capsys.readouterr()
        build_model("test_resnet", Checkpoint.load(run / "best.pt").classes, init=run / "best.pt")
        assert words in capsys.readouterr().out


def test_weights_that_may_have_seen_test_frames_are_refused(dataset, tmp_path):
    run = quick(dataset, tmp_path, recipe={"epochs": 1}, fold=0)
    for settings in ({"fold": 1}, {"split": "random"}, {}):
        with pytest.raises(UserError, match="may have seen test frames"):
            quick(dataset, tmp_path / "b", init=str(run / "best.pt"), **settings)
    assert quick(dataset, tmp_path / "b", recipe={"epochs": 1}, init=str(run / "best.pt"), fold=0).exists()


# ----------------------------------------------------------------------------------- protocols, and a time for all


def test_both_protocols_stand_side_by_side(dataset, tmp_path, capsys):
    argv = [str(dataset), "--arch", "test_resnet", "--no-pretrained", "--limit", "12", "--train-size", "64"]
    argv += ["--batch-size", "12", "--precision", "fp32", "--protocol", "both", "--with-random", "--minutes", "0.02"]
    assert train.main([*argv, "--fold", "0", "--out", str(tmp_path)]) == 0
    runs = sorted(path.parent for path in tmp_path.glob("*/test.json"))
    kinds = (
        "finetune-limit12-fold0",
        "finetune-limit12-randomsplit",
        "probe-limit12-fold0",
        "probe-limit12-randomsplit",
    )
    assert [run.name for run in runs] == [f"test_resnet-small-{kind}" for kind in kinds]
    tuned, _, probe, _ = map(figures_of, runs)
    # it was never better than its head, and stands for itself all the same; the time ended long before 16 epochs
    assert tuned["best_epoch"] >= 1 and 1 <= tuned["epochs"] < 16
    assert (probe["best_epoch"], probe["epochs"]) == (0, 0)
    table = capsys.readouterr().out.split("## ")[-1]
    assert table.count("| test_resnet, random weights |") == 2 and "RANDOM split: top-1" in table
    before = (tmp_path / "results.md").read_text()
    (tmp_path / "results.md").unlink()
    assert train.main(["--compare", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "results.md").read_text() == before
    assert train.main(["--compare", "--out", str(tmp_path / "nothing")]) == 2


def test_the_time_is_shared_by_networks(monkeypatch):
    clock = [0.0]
    given = []

    def run_for(data, recipe, **options):
        given.append((options["arch"], options["protocol"], options["minutes"]))
        clock[0] += 60 if options["protocol"] == "probe" else 60 * options["minutes"]
        return {"top1": 1.0}

    monkeypatch.setattr(train, "train_and_print", run_for)
    monkeypatch.setattr(train.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(train, "print_mean", lambda *_: None)
    monkeypatch.setattr(train.Path, "read_text", lambda *_, **__: "")
    argv = ["data", "--arch", "all", "--fold", "0", "--protocol", "both", "--minutes", "60"]
    args = train.get_parser().parse_args(argv)
    train.run_plan(args, {}, {})
    assert len(given) == 12 and clock[0] == pytest.approx(3600)
    for (arch, kind, minutes), (other, tuned, rest) in zip(given[::2], given[1::2], strict=True):
        assert arch == other and (kind, tuned) == ("probe", "finetune")
        assert (minutes, rest) == (pytest.approx(5), pytest.approx(9))  # what a probe leaves is its network's


def test_a_network_that_fails_is_left_out_and_the_others_go_on(monkeypatch, capsys, tmp_path):
    done = []

    def run(data, recipe, **options):
        if options["arch"] == "resnet50":
            raise UserError("the weights of resnet50 can't be had (no network); name a local file")
        done.append(options["arch"])
        return {"top1": 1.0}

    monkeypatch.setattr(train, "train_and_print", run)
    (tmp_path / "results.md").write_text("the table")
    argv = ["data", "--arch", "all", "--protocol", "both", "--out", str(tmp_path)]
    assert train.main(argv) == 1
    assert len(done) == 10 and "resnet50" not in done
    out, err = capsys.readouterr()
    assert err.count("resnet50 is left out: the weights of resnet50 can't be had") == 1 and "the table" in out
    assert train.main(["data", "--arch", "resnet50", "--out", str(tmp_path)]) == 1
    monkeypatch.setattr(train, "ARCHITECTURES", ("resnet50",))
    assert train.main(argv) == 1 and "resnet50 can't be had" in capsys.readouterr().err


def test_clip_without_weights_is_left_out_of_probes(capsys):
    argv = ["data", "--arch", "all", "--no-pretrained", "--protocol", "probe"]
    plan = train.plan_runs(train.get_parser().parse_args(argv))
    assert len(plan) == 5 and "clip_vit_base_patch32: left out" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------- CLIP


def test_zero_shot_is_clips_first_figure(dataset, tmp_path, capsys):
    options = {"arch": "clip_vit_base_patch32", "init": str(save_small_clip(tmp_path / "clip")), "pretrained": True}
    run = quick(dataset, tmp_path, recipe={"epochs": 1, "train_size": 224}, **options)
    text = capsys.readouterr().out
    assert text.index("zero-shot: val top-1") < text.index("epoch   1/1")
    assert [row["epoch"] for row in epochs_of(run)] == ["0", "1"]
    with pytest.raises(UserError, match="CLIP's head starts from texts"):
        quick(dataset, tmp_path / "b", recipe={"probe": 0.3}, **options)


def test_in_batch_accuracy_has_a_ceiling_that_ours_has_not():
    """The original asked each of 64 frames for its own text among the batch's: hopeless where all are of one film."""
    classes = 10
    texts = torch.nn.functional.normalize(torch.randn(classes, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    one_film = np.full(64, 3)  # an unshuffled loader gives such batches
    perfect = texts[one_film]  # each frame embedded exactly where its film's text is
    in_batch = (perfect @ texts[one_film].T).argmax(1)
    assert (in_batch == torch.arange(64)).float().mean() <= 1 / 64
    assert measure((100 * perfect @ texts.T).numpy(), one_film).top1 == 1.0


# ------------------------------------------------------------------------------------------- errors and options


def test_no_unknown_films_is_no_error(dataset, tmp_path):
    """A collection in which every film has frames enough."""
    rows = read_manifest(dataset)
    lines = (dataset / "manifest.csv").read_text().splitlines()
    data = tmp_path / "known"
    data.mkdir()
    (data / "movies").symlink_to(dataset / "movies")
    known = [line for line, row in zip(lines[1:], rows, strict=True) if not row.split.startswith("unknown")]
    (data / "manifest.csv").write_text("\n".join([lines[0], *known]) + "\n")
    run = quick(data, tmp_path, recipe={"probe": 0.3, "intermediate": True, "epochs": 0})
    figures = figures_of(run)["test"]
    assert figures["auroc"] is None and figures["top1"] > 0


def test_wandb_logs_offline_and_is_off_by_default(dataset, unbroken, tmp_path):
    assert not (unbroken / "wandb").exists()
    pytest.importorskip("wandb", reason="pip install wandb")
    result = train_process(dataset, tmp_path, "--name", "logged", "--wandb", "--epochs", "1")
    assert result.returncode == 0, result.stderr
    (log,) = (tmp_path / "logged" / "wandb").glob("offline-run-*/*.wandb")
    assert b"balanced" in log.read_bytes()


def test_wandb_that_is_missing_is_one_line(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        quick(dataset, tmp_path, wandb="project")


def test_nan_stops_with_the_step_and_a_hint(dataset, tmp_path):
    with pytest.raises(UserError, match=r"not finite from step [2-9] of \d+; lower --lr"):
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
    small = [str(dataset), "--arch", "test_resnet"]
    cases = [
        ([str(tmp_path)], "filter.py"),
        ([str(lost)], "movies/x.jpg"),
        ([str(tmp_path / "bad")], "columns"),
        ([str(dataset), "--arch", "nothing_at_all"], "--arch"),
        ([str(dataset), "--subset", "40"], "--subset"),
        ([*small, "--epochs", "1", "--compile"], "--compile"),
        ([*small, "--epochs", "0"], "--epochs 0 leaves the head as it began"),
        ([str(dataset), "--arch", "crossvit_tiny_240"], "--arch crossvit_tiny_240: can't take pictures of 224 pixels"),
        ([str(dataset), "--arch", "twins_svt_small", "--intermediate"], "no early blocks"),
        ([*small, "--refit"], "--refit"),
        ([*small, "--device", "abacus"], "--device abacus"),
        ([*small, "--init", str(tmp_path / "none.pt")], "no such file"),
    ]
    for argv, words in cases:
        assert train.main([*argv, "--no-pretrained", "--out", str(tmp_path / "runs")]) in (1, 2)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("train.py: error:") and words in error
    assert not list(tmp_path.glob("runs/*/last.pt"))


@pytest.mark.parametrize(
    "argv",
    [
        ["--probe", "30"], ["--lr", "0"], ["--epochs", "-1"], ["--limit", "1"], ["--subset", "many"],
        ["--fold", "1", "--split", "random"], ["--fold", "all", "--name", "x"], ["--arch", "all", "--name", "x"],
        ["--with-random", "--split", "random"], ["--with-random", "--name", "x"], ["--minutes", "0"],
        ["--epochs", "3", "--protocol", "probe"], ["--epochs", "0", "--protocol", "finetune"],
        ["--protocol", "both", "--recipe", "original"],
        ["--resume", "--overwrite"], ["--warmup", "0.1", "--recipe", "original"], ["--seed", "-1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(dataset, capsys, argv):
    with pytest.raises(SystemExit) as stop:
        train.main([str(dataset), *argv])
    assert stop.value.code == 2 and argv[0] in capsys.readouterr().err.splitlines()[-1]


def test_leak_check_prints_both_splits_and_leaves_nothing(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main([str(dataset), "--arch", "test_resnet", "--no-pretrained", "--leak-check"]) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("random ") and second.startswith("grouped ") and "balanced " in first
    assert not list(tmp_path.iterdir())


def test_leak_check_refuses_what_it_would_ignore(dataset, capsys):
    argv = [str(dataset), "--leak-check", "--no-pretrained"]
    for more in (["--arch", "all"], ["--fold", "1"], ["--split", "random"], ["--epochs", "3"], ["--name", "x"]):
        with pytest.raises(SystemExit) as stop:
            train.main([*argv, *more])
        assert stop.value.code == 2 and f"{more[0]} " in capsys.readouterr().err
    argv += ["--arch", "test_resnet"]
    for more, words in ((["--device", "abacus"], "--device abacus"), (["--limit", "4"], "five frames of each film")):
        assert train.main([*argv, *more]) in (1, 2)
        error = [line for line in capsys.readouterr().err.splitlines() if "train.py" in line]
        assert len(error) == 1 and words in error[0]
