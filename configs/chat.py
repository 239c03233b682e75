"""Instruction tuning: a model learns to answer in chats.

python -m jaxllm.convert import --from=SmolLM2-135M-Instruct.Q4_1.gguf --to=runs/smollm2
python -m jaxllm.train --config=configs/chat.py:path=chats.jsonl.zst,init=runs/smollm2 \
    --workdir=runs/tuned --look=3
python -m jaxllm.train --config=configs/chat.py:path=chats.jsonl.zst,init=runs/smollm2 \
    --workdir=runs/tuned
python -m jaxllm.sample --workdir=runs/tuned --chat

`method=lora` (qlora, prompt, prefix, adapter, ia3) trains little of it: see docs/finetune.md.
Without `init` a small model and its tokenizer begin from nothing, and talk in ChatML.
"""

from configs import base
from jaxllm.config import parse_arg, replay, tune


def get_config(arg=None):
    arg = parse_arg(
        arg, path="", shape="messages", init="", template="", method="full",
        replay="", replay_part=0.1, smoke=False,
    )  # fmt: skip
    c = base.get_config()
    c.steps = 1_000
    c.data.sources = dict(main=dict(kind="chats", path=arg.path, shape=arg.shape, weight=1.0))
    c.data.update(rows="chat", batch=16, length=512, validation_fraction=0.02)
    replay(c, arg.replay, arg.replay_part)
    c.data.template = arg.template or ("own" if arg.init else "chatml")
    c.tokenizer = dict(kind="hf", vocab_size=8_000, specials=("<|im_start|>", "<|im_end|>"))
    c.model.update(layers=6, width=384, heads=6, mlp_width=1024)
    c.optim = dict(kind="adamw", weight_decay=0.0, groups=dict())
    c.schedule = dict(kind="cosine", lr=5e-4, warmup_steps=50)
    if arg.init:
        tune(c, arg.init, arg.method)
    c.validate.update(every=250, batch=16)
    c.checkpoint.every = 250
    c.sample.tokens = 0  # jaxllm.sample --chat talks with it
    if arg.smoke:
        base.make_smoke(c)
        c.data.sources = dict(main=dict(kind="counting", task="chat", weight=1.0))
        c.data.update(length=96, validation_fraction=0.1)
        c.tokenizer = dict(kind="hf", vocab_size=300, specials=("<|im_start|>", "<|im_end|>"))
        c.sample.tokens = 0
    return c
