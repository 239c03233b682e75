"""The plan's closed forms beside what the TPU's compiler says of the same steps.

    python -m benchmarks.plan_accuracy [NAME …]

For each program: memory of a device, matrix FLOPs and bytes gathered, closed form over compiled.
The constants of `scaling/memory.py` were fitted to the programs of FITTED; those of UNSEEN were not
looked at for it. About a minute each; needs libtpu (pip install -r requirements-tpu.txt).
"""

import statistics
import sys
import tempfile

from jaxllm import settings
from jaxllm.scaling import compiled, estimate, machines, topology
from jaxllm.training import ahead, setup

# name: (machine, family, size, rows a chip, settings)
FITTED = {
    "gpt2": ("v4-8", "gpt2", "124m", 8, "model.remat=none data.length=1024"),
    "gpt2 light": ("v5e-8", "gpt2", "124m", 8, "model.remat=light data.length=1024"),
    "1b full": ("v5e-16", "llama", "3.2-1b", 4, ""),
    "1b none": ("v6e-8", "llama", "3.2-1b", 1, "model.remat=none"),
    "1b dots": ("v6e-16", "llama", "3.2-1b", 4, "model.remat=dots"),
    "1b data 8": ("v4-128", "llama", "3.2-1b", 4, "mesh.data=8"),
    "8b full": ("v6e-16", "llama", "3.1-8b", 4, ""),
    "8b light": ("v6e-32", "llama", "3.1-8b", 2, "model.remat=light"),
    "7b full": ("v4-128", "llama", "7b", 4, ""),
    "7b light": ("v4-128", "llama", "7b", 4, "model.remat=light"),
    "7b dots": ("v4-128", "llama", "7b", 4, "model.remat=dots"),
    "7b offload": ("v4-128", "llama", "7b", 4, "model.remat=offload"),
    "7b tensor 4": ("v4-128", "llama", "7b", 4, "mesh.tensor=4"),
    "7b stage 4": ("v4-128", "llama", "7b", 4, "mesh.stage=4 model.pipeline_pieces=4"),
    "7b seq 8": (
        *("v4-128", "llama", "7b", 0.5),
        "mesh.seq=8 data.length=32768 model.positions=32768",
    ),
    "7b light tensor 2": ("v5p-64", "llama", "7b", 4, "model.remat=light mesh.tensor=2"),
    "7b light micro 4": ("v4-128", "llama", "7b", 4, "model.remat=light step.micro_batches=4"),
    "13b full": ("v5e-256", "llama", "13b", 2, ""),
    "13b light": ("v6e-64", "llama", "13b", 2, "model.remat=light"),
    "70b full": ("v5p-256", "llama", "70b", 2, ""),
    "70b offload": ("v5p-256", "llama", "70b", 2, "model.remat=offload"),
    "70b light tensor 4": ("v5p-256", "llama", "70b", 2, "model.remat=light mesh.tensor=4"),
    "gemma2 2b": ("v5e-32", "gemma2", "2b", 2, ""),
    "qwen3 1.7b dots": ("v4-32", "qwen3", "1.7b", 4, "model.remat=dots"),
}
UNSEEN = {
    "mistral 7b light": ("v5p-32", "mistral", "7b-v0.3", 4, "model.remat=light"),
    "33b full": ("v5e-256", "llama", "1-33b", 1, ""),
    "smollm 360m none": ("v5e-16", "llama", "smollm2-360m", 4, "model.remat=none"),
    "phi3 mini dots": ("v4-64", "phi3", "3.5-mini", 2, "model.remat=dots"),
    "qwen2 0.5b light": ("v6e-8", "qwen2", "0.5b", 4, "model.remat=light"),
    "65b tensor 8": ("v4-256", "llama", "1-65b", 1, "mesh.tensor=8"),
    "8b seq 4": (
        *("v5p-64", "llama", "3.1-8b", 0.5),
        "mesh.seq=4 data.length=16384 model.remat=light",
    ),
    "8b offload": ("v6e-16", "llama", "3.1-8b", 4, "model.remat=offload"),
    "13b offload": ("v5e-256", "llama", "13b", 2, "model.remat=offload"),
    "gpt2 xl micro 2": ("v6e-4", "gpt2", "xl", 4, "data.length=1024 step.micro_batches=2"),
}
FINETUNED = {
    "70b qlora": ("v5p-8", "llama", "70b", 1, "finetune.kind=qlora"),
    "70b lora": ("v5p-8", "llama", "70b", 1, "finetune.kind=lora"),
    "8b lora": ("v6e-4", "llama", "3.1-8b", 2, "finetune.kind=lora"),
    "8b lora light": ("v5e-16", "llama", "3.1-8b", 2, "finetune.kind=lora model.remat=light"),
    "8b qlora": ("v6e-1", "llama", "3.1-8b", 4, "finetune.kind=qlora"),
    "7b qlora int8": ("v5e-4", "llama", "7b", 2, "finetune.kind=qlora finetune.base=int8"),
    "1b prefix none": ("v6e-8", "llama", "3.2-1b", 1, "finetune.kind=prefix model.remat=none"),
    "1b prompt dots": ("v6e-8", "llama", "3.2-1b", 4, "finetune.kind=prompt model.remat=dots"),
    "7b adapter tensor 4": ("v4-128", "llama", "7b", 4, "finetune.kind=adapter mesh.tensor=4"),
    "1b frozen table": ("v6e-8", "llama", "3.2-1b", 4, "finetune.freeze=^embed$"),
}


