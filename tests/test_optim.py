"""Optimizers against their papers' formulas, groups, decay and the axes of their states."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm import optim, trees
from jaxllm.config import ConfigError
from jaxllm.dims import ParamInfo
from jaxllm.optim import matrices, muon
from jaxllm.optim.groups import decays

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


@pytest.mark.parametrize("kind", optim.OPTIMIZERS)
def test_stacked_layers_train_as_separate_ones(kind):
    """Stacking layers on axis 0 changes no update: norms and factors stay within a layer."""
    stacked = {path: info for path, info in INFOS.items() if info.axes[0] == "layers"}
    separate = {
        path: info._replace(shape=info.shape[1:], axes=info.axes[1:])
        for path, info in stacked.items()
    }

    def last_layer(tree):
        return jax.tree.map(lambda x: x[-1], tree)

    params, grads = start(stacked)
    got = run(build(kind, stacked, **SECTIONS[kind]), params, grads)
    want = run(
        build(kind, separate, **SECTIONS[kind]), last_layer(params), list(map(last_layer, grads))
    )
    for path in stacked:
        np.testing.assert_allclose(got[path][-1], want[path], rtol=2e-5, atol=2e-6, err_msg=path)


# The formulas of the papers, in float64, for one array: (w, gradients, rates, decay) -> w.


def adamw(w, grads, rates, decay, beta1=0.9, beta2=0.95, eps=1e-8):
    m = v = 0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        step = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
        w = w - lr * (step + decay * w)
    return w


def lamb(w, grads, rates, decay, beta1=0.9, beta2=0.999, eps=1e-6):
    m = v = 0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        r = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps) + decay * w
        w = w - lr * np.linalg.norm(w) / np.linalg.norm(r) * r
    return w


def lion(w, grads, rates, decay, beta1=0.9, beta2=0.99):
    m = 0
    for g, lr in zip(grads, rates, strict=True):
        w = w - lr * (np.sign(beta1 * m + (1 - beta1) * g) + decay * w)
        m = beta2 * m + (1 - beta2) * g
    return w


def sgd(w, grads, rates, decay, momentum=0.9):
    m = 0
    for g, lr in zip(grads, rates, strict=True):
        m = momentum * m + g
        w = w - lr * (m + decay * w)
    return w


def nesterov_sgd(w, grads, rates, decay, momentum=0.9):
    m = 0
    for g, lr in zip(grads, rates, strict=True):
        m = momentum * m + g
        w = w - lr * (momentum * m + g + decay * w)
    return w


def adafactor(w, grads, rates, decay):
    """Algorithms 4 to 6 for matrices, algorithm 5 for vectors; inputs are rows."""
    r = c = v = 0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), 1):
        beta2, square = 1 - t**-0.8, g * g + 1e-30
        if w.ndim == 2:
            r = beta2 * r + (1 - beta2) * square.sum(1)
            c = beta2 * c + (1 - beta2) * square.sum(0)
            v = np.outer(r, c) / r.sum()
        else:
            v = beta2 * v + (1 - beta2) * square
        u = g / np.sqrt(v)
        u = u / max(1, np.sqrt(np.mean(u * u)))
        w = w - lr * (max(1e-3, np.sqrt(np.mean(w * w))) * u + decay * w)
    return w


def newton_schulz(x):
    x = x / np.linalg.norm(x)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def muon_matrix(w, grads, rates, decay, beta=0.95):
    """Jordan's Muon with bias-corrected means; rows are inputs, so the scale is columns / rows."""
    m = 0
    for t, (g, lr) in enumerate(zip(grads, rates, strict=True), 1):
        m = beta * m + (1 - beta) * g
        ahead = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
        scale = np.sqrt(max(1, w.shape[1] / w.shape[0]))
        w = w - lr * (scale * newton_schulz(ahead) + decay * w)
    return w


