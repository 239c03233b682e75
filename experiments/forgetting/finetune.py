"""Fine-tunes SmolLM2-135M on synopses of packages, with a checkpoint every few updates.

python -m jaxllm.train --config=experiments/forgetting/finetune.py:init=runs/smollm2 \
    --workdir=runs/forget --config.steps=200
"""

from configs import base
from jaxllm.config import parse_arg


def get_config(arg=None):
    """Returns the config; arguments: init, path of the data, every."""
    arg = parse_arg(arg, init="runs/smollm2", path="experiments/forgetting/data", every=50)
    c = base.get_config()
    c.steps = 200
    c.model.update(family="llama", size="smollm2-135m")
    c.init_from = arg.init
    c.tokenizer = dict(kind="saved", path=arg.init)
    source = dict(kind="pairs", path=f"{arg.path}/summaries_train.jsonl", weight=1.0)
    c.data.sources = dict(main=dict(source, input="input", target="output", suffix="\n=> "))
    c.data.update(rows="completion", batch=8, length=256, validation_fraction=0.02)
    c.schedule = dict(kind="cosine", lr=1e-4, warmup_steps=10)
    c.validate.update(every=0, batch=8, batches=8)
    c.checkpoint.update(every=arg.every, keep_last=100)
    c.log.every = 5
    c.sample.tokens = 0
    return c
