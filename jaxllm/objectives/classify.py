"""Classes of whole texts: cross-entropy over the outputs of a head."""

import jax
import jax.numpy as jnp

from jaxllm.objectives.base import of_head
from jaxllm.sharding import wire


def entropy(logits, target, smoothing=0.0):
    """Returns the cross-entropy of each row [...] of logits [..., C], in nats.

    Args:
        logits: float32.
        target: int32[...], below C.
        smoothing: share of the target that goes to all classes alike (Szegedy et al. 2016,
            arXiv:1512.00567, section 7).
    """
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(logp, target[..., None], axis=-1)[..., 0]
    return -(1 - smoothing) * chosen - smoothing * jnp.mean(logp, axis=-1)


def check_smoothing(smoothing):
    """Raises ValueError for a share outside 0 to below 1."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing={smoothing} must be from 0 to below 1, such as 0.1.")


def make(model, *, smoothing=0.0, class_weights=(), rdrop=0.0):
    """Makes the loss of a classifier.

    Args:
        model: `models.Model` with `task`: (params, x [B, T, D], batch) -> float32[B, C].
        smoothing: of the labels; 0 is off.
        class_weights: one number a class, which its examples' losses are multiplied by; () for 1.
            The count remains that of the examples, so let their mean over the data be 1.
        rdrop: as of `base.of_head`.

    Returns:
        loss(params, refs, batch, key) -> Loss in nats, counted in examples. `batch` holds what the
        model reads, label: int32[B] and weight: float32[B]. Sums: loss, accuracy, rdrop
        where it is on, the routers' losses.

    Raises:
        ValueError: an option out of range; or, while tracing, another number of classes.
    """
    check_smoothing(smoothing)
    if any(not 0 <= weight < float("inf") for weight in class_weights):
        raise ValueError(f"class_weights={class_weights} must be numbers of at least 0.")

    def sums_of(logits_BC, batch):
        if class_weights and len(class_weights) != logits_BC.shape[-1]:
            raise ValueError(
                f"class_weights has {len(class_weights)} numbers, the model {logits_BC.shape[-1]} "
                "classes."
            )
        label_B, weight_B = batch["label"], wire.share(batch["weight"])
        each_B = entropy(logits_BC, label_B, smoothing) * weight_B
        if class_weights:
            each_B *= jnp.array(class_weights, jnp.float32)[label_B]
        hit_B = jnp.argmax(logits_BC, axis=-1) == label_B
        sums = {"loss": jnp.sum(each_B), "accuracy": jnp.sum(hit_B * weight_B)}
        return sums, weight_B

    return of_head(model, sums_of, rdrop)
