"""Small parameters of every sort, and what an optimizer makes of them."""

import re

import jax
import numpy as np
import optax

from jaxllm import optim, trees
from jaxllm.dims import ParamInfo

F32, LAYERS, STEPS, LR = np.dtype("float32"), 2, 5, 0.02


def layer_info(shape, axes, inputs=()):
    return ParamInfo((LAYERS, *shape), F32, ("layers", *axes), inputs)


INFOS = {
    "embed/table": ParamInfo((11, 8), F32, ("vocab", "embed")),
    "final_norm/scale": ParamInfo((8,), F32, ("embed",)),
    "head/bias": ParamInfo((11,), F32, ("vocab",)),
    "head/w": ParamInfo((8, 11), F32, ("embed", "vocab")),
    "layers/attn/o/w": layer_info((2, 4, 8), ("heads", "head", "embed"), ("heads", "head")),
    "layers/attn/q/b": layer_info((2, 4), ("heads", "head")),
    "layers/attn/q/w": layer_info((8, 2, 4), ("embed", "heads", "head"), ("embed",)),
    "layers/mlp/down/w": layer_info((16, 8), ("mlp", "embed"), ("mlp",)),
    "layers/mlp/up/w": layer_info((8, 16), ("embed", "mlp"), ("embed",)),
    "layers/norm/scale": layer_info((8,), ("embed",)),
}
HIDDEN = {path for path in INFOS if re.search(r"layers/.*/w$", path)}

# Options that make small parameters take the ways of large ones.
SECTIONS = {
    "adamw": {},
    "adamw8bit": dict(block=4, min_size=16),
    "adafactor": dict(min_factored=8, momentum=0.9, weight_decay=0.1),
    "lamb": {},
    "lion": {},
    "muon": {},
    "sgd": dict(nesterov=True, weight_decay=0.1),
}


def random_tree(infos, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return trees.unflatten(
        {p: np.asarray(scale * rng.normal(size=i.shape), F32) for p, i in infos.items()}
    )


def schedule(lr=LR):
    return optim.make_schedule(dict(kind="linear", lr=lr, warmup_steps=2), 20)


def build(kind, infos=INFOS, lr=LR, **options):
    return optim.make_optimizer(dict(kind=kind, **options), schedule(lr), infos)


# Arrays are tiny: what takes time here is to compile.
@jax.jit(static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def run_compiled(tx, params, grads):
    def one(carry, grad):
        params, state = carry
        updates, state = tx.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(one, (params, tx.init(params)), grads)[0][0]


def run(tx, params, grads):
    """Parameters after one update for each of the gradients, as {path: numpy array}."""
    grads = jax.tree.map(lambda *leaves: np.stack(leaves), *grads)
    return {p: np.asarray(x) for p, x in trees.flatten(run_compiled(tx, params, grads)).items()}


def start(infos=INFOS, seed=0):
    return random_tree(infos, seed), [random_tree(infos, 100 + s, 0.1) for s in range(STEPS)]
