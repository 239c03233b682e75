"""Brings other people's weights in and takes ours out; averages checkpoints.

    python -m jaxllm.convert import --from=DIR --to=WORKDIR [--config.mesh.fsdp=8 …]
    python -m jaxllm.convert export --from=WORKDIR --to=DIR [--step=best] [--dtype=bfloat16]
    python -m jaxllm.convert average --from=RUN --steps=100,200,300 --to=WORKDIR
    python -m jaxllm.convert average --from=RUN1,RUN2,… [--greedy --by=validation] --to=WORKDIR
    python -m jaxllm.convert export --adapter --from=RUN --to=DIR
    python -m jaxllm.convert import --adapter=DIR --base=WORKDIR --to=RUN
    python -m jaxllm.convert merge --from=RUN --to=WORKDIR

DIR is a Hugging Face folder (config.json, safetensors, tokenizer), or a GGUF file (NAME.gguf; to
write one, --dtype may also be q8_0, q4_0, …: models.weights.gguf_write). Import writes a work
directory that jaxllm.sample and jaxllm.evaluate open and that a new run starts from
(--config.init_from). Export writes the same bytes for each tensor, where nothing was trained since.
After both, outputs on fixed tokens are compared with those of transformers (pip install -r
requirements-hf.txt) and the result is written into certificate.json; one that fails stops the
command, unless --allow_uncertified. --reference=certificate.json stands for transformers on a
machine without it.

With --adapter only what a fine-tuned run trained goes out, as Hugging Face PEFT's folder
(adapter_config.json, adapter_model.safetensors), and comes in as a run over a base. A file of ours
says of which base it is, and another one is refused; data and optimizer are those of --config=FILE,
or the base's. Merge writes a plain model that computes the
same.

Exit status: 0 done; 2 wrong input, or a certificate that failed.
"""

import collections
import pathlib

import jax
from absl import flags

from jaxllm import cli
from jaxllm.config import ConfigError
from jaxllm.models.weights import certify, gguf, gguf_write, safetensors
from jaxllm.training import adapters, average, imported, records

COMMANDS = ("import", "export", "average", "merge")
# Beside the package, wherever that is installed.
BASE_CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "base.py"


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("from", "", "what is read")
    flags.DEFINE_string("to", None, "what is written", required=True)
    adapter = flags.Flag(
        flags.ArgumentParser(), flags.ArgumentSerializer(), "adapter", "",
        "import: the folder of an adapter; export: with no value, the adapter alone",
    )  # fmt: skip
    adapter.boolean = True  # the value may be left out, and is "true" then
    flags.DEFINE_flag(adapter)
    flags.DEFINE_string("base", "", "import --adapter: work directory of the model it is for")
    flags.DEFINE_string("tokenizer", "", "import: byte, or a directory with one; else the folder's")
    flags.DEFINE_string("step", "latest", "export, merge: latest, best (by validation) or a number")
    flags.DEFINE_string(
        "dtype", "", "export: float32, bfloat16, float16; else as they came; GGUF: also q8_0 …"
    )
    flags.DEFINE_float("shard_gb", 5.0, "export: most GB in a file", lower_bound=1e-6)
    flags.DEFINE_string("reference", "", "certificate.json of the same weights to compare with")
    flags.DEFINE_bool("allow_uncertified", False, "go on where the certificate fails")
    flags.DEFINE_list("steps", [], "average: checkpoints of one run")
    flags.DEFINE_bool("greedy", False, "average: keep only models that make it no worse")
    flags.DEFINE_string("by", "validation", "average: what --greedy goes by")


def main(command, file, overrides):
    """Runs one of the commands."""
    f = flags.FLAGS
    source, to = f["from"].value, pathlib.Path(f.to)
    if command == "import" and (f.adapter or f.base):
        return _import_adapter(source, to, file, overrides)
    if not source:
        raise ConfigError(f"{command} needs --from=…, what is read.")
    if f.adapter and command == "export":
        return _export_adapter(source, to, file, overrides)
    if f.adapter or f.base:
        raise ConfigError(f"--adapter and --base are not for {command}. Leave them out.")
    commands = {"import": _import, "export": _export, "average": _average, "merge": _merge}
    return commands[command](source, to, file, overrides)


def _import_adapter(source, workdir, file, overrides):
    f = flags.FLAGS
    folder = source if f.adapter in ("", "true") else f.adapter
    if not folder or not f.base:
        raise ConfigError("An adapter comes in with --adapter=DIR --base=WORKDIR.")
    imported.refuse_used(workdir)
    if file:
        config, _ = cli.load_config(file, overrides)
    else:
        config = records.load_config(f.base, overrides, "--base")
    cli.start(config)
    for note in adapters.bring_in(folder, f.base, workdir, config):
        print(f"note: {note}")
    trained = imported.open_run(workdir)
    certificate = adapters.certificate_of(workdir, trained, folder, f.reference)
    _stop_unless_certified(certificate, workdir / imported.CERTIFICATE)
    count = sum(x.size for x in jax.tree.leaves(trained.own))
    method = ", ".join(f"{k}={v}" for k, v in config.finetune.to_dict().items())
    print(f"{workdir}: {count:,} parameters of {folder} over {f.base}; finetune: {method}")
    return 0


