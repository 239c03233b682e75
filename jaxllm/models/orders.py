"""Which tokens of its document a token sees: an order over them, and two streams of them."""

import jax.numpy as jnp

LAST = 2**30  # place in the order that nothing looks at


def of_rows(c, batch, index_BT):
    """Returns (query_BT, key_BT): a query sees the keys of its document that are no higher.

    Args:
        c: the model's configuration.
        batch: with "order" (as `two_streams` leaves it) every token sees those before it in a
            random order; with "prefix" (1 on a document's first part) all of the prefix besides
            those before it; else, as the assembly says, all or those before it.
        index_BT: place of each token in its row.
    """
    if "order" in batch:
        return batch["order"], batch["key_order"]
    if c.assembly == "encoder":
        return jnp.zeros_like(index_BT), jnp.zeros_like(index_BT)
    if "prefix" in batch:
        index_BT = jnp.where(batch["prefix"] > 0, -1, index_BT)
    return index_BT, index_BT


def two_streams(batch):
    """Puts behind the tokens as many that know their place alone (Yang et al. 2019, section 2.3).

    Both see the first stream only: tokens see themselves, those of the second stream do not.

    Args:
        batch: with "order", the place of each token in its document's random order, int32[B, T].

    Returns:
        The batch with arrays [B, 2 T], and "key_order", the order in which tokens are seen.
    """
    twice = {name: jnp.concatenate([x, x], axis=1) for name, x in batch.items() if x.ndim == 2}
    order_BT = batch["order"]
    never = jnp.full_like(order_BT, LAST)
    twice["order"] = jnp.concatenate([order_BT, order_BT - 1], axis=1)
    twice["key_order"] = jnp.concatenate([order_BT, never], axis=1)
    return batch | twice
