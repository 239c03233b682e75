"""Tiny models of other people's, made on the spot by their own library."""

import functools

import jax
import numpy as np

from jaxllm import models
from jaxllm.models.families import model_config
from jaxllm.models.weights import load, safetensors

LENGTH = 20
LAST = 13  # tokens of the second row; the rest is padding

_LLAMA3 = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip
_YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16)
_LINEAR = dict(rope_type="linear", rope_theta=1e4, factor=3.0)


def _longrope(pairs, original):
    return dict(
        rope_type="longrope", rope_theta=1e4, partial_rotary_factor=1.0,
        short_factor=[1.0 + 0.1 * i for i in range(pairs)],
        long_factor=[1.0 + 2.0 * i for i in range(pairs)],
        original_max_position_embeddings=original,
    )  # fmt: skip


def _gemma3(base):
    return dict(
        full_attention=dict(base), sliding_attention=dict(rope_type="default", rope_theta=1e4)
    )


# Three of each family: what is particular to it, over sizes drawn by `fields`.
CASES = {
    "gpt2": [dict(), dict(n_inner=50, tie_word_embeddings=False), dict(activation_function="relu")],
    "llama": [
        dict(),
        dict(
            tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rope_parameters=_LLAMA3
        ),
        dict(rope_parameters=_YARN),
    ],
    "mistral": [dict(sliding_window=5), dict(sliding_window=None), dict(tie_word_embeddings=True)],
    "mixtral": [
        dict(num_local_experts=5, num_experts_per_tok=2, sliding_window=None),
        dict(num_local_experts=3, num_experts_per_tok=1, sliding_window=None),
        dict(num_local_experts=4, num_experts_per_tok=3, sliding_window=6),
    ],
    "qwen2": [
        dict(tie_word_embeddings=True),
        dict(use_sliding_window=True, sliding_window=7, max_window_layers=0),
        dict(rope_parameters=_YARN),
    ],
    "qwen3": [
        dict(),
        dict(attention_bias=True, tie_word_embeddings=True),
        dict(use_sliding_window=True, sliding_window=4, max_window_layers=0),
    ],
    "qwen3_moe": [
        dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=20),
        dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=18, norm_topk_prob=True),
        dict(
            num_experts=3, num_experts_per_tok=3, moe_intermediate_size=10, tie_word_embeddings=True
        ),
    ],
    "gemma": [dict(), dict(attention_bias=True), dict(tie_word_embeddings=False)],
    "gemma2": [
        dict(sliding_window=5, num_hidden_layers=4, query_pre_attn_scalar=9),
        dict(sliding_window=3, num_hidden_layers=3, attn_logit_softcapping=2.0),
        dict(sliding_window=6, num_hidden_layers=2, final_logit_softcapping=None),
    ],
    "gemma3_text": [
        dict(sliding_window=5, num_hidden_layers=7),
        dict(sliding_window=4, num_hidden_layers=4, layer_types=(["sliding_attention"] * 4)),
        dict(
            sliding_window=5,
            num_hidden_layers=3,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters=_gemma3(_LINEAR),
        ),
    ],
    "phi": [
        dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=f))
        for f in (0.4, 0.67, 1.0)
    ],
    "phi3": [dict(sliding_window=6), dict(longrope=16), dict(longrope=40)],
    "olmo2": [dict(), dict(attention_bias=True), dict(rope_parameters=_LLAMA3)],
}  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16")


def fields(kind, number):
    """The config's fields of a case: odd sizes, key heads shared by several query heads."""
    rng = np.random.default_rng([number, *kind.encode()])
    kv_heads, group = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    heads, head_dim = kv_heads * group, int(rng.choice([6, 10]))
    sizes = dict(vocab_size=int(rng.integers(40, 70)), bos_token_id=None, eos_token_id=None)
    more = dict(CASES[kind][number])
    if kind == "gpt2":
        return sizes | dict(n_embd=heads * 6, n_layer=2, n_head=heads, n_positions=32) | more
    sizes |= dict(
        hidden_size=heads * head_dim, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=int(rng.integers(20, 50)),
        max_position_embeddings=64, pad_token_id=None,
    )  # fmt: skip
    if kind in ("qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text"):
        sizes["head_dim"] = head_dim + 2  # heads need not add up to the width
    if kind == "qwen3_moe":
        sizes |= dict(mlp_only_layers=[], decoder_sparse_step=1)
    if "longrope" in more:
        original = more.pop("longrope")
        more |= dict(
            rope_parameters=_longrope(head_dim // 2, original),
            original_max_position_embeddings=original,
        )
    return sizes | more


def make_theirs(kind, number, dtype="float32"):
    """Returns their model with weights drawn at random, in float32 but rounded to `dtype`."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.for_model(kind, **fields(kind, number))
    # Its own kernel for experts asks for widths that are multiples of 4.
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    model.eval()
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            is_scale = weight.ndim == 1 and "norm" in name.replace("ln_", "norm")
            # Large enough that attention looks somewhere, and no norm is that of the start.
            drawn = 1 + 0.3 * drawn if is_scale else 0.3 * drawn
            weight.copy_(drawn.to(getattr(torch, dtype)))
    return model


def save_theirs(model, folder, dtype="float32"):
    """Saves a copy of their model in a dtype, as a folder."""
    import copy

    import torch

    copy.deepcopy(model).to(getattr(torch, dtype)).save_pretrained(folder)


def tokens_of(vocab):
    """int32[2, LENGTH]; the second row is padded from LAST on."""
    return np.random.default_rng(0).integers(0, vocab, (2, LENGTH)).astype(np.int32)


def their_logits(model, tokens):
    """Their logits, float32 [2, LENGTH, V]; the padding's mean nothing."""
    import torch

    mask = torch.ones(tokens.shape, dtype=torch.long)
    mask[1, LAST:] = 0
    with torch.no_grad():
        found = model(torch.from_numpy(tokens.astype(np.int64)), attention_mask=mask).logits
    return found.float().numpy()


@functools.lru_cache(maxsize=4)
def _apply(c):
    return jax.jit(models.make(c).apply)


def our_logits(c, params, tokens):
    """Ours, of the same rows."""
    position = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    segment = np.ones(tokens.shape, np.int32)
    segment[1, LAST:] = 0
    return np.asarray(
        _apply(c)(params, {"tokens": tokens, "position": position, "segment": segment})
    )


def open_ours(view, vocab=1, length=LENGTH):
    """Returns (ModelConfig, family, params on one device) of a View."""
    values = load.read_config(view, vocab=vocab)
    c = model_config(values, vocab=vocab, length=length)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = dict.fromkeys(models.abstract_params(c), place)
    return c, values["family"], load.load(view, c, values["family"], places)


def export_the_same(view, c, family, params, folder, prefix=None):
    """Writes params as a folder and asserts that its tensors are a View's, byte for byte."""
    dtypes = {name: tensor.dtype for name, tensor in view.tensors.items()}
    out = load.export(params, c, family, dtypes=dtypes, prefix=prefix)
    safetensors.write_folder(out, folder, shard_bytes=6_000)
    again = safetensors.open_folder(folder)
    assert again.tensors.keys() == view.tensors.keys()
    for name, tensor in view.tensors.items():
        whole = tuple(slice(None) for _ in tensor.shape)
        assert again.tensors[name].dtype == tensor.dtype
        assert again.tensors[name].read(whole).tobytes() == tensor.read(whole).tobytes()


def largest_difference(a, b):
    """Of the logits of tokens that are no padding."""
    return max(np.abs(a[0] - b[0]).max(), np.abs(a[1, :LAST] - b[1, :LAST]).max())
