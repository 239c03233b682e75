"""The plan beside this machine: memory and seconds of real steps, planned, compiled and measured.

    python -m benchmarks.plan_here [NAME …]

On a CPU what is measured is how far the process's peak of resident memory grows while the state is
made and four steps are run; on a GPU or TPU its own peak. Each program runs in a process of its
own. About half a minute each.
"""

import json
import statistics
import subprocess
import sys
import time

import jax

from benchmarks import rounds
from jaxllm import cli, sharding
from jaxllm.data import empty_batch
from jaxllm.scaling import estimate, hlo, machines, memory
from jaxllm.training import setup
from jaxllm.training.run import compile_step

_CHARS, _PRETRAIN = "configs/shakespeare_char.py", "configs/pretrain.py:family="
# platform: {name: (config, settings)}.
PROGRAMS = {
    "cpu": {
        "default": (_CHARS, "model.vocab=66"),
        "one device": (_CHARS, "model.vocab=66 runtime.cpu_devices=1"),
        "nanogpt": (f"{_CHARS}:nanogpt_cpu", "model.vocab=66 data.batch=96 validate.batch=96"),
        "wider": (_CHARS, "model.vocab=66 model.width=384 model.mlp_width=1024 data.length=256"),
        "deep": (_CHARS, "model.vocab=66 model.layers=12"),
        "remat full": (_CHARS, "model.vocab=66 model.remat=full data.batch=96 validate.batch=96"),
        "remat light": (_CHARS, "model.vocab=66 model.remat=light data.batch=48 validate.batch=48"),
        "gpt2 124m": (
            f"{_PRETRAIN}gpt2,size=124m",
            "data.batch=2 validate.batch=2 data.length=512 model.dtype=float32",
        ),
        "smollm 135m": (
            f"{_PRETRAIN}llama,size=smollm2-135m",
            "data.batch=2 validate.batch=2 data.length=512 model.dtype=float32 model.remat=full",
        ),
    },
    "gpu": {
        "124m": (f"{_PRETRAIN}gpt2,size=124m", "data.batch=16 validate.batch=16 data.length=1024"),
        "1b light": (
            f"{_PRETRAIN}llama,size=3.2-1b",
            "data.batch=8 validate.batch=8 model.remat=light",
        ),
        "8b full": (
            f"{_PRETRAIN}llama,size=3.1-8b",
            "data.batch=4 validate.batch=4 model.remat=full optim.kind=adamw8bit",
        ),
    },
}
PROGRAMS["tpu"] = PROGRAMS["gpu"]


def measure(file, fields):
    """Runs a program; returns {"planned", "compiled", "measured" bytes of a process, …}."""
    overrides = [tuple(field.split("=", 1)) for field in fields.split()]
    config, _ = cli.load_config(file, overrides)
    cli.present_cores(config)
    devices = jax.devices()
    machine = machines.here(devices)
    setup.check_program(config, len(devices))
    vocab = setup.vocabulary(config)
    found = estimate.of(config, machine, vocab)
    run = setup.assemble_program(config, vocab, devices)
    step = compile_step(run)
    place = sharding.batch_sharding(run.mesh)
    batch = jax.device_put(empty_batch(config.data.batch, config.data.length), place)
    jax.block_until_ready(run.create(jax.random.key(0)))  # compiles, and is let go
    before = rounds.settle() if machine.platform == "cpu" else 0
    state = run.create(jax.random.key(0))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        state, metrics = step(state, {}, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    if machine.platform == "cpu":
        peak = rounds.status("VmHWM") - before
    else:
        peak = devices[0].memory_stats()["peak_bytes_in_use"] * len(devices)
    said = step.memory_analysis()
    scratch = 1 + memory.SCRATCH[machine.platform]
    return dict(
        planned=found.memory.total * len(devices),
        compiled=(said.argument_size_in_bytes + said.temp_size_in_bytes * scratch) * len(devices),
        measured=peak,
        planned_flops=found.products.counted,
        compiled_flops=hlo.costs(step.as_text()).matmul_flops,
        hidden=found.times.hidden,
        exposed=found.times.exposed,
        seconds=statistics.median(seconds[1:]),
    )


def main():
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(*sys.argv[2:])))
        return
    platform = jax.devices()[0].platform
    asked = sys.argv[1:]
    off = []
    for name, program in PROGRAMS[platform].items():
        if asked and name not in asked:
            continue
        command = [sys.executable, "-m", "benchmarks.plan_here", "--one", *program]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        data = json.loads(done.stdout.splitlines()[-1])
        closed, said = (data[kind] / data["measured"] - 1 for kind in ("planned", "compiled"))
        off.append((abs(closed), abs(said)))
        print(
            f"{name:<12} {data['measured'] / 1e6:8.1f} MB measured, closed form {closed:+.1%}, "
            f"compiled {said:+.1%}; FLOPs "
            f"{data['planned_flops'] / data['compiled_flops'] - 1:+.2%}; {data['seconds']:.3g} s a "
            f"step, planned {data['hidden']:.3g} to {data['exposed']:.3g}",
            flush=True,
        )
    for which, values in zip(("closed form", "compiled"), zip(*off, strict=True), strict=True):
        print(f"{which}: median {statistics.median(values):.1%}, largest {max(values):.1%} off")


if __name__ == "__main__":
    main()
