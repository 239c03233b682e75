"""The page at the start of a run: what actually runs."""

import math
import time

import jax

from jaxllm import models, sharding, trees
from jaxllm.models import moe, pipeline
from jaxllm.scaling import flops


def page(run, compiled, notes, resumed, peak, peak_how, started):
    """Returns the page as text.

    Args:
        run: `setup.Run`.
        compiled: the compiled step.
        notes: further lines: what was dropped, skipped or put aside.
        resumed: step the run goes on from, or None.
        peak: FLOP/s of all devices, or None; `peak_how` says where the number is from.
        started: time.perf_counter() at the start of the command.
    """
    c, config = run.model.config, run.config
    kind = jax.devices()[0].device_kind
    train = flops.of_run(config, c)
    lines = [
        ("devices", f"{run.mesh.size} x {kind}, {jax.process_count()} process(es)"),
        ("mesh", f"{sharding.words(run.mesh.shape)}, {config.sharding}"),
        ("model", f"{config.model.family} {config.model.size}".strip() + f", {_words(c)}"),
        ("parameters", _parameter_words(run)),
        ("attention", c.attention + _ring_words(run)),
        *([("experts", _expert_words(run))] if c.experts else []),
        ("remat", c.remat),
        ("layers", _layer_words(run)),
        ("dtypes", f"parameters float32, computation {c.dtype}"),
        ("optimizer", f"{config.optim.kind}, schedule {config.schedule.kind}"),
        ("batch", _batch_words(config)),
        ("data", f"{run.train.tokens:,} train, {run.validation.tokens:,} validation tokens"),
        ("rows", f"{config.data.rows}, {run.train.efficiency:.1%} full"),
        ("tokenizer", f"{run.tokenizer.kind}, vocabulary {run.tokenizer.vocab_size:,}"),
        ("memory", _memory_words(run, compiled)),
        ("FLOPs a token", f"{train:,.0f} (forward and backward, full attention)"),
        ("peak", f"{peak:.3g} FLOP/s, {peak_how}" if peak else f"unknown ({peak_how}): no MFU"),
        (
            "steps",
            f"{config.steps:,}" + (f", resumed from {resumed:,}" if resumed is not None else ""),
        ),
        ("ready after", f"{time.perf_counter() - started:.1f} s"),
    ]
    rules = sharding.RULES[config.sharding]
    for note in sharding.unsplit(run.infos, rules.params, run.mesh)[:8]:
        lines.append(("not split", note))
    lines += [("note", note) for note in [*run.notes, *notes]]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in lines)


def _words(c):
    heads = f"{c.heads} heads" + (f" over {c.kv_heads}" if c.kv_heads != c.heads else "")
    return f"{c.layers} layers x {c.width}, {heads}, MLP {c.mlp_width}, {c.positions} positions"


def _ring_words(run):
    devices = run.mesh.shape["seq"]
    return f" in a ring of {devices} devices" if devices > 1 else ""


def _expert_words(run):
    c = run.model.config
    words = f"{c.experts_per_token} of {c.experts}, {c.expert_width} wide"
    words += f", and {c.shared_experts} for all tokens" if c.shared_experts else ""
    words += f", in every {c.moe_every}. layer" if c.moe_every > 1 else ""
    if not c.capacity:
        return words + "; no token is dropped"
    parts = run.mesh.shape["seq"]
    tokens = run.config.data.length // parts
    of = "a row" if parts == 1 else f"each of {parts} parts of a row"
    return words + f"; {moe.capacity(c, tokens)} places each for the {tokens} tokens of {of}"


def _layer_words(run):
    c, stages = run.model.config, run.mesh.shape["stage"]
    here = c.layers // stages // c.pipeline_rounds
    words = "unrolled" if c.unroll >= here else f"scanned, {c.unroll} at a time"
    if stages == 1:
        return words
    rows = sharding.rows_each(run.config.data.batch, run.mesh.shape)
    rows //= run.config.step.micro_batches
    pieces = c.pipeline_pieces or rows
    idle = pipeline.bubble(stages, pieces, c.pipeline_rounds)
    return (
        f"{words}; a pipeline of {stages} stages x {c.pipeline_rounds} chunks of {here}, "
        f"{stages * pieces} pieces of {rows // pieces} row(s): {idle:.1%} of it is bubble"
    )


def _parameter_words(run):
    """How many there are, and how many of them are trained, over what."""
    trained = sum(math.prod(info.shape) for info in run.infos.values())
    if not run.refs:
        return f"{trained:,}"
    plain = models.abstract_params(run.model.config)
    whole = sum(math.prod(info.shape) for info in plain.values())
    held = trees.size_bytes(run.refs) / 1e6
    base = f"from {run.config.init_from}" if run.config.init_from else "drawn at random"
    return (
        f"{trained:,} trained ({run.config.finetune.kind}); a base of {whole:,} {base}, of which "
        f"{held:,.1f} MB are frozen"
    )


def _batch_words(config):
    micro = config.step.micro_batches
    cut = f" in {micro} pieces" if micro > 1 else ""
    tokens = config.data.batch * config.data.length
    return f"{config.data.batch} rows x {config.data.length} tokens = {tokens:,}{cut}"


def _memory_words(run, compiled):
    """Bytes a device: state, and what the compiled step needs besides."""
    per_device = 0
    for leaf in jax.tree.leaves(run.abstract):
        shard = leaf.sharding.shard_shape(leaf.shape)
        per_device += trees.size_bytes(jax.ShapeDtypeStruct(shard, leaf.dtype))
    memory = compiled.memory_analysis()
    words = f"{per_device / 1e6:,.1f} MB of state a device"
    if memory is not None:
        words += f", {memory.temp_size_in_bytes / 1e6:,.1f} MB of temporaries"
    return words
