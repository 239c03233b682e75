"""A small T5 as the larger ones are made: spans first, then a mixture of tasks.

python -m jaxllm.train --config=experiments/forgetting/t5.py --workdir=runs/t5_spans
python -m jaxllm.train --config=experiments/forgetting/t5.py:init=runs/t5_spans --workdir=runs/t5

The real flan-t5-base, for who has its files, needs neither: `python -m jaxllm.convert import
--from=flan-t5-base --to=runs/t5`, and then finetune.py:init=runs/t5,rows=pairs as below it.
"""

from configs import encoder, seq2seq
from jaxllm.config import parse_arg


def get_config(arg=None):
    """Returns the config of spans; with `init` that of the mixture, which starts from them."""
    arg = parse_arg(arg, init="", path="experiments/forgetting/data")
    c = encoder.get_config(f"objective=spans,family=t5v1.1,path={arg.path}/t5_text.jsonl")
    c.model.mlp_width = 704
    c.schedule.lr = 0.01  # 140 updates: validation 4.966; of 0.02: 4.994
    if arg.init:
        new = seq2seq.get_config(f"init={arg.init},rows=pairs,path={arg.path}/t5_mixture.jsonl")
        new.data.sources.main.update(input="input", target="output")
        new.data.update(batch=32, input_length=128, length=64)
        new.model.remat = "none"  # small
        new.optim, new.schedule = c.optim, c.schedule
        c = new
    c.steps = 1_000
    c.data.validation_fraction = 0.01
    c.validate.update(every=500, batch=32, batches=16)
    c.checkpoint.update(every=500, keep_last=1)
    c.sample.tokens = 0
    return c