def _open_own(source, file, overrides):
    """Opens a run by its own config, at --step."""
    if file:
        raise ConfigError("The run's own config is used. Leave --config out.")
    cli.start(imported.load_config(source, overrides))
    return imported.open_run(source, overrides, flags.FLAGS.step)


def _export_adapter(source, folder, file, overrides):
    trained = _open_own(source, file, overrides)
    for note in adapters.export(source, trained, folder):
        print(f"note: {note}")
    certificate = adapters.certificate_of(source, trained, folder, flags.FLAGS.reference)
    _stop_unless_certified(certificate, folder / imported.CERTIFICATE)
    print(f"{folder}: {trained.run.method.kind} of step {trained.step} of {source}")
    return 0


def _merge(source, workdir, file, overrides):
    imported.refuse_used(workdir)
    trained = _open_own(source, file, overrides)
    adapters.merge(source, trained, workdir)
    print(f"{workdir}: {trained.run.method.kind} of step {trained.step} of {source}, merged")
    print(f"Now: python -m jaxllm.sample --workdir={workdir} --prompt=…")
    return 0


def _import(source, workdir, file, overrides):
    imported.refuse_used(workdir)
    view = imported.open_view(source)
    tokenizer = imported.tokenizer_of(view, flags.FLAGS.tokenizer)
    config, _ = cli.load_config(file or str(BASE_CONFIG), overrides)
    cli.start(config)
    imported.complete(config, view, tokenizer)
    run, params = imported.read(config, view, tokenizer)
    certificate = imported.certificate_of(view, run, params, flags.FLAGS.reference)
    workdir.mkdir(parents=True, exist_ok=True)
    _stop_unless_certified(certificate, workdir / imported.CERTIFICATE)
    imported.write(workdir, run, params, view, tokenizer, certificate)
    count = sum(x.size for x in jax.tree.leaves(params))
    print(f"{workdir}: {run.config.model.family}, {count:,} parameters, from {source}")
    if run.config.model.assembly == "encoder":
        print(f"Now: python -m jaxllm.train --config.init_from={workdir} …")
    else:
        print(f"Now: python -m jaxllm.sample --workdir={workdir} --prompt=…")
    return 0


def _export(source, folder, file, overrides):
    f, trained = flags.FLAGS, _open_own(source, file, overrides)
    if folder.suffix == imported.GGUF:
        return _export_gguf(source, trained, folder)
    view, notes = imported.view_of(source, trained, f.dtype)
    safetensors.write_folder(view, folder, shard_bytes=int(f.shard_gb * 1e9))
    # What was written is read again, so that the certificate is of the files.
    written = imported.open_view(folder)
    config = imported.as_plain(trained.run.config)
    run, params = imported.read(config, written, trained.run.tokenizer)
    certificate = imported.certificate_of(written, run, params, f.reference)
    _stop_unless_certified(certificate, folder / imported.CERTIFICATE)
    for note in notes:
        print(f"note: {note}")
    print(f"{folder}: {len(view.tensors):,} tensors of step {trained.step} of {source}")
    return 0


def _export_gguf(source, trained, path):
    """Writes a GGUF file; its certificate, of what the file holds, stands beside it."""
    kind = gguf_write.KIND_OF_DTYPE.get(flags.FLAGS.dtype, flags.FLAGS.dtype)
    view, notes = imported.view_of(source, trained, "")
    kinds = gguf.write_gguf(view, path, kind or "f32")
    written, config = imported.open_view(path), imported.as_plain(trained.run.config)
    run, params = imported.read(config, written, trained.run.tokenizer)
    certificate = imported.certificate_of(written, run, params, flags.FLAGS.reference)
    _stop_unless_certified(certificate, path.with_suffix(".certificate.json"))
    for note in notes:
        print(f"note: {note}")
    counts = collections.Counter(kinds.values())
    print(f"{path}: " + ", ".join(f"{n} tensors {kind}" for kind, n in counts.items()))
    return 0


def _stop_unless_certified(certificate, path):
    """Writes and tells a certificate.

    Raises:
        ConfigError: it failed, and that is not allowed.
    """
    certify.write(certificate, path)
    words = certify.words(certificate)
    if certificate["status"] == "failed" and not flags.FLAGS.allow_uncertified:
        raise ConfigError(
            f"{words}.\n  {path} has the numbers. The model here is not theirs; to go on all the "
            "same, try --allow_uncertified."
        )
    print(words)


def _average(source, workdir, file, overrides):
    if file:
        raise ConfigError("The first run's own config is used. Leave --config out.")
    f = flags.FLAGS
    imported.refuse_used(workdir)
    if f.by != "validation":
        raise ConfigError(f"--by={f.by!r} is unknown. Known: validation.")
    runs = [run for run in source.split(",") if run]
    if f.steps and len(runs) > 1:
        raise ConfigError("--steps are of one run; --from names several. Give one of the two.")
    parts = [(runs[0], step) for step in f.steps] or [(run, "latest") for run in runs]
    cli.start(imported.load_config(parts[0][0], overrides))
    found = average.soup(parts, overrides, greedy=f.greedy)
    workdir.mkdir(parents=True, exist_ok=True)
    average.write(workdir, found)
    for line in found.lines:
        print(line)
    print(f"{workdir}: the average of {len(found.kept)} of {len(parts)} models")
    return 0


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main, COMMANDS)
