"""Transforms that leave every token in its place."""

import numpy as np

from jaxllm.data.transforms.draws import ranks, uniform
from jaxllm.data.transforms.marks import NOTHING


def check_rate(rate, name="rate"):
    """Raises ValueError for a share outside 0 to 1."""
    if not 0 <= rate <= 1:
        raise ValueError(f"{name}={rate} must be from 0 to 1, such as 0.15.")


def random_ids(keys, use, size, vocab):
    """Returns int32[rows, size], ids below `vocab`, all alike likely."""
    return (uniform(keys, use, size) * vocab).astype(np.int32)


def bert(
    vocab, eos, marks=NOTHING, *, rate=0.15, masked=0.8, replaced=0.1, mask_id=-1, whole_words=False
):
    """Masked language modelling (Devlin et al. 2019, section 3.1).

    Of `rate` of the tokens of a row 80 % become the mask, 10 % a random token, 10 % stay. `targets`
    are the tokens themselves; `weight` is 1 on those chosen. Special tokens are never chosen.

    Args:
        rate: share of the tokens that is predicted.
        masked, replaced: shares of those that become the mask, and another token.
        mask_id: the mask; -1 for the tokenizer's, or the last id of the model.
        whole_words: choose all tokens of a word or none.
    """
    del eos
    for name, share in (("rate", rate), ("masked", masked), ("replaced", replaced)):
        check_rate(share, name)
    check_rate(masked + replaced, "masked + replaced")
    mask_id = marks.mask(vocab) if mask_id < 0 else mask_id

    def transform(batch, keys):
        tokens = batch["tokens"]
        real = (batch["segment"] > 0) & ~np.isin(tokens, marks.special)
        size = tokens.shape[1]
        count = np.round(rate * real.sum(axis=1)).astype(np.int64)
        draw = uniform(keys, "chosen", size)
        if whole_words:
            chosen = choose_words(tokens, batch["segment"], real, draw, count, begins(marks, vocab))
        else:
            chosen = ranks(np.where(real, draw, 2.0)) < count[:, None]
        fate = uniform(keys, "fate", size)
        other = random_ids(keys, "other", size, mask_id if mask_id == vocab - 1 else vocab)
        new = np.where(fate < masked, mask_id, np.where(fate < masked + replaced, other, tokens))
        return {
            **batch,
            "tokens": np.where(chosen, new, tokens).astype(np.int32),
            "targets": tokens,
            "weight": chosen.astype(np.float32),
        }

    return transform


def begins(marks, vocab):
    """Returns bool[vocab]: whether a token begins a word.

    In a vocabulary with pieces such as "##ing" these go on with one; in others those without a
    space do.
    """
    texts = [piece.text for piece in marks.pieces]
    if not texts:
        return np.ones(vocab, bool)
    if any(text.startswith("##") and len(text) > 2 for text in texts):
        return np.array([not text.startswith("##") for text in texts])
    return np.array([text[:1].isspace() for text in texts])


def choose_words(tokens, segment, real, draw, count, first):
    """Returns bool[B, T]: whole words in random order, while no more than `count` tokens are."""
    new = first[np.minimum(tokens, len(first) - 1)] | (np.diff(segment, axis=1, prepend=-1) != 0)
    new |= ~real
    new[:, 1:] |= ~real[:, :-1]
    chosen = np.zeros_like(real)
    for row in range(len(tokens)):
        word = np.cumsum(new[row]) - 1
        sizes = np.bincount(word)
        order = np.argsort(np.where(real[row], draw[row], 2.0)[np.flatnonzero(new[row])])
        order = order[real[row][np.flatnonzero(new[row])][order]]
        taken = order[np.cumsum(sizes[order]) <= count[row]]
        chosen[row] = np.isin(word, taken)
    return chosen & real


