"""Every setting, with its unit; an experiment changes a few.

Sections with a `kind` take the keyword arguments of that kind's factory, whose signature lists
them; those that a config leaves out get the factory's defaults and can be set on the command line
all the same (`--config.optim.momentum=0.9`).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxllm.models.config import FIELDS


def get_config(arg=None):
    """Trains 1.8M parameters on the characters of Shakespeare, minutes on a laptop's CPU."""
    del arg
    c = ConfigDict()
    c.steps = 1_300  # updates
    c.seed = 0  # of the weights, the order of the data, dropout
    c.init_from = ""  # work directory whose parameters a new run starts from; "": drawn
    # Parameters drawn all the same, by how their paths begin, "task/|pool/"; heads may then differ.
    c.init_fresh = ""

    # family: jaxllm.models.families; size: one of the family's, or "" for sizes of your own.
    # Every field of jaxllm.models.config.ModelConfig may be set and wins over the family's.
    c.model = dict(family="llama", size="")
    c.model.update({name: placeholder(type(default)) for name, default in FIELDS.items()})

    # What of the model is trained: full, or with what is frozen being init_from's lora, qlora,
    # prompt, prefix, adapter, ia3. jaxllm.finetune.METHODS
    c.finetune = dict(kind="full")

    c.tokenizer = dict(kind="char")  # byte, char, sentencepiece, hf: jaxllm.tokenizers
    c.data = ConfigDict()
    # {name: source}; jaxllm.data.SOURCES has the kinds; weight: share of the rows; max_epochs: how
    # often a run may walk it (0: any number of times); split: auto, hash, tail (of each document),
    # train (nothing is held back); rows: its own kind, where not that of all, such as text replayed
    # beside completions.
    c.data.sources = dict(main=dict(kind="shakespeare", weight=1.0))
    c.data.temperature = 0.0  # shares go by weight x tokens^(1 / temperature); 0: by weight
    c.data.weights = ()  # stages: ((share of the run, {name: weight}), …); (): the weights above
    c.data.over_epochs = "refuse"  # a run past max_epochs; give: its share goes to the others
    # Rows from a growing part of the documents sorted by length, or by a score stored beside the
    # shards (data.shards.write_scores), until that share of the run. none, length, score
    c.data.curriculum = dict(kind="none", until=0.3)
    # {name: transform of rows}; jaxllm.data.TRANSFORMS: fim, noise, word_dropout of training rows;
    # bert, spans, infill, xlnet, prefix of validation rows too, for models made for them.
    c.data.transforms = ConfigDict()
    c.data.on_change = "refuse"  # to go on with rows in another order; or accept
    # Weight 0: updates, such as (5, 6), and a file's documents, "SOURCE NUMBER" a line.
    c.data.skip = dict(steps=(), documents="")
    c.data.update(batch=24, length=128)  # rows a step, over all devices; tokens a row
    # windows: over the text end to end; packed: whole documents, none cut that fits. Of examples:
    # pairs (encoder, decoder), completion and chat (decoder), examples (a head), together (pooled).
    c.data.rows = "windows"
    c.data.input_length = 0  # tokens of the encoder's side of pairs; 0: as `length`
    c.data.pack = True  # several pairs, completions or chats a row, blind to one another; else one
    c.data.begin = False  # the beginning token before the input of pairs and completions
    c.data.start = -1  # the token a decoder of pairs begins with; -1: padding, or 0 without one
    # Chats: template: own (the tokenizer's), chatml, llama3, …, a file, *.jinja; loss_on: answers,
    # last, all; too_long: without its oldest turns, cut at its end, left out (turns, cut, drop).
    c.data.update(template="own", loss_on="answers", too_long="turns")
    c.data.validation_fraction = 0.1  # of the documents, or of the text if it is one document
    c.data.validation_from = 0.0  # validation is from this share of them on; see train --folds
    c.data.bad_input = "error"  # error, or skip: what cannot be read is counted and left out
    c.data.cache_dir = ""  # token shards shared by runs; "": in the work directory
    c.data.prefetch = 2  # batches made ahead

    c.objective = dict(kind="lm")  # jaxllm.objectives.OBJECTIVES
    c.optim = dict(kind="adamw", weight_decay=0.1, groups=dict())  # jaxllm.optim.OPTIMIZERS
    c.optim.layer_decay = 1.0  # factor of the learning rate for each layer further from the output
    # Against forgetting and overfitting, see docs/finetune.md; 0: off. l2_start, ewc: weight of the
    # squared distance from init_from, by Fisher information; neftune: size of noise on embeddings.
    c.regularize = dict(l2_start=0.0, ewc=0.0, neftune=0.0)
    # Noise that climbs the loss: passes an update, step size, first size, largest norm or 0.
    c.regularize.freelb = dict(steps=0, lr=0.1, start=0.1, largest=0.0)
    c.schedule = dict(kind="cosine", lr=1e-3, warmup_steps=100)  # jaxllm.optim.SCHEDULES

    c.step = ConfigDict()
    c.step.micro_batches = 1  # pieces of a batch, to save memory; the update is the same
    c.step.clip = 1.0  # largest global norm of the gradient; 0: off
    c.step.ema = 0.0  # decay of averaged weights, which validation then uses; 0: off
    c.step.skip_limit = 4  # non-finite updates in a row that stop the run; each is dropped

    # Devices an axis; -1: those left over. jaxllm.sharding.mesh says what each is for.
    c.mesh = dict(slice=1, data=-1, fsdp=1, stage=1, expert=1, seq=1, tensor=1)
    c.sharding = "zero3"  # zero3, zero1, replicated: jaxllm.sharding.RULES

    c.validate = ConfigDict()
    c.validate.every = 260  # updates; 0: only at the end
    c.validate.batch = 64  # rows at once
    c.validate.batches = 0  # at most so many; 0: the whole split
    # Validations without a gain that stop the run, 0: off; nats that count as a gain.
    c.validate.update(patience=0, min_gain=0.0)

    c.checkpoint = dict(every=260, keep_last=2, keep_best=1)  # every: updates; 0: only at the end
    c.log = dict(every=20)  # updates between lines of metrics
    c.sample = dict(every=0, prompt="\n", tokens=200)  # every: updates; 0: only at the end
    c.sample.update(temperature=0.8, top_k=0, top_p=1.0)  # top_k 0, top_p 1: off
    c.profile = dict(first=0, steps=0)  # trace `steps` steps from step `first`; 0 steps: off

    c.plan = ConfigDict()  # of jaxllm.plan
    # Money a device and hour, on demand; Google Cloud's list prices, US. Yours will differ.
    c.plan.prices = dict(v4=3.22, v5e=1.20, v5p=4.20, v6e=2.70)
    c.plan.prices.update(a100_40gb=3.67, a100=5.07, h100=11.06, h200=10.85, l4=0.71)
    c.plan.update(currency="USD", date="2025-07")  # of the prices

    c.runtime = ConfigDict()
    c.runtime.grace_s = 9.0  # after SIGTERM: the state is saved and the run ended within this
    c.runtime.watchdog_s = 0.0  # a step that takes longer stops the run; 0: off
    c.runtime.cpu_devices = 0  # a CPU's cores as so many devices; 0: as many as pay
    c.runtime.compile_cache = "~/.cache/jaxllm"  # compiled programs; "": none
    return c.lock()


def make_smoke(c):
    """Turns a config into its smoke test: the same choices, tiny, on made-up text, seconds."""
    c.steps = 3
    c.schedule.warmup_steps = 1
    c.model.update(size="", layers=max(2, c.model.global_every or 0), width=32, heads=4)
    c.model.update(kv_heads=2 if c.model.kv_heads else 0, head_width=0, mlp_width=64, positions=0)
    c.model.update(vocab=0)
    c.tokenizer = dict(kind="byte")
    c.data.sources = dict(main=dict(kind="synthetic", weight=1.0))
    c.data.update(batch=8, length=32)
    c.validate.update(every=2, batch=8, batches=2)
    c.checkpoint.every = 2
    c.log.every = 1
    c.sample.tokens = 8
