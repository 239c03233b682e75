"""A plan, as a page to read and as one JSON object."""

import math

from jaxllm import sharding
from jaxllm.scaling import counts, flops, search
from jaxllm.scaling.devices import GB, GIB
from jaxllm.scaling.machines import memory_words

CONVENTIONS = {"palm": "full attention", "causal": "causal attention"}


def as_dict(found, prices):
    """Returns a plan as plain data; sizes in bytes, times in seconds.

    Args:
        found: `estimate.Estimate`.
        prices: `config.plan`: {"prices": {family: money a device and hour}, "currency", "date"}.
    """
    share, machine, times = found.share, found.machine, found.times
    c, config, step = share.c, share.config, found.memory
    data = dict(
        machine=dict(name=machine.name, devices=machine.count, slices=machine.slices),
        mesh=dict(share.shape),
        sharding=config.sharding,
        remat=c.remat,
        attention=c.attention,
        parameters=found.counts._asdict() | {"trained": share.trained_count},
        tokens=dict(
            step=found.step_tokens,
            run=found.step_tokens * config.steps,
            chinchilla=counts.chinchilla_tokens(found.counts.total),
        ),
        memory=dict(
            state=step.state,
            step=step.step,
            phase=step.phase,
            offloaded=step.offloaded,
            total=step.total,
            device=machine.device.hbm_bytes,
            fits=found.fits,
        ),
        flops=dict(
            a_token={name: flops.of_run(config, c, name) for name in CONVENTIONS},
            a_step_and_device=found.products._asdict(),
        ),
        wire={f"{axes} {kind}": size for (axes, kind), size in found.wire.parts.items()},
        time=dict(
            matrices=times.matrices,
            kernels=times.kernels,
            passes=times.passes,
            wire=times.wire,
        ),
    )
    for name in ("hidden", "exposed"):
        seconds = getattr(times, name)
        hours = found.hours(seconds)
        data[name] = dict(
            step_s=seconds,
            tokens_per_s=found.step_tokens / seconds,
            mfu={kind: found.mfu(seconds, kind) for kind in CONVENTIONS},
            hours=hours,
            device_hours=hours * machine.count,
            cost=_cost(prices, machine, hours),
        )
    return data | {"currency": prices.currency, "prices_of": prices.date}


def price(prices, machine):
    """Money a device and hour, or None where it is not known."""
    return prices.prices.get(machine.family.replace("-", "_"))


def _cost(prices, machine, hours):
    """Money of a run, or None where no price is known."""
    each = price(prices, machine)
    return None if each is None else each * machine.count * hours


def as_text(found):
    """Returns a plan as a page."""
    share, machine = found.share, found.machine
    plan = as_dict(found, share.config.plan)
    c, config = share.c, share.config
    lines = [
        ("machine", _machine_words(machine)),
        ("mesh", f"{sharding.words(share.shape)}, {config.sharding}"),
        ("model", f"{config.model.family} {config.model.size}".strip() + f", {_model_words(c)}"),
        ("parameters", _parameter_words(found.counts)),
        *_trained_lines(share),
        ("attention", c.attention + ("" if not share.bubble else f"; bubble {share.bubble:.1%}")),
        ("remat", c.remat),
        ("tokens", _token_words(plan["tokens"], config)),
        ("", ""),
        *_memory_lines(found),
        ("", ""),
        *_flop_lines(plan, found),
        ("", ""),
        *_time_lines(plan, found),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"  {name:<{width}}  {text}".rstrip() for name, text in lines)


def _machine_words(machine):
    device = machine.device
    grid = "x".join(map(str, machine.shape))
    slices = f"{machine.slices} of " if machine.slices > 1 else ""
    return (
        f"{machine.name}: {machine.count} devices ({slices}{grid}), each "
        f"{device.peak_flops / 1e12:.3g} TFLOP/s, {memory_words(device.hbm_bytes)} at "
        f"{device.hbm_bytes_per_s / GB:,.4g} GB/s"
    )


def _model_words(c):
    heads = f"{c.heads} heads" + (f" over {c.kv_heads}" if c.kv_heads != c.heads else "")
    return f"{c.layers} layers x {c.width}, {heads}, MLP {c.mlp_width}, vocabulary {c.vocab:,}"


def _parameter_words(found):
    words = f"{found.total:,}; {found.without_tables:,} without look-up tables"
    return words + (f"; {found.active:,} active" if found.active != found.total else "")


def _trained_lines(share):
    """What a method trains, over what it leaves as it is."""
    if not share.frozen:
        return []
    sizes = (math.prod(info.shape) * info.dtype.itemsize for info in share.frozen.values())
    number, whole = share.trained_count, sum(sizes) / GB
    words = f"{number:,} ({share.config.finetune.kind}), over {whole:,.3f} GB that are frozen"
    return [("trained", words)]


