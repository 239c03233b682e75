"""Transforms that move stretches of tokens."""

import itertools

import numpy as np

from jaxllm.data.transforms.draws import uniform
from jaxllm.data.transforms.marks import NOTHING
from jaxllm.data.transforms.masks import check_rate
from jaxllm.data.transforms.pairs import batch_of


def span_counts(size, rate, mean):
    """Returns (tokens to corrupt, spans) of a row of `size` tokens."""
    count = min(max(round(size * rate), 1), size - 1)
    return count, min(max(round(count / mean), 1), size - count)


def segmentation(draw, total, parts):
    """Cuts `total` into `parts` random lengths of at least 1.

    Args:
        draw: float[≥ total - 1], one random number a possible cut.
    """
    cuts = np.sort(np.argsort(draw[: total - 1])[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=total)


def corruption(vocab, eos, marks=NOTHING, *, rate=0.15, mean=3.0):
    """Span corruption for an encoder and a decoder (Raffel et al. 2020, sections 3.1.4, 3.3.4).

    A row is one stretch of text, whatever documents it holds. Random spans of it become one
    sentinel each: <extra_id_0> and on where the tokenizer has them, else the last id of the model,
    then downwards. `inputs` [B, S] is what is left; `targets` [B, T'] are the spans, each behind
    its sentinel, and a last sentinel; both end with the end token. `tokens` are the targets one
    later, behind the token that decoders begin with. `inputs_segment` is 1 on what is no padding.

    Args:
        rate: share of the tokens that is corrupted.
        mean: tokens in a span, in the mean.
    """
    del eos
    if not 0 < rate < 1:
        raise ValueError(f"rate={rate} must be above 0 and below 1, such as 0.15.")
    if mean < 1:
        raise ValueError(f"mean={mean} must be at least 1, such as 3.0.")

    end = [marks.eos] if marks.eos >= 0 else []

    def one(row, draw, sentinels):
        """Returns (inputs, targets) of the tokens of a row."""
        if len(row) < 2:
            return (), ()
        count, spans = span_counts(len(row), rate, mean)
        corrupt = segmentation(draw[0], count, spans)
        kept = segmentation(draw[1], len(row) - count, spans)
        last = np.cumsum(kept + corrupt)
        inputs, targets = [], []
        for i in range(spans):
            first, sentinel = last[i] - corrupt[i], sentinels[i : i + 1]
            inputs += [row[first - kept[i] : first], sentinel]
            targets += [sentinel, row[first : last[i]]]
        targets.append(sentinels[spans : spans + 1])
        return np.concatenate([*inputs, end]), np.concatenate([*targets, end])

    def transform(batch, keys):
        T = batch["tokens"].shape[1]
        count, spans = span_counts(T, rate, mean)
        size, long = T - count + spans + len(end), count + spans + 1 + len(end)
        sentinels = marks.sentinels(vocab, spans + 1)
        draws = [uniform(keys, use, T) for use in ("corrupt", "kept")]
        rows = zip(batch["tokens"], batch["segment"], *draws, strict=True)
        found = [one(row[segment > 0], draw, sentinels) for row, segment, *draw in rows]
        return batch_of(found, (size, long), marks.start)

    return transform


def fill_in_the_middle(vocab, eos, marks=NOTHING, *, rate=0.5, spm=0.5):
    """Moves the middle of documents to their ends (Bavarian et al. 2022, section 3).

    Prefix, suffix, middle (PSM): <pre> prefix <suf> suffix <mid> middle. Suffix, prefix, middle
    (SPM, their variant 2): <pre> <suf> suffix <mid> prefix middle. The sentinels are the last three
    ids of the vocabulary, in this order. They take the place of a document's last three tokens but
    its end, which stays behind; one of fewer than eight tokens stays as it is.

    Args:
        rate: share of the documents.
        spm: share of these that is in the second form.
    """
    del marks
    check_rate(rate)
    check_rate(spm, "spm")
    pre, suf, mid = ([vocab - 3 + i] for i in range(3))

    def one(ids, fate, form, cuts):
        """Returns the ids of a document in their new order, as many as before."""
        end = ids[-1:] if eos >= 0 and ids[-1] == eos else ids[:0]
        body = ids[: len(ids) - len(end) - 3]
        if fate >= rate or len(ids) < 8:
            return ids
        first, second = np.sort((cuts * (len(body) + 1)).astype(np.int64))
        prefix, middle, suffix = body[:first], body[first:second], body[second:]
        if form < spm:
            return np.concatenate([pre, suf, suffix, mid, prefix, middle, end])
        return np.concatenate([pre, prefix, suf, suffix, mid, middle, end])

    def transform(batch, keys):
        tokens, targets = batch["tokens"].copy(), batch["targets"].copy()
        draw = uniform(keys, "fim", 4 * (tokens.shape[1] + 1)).reshape(len(tokens), -1, 4)
        for b, segment in enumerate(batch["segment"]):
            edges = np.flatnonzero(np.diff(segment, prepend=-1, append=-1))
            for first, last in itertools.pairwise(edges):
                if not segment[first]:
                    continue
                more = int(batch["weight"][b, last - 1] > 0)  # the last target is the document's
                ids = np.append(tokens[b, first:last], targets[b, last - more : last])
                fate, form, *cuts = draw[b, segment[first]]
                new = one(ids, fate, form, np.array(cuts))
                tokens[b, first:last] = new[: last - first]
                targets[b, first : last - 1 + more] = new[1:]
        return {**batch, "tokens": tokens, "targets": targets}

    return transform
