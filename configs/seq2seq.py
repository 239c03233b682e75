"""Something to write for something to read: summaries, translations, instructions.

python -m jaxllm.train --config=configs/seq2seq.py:path=summaries.jsonl.zst --workdir=runs/sum \
    --config.data.sources.main.input=document --config.data.sources.main.target=summary
python -m jaxllm.train --config=configs/seq2seq.py:path=pairs.csv,family=t5,rows=pairs --workdir=…

A decoder reads input and answer in one row (`rows=completion`, no loss on the input); an encoder
and a decoder have a row each (`rows=pairs`). `init=runs/smollm2,method=lora` fine-tunes a model.
"""

from configs import base
from jaxllm.config import parse_arg, replay, tune


def get_config(arg=None):
    arg = parse_arg(
        arg, family="llama", rows="completion", path="", init="", method="full",
        replay="", replay_part=0.1, smoke=False,
    )  # fmt: skip
    c = base.get_config()
    c.steps = 3_000
    source = dict(kind="pairs", path=arg.path, input="input", target="target", weight=1.0)
    source["suffix"] = "\n=> " if arg.rows == "completion" else ""
    c.data.sources = dict(main=source)
    c.data.update(rows=arg.rows, batch=32, length=256, bad_input="skip")
    replay(c, arg.replay, arg.replay_part)
    if arg.rows == "pairs":
        c.data.update(length=64, input_length=256)
    c.tokenizer = dict(kind="sentencepiece", vocab_size=8_000)
    c.model.update(family=arg.family, layers=6, width=384, heads=6, mlp_width=1024)
    c.optim = dict(kind="adamw", weight_decay=0.1, groups=dict())
    c.schedule = dict(kind="cosine", lr=1e-3, warmup_steps=200)
    if arg.init:
        tune(c, arg.init, arg.method)
    c.validate.every = c.checkpoint.every = 500
    if arg.smoke:
        base.make_smoke(c)
        c.data.sources = dict(main=dict(kind="counting", task="pairs", weight=1.0))
        c.data.update(length=48, input_length=48 if arg.rows == "pairs" else 0)
    return c
