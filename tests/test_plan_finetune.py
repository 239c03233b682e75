"""What a plan says of fine-tuning, counted from the methods themselves; a compiler counts alike."""

import jax
import pytest

from jaxllm import data
from jaxllm.scaling import flops, hlo, memory, share, work
from jaxllm.training import ahead
from tests import runs

VOCAB = 300
METHODS = {
    "full": {},
    "lora": {"finetune.kind": "lora"},
    "lora of attention": {"finetune.kind": "lora", "finetune.targets": "attn/(q|v)$"},
    "tied": {"finetune.kind": "lora", "model.tied": True},
    "qlora": {"finetune.kind": "qlora"},
    "prompt": {"finetune.kind": "prompt"},
    "prefix": {"finetune.kind": "prefix"},
    "adapter": {"finetune.kind": "adapter"},
    "ia3": {"finetune.kind": "ia3"},
    "frozen table": {"finetune.freeze": "^embed$"},
    "head alone": {"finetune.freeze": "^(embed|layers|final)"},
}


def config_of(name, **fields):
    sizes = {"model.layers": 2, "model.unroll": 1, "data.batch": 16}
    return runs.config(sizes | METHODS[name] | fields)


def described(config):
    return share.describe(config, 1, "cpu", VOCAB)


@pytest.mark.parametrize("name", METHODS)
def test_utilisation_counts_the_work_that_a_step_does(name):
    """What MFU divides by is the step's products, where nothing is computed again."""
    config = config_of(name)
    own = described(config)
    products = work.products(own)
    assert products.again == 0
    tokens = config.data.batch * config.data.length
    assert tokens * flops.of_run(config, own.c) == products.useful + products.attention


@pytest.mark.parametrize(
    "name, remat",
    [
        ("lora", "full"),
        ("tied", "light"),
        ("lora of attention", "dots"),
        ("qlora", "none"),
        ("prefix", "full"),
        ("adapter", "light"),
        ("ia3", "light"),
        ("head alone", "full"),
    ],
)
def test_a_compiler_counts_the_same(name, remat, tmp_path):
    """FLOPs to the last one, and the bytes of what a run keeps between its steps."""
    config = config_of(name, **{"model.remat": remat})
    own = described(config)
    program = ahead.compile_step(config, jax.devices()[:1], tmp_path, VOCAB)
    assert hlo.costs(program.text).matmul_flops == work.products(own).counted
    batch = sum(x.nbytes for x in data.empty(config.data, config.data.batch).values())
    rest = program.memory.argument_size_in_bytes - batch
    assert rest - 16 <= memory.of(own).arguments <= rest  # counters and the random key


def test_what_is_frozen_has_no_optimizer_and_no_gradients():
    full, lora, qlora = (memory.of(described(config_of(n))) for n in ("full", "lora", "qlora"))
    assert "frozen" not in full.state
    assert lora.state["optimizer"] < full.state["optimizer"] / 2
    assert qlora.state["frozen"] < lora.state["frozen"] == full.state["weights"]  # float32
    assert lora.state["weights"] == qlora.state["weights"] < full.state["weights"]


def test_frozen_weights_are_gathered_as_they_are_stored_and_send_no_gradients():
    """In few bits there is less to send."""
    sent = {}
    for name in ("full", "lora", "qlora"):
        config = config_of(name, **{"sharding": "zero3", "mesh.data": 1, "mesh.fsdp": 8})
        one = share.describe(config, 8, "cpu", VOCAB)
        sent[name] = work.wire(one).by_kind()
    assert sent["qlora"]["all-gather"] < sent["lora"]["all-gather"]
    assert sent["lora"]["reduce-scatter"] < sent["full"]["reduce-scatter"]
