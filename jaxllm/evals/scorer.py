"""What is asked of a model: how likely it finds given continuations, and what it writes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import ConfigError
from jaxllm.models import generate
from jaxllm.models.generate.engine import bucket
from jaxllm.objectives import lm

SHORTEST = 16  # tokens that a row is padded to, at least
ROWS_TOKENS = 4_096  # of a batch, padding included; a row that is longer stands alone
OPTION = 8  # tokens that an option is padded to, at least
OPTIONS_TOKENS = 1_024  # of a batch of options: each has logits of the whole vocabulary
SLOTS = 16  # prompts that are gone on from at once


class Scorer:
    """A model and its tokenizer, ready for tasks.

    Args:
        model: `models.Model`, a decoder or an encoder-decoder.
        params: its parameters, as trained.
        tokenizer: see `jaxllm.tokenizers.Tokenizer`.
        scored: the same model with a kernel that takes rows of any length; None: `model` does.
        begin: whether prompts begin with the tokenizer's beginning token.
        start: token that an encoder-decoder's rows begin with; -1: padding, or 0 without one.

    Attributes:
        reads: whether prompts are an encoder's inputs.
        tokenizer: as given.
        first: ids that stand before a text that nothing else does.

    Raises:
        ConfigError: a model that writes no text, or a tokenizer of another one.
    """

    def __init__(self, model, params, tokenizer, *, scored=None, begin=False, start=-1):
        c = model.config
        if c.assembly == "encoder" or not c.lm_head or c.two_streams:
            raise ConfigError(
                f"model.assembly={c.assembly!r}, lm_head={c.lm_head}, two_streams={c.two_streams}: "
                "general tasks are for models that write text from its beginning to its end. Take "
                "a run of a decoder or an encoder-decoder."
            )
        if tokenizer.vocab_size > c.vocab:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size:,} ids and the model {c.vocab:,} rows of "
                "embeddings. Give the tokenizer of this model."
            )
        self._model, self._params, self.tokenizer = model, params, tokenizer
        self.reads = c.assembly == "encoder_decoder"
        self._start = start if start >= 0 else max(tokenizer.pad, 0)
        self._begin = [tokenizer.bos] if begin and tokenizer.bos >= 0 else []
        self.first = generate.encode(tokenizer, "")
        self._run = jax.jit(_make_run(scored or model))
        self._read = jax.jit(self._read_prompts, static_argnums=2)
        self._option = jax.jit(self._nats_of_option)

    def take(self, params):
        """Takes other parameters of the same model; programs that were compiled stay.

        Args:
            params: as trained; None: those at hand are let go.
        """
        self._params = params
        if "_engine" in vars(self):
            self._engine.weights = None if params is None else self._prepare(params)

    def room(self, length):
        """Tokens of a row, of `length` that are asked for: no more than the model was made for.

        Relative positions of an encoder-decoder have no end. A soft prompt or a prefix has places
        in a row, of which these are what is left.
        """
        c = self._model.config
        endless = self.reads and c.position != "learned"
        return length if endless else min(length, c.positions - self._model.lead)

    def prompt(self, text):
        """Token ids of a prompt as the model reads it."""
        return self._begin + generate.encode(self.tokenizer, text, self.reads)

    def split(self, given, text):
        """Returns (ids given, ids of `text` that follows), tokenized as one text for a decoder.

        A token that is of both counts to what follows. Without anything given it is `first`; an
        encoder-decoder ends what it reads, and what it writes, as in training.
        """
        if self.reads:
            return self.prompt(given), generate.encode(self.tokenizer, text, True)
        if not given:
            return self.first, [int(i) for i in self.tokenizer.encode(text)]
        ids, place_T2 = self.tokenizer.locate(given + text)
        begins = int(np.searchsorted(np.maximum.accumulate(place_T2[:, 1]), len(given), "right"))
        before = self._begin + [int(i) for i in ids[:begins]]
        return before or self.first, [int(i) for i in ids[begins:]]

    @functools.cached_property
    def _engine(self):
        greedy = generate.Sampling(temperature=0.0)
        how = generate.How(greedy, slots=SLOTS, start=self._start)
        engine = generate.make_engine(self._model, self._params, self.tokenizer, how)
        self._prepare = jax.jit(engine.decoder.prepare)
        return engine

    def write(self, prompts, tokens, stop):
        """Returns what the model writes behind prompts, the likeliest token each time.

        Prompts of about one length go together, so that few programs are compiled.

        Args:
            prompts: [text].
            tokens: to write, at most.
            stop: strings before which a text ends.
        """
        ids = [self.prompt(text) for text in prompts]
        how = generate.How(tokens=tokens, stop=tuple(stop))
        found, sizes = [""] * len(ids), [bucket(len(one), SHORTEST) for one in ids]
        for size in sorted(set(sizes)):
            alike = [i for i, other in enumerate(sizes) if other == size]
            for first in range(0, len(alike), SLOTS):
                some = alike[first : first + SLOTS]
                filled = [ids[i] for i in some] + [ids[some[-1]]] * (SLOTS - len(some))
                for at, _, result in generate.stream(self._engine, self.tokenizer, filled, how):
                    if result is not None and at < len(some):
                        found[some[at]] = result.text
        return found

    def nats(self, pairs):
        """Returns the negative log-likelihoods of continuations, in nats.

        Args:
            pairs: [(ids given, at least one; ids that follow)], within what the model takes.

        Returns:
            [float64[ids that follow]].
        """
        rows = [self._row(given, follows) for given, follows in pairs]
        shapes = [tuple(_power(len(side)) for side in row[:2]) for row in rows]
        found = [None] * len(rows)
        for shape, size, some in _together(shapes, lambda shape: ROWS_TOKENS // max(shape)):
            nats_BT = self._score([rows[i] for i in some], shape, size)
            for row, i in enumerate(some):
                n = len(pairs[i][1])
                last = len(rows[i][0])
                found[i] = nats_BT[row, last - n : last].astype(np.float64)
        return found

    def nats_of_options(self, groups):
        """Returns `nats` of groups of pairs, each group's alike beginning read once for all.

        Args:
            groups: [[(ids given, at least one; ids that follow, at least one)]]; for an
                encoder-decoder one input a group.

        Returns:
            [[float64[ids that follow]]].
        """
        cut = [self._cut(group) for group in groups]
        shapes = [self._size(begin, rest) for begin, rest in cut]
        found = [None] * len(groups)

        def most(shape):
            return min(ROWS_TOKENS // max(shape[0], 1), OPTIONS_TOKENS // shape[1])

        for (size, width), rows, some in _together(shapes, most):
            if not size:  # nothing that could be read once
                for i in some:
                    found[i] = self.nats(groups[i])
                continue
            scored = self._score_options([cut[i] for i in some], size, width, rows)
            for i, each in zip(some, scored, strict=True):
                found[i] = [
                    nats[: len(rest)][-len(follows) :]
                    for nats, rest, (_, follows) in zip(each, cut[i][1], groups[i], strict=True)
                ]
        return found

    def _cut(self, group):
        """(what is read once for a group, [what stands behind it])."""
        if self.reads:
            return group[0][0], [follows for _, follows in group]
        n = _alike([given for given, _ in group])
        return group[0][0][:n], [[*given, *follows][n:] for given, follows in group]

    def _size(self, begin, rest):
        """Tokens that a prompt and the options behind it are padded to; 0 for no prompt."""
        n = len(begin)
        size = max(min(_power(n), self._engine.decoder.positions or _power(n)), n) if n else 0
        return size, _power(max(map(len, rest)), OPTION)

    def _score_options(self, cut, size, width, rows):
        """[[float64[width] of each option] of each group], some groups' prompts read together."""
        more = [[]] * (rows - len(cut))
        batch = generate.pad([begin for begin, _ in cut] + more, size)
        weights, scored = self._engine.weights, []
        first, cache = self._read(weights, batch, width)
        for number in range(max(len(rest) for _, rest in cut)):
            rest = [rest[number] if number < len(rest) else [] for _, rest in cut] + more
            batch = generate.pad([one[:-1] for one in rest], width)
            batch["targets"] = generate.pad(rest, width)["tokens"]
            scored.append(self._option(weights, first, cache, batch))
        scored = [np.asarray(nats_BW).astype(np.float64) for nats_BW in scored]
        return [[scored[n][i] for n in range(len(rest))] for i, (_, rest) in enumerate(cut)]

    def _read_prompts(self, weights, batch, width):
        decoder = self._engine.decoder
        length = decoder.row(batch["tokens"].shape[1]) + width
        return decoder.read(weights, batch, length)[:2]

    def _nats_of_option(self, weights, first_B1V, cache, batch):
        """float32[B, W], nats of the targets, of which the first stands behind what was read."""
        next_BWV, _ = self._engine.decoder.extend(weights, batch, cache)
        logits_BWV = jnp.concatenate([first_B1V, next_BWV[:, :-1]], axis=1).astype(jnp.float32)
        chosen_BW = jnp.take_along_axis(logits_BWV, batch["targets"][..., None], axis=2)[..., 0]
        return jax.nn.logsumexp(logits_BWV, axis=2) - chosen_BW

    def _row(self, given, follows):
        """(tokens of a row, an encoder's inputs, targets), with places before what is given."""
        given = [*[0] * self._model.lead, *given]
        if self.reads:
            return [self._start, *follows[:-1]], given, follows
        whole = [*given, *follows]
        return whole[:-1], [], whole[1:]

    def _score(self, rows, shape, size):
        more = [([0], [0], [0])] * (size - len(rows))
        T, S = shape
        tokens, inputs, targets = zip(*rows, *more, strict=True)
        batch = generate.pad(tokens, T)
        batch["targets"] = generate.pad(targets, T)["tokens"]
        if self.reads:
            side = generate.pad(inputs, S)
            batch |= {"inputs": side["tokens"], "inputs_segment": side["segment"]}
        return np.asarray(self._run(self._params, batch))


