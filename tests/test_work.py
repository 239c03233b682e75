"""What the closed form counts against what the compiler counts in the program itself."""

import math
import pathlib
import tempfile

import jax
import pytest

from jaxllm import settings
from jaxllm.scaling import hlo, share, work
from jaxllm.training import setup
from tests import runs

SIZES = {
    "model.size": "",
    "model.layers": 3,
    "model.width": 64,
    "model.heads": 4,
    "model.kv_heads": 4,
    "model.mlp_width": 160,
    "model.vocab": 320,
    "model.unroll": 1,
    "model.dtype": "float32",
    "tokenizer.kind": "byte",
    "data.length": 32,
    "data.batch": 16,
    "validate.batch": 16,
    "optim.kind": "sgd",
}

T5 = {"model.family": "t5", "model.head_width": 16}
GRIFFIN = {"model.family": "griffin", "model.kv_heads": 1, "model.window": 16, "model.layers": 6}
_TASK = {"model.lm_head": "false", "model.head_bias": "false", "model.head_transform": "false"}
CLASSES = _TASK | {"model.task": "classify", "model.labels": 5, "data.rows": "examples"}
CLASSES |= {"model.pool_layer": "true"}
TOGETHER = _TASK | {"model.task": "embed", "model.pool": "mean", "data.rows": "together"}
OBJECTIVES = {"examples": "classify", "together": "contrast"}

# {what: (mesh, settings)}
PROGRAMS = {
    "full": ("fsdp 4", {"model.remat": "full"}),
    "none": ("fsdp 4", {"model.remat": "none"}),
    "offload": ("fsdp 4", {"model.remat": "offload"}),
    "light": ("fsdp 4", {"model.remat": "light"}),
    "dots": ("fsdp 2 x tensor 2", {"model.remat": "dots"}),
    "tensor": ("fsdp 2 x tensor 4", {"model.remat": "full"}),
    "micro": ("data 2 x fsdp 2", {"model.remat": "full", "step.micro_batches": 2}),
    "chunked": ("fsdp 2", {"model.remat": "full", "objective.chunk": 8}),
    "around": ("fsdp 2", {"model.remat": "full", "model.norm_place": "around"}),
    "normed": ("fsdp 2", {"model.remat": "light", "model.qk_norm": "true"}),
    "parallel": ("fsdp 2", {"model.remat": "full", "model.parallel": "true"}),
    "plain": ("data 2", {"model.remat": "full", "model.gated": "false", "model.position": "none"}),
    "direct": ("fsdp 2", {"model.remat": "full", "model.products": "direct"}),
    "grouped": ("fsdp 2", {"model.remat": "light", "model.kv_heads": 2}),
    "encoder": ("fsdp 2", {"model.family": "bert", "model.remat": "light"}),
    "spans": ("fsdp 2", {**T5, "model.remat": "full"}),
    "spans light": ("fsdp 2", {**T5, "model.remat": "light", "model.encoder_layers": 2}),
    "two streams": ("fsdp 2", {"model.family": "xlnet", "model.remat": "light"}),
    "recurrent": ("fsdp 2", {**GRIFFIN, "model.remat": "light"}),
    "classes": ("data 2", {"model.family": "bert", "model.remat": "full", **CLASSES}),
    "embeddings": ("data 2", {"model.family": "bert", "model.remat": "full", **TOGETHER}),
}
TRANSFORMS = {"bert": "bert", "t5": "spans", "xlnet": "xlnet"}


def load(family, rows, overrides):
    """A config of a family whose rows are those that it is trained on."""
    lines = ["from configs import pretrain", "def get_config(arg=None):"]
    lines += ["    c = pretrain.get_config(arg)"]
    if rows:
        task = "pairs" if rows == "together" else "classify"
        source = dict(kind="counting", task=task, weight=1.0)
        lines += [f"    c.data.sources = dict(main={source})"]
        lines += [f"    c.objective = dict(kind={OBJECTIVES[rows]!r})"]
    elif family in TRANSFORMS:
        lines += [f"    c.data.transforms = dict(rows=dict(kind={TRANSFORMS[family]!r}))"]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "config.py"
        file.write_text("\n".join([*lines, "    return c"]))
        return settings.load(f"{file}:family={family},size=", overrides, setup.KINDS)[0]


def assembled(mesh, fields):
    """(config, `setup.Run`, abstract batch) of a program on the first devices."""
    pairs = {**SIZES, **fields}
    pairs |= {f"mesh.{axis}": size for axis, size in runs.shape_of(mesh).items()}
    family = pairs.pop("model.family", "llama")
    overrides = [(name, str(value)) for name, value in pairs.items()]
    config = load(family, pairs.get("data.rows", ""), overrides)
    devices = jax.devices()[: math.prod(runs.shape_of(mesh).values())]
    run = setup.assemble_program(config, config.model.vocab, devices)
    return config, run, setup.abstract_batch(run, config.data.batch)


def counted(mesh, fields):
    """(Share, `hlo.Costs` of the compiled step)."""
    config, run, batch = assembled(mesh, fields)
    text = run.step.lower(run.abstract, {}, batch).compile().as_text()
    return share.describe(config, run.mesh.size, "cpu", config.model.vocab), hlo.costs(text)


@pytest.mark.parametrize("name", PROGRAMS)
def test_flops_and_bytes_on_the_wire_are_the_compilers(name):
    own, costs = counted(*PROGRAMS[name])
    assert work.products(own).counted == pytest.approx(costs.matmul_flops, rel=1e-9)
    found = work.wire(own).by_kind()
    gathered = found.get("all-gather", 0)
    if name == "micro":  # a CPU's compiler moves table and head out of the loop of micro-batches
        gathered -= 4 * sum(own.used(path) for path in ("embed", "head/w", "final_norm/scale"))
    # Besides, norms' scales may be kept, and positions are joined over `tensor`.
    assert gathered == pytest.approx(costs.wire.get("all-gather", 0), rel=5e-3)


@pytest.mark.parametrize(
    "mesh, fields",
    [
        ("fsdp 4", {"optim.kind": "adamw"}),
        ("data 2 x tensor 4", {"optim.kind": "muon"}),
        ("data 4", {"optim.kind": "adamw", "sharding": "zero1"}),
        ("fsdp 2 x expert 2 x tensor 2", {"optim.kind": "adafactor", "model.experts": 4}),
    ],
)
def test_state_is_what_the_step_takes(mesh, fields):
    """Bytes of weights and optimizer state on a device: those of the real shardings."""
    config, run, _ = assembled(mesh, fields)
    own = share.describe(config, run.mesh.size, "cpu", config.model.vocab)

    def size(tree):
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    assert 4 * sum(map(own.stored, own.infos)) == size(run.abstract.params)
    assert own.opt_bytes == size(run.abstract.opt)
