"""A small Llama on your own text: a file, a folder, or JSON lines; .gz and .zst too.

python -m jaxllm.train --config=configs/text.py:path=books/ --workdir=runs/books
python -m jaxllm.train --config=configs/text.py:path=posts.jsonl.zst,kind=jsonl --workdir=runs/posts
python -m jaxllm.train --config=configs/text.py:path=corpora/notes,kind=prepared --workdir=runs/n

More pre-training of a model, on text of its field (`method=lora` changes less of it), with a tenth
of the rows from text that it has seen before:

python -m jaxllm.train --workdir=runs/docs \
    --config=configs/text.py:path=docs.jsonl.zst,kind=jsonl,init=runs/smollm2,replay=old.jsonl.zst
"""

from configs import base
from jaxllm.config import parse_arg, replay, tune


def get_config(arg=None):
    arg = parse_arg(
        arg, path="", kind="text", tokenizer="sentencepiece", vocab=4096, init="", method="full",
        replay="", replay_part=0.1, smoke=False,
    )  # fmt: skip
    c = base.get_config()
    c.steps = 5_000
    c.data.sources = dict(main=dict(kind=arg.kind, path=arg.path, weight=1.0))
    c.data.update(batch=32, length=256)
    replay(c, arg.replay, arg.replay_part)
    c.tokenizer = dict(kind=arg.tokenizer)
    if arg.kind == "prepared":  # by jaxllm.prepare, with its tokenizer
        c.tokenizer = dict(kind="saved", path=arg.path)
    elif arg.tokenizer in ("sentencepiece", "hf"):
        c.tokenizer = dict(kind=arg.tokenizer, vocab_size=arg.vocab)
    c.model.update(layers=6, width=384, heads=6, kv_heads=2, mlp_width=1024)
    c.optim = dict(kind="muon", adam_lr=3e-3, weight_decay=0.1, groups=dict())
    c.schedule = dict(kind="wsd", lr=0.02, warmup_steps=100)
    if arg.init:
        tune(c, arg.init, arg.method)
    if arg.smoke:
        base.make_smoke(c)
    return c
