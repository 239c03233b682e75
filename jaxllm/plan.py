"""Plans a run before any machine is rented: memory, time and money.

    python -m jaxllm.plan --config=configs/NAME.py --topology=v4-128 [--compile] [--search] [--json]

--topology names the machine: v4-128, v5e-256, v4:4x4x4, h100-8, …; --slices how many of them. Left
out, it is this one: its GPUs or TPUs, or its cores, whose speed is measured.
Nothing is read and, without --compile, nothing compiled: closed forms, for a model of any size.
--compile has the TPU's own compiler make the real step (pip install -r requirements-tpu.txt; no
TPU is needed), or this machine's, and says what it says; --dump-hlo=DIR keeps the program. --search
tries meshes, micro-batches and remat, compiles the best --best=N of them and prints the line to
paste. --hf=FILE takes the model from a Hugging Face config.json. --adapt compares ways to adapt the
model to --tokens=N of data within --budget=MONEY. --plot=FILE.png draws memory and time against the
number of devices, or a search's layouts (pip install -r requirements-plot.txt).

Exit status: 0 it fits; 1 it does not; 2 a setting is wrong.
"""

import contextlib
import json
import pathlib

import jax
from absl import flags

from jaxllm import cli, host
from jaxllm.config import ConfigError
from jaxllm.models.families.hf import from_hf
from jaxllm.scaling import (
    adapt,
    changes,
    compiled,
    estimate,
    machines,
    page,
    plot,
    search,
    topology,
)
from jaxllm.training import ahead, setup


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("topology", "", "the machine, such as v4-128 or h100-8; else this one")
    flags.DEFINE_integer("slices", 1, "TPU slices, joined by the data-centre network")
    flags.DEFINE_string("hf", "", "a Hugging Face config.json that the model is taken from")
    flags.DEFINE_bool("json", False, "print one JSON object")
    flags.DEFINE_bool("compile", False, "compile the step and say what the compiler says")
    flags.DEFINE_bool("adapt", False, "compare full fine-tuning, LoRA, QLoRA, prompts, adapters")
    flags.DEFINE_float("tokens", 0, "tokens of the data to adapt to; 0: the config's whole run")
    flags.DEFINE_float("budget", 0, "money there is, in the currency of config.plan; 0: any")
    flags.DEFINE_string("plot", "", "PNG file to draw")
    flags.DEFINE_string("dump-hlo", "", "directory for the compiled program and its memory report")
    flags.DEFINE_bool("search", False, "look for the fastest layout, and compile the best")
    flags.DEFINE_integer("best", 4, "layouts that a search compiles; 0: closed form alone")


def main(file, overrides):
    """Prints the plan."""
    f = flags.FLAGS
    fields, left_out = _hf_fields(f.hf) if f.hf else ([], [])
    best = f.best if f.search else 0
    folder = ahead.write_programs(f["dump-hlo"].value) if f.compile or best else ""
    machine = _machine(file, [*fields, *overrides])
    if f.compile or (best and f["best"].present):
        _check_compiler(machine)

    def plan(more=()):
        config, notes = cli.load_config(file, [*fields, *overrides, *more])
        setup.check_program(config, machine.count)
        left_out.extend(note for note in notes if note not in left_out)
        return estimate.of(config, machine, setup.vocabulary(config))

    found = plan()
    data, text = page.as_dict(found, found.share.config.plan), page.as_text(found)
    if f.hf:
        data["sizes"], words = page.sizes(found.share.infos)
        text += "\n\n" + words
    fits, needed = found.fits, found.memory.total
    if f.compile:
        own, needed = _compile(found, folder, keep=bool(f["dump-hlo"].value))
        fits = needed <= machine.device.hbm_bytes
        data["compiled"] = compiled.with_mfu(own, found) if own else {"needed": needed}
        text += "\n\n" + (page.compiled_text(own, found) if own else page.no_room(needed, found))
    if f.adapt:
        ways, rule = _adapt(found, file, [*fields, *overrides], f.tokens, f.budget)
        data["adapt"] = dict(ways=[way._asdict() for way in ways], verdict=rule)
        text += "\n\n" + page.ways_text(ways, rule, found)
        fits = any(way.fits for way in ways)
    if f.search:
        tried, own = _search(found, plan, best if _has_compiler(machine) else 0, folder)
        data["search"] = [page.layout_dict(one) for one in search.pareto(tried)]
        text += "\n\n" + page.search_text(tried, own)
        fits = any(one.fits for one in tried)
        if f.plot:
            plot.pareto(tried, search.pareto(tried), f.plot)
    elif not fits and not f.adapt:
        data["smallest_change"] = change = changes.smallest(plan, found, needed)
        text += "\n\n" + page.change_text(change)
    if f.plot and not f.search:
        plot.against_devices(_sizes(found, file, [*fields, *overrides]), f.plot)
    notes = "".join(f"note: {note}\n" for note in left_out)
    print(json.dumps(data, indent=1) if f.json else notes + text)
    return 0 if fits else 1


