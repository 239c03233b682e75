"""What a run starts from, and what of it stays frozen: the parameters of `config.init_from`.

A fine-tuning method that trains little keeps no copy of the rest: each start of the run reads it
anew from where it came, and refuses another one by its digest.
"""

import pathlib
from typing import NamedTuple

import jax

from jaxllm import finetune, models, tokenizers, trees
from jaxllm.config import ConfigError
from jaxllm.training import anchors, initial, prints, records, setup
from jaxllm.training.checkpoint import Checkpoints
from jaxllm.training.state import place_key

FIRST = "first"  # directory of what PiSSA took out of the base, which is not the base's to tell


class Base(NamedTuple):
    """What a run is trained over and does not change.

    Attributes:
        refs: frozen trees, as `run.refs` has them: "base" where not all is trained, "start" and
            "fisher" where penalties look at them.
        digest: `frozen_digest` of the plain model that these are of, or "".
    """

    refs: dict
    digest: str


NONE = Base({}, "")


def begin(run, workdir):
    """Returns (trained parameters, `Base`) of a run's very first start.

    Args:
        run: `setup.Run`, with a tokenizer.
        workdir: its directory.

    Raises:
        ConfigError: no checkpoint in `config.init_from`.
    """
    base = trees.flatten(load(run))
    if not run.refs:
        return trees.unflatten(base), NONE
    held = anchors.load(run, base)
    method, c = run.method, run.model.config
    text = method.start if method.kind == "prompt" else ""
    ids = tuple(run.tokenizer.encode(text)) if text else ()

    def first(base, key):
        drawn = trees.flatten(run.model.init(key))
        found = base | finetune.begin(method, c, base, drawn, ids)
        return trees.unflatten({path: found[path] for path in run.infos})

    places = jax.tree.map(lambda leaf: leaf.sharding, run.abstract.params)
    params = jax.jit(first, out_shardings=places)(base, place_key(run.mesh, run.config.seed))
    taken = _taken(run, trees.flatten(params))
    if taken:
        with Checkpoints(pathlib.Path(workdir) / FIRST) as checkpoints:
            if checkpoints.latest() is None:
                checkpoints.save(0, trees.unflatten(taken), {})
            else:  # of a start that did not come to its first checkpoint
                wanted = _taken(run, trees.flatten(run.abstract.params))
                taken = trees.flatten(checkpoints.restore(0, trees.unflatten(wanted))[0])
                params = trees.unflatten({**trees.flatten(params), **taken})
    return params, Base(held | _freeze(run, base, taken), frozen_digest(run, base))


def again(run, workdir, known, read=None, training=False):
    """Returns the `Base` of a run that goes on, or is read.

    Args:
        run: `setup.Run`.
        workdir: its directory.
        known: digest of the base that its checkpoints were trained over; None where they were
            trained over none, before a penalty was put on.
        read: as in `load`.
        training: whether it goes on; else what penalties look at is not read.

    Raises:
        ConfigError: `config.init_from` is gone, or is another base.
    """
    if not run.refs or not (training or "base" in run.refs):
        return NONE
    if run.config.init_from:
        initial.check(run)
    base = trees.flatten(load(run, read=read))
    found = frozen_digest(run, base)
    flag = "--workdir" if read else "--config.init_from"
    if known or "base" in run.refs:
        check_digest(run.config.init_from, workdir, found, known, flag)
    held = anchors.load(run, base) if training else {}
    return Base(held | _freeze(run, base, taken_first(run, workdir)), found)


def check_digest(base, what, found, known, flag):
    """Raises ConfigError for a base that is not what something was trained over.

    Args:
        base: the directory that it was read from.
        what: what was trained.
        found, known: digests of the base, and of what it should be.
        flag: that names the directory.
    """
    if found != known:
        raise ConfigError(
            f"{flag.removeprefix('--')}={base} is not what {what} was trained over: its parameters "
            f"have the digest {found[:12]}, and those had {str(known)[:12]}.\n"
            f"  Put back what was there, or give its directory as {flag}=…"
        )


def taken_first(run, workdir):
    """Returns {path: array} of what PiSSA took out of the base at a run's first start, or {}."""
    taken = _taken(run, trees.flatten(run.abstract.params))
    if not taken:
        return {}
    with Checkpoints(pathlib.Path(workdir) / FIRST, read_only=True) as checkpoints:
        return trees.flatten(checkpoints.restore(0, trees.unflatten(taken))[0])


def _taken(run, params):
    """What PiSSA takes out of the base: {path: array} of the first A and B; else nothing."""
    if run.method.start != "pissa":
        return {}
    return {path: x for path, x in params.items() if path.endswith(("/lora/a", "/lora/b"))}


