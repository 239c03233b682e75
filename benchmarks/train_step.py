"""Tokens/s of the whole train step on this CPU, beside plain PyTorch, float32.

    .venv/bin/pip install -r requirements-bench.txt
    .venv/bin/python benchmarks/train_step.py [--rounds=7] [--seconds=3] [--sizes=small,large]

Each side is a process of its own that waits while the other runs; rounds alternate. Medians and
the median paired ratio are printed. small: nanoGPT's CPU sizes; large: 6 x 384, 256 context.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
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
    """A worker: for each line on standard input, runs for `seconds` and prints tokens/s."""
    step, about = (make_torch if side == "torch" else make_ours)(size)
    tokens = SIZES[size]["batch"] * SIZES[size]["length"]
    for _ in range(3):
        float(step())
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        steps, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            for _ in range(4):
                loss = step()
            float(loss)  # waits for the device
            steps += 4
        print(json.dumps(steps * tokens / (time.perf_counter() - begin)), flush=True)


def start(side, size, seconds):
    """Starts a worker and waits until it is warm."""
    command = [sys.executable, __file__, f"--work={side}", f"--sizes={size}"]
    worker = subprocess.Popen(
        [*command, f"--seconds={seconds}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    return worker, json.loads(worker.stdout.readline())


def ask(worker):
    worker.stdin.write("\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def compare(size, rounds, seconds):
    """Prints the medians of alternating rounds of one size."""
    (torch, _), (ours, about) = start("torch", size, seconds), start("ours", size, seconds)
    pairs = [(ask(ours), ask(torch)) for _ in range(rounds)]
    for worker in (torch, ours):
        worker.stdin.close()
        worker.wait()
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    useful = mine * about["flops_per_token"]
    print(
        f"{size}: jaxllm {mine:,.0f} tokens/s on {about['devices']} CPU device(s), PyTorch "
        f"{theirs:,.0f}; ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to "
        f"{ratios[-1]:.2f} in {rounds} rounds); {useful / 1e9:.0f} GFLOP/s = "
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
        sys.path.insert(0, str(ROOT))
        work(arguments.work, arguments.sizes, arguments.seconds)
        return
    for size in arguments.sizes.split(","):
        compare(size, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
