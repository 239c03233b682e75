"""Pre-training any family at any of its published sizes, on a slice.

    python -m jaxllm.train --config=configs/pretrain.py:family=llama,size=3.2-1b,path=web.jsonl \
        --workdir=runs/llama_1b --config.tokenizer.path=tokenizer.json
"""

from configs import base
from jaxllm.config import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, family="llama", size="3.2-1b", path="", smoke=False)
    c = base.get_config()
    c.steps = 20_000
    c.model.update(family=arg.family, size=arg.size, dtype="bfloat16", remat="full")
    c.tokenizer = dict(kind="hf", path="")
    c.data.sources = dict(main=dict(kind="jsonl", path=arg.path, weight=1.0))
    c.data.update(batch=256, length=2048, validation_fraction=0.005, cache_dir="")
    c.objective = dict(kind="lm", z_loss=1e-4)
    c.optim = dict(kind="adamw", beta2=0.95, weight_decay=0.1, groups=dict())
    c.schedule = dict(kind="cosine", lr=3e-4, warmup_steps=1_000)
    c.mesh.update(data=1, fsdp=-1)
    c.validate.update(every=1_000, batch=256)
    c.checkpoint.every = 500
    if arg.smoke:
        base.make_smoke(c)
        c.mesh.data, c.mesh.fsdp = -1, 1
    return c
