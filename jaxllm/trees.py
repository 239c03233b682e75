"""Plain trees of arrays and their paths, written as words joined by "/"."""

import math

import jax
import jax.numpy as jnp


def path_string(path):
    """Writes a jax key path as words joined by "/"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree):
    """Returns {path: leaf} of any tree, in jax's leaf order."""
    return {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(leaves):
    """Rebuilds nested dicts from {path: leaf}; the inverse of `flatten` for trees of dicts."""
    tree = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def map_with_path(function, tree, *rest):
    """Maps function(path, leaf, *other_leaves) over a tree."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_string(path), *leaves), tree, *rest
    )


def sum_over(function, pieces, beside=False):
    """Adds up function(piece) over axis 0 of all leaves of `pieces`, one after another.

    The sum of a loop, so one piece's memory at a time; function returns a tree of arrays. With
    `beside` it returns two, of which the second is not added up but set one beside another.
    """

    def one(piece):
        return function(piece) if beside else (function(piece), None)

    def add(sums, piece):
        more, own = one(piece)
        return jax.tree.map(jnp.add, sums, more), own

    like, _ = jax.eval_shape(one, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    sums, own = jax.lax.scan(add, zeros, pieces)
    return (sums, own) if beside else sums


@jax.custom_vjp
def together(tree):
    """Returns the tree; none of its gradients is used before all of them are there."""
    return tree


together.defvjp(lambda tree: (tree, None), lambda _, g: (jax.lax.optimization_barrier(g),))


def count(tree):
    """Number of elements in all leaves that have a shape."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def size_bytes(tree):
    """Bytes that all leaves take when whole on one device."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
