"""Keeps what reads like a special token in a message from becoming one."""

import json
import re

from jaxllm.tokenizers.base import TokenizerError

# A plane for private use: no text means anything by these characters.
FIRST, LAST = 0xF0000, 0xFFFFD


class Guard:
    """Stand-ins for characters, so that messages hold no special token while they are rendered.

    The first character of whatever reads like a special token becomes a private character that is
    nowhere in the chat, and so does one where a text begins like the end of a special token or
    ends like its beginning, since others could complete it. Lengths stay, so templates that look
    into messages see what they would.

    Args:
        specials: names of special tokens.
        everything: all that is rendered, to find characters that are nowhere in it.
    """

    def __init__(self, specials, everything):
        self._specials = [token for token in specials if token]
        starts = "|".join(f"(?={re.escape(token)})" for token in self._specials)
        # In any case of letters: a template may change that.
        self._starts = re.compile(starts, re.IGNORECASE) if starts else None
        self._heads = {t[i:].lower() for t in self._specials for i in range(1, len(t))}
        self._tails = {t[:i].lower() for t in self._specials for i in range(1, len(t))}
        self._longest = max(map(len, self._specials), default=0)
        used = set(json.dumps(everything, ensure_ascii=False, default=str))
        self._free = (chr(i) for i in range(FIRST, LAST) if chr(i) not in used)
        self.around = (next(self._free), next(self._free))
        self._stand_in, self._shown = {}, {}

    def hide(self, value):
        """Returns a value with stand-ins in all of its strings."""
        if isinstance(value, str):
            return self._hide(value) if self._starts else value
        if isinstance(value, dict):
            return {self.hide(k): self.hide(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(part) for part in value]
        return value

    def _hide(self, text):
        places = {match.start() for match in self._starts.finditer(text)}
        low = text.lower() if len(text.lower()) == len(text) else text
        for size in range(1, min(self._longest, len(text)) + 1):
            if low[:size] in self._heads:
                places.add(0)
            if low[len(text) - size :] in self._tails:
                places.add(len(text) - size)
        if len(text) <= self._longest and any(low in token.lower() for token in self._specials):
            places.update({0} if text else ())
        parts = list(text)
        for place in places:
            parts[place] = self._other(parts[place])
        return "".join(parts)

    def _other(self, character):
        if character not in self._stand_in:
            try:
                self._stand_in[character] = next(self._free)
            except StopIteration:
                raise TokenizerError("a chat uses all characters for private use.") from None
            self._shown[ord(self._stand_in[character])] = character
        return self._stand_in[character]

    def hides(self, text):
        """Whether a text holds a stand-in."""
        return any(chr(code) in text for code in self._shown)

    def show(self, text):
        """Returns a text with what the stand-ins stand for."""
        return text.translate(self._shown)

    def spans(self, text):
        """Returns (text without what is `around` answers, [(start, end)] of them)."""
        parts, starts, spans, size = [], [], [], 0
        for part in re.split(f"([{''.join(self.around)}])", text):
            if part == self.around[0]:
                starts.append(size)
            elif part == self.around[1] and starts:
                spans.append((starts.pop(), size))
            elif part not in self.around:
                parts.append(part)
                size += len(part)
        return "".join(parts), sorted(spans)


def pieces(text, pattern, cuts=()):
    """Yields (start, end, special token or None) of a text, one after the other.

    Args:
        text: what is cut.
        pattern: of special tokens.
        cuts: places at which plain text is cut, too.
    """
    at = 0
    for match in [*pattern.finditer(text), None]:
        end = match.start() if match else len(text)
        within = [cut for cut in cuts if at < cut < end]
        for start, stop in zip([at, *within], [*within, end], strict=True):
            if start < stop:
                yield start, stop, None
        if match:
            yield match.start(), match.end(), match[0]
            at = match.end()
