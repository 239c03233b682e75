"""Rewrites of a model, as values: each puts one kind of part into it."""

import dataclasses
import re
import zlib

import jax
from flax import nnx

from jaxllm.config import ConfigError, near
from jaxllm.models import adapters, quantized
from jaxllm.models.layers import Projection


def projections(module):
    """Returns {path: Projection} of a model, such as "layers/attn/q", without those of adapters."""
    found = {}
    for path, part in nnx.iter_modules(module):
        words = [str(word) for word in path]
        if isinstance(part, Projection) and not any("adapter" in word for word in words):
            found["/".join(words)] = part
    return dict(sorted(found.items()))


def chosen(module, pattern, field):
    """Returns those of `projections` in whose path a regular expression is found.

    Raises:
        ConfigError: no regular expression, or nothing found.
    """
    known = projections(module)
    try:
        found = {path: part for path, part in known.items() if re.search(pattern, path)}
    except re.error as error:
        raise ConfigError(
            f"config.finetune.{field}={pattern!r} is no regular expression: {error}.\n"
            f"  Try --config.finetune.{field}='layers/'."
        ) from None
    if not found:
        words = dict.fromkeys(word for path in known for word in path.split("/"))
        tries = [w for w in re.split(r"[^A-Za-z0-9_]+", pattern) if w and w not in words]
        hints = "".join(near(word, words) for word in tries)
        raise ConfigError(
            f"config.finetune.{field}={pattern!r} matches none of the model's projections.{hints}\n"
            f"  There are: {', '.join(known)}.\n"
            f"  Try --config.finetune.{field}='layers/', which is all of those in layers."
        )
    return found


def key_of(key, path):
    """A random key of its own for each path."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()) & 0x7FFFFFFF)


def stacks(module):
    """The stacks of a model in which documents are read: the encoder where there is one."""
    return module if module.encoder is None else module.encoder


@dataclasses.dataclass(frozen=True)
class Quantize:
    """Projections' weights in few bits; see `models.quantized`."""

    format: str
    targets: str = "layers/"

    def __call__(self, module, key):
        del key
        for path, part in chosen(module, self.targets, "base").items():
            stacked = "layers" in path.split("/")
            part.w = nnx.data(quantized.Quantized(part.w, stacked=stacked, format=self.format))


@dataclasses.dataclass(frozen=True)
class Lora:
    """`models.adapters.Lora` beside projections."""

    targets: str
    rank: int
    scale: float
    dropout: float = 0.0
    magnitude: bool = False

    def __call__(self, module, key):
        for path, part in chosen(module, self.targets, "targets").items():
            if part.stacked and (self.magnitude or self.dropout):
                name = "dora" if self.magnitude else "dropout"
                raise ConfigError(
                    f"config.finetune.{name}={getattr(self, name, True)} does not go with experts, "
                    f"and targets={self.targets!r} has {path!r}.\n"
                    "  Try --config.finetune.targets='attn/', or leave it out."
                )
            lora = adapters.Lora(
                part,
                rank=self.rank,
                scale=self.scale,
                rate=self.dropout,
                magnitude=self.magnitude,
                key=key_of(key, path),
            )
            part.lora = nnx.data(lora)


@dataclasses.dataclass(frozen=True)
class Scale:
    """`models.adapters.Scale`: of outputs, or of inputs."""

    outputs: str
    inputs: str

    def __call__(self, module, key):
        del key
        for part in chosen(module, self.outputs, "outputs").values():
            part.scale_out = nnx.data(adapters.Scale(part, of_inputs=False))
        for part in chosen(module, self.inputs, "inputs").values():
            part.scale_in = nnx.data(adapters.Scale(part, of_inputs=True))


@dataclasses.dataclass(frozen=True)
class Bottleneck:
    """`models.adapters.Bottleneck` behind the parts of every layer, of both stacks."""

    width: int
    activation: str
    behind_attention: bool

    def __call__(self, module, key):
        names = ("attn_adapter", "mlp_adapter") if self.behind_attention else ("mlp_adapter",)
        for path, stack in (("", module), ("encoder", module.encoder)):
            if stack is None:
                continue
            for name in names:
                keys = jax.random.split(key_of(key, f"{path}/{name}"), stack.c.layers)
                stack.layers.__setattr__(name, nnx.data(self._stacked(stack.c, keys)))

    def _stacked(self, c, keys):
        def one(key):
            rngs = nnx.Rngs(params=key)
            return adapters.Bottleneck(c, self.width, self.activation, rngs=rngs)

        return nnx.vmap(one)(keys)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """`models.adapters.Prompt` before what is read."""

    tokens: int

    def __call__(self, module, key):
        stack = stacks(module)
        stack.lead = self.tokens
        stack.prompt = nnx.data(adapters.Prompt(stack.c, self.tokens, key=key_of(key, "prompt")))


@dataclasses.dataclass(frozen=True)
class Prefix:
    """`models.adapters.Prefix` in every layer of what reads; a network makes it if `hidden`."""

    tokens: int
    hidden: int

    def __call__(self, module, key):
        stack = stacks(module)
        stack.lead = self.tokens
        c, of_layers, of_source = stack.c, *jax.random.split(key_of(key, "prefix"))
        part = adapters.Prefix(c, self.tokens, self.hidden, key=of_layers)
        stack.layers.attn.prefix = nnx.data(part)
        if self.hidden:
            source = adapters.PrefixSource(c, self.tokens, self.hidden, key=of_source)
            stack.prefix_source = nnx.data(source)
