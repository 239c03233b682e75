"""From a config to everything that a run is made of, checks first."""

import json
import pathlib
from typing import Any, NamedTuple

import jax

from jaxllm import data, finetune, models, objectives, optim, sharding, tokenizers, trees
from jaxllm.config import ConfigError, arguments, make
from jaxllm.models.families import model_config
from jaxllm.training import fits, hosts, processes, ranges, regularize
from jaxllm.training.state import born_sharded, create
from jaxllm.training.step import StepOptions, make_evaluate, make_step

PREPARE_S = 24 * 3600  # the other processes wait so long for process 0 to prepare the data

# What the compilers of a platform are told. Inside the loop of micro-batches a TPU's makes a sum
# over all of every gather, of twice the bytes and with an array of zeros to fill; so told, not.
COMPILER_OPTIONS = {"tpu": {"xla_tpu_prefer_async_allgather_to_allreduce": "true"}}

# Sections with a `kind`: (table of factories, fields of the section that are not the factory's).
KINDS = {
    "tokenizer": (tokenizers.TOKENIZERS, {}),
    "data.transforms.*": (data.TRANSFORMS, {}),
    "data.sources.*": (data.SOURCES, data.SECTION),
    "objective": (objectives.OBJECTIVES, {}),
    "optim": (optim.OPTIMIZERS, {"groups": {}, "layer_decay": 1.0}),
    "schedule": (optim.SCHEDULES, {}),
    "finetune": (finetune.METHODS, {}),
}


class Run(NamedTuple):
    """What a config describes, ready to train.

    Attributes:
        config: the ConfigDict.
        mesh: device mesh.
        model: `models.Model`, of all parameters.
        method: `finetune.Method`.
        infos: {path: ParamInfo} of those that are trained.
        abstract: TrainState of shapes and shardings.
        refs: {name: the same of a frozen tree}: "base", what is not trained, where there is such;
            those of `regularize.ANCHORS` that penalties of the parameters take.
        create: random key -> TrainState of drawn parameters, sharded from birth.
        start: params -> TrainState of step 0 with these; donates them.
        step: (state, refs, batch) -> (state, metrics); not yet compiled, donates the state.
        evaluate: (params, refs, batch) -> Loss; jitted.
        tokenizer: as `tokenizers` makes; None, as all below, where nothing is to be read.
        train, validation: sources of batches.
        notes: lines about the data.
        record: {name: text or number}, all that the order of the data depends on.
    """

    config: Any
    mesh: Any
    model: Any
    method: Any
    infos: dict
    abstract: Any
    refs: dict
    create: Any
    start: Any
    step: Any
    evaluate: Any
    tokenizer: Any = None
    train: Any = None
    validation: Any = None
    notes: Any = None
    record: Any = None


def check(config, devices):
    """Raises ConfigError for all that can be known before a device or a file is touched.

    Args:
        config: the ConfigDict.
        devices: number of devices.
    """
    c = check_program(config, devices)
    data.check(config.data)
    fits.check(config, c)


def check_program(config, devices):
    """The same, of all but the text: what is to be computed, and whether it divides.

    Returns:
        The ModelConfig, as far as it is known without a tokenizer.
    """
    ranges.check(config)
    for name, (table, others) in KINDS.items():
        if name.endswith(".*"):
            whole = name.removesuffix(".*")
            for key, section in config.data.get(whole.removeprefix("data."), {}).items():
                arguments(table, section, f"{whole}.{key}", ignore=others)
        else:
            arguments(table, config[name], name, ignore=others)
    c = model_config(config.model, vocab=1, length=config.data.length)  # tokenizer not yet known
    shape = sharding.mesh_shape(config.mesh, devices)
    method = finetune.of(config)
    finetune.check(method, c, shape)
    regularize.check(config, c, method)
    infos, _ = finetune.infos(method, c, config.init_fresh)
    _make_optimizer(config, method, c, infos)
    model = models.make(c, rewrite=method.rewrite)
    make(objectives.OBJECTIVES, config.objective, "objective", model)
    models.for_platform(c, "", config.data.length, shape["seq"])
    if config.sharding not in sharding.RULES:
        known = ", ".join(sharding.RULES)
        raise ConfigError(
            f"config.sharding={config.sharding!r} is unknown. Known: {known}.\n"
            "  Try --config.sharding=zero3."
        )
    _check_layout(config, c, shape)
    return c


