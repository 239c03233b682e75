"""Optimizers against the formulas of their papers, in float64."""

import jax
import numpy as np
import optax

from jaxllm import trees
from jaxllm.dims import ParamInfo
from jaxllm.optim import matrices, muon
from tests.optim_helpers import (
    F32,
    HIDDEN,
    INFOS,
    LAYERS,
    LR,
    STEPS,
    build,
    random_tree,
    run,
    schedule,
    start,
)

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
