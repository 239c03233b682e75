"""Continuous batching: a fixed number of slots, and a queue of prompts that go through them.

A prompt is read into a free slot while others wait one call; then all slots decode several tokens a
call. The next call starts before the tokens of the last one are fetched, so the host's work costs
no time on the device. Rows are independent of one another: each has its own place in the cache and
its own random keys.
"""

import collections
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import ConfigError
from jaxllm.models import cache as caches
from jaxllm.models.generate import loop

SHORTEST = 16  # tokens that a prompt is padded to, at least
SMALLEST = 256  # tokens that a cache has room for, at least
GROWS = 1024  # tokens; a cache for longer rows grows to them as they do


class Request(NamedTuple):
    """What is asked of an engine.

    Attributes:
        prompt: token ids, at least one.
        tokens: to draw, at most.
        seed: of the draws; not of the slot or the batch.
    """

    prompt: Any
    tokens: int
    seed: int = 0


class Piece(NamedTuple):
    """New tokens of a request.

    Attributes:
        index: of the request.
        tokens: list of ids; an end token is among them.
        logp: list of their log-probabilities.
        top: list of [(token, log-probability), …], likeliest first.
        done: whether it is the last piece.
    """

    index: int
    tokens: list
    logp: list
    top: list
    done: bool


def bucket(n, smallest):
    """The smallest of smallest · (1, 1.5, 2, 3, 4, 6, 8, …) that is at least n."""
    size = smallest
    while size < n:
        half = size + size // 2
        if half >= n:
            return half
        size *= 2
    return size


class Engine:
    """Slots that decode together.

    Attributes:
        weights: of the decoder, prepared.
        slots: rows that decode at once.
    """

    def __init__(self, decoder, params, plan, *, slots=8, steps=16, prepared=False):
        """Prepares weights; compiles nothing yet.

        Args:
            decoder: `Decoder`.
            params: of its model.
            plan: `loop.Plan`.
            slots: rows that decode at once, at least 1.
            steps: tokens a call; more: fewer visits to the host, later first words.
            prepared: whether params are weights that `prepare` returned.

        Raises:
            ConfigError: no slot or no step.
        """
        for name, value in (("slots", slots), ("steps", steps)):
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1. Try {name}=8.")
        plan.how.check()
        self.decoder, self.plan, self.slots, self.steps = decoder, plan, slots, steps
        self.weights = params if prepared else jax.jit(decoder.prepare)(params)
        self._read = jax.jit(self._admit, static_argnums=0, donate_argnums=2)
        self._several = jax.jit(self._decode, donate_argnums=1)
        self._grow = jax.jit(self._longer, static_argnums=1)
        self._stopped = set()

    def _admit(self, inputs, weights, state, batch, limit_P, seed_P, slot_P):
        T = batch["tokens"].shape[1]
        start = functools.partial(loop.start, self.decoder, self.plan, weights)
        rows, drawn = start(batch, limit_P, seed_P, self.decoder.row(T), inputs)
        return caches.put_rows(state, rows, slot_P), drawn

    def _decode(self, weights, state, owned_B):
        state = state._replace(left_B=jnp.where(owned_B, state.left_B, 0))
        return loop.several(self.decoder, self.plan, weights, state, self.steps)

    def _longer(self, state, length):
        return state._replace(cache=self.decoder.grow(state.cache, length))

    def _empty(self, length, inputs):
        nothing = {n: np.zeros((self.slots, 1), np.int32) for n in ("tokens", "segment")}
        zero_B = jnp.zeros(self.slots, jnp.int32)
        start = functools.partial(loop.start, self.decoder, self.plan)

        def shapes(weights):
            return start(weights, nothing, zero_B, zero_B, length, inputs)[0]

        like = jax.eval_shape(shapes, self.weights)
        return jax.jit(lambda: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like))()

    def stop(self, index):
        """Ends a request of the present `run` before its time; its slot goes to the next."""
        self._stopped.add(index)

    def check(self, request, index):
        """Raises ConfigError for a request that cannot be."""
        if not len(request.prompt):
            raise ConfigError(f"Prompt {index + 1} has no tokens. Give at least one.")
        if request.tokens < 1:
            raise ConfigError(f"tokens={request.tokens} must be at least 1. Try 200.")
        worst = max(request.prompt) if min(request.prompt) >= 0 else min(request.prompt)
        if not 0 <= worst < self.decoder.vocab:
            raise ConfigError(
                f"Prompt {index + 1} has token {worst}, and the model {self.decoder.vocab} tokens."
                " Take the model's own tokenizer."
            )
        loop.check_room(self.decoder, len(request.prompt), request.tokens)

    def run(self, requests):
        """Yields a `Piece` at a time, of all requests in turn, until all are done.

        Args:
            requests: `Request`s.

        Raises:
            ConfigError: one that cannot be, before any is begun.
        """
        for index, request in enumerate(requests):
            self.check(request, index)
        self._stopped.clear()
        run = _Run(self, list(requests))
        while run.waiting or run.busy() or run.flight:
            run.admit()
            run.decode()
            # One call stays in flight while its tokens' fate is decided on the host.
            while len(run.flight) > (1 if run.busy() else 0):
                yield from run.collect()
                run.free()


