"""python -m pytest tests/test_device.py"""

import pytest
import torch

from training import device

AVX512 = {"avx", "avx2", "avx512f", "avx512_vnni"}


@pytest.mark.parametrize(
    ("flags", "probes", "onednn", "expected"),
    [
        (AVX512, [False, False], True, False),  # Ice Lake: oneDNN emulates
        (AVX512 | {"avx512_bf16"}, [True, False], True, True),
        (AVX512 | {"avx512_bf16", "amx_bf16"}, [True, True], True, True),
        (AVX512 | {"avx512_bf16"}, [True, False], False, False),  # ONEDNN_MAX_CPU_ISA forbids it
        (AVX512 | {"avx512_bf16"}, None, True, True),  # a torch without the private names
        (AVX512, None, True, False),
        ({"asimd", "bf16"}, [False, False], True, True),  # ARM
        (set(), [True, False], True, True),  # no /proc/cpuinfo, as on Windows
        (set(), None, True, False),
    ],
)
def test_bf16_is_for_hardware_that_computes_it(monkeypatch, flags, probes, onednn, expected):
    monkeypatch.setattr(device, "cpu_flags", lambda: flags)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    for place, name in enumerate(("_is_avx512_bf16_supported", "_is_amx_tile_supported")):
        if probes is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda place=place: probes[place], raising=False)
    assert device.has_bf16(torch.device("cpu")) is expected
