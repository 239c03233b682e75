"""Muon: momentum, orthogonalised by Newton-Schulz, for hidden matrices; Adam for the rest."""

import optax

from jaxllm.optim.groups import scale_by
from jaxllm.optim.matrices import info_of, is_hidden_matrix, size, split
from jaxllm.trees import map_with_path

SCALES = ("keller", "rms")


def update_scale(info, scale):
    """Factor of an orthogonalised update, whose singular values are near 1.

    Args:
        info: ParamInfo of a hidden matrix.
        scale: "keller": sqrt(max(1, outputs / inputs)), for learning rates near 0.02 (Jordan et al.
            2024, https://kellerjordan.github.io/posts/muon); "rms": 0.2 sqrt(max(outputs, inputs)),
            which moves an entry as far as AdamW does and so takes AdamW's learning rates (Liu et
            al. 2025, arXiv:2502.16982, equation 4).

    Raises:
        ValueError: unknown scale.
    """
    _, inputs, outputs = split(info)
    fan_in, fan_out = size(info, inputs), size(info, outputs)
    if scale == "keller":
        return max(1.0, fan_out / fan_in) ** 0.5
    if scale == "rms":
        return 0.2 * max(fan_out, fan_in) ** 0.5
    raise ValueError(f"scale={scale!r} is unknown. Known: {', '.join(map(repr, SCALES))}.")


def dimension_numbers(info):
    """Tells Optax which dimensions make a matrix; the others number a stack of matrices."""
    _, inputs, outputs = split(info)
    return optax.contrib.MuonDimensionNumbers(inputs, outputs)


def scale_by_muon_or_adam(
    infos, *, momentum, nesterov, newton_schulz_steps, scale, adam_beta1, adam_beta2, eps
):
    """Makes Muon for hidden matrices and Adam for everything else, by ParamInfo.

    Args:
        infos: {path: ParamInfo}.
        momentum, nesterov, newton_schulz_steps, scale: of Muon; `scale` as in `update_scale`.
        adam_beta1, adam_beta2, eps: of Adam.

    Raises:
        ValueError: no parameter is a hidden matrix, or an unknown scale.
    """
    factor = {p: update_scale(info, scale) for p, info in infos.items() if is_hidden_matrix(info)}
    if not factor:
        raise ValueError("no parameter is a hidden matrix, so Muon has none. Try kind='adamw'.")

    def label(path, _):
        return "muon" if is_hidden_matrix(info_of(infos, path)) else "adam"

    # Each leaf has its own iteration: matrices of one shape batched together were no faster on a
    # CPU, and joining differently sharded ones would move data between devices.
    muon = optax.contrib.scale_by_muon(
        ns_steps=newton_schulz_steps,
        beta=momentum,
        nesterov=nesterov,
        weight_dimension_numbers=lambda tree: map_with_path(
            lambda path, _: dimension_numbers(infos[path]), tree
        ),
    )
    adam = optax.scale_by_adam(b1=adam_beta1, b2=adam_beta2, eps=eps)
    return optax.partition(
        {"muon": optax.chain(muon, scale_by(factor)), "adam": adam},
        lambda params: map_with_path(label, params),
    )
