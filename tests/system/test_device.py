"""Devices and dtypes are chosen with a reason, and refused with one."""

from pathlib import Path

import pytest
import torch

from minigpt.errors import ConfigError
from minigpt.system.device import (
    autocast,
    choose_device,
    choose_dtype,
    keep_freed_memory,
    matmul_seconds,
    memory_limits,
    multiplies_bfloat16,
    processor,
    why_dtype,
)

CPU = torch.device("cpu")


def test_auto_takes_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(ConfigError, match=r"there is no cuda device here\nthis machine has: cpu;"):
        choose_device("cuda")
    with pytest.raises(ConfigError, match="no mps device"):
        choose_device("mps")


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto").type == "cuda"
    assert choose_device("cuda:1").index == 1
    with pytest.raises(ConfigError, match=r"no cuda:2 here\nthe number must be below 2"):
        choose_device("cuda:2")


def test_nonsense_is_no_device():
    with pytest.raises(ConfigError, match="'gpu' is not the name of a device"):
        choose_device("gpu")


def test_auto_dtype_follows_the_hardware(monkeypatch):
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"amx_bf16": has})
        assert multiplies_bfloat16(CPU) is has
        assert choose_dtype("auto", CPU) == expected


def test_float16_is_refused_with_a_reason():
    with pytest.raises(ConfigError, match=r"float16 .*\n.*bfloat16"):
        choose_dtype("float16", CPU)


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ("model name\t: AMD EPYC\nmodel name\t: another\n", "AMD EPYC"),
        ("model name\t:  \nmodel name\t: the second\n", "the second"),
        ("model name\t:\n", "x86_64"),
        ("CPU implementer\t: 0x41\n", "x86_64"),
        ("model name : one: two | three\n", "one: two | three"),
    ],
)
def test_a_processor_has_a_name_and_an_instruction_set(monkeypatch, lines, name):
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, **how: lines)
    assert processor() == f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def test_slow_bfloat16_comes_with_its_measured_ratio(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    times = {torch.bfloat16: 0.5, torch.float32: 0.125}
    monkeypatch.setattr("minigpt.system.device.matmul_seconds", lambda dtype, device: times[dtype])
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16
    assert "4.0 x float32's time" in why_dtype("bfloat16", CPU)


def test_matmul_is_timed_in_seconds():
    assert 0 < matmul_seconds(torch.float32, CPU) < 10


def test_autocast_of_float32_is_nothing():
    with autocast(CPU, torch.float32):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(CPU, torch.bfloat16):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")


def test_freed_memory_is_kept_where_the_c_library_can_be_told(monkeypatch):
    told = []

    class Library:
        def mallopt(self, parameter: int, value: int) -> int:
            told.append((parameter, value))
            return 1

    monkeypatch.setattr("ctypes.CDLL", lambda name: Library())
    assert keep_freed_memory()
    assert [parameter for parameter, _ in told] == [-1, -3]
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())  # a C library without mallopt
    assert not keep_freed_memory()


SECOND = {"max": 1000, "current": 700, "stat": "anon 500\nactive_file 20\ninactive_file 3\n"}
FIRST = {
    "limit_in_bytes": 1000,
    "usage_in_bytes": 700,
    "stat": "active_file 1\ninactive_file 1\ntotal_active_file 20\ntotal_inactive_file 3\n",
}
NO_LIMIT = {"max": "max\n", "current": 5, "stat": ""}


@pytest.mark.parametrize(
    ("lines", "groups", "expected"),
    [
        ("0::/a/b", {"a/b": SECOND}, [(1000, 323)]),
        ("0::/a/b", {"a/b": NO_LIMIT, "a": SECOND}, [(1000, 323)]),  # of the group above
        ("0::/a/b", {"a/b": {"max": 99, "current": 100}, "a": SECOND}, [(99, 0), (1000, 323)]),
        ("0::/", {".": SECOND}, [(1000, 323)]),  # as a container with names of its own sees its group
        ("0::/", {".": NO_LIMIT}, []),
        ("9:name=systemd:/\n4:cpu,memory:/docker/5f\n0::/", {"memory/docker/5f": FIRST}, [(1000, 323)]),
        ("4:memory:/docker/5f", {"memory": FIRST}, [(1000, 323)]),  # the path is the host's, the tree the container's
        ("4:cpuset:/a", {"memory/a": FIRST}, []),
    ],
)
def test_what_a_container_may_take_of_the_memory(tmp_path: Path, lines, groups, expected):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{lines}\n")
    for name, files in groups.items():
        folder = tmp_path / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / f"memory.{file}").write_text(f"{content}")
    assert memory_limits(tmp_path) == expected


def test_a_system_without_control_groups_limits_no_memory(tmp_path: Path):
    assert memory_limits(tmp_path) == []
