"""Where to compute, and in which number format: chosen automatically, or checked if the user has chosen."""

import ctypes
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import torch

from minigpt.errors import ConfigError, passed

LARGEST_IN_HEAP = 2**25  # bytes, glibc's upper limit; a larger block is mapped alone, and given back when it is freed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def available_devices() -> list[str]:
    """The kinds of device that torch can use on this machine, the fastest first."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind in there if there[kind]]


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes the fastest kind there is.

    Raises:
        ConfigError: if torch does not know the name, or this machine has no such device.
    """
    available = available_devices()
    if name == "auto":
        return torch.device(available[0])
    has = f"this machine has: {', '.join(available)}; {passed('device', 'auto')} takes {available[0]}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{name!r} is not the name of a device", has) from None
    if device.type not in available:
        raise ConfigError(f"there is no {device.type} device here", has)
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(f"there is no {name} here", f"the number must be below {torch.cuda.device_count()}")
    return device


def processor() -> str:
    """The processor, and the instruction set that torch's kernels use on it, which decides how sums are rounded."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # on Linux, `platform` knows only the architecture
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        name = next(filter(None, names), name)
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has tiles or tensor cores for bfloat16, which make it surely faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # AVX-512 without tiles multiplies bfloat16 too, but not reliably faster: it is used only with --dtype bfloat16.
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return False


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of the matrix products.

    Raises:
        ConfigError: for float16, whose gradients underflow without loss scaling, which minigpt does not do.
    """
    if name == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    if name == "float16":
        raise ConfigError(
            "dtype float16 is not supported for training: small gradients become zero in it",
            f"use {passed('dtype', 'bfloat16')}, which has float32's range, or {passed('dtype', 'float32')}",
        )
    return DTYPES[name]


def why_dtype(name: str, device: torch.device) -> str:
    """Why `choose_dtype` chose it, in words; a bfloat16 that the hardware does not multiply is timed for that."""
    if name == "auto":
        return "the hardware multiplies it" if multiplies_bfloat16(device) else "no bfloat16 tiles here"
    if name == "bfloat16" and not multiplies_bfloat16(device):
        ratio = matmul_seconds(torch.bfloat16, device) / matmul_seconds(torch.float32, device)
        return f"as asked, but here a bfloat16 matrix product takes {ratio:.1f} x float32's time"
    return "as asked"


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """A context in which matrix products run in `dtype`; weights, sums and norms stay float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within the `with`, or the function that it decorates, torch computes on the CPU as in a process that set nothing.

    Neither a default device nor autocast, `no_grad` or `inference_mode` of the caller counts. A default dtype does.
    """
    with torch.device("cpu"), torch.autocast("cpu", enabled=False), torch.inference_mode(False), torch.enable_grad():
        yield


def free_bytes(device: torch.device) -> int | None:
    """Memory of a device that this process can still take, in bytes; None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and sys.platform == "linux":
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":") for line in lines)
        available = int(fields["MemAvailable"].split()[0]) * 1024  # with file caches, which the system would give back
        return min([available, *(left for _, left in memory_limits())])
    return None


def memory_limits(root: Path = Path("/")) -> list[tuple[int, int]]:
    """What a container, or another control group of Linux, allows of the machine's memory; empty without such groups.

    Args:
        root: of the file system, whose `proc` and `sys` tell.

    Returns:
        (bytes allowed, bytes of these left) of each group that this process is in: its own, and those above it. As in
        MemAvailable, file caches count as left. Without a limit, the numbers are larger than any machine.
    """
    found = []
    with suppress(OSError):  # another system
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kinds, path = line.split(":", 2)  # of the second version, which has one tree for everything, "" and path
            tree = "sys/fs/cgroup" + "/memory" * bool(kinds)
            names = ("limit_in_bytes", "usage_in_bytes", "total_") if kinds else ("max", "current", "")
            own = root / tree / path.lstrip("/")  # in a container it may be a path of the host, and not be there
            for group in (own, *own.parents) if "memory" in (kinds or "memory").split(",") else ():
                with suppress(OSError, ValueError):  # the second version writes "max" where there is no limit
                    limit, used = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in names[:2])
                    stat = group / "memory.stat"
                    lines = stat.read_text(encoding="ascii").splitlines() if stat.exists() else ()
                    parts = {name: int(number) for name, number in map(str.split, lines)}
                    caches = sum(parts.get(f"{names[2]}{kind}_file", 0) for kind in ("active", "inactive"))
                    found.append((limit, max(0, limit - used + caches)))
    return found


def keep_freed_memory() -> bool:
    """Let the C library keep the memory that tensors have freed. Returns whether this worked: only glibc can do it.

    By default it gives large blocks back to the kernel. A training step on a CPU frees and takes the same blocks over
    and over, and would pay thousands of page faults to get them again.
    """
    return _set_malloc(keep=2**31 - 1, mapped_alone=LARGEST_IN_HEAP)


@contextmanager
def returning_freed_memory() -> Iterator[None]:
    """Let the C library return each large block at once while a model is loaded, where it can be told to (glibc).

    By default it soon keeps what was freed, for blocks of the same size; but those of weights become ever smaller.
    Afterwards it does as it does by default when it has seen large blocks.
    """
    _set_malloc(keep=2**17, mapped_alone=2**20)
    try:
        yield
    finally:
        _set_malloc(keep=2 * LARGEST_IN_HEAP, mapped_alone=LARGEST_IN_HEAP)


def _set_malloc(keep: int, mapped_alone: int) -> bool:
    """How many freed bytes are kept, and from how many on a block is mapped alone; false without glibc."""
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or Windows
        return False
    return bool(mallopt(trim_threshold, keep)) and bool(mallopt(mmap_threshold, mapped_alone))


def matmul_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Median time of one product of small square matrices, in seconds."""
    a = torch.randn(256, 256, device=device).to(dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        (a @ a).sum().item()  # .item() waits for the device
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first warms up
