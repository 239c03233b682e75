"""How well a model of one's own foresees a text: its perplexity a token.

Source: the use of it as a filter is CCNet's (Wenzek et al. 2020, arXiv:1911.00359).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.data import empty_batch
from jaxllm.training import reopen

_ROWS = 8  # texts at once


def of_texts(workdir, step, texts):
    """Returns the perplexity of each text under a trained model: float64[texts].

    Args:
        workdir: of the training run.
        step: "latest", "best" or a number.
        texts: of which the beginnings count, as long as the rows that the model was trained on.

    Raises:
        ConfigError: there is no such run or checkpoint.
    """
    trained, score = _open(workdir, step)
    tokenizer, length = trained.run.tokenizer, trained.run.config.data.length
    lead = trained.run.model.lead  # places of a soft prompt or a prefix
    encoded = [tokenizer.encode(text)[: length - lead + 1] for text in texts]
    found = []
    for start in range(0, len(texts), _ROWS):
        batch = empty_batch(_ROWS, length)
        for row, ids in enumerate(encoded[start : start + _ROWS]):
            n = lead + max(len(ids) - 1, 0)
            batch["tokens"][row, lead:n], batch["targets"][row, lead:n] = ids[:-1], ids[1:]
            batch["position"][row, :n] = np.arange(n)
            batch["segment"][row, :n] = batch["weight"][row, lead:n] = 1
        nats, count = jax.device_get(score(trained.params, batch))
        found += np.exp(nats / np.maximum(count, 1))[: len(texts) - start].tolist()
    return np.array(found)


@functools.cache
def _open(workdir, step):
    """(`reopen.Trained`, a compiled function of parameters and a batch); once in a process."""
    trained = reopen.open_trained(workdir, (), step)
    apply = trained.run.model.apply

    def score(params, batch):
        logits_BTV = apply(params, batch).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits_BTV, batch["targets"][..., None], -1)[..., 0]
        nats_BT = jax.nn.logsumexp(logits_BTV, -1) - chosen
        return (nats_BT * batch["weight"]).sum(1), batch["weight"].sum(1)

    return trained, jax.jit(score)