def check_against(formula, kind, decay, rtol=1e-5, only=None, lr=LR, **options):
    """Compares all parameters after some updates with a formula on each layer's matrix."""
    params, grads = start()
    got = run(build(kind, **options), params, grads)
    rates = [float(schedule(lr)(step)) for step in range(STEPS)]
    for path, info in INFOS.items():
        if only is not None and path not in only:
            continue
        layers = LAYERS if info.axes[0] == "layers" else 1
        # Inputs are contiguous and first, as in every projection of the model.
        rows, columns = (matrices.size(info, side) for side in matrices.sides(info))
        shape = (rows, columns) if len(info.axes) > 1 + (layers > 1) else (rows * columns,)
        w, *gs = (
            np.float64(trees.flatten(tree)[path]).reshape(layers, *shape)
            for tree in (params, *grads)
        )
        rate = decay if path in HIDDEN else 0
        want = [formula(w[i], [g[i] for g in gs], rates, rate) for i in range(layers)]
        np.testing.assert_allclose(
            got[path].reshape(layers, *shape), want, rtol=rtol, atol=rtol / 10, err_msg=path
        )


def test_adamw_is_the_paper():
    check_against(adamw, "adamw", 0.1)


def test_lamb_is_the_paper_layer_by_layer():
    check_against(lamb, "lamb", 0.01)


def test_lion_is_the_paper():
    check_against(lion, "lion", 0.3)


def test_sgd_is_the_paper_with_and_without_nesterov():
    check_against(sgd, "sgd", 0.1, weight_decay=0.1)
    check_against(nesterov_sgd, "sgd", 0.1, weight_decay=0.1, nesterov=True)


def test_adafactor_is_the_paper_with_factors_by_inputs_and_outputs():
    check_against(adafactor, "adafactor", 0.1, weight_decay=0.1, min_factored=0, rtol=1e-4)


def test_adafactor_is_optax_on_one_matrix():
    infos = {"w": ParamInfo((8, 16), F32, ("embed", "mlp"), ("embed",))}
    params, grads = start(infos)
    ours = run(build("adafactor", infos, min_factored=8), params, grads)
    theirs = run(optax.adafactor(schedule(), min_dim_size_to_factor=8), params, grads)
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-5)


def test_muon_is_the_paper_for_hidden_matrices_and_adamw_for_the_rest():
    check_against(muon_matrix, "muon", 0.1, only=HIDDEN, rtol=1e-3)
    # The rest follows the same curve to its own peak.
    params, grads = start()
    got = run(build("muon", adam_lr=3e-3), params, grads)
    want = run(build("adamw", lr=3e-3, weight_decay=0.0), params, grads)
    for path in INFOS.keys() - HIDDEN:
        np.testing.assert_allclose(got[path], want[path], rtol=1e-5, atol=1e-7, err_msg=path)


def test_muon_updates_are_nearly_orthogonal_whatever_the_layout():
    """Every layer's update has singular values near 1 (times the scale), over inputs x outputs."""
    params, grads = random_tree(INFOS, 0), trees.flatten(random_tree(INFOS, 1))
    for path in HIDDEN:
        info = INFOS[path]
        side = matrices.size(info, matrices.sides(info)[0])
        u, s, v = np.linalg.svd(grads[path].reshape(LAYERS, side, -1), full_matrices=False)
        # Values from 0.2 to 1: five steps do not lift those near 0.
        spread = u * np.linspace(1, 0.2, s.shape[-1]) @ v
        grads[path] = np.asarray(spread.reshape(info.shape), F32)
    tx = build("muon", weight_decay=0.0)
    updates, _ = jax.jit(tx.update)(trees.unflatten(grads), tx.init(params), params)
    for path in HIDDEN:
        side = matrices.size(INFOS[path], matrices.sides(INFOS[path])[0])
        update = np.asarray(trees.flatten(updates)[path]).reshape(LAYERS, side, -1)
        values = np.linalg.svd(update / float(schedule()(0)), compute_uv=False)
        scale = muon.update_scale(INFOS[path], "keller")
        assert scale == (2**0.5 if path == "layers/mlp/up/w" else 1), path
        assert values.min() > 0.6 * scale and values.max() < 1.25 * scale, (path, values)


def test_muon_rms_scale_moves_entries_as_adamw_does():
    """Moonlight's scale gives updates a root mean square of 0.2, for wide and tall matrices."""
    for shape in ((64, 256), (256, 64)):
        infos = {"w": ParamInfo(shape, F32, ("embed", "mlp"), ("embed",))}
        params, grads = start(infos)
        tx = build("muon", infos, weight_decay=0.0, scale="rms")
        update = jax.jit(tx.update)(grads[0], tx.init(params), params)[0]["w"] / schedule()(0)
        assert 0.8 * 0.2 < np.sqrt(np.mean(update**2)) < 1.2 * 0.2


