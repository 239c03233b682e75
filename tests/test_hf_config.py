"""Hugging Face's config.json files as models: exact numbers of parameters."""

import json

import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models.families import model_config
from jaxllm.models.families.hf import from_hf
from jaxllm.scaling import counts

LLAMA = dict(
    model_type="llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=32, vocab_size=32000, rms_norm_eps=1e-5,
    max_position_embeddings=4096, hidden_act="silu", tie_word_embeddings=False,
)  # fmt: skip
BERT = dict(
    model_type="bert", hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
    intermediate_size=3072, vocab_size=30522, type_vocab_size=2, max_position_embeddings=512,
)  # fmt: skip
T5 = dict(
    model_type="t5", d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128,
)  # fmt: skip
# {name: (what stands in its file, parameters as published)}.
FILES = {
    "gpt2": (
        dict(model_type="gpt2", n_embd=768, n_layer=12, n_head=12, n_positions=1024,
             vocab_size=50257, activation_function="gelu_new", layer_norm_epsilon=1e-5),
        124_439_808,
    ),
    "Llama-2-7b": (LLAMA, 6_738_415_616),
    "Llama-3.2-1B": (
        LLAMA | dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, head_dim=64,
                     num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True,
                     rope_theta=500000.0, max_position_embeddings=131072,
                     rope_scaling=dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0,
                                       high_freq_factor=4.0,
                                       original_max_position_embeddings=8192)),
        1_235_814_400,
    ),
    "Mistral-7B-v0.1": (
        LLAMA | dict(model_type="mistral", intermediate_size=14336, num_key_value_heads=8,
                     sliding_window=4096),
        7_241_732_096,
    ),
    "Mixtral-8x7B": (
        LLAMA | dict(model_type="mixtral", intermediate_size=14336, num_key_value_heads=8,
                     num_local_experts=8, num_experts_per_tok=2, sliding_window=None),
        46_702_792_704,
    ),
    "Qwen2.5-0.5B": (
        dict(model_type="qwen2", hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
             num_attention_heads=14, num_key_value_heads=2, vocab_size=151936, hidden_act="silu",
             tie_word_embeddings=True, use_sliding_window=False, sliding_window=32768),
        494_032_768,
    ),
    "gemma-2b": (
        dict(model_type="gemma", hidden_size=2048, intermediate_size=16384, num_hidden_layers=18,
             num_attention_heads=8, num_key_value_heads=1, head_dim=256, vocab_size=256000,
             hidden_act="gelu"),
        2_506_172_416,
    ),
    "Phi-3.5-mini": (
        LLAMA | dict(model_type="phi3", hidden_size=3072, intermediate_size=8192, vocab_size=32064,
                     rope_scaling=dict(type="longrope", short_factor=[1.0])),
        3_821_079_552,
    ),
    "bert-base-uncased": (dict(BERT, architectures=["BertModel"]), 109_482_240),
    "bert-base-cased": (dict(BERT, architectures=["BertModel"], vocab_size=28996), 108_310_272),
    "roberta-base": (
        BERT | dict(model_type="roberta", vocab_size=50265, max_position_embeddings=514,
                    type_vocab_size=1, pad_token_id=1, architectures=["RobertaModel"]),
        124_645_632,
    ),
    "t5-base": (T5, 222_903_552),
    "flan-t5-base": (
        T5 | dict(d_ff=2048, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        247_577_856,
    ),
    # Its 139,420,416 parameters, and the bias of the logits, which its file holds as well.
    "bart-base": (
        dict(model_type="bart", d_model=768, encoder_layers=6, decoder_layers=6,
             encoder_attention_heads=12, decoder_attention_heads=12, encoder_ffn_dim=3072,
             decoder_ffn_dim=3072, vocab_size=50265, max_position_embeddings=1024),
        139_420_416 + 50_265,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_parameters_are_those_of_the_published_model(name):
    data, total = FILES[name]
    values, notes = from_hf(data)
    c = model_config(values, vocab=1, length=16)
    assert counts.count(models.abstract_params(c), c).total == total
    assert bool(notes) == (name == "Phi-3.5-mini")


def test_what_changes_no_shape_comes_over_too():
    values, _ = from_hf(FILES["Llama-3.2-1B"][0])
    c = model_config(values, vocab=1, length=16)
    assert (c.rope_base, c.rope_scaling, c.rope_factor) == (500_000.0, "llama3", 32.0)
    assert (c.rope_original, c.positions, c.norm_eps) == (8192, 131072, 1e-5)
    assert model_config(from_hf(FILES["Mistral-7B-v0.1"][0])[0], vocab=1, length=16).window == 4096
    assert model_config(from_hf(FILES["Qwen2.5-0.5B"][0])[0], vocab=1, length=16).window == 0


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(model_type="lama"), "Did you mean 'llama'"),
        (dict(model_type=None), "Known: gpt2"),
        (dict(hidden_size=None), "hidden_size"),
        (dict(hidden_size="4096"), "must be a number"),
        (dict(hidden_act="mish"), "mish"),
    ],
)
def test_what_is_unknown_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        from_hf(json.loads(json.dumps(LLAMA | change)))
