"""T5 1.0 and 1.1 (which Flan-T5 is), BART: encoder-decoders.

Sources: arXiv:1910.10683, 2002.05202 (1.1's gated MLP), 2210.11416, 1910.13461.
"""

from jaxllm.models.families.bert import NORMED_AFTER
from jaxllm.models.weights.names import OUT_IN, ROW, SAME, Entry, Names, linear, norm

T5 = dict(
    assembly="encoder_decoder",
    norm="rms",
    norm_eps=1e-6,
    position="buckets",
    distance_buckets=32,
    distance_max=128,
    positions=512,
    query_scale=1.0,
    activation="relu",
    gated=False,
    tied=True,
    head_scale=True,
    vocab=32128,
    head_width=64,
)


def _size(layers, width, heads, mlp_width, **more):
    return dict(layers=layers, width=width, heads=heads, mlp_width=mlp_width, **more)


T5_SIZES = {
    "small": _size(6, 512, 8, 2048),
    "base": _size(12, 768, 12, 3072),
    "large": _size(24, 1024, 16, 4096),
    "3b": _size(24, 1024, 32, 16384, head_width=128),
    "11b": _size(24, 1024, 128, 65536, head_width=128),
}

T5V1_1 = dict(T5, activation="gelu_tanh", gated=True, tied=False, head_scale=False)

T5V1_1_SIZES = {
    "small": _size(8, 512, 6, 1024),
    "base": _size(12, 768, 12, 2048),
    "large": _size(24, 1024, 16, 2816),
    "xl": _size(24, 2048, 32, 5120),
    "xxl": _size(24, 4096, 64, 10240),
}

BART = dict(
    NORMED_AFTER,
    assembly="encoder_decoder",
    norm_eps=1e-5,
    positions=1024,
    position_offset=2,
    vocab=50265,
)

BART_SIZES = {
    "base": _size(6, 768, 12, 3072),
    "large": _size(12, 1024, 16, 4096),
}


def _t5_stack(c, ours, theirs):
    block, last = theirs + ".block.{layer}.layer.", 2 if theirs == "decoder" else 1
    layers = f"{ours}layers/"
    attention = theirs + ".block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    mlp = dict(gate="wi_0", up="wi_1", down="wo") if c.gated else dict(up="wi", down="wo")
    entries = [
        *norm(f"{theirs}.final_layer_norm", f"{ours}final_norm"),
        Entry(attention, (f"{ours}distance/table",), SAME),
        *norm(block + "0.layer_norm", f"{layers}attn_norm"),
        *norm(block + f"{last}.layer_norm", f"{layers}mlp_norm"),
        *norm(block + "1.layer_norm", f"{layers}cross_norm"),
    ]
    for head in "qkvo":
        entries += linear(f"{block}0.SelfAttention.{head}", f"{layers}attn/{head}")
        entries += linear(f"{block}1.EncDecAttention.{head}", f"{layers}cross/{head}")
    for part, name in mlp.items():
        entries += linear(f"{block}{last}.DenseReluDense.{name}", f"{layers}mlp/{part}")
    return entries


def t5_names(c):
    """The `Names` of T5's files."""
    entries = (
        Entry("shared.weight", ("embed",), SAME),
        Entry("lm_head.weight", ("head/w",), OUT_IN),
        *_t5_stack(c, "encoder/", "encoder"),
        *_t5_stack(c, "", "decoder"),
    )
    tables = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
    copies = tuple((name, "shared.weight") for name in tables[: 3 if c.tied else 2])
    unused = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
    return Names(entries, copies=copies, ignored=(unused,))


def bart_names(c):
    """The `Names` of BART's files."""
    del c
    heads = dict(q="q_proj", k="k_proj", v="v_proj", o="out_proj")
    entries = [
        Entry("{prefix}shared.weight", ("embed",), SAME),
        Entry("final_logits_bias", ("head_bias",), ROW),
    ]
    for ours, theirs in (("encoder/", "encoder"), ("", "decoder")):
        at, layers = "{prefix}" + theirs, f"{ours}layers/"
        layer = at + ".layers.{layer}."
        entries.append(Entry(f"{at}.embed_positions.weight", (f"{ours}position",), SAME))
        entries += norm(f"{at}.layernorm_embedding", f"{ours}embed_norm")
        entries += norm(f"{layer}self_attn_layer_norm", f"{layers}attn_norm")
        entries += norm(f"{layer}encoder_attn_layer_norm", f"{layers}cross_norm")
        entries += norm(f"{layer}final_layer_norm", f"{layers}mlp_norm")
        for head, there in heads.items():
            entries += linear(f"{layer}self_attn.{there}", f"{layers}attn/{head}")
            entries += linear(f"{layer}encoder_attn.{there}", f"{layers}cross/{head}")
        entries += linear(f"{layer}fc1", f"{layers}mlp/up")
        entries += linear(f"{layer}fc2", f"{layers}mlp/down")
    tables = ("{prefix}encoder.embed_tokens.weight", "{prefix}decoder.embed_tokens.weight")
    copies = tuple((name, "{prefix}shared.weight") for name in (*tables, "lm_head.weight"))
    return Names(tuple(entries), ("model.",), copies)
