"""One frozen description of a transformer; every family is a table of these fields."""

import dataclasses
import math

from jaxllm.config import ConfigError, near
from jaxllm.models import checks

CHOICES = {
    "norm": ("rms", "layer"),
    "norm_place": ("pre", "post", "around", "out"),
    "assembly": ("decoder", "encoder", "encoder_decoder"),
    "position": ("rope", "learned", "none", "buckets", "sinusoids"),
    "rope_scaling": ("none", "linear", "llama3", "yarn", "longrope"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu", "relu2"),
    "dtype": ("float32", "bfloat16", "float16"),
    "remat": ("none", "dots", "light", "full", "offload"),
    "products": ("auto", "flat", "direct"),
    "task": ("none", "classify", "regress", "tag", "span", "embed"),
    "pool": ("first", "mean", "last"),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a transformer is made of. Widths count numbers, not bytes.

    A field that is 0 and says "0: …" takes that value; `resolve` fills it in.
    """

    vocab: int = 0  # rows of the embedding table; 0: the tokenizer's
    # decoder: a token sees itself and those before it; encoder: all; encoder_decoder: both, and
    # every layer of the decoder looks at what the encoder made of the inputs.
    assembly: str = "decoder"
    layers: int = 4  # of the decoder, where there are two stacks
    encoder_layers: int = 0  # of an encoder-decoder; 0: as layers
    shared_table: bool = True  # encoder and decoder look tokens up in one table
    width: int = 192  # D
    mlp_width: int = 512  # F
    heads: int = 6  # N
    kv_heads: int = 0  # K; 0: as heads (multi-head); 1: multi-query
    head_width: int = 0  # H; 0: width / heads
    positions: int = 0  # longest sequence in tokens; 0: config.data.length

    norm: str = "rms"  # rms, layer
    # pre, post (after the sum), around (both sides of each part), out (of each part's output)
    norm_place: str = "pre"
    norm_eps: float = 1e-6
    norm_bias: bool = False  # layer norm only
    norm_plus_one: bool = False  # multiply by 1 + w (Gemma)

    # rope; learned: a table; buckets: a bias for each range of distances (T5); sinusoids: of the
    # distance, through a projection of each layer (Transformer-XL, XLNet); none
    position: str = "rope"
    position_offset: int = 0  # rows of the table of positions before that of position 0 (BART: 2)
    distance_buckets: int = 32  # buckets: how many, both directions of an encoder together
    distance_max: int = 128  # buckets: from this distance on all share the last
    token_types: int = 0  # rows of a table of types that is added to tokens (BERT: 2); 0: none
    embed_norm: bool = False  # a norm over the sum of the embeddings (BERT, BART)
    rope_base: float = 10_000.0
    rope_local_base: float = 0.0  # base in windowed layers (Gemma 3); 0: rope_base
    rope_fraction: float = 1.0  # of each head that is rotated (Phi-2: 0.4)
    rope_scaling: str = "none"  # none, linear, llama3, yarn, longrope; global layers only
    rope_factor: float = 1.0  # how far positions are stretched
    rope_low_factor: float = 1.0  # llama3, yarn: wavelengths above original / low are stretched
    rope_high_factor: float = 4.0  # llama3, yarn: wavelengths below original / high are kept
    rope_original: int = 8192  # llama3, yarn, longrope: positions it was trained on
    rope_short: tuple = ()  # longrope: divides each frequency, in rows up to rope_original
    rope_long: tuple = ()  # longrope: the same, in longer rows
    rope_attention: float = 1.0  # yarn, longrope: multiplies cosines and sines

    qkv_bias: bool = False
    out_bias: bool = False  # of the attention output
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False  # RMS norm of each query and key head (Qwen 3, Gemma 3)
    qk_norm_whole: bool = False  # of all heads of a token together (OLMo 2)
    query_scale: float = 0.0  # multiplies q·k; 0: head_width ** -0.5
    window: int = 0  # keys a windowed layer sees, itself included; 0: all
    attention_every: int = 0  # every n-th layer attends, the others recur (Griffin: 3); 0: all
    recurrent_width: int = 0  # of those (RG-LRU), in as many blocks as heads; 0: width
    conv_width: int = 4  # tokens that their convolution sees, itself included
    window_first: int = 0  # tokens at a document's start that windowed layers see besides
    global_every: int = 0  # every n-th layer is global; 0: all windowed when window > 0
    attention_softcap: float = 0.0  # c: scores become c·tanh(score / c); 0: off
    logit_softcap: float = 0.0

    experts: int = 0  # MLPs that a router chooses among; 0: one MLP for all tokens
    experts_per_token: int = 2
    expert_width: int = 0  # 0: mlp_width
    moe_every: int = 1  # every n-th layer has experts, the others one MLP
    shared_experts: int = 0  # as wide as so many experts: an MLP that all tokens go through besides
    capacity: float = 0.0  # places at each expert over those of equal shares; 0: none is dropped
    router_norm: bool = True  # chosen weights add up to 1 (Mixtral; not Switch)
    balance_loss: float = 0.01  # weight of the load-balancing loss
    router_z_loss: float = 0.001  # weight of the routers' squared log-partition (ST-MoE)

    activation: str = "silu"
    gated: bool = True  # SwiGLU, GeGLU: act(x·gate) · (x·up)
    parallel: bool = False  # attention and MLP read the same input (PaLM, Phi-2)
    two_streams: bool = False  # can predict a token from others in any order (XLNet)
    tied: bool = False  # the output head is the embedding table
    lm_head: bool = True  # False: no head over the vocabulary at all
    head_transform: bool = False  # product, activation, norm before the head (BERT)
    head_scale: bool = False  # hidden states times width ** -0.5 before the head (T5 1.0)
    # A head besides: classify, regress, tag (each token), span (first and last), embed
    task: str = "none"
    labels: int = 1  # outputs of the task's head
    pool: str = "first"  # token that classify, regress and embed read: first, last; or the mean
    pool_layer: bool = False  # a product and tanh on it, before classify and regress (BERT)
    embed_scale: bool = False  # embeddings times sqrt(width) (Gemma)
    dropout: float = 0.0  # of embeddings, attention output and MLP output

    attention: str = "auto"  # kernel; a key of models.attention.ATTENTION
    # What the backward pass computes again: none; dots (all but products); light (norms,
    # activations, positions; no kernel); full; offload (full, and what it keeps, the layers'
    # inputs, waits in the host's memory).
    remat: str = "none"
    unroll: int = 0  # layers a turn of the scan; 0: 1, on a CPU without remat up to 8
    pipeline_pieces: int = 0  # that a device's rows go through the stages in; 0: one row each
    pipeline_rounds: int = 1  # how often a piece goes round the stages; more: smaller bubble
    products: str = "auto"  # flat: of two plain matrices, as a CPU has it; direct; auto
    dtype: str = "float32"  # of the computation; parameters are stored in float32

    @property
    def group(self):
        """Query heads that share a key head (G)."""
        return self.heads // self.kv_heads

    @property
    def of_encoder(self):
        """The same for the encoder's stack of an encoder-decoder."""
        return dataclasses.replace(self, assembly="encoder", layers=self.encoder_layers)

    @property
    def biased(self):
        """Whether positions are a bias of the scores, which not every kernel adds."""
        return self.position in ("buckets", "sinusoids")

    @property
    def period(self):
        """Layers after which the pattern of windows and experts repeats."""
        windows = self.global_every if self.window and self.global_every else 1
        sparse = self.moe_every if self.experts else 1
        return math.lcm(windows, sparse, self.attention_every or 1)

    def has_attention(self, layer):
        """Whether `layer` attends; else it recurs."""
        every = self.attention_every
        return not every or layer % every == every - 1

    def has_experts(self, layer):
        """Whether `layer` has experts in the place of one MLP."""
        return bool(self.experts) and layer % self.moe_every == self.moe_every - 1

    def is_windowed(self, layer):
        """Whether `layer` sees only `window` keys."""
        last = self.global_every and layer % self.global_every == self.global_every - 1
        return bool(self.window) and not last


FIELDS = {field.name: field.default for field in dataclasses.fields(ModelConfig)}


# How a model is trained and computed, which its function does not depend on.
HOW = (
    *("dropout", "attention", "remat", "unroll", "pipeline_pieces", "pipeline_rounds"),
    *("products", "dtype", "balance_loss", "router_z_loss"),
)
# Fields that mean nothing where another one is off.
_PARTS = {
    "window": ("window_first", "global_every", "rope_local_base"),
    "attention_every": ("recurrent_width", "conv_width"),
    "experts": (
        *("experts_per_token", "expert_width", "moe_every", "shared_experts", "capacity"),
        "router_norm",
    ),
}
_ROPE = {
    "none": (),
    "linear": ("rope_factor",),
    "llama3": ("rope_factor", "rope_low_factor", "rope_high_factor", "rope_original"),
    "yarn": (
        *("rope_factor", "rope_low_factor", "rope_high_factor", "rope_original"),
        "rope_attention",
    ),
    "longrope": ("rope_original", "rope_short", "rope_long", "rope_attention"),
}


def meaning(c):
    """Returns {field: value} of all that the function and the parameters of a model depend on."""
    found = {name: value for name, value in vars(c).items() if name not in HOW}
    off = [name for part, names in _PARTS.items() if not getattr(c, part) for name in names]
    off += set(sum(_ROPE.values(), ())) - set(_ROPE[c.rope_scaling])
    if c.position != "learned":
        off.append("positions")
    if c.position != "buckets":
        off += ["distance_buckets", "distance_max"]
    if c.task == "none":
        off += ["labels", "pool", "pool_layer"]
    if c.position != "rope":
        off += [name for name in found if name.startswith("rope_")]
    return {name: value for name, value in found.items() if name not in off}


def differences(a, b):
    """Returns [(field, value in a, value in b)] where two models are not the same function."""
    a, b = meaning(a), meaning(b)
    names = [name for name in FIELDS if name in a or name in b]
    pairs = [(name, a.get(name, "-"), b.get(name, "-")) for name in names]
    return [(name, x, y) for name, x, y in pairs if x != y and not _close(x, y)]


def _close(x, y):
    """Whether two numbers are the same but for rounding, such as of 144 ** -0.5."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (x, y))
    return numbers and math.isclose(x, y, rel_tol=1e-9)


def resolve(values, *, vocab, length):
    """Makes a checked ModelConfig.

    Args:
        values: {field: value}; fields that are absent take their defaults.
        vocab: size of the tokenizer's vocabulary.
        length: tokens in a row of training data.

    Raises:
        ConfigError: unknown field, wrong type, or fields that contradict each other.
    """
    for name, value in values.items():
        if name not in FIELDS:
            raise ConfigError(
                f"config.model.{name}={value!r} is unknown.{near(name, FIELDS)} "
                f"Known: {', '.join(FIELDS)}."
            )
    c = ModelConfig(**values)
    for name, allowed in CHOICES.items():
        if getattr(c, name) not in allowed:
            raise ConfigError(
                f"config.model.{name}={getattr(c, name)!r} is unknown."
                f"{near(getattr(c, name), allowed)} Known: {', '.join(allowed)}.\n"
                f"  Try --config.model.{name}={allowed[0]}."
            )
    c = dataclasses.replace(
        c,
        vocab=c.vocab or vocab,
        kv_heads=c.kv_heads or c.heads,
        head_width=c.head_width or c.width // max(c.heads, 1),
        positions=c.positions or length,
        rope_local_base=c.rope_local_base or c.rope_base,
        expert_width=c.expert_width or c.mlp_width,
        recurrent_width=c.recurrent_width or c.width,
        encoder_layers=c.encoder_layers or (c.layers if c.assembly == "encoder_decoder" else 0),
    )
    c = dataclasses.replace(c, query_scale=c.query_scale or c.head_width**-0.5)
    checks.check(c, values, vocab, length)
    return c
