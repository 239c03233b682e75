"""Cuts documents into overlapping passages at the ends of paragraphs and sentences."""

import re
from typing import NamedTuple

from jaxllm.config import ConfigError

# After a paragraph, or after what ends a sentence and the closing marks that follow it.
_ENDS = re.compile(r"\n[ \t]*\n\s*|[.!?…]+[\"'”’)\]]*\s+|[。！？]+\s*|\n(?=[-*#|>\d])")  # noqa: RUF001


class Chunk(NamedTuple):
    """A passage: text[start:end] of its document, without white space around it."""

    start: int
    end: int
    text: str


def cut(text, tokenizer, size_tokens, overlap_tokens=0):
    """Cuts a text into passages.

    Passages are made of whole sentences and begin with as many of the last one's as
    `overlap_tokens` allows. A sentence longer than a passage is cut between words, and a word
    longer than that anywhere. All of the text but white space is in some passage.

    Args:
        text: the document.
        tokenizer: see `jaxllm.tokenizers.Tokenizer`.
        size_tokens: most tokens of a passage.
        overlap_tokens: most tokens that a passage shares with the one before.

    Returns:
        [Chunk].

    Raises:
        ConfigError: the overlap is not below the size, or a character alone has more tokens.
    """
    if not 0 <= overlap_tokens < size_tokens:
        raise ConfigError(
            f"overlap_tokens={overlap_tokens} must be 0 or more, and below "
            f"size_tokens={size_tokens}.\n  Try overlap_tokens={max(size_tokens // 8, 0)}."
        )

    def size(start, end):
        return len(tokenizer.encode(text[start:end].strip()))

    units = _units(text, size, size_tokens)
    found, first = [], 0
    while first < len(units):
        last = first
        # Sums of the parts would count tokens that join at their ends: the whole is counted.
        while last + 1 < len(units) and size(units[first][0], units[last + 1][1]) <= size_tokens:
            last += 1
        found.append((units[first][0], units[last][1]))
        first = _again(units, first, last, size, size_tokens, overlap_tokens)
    return [_chunk(text, *span) for span in found]


def _again(units, first, last, size, most, overlap):
    """The unit that the next passage begins with: one of this passage's end, or the next."""
    following = last + 1
    if following == len(units):
        return following
    end = units[last][1]
    start = following
    while start - 1 > first and size(units[start - 1][0], end) <= overlap:
        start -= 1
    # What is shared must leave room for the next sentence, or nothing new would come.
    while start < following and size(units[start][0], units[following][1]) > most:
        start += 1
    return start


def _units(text, size, most):
    """Returns [(start, end)] of sentences that are no longer than a passage, in their order."""
    ends = [match.end() for match in _ENDS.finditer(text)]
    found, start = [], 0
    for end in [*ends, len(text)]:
        if text[start:end].strip():
            found += _fitting(text, start, end, size, most)
            start = end
    return found


def _fitting(text, start, end, size, most):
    """Yields parts of text[start:end] that fit, cut between words where that can be."""
    while size(start, end) > most:
        low, high = start, end  # the longest beginning that fits, by halving
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(start, middle) <= most else (low, middle)
        if low == start:
            raise ConfigError(
                f"character {start:,} of a document has more than size_tokens={most} tokens.\n"
                f"  Try size_tokens={size(start, start + 1)}."
            )
        space = max(text.rfind(mark, start + 1, low) for mark in " \n\t") + 1
        stop = space if space and text[start:space].strip() else low
        yield start, stop
        start = stop
    if text[start:end].strip():
        yield start, end


def _chunk(text, start, end):
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return Chunk(start, start + len(part.strip()), part.strip())
