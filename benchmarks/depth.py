"""Compile time and peak host memory of the train step against the number of layers.

    .venv/bin/python benchmarks/depth.py [--layers=4,32]

Each depth is a process of its own. Layers are scanned: both should grow with the parameters alone.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]


def work(layers):
    """Prints compile seconds and peak memory of one depth."""
    sys.path.insert(0, str(ROOT))
    import jax

    from jaxllm import cli, sharding, trees
    from jaxllm.training import run as runs
    from jaxllm.training import setup
    from jaxllm.training.state import place_key

    overrides = [("model.layers", str(layers)), ("model.unroll", "1")]
    overrides += [("runtime.compile_cache", ""), ("optim.kind", "adamw"), ("schedule.lr", "1e-3")]
    config, _ = cli.load_config(f"{ROOT}/configs/shakespeare_char.py", overrides)
    cli.start(config)
    with tempfile.TemporaryDirectory() as folder:
        run = setup.assemble(config, folder)
        begin = time.perf_counter()
        compiled = runs.compile_step(run)
        compile_s = time.perf_counter() - begin
        after_compile = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows = sharding.local_rows(run.mesh, config.data.batch)
        batch = sharding.global_batch(run.mesh, rows, run.train(0, rows), config.data.batch)
    state = run.create(place_key(run.mesh, 0))
    for _ in range(2):
        state, metrics = compiled(state, {}, batch)
    jax.block_until_ready(metrics)
    memory = compiled.memory_analysis()
    print(
        json.dumps(
            {
                "layers": layers,
                "compile_s": compile_s,
                "peak_after_compile_mb": after_compile / 1e3,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
                "state_mb": trees.size_bytes(run.abstract) / 1e6,
                "temporaries_mb": memory.temp_size_in_bytes / 1e6,
                "hlo_lines": compiled.as_text().count("\n"),
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="4,32")
    parser.add_argument("--work", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    for layers in arguments.layers.split(","):
        out = subprocess.run(
            [sys.executable, __file__, f"--work={layers}"], cwd=ROOT, capture_output=True, text=True
        )
        if out.returncode:
            sys.exit(out.stderr)
        r = json.loads(out.stdout)
        print(
            f"{r['layers']:3d} layers: compiled in {r['compile_s']:.1f} s, {r['hlo_lines']:,} "
            f"lines of HLO; peak memory {r['peak_after_compile_mb']:,.0f} MB after compiling, "
            f"{r['peak_mb']:,.0f} MB after two steps (state {r['state_mb']:,.0f}, temporaries "
            f"{r['temporaries_mb']:,.0f} MB a device)"
        )


if __name__ == "__main__":
    main()
