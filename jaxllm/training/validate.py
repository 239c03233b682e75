"""Validation: sums over a whole split, divided once."""

import math

import jax
import numpy as np

from jaxllm import sharding


def validate(
    evaluate,
    source,
    mesh,
    params,
    refs,
    *,
    batch,
    batches=0,
    interrupted=lambda: False,
    of_text=True,
    whole=True,
    unit="tokens",
):
    """Returns the metrics of a split, or None if it was interrupted.

    Args:
        evaluate: (params, refs, batch) -> Loss.
        source: as `data.open_split` returns.
        mesh: the mesh that params are on.
        params: parameters, or their average.
        refs: frozen trees.
        batch: rows at once.
        batches: at most so many; 0 for the whole split.
        of_text: whether the loss is in nats a token of text.
        whole: whether each token of the text is a target; a loss of some of them, such as masked
            ones, says nothing of bits a byte.
        unit: what a loss of text is counted in.
        interrupted: asked between batches; every process must answer alike.

    Returns:
        {"loss" in nats a token, "perplexity", "bits_per_byte", "accuracy", the unit}, of an
        objective that does not predict text {"loss", its other sums over its count, "count"}. Sums
        of batches are added up in float64, in order, so that a rerun gives the same bits.
    """
    rows, sums = sharding.local_rows(mesh, batch), []
    for index, local in enumerate(source.epoch(batch, rows)):
        if batches and index >= batches:
            break
        if interrupted():
            return None
        loss = evaluate(params, refs, sharding.global_batch(mesh, rows, local, batch))
        sums.append({"count": loss.count, "total": loss.total, **loss.sums})
        # Many batches under way at once can block a CPU's few threads for good.
        jax.block_until_ready(sums[-2:-1])
    totals = {}
    for one in jax.device_get(sums):
        for name, value in one.items():
            totals[name] = totals.get(name, np.float64(0)) + np.float64(value)
    if not of_text:
        return {
            name: float(x / totals["count"]) for name, x in totals.items() if name != "count"
        } | {"count": int(totals["count"])}
    return summarise(totals, source.bytes_per_token if whole else None, unit)


def summarise(totals, bytes_per_token, unit="tokens"):
    """Turns sums over a split into metrics; `bytes_per_token` are UTF-8 bytes, None for no bits."""
    count = totals["count"]
    loss = float(totals.get("loss", totals["total"]) / count)
    bits = {"bits_per_byte": loss / math.log(2) / bytes_per_token} if bytes_per_token else {}
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        **bits,
        "accuracy": float(totals["accuracy"] / count) if "accuracy" in totals else None,
        unit: int(count),
    }
