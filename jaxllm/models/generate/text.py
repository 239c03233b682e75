"""From tokens to text as they come: whole characters only, cut before a stop string."""

from jaxllm.tokenizers.base import UNKNOWN

CONTEXT = 8  # tokens of the prompt that decoding sees: some tokenizers drop a text's first space


class Stream:
    """The text of one prompt's continuation.

    Attributes:
        text: that was given out so far.
        tokens: ids that belong to it.
        stopped: whether a stop string was found; nothing follows.
    """

    def __init__(self, tokenizer, prompt=(), stop=(), ends=()):
        """Begins with nothing.

        Args:
            tokenizer: as in `jaxllm.tokenizers`.
            prompt: token ids before the continuation.
            stop: strings before which the text ends, wherever tokens begin and end.
            ends: end tokens, which give no text.
        """
        self.decode, self.stop, self.ends = tokenizer.decode, tuple(filter(None, stop)), set(ends)
        self.before = [int(t) for t in prompt][-CONTEXT:]
        self.skip = len(self.decode(self.before)) if self.before else 0
        self.tokens, self.text, self.stopped = [], "", False

    def _all(self, count=None):
        return self.decode([*self.before, *self.tokens[:count]])[self.skip :]

    def push(self, tokens, last=False):
        """Returns the text that new tokens let out.

        Args:
            tokens: ids.
            last: whether no more follow, so that nothing is held back.
        """
        if self.stopped:
            return ""
        self.tokens += [int(t) for t in tokens if int(t) not in self.ends]
        whole = self._all()
        found = min((i for i in (whole.find(s) for s in self.stop) if i >= 0), default=-1)
        if found >= 0:
            self.stopped = True
            while len(self.tokens) > 1 and self._has_stop(len(self.tokens) - 1):
                self.tokens.pop()
            safe = whole[:found]
        else:
            safe = whole if last else whole[: self._safe(whole)]
        new, self.text = safe[len(self.text) :], safe if len(safe) > len(self.text) else self.text
        return new

    def _has_stop(self, count):
        text = self._all(count)
        return any(s in text for s in self.stop)

    def _safe(self, text):
        """How much of a text cannot change: no broken character, no beginning of a stop string."""
        end = len(text.rstrip(UNKNOWN))
        for stop in self.stop:
            for size in range(min(len(stop) - 1, end), 0, -1):
                if text.startswith(stop[:size], end - size):
                    end -= size
                    break
        return max(end, len(self.text))