def _power(n, least=SHORTEST):
    """The power of two that a row of n tokens is padded to: few programs for many lengths."""
    return max(1 << (n - 1).bit_length(), least) if n else least


def _together(shapes, most):
    """Yields (shape, rows of a batch, [numbers]) of what has one shape; `most`: shape -> rows."""
    for shape in sorted(set(shapes)):
        alike = [i for i, other in enumerate(shapes) if other == shape]
        rows = 1
        while rows < len(alike) and 2 * rows <= most(shape):
            rows *= 2
        for first in range(0, len(alike), rows):
            yield shape, rows, alike[first : first + rows]


def _alike(rows):
    """How many ids all rows begin with."""
    n = min(map(len, rows))
    return next((i for i in range(n) if any(row[i] != rows[0][i] for row in rows)), n)


def _make_run(model):
    """Returns (params, batch) -> float32[B, T], nats of each target."""

    def run(params, batch):
        targets_BT = batch["targets"]
        B, T = targets_BT.shape
        params = model.whole(params)
        rest = {name: x for name, x in batch.items() if name != "targets"}
        x_BTD, _ = model.hidden(params, rest)
        n = lm.pieces(B, T, model.config.vocab, 0)

        def piece(arrays):
            x_BTD, targets_BT = arrays
            found = model.scores(params, x_BTD, targets_BT)
            return found.partition_BT - found.chosen_BT

        cut = jax.tree.map(
            lambda a: jnp.moveaxis(a.reshape(B, n, T // n, *a.shape[2:]), 1, 0),
            (x_BTD, targets_BT),
        )
        return jnp.moveaxis(jax.lax.map(piece, cut), 0, 1).reshape(B, T)

    return run
