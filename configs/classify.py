"""Classes of texts, by a model with a head: spam, sentiment, what a question asks for.

python -m jaxllm.train --config=configs/classify.py:path=questions.jsonl.zst,labels=6 \
    --workdir=runs/questions
python -m jaxllm.convert import --from=MINILM --to=runs/minilm
python -m jaxllm.train --config=configs/classify.py:path=…,size=minilm-l6,init=runs/minilm \
    --workdir=runs/spam
"""

from configs import base
from jaxllm.config import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, family="bert", path="", labels=2, size="", init="", smoke=False)
    c = base.get_config()
    c.steps = 2_000
    c.data.sources = dict(main=dict(kind="labelled", path=arg.path, weight=1.0))
    c.data.update(rows="examples", batch=32, length=128, bad_input="skip")
    c.tokenizer = dict(kind="sentencepiece", vocab_size=8_000)
    c.model.update(family=arg.family, size=arg.size, lm_head=False)
    c.model.update(task="classify", labels=arg.labels, pool="mean")
    if not arg.size:
        c.model.update(layers=4, width=256, heads=4, mlp_width=1024)
    c.objective = dict(kind="classify")
    c.optim = dict(kind="adamw", weight_decay=0.01, groups=dict())
    c.schedule = dict(kind="cosine", lr=3e-4, warmup_steps=200)
    if arg.init:  # fine-tuning: a few epochs, small steps, a head of its own
        c.init_from, c.init_fresh = arg.init, "task/"
        c.tokenizer = dict(kind="saved", path=arg.init)
        c.schedule = dict(kind="linear", lr=5e-5, warmup_steps=50)
        c.model.dropout = 0.1
    c.validate.every = c.checkpoint.every = 500
    c.sample.tokens = 0  # there is nothing to sample
    if arg.smoke:
        base.make_smoke(c)
        c.data.sources = dict(main=dict(kind="counting", task="classify", weight=1.0))
        c.sample.tokens = 0
    return c