def _machine(file, overrides):
    """The `machines.Machine` that is asked for, or this one."""
    f = flags.FLAGS
    if f.topology:
        return machines.find(f.topology, f.slices)
    config = cli.load_config(file, overrides)[0]
    host.keep_freed_memory()  # as a run does, or what is measured is slower
    cli.present_cores(config)
    machine = machines.here(jax.devices(), config.mesh.slice)
    if machine is None:
        raise ConfigError(
            f"what {jax.devices()[0].device_kind!r} can do is not known.\n  Name a machine that is "
            "like it: --topology=h100-8."
        )
    return machine


def _has_compiler(machine):
    """Whether a step can be compiled for a machine: any TPU slice, and what is here."""
    return bool(machine.topology) or machine.name == "here"


def _check_compiler(machine):
    if not _has_compiler(machine):
        raise ConfigError(
            f"--compile is for TPUs and for this machine: no compiler is here for {machine.name}."
            "\n  Leave --compile out (of a search with --best=0), or try --topology=v4-128."
        )


def _sizes(found, file, overrides):
    """The same batch on all sizes of the machine's family that it divides over: [Estimate]."""
    sizes = []
    for name in machines.sizes_of(found.machine.family):
        machine = machines.find(name)
        try:
            config = cli.load_config(file, overrides)[0]
            setup.check_program(config, machine.count)
        except ConfigError:
            continue
        sizes.append(estimate.of(config, machine, setup.vocabulary(config)))
    return sizes


def _adapt(found, file, overrides, tokens, budget):
    """Returns ([`adapt.Way`], the verdict)."""
    config = found.share.config
    tokens = tokens or found.step_tokens * config.steps
    price = page.price(config.plan, found.machine)
    # One row a device, everything split over all of them: what takes least.
    least = [(f"mesh.{axis}", "1") for axis in config.mesh] + [("mesh.fsdp", "-1")]
    least += [("model.remat", "full"), ("step.micro_batches", "1")]
    plain = [pair for pair in overrides if not pair[0].startswith("finetune.")]

    def of_kind(kind, machine, more=()):
        method = [] if kind == config.finetune.kind else [("finetune.kind", kind)]
        fields = [*(plain if method else overrides), *method, *more]
        other = cli.load_config(file, fields)[0]
        setup.check_program(other, machine.count)
        return estimate.of(other, machine, setup.vocabulary(other))

    def smallest(kind):
        for name in machines.singles():
            machine = machines.find(name)
            rows = [(f"{part}.batch", str(machine.count)) for part in ("data", "validate")]
            if of_kind(kind, machine, [*least, *rows]).fits:
                return name
        return None

    of_kinds = {config.finetune.kind: found}
    for kind in adapt.WAYS.values() - of_kinds.keys():
        with contextlib.suppress(ConfigError):  # not all models have a place for all
            of_kinds[kind] = of_kind(kind, found.machine)
    machine_of = {kind: smallest(kind) for kind in of_kinds}
    possible = {way: kind for way, kind in adapt.WAYS.items() if kind in of_kinds}
    ways = adapt.compare(
        {way: of_kinds[kind] for way, kind in possible.items()},
        tokens,
        price,
        {way: machine_of[kind] for way, kind in possible.items()},
    )
    return ways, adapt.verdict(ways, tokens, budget)


def _hf_fields(file):
    """Returns ([(field, text)], notes) of a Hugging Face config.json."""
    try:
        data = json.loads(pathlib.Path(file).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--hf={file}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"--hf={file} holds no JSON object.")
    values, notes = from_hf(data)
    return [(f"model.{name}", str(value)) for name, value in values.items()], notes


def _search(found, plan, best, folder):
    """Returns ([`search.Layout`], the fastest that fits first, the best compiled; the config's)."""

    def compile_one(layout):
        return _compile(layout.found, folder)

    own = search.Layout((), found, None, found.memory.total)
    tried = search.layouts(plan, found)
    if best:
        tried = search.compile_best(tried, compile_one, best)
        own = search.compile_best([own], compile_one, 1)[0]
    return tried, own


def _compile(found, folder, keep=False):
    """Compiles a step; returns (`compiled.Compiled`, or None without room, bytes it needs).

    Args:
        found: `estimate.Estimate`.
        folder: as `ahead.write_programs` returned.
        keep: whether it is wanted for what is written to it: then nothing is looked up.
    """
    machine, config = found.machine, found.share.config
    if machine.topology:
        devices = topology.tpu_devices(machine.topology, machine.slices)
    else:
        devices = jax.devices()

    def make():
        try:
            program = ahead.compile_step(config, devices, folder, setup.vocabulary(config))
        except ahead.DoesNotFitError as error:
            return {"needed": error.needed + found.memory.arguments}
        return compiled.as_dict(compiled.read(program, found))

    words = f"{devices[0].device_kind} {machine.topology} {machine.count} {machine.slices}"
    data = make() if keep else ahead.remembered(config, words, make)
    if "needed" in data:
        return None, data["needed"]
    own = compiled.from_dict(data)
    return own, own.peak


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
