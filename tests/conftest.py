"""Eight fake CPU devices for every test; tiny models that several tests share."""

import importlib.util
import os

import jaxlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and run little: without the compiler's optimizations they take two thirds of
# the time, and loops that are fused by its older means take a third of that to compile.
_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
LIBTPU = importlib.util.find_spec("libtpu") is not None  # programs for TPUs can be compiled
if jaxlib.__version__.startswith("0.10.") and not LIBTPU:  # what does not know a flag ends at once
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
for _flag in _FLAGS:
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()

import jax
import numpy as np
import pytest

from jaxllm import trees
from jaxllm.models.config import resolve

TINY = dict(layers=2, width=32, heads=4, kv_heads=2, mlp_width=64)


def tiny_config(vocab=65, length=16, **fields):
    """A resolved ModelConfig of toy size."""
    return resolve({**TINY, **fields}, vocab=vocab, length=length)


def ragged_batch(rows=4, length=16, vocab=65, seed=0, documents=2):
    """Rows of several documents each, of unequal length, with padding at the end."""
    rng = np.random.default_rng(seed)
    batch = {
        "tokens": rng.integers(0, vocab, (rows, length)).astype(np.int32),
        "targets": rng.integers(0, vocab, (rows, length)).astype(np.int32),
        "weight": np.zeros((rows, length), np.float32),
        "position": np.zeros((rows, length), np.int32),
        "segment": np.zeros((rows, length), np.int32),
    }
    for row in range(rows):
        cuts = np.sort(rng.choice(np.arange(2, length), documents, replace=False))
        first = 0
        for number, last in enumerate(cuts, 1):
            batch["segment"][row, first:last] = number
            batch["position"][row, first:last] = np.arange(last - first)
            batch["weight"][row, first : last - 1] = 1.0
            first = last
    return batch


def random_params(model, seed=0, scale=0.15):
    """Parameters drawn by NumPy, norms and biases included, without compiling `model.init`."""
    rng = np.random.default_rng(seed)
    infos = model.infos
    return trees.unflatten(
        {path: np.float32(scale * rng.normal(size=info.shape)) for path, info in infos.items()}
    )


@pytest.fixture(scope="session")
def key():
    """One random key for all tests."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory):
    """A directory for compiled programs, shared by all test processes and thrown away later."""
    base = tmp_path_factory.getbasetemp()
    return str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled")
