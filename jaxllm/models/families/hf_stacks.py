"""From a config.json of an encoder or an encoder-decoder to fields of ModelConfig, and back."""

from jaxllm.config import ConfigError
from jaxllm.models.families import hf_fields

# Fields that change nothing that is computed here, besides those of all models.
_HARMLESS = frozenset(
    [
        "attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout", "dropout",
        "activation_dropout", "encoder_layerdrop", "decoder_layerdrop", "dropout_rate", "init_std",
        "initializer_factor", "gradient_checkpointing", "num_labels", "id2label", "label2id",
        "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "num_beams",
        "early_stopping", "no_repeat_ngram_size", "length_penalty", "min_length", "max_length",
        "output_past", "prefix", "normalize_before", "normalize_embedding", "add_bias_logits",
        "add_final_layer_norm", "classif_dropout", "static_position_embeddings", "n_positions",
        "dense_act_fn", "is_gated_act", "num_hidden_layers", "layer_norm_epsilon",
    ]
)  # fmt: skip
# Fields that are known with these values alone.
_ONLY = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute",),
    "normalize_before": (False,),
    "normalize_embedding": (True,),
    "add_bias_logits": (False,),
    "add_final_layer_norm": (False,),
    "static_position_embeddings": (False,),
}
# {end of an architecture's name: fields}. A bare model of an encoder has a layer to pool with.
_TASKS = {
    "ForSequenceClassification": dict(task="classify", pool="first", pool_layer=True),
    "ForTokenClassification": dict(task="tag"),
    "ForQuestionAnswering": dict(task="span", labels=2),
    "Model": dict(task="embed", pool="mean", pool_layer=True),
}
_BERT = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "vocab": "vocab_size",
    "token_types": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
}
_T5 = {
    "width": "d_model",
    "head_width": "d_kv",
    "mlp_width": "d_ff",
    "heads": "num_heads",
    "encoder_layers": "num_layers",
    "layers": "num_decoder_layers",
    "vocab": "vocab_size",
    "distance_buckets": "relative_attention_num_buckets",
    "distance_max": "relative_attention_max_distance",
    "norm_eps": "layer_norm_epsilon",
}
_BART = {
    "width": "d_model",
    "encoder_layers": "encoder_layers",
    "layers": "decoder_layers",
    "heads": "encoder_attention_heads",
    "mlp_width": "encoder_ffn_dim",
    "positions": "max_position_embeddings",
    "vocab": "vocab_size",
    "embed_scale": "scale_embedding",
}
# What the classes take where a file says nothing.
_DEFAULTS = {
    "bert": dict(type_vocab_size=2, layer_norm_eps=1e-12, max_position_embeddings=512),
    "roberta": dict(type_vocab_size=2, layer_norm_eps=1e-12, max_position_embeddings=512),
    "t5": dict(
        relative_attention_num_buckets=32, relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6, feed_forward_proj="relu",
    ),
    "bart": dict(max_position_embeddings=1024, scale_embedding=False, activation_function="gelu"),
}  # fmt: skip
ARCHITECTURES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "t5": "T5ForConditionalGeneration",
    "t5v1.1": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
}
_GATED = {"gated-gelu": "gelu_tanh", "gated-silu": "silu", "gated-relu": "relu"}


def read(data, strict):
    """Reads a config.json whose model_type is a key of `READERS`.

    Args:
        data: its object.
        strict: whether an unknown field is an error.

    Returns:
        {"family", "size" and fields of ModelConfig}.

    Raises:
        ConfigError: a field that is missing, unknown, of the wrong type or without counterpart.
    """
    kind = data["model_type"]
    data = {**_DEFAULTS[kind], **{k: v for k, v in data.items() if v is not None}}
    if kind == "t5":
        data.setdefault("num_decoder_layers", data.get("num_layers"))
    table, reader = READERS[kind]
    if strict:
        known = {*table.values(), *_DEFAULTS[kind], *_OTHERS[kind], *_HARMLESS}
        only = _ONLY | {"is_encoder_decoder": (kind in ("t5", "bart"),)}
        hf_fields.check(kind, data, known, only)
    values = {"size": "", "family": kind}
    for ours, theirs in table.items():
        values[ours] = hf_fields.number(theirs, data.get(theirs))
    return values | reader(data)


_OTHERS = {
    "bert": ("hidden_act", "problem_type", "tie_word_embeddings"),
    "roberta": ("hidden_act", "problem_type", "tie_word_embeddings", "pad_token_id"),
    "t5": ("tie_word_embeddings", "scale_decoder_outputs"),
    "bart": ("tie_word_embeddings", "decoder_attention_heads", "decoder_ffn_dim"),
}


