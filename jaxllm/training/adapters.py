"""Adapters as files of Hugging Face PEFT's format, and runs that come of them.

folder/adapter_config.json         PEFT's fields
folder/adapter_model.safetensors   its tensors; the metadata has the digest of the base
"""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxllm import finetune, models, sharding, tokenizers, trees
from jaxllm.config import ConfigError, filled
from jaxllm.finetune import peft_file, peft_names, peft_read, peft_write
from jaxllm.models.families import hf, hf_write, model_config
from jaxllm.models.weights import certify, load, safetensors
from jaxllm.models.weights.tensors import WeightsError
from jaxllm.training import base, imported, initial, records, setup
from jaxllm.training.checkpoint import Checkpoints
from jaxllm.training.state import place_key

# The end of the name of transformers' class for what PEFT calls a task, of encoders.
_CLASSES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}


def export(workdir, trained, folder):
    """Writes what a run trained, alone, as PEFT reads it.

    Args:
        workdir: the run's directory.
        trained: `reopen.Trained` of it.
        folder: where to; made if absent, it must hold no adapter.

    Returns:
        Lines about what is not as PEFT would have it.

    Raises:
        ConfigError: no adapter, one that PEFT's modules cannot compute, or a folder in use.
    """
    folder, run = pathlib.Path(folder), trained.run
    for name in (peft_names.CONFIG, peft_names.WEIGHTS):
        if (folder / name).exists():
            raise ConfigError(f"--to={folder} holds {name} already. Give another folder.")
    own, whole = (trees.flatten(tree) for tree in (trained.own, trained.params))
    section, c = run.config.finetune.to_dict(), run.model.config
    written = peft_write.write(
        run.method,
        section,
        c,
        run.config.model.family,
        jax.device_get(own),
        lambda path: np.asarray(whole[path], np.float32),
        jax.device_get(base.taken_first(run, workdir)),
    )
    fresh = sorted(own.keys() & models.abstract_params(c).keys())
    metadata = {peft_names.DIGEST: trained.digest, peft_names.FRESH: ",".join(fresh)}
    config = {**written.config, "base_model_name_or_path": _name_of(run.config.init_from)}
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write_file(written.tensors, folder / peft_names.WEIGHTS, metadata)
    (folder / peft_names.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    return _notes(run.method, config)


def _notes(method, config):
    notes = []
    if config["peft_type"] == peft_names.OWN_TYPE:
        notes.append("PEFT has no such adapter: this format is jaxllm's own")
    if config.get("rank_pattern"):
        notes.append("several projections are one matrix there: its rank is that of all together")
    if few := method.few_bits:
        notes.append(
            f"it was trained over weights in {few}, and computes a little else over others"
        )
    return notes


def _name_of(workdir):
    """What a base is called: as it was imported, or its directory."""
    path = pathlib.Path(workdir) / imported.RECORD
    return json.loads(path.read_text())["origin"] if path.is_file() else str(workdir)


def bring_in(folder, base_dir, workdir, config):
    """Writes a run over a base whose trained parameters are those of an adapter in a folder.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        base_dir: work directory of the base.
        workdir: directory of the run; it must hold none.
        config: ConfigDict of the run, whose model and what depends on it become the base's.

    Returns:
        lines to print.

    Raises:
        ConfigError: files that are not an adapter of this base.
    """
    workdir, base_dir = pathlib.Path(workdir), pathlib.Path(base_dir).expanduser().absolute()
    adapter = peft_file.open_adapter(folder)
    tokenizer = tokenizers.load(base_dir / "tokenizer")
    notes = _complete(config, adapter, base_dir, tokenizer)
    setup.check_program(config, jax.device_count())
    run = setup.assemble_program(config, tokenizer.vocab_size, jax.devices())
    run = run._replace(tokenizer=tokenizer)
    notes += initial.check(run)
    c, family, section = run.model.config, config.model.family, config.finetune.to_dict()
    held = trees.flatten(base.load(run))
    digest = base.frozen_digest(run, held)
    if adapter.digest:
        base.check_digest(base_dir, adapter.origin, digest, adapter.digest, "--base")
    else:
        notes.append("the file does not say of which base it is: nothing but shapes was compared")

    def begin(held, key):
        drawn = trees.flatten(run.model.init(key))
        found = held | finetune.begin(run.method, c, held, drawn)
        return {path: found[path] for path in run.infos}

    first = jax.device_get(jax.jit(begin)(held, place_key(run.mesh, config.seed)))
    fresh = run.infos.keys() & models.abstract_params(c).keys()
    own = peft_read.fill(adapter, section, c, family, first, fresh)
    places = {path: x.sharding for path, x in trees.flatten(run.abstract.params).items()}
    own = trees.unflatten({path: jax.device_put(x, places[path]) for path, x in own.items()})
    imported.refuse_used(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    shutil.copytree(base_dir / "tokenizer", workdir / "tokenizer", dirs_exist_ok=True)
    meta = {"tokenizer": tokenizer.fingerprint, "base": digest, "imported": adapter.origin}
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(0, run.start(own), meta)
    (workdir / "config.json").write_text(records.config_json(config))
    return notes


def certificate_of(workdir, trained, folder, reference=""):
    """Compares a run with the adapter in a folder, over the same base in PEFT, in float32.

    Args:
        workdir: the run's directory.
        trained: `reopen.Trained` of it.
        folder: with adapter_config.json and adapter_model.safetensors.
        reference: as `certify.certify` has it.

    Returns:
        The certificate.
    """
    run = trained.run
    if run.method.kind == "adapter":
        return {"status": "not certified", "why": "PEFT has no such adapter"}
    # A file goes over any base of these weights, so neither few bits nor the dtype of training.
    whole = [part for part in run.method.parts if not isinstance(part, finetune.parts.Quantize)]
    method = dataclasses.replace(run.method, parts=tuple(whole))
    c = dataclasses.replace(run.model.config, dtype="float32", attention="reference")
    plain = trees.flatten(base.load(run))

    def freeze(plain, taken):
        return finetune.freeze(method, c, plain, taken, c.dtype)

    frozen = jax.jit(freeze)(plain, base.taken_first(run, workdir))
    params = trees.unflatten({**frozen, **trees.flatten(trained.own)})
    model = models.make(c, sharding.make_shard(run.mesh), rewrite=method.rewrite)
    view = load.export(plain, c, run.config.model.family)
    return certify.certify(view, model, params, reference, adapter=str(folder))


def _complete(config, adapter, base_dir, tokenizer):
    """Makes a config that of a run over a base with an adapter; returns lines to print."""
    theirs = records.load_config(base_dir, given_by="--base").model
    with config.unlocked():
        config.model = ConfigDict(theirs.to_dict())
        config.init_from, config.init_fresh = str(base_dir), ""
        config.tokenizer = dict(kind="saved", path=str(base_dir))
        config.step.ema = 0.0  # what is written has no average beside it
        notes = _give_head(config, adapter, tokenizer)
        c = model_config(config.model, vocab=tokenizer.vocab_size, length=config.data.length)
        config.data.length = min(config.data.length, c.positions)
        family = config.model.family
        fresh = peft_read.head_paths(adapter, c, family)
        if fresh:
            config.init_fresh = "|".join(f"{path}$" for path in sorted(fresh))
        section = peft_read.section_of(adapter, c, family)
        config.finetune = filled(finetune.METHODS, section)
    return notes


def _give_head(config, adapter, tokenizer):
    """Gives the base's encoder the head that an adapter brings, where it has another."""
    task, count = adapter.config.get("task_type"), peft_read.classes(adapter)
    if count is None or task not in _CLASSES:
        return []
    c = model_config(config.model, vocab=tokenizer.vocab_size, length=config.data.length)
    if c.assembly != "encoder":
        raise WeightsError(
            f"{adapter.origin}: task_type={task!r} needs a head that model.assembly={c.assembly!r} "
            "has not here."
        )
    fields = hf_write.to_hf(c, config.model.family)
    end = next(end for end in ("ForMaskedLM", "Model", *_CLASSES.values())
               if fields["architectures"][0].endswith(end))  # fmt: skip
    fields["architectures"] = [fields["architectures"][0].removesuffix(end) + _CLASSES[task]]
    fields["id2label"] = {str(i): f"LABEL_{i}" for i in range(count)}
    values, _ = hf.from_hf(fields)
    names = ("task", "labels", "pool", "pool_layer", "lm_head", "head_transform", "head_bias")
    changed = [n for n in names if n in values and values[n] != getattr(c, n)]
    for name in changed:
        config.model[name] = values[name]
    return [f"model.{n}={values[n]!r}, as the adapter has a head for it" for n in changed]


def merge(workdir, trained, to):
    """Writes a work directory of the plain model that computes what a fine-tuned one does.

    What the base was imported with is kept, so that `convert export` writes the files as they came.

    Args:
        workdir: directory of the fine-tuned run.
        trained: `reopen.Trained` of it.
        to: where to; it must hold no run.

    Raises:
        ConfigError: nothing to merge, or a method that no weight of the base can stand for.
    """
    workdir, to, run = pathlib.Path(workdir), pathlib.Path(to), trained.run
    imported.refuse_used(to)
    if run.method.rewrite is None:
        raise ConfigError(f"--from={workdir} has no adapter: all of it is one plain model already.")
    params = base.merged(run, trained.params)
    source = _imported_from(run)
    to.mkdir(parents=True, exist_ok=True)
    shutil.copytree(workdir / "tokenizer", to / "tokenizer", dirs_exist_ok=True)
    if source:
        imported.copy_record(source, to)
    imported.as_plain(run.config)
    meta = {"merged": [str(workdir), trained.step]}
    imported.save(to, run, params, run.tokenizer, meta)


def _imported_from(run):
    """Directory of the import that a run's base goes back to, None if it is another model."""
    place = run.config.init_from
    while place and not (pathlib.Path(place) / imported.RECORD).is_file():
        place = records.load_config(place, given_by="config.init_from").init_from
    if not place:
        return None
    record = json.loads((pathlib.Path(place) / imported.RECORD).read_text())
    return None if imported.changes(run, record) else pathlib.Path(place)
