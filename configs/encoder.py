"""Pre-training of encoders and encoder-decoders: what is hidden in a text is predicted.

python -m jaxllm.train --config=configs/encoder.py:objective=bert,path=text.jsonl --workdir=runs/b

bert: masked tokens (BERT, RoBERTa); xlnet: in any order; spans: for an encoder and a decoder (T5);
infill: the same, the whole text written again (BART); prefix: a decoder that sees a first part
whole. family= takes another model than the usual one: bert,family=roberta; spans,family=t5v1.1.
"""

from configs import base
from jaxllm.config import parse_arg

USUAL = {"bert": "bert", "xlnet": "xlnet", "spans": "t5", "infill": "bart", "prefix": "llama"}
SPECIALS = ("[MASK]", *(f"<extra_id_{i}>" for i in range(100)))


def get_config(arg=None):
    arg = parse_arg(
        arg, objective="bert", family="", path="", kind="jsonl", tokenizer="hf", smoke=False
    )
    c = base.get_config()
    c.steps = 5_000
    c.data.sources = dict(main=dict(kind=arg.kind, path=arg.path, weight=1.0))
    c.data.update(batch=32, length=128)
    c.data.transforms = dict(hide=dict(kind=arg.objective))
    c.tokenizer = dict(kind=arg.tokenizer)
    if arg.tokenizer == "hf":
        c.tokenizer.update(vocab_size=8192, specials=SPECIALS)
    c.model.update(family=arg.family or USUAL.get(arg.objective, ""))
    c.model.update(layers=4, width=256, heads=4, mlp_width=1024)
    c.optim = dict(kind="muon", adam_lr=3e-3, weight_decay=0.1, groups=dict())
    # A T5 of spans: 2.22 after 1,200 updates, at 0.02 2.40; see experiments/encoders.
    c.schedule = dict(kind="wsd", lr=0.01 if arg.objective == "spans" else 0.02, warmup_steps=100)
    c.validate.every = c.checkpoint.every = 500
    c.sample.tokens = 0
    if arg.smoke:
        base.make_smoke(c)
        c.sample.tokens = 0
    if arg.objective == "infill":
        c.model.positions = c.data.length + 1  # the text and its end
    if c.tokenizer.kind == "byte":
        c.model.vocab = 384  # ids for sentinels and a mask, behind those of bytes
    return c
