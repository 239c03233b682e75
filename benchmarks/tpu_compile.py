"""Compiles a config's train step for a TPU slice that is not there, and says what a chip does.

    .venv/bin/pip install -r requirements-tpu.txt
    .venv/bin/python -m benchmarks.tpu_compile [--topology=v4:4x4x4] [--rows=4] [--dump=DIR]
        [--config=configs/pretrain.py:family=llama,size=7b] [--config.model.remat=full …]

`rows` of `config.data.length` tokens a chip (0.125 with --config.mesh.seq=8). Prints bytes of
arguments and temporaries, bytes on the wire by collective, FLOPs of matrix products and the
compiler's estimated cycles, a chip and step; kernels written by hand have no estimate. MaxText
0.2.5 for Llama-2-7B with 4 x 2,048 tokens a chip on v4:4x4x4, full remat: 1.264 and 4.70 GB, 26.2
GB gathered, 13.2 GB reduced, 4.07e14 FLOPs, 2.13e9 cycles.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

os.environ["JAX_PLATFORMS"] = "cpu"

from jaxllm import settings, sharding
from jaxllm.scaling import hlo, topology
from jaxllm.training import setup


def compile_step(config, devices):
    """Returns the train step of a config compiled for the devices of a TPU slice."""
    run = setup.assemble_program(config, config.model.vocab or 256, devices)
    batch = setup.abstract_batch(run, config.data.batch)
    traced = run.step.trace(run.abstract, {}, batch)
    return traced.lower(lowering_platforms=("tpu",)).compile()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--topology", default="v4:4x4x4")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--rows", type=float, default=4)
    parser.add_argument("--dump", default="")
    parser.add_argument("--config", default="configs/pretrain.py:family=llama,size=7b")
    options, rest = parser.parse_known_args()
    _, overrides, _ = settings.split_arguments([f"--config={options.config}", *rest])
    scratch = tempfile.TemporaryDirectory()
    folder = pathlib.Path(options.dump or scratch.name)
    # The compiler writes its text itself: that of some programs for v5p cannot be had from jax.
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder} --xla_dump_hlo_as_text "
        "--xla_dump_hlo_module_re=jit_step"
    )
    devices = topology.tpu_devices(options.topology, options.slices)
    rows = round(options.rows * len(devices))
    fields = [("tokenizer.kind", "byte"), ("data.batch", str(rows)), ("validate.batch", str(rows))]
    config, _ = settings.load(options.config, [*fields, *overrides], setup.KINDS)
    mesh = sharding.mesh_shape(config.mesh, len(devices))
    start = time.perf_counter()
    compiled = compile_step(config, devices)
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    costs = hlo.costs(next(folder.glob("*.after_codegen.txt")).read_text())
    wire = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sorted(costs.wire.items()))
    print(
        f"{options.topology}, {len(devices)} chips as {sharding.words(mesh)}: "
        f"arguments {memory.argument_size_in_bytes / 1e9:.3f} GB, temporaries "
        f"{memory.temp_size_in_bytes / 1e9:.2f} GB; on the wire, GB: {wire}; "
        f"{costs.matmul_flops:.3e} matrix FLOPs, {costs.cycles:.3e} cycles; "
        f"compiled in {seconds:.0f} s"
    )
    if options.dump:
        report = next(folder.glob("*after_optimizations-memory-usage-report.txt"))
        print("".join(report.read_text().splitlines(True)[:24]), file=sys.stderr)


if __name__ == "__main__":
    main()
