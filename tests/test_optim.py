"""Groups, decay and states of the optimizers; what stacking layers must not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import optim, trees
from jaxllm.config import ConfigError
from jaxllm.optim.groups import decays
from tests.optim_helpers import (
    HIDDEN,
    INFOS,
    SECTIONS,
    build,
    random_tree,
    run,
    schedule,
    start,
)


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
