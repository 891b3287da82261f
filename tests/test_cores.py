"""python -m pytest tests/test_cores.py"""

import os
from pathlib import Path

import onnxruntime
import pytest
import torch

import index
from answering import cores, embedding, runtimes
from answering.model import Identifier
from answering.reading import keep_pool
from answering.stills import list_stills
from training import device

SCHEDULED = 8


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Function that fakes a machine of eight cores from /proc/self/cgroup and {file below /sys/fs/cgroup: text}."""

    def fake(own: str, files: dict[str, str]) -> None:
        mounted = tmp_path / "cgroup"
        for name, text in files.items():
            path = mounted / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "own").write_text(own)
        monkeypatch.setattr(cores, "OWN_GROUPS", tmp_path / "own")
        monkeypatch.setattr(cores, "CGROUPS", mounted)
        monkeypatch.setattr(cores, "count_scheduled", lambda: SCHEDULED)
        monkeypatch.setattr(os, "cpu_count", lambda: SCHEDULED)

    return fake


@pytest.mark.parametrize(
    ("own", "files", "count"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),  # a container of Docker
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, SCHEDULED),
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, SCHEDULED),  # more than there are
        ("0::/\n", {"cpu.max": "nonsense\n"}, SCHEDULED),
        ("0::/\n", {}, SCHEDULED),  # a host: its root group has no such file
        # systemd: the service has no limit of its own, its slice has
        ("0::/a.slice/b.service\n", {"a.slice/cpu.max": "300000 100000", "a.slice/b.service/cpu.max": "max 100000"}, 3),
        (
            "0::/a.slice/b.service\n",
            {"a.slice/cpu.max": "300000 100000", "a.slice/b.service/cpu.max": "100000 50000"},
            2,
        ),
        # the host's path, which a container does not see
        ("0::/docker/0123\n", {"cpu.max": "200000 100000"}, 2),
        # version 1, alone and beside version 2
        (
            "4:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("4:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, SCHEDULED),
        ("4:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "1000", "cpu,cpuacct/cpu.cfs_period_us": "1000"}, 1),
        ("5:cpuset:/\n1:cpu:/y\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2),
    ],
)
def test_cores_are_those_of_the_quota(groups, own, files, count):
    groups(own, files)
    assert cores.count_cores() == count


def test_a_system_without_control_groups_counts_its_cores(groups, monkeypatch, tmp_path):
    groups("0::/\n", {"cpu.max": "100000 100000"})
    monkeypatch.setattr(cores, "OWN_GROUPS", tmp_path / "none")
    assert cores.count_cores() == SCHEDULED


def test_cores_are_those_of_the_affinity(monkeypatch):
    monkeypatch.setattr(cores, "cpu_quota", lambda: None)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert cores.count_cores() == 3
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "sched_getaffinity", lambda number: {0, 5}, raising=False)
    assert cores.count_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.count_cores() == 1


# --------------------------------------------------------------------------------------------- who heeds it


@pytest.mark.parametrize(("asked", "quota", "given"), [(0, "300000", 3), (0, "max", 0), (5, "300000", 5)])
def test_runtimes_take_the_threads_of_the_quota(groups, exported, monkeypatch, asked, quota, given):
    """0 is a runtime's own choice, where nothing is withheld from it."""
    groups("0::/\n", {"cpu.max": f"{quota} 100000"})
    taken = []
    session, compiled = onnxruntime.InferenceSession, runtimes.openvino_core()

    def start_session(path, options, **more):
        taken.append(options.intra_op_num_threads)
        return session(path, options, **more)

    class Core:
        def read_model(self, path):
            return compiled.read_model(path)

        def compile_model(self, model, name, config):
            taken.append(config["INFERENCE_NUM_THREADS"])
            return compiled.compile_model(model, name, config)

    monkeypatch.setattr(onnxruntime, "InferenceSession", start_session)
    monkeypatch.setattr(runtimes, "openvino_core", Core)
    for runtime in ("onnxruntime", "openvino"):
        Identifier(exported, runtime=runtime, threads=asked)
    assert taken == [given, given]


def test_torch_takes_the_threads_of_the_quota(groups):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        groups("0::/\n", {"cpu.max": "200000 100000"})
        device.choose_device("cpu")
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)  # as OMP_NUM_THREADS, or torchrun, has it
        device.choose_device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_pools_have_the_size_of_the_quota(groups, exported, raw, monkeypatch):
    groups("0::/\n", {"cpu.max": "300000 100000"})
    args = index.get_parser().parse_args(["add", "films"])
    assert index.read_add_settings(args).processes == index.read_add_settings(args).cores == 3
    pools = []

    def count(function, processes):
        pools.append(processes)
        return keep_pool(function, processes)

    monkeypatch.setattr(embedding, "keep_pool", count)
    stills = list_stills(next(raw.iterdir()))
    assert len(list(embedding.read_stills(stills, Identifier(exported)))) == len(stills) > 3 and pools == [3]


def test_nobody_counts_the_hosts_cores():
    """os.cpu_count() tells of the host: in a container with a quota it is too many."""
    root = Path(cores.__file__).parent.parent
    files = [*root.glob("*.py"), *(file for name in FOLDERS for file in (root / name).glob("*.py"))]
    guilty = [file for file in files if "cpu_count(" in file.read_text(encoding="utf-8") and file.name != "cores.py"]
    assert not guilty and len(files) > 50


FOLDERS = ("answering", "training", "telegram_bot", "benchmarks", "demo")
