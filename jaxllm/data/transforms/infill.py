"""Text infilling and sentences out of order: BART (Lewis et al. 2020, section 2.2)."""

import math

import numpy as np

from jaxllm.data.transforms.draws import uniform
from jaxllm.data.transforms.marks import NOTHING
from jaxllm.data.transforms.masks import check_rate
from jaxllm.data.transforms.pairs import batch_of

LONGEST = 64  # tokens of a span; a mean above half of it is refused


def poisson(draw, mean):
    """Returns Poisson numbers, at most LONGEST, of uniform ones in [0, 1)."""
    chance = [math.exp(-mean + k * math.log(mean) - math.lgamma(k + 1)) for k in range(LONGEST)]
    return np.searchsorted(np.cumsum(chance), draw, "right")


def spans_of(draw, size, mean):
    """Returns the lengths of spans that hold `size` tokens together, some of them none.

    No more spans than tokens, so that a text never grows.
    """
    lengths = poisson(draw[:size], mean)
    enough = int(np.searchsorted(np.cumsum(lengths), size)) + 1
    lengths = lengths[:enough]
    if lengths.size:
        lengths[-1] -= max(int(lengths.sum()) - size, 0)
    return lengths


def make(vocab, eos, marks=NOTHING, *, rate=0.3, mean=3.0, mask_id=-1, permute=True):
    """Spans become one mask each, sentences change places; the whole text is to be written.

    A row is one stretch of text, whatever documents it holds; sentences change places within their
    document. `inputs` [B, S] is the spoilt text, `targets` [B, S] the text, `tokens` the targets
    one later, behind the token that decoders begin with. Both end with the end token.

    Args:
        rate: share of the tokens that is in spans.
        mean: tokens of a span, in the mean; lengths are Poisson, and one of 0 puts in a mask.
        mask_id: the mask; -1 for the tokenizer's, or the last id of the model.
        permute: sentences change places. One ends with ".", "!", "?" or a line's end.
    """
    del eos
    check_rate(rate)
    if not 0 < mean <= LONGEST / 2:
        raise ValueError(f"mean={mean} must be above 0 and at most {LONGEST // 2}, such as 3.0.")
    mask_id = marks.mask(vocab) if mask_id < 0 else mask_id
    stops = np.array([i for i, p in enumerate(marks.pieces) if p.text[-1:] in tuple(".!?\n")])
    end = [marks.eos] if marks.eos >= 0 else []

    def shuffled(row, segment, draw):
        """Returns the tokens of a row with the sentences of each document in random order."""
        first = np.append(True, np.isin(row[:-1], stops) | (np.diff(segment) != 0))
        begin = np.flatnonzero(first)
        order = np.lexsort((draw[begin], segment[begin]))
        pieces = np.split(row, begin[1:])
        return np.concatenate([pieces[i] for i in order])

    def masked(row, lengths, place):
        """Returns a row with spans of these lengths as one mask each."""
        kept = len(row) - int(lengths.sum())
        lengths = lengths[: kept + 1]
        gap = np.sort(np.argsort(place[: kept + 1])[: len(lengths)])  # none touches another
        out, at, done = [], 0, 0
        for length, before in zip(lengths.tolist(), gap.tolist(), strict=True):
            out += [row[at : at + before - done], [mask_id]]
            at, done = at + before - done + length, before
        return np.concatenate([*out, row[at:]])

    def one(row, segment, order, lengths, places):
        """Returns (inputs, targets) of the tokens of a row."""
        if not len(row):
            return (), ()
        inputs = shuffled(row, segment, order) if permute else row
        count = round(rate * len(row))
        if count:
            inputs = masked(inputs, spans_of(lengths, count, mean), places)
        return np.append(inputs, end), np.append(row, end)

    def transform(batch, keys):
        size = batch["tokens"].shape[1]
        draws = [uniform(keys, use, size + 1) for use in ("order", "lengths", "places")]
        rows = zip(batch["tokens"], batch["segment"], *draws, strict=True)
        found = [one(row[segment > 0], segment[segment > 0], *draw) for row, segment, *draw in rows]
        return batch_of(found, (size + len(end), size + len(end)), marks.start)

    return transform
