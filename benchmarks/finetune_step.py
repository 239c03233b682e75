"""A fine-tuning step of SmolLM2-135M on this CPU: tokens/s and memory, beside PEFT on PyTorch.

    .venv/bin/pip install -r requirements-bench.txt
    .venv/bin/python benchmarks/finetune_step.py [--rounds=5] [--seconds=10] [--kinds=lora,…]
        [--batch=8] [--length=256] [--dtype=float32] [--rank=16] [--against=KIND]
        [FIELD=VALUE …]

For each kind: the same weights and tokens on both sides, LoRA beside all projections,
AdamW; each side is a process of its own, and rounds alternate. Medians and the median paired ratio
are printed, the first losses (the same, where both start as the base), peak memory of a round, and
bytes of what is trained, of the optimizer's state and of the frozen base. Kinds other than full
are compared with PEFT's LoRA; with --against each is compared with that kind of ours instead.
"""

import argparse
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np

from benchmarks import rounds, smollm2

VOCAB = 49_152


def tokens_of(batch, length):
    """int32[batch, length + 1]: the same on both sides."""
    return np.random.default_rng(0).integers(0, VOCAB, (batch, length + 1), np.int32)


def make_torch(kind, batch, length, dtype, rank, settings):
    """PEFT's step."""
    import peft
    import torch

    del settings  # they are of our config

    _, _, model, _ = smollm2.load(dtype)
    if kind == "full":
        model = model.train()
    else:
        names = [f"{n}_proj" for n in ("q", "k", "v", "o", "gate", "up", "down")]
        config = peft.LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=names, task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    tx = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
    rows = torch.from_numpy(tokens_of(batch, length).astype(np.int64))

    def step():
        logits = model(input_ids=rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.reshape(-1, VOCAB).float(), rows[:, 1:].reshape(-1)
        )
        tx.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        tx.step()
        return loss.detach()

    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    return step, {"trained": sum(p.numel() for p in trained), "frozen": frozen}


def make_ours(kind, batch, length, dtype, rank, settings):
    """The step that training runs: config, setup and host settings of `jaxllm.train`."""
    import jax

    from jaxllm import cli, data, finetune, sharding, trees
    from jaxllm.training import setup

    rows = [(f"{part}.batch", str(batch)) for part in ("data", "validate")]
    fields = [
        *rows,
        ("data.length", str(length)),
        ("finetune.kind", kind),
        *([("finetune.rank", str(rank))] if "lora" in kind else []),
        ("model.dtype", dtype),
        ("model.remat", "none"),
        ("schedule.lr", "1e-4"),
        *(tuple(pair.split("=", 1)) for pair in settings),
    ]
    file = f"{rounds.ROOT}/configs/pretrain.py:family=llama,size=smollm2-135m"
    config, _ = cli.load_config(file, fields)
    cli.start(config)
    run = setup.assemble_program(config, VOCAB, jax.devices())
    model, params, _, _ = smollm2.load(dtype)
    base = trees.flatten(params)
    c, method = run.model.config, run.method
    if run.refs:
        drawn = trees.flatten(jax.jit(run.model.init)(jax.random.key(0)))
        own = finetune.begin(method, c, base, drawn)
        frozen = finetune.freeze(method, c, base, own, c.dtype)
        places = jax.tree.map(lambda leaf: leaf.sharding, run.refs["base"])
        refs = {"base": jax.device_put(trees.unflatten(frozen), places)}
        del frozen, drawn
    else:
        own, refs = base, {}
    state = run.start(trees.unflatten({path: np.asarray(x) for path, x in own.items()}))
    del model, params, base, own
    found = tokens_of(batch, length)
    one = data.empty(config.data, batch)
    one["tokens"][:], one["targets"][:] = found[:, :-1], found[:, 1:]
    one["position"][:], one["segment"][:], one["weight"][:] = np.arange(length), 1, 1
    several = sharding.global_batch(run.mesh, sharding.local_rows(run.mesh, batch), one, batch)
    compiled = run.step.lower(run.abstract, run.refs, several).compile()

    def step():
        nonlocal state
        state, metrics = compiled(state, refs, several)
        return metrics["loss"]

    return step, {
        "trained": sum(x.size for x in jax.tree.leaves(state.params)),
        "optimizer": trees.size_bytes(state.opt),
        "frozen": trees.size_bytes(refs),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--kinds", default="lora,qlora,full")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--against", default="", help="a kind of ours, for PEFT")
    parser.add_argument("settings", nargs="*", help="of our config, such as model.remat=light")
    parser.add_argument("--work", default="")
    a = parser.parse_args()
    if a.work:
        make = make_torch if a.work == "torch" else make_ours
        step, about = make(a.kinds, a.batch, a.length, a.dtype, a.rank, a.settings)
        rounds.serve(step, a.batch * a.length, a.seconds, about, every=1)
        return
    shared = [f"--{n}={getattr(a, n)}" for n in ("seconds", "batch", "length", "dtype", "rank")]
    shared += a.settings
    for kind in a.kinds.split(","):
        pair = ("ours", kind), ("ours", a.against) if a.against else ("torch", kind)
        ours, theirs = (
            rounds.Worker(__file__, f"--work={side}", f"--kinds={each}", *shared)
            for side, each in pair
        )
        mine, beside, ratios, peaks = rounds.alternate(ours, theirs, a.rounds)
        own, other = ours.about, theirs.about
        peak, beyond = ("{:.2f} to {:.2f} GB".format(*(b / 1e9 for b in one)) for one in peaks)
        print(
            f"{kind} {a.dtype} {a.batch} x {a.length}: jaxllm {mine:,.0f} tokens/s, "
            f"{a.against or 'PEFT'} {beside:,.0f}; ratio {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f} in {a.rounds} rounds); first loss "
            f"{own['first_loss']:.4f}, theirs {other['first_loss']:.4f}; peak "
            f"{peak}, theirs {beyond}; trained "
            f"{own['trained']:,} (theirs {other['trained']:,}), optimizer "
            f"{own['optimizer'] / 1e6:.1f} MB, frozen {own['frozen'] / 1e6:.1f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
