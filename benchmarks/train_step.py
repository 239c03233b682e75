"""Tokens/s of the whole train step on this CPU, beside plain PyTorch, float32.

    .venv/bin/pip install -r requirements-bench.txt
    .venv/bin/python benchmarks/train_step.py [--rounds=7] [--seconds=3] [--sizes=small,large]

Each side is a process of its own that waits while the other runs; rounds alternate. Medians and
the median paired ratio are printed. small: nanoGPT's CPU sizes; large: 6 x 384, 256 context.
"""

import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import rounds
from benchmarks.rounds import ROOT

SIZES = {
    "small": dict(layers=4, width=128, heads=4, length=64, batch=12),
    "large": dict(layers=6, width=384, heads=6, length=256, batch=8),
}
VOCAB = 65


def make_torch(size):
    from benchmarks.torch_gpt import make_step

    return make_step(vocab=VOCAB, **SIZES[size]), {}


def make_ours(size):
    """The step that training runs: config, setup and host settings of `jaxllm.train`."""
    import tempfile

    import jax

    from jaxllm import cli, sharding
    from jaxllm.scaling import devices, flops
    from jaxllm.training import setup
    from jaxllm.training.state import place_key

    s = SIZES[size]
    overrides = [
        *((f"model.{name}", str(s[name])) for name in ("layers", "width", "heads")),
        ("model.mlp_width", str(4 * s["width"])),
        ("data.length", str(s["length"])),
        ("data.batch", str(s["batch"])),
    ]
    config, _ = cli.load_config(f"{ROOT}/configs/shakespeare_char.py:nanogpt_cpu", overrides)
    cli.start(config)
    with tempfile.TemporaryDirectory() as folder:
        run = setup.assemble(config, folder)
        rows = sharding.local_rows(run.mesh, s["batch"])
        batch = sharding.global_batch(run.mesh, rows, run.train(0, rows), s["batch"])
    state = run.create(place_key(run.mesh, 0))
    begin = time.perf_counter()
    compiled = run.step.lower(run.abstract, {}, batch).compile()
    about = {
        "devices": run.mesh.size,
        "compile_s": time.perf_counter() - begin,
        "flops_per_token": flops.of_run(run.config, run.model.config),
        "matmul_flops": devices.measure_cpu(jax.devices()[0]),
    }

    def step():
        nonlocal state
        state, metrics = compiled(state, {}, batch)
        return metrics["loss"]

    return step, about


def work(side, size, seconds):
    """A worker of one side."""
    step, about = (make_torch if side == "torch" else make_ours)(size)
    rounds.serve(step, SIZES[size]["batch"] * SIZES[size]["length"], seconds, about)


def start(side, size, seconds):
    """Starts a worker and waits until it is warm."""
    return rounds.Worker(__file__, f"--work={side}", f"--sizes={size}", f"--seconds={seconds}")


def compare(size, number, seconds):
    """Prints the medians of so many alternating rounds of one size."""
    torch, ours = start("torch", size, seconds), start("ours", size, seconds)
    mine, theirs, ratios, _ = rounds.alternate(ours, torch, number)
    about = ours.about
    useful = mine * about["flops_per_token"]
    print(
        f"{size}: jaxllm {mine:,.0f} tokens/s on {about['devices']} CPU device(s), PyTorch "
        f"{theirs:,.0f}; ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to "
        f"{ratios[-1]:.2f} in {number} rounds); {useful / 1e9:.0f} GFLOP/s = "
        f"{100 * useful / about['matmul_flops']:.0f} % of the {about['matmul_flops'] / 1e9:.0f} "
        f"of a plain product; compiled in {about['compile_s']:.1f} s",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--sizes", default="small,large")
    parser.add_argument("--work", default="")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.sizes, arguments.seconds)
        return
    for size in arguments.sizes.split(","):
        compare(size, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