def _token_words(tokens, config):
    ratio = tokens["run"] / tokens["chinchilla"]
    return (
        f"{tokens['step']:,} a step, {tokens['run']:.3g} in {config.steps:,} steps: "
        f"{ratio:.2f} x the {tokens['chinchilla']:.3g} of Chinchilla (20 a parameter)"
    )


def _memory_lines(found):
    memory = found.memory
    parts = [(name, size) for name, size in memory.state.items()]
    parts += [(f"{name} ({memory.phase})", size) for name, size in memory.step.items() if size]
    lines = [("memory, GB", f"{size / GB:9.3f}  {name}") for name, size in parts]
    room = found.machine.device.hbm_bytes
    words = "fits" if found.fits else "DOES NOT FIT"
    share = memory.total / room
    total = f"{memory.total / GB:9.3f}  of {room / GB:.1f} a device ({share:.0%}): {words}"
    lines.append(("", total))
    if found.share.c.assembly != "decoder" and found.machine.platform != "cpu":
        lines.append(("", f"{'':9}  of an encoder too high, by up to a half; --compile says"))
    elif found.share.c.assembly != "decoder" and found.share.c.remat != "none":
        lines.append(("", f"{'':9}  of an encoder with remat too low, by up to a third; --compile"))
    if memory.offloaded:
        lines.append(("", f"{memory.offloaded / GB:9.3f}  in the host's memory, besides"))
    return [lines[0], *((("", text) for _, text in lines[1:]))]


def _flop_lines(plan, found):
    a_token, products = plan["flops"]["a_token"], found.products
    again = products.again / products.total
    return [
        *(
            ("FLOPs a token" if i == 0 else "", f"{a_token[name]:.4g} ({words})")
            for i, (name, words) in enumerate(CONVENTIONS.items())
        ),
        ("executed", f"{products.total:.4g} a step and device, {again:.0%} of it recomputed"),
    ]


def _time_lines(plan, found):
    time = plan["time"]
    wire = ", ".join(f"{axes} {s:.3g}" for axes, s in time["wire"].items()) or "nothing"
    lines = [
        (
            "step, s",
            f"products {time['matrices']:.3g}, attention {time['kernels']:.3g}, "
            f"passes over memory {time['passes']:.3g}; on the wire: {wire}",
        ),
    ]
    for name, words in (("hidden", "wire hidden"), ("exposed", "wire exposed")):
        one = plan[name]
        mfu = ", ".join(f"{100 * one['mfu'][k]:.1f} % {w}" for k, w in CONVENTIONS.items())
        money = "" if one["cost"] is None else f", {one['cost']:,.0f} {plan['currency']}"
        lines.append(
            (
                words,
                f"{one['step_s']:.3g} s a step, {one['tokens_per_s']:,.0f} tokens/s, MFU {mfu}; "
                f"{one['hours']:,.1f} h, {one['device_hours']:,.0f} device hours{money}",
            )
        )
    if plan["hidden"]["cost"] is not None:
        lines.append(("", f"prices of {plan['prices_of']}: config.plan.prices"))
    return lines


def sizes(infos):
    """Returns (data, page) of what a model takes to be used, and to be trained in float32.

    Args:
        infos: {path: ParamInfo}.

    As `accelerate estimate-memory` prints it: its GB are 2^30 bytes, and a bare model has no head.
    """
    data, lines = {}, ["  to use it, GB of 2^30 bytes (accelerate's convention):"]
    for name, head in (("with the head", True), ("without", False)):
        found = counts.sizes(infos, head=head)
        data[name.replace(" ", "_")] = found._asdict()
        parts = dict(float32=1, bfloat16=2, int8=4, int4=8)
        each = ", ".join(f"{dtype} {found.total / n / GIB:.2f}" for dtype, n in parts.items())
        lines.append(
            f"    {name:<14} {each}; largest layer {found.largest_layer / GIB:.2f}; "
            f"Adam in float32 {found.adam / GIB:.2f}"
        )
    return data, "\n".join(lines)


