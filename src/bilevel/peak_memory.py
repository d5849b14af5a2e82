"""Peak of the memory that a piece of work needs, as the system or the device counts it."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

_earlier = 0
"""Peak of the process before the last `begin`, in bytes."""


def begin(device: torch.device) -> int | None:
    """Begin a new peak; returns the bytes held now, None where the system does not tell (Linux does, and CUDA)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    global _earlier
    try:
        _earlier = max(_earlier, status("VmHWM"))
        # freed memory that the C library keeps would be taken from first, and show in no peak
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        RESET.write_text("5")  # the peak becomes what is held now
        return status("VmRSS")
    except (OSError, AttributeError):
        return None


def peak(device: torch.device) -> int | None:
    """The peak since `begin`, in bytes; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return status("VmHWM")
    except OSError:
        return None


def of_process() -> int:
    """The peak of this process's memory since it began its program, in bytes, whatever `begin` has begun."""
    try:
        return max(_earlier, status("VmHWM"))
    except OSError:
        # where there is no such file. What a process was before it ran its program, such as a copy of a large Python
        # that started it, is in this number too
        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return found if sys.platform == "darwin" else found * 1024


def status(key: str) -> int:
    """A quantity of memory of this process, in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {key}")