def test_8_bit_adam_follows_adam_with_a_quarter_of_the_state():
    infos = {
        "w": ParamInfo((2, 64, 512), F32, ("layers", "embed", "mlp"), ("embed",)),
        "embed/table": ParamInfo((100, 64), F32, ("vocab", "embed")),
        "norm/scale": ParamInfo((64,), F32, ("embed",)),
    }
    params, grads = start(infos)
    tx = build("adamw8bit", infos)
    exact, coded = run(build("adamw", infos), params, grads), run(tx, params, grads)
    moved, error = exact["w"] - params["w"], coded["w"] - exact["w"]
    assert 0 < np.linalg.norm(error) < 0.03 * np.linalg.norm(moved)
    for path in ("embed/table", "norm/scale"):  # these stay float32
        np.testing.assert_allclose(coded[path], exact[path], rtol=1e-5, atol=1e-7)
    state = jax.eval_shape(tx.init, {"w": params["w"]})
    assert trees.size_bytes(state) < 2.05 * params["w"].size


def test_decay_is_for_hidden_matrices_and_by_option_for_tables():
    """A zero gradient leaves norms, biases and tables alone; a stacked norm is no matrix."""
    params, zeros = random_tree(INFOS, 0), jax.tree.map(jnp.zeros_like, random_tree(INFOS, 0))
    cases = [(kind, False, set()) for kind in ("adamw", "muon", "lamb")]
    for kind, decay_embeddings, more in [*cases, ("sgd", True, {"embed/table", "head/w"})]:
        tx = build(kind, weight_decay=0.5, decay_embeddings=decay_embeddings)
        got = run(tx, params, [zeros])
        moved = {p for p, x in trees.flatten(params).items() if not np.array_equal(x, got[p])}
        assert moved == HIDDEN | more, (kind, moved)
    assert decays(INFOS, 0.5, False)["layers/mlp/up/w"] == 0.5


def test_groups_scale_rates_set_decay_and_freeze():
    params, grads = start()
    groups = dict(
        tables=dict(pattern="^(embed|head)/", lr_scale=0.1),
        scales=dict(pattern="scale$", weight_decay=0.7),
        still=dict(pattern="mlp/", lr_scale=0),
    )
    tx = build("adamw", groups=groups)
    got, plain = run(tx, params, grads), run(build("adamw"), params, grads)
    before = {path: np.asarray(leaf) for path, leaf in trees.flatten(params).items()}
    for path in INFOS:
        if path.startswith(("embed", "head")):
            want = before[path] + 0.1 * (plain[path] - before[path])
        elif path.endswith("scale"):
            assert np.abs(got[path] - plain[path]).max() > 1e-3
            continue
        else:
            want = before[path] if "mlp" in path else plain[path]
        np.testing.assert_allclose(got[path], want, rtol=1e-5, atol=1e-6, err_msg=path)
    kept = {optim.param_of(path, INFOS)[0] for path in trees.flatten(tx.init(params))}
    assert kept - {""} == {path for path in INFOS if "mlp" not in path}  # frozen: no state


@pytest.mark.parametrize(
    "section, words",
    [
        (dict(kind="adam"), ("'adam'", "'adamw'")),
        (dict(kind="adamw", beta=0.9), ("optim.beta=0.9", "'beta")),
        (dict(kind="adamw", beta1=1.0), ("beta1=1.0", "[0, 1)")),
        (dict(kind="adamw", weight_decay=-0.1), ("weight_decay=-0.1",)),
        (dict(kind="muon", scale="moon"), ("'moon'", "'keller'", "'rms'")),
        (dict(kind="sgd", momentum=0.0, nesterov=True), ("nesterov",)),
        (
            dict(kind="sgd", groups=dict(e=dict(pattern="embd/"))),
            ("groups.e.pattern='embd/'", "'embed'", "layers/", "--config.optim.groups.e.pattern="),
        ),
        (dict(kind="sgd", groups=dict(e=dict(pattern="embed", lr_scal=1.0))), ("'lr_scale'",)),
        (dict(kind="sgd", groups=dict(e=dict(lr_scale=1.0))), ("groups.e.pattern",)),
        (dict(kind="sgd", groups=dict(e=dict(pattern="("))), ("regular expression",)),
        (dict(kind="sgd", groups=dict(e=dict(pattern="embed", lr_scale=-1))), ("lr_scale=-1",)),
        (
            dict(kind="sgd", groups=dict(a=dict(pattern="embed/"), b=dict(pattern="table"))),
            ("groups.b", "groups.a", "'embed/table'"),
        ),
    ],
)
def test_errors_say_what_is_allowed(section, words):
    with pytest.raises(ConfigError) as error:
        optim.make_optimizer(section, schedule(), INFOS)
    assert all(word in str(error.value) for word in words), error.value


