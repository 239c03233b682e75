"""A run's plan beside what came of it: memory, time and MFU, for summary.json."""

from jaxllm.scaling import estimate, machines, memory, share, work


def planned(run, compiled):
    """Returns what was to be expected of a step on these devices.

    Args:
        run: `setup.Run`.
        compiled: the compiled step.

    Returns:
        {"memory_bytes": of a device, by closed form, "flops": of a step on a device,
        "compiled_bytes": arguments and temporaries, by the compiler; on devices whose speed is
        known "step_s" and "mfu", each {"hidden", "exposed"}}.
    """
    vocab = run.model.config.vocab
    machine = machines.here(list(run.mesh.devices.flat), run.mesh.shape["slice"])
    if machine:
        plan = estimate.of(run.config, machine, vocab)
        held, products = plan.memory, plan.products
        times = {name: getattr(plan.times, name) for name in ("hidden", "exposed")}
        mfu = {name: plan.mfu(seconds, "palm") for name, seconds in times.items()}
        found = {"step_s": times, "mfu": mfu}
    else:
        platform = run.mesh.devices.flat[0].platform
        own = share.describe(run.config, run.mesh.size, platform, vocab)
        held, products, found = memory.of(own), work.products(own), {}
    found |= {"memory_bytes": round(held.total), "flops": products.total}
    said = compiled.memory_analysis()
    if said is not None:
        found["compiled_bytes"] = said.argument_size_in_bytes + said.temp_size_in_bytes
    return found


def measured(run, speed):
    """Returns what was measured: the devices' own peak where they tell it, the last speed.

    Args:
        run: `setup.Run`.
        speed: {"step_s", "mfu"} as last logged, or {}.
    """
    stats = run.mesh.local_devices[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    found = {name: speed[name] for name in ("step_s", "mfu") if name in speed}
    return found | ({"memory_bytes": peak} if peak else {})
