"""Tiny encoder-decoders of transformers with random weights, and the same in jaxllm."""

import functools
import tempfile

import numpy as np
import pytest

from jaxllm import models
from jaxllm.models.weights import safetensors
from tests import weights_helpers

VOCAB = 60
T5 = dict(
    vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
    relative_attention_num_buckets=8, relative_attention_max_distance=20, pad_token_id=0,
    decoder_start_token_id=0, dropout_rate=0.0,
)  # fmt: skip
BART = dict(
    vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
    pad_token_id=1, bos_token_id=None, eos_token_id=2, decoder_start_token_id=2,
    forced_bos_token_id=None, forced_eos_token_id=None, dropout=0.0,
)  # fmt: skip
START = {"t5": 0, "bart": 2}


@functools.cache
def pair(kind, scale=0.3):
    """(jaxllm `Model`, params, transformers' model) of "t5" or "bart"."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    if kind == "t5":
        theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5))
    else:
        theirs = transformers.BartForConditionalGeneration(transformers.BartConfig(**BART))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in theirs.named_parameters():
            noise = torch.randn(x.shape, generator=generator) * scale
            scales = x.ndim == 1 and "norm" in name and name.endswith("weight")
            # Small biases: large ones would choose the same token whatever was read.
            x.copy_(1 + noise if scales else 0.1 * noise if x.ndim == 1 else noise)
    theirs.eval()
    for config in (theirs.config, theirs.generation_config):
        config.eos_token_id = None
    with tempfile.TemporaryDirectory() as folder:
        weights_helpers.save_theirs(theirs, folder)
        c, _, params = weights_helpers.open_ours(safetensors.open_folder(folder))
    return models.make(c), params, theirs


def inputs(count=6, seed=1, low=2, high=20):
    """Token lists of unequal length."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, n).tolist() for n in rng.integers(low, high + 1, count)]


def continue_theirs(theirs, prompt, tokens, **options):
    """Token ids that transformers writes for one input, [returned, N], without the start token."""
    import torch

    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
            **{"num_beams": 1, "early_stopping": False, **options},
        )  # fmt: skip
    return out[:, 1:].numpy()
