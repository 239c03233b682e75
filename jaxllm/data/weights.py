"""How many rows each source of a mixture gives: weights, temperature, stages, limits on repeats."""

import bisect
import math

from jaxllm.config import ConfigError, near

BLOCK_ROWS = 1_000


def quotas(weights, factors=None, field="config.data.sources.{}.weight"):
    """Returns {name: rows of each block} by the method of largest remainders.

    Args:
        weights: {name: weight >= 0}; a source of weight 0 is never read.
        factors: {name: number}; weights are multiplied by them.
        field: name of the weight of a source in the config, for errors.

    Raises:
        ConfigError: a weight is negative, all are zero, or one is too small for a row a block.
    """
    factors = factors or dict.fromkeys(weights, 1.0)
    whole = {name: weight * factors[name] for name, weight in weights.items()}
    total = sum(whole.values())
    for name, weight in weights.items():
        here = field.format(name)
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"{here}={weight} must be a number >= 0.\n  Try --{here}=1.0.")
        if total > 0 and 0 < whole[name] < total / BLOCK_ROWS:
            enough = total / BLOCK_ROWS / factors[name]
            raise ConfigError(
                f"{here}={weight} is less than 1/{BLOCK_ROWS} of all weights "
                f"({total / factors[name]:g}); the source would get no rows.\n"
                f"  Try --{here}={enough:.4g} or 0."
            )
    if total <= 0:
        raise ConfigError("config.data.sources: every weight is 0. Give at least one a weight.")
    return shares(whole, BLOCK_ROWS)


def shares(weights, rows):
    """Returns {name: part of `rows`} in proportion to weights, by largest remainders."""
    total = sum(weights.values())
    exact = {name: rows * weight / total for name, weight in weights.items()}
    found = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: found[name] - exact[name])
    for name in by_remainder[: rows - sum(found.values())]:
        found[name] += 1
    return found


def stages(weights, schedule, temperature, tokens, rows):
    """Returns the stages of a mixture: [(first block, {name: rows of each block})].

    A source's share is its weight times tokens^(1 / temperature): 1 is in proportion to the tokens,
    a high temperature all alike (Arivazhagan et al. 2019, section 4.2).

    Args:
        weights: {name: weight}, until the schedule's first stage.
        schedule: ((share of the run, {name: weight}), …), ascending; a source that a stage does not
            name gives no rows in it.
        temperature: 0 for weights alone.
        tokens: {name: tokens}.
        rows: rows of the whole run.

    Raises:
        ConfigError: weights or a schedule that cannot be.
    """
    check(weights, schedule, temperature)
    largest = max(tokens.values())
    factors = {
        name: (n / largest) ** (1 / temperature) if temperature else 1.0
        for name, n in tokens.items()
    }
    found = []
    if not schedule or schedule[0][0] > 0:
        found.append((0, quotas(weights, factors)))
    for share, named in schedule:
        full = dict.fromkeys(weights, 0.0) | dict(named)
        first = round(share * rows / BLOCK_ROWS)
        found.append((first, quotas(full, factors, "config.data.weights: {}")))
    return found


def of_sources(schedule, names):
    """Returns a schedule, as of `stages`, of some sources alone; without stages of none of them."""
    kept = (
        (share, {n: w for n, w in dict(part).items() if n in names}) for share, part in schedule
    )
    return tuple((at, part) for at, part in kept if any(part.values()))


def check(weights, schedule, temperature):
    """Raises ConfigError for what can be known of weights without their sources' tokens."""
    if not 0 <= temperature < float("inf"):
        raise ConfigError(
            f"config.data.temperature={temperature} must be 0 (off) or above.\n"
            "  Try --config.data.temperature=1.0, which is in proportion to the tokens."
        )
    if not schedule:
        quotas(weights)
    before = -1.0
    for stage in schedule:
        like = f"((0.0, {{{next(iter(weights))!r}: 1.0}}), …)"
        if not isinstance(stage, tuple | list) or len(stage) != 2 or not hasattr(stage[1], "items"):
            raise ConfigError(f"config.data.weights: {stage!r} is no stage. Give it as {like}.")
        share, named = stage
        if not 0 <= share < 1 or share <= before:
            raise ConfigError(
                f"config.data.weights: stages begin at shares of the run from 0 to below 1, "
                f"ascending; {share} is not after {before}. Give them as {like}."
            )
        before = share
        for name in named:
            if name not in weights:
                raise ConfigError(
                    f"config.data.weights names {name!r}, which is no source.{near(name, weights)} "
                    f"Known: {', '.join(weights)}."
                )
        quotas(dict(named), field="config.data.weights: {}")


def check_limits(limits):
    """Raises ConfigError for {name of a source: max_epochs} that cannot be."""
    for name, limit in limits.items():
        if not 0 <= limit < float("inf"):
            raise ConfigError(
                f"config.data.sources.{name}.max_epochs={limit} must be 0 (no limit) or above.\n"
                f"  Try --config.data.sources.{name}.max_epochs=4.0."
            )


def over(epochs, limits):
    """Returns the names of sources that a run would walk more often than their limits.

    Args:
        epochs: {name: epochs}.
        limits: {name: most epochs}; 0 for no limit.
    """
    return [name for name, n in epochs.items() if 0 < limits[name] < n]


def refuse(name, epochs, limit, steps):
    """Raises ConfigError for a source that a run would repeat too often.

    Args:
        epochs: steps -> {name: epochs}.
        limit: most epochs of the source.
        steps: of the run.
    """
    fewer = bisect.bisect_right(range(1, steps), limit, key=lambda n: epochs(n)[name])
    found = epochs(steps)[name]
    raise ConfigError(
        f"config.data.sources.{name}.max_epochs={limit:g}, but the {steps:,} steps of this run "
        f"walk it {found:.2f} times.\n  Try --config.steps={max(fewer, 1)}, "
        f"--config.data.sources.{name}.max_epochs={math.ceil(found)}, or "
        "--config.data.over_epochs=give, which gives the rest of its share to other sources."
    )


def give(plan, names, factors):
    """Returns stages in which some sources give fewer rows, and the others what they leave.

    Args:
        plan: stages.
        names: sources that stay as they are or fall, in this call or earlier ones.
        factors: {name: below 1} of those that fall.

    Raises:
        ConfigError: in a stage no other source has rows.
    """
    found = []
    for first, rows in plan:
        new = {name: int(n * factors.get(name, 1)) for name, n in rows.items()}
        others = {name: n for name, n in new.items() if name not in names and n}
        free = BLOCK_ROWS - sum(new.values())
        if free and not others:
            raise ConfigError(
                "config.data.over_epochs='give': all that a stage gives weight is at its "
                "max_epochs.\n  Try fewer --config.steps, or a larger max_epochs of "
                f"{', '.join(names)}."
            )
        more = shares(others, free) if free else {}
        found.append((first, {name: n + more.get(name, 0) for name, n in new.items()}))
    return found
