"""Other people's weights as a work directory, and a work directory as their files again.

workdir/config.json, tokenizer/, checkpoints/step_00000000   as of a run; parameters alone
workdir/hf.json        their config, dtype of each tensor, SHA-256 of the files in hf/
workdir/hf/            their files besides the weights, written back at export
workdir/certificate.json
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import tempfile

import jax
import numpy as np

from jaxllm import finetune, models, sharding, tokenizers, trees
from jaxllm.config import ConfigError, filled
from jaxllm.models.config import FIELDS, HOW, differences
from jaxllm.models.families import hf, model_config
from jaxllm.models.weights import certify, gguf, load, safetensors
from jaxllm.tokenizers import chat
from jaxllm.tokenizers.folder import from_folder
from jaxllm.training import base, records, reopen, setup
from jaxllm.training.checkpoint import Checkpoints

RECORD, FILES, CERTIFICATE = "hf.json", "hf", "certificate.json"
GGUF = ".gguf"
DTYPES = ("float32", "bfloat16", "float16")


def open_view(path):
    """Opens other people's weights, by what the path is.

    Raises:
        WeightsError: nothing there that can be read.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        return safetensors.open_folder(path)
    if path.suffix in safetensors.PICKLES:
        safetensors.refuse_pickle(path)
    if path.suffix == GGUF and path.is_file():
        return gguf.open_gguf(path)
    raise load.WeightsError(
        f"--from={path} is neither a folder of Hugging Face's (config.json and safetensors) nor a "
        f"{GGUF} file."
    )


def tokenizer_of(view, asked=""):
    """Returns the tokenizer of a View.

    Args:
        view: `View`.
        asked: another one: "byte", or a directory with a tokenizer; "" for the View's own.

    Raises:
        ConfigError, TokenizerError: there is none, or it is damaged.
    """
    if asked == "byte":
        return tokenizers.make(dict(kind="byte"), lambda: iter(()))
    if asked:
        place = pathlib.Path(asked).expanduser()
        paths = [place / name for name in safetensors.BESIDE]
        return from_folder({path.name: path.read_bytes() for path in paths if path.is_file()})
    try:
        return from_folder(view.files)
    except tokenizers.TokenizerError as error:
        raise ConfigError(
            f"{view.origin}: {error}\n  Try --tokenizer=DIR with the tokenizer's files, or "
            "--tokenizer=byte."
        ) from None


def complete(config, view, tokenizer):
    """Sets `config.model` and what depends on it to what a View describes.

    Args:
        config: completed ConfigDict, which is changed.
        view: `View`.
        tokenizer: its tokenizer.

    Returns:
        The model's family.

    Raises:
        ConfigError: a config that has no counterpart here.
    """
    values = load.read_config(view, vocab=tokenizer.vocab_size)
    c = model_config(values, vocab=tokenizer.vocab_size, length=1)
    with config.unlocked():
        config.model.update(family=values["family"], size="")
        for name, default in FIELDS.items():
            if name not in HOW:
                config.model[name] = type(default)(getattr(c, name))
        config.tokenizer = dict(kind="saved", path="")
    config.data.length = min(config.data.length, c.positions)
    return values["family"]


def read(config, view, tokenizer):
    """Reads the parameters of a View onto the mesh of a config that `complete` has changed.

    Returns:
        (`setup.Run` without data, tree of jax.Array).

    Raises:
        ConfigError: tensors that are not those of the model, or a config that cannot work.
    """
    setup.check_program(config, jax.device_count())
    run = setup.assemble_program(config, tokenizer.vocab_size, jax.devices())
    places = {path: leaf.sharding for path, leaf in trees.flatten(run.abstract.params).items()}
    return run, load.load(view, run.model.config, config.model.family, places)


def certificate_of(view, run, params, reference=""):
    """Returns the certificate of a View and the parameters read from it, in float32."""
    exact = dataclasses.replace(run.model.config, dtype="float32", attention="reference")
    model = models.make(exact, sharding.make_shard(run.mesh))
    return certify.certify(view, model, params, reference)


def write(workdir, run, params, view, tokenizer, certificate):
    """Writes a work directory that sampling, evaluation and new runs can open.

    Args:
        workdir: directory without a run.
        run, params: what `read` returned.
        view: `View`.
        tokenizer: its tokenizer.
        certificate: what `certificate_of` returned.
    """
    workdir = pathlib.Path(workdir)
    refuse_used(workdir)
    tokenizer.template = chat.of_files(view.files) or tokenizer.template
    tokenizers.save(workdir / "tokenizer", tokenizer)
    (workdir / FILES).mkdir(parents=True)
    for name, content in view.files.items():
        (workdir / FILES / name).write_bytes(content)
    map_, copies, ignored = load.check(view, run.model.config, run.config.model.family)
    record = {
        "config": view.config,
        "origin": view.origin,
        "prefix": map_.prefix,
        "dtypes": {name: str(np.dtype(t.dtype)) for name, t in view.tensors.items()},
        "copies": copies,
        "left_out": ignored,
        "files": {name: hashlib.sha256(held).hexdigest() for name, held in view.files.items()},
    }
    (workdir / RECORD).write_text(json.dumps(record, indent=1))
    certify.write(certificate, workdir / CERTIFICATE)
    save(workdir, run, params, tokenizer, {"imported": view.origin})


