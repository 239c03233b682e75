"""Optimizers as Optax transformations over trees whose paths are the keys of `infos`.

Every factory takes (schedule, infos, groups) from the code and its options from the config. All
end alike: decay is added to the direction, and one learning rate, read from the schedule at the
optimizer's own count of updates, multiplies both. So a dropped update advances nothing.

Weight decay touches hidden matrices alone: no norms and no biases, and embeddings and the output
head only with `decay_embeddings`. That is off because decay shrinks embeddings and so raises the
gradients behind the first norm (OLMo 2, 2025, arXiv:2501.00656, section 3); GPT-2 and its
descendants had it on. A group's `weight_decay` overrules all of it for the parameters it matches.
"""

import optax

from jaxllm.optim.adafactor import scale_by_factored_rms
from jaxllm.optim.adam8bit import scale_by_adam8bit
from jaxllm.optim.groups import add_decay, decays, scale_by
from jaxllm.optim.matrices import is_hidden_matrix, per_layer
from jaxllm.optim.muon import scale_by_muon_or_adam


def adamw(
    schedule,
    infos,
    groups=(),
    *,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    weight_decay=0.1,
    decay_embeddings=False,
):
    """Makes AdamW.

    Args:
        schedule: step -> learning rate.
        infos: {path: ParamInfo} of every parameter.
        groups: Groups that set decay apart.
        beta1, beta2: decay of the first and second moments, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: part of a parameter that goes in one update, times the learning rate.
        decay_embeddings: whether embeddings and the output head decay too.

    Raises:
        ValueError: an option out of range.

    Source:
        Loshchilov and Hutter (2019), arXiv:1711.05101, algorithm 2; beta2 and decay as GPT-3's
        (Brown et al. 2020, arXiv:2005.14165, appendix B).
    """
    _check_betas(beta1=beta1, beta2=beta2)
    direction = optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps)
    decay = decays(infos, weight_decay, decay_embeddings, groups)
    return _finish(direction, add_decay(decay), schedule)


def adamw8bit(
    schedule,
    infos,
    groups=(),
    *,
    beta1=0.9,
    beta2=0.95,
    eps=1e-8,
    weight_decay=0.1,
    decay_embeddings=False,
    block=256,
    min_size=4096,
):
    """Makes AdamW with both moments in 8 bits: about 2 bytes of state a parameter, not 8.

    Args and errors as `adamw`, and:
        block: entries of the last axis that share a float32 maximum, at least 1.
        min_size: parameters with fewer elements in one layer keep float32 moments, as do
            embeddings and the output head.

    Source:
        Dettmers et al. (2022), arXiv:2110.02861.
    """
    _check_betas(beta1=beta1, beta2=beta2)
    if block < 1 or min_size < 0:
        raise ValueError(f"block={block} must be at least 1 and min_size={min_size} at least 0.")
    direction = scale_by_adam8bit(
        infos, beta1=beta1, beta2=beta2, eps=eps, block=block, min_size=min_size
    )
    decay = decays(infos, weight_decay, decay_embeddings, groups)
    return _finish(direction, add_decay(decay), schedule)


def adafactor(
    schedule,
    infos,
    groups=(),
    *,
    decay_rate=0.8,
    clip=1.0,
    momentum=0.0,
    parameter_scale=True,
    min_factored=128,
    eps=1e-30,
    weight_decay=0.0,
    decay_embeddings=False,
):
    """Makes Adafactor, whose second moment takes a row and a column instead of a matrix.

    Args and errors as `adamw`, and:
        decay_rate: update t weighs past squares by 1 - t^-decay_rate.
        clip: largest root mean square of one layer's update before the learning rate; 0 is off.
        momentum: decay of a running mean of updates, in [0, 1); 0 keeps none.
        parameter_scale: whether updates are relative to the root mean square of the layer's
            parameter (at least 1e-3). Learning rates near 0.01 suit then, else AdamW's.
        min_factored: matrices with a shorter side keep a whole second moment.
        eps: added to squared gradients.

    Source:
        Shazeer and Stern (2018), arXiv:1804.04235, algorithms 4 to 6. Unlike Optax's, the decay is
        multiplied by the learning rate, as everywhere here.
    """
    _check_betas(momentum=momentum)
    if decay_rate <= 0 or clip < 0:
        raise ValueError(f"decay_rate={decay_rate} must be positive, clip={clip} at least 0.")
    parts = [
        scale_by_factored_rms(infos, decay_rate=decay_rate, eps=eps, min_factored=min_factored)
    ]
    if clip:
        parts.append(per_layer(optax.clip_by_block_rms(clip), infos))
    if parameter_scale:
        parts.append(per_layer(optax.scale_by_param_block_rms(), infos))
    if momentum:
        parts.append(optax.ema(momentum, debias=False))
    decay = decays(infos, weight_decay, decay_embeddings, groups)
    return _finish(optax.chain(*parts), add_decay(decay), schedule)


