"""How much memory there is to be had."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["available_memory"]

_GROUP = Path("/sys/fs/cgroup")  # of a container, as seen from within


def available_memory() -> int | None:
    """Return the bytes that could be taken without swapping: of the machine and, in a container, of what it may have.

    Where the system does not say, half of what the machine has; None where that is unknown too.
    """
    free = [found for found in (_of_linux(), _of_group()) if found is not None]
    if free:
        return min(free)
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def _of_linux() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _of_group() -> int | None:
    """Return what is left of a container's limit; pages of files count as free."""
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(statistics.get("inactive_file", 0)) + int(statistics.get("active_file", 0)))
    return None
