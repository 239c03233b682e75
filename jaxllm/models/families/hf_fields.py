"""What reading and writing any config.json has in common: its fields' checks and names."""

from jaxllm.config import ConfigError, near

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
_THEIRS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}

# Fields that change nothing that is computed here, whatever the model.
_HARMLESS = """
architectures auto_map _name_or_path transformers_version dtype torch_dtype use_cache
initializer_range attention_dropout attn_pdrop resid_pdrop embd_pdrop output_hidden_states
output_attentions return_dict output_router_logits router_aux_loss_coef router_jitter_noise
pretraining_tp chunk_size_feed_forward id2label label2id problem_type task_specific_params n_ctx
reorder_and_upcast_attn cache_implementation gradient_checkpointing is_llama_config
transformers.js_config _attn_implementation attn_implementation bos_token_id eos_token_id
pad_token_id unk_token_id sep_token_id max_length do_sample summary_activation summary_type
summary_first_dropout summary_proj_to_labels summary_use_proj model_type _sliding_window_pattern
hidden_act hidden_activation activation_function max_window_layers tokenizer_class
"""
_HARMLESS = frozenset(_HARMLESS.split())


def activation(name):
    """Returns our name of an activation of Hugging Face's.

    Raises:
        ConfigError: it has no counterpart.
    """
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"hidden_act={name!r} has no counterpart here.{near(str(name), ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def their_activation(name):
    """Returns Hugging Face's name of one of ours; "relu2" has none in encoders."""
    return _THEIRS.get(name, name)


def number(name, value):
    """Returns the value of a field that must be a number.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool | int | float):
        return value
    raise ConfigError(f"config.json: {name}={value!r} must be a number.")


def check(kind, data, known, only):
    """Checks that every field of a config.json is understood; None is as if it were not there.

    Args:
        kind: its model_type.
        data: its object.
        known: names that are read, or change nothing, besides those that never do.
        only: {name: (the value known, …)} of those known with these values alone.

    Raises:
        ConfigError: a field that might change what the model computes.
    """
    known = {*known, *_HARMLESS}
    for name, value in data.items():
        if value is None:
            continue
        if name in only:
            if value not in only[name]:
                raise ConfigError(
                    f"config.json: {name}={value!r} has no counterpart here. Known for {kind!r}: "
                    f"{only[name][0]!r}."
                )
        elif name not in known:
            raise ConfigError(
                f"config.json: {name}={str(value)[:80]!r} is unknown for model_type={kind!r}, and "
                f"might change what the model computes.{near(name, known)} If it changes nothing, "
                "remove it from the file."
            )
