"""Batches of an encoder-decoder: what is read and what is written of each row."""

import numpy as np


def batch_of(pairs, sizes, start):
    """Returns a batch of padded rows.

    Args:
        pairs: (ids to read, ids to write) of each row [B]; both empty for one of padding alone.
        sizes: (S, T) that they are padded to, at least as long as the longest.
        start: token that decoders begin with.

    Returns:
        {"inputs", "inputs_segment", "inputs_position": int32[B, S], "tokens", "targets", "segment",
        "position": int32[B, T], "weight": float32[B, T]}; segments and weights are 1 on what is no
        padding, `tokens` are the targets one later.
    """
    inputs, inputs_segment, inputs_position = _padded([pair[0] for pair in pairs], sizes[0])
    targets, segment, position = _padded([pair[1] for pair in pairs], sizes[1])
    before = np.pad(targets, ((0, 0), (1, 0)), constant_values=start)[:, :-1]
    return {
        "inputs": inputs,
        "inputs_segment": inputs_segment,
        "inputs_position": inputs_position,
        "tokens": before * segment,
        "targets": targets,
        "segment": segment,
        "position": position,
        "weight": segment.astype(np.float32),
    }


def _padded(rows, size):
    """Returns (ids, 1 on those that are no padding, their places), each int32[B, size]."""
    ids, real = np.zeros((2, len(rows), size), np.int32)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = row
        real[b, : len(row)] = 1
    return ids, real, np.arange(size, dtype=np.int32) * real