def _check_layout(config, c, shape):
    """Raises ConfigError unless rows, layers, heads and widths divide over the mesh."""
    micro, field = config.step.micro_batches, "step.micro_batches"
    kind = config.objective.kind
    if kind in objectives.OF_WHOLE_BATCHES and micro > 1:
        raise ConfigError(
            f"config.step.micro_batches={micro}: with objective.kind={kind!r} every example is set "
            "against all others of its batch, and pieces of a batch see only their own: it would "
            "be another loss.\n  Try --config.step.micro_batches=1, with more devices or "
            "--config.model.remat=full for the memory."
        )
    if kind in objectives.OF_WHOLE_ROWS and shape["seq"] > 1:
        raise ConfigError(
            f"config.mesh.seq={shape['seq']} cuts rows, and objective.kind={kind!r} looks at "
            "whole ones.\n  Try --config.mesh.seq=1 and a larger --config.mesh.fsdp."
        )
    sharding.check_splits("data.batch", config.data.batch, shape, sharding.ROW_AXES, micro, field)
    sharding.check_splits("validate.batch", config.validate.batch, shape, sharding.ROW_AXES)
    halves = (2, "halves of a device's part") if shape["seq"] > 1 else (1, "")
    length = config.data.length
    if fits.lengths(config.data, length)["tokens"] == length:
        sharding.check_splits("data.length", length, shape, sharding.LENGTH_AXES, *halves)
    fits.check_lengths(config, shape)
    sharding.check_splits("model.layers", c.layers, shape, ("stage",), *_laps(c, shape))
    pieces = c.pipeline_pieces
    for name, batch in (("data", config.data.batch // micro), ("validate", config.validate.batch)):
        rows = sharding.rows_each(batch, shape)
        if shape["stage"] > 1 and pieces and rows % pieces:
            raise ConfigError(
                f"config.model.pipeline_pieces={pieces} does not divide the {rows} rows of "
                f"{name}.batch that a device has.\n  Try --config.model.pipeline_pieces=0."
            )
    if shape["stage"] > 1 and c.remat == "offload":
        raise ConfigError(
            "config.model.remat='offload' does not go with a pipeline (mesh.stage).\n"
            "  Try --config.model.remat=full."
        )
    _check_assembly(c, shape)
    if c.experts or shape["expert"] > 1:
        sharding.check_splits("model.experts", c.experts, shape, ("expert",))
    for name in ("heads", "mlp_width", *(["expert_width"] if c.experts else [])):
        sharding.check_splits(f"model.{name}", getattr(c, name), shape, ("tensor",))
    if shape["tensor"] % c.kv_heads:  # else each device has one of them
        sharding.check_splits("model.kv_heads", c.kv_heads, shape, ("tensor",))


def _check_assembly(c, shape):
    """Raises ConfigError for axes that only decoders, or plain positions, are split over."""
    why = ""
    if shape["seq"] > 1 and (c.assembly != "decoder" or c.biased):
        axis, why = "seq", "a ring of devices passes keys to tokens that look back only"
    if shape["stage"] > 1 and (c.assembly == "encoder_decoder" or c.biased):
        axis, why = "stage", "a pipeline carries neither what an encoder made nor biases of scores"
    if shape["tensor"] > 1 and c.two_streams:
        axis, why = "tensor", "the second stream would stand on other devices than the first"
    if why:
        raise ConfigError(
            f"config.mesh.{axis}={shape[axis]} does not go with model.assembly={c.assembly!r}, "
            f"position={c.position!r}: {why}.\n  Try --config.mesh.{axis}=1."
        )


def _laps(c, shape):
    """What the layers of a stage must be a multiple of, besides."""
    if shape["stage"] == 1:
        return 1, ""
    return c.pipeline_rounds * c.period, "pipeline_rounds x layers until the windows repeat"


def assemble(config, workdir, devices=None):
    """Builds a Run: checks, tokenizer, data, mesh, model, optimizer, step.

    Args:
        config: completed ConfigDict (see `settings.load`).
        workdir: the run's directory; tokenizer and token shards are put there.
        devices: devices of the mesh; None for all.

    Raises:
        ConfigError: before any array is made.
    """
    devices = jax.devices() if devices is None else devices
    check(config, len(devices))
    tokenizer = open_tokenizer(config, workdir)
    # Checked before the text is tokenized, which may take hours.
    c = model_config(config.model, vocab=tokenizer.vocab_size, length=config.data.length)
    train, validation, notes = open_data(config, tokenizer, workdir)
    fits.check_classes(c, train)
    run = assemble_program(config, tokenizer.vocab_size, devices)
    record = data.record(train, config.data, config.seed)
    processes.check_same("order of the data", json.dumps(record))
    processes.check_same("skip list", getattr(train, "digest", ""))
    found = dict(tokenizer=tokenizer, train=train, validation=validation)
    return run._replace(**found, notes=notes, record=record)


def assemble_program(config, vocab, devices):
    """Builds a Run that has no tokenizer and no data: mesh, model, optimizer, step.

    Args:
        config: completed ConfigDict that `check` has passed.
        vocab: size of the tokenizer's vocabulary.
        devices: devices of the mesh; those of an abstract topology will do to compile for.

    Raises:
        ConfigError: a model that contradicts the vocabulary.
    """
    c = model_config(config.model, vocab=vocab, length=config.data.length)
    mesh = sharding.make_mesh(sharding.mesh_shape(config.mesh, len(devices)), devices)
    platform = mesh.devices.flat[0].platform
    c = fits.for_rows(config, c)
    c = models.for_platform(c, platform, config.data.length, mesh.shape["seq"])
    method = finetune.of(config)
    shard, rules = sharding.make_shard(mesh), sharding.RULES[config.sharding]
    model = models.make(c, shard, rewrite=method.rewrite)
    specs = sharding.param_specs(model.infos, rules.params, mesh)
    gather = sharding.make_gather(model.infos, specs, mesh)
    by_rows = models.make(c, shard, gather, method.rewrite)
    loss = make(objectives.OBJECTIVES, config.objective, "objective", by_rows)
    infos, frozen = finetune.infos(method, c, config.init_fresh)
    schedule, tx = _make_optimizer(config, method, c, infos)
    scaled = c.dtype == "float16"
    own_specs = {path: specs[path] for path in infos}
    refs_specs = {"base": {path: specs[path] for path in frozen}} if frozen else {}

    def drawn(key):
        found = trees.flatten(model.init(key))
        return trees.unflatten({path: found[path] for path in infos})

    def new_state(key):
        return create(drawn, tx, key, ema=bool(config.step.ema), scaled=scaled)

    abstract, make_state = born_sharded(new_state, tx, infos, rules, mesh)
    held = regularize.read(config)
    drops = c.dropout > 0 or method.dropout or held.draws
    options = StepOptions(**config.step.to_dict(), seed=config.seed + 1, dropout=drops)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    loss = over_base(loss)
    in_training, more = regularize.of_step(held, loss, c.width)
    step = make_step(in_training, tx, schedule, options, mesh, own_specs, refs_specs, **more)
    told = COMPILER_OPTIONS.get(platform)
    trees_of = {"base": frozen} if frozen else {}
    trees_of |= regularize.anchored(held, infos, config.init_fresh)
    refs = {name: abstract_params(found, rules, mesh) for name, found in trees_of.items()}

    def from_params(params):
        return create(lambda _: params, tx, None, ema=bool(config.step.ema), scaled=scaled)

    start = jax.jit(from_params, donate_argnums=0, out_shardings=places)
    step = jax.jit(step, donate_argnums=0, out_shardings=(places, None), compiler_options=told)
    evaluate = jax.jit(make_evaluate(loss, mesh, own_specs, refs_specs))
    parts = (model, method, infos, abstract, refs, make_state, start, step, evaluate)
    return Run(config, mesh, *parts)


def over_base(loss):
    """Returns a loss of what is trained, from one of all parameters: the rest is refs["base"]."""

    def of_trained(params, refs, batch, key=None):
        return loss(finetune.join(params, refs.get("base")), refs, batch, key)

    return of_trained


def abstract_params(infos, rules, mesh):
    """Returns the tree of shapes and shardings of {path: ParamInfo}."""
    places = sharding.param_shardings(infos, rules.params, mesh)
    return trees.unflatten(
        {
            path: jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=places[path])
            for path, info in infos.items()
        }
    )


def plain_params(run):
    """Returns the tree of shapes and shardings of the run's model without any fine-tuning."""
    infos = models.abstract_params(run.model.config)
    return abstract_params(infos, sharding.RULES[run.config.sharding], run.mesh)


def _make_optimizer(config, method, c, infos):
    """Returns (schedule, optimizer) of what is trained."""
    schedule = optim.make_schedule(config.schedule, config.steps)
    told = dict(factors=method.lr_scales, depths=models.below_output(c, infos))
    return schedule, optim.make_optimizer(config.optim, schedule, infos, **told)


def open_tokenizer(config, workdir):
    """Loads the run's tokenizer, or makes and stores it; process 0 does the making."""
    place = pathlib.Path(workdir) / "tokenizer"

    def write():
        if not place.exists():
            tokenizers.save(place, tokenizers.make(config.tokenizer, data.texts(config.data)))

    hosts.share("tokenizer", write, PREPARE_S)
    tokenizer = tokenizers.load(place)
    asked = config.tokenizer.kind
    if asked not in (tokenizer.kind, "saved"):
        raise ConfigError(
            f"config.tokenizer.kind={asked!r}, but {place} holds a {tokenizer.kind!r} tokenizer.\n"
            "  Try another --workdir."
        )
    processes.check_same("tokenizer", tokenizer.fingerprint)
    return tokenizer


def open_data(config, tokenizer, workdir):
    """Writes token shards where they are missing, process 0 first, and opens them.

    Returns:
        (train source, validation source, lines about the data: how often the run walks each source,
        what bad input was skipped).
    """
    place = pathlib.Path(workdir) / "data"

    vocab, lead = model_vocab(config, tokenizer), finetune.of(config).lead

    def prepare():
        return data.prepare(config.data, tokenizer, place, lead=lead)

    if hosts.count() > 1:  # on a shared disk the others then find what process 0 wrote
        hosts.share("token shards", lambda: bool(prepare()), PREPARE_S)
    manifests = prepare()
    options = dict(vocab=vocab, lead=lead)
    train, validation = (
        data.open_split(config.data, tokenizer, place, split, config.seed, steps=steps, **options)
        for split, steps in (("train", config.steps), ("validation", 0))
    )
    notes = data.describe(train, config.steps)
    notes += [
        f"data {name}: skipped " + ", ".join(f"{n:,} x {why}" for why, n in counts.items())
        for name, counts in ((name, m["skipped"]) for name, m in manifests.items())
        if counts
    ]
    return train, validation, notes


def model_vocab(config, tokenizer):
    """Returns how many ids the model of a config has with a tokenizer: as many, or more."""
    return model_config(config.model, vocab=tokenizer.vocab_size, length=config.data.length).vocab


def vocabulary(config):
    """The size of a config's vocabulary, without reading its text.

    Raises:
        ConfigError: only the text tells.
    """
    own = model_config(config.model, vocab=1, length=config.data.length).vocab
    if own > 1:
        return own
    section = config.tokenizer
    if section.kind in ("byte", "saved") or section.get("path"):
        return tokenizers.make(section, ()).vocab_size
    if section.kind in ("sentencepiece", "hf"):
        return section.vocab_size
    raise ConfigError(
        f"config.model.vocab is not set, and with tokenizer.kind={section.kind!r} only the text "
        "tells it.\n  Try --config.model.vocab=128."
    )


def abstract_batch(run, batch):
    """Shapes and shardings of a batch of `batch` rows."""
    place = sharding.batch_sharding(run.mesh)
    rows = data.empty(run.config.data, 1) if run.train is None else run.train.empty(1)
    return {
        name: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype, sharding=place)
        for name, x in rows.items()
    }
