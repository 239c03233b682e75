"""Tasks learned one after another in one run, each with a little of those before it.

python -m jaxllm.train --workdir=runs/three \
    --config=configs/continual.py:tasks=poems.jsonl+sums.jsonl+code.jsonl,init=runs/smollm2
python -m jaxllm.evaluate --before=runs/smollm2 --after=runs/three --steps=all --tasks=tasks.json

Lines of {"input", "target"}; `each=` updates of a task, a checkpoint at its end; `replay_part=` of
the rows are of all earlier tasks, 0: none. `--config.regularize.l2_start=…` holds back, too.
"""

from configs import base
from jaxllm.config import parse_arg, tune


def get_config(arg=None):
    arg = parse_arg(arg, tasks="", init="", method="full", each=500, replay_part=0.1,
                    smoke=False)  # fmt: skip
    c = base.get_config()
    files = arg.tasks.split("+")
    c.steps = arg.each * len(files)
    pairs = dict(kind="pairs", input="input", target="target", suffix="\n=> ", weight=1.0)
    c.data.sources = {f"task{i}": dict(pairs, path=path) for i, path in enumerate(files)}
    c.data.update(rows="completion", batch=16, length=256, validation_fraction=0.02)
    c.tokenizer = dict(kind="sentencepiece", vocab_size=8_000)
    c.model.update(layers=6, width=384, heads=6, mlp_width=1024)
    if arg.init:
        tune(c, arg.init, arg.method)
    c.schedule = dict(kind="wsd", lr=c.schedule.lr, warmup_steps=min(50, arg.each // 4))
    c.validate.every = c.checkpoint.every = arg.each
    c.checkpoint.keep_last = len(files)
    if arg.smoke:
        base.make_smoke(c)
        made = dict(kind="counting", task="pairs", weight=1.0)
        c.data.sources = {f"task{i}": dict(made, seed=i) for i in range(2)}
        c.data.length = 48
    names = list(c.data.sources)
    c.data.weights = tuple(
        (i / len(names), {names[i]: 1 - arg.replay_part * (i > 0)}
         | {name: arg.replay_part / i for name in names[:i] if arg.replay_part})
        for i in range(len(names))
    )  # fmt: skip
    return c
