"""The loop of decoding on the device: draw a token a row, extend, until all rows are done."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import ConfigError
from jaxllm.models.generate import choices as tries
from jaxllm.models.generate.decoder import Decoder, decoder
from jaxllm.models.generate.sampling import Seen, choose, is_one_of, penalise


class Plan(NamedTuple):
    """What is the same for all rows and steps of a loop; hashable.

    Attributes:
        how: `Sampling`.
        eos: tokens that end a row, a tuple.
        top: alternatives whose log-probabilities are kept at each place; 0 for none.
        trie: `choices.Trie`, or None.
    """

    how: Any
    eos: tuple = ()
    top: int = 0
    trie: Any = None


class State(NamedTuple):
    """What a loop changes; axis 0 of every array counts rows.

    Attributes:
        cache: as `Decoder.empty` makes it.
        token_B: drawn last and not yet in the cache, int32.
        left_B: tokens that may still be drawn, int32; 0 for a row that is done or empty.
        drawn_B: tokens drawn so far, int32.
        seed_B: uint32; with the number of a token, it gives the key that this is drawn by.
        node_B: place in the trie of choices, int32.
        seen: `Seen`, or None where no penalty needs it.
    """

    cache: Any
    token_B: Any
    left_B: Any
    drawn_B: Any
    seed_B: Any
    node_B: Any
    seen: Any


class Drawn(NamedTuple):
    """Tokens that were drawn.

    Attributes:
        tokens: int32[B, N]; -1 (the end token, of `make_generate`) past a row's end.
        logp: float32[B, N], log-probability of each under the model's own distribution (after
            penalties and constraints, before temperature and cuts); 0 past the end.
        top_tokens, top_logp: [B, N, top], the most likely ones and theirs.
    """

    tokens: Any
    logp: Any
    top_tokens: Any
    top_logp: Any


def pad(prompts, length=0, value=0):
    """Stacks token lists of unequal length, padding at the end.

    Args:
        prompts: lists of token ids, none empty.
        length: of a row; 0 for the longest.
        value: token that stands on the padding.

    Returns:
        {"tokens", "position", "segment": numpy int32[B, T]}; segment is 0 on the padding.
    """
    T = length or max(len(p) for p in prompts)
    batch = {n: np.zeros((len(prompts), T), np.int32) for n in ("tokens", "position", "segment")}
    batch["tokens"] += value
    for row, prompt in enumerate(prompts):
        n = len(prompt)
        batch["tokens"][row, :n] = prompt
        batch["position"][row, :n] = np.arange(n)
        batch["segment"][row, :n] = 1
    return batch


def start(decoder, plan, weights, batch, limit_B, seed_B, length, inputs=0):
    """Reads prompts into an empty cache and draws the first token of each.

    Args:
        decoder: `Decoder`.
        plan: `Plan`.
        weights: what `Decoder.prepare` returns.
        batch: as `pad` returns it.
        limit_B: tokens to draw a row, int32.
        seed_B: uint32.
        length: tokens that the cache has room for, at least.
        inputs: of an encoder's inputs, too.

    Returns:
        (State, Drawn of one token a row).
    """
    B, T = batch["tokens"].shape
    room = max(length, decoder.row(T))
    logits_B1V, cache, batch = decoder.read(weights, batch, room, inputs=inputs)
    seen = None
    if plan.how.penalises:
        none_BV = jnp.zeros((B, decoder.vocab), bool)
        # Padding is put where there is no such token, and dropped.
        token_BT = jnp.where(batch["segment"] > 0, batch["tokens"], decoder.vocab)
        has_BV = none_BV.at[jnp.arange(B)[:, None], token_BT].set(True, mode="drop")
        seen = Seen(has_BV, jnp.zeros((B, decoder.vocab), jnp.int32))
    zero_B = jnp.zeros(B, jnp.int32)
    limit_B = jnp.where(jnp.any(batch["segment"] > 0, axis=1), limit_B, 0)
    state = State(cache, zero_B, limit_B, zero_B, jnp.asarray(seed_B, jnp.uint32), zero_B, seen)
    return draw(plan, state, logits_B1V[:, 0])


def draw(plan, state, logits_BV):
    """Draws a token for every row that is not done. Returns (State, Drawn [B, 1])."""
    how, alive_B = plan.how, state.left_B > 0
    if plan.trie is not None:
        logits_BV = tries.allow(plan.trie, logits_BV, state.node_B)

    def key_of(seed, number):
        return jax.random.fold_in(jax.random.key(seed), number)

    key_B = None if how.temperature == 0 else jax.vmap(key_of)(state.seed_B, state.drawn_B)
    token_B = choose(logits_BV, key_B, how, state.seen)
    if how.penalises:
        logits_BV = penalise(logits_BV, state.seen, how)
    partition_B = jax.nn.logsumexp(logits_BV, axis=-1)
    row_B = jnp.arange(token_B.shape[0])
    logp_B = jnp.where(alive_B, logits_BV[row_B, token_B] - partition_B, 0.0)
    top_logp, top_tokens = (a[:, None] for a in jax.lax.top_k(logits_BV, plan.top))
    found = Drawn(
        jnp.where(alive_B, token_B, -1)[:, None],
        logp_B[:, None],
        top_tokens,
        top_logp - partition_B[:, None, None],
    )
    done_B, node_B = is_one_of(token_B, plan.eos), state.node_B
    if plan.trie is not None:
        node_B = tries.follow(plan.trie, node_B, token_B)
        done_B |= tries.is_end(plan.trie, node_B)
    seen = state.seen
    if seen is not None:
        seen = seen._replace(
            drawn_BV=seen.drawn_BV.at[row_B, token_B].add(alive_B.astype(jnp.int32))
        )
    state = state._replace(
        token_B=jnp.where(alive_B, token_B, state.token_B),
        left_B=jnp.where(done_B, 0, jnp.maximum(state.left_B - 1, 0)),
        drawn_B=state.drawn_B + alive_B,
        node_B=node_B,
        seen=seen,
    )
    return state, found


def step(decoder, plan, weights, state):
    """Extends every row that is not done by its last token and draws the next."""
    alive_B1 = (state.left_B > 0).astype(jnp.int32)[:, None]
    batch = {"tokens": state.token_B[:, None], "segment": alive_B1}
    logits_B1V, cache = decoder.extend(weights, batch, state.cache)
    return draw(plan, state._replace(cache=cache), logits_B1V[:, 0])


def several(decoder, plan, weights, state, steps):
    """Takes `steps` steps, fewer where all rows are done before. Returns (State, Drawn [B, N])."""
    B = state.token_B.shape[0]

    def more(carry):
        return (carry[0] < steps) & jnp.any(carry[1].left_B > 0)

    def one(carry):
        number, state, found = carry
        state, new = step(decoder, plan, weights, state)
        put = jax.lax.dynamic_update_slice_in_dim
        return number + 1, state, jax.tree.map(lambda a, b: put(a, b, number, 1), found, new)

    nothing = Drawn(
        jnp.full((B, steps), -1, jnp.int32),
        jnp.zeros((B, steps)),
        jnp.zeros((B, steps, plan.top), jnp.int32),
        jnp.zeros((B, steps, plan.top)),
    )
    _, state, found = jax.lax.while_loop(more, one, (jnp.int32(0), state, nothing))
    return state, found


def check_room(decoder, prompt, tokens):
    """Raises ConfigError where prompt and new tokens exceed the model's learned positions."""
    if decoder.start >= 0 and decoder.positions and max(prompt, tokens) > decoder.positions:
        raise ConfigError(
            f"{prompt} prompt tokens, or {tokens} new ones, exceed the model's "
            f"{decoder.positions} learned positions. Shorten what is more."
        )
    if decoder.start < 0 and decoder.positions and prompt + tokens > decoder.positions:
        room = decoder.positions - prompt
        advice = f"Ask for at most {room} tokens." if room > 0 else "Shorten the prompt."
        raise ConfigError(
            f"{prompt} prompt tokens and {tokens} new ones exceed the model's "
            f"{decoder.positions} learned positions. {advice}"
        )


