"""BERT, RoBERTa, MiniLM and XLNet: encoders.

Sources: arXiv:1810.04805, 1907.11692, 2002.10957, 1906.08237.
"""

from jaxllm.models.weights.names import FLAT, OUT_IN, SAME, Entry, Names

BERT = dict(
    assembly="encoder",
    norm="layer",
    norm_bias=True,
    norm_eps=1e-12,
    norm_place="post",
    position="learned",
    positions=512,
    token_types=2,
    embed_norm=True,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    activation="gelu",
    gated=False,
    tied=True,
    head_bias=True,
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


def _layer(of, theirs, *extra):
    return Entry(f"{{prefix}}encoder.layer.{{layer}}.{theirs}", (f"layers/{of}",), *extra)


def _linear(of, theirs):
    return _layer(f"{of}/w", f"{theirs}.weight", OUT_IN), _layer(f"{of}/b", f"{theirs}.bias", FLAT)


def _norm(of, theirs):
    return (
        Entry(f"{theirs}.weight", (f"{of}/scale",), FLAT),
        Entry(f"{theirs}.bias", (f"{of}/bias",), FLAT),
    )


def _outside(of, theirs):
    return (
        Entry(f"{theirs}.weight", (f"{of}/w",), OUT_IN),
        Entry(f"{theirs}.bias", (f"{of}/b",), FLAT),
    )


_LAYER = "{prefix}encoder.layer.{layer}."
_STACK = (
    Entry("{prefix}embeddings.word_embeddings.weight", ("embed",), SAME),
    Entry("{prefix}embeddings.position_embeddings.weight", ("position",), SAME),
    Entry("{prefix}embeddings.token_type_embeddings.weight", ("types",), SAME),
    *_norm("embed_norm", "{prefix}embeddings.LayerNorm"),
    *_linear("attn/q", "attention.self.query"),
    *_linear("attn/k", "attention.self.key"),
    *_linear("attn/v", "attention.self.value"),
    *_linear("attn/o", "attention.output.dense"),
    *_norm("layers/attn_norm", _LAYER + "attention.output.LayerNorm"),
    *_linear("mlp/up", "intermediate.dense"),
    *_linear("mlp/down", "output.dense"),
    *_norm("layers/mlp_norm", _LAYER + "output.LayerNorm"),
)
_TABLE = "{prefix}embeddings.word_embeddings.weight"
_UNUSED = (r".*embeddings\.position_ids", r"cls\.seq_relationship\.(weight|bias)")


def bert_names(c):
    """The `Names` of BERT's files, whose heads go by what the model is for."""
    head = "cls.predictions"
    task = "qa_outputs" if c.task == "span" else "classifier"
    entries = (
        *_outside("transform", f"{head}.transform.dense"),
        *_norm("transform_norm", f"{head}.transform.LayerNorm"),
        Entry(f"{head}.bias", ("head_bias",), FLAT),
        *_outside("pool", "{prefix}pooler.dense"),
        *_outside("task", task),
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
        *_outside("transform", "lm_head.dense"),
        *_norm("transform_norm", "lm_head.layer_norm"),
        Entry("lm_head.bias", ("head_bias",), FLAT),
        *_outside("pool", pooled),
        *_outside("task", task),
    )
    copies = (("lm_head.decoder.weight", _TABLE), ("lm_head.decoder.bias", "lm_head.bias"))
    ignored = _UNUSED if c.task == "embed" else (*_UNUSED, r".*pooler\.dense\.(weight|bias)")
    return Names(_STACK + entries, _prefixes(c, "roberta."), copies, ignored)


def _prefixes(c, prefix):
    """What names begin with: a bare model's with nothing."""
    return ("", prefix) if c.task == "embed" else (prefix, "")