def permutation(vocab, eos, marks=NOTHING, *, predicted=6):
    """Permutation language modelling (Yang et al. 2019, XLNet, section 2.3).

    `order` [B, T] (int32) is the place of a token in its document's random order: it is predicted
    from the tokens of its segment whose order is lower. `targets` are the tokens themselves;
    `weight` is 1 on the last of the order, one in `predicted` of a document.

    Args:
        predicted: K of the paper.
    """
    del vocab, eos, marks
    if predicted < 1:
        raise ValueError(f"predicted={predicted} must be at least 1, such as 6.")

    def transform(batch, keys):
        segment = batch["segment"]
        real = segment > 0
        # Segments one after another, shuffled within; a row's padding comes last.
        value = np.where(real, segment, segment.max(initial=0) + 1)
        place = ranks(value + uniform(keys, "order", segment.shape[1]))
        order = np.where(real, place - starts(segment), 0)
        size = sizes(segment)
        # The first of an order has nothing to be predicted from.
        last = real & (order >= np.maximum(size - np.maximum(size // predicted, 1), 1))
        return {
            **batch,
            "targets": batch["tokens"],
            "order": order.astype(np.int32),
            "weight": last.astype(np.float32),
        }

    return transform


def prefix(vocab, eos, marks=NOTHING):
    """Prefix language modelling (Liu et al. 2018; Raffel et al. 2020, section 3.2.1).

    `prefix` [B, T] (int32) is 1 on a random first part of every document, one token to all, which
    may be seen from all of it. `weight` is 0 where the target is in the prefix.
    """
    del vocab, eos, marks

    def transform(batch, keys):
        segment = batch["segment"]
        draw = uniform(keys, "prefix", segment.shape[1] + 1)
        long = 1 + np.take_along_axis(draw, segment.astype(np.int64), 1) * sizes(segment)
        index = np.arange(segment.shape[1]) - starts(segment)
        inside = (index < long.astype(np.int64)) & (segment > 0)
        seen = (index + 1 < long.astype(np.int64)) & (segment > 0)
        weight = np.where(seen, 0, batch["weight"]).astype(np.float32)
        return {**batch, "prefix": inside.astype(np.int32), "weight": weight}

    return transform


def noise(vocab, eos, marks=NOTHING, *, rate=0.1):
    """Replaces a share of the tokens that are read, not of those to be predicted, by random ones.

    Xie et al. 2017, "Data noising as smoothing in neural network language models" (with a uniform
    proposal).

    Args:
        rate: the share.
    """
    del eos, marks
    check_rate(rate)

    def transform(batch, keys):
        tokens = batch["tokens"]
        hit = (uniform(keys, "hit", tokens.shape[1]) < rate) & (batch["segment"] > 0)
        other = random_ids(keys, "other", tokens.shape[1], vocab)
        return {**batch, "tokens": np.where(hit, other, tokens)}

    return transform


def word_dropout(vocab, eos, marks=NOTHING, *, rate=0.1, unknown=-1):
    """Puts one id in the place of a share of the tokens that are read (Bowman et al. 2016).

    Args:
        rate: the share.
        unknown: the id; -1 for the last of the vocabulary.
    """
    del eos, marks
    check_rate(rate)
    unknown = vocab - 1 if unknown < 0 else unknown

    def transform(batch, keys):
        tokens = batch["tokens"]
        hit = (uniform(keys, "hit", tokens.shape[1]) < rate) & (batch["segment"] > 0)
        return {**batch, "tokens": np.where(hit, np.int32(unknown), tokens)}

    return transform


def sizes(segment):
    """Returns the number of tokens of the segment that each place [B, T] is in."""
    first = np.arange(len(segment))[:, None] * (segment.max(initial=0) + 1)
    where = first + segment
    return np.bincount(where.ravel())[where]


def starts(segment):
    """Returns the column in which the segment of each place [B, T] begins."""
    column = np.arange(segment.shape[1])
    new = np.diff(segment, axis=1, prepend=-1) != 0
    return np.maximum.accumulate(np.where(new, column, 0), axis=1)
