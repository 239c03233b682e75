"""Names of activations: Hugging Face's, and ours."""

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


def their_activation(name):
    """Returns Hugging Face's name of one of ours; "relu2" has none in encoders."""
    return _THEIRS.get(name, name)