def _encoder(data):
    """Fields of BERT and RoBERTa; which head there is, the architecture says."""
    roberta = data["model_type"] == "roberta"
    values = {"activation": hf_fields.activation(data.get("hidden_act", "gelu"))}
    offset = data.get("pad_token_id", 1) + 1 if roberta else 0
    values |= dict(position_offset=offset, positions=data["max_position_embeddings"] - offset)
    name = (data.get("architectures") or ["ForMaskedLM"])[0]
    if not name.endswith(("ForMaskedLM", "ForPreTraining")):
        ends = [end for end in _TASKS if name.endswith(end)]
        if not ends:
            raise ConfigError(
                f"config.json: architectures={name!r} has no counterpart here. Known: ForMaskedLM, "
                f"{', '.join(_TASKS)}."
            )
        labels = data.get("num_labels") or len(data.get("id2label", {})) or 2
        values |= dict(lm_head=False, head_transform=False, head_bias=False, tied=True)
        values |= {"labels": labels, **_TASKS[ends[0]]}
        if values["task"] == "embed":
            values["labels"] = 1
        if data.get("problem_type") == "regression":
            values["task"] = "regress"
    return values


def _t5(data):
    """Fields of T5, whose gated kind is version 1.1 and Flan-T5."""
    act = data["feed_forward_proj"]
    tied = bool(data.get("tie_word_embeddings", True))
    gated = act.startswith("gated-")
    if gated and act not in _GATED:
        raise ConfigError(f"feed_forward_proj={act!r} has no counterpart here. Known: gated-gelu.")
    return {
        "family": "t5v1.1" if gated else "t5",
        "gated": gated,
        "activation": _GATED[act] if gated else hf_fields.activation(act),
        "tied": tied,
        "head_scale": bool(data.get("scale_decoder_outputs", tied)),
        # No table of positions ends anywhere; this is what the models were trained on.
        "positions": hf_fields.number("n_positions", data.get("n_positions") or 512),
    }


def _bart(data):
    for ours, theirs in (
        ("encoder_attention_heads", "decoder_attention_heads"),
        ("encoder_ffn_dim", "decoder_ffn_dim"),
    ):
        if data.get(theirs, data[ours]) != data[ours]:
            raise ConfigError(
                f"config.json: {ours}={data[ours]} and {theirs}={data[theirs]} differ; here both "
                "stacks are of one width."
            )
    if not data.get("tie_word_embeddings", True):
        raise ConfigError("config.json: tie_word_embeddings=False has no counterpart for 'bart'.")
    return {
        "activation": hf_fields.activation(data["activation_function"]),
        "embed_scale": bool(data["scale_embedding"]),
    }


# model_type: ({our field: theirs}, data -> further fields).
READERS = {"bert": (_BERT, _encoder), "roberta": (_BERT, _encoder), "t5": (_T5, _t5),
           "bart": (_BART, _bart)}  # fmt: skip


def write(c, family):
    """Returns the config.json's object of a model of a family in ARCHITECTURES.

    Raises:
        ConfigError: files of the family cannot say what the model is.
    """
    kind = "t5" if family.startswith("t5") else family
    table, _ = READERS[kind]
    fields = {theirs: getattr(c, ours) for ours, theirs in table.items()}
    architecture = ARCHITECTURES[family]
    if kind in ("bert", "roberta"):
        architecture += "ForMaskedLM" if c.lm_head else _ending(c)
        fields["max_position_embeddings"] = c.positions + c.position_offset
        fields["hidden_act"] = hf_fields.their_activation(c.activation)
        fields["pad_token_id"] = c.position_offset - 1 if kind == "roberta" else 0
        if c.task in ("classify", "regress", "tag"):
            fields["id2label"] = {str(i): f"LABEL_{i}" for i in range(c.labels)}
            fields["label2id"] = {name: int(i) for i, name in fields["id2label"].items()}
        if c.task == "regress":
            fields["problem_type"] = "regression"
    elif kind == "t5":
        act = {ours: theirs for theirs, ours in _GATED.items()}
        plain = "gelu_new" if c.activation == "gelu_tanh" else c.activation
        fields["feed_forward_proj"] = act[c.activation] if c.gated else plain
        fields |= dict(tie_word_embeddings=c.tied, scale_decoder_outputs=c.head_scale)
        fields |= dict(is_encoder_decoder=True, decoder_start_token_id=0)
    else:
        fields["activation_function"] = hf_fields.their_activation(c.activation)
        fields |= dict(decoder_attention_heads=c.heads, decoder_ffn_dim=c.mlp_width)
        fields |= dict(is_encoder_decoder=True, decoder_start_token_id=2)
    return {"model_type": kind, "architectures": [architecture], **fields}


def _ending(c):
    """The end of the name of the class that has the task's head."""
    task = "classify" if c.task == "regress" else c.task
    return next(end for end, fields in _TASKS.items() if fields["task"] == task)
