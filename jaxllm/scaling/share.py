"""What one device has of a train step: its tokens, its part of every array of the state.

Nothing is compiled and no array is made, so a model may be of any size; shapes, shardings and the
optimizer's state are the real ones, not formulas beside them.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm import finetune, models, optim, sharding, trees
from jaxllm.models import pipeline
from jaxllm.models.families import model_config
from jaxllm.optim.matrices import is_hidden_matrix
from jaxllm.scaling import shapes, traced


class Share(NamedTuple):
    """One device's share of a train step.

    Attributes:
        config: the ConfigDict.
        c: ModelConfig, with what the platform decides filled in.
        infos: {path: ParamInfo} of the model, as its layers multiply by them.
        trained: {path: ParamInfo} of what is trained: of those, and of what a method adds.
        frozen: {path: ParamInfo} of the rest, as it is stored: a weight in few bits as its parts.
        shape: {mesh axis: size}.
        platform: "tpu", "gpu" or "cpu".
        row: `shapes.Shape` of a row.
        rows: rows of a micro-batch that are this device's own.
        tokens: of a micro-batch that the head sees: of its rows, its part along `seq`.
        stream: of them that it holds between two parts of a layer: its part along `tensor`.
        specs: {path: PartitionSpec} of all of them.
        opt_bytes: of the optimizer's state on this device.
        opt_flops: of the optimizer's own products on this device, such as Muon's.
        family: of the machine, such as "v5e"; "" where it is not known.
    """

    config: Any
    c: Any
    infos: dict
    trained: dict
    frozen: dict
    shape: dict
    platform: str
    row: Any
    rows: int
    tokens: int
    stream: int
    specs: dict
    opt_bytes: int
    opt_flops: float
    family: str = ""

    @property
    def micro(self):
        """Micro-batches a step."""
        return self.config.step.micro_batches

    @property
    def remat(self):
        """What is computed again: "none", "dots", "light", "full"."""
        return "full" if self.c.remat == "offload" else self.c.remat

    @property
    def offloads(self):
        """Whether layers' inputs wait in the host's memory; a CPU's is the device's own."""
        return self.c.remat == "offload" and self.platform != "cpu"

    @property
    def width(self):
        """Bytes of a number that is computed with."""
        return jnp.dtype(self.c.dtype).itemsize

    @property
    def bubble(self):
        """Share of its time that a pipeline has nothing to do."""
        if self.shape["stage"] == 1:
            return 0.0
        pieces = self.c.pipeline_pieces or self.rows
        return pipeline.bubble(self.shape["stage"], pieces, self.c.pipeline_rounds)

    @property
    def parts(self):
        """[`shapes.Part`] of the model: its stacks of layers."""
        return shapes.parts(self.c, self.row)

    def seen(self, part):
        """Tokens of a micro-batch that the products of a stack see on this device."""
        return self.rows * self.row.texts * part.length // self.shape["seq"]

    @property
    def held(self):
        """{path: ParamInfo} of all parameters that the device stores."""
        return self.frozen | self.trained

    @property
    def trained_count(self):
        """Parameters that are trained."""
        return sum(math.prod(info.shape) for info in self.trained.values())

    @property
    def added(self):
        """{path: ParamInfo} of what a method puts into the model."""
        return {path: info for path, info in self.trained.items() if path not in self.infos}

    @property
    def goes_below(self):
        """Whether the backward pass goes through the layers: not where the output alone learns."""
        return shapes.goes_below(self.c, self.trained)

    @property
    def trains_output(self):
        """Whether what turns hidden states into logits, or into a task's outputs, is trained."""
        output = "embed" if self.c.tied and self.row.head else "head" if self.row.head else "task"
        return any(path.split("/")[0] == output for path in self.trained)

    def info(self, path):
        """ParamInfo of a parameter as it is held, or as its layer multiplies by it."""
        return self.trained.get(path) or self.frozen.get(path) or self.infos[path]

    def stored(self, path):
        """Numbers of a parameter that this device stores."""
        return _part(self.info(path).shape, self.specs[path], self.shape)

    def size(self, paths):
        """Bytes of parameters that this device stores: 4 a number of what is trained."""
        return sum(self.stored(path) * self.info(path).dtype.itemsize for path in paths)

    def gathered(self, path):
        """Mesh axes that a parameter is gathered over when it is used."""
        parts = zip(self.info(path).axes, tuple(self.specs[path]), strict=False)
        return jax.tree.leaves([names for axis, names in parts if axis in sharding.GATHERED])

    def used(self, path):
        """Numbers of a parameter that this device computes with, once gathered."""
        devices = (self.shape[name] for name in self.gathered(path))
        return self.stored(path) * math.prod(devices)


def describe(config, count, platform, vocab, family=""):
    """Returns the `Share` of a device.

    Args:
        config: completed ConfigDict.
        count: devices.
        platform: "tpu", "gpu" or "cpu".
        vocab: size of the tokenizer's vocabulary, where the model does not say.
        family: of the machine.

    Raises:
        ConfigError: settings that contradict each other.
    """
    shape = sharding.mesh_shape(config.mesh, count)
    length = config.data.length
    c = model_config(config.model, vocab=vocab, length=length)
    c = models.for_platform(c, platform, length, shape["seq"])
    method, infos = finetune.of(config), models.abstract_params(c)
    trained, frozen = finetune.infos(method, c, config.init_fresh)
    mesh = jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape))
    rules = sharding.RULES[config.sharding]
    row = shapes.of(config)
    rows = sharding.rows_each(config.data.batch, shape) // config.step.micro_batches
    tokens = rows * row.texts * row.length // shape["seq"]
    return Share(
        config,
        c,
        infos,
        trained,
        frozen,
        shape,
        platform,
        row,
        rows,
        tokens,
        tokens // shape["tensor"],
        sharding.param_specs(infos | frozen | trained, rules.params, mesh),
        *_optimizer(config, c, method, trained, rules.optimizer, mesh),
        family,
    )


def _optimizer(config, c, method, infos, rules, mesh):
    """(Bytes of the optimizer's state, FLOPs of its own products) on a device."""
    schedule = optim.make_schedule(config.schedule, config.steps)
    told = dict(factors=method.lr_scales, depths=models.below_output(c, infos))
    tx = optim.make_optimizer(config.optim, schedule, infos, **told)
    params = trees.unflatten(
        {path: jax.ShapeDtypeStruct(info.shape, info.dtype) for path, info in infos.items()}
    )
    state = jax.eval_shape(tx.init, params)
    axes = optim.state_axes(tx, infos)
    placed = functools.partial(sharding.spec, rules=rules, mesh=mesh)
    sizes = jax.tree.map(
        lambda leaf, names: (
            leaf.dtype.itemsize * _part(leaf.shape, placed(names, leaf.shape), mesh.shape)
        ),
        state,
        axes,
    )
    flops = traced.product_flops(tx.update, params, state, params)
    if flops:  # of hidden matrices, each where its state is
        specs = sharding.param_specs(infos, rules, mesh)
        matrices = [(info.shape, specs[p]) for p, info in infos.items() if is_hidden_matrix(info)]
        here = sum(_part(shape, spec, mesh.shape) for shape, spec in matrices)
        flops *= here / sum(math.prod(shape) for shape, _ in matrices)
    return sum(jax.tree.leaves(sizes)), flops


def _part(shape, spec, mesh):
    """Numbers of an array that one device has."""
    size = math.prod(shape)
    for names in jax.tree.leaves(tuple(spec)):
        size //= mesh[names]
    return size
