"""Characters of Shakespeare on a laptop's CPU: validation loss 1.47 nats in minutes.

python -m jaxllm.train --config=configs/shakespeare_char.py --workdir=runs/shakespeare_char
python -m jaxllm.train --config=configs/shakespeare_char.py:nanogpt_cpu --workdir=runs/cpu
python -m jaxllm.train --config=configs/shakespeare_char.py:nanogpt_gpu --workdir=runs/gpu
"""

from configs import base
from jaxllm.config import parse_arg


def get_config(arg=None):
    arg = parse_arg(arg, nanogpt_cpu=False, nanogpt_gpu=False, smoke=False)
    c = base.get_config()
    c.model.update(layers=4, width=192, heads=6, mlp_width=512)
    c.optim = dict(kind="muon", adam_lr=3e-3, weight_decay=0.1, groups=dict())
    c.schedule = dict(kind="cosine", lr=0.02, warmup_steps=50)
    c.sharding = "zero1"
    if arg.nanogpt_cpu:  # nanoGPT's sizes for a CPU: 1.88 nats there, estimated on a few batches
        _nanogpt(c, layers=4, width=128, heads=4, length=64, batch=12, steps=2_000)
        c.validate.every = c.checkpoint.every = 500
    if arg.nanogpt_gpu:  # its sizes for a GPU: best validation loss 1.4697 there
        _nanogpt(c, layers=6, width=384, heads=6, length=256, batch=64, steps=5_000)
        c.model.dropout = 0.2
        c.validate.every = c.checkpoint.every = 250
    if arg.smoke:
        base.make_smoke(c)
    return c


def _nanogpt(c, *, layers, width, heads, length, batch, steps):
    """GPT-2's architecture without biases, AdamW: config/train_shakespeare_char.py of nanoGPT."""
    c.steps = steps
    c.model.update(family="gpt2", layers=layers, width=width, heads=heads, mlp_width=4 * width)
    c.model.update(qkv_bias=False, out_bias=False, mlp_bias=False, norm_bias=False)
    c.data.update(length=length, batch=batch)
    c.optim = dict(kind="adamw", beta2=0.99, weight_decay=0.1, groups=dict())
    c.schedule = dict(kind="cosine", lr=1e-3, warmup_steps=100, final=0.1)
