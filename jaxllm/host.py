"""What this machine's processor and C library need to run XLA's CPU programs fast."""

import contextlib
import ctypes
import math
import os
import pathlib

# Numbers of glibc's mallopt(3) parameters.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_MOST_DEVICES = 8


def keep_freed_memory():
    """Tells glibc to keep freed memory for the next step instead of giving it back.

    XLA's CPU backend allocates its temporaries anew for every call. By default each large block is
    mapped from the system and unmapped again, and every page is faulted in once more in every
    step. Does nothing without glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_ARENA_MAX, 1)  # other arenas are made of mapped blocks
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_TOP_PAD, 64 * 2**20)


def memory_bytes():
    """Memory of this machine, or what its container may have of it."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        found = min(found, int(pathlib.Path("/sys/fs/cgroup/memory.max").read_text()))
    return found


def useful_devices(config):
    """How many devices the CPU's cores should be presented as.

    XLA runs an elementwise operation of one device on one core; rows split over two devices keep
    two cores busy. As many as there are cores, where batches and mesh allow.

    Args:
        config: the whole ConfigDict.
    """
    if config.mesh.data != -1:
        return max(math.prod(size for size in config.mesh.values() if size > 0), 1)
    others = config.mesh.fsdp * config.mesh.tensor
    if others < 1:
        return 1
    rows = math.gcd(config.data.batch // config.step.micro_batches, config.validate.batch)
    cores = min(len(os.sched_getaffinity(0)), _MOST_DEVICES)
    fitting = [n for n in range(1, cores + 1) if rows % n == 0]
    return max(fitting, default=1) * others
