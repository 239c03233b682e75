"""BERT, RoBERTa, MiniLM and XLNet: encoders.

Sources: arXiv:1810.04805, 1907.11692, 2002.10957, 1906.08237.
"""

from jaxllm.models.weights.names import FLAT, SAME, Entry, Names, linear, norm

# What BERT and BART have in common: norms after the sums and over the embeddings, biases, GELU.
NORMED_AFTER = dict(
    norm="layer",
    norm_bias=True,
    norm_place="post",
    position="learned",
    embed_norm=True,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    activation="gelu",
    gated=False,
    tied=True,
    head_bias=True,
)

BERT = dict(
    NORMED_AFTER,
    assembly="encoder",
    norm_eps=1e-12,
    positions=512,
    token_types=2,
    head_transform=True,
    vocab=30522,
)


def _size(layers, width, heads, **more):
    return dict(layers=layers, width=width, heads=heads, mlp_width=4 * width, **more)


BERT_SIZES = {
    "base": _size(12, 768, 12),
    "large": _size(24, 1024, 16),
    "base-cased": _size(12, 768, 12, vocab=28996),
    "minilm-l6": _size(6, 384, 12),
    "minilm-l12": _size(12, 384, 12),
}

# One type of token; positions count from 2, behind that of the padding.
ROBERTA = dict(BERT, norm_eps=1e-5, token_types=1, position_offset=2, vocab=50265)

ROBERTA_SIZES = {"base": _size(12, 768, 12), "large": _size(24, 1024, 16)}

XLNET = dict(
    assembly="encoder",
    two_streams=True,
    norm="layer",
    norm_bias=True,
    norm_eps=1e-12,
    norm_place="post",
    position="sinusoids",
    positions=512,
    mlp_bias=True,
    activation="gelu",
    gated=False,
    tied=True,
    head_bias=True,
    vocab=32000,
)

XLNET_SIZES = {"base": _size(12, 768, 12), "large": _size(24, 1024, 16)}


_LAYER = "{prefix}encoder.layer.{layer}."
_STACK = (
    Entry("{prefix}embeddings.word_embeddings.weight", ("embed",), SAME),
    Entry("{prefix}embeddings.position_embeddings.weight", ("position",), SAME),
    Entry("{prefix}embeddings.token_type_embeddings.weight", ("types",), SAME),
    *norm("{prefix}embeddings.LayerNorm", "embed_norm"),
    *linear(_LAYER + "attention.self.query", "layers/attn/q"),
    *linear(_LAYER + "attention.self.key", "layers/attn/k"),
    *linear(_LAYER + "attention.self.value", "layers/attn/v"),
    *linear(_LAYER + "attention.output.dense", "layers/attn/o"),
    *norm(_LAYER + "attention.output.LayerNorm", "layers/attn_norm"),
    *linear(_LAYER + "intermediate.dense", "layers/mlp/up"),
    *linear(_LAYER + "output.dense", "layers/mlp/down"),
    *norm(_LAYER + "output.LayerNorm", "layers/mlp_norm"),
)
_TABLE = "{prefix}embeddings.word_embeddings.weight"
_UNUSED = (r".*embeddings\.position_ids", r"cls\.seq_relationship\.(weight|bias)")


def bert_names(c):
    """The `Names` of BERT's files, whose heads go by what the model is for."""
    head = "cls.predictions"
    task = "qa_outputs" if c.task == "span" else "classifier"
    entries = (
        *linear(f"{head}.transform.dense", "transform"),
        *norm(f"{head}.transform.LayerNorm", "transform_norm"),
        Entry(f"{head}.bias", ("head_bias",), FLAT),
        *linear("{prefix}pooler.dense", "pool"),
        *linear(task, "task"),
    )
    copies = ((f"{head}.decoder.weight", _TABLE), (f"{head}.decoder.bias", f"{head}.bias"))
    ignored = _UNUSED if c.pool_layer else (*_UNUSED, r".*pooler\.dense\.(weight|bias)")
    return Names(_STACK + entries, _prefixes(c, "bert."), copies, ignored)


def roberta_names(c):
    """The same of RoBERTa's."""
    pooled, task = "{prefix}pooler.dense", "qa_outputs" if c.task == "span" else "classifier"
    if c.task in ("classify", "regress"):
        pooled, task = "classifier.dense", "classifier.out_proj"
    entries = (
        *linear("lm_head.dense", "transform"),
        *norm("lm_head.layer_norm", "transform_norm"),
        Entry("lm_head.bias", ("head_bias",), FLAT),
        *linear(pooled, "pool"),
        *linear(task, "task"),
    )
    copies = (("lm_head.decoder.weight", _TABLE), ("lm_head.decoder.bias", "lm_head.bias"))
    ignored = _UNUSED if c.task == "embed" else (*_UNUSED, r".*pooler\.dense\.(weight|bias)")
    return Names(_STACK + entries, _prefixes(c, "roberta."), copies, ignored)


def _prefixes(c, prefix):
    """What names begin with: a bare model's with nothing."""
    return ("", prefix) if c.task == "embed" else (prefix, "")
