"""From a View onto the devices, parameter by parameter; and from parameters to a View."""

import math

import jax
import numpy as np

from jaxllm import trees
from jaxllm.config import ConfigError, near
from jaxllm.models import abstract_params
from jaxllm.models.families import FAMILIES, hf, hf_write, model_config, names_of
from jaxllm.models.weights import names
from jaxllm.models.weights.tensors import View, WeightsError


def read_config(view, *, vocab=1):
    """Returns the fields of `config.model` that a View describes, strictly.

    Args:
        view: `View`.
        vocab: size of the tokenizer's vocabulary; the embedding may have more rows, not fewer.

    Returns:
        {"family", "size" and fields of ModelConfig}.

    Raises:
        WeightsError: a field of its config that is unknown or cannot be followed.
        ConfigError: fields that contradict each other, or a vocabulary that is too small.
    """
    try:
        values, _ = hf.from_hf(view.config, strict=True)
    except ConfigError as error:
        raise WeightsError(f"{view.origin}: {error}") from None
    rows = values["vocab"]
    if rows < vocab:
        raise WeightsError(
            f"{view.origin}: the model has {rows:,} rows of embeddings and its tokenizer {vocab:,} "
            "ids: text would have tokens that the model has not. Give the tokenizer of this model."
        )
    model_config(values, vocab=vocab, length=1)
    return values


def fill_map(family, c, tensors=()):
    """Returns the `names.Map` between a model and files of a family.

    Args:
        family: of `FAMILIES`.
        c: ModelConfig.
        tensors: names in a file, which tell the prefix they begin with; none: as it is written.

    Raises:
        ConfigError: a family whose files nobody has.
    """
    table = names_of(family, c)
    if table is None:
        known = [name for name, found in FAMILIES.items() if found.names]
        raise ConfigError(
            f"config.model.family={family!r} has no files of Hugging Face's.{near(family, known)} "
            f"Known: {', '.join(known)}."
        )

    def layers_of(path):
        if path.startswith("encoder/"):
            return range(c.encoder_layers)
        part = path.split("/")[1]
        if part in ("moe", "mlp") and c.experts and c.moe_every > 1:
            return [i for i in range(c.layers) if c.has_experts(i) == (part == "moe")]
        return range(c.layers)

    prefix = names.choose_prefix(table, tensors) if tensors else None
    return names.fill_in(table, abstract_params(c), layers_of, prefix)


def check(view, c, family):
    """Compares the names and shapes of a View with a model, reading no tensor but the tied ones.

    Returns:
        (`names.Map`, {copy: name that it equals}, [names that carry no weight]).

    Raises:
        WeightsError: a name missing or left over, another shape or dtype, or a head that differs
            from the embeddings it is tied to.
    """
    map_ = fill_map(family, c, view.tensors)
    try:
        copies, ignored = names.check(map_, view.tensors)
        names.check_copies(copies, view.tensors)
    except WeightsError as error:
        raise WeightsError(f"{view.origin}: {error}") from None
    return map_, copies, ignored


def load(view, c, family, shardings, dtype=np.float32):
    """Reads the parameters of a View onto devices; each reads its own slices, and no others.

    The host holds one parameter at a time: a stack of one matrix of all layers, or what this
    process's devices have of it.

    Args:
        view: `View`, of a file that is mapped.
        c: ModelConfig.
        family: of `FAMILIES`.
        shardings: {path: Sharding}, as `sharding.param_shardings` returns.
        dtype: of the parameters.

    Returns:
        Tree of jax.Array.

    Raises:
        WeightsError: as `check`; or a value that is infinite or no number.
    """
    map_, _, _ = check(view, c, family)
    infos, found = abstract_params(c), {}
    for path, info in infos.items():
        held = {}  # slices that several devices have are read once

        def read(index, path=path, shape=info.shape, held=held):
            key = tuple(i.indices(n) for i, n in zip(index, shape, strict=True))
            if key not in held:
                found = names.read_slice(map_, view.tensors, path, index, shape)
                held[key] = found.astype(dtype)
            return held[key]

        try:
            found[path] = jax.make_array_from_callback(info.shape, shardings[path], read)
        except WeightsError as error:
            raise WeightsError(f"{view.origin}: {error}") from None
    return trees.unflatten(found)


def export(params, c, family, *, config=None, dtypes=None, dtype="float32", prefix=None, copies=()):
    """Returns a View of parameters, each of whose tensors is made when it is read.

    Args:
        params: tree of arrays, or {path: array}.
        c: ModelConfig.
        family: of `FAMILIES`.
        config: object of the config.json; None makes one.
        dtypes: {their name: dtype}, of those that `dtype` is not for.
        dtype: of all others.
        prefix: that names begin with; None for the one that is usual.
        copies: (name, name that it equals) of tensors to be written twice.

    Raises:
        ConfigError: a model that no file of the family can be.
    """
    map_ = fill_map(family, c)
    if prefix is not None and prefix != map_.prefix:
        map_ = fill_map(family, c, [n.replace(map_.prefix, prefix, 1) for n in map_.names])
    dtypes = dtypes or {}
    tensors = names.export(map_, trees.flatten(params), lambda name: dtypes.get(name, dtype))
    tensors |= {name: tensors[of]._replace() for name, of in copies}
    return View(config or hf_write.to_hf(c, family), tensors, {}, "this model")


def size_bytes(view):
    """Bytes of all tensors of a View."""
    return sum(math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in view.tensors.values())