def measure(name, folder):
    """Returns (closed form over compiled of memory, FLOPs, gathered bytes; GB compiled)."""
    asked, family, size, rows, fields = {**FITTED, **UNSEEN, **FINETUNED}[name]
    machine = machines.find(asked)
    batch = str(max(round(rows * machine.count), 1))
    pairs = [("data.batch", batch), ("validate.batch", batch)]
    pairs += [tuple(field.split("=", 1)) for field in fields.split()]
    config, _ = settings.load(
        f"configs/pretrain.py:family={family},size={size}", pairs, setup.KINDS
    )
    setup.check_program(config, machine.count)
    vocab = setup.vocabulary(config)
    found = estimate.of(config, machine, vocab)
    devices = topology.tpu_devices(machine.topology)
    program = ahead.compile_step(config, devices, folder, vocab)
    read = compiled.read(program, found)
    gathered = sum(size for (_, kind, _), size in read.wire.items() if kind == "all-gather")
    total = read.arguments + read.temporaries
    return (
        found.memory.total / total,
        found.products.counted / read.flops,
        found.wire.by_kind().get("all-gather", 0) / gathered if gathered else 1.0,
        total / 1e9,
    )


PROGRAMS = {"fitted": FITTED, "unseen": UNSEEN, "finetuned": FINETUNED}


def main():
    asked = sys.argv[1:]
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        ahead.write_programs(folder)
        for which, programs in PROGRAMS.items():
            for name in programs:
                if asked and name not in asked and which not in asked:
                    continue
                try:
                    ratios[name] = memory, work, wire, total = measure(name, folder)
                except ahead.DoesNotFitError as error:
                    print(f"{name:<20} {which}: {error}", flush=True)
                    continue
                print(
                    f"{name:<20} {which}  {total:7.2f} GB, closed form {memory - 1:+.1%}; "
                    f"FLOPs {work - 1:+.2%}; gathered {wire - 1:+.1%}",
                    flush=True,
                )
    for index, what in enumerate(("memory", "FLOPs")):
        off = [abs(values[index] - 1) for values in ratios.values()]
        print(f"{what}: median {statistics.median(off):.2%}, largest {max(off):.2%} off")


if __name__ == "__main__":
    main()
