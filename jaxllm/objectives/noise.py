"""Noise on embeddings in training: drawn at random, or where it hurts most.

Both take a loss of a batch and put arrays "noise" [B, T, D], of an encoder-decoder also
"inputs_noise" [B, S, D], into it, which a model adds to the embeddings of the tokens. What is said
of a text's length or of the size of its noise is of one document: several in a row do not see one
another's. Padding has none.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.layers import each_token
from jaxllm.objectives import documents
from jaxllm.sharding import wire

DRAWS = 0x4E6F69  # sets the keys of noise apart from those of dropout
TINY = 1e-30


class Ascent(NamedTuple):
    """How noise is made worse.

    Attributes:
        steps: K, passes over a batch in one update; 0 is off.
        lr: how far each step goes, in the norm of a document's noise.
        start: size of the noise that the first pass has; 0 for none.
        largest: norm of a document's noise that is never exceeded; 0 for no limit.
    """

    steps: int = 0
    lr: float = 0.1
    start: float = 0.1
    largest: float = 0.0


def neftune(loss, alpha, width):
    """Returns a loss with uniform noise on embeddings wherever there are dropout keys.

    Each number is from -1 to 1 times alpha / sqrt(L D), with L the tokens of its document.

    Args:
        loss: (params, refs, batch, key) -> Loss.
        alpha: size; 5 is usual.
        width: D.

    Source: Jain et al. 2023, arXiv:2310.05914, section 2.
    """

    def of_noisy(params, refs, batch, key=None):
        noisy = batch if key is None else with_noise(batch, draw(batch, key, alpha, width))
        return loss(params, refs, noisy, key)

    return of_noisy


def freelb(loss_fn, how, width):
    """Returns gradient(params, refs, batch, key, factor) -> (Loss sums, gradients) of a piece.

    The noise climbs the loss K - 1 times; gradients and sums are the means of the K passes, each
    of which serves both. Dropout is the same in all of them.

    Args:
        loss_fn: (params, refs, batch, key) -> Loss.
        how: `Ascent`.
        width: D.

    Source: Zhu et al. 2020, arXiv:1909.11764, algorithm 1 and section 3.3.
    """

    def gradient(params, refs, batch, key, factor):
        def total(params, noise):
            loss = loss_fn(params, refs, with_noise(batch, noise), key)
            return loss.total * (factor / how.steps), loss

        def climb(carry, _):
            noise, sums = carry
            (of_params, of_noise), loss = jax.grad(total, (0, 1), has_aux=True)(params, noise)
            of_params = jax.tree.map(lambda g: g.astype(jnp.float32), of_params)
            loss = jax.tree.map(lambda x: x / how.steps, loss)
            sums = jax.tree.map(jnp.add, sums, (loss, of_params))
            return (_worse(noise, of_noise, batch, how), sums), None

        noise = draw(batch, key, how.start, width)
        like = jax.eval_shape(lambda: jax.grad(total, has_aux=True)(params, noise)[::-1])
        like = like[0], jax.tree.map(lambda x: x.update(dtype=jnp.float32), like[1])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        (_, sums), _ = jax.lax.scan(climb, (noise, zeros), length=how.steps)
        return sums

    return gradient


def _worse(noise, slope, batch, how):
    """Returns noise a step up the slope, each document's within its ball."""
    found = {}
    for name, x in noise.items():
        segment, g = batch[_segments(name)], slope[name]
        squares = of_document(jnp.sum(jnp.square(g), axis=-1), segment)
        x = x + how.lr * g * jax.lax.rsqrt(jnp.maximum(squares, TINY))[..., None]
        if how.largest:
            squares = of_document(jnp.sum(jnp.square(x), axis=-1), segment)
            shrink = how.largest * jax.lax.rsqrt(jnp.maximum(squares, TINY))
            x = x * jnp.minimum(shrink, 1.0)[..., None]
        found[name] = x
    return found


def _segments(name):
    return "inputs_segment" if name == "inputs_noise" else "segment"


def with_noise(batch, noise):
    """Returns a batch whose embeddings have noise besides what they had."""
    return batch | {name: batch.get(name, 0.0) + x for name, x in noise.items()}


def draw(batch, key_B, size, width):
    """Returns {"noise": float32[B, T, D], …}: uniform, of size / sqrt(L D) at most.

    Args:
        batch: of a model.
        key_B: one key a row.
        size, width: as in `neftune`.
    """
    found = {}
    for number, (name, tokens) in enumerate((("noise", "tokens"), ("inputs_noise", "inputs"))):
        if tokens not in batch:
            continue
        segment = batch[_segments(name)]
        count = of_document(jnp.ones(segment.shape, jnp.float32), segment)
        largest = size * jax.lax.rsqrt(jnp.maximum(count * width, 1.0))
        largest = jnp.where(segment > 0, largest, 0.0)
        if number == 0 and "index" in batch:
            index = batch["index"]
        else:
            index = jnp.arange(segment.shape[-1]) + wire.index("tensor") * segment.shape[-1]
        found[name] = _uniform(key_B, index, segment.shape, width, DRAWS + number)
        found[name] *= largest[..., None]
    return found


def _uniform(key_B, index, shape, width, number):
    """Numbers from -1 to 1, [*shape, width], the same on whatever devices a row is."""
    key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, number)
    for sides in shape[1:-1]:  # texts of one example, each with its own
        key_B = jax.vmap(lambda key, n=sides: jax.random.split(key, n))(key_B).reshape(-1)
    index = jnp.broadcast_to(index, shape).reshape(-1, shape[-1])

    def of_token(key):
        return jax.random.uniform(key, (width,), minval=-1.0, maxval=1.0)

    return each_token(of_token, key_B, index).reshape(*shape, width)


def of_document(x, segment):
    """Returns the sum over its own document for each token; both [..., T]."""
    flat = segment.reshape(-1, segment.shape[-1])
    total = documents.sums(x.reshape(flat.shape), flat)
    return jnp.take_along_axis(total, flat, axis=1).reshape(segment.shape)
