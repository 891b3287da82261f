"""python -m pytest tests/test_bench_cuda.py"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SHARED

import bench
from answering.console import UserError
from benchmarks.parts import Part, run_parts


def read(out: Path) -> dict:
    """cuda.json, which is whole or not there."""
    path = out / "cuda.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_dry_run_does_every_part(tmp_path, monkeypatch, capsys):
    """The command that a GPU is given, with a small network and 120 frames on the CPU."""
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")  # a minute of C++
    weights, out = SHARED / "weights" / "yolo11n.onnx", tmp_path / "out"
    argv = ["cuda", "--out", str(out), "--films", "5", "--per-film", "24", "--epochs", "1", "--archs", "test_resnet"]
    argv += ["--detector", str(weights), "--minutes", "30"]
    assert bench.main(argv) == 0, capsys.readouterr().err
    report = read(out)
    names = ["machine", "films", "train test_resnet", "resume", "export", "torchrun", "filter", "compiled test_resnet"]
    assert list(report) == [*names, "table test_resnet"]
    states = dict.fromkeys(report, "done") | ({} if weights.exists() else {"filter": "skipped"})
    assert {name: row["state"] for name, row in report.items()} == states
    for name, row in report.items():
        for figure, value in row["figures"].items():
            may_be_none = isinstance(value, str) or figure.endswith(("GB", "at most", "top-1", "persons", "film"))
            assert may_be_none or value > 0, (name, figure, value)
    text = (out / "cuda.md").read_text()
    assert all(f"| {name} | {states[name]} | " in text for name in report) and "test_resnet-5-head" in text
    assert {"curves.png", "confusion.png", "mistakes.png"} <= {path.name for path in out.glob("runs/test_resnet-5/*")}
    assert bench.main(argv) == 0 and (read(out) == report or not weights.exists())  # what is done is not done again


def fine(settings, number: int) -> dict:
    return {"number": number}


def fails(settings) -> dict:
    print("on its way")
    return {"number": 1 / 0}


def dies(settings) -> dict:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(settings) -> dict:
    """With a child, as parts have that use torchrun."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (settings.out / "pids").write_text(f"{os.getpid()} {child.pid}")
    child.wait()
    return {}


def running(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    return False


def test_parts_that_fail_or_overrun_are_reported_and_the_rest_goes_on(tmp_path):
    settings = SimpleNamespace(out=tmp_path)
    parts = {
        "first": Part(fine, (1,), 60),
        "bad": Part(fails, (), 60),
        "slow": Part(hangs, (), 4),
        "shot": Part(dies, (), 60),
        "last": Part(fine, (2,), 60),
    }
    with pytest.raises(UserError, match="bad, slow, shot failed or overran"):
        run_parts(parts, settings, 9)
    report, text = read(tmp_path), (tmp_path / "cuda.md").read_text()
    assert [row["state"] for row in report.values()] == ["done", "failed", "overran", "failed", "done"]
    assert report["last"]["figures"] == {"number": 2}
    assert "on its way" in text and "ZeroDivisionError" in text and "exit code -9" in text
    assert "in hangs" in report["slow"]["why"]  # where it was
    assert not any(running(int(pid)) for pid in (tmp_path / "pids").read_text().split())
    # once more: what failed is tried again, what is done is not, unless it is asked for
    parts = {
        "first": Part(fine, (3,), 60),
        "bad": Part(fine, (4,), 60),
        "slow": Part(fine, (5,), 60),
        "shot": Part(fine, (5,), 60),
    }
    run_parts(parts, settings, 9)
    assert [row["figures"]["number"] for row in read(tmp_path).values()] == [1, 4, 5, 5, 2]
    run_parts({"first": Part(fine, (6,), 60)}, settings, 9, again="fir")
    assert read(tmp_path)["first"]["figures"] == {"number": 6}


def test_without_time_nothing_is_begun(tmp_path):
    run_parts({"first": Part(fine, (1,), 60)}, SimpleNamespace(out=tmp_path), 0.01)
    assert read(tmp_path) == {"first": {"state": "no time left"}}


def test_a_run_that_is_killed_tells_what_it_had_done(tmp_path):
    code = "from test_bench_cuda import *\n"
    code += "parts = {'first': Part(fine, (1,), 60), 'slow': Part(hangs, (), 60)}\n"
    code += f"if __name__ == '__main__': run_parts(parts, SimpleNamespace(out=Path({str(tmp_path)!r})), 9)\n"
    (tmp_path / "main.py").write_text(code)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(bench.__file__).parent)])
    }
    run = subprocess.Popen([sys.executable, tmp_path / "main.py"], env=environment)
    end = time.monotonic() + 60
    while not (tmp_path / "pids").exists() or not (tmp_path / "pids").read_text().strip():
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.1)
    run.kill()
    run.wait()
    os.killpg(int((tmp_path / "pids").read_text().split()[0]), signal.SIGKILL)
    assert {name: row["state"] for name, row in read(tmp_path).items()} == {"first": "done", "slow": "begun"}
    assert "| first | done | " in (tmp_path / "cuda.md").read_text()


# ------------------------------------------------------------------------------- what a GPU would stumble over


@pytest.mark.parametrize("arch", ["mobilenetv2", "test_vit3"])
def test_a_step_mixes_no_devices_and_waits_for_no_gpu(arch):
    """On torch's fake tensors: a blocking copy, or a value that Python asks for, would make the CPU wait each step."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from answering.pictures import PREPROCESSING
    from models import build_model
    from training.frames import augment, take_batch
    from training.recipes import RECIPES

    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            kwargs, name = kwargs or {}, str(function)
            assert "_local_scalar_dense" not in name and "nonzero" not in name, name
            if "_to_copy" in name and (to := kwargs.get("device")) and torch.device(to).type != args[0].device.type:
                assert kwargs.get("non_blocking"), f"a blocking copy of {list(args[0].shape)}"
            if name == "aten.index.Tensor":
                assert all(index.device == args[0].device for index in args[1] if index is not None), (
                    "an index goes over"
                )
            return function(*args, **kwargs)

    def step(recipe: dict, pick: torch.Tensor) -> torch.Tensor:
        frames = augment(take_batch(images, pick, images.device), PREPROCESSING, recipe, 224)
        logits = model(frames.contiguous(memory_format=torch.channels_last))[0]
        return torch.nn.functional.cross_entropy(logits.float(), labels[pick])

    model = build_model(arch, ["a", "b", "c"], pretrained=False, intermediate=True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cuda")
            images = torch.zeros(20, 256, 384, 3, dtype=torch.uint8, device="cuda")
            labels, order = torch.zeros(20, dtype=torch.long, device="cuda"), torch.arange(20, device="cuda")
            for recipe in (RECIPES["best"] | {"corrupt": 0.5}, RECIPES["original"]):
                with NoWaiting():
                    assert step(recipe, order[0:8]).device.type == "cuda"
            waits = (lambda: step(recipe, torch.arange(8)), lambda: images.sum().item(), lambda: torch.ones(1).cuda())
            for wait in waits:
                with pytest.raises(AssertionError), NoWaiting():
                    wait()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