def lamb(
    schedule,
    infos,
    groups=(),
    *,
    beta1=0.9,
    beta2=0.999,
    eps=1e-6,
    weight_decay=0.01,
    decay_embeddings=False,
):
    """Makes LAMB: Adam's direction at the length of the parameter, layer by layer.

    Args and errors as `adamw`.

    Source:
        You et al. (2020), arXiv:1904.00962, algorithm 2; the decay is inside the trusted direction.
    """
    _check_betas(beta1=beta1, beta2=beta2)
    decay = decays(infos, weight_decay, decay_embeddings, groups)
    return _finish(
        optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps),
        optax.chain(add_decay(decay), per_layer(optax.scale_by_trust_ratio(), infos)),
        schedule,
    )


def lion(
    schedule,
    infos,
    groups=(),
    *,
    beta1=0.9,
    beta2=0.99,
    weight_decay=0.3,
    decay_embeddings=False,
):
    """Makes Lion: the sign of a momentum. Takes a third to a tenth of AdamW's learning rate.

    Args and errors as `adamw`. The decay is three times AdamW's, to go with the smaller rate.

    Source:
        Chen et al. (2023), arXiv:2302.06675, algorithm 2 and section 5.
    """
    _check_betas(beta1=beta1, beta2=beta2)
    decay = decays(infos, weight_decay, decay_embeddings, groups)
    return _finish(optax.scale_by_lion(b1=beta1, b2=beta2), add_decay(decay), schedule)


def muon(
    schedule,
    infos,
    groups=(),
    *,
    momentum=0.95,
    nesterov=True,
    newton_schulz_steps=5,
    scale="keller",
    weight_decay=0.1,
    decay_embeddings=False,
    adam_lr=3e-3,
    adam_beta1=0.9,
    adam_beta2=0.95,
    eps=1e-8,
):
    """Makes Muon for hidden matrices, and AdamW for embeddings, head, norms and biases.

    Args and errors as `adamw`, and:
        schedule: a `Schedule`, whose peak is Muon's learning rate, near 0.02 with "keller".
        momentum: decay of the gradients' running mean, in [0, 1).
        nesterov: whether to look one gradient ahead.
        newton_schulz_steps: steps of the iteration that makes singular values near 1.
        scale: "keller" or "rms", see `update_scale`.
        adam_lr: peak learning rate of AdamW, which follows the same curve.
        adam_beta1, adam_beta2, eps: of AdamW.

    Source:
        Jordan et al. (2024), https://kellerjordan.github.io/posts/muon; decay as Liu et al. (2025),
        arXiv:2502.16982, section 2.2.
    """
    _check_betas(momentum=momentum, adam_beta1=adam_beta1, adam_beta2=adam_beta2)
    if adam_lr <= 0 or newton_schulz_steps < 1:
        raise ValueError(
            f"adam_lr={adam_lr} must be positive, such as 3e-3, and newton_schulz_steps="
            f"{newton_schulz_steps} at least 1, such as 5."
        )
    if not hasattr(schedule, "peak"):
        raise ValueError(
            "adam_lr needs a schedule that knows its peak. Try one of jaxllm.optim.SCHEDULES."
        )
    direction = scale_by_muon_or_adam(
        infos,
        momentum=momentum,
        nesterov=nesterov,
        newton_schulz_steps=newton_schulz_steps,
        scale=scale,
        adam_beta1=adam_beta1,
        adam_beta2=adam_beta2,
        eps=eps,
    )
    decay = decays(infos, weight_decay, decay_embeddings, groups)
    ratio = {
        path: 1.0 if is_hidden_matrix(info) else adam_lr / schedule.peak
        for path, info in infos.items()
    }
    return _finish(direction, optax.chain(add_decay(decay), scale_by(ratio)), schedule)


def sgd(
    schedule,
    infos,
    groups=(),
    *,
    momentum=0.9,
    nesterov=False,
    weight_decay=0.0,
    decay_embeddings=False,
):
    """Makes stochastic gradient descent with momentum.

    Args and errors as `adamw`, and:
        momentum: decay of the sum of gradients, in [0, 1); 0 keeps none.
        nesterov: whether to look one gradient ahead; needs momentum.

    Source:
        Sutskever et al. (2013), "On the importance of initialization and momentum in deep
        learning", equations 1 to 4, with the learning rate outside the momentum.
    """
    _check_betas(momentum=momentum)
    if nesterov and not momentum:
        raise ValueError("nesterov=True needs momentum. Try momentum=0.9 or nesterov=False.")
    direction = optax.trace(momentum, nesterov) if momentum else optax.identity()
    decay = decays(infos, weight_decay, decay_embeddings, groups)
    return _finish(direction, add_decay(decay), schedule)


def _finish(direction, decay, schedule):
    """Chains a direction and its decay, then steps against them by the learning rate."""
    return optax.chain(direction, decay, optax.scale_by_learning_rate(schedule))


def _check_betas(**betas):
    """Raises ValueError unless every decay of a running mean is in [0, 1)."""
    for name, value in betas.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be in [0, 1), such as 0.9.")
