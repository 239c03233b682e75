"""Constrained choices: what is drawn is one of a list of strings, exactly.

The tokens of the strings form a trie; a row stands at one of its nodes and may only go to one of
its children. Where one string is the beginning of another, the end token closes the shorter.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxllm.config import ConfigError


class Trie(NamedTuple):
    """A trie of tokens as plain tuples, so that it is hashable; node 0 is the root.

    Attributes:
        tokens: for each node, the tokens of its children, filled with -1.
        children: for each node, their nodes, filled with 0.
        ends: for each node, whether nothing can follow.
    """

    tokens: tuple
    children: tuple
    ends: tuple


def make(sequences, eos):
    """Builds the trie of token sequences.

    Args:
        sequences: lists of token ids.
        eos: token that ends one that another begins with; -1 for none.

    Raises:
        ConfigError: none, an empty one, or one that begins another where there is no end token.
    """
    if not sequences or not all(len(s) for s in sequences):
        raise ConfigError("choices: each must have at least one token. Leave empty ones out.")
    nodes, closed = [{}], set()
    for sequence in sequences:
        node = 0
        for token in map(int, sequence):
            if token not in nodes[node]:
                nodes[node][token] = len(nodes)
                nodes.append({})
            node = nodes[node][token]
        closed.add(node)
    inner = [node for node in closed if nodes[node]]
    if inner and eos < 0:
        raise ConfigError(
            "choices: one is the beginning of another, and the tokenizer has no end token that "
            "could tell them apart. Add a full stop or a line's end to each."
        )
    for node in inner:
        nodes[node][eos] = len(nodes)
        nodes.append({})
    most = max(map(len, nodes))

    def filled(values, empty):
        return (*values, *[empty] * (most - len(values)))

    return Trie(
        tuple(filled(list(node), -1) for node in nodes),
        tuple(filled(list(node.values()), 0) for node in nodes),
        tuple(not node for node in nodes),
    )


def allow(trie, logits_BV, node_B):
    """Returns the logits with -inf for tokens that do not go on from each row's node."""
    B, V = logits_BV.shape
    token_BX = jnp.asarray(np.array(trie.tokens, np.int32))[node_B]
    token_BX = jnp.where(token_BX < 0, V, token_BX)  # dropped
    good_BV = jnp.zeros((B, V), bool)
    good_BV = good_BV.at[jnp.arange(B)[:, None], token_BX].set(True, mode="drop")
    # A row that is at its end draws no more; all stay possible, so that nothing is NaN.
    return jnp.where(good_BV | is_end(trie, node_B)[:, None], logits_BV, -jnp.inf)


def follow(trie, node_B, token_B):
    """Returns the node that each row is at after a token."""
    match_BX = jnp.asarray(np.array(trie.tokens, np.int32))[node_B] == token_B[:, None]
    next_BX = jnp.asarray(np.array(trie.children, np.int32))[node_B]
    return jnp.where(match_BX.any(1), jnp.sum(jnp.where(match_BX, next_BX, 0), axis=1), node_B)


def is_end(trie, node_B):
    """Whether nothing can follow where each row is."""
    return jnp.asarray(np.array(trie.ends))[node_B]