def make_generate(model, tokens, how, eos=-1, top=0):
    """Returns generate(params, batch, key) -> `Drawn` of [B, tokens], of fixed shape: jit it.

    Args:
        model: `models.Model` or `Decoder`.
        tokens: how many to draw a row, at most.
        how: `Sampling`.
        eos: token that ends a row, which is filled with it from there on; -1 for none.
        top: alternatives to tell at each place.

    `batch` is what `pad` returns; params may be the tree as it is trained. Each row's draws depend
    on the key and the row's number alone.
    """
    how.check()
    decodes = model if isinstance(model, Decoder) else decoder(model)
    plan = Plan(how, () if eos < 0 else (eos,), top)

    def generate(params, batch, key):
        B, T = batch["tokens"].shape
        check_room(decodes, T, tokens)
        seed_B = jax.random.bits(key, (B,), jnp.uint32)
        limit_B = jnp.full(B, tokens, jnp.int32)
        weights = decodes.prepare(params)
        room = decodes.row(T) + tokens
        state, first = start(decodes, plan, weights, batch, limit_B, seed_B, room)
        _, rest = several(decodes, plan, weights, state, tokens - 1)
        drawn = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), first, rest)
        if eos < 0:
            return drawn
        return drawn._replace(tokens=jnp.where(drawn.tokens < 0, eos, drawn.tokens))

    return generate
