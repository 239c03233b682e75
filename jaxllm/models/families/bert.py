"""BERT, RoBERTa, MiniLM and XLNet: encoders.

Sources: arXiv:1810.04805, 1907.11692, 2002.10957, 1906.08237.
"""

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
