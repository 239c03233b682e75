"""Tiny models of transformers with random weights, and the same in jaxllm."""

import functools

import jax
import numpy as np

from benchmarks.smollm2 import params_of
from jaxllm import models
from jaxllm.models.config import resolve
from jaxllm.tokenizers import byte

SIZES = dict(
    vocab_size=160, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
    attn_implementation="eager", bos_token_id=1, eos_token_id=None, pad_token_id=0,
)  # fmt: skip
OURS = dict(layers=2, width=32, mlp_width=48, heads=4, kv_heads=2)
WINDOW = 12


def _state(theirs):
    return {name: x.detach().numpy() for name, x in theirs.state_dict().items()}


@functools.cache
def llama(scale=0.25):
    """(jaxllm `Model`, params, transformers' model) of the Llama kind."""
    transformers = _transformers()
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, rms_norm_eps=1e-6, tie_word_embeddings=False)
    )
    _fill(theirs, scale)
    model = models.make(resolve(OURS, vocab=160, length=512))
    return model, params_of(_state(theirs), model.config), theirs


@functools.cache
def gemma2(scale=0.25):
    """The same of Gemma 2: windows of 12 keys, soft caps, norms on both sides."""
    transformers = _transformers()
    theirs = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **SIZES, head_dim=12, sliding_window=WINDOW, query_pre_attn_scalar=12,
            attn_logit_softcapping=5.0, final_logit_softcapping=3.0,
        )
    )  # fmt: skip
    _fill(theirs, scale)
    config = resolve(
        dict(
            OURS, head_width=12, norm_place="around", norm_plus_one=True, tied=True,
            embed_scale=True, attention_softcap=5.0, logit_softcap=3.0, window=WINDOW,
            global_every=2, activation="gelu_tanh",
        ),
        vocab=160, length=512,
    )  # fmt: skip
    model, state = models.make(config), _state(theirs)
    ours = {
        name.replace("pre_feedforward_layernorm", "post_attention_layernorm")
        if "pre_feed" in name
        else name.replace("post_attention_layernorm", "attn_out"): x
        for name, x in state.items()
    }
    params = params_of(ours, config)
    for name, theirs_name in (
        ("attn_out_norm", "attn_out"),
        ("mlp_out_norm", "post_feedforward_layernorm"),
    ):
        layers = [ours[f"model.layers.{i}.{theirs_name}.weight"] for i in range(config.layers)]
        params["layers"][name] = {"scale": np.stack(layers)}
    return model, params, theirs


@functools.cache
def _compiled(apply):
    return jax.jit(apply)


def logits_of(model):
    """model.apply, compiled once a shape."""
    return _compiled(model.apply)


def _transformers():
    import pytest

    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def _fill(theirs, scale):
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in theirs.named_parameters():
            noise = torch.randn(x.shape, generator=generator) * scale
            x.copy_(
                1 + noise if "norm" in name and "gemma" not in theirs.config.model_type else noise
            )
    theirs.eval()
    theirs.config.eos_token_id = theirs.generation_config.eos_token_id = None


def continue_theirs(theirs, prompt, tokens, **options):
    """Token ids that transformers adds to one prompt, [returned, N]."""
    import torch

    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
            pad_token_id=2, **options,
        )  # fmt: skip
    return out[:, len(prompt) :].numpy()


def ragged_prompts(count=10, seed=1, low=2, high=40):
    """Token lists of unequal length."""
    rng = np.random.default_rng(seed)
    lengths = np.linspace(low, high, count).astype(int)
    return [rng.integers(3, 160, n).tolist() for n in rng.permutation(lengths)]


def byte_tokenizer():
    """A byte tokenizer."""
    return byte.make(None)
