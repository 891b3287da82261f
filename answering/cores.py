"""How many cores this process may use: its affinity, and the quota of its container or service."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")  # where Linux mounts them
OWN_GROUPS = Path("/proc/self/cgroup")  # lines NUMBER:CONTROLLERS:PATH; without controllers it is version 2


def count_cores() -> int:
    """Cores that this process may use, one at least; of a quota of 1.5 cores two, as Go and the JVM count."""
    cores = count_scheduled()
    quota = cpu_quota()
    if quota is not None:
        cores = min(cores, math.ceil(quota))
    return max(1, cores)


def count_scheduled() -> int:
    """Cores that the system may run this process on; Linux and Windows can take some from it."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def runtime_threads(asked: int = 0) -> int:
    """Threads for ONNX Runtime or OpenVINO: what was asked for, or 0, their own choice, where no core is withheld.

    Their choice is a thread a physical core, which they can tell from a hyper-thread; a quota they don't see.
    """
    if asked:
        return asked
    cores = count_cores()
    return cores if cores < (os.cpu_count() or 1) else 0


def cpu_quota() -> float | None:
    """Cores' worth of time that Linux's control groups give this process; None where nothing limits it.

    Version 2 has `cpu.max` ("QUOTA PERIOD" or "max PERIOD"), version 1 `cpu.cfs_quota_us` (-1: none) and
    `cpu.cfs_period_us` (https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1). The least of the group and
    those above it holds.
    """
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            places = [CGROUPS, CGROUPS / "unified"]
        elif "cpu" in controllers.split(","):
            places = [CGROUPS / controllers, CGROUPS / "cpu"]
        else:
            continue
        for place in places:
            quotas += [read_quota(group) for group in groups_above(place, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def groups_above(mounted: Path, path: str) -> list[Path]:
    """The group and those above it. In a container a path may be the host's: then only the mounted one is there."""
    group = mounted / path.strip("/")
    return [group, *(above for above in group.parents if above.is_relative_to(mounted))]


def read_quota(group: Path) -> float | None:
    """Cores' worth of time of one group; None without a limit, or where there is no such group."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8")
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8")
        limit = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return None
    return limit if limit > 0 else None
