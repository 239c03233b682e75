"""Prefill and decode tokens/s of SmolLM2-135M on this CPU, beside transformers (torch, KV cache).

    .venv/bin/pip install -r requirements-bench.txt
    .venv/bin/python benchmarks/decode.py [--rounds=5] [--batch=1,16] [--dtype=float32,bfloat16]
        [--prompt=64] [--tokens=32] [--weights=,bfloat16,int8]

Rounds alternate in one process, greedily, from the same prompts; each side waits while the other
runs. Prefill is the time to a first token of every row, decode that of the others. Medians are
printed, how many of the tokens are those of transformers, and, where a row first differs, by how
much our logit of our token is above our logit of theirs: the largest such gap. "bytes" is the
decoding speed at which reading all weights once a step would take all the bandwidth measured.
"""

import argparse
import concurrent.futures
import os
import statistics
import sys
import time

sys.path.insert(0, str(__import__("pathlib").Path(__file__).parents[1]))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import smollm2
from jaxllm import trees
from jaxllm.models import generate
from jaxllm.models.generate import loop


def make_ours(model, params, prompts, tokens, kind):
    """Returns (run() -> (prefill s, decode s, tokens [B, N]), bytes of its weights)."""
    decoder = generate.decoder(model, weights=kind)
    plan = generate.Plan(generate.Sampling(0.0))
    weights = jax.block_until_ready(jax.jit(decoder.prepare)(params))
    batch, B = generate.pad(prompts), len(prompts)
    room = batch["tokens"].shape[1] + tokens
    limit_B, seed_B = jnp.full(B, tokens, jnp.int32), jnp.zeros(B, jnp.uint32)
    start = jax.jit(lambda w, b: loop.start(decoder, plan, w, b, limit_B, seed_B, room))
    rest = jax.jit(
        lambda w, state: loop.several(decoder, plan, w, state, tokens - 1), donate_argnums=1
    )

    def run():
        begin = time.perf_counter()
        state, first = jax.block_until_ready(start(weights, batch))
        middle = time.perf_counter()
        _, drawn = jax.block_until_ready(rest(weights, state))
        end = time.perf_counter()
        found = np.concatenate([first.tokens, drawn.tokens], axis=1)
        return middle - begin, end - middle, found

    return run, trees.size_bytes(weights)


def bandwidth():
    """Bytes a second that two threads read from memory, the best of several tries."""
    x, best = np.ones(2**26, np.float32), 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in range(7):
            begin = time.perf_counter()
            list(pool.map(np.sum, np.array_split(x, os.cpu_count())))
            best = max(best, x.nbytes / (time.perf_counter() - begin))
    return best


def largest_gap(model, params, prompts, ours, theirs):
    """The largest difference of logits that decided where a row first differs; 0 where none."""
    gaps = [0.0]
    apply = jax.jit(lambda params, batch, at: model.apply(params, batch)[0, at])
    for prompt, a, b in zip(prompts, ours, theirs, strict=True):
        differ = np.flatnonzero(a != b)
        if len(differ):
            n = differ[0]
            batch = generate.pad([[*prompt, *a.tolist()]])
            z = np.asarray(apply(params, batch, len(prompt) + n - 1))
            gaps.append(float(abs(z[a[n]] - z[b[n]])))
    return max(gaps)


def make_theirs(model, prompts, tokens):
    """The same of transformers."""
    import torch

    ids = torch.tensor(prompts)
    ends = dict(do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True)

    def run():
        with torch.inference_mode():
            begin = time.perf_counter()
            model.generate(ids, max_new_tokens=1, **ends)
            middle = time.perf_counter()
            out = model.generate(ids, max_new_tokens=tokens, **ends)
            end = time.perf_counter()
        return middle - begin, (end - middle) - (middle - begin), out[:, ids.shape[1] :].numpy()

    return run


def main():
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", default="1,16")
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to draw")
    parser.add_argument("--weights", default=",bfloat16,int8", help="of ours, besides the dtype")
    args = parser.parse_args()
    speed = bandwidth()
    print(f"memory: {speed / 1e9:.1f} GB/s")
    print("dtype     batch  side             prefill tok/s  decode tok/s    bytes   same  gap")
    for dtype in args.dtype.split(","):
        model, params, theirs, _ = smollm2.load(dtype)
        for rows in map(int, args.batch.split(",")):
            rng = np.random.default_rng(0)
            prompts = rng.integers(100, 40000, (rows, args.prompt)).tolist()
            sides, size = {"transformers": make_theirs(theirs, prompts, args.tokens)}, {}
            for kind in args.weights.split(","):
                if not (kind == dtype or (kind == "bfloat16" and dtype != "float32")):
                    name = f"jaxllm {kind}".strip()
                    sides[name], size[name] = make_ours(model, params, prompts, args.tokens, kind)
            size["transformers"] = sum(x.nbytes for x in theirs.parameters())
            found = {name: run()[2] for name, run in sides.items()}  # compiles, warms up
            wanted = found["transformers"]
            times = {name: [] for name in sides}
            for _ in range(args.rounds):
                for name, run in sides.items():
                    times[name].append(run()[:2])
            for name, pairs in times.items():
                prefill, decode = (statistics.median(x) for x in zip(*pairs, strict=True))
                print(
                    f"{dtype:9} {rows:5}  {name:15} {rows * args.prompt / prefill:14.1f}"
                    f" {rows * (args.tokens - 1) / decode:13.1f} {rows * speed / size[name]:8.1f}"
                    f" {(found[name] == wanted).mean():6.3f}"
                    f" {largest_gap(model, params, prompts, found[name], wanted):5.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
