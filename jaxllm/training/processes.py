"""Joining the other processes of a run, and agreeing with them."""

import hashlib
import importlib.util
import os
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxllm.config import ConfigError

HEARTBEAT_S = 30  # a process silent for longer is taken for dead


def join(coordinator="", processes=0, process_id=-1):
    """Joins the run's other processes; call before anything touches a device.

    Args:
        coordinator: "host:port" of process 0; "" where a TPU slice, Slurm or Open MPI tells.
        processes: how many there are; 0 where the cluster tells.
        process_id: which one this is; -1 where the cluster tells.

    Raises:
        ConfigError: some of the three given but not all.
    """
    given = [bool(coordinator), processes > 0, process_id >= 0]
    if any(given) and not all(given):
        raise ConfigError(
            f"--coordinator={coordinator!r} --processes={processes} --process_id={process_id}: "
            "give all three, or none.\n  Try --coordinator=localhost:1234 --processes=2 "
            "--process_id=0 in one shell and --process_id=1 in another."
        )
    if all(given):
        jax.distributed.initialize(
            coordinator,
            num_processes=processes,
            process_id=process_id,
            # By default the service listens on every interface, with no authentication.
            coordinator_bind_address=coordinator,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
    elif _in_cluster():
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_S)


def _in_cluster():
    """Whether jax can find the other processes by itself."""
    if any(int(os.environ.get(n, "1")) > 1 for n in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")):
        return True
    on_cpu = os.environ.get("JAX_PLATFORMS", "").startswith("cpu")
    device = any(pathlib.Path(p).exists() for p in ("/dev/accel0", "/dev/vfio/0"))
    return device and not on_cpu and importlib.util.find_spec("libtpu") is not None


def is_first():
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def check_same(what, text):
    """Raises ConfigError unless every process has the same text.

    Two hosts with different configs would otherwise train happily into different models.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
    all_digests = multihost_utils.process_allgather(digest)
    others = [i for i, other in enumerate(all_digests) if not np.array_equal(other, digest)]
    if others:
        raise ConfigError(
            f"Process {jax.process_index()} has another {what} than process {others[0]}. "
            "Start the same commit with the same command on every host."
        )