def save(workdir, run, params, tokenizer, meta):
    """Writes config.json and a checkpoint of parameters alone, as step 0."""
    workdir = pathlib.Path(workdir)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(0, {"params": params}, {"tokenizer": tokenizer.fingerprint, **meta})
    # Last: a directory without it holds no run.
    (workdir / "config.json").write_text(records.config_json(run.config))


def refuse_used(workdir):
    """Raises ConfigError for a directory that holds a run."""
    for name in ("config.json", "checkpoints", RECORD):
        if (workdir / name).exists():
            raise ConfigError(
                f"--to={workdir} holds {name} already, so a run. Give another directory."
            )


def view_of(workdir, trained, dtype=""):
    """Returns a View of a work directory's model, as it came where it was imported.

    Args:
        workdir: the directory.
        trained: `reopen.Trained` of it.
        dtype: one of `DTYPES` for all tensors; "": as they came, float32 of a model of our own.

    Returns:
        (`View`, [a line for each thing that is not as it came]).

    Raises:
        ConfigError: a model that files of its family cannot say, or files that have changed.
    """
    if dtype and dtype not in DTYPES:
        raise ConfigError(f"--dtype={dtype!r} is unknown. Known: {', '.join(DTYPES)}.")
    family, c = trained.run.config.model.family, trained.run.model.config
    params = base.merged(trained.run, trained.params)
    path = pathlib.Path(workdir) / RECORD
    if not path.is_file():
        view = load.export(params, c, family, dtype=dtype or "float32")
        return _with_tokenizer(view, trained.run.tokenizer), []
    record, notes = json.loads(path.read_text()), []
    changed = changes(trained.run, record)
    if changed:
        names = ", ".join(name for name, _, _ in changed)
        notes.append(f"config.json is written anew: {names} changed since the import")
    view = load.export(
        params,
        c,
        family,
        config=None if changed else {**record["config"], **_dtype_fields(record, dtype)},
        dtypes={} if dtype else record["dtypes"],
        dtype=dtype or "float32",
        prefix=record["prefix"],
        copies=record["copies"].items(),
    )
    notes += [f"{name} is not written: it carries no weight" for name in record["left_out"][:3]]
    return view._replace(files=_their_files(workdir, record)), notes


def changes(run, record):
    """Returns [(field, here, there)] where a run's model is not that of an import's record."""
    values, _ = hf.from_hf(record["config"], strict=True)
    return differences(run.model.config, model_config(values, vocab=1, length=1))


def copy_record(source, workdir):
    """Copies what an import kept of other people's files, where there is such, to another one."""
    source, workdir = pathlib.Path(source), pathlib.Path(workdir)
    if (source / RECORD).is_file():  # so that it can go out as it came in
        shutil.copy(source / RECORD, workdir / RECORD)
        shutil.copytree(source / FILES, workdir / FILES)


def _dtype_fields(record, dtype):
    """What a config.json says of the dtype, where that is another than it was."""
    names = [n for n in ("dtype", "torch_dtype") if n in record["config"]]
    return dict.fromkeys(names, dtype) if dtype else {}


def _their_files(workdir, record):
    """The files that came with the weights, unchanged."""
    found = {}
    for name, digest in record["files"].items():
        path = pathlib.Path(workdir) / FILES / pathlib.PurePath(name).name
        held = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(held).hexdigest() != digest:
            raise ConfigError(f"{path} is not what was imported. Put the file back.")
        found[name] = held
    return found


def _with_tokenizer(view, tokenizer):
    """Adds the files of a tokenizer of our own, where transformers has such a kind."""
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save(place)
        paths = [pathlib.Path(place) / name for name in ("tokenizer.json", "tokenizer.model")]
        files = {path.name: path.read_bytes() for path in paths if path.is_file()}
    ids = {"eos": tokenizer.eos, "bos": tokenizer.bos, "pad": tokenizer.pad}
    config = dict(view.config)
    for name, i in ids.items():
        config[f"{name}_token_id"] = i if i >= 0 else None
    if files:
        named = {i: text for text, i in tokenizer.specials.items()}
        fields = {f"{name}_token": named[i] for name, i in ids.items() if i in named}
        fields |= {"chat_template": tokenizer.template.text} if tokenizer.template else {}
        kind = "PreTrainedTokenizerFast" if "tokenizer.json" in files else "LlamaTokenizer"
        text = json.dumps({"tokenizer_class": kind, **fields}, indent=2)
        files["tokenizer_config.json"] = text.encode()
    return view._replace(config=config, files=files)


def as_plain(config):
    """Makes a run's config that of its plain model: nothing frozen, started or averaged over."""
    with config.unlocked():
        config.finetune = filled(finetune.METHODS, {"kind": "full"})
        config.init_from, config.init_fresh, config.step.ema = "", "", 0.0
    return config


def load_config(workdir, overrides=()):
    """`records.load_config`, with errors that name the command's own flag."""
    return records.load_config(workdir, overrides, "--from")


def open_run(workdir, overrides=(), step="latest"):
    """`reopen.open_trained`, with errors that name the command's own flag."""
    return reopen.open_trained(workdir, overrides, step, "--from")