def _freeze(run, base, taken):
    """Returns {"base": what of it is not trained, as it is stored}, {} where all is."""
    if "base" not in run.refs:
        return {}
    method, c, wanted = run.method, run.model.config, run.refs["base"]

    def freeze(base, taken):
        found = finetune.freeze(method, c, base, taken, c.dtype)
        return trees.unflatten({path: found[path] for path in trees.flatten(wanted)})

    places = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    return {"base": jax.jit(freeze, out_shardings=places)(base, taken)}


def load(run, step="latest", read=None):
    """Returns the parameters of the plain model that a run starts from, on its mesh.

    Args:
        run: `setup.Run`, which `initial.check` has passed.
        step: of `config.init_from`: "latest", "best" or a number.
        read: what stands for `read_from`, such as `reader` makes.

    Returns:
        Tree of jax.Array: those of `config.init_from`, their average where that run kept one, with
        what it fine-tuned merged. What `config.init_fresh` names, or all without an init_from, is
        drawn by the run's seed.

    Raises:
        ConfigError: no checkpoint there.
    """
    place, wanted = run.config.init_from, trees.flatten(setup.plain_params(run))
    fresh = finetune.drawn(run.config.init_fresh, wanted) if place else list(wanted)
    found = {}
    if place:
        there = {path: x for path, x in wanted.items() if path not in fresh}
        found = trees.flatten((read or read_from)(pathlib.Path(place), there, step))
    if fresh:
        plain = models.make(run.model.config)

        def draw(key):  # what is not asked for is not computed
            drawn = trees.flatten(plain.init(key))
            return {path: drawn[path] for path in fresh}

        places = {path: wanted[path].sharding for path in fresh}
        found |= jax.jit(draw, out_shardings=places)(place_key(run.mesh, run.config.seed))
    return trees.unflatten({path: found[path] for path in wanted})


def read_from(place, wanted, step):
    """Reads parameters of a work directory.

    Args:
        place: the directory.
        wanted: {path: shape and sharding}; it may hold more.
        step: as in `load`.

    Returns:
        Tree of jax.Array.
    """
    config = records.load_config(place, given_by="config.init_from")
    part = "ema" if config.step.ema else "params"
    plain = config.finetune.kind == "full" and not config.finetune.freeze
    with Checkpoints(place / "checkpoints", read_only=True) as checkpoints:
        chosen = records.choose_step(checkpoints, step, place)
        if plain:
            wanted = {part: trees.unflatten(wanted)}
            return checkpoints.restore(chosen, wanted, partial=True)[0][part]
        tokenizer = tokenizers.load(place / "tokenizer")
        run = setup.assemble_program(config, tokenizer.vocab_size, jax.devices())
        tree, meta = checkpoints.restore(chosen, {part: run.abstract.params}, partial=True)
    refs = again(run._replace(tokenizer=tokenizer), place, meta.get("base")).refs
    found = trees.flatten(merged(run, finetune.join(tree[part], refs.get("base"))))
    return trees.unflatten(
        {path: jax.device_put(found[path], like.sharding) for path, like in wanted.items()}
    )


def reader():
    """Returns a `read_from` that reads each parameter of a directory once, for several runs."""
    held = {}

    def read(place, wanted, step):
        missing = {path: x for path, x in wanted.items() if (place, step, path) not in held}
        if missing:
            found = trees.flatten(read_from(place, missing, step))
            held.update({(place, step, path): x for path, x in found.items()})
        return trees.unflatten(
            {
                path: jax.device_put(held[place, step, path], x.sharding)
                for path, x in wanted.items()
            }
        )

    return read


def merged(run, params):
    """Returns the parameters of a plain model that computes what a fine-tuned one does.

    Args:
        run: `setup.Run`.
        params: all of its parameters.

    Returns:
        Tree of float32 arrays, of the base's own shapes.

    Raises:
        ConfigError: a method whose parts no weight of the base can stand for.
    """
    if run.method.rewrite is None:
        return params

    def merge(params):
        found = finetune.merge(run.method, run.model.config, trees.flatten(params))
        return trees.unflatten(found)

    places = jax.tree.map(lambda leaf: leaf.sharding, setup.plain_params(run))
    return jax.jit(merge, out_shardings=places)(params)


def frozen_digest(run, base):
    """Returns the digest of what of a base a run does not train, or of all where it trains all.

    Args:
        run: `setup.Run`.
        base: {path: array} of a plain model, heads that are trained with it or not.
    """
    if "base" not in run.refs:
        return prints.digest(base)
    return prints.digest({path: x for path, x in base.items() if path not in run.infos})
