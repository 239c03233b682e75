"""The methods: their options are what `config.finetune` may set."""

from jaxllm.config import ConfigError
from jaxllm.finetune import parts
from jaxllm.finetune.method import Method
from jaxllm.models.layers import ACTIVATIONS
from jaxllm.models.quantized import FORMATS

STARTS = ("zero", "pissa", "loftq")


def full(*, freeze=""):
    """Trains all parameters.

    Args:
        freeze: regular expression of the paths of parameters that stay as they are; "": none.
    """
    return Method("full", freeze=freeze)


def lora(
    *,
    rank=16,
    alpha=32.0,
    targets="layers/",
    dropout=0.0,
    rslora=False,
    dora=False,
    b_lr=1.0,
    start="zero",
    base="",
):
    """Trains two thin matrices beside each weight (Hu et al. 2021, arXiv:2106.09685).

    Args:
        rank: of the matrices.
        alpha: their product counts alpha / rank times.
        targets: regular expression of the paths of projections; `layers/` is all of the layers',
            `attn/(q|v)$` what the paper has.
        dropout: part of their inputs that is dropped in training.
        rslora: whether it counts alpha / sqrt(rank) times (Kalajdzievski 2023, arXiv:2312.03732).
        dora: whether the length of each output's weights is trained apart (arXiv:2402.09353).
        b_lr: factor of the second matrix's learning rate (LoRA+, Hayou et al. 2024,
            arXiv:2402.12354, where it is 16).
        start: "zero"; "pissa": the largest singular vectors of each weight, and the rest of it is
            what stays frozen (Meng et al. 2024, arXiv:2404.02948); or "loftq": those of what few
            bits lose of it (Li et al. 2023, arXiv:2310.08659, one round of theirs).
        base: the frozen weights of layers in few bits: nf4, int4 or int8; "": as computed with.

    Raises:
        ConfigError: an option out of range.
    """
    return _low_rank("lora", rank, alpha, targets, dropout, rslora, dora, b_lr, start, base)


def qlora(
    *,
    rank=16,
    alpha=32.0,
    targets="layers/",
    dropout=0.0,
    rslora=False,
    dora=False,
    b_lr=1.0,
    start="zero",
    base="nf4",
):
    """`lora` over frozen weights of 4.127 bits (Dettmers et al. 2023, arXiv:2305.14314)."""
    if not base:
        raise ConfigError(
            "config.finetune.base='' is no format of few bits, and kind 'qlora' is for one.\n"
            f"  Known: {', '.join(FORMATS)}. Try --config.finetune.kind=lora."
        )
    return _low_rank("qlora", rank, alpha, targets, dropout, rslora, dora, b_lr, start, base)


def _low_rank(kind, rank, alpha, targets, dropout, rslora, dora, b_lr, start, base):
    _check(rank >= 1, "rank", rank, "at least 1", 16)
    _check(alpha > 0, "alpha", alpha, "positive", 32)
    _check(0 <= dropout < 1, "dropout", dropout, "at least 0 and below 1", 0.05)
    _check(b_lr > 0, "b_lr", b_lr, "positive", 16)
    _check(start in STARTS, "start", start, f"one of {', '.join(STARTS)}", "pissa")
    _check(not base or base in FORMATS, "base", base, f"one of {', '.join(FORMATS)}, or ''", "nf4")
    if start == "loftq" and not base:
        raise ConfigError(
            "config.finetune.start='loftq' makes up for what few bits lose, and weights that are "
            "kept as they are lose nothing.\n  Try --config.finetune.kind=qlora."
        )
    scale = alpha / (rank**0.5 if rslora else rank)
    rewrites = (parts.Lora(targets, rank, scale, dropout, dora),)
    rewrites = (parts.Quantize(base), *rewrites) if base else rewrites
    scales = () if b_lr == 1 else ((r"/lora/b$", b_lr),)
    return Method(kind, rewrites, start="" if start == "zero" else start, lr_scales=scales)


def prompt(*, tokens=20, text=""):
    """Trains vectors in the place of tokens before each document (Lester et al. 2021).

    An encoder-decoder has them before its inputs. Source: arXiv:2104.08691.

    Args:
        tokens: how many.
        text: whose tokens' embeddings they start from, again and again; "": drawn.
    """
    _check(tokens >= 1, "tokens", tokens, "at least 1", 20)
    return Method("prompt", (parts.Prompt(tokens),), lead=tokens, start=text)


def prefix(*, tokens=20, hidden=0):
    """Trains keys and values before each document, in every layer (Li and Liang 2021).

    An encoder-decoder has them in its encoder. Source: arXiv:2101.00190.

    Args:
        tokens: how many.
        hidden: width of the network that makes them while they are trained; 0: none.
    """
    _check(tokens >= 1, "tokens", tokens, "at least 1", 20)
    _check(hidden >= 0, "hidden", hidden, "at least 0", 512)
    return Method("prefix", (parts.Prefix(tokens, hidden),), lead=tokens)


def adapter(*, width=64, activation="gelu", style="houlsby"):
    """Trains small networks behind the parts of each layer.

    Args:
        width: of their middle.
        activation: in their middle.
        style: "houlsby": behind attention and MLP (arXiv:1902.00751); "pfeiffer": behind the MLP
            alone (arXiv:2005.00247).
    """
    _check(width >= 1, "width", width, "at least 1", 64)
    known = ", ".join(ACTIVATIONS)
    _check(activation in ACTIVATIONS, "activation", activation, f"one of {known}", "gelu")
    _check(style in ("houlsby", "pfeiffer"), "style", style, "houlsby or pfeiffer", "houlsby")
    return Method("adapter", (parts.Bottleneck(width, activation, style == "houlsby"),))


def ia3(*, outputs=r"attn/(k|v)$", inputs=r"mlp/down$"):
    """Trains a factor for each key, value and inner unit of an MLP (Liu et al. 2022).

    Source: arXiv:2205.05638.

    Args:
        outputs: regular expression of the paths of projections whose outputs have factors.
        inputs: of those whose inputs have.
    """
    return Method("ia3", (parts.Scale(outputs, inputs),))


def _check(good, name, value, allowed, example):
    if not good:
        raise ConfigError(
            f"config.finetune.{name}={value!r} must be {allowed}.\n"
            f"  Try --config.finetune.{name}={example}."
        )