class _Run:
    """One pass of requests through an engine."""

    def __init__(self, engine, requests):
        self.engine, self.requests = engine, requests
        self.waiting = collections.deque(range(len(requests)))
        self.owners = [None] * engine.slots
        self.length = np.zeros(engine.slots, int)  # tokens that each row may have by now
        self.drawn = collections.Counter()  # tokens of each request that were fetched
        self.finished, self.flight = set(), collections.deque()
        longest = max((self.begins(r) + r.tokens for r in requests), default=1)
        self.room = bucket(min(longest, GROWS), SMALLEST)
        self.inputs = 0  # tokens that there is room for, of an encoder's
        if engine.decoder.start >= 0:
            self.inputs = engine.decoder.lead
            self.inputs += max(map(self.padded, range(len(requests))), default=1)
        self.state = engine._empty(self.room, self.inputs)

    def begins(self, request):
        """Tokens that stand in a row before the first is drawn."""
        return self.engine.decoder.row(len(request.prompt))

    def padded(self, index):
        """Tokens of a request's prompt with its padding, which also needs a learned position."""
        size = bucket(len(self.requests[index].prompt), SHORTEST)
        return min(size, self.engine.decoder.positions or size)

    def busy(self):
        return any(owner is not None for owner in self.owners)

    def free(self):
        """Frees the slots of requests that are done or were stopped."""
        self.finished |= self.engine._stopped
        for slot, owner in enumerate(self.owners):
            if owner in self.finished:
                self.owners[slot] = None

    def _fit(self, tokens):
        if tokens > self.room:
            self.room = bucket(max(tokens, 2 * self.room), SMALLEST)
            self.state = self.engine._grow(self.state, self.room)

    def admit(self):
        """Reads waiting prompts of about one length into free slots."""
        free = [slot for slot, owner in enumerate(self.owners) if owner is None]
        while self.waiting and self.waiting[0] in self.engine._stopped:
            self.waiting.popleft()
        if not free or not self.waiting:
            return
        size = self.padded(self.waiting[0])
        taken = []
        for index in list(self.waiting):
            if self.padded(index) == size and len(taken) < len(free):
                taken.append(index)
                self.waiting.remove(index)
        rows = 1
        while rows < len(taken):
            rows *= 2
        rows = min(rows, self.engine.slots)
        self._fit(self.engine.decoder.row(size))
        batch = loop.pad([self.requests[i].prompt for i in taken], size)
        del batch["position"]
        more = rows - len(taken)
        batch = {name: np.pad(x, ((0, more), (0, 0))) for name, x in batch.items()}
        slots = free[: len(taken)]
        numbers = [
            np.pad(np.array(x), (0, more), constant_values=fill).astype(dtype)
            for x, fill, dtype in (
                ([self.requests[i].tokens for i in taken], 0, np.int32),
                ([self.requests[i].seed % 2**32 for i in taken], 0, np.uint32),
                (slots, self.engine.slots, np.int32),
            )
        ]
        self.state, drawn = self.engine._read(
            self.inputs, self.engine.weights, self.state, batch, *numbers
        )
        for slot, index in zip(slots, taken, strict=True):
            self.owners[slot], self.length[slot] = index, self.begins(self.requests[index])
        self._send(taken, drawn)
        self._retire()

    def decode(self):
        """Starts the next call of all slots."""
        if not self.busy():
            return
        steps, owned = self.engine.steps, np.array([o is not None for o in self.owners])
        self._fit(max(self.length[owned]) + steps)
        self.state, drawn = self.engine._several(self.engine.weights, self.state, owned)
        self._send(list(self.owners), drawn)
        self.length += steps
        self._retire()

    def _retire(self):
        """Frees the slots of rows whose last token is under way."""
        for slot, index in enumerate(self.owners):
            if index is None:
                continue
            request = self.requests[index]
            if self.length[slot] + 1 >= self.begins(request) + request.tokens:
                self.owners[slot] = None

    def _send(self, owners, drawn):
        for x in drawn:
            x.copy_to_host_async()
        self.flight.append((owners, drawn))

    def collect(self):
        """Yields the pieces of the oldest call in flight."""
        owners, drawn = self.flight.popleft()
        tokens, logp, top_tokens, top_logp = jax.device_get(drawn)
        for row, index in enumerate(owners):
            if index is None or index in self.finished or index in self.engine._stopped:
                continue
            n = int((tokens[row] >= 0).sum())
            self.drawn[index] += n
            ids = tokens[row, :n].tolist()
            done = self.drawn[index] >= self.requests[index].tokens or n < tokens.shape[1]
            done = done or (bool(n) and ids[-1] in self.engine.plan.eos)
            if done:
                self.finished.add(index)
            top = [
                list(zip(a.tolist(), b.tolist(), strict=True))
                for a, b in zip(top_tokens[row, :n], top_logp[row, :n], strict=True)
            ]
            yield Piece(index, ids, logp[row, :n].tolist(), top, done)