def compiled_text(own, found):
    """Returns what the compiler says of a step, beside the closed form.

    Args:
        own: `compiled.Compiled`.
        found: `estimate.Estimate` of the same step.
    """
    memory, machine = found.memory, found.machine
    lines = [
        (
            "compiled",
            f"in {own.seconds:.0f} s for {machine.topology or machine.platform}; closed form in "
            "brackets",
        ),
        (
            "memory, GB",
            f"{own.arguments / GB:.3f} arguments ({memory.arguments / GB:.3f}), "
            f"{own.temporaries / GB:.3f} temporaries ({memory.temporaries / GB:.3f}); peak "
            f"{own.peak / GB:.3f} of {machine.device.hbm_bytes / GB:.1f}",
        ),
        (
            "FLOPs",
            f"{own.flops:.4e} ({found.products.counted:.4e}), {own.recomputed:.0%} recomputed, "
            "kernels not counted",
        ),
    ]
    for (axes, kind, hidden), size in sorted(own.wire.items(), key=lambda item: -item[1]):
        if size > 1e6:
            how = "while computing" if hidden else "computing waits"
            lines.append(("on the wire", f"{size / GB:9.3f} GB  {kind} over {axes}, {how}"))
    if own.cycles:
        lines.append(
            (
                "cycles",
                f"{own.cycles:.4g} at {machine.device.clock_hz / 1e9:.2f} GHz: "
                f"{own.cycles / machine.device.clock_hz:.3g} s, and attention's kernels "
                f"{found.times.kernels:.3g} s by closed form",
            )
        )
    for name, words in (("hidden", "wire hidden"), ("exposed", "wire exposed")):
        seconds = getattr(own, name)
        mfu = ", ".join(f"{100 * found.mfu(seconds, k):.1f} % {w}" for k, w in CONVENTIONS.items())
        lines.append((words, f"{seconds:.3g} s a step, MFU {mfu}"))
    for i, buffer in enumerate(own.buffers):
        made = buffer.line or buffer.operation.rpartition("/")[2] or "moved"
        label = "largest, GB" if i == 0 else ""
        lines.append((label, f"{buffer.size / GB:9.3f}  {buffer.type:<28} {made}"))
    width = max(len(name) for name, _ in lines)
    shown, last = [], None
    for name, text in lines:
        shown.append(f"  {'' if name == last else name:<{width}}  {text}")
        last = name
    return "\n".join(shown)


def no_room(needed, found):
    """Says that the compiler found no room."""
    room = found.machine.device.hbm_bytes
    return (
        f"  The compiler needs {needed / GB:.2f} GB a device (closed form "
        f"{found.memory.total / GB:.2f}) and there are {room / GB:.1f}: DOES NOT FIT"
    )


def change_text(change):
    """Says what to change, as `changes.smallest` found it, so that a step fits."""
    if change is None:
        return (
            "  No remat, micro-batches or splitting make it fit: take more devices or fewer rows."
        )
    words = " ".join(f"--config.{field}={text}" for field, text in change["settings"])
    return (
        f"  The smallest change that fits: {words}\n  ({change['memory'] / GB:.1f} GB, "
        f"{change['step_s']:.3g} s a step)"
    )


def ways_text(ways, rule, found):
    """Returns the ways to adapt a model as a table, and the verdict.

    Args:
        ways: as `adapt.compare` returns.
        rule: as `adapt.verdict` returns.
        found: `estimate.Estimate` that they were compared on.
    """
    currency = found.share.config.plan.currency
    lines = [
        f"  {'':<9}{'trained':>18}{'GB':>9}{'tokens':>10}{'hours':>10}{currency:>10}  smallest"
    ]
    for way in ways:
        money = "" if way.cost is None else f"{way.cost:,.0f}"
        lines.append(
            f"  {way.name:<9}{way.trained:>18,}{way.memory / GB:>9.1f}{way.tokens:>10.1e}"
            f"{way.hours:>10,.1f}{money:>10}  {way.machine or 'none known'}"
            + ("" if way.fits else f" (not {found.machine.name})")
        )
    return "\n".join([*lines, f"  Take {rule[0]}: {rule[1]}."])


def layout_dict(one):
    """A `search.Layout` as plain data."""
    return dict(
        settings=[list(pair) for pair in one.settings],
        memory=one.needed,
        step_s=one.seconds,
        hidden_s=(one.compiled or one.found.times).hidden,
        compiled=one.compiled is not None,
    )


def search_text(tried, own):
    """Returns the best layouts of a search, and the line to paste.

    Args:
        tried: [`search.Layout`], the fastest that fits first.
        own: `search.Layout` of the config as it is.
    """
    fitting = [one for one in tried if one.fits]
    if not fitting:
        return f"  None of {len(tried)} layouts fits: take more devices or fewer rows."
    best = search.pareto(tried)
    shown = {one.settings: one for one in [*(o for o in tried if o.compiled), *best]}
    lines = [
        f"  {len(tried)} layouts divide, {len(fitting)} fit; GB a device, seconds exposed, hidden:",
        *(_layout_line(one, one in best) for one in shown.values()),
        _layout_line(own, False) + "(the config as it is)",
        "  * no other is better in both memory and time",
        f"  The fastest, in {fitting[0].seconds / own.seconds:.0%} of the config's time:",
        f"    {fitting[0].line}",
    ]
    return "\n".join(lines)


def _layout_line(one, best):
    made = "compiled" if one.compiled else "closed"
    hidden = (one.compiled or one.found.times).hidden
    mark = "*" if best else " "
    return f"  {one.needed / GB:7.2f} {one.seconds:8.4g} {hidden:8.4g}  {made:<8} {mark} {one.line}"