def test_a_parameter_that_was_not_declared_is_refused():
    tx = build("muon")
    with pytest.raises(ValueError, match=r"'layers/mlp/upp/w'.*'layers/mlp/up/w'"):
        tx.init({"layers": {"mlp": {"upp": {"w": jnp.zeros((2, 8, 16))}}}})


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", optim.OPTIMIZERS)
def test_state_axes_cover_every_array_of_every_optimizer(kind, frozen):
    """One logical axis a dimension: what mirrors a parameter has its axes, counters have none."""
    groups = dict(still=dict(pattern="mlp/up", lr_scale=0.0)) if frozen else {}
    tx = build(kind, groups=groups, **SECTIONS[kind])
    state = jax.eval_shape(tx.init, random_tree(INFOS, 0))
    mirrors = 0

    def check(path, leaf, axes):
        nonlocal mirrors
        assert isinstance(axes, tuple) and len(axes) == leaf.ndim, (path, leaf.shape, axes)
        param, field = optim.param_of(path, INFOS)
        if param and not field:
            assert leaf.shape == INFOS[param].shape and axes == INFOS[param].axes, path
        if leaf.size > 3:
            assert any(axes), path
        mirrors += bool(param)

    trees.map_with_path(check, state, optim.state_axes(tx, INFOS))
    moments = 1 if kind in ("sgd", "lion", "muon") else 2
    assert mirrors >= moments * (len(INFOS) - frozen)


def test_state_axes_of_coded_and_factored_moments():
    """Codes shard as the parameter; rows and columns keep the axes they were not summed over."""

    def axes(kind):
        tx = build(kind, **SECTIONS[kind])
        state = jax.eval_shape(tx.init, random_tree(INFOS, 0))
        named = {}
        trees.map_with_path(
            lambda p, _, a: named.update({p: a}), state, optim.state_axes(tx, INFOS)
        )
        return named

    coded = axes("adamw8bit")
    assert coded["0/mu/layers/attn/q/w/codes"] == ("layers", "embed", "heads", "head")
    assert coded["0/nu/layers/attn/q/w/maximum"] == ("layers", "embed", "heads", None)
    factored = axes("adafactor")
    assert factored["0/0/nu/layers/attn/q/w/rows"] == ("layers", "embed")
    assert factored["0/0/nu/layers/attn/q/w/columns"] == ("layers", "heads", "head")
    assert factored["0/0/nu/layers/attn/o/w/rows"] == ("layers", "heads", "head")
    assert factored["0/0/nu/embed/table/rows"] == ("vocab",)


@pytest.mark.parametrize("kind", optim.OPTIMIZERS)
def test_a_dropped_update_advances_nothing(kind):
    """The rate comes from the state's own count: the same state gives the same update again."""
    infos = {path: INFOS[path] for path in ("final_norm/scale", "layers/mlp/up/w")}
    params, grads = start(infos)
    tx = build(kind, infos, **SECTIONS[kind])
    state = jax.jit(tx.init)(params)
    assert optim.step_count(state) == 0 and optim.step_count(state).dtype == jnp.int32
    update = jax.jit(tx.update)
    first, after = update(grads[0], state, params)
    update(grads[1], after, params)  # dropped
    again, _ = update(grads[0], state, params)
    assert optim.step_count(after) == 1
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_each_update_has_the_next_rate():
    infos = {"final_norm/scale": INFOS["final_norm/scale"]}
    tx = build("sgd", infos, momentum=0.0)
    params = grads = {"final_norm": {"scale": jnp.ones(8)}}
    state = tx.init(params)
    for step in range(3):
        assert optim.step_count(state) == step
        updates, state = tx.update(grads, state, params)
        np.testing.assert_allclose(-updates["final_norm"]["scale"], schedule()(step), rtol=1e-6)
