"""Bases and fine-tuned runs in work directories, made without training."""

import json

import jax
import numpy as np

from jaxllm import settings, trees
from jaxllm.models.weights import safetensors
from jaxllm.training import base, imported, records, setup
from jaxllm.training.checkpoint import Checkpoints
from tests import runs, weights_helpers

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
KINDS = {
    "llama": ("LlamaForCausalLM", dict(SIZES, num_key_value_heads=2)),
    "gpt2": ("GPT2LMHeadModel", dict(n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "bert": ("BertForMaskedLM", SIZES),
    "bert_classify": ("BertForSequenceClassification", dict(SIZES, num_labels=3)),
    "roberta": ("RobertaForMaskedLM", dict(SIZES, pad_token_id=1)),
    "t5": ("T5ForConditionalGeneration", dict(d_model=32, d_kv=8, d_ff=40, num_layers=2,
           num_heads=4, decoder_start_token_id=0)),
    "phi3": ("Phi3ForCausalLM", dict(SIZES, num_key_value_heads=2, pad_token_id=None)),
    "gemma2": ("Gemma2ForCausalLM", dict(SIZES, num_key_value_heads=2, head_dim=12)),
    "mixtral": ("MixtralForCausalLM", dict(SIZES, num_key_value_heads=2, num_local_experts=2)),
}  # fmt: skip


def make_theirs(kind, seed=0):
    """Their model of a kind with weights drawn at random."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    name, fields = KINDS[kind]
    cls = getattr(transformers, name)
    fields = {"bos_token_id": None, "eos_token_id": None, **fields, "vocab_size": 264}
    model = cls(cls.config_class(**fields)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator) * 0.3
            weight.copy_(1 + drawn if weight.ndim == 1 and "norm" in name.lower() else drawn)
    return model


def make_base(kind, place, seed=0):
    """Imports their model as a work directory; returns (directory, their model)."""
    theirs = make_theirs(kind, seed)
    weights_helpers.save_theirs(theirs, place / "theirs")
    view = safetensors.open_folder(place / "theirs")
    config = settings.load(runs.FILE, runs.overrides({}), setup.KINDS)[0]
    tokenizer = imported.tokenizer_of(view, "byte")
    imported.complete(config, view, tokenizer)
    run, params = imported.read(config, view, tokenizer)
    told = {"status": "not certified", "why": "a test's"}
    imported.write(place / "base", run, params, view, tokenizer, told)
    return place / "base", theirs


def make_run(base_dir, place, finetune, moved=0.05, fields=(), model=()):
    """Writes a run over a base whose trained parameters are a little off their start."""
    config = records.load_config(base_dir, [(n, str(v)) for n, v in dict(fields).items()])
    with config.unlocked():
        config.init_from, config.finetune = str(base_dir), dict(finetune)
        for name, value in dict(model).items():
            config.model[name] = value
    tokenizer = imported.tokenizers.load(base_dir / "tokenizer")
    run = setup.assemble_program(config, tokenizer.vocab_size, jax.devices())
    run = run._replace(tokenizer=tokenizer)
    place.mkdir(parents=True)
    params, under = base.begin(run, place)
    rng = np.random.default_rng(7)
    own = {
        path: jax.device_put(x + moved * rng.normal(size=x.shape).astype(np.float32), x.sharding)
        for path, x in trees.flatten(params).items()
    }
    tokenizer.save(place / "tokenizer")
    with Checkpoints(place / "checkpoints") as checkpoints:
        meta = {"tokenizer": tokenizer.fingerprint, "base": under.digest}
        checkpoints.save(0, run.start(trees.unflatten(own)), meta)
    (place / "config.json").write_text(records.config_json(config))
    return place


def rewrite(folder, change):
    """Rewrites adapter_config.json by a function of its object."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
